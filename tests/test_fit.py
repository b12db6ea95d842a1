"""Training: seeded, stopped early, the best epoch kept, never past a loss that is not finite."""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from stages.errors import UserError
from stages.learning import convolution, fit
from stages.learning.checkpoint import Checkpoint
from stages.learning.device import Hardware, normalise
from stages.learning.feature_store import FeatureStore
from stages.learning.inputs import Inputs, Photos, keep_zoomed, prepare
from stages.learning.network import AgesHead, build
from stages.learning.views import views_at_test
from stages.params import TrainParams, read_params
from stages.photos.labels import CLASSES, YEARS
from tests.conftest import Change

SIDE = 16
CPU = Hardware(torch.device("cpu"), torch.float32)
TRAINING, HELD_OUT = torch.arange(24), torch.arange(24, 36)
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


def photos(side: int = SIDE) -> Photos:
    """Crops whose brightness tells their class."""
    labels = torch.arange(36) % 3
    noise = torch.randint(0, 30, (36, side, side, 3), generator=seeded(0))
    return Photos((noise + 90 * labels[:, None, None, None]).to(torch.uint8), labels, "sha")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 18),
        )  # fmt: skip


def train(
    network: nn.Module,
    params: TrainParams,
    seed: int = 0,
    change_inputs: Callable[[Inputs], Inputs] = lambda inputs: inputs,
    years: Tensor | None = None,
) -> tuple[fit.Fitted, list[str]]:
    """Fit in the working folder; the lines that were reported."""
    lines: list[str] = []
    side = SIDE if isinstance(network, nn.Sequential) else 32
    store = FeatureStore(Path("features"), 10**8)
    targets = functional.one_hot(photos(side).labels, CLASSES).float()
    own = partial(prepare, photos=photos(side), params=params, hardware=CPU, store=store)
    fitted = fit.fit(
        network,
        lambda network: change_inputs(own(network)),
        TRAINING,
        HELD_OUT,
        targets if years is None else torch.cat([targets, years], dim=1),
        params,
        seed,
        Checkpoint(Path("fold0.checkpoint"), f"{params}{seed}"),
        lines.append,
    )
    return fitted, lines


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns_what_can_be_seen(knobs: Knobs, optimizer: str) -> None:
    rates = {"head_lr": 0.05, "backbone_lr": 0.05, "brightness": 0.0}
    fitted, lines = train(small(), knobs(optimizer=optimizer, epochs=20, patience=20, **rates))
    assert fit.evaluate(fitted.inputs, HELD_OUT)["accuracy"] == 1
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"]
    assert len(lines) == len(fitted.history)


def test_a_head_of_ages_learns_years_and_predicts_classes(knobs: Knobs) -> None:
    """The brighter, the older: 20, 45 and 70 years, which are the groups 0, 1 and 2."""
    network = small()
    network[5] = AgesHead(8, (30, 60))
    years = functional.one_hot(20 + 25 * photos().labels, YEARS).float()
    rates = {"head_lr": 0.05, "backbone_lr": 0.05, "brightness": 0.0, "label_smoothing": 0.0}
    params = knobs(epochs=20, patience=20, heads="ages", mix="mixup", mix_share=0.1, **rates)
    fitted, _ = train(network, params, years=years)
    assert fit.evaluate(fitted.inputs, HELD_OUT)["accuracy"] == 1
    images = normalise(photos().pixels[HELD_OUT])
    with torch.inference_mode():
        assert network.eval()(images).shape == (12, CLASSES)
        of_years = network.train()(images)[:, CLASSES:]
    assert fitted.history[0]["train_loss"] < 4, "of the classes alone, as the validation's"
    assert of_years.argmax(dim=1).tolist() == (20 + 25 * photos().labels[HELD_OUT]).tolist()


def test_the_same_seed_gives_the_same_weights_and_another_others(knobs: Knobs) -> None:
    params = knobs(sampler="balanced", erasing=0.5, mix="mixup", ema=0.9, rotation=9.0)
    networks = [small() for _ in range(3)]
    for network, seed in zip(networks, (1, 1, 2), strict=True):
        train(network, params, seed)
        Path("fold0.checkpoint").unlink()
    first, again, other = map(weights, networks)
    assert same(first, again)
    assert not same(first, other)


def test_it_stops_when_nothing_gets_better_and_keeps_the_best_epoch(knobs: Knobs) -> None:
    """With learning rates of 0 only BatchNorm's statistics move: no epoch is better for long."""
    params = knobs(head_lr=0.0, backbone_lr=0.0, epochs=30, patience=2, stop_on="macro_f1")
    fitted, _ = train(small(), params)
    assert len(fitted.history) == fitted.epoch + 1 + 2
    best = max(row["validation_macro_f1"] for row in fitted.history)
    assert fitted.history[fitted.epoch]["validation_macro_f1"] == best
    now = fit.evaluate(fitted.inputs, HELD_OUT)
    assert now["loss"] == pytest.approx(fitted.history[fitted.epoch]["validation_loss"])


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    """Parts of a ResNet in which a tensor is another than before."""
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("cached_views", [0, 2])
def test_frozen_parts_do_not_move_neither_weights_nor_statistics(
    knobs: Knobs, cached_views: int
) -> None:
    network = build("resnet18", 32)
    before = weights(network)
    train(network, knobs(epochs=1, freeze="layer2", cached_views=cached_views))
    assert moved(before, weights(network)) == {"layer3", "layer4", "fc"}


def test_the_head_trains_first_and_then_one_part_more_at_a_time(knobs: Knobs) -> None:
    network = build("resnet18", 32)
    before = weights(network)
    seen: list[set[str]] = []

    def look(inputs: Inputs) -> Inputs:
        seen.append(moved(before, weights(network)))
        return inputs

    params = knobs(epochs=4, patience=9, freeze="layer2", head_epochs=1, unfreeze_every=1)
    train(network, params, change_inputs=look)
    assert seen == [set(), {"fc"}, {"layer4", "fc"}]


def test_the_best_epoch_comes_back_whole_though_more_trained_after_it(knobs: Knobs) -> None:
    """The head's first epoch is the best here: what the second did to the backbone is undone."""
    network = build("resnet18", 32)
    before = weights(network)
    params = knobs(epochs=2, head_epochs=1, head_lr=1e-4, backbone_lr=10.0, ema=0.0)
    fitted = train(network, params)[0]
    assert fitted.epoch == 0
    assert moved(before, weights(network)) == {"fc"}
    now = fit.evaluate(fitted.inputs, HELD_OUT)
    assert now["loss"] == pytest.approx(fitted.history[0]["validation_loss"], rel=1e-4)


def test_cached_views_without_augmentation_equal_no_cache_to_rounding(knobs: Knobs) -> None:
    plain = {
        "shift": 0.0,
        "flip": 0.0,
        "brightness": 0.0,
        "rotation": 0.0,
        "zoom": 0.0,
        "erasing": 0.0,
        "freeze": "layer3",
    }
    networks = [build("resnet18", 32), build("resnet18", 32)]
    histories = []
    for network, views in zip(networks, (0, 1), strict=True):
        # A batch of all photos: the cached loop draws a view for each and so another order.
        params = knobs(**plain, cached_views=views, batch_size=24, epochs=3)
        histories.append(train(network, params)[0].history)
    for fresh, cached in zip(*histories, strict=True):
        assert fresh == pytest.approx(cached, rel=1e-3)


def test_views_are_kept_for_each_augmentation(knobs: Knobs) -> None:
    def kept(**augmentation: float) -> int:
        train(
            build("resnet18", 32), knobs(epochs=1, freeze="layer4", cached_views=1, **augmentation)
        )
        Path("fold0.checkpoint").unlink()
        return len(list(Path("features").glob("*.features")))

    counts = [kept(), kept(), kept(rotation=5.0), kept(zoom=0.1), kept(erasing=0.5)]
    assert [count - counts[0] for count in counts] == [0, 0, 1, 2, 3]


def test_a_moving_average_is_what_is_kept(knobs: Knobs) -> None:
    """After one step it is the decay times the weights before plus the rest of those after."""
    initial, plain, averaged = small(), small(), small()
    one_step = {"epochs": 1, "batch_size": 24, "warmup": 0.0, "backbone_lr": 0.1}
    train(plain, knobs(**one_step, ema=0.0))
    Path("fold0.checkpoint").unlink()
    train(averaged, knobs(**one_step, ema=0.75))
    for name in ("0.weight", "1.running_mean", "5.bias"):
        before, after = initial.state_dict()[name], plain.state_dict()[name]
        expected = 0.75 * before + 0.25 * after
        assert torch.allclose(averaged.state_dict()[name], expected, atol=1e-6), name


@pytest.mark.parametrize("freeze", ["none", "layer3"])
def test_flipping_and_zooming_at_test_average_the_views(knobs: Knobs, freeze: str) -> None:
    network = build("resnet18", 32)
    params = knobs(epochs=1, freeze=freeze, flip_at_test=True, zoom_at_test=0.2)
    inputs = train(network, params)[0].inputs
    images = normalise(photos(32).pixels[HELD_OUT])
    kept = keep_zoomed(inputs, FeatureStore(Path("features"), 10**9))
    assert (kept.zoomed is not None) == (freeze != "none")
    for zoomed in (False, True):
        views = views_at_test(images, True, 0.2 * zoomed)
        with torch.inference_mode():
            mean = torch.stack([network.eval()(view).softmax(1) for view in views]).mean(0)
        for some in (inputs, kept):
            assert torch.allclose(some.predict(HELD_OUT, zoomed).exp(), mean, atol=1e-4)


def test_zoomed_views_are_kept_for_each_zoom_where_there_is_room(
    knobs: Knobs, capsys: pytest.CaptureFixture[str]
) -> None:
    params = knobs(epochs=1, freeze="layer4", flip_at_test=True, zoom_at_test=0.1)
    inputs = train(build("resnet18", 32), params)[0].inputs
    store, before = FeatureStore(Path("features"), 10**8), len(list(Path("features").iterdir()))
    kept = [
        keep_zoomed(dataclasses.replace(inputs, params=knobs(zoom_at_test=zoom)), store).zoomed
        for zoom in (0.1, 0.1, 0.2, 0.0)
    ]
    assert [None if one is None else one.shape[:2] for one in kept] == [(36, 4)] * 3 + [None]
    assert len(list(Path("features").iterdir())) == before + 2

    assert keep_zoomed(inputs, FeatureStore(Path("none"), 0)) == inputs
    Path("file").touch()
    assert keep_zoomed(inputs, FeatureStore(Path("file"), 10**8)) is inputs
    assert "features of zoomed views are not kept: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("optimizer", "plainly"),
    [
        ("adamw", partial(torch.optim.AdamW, weight_decay=0.01)),
        ("sgd", partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=0.01)),
    ],
)
def test_a_step_is_that_of_torch_s_optimizer(
    knobs: Knobs, optimizer: str, plainly: Callable[..., torch.optim.Optimizer]
) -> None:
    """Kernels of all shapes in channels_last, and one that does not train yet."""
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, (3, 1), groups=8), nn.Conv2d(8, 16, 1), nn.Flatten(1),
        nn.Linear(16 * 4 * 6, 2),
    )  # fmt: skip
    network = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    parameters = list(network.parameters())
    groups = [{"params": list(part.parameters()), "lr": 0.1} for part in (network[0], network[1:])]
    stepped = fit.make_optimizer(groups, knobs(optimizer=optimizer, weight_decay=0.01))
    views = [view for group in stepped.param_groups for view in group["params"]]
    for parameter, view in zip(parameters, views, strict=True):
        assert view.is_contiguous()
        assert view.data_ptr() == parameter.data_ptr()
    constant = torch.optim.lr_scheduler.LambdaLR(stepped, lambda _: 1.0)
    run = fit.Run(network, parameters, stepped, constant, seeded(0), 1, [])
    by_torch = plainly(plain.parameters(), lr=0.1)
    for step in range(4):
        images = torch.randn(4, 3, 8, 8, generator=seeded(step))
        for one in (plain, network):
            one[0].requires_grad_(step > 1)
            one(images).square().mean().backward()
        run.step()
        by_torch.step()
        by_torch.zero_grad()
        assert all(parameter.grad is None for parameter in parameters)
        for name, expected in plain.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], expected, atol=1e-5, rtol=1e-4)


def test_the_last_layers_are_matrix_products(knobs: Knobs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, convolve = [], convolution.convolve

    def noted(images: Tensor, *others: Any) -> Tensor:
        seen.append(images.shape[1])
        return convolve(images, *others)

    monkeypatch.setattr(convolution, "convolve", noted)
    inputs = train(build("resnet18", 32), knobs(epochs=1, flip_at_test=True))[0].inputs
    steps, views = 3, 2
    # 512 channels come into three of layer4's convolutions, and the held-out photos are one chunk
    assert seen.count(512) == 3 * (steps + views)
    seen.clear()
    inputs.predict(HELD_OUT)
    assert seen.count(512) == 3 * views


class OutOfMemory(nn.Module):
    """Passes on at most `most` photos, as a GPU of so much memory would."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most = network, most

    def forward(self, batch: Tensor) -> Tensor:
        if self.training and len(batch) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.network(batch)


@pytest.mark.parametrize("most", [1, 3, 8])
def test_out_of_memory_halves_the_micro_batch_and_not_the_result(
    knobs: Knobs, capsys: pytest.CaptureFixture[str], most: int
) -> None:
    def narrow(inputs: Inputs) -> Inputs:
        return dataclasses.replace(inputs, rest=OutOfMemory(inputs.rest, most).train())

    # BatchNorm takes its statistics from micro-batches: a frozen one does not.
    params = knobs(epochs=2, freeze="0")
    networks = [small(), small()]
    wide = train(networks[0], params)[0]
    Path("fold0.checkpoint").unlink()
    tight = train(networks[1], params, change_inputs=narrow)[0]
    printed = capsys.readouterr().out
    assert printed.count("out of memory") == {1: 3, 3: 2, 8: 0}[most], "remembered for the run"
    for name, tensor in weights(networks[0]).items():
        assert torch.allclose(tensor, weights(networks[1])[name], atol=1e-4), name
    assert wide.epoch == tight.epoch


def test_a_photo_that_does_not_fit_alone_is_one_line(knobs: Knobs) -> None:
    def none(inputs: Inputs) -> Inputs:
        return dataclasses.replace(inputs, rest=OutOfMemory(inputs.rest, 0).train())

    with pytest.raises(UserError, match=r"does not hold one photo: lower crop\.side"):
        train(small(), knobs(), change_inputs=none)


def test_micro_batches_may_be_asked_for(knobs: Knobs) -> None:
    networks = [small(), small()]
    for network, size in zip(networks, ("auto", 3), strict=True):
        train(network, knobs(freeze="0", micro_batch=size))
    for name, tensor in weights(networks[0]).items():
        assert torch.allclose(tensor, weights(networks[1])[name], atol=1e-4), name


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_goes_on_to_the_same_weights(knobs: Knobs, after: int) -> None:
    params = knobs(epochs=4, patience=1, erasing=0.5, head_epochs=2, ema=0.9, mix="mixup")
    whole, interrupted, again = small(), small(), small()
    expected = train(whole, params)[0]
    Path("fold0.checkpoint").unlink()

    class KilledError(Exception):
        pass

    def kill(checkpoint: Checkpoint, content: dict[str, object]) -> None:
        saved(checkpoint, content)
        checkpoint.wait()
        if len(content["history"]) == after:  # type: ignore[arg-type]
            raise KilledError

    saved = Checkpoint.save
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Checkpoint, "save", kill)
        train(interrupted, params)
    fitted, lines = train(again, params)
    assert lines[0] == f"goes on after epoch {after}/4"
    assert fitted.history == expected.history
    assert same(weights(whole), weights(again))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(knobs: Knobs) -> None:
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+.*try a tenth"):
        train(small(), knobs(optimizer="sgd", head_lr=1e30, backbone_lr=1e30, warmup=0.0))


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_the_step(knobs: Knobs) -> None:
    """A loss that is finite may have a gradient that is not, as at the end of a square root."""

    class Edge(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = self.network(batch)
            return logits + (logits * 0).sqrt()

    def change(inputs: Inputs) -> Inputs:
        return dataclasses.replace(inputs, rest=Edge(inputs.rest))

    with pytest.raises(UserError, match=r"gradient is nan at step 1, with train.head_lr"):
        train(small(), knobs(), change_inputs=change)


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [fit.learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert rates.index(max(rates)) == 10
    assert rates[10] == pytest.approx(1)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)
