"""Whatever happens while latents are extracted, what was computed stays, the pass goes on, and ends with the same bytes."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from contextlib import contextmanager

import extraction_passes as passes
import numpy as np
import pytest
import torch
from extraction_passes import BAD, BATCH, ENCODERS, ROWS, Fragile, Words, begin, contents, end, one_pass, without_orphans
from PIL import Image
from torture import HEAVY, tries

from fusemix_lite import FuseMixLiteError, LatentPairs, LatentStore, blame, cli, decoding, extract, extraction, workflow
from fusemix_lite.composed import callable_encoder
from fusemix_lite.sample_data import write_scenes

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and processes as on Linux")
WAYS = {
    "one": {},
    "several encoders": {"several": True},
    "the whole group": {"several": True, "group": True},
}
SLOW_WAYS = {  # workers take seconds to start
    "workers": {"workers": 2},
    "workers, the whole group": {"workers": 2, "several": True, "group": True},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(extraction, "ROWS_PER_SHARD", ROWS)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of passes that nothing happened to: of one encoder, of both."""
    out = {several: tmp_path_factory.mktemp("whole") for several in (False, True)}
    for several in out:
        one_pass(out[several], several)
    return {several: contents(out[several]) for several in out}


def goes_on(out, whole, several=False):
    """The same again, and the bytes are those of a pass that nothing happened to."""
    one_pass(out, several)
    assert contents(out) == whole[several]


# --- killed -------------------------------------------------------------------------------------------------------------------


def life(what, *given, **how):
    """How many seconds a pass lives."""
    since = time.monotonic()
    process = begin(what, *given, **how)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - since


@linux
@pytest.mark.torture
def test_killed_at_any_moment_and_resumed(tmp_path, whole, record_property):
    rng, kills, wanted = random.Random(1), 0, tries(3, 50)
    ways = [*WAYS, *WAYS, *SLOW_WAYS] if HEAVY else [*WAYS]
    begin(one_pass, tmp_path / "warm").join()
    lives = {}
    for number in range(10 * wanted):
        way = ways[number % len(ways)]
        how = dict((WAYS | SLOW_WAYS)[way])
        group, out, moments = how.pop("group", False), tmp_path / f"{number}", []
        if way not in lives:
            lives[way] = life(one_pass, tmp_path / way, seconds=0.003, **how)
        seconds = lives[way]
        for _ in range(rng.randint(1, 3)):
            moments.append(rng.uniform(0, seconds))
            process = begin(one_pass, out, seconds=0.003, **how)
            time.sleep(moments[-1])
            end(process, signal.SIGKILL, group)
            process.join()
            kills += process.exitcode == -signal.SIGKILL
            without_orphans(process.pid)
        try:
            goes_on(out, whole, how.get("several", False))
        except Exception as error:
            raise AssertionError(f"killed after {moments} of {seconds} s, {way}") from error
        if kills >= wanted:
            break
    assert kills >= wanted
    record_property("faults", kills)


@linux
@pytest.mark.torture
def test_death_before_any_step_leaves_what_can_be_resumed(tmp_path, whole, record_property):
    """Every state that the disk is ever in: before each file is made, put on the disk, renamed or deleted."""
    begin(passes.until_step, None, tmp_path / "counted", several=True).join()
    steps = int((tmp_path / "counted" / "steps").read_text())
    assert steps > 2 * 9 * 4  # of two stores of nine or ten files: opened, on the disk, renamed, their names on the disk
    chosen = sorted(random.Random(2).sample(range(steps), tries(4, steps)))
    for step in chosen:
        out = tmp_path / f"{step}"
        process = begin(passes.until_step, step, out, several=True)
        process.join()
        assert process.exitcode == 9
        goes_on(out, whole, several=True)
    record_property("faults", len(chosen))


@linux
@pytest.mark.torture
def test_death_in_the_middle_of_a_file_leaves_what_can_be_resumed(tmp_path, whole, record_property):
    sizes = {len(content) for content in whole[False].values()}
    rng, count = random.Random(3), tries(2, 20)
    for number in range(count):
        limit, out = rng.randrange(max(sizes)), tmp_path / f"{number}"
        process = begin(passes.until_size, limit, out)
        process.join()
        assert process.exitcode == -signal.SIGXFSZ
        assert any(name.endswith(".tmp") for name in contents(out))
        goes_on(out, whole)
    record_property("faults", count)


# --- stopped ------------------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.torture
def test_ctrl_c_and_sigterm_say_in_a_line_what_is_kept(tmp_path, whole, record_property):
    rng, stopped, wanted = random.Random(4), 0, tries(3, 20)
    seconds = 0.003 * passes.ITEMS  # at least
    for number in range(10 * wanted):
        out, code = tmp_path / f"{number}", (signal.SIGINT, signal.SIGTERM)[number % 2]
        how = {"workers": 2} if HEAVY and number % 5 == 4 else {"several": number % 3 == 0}
        process = begin(passes.command, out, 0.003, **how)
        while not (tmp_path / f"{number}.ready").exists():
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 5 if "workers" in how else 1.5 * seconds))
        end(process, code, group=True)  # as a terminal or a scheduler does
        if number % 3 == 1:
            time.sleep(rng.uniform(0, 0.02))
            end(process, code, group=True)  # by somebody who cannot wait
        process.join(60)
        said = (tmp_path / f"{number}.stderr").read_text().splitlines()
        where = f"try {number}, {how}, signal {code}: {said}"
        assert process.exitcode in (0, 128 + code), where
        if process.exitcode:
            stopped += 1
            assert said[-1].endswith("stopped; what was computed is kept, and the same command goes on from there"), where
        assert not any("Traceback" in line or "rror" in line for line in said), where
        without_orphans(process.pid)
        goes_on(out, whole, how.get("several", False))
        if stopped >= wanted:
            break
    assert stopped >= wanted
    record_property("faults", stopped)


def test_an_interrupt_is_passed_on_and_what_was_written_stays(tmp_path, whole, monkeypatch):
    """As in a notebook, where it stops a cell."""

    class Stopped(Words):
        def __getitem__(self, index):
            if index == 30:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    with pytest.raises(KeyboardInterrupt):
        extract(Stopped(), ENCODERS["a"], tmp_path / "a", batch_size=BATCH, progress=False)
    assert len(list((tmp_path / "a").glob("shard-*.safetensors"))) == 3
    goes_on(tmp_path, whole)


# --- workers ------------------------------------------------------------------------------------------------------------------


class Large(Fragile):
    """Takes more through the pipe than fits into it, so that a worker may die in the middle of a batch."""

    def to_inputs(self, batch):
        return {"captions": batch, "more": torch.zeros(200_000)}


@linux
@pytest.mark.torture
def test_a_worker_that_is_killed_is_an_error_in_a_line_at_once(tmp_path, monkeypatch, record_property):
    rng, whole_store, count = random.Random(5), None, tries(1, 5)
    monkeypatch.setattr(extraction, "ROWS_PER_SHARD", ROWS)
    for number in range(count):
        killed = []

        class Killing(Large):
            def encode_inputs(self, inputs, precision="fp32", rng=rng, killed=killed):
                workers = [
                    process.pid for process in passes.multiprocessing.active_children() if "Spawn" in type(process).__name__
                ]
                if workers and not killed and rng.random() < 0.2:
                    killed.append(rng.choice(workers))
                    os.kill(killed[0], signal.SIGKILL)
                return super().encode_inputs(inputs, precision)

            def without_model(self):
                return Large()

        with pytest.raises(
            FuseMixLiteError, match=r"a worker process died by signal 9: .* \(items \d+ to \d+ were in hand\); what w"
        ):
            extract(Words(200, name="x"), Killing(), tmp_path / f"{number}", batch_size=4, progress=False, workers=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store = extract(Words(200, name="x"), Large(), tmp_path / f"{number}", batch_size=4, progress=False)
        whole_store = whole_store or contents(store.path)
        assert contents(store.path) == whole_store and not passes.multiprocessing.active_children()[1:]
    record_property("faults", count)


# --- disks --------------------------------------------------------------------------------------------------------------------


@contextmanager
def files_no_larger_than(limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@linux
@pytest.mark.parametrize("stopped_at", ["shard-00000.safetensors", "quarantine.json", "manifest.json"])
def test_a_full_disk_is_said_in_a_line_and_the_pass_goes_on_when_there_is_room(tmp_path, whole, stopped_at):
    content = whole[False]
    size = 1 if stopped_at.startswith("shard") else len(content[f"a/{stopped_at}"]) - 1
    out = tmp_path / "out"
    if stopped_at == "quarantine.json":  # smaller than the shards, which are there already
        (out / "a").mkdir(parents=True)
        for name in content:
            if name.startswith("a/shard"):
                (out / name).write_bytes(content[name])
    said = f"{stopped_at} cannot be written .*: make room there, and run the same again; what was written is kept"
    with files_no_larger_than(size), pytest.raises(FuseMixLiteError, match=said):
        one_pass(out)
    assert not [name for name in contents(out) if name.endswith(".tmp")]  # which would take the room that is lacking
    assert {name: contents(out)[name] for name in contents(out)}.items() <= content.items()
    goes_on(out, whole)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_later_on(tmp_path, whole, monkeypatch, number):
    sync, count = os.fsync, iter(range(10**6))

    def failing(descriptor):
        if next(count) == 4:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", failing)
        with pytest.raises(
            FuseMixLiteError, match=rf"shard-.* cannot be written \({os.strerror(number)}\).*what was written is kept"
        ):
            one_pass(tmp_path / "out")
    kept = contents(tmp_path / "out")
    assert len(kept) == 2 and kept.items() <= whole[False].items()
    goes_on(tmp_path / "out", whole)


@pytest.mark.parametrize("fault", ["a file above", "a file", "no permission", "unreadable", "gone"])
def test_a_folder_that_cannot_be_written(tmp_path, whole, monkeypatch, fault):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        if fault == "a file above":
            out.write_text("")
        elif fault == "a file":
            out.mkdir()
            (out / "a").write_text("")
        elif fault == "no permission":  # root has any
            patched.setattr(
                os, "open", lambda *given: (_ for _ in ()).throw(PermissionError(errno.EACCES, "Permission denied"))
            )
        elif fault == "unreadable":
            denied = PermissionError(errno.EACCES, "Permission denied", str(out / "a"))
            patched.setattr(os, "listdir", lambda *given: (_ for _ in ()).throw(denied))
            patched.setattr(os, "scandir", os.listdir)
        else:
            opening = Words.__getitem__
            patched.setattr(Words, "__getitem__", lambda self, i: shutil.rmtree(out) or "x" if i == 30 else opening(self, i))
        with pytest.raises(FuseMixLiteError, match=rf"{out}.* cannot be (read|written) \(.*\): .*run the same again"):
            one_pass(out)
    if fault.startswith("a file"):
        (out if out.is_file() else out / "a").unlink()
    goes_on(out, whole)


@linux
def test_the_command_says_it_too(tmp_path, whole, monkeypatch, capsys):
    monkeypatch.setattr(workflow, "extract_pairs", lambda *given, **options: one_pass(tmp_path))
    with files_no_larger_than(1000):
        assert cli.main(["extract", "x", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("fusemix-lite: error: ") and "make room there, and run the same again" in said.err
    goes_on(tmp_path, whole)


@linux
@pytest.mark.parametrize("pair", ["image-text", "audio-text"])
def test_sample_data_on_a_full_disk_go_on_when_there_is_room(tmp_path, pair):
    write_scenes(tmp_path / "whole", pair, 10, progress=False)
    out = tmp_path / "out"
    out.mkdir()
    (out / "sounding-scenes.json.1-ab.tmp").write_bytes(b"{")  # left by a process that was killed at once
    with files_no_larger_than(500), pytest.raises(FuseMixLiteError, match=r"out.* cannot be written .*make room there"):
        write_scenes(out, pair, 10, progress=False)
    assert [name for name in contents(out) if name.endswith(".tmp")] == ["sounding-scenes.json.1-ab.tmp"]
    write_scenes(out, pair, 10, progress=False)
    found, expected = contents(out), contents(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in found if not name.endswith(".ogg"))  # which have a number drawn by lot


# --- items --------------------------------------------------------------------------------------------------------------------


class Pictures:
    """Files, as a reader has them, and a caption for each."""

    def __init__(self, folder, items=40):
        self.id, self.ids = "pictures", [f"{index}.png" for index in range(items)]
        self.paths = [folder / name for name in self.ids]
        folder.mkdir(exist_ok=True)
        for index, path in enumerate(self.paths):
            Image.new("RGB", (8, 8), (index, 2 * index, 255 - index)).save(path)

    def fields(self, modality):
        return self.ids, self.paths if modality == "image" else [f"picture {name}" for name in self.ids]


def colours(images):
    return np.stack([np.asarray(image)[0, 0] / 255 for image in images])


COLOURS = callable_encoder(colours, id="colours", modality="image", revision="1")


def quietly(*given, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return extract(*given, batch_size=BATCH, progress=False, **options)


def reasons(store):
    return {entry["index"]: entry["reason"] for entry in store.quarantine}


@linux
def test_items_that_cannot_be_read_are_left_out_and_pairs_stay_aligned(tmp_path, monkeypatch):
    data = Pictures(tmp_path / "pictures")
    paths, opening = data.paths, Image.open
    denied, broken = str(paths[20]), str(paths[21])

    def opened(file, *given, **options):
        if str(file) in (denied, broken):  # root may read everything
            number = errno.EACCES if str(file) == denied else errno.EIO
            raise OSError(number, os.strerror(number), str(file))
        if str(file) == str(paths[2]):
            paths[3].unlink(missing_ok=True)  # between the list and its turn
        return opening(file, *given, **options)

    monkeypatch.setattr(Image, "open", opened)
    for index in (7, 8, 9):
        paths[index].unlink()
    paths[7].mkdir()
    os.mkfifo(paths[8])  # opening it would wait for ever
    paths[9].symlink_to("/dev/zero")
    paths[15].write_bytes(paths[15].read_bytes()[:-30])  # somebody is writing it
    with pytest.warns(UserWarning, match=r"^7 of 40 items left out \(first: 3.png, .*No such file.*\); see .*quarantine.json$"):
        store = extract(data, COLOURS, tmp_path / "image", batch_size=BATCH, progress=False)
    assert list(reasons(store)) == [3, 7, 8, 9, 15, 20, 21]
    for index, why in {
        3: "No such file",
        7: "no plain file",
        8: "no plain file",
        9: "no plain file",
        20: "Permission denied",
    }.items():
        assert why in reasons(store)[index]
    assert "truncated" in reasons(store)[15] and "Input/output error" in reasons(store)[21]
    assert [(e["item_id"], e["path"]) for e in store.quarantine] == [
        (data.ids[e["index"]], str(paths[e["index"]])) for e in store.quarantine
    ]
    text = extract(data, ENCODERS["a"], tmp_path / "text", batch_size=BATCH, progress=False)
    with pytest.warns(UserWarning, match="dropped"):
        pairs = LatentPairs.from_stores(store, text)
    for x, y in zip(pairs.x, pairs.y, strict=True):
        index = round(float(x[0]) * 255)
        assert np.allclose(y, passes.digits(f"picture {index}.png", 8), atol=0.01)
    assert len(pairs) == 33


def test_nothing_that_can_be_read_is_an_error_and_leaves_nothing_behind(tmp_path):
    data = Pictures(tmp_path / "pictures", 20)
    for path in data.paths:
        path.write_bytes(b"")
    with pytest.raises(FuseMixLiteError, match=r"no latent to store, first of all 0.png: .*0.png is no readable image"):
        quietly(data, COLOURS, tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_a_disk_that_goes_away_stops_the_pass_and_is_not_taken_for_bad_items(tmp_path):
    """Else a million items would be left out for ever, as they could not be found for a minute."""
    data = Pictures(tmp_path / "pictures", 48)
    plain = contents(quietly(data, COLOURS, tmp_path / "plain").path)
    calls = iter(range(100))

    def unplugged(images):
        if next(calls) == 6:
            (tmp_path / "pictures").rename(tmp_path / "elsewhere")
        return colours(images)

    encoder = callable_encoder(unplugged, id="colours", modality="image", revision="1")
    with pytest.raises(
        FuseMixLiteError, match=r"items fail, and so does 18.png now, which worked before .*No such file.*goes on"
    ):
        quietly(data, encoder, tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 2  # two shards; of the third seven were read
    (tmp_path / "elsewhere").rename(tmp_path / "pictures")
    assert contents(quietly(data, COLOURS, tmp_path / "out").path) == plain


def test_many_bad_items_in_a_row_are_left_out_where_others_still_work(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "IN_A_ROW", 10)
    data = Pictures(tmp_path / "pictures", 48)
    for path in data.paths[12:40]:
        path.write_bytes(b"")
    store = quietly(data, COLOURS, tmp_path / "out")
    assert list(reasons(store)) == list(range(12, 40))
    for name in ("manifest.json", *(f"shard-0000{number}.safetensors" for number in (2, 3, 4, 5))):
        (store.path / name).unlink()  # it died, and goes on in the middle of them: what works is known from the shards
    before = contents(quietly(data, COLOURS, tmp_path / "plain").path)
    assert contents(quietly(data, COLOURS, tmp_path / "out").path) == before
    for path in data.paths[:12]:
        path.write_bytes(b"")  # so that the first ones fail already, and only the last ones work
    assert list(reasons(quietly(data, COLOURS, tmp_path / "late"))) == list(range(40))
    for path in data.paths:
        path.write_bytes(b"")
    with pytest.raises(FuseMixLiteError, match=r"none of 11 items .*over the data, first of all 0.png \(.*leave these"):
        quietly(data, COLOURS, tmp_path / "none")


def test_an_encoder_that_gives_no_numbers_any_more_is_not_taken_for_bad_items(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "IN_A_ROW", 10)
    calls = iter(range(1000))

    def overheated(captions):
        return np.full((len(captions), 3), np.nan if next(calls) > 3 else 1.0)

    encoder = callable_encoder(overheated, id="hot", modality="text", revision="1", dim=3)
    with pytest.raises(FuseMixLiteError, match="items fail, and so does .* now, which worked before .its latent is not finite"):
        quietly(good_and({}, 48), encoder, tmp_path / "out")


def test_the_list_of_what_was_left_out_is_json_whatever_items_are_called(tmp_path):
    one_pass(tmp_path)
    store = LatentStore.open(tmp_path / "a")
    ids, _ = Words().fields("text")
    found = json.loads((store.path / "quarantine.json").read_text("utf-8"))
    assert [(e["index"], e["item_id"], e["path"]) for e in found] == [(i, ids[i], None) for i in BAD]
    assert store.quarantine == found and all("no caption" in entry["reason"] for entry in found)
    assert list(store.item_ids) == [item for index, item in enumerate(ids) if index not in BAD]
    store.verify()
    with pytest.warns(UserWarning, match=r"first: item\\n5 ") as caught:  # one line
        extract(Words(8), ENCODERS["a"], tmp_path / "again", batch_size=BATCH, progress=False)
    assert "\n" not in str(caught[0].message)


def test_ids_that_are_no_strings_are_refused_before_anything_is_written(tmp_path):
    data = Pictures(tmp_path / "pictures", 8)
    data.ids = list(range(8))
    with pytest.raises(FuseMixLiteError, match="item id that is no string: 0"):
        quietly(data, COLOURS, tmp_path / "out")
    assert not contents(tmp_path / "out")


# --- encoders -----------------------------------------------------------------------------------------------------------------


class Captions:
    def __init__(self, texts):
        self.id, self.texts = "captions", texts

    def fields(self, modality):
        return [str(index) for index in range(len(self.texts))], self.texts


def good_and(bad, items=30):
    return Captions([bad.get(index, f"caption {index}") for index in range(items)])


BREAKS = {
    "prepare": TypeError("no such thing\nand more"),
    "inputs": IndexError("index 3 is out of bounds"),
    "forward": RuntimeError("sizes of tensors must match"),
}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.skipif(not HEAVY, reason="make torture"))])
def test_an_item_that_breaks_an_encoder_is_left_out_alone(tmp_path, workers):
    bad = {4: "prepare", 10: "inputs", 11: "inputs", 16: "forward", 18: "forward", 19: "forward", 20: "forward"}
    store = quietly(good_and(bad), Fragile(**BREAKS), tmp_path / "out", workers=workers)
    said = {
        "prepare": "TypeError: no such thing",
        "inputs": f"IndexError: {BREAKS['inputs']}",
        "forward": f"RuntimeError: {BREAKS['forward']}",
    }
    assert reasons(store) == {index: said[where] for index, where in bad.items()}
    plain = quietly(good_and(dict.fromkeys(bad, "")), Fragile(), tmp_path / "plain")
    assert (store.array[:] == plain.array[:]).all() and store.item_ids == plain.item_ids  # as if they had not been there
    for name in ("manifest.json", "shard-00002.safetensors"):
        (store.path / name).rename(tmp_path / name)
    quietly(good_and(bad), Fragile(**BREAKS), tmp_path / "out")
    assert all(
        (store.path / name).read_bytes() == (tmp_path / name).read_bytes()
        for name in ("manifest.json", "shard-00002.safetensors")
    )


class Breaking(Fragile):
    """Works so often, and then no more."""

    def __init__(self, often, error):
        super().__init__()
        self.often, self.error, self.alone = often, error, True

    def encode_inputs(self, inputs, precision="fp32"):
        self.often -= 1
        if self.often < 0 and (self.alone or len(inputs["captions"]) > 1):
            raise self.error
        return super().encode_inputs(inputs, precision)


FATAL = {
    "broken": (
        RuntimeError("CUDA error: device-side assert triggered"),
        r"encoder fragile fails on every item, even a blank one \(Runtime",
    ),
    "memory": (MemoryError(), r"out of memory \(MemoryError\): use a smaller batch_size \(--batch-size\), fewer workers or"),
    "device memory": (
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        r"out of memory \(CUDA out of memory",
    ),
    "memory of the processor": (
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        "out of memory .*smaller batch_size",
    ),
    "files": (
        OSError(errno.EMFILE, "Too many open files"),
        "Too many open files: a limit of this machine, no fault of an item",
    ),
    "of its own": (FuseMixLiteError("the service is away"), "^the service is away$"),
}


@pytest.mark.parametrize("fault", FATAL)
def test_what_is_no_fault_of_an_item_stops_the_pass(tmp_path, fault):
    error, said = FATAL[fault]
    plain = contents(quietly(good_and({}), Fragile(), tmp_path / "plain").path)
    with pytest.raises(
        FuseMixLiteError, match=said + (".*what was written is kept, and the same again" if fault != "of its own" else "")
    ):
        quietly(good_and({}), Breaking(7, error), tmp_path / "out")
    assert len(contents(tmp_path / "out")) == 2 and contents(tmp_path / "out").items() <= plain.items()
    assert contents(quietly(good_and({}), Fragile(), tmp_path / "out").path) == plain


def test_memory_that_is_too_small_for_an_item_does_not_leave_it_out(tmp_path, monkeypatch):
    """`decode` says it in words of its own."""
    data = Pictures(tmp_path / "pictures", 8)
    monkeypatch.setattr(decoding, "_check_shape", lambda *given: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(FuseMixLiteError, match="out of memory"):
        quietly(data, COLOURS, tmp_path / "out")


def test_an_encoder_that_takes_items_one_by_one_and_not_together(tmp_path):
    encoder = Breaking(0, ValueError("stack expects each tensor to be equal size"))
    encoder.alone = False
    with pytest.raises(FuseMixLiteError, match=r"3 items together .* one by one \(ValueError: stack .*smaller batch_size"):
        quietly(good_and({}), encoder, tmp_path / "out")


def test_what_fails_once_changes_nothing(tmp_path):
    class Accident(Fragile):
        happens = True

        def encode_inputs(self, inputs, precision="fp32"):
            if self.happens:
                self.happens = False
                raise ValueError("once")
            return super().encode_inputs(inputs, precision)

    stores = [quietly(good_and({}), encoder, tmp_path / encoder.__class__.__name__) for encoder in (Accident(), Fragile())]
    assert contents(stores[0].path) == contents(stores[1].path)


def test_an_encoder_that_fails_on_all_but_a_blank_stops_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "IN_A_ROW", 10)
    bad = dict.fromkeys(range(30), "forward")
    with pytest.raises(FuseMixLiteError, match=r"none of 11 items .*over the data, first of all 0 \(RuntimeError: sizes"):
        quietly(good_and(bad), Fragile(**BREAKS), tmp_path / "out")


def test_an_encoder_that_fails_on_everything(tmp_path):
    """So few items that they are no row yet, and nobody knows the dimension."""
    encoder = Fragile(prepare=TypeError("broken"))
    encoder._break = lambda where, captions: (_ for _ in ()).throw(TypeError("broken"))
    with pytest.raises(FuseMixLiteError, match=r"fails on every item, even a blank one \(TypeError: broken\)"):
        quietly(good_and({}, 5), encoder, tmp_path / "out")
    assert not contents(tmp_path / "out")


def test_latents_of_another_shape(tmp_path):
    encoder = Fragile()
    encoder.encode_inputs = lambda inputs, precision="fp32": torch.zeros(7)
    with pytest.raises(FuseMixLiteError, match=r"encoder fragile gave \(7,\) for 3 items: \(B, D\) is needed"):
        quietly(good_and({}), encoder, tmp_path / "out")


# --- names --------------------------------------------------------------------------------------------------------------------


def test_overwrite_replaces_other_latents_and_nothing_else(tmp_path, whole):
    out = tmp_path / "a"
    quietly(Words(50), ENCODERS["a"], out)
    with pytest.raises(FuseMixLiteError, match="choose another folder"):
        one_pass(tmp_path)
    one_pass(tmp_path, overwrite=True)
    assert contents(tmp_path) == whole[False]
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    one_pass(tmp_path, overwrite=True)
    assert before == {file: file.stat().st_mtime_ns for file in out.iterdir()}
    (out / "manifest.json").unlink()
    (out / "shard-00003.safetensors").unlink()
    one_pass(tmp_path, overwrite=True)  # it was stopped: what fits is kept
    changed = [file.name for file in before if file.stat().st_mtime_ns != before[file]]
    assert (
        sorted(changed) == ["manifest.json", "quarantine.json", "shard-00003.safetensors"]
        and contents(tmp_path) == whole[False]
    )
    (out / "thesis.txt").write_text("years")
    with pytest.raises(FuseMixLiteError, match="holds thesis.txt, which is no part of a store"):
        quietly(Words(50), ENCODERS["a"], out, overwrite=True)
    (out / "thesis.txt").unlink()
    assert contents(tmp_path) == whole[False]
    with pytest.raises(FuseMixLiteError, match="no overwrite with append"):
        quietly(Words(50), ENCODERS["a"], out, overwrite=True, append=True)


def test_an_encoder_that_is_named_twice_is_refused(tmp_path, capsys):
    Pictures(tmp_path / "pictures", 8)
    given = ["extract", str(tmp_path / "pictures"), "--out", str(tmp_path / "out")]
    assert cli.main([*given, "--image", "lite-image-a", "--image", "lite-image-a"]) == 1
    assert "encoder lite-image-a is named twice: name it once" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- deliberate breaks --------------------------------------------------------------------------------------------------------


def in_place(file, content, sync=True):
    file.write_bytes(content)


@linux
def test_breaks_are_found(tmp_path, whole, monkeypatch):
    """The proofs above are red where files are written in place, items are blamed for all, or the wrong one is left out."""
    from fusemix_lite import feeding, store

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_aside", in_place)
        with pytest.raises((AssertionError, FuseMixLiteError)):
            test_a_full_disk_is_said_in_a_line_and_the_pass_goes_on_when_there_is_room(tmp_path / "1", whole, "manifest.json")
    with monkeypatch.context() as patched:
        patched.setattr(extraction._Pass, "judge", lambda *given: None)
        (tmp_path / "2").mkdir()
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test_a_disk_that_goes_away_stops_the_pass_and_is_not_taken_for_bad_items(tmp_path / "2")
    with monkeypatch.context() as patched:
        patched.setattr(blame, "of_the_machine", lambda error: None)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            test_what_is_no_fault_of_an_item_stops_the_pass(tmp_path / "3", "memory")
    with monkeypatch.context() as patched:
        together = feeding._together
        patched.setattr(feeding, "_together", lambda e, prepared, *rest: together(e, dict(list(prepared.items())[:1]), *rest))
        with pytest.raises(AssertionError):
            test_an_item_that_breaks_an_encoder_is_left_out_alone(tmp_path / "4", 0)
