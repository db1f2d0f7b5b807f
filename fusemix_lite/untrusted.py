"""Files that somebody else wrote, looked at before they are used: what they say of sizes is compared with what they hold, so
that a line in a configuration can take neither memory nor time, and nothing is read that lies elsewhere.

Reading safetensors and JSON runs no code. What is left to a stranger are the numbers in them.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .disk import plain_bytes, plain_size, read_json
from .errors import FuseMixLiteError

HEADER = 100_000_000  # bytes that the header of a safetensors file has at most, as in the library itself
LARGEST_YAML, DEEPEST_YAML = 2**21, 100  # bytes, brackets
LARGEST = 2**20  # of the numbers that describe a model of ours: the product of three of them is still a number of weights
WIDTHS = {  # bytes a number, of the dtypes that are read
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}


#: What an item is turned into: the least and the most that a number of a processor's configuration may be, by its key.
SIZES = {
    **dict.fromkeys("height width shortest_edge longest_edge size crop_size image_size img_size input_size".split(), (1, 4096)),
    **dict.fromkeys(("feature_size", "num_mel_bins"), (1, 1024)),
    **dict.fromkeys(("n_fft", "fft_window_size"), (1, 2**14)),
    **{"sampling_rate": (1000, 2**18), "hop_length": (16, 2**20), "chunk_length": (0, 3600), "max_length_s": (0, 3600)},
}
# In the names of numbers that say how often, and not how wide: those are compared with the weights.
_LOOPED = re.compile("^(?!.*(?:size|dim|channel|multiple)).*(?:layer|depth|block|stage|expert|repeat|level)")
_LABELS = ("id2label", "label2id")  # names that a classifier gave to numbers: "CD player" is no number of layers
_ELSEWHERE = {  # keys of configurations by which a library would take code or weights from elsewhere, or unpack pickles
    *("quantization_config", "hf_model_name", "checkpoint_path", "pretrained_cfg_overlay"),
    *("timm_model_pretrained", "pretrained_model_args"),
}


class Held(NamedTuple):
    """What a safetensors file says of an array that it holds."""

    dtype: str  # as the format calls it: "F16"
    shape: tuple[int, ...]


def held_by(file: Path) -> dict[str, Held]:
    """The arrays of a safetensors file by name, from its header: none of them is larger than the file.

    Raises FuseMixLiteError for a file that is no safetensors, or whose header does not fit it.
    """
    try:
        size = plain_size(file)
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(size - 8, HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(opened.read(length))
        held, end = {}, 0
        for name, at in header.items():
            if name == "__metadata__":
                continue
            shape, (start, stop) = tuple(at["shape"]), at["data_offsets"]
            if not all(type(number) is int and 0 <= number < 2**63 for number in (*shape, start, stop)):
                raise ValueError(f"{name!r} has no shape")
            if at["dtype"] not in WIDTHS or math.prod(shape) * WIDTHS[at["dtype"]] != stop - start:
                raise ValueError(f"{name!r} is {at['dtype']!r:.20} {shape} in {stop - start} bytes")
            held[name], end = Held(at["dtype"], shape), max(end, stop)
        if 8 + length + end != size:
            raise ValueError(f"{size} bytes, {8 + length + end} by its header")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise FuseMixLiteError(f"{file} cannot be read as safetensors ({type(error).__name__}: {reason})") from error
    return held


def load_fitting(build: Callable[[], Any], file: Path, blocks: int = 0) -> Any:
    """The module that `build` makes, with the weights of a file, which have to be its own: names, shapes, and all finite.

    It is laid out without memory first and compared with what the file holds. `blocks`: how many parts it has that hold a
    weight at least, since laying out a thousand millions of them would take memory, too.

    Raises FuseMixLiteError where they do not fit each other.
    """
    import torch
    from safetensors.torch import load_file

    held = held_by(file)
    if blocks > len(held):
        raise FuseMixLiteError(f"{file} holds {len(held)} weights, too few for {blocks} blocks")
    with torch.device("meta"):
        wanted = build().state_dict()
    for name in sorted(held.keys() ^ wanted.keys()):
        raise FuseMixLiteError(f"{file} {'holds' if name in held else 'lacks'} {name[:80]!r}, which does not fit")
    for name, (dtype, shape) in held.items():
        known = tuple(wanted[name].shape)
        if shape != known or dtype.endswith(("F64", "F32", "F16")) != wanted[name].is_floating_point():
            raise FuseMixLiteError(f"{file} holds {name} as {dtype} {shape}, which does not fit {known}")
    weights = load_file(file)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise FuseMixLiteError(f"{file} holds values in {name} that are not finite")
    with torch.random.fork_rng([]):  # weights are drawn and then replaced: no reason to move the caller's random state
        module = build()
    module.load_state_dict(weights, strict=True)
    return module


def read_yaml(file: Path) -> Any:
    """The content of a YAML file. Raises ValueError, or OSError as reading does.

    Aliases are refused: ten lines of them can stand for more text than a memory holds.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError(f"an alias in line {self.peek_event().start_mark.line + 1}: write it out")
            return super().compose_node(parent, index)

        def fetch_flow_collection_start(self, kind):
            if self.flow_level > DEEPEST_YAML:  # each bracket looks at all that are open
                raise yaml.YAMLError(f"more than {DEEPEST_YAML} brackets open")
            super().fetch_flow_collection_start(kind)

    try:
        return yaml.load(plain_bytes(file, LARGEST_YAML).decode("utf-8"), Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # a date of month 13, a list as a key, …
        raise ValueError(" ".join(str(error).split())[:300]) from error


def entries(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON content that is neither list nor object, with the key under which it stands; no labels."""
    if isinstance(content, dict):
        for name, value in content.items():
            if name not in _LABELS:
                yield from entries(value, name)
    elif isinstance(content, list):
        for value in content:
            yield from entries(value, key)
    else:
        yield key, content


def check_encoder(folder: Path, configs: Sequence[str], weights: Sequence[Path]) -> None:
    """Look through what an encoder's folder says before a library reads it: `configs` are the names of its configurations.

    Raises FuseMixLiteError for what would be taken from elsewhere, and for sizes that its weights cannot have or its items
    should not get.
    """
    if (folder / "adapter_config.json").exists():
        raise FuseMixLiteError("adapter_config.json asks for a model that lies elsewhere: merge it into that, and save it")
    arrays = [held for file in weights for held in held_by(file).values()]
    for name in configs:
        for key, value in entries(read_json(folder / name, "fetch the folder again")):
            # timm: true says how the weights were published once, which does not count for a folder; a text names a loader
            named = key == "custom_load" and isinstance(value, str)
            if key in _ELSEWHERE and value or key.endswith("_implementation") and "/" in str(value) or named:
                raise FuseMixLiteError(f"{name} asks by {key} = {value!r:.80} for what lies elsewhere, which is not taken")
            if key in ("image_size", "img_size", "input_size") and isinstance(value, int) and value > SIZES[key][1]:
                raise FuseMixLiteError(f"{name}: {key} = {value} is absurd")
            if isinstance(value, int) and _LOOPED.search(key) and value > max(len(arrays), 64):
                raise FuseMixLiteError(f"{name}: {key} = {value}, but there are {len(arrays)} weights")
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            _check_sizes(name, read_json(folder / name, "fetch the folder again"))


def _check_sizes(name: str, content: Any) -> None:
    numbers = [(key, value) for key, value in entries(content) if type(value) in (int, float)]
    for key, value in numbers:
        least, most = SIZES.get(key, (-(2**24), 2**24))
        if not least <= value <= most:
            raise FuseMixLiteError(f"{name}: {key} = {value:g} is absurd, give {least} to {most}")
    known = dict(numbers)
    if known.get("chunk_length", 0) * known.get("sampling_rate", 0) > 2**24:
        raise FuseMixLiteError(f"{name}: {known['chunk_length']} s at {known['sampling_rate']} Hz are absurd")


def check_weights(build: Callable[[], Any], weights: Sequence[Path]) -> None:
    """Raise FuseMixLiteError if a configuration describes a model several times as large as its weights: whatever is missing
    or of another shape would be made before that is noticed. `build` makes the model; here without memory."""
    import torch

    held = sum(math.prod(array.shape) for file in weights for array in held_by(file).values())
    with torch.device("meta"):
        model = build()
    wanted = sum(tensor.numel() for tensors in (model.parameters(), model.buffers()) for tensor in tensors)
    if wanted > 4 * held + 2**24:
        raise FuseMixLiteError(f"the configuration describes {wanted:,} weights, the files hold {held:,}")
