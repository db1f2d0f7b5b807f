"""A training run that is killed, stopped, or finds its disk full or its checkpoints broken, and what comes of it."""

import json
import os
import random
import shutil
import signal
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from mutations import failures, mutated_bytes, mutated_json
from safetensors import safe_open
from safetensors.torch import load_file, save
from test_pairs import on_disk, toy_pairs
from torture import tries
from tqdm import tqdm

from fusemix_lite import (
    Checkpoints,
    FuseMixLiteError,
    LatentPairs,
    adapters,
    checkpoints,
    cli,
    disk,
    fit,
    resuming,
    rows,
    training,
    workflow,
)
from fusemix_lite.rows import StoredRows

STEPS = 24
QUICK = {"steps": STEPS, "batch_size": 8, "shared_dim": 5, "evals": 4, "lr": 0.01, "progress": False}
CASES = {
    "none": {"augment": "none", "dropout": 0.2},
    "fusemix": {"augment": "fusemix", "alpha": 0.5},
    "noise": {"augment": "noise", "temperature": 0.05},
    "each pair, a share of the steps": {"per": "pair", "mix_probability": 0.5, "mask_negatives": True, "seed": 3},
    "standardised": {"standardize": True, "depth": 2, "batch_size": 15},
    "on disk": {"standardize": True},
    "nobody looks": {"augment": "slerp"},
}
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    """Checkpoints as often as can be, and no word about what is gone on with."""
    monkeypatch.setattr(checkpoints, "SHARE", 1.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="goes on after step|stopped after step")
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Training pairs of each case: those on disk are memory-mapped."""
    pairs = toy_pairs(12)
    stored = on_disk(pairs, tmp_path_factory.mktemp("latents"))
    return {case: stored if case == "on disk" else pairs for case in CASES}


@pytest.fixture(scope="module")
def uninterrupted(data):
    """What comes of each case if nothing happens."""
    return {case: outcome(run(data, case)) for case in CASES}


def run(data, case, checkpoint=None, **more):
    val = None if case == "nobody looks" else toy_pairs(10, seed=1)
    return fit(data[case], val, **QUICK | CASES[case] | more, checkpoint=checkpoint)


def outcome(result):
    """All that is promised to be the same: everything but the time that it took."""
    weights = {name: tensor.numpy().tobytes() for name, tensor in result.model.state_dict().items()}
    return weights, repr(result.history), result.best_step


@contextmanager
def stopped_at(step):
    """Something goes wrong in this step of a fit that begins anew."""
    calls, loss = iter(range(1, 10_000)), training.symmetric_infonce
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "symmetric_infonce", lambda *a: loss(*a) if next(calls) < step else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            yield


def files(folder):
    return sorted(file for file in folder.iterdir() if file.name.startswith("checkpoint-"))


def fork(call):
    """Run a call in a process of its own: its id. It ends with 0, 1 for an error, 130 for KeyboardInterrupt."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: the child uses none of them
        child = os.fork()
    if child:
        return child
    code = 1
    try:
        warnings.simplefilter("ignore")
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in what a shell starts in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        rows._pool.cache_clear()
        tqdm.set_lock(threading.RLock())  # its own is shared by processes, and who is killed with it never gives it back
        call()
        code = 0
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def ended(child):
    """The exit code of a process; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# killed


@pytest.mark.parametrize("case", CASES)
def test_gone_on_with_it_is_the_same_run(data, uninterrupted, tmp_path, case):
    for stop in (3, 9):  # of the second life: steps 2 to 10, say
        with stopped_at(stop):
            run(data, case, Checkpoints(tmp_path, every=0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = run(data, case, tmp_path)
    assert outcome(result) == uninterrupted[case]
    assert [str(w.message) for w in told if "goes on after step" in str(w.message)]
    assert outcome(run(data, case, tmp_path)) == uninterrupted[case]  # the end is kept as well, until somebody removes it


@needs_fork
@pytest.mark.torture
def test_killed_at_any_moment_and_gone_on_with_it_is_the_same_run(data, uninterrupted, tmp_path, record_property):
    """kill -9, once or several times in a row, with a checkpoint after every step."""
    kills, wanted, cut, number = 0, tries(3, 50), 0, 0
    while kills < wanted:
        assert number < 20 * wanted, "the runs end before they are killed"
        rng, case, folder = random.Random(number), list(CASES)[number % len(CASES)], tmp_path / str(number)
        number += 1
        for _ in range(rng.choice((1, 1, 2, 3))):
            child = fork(lambda case=case, folder=folder: run(data, case, Checkpoints(folder, every=0)))
            time.sleep(rng.uniform(0.01, 0.25))
            os.kill(child, signal.SIGKILL)
            kills += ended(child) == -signal.SIGKILL
            cut += any(file.suffix == ".tmp" for file in folder.glob("*"))
        assert outcome(run(data, case, folder)) == uninterrupted[case], (case, number - 1)
        assert len(files(folder)) <= 3 and not list(folder.glob("*.tmp"))  # 3: killed before it could delete the oldest
        shutil.rmtree(folder)
    assert cut or wanted < 50, "no kill fell into the writing of a checkpoint"
    record_property("faults", kills)


@needs_fork
@pytest.mark.parametrize("moment", ["half written", "not renamed", "renamed"])
def test_killed_while_a_checkpoint_is_written(data, uninterrupted, tmp_path, monkeypatch, moment):
    write = checkpoints.write_aside

    def die(file, content):
        if "checkpoint-00000007" not in file.name:
            return write(file, content)
        if moment == "renamed":
            write(file, content)
        else:
            part = content[: len(content) // 2] if moment == "half written" else content
            file.with_name(file.name + ".7-ab.tmp").write_bytes(part)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write_aside", die)
        assert ended(fork(lambda: run(data, "fusemix", Checkpoints(tmp_path, every=0)))) == -signal.SIGKILL
    assert len(files(tmp_path)) == 3  # the two before, and what was being written
    assert outcome(run(data, "fusemix", tmp_path)) == uninterrupted["fusemix"]
    assert [int(file.name[11:19]) for file in files(tmp_path)] == [7 if moment == "renamed" else 6, STEPS]


SPOILT = {
    "weights": lambda run: next(run.model.parameters()).mul_(1.001),
    "moments": lambda run: next(iter(run.optimizer.state.values()))["exp_avg"].zero_(),
    "the optimiser's step": lambda run: next(iter(run.optimizer.state.values()))["step"].add_(1),
    "dropout": lambda run: torch.default_generator.manual_seed(0),
    "mixing": lambda run: run.batches.generator.manual_seed(0),
    "the place in the epoch": lambda run: setattr(run.batches, "taken", run.batches.taken - 1),
    "the epoch": lambda run: run.batches.go_to(torch.Generator().manual_seed(9).get_state(), run.batches.taken),
    "the best weights": lambda run: next(iter(run.best.values())).mul_(1.001),
    "the best look": lambda run: setattr(run, "best_mean", 100.0),
    "the history": lambda run: run.history[0].update(loss=0.0),
}


@pytest.mark.parametrize("what", SPOILT)
def test_each_part_of_the_state_is_needed(data, uninterrupted, tmp_path, monkeypatch, what):
    """Deliberate breaks: what is not as it was shows in the result."""
    options = {"lr": 1e-6} if what == "the best weights" else {}  # the later looks are no better
    expected = outcome(run(data, "fusemix", **options))
    with stopped_at(9):
        run(data, "fusemix", Checkpoints(tmp_path, every=0), **options)
    restore = resuming.Run.restore

    def spoiling(self, *state):
        restore(self, *state)
        with torch.no_grad():
            now = self.batches.generator.get_state()
            SPOILT[what](self)
            if what == "the epoch":
                self.batches.generator.set_state(now)

    if what == "the best weights":
        monkeypatch.setattr(training, "mean_recall", lambda recalls: 0.0)
    monkeypatch.setattr(resuming.Run, "restore", spoiling)
    assert outcome(run(data, "fusemix", tmp_path, **options)) != expected


def test_nothing_is_different_with_checkpoints(data, uninterrupted, tmp_path):
    """Neither are the numbers of a run that nobody stops, nor what the caller has: random state, signals."""
    before = torch.get_rng_state(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert outcome(run(data, "on disk", Checkpoints(tmp_path, every=0))) == uninterrupted["on disk"]
    after = torch.get_rng_state(), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    found = []
    thread = threading.Thread(target=lambda: found.append(outcome(run(data, "fusemix", tmp_path / "thread"))))
    thread.start()
    thread.join()
    assert found == [uninterrupted["fusemix"]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_the_same_run_but_for_rounding(data, tmp_path):
    """Its generators go on as well: other batches, mixing or dropout would show in the first step."""
    expected = run(data, "fusemix", device="cuda").history
    with stopped_at(9):
        run(data, "fusemix", Checkpoints(tmp_path, every=0), device="cuda")
    found = run(data, "fusemix", tmp_path, device="cuda").history
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in expected], rel=1e-3)


def test_time_is_that_of_all_lives(data, tmp_path, monkeypatch):
    with stopped_at(9):
        run(data, "fusemix", Checkpoints(tmp_path, every=0))
    state = resuming.Run.state
    monkeypatch.setattr(resuming.Run, "state", lambda self: (state(self)[0], state(self)[1] | {"seconds": 500.0}))
    run(data, "fusemix", tmp_path)
    assert 500 < run(data, "fusemix", tmp_path).seconds < 600


def test_checkpoints_are_written_by_the_clock_and_take_a_small_share(data, tmp_path, monkeypatch):
    now, steps = [0.0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoints, "SHARE", 0.01)
    kept = Checkpoints(tmp_path, every=30)
    kept.resume({}, None)

    def state():
        steps.append(step)
        now[0] += slow
        return {}, {}

    for step in range(1, 1001):
        slow = 0.0 if step < 500 else 2.0
        now[0] += 1.0
        kept.keep(step, state, last=step == 1000)
    assert steps[:3] == [30, 60, 90] and steps[-1] == 1000
    assert np.diff([at for at in steps if 500 < at < 1000]).tolist() == [198, 198]  # 2 seconds of 200


# whose it is


OTHERS = {
    "lr": ({"lr": 0.02}, "lr 0.01, not 0.02"),
    "seed": ({"seed": 1}, "seed 0, not 1"),
    "dropout": ({"dropout": {"image": 0.3, "text": 0.2}}, "dropout 0.3, not"),
    "temperature": ({"temperature": 0.07}, "temperature None, not 0.07"),
    "scheme": ({"augment": "none"}, "augment 'fusemix', not 'none'"),
    "steps": ({"steps": STEPS + 1}, "steps 24, not 25"),
    "validation": ({"evals": 2}, "evals 4, not 2"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_checkpoints_of_another_run_are_refused(data, tmp_path, what):
    options, told = OTHERS[what]
    with stopped_at(5):
        run(data, "fusemix", Checkpoints(tmp_path, every=0))
    before = {file.name: file.read_bytes() for file in files(tmp_path)}
    with pytest.raises(FuseMixLiteError, match="is of another run .*--overwrite") as error:
        run(data, "fusemix", tmp_path, **options)
    assert told in str(error.value)
    assert before == {file.name: file.read_bytes() for file in files(tmp_path)}
    expected = outcome(run(data, "fusemix", **options))
    assert outcome(run(data, "fusemix", Checkpoints(tmp_path, replace=True), **options)) == expected
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("side", ["x", "y", "owner", "val"])
def test_so_are_those_of_other_data(data, tmp_path, side):
    val, other_val = toy_pairs(10, seed=1), toy_pairs(10, seed=2)
    with stopped_at(5):
        fit(data["fusemix"], val, **QUICK, checkpoint=Checkpoints(tmp_path, every=0))
    other = toy_pairs(12)
    if side == "owner":
        other.owner = other.owner.roll(1)
    elif side != "val":
        getattr(other, side)[7, 2] += 1e-6
    with pytest.raises(FuseMixLiteError, match=r"another run \((train|val) 'LatentPairs\(image: 1[02] x 8, text: ") as error:
        fit(other, other_val if side == "val" else val, **QUICK, checkpoint=tmp_path)
    assert ("(val " in str(error.value)) == (side == "val")


def test_and_of_another_torch(data, tmp_path, monkeypatch):
    with stopped_at(5):
        run(data, "fusemix", Checkpoints(tmp_path, every=0))
    monkeypatch.setattr(torch, "__version__", "9.9.0")
    with pytest.raises(FuseMixLiteError, match="torch '.*', not '9.9.0'"):
        run(data, "fusemix", tmp_path)


def test_numbers_of_other_kinds_are_the_same_run(data, uninterrupted, tmp_path):
    with stopped_at(5):
        run(data, "fusemix", Checkpoints(tmp_path, every=0))
    other = {"steps": np.int64(STEPS), "alpha": np.float32(0.5), "mask_negatives": np.False_}
    assert outcome(run(data, "fusemix", tmp_path, **other)) == uninterrupted["fusemix"]


def test_another_number_of_threads_is_said(data, uninterrupted, tmp_path, monkeypatch):
    with stopped_at(5):
        run(data, "fusemix", Checkpoints(tmp_path / "run", every=0))
    shutil.copytree(tmp_path / "run", tmp_path / "same")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with pytest.warns(UserWarning, match="7 threads, begun with 1: the last digits may differ"):
        run(data, "fusemix", tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # then such a checkpoint is not taken, and nothing of it is
        begun_anew = run(data, "fusemix", Checkpoints(tmp_path / "same", replace=True))
    assert outcome(begun_anew) == uninterrupted["fusemix"]


def test_one_process_at_a_time(data, tmp_path):
    with FileLock(tmp_path / "lock"), pytest.raises(FuseMixLiteError, match="another process is training with"):
        run(data, "fusemix", tmp_path)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").unlink(missing_ok=True)
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(FuseMixLiteError, match="lock is a link: delete it"):
        run(data, "fusemix", tmp_path)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_place_for_no_checkpoints(data, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(FuseMixLiteError, match="file cannot hold checkpoints .*: choose another folder"):
        run(data, "fusemix", tmp_path / "file")
    with pytest.raises(FuseMixLiteError, match="checkpoint is a int"):
        run(data, "fusemix", 7)
    for every in (-1, float("nan"), "often"):
        with pytest.raises(FuseMixLiteError, match=f"every {every!r} seconds: give a number, 0 or more"):
            Checkpoints(tmp_path, every)

    def none(*a, **options):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(FileLock, "acquire", none)
    with pytest.raises(FuseMixLiteError, match="lock cannot be locked: choose a folder on a file system that has locks"):
        run(data, "fusemix", tmp_path)


def test_what_is_removed_is_ours(data, tmp_path):
    kept = Checkpoints(tmp_path / "run", every=0)
    run(data, "fusemix", kept)
    kept.remove()
    assert not (tmp_path / "run").exists()
    kept.remove()  # nothing there to remove
    run(data, "fusemix", kept)
    for name in ("checkpoint-notes.txt", "thesis.tmp"):
        (tmp_path / "run" / name).touch()
    run(data, "fusemix", kept)
    kept.remove()
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == ["checkpoint-notes.txt", "thesis.tmp"]
    Checkpoints(None).remove()  # nothing to remove either


# broken


@pytest.fixture
def stopped(data, tmp_path):
    """The folder of a run that was stopped in its ninth step, with the checkpoints of steps 7 and 8."""
    with stopped_at(9):
        run(data, "fusemix", Checkpoints(tmp_path / "run", every=0))
    assert [int(file.name[11:19]) for file in files(tmp_path / "run")] == [7, 8]
    return tmp_path / "run"


BROKEN = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "a bit": lambda file: file.write_bytes(flipped(file.read_bytes(), -5)),
    "a bit of the header": lambda file: file.write_bytes(flipped(file.read_bytes(), 100)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a link": lambda file: (file.rename(file.with_name("elsewhere")), file.symlink_to(file.with_name("elsewhere"))),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "another name": lambda file: file.rename(file.with_name("checkpoint-00000009-0123456789abcdef.safetensors")),
    "no name": lambda file: file.rename(file.with_name("checkpoint-last.safetensors")),
}


def flipped(content, place):
    content = bytearray(content)
    content[place] ^= 1
    return bytes(content)


@pytest.mark.parametrize("how", [how for how in BROKEN if how != "no name"])
def test_a_broken_checkpoint_is_passed_over(data, uninterrupted, stopped, how):
    BROKEN[how](files(stopped)[-1])
    with pytest.warns(UserWarning) as told:
        result = run(data, "fusemix", stopped)
    assert outcome(result) == uninterrupted["fusemix"]
    told = [str(w.message) for w in told]
    assert "cannot be used: an older checkpoint is taken" in told[0] and "goes on after step 7" in told[1]


@pytest.mark.parametrize("how", BROKEN)
def test_where_all_are_broken_nothing_is_assumed(data, uninterrupted, stopped, how):
    if how == "another name":
        how = "empty"
    files(stopped)[0].unlink()
    BROKEN[how](files(stopped)[-1])
    with pytest.raises(FuseMixLiteError, match="no checkpoint can be used: .*checkpoint-.* to begin anew .*--overwrite"):
        run(data, "fusemix", stopped)
    if how not in ("a folder", "no name"):
        assert outcome(run(data, "fusemix", Checkpoints(stopped, replace=True))) == uninterrupted["fusemix"]


def written(folder, tensors, facts, step=8):
    """A checkpoint as a stranger might make one: whatever it holds, its bytes fit its name."""
    return named(folder, save(tensors, {"facts": json.dumps(facts)}), step)


def named(folder, content, step=8):
    folder.mkdir(exist_ok=True)
    file = folder / f"checkpoint-{step:08d}-{checkpoints.hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    file.write_bytes(content)
    return file


def content_of(folder):
    file = files(folder)[-1]
    with safe_open(file, "pt") as opened:
        return load_file(file), json.loads(opened.metadata()["facts"])


HOSTILE = {
    "a tensor too few": lambda t, f: t.pop("exp_avg/temperature"),
    "a tensor too many": lambda t, f: t.update(more=torch.zeros(1)),
    "a shape": lambda t, f: t.update({"model/temperature": torch.zeros(2)}),
    "a dtype": lambda t, f: t.update({"model/temperature": torch.zeros((), dtype=torch.float64)}),
    "NaN": lambda t, f: t["model/temperature"].fill_(float("nan")),
    "infinity": lambda t, f: t["history"].fill_(float("inf")),
    "a generator": lambda t, f: t["generator/cpu"].fill_(255),
    "another generator": lambda t, f: t["epoch"].fill_(7),
    "a step beyond the last": lambda t, f: (f.update(step=STEPS + 1), t.update(history=torch.zeros(STEPS + 1, 3).double())),
    "a place beyond the epoch": lambda t, f: f.update(taken=10**9),
    "a place before it": lambda t, f: f.update(taken=-1),
    "half a place": lambda t, f: f.update(taken=1.5),
    "no time": lambda t, f: f.update(seconds=float("inf")),
    "a look ahead": lambda t, f: f["looks"][0].update(step=9),
    "a look at nothing": lambda t, f: f["looks"][0].update(val={"image_to_text": {"one": 1.0}}),
    "a look of more than all": lambda t, f: f["looks"][0].update(val_mean=1e300),
    "looks of another kind": lambda t, f: f.update(looks=3),
    "a run of another kind": lambda t, f: f.update(run=[1]),
    "another version": lambda t, f: f.update(version=2),
    "another format": lambda t, f: f.update(format="checkpoint"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_checkpoint_from_a_stranger_is_refused(data, uninterrupted, stopped, tmp_path, how):
    tensors, facts = content_of(stopped)
    written(tmp_path / "same", tensors, facts)
    assert outcome(run(data, "fusemix", tmp_path / "same")) == uninterrupted["fusemix"]  # as it is it would be taken
    tensors, facts = content_of(stopped)
    HOSTILE[how](tensors, facts)
    step = facts["step"] if isinstance(facts["step"], int) else 8
    file = written(tmp_path / "other", tensors, facts, step)
    with pytest.raises(FuseMixLiteError, match=f"no checkpoint can be used: {file}"):
        run(data, "fusemix", tmp_path / "other")
    begun_anew = run(data, "fusemix", Checkpoints(tmp_path / "other", replace=True))
    assert outcome(begun_anew) == uninterrupted["fusemix"]  # nothing of it was taken before it was refused


@needs_fork
@pytest.mark.torture
def test_mutated_checkpoints(data, uninterrupted, stopped, tmp_path, record_property):
    """Whatever was done to a checkpoint, it is refused, or exactly what was written. Where its name was made to fit, as by
    a stranger, it is refused, or of the right shapes: nothing else than our error comes of it, and no hang."""
    name, good = files(stopped)[-1].name, files(stopped)[-1].read_bytes()
    other, (tensors, facts) = files(stopped)[0].read_bytes(), content_of(stopped)

    def trial(rng):
        folder = tmp_path / "fuzz"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        how = rng.randrange(3)
        if how == 0:
            (folder / name).write_bytes(mutated_bytes(rng, good, other))
        elif how == 1:
            named(folder, mutated_bytes(rng, good, other))
        else:
            try:
                named(folder, save(tensors, {"facts": json.dumps(mutated_json(rng, facts))}))
            except Exception:  # what safetensors cannot write
                return
        result = run(data, "fusemix", folder)
        assert how or outcome(result) == uninterrupted["fusemix"]

    inputs = tries(100, 2000)
    assert not failures(trial, inputs)
    record_property("inputs", inputs)


# not finite


def test_a_loss_that_is_not_finite_says_where_it_comes_from(data, tmp_path, monkeypatch):
    loss, calls = training.symmetric_infonce, iter(range(1, 100))
    monkeypatch.setattr(training, "symmetric_infonce", lambda *a: loss(*a) * (float("nan") if next(calls) == 6 else 1))
    with pytest.raises(FuseMixLiteError, match="the loss is nan at step 6: latents and weights are finite: lower lr") as error:
        run(data, "none", Checkpoints(tmp_path, every=0))
    noted = json.loads((tmp_path / checkpoints.FAILED).read_text())
    assert error.value.rows == noted["rows"] and len(noted["rows"]) == 8 and noted["step"] == 6
    line = str(error.value)
    assert f"rows {', '.join(map(str, noted['rows'][:5]))}, … (8 in all)" in line
    assert str(tmp_path / checkpoints.FAILED) in line and f"the last good checkpoint is {files(tmp_path)[-1]} (step 5)" in line


def test_latents_that_are_not_finite_are_named(tmp_path):
    """Only those on disk can be: others are looked at when pairs are made of them."""
    pairs = toy_pairs(12)
    x, y = pairs.x.numpy().copy(), pairs.y.numpy().copy()
    x[3, 1], y[40, 2] = np.inf, np.nan
    with pytest.raises(FuseMixLiteError, match="image latents: row 3 is NaN or infinite"):
        LatentPairs(x, pairs.y, pairs.owner)
    broken = LatentPairs(StoredRows([x]), StoredRows([y]), pairs.owner)
    with pytest.raises(FuseMixLiteError, match="the loss is nan at step 1: image latents row 3 and text latents row 40 are not "
                                               "finite: extract them again .*there is no checkpoint") as error:  # fmt: skip
        fit(broken, **QUICK | {"batch_size": 60}, augment="none")
    assert sorted(error.value.rows) == list(range(60))


@pytest.mark.parametrize("kept", [True, False])
def test_weights_that_are_not_finite_never_get_into_a_checkpoint(data, tmp_path, monkeypatch, kept):
    clamp, calls = training.FusionModel.clamp_temperature, iter(range(1, 100))

    def spoil(self):
        clamp(self)
        if next(calls) == (7 if kept else STEPS):
            self.towers["text"].project.bias.data[0] = torch.inf

    monkeypatch.setattr(training.FusionModel, "clamp_temperature", spoil)
    told = "after step 7.*last good checkpoint is .* .step 6" if kept else f"towers.text.project.bias .* after step {STEPS}"
    with pytest.raises(FuseMixLiteError, match=told):
        run(data, "nobody looks", Checkpoints(tmp_path, every=0) if kept else None)
    for file in files(tmp_path):
        assert all(tensor.isfinite().all() for tensor in load_file(file).values())
    assert [int(file.name[11:19]) for file in files(tmp_path)] == ([5, 6] if kept else [])


def test_weights_that_broke_in_the_step_before_are_named(data, monkeypatch):
    clamp, calls = training.FusionModel.clamp_temperature, iter(range(1, 100))

    def spoil(self):
        clamp(self)
        if next(calls) == 7:
            self.towers["text"].project.bias.data[0] = torch.nan

    monkeypatch.setattr(training.FusionModel, "clamp_temperature", spoil)
    with pytest.raises(FuseMixLiteError, match="nan at step 8: towers.text.project.bias is not finite since the step before"):
        run(data, "nobody looks")


# no room


def test_a_full_disk_costs_checkpoints_and_not_the_run(data, uninterrupted, tmp_path, monkeypatch):
    write = checkpoints.write_aside

    def full(file, content):
        if int(file.name[11:19]) > 5:
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(checkpoints, "write_aside", full)
    with pytest.warns(UserWarning) as told:
        result = run(data, "fusemix", Checkpoints(tmp_path, every=0))
    assert outcome(result) == uninterrupted["fusemix"]
    lines = [str(w.message) for w in told]
    assert len(lines) == 1 and "step 6 not written (No space left on device)" in lines[0] and "(step 5)" in lines[0]
    assert [file.name[11:19] for file in files(tmp_path)] == ["00000004", "00000005"]
    monkeypatch.setattr(checkpoints, "write_aside", write)
    assert outcome(run(data, "fusemix", tmp_path)) == uninterrupted["fusemix"]


@needs_fork
def test_so_does_a_limit_on_the_size_of_files(data, uninterrupted, stopped):
    """As a quota sets it."""
    import resource

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        result = outcome(run(data, "fusemix", Checkpoints(stopped, every=0)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert result == uninterrupted["fusemix"]

    before = {file.name: file.read_bytes() for file in files(stopped)}
    assert ended(fork(limited)) == 0
    assert before == {file.name: file.read_bytes() for file in files(stopped)}


# asked to stop


@contextmanager
def slow_steps(seconds=0.02, begun=None):
    """Steps that take some time; the file `begun` is there once the first one is under way."""
    loss = training.symmetric_infonce

    def slow(*given):
        if begun is not None:
            begun.touch()
        time.sleep(seconds)
        return loss(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "symmetric_infonce", slow)
        yield


def wait_for(found, child):
    for _ in range(3000):
        if found():
            return
        assert os.waitpid(child, os.WNOHANG)[0] == 0, "it has ended before"
        time.sleep(0.01)
    pytest.fail("nothing has come")


@needs_fork
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_signal_waits_for_a_checkpoint_and_then_does_what_it_does(data, uninterrupted, tmp_path, number, code):
    with slow_steps():
        child = fork(lambda: run(data, "fusemix", tmp_path))  # the first checkpoint would come in half a minute
        wait_for((tmp_path / "lock").exists, child)
        time.sleep(0.1)
        os.kill(child, number)
        assert ended(child) == code
    assert len(files(tmp_path)) == 1
    assert outcome(run(data, "fusemix", tmp_path)) == uninterrupted["fusemix"]


@needs_fork
def test_a_second_signal_does_not_wait(data, tmp_path):
    begun = tmp_path / "begun"
    with slow_steps(600, begun):
        child = fork(lambda: run(data, "fusemix", tmp_path))
        wait_for(begun.exists, child)  # two signals that come before anybody hears them would be one
        os.kill(child, signal.SIGINT)
        time.sleep(0.5)
        assert os.waitpid(child, os.WNOHANG)[0] == 0  # it waits for the end of the step
        os.kill(child, signal.SIGINT)
        assert ended(child) == 130
    assert files(tmp_path) == []


def test_a_signal_is_heard_although_the_step_fails(data, uninterrupted, tmp_path, monkeypatch):
    """It is neither lost nor left for the next run with the same checkpoints."""
    kept = Checkpoints(tmp_path, every=0)

    def fails(*a):
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell has it ignored
    try:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "symmetric_infonce", fails)
            run(data, "fusemix", kept)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert outcome(run(data, "fusemix", kept)) == uninterrupted["fusemix"]


# the command line


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrays")
    pairs = toy_pairs(40)
    for name in ("x", "y", "owner"):
        np.save(folder / f"{name}.npy", getattr(pairs, name).numpy())
    given = [part for name in ("x", "y", "owner") for part in (f"--{name}", str(folder / f"{name}.npy"))]
    return ["fit", *given, "--steps", "30", "--batch-size", "8", "--shared-dim", "5", "--evals", "3"]


def model_of(folder):
    """The bytes of a model's folder, but for the date and the time that it took."""
    facts = json.loads((folder / "fit.json").read_text()) | {"seconds": 0, "made": ""}
    names = ("model.safetensors", "config.json", "history.json", "parts.json", "encoders.json")
    return facts, {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def whole(latents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    assert cli.main([*latents, "--out", str(folder), "--quiet"]) == 0
    assert not (folder / workflow.CHECKPOINT).exists()
    return model_of(folder)


def in_child(argv, told):
    """The command in a process of its own, which writes what it says to files; its exit code is that of the process."""

    def call():
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(told.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        import sys

        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        warnings.resetwarnings()
        code = cli.main(argv)
        sys.stderr.flush()
        os._exit(code)

    return fork(call)


@needs_fork
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_fit_that_is_stopped_goes_on_with_the_same_command(latents, whole, tmp_path, capsys, number, code):
    model = tmp_path / "model"
    argv = [*latents, "--out", str(model)]
    with slow_steps():
        child = in_child(argv, tmp_path / "told")
        wait_for((model / workflow.CHECKPOINT / "lock").exists, child)
        time.sleep(0.1)
        os.kill(child, number)
        assert ended(child) == code
    lines = (tmp_path / "told.err").read_text().splitlines()
    assert lines[-1] == "fusemix-lite: stopped; the same command goes on from the last checkpoint"
    assert any("note: stopped after step" in line and "last good checkpoint is" in line for line in lines)
    assert "Traceback" not in "".join(lines)
    assert cli.main([*argv, "--lr", "0.1"]) == 1
    err = capsys.readouterr().err
    assert "lr 0.001, not 0.1" in err and "--overwrite" in err
    assert cli.main(argv) == 0
    assert "note: goes on after step" in capsys.readouterr().err
    assert model_of(model) == whole and not (model / workflow.CHECKPOINT).exists()
    assert cli.main([*argv, "--quiet"]) == 1 and "holds a model already" in capsys.readouterr().err


@needs_fork
@pytest.mark.torture
def test_fit_that_is_killed_goes_on_with_the_same_command(latents, whole, tmp_path, monkeypatch, record_property):
    """Also while the model is written: it is there as a whole, or the same command makes it."""
    monkeypatch.setattr(Checkpoints.__init__, "__defaults__", (0.0, False))
    write, kills, wanted = workflow.write_aside, 0, tries(3, 30)
    for number in range(wanted):
        rng, model = random.Random(f"cli {number}"), tmp_path / str(number)
        argv = [*latents, "--out", str(model), "--quiet"]
        for _ in range(rng.choice((1, 2))):
            with monkeypatch.context() as patch:
                if number % 3 == 0:  # in the very end
                    patch.setattr(workflow, "write_aside", lambda *a: (time.sleep(0.05), write(*a)))
                    patch.setattr(Checkpoints, "remove", lambda self: time.sleep(0.05))
                child = in_child(argv, tmp_path / "told")
            time.sleep(rng.uniform(0.3, 0.6) if number % 3 == 0 else rng.uniform(0.02, 0.35))
            os.kill(child, signal.SIGKILL)
            kills += ended(child) == -signal.SIGKILL
        code = 1 if (model / "fit.json").exists() else 0
        assert cli.main(argv) == code, number
        assert model_of(model) == whole, number
        assert code or {file.suffix for file in model.iterdir()} == {".json", ".safetensors", ".md"}, number
    record_property("faults", kills)


def test_a_model_is_replaced_only_where_that_was_asked_for(latents, whole, tmp_path, capsys):
    model = tmp_path / "model"
    with stopped_at(9):
        cli.main([*latents, "--out", str(model), "--quiet"])
    (model / "notes.txt").touch()
    assert cli.main([*latents, "--out", str(model), "--quiet"]) == 1 and "in use" in capsys.readouterr().err
    (model / "notes.txt").unlink()
    (model / "own.tmp").mkdir()
    assert cli.main([*latents, "--out", str(model), "--quiet"]) == 0 and model_of(model) == whole
    with stopped_at(9):
        cli.main([*latents, "--out", str(model), "--quiet", "--overwrite", "--seed", "1"])
    assert model_of(model) == whole  # until there is another one
    assert cli.main([*latents, "--out", str(model), "--quiet", "--overwrite"]) == 0 and model_of(model) == whole
    assert not Path(model / workflow.CHECKPOINT).exists() and (model / "own.tmp").is_dir()


def test_a_model_that_is_replaced_is_never_half_of_each(latents, whole, tmp_path, monkeypatch, capsys):
    """Whichever file cannot be written: there is no fit.json, so that nobody takes it for one, and the same command goes on."""
    argv = [*latents, "--out", str(tmp_path / "model"), "--quiet"]
    assert cli.main([*argv, "--seed", "1"]) == 0
    other = model_of(tmp_path / "model")
    for place in range(6):
        left = iter(range(place))
        for module in (workflow, adapters):
            write = disk.write_aside

            def fails(*a, left=left, write=write):
                if next(left, None) is None:
                    raise OSError(28, "No space left on device", "model")
                write(*a)

            monkeypatch.setattr(module, "write_aside", fails)
        assert cli.main([*argv, "--overwrite"]) == 1 and "No space left on device" in capsys.readouterr().err
        assert not (tmp_path / "model" / "fit.json").exists()
    monkeypatch.undo()
    assert cli.main(argv) == 0  # it is no model any more that would have to be replaced
    assert model_of(tmp_path / "model") == whole != other
