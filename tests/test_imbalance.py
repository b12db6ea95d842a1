"""Samplers and losses against values computed by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from face_attributes.params import ImbalanceParams
from face_attributes.training.imbalance import (
    class_counts,
    draw_batches,
    drawn_per_class,
    photo_losses,
    steps_per_epoch,
)
from tests.small import seeded, train_params

LABELS = torch.tensor([0] * 900 + [7] * 100)


def imbalance(**changes: Any) -> ImbalanceParams:
    return train_params(**{f"imbalance.{name}": v for name, v in changes.items()}).imbalance


def draw(params: ImbalanceParams, labels: Tensor = LABELS, seed: int = 0) -> Tensor:
    return torch.cat(list(draw_batches(labels, 8, params, seeded(seed))))


def test_every_photo_is_drawn_once_per_epoch() -> None:
    assert sorted(draw(imbalance()).tolist()) == list(range(1000))


@pytest.mark.parametrize(
    ("photos", "size", "sizes"), [(17, 8, [6, 5]), (17, 2, [3, 2]), (16, 2, [2]), (1, 2, [1])]
)
def test_no_batch_has_a_single_photo(photos: int, size: int, sizes: list[int]) -> None:
    """BatchNorm needs two; unless there is only one."""
    labels = torch.zeros(photos, dtype=torch.long)
    batches = list(draw_batches(labels, size, imbalance(), seeded()))
    assert list(dict.fromkeys(map(len, batches))) == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(photos))


@pytest.mark.parametrize(("strength", "rare"), [(1.0, 0.5), (0.5, 0.25), (0.0, 0.1)])
def test_balanced_sampling_draws_rare_classes_more_often(strength: float, rare: float) -> None:
    """900 and 100 photos with weights n^-s: shares n^(1-s), which are 1:1, 3:1 and 9:1."""
    rows = draw(imbalance(sampler="balanced", sampler_strength=strength))
    assert len(rows) == 1000
    assert (LABELS[rows] == 7).float().mean() == pytest.approx(rare, abs=0.05)


@pytest.mark.parametrize(("strength", "common"), [(1.0, 100), (0.5, 300), (0.0, 900)])
def test_undersampling_reduces_common_classes(strength: float, common: int) -> None:
    params = imbalance(sampler="undersampled", sampler_strength=strength)
    rows = draw(params)
    assert class_counts(LABELS[rows])[[0, 7]].tolist() == [common, 100]
    assert len(rows.unique()) == len(rows)
    next_epoch = draw(params, seed=1)
    assert strength == 0 or set(rows.tolist()) != set(next_epoch.tolist())
    counts = class_counts(LABELS)
    assert drawn_per_class(counts, params).sum() == common + 100
    assert steps_per_epoch(counts, 8, params) == math.ceil((common + 100) / 8)


# Losses of one photo of class 1 with logits 1, 2, and 0 for the other 16 classes. Its softmax has
# the denominator e + e^2 + 16.
LOGITS = torch.tensor([[1.0, 2.0] + [0.0] * 16])
TARGET = functional.one_hot(torch.tensor([1]), 18).float()
COUNTS = torch.tensor([81, 16] + [1] * 16)
DENOMINATOR = math.e + math.e**2 + 16
P = math.e**2 / DENOMINATOR


def compute_loss(smoothing: float = 0.0, **changes: Any) -> float:
    return photo_losses(LOGITS, TARGET, COUNTS, imbalance(**changes), smoothing).item()


def test_cross_entropy() -> None:
    assert compute_loss(loss="cross_entropy") == pytest.approx(-math.log(P))


def test_label_smoothing_as_in_torch() -> None:
    expected = functional.cross_entropy(LOGITS, torch.tensor([1]), label_smoothing=0.1).item()
    assert compute_loss(loss="cross_entropy", smoothing=0.1) == pytest.approx(expected)


def test_class_weights_by_inverse_frequency() -> None:
    """113 photos of 18 classes: every class has the same total weight, 113 / 18."""
    weight = 113 / (18 * 16)
    assert compute_loss(loss="class_weighted") == pytest.approx(-math.log(P) * weight)


def test_focal_loss() -> None:
    expected = -((1 - P) ** 2) * math.log(P)
    assert compute_loss(loss="focal", focal_gamma=2.0) == pytest.approx(expected)
    assert compute_loss(loss="focal", focal_gamma=0.0) == pytest.approx(-math.log(P))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logit_adjustment(tau: float) -> None:
    """With tau = 1, the balanced softmax: n e^z / sum of n e^z."""
    scaled = [81**tau * math.e, 16**tau * math.e**2, 16]
    expected = -math.log(scaled[1] / sum(scaled))
    loss = compute_loss(loss="logit_adjusted", logit_tau=tau)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_losses_of_a_class_without_photos_are_finite() -> None:
    counts = COUNTS.clone()
    counts[17] = 0
    for name in ("class_weighted", "logit_adjusted"):
        loss = photo_losses(LOGITS, TARGET, counts, imbalance(loss=name), 0.1)
        assert loss.isfinite().all(), name
