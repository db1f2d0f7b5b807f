"""A store that was damaged: every fault is found and named, a repair gives back every bit, and what is whole is left alone."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torture import tries

import fusemix_lite as fl
from fusemix_lite import FuseMixLiteError, LatentStore, SoundingScenes, disk, extraction, store, verifying
from fusemix_lite.cli import main
from fusemix_lite.store import LatentOrigin, LatentWriter
from fusemix_lite.verifying import SIDE

ROWS = 8


class Captions:
    """`rows` captions, two an item; every ninth is empty and will be left out."""

    def __init__(self, rows: int, name: str = "captions"):
        self.id, self.rows = f"{name}/{rows}", rows

    def fields(self, modality):
        values = ["" if row % 9 == 4 else f"{self.id}: caption {row}" for row in range(self.rows)]
        return [f"item-{row // 2}" for row in range(self.rows)], values


def digits(captions):
    """Latents that depend on every letter."""
    return np.array([list(hashlib.sha256(text.encode()).digest()[:6]) for text in captions]) / 7


def slow_digits(captions):
    time.sleep(0.002)
    return digits(captions)


def encoder(function=digits, revision="1"):
    return fl.callable_encoder(function, id="digits", modality="text", revision=revision, dim=6)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(extraction, "ROWS_PER_SHARD", ROWS)
    monkeypatch.setattr(store, "ROWS_PER_SHARD", ROWS)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path / "cache"))


pytestmark = pytest.mark.filterwarnings("ignore:.* items left out")


def made(folder: Path, rows: int = 29, name: str = "captions") -> Path:
    return fl.extract(Captions(rows, name), encoder(), folder, progress=False).path


def contents(folder: Path) -> dict[str, bytes | str]:
    return {file.name: "a link" if file.is_symlink() else file.read_bytes() for file in folder.iterdir()}


def times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.is_file()}


def flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


# --- single faults, at random -------------------------------------------------------------------------------------------------


def change(kind: str, folder: Path, others: dict[str, bytes], rng: random.Random) -> set[str]:
    """Do one thing to a store. Returns the names of the files that are not as they were."""
    files = sorted(folder.iterdir())
    file = rng.choice(files)
    content = file.read_bytes()
    if kind == "a bit":
        flip(file, rng.randrange(len(content)), rng.randrange(8))
    elif kind == "cut":
        os.truncate(file, rng.randrange(len(content)))
    elif kind == "missing":
        file.unlink()
    elif kind == "longer":
        file.write_bytes(content + rng.randbytes(rng.choice((1, 8, 4096))))
    elif kind == "zeros":
        place = rng.randrange(len(content))
        zeroed = content[:place] + bytes(min(64, len(content) - place)) + content[place + 64 :]
        file.write_bytes(zeroed if zeroed != content else content[:-1] + bytes([content[-1] ^ 255]))
    elif kind == "a link":
        aside = folder.parent / f"elsewhere-{file.name}"
        file.replace(aside)
        file.symlink_to(aside)
    elif kind == "swapped":
        shards = [other for other in files if other.suffix == ".safetensors"]
        if len(shards) == 1:
            return change("a bit", folder, others, rng)
        one, other = rng.sample(shards, 2)
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        return {one.name, other.name}
    elif kind == "foreign":
        file = folder / rng.choice(("notes.txt", "shard-00099.safetensors", "shard-1.safetensors"))
        file.write_bytes(rng.choice((b"", content)))
    elif kind == "left over":
        file = folder / f"{file.name}.123-abc{disk.ASIDE}"
        file.write_bytes(content[: len(content) // 2])
    else:
        file = folder / "manifest.json"
        file.write_bytes(others[kind])
    return {file.name}


KINDS = ["a bit", "cut", "missing", "longer", "zeros", "a link", "swapped", "foreign", "left over"]
MANIFESTS = ["another store's", "another version's", "an older one", "of other hashes"]


@pytest.fixture
def stores(tmp_path):
    """Stores of four shards and of one, and manifests that are not theirs."""
    found = {}
    for rows in (29, 7):
        whole, other, older = (made(tmp_path / f"{name}-{rows}", size, title) for name, size, title in (
            ("whole", rows, "captions"), ("other", rows, "others"), ("older", rows - 3, "captions")))  # fmt: skip
        own = json.loads((whole / "manifest.json").read_text())
        version_2 = {key: value for key, value in own.items() if key != "item_ids"} | {"version": 2}
        hashes = own | {"shards": [shard | {"sha256": shard["sha256"][::-1]} for shard in own["shards"]]}
        others = [(other / "manifest.json").read_bytes(), disk.as_json(version_2), (older / "manifest.json").read_bytes()]
        found[rows] = whole, dict(zip(MANIFESTS, [*others, disk.as_json(hashes)], strict=True))
    return found


def check_fault(whole: Path, work: Path, change_it, dataset) -> None:
    """One fault: nothing but our error at opening, found and named, repaired to the bit, and nothing else touched."""
    for left in work.parent.glob("elsewhere-*"):
        left.unlink()
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(whole, work)
    before, original = times(work), contents(whole)
    touched = change_it(work)
    with contextlib.suppress(FuseMixLiteError):
        opened = LatentStore.open(work)
        assert np.asarray(opened.array).shape == (len(opened), opened.dim) and len(list(opened.item_ids)) == len(opened)
        assert isinstance(opened.quarantine, list)
    faults = fl.verify(work)
    assert faults and all(fault.line and "\n" not in fault.line for fault in faults), "found"
    assert all(any(name in fault.line for fault in faults) for name in touched), "named"
    assert all("verify --repair" in fault.line or "move it away" in fault.line for fault in faults), "with a remedy"
    foreign = touched - set(original)
    if foreign and not any(name.endswith(disk.ASIDE) for name in foreign):
        with pytest.raises(FuseMixLiteError, match="move it away"):
            fl.repair(work, dataset, encoder(), progress=False)
        for name in foreign:
            (work / name).unlink()
    else:
        assert fl.repair(work, dataset, encoder(), progress=False) == faults
    assert contents(work) == original, "every bit"
    after = times(work)
    shards = {name for name in original if name.endswith(".safetensors")} - touched
    assert {name: after[name] for name in shards} == {name: before[name] for name in shards}, "left alone"
    assert fl.verify(work) == [] and not work.with_name(work.name + SIDE).exists()
    LatentStore.open(work).verify()


@pytest.mark.torture
def test_any_single_fault_is_found_and_repaired_to_the_bit(tmp_path, stores, record_property):
    count = tries(26, 600)
    for number in range(count):
        rng = random.Random(number)
        rows = (29, 29, 7)[number % 3]
        whole, others = stores[rows]
        kind = [*KINDS, *MANIFESTS][number % 13]
        try:
            check_fault(whole, tmp_path / "work", lambda work: change(kind, work, others, rng), Captions(rows))  # noqa: B023
        except BaseException as error:
            error.add_note(f"seed {number}: {kind}, {rows} rows")
            raise
    record_property("faults", count)


BREAKS = {
    "shards are not hashed": ("a bit", lambda patch: patch.setattr(verifying.Examined, "written", lambda self, number: set())),
    "manifests are not compared": ("another version's", lambda patch: patch.setattr(verifying, "_says", lambda *_: True)),
    "links are followed": ("a link", lambda patch: patch.setattr(Path, "is_symlink", lambda self: False)),
    "left-overs are overlooked": ("left over", lambda patch: patch.setattr(verifying, "ASIDE", ".other")),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_breaks_of_verifying_are_found(tmp_path, stores, monkeypatch, broken):
    kind, breaks = BREAKS[broken]
    breaks(monkeypatch)
    whole, others = stores[29]
    with pytest.raises((AssertionError, FuseMixLiteError, pytest.fail.Exception)):
        for seed in range(20):
            check_fault(whole, tmp_path / "work", lambda work: change(kind, work, others, random.Random(seed)), Captions(29))  # noqa: B023


def test_all_faults_are_listed_not_only_the_first(tmp_path):
    folder = made(tmp_path / "out")
    flip(folder / "shard-00000.safetensors", -1, 0)
    os.truncate(folder / "shard-00001.safetensors", 99)
    (folder / "shard-00003.safetensors").unlink()
    (folder / "quarantine.json").write_text("{}")
    (folder / "x.tmp").touch()
    names = ["x.tmp", *(f"shard-0000{number}.safetensors" for number in (0, 1, 3)), "quarantine.json"]
    assert [fault.file.name for fault in fl.verify(folder)] == names
    with pytest.raises(FuseMixLiteError, match=r"x.tmp was left .* \(4 more: fusemix_lite.verify\)"):
        LatentStore(folder, {}, np.empty((0, 1))).verify()
    with pytest.raises(FuseMixLiteError, match="shard-00001.safetensors is broken .* run fusemix-lite verify --repair"):
        LatentStore.open(folder)
    original = contents(made(tmp_path / "whole"))
    assert len(fl.repair(folder, Captions(29), encoder(), progress=False)) == 5 and contents(folder) == original


def test_a_number_that_a_file_is_given_is_not_believed(tmp_path):
    folder = made(tmp_path / "out")
    strange = folder / f"shard-{10**12}.safetensors"
    shutil.copy(folder / "shard-00000.safetensors", strange)
    for _ in ("with its manifest", "without"):
        assert any(fault.line == f"{strange} does not belong to the latents: move it away" for fault in fl.verify(folder))
        refused("move it away; the latents themselves are as they were written", folder, Captions(29), encoder())
        (folder / "manifest.json").unlink()


@pytest.mark.parametrize("name", ["manifest.json", "quarantine.json", "shard-00001.safetensors", "x.tmp", "x"])
@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir], ids=["pipe", "folder"])
def test_what_is_no_file_is_a_fault_and_not_waited_for(tmp_path, name, make):
    folder = made(tmp_path / "out")
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    assert name in {fault.file.name for fault in fl.verify(folder)}
    if make is os.mkfifo and name != "x":
        fl.repair(folder, Captions(29), encoder(), progress=False)
        assert contents(folder) == contents(made(tmp_path / "whole"))
    else:
        refused("Is a directory|move it away", folder, Captions(29), encoder())


# --- what a repair does not do ------------------------------------------------------------------------------------------------


def refused(message: str, *arguments, **options) -> None:
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        fl.repair(*arguments, progress=False, **options)
    assert "\n" not in str(caught.value)


def test_a_shard_that_comes_out_otherwise_is_not_taken(tmp_path):
    folder = made(tmp_path / "out")
    flip(folder / "shard-00002.safetensors", -1, 0)
    before = contents(folder)
    other = encoder(lambda captions: np.add(digits(captions), 1))  # another machine, say: nothing in its identity tells
    refused("shard-00002.safetensors would not be what was written .* extract again", folder, Captions(29), other)
    assert contents(folder) == before and not folder.with_name("out" + SIDE).exists()
    refused("holds 29 items of captions/29 .* not 29 items of others/29", folder, Captions(29, "others"), encoder())
    refused("not 29 items of captions/29 by digits .2.", folder, Captions(29), encoder(revision="2"))
    (folder / "manifest.json").unlink()
    (folder / "shard-00002.safetensors").unlink()  # the remedy that was named
    fl.extract(Captions(29), other, folder, progress=False).verify()


@pytest.mark.parametrize("name", ["shard-00000.safetensors", "manifest.json"])
def test_one_shard_against_its_manifest_is_settled_by_encoding_it_again(tmp_path, name):
    """Each says another data set: the files alone cannot tell which of them has changed."""
    folder = made(tmp_path / "out", 7)
    whole, before = contents(folder), times(folder)
    place = (folder / name).read_bytes().index(b"captions/7")
    flip(folder / name, place, 1)
    if name == "manifest.json":  # and its sha256 is lost as well
        flip(folder / name, (folder / name).read_bytes().index(b'sha256": "') + 10, 0)
    [fault] = fl.verify(folder)
    assert "manifest.json and shard-00000.safetensors contradict each other (dataset_id: " in fault.line
    refused("cannot be repaired from its records", folder)
    fl.repair(folder, Captions(7), encoder(), progress=False)
    assert contents(folder) == whole and (times(folder)["shard-00000.safetensors"] == before["shard-00000.safetensors"]) == (
        name == "manifest.json"
    )


def test_latents_that_nobody_can_make_again_say_what_helps(tmp_path, monkeypatch):
    folder = LatentStore.write(tmp_path / "own", np.ones((20, 3), np.float16), [str(i) for i in range(20)]).path
    whole = contents(folder)
    (folder / "quarantine.json").unlink()
    assert [fault.file.name for fault in fl.repair(folder)] == ["quarantine.json"] and contents(folder) == whole
    flip(folder / "shard-00001.safetensors", -1, 0)
    refused(
        r"own cannot be repaired from its records \(no pairs.json .* fusemix_lite.repair\(folder, dataset, encoder\)", folder
    )
    for file in folder.iterdir():
        file.write_bytes(b"")
    refused("nothing there says whose latents they were: delete the folder and extract again", folder)
    with pytest.raises(FuseMixLiteError, match="nowhere is no folder"):
        fl.verify(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FuseMixLiteError, match="empty holds no latents"):
        fl.verify(tmp_path / "empty")
    made(tmp_path / "two/a")
    made(tmp_path / "two/b")
    refused("holds several stores", tmp_path / "two", Captions(29), encoder())
    assert fl.verify(tmp_path / "two") == []


def test_merged_latents_are_repaired_by_merging_again(tmp_path):
    parts = [made(tmp_path / "a"), made(tmp_path / "b", 20, "others")]
    merged = LatentStore.merge(parts, tmp_path / "merged", ["a/", "b/"]).path
    whole, before = contents(merged), times(merged)
    assert fl.verify(merged) == []
    flip(merged / "shard-00001.safetensors", -1, 0)
    refused("if it was merged, repair its parts, delete manifest.json and the damaged shards here, and merge again", merged)
    (merged / "manifest.json").unlink()
    (merged / "shard-00001.safetensors").unlink()
    LatentStore.merge(parts, merged, ["a/", "b/"])
    assert contents(merged) == whole and times(merged)["shard-00000.safetensors"] == before["shard-00000.safetensors"]


def test_an_unfinished_store_is_finished_and_a_lost_manifest_made_again(tmp_path):
    folder, whole = made(tmp_path / "out"), contents(made(tmp_path / "whole"))
    (folder / "manifest.json").unlink()
    (folder / "shard-00003.safetensors").unlink()
    lines = [fault.line for fault in fl.verify(folder)]
    assert any("shard-00003.safetensors is missing (24 of 29 items are there)" in line for line in lines), lines
    fl.repair(folder, Captions(29), encoder(), progress=False)
    assert contents(folder) == whole
    (folder / "manifest.json").unlink()
    one, other = folder / "shard-00000.safetensors", folder / "shard-00001.safetensors"
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    os.truncate(folder / "shard-00002.safetensors", 50)
    refused("shard-00000.safetensors holds other items than extract would put there, and manifest.json is lost", folder,
            Captions(29), encoder())  # fmt: skip


def test_an_interrupted_repair_and_a_stale_lock_do_no_harm(tmp_path):
    folder = made(tmp_path / "out")
    whole = contents(folder)
    side = folder.with_name("out" + SIDE)
    flip(folder / "shard-00001.safetensors", -1, 0)
    side.mkdir()
    (side / "shard-00001.safetensors").write_bytes(whole["shard-00001.safetensors"])  # done, and not yet moved over
    (side / "shard-00002.safetensors").write_bytes(whole["shard-00002.safetensors"][:70])
    (side / "shard-00002.safetensors.1-2.tmp").touch()
    folder.with_name("out.lock").write_text("stale")

    def never(captions):
        raise AssertionError("nothing is to be encoded again")

    fl.repair(folder, Captions(29), encoder(never), progress=False)
    assert contents(folder) == whole and not side.exists()
    side.mkdir()
    (side / "holiday.jpg").touch()
    flip(folder / "shard-00001.safetensors", -1, 0)
    refused("out.repair is in the way of a repair: move it away", folder, Captions(29), encoder())
    assert (side / "holiday.jpg").exists()


def test_a_store_is_the_same_by_a_link_or_from_within(tmp_path, monkeypatch):
    folder, link = made(tmp_path / "disk/out"), tmp_path / "out"
    whole = contents(folder)
    link.symlink_to(folder)
    for path in (link, Path(".")):
        flip(folder / "shard-00001.safetensors", -1, 0)
        monkeypatch.chdir(folder)
        with store.hold_lock(folder), pytest.raises(FuseMixLiteError, match="being written by another"):
            store.hold_lock(path, wait=False)
        assert len(fl.repair(path, Captions(29), encoder(), progress=False)) == 1
        assert contents(folder) == whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["disk", "out"], (
        "what a repair needs is on the disk of the store"
    )


def test_a_store_of_records_is_repaired_from_within(latents, monkeypatch):
    flip(latents / "text/shard-00000.safetensors", -1, 0)
    monkeypatch.chdir(latents / "text")
    assert main(["verify", "--repair", "."]) == 0 and not fl.verify(".")


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(FuseMixLiteError, match="its file system has no locks"):
        LatentStore.write(tmp_path / "out", np.ones((2, 3), np.float32), ["a", "b"])


# --- kills --------------------------------------------------------------------------------------------------------------------

SERVER = """
import json, os, sys
sys.path[:0] = [{tests!r}]
import filelock, safetensors.numpy
import test_repair as here
from fusemix_lite import composed, extraction, store, verifying, workflow
extraction.ROWS_PER_SHARD = store.ROWS_PER_SHARD = here.ROWS
print("ready", flush=True)
for line in sys.stdin:
    children = []
    for command in json.loads(line):
        hear, say = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.write(say, getattr(here, command[0])(*command[1:]).encode())
            finally:
                os._exit(0)
        os.close(say)
        children.append((child, hear))
    print(json.dumps([child for child, _ in children]), flush=True)
    told = []
    for child, hear in children:
        with open(hear) as opened:
            told.append(opened.read())
        os.waitpid(child, 0)
    print(json.dumps(told), flush=True)
"""


class Server:
    """A process that has imported everything and forks a child for each command, which can be killed at any moment."""

    def __init__(self):
        code = SERVER.format(tests=str(Path(__file__).parent))
        self.process = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def start(self, *commands: list) -> list[int]:
        """Call functions of this module, all at once; returns the process ids."""
        print(json.dumps(commands), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def told(self) -> list[str]:
        """What they returned; "" of one that was killed before."""
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait()


def do_repair(folder: str) -> str:
    return str(len(fl.repair(folder, Captions(61), encoder(slow_digits), batch_size=4, progress=False)))


@pytest.mark.torture
def test_a_repair_that_is_killed_loses_nothing_and_goes_on(tmp_path, server, record_property):
    whole = fl.extract(Captions(61), encoder(), tmp_path / "whole", batch_size=4, progress=False).path
    original, work = contents(whole), tmp_path / "work"
    count, kills, number, duration = tries(3, 50), 0, 0, None
    while kills < count:
        rng, number = random.Random(number), number + 1
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(whole, work)
        hurt = rng.sample(range(8), 5)
        for shard in hurt[:3]:
            flip(work / f"shard-0000{shard}.safetensors", -1, 0)
        (work / f"shard-0000{hurt[3]}.safetensors").unlink()
        (work / "quarantine.json").write_text("[")
        (work / "manifest.json").write_bytes(original["manifest.json"][:-2])
        may_differ = {"quarantine.json", "manifest.json", *(f"shard-0000{shard}.safetensors" for shard in hurt[:4])}
        if duration is None:  # of a repair that nobody stops, on this machine, now
            since = time.monotonic()
            server.start(["do_repair", str(shutil.copytree(work, tmp_path / "timed"))])
            assert server.told() == ["6"]
            duration = time.monotonic() - since
            shutil.rmtree(tmp_path / "timed")
            (tmp_path / "timed.lock").unlink()
        before = times(work)
        for _ in range(4):
            [child] = server.start(["do_repair", str(work)])
            time.sleep(rng.uniform(0, 1.1 * duration))
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, 9)
            kills += server.told() == [""]
            now = contents(work)
            assert {name for name in original if now.get(name) != original[name]} <= may_differ, f"seed {number - 1}"
            same = before.keys() - may_differ
            assert {name: times(work)[name] for name in same} == {name: before[name] for name in same}, "left alone"
        server.start(["do_repair", str(work)])
        assert server.told() != [""] and contents(work) == original and fl.verify(work) == [], f"seed {number - 1}"
        assert sorted(file.name for file in tmp_path.iterdir()) == ["whole", "whole.lock", "work", "work.lock"]
    record_property("faults", kills)


# --- several writers ----------------------------------------------------------------------------------------------------------


def latents_of(who: int) -> np.ndarray:
    return np.full((29, 5), who + 1, np.float16)


def do_write(folder: str, who: int, way: str, moment: float) -> str:
    """Write latents of one's own, by the way that is asked for, at a moment that was agreed on."""
    ids, origin = [f"item-{row}" for row in range(29)], LatentOrigin("data", 29, "text", "digits", "1", "")
    time.sleep(max(0, moment - time.time()))
    try:
        if way == "write":
            LatentStore.write(folder, latents_of(who), ids, origin)
        elif way == "origins":
            own = LatentOrigin(f"data-{who}", 29, "text", "digits", "1", "")
            LatentStore.write(folder, latents_of(who), ids, own)
        elif way == "writer":
            writer = LatentWriter(folder, origin)
            for number in range(4):
                part = slice(number * ROWS, (number + 1) * ROWS)
                writer.write(number, latents_of(who)[part], ids[part])
            writer.finish(4)
        elif way == "merge":
            parent = Path(folder).parent
            LatentStore.merge([parent / "a", parent / "b"], folder, ["a/", "b/"])
        elif way == "extract":
            fl.extract(Captions(29), encoder(slow_digits), folder, progress=False)
        else:
            fl.repair(folder, Captions(29), encoder(slow_digits), progress=False)
    except FuseMixLiteError as error:
        return f"refused: {error}"
    return "done"


@pytest.mark.torture
def test_writers_of_one_store_are_serialised_or_refused(tmp_path, server, record_property):
    whole = made(tmp_path / "a")
    merged = LatentStore.merge([whole, made(tmp_path / "b", 20)], tmp_path / "ab", ["a/", "b/"]).path
    ways = ["write", "writer", "origins", "extract", "merge", "repair"]
    rounds, at_once = tries(6, 120), 3
    for number in range(rounds):
        way, out = ways[number % 6], tmp_path / f"out-{number}"
        if way == "repair":
            shutil.copytree(whole, out)
            flip(out / "shard-00001.safetensors", -1, 0)
        rng, moment = random.Random(number), time.time() + 0.05
        server.start(*(["do_write", str(out), who, way, moment + rng.uniform(0, 0.01)] for who in range(at_once)))
        told = server.told()
        assert all(line == "done" or line.startswith("refused: ") for line in told), told
        assert fl.verify(out) == [], told
        if way in ("write", "writer", "origins"):
            assert told.count("done") == 1, told
            who = told.index("done")
            np.testing.assert_array_equal(np.asarray(LatentStore.open(out).array), latents_of(who))
            assert all("in use" in line or "is being written" in line for line in told if line != "done"), told
            assert not (way == "origins" and LatentStore.open(out).origin.dataset_id != f"data-{who}")
        else:
            assert told == ["done"] * at_once
            assert contents(out) == contents(merged if way == "merge" else whole)
    record_property("faults", rounds)


def test_threads_that_write_one_store_are_refused_but_one(tmp_path):
    said = []

    def write(who):
        try:
            LatentStore.write(tmp_path / "out", latents_of(who), [f"{row}" for row in range(29)])
            said.append(who)
        except FuseMixLiteError as error:
            assert "in use" in str(error)

    threads = [threading.Thread(target=write, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.asarray(LatentStore.open(tmp_path / "out").array), latents_of(*said))
    assert fl.verify(tmp_path / "out") == []


def test_a_writer_keeps_others_out_until_it_is_gone(tmp_path):
    origin = LatentOrigin("data", 4, "text", "digits", "1", "")
    writer = LatentWriter(tmp_path / "out", origin)
    for write in (lambda: LatentWriter(tmp_path / "out", origin), lambda: LatentWriter(str(tmp_path / "out"), origin)):
        with pytest.raises(FuseMixLiteError, match="is being written by another process or thread"):
            write()
    writer.write(0, np.ones((4, 2)), list("abcd"))
    del writer  # as by an exception, or the end of its process
    writer = LatentWriter(tmp_path / "out", origin)
    assert writer.has(0)
    writer.finish(1)
    with pytest.raises(FuseMixLiteError, match="this writer has finished"):
        writer.write(0, np.zeros((4, 2)), list("abcd"))
    with pytest.raises(FuseMixLiteError, match="in use"):
        LatentWriter(tmp_path / "out", origin)


# --- disks --------------------------------------------------------------------------------------------------------------------


def test_writers_of_one_file_do_not_interleave_and_leave_nothing(tmp_path):
    file, sizes = tmp_path / "file", [10, 1_000_000, 77_777]
    everything = [bytes([size % 251]) * size for size in sizes]

    def write(content):
        for _ in range(10):
            disk.write_aside(file, content, sync=False)

    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(write, content) for content in everything]
        while not all(writer.done() for writer in writers):
            with contextlib.suppress(FileNotFoundError):
                assert file.read_bytes() in everything
    assert [writer.result() for writer in writers] == [None] * 3
    assert [left.name for left in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_said_and_leaves_nothing_half_done(tmp_path, monkeypatch, call):
    folder = tmp_path / "out"
    made(folder)
    (folder / "manifest.json").unlink()
    (folder / "shard-00002.safetensors").unlink()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
        with pytest.raises(FuseMixLiteError, match=r"shard-00002.* cannot be written \(No space left on device\): make room"):
            made(folder)
    assert not list(folder.glob("*" + disk.ASIDE)) and len(contents(folder)) == 4
    assert contents(made(folder)) == contents(made(tmp_path / "whole"))


def test_what_a_dead_writer_left_goes_when_the_store_is_finished(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"shard-00000.safetensors.1-2{disk.ASIDE}").write_bytes(b"half")
    assert fl.verify(made(tmp_path / "out")) == []


def test_names_are_on_the_disk_before_the_manifest_is(tmp_path, monkeypatch):
    """The order in which a power cut finds things: a shard, its name, …, the manifest, its name."""
    log = []
    plain = disk.write_aside
    monkeypatch.setattr(disk, "sync_folder", lambda folder: log.append(("folder", folder.name)))
    monkeypatch.setattr(store, "sync_folder", lambda folder: log.append(("folder", folder.name)))
    monkeypatch.setattr(store, "write_aside", lambda file, content: (log.append(("file", file.name)), plain(file, content)))
    LatentStore.write(tmp_path / "out", np.ones((9, 2), np.float16), [str(i) for i in range(9)])
    names = ["shard-00000.safetensors", "shard-00001.safetensors", "quarantine.json", "manifest.json"]
    expected = [entry for name in names for entry in (("file", name), ("folder", "out"))]
    assert log == [*expected, ("folder", tmp_path.name)]


# --- the command, and what records say ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Pictures and captions of which one picture is broken, extracted by the command, from a path relative to a folder."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(extraction, "ROWS_PER_SHARD", ROWS)
        assert main(["data", "sounding-scenes", "pairs", "--items", "20", "--captions", "1", "--quiet"]) == 0
        os.truncate("pairs/image/train-000009.png", 200)
        assert main(["extract", "pairs", "--out", "latents", "--quiet"]) == 0
    return folder


@pytest.fixture
def latents(project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    return Path(shutil.copytree(project / "latents", tmp_path / "latents"))


def run(capsys, *argv) -> tuple[int, str, str]:
    code = main(["verify", *map(str, argv)])
    return code, *capsys.readouterr()


def test_the_command_finds_repairs_and_counts(latents, project, capsys, monkeypatch, tmp_path):
    code, out, err = run(capsys, latents)
    assert (code, err) == (0, "") and out == f"{latents / 'image'}: as it was written\n{latents / 'text'}: as it was written\n"
    whole = {key: contents(latents / key) for key in ("image", "text")}
    flip(latents / "image/shard-00001.safetensors", -1, 0)  # its quarantine names a path relative to another folder
    (latents / "text/manifest.json").write_text("{}")
    code, out, err = run(capsys, latents)
    assert code == 1 and "  " + str(latents / "image/shard-00001.safetensors") in out and f"{latents / 'text'}: broken" in out
    assert err == f"fusemix-lite: error: 2 of 2 folders of latents are broken: run fusemix-lite verify --repair {latents}\n"
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, latents, "--repair", "--json", "--quiet")
    told = json.loads(out)["folders"]
    assert code == 0 and err == "" and [about["state"] for about in told.values()] == ["repaired"] * 2
    assert {key: contents(latents / key) for key in ("image", "text")} == whole
    assert run(capsys, latents / "text", "--quiet")[0] == 0


def test_the_command_says_what_it_cannot_repair(latents, project, capsys, monkeypatch):
    shutil.rmtree(latents / "text")
    code, out, _ = run(capsys, latents, "--repair", "--quiet")
    assert code == 1 and f"not repaired: {latents / 'text'} is missing: extract again" in out
    content = json.loads((latents / "pairs.json").read_text())
    flip(latents / "image/shard-00001.safetensors", -1, 0)
    for change, message in [
        ({"source": "gone"}, "gone does not exist"),
        ({"encoders": {"image": {**content["encoders"]["image"], "name": "/nowhere/model"}}}, "cannot be repaired from"),
        ({"dataset": "pairs-of-others"}, "pairs.json is not of the same pass as"),
    ]:
        (latents / "pairs.json").write_text(json.dumps(content | change))
        code, out, err = run(capsys, latents, "--repair", "--quiet")
        assert code == 1 and message in out and "what helps is said there" in err, out
    (latents / "pairs.json").write_text(json.dumps(content))
    os.utime(project / "pairs/image/train-000001.png", (1, 1))  # another file, for all one knows
    assert "pairs has changed since it was extracted" in run(capsys, latents, "--repair", "--quiet")[1]
    (latents / "pairs.json").write_text("[")
    assert "pairs.json cannot be read" in run(capsys, latents, "--quiet")[1]


def test_the_cache_is_repaired_by_the_names_in_it(tmp_path, capsys):
    dataset = SoundingScenes("image-text", "val", 20, captions=1, noise=0.25)
    folder = fl.cached_latents(dataset, "lite-text-a", progress=False).path
    whole = contents(folder)
    (folder / "shard-00001.safetensors").unlink()
    assert "verify --repair\n" in run(capsys, "--quiet")[2]
    assert run(capsys, "--repair", "--quiet")[0] == 0 and contents(folder) == whole
    own = fl.cached_latents
    assert own(dataset, "lite-text-a", progress=False).verify() is None
    strange = made(tmp_path / "cache" / "strange")
    flip(strange / "shard-00001.safetensors", -1, 0)
    assert "strange cannot be repaired" in (out := run(capsys, "--repair", "--quiet")[1]) and "a cache is filled again" in out


@pytest.mark.parametrize(
    "dataset",
    [SoundingScenes(), SoundingScenes("audio-text", "test", 7, 2, 0.125, 1.5, 3, "template"),
     SoundingScenes("unimodal", "train", 9, noise=1e-5)],
    ids=lambda dataset: dataset.id,
)  # fmt: skip
def test_the_id_of_a_split_names_it(dataset):
    assert SoundingScenes.of_id(dataset.id) == dataset
    for other in (f"{dataset.id}x", dataset.id.replace("-v1-", "-v9-"), "coco/train", ""):
        with pytest.raises(FuseMixLiteError, match="no split of Sounding Scenes"):
            SoundingScenes.of_id(other)
