"""Every estimate beside what it estimates: models, counted operations, saved tensors, stores, published figures."""

import numpy as np
import pytest
import torch

from fusemix_lite import FuseMixLiteError, FusionModel, LatentStore, costs, load_encoder, losses, symmetric_infonce
from fusemix_lite.costs import Cost, counted, fusion_cost
from fusemix_lite.torchvision_fix import import_torchvision_safely

import_torchvision_safely()

import transformers as t  # noqa: E402

PAPER = {"pairs": 5_200_000, "dims": {"image": 1536, "text": 1024}}  # DINOv2-g + BGE-large, as released
SHAPES = [(1, 4, {"x": 12, "y": 8}), (0, 4, {"x": 12, "y": 8}), (3, 2, {"x": 6, "y": 20})]


def one_step(depth, expansion, dims, B=10, D=7, dropout=0.5):
    """A model and a call that does what `fit` does in a step."""
    model = FusionModel(dims, D, depth, expansion, dropout).train()
    z = {name: torch.randn(B, dim) for name, dim in dims.items()}
    return model, lambda: symmetric_infonce(*(model.embed(name, z[name]) for name in dims), model.temperature).backward()


def check_fusion(depth, expansion, dims):
    model, step = one_step(depth, expansion, dims)
    cost = fusion_cost(100, dims, shared_dim=7, depth=depth, expansion=expansion, batch_size=10, steps=1)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.flops["adapters"] + cost.flops["similarity"] == counted(step)


@pytest.mark.parametrize(("depth", "expansion", "dims"), SHAPES)
def test_parameters_and_operations_are_exactly_those_of_the_model(depth, expansion, dims):
    check_fusion(depth, expansion, dims)


@pytest.mark.parametrize("tile", [3, 10, 16])
def test_tiles_are_counted_as_the_loss_takes_them(monkeypatch, tile):
    """Operations of a step in tiles, and the two of them that are there at once."""
    monkeypatch.setitem(losses.DENSE_BYTES, "cpu", 0)
    monkeypatch.setitem(losses.TILE, "cpu", tile)
    shape = {"shared_dim": 7, "depth": 1, "expansion": 4, "batch_size": 10, "steps": 1}
    cost = fusion_cost(100, SHAPES[0][2], **shape, tile=tile)
    _, step = one_step(*SHAPES[0])
    assert cost.flops["adapters"] + cost.flops["similarity"] == counted(step)
    one = fusion_cost(100, SHAPES[0][2], **shape)
    assert cost.bytes == one.bytes | {"similarity": 2 * 4.0 * min(tile, 10) ** 2}


TRUE = {name: getattr(costs, name) for name in ("adapter_flops", "adapter_parameters")}
BREAKS = {
    "the projection left out": ("adapter_flops", lambda d, D, *block: TRUE["adapter_flops"](d, 0, *block)),
    "multiplications alone": ("adapter_flops", lambda *shape: TRUE["adapter_flops"](*shape) / 2),
    "one matrix a block": ("adapter_flops", lambda d, D, depth, e: 2.0 * (depth * e * d * d + d * D)),
    "no bias": ("adapter_parameters", lambda d, D, *block: TRUE["adapter_parameters"](d, D, *block) - D),
    "one block too many": ("adapter_parameters", lambda d, D, depth, e: TRUE["adapter_parameters"](d, D, depth + 1, e)),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_miscount_is_seen(monkeypatch, what):
    monkeypatch.setattr(costs, *BREAKS[what])
    with pytest.raises(AssertionError):
        check_fusion(*SHAPES[0])


@pytest.mark.parametrize(("depth", "expansion", "dims"), SHAPES)
def test_activations_are_those_that_autograd_keeps(depth, expansion, dims):
    B, kept = 64, {}
    model, step = one_step(depth, expansion, dims, B=B)
    weights = {p.data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is given away twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    cost = fusion_cost(100, dims, shared_dim=7, depth=depth, expansion=expansion, batch_size=B, steps=1)
    measured = sum(size for size, _ in kept.values())
    latents = 4 * B * sum(dims.values())  # kept too, and counted where they lie
    estimate = cost.bytes["activations"] + cost.bytes["similarity"] / 2  # the gradient of the logits comes later
    # Left out of the estimate: vectors of B numbers (norms, means), and that masks are bytes.
    assert estimate == pytest.approx(measured - latents, rel=0.25)


def test_the_released_configuration_takes_what_is_said_of_it():
    cost = fusion_cost(**PAPER, epochs=500, logit_matrices=2, rate=10e12)
    steps = costs.steps_of(PAPER["pairs"], 20_480, 500)
    assert steps == 63_000
    assert cost.parameters / 1e6 == pytest.approx(110.44, abs=0.005)
    assert cost.flops["adapters"] / steps / 1e12 == pytest.approx(13.6, abs=0.05)
    assert cost.flops["similarity"] / steps / 1e12 == pytest.approx(2.6, abs=0.05)
    assert cost.flops["adapters"] / 1e18 == pytest.approx(0.86, abs=0.01)
    assert cost.bytes["latents"] / 1e9 == pytest.approx(53, abs=0.5)
    assert cost.bytes["similarity"] / 4 == pytest.approx(1.6e9, rel=0.06)  # one of: two matrices, their gradients
    assert cost.gpu_days == pytest.approx(1.2, abs=0.05)
    assert cost.flops["optimiser"] < 1e-3 * cost.flops["adapters"]


def test_the_headline_is_arithmetic():
    assert 256 * 12 == 3072
    assert round(3072 / 600, 1) == 5.1
    assert 400e6 / 5e6 == 80


@pytest.mark.parametrize(
    ("more", "key", "factor"),
    [
        ({"steps": 6}, "adapters", 2),
        ({"batch_size": 20}, "adapters", 2),
        ({"batch_size": 20}, "similarity", 4),
        ({"logit_matrices": 2}, "similarity", 2),
    ],
)
def test_operations_grow_as_they_should(more, key, factor):
    plain = {"pairs": 100, "dims": {"x": 12, "y": 8}, "batch_size": 10, "steps": 3}
    assert fusion_cost(**plain | more).flops[key] == factor * fusion_cost(**plain).flops[key]


def test_latents_take_what_a_store_takes(tmp_path):
    store = LatentStore.write(tmp_path / "s", np.ones((30, 12), np.float16), [str(i) for i in range(30)])
    cost = costs.extraction_cost(30, 1.0, 12)
    assert cost.total_bytes == store.array.nbytes
    on_disk = sum(file.stat().st_size for file in (tmp_path / "s").glob("*.safetensors"))
    assert cost.total_bytes < on_disk < cost.total_bytes + 2_000  # a header with the items' names
    fused = fusion_cost(30, {"x": 12, "y": 12}, batch_size=4, steps=1, items=10, precision="fp16")
    assert fused.bytes["latents"] == 2 * (10 + 30) * 12


def meta(model_class, config):
    """A model of any size that takes no memory: shapes without numbers."""
    with torch.device("meta"):
        return model_class(config).eval()


def test_a_vision_transformer_of_a_billion_weights():
    config = t.Dinov2Config(
        hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, image_size=224, patch_size=14, use_swiglu_ffn=True
    )
    model, image = meta(t.Dinov2Model, config), torch.empty(1, 3, 224, 224, device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(1.14, abs=0.01)
    assert costs.vit_flops(224, 14, 1536, 40, 4096, gated=True) == counted(lambda: model(image))


def test_a_bert():
    config = t.BertConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=200)
    model = t.BertModel(config, add_pooling_layer=False).eval()
    assert costs.transformer_flops(11, 64, 3, 200) == counted(lambda: model(torch.ones(1, 11, dtype=torch.long)))


def test_a_lite_encoder_is_counted_on_real_items():
    from PIL import Image

    vit = costs.encoder_flops(load_encoder("lite-image-b", "cpu"), [Image.new("RGB", (64, 64))])
    assert vit == costs.vit_flops(64, 8, 128, 3)  # fused attention is seen
    words = load_encoder("lite-text-b", "cpu")
    one, three = costs.encoder_flops(words, ["a bell"]), costs.encoder_flops(words, ["a bell", "a bell", "a bell"])
    assert one == three > 0  # a mean, not a sum
    bag = costs.encoder_flops(load_encoder("lite-text-a", "cpu"), ["a bell"])
    assert bag == 2 * 128 * 128  # a bag of words multiplies nothing, but for the pooler that its class brings and nobody asks


@pytest.mark.parametrize(("name", "few"), [("lite-image-b", 6), ("lite-audio-b", 6), ("lite-audio-a", 6)])
def test_pretraining_scales_to_another_batch(name, few):
    """What eight items say about a batch of six, the recipe really spends on six."""
    from fusemix_lite import pretrain

    cost, recipe = costs.pretraining_cost(name), pretrain.RECIPES[name]
    _, step = costs._pretraining_step(name, {**recipe, "items": few, "batch": few, "steps": 1})
    network = cost.flops["network"] / recipe["steps"] / recipe["batch"] * few
    similarity = cost.flops["similarity"] / recipe["steps"] / recipe["batch"] ** 2 * few**2
    assert network + similarity == pytest.approx(counted(step), rel=1e-9)


def test_pretraining_of_words_counts_the_weights_that_are_kept():
    cost = costs.pretraining_cost("lite-text-a")
    kept = load_encoder("lite-text-a", "cpu").model
    assert cost.parameters == sum(p.numel() for name, p in kept.named_parameters() if "pooler" not in name)
    assert cost.flops["network"] > 0 == cost.flops["similarity"]


def test_stages_are_counted_where_they_are_asked_for():
    ledger = [
        Cost("fusion", flops={"a": 1.0, "b": 2.0}),
        Cost("extraction", flops={"a": 10.0}),
        Cost("pretraining", flops={"a": 100.0}),
    ]
    assert costs.total_flops(ledger) == 113
    assert costs.total_flops(ledger, ("fusion",)) == 3
    assert costs.total_flops(ledger, ("fusion", "pretraining")) == 103
    for wrong in ((), ("fusion", "training"), "fusion"):
        with pytest.raises(FuseMixLiteError, match="one or more of fusion, extraction, pretraining"):
            costs.total_flops(ledger, wrong)


def test_time_is_operations_over_a_rate():
    cost = Cost("fusion", flops={"a": 2.0, "b": 4.0})
    assert cost.seconds is None and cost.gpu_days is None
    assert cost.at(3.0).seconds == 2.0 and cost.at(3.0).gpu_days == 2.0 / 86_400
    with pytest.raises(FuseMixLiteError, match="above 0"):
        cost.at(0)


def test_this_machine_has_a_rate():
    assert 1e7 < costs.measured_rate(seconds=0, size=64) < 1e15


def test_devices_are_faster_in_half_precision():
    assert all(0 < device.fp32 < device.fp16 and device.source for device in costs.DEVICES.values())


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: fusion_cost(100, {"x": 4, "y": 4}), "give one of the two"),
        (lambda: fusion_cost(100, {"x": 4, "y": 4}, steps=1, epochs=1), "give one of the two"),
        (lambda: fusion_cost(100, {"x": 4, "y": 4}, steps=1, precision="fp8"), "choose one of fp32, bf16, fp16"),
        (lambda: fusion_cost(0, {"x": 4, "y": 4}, steps=1), "pairs = 0"),
        (lambda: fusion_cost(100, {"x": 4, "y": 4}, steps=1, tile=0), "tile = 0"),
        (lambda: costs.extraction_cost(0, 1.0, 4), "items = 0"),
        (lambda: costs.pretraining_cost("dinov2"), "no recipe for 'dinov2'"),
        (lambda: costs.encoder_flops(None, []), "no items"),
    ],
)
def test_what_cannot_be_counted_is_named(call, told):
    with pytest.raises(FuseMixLiteError, match=told):
        call()
