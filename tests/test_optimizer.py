"""The optimizer: torch's own steps, learning rates per part, memory that is taken at the start."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from face_attributes.training.optimizer import (
    allocate_moments,
    learning_rate_factor,
    make_optimizer,
    set_learning_rates,
)
from tests.small import seeded, tiny_network, train_params


@pytest.mark.parametrize(
    ("name", "torch_optimizer"),
    [
        ("adamw", partial(torch.optim.AdamW, weight_decay=0.01)),
        ("sgd", partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.01)),
    ],
)
def test_steps_over_channels_last_weights_equal_torchs(
    name: str, torch_optimizer: Callable[..., torch.optim.Optimizer]
) -> None:
    """With kernels of several shapes, and a part that is frozen at first."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, (3, 1), groups=8), nn.Conv2d(8, 16, 1), nn.Flatten(1),
        nn.Linear(16 * 4 * 6, 2),
    )  # fmt: skip
    network = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    params = train_params(**{"optimizer.name": name, "head_lr": 0.1, "backbone_lr": 0.1})
    optimizer, expected = make_optimizer(network, params), torch_optimizer(plain.parameters(), 0.1)
    for step in range(4):
        images = torch.randn(4, 3, 8, 8, generator=seeded(step))
        for model, stepper in ((plain, expected), (network, optimizer)):
            model[0].requires_grad_(step > 1)
            model(images).square().mean().backward()
            stepper.step()
            stepper.zero_grad()
        for key, tensor in plain.state_dict().items():
            torch.testing.assert_close(network.state_dict()[key], tensor, atol=1e-5, rtol=1e-4)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "optimizer", "facts"),
    [
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.3}),
        ("sgd", torch.optim.SGD, {"weight_decay": 0.3, "momentum": 0.9, "nesterov": True}),
    ],
)
def test_optimizer_has_rates_per_part(
    name: str, optimizer: type[torch.optim.Optimizer], facts: dict[str, object]
) -> None:
    params = train_params(
        head_lr=0.1, backbone_lr=0.01,
        **{"optimizer.name": name, "optimizer.weight_decay": 0.3, "optimizer.lr_decay": 0.5},
    )  # fmt: skip
    made = make_optimizer(tiny_network(), params)
    assert isinstance(made, optimizer)
    assert [group["lr"] for group in made.param_groups] == [0.01, 0.1]
    for group in made.param_groups:
        assert {key: group[key] for key in facts} == facts


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_moments_take_their_memory_before_the_first_batch(name: str) -> None:
    """On a GPU, for which "meta" stands; and they change no step."""
    params = train_params(**{"optimizer.name": name})
    on_gpu = tiny_network().to("meta")
    assert set(make_optimizer(on_gpu, params).state) == set(on_gpu.parameters())
    networks = [tiny_network(), tiny_network()]
    for network, allocate in zip(networks, (allocate_moments, lambda *_: None), strict=True):
        groups: list[dict[str, Any]] = [{"params": network.parameters()}]
        optimizer = type(make_optimizer(network, params))(groups, lr=0.1, fused=True)
        allocate(optimizer, network.parameters())
        for step in range(3):
            network(torch.randn(4, 3, 16, 16, generator=seeded(step))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for key, tensor in networks[0].state_dict().items():
        torch.testing.assert_close(networks[1].state_dict()[key], tensor)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_first_step_that_overflows_leaves_no_trace(name: str) -> None:
    """torch's fused SGD alone would go on with a momentum of whatever was in memory."""
    params = train_params(**{"optimizer.name": name, "head_lr": 0.1, "backbone_lr": 0.1})
    networks = [tiny_network(), tiny_network()]
    for network, overflows in zip(networks, (True, False), strict=True):
        optimizer, scaler = make_optimizer(network, params), torch.amp.GradScaler("cpu")
        for factor in [torch.inf] * overflows + [1.0, 1.0]:
            images = torch.randn(4, 3, 16, 16, generator=seeded())
            network.eval()  # BatchNorm's statistics are not the optimizer's
            scaler.scale(network(images).square().mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    for key, tensor in networks[0].state_dict().items():
        torch.testing.assert_close(networks[1].state_dict()[key], tensor)


def test_learning_rates_are_peaks_times_a_factor_and_stay_where_they_are() -> None:
    """A recorded step reads them there."""
    params = train_params(head_lr=0.1, backbone_lr=0.01)
    optimizer = make_optimizer(tiny_network(), params)
    places = [group["lr"].data_ptr() for group in optimizer.param_groups]
    for factor in (0.5, 1.0, 0.2):
        set_learning_rates(optimizer, torch.tensor(factor, dtype=torch.float64))
        rates = [group["lr"].item() for group in optimizer.param_groups]
        assert rates == [0.01 * factor, 0.1 * factor]
    assert [group["lr"].data_ptr() for group in optimizer.param_groups] == places


def test_learning_rate_rises_and_falls() -> None:
    rates = [learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert rates.index(max(rates)) == 10
    assert rates[10] == pytest.approx(1)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)
