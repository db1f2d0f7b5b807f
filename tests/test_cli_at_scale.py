"""The command line at scale: several encoders, public data sets, several processes, grown data, merging."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import public_fixtures
import pytest
import test_cli
from test_cli import FEW, ROOT, fails

from fusemix_lite import LatentStore, cli, encoders, workflow
from fusemix_lite.rows import StoredRows

own_cache, project, run, told = test_cli.own_cache, test_cli.project, test_cli.run, test_cli.told  # fixtures


def contents(folder):
    files = [file for file in folder.rglob("*") if file.suffix in (".safetensors", ".json")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_precisions_are_those_of_the_encoders():
    assert cli.PRECISIONS == tuple(encoders.PRECISIONS)


def test_several_encoders_share_a_pass(run, told, project, tmp_path):
    out = tmp_path / "latents"
    more = ("--image", "lite-image-a", "--image", "lite-image-b", "--text", "lite-text-b", "--text", "lite-text-a")
    found = told("extract", project / "pairs", "--out", out, *more)
    assert [encoder["id"] for encoder in found["encoders"].values()] == ["lite-image-a", "lite-text-b"]
    assert list(found["more"]) == ["image-lite-image-b", "text-lite-text-a"]
    assert {key: len(LatentStore.open(out / key)) for key in found["rows"]} == found["rows"]
    for name in ("shard-00000.safetensors", "manifest.json"):
        assert (out / "image" / name).read_bytes() == (project / "latents" / "image" / name).read_bytes()
        assert (out / "text-lite-text-a" / name).read_bytes() == (project / "latents" / "text" / name).read_bytes()
    code, shown, _ = run("extract", project / "pairs", "--out", out, *more)
    assert code == 0 and "image-lite-image-b" in shown
    assert f"fit --x {out / 'image-lite-image-b'} --y {out / 'text-lite-text-a'} --out other-model" in shown
    assert told("fit", out, "--out", tmp_path / "model", *FEW)["items"]
    other = ("--x", out / "image-lite-image-b", "--y", out / "text-lite-text-a", "--out", tmp_path / "other")
    assert told("fit", *other, *FEW)["items"]
    twice = ("--image", "lite-image-a", "--image", "lite-image-b", "--image", "lite-image-b")
    assert "lite-image-b is named twice" in fails(run, "extract", project / "pairs", "--out", tmp_path / "x", *twice)


def test_precision_and_workers_reach_the_encoder(told, project, tmp_path):
    found = told("extract", project / "pairs", "--out", tmp_path / "half", "--precision", "bf16", "--workers", "0")
    assert found["rows"] and LatentStore.open(tmp_path / "half" / "text").origin.precision == "bf16"


def test_a_public_data_set_is_extracted_by_its_name(run, told, tmp_path, monkeypatch):
    data = public_fixtures.flickr8k_karpathy(tmp_path / "flickr8k").folder
    missing = fails(run, "extract", "flickr8k", "--out", tmp_path / "none")
    assert "set FUSEMIX_LITE_DATA" in missing
    found = told("extract", "flickr8k", "--data", data, "--out", tmp_path / "latents")
    assert found["parts"] == {"train": found["items"]} and found["source"] == "flickr8k"
    with pytest.warns(UserWarning, match="10 of 60 rows .* dropped: no x of their item"):  # of the broken pictures
        opened = workflow.open_latents(tmp_path / "latents")
    assert list(opened.parts) == ["train"] and opened.dataset.id == found["dataset"]
    monkeypatch.setenv("FUSEMIX_LITE_DATA", str(data.parent))
    again = told("extract", "flickr8k", "--split", "train", "--out", tmp_path / "again")
    assert again["dataset"] == found["dataset"] and again["folder"] is None
    assert "no public data set" in fails(run, "extract", "flickr9k", "--data", data, "--out", tmp_path / "x")
    table = tmp_path / "own.csv"
    table.write_text("image,text\na.png,a\n")
    assert "--split is for public data sets" in fails(run, "extract", table, "--split", "val", "--out", tmp_path / "x")


def test_processes_under_a_launcher_write_what_one_writes(project, tmp_path):
    command = [sys.executable, "-m", "fusemix_lite", "extract", str(project / "pairs"), "--out", str(tmp_path / "latents")]
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in range(2)]
    started = [subprocess.Popen(command, env=clean | rank, **pipes) for rank in ranks]
    found = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], found
    assert contents(tmp_path / "latents") == contents(project / "latents")
    assert "left out: nothing" in found[0][0] and found[1] == ("", "")


def test_a_table_that_has_grown_is_appended(run, told, project, tmp_path):
    shutil.copytree(project / "pairs", tmp_path / "pairs")
    table = tmp_path / "pairs" / "captions.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    table.write_text("".join(lines[:81]), encoding="utf-8")
    first = told("extract", tmp_path / "pairs", "--out", tmp_path / "latents")
    table.write_text("".join(lines), encoding="utf-8")
    assert "choose another folder" in fails(run, "extract", tmp_path / "pairs", "--out", tmp_path / "latents")
    grown = told("extract", tmp_path / "pairs", "--out", tmp_path / "latents", "--append")
    assert first["items"] < grown["items"] == grown["rows"]["image"]
    fresh = told("extract", tmp_path / "pairs", "--out", tmp_path / "fresh")
    assert fresh["rows"] == grown["rows"] and contents(tmp_path / "fresh") == contents(tmp_path / "latents")


def test_latents_are_merged(run, told, project, tmp_path):
    latents = project / "latents"
    assert "share the item id" in fails(run, "merge", latents, latents, "--out", tmp_path / "both")
    told("merge", latents, latents, "--out", tmp_path / "both", "--prefix", "a/", "--prefix", "b/")
    one, two = workflow.open_latents(latents), workflow.open_latents(tmp_path / "both")
    assert list(two.parts) == list(one.parts) and two.dataset is None
    for name, pairs in one.parts.items():
        assert two.parts[name].n_items == 2 * pairs.n_items and len(two.parts[name]) == 2 * len(pairs)
        assert set(two.parts[name].item_ids) == {f"{p}/{item}" for p in "ab" for item in pairs.item_ids}
    assert told("fit", tmp_path / "both", "--out", tmp_path / "model", *FEW)["items"]
    found = told("merge", latents / "text", latents / "text", "--out", tmp_path / "text", "--prefix", "a/", "--prefix", "b/")
    assert found["rows"] == {str(tmp_path / "text"): len(two.parts["train"]) + len(two.parts["val"]) + len(two.parts["test"])}
    assert "holds no pairs.json, others do" in fails(run, "merge", latents, latents / "text", "--out", tmp_path / "x")
    code, shown, _ = run("merge", latents, latents, "--out", tmp_path / "both", "--prefix", "a/", "--prefix", "b/")
    assert code == 0 and f"fit {tmp_path / 'both'} --out model" in shown


def test_latents_beyond_the_memory_stay_on_disk_and_give_the_same_model(told, project, tmp_path, monkeypatch):
    told("fit", project / "latents", "--out", tmp_path / "memory", *FEW)
    monkeypatch.setattr(workflow, "IN_MEMORY", 1000)
    assert isinstance(workflow.open_latents(project / "latents").parts["train"].x, StoredRows)
    told("fit", project / "latents", "--out", tmp_path / "disk", *FEW)
    weights, history = "model.safetensors", "history.json"
    assert (tmp_path / "memory" / weights).read_bytes() == (tmp_path / "disk" / weights).read_bytes()
    assert json.loads((tmp_path / "memory" / history).read_text()) == json.loads((tmp_path / "disk" / history).read_text())
    found = told("evaluate", tmp_path / "disk", project / "latents")
    assert found["recall"] and np.isfinite(found["modality_gap"])
