"""Training one network: epochs, early stopping, the best epoch kept, each epoch a checkpoint."""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import get_total_norm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from stages.errors import UserError
from stages.learning.balance import batches, class_counts, photo_losses, steps_per_epoch
from stages.learning.checkpoint import Checkpoint
from stages.learning.inputs import Inputs
from stages.learning.mix import mix
from stages.learning.network import (
    State,
    freeze,
    frozen_upto,
    parameter_groups,
    set_training,
    trained_names,
)
from stages.params import TrainParams
from stages.photos.labels import CLASSES
from stages.progress import progress
from stages.scoring.metrics import accuracy, confusion, macro_f1


@dataclass(frozen=True)
class Fitted:
    """The network at its best epoch, through its inputs, and a row for each epoch that ran."""

    inputs: Inputs
    epoch: int
    history: list[dict[str, float]]


@dataclass
class Run:
    """What changes in the course of a run, and so what a checkpoint holds.

    `parameters` are those of the network that train at any time of it, in the order of the
    optimizer, which has a view of each. `names` are those of the tensors that train at any time;
    states hold just these.
    """

    network: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    generator: torch.Generator
    micro_batch: int
    names: list[str]
    average: State = field(default_factory=dict)
    last_state: State = field(default_factory=dict)
    best_state: State = field(default_factory=dict)
    best_score: float = -math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)

    def step(self) -> None:
        """A step of the optimizer and of its schedule, along the gradients, which it takes away."""
        stepped = [each for group in self.optimizer.param_groups for each in group["params"]]
        for parameter, its in zip(self.parameters, stepped, strict=True):
            its.grad = None if parameter.grad is None else in_memory_order(parameter.grad)
            parameter.grad = None
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()

    def snapshot(self) -> State:
        """Copies of the network's tensors as they are."""
        state = self.network.state_dict()
        return {name: state[name].clone() for name in self.names}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and texts alone, which do not change with the run any more."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "network": self.last_state,
            "average": {name: tensor.clone() for name, tensor in self.average.items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "scheduler": copy.deepcopy(self.scheduler.state_dict()),
            "random": [self.generator.get_state(), torch.get_rng_state(), *cuda],
            "micro_batch": self.micro_batch,
            "best": [self.best_state, self.best_score, self.best_epoch],
            "history": list(self.history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        self.network.load_state_dict(state["network"], strict=False)
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        own, of_cpu, *of_cuda = (numbers.cpu() for numbers in state["random"])
        self.generator.set_state(own)
        torch.set_rng_state(of_cpu)
        torch.cuda.set_rng_state_all(of_cuda)
        self.micro_batch = state["micro_batch"]
        self.best_state, self.best_score, self.best_epoch = state["best"]
        self.history = state["history"]


def fit(
    network: nn.Module,
    inputs_of: Callable[[nn.Module], Inputs],
    training: Tensor,
    validation: Tensor,
    training_targets: Tensor,
    params: TrainParams,
    seed: int,
    checkpoint: Checkpoint,
    report: Callable[[str], None],
) -> Fitted:
    """Train `network` in place until the epochs are over or `patience` epochs bring nothing better.

    Where there is a checkpoint it goes on from there, to the same result.

    Args:
        network: on its device, and in its memory format.
        inputs_of: gives what is fed to the network as it is frozen at the time.
        training, validation: places of the photos (int64), on that device.
        training_targets: shares of the classes, and of ages in years where the network tells
            them, of all photos (N x 18 or more) as it is to learn them, there too.
        seed: of the order of the photos and of the augmentation.
        report: is given a line for each epoch.

    Raises:
        UserError: if there is no part to freeze of that name; if a loss is not finite, naming the
            step; if one photo alone takes more memory than the GPU has.
    """
    torch.manual_seed(seed)  # dropout and stochastic depth draw from the global generator
    freeze(network, params.freeze)
    targets = training_targets[training]
    steps = steps_per_epoch(class_counts(most_likely(targets)), params)
    groups = parameter_groups(network, params.head_lr, params.backbone_lr, params.lr_decay)
    optimizer = make_optimizer(groups, params)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, steps * params.epochs, params.warmup)
    )
    run = Run(
        network,
        [parameter for group in groups for parameter in group["params"]],
        optimizer,
        scheduler,
        torch.Generator(training.device).manual_seed(seed),
        params.batch_size if params.micro_batch == "auto" else params.micro_batch,
        trained_names(network),
    )
    if params.ema:
        run.average = {name: t for name, t in run.snapshot().items() if t.is_floating_point()}
    saved = checkpoint.load(training.device)
    if saved is not None:
        run.load_state_dict(saved)
        report(f"goes on after epoch {len(run.history)}/{params.epochs}")

    point = frozen_upto(network, params, len(run.history))
    freeze(network, point)
    inputs = inputs_of(network)
    for epoch in range(len(run.history), params.epochs):
        if epoch - run.best_epoch > params.patience:
            break
        if point != frozen_upto(network, params, epoch):
            point = frozen_upto(network, params, epoch)
            freeze(network, point)
            del inputs  # of which the features may lie where those to come want to
            inputs = inputs_of(network)
        start = time.perf_counter()
        train_loss = train_epoch(run, inputs, training, targets, params)
        run.last_state = run.snapshot()
        with averaged(run):
            scores = evaluate(inputs, validation)
            state = run.snapshot() if run.average else run.last_state
        loss = {"validation loss": torch.tensor([scores["loss"]])}
        check_finite(loss, steps * (epoch + 1) - 1, params)
        run.history.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "validation_loss": scores["loss"],
                "validation_macro_f1": scores["macro_f1"],
                "validation_accuracy": scores["accuracy"],
            }
        )
        score = -scores["loss"] if params.stop_on == "loss" else scores["macro_f1"]
        if score > run.best_score:
            run.best_score, run.best_epoch = score, epoch
            run.best_state = state
        checkpoint.save(run.state_dict())
        report(
            f"epoch {epoch + 1}/{params.epochs}: loss {train_loss:.3f}, validation loss "
            f"{scores['loss']:.3f}, macro F1 {scores['macro_f1']:.3f}, "
            f"{time.perf_counter() - start:.1f} s" + (" (best)" if run.best_epoch == epoch else "")
        )
    checkpoint.wait()
    network.load_state_dict(run.best_state, strict=False)
    return Fitted(inputs, run.best_epoch, run.history)


def most_likely(targets: Tensor) -> Tensor:
    """The class that each photo has the largest share of (N, int64), for samplers and weights."""
    return targets[:, :CLASSES].argmax(dim=1)


@contextlib.contextmanager
def averaged(run: Run) -> Iterator[None]:
    """The network with the moving average of its weights, where there is one."""
    if run.average:
        run.network.load_state_dict(run.average, strict=False)
    yield
    if run.average:
        run.network.load_state_dict(run.last_state, strict=False)


def train_epoch(
    run: Run, inputs: Inputs, training: Tensor, targets: Tensor, params: TrainParams
) -> float:
    """One epoch over the photos at the places `training`; gives the mean loss of its steps.

    Raises:
        UserError: as `fit`.
    """
    set_training(run.network)
    labels = most_likely(targets)
    counts = class_counts(labels)
    late = len(run.history) >= params.reweight_from * params.epochs
    drawn = list(batches(labels, params, run.generator))
    now = run.network.state_dict()
    follow = get_ema_multi_avg_fn(params.ema)
    losses, norms = torch.zeros(2, len(drawn), device=labels.device)
    epoch = len(run.history)
    label = f"epoch {epoch + 1}/{params.epochs}: batches"
    for step, chosen in enumerate(progress(drawn, len(drawn), label)):
        batch = inputs.augmented(training[chosen], run.generator)
        batch, shares = mix(batch, targets[chosen], params)
        loss_of = partial(photo_losses, counts=counts, params=params, late=late)
        losses[step] = backward(run, inputs, batch, shares, loss_of)
        norms[step] = get_total_norm([p.grad for p in run.parameters if p.grad is not None])
        run.step()
        if run.average:
            follow(list(run.average.values()), [now[name] for name in run.average], 0)
    check_finite({"loss": losses, "gradient": norms}, epoch * len(drawn), params)
    return float(losses.mean())


def backward(
    run: Run,
    inputs: Inputs,
    batch: Tensor,
    targets: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Gradients of the mean loss of a batch, in micro-batches that fit into memory; the loss.

    To the loss of the classes comes, with `heads: ages`, the cross entropy of the years, which is
    not in the loss that is given back: it would not compare with that of the validation.

    Where one does not, half its size is tried, and remembered. The gradients are those of the whole
    batch, to rounding, but for BatchNorm, which takes its statistics from each micro-batch.

    Raises:
        UserError: if one photo alone does not fit.
    """
    while True:
        total = torch.zeros((), device=targets.device)
        pieces = math.ceil(len(batch) / run.micro_batch)
        try:
            for some, their in zip(
                batch.tensor_split(pieces), targets.tensor_split(pieces), strict=True
            ):
                logits, of_years = inputs.forward(some).tensor_split([CLASSES], dim=1)
                shares, years = their.tensor_split([CLASSES], dim=1)
                loss = loss_of(logits, shares).sum() / len(batch)
                year_loss = -(years * of_years.log_softmax(dim=1)).sum() / len(batch)
                (loss + year_loss).backward()
                total += loss.detach()
            return total
        except torch.OutOfMemoryError:
            run.network.zero_grad()
        # Out of the except block, whose traceback holds on to the memory of what failed.
        if run.micro_batch == 1:
            raise UserError(
                "the GPU's memory does not hold one photo: lower crop.side, take a smaller "
                "weights.model or set train.device: cpu"
            )
        run.micro_batch = max(1, min(run.micro_batch, len(batch)) // 2)
        print(f"out of memory: goes on with micro-batches of {run.micro_batch}", flush=True)
        torch.cuda.empty_cache()


def in_memory_order(tensor: Tensor) -> Tensor:
    """A contiguous view of a tensor that is channels_last; any other as it is."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.movedim(1, -1)
    return tensor


def make_optimizer(groups: Sequence[dict[str, Any]], params: TrainParams) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over contiguous views of groups of parameters.

    On a CPU torch's fused optimizers copy what is not contiguous, there and back, which takes them
    longer than the step. What comes out is the same.
    """
    groups = [
        {**group, "params": [nn.Parameter(in_memory_order(p.detach())) for p in group["params"]]}
        for group in groups
    ]
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


def evaluate(inputs: Inputs, photos: Tensor) -> dict[str, float]:
    """The score of photos without augmentation."""
    return score(inputs.predict(photos), inputs.photos.labels[photos].cpu())


def score(log_probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Loss (cross entropy, no smoothing), macro F1 and accuracy (N x 18, N; both on the CPU)."""
    counts = confusion(labels, log_probabilities.argmax(dim=1))
    return {
        "loss": functional.nll_loss(log_probabilities, labels).item(),
        "macro_f1": float(macro_f1(counts)),
        "accuracy": float(accuracy(counts)),
    }


def check_finite(figures: dict[str, Tensor], first_step: int, params: TrainParams) -> None:
    """Stop a run that has diverged; one look an epoch, since each would hold up a GPU.

    Args:
        figures: losses and norms of gradients, one for each step from `first_step` on.

    Raises:
        UserError: naming the step, the learning rates, and what to try.
    """
    bad = [
        (step, what, value)
        for what, values in figures.items()
        for step, value in enumerate(values.tolist(), start=first_step + 1)
        if not math.isfinite(value)
    ]
    if bad:
        step, what, value = min(bad, key=lambda each: each[0])
        raise UserError(
            f"the {what} is {value} at step {step}, with train.head_lr "
            f"{params.head_lr:g} and train.backbone_lr {params.backbone_lr:g}: try a tenth of "
            "them, more train.warmup, or train.precision: fp32"
        )
