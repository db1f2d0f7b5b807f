"""The command ``fusemix-lite``: parse, call, print. What is done lives in `workflow`, `searching` and `sample_data`.

Results go to stdout (one JSON object with ``--json``), everything else to stderr. Nothing heavy is imported before a command
is known, so that help is instant.
"""

import argparse
import json
import os
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import __version__
from .errors import FuseMixLiteError, printable
from .versions import warn_once

PROG = "fusemix-lite"

# Said here too, since asking `encoders`, `fit` and `mixing` would import torch for a help text; a test compares them.
PRECISIONS = ("fp32", "bf16", "fp16")
SCHEMES = ("none", "fusemix", "separate", "noise", "quantise", "slerp")
FIT_DEFAULTS = {
    "augment": "fusemix", "alpha": 1.0, "steps": 1000, "batch_size": 512, "lr": 1e-3, "dropout": 0.3, "depth": 1,
    "expansion": 4, "shared_dim": 256, "standardize": False, "precision": "fp32", "compile": False, "evals": 10,
    "device": "auto",
}  # fmt: skip
FIT_CHOICES = {"augment": SCHEMES, "precision": PRECISIONS[:2]}

DEVICE_HELP = "cpu, cuda, cuda:1 …; auto takes a GPU where there is one"
FIT_HELP = {
    "augment": "how latents are mixed",
    "alpha": "of the Beta distribution of the mixing weight",
    "steps": "optimiser steps",
    "batch_size": "pairs in the loss",
    "lr": "peak learning rate",
    "dropout": "in the adapters",
    "depth": "residual blocks of an adapter",
    "expansion": "width of a block, in multiples of the latent",
    "shared_dim": "dimension of the shared space",
    "standardize": "standardise latents with training statistics",
    "precision": "of matrix products; bf16 is for GPUs and for CPUs with matrix units",
    "compile": "use torch.compile: for long runs on a GPU; on a CPU hardly ever worth it",
    "evals": "looks at the validation items",
    "device": DEVICE_HELP,
}

DATA = {
    "sounding-scenes": "the embedded world: small pictures (image-text) or sounds (audio-text) with captions, made here; MIT",
}

EXAMPLES = """\
examples:
  fusemix-lite search "two red birds on the beach"    works at once, with what ships in the package
  fusemix-lite data sounding-scenes pairs             sample files, laid out as your own would be
  fusemix-lite extract pairs --out latents            frozen encoders, once
  fusemix-lite fit latents --out model                adapters, in seconds to minutes
  fusemix-lite evaluate model latents                 recall on items that were held out
  fusemix-lite search "a blue bird" --in pairs --model model --html page.html

`fusemix-lite COMMAND --help` says more.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 fine, 1 an error that is said in one line, 130 on Ctrl-C, 143 on SIGTERM, which
    a scheduler sends before it takes a machine away; 2 is argparse's."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.run is None:
        parser.print_help()
        return 0
    say = Speaker(args.json, args.quiet)
    heard = _terminated_as_interrupted()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            plain = warnings.showwarning
            warnings.showwarning = lambda message, category, *where: (
                say.note(str(message)) if category is UserWarning else plain(message, category, *where)
            )
            warn_once()
            if args.run in (extract, fit):
                from .launched import Share

                say.quiet |= Share.of_this_process().rank > 0  # of processes that a launcher started, the first one speaks
            if getattr(args, "device", "auto") != "auto":
                from .device import pick_device

                pick_device(args.device)
            args.run(args, say)
        sys.stdout.flush()
    except FuseMixLiteError as error:
        return _fail(" ".join(str(error).split()))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder without permission
        return _fail(printable(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"))
    except KeyboardInterrupt as stop:
        _hear_as(heard, argv is None)
        print(f"\n{PROG}: stopped; {args.when_stopped}", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    finally:
        _hear_as(heard, argv is None)
    return 0


def _terminated_as_interrupted() -> Any:
    """From now on SIGTERM ends a command as Ctrl-C does. Returns what it did before; None where that cannot be changed."""

    def stop(number: int, frame) -> None:
        raise KeyboardInterrupt(number)

    alone = threading.current_thread() is threading.main_thread()
    return signal.signal(signal.SIGTERM, stop) if alone else None


def _hear_as(before: Any, at_end: bool) -> None:
    """SIGTERM as it was, for a caller that goes on; `at_end`: no signal any more, as the process must end as it is about to."""
    if before is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if at_end else before)
        if at_end:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fail(line: str) -> int:
    print(f"{PROG}: error: {line}", file=sys.stderr)
    return 1


class Speaker:
    """Where lines go: the result to stdout, as text or as one JSON object, the rest to stderr."""

    def __init__(self, as_json: bool, quiet: bool):
        self.as_json, self.quiet = as_json, quiet

    @property
    def progress(self) -> bool:
        return not self.quiet

    def note(self, line: str) -> None:
        if not self.quiet:
            print(f"{PROG}: note: {printable(line)}", file=sys.stderr)

    def result(self, content: dict, text: str) -> None:
        if self.as_json:
            print(printable(json.dumps(content, ensure_ascii=False), in_json=True))
        else:
            print("\n".join(map(printable, text.split("\n"))))  # captions and names may come from anybody

    def next(self, line: str) -> None:
        """What one would do now; only for people."""
        if not self.as_json and not self.quiet:
            print(f"next: {PROG} {line}")


def data(args, say: Speaker) -> None:
    if args.list or args.name is None:
        if not args.list:
            say.note("no data set named; this is what there is")
        return _list_data(say)
    if args.name not in DATA:
        from .public_sets import DATASETS

        if args.name not in DATASETS:
            there = ", ".join([*DATA, *DATASETS])
            raise FuseMixLiteError(f"no data set {args.name!r}; there are {there}, and `extract` takes files of your own")
    if args.out is None:
        raise FuseMixLiteError(f"say where the files go: {PROG} data {args.name} OUT")
    if args.name not in DATA:
        return _fetch_data(args, say)
    from .sample_data import TABLE, write_scenes

    knobs = (args.pair, args.items, args.split, args.captions, args.noise, args.seed)
    found = write_scenes(args.out, *knobs, progress=say.progress)
    parts = ", ".join(f"{count:,} {part}" for part, count in found["parts"].items())
    table = Path(args.out) / TABLE
    what = {"image": "pictures", "audio": "sounds"}[found["media"]]
    text = f"{table}: {found['items']:,} {what} ({parts}), {found['rows']:,} captions\n{found['written']:,} files written now"
    say.result({**found, "out": str(args.out), "table": str(table)}, text)
    say.next(f"extract {args.out} --out latents")


def _list_data(say: Speaker) -> None:
    from .public_sets import DATASETS

    content, lines = dict(DATA), [f"{name:<17} {what}" for name, what in DATA.items()]
    lines += ["", "public data sets: what is fetched, size; licence"]
    for name, record in DATASETS.items():
        automatic = "all" if not record.by_hand else "captions, media by hand" if record.remotes else "nothing, by hand"
        content[name] = f"{record.title}: {automatic}; {record.size}; {record.licence}"
        lines.append(f"{name:<17} {automatic}; {record.size}\n{'':<17} {record.licence}; {record.page}")
    say.result({"data": content}, "\n".join(lines))


def _fetch_data(args, say: Speaker) -> None:
    """Public data: say what, from where, how big and under which licence before anything is fetched."""
    from .fetching import fetch_set

    def confirm(line: str, large: bool) -> bool:
        if args.yes or not large:
            say.note(line)
            return True
        if not sys.stdin.isatty() or say.as_json:
            return False
        print(f"{line}\nFetch it into {args.out}? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    found = fetch_set(args.name, args.out, args.split, confirm, say.progress)
    lines = [
        f"{args.out}: fetched {', '.join(found['fetched']) or 'nothing'}; there before {', '.join(found['kept']) or 'nothing'}"
    ]
    if found["by_hand"]:
        lines.append(f"by hand: {found['by_hand']}")
    lines.append(f'open it: fl.open_dataset("{args.name}", "{args.split or "train"}", "{args.out}")')
    say.result(found, "\n".join(lines))


def extract(args, say: Speaker) -> None:
    from .launched import Share
    from .workflow import extract_pairs

    options = {key: getattr(args, key) for key in ("precision", "workers", "append", "overwrite", "split")}
    encoders = {m: getattr(args, m) for m in ("image", "audio", "text") if getattr(args, m)}
    given = (args.source, args.out, encoders, args.device, args.batch_size, say.progress)
    found = extract_pairs(*given, **options, folder=args.data)
    if Share.of_this_process().rank > 0:
        return
    every = found["encoders"] | found.get("more", {})
    width = max(5, *map(len, every))
    lines = []
    for name, encoder in every.items():
        made = f"{found['rows'][name]:,} latents of {encoder['dim']} dimensions by {encoder['id']}"
        lines.append(f"{name:<{width}} {made}: {Path(args.out) / name}")
    for name, left in found["left_out"].items():
        if left["count"]:
            lines.append(f"left out: {left['count']:,} of {name}, listed with reasons in {left['list']}")
    if not any(left["count"] for left in found["left_out"].values()):
        lines.append("left out: nothing")
    split = found.pop("split")
    if isinstance(split, str):
        summary = {split: found["items"]}
    else:
        summary = {part: list(split.values()).count(part) for part in dict.fromkeys(split.values())} if split else None
    say.result({**found, "parts": summary, "out": str(args.out)}, "\n".join(lines))
    if "text" in found["encoders"]:
        say.next(f"fit {args.out} --out model")
        if "more" in found:
            other = {name.split("-")[0]: name for name in reversed(found["more"])}
            x, y = (Path(args.out) / other.get(name, name) for name in (found["media"], "text"))
            say.next(f"fit --x {x} --y {y} --out other-model")
    else:
        say.note("no captions: a gallery to search in, but no pairs to fit")


def merge(args, say: Speaker) -> None:
    from .workflow import merge_latents

    stores = merge_latents(args.sources, args.out, args.prefix)
    lines = [f"{store.path}: {len(store):,} latents of {store.dim} dimensions" for store in stores.values()]
    rows = {str(store.path): len(store) for store in stores.values()}
    say.result({"sources": args.sources, "out": args.out, "rows": rows}, "\n".join(lines))
    if "" not in stores:
        say.next(f"fit {args.out} --out model")


def verify(args, say: Speaker) -> None:
    from .extraction import cache_dir
    from .verifying import look_through

    how = {"batch_size": args.batch_size, "device": args.device, "progress": say.progress}
    found, lines = {}, []
    for folder in args.folders or [cache_dir()]:
        for place, faults, error in look_through(folder, args.repair, how):
            state = "as it was written" if not faults else "broken" if error or not args.repair else "repaired"
            found[str(place)] = {"state": state, "faults": [fault.line for fault in faults], "error": error}
            told = [*map(str, faults), *([f"not repaired: {error}"] if error else [])]
            lines += [f"{place}: {state}", *(f"  {line}" for line in told)]
    say.result({"folders": found}, "\n".join(lines))
    broken = [place for place, about in found.items() if about["state"] == "broken"]
    if broken:
        remedies = "what helps is said there" if args.repair else f"run {' '.join([PROG, 'verify --repair', *args.folders])}"
        raise FuseMixLiteError(f"{len(broken)} of {len(found)} folders of latents are broken: {remedies}")


def fit(args, say: Speaker) -> None:
    from .audits import audit
    from .workflow import check_model_folder, parts_to_train, train

    check_model_folder(args.out, args.overwrite)
    latents = _latents(args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `train` says the same once more
        parts = parts_to_train(latents, args.fractions, args.seed)
    findings = audit(latents.dataset, parts)
    for finding in findings:
        say.note(str(finding))
    options = {name: getattr(args, name) for name in FIT_DEFAULTS}
    found = train(latents, args.out, args.fractions, args.seed, args.overwrite, say.progress, **options)
    if not found:  # another process of this launch has saved, and speaks
        return
    a, b = latents.names
    items, pairs = found["items"], found["pairs"]
    parts = ", ".join(f"{part} {items[part]:,} with {pairs[part]:,}" for part in items)
    at = {way: " / ".join(f"{value:.1f}" for value in by_k.values()) for way, by_k in found["val"].items()}
    text = (
        f"{args.out}: {a} and {b} aligned in {found['seconds']:.0f} s\n"
        f"items with rows of {b}: {parts}\n"
        f"best look: step {found['best_step']:,} of {options['steps']:,}\n"
        f"validation R@1 / 5 / 10 in %: {a} to {b} {at[f'{a}_to_{b}']}\n"
        f"{'':<30}{b} to {a} {at[f'{b}_to_{a}']}"
    )
    say.result({**found, "out": str(args.out), "audit": [finding._asdict() for finding in findings]}, text)
    if args.latents:
        say.next(f"evaluate {args.out} {args.latents}")


def evaluate(args, say: Speaker) -> None:
    from .workflow import evaluate as judge

    found = judge(args.model, _latents(args), args.part, args.seed, device=args.device)
    whose = {
        True: "as recorded when the model was fitted",
        False: "of data that did not shape the model",
        None: "the model keeps no record of what shaped it",
    }[found["recorded"]]
    lines = [f"part {found['part']} ({whose}): {found['items']:,} items, {found['captions']:,} captions"]
    lines.append(f"{'recall in %':<17}" + "".join(f"{f'R@{k}':>21}" for k in (1, 5, 10)))  # fits 80 columns
    for way, by_k in found["recall"].items():
        cells = (f"{at['mean']:.1f} ({at['low']:.1f}–{at['high']:.1f})" for at in by_k.values())
        lines.append(f"{way.replace('_', ' '):<17}" + "".join(f"{cell:>21}" for cell in cells))
        lines.append(f"{'  blind guessing':<17}" + "".join(f"{at['guessing']:>21.1f}" for at in by_k.values()))
    lines.append("in brackets: 95 % interval over items")
    lines.append(f"modality gap {found['modality_gap']:.2f} (distance of the two centroids, 0 to 2)")
    if found["part"] in ("train", "val"):
        say.note(f"part {found['part']} shaped the model: this is no estimate of what it does on new items")
    say.result(found, "\n".join(lines))
    if args.latents and found["part"] == "test":
        say.next(f'search "…" --in {args.latents} --model {args.model}')


def search(args, say: Speaker) -> None:
    from .searching import SearchIndex, gallery_scenes, load_for_search, query_modality, shipped_adapters

    asked = query_modality(args.query)
    dataset, stores, gallery = _gallery(args, asked)
    media = dataset.media if dataset is not None else None
    pair = f"{media or ('audio' if 'audio' in (asked, args.target) else 'image')}-text"
    model, encoders = load_for_search(args.model or shipped_adapters(pair))
    if dataset is None and args.model:
        raise FuseMixLiteError("say what to look through with --in: a table, a folder or what extract wrote")
    target = args.target or ("text" if asked != "text" else media or pair.split("-")[0])
    if not {asked, target} <= model.in_dims.keys():
        where = args.model or "the package's own model"
        raise FuseMixLiteError(f"{where} knows {' and '.join(model.in_dims)}; it cannot find {target} by {asked}")
    if target != "text" and media and target != media:
        raise FuseMixLiteError(f"{args.source} holds {media} files, no {target}: leave out --for {target}")
    if args.source and not args.model:
        say.note("without --model the package's own adapters are asked, which know Sounding Scenes and nothing else")
    if dataset is None:
        dataset, gallery = gallery_scenes(pair), "Sounding Scenes (test split)"
    index = SearchIndex(model, encoders, dataset, target, stores.get(target), args.device, progress=say.progress)
    matches = index.search(args.query, args.top)
    what = {"image": "pictures", "audio": "sounds", "text": "captions"}[target]
    note = f"the best {len(matches)} of {len(index):,} {what} in {gallery}"
    page = None
    if args.html:
        page = Path(args.html)
        page.write_text(index.html(args.query, matches, page.parent, note), encoding="utf-8")
    width = max((len(match.item) for match in matches), default=0)
    lines = [f"{match.rank:>3}  {match.cosine:6.3f}  {match.item:<{width}}  {match.caption}".rstrip() for match in matches]
    shown = [{key: value for key, value in match._asdict().items() if key != "row"} for match in matches]
    content = {"query": args.query, "asked": asked, "target": target, "gallery": gallery, "size": len(index)}
    content |= {"matches": shown, "html": str(page) if page else None}
    say.result(content, "\n".join([note, *lines, *([f"page: {page}"] if page else [])]))


def bench(args, say: Speaker) -> None:
    from .bench import ROWS, keep, line, measure, setting

    if args.list:
        about = {name: row.about + (" (minutes; only when named)" if row.unit == "once" else "") for name, row in ROWS.items()}
        say.result(about, "\n".join(f"{name:<14} {what}" for name, what in about.items()))
        return
    if args.record and args.smoke:
        raise FuseMixLiteError("bench: a record takes no smoke rows: leave out --smoke, or --record")
    names, found = args.rows.split(",") if args.rows else None, {}
    for name, row in measure(names, rounds=args.rounds, seed=args.seed, smoke=args.smoke, note=say.note):
        found[name] = row
        if args.record:
            keep(args.record, name, row)
    told = "{processor}, {threads} of {cores} cores, {system}, Python {python}, torch {torch}".format(**setting())
    say.result({"machine": setting(), "rows": found}, "\n".join([told, *(line(name, row) for name, row in found.items())]))


def _gallery(args, asked: str):
    """The files to look through, latents of them that are there already, and their name; (None, {}, "") for the default."""
    if args.source is None:
        return None, {}, ""
    from .files import read_pairs
    from .store import LatentStore
    from .workflow import PAIRS, read_pairs_json, reopen

    media = next((name for name in (args.target, asked) if name in ("image", "audio")), None)
    if not (Path(args.source) / PAIRS).is_file():
        try:
            return read_pairs(args.source), {}, args.source
        except FuseMixLiteError:
            if media is None:
                raise
            return read_pairs(args.source, media), {}, args.source  # where both are found, the query tells
    content = read_pairs_json(args.source)
    dataset = reopen(content)
    if dataset.id != content["dataset"]:
        raise FuseMixLiteError(f"{content['source']} has changed since {args.source} was extracted: extract into a new folder")
    stores = {modality: LatentStore.open(Path(args.source) / modality) for modality in content["encoders"]}
    return dataset, stores, Path(content["source"]).name


def _latents(args):
    """Latents of a folder, or the arrays that --x and --y name."""
    from .workflow import open_arrays, open_latents

    if args.latents:
        if args.x or args.y or args.owner or args.split:
            raise FuseMixLiteError("give a folder of latents, or --x and --y with what belongs to them, not both")
        return open_latents(args.latents)
    if not (args.x and args.y):
        raise FuseMixLiteError("no latents: give a folder that extract wrote, or --x FILE:KEY and --y FILE:KEY")
    return open_arrays(args.x, args.y, args.owner, args.split, args.names)


def _fractions(text: str) -> dict[str, float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3 or min(values) <= 0 or sum(values) > 1 + 1e-9:
        raise argparse.ArgumentTypeError(f"{text!r}: give three positive shares of at most 1 together, such as 0.8,0.1,0.1")
    return dict(zip(("train", "val", "test"), values, strict=True))


def _names(text: str) -> tuple[str, str]:
    names = tuple(name.strip() for name in text.split(","))
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: give two different modalities, such as image,text")
    return names


def _at_least(low: float, kind: Callable = int) -> Callable:
    def parse(text: str):
        value = kind(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text}: give {low} or more")
        return value

    parse.__name__ = kind.__name__  # argparse names it in "invalid int value"
    return parse


class _Help(argparse.RawDescriptionHelpFormatter):
    """Paragraphs as they stand, and the default of every option that has one."""

    def _get_help_string(self, action):
        shown = action.default is not None and action.default is not False and action.option_strings
        if shown and action.default is not argparse.SUPPRESS and "%(default)" not in action.help:
            return f"{action.help} (default: %(default)s)"
        return action.help


def _parser() -> argparse.ArgumentParser:
    about = "Align frozen unimodal encoders with FuseMix: your own pairs to latents, adapters, recall and search."
    parser = argparse.ArgumentParser(PROG, description=about, epilog=EXAMPLES, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    parser.set_defaults(run=None, json=False, quiet=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(run: Callable, about: str, examples: str, when_stopped: str) -> argparse.ArgumentParser:
        epilog = "examples:\n" + textwrap.indent(textwrap.dedent(examples).strip(), "  ")
        name = run.__name__
        described = {"help": about, "description": f"{about[0].upper()}{about[1:]}.", "epilog": epilog}
        sub = commands.add_parser(name, formatter_class=_Help, **described)
        sub.set_defaults(run=run, when_stopped=when_stopped)
        sub.add_argument("--json", action="store_true", help="print one JSON object on stdout and nothing else")
        sub.add_argument("--quiet", action="store_true", help="no progress, no notes: the result and errors only")
        return sub

    goes_on = "what was computed is kept, and the same command goes on from there"
    device = {"default": "auto", "metavar": "DEVICE", "help": DEVICE_HELP}

    sub = command(
        data, "write sample data as a folder of files, or fetch a public data set", """
        fusemix-lite data --list
        fusemix-lite data sounding-scenes pairs --items 2000
        fusemix-lite data sounding-scenes sounds --pair audio-text --split test
        fusemix-lite data clotho clotho --split test
        fusemix-lite data coco coco --yes
        """, goes_on,
    )  # fmt: skip
    sub.add_argument("name", nargs="?", metavar="NAME", help="which data (see --list)")
    sub.add_argument(
        "out", nargs="?", metavar="OUT", help="a new folder for the files; of a public data set, also the same one"
    )
    sub.add_argument("--list", action="store_true", help="tell what there is, how big, under which licence")
    sub.add_argument("--yes", action="store_true", help="fetch more than 1 GB without asking")
    sub.add_argument("--pair", choices=["image-text", "audio-text"], default="image-text", help="which modalities")
    sub.add_argument("--items", type=_at_least(1), default=1000, metavar="N", help="pictures or sounds")
    only = "this part only (default: all; of scenes 80, 10 and 10 %% of the items, and a column that says which)"
    sub.add_argument("--split", choices=["train", "val", "test"], help=only)
    sub.add_argument("--captions", type=_at_least(1), default=5, metavar="N", help="captions an item")
    degraded = "share of captions degraded as on the web, 0 to 1"
    sub.add_argument("--noise", type=_at_least(0, float), default=0.0, metavar="SHARE", help=degraded)
    sub.add_argument("--seed", type=_at_least(0), default=0, help="other scenes of the same kind")

    sub = command(
        extract, "encode pairs with frozen encoders, once", """
        fusemix-lite extract pairs --out latents
        fusemix-lite extract photos.csv --image facebook/dinov2-small --text BAAI/bge-small-en-v1.5 --out latents
        fusemix-lite extract coco --split val --data ~/data/coco --image lite-image-a --image lite-image-b --out latents
        torchrun --nproc-per-node 4 -m fusemix_lite extract pairs --out latents --precision bf16

        SOURCE is a table (.csv, .tsv, .jsonl) with columns image or audio, text and perhaps split, or a folder: with such
        a table as captions.csv or metadata.csv, or of media files, each with a text file of its name (a.jpg, a.txt). Or it
        is the name of a public data set (see `data --list`), or several of them joined by +.

        Several encoders of a kind, each named by its own --image, --audio or --text, share one pass. Several GPUs or machines
        that see one folder share it too, under torchrun or accelerate launch; the bytes are those of one process.
        """, goes_on,
    )  # fmt: skip
    sub.add_argument("source", metavar="SOURCE", help="a table, a folder, or a public data set by name")
    one = sub.add_mutually_exclusive_group()
    several = {"metavar": "ENCODER", "action": "append"}
    one.add_argument("--image", **several, help="lite name, local folder or hub id; may be repeated (default: lite-image-a)")
    one.add_argument("--audio", **several, help="the same for sounds (default: lite-audio-a)")
    sub.add_argument("--text", **several, help="the same for captions (default: lite-text-a)")
    sub.add_argument("--out", required=True, metavar="LATENTS", help="a folder for the latents")
    sub.add_argument("--data", metavar="FOLDER", help="where the public data set lies (default: $FUSEMIX_LITE_DATA/NAME)")
    sub.add_argument("--split", choices=["train", "val", "test"], help="of the public data set (default: train)")
    sub.add_argument("--batch-size", type=_at_least(1), default=64, metavar="N", help="items encoded at once")
    sub.add_argument("--device", **device)
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of matrix products; the halves are for GPUs")
    opening = "processes that open items while the device computes (default: 0 on a CPU, else one a core, 8 at most)"
    sub.add_argument("--workers", type=_at_least(0), metavar="N", help=opening)
    grown = "SOURCE has grown at its end: keep the latents of what was there, encode what is new"
    sub.add_argument("--append", action="store_true", help=grown)
    replaced = "replace latents of other data or by other encoders in the way; those that fit are kept"
    sub.add_argument("--overwrite", action="store_true", help=replaced)

    sub = command(
        merge, "join latents of several data sets by the same encoders", """
        fusemix-lite merge coco-latents sbu-latents --out both --prefix coco/ --prefix sbu/
        fusemix-lite merge part-1/text part-2/text --out text
        """, goes_on,
    )  # fmt: skip
    sub.add_argument("sources", nargs="+", metavar="LATENTS", help="two or more folders that extract wrote, or stores in them")
    sub.add_argument("--out", required=True, metavar="MERGED", help="a new folder")
    names = "put before the item ids of the first, second, … (needed where data sets have ids in common)"
    sub.add_argument("--prefix", action="append", metavar="PREFIX", help=names)

    sub = command(
        verify, "read every byte of latents again, say what is wrong, repair it", """
        fusemix-lite verify latents
        fusemix-lite verify --repair latents
        fusemix-lite verify

        A repair encodes again only what is damaged, and takes it only if it is, to the last bit, what was written.
        """, "a repair that was stopped has lost nothing, and the same command goes on from there",
    )  # fmt: skip
    what = "folders that extract wrote, or stores in them (default: all latents of the cache)"
    sub.add_argument("folders", nargs="*", metavar="LATENTS", help=what)
    sub.add_argument("--repair", action="store_true", help="mend what is wrong, from the files that the latents were made of")
    batch = "items encoded at once: as extract was told, since it can change last digits"
    sub.add_argument("--batch-size", type=_at_least(1), default=64, metavar="N", help=batch)
    sub.add_argument("--device", **device)

    sub = command(
        fit, "train adapters on latents, select on validation items", """
        fusemix-lite fit latents --out model
        fusemix-lite fit --x pack.safetensors:image --y pack.safetensors:text --owner pack.safetensors:owner \\
                         --split pack.json --out model --batch-size 256 --steps 2000

        Every half minute a checkpoint is left in MODEL, until all is done: whatever stops a run, the same command goes on.

        Under torchrun or accelerate launch several processes fit one model, each with its share of every batch:
        torchrun --nproc-per-node 2 -m fusemix_lite fit latents --out model
        """, "the same command goes on from the last checkpoint",
    )  # fmt: skip
    _add_latents(sub)
    sub.add_argument("--out", required=True, metavar="MODEL", help="a new folder for the model")
    replaced = "replace a model that is there, and begin anew where a run with other options was stopped"
    sub.add_argument("--overwrite", action="store_true", help=replaced)
    shares = "of train, val and test, drawn by item where the data say nothing"
    sub.add_argument("--fractions", type=_fractions, default="0.8,0.1,0.1", metavar="SHARES", help=shares)
    sub.add_argument("--seed", type=_at_least(0), default=0, help="initialisation, batches, mixing, dropout, random parts")
    for name, default in FIT_DEFAULTS.items():
        option, about = f"--{name.replace('_', '-')}", FIT_HELP[name]
        if default is False:
            sub.add_argument(option, action="store_true", help=about)
        elif name in FIT_CHOICES:
            sub.add_argument(option, choices=FIT_CHOICES[name], default=default, help=about)
        else:
            metavar = {int: "N", float: "X", str: name.upper()}[type(default)]
            sub.add_argument(option, type=type(default), default=default, metavar=metavar, help=about)

    sub = command(
        evaluate, "measure recall on items that were held out", """
        fusemix-lite evaluate model latents
        fusemix-lite evaluate model other-latents --part all --json
        """, "nothing was written; the same command starts again",
    )  # fmt: skip
    sub.add_argument("model", metavar="MODEL", help="a folder that fit wrote, or adapters-image-text or -audio-text")
    _add_latents(sub)
    sub.add_argument("--part", help='"test" unless named; for data that the model has not seen also "all"')
    sub.add_argument("--seed", type=_at_least(0), default=0, help="of the bootstrap")
    sub.add_argument("--device", **device)

    sub = command(
        search, "find pictures, sounds or captions by words, a picture or a sound", """
        fusemix-lite search "two red birds on the beach"
        fusemix-lite search "a slow deep drum" --for audio
        fusemix-lite search photo.jpg --in photos --model model --html page.html
        """, goes_on,
    )  # fmt: skip
    sub.add_argument("query", metavar="QUERY", help="a text, or a path to a picture or a sound")
    sub.add_argument("--in", dest="source", metavar="SOURCE", help="table, folder or latents (default: scenes of the package)")
    sub.add_argument("--model", metavar="MODEL", help="a folder that fit wrote (default: the adapters of the package)")
    other = "what to find (default: the other modality)"
    sub.add_argument("--for", dest="target", choices=["image", "audio", "text"], help=other)
    sub.add_argument("--top", type=_at_least(1), default=5, metavar="N", help="matches")
    sub.add_argument("--html", metavar="FILE", help="write a page that shows them as well")
    sub.add_argument("--device", **device)

    sub = command(
        bench, "measure how fast it is, against the plain way and the limit", """
        fusemix-lite bench --rows loss,recall
        OMP_NUM_THREADS=1 fusemix-lite bench --rows kdpp-large --record speed.json
        """, "rows that were done are in the record, if --record names one",
    )  # fmt: skip
    sub.add_argument("--rows", metavar="NAMES", help="with commas between them (default: all but those that take many minutes)")
    sub.add_argument("--list", action="store_true", help="tell which rows there are")
    sub.add_argument("--rounds", type=_at_least(1), default=5, metavar="N", help="pairs of ours and the plain way")
    sub.add_argument("--seed", type=_at_least(0), default=0, help="of the input")
    sub.add_argument("--smoke", action="store_true", help="small sizes, to see that it runs; the numbers mean nothing")
    sub.add_argument("--record", metavar="FILE.json", help="put the rows into a record, beside those that are there")
    return parser


def _add_latents(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("latents", nargs="?", metavar="LATENTS", help="a folder that extract wrote; or instead of it:")
    sub.add_argument("--x", metavar="SPEC", help="latents of the items: FILE.safetensors:KEY, FILE.npy or a store")
    sub.add_argument("--y", metavar="SPEC", help="latents of what belongs to them, such as captions")
    sub.add_argument("--owner", metavar="SPEC", help="which row of x each y belongs to (none: the same row)")
    sub.add_argument("--split", metavar="FILE.json", help='a list of part names, one an x, or an object with it as "split"')
    sub.add_argument(
        "--names", type=_names, metavar="X,Y", help="the two modalities (default: what stores say, else image,text)"
    )
