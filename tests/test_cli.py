"""The command line: every command on tiny data, what it prints, what it leaves, and how it refuses."""

import csv
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from fusemix_lite import FuseMixLiteError, __version__, cli, fit, mixing, retrieval, searching, workflow
from fusemix_lite.cli import main
from fusemix_lite.encoders import WEIGHTS
from fusemix_lite.public_sets import DATASETS
from fusemix_lite.sample_data import MARKER

ROOT = Path(__file__).parents[1]
ITEMS, CAPTIONS = 60, 2
FEW = ("--steps", "6", "--batch-size", "16", "--shared-dim", "16", "--evals", "2")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(searching, "SCENES", 30)
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder in which the first four commands have run: pairs, latents, model."""
    folder = tmp_path_factory.mktemp("project")
    knobs = ("--items", str(ITEMS), "--captions", str(CAPTIONS))
    assert main(["data", "sounding-scenes", str(folder / "pairs"), *knobs, "--quiet"]) == 0
    assert main(["extract", str(folder / "pairs"), "--out", str(folder / "latents"), "--quiet"]) == 0
    assert main(["fit", str(folder / "latents"), "--out", str(folder / "model"), *FEW, "--quiet"]) == 0
    return folder


@pytest.fixture
def run(capsys):
    """Run a command: its exit code, and what it wrote to stdout and stderr."""

    def call(*argv) -> tuple[int, str, str]:
        code = main([str(arg) for arg in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def told(run):
    """Run a command with --json: the object that is all of stdout."""

    def call(*argv) -> dict:
        code, out, err = run(*argv, "--json", "--quiet")
        assert code == 0 and err == "" and out.count("\n") == 1, err
        return json.loads(out)

    return call


def fails(run, *argv) -> str:
    """The one line of an error."""
    code, out, err = run(*argv, "--quiet")
    assert code == 1 and out == "" and err.startswith("fusemix-lite: error: ") and err.count("\n") == 1, (code, out, err)
    return err


def python(*argv, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=600, **options)


def rows(table: Path) -> list[dict]:
    with table.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


# the command itself


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from fusemix_lite.cli import main\n"
        "for argv in ([], ['--help'], ['--version'], ['search', '--help'], ['data', '--list']):\n"
        "    try: main(argv)\n"
        "    except SystemExit as stop: assert stop.code == 0, argv\n"
        "heavy = {'torch', 'numpy', 'transformers', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: fusemix-lite") == 3 and "search" in done.stdout


def test_it_is_installed_under_its_name_and_as_a_module():
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["fusemix-lite"]
    module, name = entry.split(":")
    assert getattr(importlib.import_module(module), name) is main
    assert python("-m", "fusemix_lite", "--version").stdout == f"fusemix-lite {__version__}\n"


@pytest.mark.parametrize("command", ["data", "extract", "verify", "fit", "evaluate", "search"])
def test_every_command_has_help_with_examples(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"\n  fusemix-lite {command} " in text
    assert "--json" in text and "--quiet" in text and ("--seed" in text) == (command in ("data", "fit", "evaluate"))


@pytest.mark.parametrize(
    "argv",
    [
        ("nonsense",),
        ("fit", "latents"),
        ("extract", "pairs", "--out", "x", "--image", "a", "--audio", "b"),
        ("search", "a bell", "--top", "0"),
        ("data", "sounding-scenes", "x", "--items", "many"),
        ("fit", "latents", "--out", "x", "--fractions", "0.9,0.2,0.1"),
        ("fit", "latents", "--out", "x", "--names", "image,image"),
        ("fit", "latents", "--out", "x", "--augment", "mixup"),
    ],
)
def test_wrong_usage_is_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(list(argv))
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def test_options_of_fit_are_those_of_the_function():
    known = {name: p.default for name, p in inspect.signature(fit).parameters.items()}
    assert {name: known[name] for name in cli.FIT_DEFAULTS} == cli.FIT_DEFAULTS
    assert set(cli.SCHEMES) == set(mixing.SCHEMES) and cli.FIT_HELP.keys() == cli.FIT_DEFAULTS.keys()


def test_an_error_is_one_line_without_traceback_in_a_real_process(tmp_path):
    done = python("-m", "fusemix_lite", "extract", "nowhere.csv", "--out", "x", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"fusemix-lite: error: {done.stderr.split('error: ')[1]}" and "nowhere.csv" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_ctrl_c_is_130_and_what_was_written_is_kept(tmp_path):
    out = tmp_path / "sounds"
    command = [sys.executable, "-m", "fusemix_lite", "data", "sounding-scenes", str(out), "--pair", "audio-text", "--quiet"]
    heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # a background shell ignores it
    process = subprocess.Popen([*command, "--items", "5000"], stderr=subprocess.PIPE, text=True, **heard)
    try:
        while len(list(out.glob("audio/*.ogg"))) < 3:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 130 and "kept" in err and "Traceback" not in err
    assert len(list(out.glob("audio/*.ogg"))) >= 3 and not (out / "captions.csv").exists()


def test_ctrl_c_says_what_became_of_each_command(run, project, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "train", stop)
    code, _, err = run("fit", project / "latents", "--out", tmp_path / "model")
    assert code == 130 and err.splitlines()[-1] == "fusemix-lite: stopped; the same command goes on from the last checkpoint"


def test_trouble_with_the_disk_is_an_error_too(run, project, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "model")

    monkeypatch.setattr(workflow, "train", full)
    assert "No space left on device: model" in fails(run, "fit", project / "latents", "--out", project / "new")


def test_a_bug_stays_a_traceback(run, project, monkeypatch):
    monkeypatch.setattr(workflow, "train", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("fit", project / "latents", "--out", project / "new")


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(run, project, device):
    assert device in fails(run, "evaluate", project / "model", project / "latents", "--device", device)


# data


def test_data_writes_files_as_a_reader_has_them(project):
    found = rows(project / "pairs" / "captions.csv")
    assert len(found) == ITEMS * CAPTIONS and set(found[0]) == {"image", "text", "split"}
    parts = {part: {row["image"] for row in found if row["split"] == part} for part in ("train", "val", "test")}
    assert [len(names) for names in parts.values()] == [48, 6, 6]
    assert all((project / "pairs" / row["image"]).is_file() and row["text"] for row in found)


def test_data_goes_on_where_it_stood(run, told, tmp_path):
    out, knobs = tmp_path / "sounds", ("--pair", "audio-text", "--items", "4", "--split", "test", "--captions", "1")
    assert told("data", "sounding-scenes", out, *knobs)["written"] == 4
    table, kept = (out / "captions.csv").read_bytes(), (out / "audio" / "test-000001.ogg").stat().st_mtime_ns
    (out / "captions.csv").unlink()
    (out / "audio" / "test-000002.ogg").unlink()
    code, text, _ = run("data", "sounding-scenes", out, *knobs, "--quiet")
    assert code == 0 and "1 files written now" in text
    assert (out / "captions.csv").read_bytes() == table and b"split" not in table
    assert (out / "audio" / "test-000001.ogg").stat().st_mtime_ns == kept
    assert "other scenes" in fails(run, "data", "sounding-scenes", out, *knobs, "--seed", "1")


def test_data_never_overwrites_something_else(run, tmp_path):
    (tmp_path / "mine.txt").write_text("my thesis")
    assert "mine.txt" in fails(run, "data", "sounding-scenes", tmp_path)
    assert "is a file" in fails(run, "data", "sounding-scenes", tmp_path / "mine.txt")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / MARKER).write_text("{")
    assert "other scenes" in fails(run, "data", "sounding-scenes", tmp_path / "broken")
    assert [path.name for path in (tmp_path / "broken").iterdir()] == [MARKER]


def test_noise_changes_captions_and_nothing_else(told, tmp_path):
    for name, noise in (("clean", 0), ("noisy", 1)):
        told("data", "sounding-scenes", tmp_path / name, "--items", 3, "--split", "train", "--noise", noise)
    clean, noisy = (tmp_path / name for name in ("clean", "noisy"))
    assert all(a["text"] != b["text"] for a, b in zip(*(rows(f / "captions.csv") for f in (clean, noisy)), strict=True))
    assert all(
        (noisy / row["image"]).read_bytes() == (clean / row["image"]).read_bytes() for row in rows(clean / "captions.csv")
    )


@pytest.mark.parametrize(
    "argv, what",
    [
        (("coko", "x"), "there are sounding-scenes, coco"),
        (("sounding-scenes",), "say where the files go"),
        (("sounding-scenes", "x", "--noise", "2"), "noise"),
        (("sounding-scenes", "x", "--items", "9"), "10 or more"),
    ],
)
def test_data_says_what_is_wrong(run, argv, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert what in fails(run, "data", *argv)
    assert not list(tmp_path.iterdir())


def test_data_lists_what_there_is(run, told):
    listed = told("data", "--list")["data"]
    assert cli.DATA.items() <= listed.items() and listed.keys() - cli.DATA.keys() == DATASETS.keys()
    code, out, err = run("data")
    assert code == 0 and "sounding-scenes" in out and "note" in err


# extract


def test_extract_stores_both_modalities_and_where_they_come_from(project):
    content = json.loads((project / "latents" / "pairs.json").read_text())
    assert content["source"] == str(project / "pairs") and content["items"] == ITEMS
    assert {m: e["name"] for m, e in content["encoders"].items()} == {"image": "lite-image-a", "text": "lite-text-a"}
    assert {row["image"]: row["split"] for row in rows(project / "pairs" / "captions.csv")} == content["split"]


def test_extract_shows_progress_counts_and_the_next_step(run, project, tmp_path):
    code, out, err = run("extract", project / "pairs", "--out", tmp_path / "latents", "--text", "lite-text-b")
    assert code == 0 and "120 latents of 128 dimensions by lite-text-b" in out and "left out: nothing" in out
    assert "items/s" in err and "next: fusemix-lite fit" in out
    assert run("extract", project / "pairs", "--out", tmp_path / "latents", "--text", "lite-text-b")[0] == 0
    assert "choose another folder" in fails(run, "extract", project / "pairs", "--out", tmp_path / "latents")


def test_extract_says_what_was_left_out_and_where_the_list_is(run, told, tmp_path):
    knobs = ("--items", "12", "--split", "train", "--captions", "1")
    told("data", "sounding-scenes", tmp_path / "pairs", *knobs)
    (tmp_path / "pairs" / "image" / "train-000003.png").write_bytes(b"no picture")
    (tmp_path / "pairs" / "image" / "train-000005.png").unlink()
    found = told("extract", tmp_path / "pairs", "--out", tmp_path / "latents")
    assert found["left_out"]["image"]["count"] == 2 and found["left_out"]["text"]["count"] == 0
    listed = json.loads(Path(found["left_out"]["image"]["list"]).read_text())
    assert [Path(entry["path"]).name for entry in listed] == ["train-000003.png", "train-000005.png"]
    code, out, err = run("extract", tmp_path / "pairs", "--out", tmp_path / "latents")
    assert "left out: 2 of image" in out and "left out: nothing" not in out
    with pytest.warns(UserWarning, match="2 of 12 rows"):
        known = workflow.open_latents(tmp_path / "latents").parts["all"]
    assert known.n_items == len(known) == 10 and "image/train-000003.png" not in known.item_ids


def test_media_without_captions_are_a_gallery_and_no_pairs(run, told, tmp_path):
    told("data", "sounding-scenes", tmp_path / "pairs", "--items", "12", "--split", "test")
    (tmp_path / "pairs" / "captions.csv").unlink()
    code, out, err = run("extract", tmp_path / "pairs", "--out", tmp_path / "latents")
    assert code == 0 and "no captions" in err and "text" not in out and "next:" not in out
    assert "without captions" in fails(run, "fit", tmp_path / "latents", "--out", tmp_path / "model")
    found = told("search", "a bell", "--in", tmp_path / "latents", "--top", "2")
    assert [match["caption"] for match in found["matches"]] == ["", ""]


@pytest.mark.parametrize(
    "argv, what",
    [
        (("--image", "lite-text-a"), "takes text, not image"),
        (("--text", "lite-image-a"), "takes image, not text"),
        (("--image", "nobody"), "unknown encoder"),
    ],
)
def test_extract_refuses_a_wrong_encoder(run, project, tmp_path, argv, what):
    assert what in fails(run, "extract", project / "pairs", "--out", tmp_path / "latents", *argv)
    assert not (tmp_path / "latents" / "pairs.json").exists()


def test_extract_of_sounds_needs_no_option_and_keeps_folders_apart(run, told, project, tmp_path):
    told("data", "sounding-scenes", tmp_path / "sounds", "--pair", "audio-text", "--items", "3", "--split", "val")
    found = told("extract", tmp_path / "sounds", "--out", tmp_path / "latents")
    assert found["media"] == "audio" and found["encoders"]["audio"]["id"] == "lite-audio-a"
    assert "latents of audio pairs" in fails(run, "extract", project / "pairs", "--out", tmp_path / "latents")


# fit


def test_fit_leaves_a_model_and_everything_there_is_to_know(project):
    model = project / "model"
    facts = json.loads((model / "fit.json").read_text())
    assert facts["items"] == {"train": 48, "val": 6, "test": 6} and facts["options"]["steps"] == 6
    assert facts["val_mean"] == max(e.get("val_mean", 0) for e in json.loads((model / "history.json").read_text()))
    assert facts["versions"]["torch"] in torch.__version__ and facts["seed"] == 0
    parts = json.loads((model / "parts.json").read_text())["parts"]
    split = json.loads((project / "latents" / "pairs.json").read_text())["split"]
    assert {item: part for part, items in parts.items() for item in items} == split


def test_fit_prints_what_it_did_and_its_doubts(run, told, tmp_path):
    told("data", "sounding-scenes", tmp_path / "pairs", "--items", "30")
    for part in ("val", "test"):  # a leak: a test picture that was learned from
        twin = (tmp_path / "pairs" / "image" / "train-000000.png").read_bytes()
        (tmp_path / "pairs" / "image" / f"{part}-000000.png").write_bytes(twin)
    told("extract", tmp_path / "pairs", "--out", tmp_path / "latents")
    code, out, err = run("fit", tmp_path / "latents", "--out", tmp_path / "model", *FEW)
    assert code == 0 and "validation R@1 / 5 / 10" in out and "next: fusemix-lite evaluate" in out
    assert "fusemix-lite: note: " in err and "train-000000.png" in err
    again = told("fit", tmp_path / "latents", "--out", tmp_path / "model", *FEW, "--overwrite")
    assert any("train-000000.png" in finding["example"] for finding in again["audit"])


def test_fit_never_replaces_a_model_unasked(run, project, tmp_path):
    before = {file.name: file.read_bytes() for file in (project / "model").iterdir()}
    assert "--overwrite" in fails(run, "fit", project / "latents", "--out", project / "model", *FEW)
    assert before == {file.name: file.read_bytes() for file in (project / "model").iterdir()}
    (tmp_path / "notes.txt").touch()
    assert "notes.txt" in fails(run, "fit", project / "latents", "--out", tmp_path, "--overwrite", *FEW)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(told, project, tmp_path):
    weights = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        told("fit", project / "latents", "--out", tmp_path / name, *FEW, "--seed", seed)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_options_reach_the_model(told, project, tmp_path):
    told("fit", project / "latents", "--out", tmp_path / "m", *FEW, "--depth", "2", "--standardize", "--dropout", "0.1")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert (config["depth"], config["standardize"], config["dropout"], config["shared_dim"]) == (2, True, 0.1, 16)


def test_fit_reports_a_smaller_batch_as_a_note(run, project, tmp_path):
    code, _, err = run("fit", project / "latents", "--out", tmp_path / "m", "--steps", "2", "--evals", "1")
    assert code == 0 and "note: batch_size 512" in err


@pytest.mark.parametrize(
    "argv, what",
    [
        (("nowhere",), "run extract again"),
        ((), "no latents"),
        (("latents", "--x", "a.npy"), "not both"),
        (("--x", "a.npy", "--y", "b.npy"), "does not exist"),
        (("latents", "--steps", "0"), "out of range"),
    ],
)
def test_fit_says_what_is_wrong(run, project, tmp_path, monkeypatch, argv, what):
    monkeypatch.chdir(project)
    assert what in fails(run, "fit", *argv, "--out", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.fixture
def arrays(tmp_path):
    """Latents that somebody else made: 40 items with two rows each."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    owner = np.repeat(np.arange(40), 2)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", (x[owner] + 0.1 * rng.normal(size=(80, 6))).astype(np.float32))
    np.save(tmp_path / "owner.npy", owner)
    return ("--x", tmp_path / "x.npy", "--y", tmp_path / "y.npy", "--owner", tmp_path / "owner.npy")


def test_arrays_without_names_are_known_again(run, told, arrays, tmp_path):
    told("fit", *arrays, "--out", tmp_path / "m", *FEW, "--fractions", "0.5,0.25,0.25", "--seed", "5", "--names", "audio,text")
    found = told("evaluate", tmp_path / "m", *arrays, "--names", "audio,text")
    assert (found["part"], found["recorded"], found["items"], found["captions"]) == ("test", True, 10, 20)
    assert "shaped the model" in fails(run, "evaluate", tmp_path / "m", *arrays, "--names", "audio,text", "--part", "all")
    assert "aligns audio and text" in fails(run, "evaluate", tmp_path / "m", *arrays)


@pytest.mark.parametrize("named", [False, True])
def test_a_split_file_is_kept_to(run, told, arrays, tmp_path, named):
    split = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    content = {"split": split, "items": [f"photo {i}" for i in range(40)]} if named else split
    (tmp_path / "split.json").write_text(json.dumps(content))
    told("fit", *arrays, "--split", tmp_path / "split.json", "--out", tmp_path / "m", *FEW)
    with_split = told("evaluate", tmp_path / "m", *arrays, "--split", tmp_path / "split.json")
    assert with_split["items"] == 10 and with_split["recorded"]
    if named:  # rows alone cannot tell which photo is which: never guess
        assert "--split" in fails(run, "evaluate", tmp_path / "m", *arrays)
    else:
        assert told("evaluate", tmp_path / "m", *arrays)["recall"] == with_split["recall"]


def test_without_a_part_to_select_on_some_training_items_are_held_out(run, told, arrays, tmp_path):
    (tmp_path / "split.json").write_text(json.dumps(["train"] * 30 + ["test"] * 10))
    code, _, err = run("fit", *arrays, "--split", tmp_path / "split.json", "--out", tmp_path / "m", *FEW)
    assert code == 0 and err.count('no part "val"') == 1
    assert json.loads((tmp_path / "m" / "fit.json").read_text())["items"] == {"train": 27, "test": 10, "val": 3}
    (tmp_path / "split.json").write_text(json.dumps(["test"] * 40))
    assert 'no part "train"' in fails(run, "fit", *arrays, "--split", tmp_path / "split.json", "--out", tmp_path / "n")


# evaluate


def test_evaluate_takes_the_held_out_items_and_no_other(told, project):
    found = told("evaluate", project / "model", project / "latents")
    latents = workflow.open_latents(project / "latents")
    recorded = json.loads((project / "model" / "parts.json").read_text())["parts"]
    assert set(latents.parts["test"].item_ids) == set(recorded["test"])
    model, _ = workflow.load_model(project / "model")
    by_hand = retrieval(model, latents.parts["test"])
    assert {way: {k: at["mean"] for k, at in by_k.items()} for way, by_k in found["recall"].items()} == {
        way: {str(k): pytest.approx(value) for k, value in by_k.items()} for way, by_k in by_hand.items()
    }


def test_a_random_split_is_recorded_not_drawn_again(run, told, tmp_path):
    told("data", "sounding-scenes", tmp_path / "pairs", "--items", "30", "--split", "train")
    told("extract", tmp_path / "pairs", "--out", tmp_path / "latents")
    told("fit", tmp_path / "latents", "--out", tmp_path / "model", *FEW, "--seed", "3", "--fractions", "0.6,0.2,0.2")
    recorded = json.loads((tmp_path / "model" / "parts.json").read_text())["parts"]
    assert not any(set(a) & set(b) for a, b in combinations(recorded.values(), 2))
    part, pairs, known = workflow.held_out(tmp_path / "model", workflow.open_latents(tmp_path / "latents"))
    assert (part, known) == ("test", True) and set(pairs.item_ids) == set(recorded["test"])
    assert "shaped the model" in fails(run, "evaluate", tmp_path / "model", tmp_path / "latents", "--part", "all")
    assert "knows train, val, test" in fails(run, "evaluate", tmp_path / "model", tmp_path / "latents", "--part", "dev")
    os.utime(tmp_path / "pairs" / "image" / "train-000000.png", (0, 0))  # other latents, as far as one knows; the same items
    told("extract", tmp_path / "pairs", "--out", tmp_path / "again")
    _, pairs, known = workflow.held_out(tmp_path / "model", workflow.open_latents(tmp_path / "again"))
    assert known and set(pairs.item_ids) == set(recorded["test"])


def test_evaluate_shows_guessing_and_warns_of_training_items(run, project):
    code, out, err = run("evaluate", project / "model", project / "latents", "--part", "train")
    assert code == 0 and "blind guessing" in out and "modality gap" in out and "no estimate" in err
    code, out, err = run("evaluate", project / "model", project / "latents")
    assert "6 items, 12 captions" in out and err == ""


def test_new_data_may_be_judged_whole(told, project, tmp_path):
    told("data", "sounding-scenes", tmp_path / "new", "--items", "8", "--split", "test", "--seed", "9")
    for file in (tmp_path / "new" / "image").iterdir():
        file.rename(file.with_name(f"new-{file.name}"))
    table = tmp_path / "new" / "captions.csv"
    table.write_text(table.read_text().replace("image/", "image/new-"))
    told("extract", tmp_path / "new", "--out", tmp_path / "latents")
    found = told("evaluate", project / "model", tmp_path / "latents")
    assert (found["part"], found["recorded"], found["items"]) == ("all", False, 8)


def test_the_same_seed_gives_the_same_intervals(told, project):
    asked = ("evaluate", project / "model", project / "latents", "--part", "train", "--seed")
    seeds = [told(*asked, seed)["recall"] for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_latents_of_another_encoder_are_refused(run, told, project, tmp_path):
    told("extract", project / "pairs", "--out", tmp_path / "b", "--text", "lite-text-b")
    line = fails(run, "evaluate", project / "model", tmp_path / "b")
    assert "lite-text-b" in line and "lite-text-a" in line and "fit again" in line
    told("extract", project / "pairs", "--out", tmp_path / "c")
    content = json.loads((tmp_path / "c" / "pairs.json").read_text())
    content["encoders"]["text"]["revision"] = "0" * 64  # a note that does not fit its store
    (tmp_path / "c" / "pairs.json").write_text(json.dumps(content))
    assert "not of the same pass" in fails(run, "evaluate", project / "model", tmp_path / "c")


def test_broken_notes_are_clear_errors(run, project, tmp_path):
    for content in ("{", "[]", "{}", '{"format": "fusemix-lite pairs", "version": 1}'):
        (tmp_path / "pairs.json").write_text(content)
        assert "pairs.json" in fails(run, "evaluate", project / "model", tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_bytes((project / "model" / name).read_bytes())
    assert "encoders.json is missing" in fails(run, "evaluate", tmp_path / "model", project / "latents")


def test_shipped_adapters_can_be_judged_by_name(told, project):
    found = told("evaluate", "adapters-image-text", project / "latents")
    assert found["recorded"] is None and found["recall"]["text_to_image"]["1"]["mean"] > 80  # guessing: 17
    with pytest.raises(FuseMixLiteError, match="no such folder"):
        workflow.load_model("adapters-video-text")
    assert workflow.model_folder("adapters-audio-text") == WEIGHTS / "adapters-audio-text"


# search


def test_search_works_at_once(run, told):
    found = told("search", "two red birds", "--top", "3")
    assert (found["asked"], found["target"], found["size"]) == ("text", "image", 30)
    assert [match["rank"] for match in found["matches"]] == [1, 2, 3]
    assert sorted((match["cosine"] for match in found["matches"]), reverse=True) == [m["cosine"] for m in found["matches"]]
    code, out, _ = run("search", "two red birds", "--top", "1", "--quiet")
    assert code == 0 and found["matches"][0]["item"] in out and "Sounding Scenes" in out


def test_search_for_sounds(told):
    found = told("search", "a drum", "--for", "audio", "--top", "1")
    assert found["target"] == "audio" and found["matches"][0]["item"].startswith("audio-text-test")


def test_search_in_files_and_in_latents_finds_the_same(run, told, project, tmp_path):
    asked = ("search", "a blue bell", "--model", project / "model", "--top", "4")
    files, latents = (told(*asked, "--in", project / place)["matches"] for place in ("pairs", "latents"))
    assert files == latents and files[0]["item"].startswith("image/") and files[0]["caption"]
    code, _, err = run("search", "a blue bell", "--in", project / "pairs")
    assert code == 0 and "know Sounding Scenes and nothing else" in err


def test_search_with_a_picture(told, project):
    item = "image/test-000002.png"
    alike = told("search", project / "pairs" / item, "--in", project / "pairs", "--model", project / "model", "--for", "image")
    assert alike["matches"][0]["item"] == item and alike["matches"][0]["cosine"] == pytest.approx(1, abs=1e-3)
    words = told("search", project / "pairs" / item, "--in", project / "latents", "--model", project / "model")
    assert words["target"] == "text" and all(match["caption"] for match in words["matches"])


def test_search_writes_a_page(run, tmp_path):
    code, out, _ = run("search", "a <b>bell</b>", "--html", tmp_path / "page.html", "--quiet")
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and "page.html" in out and "&lt;b&gt;bell&lt;/b&gt;" in page and "<b>bell" not in page


@pytest.mark.parametrize(
    "argv, what",
    [
        (("photo.png",), "no such file"),
        (("  ",), "empty"),
        (("a bell", "--in", "nowhere"), "does not exist"),
        (("a bell", "--model", "model"), "--in"),
        (("a bell", "--model", "nowhere", "--in", "pairs"), "no such folder"),
        (("a bell", "--model", "model", "--in", "pairs", "--for", "audio"), "audio"),
        (("a bell", "--for", "audio", "--in", "pairs"), "audio"),
        (("pairs/image/test-000000.png", "--for", "audio"), "cannot find audio by image"),
    ],
)
def test_search_says_what_is_wrong(run, project, monkeypatch, argv, what):
    monkeypatch.chdir(project)
    assert what in fails(run, "search", *argv)


def test_search_refuses_an_encoder_that_has_changed(run, project, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for file in (project / "model").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    content = json.loads((model / "encoders.json").read_text())
    content["encoders"]["image"]["revision"] = "0" * 64
    (model / "encoders.json").write_text(json.dumps(content))
    assert "another revision" in fails(run, "search", "a bell", "--in", project / "pairs", "--model", model)
    content["encoders"]["image"] |= {"revision": None, "name": None}
    (model / "encoders.json").write_text(json.dumps(content))
    assert "nobody knows" in fails(run, "search", "a bell", "--in", project / "pairs", "--model", model)


def test_search_refuses_latents_of_files_that_have_changed(run, told, tmp_path):
    told("data", "sounding-scenes", tmp_path / "pairs", "--items", "12", "--split", "test")
    told("extract", tmp_path / "pairs", "--out", tmp_path / "latents")
    os.utime(tmp_path / "pairs" / "image" / "test-000000.png", (0, 0))
    assert "has changed" in fails(run, "search", "a bell", "--in", tmp_path / "latents")
