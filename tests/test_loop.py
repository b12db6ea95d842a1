"""The training loop: seeded, stopped early, resumed, restarted smaller when memory runs out."""

import dataclasses
import math
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from face_attributes.errors import UserError
from face_attributes.networks.build import AgesHead, build
from face_attributes.networks.device import Hardware
from face_attributes.networks.views import normalise
from face_attributes.params import TrainParams
from face_attributes.photos.labels import NUM_CLASSES, NUM_YEARS
from face_attributes.training import inputs as inputs_module
from face_attributes.training import loop
from face_attributes.training.checkpoint import Checkpoint
from face_attributes.training.feature_store import FeatureStore
from face_attributes.training.inputs import Inputs, prepare_inputs
from face_attributes.training.loop import FitResult, Fold, crowding
from face_attributes.training.optimizer import learning_rate_factor
from tests.small import CPU, graded_photos, tiny_network, train_params

TRAINING, HELD_OUT = torch.arange(24), torch.arange(24, 36)
CPU16 = Hardware(torch.device("cpu"), torch.float16)
FAST_LEARNING = {"head_lr": 0.05, "backbone_lr": 0.05, "augmentation.brightness": 0.0}


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def quick(**changes: Any) -> TrainParams:
    return train_params(**{"epochs": 2, "batch_size": 8, **changes})


def fit(
    network: nn.Module,
    params: TrainParams,
    number: int = 0,
    change_inputs: Callable[[Inputs], Inputs] = lambda inputs: inputs,
    years: Tensor | None = None,
    hardware: Hardware = CPU,
) -> tuple[FitResult, list[str]]:
    """Fit a fold in the working folder, and delete its checkpoint; returns the reported lines."""
    photos = graded_photos(16 if isinstance(network, nn.Sequential) else 32)
    targets = functional.one_hot(photos.labels, NUM_CLASSES).float()
    if years is not None:
        targets = torch.cat([targets, years], dim=1)
    make_inputs = partial(
        prepare_inputs,
        photos=photos,
        params=params,
        hardware=hardware,
        store=FeatureStore(Path("features"), 10**8),
    )
    checkpoint, lines = Checkpoint(Path("fold0.checkpoint"), f"{params}{number}"), list[str]()
    result = loop.fit(
        network,
        Fold(number, TRAINING, HELD_OUT, targets),
        lambda network: change_inputs(make_inputs(network)),
        params,
        checkpoint,
        lines.append,
        hardware.loss_scaler(),
    )
    checkpoint.delete()
    return result, lines


def copy_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def changed_parts(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    """Parts of a ResNet in which a tensor differs."""
    after = network.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def assert_close(first: nn.Module, second: nn.Module, atol: float = 0.0) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), atol=atol, rtol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_learns_brightness(optimizer: str) -> None:
    params = quick(epochs=20, patience=20, **FAST_LEARNING, **{"optimizer.name": optimizer})
    result, lines = fit(tiny_network(), params)
    assert loop.evaluate(result.inputs, HELD_OUT)["accuracy"] == 1
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert len(lines) == len(result.history)


def test_ages_head_learns_years_and_predicts_classes() -> None:
    """Ages of 20, 45 and 70 years, which are the groups 0, 1 and 2: the brighter, the older."""
    network = tiny_network()
    network[5] = AgesHead(8, (30, 60))  # type: ignore[operator]
    ages = 20 + 25 * graded_photos().labels
    params = quick(
        epochs=20,
        patience=20,
        heads="ages",
        **FAST_LEARNING,
        **{"targets.label_smoothing": 0.0},
    )
    result, _ = fit(network, params, years=functional.one_hot(ages, NUM_YEARS).float())
    assert loop.evaluate(result.inputs, HELD_OUT)["accuracy"] == 1
    assert result.history[0]["train_loss"] < 4, "the loss over classes alone, as in validation"
    with torch.inference_mode():
        logits = network.train()(normalise(graded_photos().pixels[HELD_OUT]))
    assert logits[:, NUM_CLASSES:].argmax(dim=1).tolist() == ages[HELD_OUT].tolist()


def test_training_with_mixup_and_ages_targets() -> None:
    """Mixup mixes the shares of classes and years alike."""
    network = tiny_network()
    network[5] = AgesHead(8, (30, 60))  # type: ignore[operator]
    years = functional.one_hot(20 + 25 * graded_photos().labels, NUM_YEARS).float()
    params = quick(heads="ages", **{"augmentation.mixup": 0.2})
    assert math.isfinite(fit(network, params, years=years)[0].history[-1]["train_loss"])


def test_same_fold_gives_same_weights_and_another_fold_different_ones() -> None:
    params = quick(
        **{
            "imbalance.sampler": "balanced",
            "augmentation.mixup": 0.4,
            "augmentation.rotation": 9.0,
            "optimizer.ema": 0.9,
        }
    )
    first, again, other = (tiny_network() for _ in range(3))
    for network, number in ((first, 1), (again, 1), (other, 2)):
        fit(network, params, number)
    assert_close(first, again)
    assert not torch.equal(first.state_dict()["0.weight"], other.state_dict()["0.weight"])


def test_stops_after_patience_epochs_and_keeps_the_best() -> None:
    """With learning rates of 0 only BatchNorm's statistics change, and soon settle."""
    result, _ = fit(tiny_network(), quick(head_lr=0.0, backbone_lr=0.0, epochs=30, patience=2))
    losses = [row["validation_loss"] for row in result.history]
    assert len(losses) == result.epoch + 1 + 2 < 30
    assert losses[result.epoch] == min(losses)
    assert loop.evaluate(result.inputs, HELD_OUT)["loss"] == pytest.approx(min(losses))


@pytest.mark.parametrize("cached_views", [0, 2])
def test_frozen_parts_keep_weights_and_statistics(cached_views: int) -> None:
    network = build("resnet18", 32)
    before = copy_state(network)
    fit(network, quick(epochs=1, batch_size=24, freeze="layer2", cached_views=cached_views))
    assert changed_parts(before, network) == {"layer3", "layer4", "fc"}


def test_head_trains_first_and_the_best_epoch_is_restored_whole() -> None:
    """The high rate makes the second epoch worse: its changes to the backbone are undone."""
    network = build("resnet18", 32)
    before, changed = copy_state(network), list[set[str]]()

    def record_changes(inputs: Inputs) -> Inputs:
        changed.append(changed_parts(before, network))
        return inputs

    params = quick(
        batch_size=24, head_lr=1e-4, backbone_lr=1.0,
        **{"optimizer.head_epochs": 1, "optimizer.ema": 0.0},
    )  # fmt: skip
    result, _ = fit(network, params, change_inputs=record_changes)
    assert changed == [set(), {"fc"}], "inputs are made before each phase"
    assert len(result.history) == 2
    assert result.epoch == 0
    assert changed_parts(before, network) == {"fc"}
    loss = loop.evaluate(result.inputs, HELD_OUT)["loss"]
    assert loss == pytest.approx(result.history[0]["validation_loss"], rel=1e-4)


def test_moving_average_of_weights_is_kept() -> None:
    """After one step: the decay times the weights before, plus the rest of those after."""
    initial, plain, average = tiny_network(), tiny_network(), tiny_network()
    one_step = {"epochs": 1, "batch_size": 24, "backbone_lr": 0.1, "optimizer.warmup": 0.0}
    fit(plain, quick(**one_step, **{"optimizer.ema": 0.0}))
    fit(average, quick(**one_step, **{"optimizer.ema": 0.75}))
    for name in ("0.weight", "1.running_mean", "5.bias"):
        before, after = initial.state_dict()[name], plain.state_dict()[name]
        torch.testing.assert_close(average.state_dict()[name], 0.75 * before + 0.25 * after)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory")


class FailingBackward(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")


class SmallMemory(nn.Module):
    """Runs out of memory if `fails(call, photos)`, in the forward or the backward pass.

    `failed` holds weak references to the logits of failed graphs, which must not outlive the try.
    """

    def __init__(
        self,
        network: nn.Module,
        fails: Callable[[int, int], bool],
        in_backward: bool,
        error: RuntimeError = OUT_OF_MEMORY,
    ) -> None:
        super().__init__()
        self.network, self.fails, self.in_backward = network, fails, in_backward
        self.error = error
        self.calls, self.failed = 0, list[weakref.ref[Tensor]]()

    def forward(self, batch: Tensor) -> Tensor:
        self.check_that_failed_graphs_are_freed()
        logits: Tensor = self.network(batch)
        self.calls += 1
        if self.training and self.fails(self.calls, len(batch)):
            self.failed.append(weakref.ref(logits))
            if not self.in_backward:
                raise type(self.error)(*self.error.args)
            return FailingBackward.apply(logits)  # type: ignore[no-any-return]
        return logits

    def check_that_failed_graphs_are_freed(self) -> None:
        assert all(reference() is None for reference in self.failed)


def limit_memory(limit: int, in_backward: bool, inputs: Inputs) -> Inputs:
    rest = SmallMemory(inputs.rest, lambda _, photos: photos > limit, in_backward)
    return dataclasses.replace(inputs, rest=rest.train())


@pytest.mark.parametrize(
    ("limit", "in_backward", "failures"),
    [(8, False, 0), (3, False, 2), (1, False, 3), (3, True, 2)],
)
def test_out_of_memory_halves_the_micro_batch_but_not_the_result(
    capsys: pytest.CaptureFixture[str], limit: int, in_backward: bool, failures: int
) -> None:
    params = quick(freeze="0")  # a trainable BatchNorm would use the statistics of micro-batches
    enough, tight = tiny_network(), tiny_network()
    expected, _ = fit(enough, params)
    result, _ = fit(tight, params, change_inputs=partial(limit_memory, limit, in_backward))
    printed = capsys.readouterr().out
    assert printed.count("out of memory: continuing with micro-batches") == failures, "kept"
    assert_close(enough, tight, atol=1e-4)
    assert result.epoch == expected.epoch


@pytest.mark.parametrize("in_backward", [False, True])
def test_failed_try_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, in_backward: bool
) -> None:
    """The second of three micro-batches fails after the first has added its gradients.

    Gradients, BatchNorm's statistics and the random numbers of dropout are those of a run that
    starts with the size that fits. A graph must be freed before `empty_cache`, which returns only
    unused memory to the GPU.
    """
    photos, params = graded_photos(), quick()
    targets = functional.one_hot(photos.labels, NUM_CLASSES).float()
    states, random_numbers = list[dict[str, Tensor]](), list[Tensor]()
    for failing_call, first_size in ((2, 3), (0, 1)):
        network = tiny_network()
        network.insert(5, nn.Dropout(0.5))  # type: ignore[operator]
        run = loop.start_run(
            network, Fold(0, TRAINING, HELD_OUT, targets), params, CPU.loss_scaler()
        )
        run.micro_batch = first_size
        inputs = prepare_inputs(network, photos, params, CPU, FeatureStore(Path("features"), 0))
        memory = SmallMemory(inputs.rest, lambda call, _: call == failing_call, in_backward)  # noqa: B023
        monkeypatch.setattr(torch.cuda, "empty_cache", memory.check_that_failed_graphs_are_freed)
        inputs = dataclasses.replace(inputs, rest=memory.train())
        counts = torch.ones(NUM_CLASSES).long()
        loop.backward_in_micro_batches(
            run, inputs, normalise(photos.pixels[:9]), targets[:9], counts, 9
        )
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        states.append(gradients | dict(network.named_buffers()))
        random_numbers.append(torch.rand(3))
        assert run.micro_batch == 1
    torch.testing.assert_close(*states, atol=0, rtol=0)
    assert torch.equal(*random_numbers)


def test_errors_of_other_libraries_halve_the_micro_batch_too(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def limit(message: str, inputs: Inputs) -> Inputs:
        error = RuntimeError(message)
        rest = SmallMemory(inputs.rest, lambda _, photos: photos > 4, False, error)
        return dataclasses.replace(inputs, rest=rest.train())

    for message in ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "GET was unable to find an engine"):
        fit(tiny_network(), quick(), change_inputs=partial(limit, message))
        assert capsys.readouterr().out == "out of memory: continuing with micro-batches of 4\n"
    with pytest.raises(RuntimeError, match="^device-side assert$"):
        fit(tiny_network(), quick(), change_inputs=partial(limit, "device-side assert"))


@pytest.mark.parametrize("mixup", [0.0, 0.4])
def test_augmentation_that_does_not_fit_is_repeated_in_halves(
    monkeypatch: pytest.MonkeyPatch, mixup: float
) -> None:
    sizes, augment = list[int](), inputs_module.augment

    def augment_few(pixels: Tensor, *others: Any) -> Tensor:
        sizes.append(len(pixels))
        images = augment(pixels, *others)
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return images

    monkeypatch.setattr(inputs_module, "augment", augment_few)
    result, _ = fit(tiny_network(), quick(epochs=1, **{"augmentation.mixup": mixup}))
    assert sizes == [8, 4, 4] * 3
    assert len(result.history) == 1


class Overflowing(nn.Module):
    """A network whose gradient is infinite in some of its training calls, counted from 1."""

    def __init__(self, network: nn.Module, overflows: set[int]) -> None:
        super().__init__()
        self.network, self.overflows, self.calls = network, overflows, 0

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        if self.network.training:
            self.calls += 1
            if self.calls in self.overflows:
                logits.register_hook(lambda gradient: gradient * math.inf)
        return logits


def overflow(calls: set[int], inputs: Inputs) -> Inputs:
    return dataclasses.replace(inputs, rest=Overflowing(inputs.rest, calls).train())


def test_learns_brightness_in_float16() -> None:
    params = quick(epochs=20, patience=20, **FAST_LEARNING)
    result, _ = fit(tiny_network(), params, hardware=CPU16)
    assert loop.evaluate(result.inputs, HELD_OUT)["accuracy"] == 1


def test_step_whose_scaled_gradient_overflows_does_not_count() -> None:
    """Of three steps, the last is the only one that is taken."""
    params = quick(**{"optimizer.ema": 0.75})
    network, photos = tiny_network(), graded_photos()
    fold = Fold(0, TRAINING, HELD_OUT, functional.one_hot(photos.labels, NUM_CLASSES).float())
    before = copy_state(network)
    run = loop.start_run(network, fold, params, CPU16.loss_scaler())
    inputs = prepare_inputs(network, photos, params, CPU16, FeatureStore(Path("features"), 0))
    inputs = overflow({1, 2}, inputs)
    loop.train_epoch(run, inputs, fold, loop.make_step(run, inputs, fold))
    assert run.steps == 1
    expected = params.head_lr * learning_rate_factor(1, 3 * params.epochs, params.optimizer.warmup)
    assert run.optimizer.param_groups[-1]["lr"] == expected
    assert run.scaler.get_scale() == 2**14
    assert all(state["step"] == 1 for state in run.optimizer.state.values())
    for name, average in run.average.items():
        after = network.state_dict()[name]
        assert not torch.equal(after, before[name])
        torch.testing.assert_close(average, 0.75 * before[name] + 0.25 * after)


@pytest.mark.parametrize("hardware", [CPU, CPU16])
def test_a_discarded_step_leaves_nothing_behind(hardware: Hardware) -> None:
    """One that ended after its gradients were unscaled; the next one is as without it."""
    params, photos = quick(), graded_photos()
    fold = Fold(0, TRAINING, HELD_OUT, functional.one_hot(photos.labels, NUM_CLASSES).float())
    states = []
    for interrupted in (False, True):
        network = tiny_network()
        run = loop.start_run(network, fold, params, hardware.loss_scaler())
        inputs = prepare_inputs(network, photos, params, hardware, FeatureStore(Path("f"), 0))
        images, targets = normalise(photos.pixels[:9]), fold.targets[:9]
        step = loop.make_step(run, inputs, fold)
        step(images, targets)
        if interrupted:
            undo = loop.remember_state(network, images.device)
            loop.backward(run, inputs, images, targets, torch.ones(NUM_CLASSES).long(), 9)
            run.scaler.unscale_(run.optimizer)
            loop.discard_step(run)
            undo()
        step(images, targets)
        states.append(copy_state(network))
    torch.testing.assert_close(*states, atol=0, rtol=0)


def test_gradients_that_overflow_at_any_scale_stop_the_run() -> None:
    """The scale of 2 ** 16 is halved to less than 1 in 17 steps, which end in the sixth epoch."""
    params = quick(epochs=9, patience=9)
    result, _ = fit(tiny_network(), params, 0, partial(overflow, set(range(16))), hardware=CPU16)
    assert len(result.history) == 9
    with pytest.raises(UserError, match=r"gradient is (inf|nan) at step 16, .*precision: fp32"):
        fit(tiny_network(), params, 0, partial(overflow, set(range(99))), hardware=CPU16)


def test_single_photo_that_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"does not hold a single photo: lower crop\.side"):
        fit(tiny_network(), quick(), change_inputs=partial(limit_memory, 0, False))


def test_share_that_does_not_fit_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one of two processes: the other one would wait for the statistics of BatchNorm."""
    monkeypatch.setattr(loop, "processes", lambda: 2)
    with pytest.raises(UserError, match="not hold the 8 photos that each process has of a batch: "):
        fit(tiny_network(), quick(), change_inputs=partial(limit_memory, 7, False))


@pytest.mark.parametrize(("epoch", "hardware"), [(1, CPU), (3, CPU), (3, CPU16)])
def test_interrupted_run_resumes_to_the_same_weights(epoch: int, hardware: Hardware) -> None:
    """Killed in the phase of the head, and in the last epoch before early stopping can act."""
    params = quick(
        epochs=4,
        patience=1,
        **{
            "optimizer.head_epochs": 2,
            "optimizer.ema": 0.9,
            "augmentation.mixup": 0.4,
            "augmentation.rotation": 9.0,
        },
    )
    whole, killed, resumed = tiny_network(), tiny_network(), tiny_network()
    expected, _ = fit(whole, params, hardware=hardware)

    class KilledError(Exception):
        pass

    save = Checkpoint.save

    def save_and_die(checkpoint: Checkpoint, content: dict[str, Any]) -> None:
        save(checkpoint, content)
        checkpoint.wait()
        if len(content["history"]) == epoch:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Checkpoint, "save", save_and_die)
        fit(killed, params, hardware=hardware)
    result, lines = fit(resumed, params, hardware=hardware)
    assert lines[0] == f"resuming after epoch {epoch}/4"
    assert result.history == expected.history
    assert_close(whole, resumed)


def test_random_states_are_those_of_the_device_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other GPUs are visible, now or when the run resumes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    targets = functional.one_hot(graded_photos().labels, NUM_CLASSES).float()
    fold = Fold(0, TRAINING, HELD_OUT, targets)
    run = loop.start_run(tiny_network(), fold, quick(), CPU.loss_scaler())
    state = run.state_dict()
    assert len(state["random"]) == 2, "the run's own generator, and the CPU's"
    expected = torch.rand(2, generator=run.generator), torch.rand(2)
    run.load_state_dict(state | {"network": {}})
    assert torch.equal(torch.rand(2, generator=run.generator), expected[0])
    assert torch.equal(torch.rand(2), expected[1])


def test_infinite_loss_stops_the_run_and_names_the_step() -> None:
    params = quick(
        head_lr=1e6, backbone_lr=1e6, **{"optimizer.name": "sgd", "optimizer.warmup": 0.0}
    )
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+.*try a tenth"):
        fit(tiny_network(), params)


def test_infinite_gradient_stops_the_run_and_names_the_step() -> None:
    """A finite loss can have a gradient that is not: the square root at 0."""

    class SquareRootAtZero(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: Tensor) -> Tensor:
            logits: Tensor = self.network(batch)
            return logits + (logits * 0).sqrt()

    def change(inputs: Inputs) -> Inputs:
        return dataclasses.replace(inputs, rest=SquareRootAtZero(inputs.rest))

    with pytest.raises(UserError, match=r"gradient is nan at step 1, with train.head_lr"):
        fit(tiny_network(), quick(), change_inputs=change)


def test_an_epoch_that_other_processes_hold_up_says_so() -> None:
    assert crowding(seconds=10, processor_seconds=19.8, threads=2) == ""
    assert crowding(seconds=10, processor_seconds=10.6, threads=2) == (
        "this epoch got 53% of the processor time that its threads wanted, and may have taken "
        "several times as long: other processes, a CPU limit or a slow disk hold it up; try fewer "
        "than 2 threads: OMP_NUM_THREADS=1"
    )
    assert "OMP_NUM_THREADS" not in crowding(seconds=10, processor_seconds=3, threads=1)
    assert crowding(seconds=1, processor_seconds=0.2, threads=2) == "", "too short to tell"
