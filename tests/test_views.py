"""The views of a photo that a prediction is the mean over."""

import pytest
import torch

from stages.learning.views import count_views, name_views, views_at_test

SIDE = 20
COLUMNS = torch.arange(float(SIDE)).expand(2, 3, SIDE, SIDE)
"""Photos in which a pixel tells its column."""


@pytest.mark.parametrize(
    ("flip", "zoom", "words"),
    [
        (False, 0.0, ""),
        (True, 0.0, "a crop and its mirror image"),
        (False, 0.2, "a crop, nearer and farther"),
        (True, 0.2, "a crop, nearer and farther, and their mirror images"),
    ],
)
def test_the_first_view_is_the_photo_and_each_is_followed_by_its_mirror_image(
    flip: bool, zoom: float, words: str
) -> None:
    views = views_at_test(COLUMNS, flip, zoom)
    assert torch.equal(views[0], COLUMNS)
    assert len(views) == count_views(flip, zoom)
    assert all(view.shape == COLUMNS.shape for view in views)
    assert name_views(flip, zoom) == words
    assert not flip or all(
        torch.allclose(mirrored, view.flip(3), atol=1e-5)
        for view, mirrored in zip(views[::2], views[1::2], strict=True)
    )


def test_nearer_leaves_two_pixels_out_and_farther_repeats_two() -> None:
    """With 0.2 of 20 pixels: columns 2 to 17 on the way nearer, two more on each side farther."""
    _, nearer, farther = (view[0, 0, 5] for view in views_at_test(COLUMNS, False, 0.2))
    assert nearer[[0, -1]].tolist() == [2, 17]
    assert (nearer[11] - nearer[10]).item() == pytest.approx(16 / 20)
    assert farther[[0, -1]].tolist() == pytest.approx([0, 19], abs=0.2)
    assert (farther[11] - farther[10]).item() == pytest.approx(24 / 20)


def test_a_zoom_is_at_least_a_pixel() -> None:
    assert not torch.equal(views_at_test(COLUMNS, False, 0.01)[1], COLUMNS)
