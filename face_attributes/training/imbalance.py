"""Class imbalance: samplers, and losses that depend on class frequency."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from face_attributes.params import ImbalanceParams
from face_attributes.photos.labels import NUM_CLASSES


def class_counts(labels: Tensor) -> Tensor:
    """Count the photos of each class (18, int64)."""
    return torch.bincount(labels, minlength=NUM_CLASSES)


def drawn_per_class(counts: Tensor, params: ImbalanceParams) -> Tensor:
    """Number of photos per class that an undersampled epoch draws (18, int64).

    With strength 1, as many as the rarest class has; with 0, all; in between, geometrically
    interpolated. For other samplers: `counts`.
    """
    if params.sampler != "undersampled":
        return counts
    rarest = counts[counts > 0].min()
    share = (rarest / counts.clamp(min=1)) ** params.sampler_strength
    return (counts * share).round().long()


def steps_per_epoch(counts: Tensor, batch_size: int, params: ImbalanceParams) -> int:
    """Number of batches in an epoch, of at least two photos, from the photos per class (18)."""
    photos = int(drawn_per_class(counts, params).sum())
    return min(math.ceil(photos / batch_size), max(1, photos // 2))


def draw_batches(
    labels: Tensor, batch_size: int, params: ImbalanceParams, generator: torch.Generator
) -> Iterator[Tensor]:
    """Yield the indices of the photos in each batch of an epoch.

    - `as_is`: each photo once
    - `balanced`: with replacement, weighted by class count to the power of minus the strength
      (1 draws all classes equally often: Kang et al., ICLR 2020)
    - `undersampled`: only some photos of common classes, different ones in each epoch

    Batch sizes differ by at most one, because BatchNorm needs more than one photo per batch. With
    an odd number of photos, `batch_size: 2` makes one batch of three.
    """
    counts = class_counts(labels)
    if params.sampler == "balanced":
        weight = counts.clamp(min=1).float() ** -params.sampler_strength
        order = torch.multinomial(
            weight[labels], len(labels), replacement=True, generator=generator
        )
    else:
        order = torch.randperm(len(labels), generator=generator, device=labels.device)
        if params.sampler == "undersampled":
            one_hot = functional.one_hot(labels[order], NUM_CLASSES)
            rank = (one_hot.cumsum(0) * one_hot).sum(1)  # 1, 2, ... within its class
            order = order[rank <= drawn_per_class(counts, params)[labels[order]]]
    yield from order.tensor_split(steps_per_epoch(counts, batch_size, params))


def photo_losses(
    logits: Tensor,
    targets: Tensor,
    counts: Tensor,
    params: ImbalanceParams,
    label_smoothing: float,
) -> Tensor:
    """Loss of each photo (B) from its logits (B x 18) and class shares (B x 18).

    Label smoothing applies to every loss:

    - `cross_entropy`
    - `class_weighted`: cross entropy weighted by inverse class frequency
    - `focal` (Lin et al., ICCV 2017), with the softmax over all classes
    - `logit_adjusted` (Menon et al., ICLR 2021); `logit_tau: 1` is the balanced softmax (Ren et
      al., NeurIPS 2020)

    Args:
        counts: number of training photos per class (18).
    """
    targets = targets * (1 - label_smoothing) + label_smoothing / NUM_CLASSES
    nonzero = counts.clamp(min=1)
    match params.loss:
        case "class_weighted":
            weights = (counts.sum() / nonzero.double() / (counts > 0).sum()).float()
            targets = targets * weights  # mean 1 over the photos
        case "focal":
            targets = targets * (1 - logits.softmax(dim=1)) ** params.focal_gamma
        case "logit_adjusted":
            logits = logits + params.logit_tau * (nonzero / nonzero.sum()).log()
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1)
