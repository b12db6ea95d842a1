"""Train one network, with early stopping and a checkpoint per epoch; keep the best epoch."""

import contextlib
import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import get_total_norm

from face_attributes.errors import UserError
from face_attributes.networks.build import State
from face_attributes.networks.device import (
    does_not_fit,
    global_generators,
    in_halves,
    is_out_of_memory,
)
from face_attributes.networks.freezing import (
    freeze,
    parts,
    set_train_modes,
    trained_names,
)
from face_attributes.params import TrainParams
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.progress import progress
from face_attributes.scoring.metrics import accuracy, confusion, macro_f1
from face_attributes.training.augmentation import mix
from face_attributes.training.checkpoint import Checkpoint
from face_attributes.training.data_parallel import (
    check_agreement,
    first_process_first,
    own_random_numbers,
    own_share,
    processes,
    rank,
    sum_gradients,
    sum_over_processes,
)
from face_attributes.training.graphed_step import GraphedStep, Step
from face_attributes.training.imbalance import (
    class_counts,
    draw_batches,
    drawn_per_class,
    photo_losses,
    steps_per_epoch,
)
from face_attributes.training.inputs import Inputs, plain_views
from face_attributes.training.optimizer import (
    learning_rate_factor,
    make_optimizer,
    set_learning_rates,
)
from face_attributes.training.targets import main_class

CROWDED = 0.7
"""Share of its threads' time below which an epoch on a CPU was held up. Alone on its cores it gets
nearly all of it: OpenMP's threads spin while they wait for each other."""
LONG_ENOUGH = 5.0
"""Seconds of an epoch whose share says something."""


@dataclass(frozen=True)
class Fold:
    """Training and validation data of a fold, on the network's device.

    `training` and `validation` are rows of the photos (int64); `targets` are the class shares of
    all photos, followed by the shares of years with `heads: ages` (N x 18 or more).
    """

    number: int
    training: Tensor
    validation: Tensor
    targets: Tensor


@dataclass(frozen=True)
class FitResult:
    """The best epoch (from 0), inputs for its network, and a history with a row per epoch."""

    inputs: Inputs
    epoch: int
    history: list[dict[str, float]]


@dataclass
class TrainingRun:
    """Everything that changes during a run, and therefore everything a checkpoint holds.

    `schedule` has the factor of the learning rates in each step (float64), and `steps` counts the
    steps taken (0-dim, int64), both on the device: in float16, the host need not wait to know
    whether a step counts. `names` are the tensors that train at some time during the run; states
    hold only these.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Tensor
    steps: Tensor
    scaler: torch.amp.GradScaler
    generator: torch.Generator
    micro_batch: int
    names: list[str]
    average: State = field(default_factory=dict)
    last_state: State = field(default_factory=dict)
    best_state: State = field(default_factory=dict)
    best_loss: float = math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)

    def snapshot(self) -> State:
        """Copy the network's tensors in `names`."""
        state = self.network.state_dict()
        return {name: state[name].clone() for name in self.names}

    def generators(self) -> list[torch.Generator]:
        """All random generators that the run draws from."""
        return [self.generator, *global_generators(self.generator.device)]

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and strings that the run does not change afterwards."""
        return {
            "network": self.last_state,
            "average": {name: tensor.clone() for name, tensor in self.average.items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "steps": self.steps.clone(),
            "scaler": self.scaler.state_dict(),
            "random": [generator.get_state() for generator in self.generators()],
            "micro_batch": self.micro_batch,
            "best": [self.best_state, self.best_loss, self.best_epoch],
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self.network.load_state_dict(state["network"], strict=False)
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        self.scaler.load_state_dict(state["scaler"])
        for generator, random in zip(self.generators(), state["random"], strict=True):
            generator.set_state(random.cpu())
        self.micro_batch = state["micro_batch"]
        self.best_state, self.best_loss, self.best_epoch = state["best"]
        self.history = state["history"]


def fit(
    network: nn.Module,
    fold: Fold,
    make_inputs: Callable[[nn.Module], Inputs],
    params: TrainParams,
    checkpoint: Checkpoint,
    report: Callable[[str], None],
    scaler: torch.amp.GradScaler,
) -> FitResult:
    """Train `network` in place for `epochs`, or until `patience` epochs bring no improvement.

    If there is a checkpoint, resume from it and reach the same result. Of several processes, the
    first writes checkpoints, and all reach the same result.

    Args:
        network: already moved to the device, channels_last.
        make_inputs: returns the inputs of the network for its current freeze point.
        report: called with one line per epoch.
        scaler: from `Hardware.loss_scaler`.

    Raises:
        UserError: if the network has no part named `params.freeze`, a loss or gradient is not
            finite, or a single photo (of several processes: a share of a batch) does not fit into
            the GPU's memory.
    """
    run = start_run(network, fold, params, scaler)
    with first_process_first():
        saved = checkpoint.load(fold.targets.device)
    if saved is not None:
        run.load_state_dict(saved)
        report(f"resuming after epoch {len(run.history)}/{params.epochs}")

    inputs, step, point, crowded = None, None, "", ""
    for epoch in range(len(run.history), params.epochs):
        if epoch - run.best_epoch > params.patience:
            break
        if inputs is None or step is None or point != freeze_point(network, params, epoch):
            point = freeze_point(network, params, epoch)
            freeze(network, point)
            # Free the old features first: the new ones may need the same GPU memory.
            del inputs, step
            with first_process_first():
                inputs = make_inputs(network)
            step = make_step(run, inputs, fold)
        start, processor_start = time.perf_counter(), time.process_time()
        train_loss = train_epoch(run, inputs, fold, step)
        run.last_state = run.snapshot()
        with averaged_weights(run):
            scores = evaluate(inputs, fold.validation)
            state = run.snapshot() if run.average else run.last_state
        check_finite({"validation loss": torch.tensor([scores["loss"]])}, int(run.steps), params)
        run.history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "validation_loss": scores["loss"],
                "validation_macro_f1": scores["macro_f1"],
                "validation_accuracy": scores["accuracy"],
            }
        )
        if scores["loss"] < run.best_loss:
            run.best_loss, run.best_epoch, run.best_state = scores["loss"], epoch, state
        if rank() == 0:
            checkpoint.save(run.state_dict())
        seconds = time.perf_counter() - start
        report(
            f"epoch {epoch + 1}/{params.epochs}: loss {train_loss:.3f}, validation loss "
            f"{scores['loss']:.3f}, macro F1 {scores['macro_f1']:.3f}, {seconds:.1f} s"
            + (" (best)" if run.best_epoch == epoch else "")
        )
        if fold.targets.is_cpu and processes() == 1 and not crowded:
            processor_seconds = time.process_time() - processor_start
            if crowded := crowding(seconds, processor_seconds, torch.get_num_threads()):
                report(crowded)
    checkpoint.wait()
    network.load_state_dict(run.best_state, strict=False)
    if inputs is None:  # the checkpoint was that of the last epoch
        with first_process_first():
            inputs = make_inputs(network)
    return FitResult(inputs, run.best_epoch, run.history)


def crowding(seconds: float, processor_seconds: float, threads: int) -> str:
    """Say how much processor time an epoch on a CPU lacked; "" if hardly any.

    Threads wait for each other many times in a step, so that one that gets no core stops all.

    Args:
        seconds: what the epoch took.
        processor_seconds: processor time of all threads in it.
    """
    share = processor_seconds / (seconds * threads)
    if seconds < LONG_ENOUGH or share >= CROWDED:
        return ""
    fewer = "" if threads == 1 else f"; try fewer than {threads} threads: OMP_NUM_THREADS=1"
    return (
        f"this epoch got {share:.0%} of the processor time that its threads wanted, and may have "
        "taken several times as long: other processes, a CPU limit or a slow disk hold it up"
        f"{fewer}"
    )


def start_run(
    network: nn.Module, fold: Fold, params: TrainParams, scaler: torch.amp.GradScaler
) -> TrainingRun:
    """Seed the generators, freeze the network, and make its optimizer and schedule.

    Raises:
        UserError: if a batch has fewer photos than there are processes.
    """
    seed = params.seed + fold.number
    torch.manual_seed(seed)  # dropout, stochastic depth and mixup draw from the global generator
    freeze(network, params.freeze)
    counts = class_counts(main_class(fold.targets[fold.training]))
    batches = steps_per_epoch(counts, params.batch_size, params.imbalance)
    smallest = int(drawn_per_class(counts, params.imbalance).sum()) // batches
    if smallest < processes():
        raise UserError(
            f"{processes()} processes cannot share a batch of {smallest}: start fewer, or raise "
            f"train.batch_size (is {params.batch_size})"
        )
    steps = batches * params.epochs
    optimizer = make_optimizer(network, params)
    factors = [
        learning_rate_factor(step, steps, params.optimizer.warmup) for step in range(steps + 1)
    ]
    device = fold.targets.device
    run = TrainingRun(
        network,
        optimizer,
        torch.tensor(factors, dtype=torch.float64, device=device),
        torch.zeros((), dtype=torch.int64, device=device),
        scaler,
        torch.Generator(device).manual_seed(seed),
        params.batch_size,
        trained_names(network),
    )
    set_learning_rates(optimizer, run.schedule[0])
    if params.optimizer.ema:
        run.average = {name: t for name, t in run.snapshot().items() if t.is_floating_point()}
    return run


def freeze_point(network: nn.Module, params: TrainParams, epoch: int) -> str:
    """Last frozen part in an epoch: all but the head for `head_epochs`, then `params.freeze`."""
    if epoch < params.optimizer.head_epochs:
        return list(parts(network))[-1]
    return params.freeze


def make_step(run: TrainingRun, inputs: Inputs, fold: Fold) -> Step:
    """Return `take_step` for batches of these inputs: on a GPU, as a CUDA graph."""
    counts = class_counts(main_class(fold.targets[fold.training]))
    eager = partial(take_step, run, inputs, counts, backward_in_micro_batches)
    if inputs.hardware.device.type == "cpu" or processes() > 1:
        return eager
    torch.cuda.reset_peak_memory_stats(inputs.hardware.device)
    recorded = partial(take_step, run, inputs, counts, backward)
    return GraphedStep(eager, recorded, partial(discard_step, run))


def train_epoch(run: TrainingRun, inputs: Inputs, fold: Fold, step: Step) -> float:
    """Train one epoch and return the mean loss of its batches.

    Args:
        step: from `make_step`, for the current freeze point.

    Raises:
        UserError: as `fit`.
    """
    set_train_modes(run.network)
    params, targets = inputs.params, fold.targets[fold.training]
    labels = main_class(targets)
    batches = list(draw_batches(labels, params.batch_size, params.imbalance, run.generator))
    mix_photos = partial(mix, mixup=params.augmentation.mixup)
    losses, norms = torch.zeros(2, len(batches), device=labels.device)
    first_step = len(run.history) * len(batches) + 1
    label = f"epoch {len(run.history) + 1}/{params.epochs}: batches"
    rows = [fold.training[batch] for batch in batches]
    loaded = progress(inputs.training_batches(rows, run.generator), len(batches), label)
    for number, (batch, images) in enumerate(zip(batches, loaded, strict=True)):
        images, shares = in_halves(
            mix_photos, images, targets[batch], generators=[torch.default_generator]
        )
        with own_random_numbers(images.device, first_step + number):
            losses[number], norms[number] = step(images, shares)
    if run.scaler.is_enabled() and run.scaler.get_scale() >= 1:
        norms.nan_to_num_(0, 0, 0)  # of skipped steps; else no scale keeps gradients in float16
    sum_over_processes(losses)
    check_finite({"loss": losses, "gradient": norms}, first_step, params)
    check_agreement(norms, run.generators())
    return float(losses.mean())


def take_step(
    run: TrainingRun,
    inputs: Inputs,
    counts: Tensor,
    backward: Callable[..., Tensor],
    images: Tensor,
    targets: Tensor,
) -> tuple[Tensor, Tensor]:
    """Train on a batch: gradients, weights, learning rates, moving average.

    A step whose scaled gradient overflows in float16 changes no weight and does not count; then the
    loss is scaled less.

    Args:
        counts: number of training photos per class (18).
        backward: `backward`, or `backward_in_micro_batches`.
        images: from `Inputs.training_batches`, a whole batch (B x ...).
        targets: shares of the classes and, with `heads: ages`, of the years (B x 18 or more).

    Returns:
        The loss over classes (of one of several processes, its part), and the norm of the gradient:
        not finite if the step was skipped (each 0-dim).
    """
    loss = backward(run, inputs, own_share(images), own_share(targets), counts, len(images))
    sum_gradients(run.network)
    run.scaler.unscale_(run.optimizer)
    norm = get_total_norm(gradients(run.network))
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.optimizer.zero_grad()
    counts_as_step = norm.isfinite()
    run.steps += counts_as_step
    set_learning_rates(run.optimizer, run.schedule.take(run.steps))
    if run.average:
        weights = run.network.state_dict()
        share = (1 - inputs.params.optimizer.ema) * counts_as_step
        for name, average in run.average.items():
            average.lerp_(weights[name], share)
    return loss, norm


def discard_step(run: TrainingRun) -> None:
    """Forget the gradients of an unfinished step, and that the scaler may have seen them."""
    run.network.zero_grad()
    run.scaler.update(run.scaler.get_scale())


def gradients(network: nn.Module) -> list[Tensor]:
    """List the gradients of all parameters that have one."""
    return [p.grad for p in network.parameters() if p.grad is not None]


def backward_in_micro_batches(
    run: TrainingRun,
    inputs: Inputs,
    images: Tensor,
    targets: Tensor,
    counts: Tensor,
    batch_size: int,
) -> Tensor:
    """Do what `backward` does, in micro-batches that fit into memory.

    On out-of-memory, retry at half the size and keep that size, with BatchNorm's running statistics
    and the random generators as before the failed try. One of several processes does not retry: the
    others would wait for its statistics.

    Raises:
        UserError: if a single photo does not fit, or the share of one of several processes.
    """
    undo_forward_passes = remember_state(run.network, images.device)
    while True:
        try:
            return backward(run, inputs, images, targets, counts, batch_size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if processes() > 1:
                share = f"the {len(images)} photos that each process has of a batch"
                remedy = "start more processes, or lower train.batch_size or crop.side"
                raise does_not_fit(error, share, remedy) from None
            if run.micro_batch == 1:
                raise does_not_fit(error) from None
        # After the except block, because its traceback keeps the failed graph alive.
        run.network.zero_grad()
        undo_forward_passes()
        run.micro_batch = max(1, min(run.micro_batch, len(images)) // 2)
        print(f"out of memory: continuing with micro-batches of {run.micro_batch}", flush=True)
        torch.cuda.empty_cache()


def remember_state(network: nn.Module, device: torch.device) -> Callable[[], None]:
    """Return a function that restores what forward passes change.

    That is BatchNorm's running statistics, and the random generators of dropout and the like.
    """
    generators = global_generators(device)
    changing = (module for module in network.modules() if module.training)
    buffers = defaultdict[torch.dtype, list[Tensor]](list)
    for module in changing:
        for buffer in module.buffers(recurse=False):
            buffers[buffer.dtype].append(buffer)
    # On a GPU, few kernels for many tensors of the same type.
    copies = {dtype: torch._foreach_mul(group, 1) for dtype, group in buffers.items()}
    states = [generator.get_state() for generator in generators]

    def restore() -> None:
        for dtype, group in buffers.items():
            torch._foreach_copy_(group, copies[dtype])
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

    return restore


def backward(
    run: TrainingRun,
    inputs: Inputs,
    images: Tensor,
    targets: Tensor,
    counts: Tensor,
    batch_size: int,
) -> Tensor:
    """Accumulate the gradients of a batch's mean loss, in micro-batches of `run.micro_batch`.

    The gradients equal those of the whole batch up to rounding, except that a trainable BatchNorm
    normalises each micro-batch by its own statistics. With `heads: ages` the cross entropy over
    years is added for the gradient only, so that the returned loss stays comparable with
    validation.

    Args:
        images: this process's share of a batch (B x ...).
        targets: shares of the classes and, with `heads: ages`, of the years (B x 18 or more).
        counts: number of training photos per class (18).
        batch_size: photos of the whole batch.

    Returns:
        The loss over classes; of a share, its part of it.
    """
    params, losses = inputs.params, list[Tensor]()
    smoothing = params.targets.label_smoothing
    pieces = math.ceil(len(images) / run.micro_batch)
    for piece, wanted in zip(
        images.tensor_split(pieces), targets.tensor_split(pieces), strict=True
    ):
        logits, year_logits = inputs.forward(piece).tensor_split([NUM_CLASSES], dim=1)
        shares, year_shares = wanted.tensor_split([NUM_CLASSES], dim=1)
        class_losses = photo_losses(logits, shares, counts, params.imbalance, smoothing)
        loss = class_losses.sum() / batch_size
        year_loss = -(year_shares * year_logits.log_softmax(dim=1)).sum() / batch_size
        run.scaler.scale(loss + year_loss).backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


@contextlib.contextmanager
def averaged_weights(run: TrainingRun) -> Iterator[None]:
    """Load the moving average of the weights, if there is one, for the duration of the block."""
    if run.average:
        run.network.load_state_dict(run.average, strict=False)
    yield
    if run.average:
        run.network.load_state_dict(run.last_state, strict=False)


def evaluate(inputs: Inputs, rows: Tensor) -> dict[str, float]:
    """Predict photos from their plain views, and score the predictions."""
    predicted = inputs.predict(rows, plain_views(inputs.params))
    return score(predicted, inputs.photos.labels[rows].cpu())


def score(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute loss (cross entropy without smoothing), macro F1 and accuracy.

    Args:
        log_probabilities: N x 18, on the CPU.
        labels: N, int64, on the CPU.
    """
    counts = confusion(labels, log_probabilities.argmax(dim=1))
    return {
        "loss": functional.nll_loss(log_probabilities, labels).item(),
        "macro_f1": float(macro_f1(counts)),
        "accuracy": float(accuracy(counts)),
    }


def check_finite(figures: dict[str, Tensor], first_step: int, params: TrainParams) -> None:
    """Stop a diverged run; called once per epoch, because each check stalls a GPU.

    Args:
        figures: losses and gradient norms of consecutive steps.
        first_step: number of the first of them.

    Raises:
        UserError: naming the step, the learning rates, and what to try.
    """
    problems = [
        (first_step + index, name, value)
        for name, values in figures.items()
        for index, value in enumerate(values.tolist())
        if not math.isfinite(value)
    ]
    if problems:
        step, name, value = min(problems, key=lambda problem: problem[0])
        raise UserError(
            f"the {name} is {value} at step {step}, with train.head_lr {params.head_lr:g} and "
            f"train.backbone_lr {params.backbone_lr:g}: try a tenth of them, a longer "
            "train.optimizer.warmup, or train.precision: fp32"
        )
