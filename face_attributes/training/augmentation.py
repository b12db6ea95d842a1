"""Random augmentation of whole batches, on their device, different in each epoch."""

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from face_attributes.networks.views import normalise
from face_attributes.params import AugmentationParams

MIXED_SHARE = 0.5
"""Share of the batches that mixup mixes; the others stay unchanged."""

MAX_BLUR = 0.02
"""Standard deviation of the strongest blur, as a share of the side."""
EXPOSURE = (-1.5, 0.5)
"""Darkest and brightest exposure, in stops. Bright ones are limited: clipping erases the face."""
MAX_CAST = 0.4
"""Largest change of one colour channel alone, in stops: a factor of 1.3."""
MAX_NOISE = 20.0
"""Standard deviation of the strongest noise, of 255."""
JPEG_BLOCK = 8
MAX_JPEG = 4.0
"""Coarsest quantisation, as a multiple of JPEG's at quality 50: about quality 12."""

BAR_HALF_WIDTH = (0.04, 0.1)
BAR_TIP = (0.5, 0.8)
"""Half the width of the occluding bar and the height of its tip, as shares of the side."""


def augment(pixels: Tensor, params: AugmentationParams, generator: torch.Generator) -> Tensor:
    """Vary each photo at random: framing, occlusion, light and camera; normalise; rotate and zoom.

    Args:
        pixels: B x H x W x 3, uint8.
        generator: on the device of `pixels`.

    Returns:
        B x 3 x H x W, float32, normalised, channels_last.
    """
    pixels = shift_and_flip(pixels, params.shift, params.flip, generator)
    if params.occlusion:
        pixels = occlude(pixels, params.occlusion, generator)
    pixels = brighten(pixels, params.brightness, generator)
    if params.camera:
        pixels = photograph(pixels, params.camera, generator)
    images = normalise(pixels)
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


def occlude(pixels: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Hide part of the lower face behind a bar from below, like a hand, a cup or a microphone.

    The bar must not change the label. It is too narrow to hide the mouth or the edge of a mask on
    both cheeks, and it is no mask: it shows the upper part of another photo upside down, that is
    hair, skin and background, in another tint.

    Takes and returns B x S x S x 3, uint8.
    """
    count, side, device = len(pixels), pixels.shape[1], pixels.device
    present, sideways, height, angle, width = torch.rand(
        5, count, 1, 1, generator=generator, device=device
    )
    steps = (torch.arange(side, device=device) + 0.5) / side
    down = steps[:, None] - (BAR_TIP[0] + (BAR_TIP[1] - BAR_TIP[0]) * height)
    across = steps - (0.25 + 0.5 * sideways)
    angle = (angle - 0.5) * (math.pi / 2)  # of the bar with the vertical: up to 45 degrees
    along = down * angle.cos() + across * angle.sin()
    beside = across * angle.cos() - down * angle.sin()
    half_width = BAR_HALF_WIDTH[0] + (BAR_HALF_WIDTH[1] - BAR_HALF_WIDTH[0]) * width
    # Above the tip, the distance from it counts, which rounds the bar.
    distance = torch.hypot(beside, along.clamp(max=0))
    bar = (distance < half_width) & (present < probability)
    tint = 0.4 + torch.rand(count, 1, 1, 3, generator=generator, device=device)
    upside_down = (pixels.roll(1, 0).flip(1) * tint).clamp_(0, 255).to(torch.uint8)
    return torch.where(bar[..., None], upside_down, pixels)


def photograph(pixels: Tensor, camera: float, generator: torch.Generator) -> Tensor:
    """Give photos a camera's faults: blur, exposure and colour cast, noise, JPEG.

    Each fault is in half of the photos, at a strength of up to `camera`, independently.

    Takes and returns B x S x S x 3, float32, 0 to 255.
    """
    random = torch.rand(5, len(pixels), 1, 1, 1, generator=generator, device=pixels.device)
    down, across, light, noise, jpeg = camera * (2 * random - 1).clamp_(min=0)
    images = blur(pixels.permute(0, 3, 1, 2), MAX_BLUR * down, MAX_BLUR * across)
    random = torch.rand(2, len(pixels), 3, 1, 1, generator=generator, device=pixels.device)
    exposure = EXPOSURE[0] + (EXPOSURE[1] - EXPOSURE[0]) * random[0, :, :1]
    cast = MAX_CAST * (2 * random[1] - 1)
    images *= torch.exp2(light * (exposure + cast))
    grain = torch.randn(images.shape, generator=generator, device=pixels.device)
    images += MAX_NOISE * noise * grain
    images = compress(images.clamp_(0, 255), MAX_JPEG * jpeg)
    return images.permute(0, 2, 3, 1).contiguous()  # so that `normalise` returns channels_last


def blur(images: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Blur each photo by a Gaussian, which is motion blur if it is wider in one direction.

    Args:
        images: B x 3 x S x S.
        down, across: standard deviations as shares of the side, B x 1 x 1 x 1.
    """
    steps = torch.arange(images.shape[-1], device=images.device) / images.shape[-1]

    def weights(deviation: Tensor) -> Tensor:  # from pixel to pixel: B x 1 x S x S
        distances = (steps[:, None] - steps) / deviation.clamp(min=1e-4)
        # A limit far below what shows: denormal numbers would make the products 20 times slower.
        return torch.softmax((-(distances**2) / 2).clamp_(min=-30), dim=-1)

    return weights(down) @ images @ weights(across).mT


def compress(images: Tensor, coarseness: Tensor) -> Tensor:
    """Compress photos like JPEG: quantise the cosine transform of blocks of 8 x 8 pixels.

    Unlike JPEG, in RGB, not in luminance and chroma.

    Args:
        images: B x 3 x S x S, 0 to 255.
        coarseness: of the quantisation, as a multiple of JPEG's at quality 50, B x 1 x 1 x 1.
    """
    side = images.shape[-1]
    pixel = torch.arange(side, device=images.device)
    block, offset = pixel // JPEG_BLOCK, pixel % JPEG_BLOCK
    length = (side - JPEG_BLOCK * block).clamp(max=JPEG_BLOCK)  # the last block may be shorter
    # The orthonormal cosine transform (DCT-II) of all blocks of a line, as one matrix.
    transform = torch.cos(math.pi * offset[:, None] * (offset + 0.5) / length)
    transform *= torch.sqrt((1 + (offset > 0)) / length)[:, None]
    transform *= block[:, None] == block
    frequency = offset[:, None] + offset
    table = 10 + 0.45 * frequency**2  # near JPEG's table of luminance, which begins at 16
    step = (coarseness * table).clamp(min=1)
    coefficients = transform @ images @ transform.T
    coefficients = (coefficients / step).round_() * step
    return (transform.T @ coefficients @ transform).clamp_(0, 255)


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
