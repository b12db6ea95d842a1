"""Convolutions that a CPU computes faster as matrix products."""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]

AMX = bool(torch.cpu._is_amx_tile_supported())
"""Whether the CPU has AMX, with which oneDNN's convolutions of few pixels fall far behind."""

LARGEST_KERNEL = 3
"""Of a larger one too many shifted copies would be made."""


class MatrixProducts(TorchFunctionMode):
    """Within it, `nn.Conv2d` of few pixels and many channels is a matrix product, on a CPU.

    As the last layers of a ResNet are, with small crops. oneDNN takes up to four times as long for
    these, above all for the gradient of the weights and, with AMX, for a pass forward alone. What
    comes out is the same, to rounding (`python -m benchmarks.convolutions`).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # nn.Conv2d gives all seven arguments by place; another call may not.
        if func is functional.conv2d and len(args) == 7 and pays(*args):
            return convolve(*args[:5])
        return func(*args, **(kwargs or {}))


def pays(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair | str,
    dilation: Pair,
    groups: int,
) -> bool:
    """Whether a product is the faster way for this call of `torch.nn.functional.conv2d`."""
    if not images.is_cpu or groups > 1 or max(dilation) > 1 or isinstance(padding, str):
        return False
    high, wide = _output_size(images, weight, stride, padding)
    outputs = len(images) * len(weight) * high * wide
    half = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if half else images.dtype
    enough = _enough_weights(dtype, torch.is_grad_enabled())
    small = max(weight.shape[2:]) <= LARGEST_KERNEL and min(high, wide) > 0
    return small and weight.numel() >= enough * outputs


def _enough_weights(dtype: torch.dtype, gradients: bool) -> float:
    """From so many for each number that comes out a product is the faster way, or as fast."""
    if dtype == torch.float32:
        return 8
    if dtype != torch.bfloat16:
        return math.inf
    if gradients:
        return 4
    return 2 if AMX else math.inf


def _output_size(images: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Pair:
    high, wide = (
        (side + 2 * edge - kernel) // step + 1
        for side, edge, kernel, step in zip(
            images.shape[2:], padding, weight.shape[2:], stride, strict=True
        )
    )
    return high, wide


def convolve(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
) -> Tensor:
    """`torch.nn.functional.conv2d` as one product of all patches with the weights.

    Args:
        images: B x C x H x W, channels_last.
        weight: O x C x h x w, channels_last.

    Returns:
        B x O x ..., channels_last.
    """
    edges = (0, 0, padding[1], padding[1], padding[0], padding[0])
    padded = functional.pad(images.permute(0, 2, 3, 1), edges)
    patches: Tensor = Patches.apply(padded, weight.shape[2:], stride)
    products = functional.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return products.permute(0, 3, 1, 2)


class Patches(torch.autograd.Function):
    """What the kernel sees at each place, in the order of channels_last weights.

    Cut out as slices, each place in the kernel would cost autograd an image of zeros, to add up
    their gradients.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: Pair, stride: Pair) -> Tensor:
        """B x H x W x C -> B x (places down) x (places across) x (h * w * C)."""
        ctx.shape, ctx.kernel, ctx.stride = images.shape, kernel, stride
        seen = images.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])
        return seen.permute(0, 1, 2, 4, 5, 3).flatten(3)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Gradient of the images."""
        (gradient,), (down, right) = gradients, ctx.stride
        high, wide = gradient.shape[1] * down, gradient.shape[2] * right
        pieces = gradient.unflatten(3, (*ctx.kernel, -1))
        found = gradient.new_zeros(ctx.shape)
        # From last to first, as autograd adds up those of slices: it matters in bfloat16.
        for row, column in itertools.product(*(reversed(range(side)) for side in ctx.kernel)):
            seen = found[:, row : row + high : down, column : column + wide : right]
            seen += pieces[:, :, :, row, column]
        return found, None, None
