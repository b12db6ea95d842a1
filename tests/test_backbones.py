"""Every classification network of torchvision: built, frozen, split, trained; each kind exported.

On the meta device, which computes shapes without numbers; `test_freezing` compares numbers.
"""

import pytest
import torch
import torchvision

from face_attributes.inference.ensemble import Ensemble
from face_attributes.inference.portable import trace
from face_attributes.networks.build import build, check_side
from face_attributes.networks.freezing import (
    freeze,
    parameter_groups,
    parts,
    set_train_modes,
    split,
)
from face_attributes.photos.labels import NUM_CLASSES
from tests.small import small_recipe

pytestmark = pytest.mark.slow

SIDES = {"inception_v3": 80, "maxvit_t": 224, "vit_h_14": 56}
"""Sides of networks that do not take 64 pixels."""

KINDS = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3",
    "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18",
    "shufflenet_v2_x0_5", "squeezenet1_1", "swin_v2_t", "vgg11", "vit_b_32",
]  # fmt: skip
"""One network of each module of torchvision.models, but for maxvit, which takes half a minute."""


@pytest.mark.parametrize("model", torchvision.models.list_models(module=torchvision.models))
def test_network_is_frozen_split_and_trained(model: str) -> None:
    side = SIDES.get(model, 64)
    with torch.device("meta"):
        network = build(model, side, "split").to("meta")
        images = torch.empty(2, 3, side, side)
    every_part = list(parts(network))
    assert len(every_part) >= 5
    for point in (every_part[0], every_part[len(every_part) // 2], every_part[-1]):
        freeze(network, point)
        halves = split(network)
        assert halves is not None
    prefix, rest = halves
    assert rest(prefix(images)).shape == (2, NUM_CLASSES)
    dropouts = [module for module in prefix.modules() if isinstance(module, torch.nn.Dropout)]
    assert not any(module.p for module in dropouts), "they belong to what varies"

    freeze(network, every_part[0])
    set_train_modes(network)
    network(images).sum().backward()
    torch.optim.SGD(parameter_groups(network, 0.1, 0.1, 1.0)).step()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in network.named_parameters() if p.requires_grad}


def test_each_kind_of_network_is_among_those_to_export() -> None:
    def modules(names: list[str]) -> set[str]:
        return {torchvision.models.get_model_builder(name).__module__ for name in names}

    every = modules(torchvision.models.list_models(module=torchvision.models))
    assert modules(KINDS) == every - {"torchvision.models.maxvit"}


@pytest.mark.parametrize("model", KINDS)
def test_network_is_exported_for_any_number_of_crops(model: str) -> None:
    side = SIDES.get(model, 64)
    with torch.device("meta"):
        ensemble = Ensemble([build(model, side, "split").to("meta")], [small_recipe(None)])
        program = trace(ensemble, side)
        assert program.module()(torch.empty(5, side, side, 3, dtype=torch.uint8)).shape == (5, 18)


def test_sides_that_a_network_takes_are_checked_before_training() -> None:
    check_side("maxvit_t", 224, "ages")
    check_side("inception_v3", 80, "ages")
