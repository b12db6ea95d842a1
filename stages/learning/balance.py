"""Imbalance: which photos an epoch draws, and what a mistake costs, by how common a class is."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from stages.params import TrainParams
from stages.photos.labels import CLASSES


def class_counts(labels: Tensor) -> Tensor:
    """Photos of each class (18, int64)."""
    return torch.bincount(labels, minlength=CLASSES)


def drawn_per_class(counts: Tensor, params: TrainParams) -> Tensor:
    """How many photos of each class an epoch draws (18, int64) with `sampler: undersampled`.

    With strength 1 as many as of the rarest class, with 0 all, between them in between, on a
    logarithmic scale; with the other samplers an epoch draws as many photos as there are.
    """
    if params.sampler != "undersampled":
        return counts
    rarest = counts[counts > 0].min()
    share = (rarest / counts.clamp(min=1)) ** params.sampler_strength
    return (counts * share).round().long()


def batches(labels: Tensor, params: TrainParams, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of the photos of each batch of an epoch.

    Each photo once (`as_is`); photos drawn with replacement, a class with a weight of its count to
    the power of minus the strength (`balanced`: 1 draws every class equally often, as in
    Kang et al., ICLR 2020); or common classes cut down, to other photos in each epoch
    (`undersampled`). Batches differ in size by one at the most: BatchNorm has no variance to take
    from a last batch of a single photo.
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
            of_class = functional.one_hot(labels[order], CLASSES)
            place = (of_class.cumsum(0) * of_class).sum(1)  # first, second, ... of its class
            order = order[place <= drawn_per_class(counts, params)[labels[order]]]
    yield from order.tensor_split(steps_per_epoch(counts, params))


def steps_per_epoch(counts: Tensor, params: TrainParams) -> int:
    """How many batches an epoch has."""
    return -(-int(drawn_per_class(counts, params).sum()) // params.batch_size)


def class_weights(counts: Tensor, params: TrainParams, late: bool) -> Tensor | None:
    """What a photo of each class counts in the loss (18), 1 on average over the photos, or None.

    Args:
        late: whether the deferred re-weighting of LDAM has begun.
    """
    known = counts.clamp(min=1).double()
    if params.loss == "class_weighted":
        weights = 1 / known
    elif params.loss == "effective_number" or (params.loss == "ldam" and late):
        # Class-Balanced Loss (Cui et al., CVPR 2019)
        weights = (1 - params.effective_beta) / (1 - params.effective_beta**known)
    else:
        return None
    return (weights * counts.sum() / (weights * counts).sum()).float()


def photo_losses(
    logits: Tensor, targets: Tensor, counts: Tensor, params: TrainParams, late: bool = False
) -> Tensor:
    """Loss of each photo (B), from logits (B x 18) and the shares of its classes (B x 18).

    Label smoothing goes with each of the losses:

    - `cross_entropy`; `class_weighted` by inverse frequency; `effective_number` (Cui et al.,
      CVPR 2019)
    - `focal` (Lin et al., ICCV 2017), over the softmax of all classes
    - `logit_adjusted` (Menon et al., ICLR 2021); with `tau: 1` the balanced softmax (Ren et al.,
      NeurIPS 2020)
    - `ldam` (Cao et al., NeurIPS 2019): a margin that grows with rarity, on plain logits

    Args:
        counts: photos of each class in the training part (18).
        late: whether the deferred re-weighting of LDAM has begun.
    """
    smoothed = targets * (1 - params.label_smoothing) + params.label_smoothing / CLASSES
    known = counts.clamp(min=1).float()
    match params.loss:
        case "logit_adjusted":
            logits = logits + params.tau * (known / known.sum()).log()
        case "ldam":
            margins = params.ldam_margin * (known.min() / known) ** 0.25
            logits = logits - margins * targets
        case "focal":
            surprise = 1 - logits.softmax(dim=1)
            smoothed = smoothed * surprise**params.focal_gamma
    weights = class_weights(counts, params, late)
    if weights is not None:
        smoothed = smoothed * weights
    return -(smoothed * logits.log_softmax(dim=1)).sum(dim=1)
