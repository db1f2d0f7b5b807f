"""What is said before a run, against what `costs` counts and what machines have."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fusemix_lite import FuseMixLiteError, SoundingScenes, budget, costs, experiments, profile
from fusemix_lite.arms import plan
from fusemix_lite.budget import Machine, before_run, encoder_facts, largest_batch, sheet_machine
from fusemix_lite.encoders import load_encoder
from fusemix_lite.extraction import cached_latents
from fusemix_lite.losses import TILE
from tests import tiny_encoders

SMOKE = profile("smoke", device="cpu")
ARM = {"scheme": "fusemix", "items": 100}
ROOMY = Machine("toy", 1e9, 2e9, None, 1e15, 1e15)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FUSEMIX_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSEMIX_LITE_DATA", raising=False)


def test_extraction_and_fusion_are_what_costs_counts():
    extraction, fusion = before_run(SMOKE, [ARM], seeds=3, tuned=False, machine=ROOMY).needs
    image, text = (encoder_facts(name) for name in ("lite-image-a", "lite-text-a"))
    items = {"train": 200, "val": 50, "test": 50}
    flops = sum(n * image.flops + 5 * n * text.flops for n in items.values())
    assert extraction.seconds == pytest.approx(flops / ROOMY.fp32)  # scenes are not extracted in half precision
    assert extraction.disk == sum(2 * n * (image.dim + 5 * text.dim) for n in items.values())
    assert "300 pictures, 1,500 captions" in extraction.what
    dims, shape = {"image": image.dim, "text": text.dim}, {"batch_size": 64, "shared_dim": 32, "depth": 1}
    run = costs.fusion_cost(500, dims, steps=5, items=100, **shape)
    assert fusion.seconds == pytest.approx(3 * run.total_flops / ROOMY.fp32)
    assert fusion.ram == run.total_bytes + (1 + 2) * run.bytes["latents"]  # the arm's half, and all of which it is the half
    assert fusion.device == 0
    assert fusion.what == "3 runs"


def test_latents_that_are_there_are_not_counted_again():
    for split, n in {"train": 200, "val": 50, "test": 50}.items():
        cached_latents(SoundingScenes("image-text", split, n), "lite-text-a", progress=False)
    extraction = before_run(SMOKE, [ARM], machine=ROOMY).needs[0]
    assert extraction.what.startswith("300 pictures to encode")


def test_latents_of_another_precision_do_not_count_as_there(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "open_public", lambda name, split: SimpleNamespace(id="toy-1"))
    manifest = tmp_path / "cache" / "toy-1--BAAI_bge-small-en-v1.5--0123" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    source = experiments.Source("toy", "lite-image-a", "BAAI/bge-small-en-v1.5", 0, "natural")
    for made, precision, there in (({}, "fp32", True), ({}, "fp16", False), ({"precision": "fp16"}, "fp16", True)):
        manifest.write_text(json.dumps(made))
        found = budget._in_cache("train", source, "BAAI/bge-small-en-v1.5", "y", profile("colab", precision=precision))
        assert found is there, (made, precision)


def test_a_grid_of_more_than_one_point_is_run_too():
    p = profile("smoke", dropouts=(0.2, 0.4), lengths=(5, 10), tuning_seeds=2)
    lengths = budget._lengths(p, ARM, 3, True)
    assert lengths == [(5, 4), (10, 4), (10, 3)]
    assert budget._lengths(p, ARM | {"steps": 7, "dropout": 0.2}, 3, True) == [(7, 3)]


@pytest.mark.parametrize(
    ("machine", "told"),
    [
        (Machine("gpu", 1e9, 1e9, 1e6, 1e15, 1e15), "on the device.*smaller batch_size than 64"),
        (Machine("cpu", 1e9, 1e9, None, 1e6, 1e15), "in RAM.*in_memory=False.*fewer items"),
        (Machine("disk", 1e9, 1e9, None, 1e15, 1e5), "on disk.*FUSEMIX_LITE_CACHE"),
    ],
)
def test_what_would_not_fit_is_said_with_its_remedy(machine, told):
    forecast = before_run(SMOKE, [ARM], machine=machine)
    assert not forecast.fits
    assert any(re.search(told, warning) for warning in forecast.warnings), forecast.warnings
    assert "WOULD NOT FIT" in str(forecast) and "It fits." not in str(forecast)
    assert before_run(SMOKE, [ARM], machine=ROOMY).fits


def test_what_fits_but_takes_for_ever_is_said():
    p, arms = plan("retrieval", profile("colab"))
    slow = Machine("laptop", 1e10, 1e10, None, 1e15, 1e15)
    forecast = before_run(p, arms, machine=slow)
    last = str(forecast).splitlines()[-1]
    assert forecast.fits and f"but takes {budget.duration(forecast.seconds)} here" in last and "T4" in last and "days" in last
    assert str(before_run(p, arms, machine=sheet_machine("T4", ram=12e9))).endswith("  It fits.")  # what it was made for
    p, arms = plan("retrieval", profile("lite"))  # made for any computer
    assert str(before_run(p, arms, machine=slow)).endswith("  It fits.")
    short = before_run(replace(profile("smoke"), made_for="T4"), [ARM], machine=slow)
    assert short.seconds < budget.LONG and str(short).endswith("  It fits.")


@pytest.mark.parametrize(("name", "known"), [("Tesla T4", True), ("NVIDIA T400 4GB", False), ("NVIDIA A100-SXM4-80GB", True)])
def test_a_gpu_is_known_by_its_whole_name(monkeypatch, name, known):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4e9, 4e9))
    for what in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(torch.cuda, what, lambda device: 0)
    monkeypatch.setattr(budget, "_measured", lambda device: 1.0)
    assert (budget.this_machine().fp32 > 1) is known


def test_half_precision_is_faster_where_it_is_used():
    machine = sheet_machine("T4", ram=12e9)
    arms = plan("retrieval", profile("colab"))[1]
    half, single = (before_run(profile("colab", precision=how), arms, machine=machine).needs[0] for how in ("fp16", "fp32"))
    assert single.seconds / half.seconds == pytest.approx(machine.fp16 / machine.fp32) and single.disk == half.disk


def test_latents_on_disk_are_held_nowhere():
    p, arms = plan("retrieval", profile("paper"))
    machine = sheet_machine("H100", 128e9, 128e9)
    on_disk, in_memory = (before_run(replace(p, in_memory=how), arms[:1], machine=machine).needs[-1] for how in (False, True))
    latents = 4 * (4_080_000 * 1536 + 5_200_000 * 1024)
    assert in_memory.device - on_disk.device == latents and in_memory.ram == 2 * latents > 100 * on_disk.ram
    assert in_memory.seconds == on_disk.seconds


def test_a_process_keeps_the_pairs_of_a_few_sources():
    arms = [ARM | {"image": f"lite-image-b{layer}"} for layer in ("", "@0", "@1", "@2", "@3")]
    one, two, four, five = (before_run(SMOKE, arms[:n], machine=ROOMY).needs[-1].ram for n in (1, 2, 4, 5))
    assert 0 < two - one == (four - one) / 3 and five == four


def test_colab_fits_what_it_is_made_for():
    machine = sheet_machine("T4", ram=12e9, disk=60e9)
    for name in ("fusemix", "retrieval", "audio", "quantity", "ablations", "plug", "swap"):
        forecast = before_run(*plan(name, profile("colab")), machine=machine)
        assert forecast.fits and not forecast.left_out, (name, str(forecast))


def test_the_paper_fits_a_large_gpu_and_not_a_small_one():
    p, arms = plan("retrieval", profile("paper"))
    dims = {"image": 1536, "text": 1024}
    assert largest_batch(p, 5_200_000, dims, budget.HEADROOM * costs.DEVICES["H100"].memory, latents=False) == 20_480
    assert largest_batch(p, 5_200_000, dims, budget.HEADROOM * costs.DEVICES["T4"].memory, latents=False) == 10_240
    assert largest_batch(p, 5_200_000, dims, 1e6) is None
    small, big = budget.projection(profile("paper"), {"Table 1": "retrieval"}, ("T4", "H100"))
    one = costs.fusion_cost(5_200_000, dims, steps=63_000)
    assert big["one run"] == budget.duration(one.total_flops / (0.6 * 67e12))
    assert small["besides, on the device"] == f"{(one.total_bytes - one.bytes['latents']) / 1e9:.1f} GB"
    assert (small["of them fit"], big["of them fit"]) == ("10,240", "20,480")


@pytest.mark.parametrize("kind", ("cpu", "other"))
def test_large_similarities_are_worked_off_in_tiles_as_the_loss_does(monkeypatch, kind):
    dims, p = {"image": 768, "text": 384}, profile("lite", batch_size=1_000)
    one, tiled = [], []
    for limit, found in ((4 * 1_000**2, one), (4 * 1_000**2 - 1, tiled)):
        monkeypatch.setattr(budget, "DENSE_BYTES", {kind: limit})
        found.append(budget._one_run(p, 40_000, dims, steps=7, kind=kind))
    (one,), (tiled,) = one, tiled
    assert one == costs.fusion_cost(40_000, dims, steps=7, batch_size=1_000, shared_dim=128, depth=1)
    assert tiled.total_flops - one.total_flops == pytest.approx(one.flops["similarity"] / 3)
    assert tiled.bytes["similarity"] == 8 * min(TILE[kind], 1_000) ** 2
    assert tiled.bytes["activations"] == one.bytes["activations"]


@pytest.mark.parametrize(
    ("seconds", "told", "order"),
    [
        (15, "15 s", "20 s"),
        (140, "2.3 min", "2 min"),
        (6.6 * 3600, "6.6 h", "7 h"),
        (40 * 3600, "40 h", "40 h"),
        (186.9 * 86400, "187 days", "200 days"),
    ],
)
def test_time_is_told_as_roughly_as_it_is_known(seconds, told, order):
    assert (budget.duration(seconds), budget.order_of(seconds)) == (told, order)


@pytest.mark.parametrize("name", budget.PUBLIC)
def test_public_encoders_have_the_dimensions_of_the_registry(name):
    from fusemix_lite.encoders import ENCODERS

    assert name not in ENCODERS or ENCODERS[name].dim == budget.PUBLIC[name].dim


def test_every_encoder_of_a_profile_can_be_reckoned_with():
    for name in ("lite", "colab", "paper"):
        p = profile(name)
        assert all(map(encoder_facts, (*p.image_encoders, *p.text_encoders, *p.audio_encoders)))


def test_a_local_folder_is_counted_and_what_would_have_to_be_fetched_is_said(tmp_path):
    folder = str(tiny_encoders.save(tmp_path / "dino", "dinov2"))
    facts, encoder = encoder_facts(folder), load_encoder(folder, "cpu")
    assert facts.dim == encoder.dim == 16
    assert facts.flops == costs.encoder_flops(encoder, [budget._example("image")])
    p = profile("smoke", device="cpu", image_encoders=("somebody/unheard-of", folder))
    forecast = before_run(p, [ARM], machine=ROOMY)
    assert any("somebody/unheard-of" in line for line in forecast.left_out)
    assert [need.stage for need in forecast.needs] == ["extraction"]  # the captions', at least


def test_this_machine_is_looked_at(monkeypatch):
    machine = budget.this_machine("cpu")
    assert machine.device is None and machine.ram > 1e8 and machine.disk > 0 and machine.fp32 > 1e7
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (12e9, 16e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 4e9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1e9)
    machine = budget.this_machine()
    assert (machine.name, machine.device) == ("Tesla T4", 15e9)
    assert machine.fp32 == budget.REACHED["fp32"] * costs.DEVICES["T4"].fp32


def test_a_container_limit_counts(monkeypatch):
    group = "/sys/fs/cgroup/memory"
    files = {"/proc/meminfo": "MemAvailable:  8000000 kB\n", f"{group}.max": "5000000000", f"{group}.current": "1e9"}
    monkeypatch.setattr(budget, "Path", lambda path: SimpleNamespace(read_text=lambda encoding: files[path]))
    assert budget._free_ram() == 4e9
    files[f"{group}.max"] = "max"
    assert budget._free_ram() == 8e6 * 1024


def test_devices_without_a_sheet_are_named():
    with pytest.raises(FuseMixLiteError, match="no data sheet of 'K80'; there are T4"):
        sheet_machine("K80")


def test_an_experiment_says_what_it_takes_before_it_runs(capsys, monkeypatch):
    ran = []
    monkeypatch.setattr(experiments, "sweep", lambda *args: ran.append(capsys.readouterr().out) or {"cells": []})
    experiments.obtain("fusemix", SMOKE, live="full")
    assert "Before the run" in ran[0] and "fusion:" in ran[0]


def test_the_estimate_alone_runs_nothing(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments", "retrieval", "--profile", "colab", "--estimate", "--set", "batch_size=512"])
    monkeypatch.setattr(experiments, "sweep", lambda *args: pytest.fail("it ran"))
    experiments.main()
    assert "retrieval, profile colab" in (told := capsys.readouterr().out) and "310,140 captions" in told


@pytest.mark.parametrize(("option", "value"), [("--set", "batch_size=512"), ("--seeds", "2")])
def test_records_of_the_book_are_those_of_the_profiles(option, value, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["experiments", "retrieval", option, value])
    with pytest.raises(SystemExit):
        experiments.main()
    assert f"{option} needs --out" in capsys.readouterr().err
