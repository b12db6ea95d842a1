"""Freezing up to a part, and splitting behind it, for each kind of network."""

import pytest
import torch
from torch import nn

from face_attributes.errors import UserError
from face_attributes.networks.build import build, head_name
from face_attributes.networks.freezing import (
    count_parameters,
    freeze,
    parameter_groups,
    parts,
    set_train_modes,
    split,
    trained_names,
)
from face_attributes.photos.labels import NUM_CLASSES

SIDE = 32
MODELS = {
    "resnet18": ("layer2", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
    "mobilenet_v2": ("features.7", [f"features.{index}" for index in range(19)]),
    "mobilenet_v3_large": (
        "features.3",
        [*(f"features.{index}" for index in range(17)), "classifier.0"],
    ),
    "efficientnet_b0": ("features.4", [f"features.{index}" for index in range(9)]),
    "convnext_tiny": ("features.5", [f"features.{index}" for index in range(8)]),
    "vit_b_16": (
        "encoder.layers.encoder_layer_5",
        ["conv_proj", *(f"encoder.layers.encoder_layer_{index}" for index in range(12))],
    ),
}
"""A part to freeze up to, and all parts."""


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    """A model's name and network; its tests freeze it as they need."""
    return request.param, build(request.param, SIDE)


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return build("resnet18", SIDE)


def test_every_parameter_but_the_head_is_in_a_part(model: tuple[str, nn.Module]) -> None:
    name, network = model
    names_by_part, head = parts(network), f"{head_name(network)}."
    assert list(names_by_part) == MODELS[name][1]
    in_parts = sorted(name for names in names_by_part.values() for name in names)
    parameters = [name for name, _ in network.named_parameters()]
    assert in_parts == sorted(name for name in parameters if not name.startswith(head))


@pytest.mark.parametrize("all_but_head", [False, True])
def test_prefix_and_rest_equal_the_network(
    model: tuple[str, nn.Module], all_but_head: bool
) -> None:
    name, network = model
    images = torch.randn(2, 3, SIDE, SIDE)
    freeze(network, MODELS[name][1][-1] if all_but_head else MODELS[name][0])
    halves = split(network.eval())
    assert halves is not None
    prefix, rest = halves
    with torch.no_grad():
        features = prefix(images)
        torch.testing.assert_close(rest(features), network(images), atol=1e-5, rtol=0)
    assert not any(p.requires_grad for p in prefix.parameters())
    trainable = {id(p) for p in network.parameters() if p.requires_grad}
    assert trainable <= {id(p) for p in rest.parameters()}
    if all_but_head:
        assert features.ndim == 2, "pooled before it is cached"


def test_step_changes_the_head_and_no_frozen_part(model: tuple[str, nn.Module]) -> None:
    name, network = model
    point, all_parts = MODELS[name]
    freeze(network, point)
    set_train_modes(network)
    names_by_part = parts(network)
    frozen = {n for part in all_parts[: all_parts.index(point) + 1] for n in names_by_part[part]}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(network, 0.1, 0.1, 1.0))
    head = head_name(network)
    nn.init.normal_(network.get_submodule(head).weight)  # type: ignore[arg-type]
    logits = network(torch.randn(2, 3, SIDE, SIDE))
    assert logits.shape == (2, NUM_CLASSES)
    logits.logsumexp(dim=1).sum().backward()
    optimizer.step()
    network.zero_grad()
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not changed & frozen
    assert f"{head}.weight" in changed
    assert changed & set(names_by_part[all_parts[-1]])
    assert changed <= set(trained_names(network))


def test_freezing_counts_parameters(resnet18: nn.Module) -> None:
    head, rest = 512 * 18 + 18, 11_176_512
    for point, frozen in (("none", 0), ("layer4", rest), ("conv1", 64 * 3 * 7 * 7 + 2 * 64)):
        freeze(resnet18, point)
        assert count_parameters(resnet18) == {
            "trainable": head + rest - frozen,
            "frozen": frozen,
            "total": head + rest,
        }


def test_unknown_part_is_named_with_the_known_ones(resnet18: nn.Module) -> None:
    with pytest.raises(UserError) as caught:
        freeze(resnet18, "layer5")
    assert str(caught.value) == (
        "train.freeze: this network has no part 'layer5': write none or one of conv1, layer1, "
        "layer2, layer3, layer4"
    )


def test_frozen_batchnorm_keeps_its_statistics() -> None:
    network = build("resnet18", SIDE)
    freeze(network, "layer1")
    set_train_modes(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        network(torch.randn(4, 3, SIDE, SIDE))
    changed = {name for name, t in network.state_dict().items() if not torch.equal(before[name], t)}
    assert {"layer2.0.bn1.running_mean", "layer4.1.bn2.running_var"} <= changed
    assert not any(name.startswith(("bn1", "layer1")) for name in changed)


def test_learning_rates_fall_with_depth(resnet18: nn.Module) -> None:
    freeze(resnet18, "layer2")
    groups = parameter_groups(resnet18, head_lr=0.1, backbone_lr=0.01, lr_decay=0.5)
    assert [group["lr"] for group in groups] == [0.005, 0.01, 0.1]
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in resnet18.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    assert [tuple(p.shape) for p in groups[-1]["params"]] == [(18, 512), (18,)]
