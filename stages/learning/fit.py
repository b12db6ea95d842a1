"""Training one network: epochs, early stopping, the best epoch kept."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import UserError
from stages.learning.augment import augment
from stages.learning.device import predict_logits
from stages.learning.network import State, parameter_groups, set_training
from stages.params import TrainParams
from stages.photos.labels import CLASSES
from stages.progress import progress


@dataclass(frozen=True)
class Photos:
    """Crops (N x H x W x 3, uint8) and their labels (N, int64), where the network is."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Fitted:
    """The best epoch's state, and a row for each epoch that ran."""

    state: State
    epoch: int
    history: list[dict[str, float]]


def fit(
    network: nn.Module,
    training: Photos,
    validation: Photos,
    params: TrainParams,
    dtype: torch.dtype,
    seed: int,
    report: Callable[[str], None],
) -> Fitted:
    """Train `network` in place until the epochs are over or `patience` epochs bring nothing better.

    Args:
        network: frozen as wanted, on its device.
        dtype: of the forward pass (autocast); parameters stay float32.
        seed: of the order of the photos and of the augmentation.
        report: is given a line for each epoch.

    Raises:
        UserError: if a loss is not finite, naming the step.
    """
    device = training.labels.device
    generator = torch.Generator(device).manual_seed(seed)
    torch.manual_seed(seed)  # dropout and stochastic depth draw from the global generator
    steps = len(list(batches(training.labels, params, torch.Generator(device))))
    optimizer = make_optimizer(network, params)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps * params.epochs, params.warmup)
    )
    best = Fitted({}, -1, [])
    best_score = -math.inf
    history: list[dict[str, float]] = []
    for epoch in range(params.epochs):
        start = time.perf_counter()
        set_training(network)
        losses = torch.zeros(steps, device=device)
        drawn = batches(training.labels, params, generator)
        shown = progress(drawn, steps, f"epoch {epoch + 1}/{params.epochs}: batches")
        for step, chosen in enumerate(shown):
            images = augment(training.pixels[chosen], params, generator)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = network(images)
            loss = functional.cross_entropy(
                logits.float(), training.labels[chosen], label_smoothing=params.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses[step] = loss.detach()
        check_finite(losses, epoch * steps, params)
        train_loss = losses.mean().item()
        scores = evaluate(network, validation, params.batch_size, dtype)
        check_finite(torch.tensor([scores["loss"]]), (epoch + 1) * steps, params)
        history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "validation_loss": scores["loss"],
                "validation_macro_f1": scores["macro_f1"],
                "validation_accuracy": scores["accuracy"],
            }
        )
        score = -scores["loss"] if params.stop_on == "loss" else scores["macro_f1"]
        if score > best_score:
            best_score = score
            best = Fitted(copy.deepcopy(network.state_dict()), epoch, history)
        report(
            f"epoch {epoch + 1}/{params.epochs}: loss {train_loss:.3f}, validation loss "
            f"{scores['loss']:.3f}, macro F1 {scores['macro_f1']:.3f}, "
            f"{time.perf_counter() - start:.1f} s" + (" (best)" if best.epoch == epoch else "")
        )
        if epoch - best.epoch >= params.patience:
            break
    network.load_state_dict(best.state)
    return best


def batches(labels: Tensor, params: TrainParams, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the photos of each batch of an epoch: each photo once, or drawn by class.

    With `balanced_sampling`, every class is as likely as any other.
    """
    if params.balanced_sampling:
        weight = 1 / torch.bincount(labels, minlength=CLASSES).clamp(min=1)
        order = torch.multinomial(
            weight[labels], len(labels), replacement=True, generator=generator
        )
    else:
        order = torch.randperm(len(labels), generator=generator, device=labels.device)
    cut = order.split(params.batch_size)
    # BatchNorm has no variance to take from a single photo.
    yield from cut[:-1] if len(cut) > 1 and len(cut[-1]) == 1 else cut


def make_optimizer(network: nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over the trainable parameters."""
    groups: list[dict[str, Any]] = parameter_groups(network, params.head_lr, params.backbone_lr)
    if params.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=params.weight_decay, fused=True)
    return torch.optim.SGD(
        groups, momentum=0.9, nesterov=True, weight_decay=params.weight_decay, fused=True
    )


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Linear warm-up over the first share `warmup` of the steps, then half a cosine down to 0."""
    rising = warmup * total
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1.0, total - rising))))


def evaluate(
    network: nn.Module, photos: Photos, batch_size: int, dtype: torch.dtype
) -> dict[str, float]:
    """Loss (cross entropy, no smoothing), macro F1 and accuracy, without augmentation."""
    logits = predict_logits(network, photos.pixels, batch_size, photos.labels.device, dtype)
    labels = photos.labels.cpu()
    predicted = logits.argmax(dim=1)
    return {
        "loss": functional.cross_entropy(logits, labels).item(),
        "macro_f1": float(
            f1_score(
                labels, predicted, labels=range(CLASSES), average="macro", zero_division=np.nan
            )
        ),
        "accuracy": (predicted == labels).float().mean().item(),
    }


def check_finite(losses: Tensor, first_step: int, params: TrainParams) -> None:
    """Stop a run that has diverged; one look an epoch, since each would hold up a GPU.

    Raises:
        UserError: naming the step, the learning rates, and what to try.
    """
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        at = int(bad[0])
        raise UserError(
            f"the loss is {losses[at].item()} at step {first_step + at + 1}, with train.head_lr "
            f"{params.head_lr:g} and train.backbone_lr {params.backbone_lr:g}: try a tenth of "
            "them, more train.warmup, or train.precision: fp32"
        )
