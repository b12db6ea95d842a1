"""Networks of timm: built, frozen, split, trained for a step, exported; weights from the hub."""

import sys

import pytest
import torch
from torch import nn

from face_attributes.errors import UserError
from face_attributes.inference.ensemble import Ensemble
from face_attributes.inference.portable import load_torch, to_torch, trace
from face_attributes.networks import timm_networks
from face_attributes.networks.build import build, head_name
from face_attributes.networks.freezing import (
    freeze,
    parameter_groups,
    parts,
    set_train_modes,
    split,
)
from face_attributes.networks.matching import fit_state
from face_attributes.networks.views import normalise
from tests.small import small_recipe

SIDE = 32
MODELS = {
    "timm/resnet18": ("layer2", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
    "timm/efficientnet_b0": ("blocks.2", ["conv_stem", *(f"blocks.{i}" for i in range(7))]),
    "timm/convnext_nano": ("stages.0", ["stem", *(f"stages.{index}" for index in range(4))]),
    "timm/vit_small_patch16_224": (
        "blocks.5",
        ["patch_embed", *(f"blocks.{index}" for index in range(12))],
    ),
    "timm/mobilenetv3_large_100": (
        "blocks.3",
        ["conv_stem", *(f"blocks.{index}" for index in range(7)), "conv_head"],
    ),
}
"""A part to freeze up to, and all parts."""


@pytest.mark.parametrize("model", MODELS)
def test_network_is_frozen_split_and_trained(model: str) -> None:
    network, images = build(model, SIDE, "split"), torch.randn(2, 3, SIDE, SIDE)
    point, all_parts = MODELS[model]
    names_by_part, head = parts(network), f"{head_name(network)}."
    assert list(names_by_part) == all_parts
    in_parts = sorted(name for names in names_by_part.values() for name in names)
    every = sorted(name for name, _ in network.named_parameters() if not name.startswith(head))
    assert in_parts == every
    for each in (point, all_parts[-1]):
        freeze(network, each)
        halves = split(network.eval())
        assert halves is not None
        prefix, rest = halves
        with torch.no_grad():
            torch.testing.assert_close(rest(prefix(images)), network(images), atol=1e-5, rtol=0)
        assert not any(p.requires_grad for p in prefix.parameters())

    freeze(network, point)
    set_train_modes(network)
    frozen = {n for part in all_parts[: all_parts.index(point) + 1] for n in names_by_part[part]}
    nn.init.normal_(network.get_submodule(head[:-1]).get_parameter("weight"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(images).logsumexp(dim=1).sum().backward()
    torch.optim.SGD(parameter_groups(network, 0.1, 0.1, 1.0)).step()
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not changed & frozen
    assert changed & set(names_by_part[all_parts[-1]])
    assert f"{head}weight" in changed


def test_mean_and_std_of_the_data_config_are_applied_to_every_image() -> None:
    """timm's vit_small_patch16_224 was trained with a mean and a std of 0.5."""
    network = build("timm/vit_small_patch16_224", SIDE)
    assert isinstance(network, timm_networks.TimmNetwork)
    pixels = torch.randint(0, 256, (2, SIDE, SIDE, 3), dtype=torch.uint8)
    expected = (pixels / 255 - 0.5) / 0.5
    converted = normalise(pixels) * network.scale + network.offset
    torch.testing.assert_close(converted, expected.permute(0, 3, 1, 2), atol=1e-6, rtol=0)
    torch.testing.assert_close(network.eval()(normalise(pixels)), network.backbone(converted))
    assert {"scale", "offset"} <= network.state_dict().keys(), "they travel with the weights"


def test_position_embedding_is_interpolated() -> None:
    larger = build("timm/vit_small_patch16_224", 64)
    assert isinstance(larger, timm_networks.TimmNetwork)
    network = build("timm/vit_small_patch16_224", SIDE)
    fitted = fit_state(network, larger.backbone.state_dict(), "file")
    assert fitted["backbone.pos_embed"].shape == (1, 2 * 2 + 1, 384)
    assert torch.equal(
        fitted["backbone.blocks.3.attn.qkv.weight"],
        larger.state_dict()["backbone.blocks.3.attn.qkv.weight"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_exported_program_gives_the_same_probabilities(model: str) -> None:
    recipe = small_recipe(None).model_copy(update={"model": model})
    ensemble = Ensemble([build(model, SIDE, recipe.heads)], [recipe]).eval()
    crops = torch.randint(0, 256, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = ensemble(crops).numpy()
    predict = load_torch(to_torch(trace(ensemble, SIDE), {}))
    assert predict(crops.numpy()) == pytest.approx(expected, abs=1e-5)


def test_missing_timm_is_one_line_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # `import timm` then fails
    with pytest.raises(UserError) as caught:
        build("timm/resnet18", SIDE)
    assert str(caught.value) == (
        "weights.model: timm/resnet18 needs timm: run `pip install -r requirements-timm.txt`"
    )
