"""Augmentation, anew in each epoch, a whole batch at a time and on its device."""

import torch
from torch import Tensor
from torch.nn import functional

from stages.learning.device import normalise
from stages.params import TrainParams


def augment(pixels: Tensor, params: TrainParams, generator: torch.Generator) -> Tensor:
    """Shift, flip, brighten, normalise, turn, zoom and erase, each photo by its own random numbers.

    Args:
        pixels: B x H x W x 3, uint8.
        generator: on the device of `pixels`.

    Returns:
        B x 3 x H x W, float32, normalised, channels_last.
    """
    moved = shift_and_flip(pixels, params.shift, params.flip, generator)
    images = normalise(brighten(moved, params.brightness, generator))
    if params.rotation or params.zoom:
        images = turn_and_zoom(images, params.rotation, params.zoom, generator)
    return erase(images, params.erasing, generator)


def shift_and_flip(pixels: Tensor, shift: float, flip: float, generator: torch.Generator) -> Tensor:
    """Shift by up to `shift` of the side, edge pixels repeated; mirror with probability `flip`."""
    count, side, device = len(pixels), pixels.shape[1], pixels.device
    most = round(shift * side)
    by = torch.randint(-most, most + 1, (2, count, 1), generator=generator, device=device)
    steps = torch.arange(side, device=device)
    rows = (steps + by[0]).clamp(0, side - 1)
    columns = (steps + by[1]).clamp(0, side - 1)
    mirrored = torch.rand(count, 1, generator=generator, device=device) < flip
    columns = torch.where(mirrored, columns.flip(1), columns)
    photo = torch.arange(count, device=device)[:, None, None]
    return pixels[photo, rows[:, :, None], columns[:, None, :]]


def brighten(pixels: Tensor, brightness: float, generator: torch.Generator) -> Tensor:
    """Multiply each photo by a factor within 1 +- `brightness`; float32, 0 to 255."""
    drawn = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    return (pixels * (1 + brightness * (2 * drawn - 1))).clamp_(0, 255)


def turn_and_zoom(
    images: Tensor, rotation: float, zoom: float, generator: torch.Generator
) -> Tensor:
    """Turn each photo by up to `rotation` degrees, and scale it by up to 1 + `zoom` either way.

    About its middle, bilinear, edge pixels repeated; channels_last.
    """
    drawn = 2 * torch.rand(2, len(images), generator=generator, device=images.device) - 1
    angle, scale = torch.deg2rad(rotation * drawn[0]), (1 + zoom) ** drawn[1]
    cosine, sine, still = scale * angle.cos(), scale * angle.sin(), torch.zeros_like(scale)
    matrix = torch.stack([cosine, -sine, still, sine, cosine, still], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    turned = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return turned.contiguous(memory_format=torch.channels_last)


def erase(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Set a rectangle of 10% to 40% of each side to the mean, in place, with `probability`.

    Random Erasing (Zhong et al., AAAI 2020), with normalised images, whose mean is 0.
    """
    if probability == 0:
        return images
    count, side, device = len(images), images.shape[-1], images.device
    drawn = torch.rand(5, count, 1, generator=generator, device=device)
    height, width = side * (0.1 + 0.3 * drawn[0]), side * (0.1 + 0.3 * drawn[1])
    top, left = drawn[2] * (side - height), drawn[3] * (side - width)
    steps = torch.arange(side, device=device)
    in_rows = (steps >= top) & (steps < top + height) & (drawn[4] < probability)
    in_columns = (steps >= left) & (steps < left + width)
    hole = in_rows[:, :, None] & in_columns[:, None, :]
    return images.masked_fill_(hole[:, None], 0.0)
