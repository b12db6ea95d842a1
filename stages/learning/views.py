"""The views of a photo that a prediction is the mean over."""

import torch
from torch import Tensor
from torch.nn import functional


def count_views(flip: bool, zoom: float) -> int:
    """How many `views_at_test` gives."""
    return (3 if zoom else 1) * (2 if flip else 1)


def name_views(flip: bool, zoom: float) -> str:
    """What these views are, in words; "" for a crop as it is."""
    nearer = ", nearer and farther" if zoom else ""
    mirrored = (", and their mirror images" if zoom else " and its mirror image") if flip else ""
    return f"a crop{nearer}{mirrored}" if nearer or mirrored else ""


def views_at_test(images: Tensor, flip: bool, zoom: float) -> list[Tensor]:
    """Photos as they are and their mirror images; nearer and farther ones, where `zoom` is not 0.

    Args:
        images: B x 3 x S x S, normalised, channels_last, as all views are.
        zoom: how much of the side goes on the way nearer, or is added on the way farther, by
            repeating the edge; at least a pixel on each side.
    """
    views, side = [images, images.flip(3)] if flip else [images], images.shape[-1]
    if not zoom:
        return views
    margin = max(1, round(zoom * side / 2))
    nearer = [view[..., margin:-margin, margin:-margin] for view in views]
    farther = [functional.pad(view, [margin] * 4, mode="replicate") for view in views]
    return views + [
        functional.interpolate(view, (side, side), mode="bilinear").contiguous(
            memory_format=torch.channels_last
        )
        for view in nearer + farther
    ]
