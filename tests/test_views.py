"""The views of a photo, and the mean of their predictions."""

import pytest
import torch

from face_attributes.networks.views import average_views, count_views, make_views, normalise
from face_attributes.params import PredictionParams
from tests.small import seeded

SIDE = 20
COLUMNS = torch.arange(float(SIDE)).expand(2, 3, SIDE, SIDE)
"""Photos in which a pixel is its column."""


def test_pixels_are_normalised_as_for_imagenet() -> None:
    image = normalise(torch.full((1, 2, 4, 3), 255, dtype=torch.uint8))
    assert image.shape == (1, 3, 2, 4)
    assert image.is_contiguous(memory_format=torch.channels_last)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert image[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("zoom", [0.0, 0.2])
def test_first_view_is_the_photo_and_mirror_images_follow(flip: bool, zoom: float) -> None:
    params = PredictionParams(flip=flip, zoom=zoom)
    views = make_views(COLUMNS, params)
    assert torch.equal(views[0], COLUMNS)
    assert len(views) == count_views(params) == (2 if flip else 1) * (3 if zoom else 1)
    assert all(view.shape == COLUMNS.shape for view in views)
    if flip:
        for view, mirrored in zip(views[::2], views[1::2], strict=True):
            torch.testing.assert_close(mirrored, view.flip(3))


def test_zoom_cuts_off_or_repeats_its_share_of_the_side() -> None:
    """0.2 of 20 pixels: columns 2 to 17 closer, and two more columns on each side farther."""
    views = make_views(COLUMNS, PredictionParams(flip=False, zoom=0.2))
    _, closer, farther = (view[0, 0, 5] for view in views)
    assert closer[[0, -1]].tolist() == [2, 17]
    assert (closer[11] - closer[10]).item() == pytest.approx(16 / 20)
    assert farther[[0, -1]].tolist() == pytest.approx([0, 19], abs=0.2)
    assert (farther[11] - farther[10]).item() == pytest.approx(24 / 20)


def test_zoom_is_at_least_a_pixel() -> None:
    views = make_views(COLUMNS, PredictionParams(flip=False, zoom=0.01))
    assert not torch.equal(views[1], COLUMNS)


def test_average_is_the_mean_of_the_softmaxes() -> None:
    logits = 5 * torch.randn(3, 4, 18, generator=seeded())  # three views of four photos
    average = average_views(logits.flatten(0, 1), 3)
    torch.testing.assert_close(average.exp(), logits.softmax(dim=2).mean(dim=0))
    assert average_views(logits.flatten(0, 1).bfloat16(), 3).dtype == torch.float32
