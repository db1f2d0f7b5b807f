"""Extraction at scale: many encoders, workers, many processes, grown data sets. Whatever way, the bytes are the same."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny_encoders as tiny
import torch
from PIL import Image
from test_extraction import Captions, Lists, contents

from fusemix_lite import (
    FuseMixLiteError,
    LatentStore,
    SoundingScenes,
    cached_latents,
    extract,
    extraction,
    feeding,
    launched,
    load_encoder,
)
from fusemix_lite.datasets import Lazy
from fusemix_lite.public_pairs import Files
from fusemix_lite.store import LatentWriter

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(extraction, "ROWS_PER_SHARD", 8)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Folders by name: two for pictures, one for sounds, one for captions."""
    folder = tmp_path_factory.mktemp("encoders")
    kinds = {"image": "dinov2", "image-2": "resnet", "audio": "whisper", "text": "bert"}
    return {name: tiny.save(folder / name, kind) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """20 pictures, sounds and captions, one of each broken."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    pictures, sounds = [], []
    for index in range(20):
        pictures.append(folder / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)).save(pictures[-1])
        sounds.append(folder / f"{index}.wav")
        soundfile.write(sounds[-1], rng.normal(0, 0.1, (6_000 + 100 * index, 2)), 16_000 if index % 2 else 22_050)
    os.truncate(pictures[3], 500)
    os.truncate(sounds[9], 500)
    ids = [f"scene-{index}" for index in range(20)]
    texts = [" " if index == 30 else tiny.CAPTIONS[index % 5] for index in range(40)]
    return Lists("files", image=(ids, pictures), audio=(ids, sounds), text=([i for i in ids for _ in (0, 1)], texts))


@pytest.fixture(scope="module")
def alone(tmp_path_factory, files, encoders):
    """The bytes of each encoder's store, extracted by itself."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(extraction, "ROWS_PER_SHARD", 8)
        for name, encoder in encoders.items():
            with pytest.warns(UserWarning, match="1 of .0 items left out"):
                extract(files, encoder, out / name, batch_size=3, progress=False)
    return {name: contents(out / name) for name in encoders}


class Counted:
    """Opens itself when it is called, and counts that."""

    def __init__(self, path, opened):
        self.path, self.opened = path, opened

    def __call__(self):
        self.opened.append(self.path)
        return self.path

    def __str__(self):
        return str(self.path)


# --- several encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:1 of .0 items left out")
def test_several_encoders_give_what_each_gives_alone_and_an_item_is_opened_once(tmp_path, files, encoders, alone):
    opened = []
    counted = {m: [Counted(path, opened) for path in files.fields(m)[1]] for m in ("image", "audio")}
    data = Lists("files", **{m: (files.fields(m)[0], counted[m]) for m in counted}, text=files.fields("text"))
    stores = extract(data, encoders, tmp_path / "out", batch_size=3, progress=False)
    assert {name: store.path for name, store in stores.items()} == {name: tmp_path / "out" / name for name in encoders}
    assert {name: contents(store.path) for name, store in stores.items()} == alone
    assert opened == [value.path for m in ("image", "audio") for value in counted[m]]  # two encoders see the pictures
    assert stores["image"].quarantine == stores["image-2"].quarantine
    again = extract(data, [load_encoder(encoders["image"]), encoders["text"]], tmp_path / "list", batch_size=3, progress=False)
    assert list(again) == ["image", "text"] and contents(tmp_path / "list" / "text") == alone["text"]


def test_a_pass_does_what_is_missing_of_each_store(tmp_path, files, encoders, alone):
    for name in ("image", "image-2"):
        (tmp_path / name).mkdir()
        for file, content in alone[name].items():
            (tmp_path / name / file).write_bytes(content)
    for name, missing in {"image": "shard-00001.safetensors", "image-2": "shard-00000.safetensors"}.items():
        (tmp_path / name / "manifest.json").unlink()
        (tmp_path / name / missing).unlink()
    opened = []
    values = [Counted(path, opened) for path in files.fields("image")[1]]
    data = Lists("files", image=(files.fields("image")[0], values))
    both = {name: encoders[name] for name in ("image", "image-2")}
    with pytest.warns(UserWarning, match="1 of 20 items left out"):
        extract(data, both, tmp_path, batch_size=3, progress=False)
    assert {name: contents(tmp_path / name) for name in both} == {name: alone[name] for name in both}
    assert opened == files.fields("image")[1][:16]  # the third shard was there, for both


@pytest.mark.filterwarnings("ignore:1 of .0 items left out")
@pytest.mark.parametrize("name, workers", [("image", 0), ("text", 1)])
def test_layers_of_one_model_share_a_forward_pass(tmp_path, files, encoders, alone, monkeypatch, name, workers):
    """Under names of their own they give what each gives alone, also where one store has a shard already."""
    ends = {"last": "", "one": "@1", "two": "@0,2"}
    named = {key: f"{encoders[name]}{end}" for key, end in ends.items()}
    for key in named:
        extract(files, named[key], tmp_path / "alone" / key, batch_size=3, progress=False)
    kind = type(load_encoder(encoders[name]).model)
    together, options, calls, forward = (
        tmp_path / "together",
        {"batch_size": 3, "progress": False, "workers": workers},
        [],
        kind.forward,
    )
    monkeypatch.setattr(kind, "forward", lambda self, *given, **more: calls.append(self) or forward(self, *given, **more))
    extract(files, named | {"resnet": encoders["image-2"]}, together, **options)
    batches = sum(-(-min(8, len(files.fields(name)[0]) - start) // 3) for start in range(0, len(files.fields(name)[0]), 8))
    assert len(calls) == batches + 3 and len(set(map(id, calls))) == 1  # once in each loading, to see what comes out
    for key in ends:
        assert contents(together / key) == contents(tmp_path / "alone" / key)
    assert contents(together / "last") == alone[name] and contents(together / "resnet") == alone["image-2"]
    (together / "one" / "manifest.json").unlink()
    (together / "last" / "manifest.json").unlink()
    (together / "one" / "shard-00001.safetensors").unlink()
    extract(files, named, together, **options | {"workers": 0})
    for key in ends:
        assert contents(together / key) == contents(tmp_path / "alone" / key)


def test_one_encoder_may_fill_two_folders(tmp_path, files, encoders, alone):
    """A joined one shares a pass with itself alone."""
    both = load_encoder(f"{encoders['text']}+{encoders['text']}@1")
    single = extract(Captions(10), both, tmp_path / "single", progress=False)
    stores = extract(Captions(10), {"a": both, "b": both}, tmp_path, progress=False)
    assert contents(stores["a"].path) == contents(stores["b"].path) == contents(single.path)


def test_a_picture_is_stored_once_whatever_stands_beside_it(tmp_path, encoders, files):
    """Five captions a picture make five rows of text; two items with one path are two items."""
    ids, paths = files.fields("image")
    data = Lists("twice", image=(["a", "b"], [paths[0], paths[0]]), text=(["a"] * 5 + ["b"], ["a bell"] * 6))
    stores = extract(data, {m: encoders[m] for m in ("image", "image-2", "text")}, tmp_path, progress=False)
    assert [len(stores[name]) for name in ("image", "image-2", "text")] == [2, 2, 6]
    assert (stores["image"].array[0] == stores["image"].array[1]).all()


def test_names_of_several_encoders(tmp_path, encoders, files):
    for given in ([], {}, [encoders["text"]] * 2, {"a/b": encoders["text"], "a_b": encoders["text"]}):
        with pytest.raises(FuseMixLiteError, match="encoders for the folders"):
            extract(files, given, tmp_path, progress=False)
    with pytest.warns(UserWarning):
        assert extract(files, {"to/text": encoders["text"]}, tmp_path, progress=False)["to/text"].path == tmp_path / "to_text"


def test_the_cache_takes_several_at_once(tmp_path, encoders, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path))
    names = [str(encoders["text"]), f"{encoders['text']}@1"]
    stores = cached_latents(Captions(5), names, progress=False)
    assert [store.path for store in stores] == [cached_latents(Captions(5), name).path for name in names]
    once, again = cached_latents(Captions(6), [names[0]] * 2, progress=False)
    assert once.path == again.path


# --- precision ----------------------------------------------------------------------------------------------------------------


def test_precision_is_part_of_where_latents_come_from(tmp_path, encoders, monkeypatch):
    full = extract(Captions(8), encoders["text"], tmp_path / "fp32", progress=False)
    half = extract(Captions(8), encoders["text"], tmp_path / "bf16", progress=False, precision="bf16")
    assert "precision" not in full.manifest and half.manifest["precision"] == "bf16"  # as it was before there was a choice
    assert (full.array[:] != half.array[:]).any()
    np.testing.assert_allclose(np.float32(full.array[:]), np.float32(half.array[:]), atol=0.1)
    with pytest.raises(FuseMixLiteError, match=r"holds 16 items of captions/8 by text \(\w+\) in bf16, not .* \(\w+\): choose"):
        extract(Captions(8), encoders["text"], half.path, progress=False)
    with pytest.raises(FuseMixLiteError, match="precision = 'int8'.*fp32, bf16, fp16"):
        extract(Captions(8), encoders["text"], tmp_path / "int8", progress=False, precision="int8")
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path / "cache"))
    options = ({}, {"precision": "bf16"})
    assert len({cached_latents(Captions(8), encoders["text"], progress=False, **how).path for how in options}) == 2


# --- workers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:1 of .0 items left out")
def test_workers_change_no_byte(tmp_path, files, encoders, alone):
    """Two for the pictures, which travel as what makes their paths; one for the sounds, whose paths are a list."""
    ids, paths = files.fields("image")
    lazy = Files(paths[0].parent, [path.name for path in paths])
    data = Lists("files", image=(ids, lazy), audio=files.fields("audio"))
    for names, workers in ((("image", "image-2"), 2), (("audio",), 1)):
        extract(data, {name: encoders[name] for name in names}, tmp_path, batch_size=3, progress=False, workers=workers)
    assert {path.name: contents(path) for path in tmp_path.iterdir() if path.is_dir()} == {
        name: alone[name] for name in ("image", "image-2", "audio")
    }


class Deadly:
    """A caption that takes the process with it, while the environment says so."""

    def __call__(self):
        if "DEADLY" in os.environ:
            os._exit(3)
        return "a bell"


def test_a_dead_worker_is_an_error_and_what_was_written_is_kept(tmp_path, encoders, monkeypatch):
    data = Lists("deadly", text=([f"{i}" for i in range(40)], ["a dog barks"] * 30 + [Deadly()] + ["a bell"] * 9))
    whole = extract(data, encoders["text"], tmp_path / "whole", batch_size=4, progress=False)
    monkeypatch.setenv("DEADLY", "1")
    with pytest.raises(FuseMixLiteError, match="a worker process died.*workers=0"):
        extract(data, encoders["text"], tmp_path / "out", batch_size=4, progress=False, workers=1)
    monkeypatch.delenv("DEADLY")
    kept = contents(tmp_path / "out")
    assert "manifest.json" not in kept and 1 <= len(kept) <= 3
    extract(data, encoders["text"], tmp_path / "out", batch_size=4, progress=False).verify()
    assert contents(tmp_path / "out") == contents(whole.path)


def test_what_cannot_travel_is_refused_before_anything_starts(tmp_path, encoders):
    data = Lists("here only", text=(["a"], Lazy(1, lambda i: "a bell")))
    with pytest.raises(FuseMixLiteError, match="cannot be sent to worker processes .*use workers=0"):
        extract(data, encoders["text"], tmp_path / "out", progress=False, workers=2)
    with pytest.raises(FuseMixLiteError, match="workers = -1"):
        extract(data, encoders["text"], tmp_path / "out", progress=False, workers=-1)


@pytest.mark.parametrize("why", ["cannot travel", "cannot start"])
def test_workers_that_nobody_asked_for_are_done_without(tmp_path, encoders, monkeypatch, why):
    """As in a notebook that defines its own data set, or a script without a guard, on a machine with a GPU."""
    values = [tiny.CAPTIONS[index % 5] for index in range(20)]
    ids = [str(index) for index in range(20)]
    plain = extract(Lists("data", text=(ids, values)), encoders["text"], tmp_path / "plain", progress=False, batch_size=3)
    monkeypatch.setattr(feeding, "default_workers", lambda encoder: 1)
    if why == "cannot travel":
        values = Lazy(20, lambda index: tiny.CAPTIONS[index % 5])
        store = extract(Lists("data", text=(ids, values)), encoders["text"], tmp_path / "out", progress=False, batch_size=3)
    else:
        monkeypatch.setattr(feeding.pickle, "dumps", lambda job: b"no pickle")
        with pytest.warns(UserWarning, match="worker processes cannot start here"):
            store = extract(Lists("data", text=(ids, values)), encoders["text"], tmp_path / "out", progress=False, batch_size=3)
    assert contents(store.path) == contents(plain.path)


def test_no_batch_is_lost_when_workers_die_as_it_is_sent(tmp_path, encoders, monkeypatch):
    class Dead:
        """Takes one batch, then is gone, without a word."""

        started = False

        def __init__(self, job):
            self.sent = 0

        def start(self):
            pass

        kill = end = start

        def send(self, job):
            self.sent += 1
            if self.sent > 1:
                raise feeding._WorkerError

        def receive(self):
            raise feeding._WorkerError

    data = Lists("data", text=([str(i) for i in range(20)], [tiny.CAPTIONS[i % 5] for i in range(20)]))
    plain = extract(data, encoders["text"], tmp_path / "plain", progress=False, batch_size=3)
    monkeypatch.setattr(feeding, "default_workers", lambda encoder: 1)
    monkeypatch.setattr(feeding, "_Worker", Dead)
    with pytest.warns(UserWarning, match="worker processes cannot start here"):
        extract(data, encoders["text"], tmp_path / "out", progress=False, batch_size=3)
    assert contents(tmp_path / "out") == contents(plain.path)


@pytest.mark.parametrize("modality", ["image", "audio", "text"])
def test_the_embedded_world_goes_to_workers(modality):
    pair = "audio-text" if modality == "audio" else "image-text"
    _, values = SoundingScenes(pair, "val", 4, captions=2).fields(modality)
    sent = pickle.loads(pickle.dumps(values))
    assert len(sent) == len(values) and np.array_equal(np.asarray(sent[1]), np.asarray(values[1]))


def test_workers_are_for_gpus_unless_asked_for(encoders):
    assert feeding.default_workers(load_encoder(encoders["text"], "cpu")) == 0

    class OnGpu:
        device = torch.device("cuda")

    assert 1 <= feeding.default_workers(OnGpu()) <= 8


# --- a grown data set ---------------------------------------------------------------------------------------------------------


class Grown(Captions):
    """Captions of which one (the third) is empty; reading is noted, and stops at `until`."""

    def __init__(self, items, until=10**9):
        super().__init__(items)
        self.read, self.until = [], until

    def __getitem__(self, index):
        self.read.append(index)
        if index >= self.until:
            raise KeyboardInterrupt
        return "" if index == 3 else super().__getitem__(index)


@pytest.fixture
def grown(tmp_path, encoders):
    """A store of 10 items (20 captions: two shards and a half), and the bytes of one of 18."""

    def once(items, out, **options):
        with pytest.warns(UserWarning, match=r"1 of \d\d items left out"):
            return extract(Grown(items), encoders["text"], out, batch_size=3, progress=False, **options)

    return once(10, tmp_path / "small").path, contents(once(18, tmp_path / "whole").path)


@pytest.mark.filterwarnings("ignore:1 of .. items left out")
def test_a_grown_dataset_is_appended(encoders, grown):
    small, whole = grown
    more = Grown(18)
    with pytest.raises(FuseMixLiteError, match="holds 20 items of captions/10 .* not 36 items of captions/18 .*append=True"):
        extract(more, encoders["text"], small, batch_size=3, progress=False)
    extract(more, encoders["text"], small, batch_size=3, progress=False, append=True).verify()
    assert contents(small) == whole
    assert min(more.read) == 16 and len(more.read) == 20  # the last shard ended early: it is encoded again


@pytest.mark.filterwarnings("ignore:1 of .. items left out")
def test_appending_may_be_stopped(encoders, grown):
    small, whole = grown
    with pytest.raises(KeyboardInterrupt):
        extract(Grown(18, until=26), encoders["text"], small, batch_size=3, progress=False, append=True)
    with pytest.raises(FuseMixLiteError, match="missing: no latent store, or not finished"):
        LatentStore.open(small)
    extract(Grown(18), encoders["text"], small, batch_size=3, progress=False, append=True)
    assert contents(small) == whole
    again = Grown(18)
    extract(again, encoders["text"], small, progress=False, append=True)
    assert again.read == []


def test_what_is_no_continuation_is_refused_and_left_alone(encoders, grown):
    small, _ = grown
    before = contents(small)

    class Other(Grown):
        def fields(self, modality):
            ids, values = super().fields(modality)
            return ["new", *ids[1:]], values

    class OtherLeftOut(Grown):  # what was left out (the fourth row) is another item now, which must not be lost
        def fields(self, modality):
            ids, values = super().fields(modality)
            return [*ids[:3], "new", *ids[4:]], values

    for data in (Other(18), OtherLeftOut(18), Grown(7)):
        with pytest.raises(FuseMixLiteError, match="does not begin with the items of captions/10"):
            extract(data, encoders["text"], small, batch_size=3, progress=False, append=True)
    with pytest.raises(FuseMixLiteError, match="does not hold 36 items of captions/18 by text@1"):
        extract(Grown(18), f"{encoders['text']}@1", small, batch_size=3, progress=False, append=True)
    assert contents(small) == before


# --- several processes --------------------------------------------------------------------------------------------------------

SCRIPT = """
import sys; sys.path[:0] = [{tests!r}]
from test_extraction import Captions
from fusemix_lite import extraction, launched
extraction.ROWS_PER_SHARD, extraction.PATIENCE = 8, 60.0
store = extraction.extract(Captions(40), sys.argv[1], sys.argv[2], batch_size=3, workers=0)
print(store, launched.Share.of_this_process())
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    file = tmp_path_factory.mktemp("script") / "share.py"
    file.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    return file


def together(*command, ranks=(), **environment):
    """Run commands at once, one a rank; their outputs."""
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    each = [{"RANK": str(rank), "WORLD_SIZE": str(len(ranks))} for rank in ranks] or [{}]
    processes = [subprocess.Popen(list(map(str, command)), env=clean | environment | own, **options) for own in each]
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), found
    return found


@pytest.fixture(scope="module")
def forty(tmp_path_factory, encoders):
    """The bytes of 80 captions in ten shards, by one process."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(extraction, "ROWS_PER_SHARD", 8)
        store = extract(Captions(40), encoders["text"], tmp_path_factory.mktemp("forty") / "out", batch_size=3, progress=False)
    return contents(store.path)


def test_two_processes_share_a_pass(tmp_path, encoders, script, forty):
    found = together(sys.executable, script, encoders["text"], tmp_path / "out", ranks=(0, 1))
    assert contents(tmp_path / "out") == forty
    assert ["LatentStore" in out and f"rank={rank}, world=2" in out for rank, (out, _) in enumerate(found)] == [True, True]
    assert "40/40" in found[0][1] and "items/s" in found[0][1]  # its share
    assert "items/s" not in found[1][1]  # one bar is enough


@pytest.mark.skipif(not find_spec("accelerate"), reason="accelerate is not installed")
def test_accelerate_launch(tmp_path, encoders, script, forty):
    """The launcher of several GPUs works without one; with --cpu it starts one process only, unless there is MPI."""
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    options = ("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no")
    ((out, _),) = together(*launch, *options, script, encoders["text"], tmp_path / "out")
    assert contents(tmp_path / "out") == forty and out.count("world=2") == 2


def test_a_process_that_does_not_come_is_an_error_and_nothing_is_lost(tmp_path, encoders, forty, monkeypatch):
    monkeypatch.setattr(extraction, "PATIENCE", 0.3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    out, data = tmp_path / "out", Captions(40)
    for rank, message in ((0, r"shards of .* \(0 of 5 are there"), (1, "the manifest of .* do not come|not come")):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(FuseMixLiteError, match=message):
            extract(data, encoders["text"], out, batch_size=3, progress=False)
        assert len(list(out.glob("shard-*"))) == 5 + 5 * rank and not (out / "manifest.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert extract(data, encoders["text"], out, batch_size=3, progress=False).path == out
    assert contents(out) == forty


def test_a_process_that_comes_late_finds_the_store(tmp_path, encoders, forty, monkeypatch):
    """The first one may write the manifest between two looks of another one."""
    out, begin = tmp_path / "out", extraction._Pass.begin
    out.mkdir()
    for name in forty.keys() - {"manifest.json"}:
        (out / name).write_bytes(forty[name])

    def late(*given):
        (out / "manifest.json").write_bytes(forty["manifest.json"])
        begin(*given)

    monkeypatch.setattr(extraction._Pass, "begin", late)
    with pytest.raises(FuseMixLiteError, match="in use .*manifest.json"):
        extract(Captions(40), encoders["text"], out, progress=False)
    (out / "manifest.json").unlink()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert len(extract(Captions(40), encoders["text"], out, progress=False)) == 80 and contents(out) == forty


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("0", "two")])
def test_a_launcher_that_makes_no_sense(tmp_path, encoders, monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(FuseMixLiteError, match=f"RANK={rank}, WORLD_SIZE={world} name no share"):
        extract(Captions(4), encoders["text"], tmp_path / "out", progress=False)


def test_every_process_takes_its_own_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert launched.own_device("auto") == "auto" and launched.own_device("cuda:2") == "cuda:2"
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert launched.own_device("auto") == "cuda:1"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert launched.own_device("auto") == "cpu"


# --- deliberate breaks --------------------------------------------------------------------------------------------------------


def as_they_come(values, encoders, tasks, workers=0):
    """Batches in the order in which workers might finish them."""
    yield from list(feeding.feed(values, encoders, tasks))[::-1]


def without_the_reason(original):
    """Forgets which items could not be opened."""

    def broken(*given):
        return [batch._replace(left_out=[]) for batch in original(*given)]

    return broken


def early_shards_too(original):
    """Takes over a shard that ended early."""

    def broken(self, shards, item_ids):
        return original(self, shards, item_ids) | self._older

    return broken


@pytest.mark.parametrize("broken", ["order", "quarantine", "early shard"])
@pytest.mark.filterwarnings("ignore:1 of .. items left out")
def test_breaks_are_found(tmp_path, files, encoders, alone, grown, monkeypatch, broken):
    small, whole = grown
    if broken == "order":
        monkeypatch.setattr(extraction, "feed", as_they_come)
    elif broken == "quarantine":
        monkeypatch.setattr(feeding, "batches_of", without_the_reason(feeding.batches_of))
    else:
        monkeypatch.setattr(LatentWriter, "check_older", early_shards_too(LatentWriter.check_older))
    with pytest.raises(AssertionError):
        extract(files, encoders["image"], tmp_path / "out", batch_size=3, progress=False)
        extract(Grown(18), encoders["text"], small, batch_size=3, progress=False, append=True)
        assert (contents(tmp_path / "out"), contents(small)) == (alone["image"], whole)


def test_stores_of_before_are_opened_and_used(tmp_path, encoders):
    """What version 1 of the format wrote, byte for byte, by way of its own lines."""
    store = extract(Captions(10), encoders["text"], tmp_path / "now", batch_size=3, progress=False)
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["version"] == 1 and manifest["item_ids"] == Captions(10).fields("text")[0]
    assert list(manifest) == [
        "format", "version", "dataset_id", "items", "modality", "encoder_id", "encoder_revision", "preprocessing_hash",
        "shape", "dtype", "count", "quarantined", "shards", "item_ids",
    ]  # fmt: skip
    shutil.copytree(store.path, tmp_path / "then")
    assert extract(Captions(10), encoders["text"], tmp_path / "then", progress=False).item_ids == store.item_ids
