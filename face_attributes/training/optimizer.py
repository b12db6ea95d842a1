"""The optimizer: its learning rates, and steps that are fast on a CPU and safe on a GPU."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from face_attributes.networks.freezing import parameter_groups
from face_attributes.params import TrainParams


def make_optimizer(network: nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    """Make AdamW, or SGD with Nesterov momentum, with a learning rate per part of the network."""
    settings = params.optimizer
    groups = parameter_groups(network, params.head_lr, params.backbone_lr, settings.lr_decay)
    device = next(network.parameters()).device
    optimizer: torch.optim.Optimizer
    if settings.name == "adamw":
        optimizer = torch.optim.AdamW(
            groups, weight_decay=settings.weight_decay, fused=True, capturable=device.type == "cuda"
        )
    else:
        optimizer = torch.optim.SGD(
            groups, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay, fused=True
        )
    # As tensors, so that a recorded step reads the current ones. On a GPU they must be float32.
    dtype = torch.float64 if device.type == "cpu" else torch.float32
    for group in optimizer.param_groups:
        group["peak_lr"], group["lr"] = (
            group["lr"],
            torch.tensor(group["lr"], dtype=dtype, device=device),
        )
    prepare_steps(optimizer)
    return optimizer


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: Tensor) -> None:
    """Set the learning rate of each group, in place, to its peak times a factor (0-dim)."""
    for group in optimizer.param_groups:
        group["lr"].copy_(group["peak_lr"] * factor)


def prepare_steps(optimizer: torch.optim.Optimizer) -> None:
    """Make the steps of a new fused optimizer fast on a CPU, and safe on a GPU."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if any(not weight.is_cpu for weight in weights):
        allocate_moments(optimizer, weights)
        return
    # On a CPU, fused kernels copy tensors that are not contiguous, there and back, which takes
    # longer than the step. A channels_last weight is contiguous as O x h x w x I.
    optimizer.register_step_pre_hook(lambda *_: permute_weights(optimizer, (0, 2, 3, 1)))
    # torch's fused SGD leaves a new momentum uninitialised if its first step overflows in float16.
    optimizer.register_step_pre_hook(
        lambda *_: allocate_moments(optimizer, [w for w in weights if w.grad is not None])
    )
    optimizer.register_step_post_hook(lambda *_: permute_weights(optimizer, (0, 3, 1, 2)))


def allocate_moments(optimizer: torch.optim.Optimizer, weights: Iterable[Tensor]) -> None:
    """Allocate what a fused AdamW or SGD allocates in a weight's first step, with the same values.

    On a GPU before the first batch, so that micro-batches shrink to what is left. In the step it
    would be too late: it cannot be repeated after some of the weights have changed.
    """
    adam = isinstance(optimizer, torch.optim.AdamW)
    names = ("exp_avg", "exp_avg_sq") if adam else ("momentum_buffer",)
    for weight in weights:
        if weight not in optimizer.state:
            state = {name: torch.zeros_like(weight) for name in names}
            if adam:
                state["step"] = torch.zeros((), device=weight.device)
            optimizer.state[weight] = state


def permute_weights(optimizer: torch.optim.Optimizer, order: tuple[int, ...]) -> None:
    """Permute the dimensions of convolution weights and of their gradients, without a copy."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.dim() == 4 and weight.grad is not None:
                gradient, weight.grad = weight.grad, None
                weight.data = weight.data.permute(order)
                weight.grad = gradient.permute(order)


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over the share `warmup` of the steps, then cosine decay to 0."""
    rise = warmup * total
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, total - rise))))
