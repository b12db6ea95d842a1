"""Pretraining: a backbone learns attributes of faces, and keeps its own head."""

import pytest
import torch
from torch import Tensor, nn

from face_attributes.networks.build import head_name
from face_attributes.networks.device import Hardware
from face_attributes.training.pretraining import pretrain
from tests.small import CPU, graded_photos, tiny_network


def bright_or_dark() -> tuple[Tensor, Tensor]:
    """Noisy crops, and two attributes: bright, and dark."""
    photos = graded_photos()
    bright = photos.labels == 2
    return photos.pixels.repeat(8, 1, 1, 1), torch.stack([bright, ~bright], 1).float().repeat(8, 1)


def run(seed: int, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, float]:
    network, hardware = tiny_network(), Hardware(CPU.device, dtype)
    return network, pretrain(network, *bright_or_dark(), seed, hardware)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_backbone_learns_the_attributes_and_the_head_stays(dtype: torch.dtype) -> None:
    before = {name: tensor.clone() for name, tensor in tiny_network().state_dict().items()}
    network, accuracy = run(0, dtype)
    assert accuracy > 0.6
    after = network.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    head = head_name(network)
    assert changed == {name for name in after if not name.startswith(f"{head}.")}


def test_the_seed_alone_decides_the_weights() -> None:
    torch.manual_seed(5)
    first = run(1)[0].state_dict()
    torch.manual_seed(6)
    random = torch.get_rng_state()
    second = run(1)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), random)
    other = run(2)[0].state_dict()
    assert not torch.equal(first["0.weight"], other["0.weight"])
