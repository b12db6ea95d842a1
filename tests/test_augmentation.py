"""Augmentation: within its limits, and different for each photo."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from face_attributes.training.augmentation import (
    augment,
    blur,
    brighten,
    compress,
    mix,
    occlude,
    photograph,
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


@pytest.mark.parametrize(
    "name", ["shift", "flip", "brightness", "rotation", "zoom", "camera", "occlusion"]
)
def test_every_parameter_has_an_effect(name: str) -> None:
    off = {f"augmentation.{key}": 0.0 for key in train_params().augmentation.model_dump()}
    plain, images = (
        augment(numbered_columns(), train_params(**{**off, **change}).augmentation, seeded())
        for change in ({}, {f"augmentation.{name}": 0.9})
    )
    assert images.shape == (4, 3, SIDE, SIDE)
    assert not torch.allclose(images, plain)
    assert images.is_contiguous(memory_format=torch.channels_last)


# --- occlusion


def test_a_bar_hides_little_of_the_lower_face_alone() -> None:
    """Photos that are white above and black below: the bar shows the white of another photo."""
    pixels = torch.zeros(200, 32, 32, 3, dtype=torch.uint8)
    pixels[:, :16] = 255
    occluded = occlude(pixels, 1.0, seeded())
    assert torch.equal(occluded[:, :12], pixels[:, :12])
    bar = (occluded[:, 16:] > 0).any(dim=-1)
    per_row = bar.float().mean(dim=2)
    assert per_row.max() < 0.3, "both cheeks cannot be hidden"
    assert bar[:, -1].any(dim=1).float().mean() > 0.5, "the bar comes from below"
    assert len({tuple(photo.flatten().tolist()) for photo in bar}) > 190
    tints = occluded[:, 16:].flatten(1, 2).amax(dim=1)
    assert len(tints.unique(dim=0)) > 150


def test_occlusion_has_its_probability() -> None:
    pixels = numbered_columns(400)
    pixels[::2] = 255 - pixels[::2]
    assert torch.equal(occlude(pixels, 0.0, seeded()), pixels)
    changed = (occlude(pixels, 0.3, seeded()) != pixels).flatten(1).any(dim=1)
    assert changed.float().mean() == pytest.approx(0.3, abs=0.06)


# --- a camera's faults


def textured(count: int = 1, side: int = 32) -> Tensor:
    """Smooth random photos with some detail, B x 3 x S x S, 0 to 255."""
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=seeded())
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic")
    return (smooth * 200 + 30 * torch.rand(smooth.shape, generator=seeded())).clamp(0, 255)


def each(*values: float) -> Tensor:
    """A value for each photo."""
    return torch.tensor(values)[:, None, None, None]


def test_blur_spreads_a_point_by_its_deviation_in_each_direction() -> None:
    point = torch.zeros(3, 3, 41, 41)
    point[:, :, 20, 20] = 1
    blurred = blur(point, each(0, 2 / 41, 2 / 41), each(0, 2 / 41, 4 / 41))
    torch.testing.assert_close(blurred[0], point[0])
    torch.testing.assert_close(blurred.sum(dim=(2, 3)), torch.ones(3, 3), atol=1e-3, rtol=0)
    distance = torch.arange(41.0) - 20
    for photo, down, across in ((1, 2, 2), (2, 2, 4)):
        rows, columns = blurred[photo, 0].sum(dim=1), blurred[photo, 0].sum(dim=0)
        assert float((rows * distance**2).sum().sqrt()) == pytest.approx(down, rel=0.02)
        assert float((columns * distance**2).sum().sqrt()) == pytest.approx(across, rel=0.02)
    flat = torch.full((3, 3, 16, 16), 100.0)
    torch.testing.assert_close(blur(flat, each(0, 0.1, 1), each(0, 0.5, 0.1)), flat)


@pytest.mark.parametrize("side", [16, 20, 33])
def test_without_coarseness_compression_only_rounds(side: int) -> None:
    """Also of sides that are no multiple of 8."""
    photos = textured(2, side // 4 * 4)[..., :side, :side]
    difference = compress(photos, each(0.0, 0.0)) - photos
    assert difference.abs().max() < 2.5
    assert difference.std() == pytest.approx(0.29, abs=0.02)  # of a rounding error: 12 ** -0.5


@pytest.mark.parametrize(("quality", "coarseness"), [(50, 1.0), (25, 2.0), (12, 4.0)])
def test_compression_errs_as_much_as_jpeg(quality: int, coarseness: float) -> None:
    """libjpeg's scale of the quantisation is 50 / quality below quality 50."""
    photos = textured(8, 64).mean(dim=1, keepdim=True).round().expand(-1, 3, -1, -1)
    ours = compress(photos, each(*[coarseness] * 8)) - photos
    errors = []
    for photo in photos[:, 0].numpy().astype(np.uint8):
        file = BytesIO()
        Image.fromarray(photo).save(file, "JPEG", quality=quality)
        errors.append(np.asarray(Image.open(file)).astype(float) - photo)
    assert float(ours.std()) == pytest.approx(np.std(errors), rel=0.25)


def test_compression_shows_blocks_of_8_pixels() -> None:
    photos = compress(textured(8, 64), each(*[8.0] * 8))
    steps = (photos[..., 1:] - photos[..., :-1]).abs().mean(dim=(0, 1, 2))
    at_edges = torch.arange(1, 64) % 8 == 0
    assert steps[at_edges].mean() > 1.5 * steps[~at_edges].mean()


def test_half_of_the_photos_go_without_each_fault_of_the_camera() -> None:
    """Flat photos show light and noise alone, except for weak noise that JPEG smooths away."""
    flat = torch.full((1000, 8, 8, 3), 120.0)
    faults = photograph(flat, 1.0, seeded())
    noisy = faults.std(dim=(1, 2)).mean(dim=-1) > 0.6
    other_light = (faults.mean(dim=(1, 2)) - 120).abs().amax(dim=-1) > 4  # JPEG rounds by up to 2.5
    assert 0.35 < noisy.float().mean() < 0.55
    assert 0.4 < other_light.float().mean() < 0.55
    assert (noisy & other_light).float().mean() < 0.3, "independent"
    assert faults.min() >= 0
    assert faults.max() <= 255
    mean = faults.mean(dim=(1, 2, 3))
    assert mean.min() < 60 and mean.max() > 150
    weak = photograph(flat, 0.2, seeded()) - 120
    assert weak.std() < 0.35 * (faults - 120).std()


def test_the_same_generator_gives_the_same_photos() -> None:
    pixels = numbered_columns(20)
    changes = {"augmentation.camera": 1.0, "augmentation.occlusion": 0.5}
    params = train_params(**changes).augmentation
    first, again, other = (augment(pixels, params, seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- mixup


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
