"""Random augmentation of whole batches, on their device, different in each epoch."""

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from face_attributes.networks.views import normalise
from face_attributes.params import AugmentationParams

MIXED_SHARE = 0.5
"""Share of the batches that mixup mixes; the others stay unchanged."""


def augment(pixels: Tensor, params: AugmentationParams, generator: torch.Generator) -> Tensor:
    """Shift, flip, brighten, normalise, rotate and zoom each photo at random.

    Args:
        pixels: B x H x W x 3, uint8.
        generator: on the device of `pixels`.

    Returns:
        B x 3 x H x W, float32, normalised, channels_last.
    """
    pixels = shift_and_flip(pixels, params.shift, params.flip, generator)
    images = normalise(brighten(pixels, params.brightness, generator))
    if params.rotation or params.zoom:
        images = rotate_and_zoom(images, params.rotation, params.zoom, generator)
    return images


def shift_and_flip(pixels: Tensor, shift: float, flip: float, generator: torch.Generator) -> Tensor:
    """Shift by up to `shift` of the side, repeating edge pixels; mirror with probability `flip`.

    Takes and returns B x S x S x 3, uint8.
    """
    count, side, device = len(pixels), pixels.shape[1], pixels.device
    limit = round(shift * side)
    offsets = torch.randint(-limit, limit + 1, (2, count, 1), generator=generator, device=device)
    steps = torch.arange(side, device=device)
    rows = (steps + offsets[0]).clamp(0, side - 1)
    columns = (steps + offsets[1]).clamp(0, side - 1)
    mirrored = torch.rand(count, 1, generator=generator, device=device) < flip
    columns = torch.where(mirrored, columns.flip(1), columns)
    photo = torch.arange(count, device=device)[:, None, None]
    return pixels[photo, rows[:, :, None], columns[:, None, :]]


def brighten(pixels: Tensor, brightness: float, generator: torch.Generator) -> Tensor:
    """Multiply each photo by a factor within 1 +- `brightness`; returns float32, 0 to 255."""
    random = torch.rand(len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    return (pixels * (1 + brightness * (2 * random - 1))).clamp_(0, 255)


def rotate_and_zoom(
    images: Tensor, rotation: float, zoom: float, generator: torch.Generator
) -> Tensor:
    """Rotate each photo by up to `rotation` degrees and scale it by 1 / (1 + `zoom`) to 1 + `zoom`.

    Around the centre, bilinear, repeating edge pixels. Returns channels_last.
    """
    random = 2 * torch.rand(2, len(images), generator=generator, device=images.device) - 1
    angle, scale = torch.deg2rad(rotation * random[0]), (1 + zoom) ** random[1]
    cosine, sine, zero = scale * angle.cos(), scale * angle.sin(), torch.zeros_like(scale)
    matrix = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    rotated = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return rotated.contiguous(memory_format=torch.channels_last)


def mix(images: Tensor, targets: Tensor, mixup: float) -> tuple[Tensor, Tensor]:
    """Apply mixup to half of the batches: average pairs of photos, and their targets alike.

    torchvision's mixup (Zhang et al., ICLR 2018), which draws from torch's global generator.

    Args:
        images: B x 3 x H x W.
        targets: class shares of each photo, B x C.
        mixup: alpha of Beta(alpha, alpha); 0: no mixup.
    """
    if not mixup or torch.rand(()) >= MIXED_SHARE:
        return images, targets
    mixed: tuple[Tensor, Tensor] = v2.MixUp(alpha=mixup)(images, targets)
    return mixed
