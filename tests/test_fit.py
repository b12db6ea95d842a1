"""Training: seeded, stopped early, the best epoch kept, never past a loss that is not finite."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.learning import augment, device, fit
from stages.learning.network import build, freeze
from stages.params import TrainParams, read_params
from tests.conftest import Change

SIDE = 16
Knobs = Callable[..., TrainParams]


@pytest.fixture
def knobs(change: Change) -> Knobs:
    """The shipped parameters of training, quick, with changes: knobs(epochs=3)."""

    def of(**changes: object) -> TrainParams:
        quick = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
        for key, value in {**quick, **changes}.items():
            change(f"train.{key}", value)
        return read_params().train

    return of


def photos(count: int = 24, seed: int = 0) -> fit.Photos:
    """Crops whose brightness tells their class."""
    labels = torch.arange(count) % 3
    noise = torch.randint(0, 30, (count, SIDE, SIDE, 3), generator=seeded(seed))
    return fit.Photos((noise + 90 * labels[:, None, None, None]).to(torch.uint8), labels)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 18),
        )  # fmt: skip


def train(network: nn.Module, params: TrainParams, seed: int = 0) -> tuple[fit.Fitted, list[str]]:
    lines: list[str] = []
    held_out = photos(12, seed=9)
    fitted = fit.fit(network, photos(), held_out, params, torch.float32, seed, lines.append)
    return fitted, lines


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns_what_can_be_seen(knobs: Knobs, optimizer: str) -> None:
    rates = {"head_lr": 0.05, "backbone_lr": 0.05, "brightness": 0.0}
    network = small()
    params = knobs(optimizer=optimizer, epochs=20, patience=20, **rates)
    fitted, lines = train(network, params)
    assert fit.evaluate(network, photos(12, seed=9), 8, torch.float32)["accuracy"] == 1
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]
    assert len(lines) == len(fitted.history)


def test_the_same_seed_gives_the_same_weights_and_another_others(knobs: Knobs) -> None:
    params = knobs(balanced_sampling=True, erasing=0.5)
    first, again, other = (train(small(), params, seed)[0].state for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_it_stops_when_nothing_gets_better_and_keeps_the_best_epoch(knobs: Knobs) -> None:
    """With learning rates of 0 only BatchNorm's statistics move: no epoch is better for long."""
    network = small()
    params = knobs(head_lr=0.0, backbone_lr=0.0, epochs=30, patience=2, stop_on="macro_f1")
    fitted, _ = train(network, params)
    assert len(fitted.history) == fitted.epoch + 1 + 2
    best = max(row["validation_macro_f1"] for row in fitted.history)
    assert fitted.history[fitted.epoch]["validation_macro_f1"] == best
    kept = network.state_dict()
    assert all(torch.equal(kept[name], fitted.state[name]) for name in kept)
    now = fit.evaluate(network, photos(12, seed=9), params.batch_size, torch.float32)
    assert now["loss"] == pytest.approx(fitted.history[fitted.epoch]["validation_loss"])


def test_frozen_parts_do_not_move_neither_weights_nor_statistics(knobs: Knobs) -> None:
    network = build("resnet18", 32)
    freeze(network, "layer2")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train(network, knobs(epochs=1))
    after = network.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"layer3", "layer4", "fc"}


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(knobs: Knobs) -> None:
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+.*try a tenth"):
        train(small(), knobs(optimizer="sgd", head_lr=1e30, backbone_lr=1e30, warmup=0.0))


def test_every_photo_is_drawn_once_an_epoch(knobs: Knobs) -> None:
    labels = torch.zeros(20, dtype=torch.long)
    drawn = torch.cat(list(fit.batches(labels, knobs(batch_size=6), seeded(0))))
    assert sorted(drawn.tolist()) == list(range(20))


def test_a_last_batch_of_one_photo_is_left_out(knobs: Knobs) -> None:
    cut = list(fit.batches(torch.zeros(17, dtype=torch.long), knobs(), seeded(0)))
    assert [len(batch) for batch in cut] == [8, 8]


def test_balanced_sampling_draws_every_class_as_often(knobs: Knobs) -> None:
    labels = torch.tensor([0] * 900 + [7] * 100)
    drawn = torch.cat(list(fit.batches(labels, knobs(balanced_sampling=True), seeded(0))))
    assert 0.45 < (labels[drawn] == 7).float().mean() < 0.55


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [fit.learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert rates.index(max(rates)) == 10
    assert rates[10] == pytest.approx(1)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def gradient(count: int = 4) -> Tensor:
    """Photos whose columns tell their place."""
    columns = torch.arange(SIDE, dtype=torch.uint8) * 10
    return columns[None, None, :, None].expand(count, SIDE, SIDE, 3).contiguous()


def test_flipping_always_mirrors_and_never_does_not() -> None:
    pixels = gradient()
    assert torch.equal(augment.shift_and_flip(pixels, 0, 0, seeded(0)), pixels)
    assert torch.equal(augment.shift_and_flip(pixels, 0, 1, seeded(0)), pixels.flip(2))


def test_a_shift_is_at_most_as_far_as_said_and_repeats_the_edge() -> None:
    moved = augment.shift_and_flip(gradient(200), 0.125, 0, seeded(0))[:, 0, :, 0].int()
    by = moved[:, 8] // 10 - 8
    assert set(by.tolist()) == {-2, -1, 0, 1, 2}
    assert set(moved[by == -2][:, :3].unique().tolist()) == {0}


def test_brightness_stays_within_its_range_and_differs_by_photo() -> None:
    bright = augment.brighten(torch.full((50, 2, 2, 3), 100, dtype=torch.uint8), 0.2, seeded(0))
    assert 80 <= bright.min() < bright.max() <= 120
    assert len(bright[:, 0, 0, 0].unique()) == 50


def test_erasing_blanks_a_rectangle_or_none() -> None:
    ones = torch.ones(100, 3, 20, 20)
    assert torch.equal(augment.erase(ones.clone(), 0.0, seeded(0)), ones)
    holes = (augment.erase(ones.clone(), 1.0, seeded(0)) == 0).float().mean(dim=(1, 2, 3))
    assert (holes > 0).all()
    assert (holes <= 0.25).all()


def test_normalised_pixels_are_imagenet_s() -> None:
    image = device.normalise(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    assert image.shape == (1, 3, 2, 2)
    assert image[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)


def test_cuda_is_used_where_it_is_and_asked_for_elsewhere_is_one_line() -> None:
    if torch.cuda.is_available():
        assert device.choose_device("auto", "train.device").type == "cuda"
    else:
        assert device.choose_device("auto", "train.device").type == "cpu"
        with pytest.raises(UserError, match="train.device: cuda cannot be used here"):
            device.choose_device("cuda", "train.device")
    assert device.choose_device("cpu", "train.device").type == "cpu"
