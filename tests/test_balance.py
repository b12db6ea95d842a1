"""Samplers and losses against values computed by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stages.learning.balance import (
    batches,
    class_counts,
    class_weights,
    drawn_per_class,
    photo_losses,
    steps_per_epoch,
)
from stages.learning.mix import mix
from stages.params import TrainParams, read_params
from tests.conftest import Change

Knobs = Callable[..., TrainParams]
LABELS = torch.tensor([0] * 900 + [7] * 100)


@pytest.fixture
def knobs(change: Change) -> Knobs:
    def of(**changes: object) -> TrainParams:
        return read_params().train.model_copy(
            update={"batch_size": 8, "label_smoothing": 0.0, **changes}
        )

    return of


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(params: TrainParams, labels: Tensor = LABELS, seed: int = 0) -> Tensor:
    return torch.cat(list(batches(labels, params, seeded(seed))))


def test_every_photo_is_drawn_once_an_epoch(knobs: Knobs) -> None:
    assert sorted(drawn(knobs(batch_size=6)).tolist()) == list(range(1000))


def test_no_batch_is_a_single_photo(knobs: Knobs) -> None:
    cut = list(batches(torch.zeros(17, dtype=torch.long), knobs(), seeded()))
    assert [len(batch) for batch in cut] == [6, 6, 5]


@pytest.mark.parametrize(("strength", "rare"), [(1.0, 0.5), (0.5, 0.25), (0.0, 0.1)])
def test_balanced_sampling_draws_rare_classes_more(
    knobs: Knobs, strength: float, rare: float
) -> None:
    """900 and 100 photos with weights n^-s: shares n^(1-s), which are 9:1, 3:1 and 1:1."""
    places = drawn(knobs(sampler="balanced", sampler_strength=strength))
    assert len(places) == 1000
    assert (LABELS[places] == 7).float().mean() == pytest.approx(rare, abs=0.05)


@pytest.mark.parametrize(("strength", "common"), [(1.0, 100), (0.5, 300), (0.0, 900)])
def test_undersampling_cuts_common_classes_down(knobs: Knobs, strength: float, common: int) -> None:
    params = knobs(sampler="undersampled", sampler_strength=strength)
    places = drawn(params)
    assert class_counts(LABELS[places])[[0, 7]].tolist() == [common, 100]
    assert len(places.unique()) == len(places)
    other = drawn(params, seed=1)
    assert strength == 0 or set(places.tolist()) != set(other.tolist()), "others in each epoch"
    counts = class_counts(LABELS)
    assert drawn_per_class(counts, params).sum() == common + 100
    assert steps_per_epoch(counts, params) == math.ceil((common + 100) / 8)


# Losses of one photo of class 1 with logits 1, 2, and 0 for the other 16 classes. Its softmax has
# the denominator e + e^2 + 16.
LOGITS = torch.tensor([[1.0, 2.0] + [0.0] * 16])
TARGET = functional.one_hot(torch.tensor([1]), 18).float()
COUNTS = torch.tensor([81, 16] + [1] * 16)
DENOMINATOR = math.e + math.e**2 + 16
P = math.e**2 / DENOMINATOR


def loss(params: TrainParams, late: bool = False) -> float:
    return photo_losses(LOGITS, TARGET, COUNTS, params, late).item()


def test_cross_entropy(knobs: Knobs) -> None:
    assert loss(knobs(loss="cross_entropy")) == pytest.approx(-math.log(P))


def test_label_smoothing_goes_with_the_loss(knobs: Knobs) -> None:
    logs = LOGITS.log_softmax(dim=1)[0]
    expected = -(0.9 * logs[1] + 0.1 * logs.mean()).item()
    assert loss(knobs(loss="cross_entropy", label_smoothing=0.1)) == pytest.approx(expected)
    theirs = functional.cross_entropy(LOGITS, torch.tensor([1]), label_smoothing=0.1).item()
    assert expected == pytest.approx(theirs)


def test_class_weights_by_inverse_frequency(knobs: Knobs) -> None:
    """113 photos of 18 classes: each class weighs as much as any other, 113 / (18 n)."""
    expected = 113 / (18 * 16)
    assert loss(knobs(loss="class_weighted")) == pytest.approx(-math.log(P) * expected)


def test_class_weights_by_effective_number(knobs: Knobs) -> None:
    """(1 - b) / (1 - b^n) with b = 0.5 is nearly 1/2 for many and 1 for a single photo."""
    raw = {n: 0.5 / (1 - 0.5**n) for n in (81, 16, 1)}
    mean = (81 * raw[81] + 16 * raw[16] + 16 * raw[1]) / 113
    params = knobs(loss="effective_number", effective_beta=0.5)
    assert loss(params) == pytest.approx(-math.log(P) * raw[16] / mean)
    weights = class_weights(COUNTS, params, late=False)
    assert weights is not None
    assert (weights * COUNTS).sum().item() == pytest.approx(113)


def test_focal_loss(knobs: Knobs) -> None:
    expected = -((1 - P) ** 2) * math.log(P)
    assert loss(knobs(loss="focal", focal_gamma=2.0)) == pytest.approx(expected)
    assert loss(knobs(loss="focal", focal_gamma=0.0)) == pytest.approx(-math.log(P))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_logit_adjustment(knobs: Knobs, tau: float) -> None:
    """With tau = 1, the balanced softmax: n e^z / sum of n e^z."""
    scaled = [81**tau * math.e, 16**tau * math.e**2, 16]
    expected = -math.log(scaled[1] / sum(scaled))
    assert loss(knobs(loss="logit_adjusted", tau=tau)) == pytest.approx(expected, rel=1e-5)


def test_ldam_has_a_margin_and_later_weights(knobs: Knobs) -> None:
    """The margin of the rarest class is 0.5; of one with 16 times as many photos half of that."""
    params = knobs(loss="ldam", ldam_margin=0.5, effective_beta=0.5)
    moved = math.exp(2 - 0.25)
    expected = -math.log(moved / (math.e + moved + 16))
    assert loss(params) == pytest.approx(expected, rel=1e-5)
    weights = class_weights(COUNTS, params, late=True)
    assert weights is not None
    assert loss(params, late=True) == pytest.approx(expected * weights[1].item(), rel=1e-5)
    assert class_weights(COUNTS, params, late=False) is None


def test_cutmix_joins_two_halves(knobs: Knobs) -> None:
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 4)
    targets = functional.one_hot(torch.tensor([4, 5, 6]), 18).float()
    mixed, shares = mix(images, targets, knobs(mix="cutmix", mix_share=1.0))
    assert mixed[0, 0, 0].tolist() == [0, 0, 2, 2]
    assert mixed[1, 2, 3].tolist() == [1, 1, 0, 0]
    assert shares[0, [4, 6]].tolist() == [0.5, 0.5]


def test_mixup_is_as_much_of_each_as_the_labels_say(knobs: Knobs) -> None:
    images = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 3, 4, 4)
    targets = functional.one_hot(torch.tensor([4, 5]), 18).float()
    mixed, shares = mix(images, targets, knobs(mix="mixup", mix_share=1.0))
    assert mixed[0, 0, 0, 0].item() == pytest.approx(shares[0, 5].item())
    assert mixed[1, 0, 0, 0].item() == pytest.approx(shares[1, 5].item())
    assert shares.sum(dim=1).tolist() == pytest.approx([1, 1])


def test_a_share_of_the_batches_is_mixed(knobs: Knobs) -> None:
    torch.manual_seed(0)
    images, targets = torch.randn(2, 3, 4, 4), torch.eye(18)[:2]
    params = knobs(mix="cutmix", mix_share=0.25)
    mixed = [not torch.equal(mix(images, targets, params)[0], images) for _ in range(400)]
    assert sum(mixed) / 400 == pytest.approx(0.25, abs=0.07)
    assert torch.equal(mix(images, targets, knobs(mix="none"))[0], images)
