"""Augmentation: what it may change, by how much, and each photo by its own random numbers."""

import torch
from torch import Tensor

from stages.learning import augment
from tests.test_fit import SIDE, seeded


def gradient(count: int = 4) -> Tensor:
    """Photos whose columns tell their place."""
    columns = torch.arange(SIDE, dtype=torch.uint8) * 10
    return columns[None, None, :, None].expand(count, SIDE, SIDE, 3).contiguous()


def test_flipping_always_mirrors_and_never_does_not() -> None:
    pixels = gradient()
    assert torch.equal(augment.shift_and_flip(pixels, 0, 0, seeded(0)), pixels)
    assert torch.equal(augment.shift_and_flip(pixels, 0, 1, seeded(0)), pixels.flip(2))


def test_a_shift_is_at_most_as_far_as_said_and_repeats_the_edge() -> None:
    moved = augment.shift_and_flip(gradient(200), 0.125, 0, seeded(0))[:, 0, :, 0].int()
    by = moved[:, 8] // 10 - 8
    assert set(by.tolist()) == {-2, -1, 0, 1, 2}
    assert set(moved[by == -2][:, :3].unique().tolist()) == {0}


def test_brightness_stays_within_its_range_and_differs_by_photo() -> None:
    bright = augment.brighten(torch.full((50, 2, 2, 3), 100, dtype=torch.uint8), 0.2, seeded(0))
    assert 80 <= bright.min() < bright.max() <= 120
    assert len(bright[:, 0, 0, 0].unique()) == 50


def test_turning_and_zooming_stay_within_their_ranges_and_differ_by_photo() -> None:
    """What was a slope of 1 from left to right is as steep as the zoom, and turned."""
    slope = torch.arange(16.0)[None, None, None, :].expand(300, 3, 16, 16)
    turned = augment.turn_and_zoom(slope, 30.0, 0.25, seeded(0))[:, 0]
    right, down = turned[:, 8, 9] - turned[:, 8, 8], turned[:, 9, 8] - turned[:, 8, 8]
    angle, scale = torch.rad2deg(torch.atan2(-down, right)), torch.hypot(right, down)
    assert -30.01 <= angle.min() < -25
    assert 25 < angle.max() <= 30.01
    assert 0.799 <= scale.min() < 0.84
    assert 1.2 < scale.max() <= 1.251
    middle = turned[:, 7:9, 7:9].mean(dim=(1, 2))
    torch.testing.assert_close(middle, torch.full((300,), 7.5))
    still = augment.turn_and_zoom(slope, 0.0, 0.0, seeded(0))
    torch.testing.assert_close(still, slope, atol=1e-4, rtol=0)
    assert still.is_contiguous(memory_format=torch.channels_last)


def test_a_photo_that_is_turned_has_its_edge_repeated() -> None:
    ones = torch.ones(20, 3, 16, 16)
    torch.testing.assert_close(augment.turn_and_zoom(ones, 45.0, 0.5, seeded(0)), ones)


def test_erasing_blanks_a_rectangle_or_none() -> None:
    ones = torch.ones(100, 3, 20, 20)
    assert torch.equal(augment.erase(ones.clone(), 0.0, seeded(0)), ones)
    holes = (augment.erase(ones.clone(), 1.0, seeded(0)) == 0).float().mean(dim=(1, 2, 3))
    assert (holes > 0).all()
    assert (holes <= 0.25).all()
