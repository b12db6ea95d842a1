"""Convolutions that a CPU computes faster as matrix products."""

import itertools
import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]


@cache
def has_amx() -> bool:
    """Whether the CPU has AMX, where oneDNN's convolutions over few pixels are slow."""
    return bool(torch.cpu._is_amx_tile_supported())


LARGEST_KERNEL = 3
"""A larger kernel would need too many shifted copies of the image."""


class MatrixProducts(TorchFunctionMode):
    """On a CPU, compute `nn.Conv2d` over few pixels with many channels as a matrix product.

    With small crops, the last layers of a ResNet are like that. oneDNN takes up to four times as
    long for them, above all for the gradient of the weights and, with AMX, for a forward pass
    alone. The results agree up to rounding. Timings: `python -m benchmarks.matrix_products`.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # nn.Conv2d passes all seven arguments by position; other callers may not.
        if func is functional.conv2d and len(args) == 7 and prefers_matmul(*args):
            return convolve(*args[:5])
        return func(*args, **(kwargs or {}))


def prefers_matmul(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> bool:
    """Whether a matrix product is faster for this call of `torch.nn.functional.conv2d`."""
    if not images.is_cpu or groups > 1 or max(dilation) > 1 or isinstance(padding, str):
        return False
    height, width = _output_size(images, weight, stride, padding)
    outputs = len(images) * len(weight) * height * width
    half = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if half else images.dtype
    small = max(weight.shape[2:]) <= LARGEST_KERNEL and min(height, width) > 0
    return small and weight.numel() >= outputs * _break_even(dtype, torch.is_grad_enabled())


def _break_even(dtype: torch.dtype, gradients: bool) -> float:
    """Weights per output element above which the product is at least as fast."""
    if dtype == torch.float32:
        return 8
    if dtype != torch.bfloat16:
        return math.inf
    if gradients:
        return 4
    return 2 if has_amx() else math.inf


def _output_size(images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    height, width = (
        (side + 2 * edge - kernel) // step + 1
        for side, edge, kernel, step in zip(
            images.shape[2:], padding, weight.shape[2:], stride, strict=True
        )
    )
    return height, width


def convolve(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> Tensor:
    """Compute `torch.nn.functional.conv2d` as one product of all patches with the weights.

    Args:
        images: B x C x H x W, channels_last.
        weight: O x C x h x w, channels_last.

    Returns:
        B x O x H' x W', channels_last.
    """
    edges = (0, 0, padding[1], padding[1], padding[0], padding[0])
    padded = functional.pad(images.permute(0, 2, 3, 1), edges)
    patches: Tensor = Patches.apply(padded, weight.shape[2:], stride)
    products = functional.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return products.permute(0, 3, 1, 2)


class Patches(torch.autograd.Function):
    """The patch under the kernel at each position, in the order of channels_last weights.

    With slices instead, autograd would allocate an image of zeros for the gradient of each kernel
    position.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: Pair, stride: Pair) -> Tensor:
        """Map images (B x H x W x C) to patches (B x H' x W' x (h * w * C))."""
        ctx.shape, ctx.kernel, ctx.stride = images.shape, kernel, stride
        patches = images.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
        return patches.permute(0, 1, 2, 4, 5, 3).flatten(3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the images."""
        (gradient,), (down, across) = gradients, ctx.stride
        height, width = gradient.shape[1] * down, gradient.shape[2] * across
        pieces = gradient.unflatten(3, (*ctx.kernel, -1))
        total = gradient.new_zeros(ctx.shape)
        # From last to first, as autograd sums the gradients of slices: bfloat16 sums depend on it.
        for row, column in itertools.product(*(reversed(range(side)) for side in ctx.kernel)):
            window = total[:, row : row + height : down, column : column + width : across]
            window += pieces[:, :, :, row, column]
        return total, None, None
