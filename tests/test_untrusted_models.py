"""Stores, models, arrays, encoder folders, records and ledgers from strangers: used as they are, or refused in one line.

Never another error, a hang, memory that the files do not account for, code that runs, a file outside of the folder, or numbers
that are silently others. The mutations and the limits are those of `mutations`.
"""

import copy
import functools
import inspect
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_encoders as tiny
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import NUMBERS, VALUES, failures, guarded, mutated_bytes, mutated_json, mutated_json_bytes
from safetensors.torch import load, save
from torture import tries

from fusemix_lite import (
    FuseMixLiteError,
    FusionModel,
    LatentPairs,
    LatentStore,
    SearchIndex,
    adapters,
    claims,
    disk,
    load_array,
    load_encoder,
    load_latent_pairs,
    metrics,
    profile,
    real,
    records,
    reported,
    resolving,
    store,
    untrusted,
    verifying,
    workflow,
)
from fusemix_lite.claims import judge, judge_null, load_claims
from fusemix_lite.generation import load_generator, load_module, save_module
from fusemix_lite.records import Record
from fusemix_lite.reported import load_reported
from fusemix_lite.resolving import resolve_encoder
from fusemix_lite.scene_viewing import SceneReader
from fusemix_lite.store import LatentOrigin, LatentWriter
from fusemix_lite.verifying import repair

COMMON = {"deadline": None, "derandomize": True, "database": None, "suppress_health_check": list(HealthCheck)}
DIMS = {"image": 6, "text": 4}
IDS = [f"photos/{name}.jpg" for name in "abcdefgh"]
LATENTS = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float16)
CAPTIONS = np.random.default_rng(1).standard_normal((8, 4)).astype(np.float16)


def refused(message: str, call, *args, **options) -> None:
    """Refused by our own error, in one line, within the limits, and not by way of a failed allocation."""
    assert guarded(lambda: call(*args, **options)) is None
    with pytest.raises(FuseMixLiteError, match=message) as caught:
        call(*args, **options)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 2500


def with_json(file: Path, **changes) -> Path:
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | changes))
    return file


def reheaded(content: bytes, change, keep_length: bool = False) -> bytes:
    """A safetensors file with a header that `change` has made of its own."""
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length]))
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (length if keep_length else len(header)).to_bytes(8, "little") + header + content[8 + length :]


def mutated_safetensors(rng, content: bytes, other: bytes) -> bytes:
    """Bytes changed anywhere, or a header that lies in a file that is whole otherwise."""
    if rng.random() < 0.4:
        return mutated_bytes(rng, content, other)
    return reheaded(content, lambda header: mutated_json_bytes(rng, nested(rng, header)), rng.random() < 0.1)


def nested(rng, header: dict) -> dict:
    """Our own metadata are JSON in JSON: half of the time they are what is mutated."""
    own = header.get("__metadata__", {}).get("fusemix_lite")
    if own is None or rng.random() < 0.5:
        return header
    told = json.dumps(mutated_json(rng, json.loads(own)))
    return header | {"__metadata__": {"fusemix_lite": told}}


def over_file(file: Path, mutate, read):
    """A trial: the file as `mutate` makes it of its content, read, and put back."""
    content = file.read_bytes()

    def trial(rng):
        try:
            file.write_bytes(mutate(rng, content))
            read()
        finally:
            file.write_bytes(content)

    return trial


def over_json(file: Path, read):
    value = json.loads(file.read_text())
    return over_file(file, lambda rng, _: mutated_json_bytes(rng, value), read)


def check(record_property, trials: dict, light: int, heavy: int, **limits) -> None:
    """So many inputs over several trials, counted."""
    each = math.ceil(tries(light, heavy) / len(trials))
    found = {name: failures(trial, each, **limits) for name, trial in trials.items()}
    wrong = [f"{name}: {line}" for name, lines in found.items() for line in lines]
    assert not wrong, "\n".join(wrong)
    record_property("inputs", each * len(trials))


# --- stores ---------------------------------------------------------------------------------------------------------------


def origin_of(modality: str, items: int = 8) -> LatentOrigin:
    return LatentOrigin("photos-1", items, modality, f"tiny-{modality}", "0" * 64, "1" * 64)


def written(folder: Path, modality: str = "image", latents=LATENTS, ids=IDS) -> Path:
    """A store of three shards, with an item left out."""
    writer = LatentWriter(folder, origin_of(modality, len(ids) + 1))
    for number, (start, stop) in enumerate(((0, 3), (3, 6), (6, 8))):
        gone = [{"index": 8, "item_id": "photos/i.jpg", "path": None, "reason": "broken"}] if number == 2 else []
        writer.write(number, latents[start:stop], ids[start:stop], gone)
    writer.finish(3)
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "store")


def read_store(folder: Path):
    opened = LatentStore.open(folder)
    assert len(opened.quarantine) >= 0 and repr(opened) and str(opened.origin)
    return opened, np.asarray(opened.array), list(opened.item_ids)


def same_or_refused(folder: Path) -> None:
    """A manifest says nothing of its own: whatever passes gives what the shards hold."""
    opened, latents, ids = read_store(folder)
    assert (latents == LATENTS).all() and ids == IDS and opened.origin == origin_of("image", 9)


def verified_or_refused(folder: Path, content: bytes, name: str) -> None:
    """A shard may pass when it is opened: but then its bytes are another store's, and `verify` says so."""
    opened, latents, ids = read_store(folder)
    assert latents.shape == (8, 6) and len(ids) == 8
    if (folder / name).read_bytes() != content:
        with pytest.raises(FuseMixLiteError, match=name):
            opened.verify()


@pytest.mark.torture
def test_mutated_stores(folder, record_property):
    shard = folder / "shard-00001.safetensors"
    content, other = shard.read_bytes(), (folder / "shard-00002.safetensors").read_bytes()
    trials = {
        "manifest": over_json(folder / "manifest.json", lambda: same_or_refused(folder)),
        "quarantine": over_json(folder / "quarantine.json", lambda: same_or_refused(folder)),
        "shard": over_file(
            shard,
            lambda rng, content: mutated_safetensors(rng, content, other),
            lambda: verified_or_refused(folder, content, shard.name),
        ),
    }
    check(record_property, trials, 39, 2400)


@settings(max_examples=25, **COMMON)
@given(
    st.lists(st.text(st.characters(exclude_categories=[]), max_size=12), min_size=1, max_size=9),
    st.integers(1, 5),
    st.sampled_from(["float16", "float32"]),
    st.integers(0, 2**32 - 1),
)
def test_what_a_store_keeps_is_read_back(tmp_path_factory, ids, dim, dtype, seed):
    ids = [json.loads(json.dumps(item)) for item in ids]  # JSON knows no two halves of a pair beside each other
    latents = np.random.default_rng(seed).standard_normal((len(ids), dim)).astype(dtype)
    opened = LatentStore.write(tmp_path_factory.mktemp("any") / "store", latents, ids)
    opened.verify()
    again = LatentStore.open(opened.path)
    assert list(again.item_ids) == ids and again.array.dtype == dtype and (np.asarray(again.array) == latents).all()


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=50, **COMMON)
@given(JSON_VALUES)
def test_json_is_read_back(tmp_path_factory, value):
    file = tmp_path_factory.mktemp("json") / "any.json"
    disk.write_aside(file, disk.as_json(value), sync=False)
    assert disk.read_json(file, "again") == value


def shard_with(folder: Path, change) -> Path:
    file = folder / "shard-00001.safetensors"
    file.write_bytes(reheaded(file.read_bytes(), change))
    return folder


def told(header: dict, **changes) -> dict:
    own = json.loads(header["__metadata__"]["fusemix_lite"]) | changes
    return header | {"__metadata__": {"fusemix_lite": json.dumps(own)}}


HOSTILE_STORES = {
    "dimension": (lambda f: with_json(f / "manifest.json", shape=[8, 10**18]), "absurd"),
    "boolean": (lambda f: with_json(f / "manifest.json", shape=[8, True]), "whole numbers"),
    "origin": (lambda f: with_json(f / "manifest.json", encoder_id=["x"]), "encoder_id is"),
    "items": (lambda f: with_json(f / "manifest.json", items=1e300), "items is"),
    "ids in another order": (lambda f: with_json(f / "manifest.json", item_ids=IDS[::-1]), "other latents than"),
    "ids in a text": (lambda f: with_json(f / "manifest.json", item_ids="abcdefgh"), "in a list"),
    "another encoder": (lambda f: with_json(f / "manifest.json", encoder_id="other"), "other latents than"),
    "nested": (lambda f: (f / "manifest.json").write_text("[" * 10**6), "recursion"),
    "long number": (lambda f: (f / "manifest.json").write_text("9" * 10**6), "digits"),
    "a name that leaves": (
        lambda f: with_json(f / "manifest.json", shards=[{"name": "../x", "rows": 8, "sha256": "0" * 64}]),
        "called '../x'",
    ),
    "many shards": (
        lambda f: with_json(f / "manifest.json", shape=[8, 6], shards=[{"name": "x", "rows": 0, "sha256": ""}] * 400_000),
        "manifest.json is broken",
    ),
    "no dimension": (lambda f: shard_with(f, lambda h: h | {"latents": h["latents"] | {"shape": [0, 10**18]}}), "broken"),
    "ids of a shard in a text": (lambda f: shard_with(f, lambda h: told(h, item_ids="abc")), "in a list"),
    "ids of a shard": (lambda f: shard_with(f, lambda h: told(h, item_ids=IDS[:3])), "other latents than"),
    "origin of a shard": (lambda f: shard_with(f, lambda h: told(h, encoder_revision="2" * 64)), "other latents than"),
    "left out": (lambda f: shard_with(f, lambda h: told(h, quarantine=[{"index": "0"}])), "broken"),
    "offsets": (
        lambda f: shard_with(f, lambda h: h | {"latents": h["latents"] | {"data_offsets": [0, 2**62]}}),
        "truncated or too long",
    ),
    "length of the header": (
        lambda f: (f / "shard-00001.safetensors").write_bytes((2**63).to_bytes(8, "little") + b"{}" * 50),
        "cut in its header",
    ),
    "link": (
        lambda f: (f / "shard-00001.safetensors").rename(f / "x") and (f / "shard-00001.safetensors").symlink_to(f / "x"),
        "missing or a link",
    ),
    "pipe": (lambda f: (f / "manifest.json").unlink() or os.mkfifo(f / "manifest.json"), "missing"),
}


@pytest.mark.parametrize("name", HOSTILE_STORES)
def test_hostile_stores_are_refused(folder, name):
    change, message = HOSTILE_STORES[name]
    change(folder)
    refused(message, read_store, folder)


@pytest.mark.parametrize("content", [{}, [[]], [{"index": 1.5, "item_id": "a", "reason": "b"}], [None], {"a": 1}])
def test_a_quarantine_list_that_is_none_is_refused(folder, content):
    (folder / "quarantine.json").write_text(json.dumps(content))
    refused("quarantine.json is no list of items", lambda: LatentStore.open(folder).quarantine)


def test_a_header_as_large_as_its_file_is_not_read(folder):
    file = folder / "shard-00001.safetensors"
    file.write_bytes((2**33 - 8).to_bytes(8, "little"))
    os.truncate(file, 2**33)  # sparse: it takes no room on the disk
    refused("cut in its header", LatentStore.open, folder)


def test_a_link_beside_a_store_leads_nowhere(tmp_path):
    """A stranger's folder may hold links where a writer puts its lock, its files aside, or what it repairs with."""
    (tmp_path / "mine").write_text("precious")
    other = written(tmp_path / "other")
    before = snapshot(other)
    folder = written(tmp_path / "given/image")
    (folder / "shard-00001.safetensors").unlink()
    (tmp_path / "given/image.lock").unlink()
    (tmp_path / "given/image.lock").symlink_to(tmp_path / "mine")
    refused("image.lock is a link", LatentWriter, folder, origin_of("image"))
    (tmp_path / "given/image.lock").unlink()
    (tmp_path / "given/image.repair").symlink_to(other)
    with pytest.raises(FuseMixLiteError):
        repair(folder)
    refused("image.repair is a link", verifying._clear, folder)
    (folder / "manifest.json.tmp").symlink_to(tmp_path / "mine")
    disk.write_aside(folder / "manifest.json", b"{}")
    assert (tmp_path / "mine").read_text() == "precious" and snapshot(other) == before


def test_json_without_an_end_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    refused("no plain file.: again", disk.read_json, tmp_path / "pipe.json", "again")
    (tmp_path / "large.json").write_bytes(b"[")
    os.truncate(tmp_path / "large.json", 2**33)
    refused("8,589,934,592 bytes, more than", disk.read_json, tmp_path / "large.json", "again")


def test_latents_that_are_not_finite_give_no_number(tmp_path):
    """Those of our own writing are finite; a stranger's shard may hold anything."""
    folder = written(tmp_path / "store")
    file = folder / "shard-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-2:] = np.float16(np.nan).tobytes()
    file.write_bytes(content)
    model = FusionModel(DIMS, 5, depth=1).eval()
    pairs = LatentPairs.from_stores(
        LatentStore.open(folder), LatentStore.open(written(tmp_path / "text", "text", CAPTIONS)), in_memory=False
    )
    refused("image latents: row 5 has no finite embedding", metrics.embed_rows, model, "image", pairs.x)
    refused("image latents: row 5", lambda: SearchIndex(model, {}, modality="image", store=LatentStore.open(folder)))
    with_json(folder / "manifest.json")
    opened = LatentStore.open(written(tmp_path / "whole"))
    opened.manifest["items"] = 10**12
    refused("holds 8 of 1000000000000 items", lambda: SearchIndex(model, {}, modality="image", store=opened))


# --- adapters -------------------------------------------------------------------------------------------------------------


def saved_model(folder: Path, **options) -> Path:
    FusionModel(DIMS, **{"shared_dim": 5, "depth": 1, "standardize": True, **options}).save_pretrained(folder)
    return folder


def read_model(folder: Path) -> FusionModel:
    model = FusionModel.from_pretrained(folder)
    z = {name: torch.ones(2, dim) for name, dim in model.in_dims.items()}
    assert all(model.embed(name, z[name]).shape == (2, model.config["shared_dim"]) for name in z)
    return model


@pytest.mark.torture
def test_mutated_adapters(tmp_path, record_property):
    folder, other = saved_model(tmp_path / "model"), saved_model(tmp_path / "other", depth=0)
    good, second = read_model(folder).state_dict(), (other / "model.safetensors").read_bytes()

    def unchanged():
        assert all(torch.equal(value, good[name]) for name, value in read_model(folder).state_dict().items())

    trials = {
        "config": over_json(folder / "config.json", unchanged),
        "weights": over_file(
            folder / "model.safetensors",
            lambda rng, content: mutated_safetensors(rng, content, second),
            lambda: read_model(folder),
        ),
    }
    check(record_property, trials, 30, 1200)


CONFIGS = st.fixed_dictionaries(
    {
        "in_dims": st.dictionaries(st.sampled_from(["image", "text", "audio", "a-b", "ü"]), st.integers(1, 5), min_size=1),
        "shared_dim": st.integers(1, 5),
        "depth": st.integers(0, 2),
        "expansion": st.integers(1, 3),
        "dropout": st.floats(0, 1),
        "standardize": st.booleans(),
    }
)


@settings(max_examples=20, **COMMON)
@given(CONFIGS)
def test_adapters_of_any_shape_are_read_back(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("any")
    model = FusionModel(**config)
    model.save_pretrained(folder)
    state = torch.random.get_rng_state()
    again = FusionModel.from_pretrained(folder)
    assert again.config == model.config and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())


DEFAULTS = {
    name: option.default
    for name, option in inspect.signature(FusionModel.__init__).parameters.items()
    if option.default is not option.empty
}


@settings(max_examples=60, **COMMON)
@given(
    st.fixed_dictionaries(
        {"in_dims": st.dictionaries(st.text(), st.sampled_from([*NUMBERS[:6], *VALUES[:12]]), max_size=3)},
        optional={
            key: st.sampled_from([*NUMBERS, *VALUES]) for key in ("shared_dim", "depth", "expansion", "dropout", "standardize")
        },
    )
)
def test_options_near_to_good_ones_are_taken_or_refused(config):
    try:
        adapters._check_shape(**DEFAULTS | config)
    except FuseMixLiteError as error:
        assert len(str(error).splitlines()) == 1


HOSTILE_CONFIGS = {
    "depth": ({"depth": 10**9}, "too few for 2000000000 blocks"),
    "shared_dim": ({"shared_dim": 10**12}, "from 1 to 1,048,576"),
    "expansion": ({"expansion": 10**12}, "from 1 to 1,048,576"),
    "in_dims": ({"in_dims": {"image": 2**20, "text": 4}}, "which does not fit"),
    "product": ({"in_dims": {"image": 2**20, "text": 4}, "expansion": 2**20, "shared_dim": 2**20}, "which does not fit"),
    "negative": ({"shared_dim": -5}, "from 1 to 1,048,576"),
    "boolean": ({"expansion": True}, "from 1 to 1,048,576"),
    "fraction": ({"depth": {"image": 0.5, "text": 1}}, "whole number of 0 or more"),
    "not a number": ({"dropout": float("nan")}, "probability"),
    "list": ({"in_dims": [6, 4]}, "latent dimension of each"),
    "dots": ({"in_dims": {"a.b": 6, "text": 4}}, "without dots"),
    "a method's name": ({"in_dims": {"forward": 6, "text": 4}}, "without dots"),
    "standardize": ({"standardize": "yes"}, "True or False"),
}


@pytest.mark.parametrize("name", HOSTILE_CONFIGS)
def test_hostile_configurations_of_adapters_are_refused(tmp_path, name):
    changes, message = HOSTILE_CONFIGS[name]
    folder = saved_model(tmp_path)
    with_json(folder / "config.json", **changes)
    refused(f"config.json.*{message}|model.safetensors.*{message}", FusionModel.from_pretrained, folder)


HOSTILE_WEIGHTS = {
    "not finite": (lambda name, t: t * float("nan"), "not finite"),
    "whole numbers": (lambda name, t: t.long(), "as I64"),
    "shape": (lambda name, t: t.flatten()[None], "does not fit"),
    "temperature": (lambda name, t: -t if name == "temperature" else t, "above 0"),
    "deviation": (lambda name, t: 0 * t if name.endswith("std") else t, "above 0"),
}


@pytest.mark.parametrize("name", HOSTILE_WEIGHTS)
def test_hostile_weights_of_adapters_are_refused(tmp_path, name):
    change, message = HOSTILE_WEIGHTS[name]
    file = saved_model(tmp_path) / "model.safetensors"
    file.write_bytes(save({key: change(key, t).contiguous() for key, t in load(file.read_bytes()).items()}))
    refused(message, FusionModel.from_pretrained, tmp_path)


@pytest.mark.torture
def test_mutated_generators_and_readers(tmp_path, record_property):
    folder = save_module(SceneReader(8), tmp_path / "reader", {})
    content = (folder / "model.safetensors").read_bytes()

    def read():
        load_module(SceneReader, folder)

    trials = {
        "config": over_json(folder / "config.json", read),
        "weights": over_file(folder / "model.safetensors", lambda rng, _: mutated_safetensors(rng, content, content), read),
    }
    check(record_property, trials, 6, 200)
    with_json(folder / "config.json", width=10**12)
    refused("broken, or no SceneReader", load_module, SceneReader, folder)


def test_a_pipeline_imports_no_module_that_it_names(tmp_path):
    index = {"_class_name": "KandinskyV22Pipeline", "unet": ["antigravity", "UNet"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FuseMixLiteError, match="takes its unet from .*only diffusers and transformers"):
        load_generator(tmp_path)
    assert "antigravity" not in sys.modules
    for content in ([], {"_class_name": ["x"]}, None):
        (tmp_path / "model_index.json").write_text(json.dumps(content))
        with pytest.raises(FuseMixLiteError, match="takes no pooled CLIP embedding"):
            load_generator(tmp_path)


# --- folders of latents and of models -------------------------------------------------------------------------------------


def latents_folder(folder: Path, source: Path) -> Path:
    written(folder / "image")
    written(folder / "text", "text", CAPTIONS)
    stores = {name: LatentStore.open(folder / name) for name in ("image", "text")}
    content = {
        "format": workflow.FORMAT,
        "version": 1,
        "source": str(source),
        "dataset": "photos-1",
        "media": "image",
        "items": 9,
        "captions": 9,
        "encoders": {name: workflow.encoder_identity(vars(s.origin), None, s.dim) for name, s in stores.items()},
        "split": dict(zip(IDS, ["train"] * 4 + ["val"] * 2 + ["test"] * 2, strict=True)),
    }
    (folder / "pairs.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def latents(tmp_path):
    (tmp_path / "photos").mkdir()
    return latents_folder(tmp_path / "latents", tmp_path / "photos")


@pytest.fixture
def model(tmp_path, latents):
    workflow.train(
        workflow.open_latents(latents), tmp_path / "model", progress=False, steps=2, batch_size=2, shared_dim=5, depth=1
    )
    return tmp_path / "model"


def snapshot(folder: Path) -> set:
    return {(str(file), file.lstat().st_size) for file in folder.rglob("*")}


@pytest.mark.torture
def test_mutated_folders_of_latents_and_models(tmp_path, latents, model, record_property):
    opened = workflow.open_latents(latents)
    second = latents_folder(tmp_path / "second", tmp_path / "photos")
    work = tmp_path / "work"

    def merge():
        workflow.open_latents(latents)
        before = snapshot(tmp_path)
        try:
            workflow.merge_latents([latents, second], work / "merged", ["a/", "b/"])
        finally:
            shutil.rmtree(work, ignore_errors=True)
            assert snapshot(tmp_path) == before, "something was written elsewhere"

    def use():
        found, encoders = workflow.load_model(model)
        workflow.check_encoders(model, encoders, opened)
        _, pairs, _ = workflow.held_out(model, opened)
        metrics.embed_rows(found, "image", pairs.x)

    trials = {
        "pairs": over_json(latents / "pairs.json", merge),
        "encoders": over_json(model / "encoders.json", use),
        "parts": over_json(model / "parts.json", use),
    }
    check(record_property, trials, 24, 900)


@pytest.mark.parametrize("key", ["../../elsewhere", "/elsewhere", "..", ".", "a/b", ""])
def test_stores_of_a_merge_stay_in_its_folder(tmp_path, latents, key):
    content = json.loads((latents / "pairs.json").read_text())
    for place in ("encoders", "more"):
        bad = content | {"more": {}}
        bad[place] = bad[place] | {key: content["encoders"]["image"]}
        (latents / "pairs.json").write_text(json.dumps(bad))
        written(tmp_path / "elsewhere" / place)
        refused("which is no folder in", workflow.merge_latents, [latents, latents], tmp_path / "out" / "merged")
        assert not (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / "elsewhere")


def test_a_source_is_read_only_as_far_as_it_may_be_what_was_extracted(tmp_path, latents, monkeypatch):
    """The folder that a stranger's pairs.json names may be the whole disk, a file that is no table, or a pipe."""
    monkeypatch.setattr(workflow, "SURPLUS", 0.01)
    (tmp_path / "disk").mkdir()
    for number in range(50):
        (tmp_path / "disk" / f"{number}.jpg").touch()
    os.mkfifo(tmp_path / "pipe.csv")
    seen = []
    monkeypatch.setattr(workflow, "_check_extent", lambda *a, real=workflow._check_extent: seen.append(a) or real(*a))
    for source in (tmp_path / "disk", "/etc/passwd", tmp_path / "pipe.csv", "/dev/zero", "a\0b", "x" * 300, ""):
        with_json(latents / "pairs.json", source=str(source))
        assert guarded(lambda: workflow.open_latents(latents), seconds=10) is None
        assert workflow.open_latents(latents).dataset is None
        refused("", workflow.reopen, workflow.read_pairs_json(latents))
    assert len(seen) > 6
    with_json(latents / "pairs.json", source=str(tmp_path / "disk"))
    refused("holds far more than the 9 items", workflow.reopen, workflow.read_pairs_json(latents))


def test_an_item_that_a_split_does_not_name_is_told(latents):
    with_json(latents / "pairs.json", split=dict.fromkeys(IDS[1:], "train"))
    refused("1 items of the pairs are not in .*pairs.json, 'photos/a.jpg' among them", workflow.open_latents, latents)


@pytest.mark.parametrize("file", ["encoders.json", "parts.json"])
@pytest.mark.parametrize(
    "content", [{}, {"encoders": {"image": 1, "text": 2}, "parts": {"train": 3}}, {"encoders": [], "parts": []}]
)
def test_records_beside_a_model_that_are_none_are_refused(latents, model, file, content):
    (model / file).write_text(json.dumps(content))
    opened = workflow.open_latents(latents)
    if file == "encoders.json":
        refused("encoders.json does not name an encoder", workflow.load_model, model)
    elif content:
        refused("parts.json does not list the items", workflow.held_out, model, opened)


# --- arrays ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pack(tmp_path):
    x, y = torch.from_numpy(LATENTS).float(), torch.from_numpy(CAPTIONS).float()
    (tmp_path / "pack.safetensors").write_bytes(save({"x": x, "y": y, "owner": torch.arange(8)}))
    np.save(tmp_path / "x.npy", LATENTS)
    (tmp_path / "split.json").write_text(json.dumps({"split": ["train"] * 5 + ["test"] * 3, "items": IDS}))
    return tmp_path


@pytest.mark.torture
def test_mutated_arrays(pack, record_property):
    specs = [f"{pack / 'pack.safetensors'}:{key}" for key in ("x", "y", "owner")]

    def read(x=specs[0]):
        parts = load_latent_pairs(x, *specs[1:], pack / "split.json")
        assert all(pairs.x.isfinite().all() for pairs in parts.values())

    other = (pack / "pack.safetensors").read_bytes()
    trials = {
        "npy": over_file(pack / "x.npy", lambda rng, content: mutated_bytes(rng, content, other), lambda: read(pack / "x.npy")),
        "safetensors": over_file(
            pack / "pack.safetensors", lambda rng, content: mutated_safetensors(rng, content, content[:500]), read
        ),
        "split": over_json(pack / "split.json", read),
    }
    check(record_property, trials, 30, 1200)


def npy(header: str) -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64


HOSTILE_ARRAYS = {
    "shape": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4)}"), "cannot be read as .npy"),
    "product": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 8)}"), "cannot be read as .npy"),
    "negative": (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4)}"), "cannot be read as .npy"),
    "objects": (npy("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}"), "cannot be read as .npy"),
    "code": (npy("{'descr': __import__('os').system('touch ran'), 'fortran_order': False, 'shape': (4,)}"), "cannot be read"),
    "texts": (npy("{'descr': '<U4', 'fortran_order': False, 'shape': (2, 2)}"), "not numbers"),
    "complex": (npy("{'descr': '<c8', 'fortran_order': False, 'shape': (2, 2)}"), "not numbers"),
    "zip": (b"PK\x03\x04" + b"\0" * 60, "is an .npz archive"),
    "pickle": (b"\x80\x04\x95\x15\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", "cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_hostile_arrays_are_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE_ARRAYS[name]
    Path("x.npy").write_bytes(content)
    refused(message, load_array, "x.npy")
    assert os.listdir() == ["x.npy"]


def test_arrays_in_another_byte_order_are_the_same_numbers(tmp_path):
    np.save(tmp_path / "x.npy", LATENTS.astype(">f4"))
    assert (load_array(tmp_path / "x.npy") == LATENTS).all()
    assert LatentPairs(load_array(tmp_path / "x.npy"), LATENTS).x.shape == (8, 6)
    np.save(tmp_path / "x.npy", LATENTS.astype(np.longdouble))
    refused("not numbers", load_array, tmp_path / "x.npy")


def test_kinds_that_numpy_does_not_know_are_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(save({"x": torch.ones(2, 2).to(torch.float8_e4m3fn)}))
    refused("cannot be read as safetensors.*F8_E4M3", load_array, tmp_path / "x.safetensors")


def test_an_item_in_two_parts_is_refused(tmp_path):
    image, text = written(tmp_path / "image"), written(tmp_path / "text", "text", CAPTIONS)
    (tmp_path / "split.json").write_text(json.dumps({"split": ["train"] * 8 + ["test"], "items": [*IDS, IDS[0]]}))
    refused("names 'photos/a.jpg' more than once", load_latent_pairs, image, text, None, tmp_path / "split.json")


def test_real_latents_without_a_part_to_train_on_are_refused(tmp_path, monkeypatch):
    arrays = {"image_mobilenetv2": torch.ones(4, 3), "text_minilm": torch.ones(4, 3), "caption_to_item": torch.arange(4)}
    (tmp_path / "flickr8k.safetensors").write_bytes(save(arrays))
    (tmp_path / "flickr8k.json").write_text(json.dumps({"split": ["val", "val", "test", "test"]}))
    monkeypatch.setenv("FUSEMIX_LITE_REAL", str(tmp_path))
    refused("names no part 'train'", real.load_real, "flickr8k")


# --- encoder folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {kind: tiny.save(root / kind, kind) for kind in ("bert", "dinov2", "whisper")}


def copied(encoders, kind: str, to: Path) -> Path:
    return Path(shutil.copytree(encoders[kind], to / kind))


def sentence_transformer(folder: Path) -> Path:
    modules = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def sharded(folder: Path) -> Path:
    """The weights in two files, with their index."""
    weights = load((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"model-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in set(where.values()):
        part = {name: weights[name] for name in names if where[name] == file}
        (folder / file).write_bytes(save(part, {"format": "pt"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.torture
def test_mutated_settings_of_encoders(tmp_path, encoders, record_property):
    """What is read before any library is asked."""
    folder = sharded(sentence_transformer(copied(encoders, "bert", tmp_path)))
    (folder / "fusemix_lite.json").write_text(json.dumps({"prefix": "a "}))
    files = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json")
    files += ("model.safetensors.index.json", "fusemix_lite.json", "config.json")

    def read():
        found = resolve_encoder(folder)
        assert isinstance(found.prefix, str) and found.folder == folder.resolve()

    check(record_property, {file: over_json(folder / file, read) for file in files}, 28, 700)


@pytest.mark.torture
def test_mutated_encoder_folders(tmp_path, encoders, record_property):
    folders = {kind: copied(encoders, kind, tmp_path) for kind in encoders}
    trials = {}
    for kind, folder in folders.items():
        other = (folders["bert"] / "model.safetensors").read_bytes()[:3000]
        read = functools.partial(load_encoder, folder, "cpu")
        for file in folder.glob("*.json"):
            trials[f"{kind}/{file.name}"] = over_json(file, read)
        trials[f"{kind}/weights"] = over_file(
            folder / "model.safetensors", lambda rng, content, other=other: mutated_safetensors(rng, content, other), read
        )
    check(record_property, trials, 10, 600, megabytes=1200, seconds=90)


HOSTILE_ENCODERS = {
    "layers": ("bert", "config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, but there are"),
    "vocabulary": ("bert", "config.json", {"vocab_size": 10**9}, "the configuration describes"),
    "positions": ("bert", "config.json", {"max_position_embeddings": 10**10}, "the configuration describes"),
    "width": ("bert", "config.json", {"intermediate_size": 10**12}, "cannot be loaded"),
    "picture": ("dinov2", "config.json", {"image_size": 10**9}, "image_size = 1000000000 is absurd"),
    "crop": (
        "dinov2",
        "preprocessor_config.json",
        {"crop_size": {"height": 10**6, "width": 10**6}},
        "height = 1e.06 is absurd",
    ),
    "chunk": ("whisper", "preprocessor_config.json", {"chunk_length": 10**9}, "chunk_length = 1e.09 is absurd"),
    "chunk at its rate": ("whisper", "preprocessor_config.json", {"chunk_length": 3600}, "3600 s at 16000 Hz"),
    "rate": ("whisper", "preprocessor_config.json", {"sampling_rate": 10**12}, "sampling_rate"),
    "filters": ("whisper", "preprocessor_config.json", {"feature_size": 0}, "feature_size = 0 is absurd"),
    "quantised": ("bert", "config.json", {"quantization_config": {"quant_method": "torchao"}}, None),
    "kernels": ("bert", "config.json", {"attn_implementation": "evil/kernel"}, "lies elsewhere"),
    "kernels of parts": ("bert", "config.json", {"_attn_implementation": {"": "evil/kernel@main:x"}}, None),
    "modality": ("bert", "fusemix_lite.json", {"modality": ["text"]}, "is no text"),
    "prefix": ("bert", "fusemix_lite.json", {"prefix": 7}, "is no text"),
    "longest": ("bert", "fusemix_lite.json", {"longest": -1}, "captions of -1 tokens"),
}


def test_numbers_that_are_legal_are_taken(tmp_path, encoders):
    """As published configurations have them: names of classes, and widths of what is there per layer, block or expert."""
    folder = copied(encoders, "dinov2", tmp_path)
    labels = {"stage": 819, "CD player": 485, "level crossing": 70}
    widths = {"block_size": 512, "vocab_size_per_layer_input": 262144, "stage_out_channels": [2048], "block_multiple_of": 256}
    with_json(
        folder / "config.json",
        label2id=labels,
        id2label={number: name for name, number in labels.items()},
        more=widths | {"shared_expert_intermediate_size": 5632, "embed_dim_per_stage": [768]},
    )
    assert load_encoder(folder, "cpu").dim == load_encoder(encoders["dinov2"], "cpu").dim


@pytest.mark.parametrize("name", HOSTILE_ENCODERS)
def test_hostile_encoder_folders_are_refused(tmp_path, encoders, name):
    kind, file, changes, message = HOSTILE_ENCODERS[name]
    folder = copied(encoders, kind, tmp_path)
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    with_json(folder / file, **changes)
    refused(message or "lies elsewhere|cannot be loaded", load_encoder, folder, "cpu")


def test_code_and_pickles_that_come_with_a_model_are_left_alone(tmp_path, encoders, monkeypatch):
    folder, ran = copied(encoders, "bert", tmp_path), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Model: pass\nclass Config: pass\nclass Tokenizer: pass\n")
    code = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    with_json(folder / "config.json", auto_map=code)
    with_json(folder / "tokenizer_config.json", auto_map=code)
    assert load_encoder(folder, "cpu").dim == 16 and not ran.exists()  # a class of the library's own is used
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers would ask, and a reader may say yes to anything
    for kind in ("evil", "trocr"):  # unknown; known, but not as an encoder
        with_json(folder / "config.json", model_type=kind)
        refused("cannot be loaded", load_encoder, folder, "cpu")
        assert not ran.exists()
    pickled = copied(encoders, "dinov2", tmp_path)
    (pickled / "model.safetensors").rename(pickled / "other.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(HOSTILE_ARRAYS["pickle"][0])
    refused("cannot be loaded", load_encoder, pickled, "cpu")


def test_a_model_that_lies_elsewhere_is_not_fetched(tmp_path, encoders):
    folder = copied(encoders, "bert", tmp_path)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))
    refused("adapter_config.json asks for a model that lies elsewhere", load_encoder, folder, "cpu")
    for key, value in (("hf_model_name", "evil/base"), ("timm_model_pretrained", True), ("custom_load", "hf")):
        content = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {key: value}}
        (folder / "adapter_config.json").unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(content))
        refused(f"asks by {key}", load_encoder, folder, "cpu")


def test_an_index_of_weights_says_what_the_files_do(tmp_path, encoders):
    """It is no part of an encoder's revision: so it must not decide which of two files a weight is read from."""
    folder = sharded(copied(encoders, "bert", tmp_path))
    whole = load_encoder(encoders["bert"], "cpu").encode(["a bell"])
    assert torch.equal(load_encoder(folder, "cpu").encode(["a bell"]), whole)
    first = folder / "model-00001-of-00002.safetensors"
    weights = load(first.read_bytes())
    (folder / "model-00003-of-00002.safetensors").write_bytes(save({name: 2 * t for name, t in weights.items()}))
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for other in ("00001", "00003"):  # whichever it chooses
        swapped = {name: file.replace("00001", other) for name, file in content["weight_map"].items()}
        index.write_text(json.dumps(content | {"weight_map": swapped}))
        refused("or they are there twice", resolve_encoder, folder)
    (folder / "model-00003-of-00002.safetensors").unlink()
    name = next(iter(weights))
    for wrong in ({**content["weight_map"], name: "model-00002-of-00002.safetensors"}, {name: first.name}, {"x": first.name}):
        index.write_text(json.dumps(content | {"weight_map": wrong}))
        refused("does not say where the weights are", resolve_encoder, folder)
    for file in ("../bert/model.safetensors", "/etc/passwd"):
        index.write_text(json.dumps(content | {"weight_map": {name: file}}))
        refused("lacks", resolve_encoder, folder)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../..", 3, None, ".."])
def test_modules_of_a_sentence_transformer_stay_in_its_folder(tmp_path, encoders, path):
    folder = sentence_transformer(copied(encoders, "bert", tmp_path))
    modules = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": path}]
    (folder / "modules.json").write_text(json.dumps(modules))
    refused("modules.json is no list of modules", resolve_encoder, folder)
    for content in ([], {}, [1], "x"):
        (folder / "modules.json").write_text(json.dumps(content))
        refused("modules.json is no list of modules", resolve_encoder, folder)


def test_a_pipe_among_the_weights_is_not_waited_for(tmp_path, encoders):
    folder = copied(encoders, "bert", tmp_path)
    os.mkfifo(folder / "more.safetensors")
    refused("more.safetensors is no file", resolve_encoder, folder)


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 300, "x" * 100_000, "a/" * 3000, "clean:" + "y" * 300, "\ud800/b", "z" * 300 + "@3"]
)
def test_names_that_no_system_takes_are_unknown(name):
    with pytest.raises(FuseMixLiteError):
        resolve_encoder(name)


# --- records and ledgers --------------------------------------------------------------------------------------------------


@pytest.fixture
def record(tmp_path, monkeypatch):
    content = copy.deepcopy(Record.load("fusemix").content)
    content["cells"] = content["cells"][:3]
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    (tmp_path / "lite").mkdir()
    (tmp_path / "lite/fusemix.json").write_text(json.dumps(content))
    return tmp_path / "lite/fusemix.json"


def read_record():
    found = Record.load("fusemix")
    assert found.stamp and found.profile.name and records.scale(found.profile)
    for cell in found.content["cells"]:
        assert all(math.isfinite(value) for value in found.values("image_to_text@1", **cell["arm"]))


@pytest.mark.torture
def test_mutated_records(record, record_property):
    def read():
        try:
            read_record()
        except KeyError as error:
            assert error.args == ("image_to_text@1",)  # a metric that a run lacks is the ledger's to say

    check(record_property, {"record": over_json(record, read)}, 10, 500)


HOSTILE_RECORDS = {
    "no runs": (lambda c: c["cells"][0].pop("runs"), "without an arm or runs"),
    "a run less": (lambda c: c["cells"][0]["runs"].pop(), "not one run a seed"),
    "an arm twice": (lambda c: c["cells"].append(c["cells"][0]), "not one run a seed"),
    "text": (lambda c: c["cells"][0]["runs"][0].update(val_mean="1"), "other things than numbers"),
    "not finite": (lambda c: c["cells"][0]["runs"][0].update(val_mean=float("nan")), "not finite"),
    "seeds": (lambda c: c.update(seeds="0123456789"), "no seeds"),
    "profile": (lambda c: c["config"].update(batch_size=0), "batch_size = 0: give 1"),
}


@pytest.mark.parametrize("name", HOSTILE_RECORDS)
def test_hostile_records_are_refused(record, name):
    change, message = HOSTILE_RECORDS[name]
    content = json.loads(record.read_text())
    change(content)
    record.write_text(json.dumps(content))
    refused(f"fusemix.json is broken .*{message}", Record.load, "fusemix")


@pytest.mark.torture
def test_mutated_ledgers(tmp_path, record_property):
    every = yaml.safe_load(claims.CLAIMS.read_text("utf-8"))
    kinds = {claim.kind: row for claim, row in zip(load_claims(), every, strict=True) if claim.rule is None or not claim.why}
    assert {"arithmetic", "difference", "level", "untestable"} <= kinds.keys()
    rows = list(kinds.values())
    ledger, facts = tmp_path / "claims.yml", tmp_path / "reported.yml"
    topic = {"image-text-retrieval": yaml.safe_load(reported.REPORTED.read_text("utf-8"))["image-text-retrieval"][:2]}
    found = {row["record"]: Record.load(row["record"], row["profile"]) for row in rows if row.get("record")}

    def mutated(rng, value) -> bytes:
        if rng.random() < 0.5:
            return mutated_bytes(rng, yaml.safe_dump(copy.deepcopy(value), allow_unicode=True).encode())
        return mutated_json_bytes(rng, value)  # JSON is YAML

    def judged(rng):
        ledger.write_bytes(mutated(rng, rows))
        for claim in load_claims(ledger):
            if claim.record and claim.record not in found:
                continue
            judge(claim, found.get(claim.record))
            if claim.kind not in ("untestable", "arithmetic"):
                judge_null(claim, found.get(claim.record))

    def told(rng):
        facts.write_bytes(mutated(rng, topic))
        assert all(row.at("COCO", "text_to_image") is None or row.pairs for row in load_reported("image-text-retrieval", facts))

    check(record_property, {"claims": judged, "reported": told}, 20, 700)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE_YAML = {
    "aliases": (BOMB + "image-text-retrieval: *i\n", "an alias in line 2"),
    "objects": ("!!python/object/apply:os.system [touch ran]", "could not determine a constructor"),
    "nested": ("[" * 100_000, "more than 100 brackets open"),
    "nested lines": ("".join(f"{' ' * depth}- a:\n" for depth in range(0, 1900, 2)), ""),
    "dates": ("2026-13-45", "month"),
    "keys": ("? [a, b]\n: 1", ""),
    "bytes": (b"\xff\xfe\x00", ""),
}


@pytest.mark.parametrize("name", HOSTILE_YAML)
def test_hostile_yaml_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE_YAML[name]
    Path("x.yml").write_bytes(content.encode() if isinstance(content, str) else content)
    refused(message, load_claims, Path("x.yml"))
    refused(message, load_reported, "image-text-retrieval", Path("x.yml"))
    assert os.listdir() == ["x.yml"]


@pytest.mark.parametrize(
    "text", ["(" * 900, "-" * 999, "1" * 2000, "9" * 400 + "*1.0", "1e308*10-1e308*10", ["1"], "2**9", "x.y"]
)
def test_sums_that_are_none_are_refused(text):
    if text == "1e308*10-1e308*10":
        assert math.isnan(claims._calculate(text, "any"))
        return
    refused("cannot calculate", claims._calculate, text, "any")


# --- profiles -------------------------------------------------------------------------------------------------------------


FIELDS = sorted(profile("lite").__dataclass_fields__)


@pytest.mark.torture
def test_mutated_profiles(record_property):
    def trial(rng):
        p = profile(rng.choice(("lite", "smoke", "colab", "paper")))
        values = mutated_json(rng, json.loads(json.dumps({key: getattr(p, key) for key in FIELDS if key != "name"})))
        found = profile(p.name, **values) if isinstance(values, dict) else p
        assert min(found.batch_size, found.seeds, found.captions, *found.sizes, *found.lengths) >= 1
        assert hash(found) and found.scenes and found.sounds and all(0 <= share < 1 for share in found.dropouts)

    check(record_property, {"profile": trial}, 20, 700)


@pytest.mark.parametrize(
    "override",
    [
        {"batch_size": 0}, {"seeds": 0}, {"train_items": -1}, {"sizes": [100, -1]}, {"depth": -1}, {"lr": 0},
        {"lr": math.inf}, {"lr": math.nan}, {"dropouts": [1.0]}, {"warmup": -0.1}, {"batch_factors": [0]},
        {"precision": "int8"}, {"name": "x"}, {"scenes_as": "other"},
        {"audio_items": [1, 2]}, {"audio_sizes": ["x"]}, {"image_text_tests": [3]}, {"seed": 2**63},
    ],
)  # fmt: skip
def test_profile_values_out_of_range_are_refused(override):
    refused(next(iter(override)), profile, "lite", **override)


# --- the checks can fail --------------------------------------------------------------------------------------------------


def test_the_limits_catch_what_they_are_for():
    assert guarded(lambda: None) is None
    assert "ZeroDivisionError" in guarded(lambda: 1 / 0)
    assert "MemoryError" in guarded(lambda: np.ones(10**9))
    assert "took too long" in guarded(lambda: [None for _ in iter(int, 1)], seconds=1)
    assert "took too long" in guarded(
        lambda: (sum, pow(7, 10**9, 10**9) and 3 ** (3**25))[1], seconds=1
    )  # no Python signal handler runs
    assert "died" in guarded(lambda: os.kill(os.getpid(), 9))

    def late():
        try:
            torch.empty(10**12)
        except RuntimeError as error:
            raise FuseMixLiteError("refused") from error

    assert "took memory first" in guarded(late)


def broken(call) -> bool:
    """Whether a test fails now that its guard is gone."""
    try:
        call()
    except (AssertionError, pytest.fail.Exception, Exception):
        return True
    return False


BREAKS = {
    "no look at the options": (adapters, "_check_shape", lambda *_: {}, "config boolean"),
    "no count of blocks": (adapters, "load_fitting", lambda build, *_: build(), "config depth"),
    "no comparison with the weights": (adapters, "load_fitting", lambda build, *_: build(), "config product"),
    "no limit of sizes": (adapters, "LARGEST", 10**30, "config shared_dim"),
    "no kinds of an origin": (store, "origin_of", lambda known: known.get("encoder_id"), "store origin"),
    "no limit of a header": (store, "HEADER", 2**64, "header"),
    "no limit of a dimension": (store, "LARGEST_DIM", 10**30, "store dimension"),
    "ids of any kind": (store, "_check_ids", lambda ids: None, "store ids in a text"),
    "left out of any kind": (store, "_check_left_out", lambda entries: None, "store left out"),
    "JSON of any size": (disk, "plain_bytes", lambda file, at_most: file.read_bytes(), "json"),
    "folders of any name": (workflow, "re", type("re", (), {"fullmatch": staticmethod(lambda *_: True)}), "merge"),
    "encoders of any kind": (workflow, "_say_who", lambda encoders: True, "encoders"),
    "sources of any extent": (workflow, "_check_extent", lambda folder, items: None, "source"),
    "encoders of any size": ("encoders", "check_encoder", lambda *_: None, "encoder layers"),
    "more than the weights": ("encoders", "check_weights", lambda *_: None, "encoder vocabulary"),
    "elsewhere": (untrusted, "_ELSEWHERE", set(), "elsewhere"),
    "an index that lies": (resolving, "_check_index", lambda *_, **__: None, "index"),
    "records of any kind": (records, "_wrong", lambda content: "", "record not finite"),
    "aliases": (claims, "read_yaml", lambda file: yaml.safe_load(file.read_text()), "yaml aliases"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_guard_that_is_taken_away_is_missed(tmp_path, name, monkeypatch, request):
    home, guard, nothing, case = BREAKS[name]
    kind, _, which = case.partition(" ")
    made = {key: request.getfixturevalue(key) for key in NEEDED.get(kind, ())}
    (tmp_path / "case").mkdir()
    home = __import__(f"fusemix_lite.{home}", fromlist=["x"]) if isinstance(home, str) else home

    def run():
        CASES[kind](tmp_path / "case", which, monkeypatch, **made)

    monkeypatch.setattr(home, guard, nothing)
    assert broken(run)


NEEDED = {
    "store": ["folder"], "header": ["folder"], "merge": ["latents"], "source": ["latents"], "encoder": ["encoders"],
    "elsewhere": ["encoders"], "index": ["encoders"], "record": ["record"], "encoders": ["latents", "model"],
}  # fmt: skip
CASES = {
    "config": lambda at, which, patch: test_hostile_configurations_of_adapters_are_refused(at, which),
    "store": lambda at, which, patch, folder: test_hostile_stores_are_refused(folder, which),
    "header": lambda at, which, patch, folder: test_a_header_as_large_as_its_file_is_not_read(folder),
    "json": lambda at, which, patch: test_json_without_an_end_is_not_read(at),
    "merge": lambda at, which, patch, latents: test_stores_of_a_merge_stay_in_its_folder(at, latents, "../../elsewhere"),
    "encoders": lambda at, which, patch, latents, model: test_records_beside_a_model_that_are_none_are_refused(
        latents, model, "encoders.json", {"encoders": {"image": 1, "text": 2}}
    ),
    "source": lambda at, which, patch, latents: test_a_source_is_read_only_as_far_as_it_may_be_what_was_extracted(
        at, latents, patch
    ),
    "encoder": lambda at, which, patch, encoders: test_hostile_encoder_folders_are_refused(at, encoders, which),
    "elsewhere": lambda at, which, patch, encoders: test_a_model_that_lies_elsewhere_is_not_fetched(at, encoders),
    "index": lambda at, which, patch, encoders: test_an_index_of_weights_says_what_the_files_do(at, encoders),
    "record": lambda at, which, patch, record: test_hostile_records_are_refused(record, which),
    "yaml": lambda at, which, patch: test_hostile_yaml_is_refused(at, which, patch),
}
