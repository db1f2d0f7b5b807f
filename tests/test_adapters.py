"""Adapter and model: an oracle by hand, the released size, and what is saved."""

import json
import math

import pytest
import torch
from torch import nn

from fusemix_lite import FuseMixLiteError, FusionAdapter, FusionModel, adapters

DIMS = {"image": 6, "text": 4}


def by_hand(p, z, depth):
    """The adapter from its formulas; `p` is its state dict, `z` (B, d)."""

    def norm(z, name):
        centred = z - z.mean(1, keepdim=True)
        variance = (centred**2).mean(1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * p[name + ".weight"] + p[name + ".bias"]

    def linear(z, name):
        return z @ p[name + ".weight"].T + p[name + ".bias"]

    for i in range(depth):
        hidden = linear(norm(z, f"blocks.{i}.norm"), f"blocks.{i}.widen")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # GELU
        z = z + linear(hidden, f"blocks.{i}.narrow")
    return linear(norm(z, "norm"), "project")


def randomised(module, seed=0):
    """Every parameter, LayerNorms and biases too, away from its neutral start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def check_adapter(build):
    """The oracle check; `test_breaks` feeds it broken adapters. `build` takes what `FusionAdapter` takes."""
    for depth in (0, 1, 3):
        adapter = randomised(build(6, shared_dim=5, depth=depth, expansion=4, dropout=0.6).double()).eval()
        parameters = dict(adapter.named_parameters())
        assert all(p.shape[0] == 24 for name, p in parameters.items() if "widen" in name)
        z = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        got, expected = adapter(z), by_hand(parameters, z, depth)
        assert torch.allclose(got, expected)
        weight = torch.linspace(-1, 1, got.numel(), dtype=torch.float64).view_as(got)
        gradients = [torch.autograd.grad((out * weight).sum(), [z, *parameters.values()]) for out in (got, expected)]
        assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))
    # Dropout follows GELU and nothing else: with everything dropped, only the bias of the narrowing layer is left.
    adapter = randomised(build(6, shared_dim=5, depth=1, expansion=4, dropout=1.0).double()).train()
    z = z.detach()
    only_bias = by_hand(dict(adapter.named_parameters()), z + adapter.blocks[0].narrow.bias, depth=0)
    assert torch.allclose(adapter(z), only_bias)


def toy_model(**options):
    return randomised(FusionModel(DIMS, **{"shared_dim": 5, "depth": 1, **options})).eval()


def toy_latents(name, rows=3):
    return torch.randn(rows, DIMS[name], generator=torch.Generator().manual_seed(2))


def test_adapter_by_hand():
    check_adapter(FusionAdapter)


def test_released_size():
    with torch.device("meta"):
        model = FusionModel({"image": 1536, "text": 1024})
    counts = {name: sum(p.numel() for p in tower.parameters()) for name, tower in model.towers.items()}
    assert {name: round(n / 1e6, 2) for name, n in counts.items()} == {"image": 76.33, "text": 34.11}
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 110.44


def test_embeddings_are_unit_adapters_are_not():
    model = toy_model()
    for name in DIMS:
        z = toy_latents(name)
        out = model.towers[name](z)
        assert not torch.allclose(out.norm(dim=1), torch.ones(3))
        assert torch.allclose(model.embed(name, z), out / out.norm(dim=1, keepdim=True))


def test_temperature():
    model = FusionModel(DIMS)
    assert model.temperature.ndim == 0 and model.temperature.dtype == torch.float32
    assert model.temperature.item() == pytest.approx(0.07)
    for value, expected in ((-1.0, 0.001), (0.2, 0.2), (3.0, 0.5)):
        model.temperature.data.fill_(value)
        model.clamp_temperature()
        assert model.temperature.item() == pytest.approx(expected)


def test_options_by_modality():
    model = FusionModel(DIMS, 4, depth={"image": 2, "text": "identity"}, dropout={"image": 0.2, "text": 0.0})
    assert len(model.towers["image"].blocks) == 2 and model.towers["image"].blocks[0].dropout.p == 0.2
    z = toy_latents("text")
    assert torch.equal(model.embed("text", z), nn.functional.normalize(z, dim=1))
    assert not list(model.towers["text"].parameters())
    with pytest.raises(FuseMixLiteError, match="shared_dim must be 4"):
        FusionModel(DIMS, 5, depth={"image": 1, "text": "identity"})
    with pytest.raises(FuseMixLiteError, match="image, text"):
        FusionModel(DIMS, 5, depth={"image": 1})
    for depth in (-1, 1.5, "frozen"):
        with pytest.raises(FuseMixLiteError, match="depth"):
            FusionModel(DIMS, 5, depth=depth)


def test_standardizer():
    model = toy_model(standardize=True)
    z = 3 + 2 * toy_latents("image", 50)
    z[:, 0] = 7.0  # never varies
    model.fit_standardizers({"image": z, "text": toy_latents("text", 50)})
    out = model.standardizers["image"](z)
    assert torch.allclose(out.mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(out.std(0, correction=0), torch.tensor([0.0, 1, 1, 1, 1, 1]), atol=1e-5)
    plain = nn.functional.normalize(model.towers["image"]((z - z.mean(0)) / model.standardizers["image"].std), dim=1)
    assert torch.allclose(model.embed("image", z), plain, atol=1e-5)


def test_embed_errors():
    model = toy_model()
    with pytest.raises(FuseMixLiteError, match="audio.*image, text"):
        model.embed("audio", toy_latents("text"))
    for z in (torch.ones(3, 5), torch.ones(4)):
        with pytest.raises(FuseMixLiteError, match=r"text.*\(B, 4\)"):
            model.embed("text", z)


@pytest.mark.parametrize("options", [{}, {"standardize": True, "depth": {"image": 0, "text": 2}, "dropout": 0.1}])
def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path, options, monkeypatch):
    monkeypatch.setattr(adapters, "snapshot_download", None)  # a local folder asks nobody
    model = toy_model(**options)
    model.fit_standardizers({name: toy_latents(name, 20) for name in DIMS})
    model.save_pretrained(tmp_path / "model")
    for source in (tmp_path / "model", str(tmp_path / "model")):
        loaded = FusionModel.from_pretrained(source)
        assert loaded.config == model.config and not loaded.training
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert all(
            torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True)
        )
        assert all(torch.equal(loaded.embed(n, toy_latents(n)), model.embed(n, toy_latents(n))) for n in DIMS)


def test_where_models_come_from(tmp_path, monkeypatch):
    toy_model().save_pretrained(tmp_path / "downloaded")
    asked = []
    monkeypatch.setattr(
        adapters, "snapshot_download", lambda source, **_: asked.append(source) or tmp_path / "downloaded"
    )
    for missing in (tmp_path / "none", "/no/such/folder", "./name/model", "model", "a/b/c"):
        with pytest.raises(FuseMixLiteError, match="no such folder"):
            FusionModel.from_pretrained(missing)
    assert not asked
    FusionModel.from_pretrained("name/model")
    assert asked == ["name/model"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_broken_folders(tmp_path, file):
    toy_model().save_pretrained(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-40])
    with pytest.raises(FuseMixLiteError, match=file):
        FusionModel.from_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FuseMixLiteError, match=f"{file} is missing"):
        FusionModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change", [{"shared_dim": 6}, {"depth": 2}, {"standardize": True}, {"width": 3}, {"in_dims": [6, 4]}]
)
def test_weights_must_fit_the_configuration(tmp_path, change):
    toy_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(FuseMixLiteError, match="config.json") as error:
        FusionModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
