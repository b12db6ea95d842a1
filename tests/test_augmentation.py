"""Augmentation: within its limits, and different for each photo."""

import pytest
import torch
from torch import Tensor

from face_attributes.training.augmentation import (
    augment,
    brighten,
    mix,
    rotate_and_zoom,
    shift_and_flip,
)
from tests.small import seeded, train_params

SIDE = 16


def numbered_columns(count: int = 4) -> Tensor:
    """Photos in which a pixel is ten times its column."""
    columns = torch.arange(SIDE, dtype=torch.uint8) * 10
    return columns[None, None, :, None].expand(count, SIDE, SIDE, 3).contiguous()


def test_flip_has_its_probability() -> None:
    pixels = numbered_columns()
    assert torch.equal(shift_and_flip(pixels, 0, 0, seeded()), pixels)
    assert torch.equal(shift_and_flip(pixels, 0, 1, seeded()), pixels.flip(2))


def test_shift_is_limited_and_repeats_the_edge() -> None:
    shifted = shift_and_flip(numbered_columns(200), 0.125, 0, seeded())[:, 0, :, 0].int()
    offsets = shifted[:, 8] // 10 - 8
    assert set(offsets.tolist()) == {-2, -1, 0, 1, 2}
    assert set(shifted[offsets == -2][:, :3].unique().tolist()) == {0}


def test_brightness_is_limited_and_differs_by_photo() -> None:
    pixels = brighten(torch.full((50, 2, 2, 3), 100, dtype=torch.uint8), 0.2, seeded())
    assert 80 <= pixels.min() < pixels.max() <= 120
    assert len(pixels[:, 0, 0, 0].unique()) == 50


def test_rotation_and_zoom_are_limited_and_differ_by_photo() -> None:
    """A slope of 1 from left to right becomes as steep as the zoom, and turns."""
    slope = torch.arange(16.0)[None, None, None, :].expand(300, 3, 16, 16)
    images = rotate_and_zoom(slope, 30.0, 0.25, seeded())[:, 0]
    right, down = images[:, 8, 9] - images[:, 8, 8], images[:, 9, 8] - images[:, 8, 8]
    angle, scale = torch.rad2deg(torch.atan2(-down, right)), torch.hypot(right, down)
    assert -30.01 <= angle.min() < -25
    assert 25 < angle.max() <= 30.01
    assert 0.799 <= scale.min() < 0.84
    assert 1.2 < scale.max() <= 1.251
    centre = images[:, 7:9, 7:9].mean(dim=(1, 2))
    torch.testing.assert_close(centre, torch.full((300,), 7.5))
    unchanged = rotate_and_zoom(slope, 0.0, 0.0, seeded())
    torch.testing.assert_close(unchanged, slope, atol=1e-4, rtol=0)
    assert unchanged.is_contiguous(memory_format=torch.channels_last)


def test_rotation_repeats_the_edge() -> None:
    ones = torch.ones(20, 3, 16, 16)
    torch.testing.assert_close(rotate_and_zoom(ones, 45.0, 0.5, seeded()), ones)


@pytest.mark.parametrize("name", ["shift", "flip", "brightness", "rotation", "zoom"])
def test_every_parameter_has_an_effect(name: str) -> None:
    off = {f"augmentation.{key}": 0.0 for key in train_params().augmentation.model_dump()}
    plain, images = (
        augment(numbered_columns(), train_params(**{**off, **change}).augmentation, seeded())
        for change in ({}, {f"augmentation.{name}": 0.9})
    )
    assert images.shape == (4, 3, SIDE, SIDE)
    assert not torch.allclose(images, plain)


def test_mixup_mixes_images_and_targets_alike() -> None:
    torch.manual_seed(0)
    images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 4, 4)
    targets = torch.eye(18)[[4, 5]]
    batches = [mix(images, targets, 0.5) for _ in range(200)]
    for mixed, shares in batches:
        torch.testing.assert_close(mixed[:, 0, 0, 0], shares[:, 5])
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(2))
    mixed_share = sum(mixed is not images for mixed, _ in batches) / len(batches)
    assert mixed_share == pytest.approx(0.5, abs=0.1)
    assert mix(images, targets, 0.0)[0] is images
