"""Convolutions that a CPU computes faster as matrix products."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

WEIGHTS_PER_OUTPUT = 4
"""From so many weights for each number that comes out, a product is the faster way."""

LARGEST_KERNEL = 3
"""Of a larger one too many shifted copies would be made."""


class MatrixProducts(TorchFunctionMode):
    """Within it, convolutions of few pixels and many channels are matrix products, on a CPU.

    As the last layers of a ResNet have them, with small crops. oneDNN takes up to five times as
    long for these, most of it for the gradient of the weights; what comes out is the same, to
    rounding (`python -m benchmarks.convolutions`).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.conv2d and not kwargs and _pays(*args):
            return convolve(*args[:5])
        return func(*args, **(kwargs or {}))


def _pays(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
) -> bool:
    if not images.is_cpu or groups > 1 or max(dilation) > 1 or isinstance(padding, str):
        return False
    high, wide = _output_size(images, weight, stride, padding)
    outputs = len(images) * len(weight) * high * wide
    return max(weight.shape[2:]) <= LARGEST_KERNEL and (
        weight.numel() >= WEIGHTS_PER_OUTPUT * outputs
    )


def _output_size(
    images: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> tuple[int, int]:
    high, wide = (
        (side + 2 * edge - kernel) // step + 1
        for side, edge, kernel, step in zip(
            images.shape[2:], padding, weight.shape[2:], stride, strict=True
        )
    )
    return high, wide


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """`torch.nn.functional.conv2d` as one product of all patches with the weights.

    Args:
        images: B x C x H x W, channels_last.
        weight: O x C x h x w, channels_last.

    Returns:
        B x O x ..., channels_last.
    """
    (high, wide), (down, right) = _output_size(images, weight, stride, padding), stride
    edges = (0, 0, padding[1], padding[1], padding[0], padding[0])
    padded = functional.pad(images.permute(0, 2, 3, 1), edges)
    patches = torch.cat(
        [
            padded[:, row : row + high * down : down, column : column + wide * right : right]
            for row in range(weight.shape[2])
            for column in range(weight.shape[3])
        ],
        dim=-1,
    )
    products = functional.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)
    return products.permute(0, 3, 1, 2)
