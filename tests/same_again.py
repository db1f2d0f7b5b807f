"""Everything of this package that computes, made once: what `test_determinism.py` makes again elsewhere and compares.

    python -m tests.same_again             makes it under other threads and processors: where digits differ, and by how much
    python -m tests.same_again --out FILE  makes it here; with --hostile N in a process that is unlike others in all that
                                           must not matter (see HOSTILE and `disturb`)
"""

import argparse
import contextlib
import glob
import inspect
import json
import locale
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor

from tests.torture import tries

ROOT = Path(__file__).resolve().parent.parent

#: What a process may find around itself: another order of sets, a strict locale of another language and encoding, another day.
HOSTILE = {"PYTHONHASHSEED": "4711", "TZ": "Asia/Kathmandu", "LANGUAGE": "tr", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CALM = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}

#: Settings of threads and processor that leave the results what they are but for rounding; the first is that of the book.
SETTINGS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "AVX2": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "no AVX2": {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "SSE4_2"},
}

#: What rounding changes where a thread more or another processor adds up in another order. All else is the same to the bit.
ROUNDED_BY_THREADS = ("fit", "a tower swapped", "dense_infonce", "tiled_infonce", "linearity", "diversity of a subset")

RECORD = ROOT / "book/results/same-again.json"
RUNS = {"runs of the book", "as recorded"}  # names of what `runs` makes

Results = dict[str, Tensor]


def results(parts: Sequence[Callable[[], "Results"]] = ()) -> Results:
    """Name -> numbers, of everything or of some parts. It takes some seconds of one core, and has to leave every global random
    state as it was. What takes long to import is left to `make torture`."""
    everything = (fits, wide_fits, losses, scores, subsets, spaces, latents, records, folders, *tries((), (probes, pictures)))
    made: Results = {}
    for package in ("sklearn.cluster", "rich.style"):  # draw a number when they are first imported, the second by some torch
        with contextlib.suppress(ImportError):
            import_module(package)
    for part in parts or everything:
        before = states()
        for name, value in part().items():
            assert name not in made
            made[name] = value
        changed = [name for name, state in states().items() if state != before[name]]
        assert not changed, f"{part.__name__} has drawn from, or seeded, the global random state of {', '.join(changed)}"
    return made


def states() -> dict[str, str]:
    """The global random states, which belong to the caller."""
    mt19937 = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "numpy": f"{mt19937[1].tobytes().hex()} {mt19937[2:]}",
        "python": str(random.getstate()),
    }


def numbers(values) -> Tensor:
    """Numbers of Python, with all of their digits."""
    return torch.tensor(values, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed))


def toy(items: int, dims: tuple[int, int], captions: int = 5, seed: int = 0):
    """Pairs with something to learn: two views of the same factors, and noise."""
    from fusemix_lite import LatentPairs

    factors, owner = drawn(items, 4, seed=seed), torch.arange(items).repeat_interleave(captions)
    x, y = (z @ drawn(4, d, seed=d) for z, d in zip((factors, factors[owner]), dims, strict=True))
    return LatentPairs(x + 0.1 * drawn(*x.shape, seed=seed + 1), y + 0.1 * drawn(*y.shape, seed=seed + 2), owner)


def trained(name: str, result) -> Results:
    """All numbers of a `FitResult` but the time it took."""
    history = [[entry["loss"], entry["temperature"]] for entry in result.history]
    looks = [value for entry in result.history for at in entry.get("val", {}).values() for value in at.values()]
    return {
        f"{name}: history": torch.tensor(history, dtype=torch.float64),
        f"{name}: looks": torch.tensor([result.best_step, *looks], dtype=torch.float64),
        f"{name}: weights": torch.cat([tensor.flatten() for tensor in result.model.state_dict().values()]),
    }


def fits() -> Results:
    """`fit` with every scheme, a coefficient a batch and a pair, negatives masked or not, latents standardised or not."""
    from fusemix_lite import SCHEMES, fit

    made, small, val = {}, toy(20, (8, 6)), toy(12, (8, 6), seed=9)
    quick = {"batch_size": 8, "shared_dim": 5, "progress": False}
    for scheme, (per, mask) in product(SCHEMES, (("batch", False), ("pair", True))):
        options = {"augment": scheme, "per": per, "mask_negatives": mask, "standardize": mask, "alpha": 0.5 + mask}
        model = fit(small, val, steps=4, evals=2, seed=3, **options, **quick)
        made |= trained(f"fit, {scheme} a {per}{', masked, standardised' * mask}", model)
    sometimes = fit(small, steps=8, mix_probability=0.5, depth=2, temperature=0.1, **quick)
    return made | trained("fit, mixed now and then", sometimes)


def wide_fits() -> Results:
    """`fit` with latents as wide as those of the book, and a tower that is exchanged afterwards."""
    from fusemix_lite import fit, retrieval
    from fusemix_lite.swapping import swap_tower

    pairs, test = toy(1000, (192, 128)), toy(500, (192, 128), seed=9)
    whole = fit(pairs, test, steps=tries(4, 100), batch_size=256, shared_dim=128, evals=2, seed=3, progress=False)
    recalls = numbers([list(at.values()) for at in retrieval(whole.model, test).values()])
    swapped = swap_tower(whole.model, pairs, keep="text", steps=4, batch_size=64, progress=False)
    return trained("fit, wide", whole) | {"recall of it": recalls} | trained("a tower swapped", swapped)


def losses() -> Results:
    """The loss and its gradients, as a matrix and in tiles, with negatives left out and without."""
    from fusemix_lite.losses import dense_infonce, tiled_infonce

    made, owner = {}, torch.arange(1500)[None] // 5
    for loss, same in product((dense_infonce, tiled_infonce), (None, owner)):
        u, v = (torch.nn.functional.normalize(drawn(1500, 64, seed=s), dim=1).requires_grad_() for s in (1, 2))
        temperature = torch.tensor(0.07, requires_grad=True)
        value = loss(u, v, temperature, same)
        value.backward()
        name = f"{loss.__name__}{'' if same is None else ', masked'}"
        made[name] = torch.cat([value.detach()[None], u.grad.flatten(), v.grad.flatten(), temperature.grad[None]])
    return made


def scores() -> Results:
    """Ranks, and what is told of them and of the spaces."""
    from fusemix_lite.metrics import cluster_bootstrap, guessing, linearity, modality_gap, ranks

    u, owner = torch.nn.functional.normalize(drawn(400, 32), dim=1), torch.arange(400).repeat_interleave(5)
    v = torch.nn.functional.normalize(u[owner] + 0.3 * drawn(2000, 32, seed=1), dim=1)
    found = ranks(u, v, owner)
    hits = 100.0 * (found["y_to_x"] <= 1)
    train, val = toy(150, (12, 10)), toy(80, (12, 10), seed=5)
    straight = linearity(train, val, items=100)
    spread = cluster_bootstrap(hits, owner, resamples=200, generator=Generator().manual_seed(1))
    return {
        "ranks": torch.cat([found["x_to_y"], found["y_to_x"]]),
        "interval over items": numbers(spread),
        "guessing": numbers(list(guessing(owner, 400, 10).values())),
        "modality gap": numbers([modality_gap(u, v)]),
        "linearity": numbers([list(shares) for shares in straight.values()]),
    }


def probes() -> Results:
    """What can be read off latents."""
    from fusemix_lite.probes import knn_probe, linear_probe

    z, z_test = drawn(150, 12), drawn(80, 12, seed=1)
    labels, test_labels = (["left" if value > 0 else "right" for value in found[:, 0].tolist()] for found in (z, z_test))
    found = [probe(z.numpy(), labels, z_test.numpy(), test_labels) for probe in (linear_probe, knn_probe)]
    return {"probes": numbers(found)}


def subsets() -> Results:
    """Every way to pick a subset, from either side and from both."""
    from fusemix_lite.subsets import PICKS, log_determinant, pick, vendi_score

    pairs = toy(600, (24, 20), captions=2)
    made = {f"subset {name}": pick(name, pairs, 100, seed=2) for name in (*PICKS, "kdpp-both-centred")}
    kept = pairs.x[made["subset kdpp-x"]]
    return made | {"diversity of a subset": numbers([vendi_score(kept), log_determinant(kept[:20])])}


def spaces() -> Results:
    """How alike two spaces are, and latents on their principal components."""
    from fusemix_lite.real import reduced
    from fusemix_lite.similarity import cca_recall, cka, mutual_knn, rank_correlation, sides

    pairs = toy(500, (48, 32))
    x, y = sides(pairs)
    tables = drawn(3, 4).numpy(), drawn(3, 4, seed=1).numpy()
    found = [cka(x, y), cka(x, y, debiased=False), mutual_knn(x, y), cca_recall(x, y), *rank_correlation(*tables, resamples=50)]
    on_components = reduced({"train": pairs}, 8)["train"]
    return {"similarity": numbers(found), "principal components": torch.cat([on_components.x, on_components.y])}


def latents() -> Results:
    """The files of a store by each of the lite encoders, byte for byte."""
    from fusemix_lite import SoundingScenes, extract
    from fusemix_lite.encoders import LITE_ENCODERS

    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in LITE_ENCODERS:
            pair = "audio-text" if "audio" in name else "image-text"
            scenes, out = SoundingScenes(pair, "test", tries(6, 80)), Path(folder) / name
            extract(scenes, name, out, batch_size=tries(4, 64), device="cpu", progress=False)
            made |= {f"latents {name}/{file}": content for file, content in files(out).items()}
    return made


def files(folder: Path) -> Results:
    """The content of all files of a folder, the locks of a cache aside."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: as_bytes((folder / name).read_bytes()) for name in names if not name.endswith(".lock")}


def as_bytes(content: bytes | str) -> Tensor:
    return torch.from_numpy(np.frombuffer(content.encode() if isinstance(content, str) else content, np.uint8).copy())


class _AtOnce:
    """In the place of a pool of processes, which would take seconds to start: runs in this one, done in the reverse order."""

    def __init__(self, *args, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def submit(self, call, *args) -> Future:
        future = Future()
        future.set_result(call(*args))
        return future


def records() -> Results:
    """A record of some runs at the smallest scale, from latents that are extracted for it; and what a record depends on."""
    from fusemix_lite import experiments, profile
    from fusemix_lite.arms import plan
    from fusemix_lite.records import fingerprint

    p = profile("smoke", device="cpu", dropouts=(0.2, 0.4), train_items=60, val_items=20, test_items=20, batch_size=16)
    arms = [{"scheme": "fusemix", "items": 50}, {"scheme": "none", "items": 30, "pool": 60, "pick": "clusters-both"}]
    patched = {"plan": lambda name, p: (p, arms), "ProcessPoolExecutor": _AtOnce, "as_completed": reversed}
    kept = {name: getattr(experiments, name) for name in patched}
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, cache(folder), open(os.devnull, "w") as silent:
        experiments.pairs_of.cache_clear()
        vars(experiments).update(patched)
        try:
            with contextlib.redirect_stderr(silent):
                content = experiments.sweep("fusemix", p, workers=1)
        finally:
            vars(experiments).update(kept)
            torch.set_num_threads(threads)  # a run sets one, as it expects a process of its own
    for cell in content["cells"]:
        for run in cell["runs"]:
            del run["seconds"]
    del content["provenance"]  # date, versions, seconds
    prints = {name: fingerprint(*plan(name, profile("smoke"))) for name in ("fusemix", "generation")}
    return {"a record": as_bytes(json.dumps(content)), "fingerprints": as_bytes(json.dumps(prints))}


@contextlib.contextmanager
def cache(folder: str) -> Iterator[None]:
    """Latents go to another folder for a while."""
    kept = os.environ.get("FUSEMIX_LITE_CACHE")
    os.environ["FUSEMIX_LITE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if kept is None:
            del os.environ["FUSEMIX_LITE_CACHE"]
        else:
            os.environ["FUSEMIX_LITE_CACHE"] = kept


def pictures() -> Results:
    """A few steps of the generator, what the reader sees, and adapters that are loaded and asked."""
    from fusemix_lite import SearchIndex
    from fusemix_lite.generation import load_generator
    from fusemix_lite.scene_viewing import load_reader

    generator = load_generator()
    made = generator.generate(drawn(2, generator.dim), Generator().manual_seed(5), steps=3)
    read = load_reader().read(made)
    with tempfile.TemporaryDirectory() as folder, cache(folder):
        index = SearchIndex.shipped("image-text", items=20, device="cpu", progress=False)
        matches = index.search("two red birds on the beach", top=20)
    return {
        "pictures": made,
        "what the reader sees": as_bytes(repr(read)),
        "a search": numbers([match.cosine for match in matches]),
        "its order": torch.tensor([match.row for match in matches]),
    }


def folders() -> Results:
    """What is made of folders: a sample, pairs without a table, the sounds of a public layout."""
    from fusemix_lite import read_pairs
    from fusemix_lite.public_layouts import resolve
    from fusemix_lite.sample_data import write_scenes

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "sample"
        write_scenes(folder, "image-text", 12, captions=2, progress=False)
        made = {f"sample {name}": content for name, content in files(folder).items()}
        (folder / "captions.csv").unlink()
        (folder / "image" / "deeper").mkdir()
        for number, file in enumerate(sorted((folder / "image").glob("*.png"))):
            if number % 3 == 0:
                file = file.rename(folder / "image" / "deeper" / file.name)
            file.with_suffix(".txt").write_text(f"one äpple\n{number} bells", "utf-8")
        found = read_pairs(folder)
        made["a folder without a table"] = as_bytes(json.dumps([found.media, found.items, found.captions]))
        sounds = Path(place) / "sounds"
        sounds.mkdir()
        for name in ("1.wav", "1.flac", "1.ogg", "2.mp3", "2.wav", "3.wav"):
            (sounds / name).touch()
        told = resolve([sounds], [("3",), ("1",), ("2",)], by_stem=True, media="audio")
        made["sounds by their stems"] = as_bytes(json.dumps([told.names, told.there]))
    return made


def runs(seeds: int = 1) -> Results:
    """Recall (R@1 of both directions, %) of runs of the book on its latents, as the cache has them; a row a seed. And what the
    committed record says of them."""
    from fusemix_lite import experiments, profile
    from fusemix_lite.records import Record

    p, arm, metrics = profile("lite", device="cpu"), {"scheme": "fusemix", "items": 500}, ("image_to_text@1", "text_to_image@1")
    cell = Record.load("fusemix").cell(**arm)
    found = [experiments.run(p, arm, **cell["chosen"], seed=seed, test=True) for seed in range(seeds)]
    told = {"runs of the book": found, "as recorded": cell["runs"][:seeds]}
    return {name: torch.tensor([[run[metric] for metric in metrics] for run in made]) for name, made in told.items()}


# Unlike in all that must not matter


def disturb(seed: int) -> None:
    """Listings in random order, draws from every global generator, and the locale in force."""
    shuffled_listings(random.Random(seed))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    random.random(), np.random.rand(3), torch.rand(5)  # noqa: NPY002
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_ALL, "")  # a decimal comma, for whoever goes by it


def shuffled_listings(rng: random.Random) -> None:
    """Every listing of a folder, from here on, comes in an order of its own: `os.listdir`, `os.scandir`, and what calls them
    (`os.walk`, `glob`, `Path.iterdir`, `Path.glob`)."""
    listdir, scandir = os.listdir, os.scandir

    class Shuffled:
        def __init__(self, *args):
            with scandir(*args) as opened:
                self.entries = list(opened)
            rng.shuffle(self.entries)
            self.entries = iter(self.entries)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.close()

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.entries)

        def close(self):
            self.entries = iter(())

    def shuffled(*args):
        names = listdir(*args)
        rng.shuffle(names)
        return names

    os.listdir, os.scandir = shuffled, Shuffled
    for kept in filter(inspect.isclass, vars(glob).values()):  # Python 3.13 holds on to the function
        if getattr(vars(kept).get("scandir"), "__func__", None) is scandir:
            kept.scandir = staticmethod(Shuffled)


# Other processes, and what differs


def elsewhere(out: Path, environment: dict[str, str], *options: str, folder: Path = ROOT) -> Results:
    """The results of a process of its own, under another environment and in another folder."""
    from safetensors.torch import load_file

    kept = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LANG", "LC_CTYPE", *HOSTILE)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.same_again", "--out", str(out), *options],
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


def unequal(one: Results, other: Results) -> list[str]:
    """The names of what is not the same, bit for bit."""
    return [name for name in one.keys() | other.keys() if not (name in one and name in other and equal(one[name], other[name]))]


def equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a share of the largest number; infinite for numbers that are counts, places or bytes."""
    if equal(a, b):
        return 0.0
    if a.shape != b.shape or not a.is_floating_point():
        return float("inf")
    return float((a.double() - b.double()).abs().max() / a.double().abs().max())


def compared(made: dict[str, Results]) -> dict:
    """What the page *What can go wrong* says of it: how far the results under each setting are from those under the first."""
    from fusemix_lite.bench import machine

    first, *others = made
    ours = {name: value for name, value in made[first].items() if name not in RUNS}
    differ = {setting: {} for setting in others}
    for setting in others:
        for name, value in ours.items():
            if not equal(value, made[setting][name]):
                share, kind = apart(value, made[setting][name]), family(name)
                differ[setting][kind] = "bytes" if share == float("inf") else max(share, differ[setting].get(kind, 0.0))
    record = {"command": "python -m tests.same_again --record", "machine": machine(), "first": first, "results": len(ours)}
    record["same"] = {setting: sum(equal(ours[name], made[setting][name]) for name in ours) for setting in others}
    if RUNS <= made[first].keys():
        off = {setting: (found["runs of the book"] - found["as recorded"]).abs().max() for setting, found in made.items()}
        record["recall_off"] = {setting: float(points) for setting, points in off.items()}
    return record | {"differ": differ}


def family(name: str) -> str:
    """What a reader calls a result."""
    start, _, what = name.partition(": ")
    whole = {"history": "the loss along a fit", "weights": "weights after a fit", "looks": "validation recall of a fit"}
    bytewise = {"latents": "latents, as stored", "pictures": "generated pictures"}
    return whole[what] if what else bytewise.get(start.split()[0], start.split(",")[0])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.same_again", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the results there")
    parser.add_argument("--hostile", type=int, metavar="SEED", help="with listings shuffled and generators used")
    parser.add_argument("--runs", action="store_true", help="with a run at the scale of the book")
    parser.add_argument("--record", action="store_true", help=f"keep what differs in {RECORD.relative_to(ROOT)}, for the page")
    args = parser.parse_args()
    if args.out:
        from safetensors.torch import save_file

        out = args.out.resolve()
        if args.hostile:
            disturb(args.hostile)
        made = results() | (runs() if args.runs else {})
        save_file({name: value.contiguous() for name, value in made.items()}, out)
        return
    with tempfile.TemporaryDirectory() as folder:
        heavy = {"FUSEMIX_LITE_TORTURE": "1"}
        made = {name: elsewhere(Path(folder) / "out", setting | heavy, "--runs") for name, setting in SETTINGS.items()}
    found = compared(made)
    print(json.dumps(found, indent=1))
    if args.record:
        RECORD.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
