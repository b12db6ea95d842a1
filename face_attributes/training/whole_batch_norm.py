"""BatchNorm over the whole batch, of which each process has a share."""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from face_attributes.training.data_parallel import processes, sum_over_processes


def whole_batch_norm() -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass in training, in which BatchNorm sees the whole batch."""
    return contextlib.nullcontext() if processes() == 1 else WholeBatchNorm()


class WholeBatchNorm(TorchFunctionMode):
    """Normalise by the statistics of all processes' shares, in every BatchNorm that trains.

    Unlike `nn.SyncBatchNorm`, on a CPU too, and without replacing the modules of a network.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.batch_norm:
            return batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def batch_norm(
    images: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Like `torch.nn.functional.batch_norm` of the whole batch; returns this process's share."""
    if not training:
        return functional.batch_norm(images, running_mean, running_var, weight, bias, eps=eps)
    mean, variance, count = whole_batch_statistics(images.detach())
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (count / (count - 1)), momentum)
    normalised: Tensor = Normalise.apply(images, weight, bias, mean, variance, count, eps)
    return normalised


def whole_batch_statistics(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance per channel (C), and the number of values per channel.

    Put together from those of the shares (Chan et al., 1979), which loses no digits.
    """
    mean, variance = torch.batch_norm_update_stats(images.float(), None, None, 0.0)
    count = mean.new_tensor([images.numel() / len(mean)])
    own = torch.cat([mean, variance, count])
    shares = [torch.empty_like(own) for _ in range(processes())]
    torch.distributed.all_gather(shares, own)
    means, variances, counts = torch.stack(shares).split([len(mean), len(mean), 1], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / total
    return mean, variance, total


class Normalise(torch.autograd.Function):
    """Normalise and scale by the whole batch's statistics, through which gradients flow, too."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        """Return (images - mean) / sqrt(variance + eps) * weight + bias."""
        ctx.save_for_backward(images, weight, mean, variance, count)
        ctx.eps = eps
        return functional.batch_norm(images, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of this process's images, and its summands of the parameters'.

        With x for the normalised images, g for the gradient of the outputs and means over the whole
        batch (Ioffe and Szegedy, ICML 2015): weight / deviation * (g - mean(g) - x * mean(g * x)).
        The kernel for constant statistics returns its first term, and the sums of the others.
        """
        images, weight, mean, variance, count = ctx.saved_tensors
        gradient, weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
            gradients[0], images, weight, mean, variance, None, None, False, ctx.eps, [True] * 3
        )
        sums = sum_over_processes(torch.stack([weight_gradient, bias_gradient]))
        deviation = torch.sqrt(variance + ctx.eps)
        scale = (1 if weight is None else weight) / deviation / count
        slope = -scale * sums[0] / deviation
        offset = -scale * sums[1] - slope * mean
        shape = (-1, *[1] * (images.dim() - 2))
        gradient += torch.addcmul(offset.view(shape), images, slope.view(shape))
        if weight is None:
            return gradient, *[None] * 6
        return gradient, weight_gradient, bias_gradient, *[None] * 4
