"""A network's view of a photo: its normalised pixels, and variants that a prediction averages."""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from face_attributes.params import PredictionParams

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(pixels: Tensor) -> Tensor:
    """Normalise uint8 (B x H x W x 3) as for ImageNet: float32, B x 3 x H x W, channels_last."""
    mean, std = (_cached_mean_and_std if pixels.is_cuda else _mean_and_std)(pixels.device)
    return pixels.sub(mean).div_(std).permute(0, 3, 1, 2)


def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """ImageNet's mean and standard deviation of each channel, of 255."""
    mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean * 255, std * 255


_cached_mean_and_std = cache(_mean_and_std)
"""On a GPU, where each new tensor waits for its work. Not on a CPU, where it may be traced."""


def count_views(views: PredictionParams) -> int:
    """Number of views that `make_views` returns."""
    return (3 if views.zoom else 1) * (2 if views.flip else 1)


def make_views(images: Tensor, views: PredictionParams) -> list[Tensor]:
    """Return the photos, their mirror images with `flip`, and all of these closer and farther.

    Args:
        images: B x 3 x S x S, normalised, channels_last, like all returned views.
        views: `zoom` is the share of the side that is cut off for the closer view, and added by
            repeating the edge for the farther one; at least one pixel on each side.
    """
    plain, side = [images, images.flip(3)] if views.flip else [images], images.shape[-1]
    if not views.zoom:
        return plain
    margin = max(1, round(views.zoom * side / 2))
    closer = [view[..., margin:-margin, margin:-margin] for view in plain]
    farther = [functional.pad(view, [margin] * 4, mode="replicate") for view in plain]
    return plain + [
        functional.interpolate(view, (side, side), mode="bilinear").contiguous(
            memory_format=torch.channels_last
        )
        for view in closer + farther
    ]


def average_views(logits: Tensor, count: int) -> Tensor:
    """Return the log of each photo's mean probabilities over its views (B x 18, float32).

    Args:
        logits: of the first view of all photos, then of the second view, and so on
            (count * B x 18).
        count: number of views per photo.
    """
    log_probabilities = logits.float().log_softmax(dim=1).unflatten(0, (count, -1))
    mean: Tensor = log_probabilities.logsumexp(dim=0) - math.log(count)
    return mean
