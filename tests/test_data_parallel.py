"""A fold in several processes: the steps, scores and files of one, and no process left waiting."""

import dataclasses
import multiprocessing
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from commands.remote_stage import Event, Files, _group_variables, read_files, run_stage
from face_attributes.files import write_json, write_table
from face_attributes.networks.build import build
from face_attributes.networks.device import Hardware
from face_attributes.networks.weight_files import write_weights
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.packed import write_packed
from face_attributes.training import loop
from face_attributes.training.data_parallel import process_group, processes, rank
from face_attributes.training.feature_store import FeatureStore
from face_attributes.training.inputs import Inputs, prepare_inputs
from face_attributes.training.whole_batch_norm import whole_batch_norm
from stages import train
from tests.conftest import ROOT, Change
from tests.conftest import run_stage as run_command
from tests.project import ENVIRONMENT, ends_soon
from tests.small import CPU, FALLBACK, graded_photos, seeded, tiny_network
from tests.test_loop import CPU16, HELD_OUT, TRAINING, Overflowing, fit, quick

State = dict[str, Tensor]
pytestmark = pytest.mark.slow


def in_processes(number: int, folder: Path, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each of several processes that train together in a folder."""
    with ProcessPoolExecutor(number, multiprocessing.get_context("spawn")) as pool:
        variables = _group_variables(folder, number)
        waiting = [pool.submit(_work_in_group, each, folder, work) for each in variables]
        return [each.result() for each in waiting]


def _work_in_group(variables: dict[str, str], folder: Path, work: Callable[[], Any]) -> Any:
    os.environ.update(variables)
    os.chdir(folder)
    torch.set_num_threads(1)
    with process_group():
        return work()


# The loop


class Recorder(nn.Module):
    """Keeps the images of each training batch."""

    def __init__(self, network: nn.Module, batches: list[Tensor]) -> None:
        super().__init__()
        self.network, self.batches = network, batches

    def forward(self, images: Tensor) -> Tensor:
        if self.network.training:
            self.batches.append(images.detach().clone())
        logits: Tensor = self.network(images)
        return logits


def record(batches: list[Tensor], inputs: Inputs) -> Inputs:
    return dataclasses.replace(inputs, rest=Recorder(inputs.rest, batches))


def resnet() -> nn.Module:
    return build("resnet18", 32)


def dropping_network() -> nn.Module:
    network = tiny_network()
    network.insert(5, nn.Dropout(0.5))  # type: ignore[operator]
    return network


MIXED = {
    "augmentation.mixup": 0.4,
    "augmentation.rotation": 9.0,
    "augmentation.occlusion": 0.5,
    "optimizer.ema": 0.9,
    "optimizer.head_epochs": 1,
}
SGD = {"optimizer.name": "sgd", "backbone_lr": 0.05, "head_lr": 0.05}
RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], Hardware]] = {
    # Batches of 5, 5, 5, 5 and 4: shares of 3 and 2, and of 2, 2 and 1.
    "batch norm trains": (tiny_network, {"epochs": 3, "batch_size": 5, **SGD, **MIXED}, CPU),
    "rare classes are drawn more often": (
        tiny_network,
        {**SGD, "imbalance.sampler": "balanced", "imbalance.loss": "class_weighted"},
        CPU,
    ),
    "frozen, views cached": (
        resnet,
        {"batch_size": 12, "freeze": "layer3", "cached_views": 2, **SGD},
        CPU,
    ),
    "float16": (tiny_network, {"batch_size": 5, **SGD}, CPU16),
    "dropout": (dropping_network, {"augmentation.mixup": 0.4, **SGD}, CPU),
}


def normalise_and_backpropagate(dtype: torch.dtype) -> list[Tensor]:
    """Outputs, gradients and running statistics of a BatchNorm for this process's share.

    Of images far from 0, where a variance from sums of squares would lose its digits.
    """
    images = (torch.randn(5, 4, 3, 3, generator=seeded()) + 100).to(dtype)
    images = images.to(memory_format=torch.channels_last)
    factors = torch.randn(5, 4, 3, 3, generator=seeded(1))
    own, factors = (each.tensor_split(processes())[rank()] for each in (images, factors))
    own.requires_grad_()
    norm = nn.BatchNorm2d(4)
    with whole_batch_norm():
        outputs = norm(own)
    (outputs * factors).sum().backward()
    tensors = outputs.detach(), own.grad, norm.weight.grad, norm.bias.grad
    return [*tensors, norm.running_mean, norm.running_var]  # type: ignore[list-item]


def overflow_in_the_last_process() -> tuple[int, float]:
    """Steps taken and final scale of three steps, the second of which overflows in one process."""
    params, network, photos = quick(), tiny_network(), graded_photos()
    targets = functional.one_hot(photos.labels, NUM_CLASSES).float()
    fold = loop.Fold(0, TRAINING, HELD_OUT, targets)
    run = loop.start_run(network, fold, params, CPU16.loss_scaler())
    inputs = prepare_inputs(network, photos, params, CPU16, FeatureStore(Path("features"), 0))
    calls = {2} if rank() == processes() - 1 else set[int]()
    inputs = dataclasses.replace(inputs, rest=Overflowing(inputs.rest, calls).train())
    loop.train_epoch(run, inputs, fold, loop.make_step(run, inputs, fold))
    return int(run.steps), run.scaler.get_scale()


@dataclass(frozen=True)
class Results:
    """What one of the processes computes; `runs` has state, history and training batches."""

    runs: dict[str, tuple[State, list[dict[str, float]], list[Tensor]]]
    norms: dict[torch.dtype, list[Tensor]]
    overflow: tuple[int, float]


def compute() -> Results:
    runs = {}
    for name, (make_network, changes, hardware) in RUNS.items():
        network, batches = make_network(), list[Tensor]()
        change = partial(record, batches)
        result, _ = fit(network, quick(**changes), change_inputs=change, hardware=hardware)
        runs[name] = (network.state_dict(), result.history, batches)
    norms = {each: normalise_and_backpropagate(each) for each in (torch.float32, torch.bfloat16)}
    return Results(runs, norms, overflow_in_the_last_process())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What a process computes alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        return compute()


@pytest.fixture(scope="module", params=[2, 3])
def together(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[Results]:
    """What each of two, or three, processes computes."""
    return in_processes(request.param, tmp_path_factory.mktemp("together"), compute)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "dropout"])
def test_several_processes_reach_the_weights_and_scores_of_one(
    alone: Results, together: list[Results], name: str
) -> None:
    state, history, _ = alone.runs[name]
    tolerance = 5e-3 if name == "float16" else 2e-4
    for member in together:
        other, scores, _ = member.runs[name]
        torch.testing.assert_close(other, state, atol=tolerance, rtol=tolerance)
        assert pd.DataFrame(scores).to_numpy() == pytest.approx(
            pd.DataFrame(history).to_numpy(), abs=tolerance
        )


@pytest.mark.parametrize("name", RUNS)
def test_all_processes_have_the_same_bytes(together: list[Results], name: str) -> None:
    for member in together[1:]:
        torch.testing.assert_close(member.runs[name][0], together[0].runs[name][0], atol=0, rtol=0)
        assert member.runs[name][1] == together[0].runs[name][1]


@pytest.mark.parametrize("name", [name for name in RUNS if name != "dropout"])
def test_their_shares_in_order_are_the_batches_of_one_process(
    alone: Results, together: list[Results], name: str
) -> None:
    """So that each photo is used as often as there, and augmented and mixed alike."""
    shares = list(zip(*(member.runs[name][2] for member in together), strict=True))
    torch.testing.assert_close([torch.cat(each) for each in shares], alone.runs[name][2])
    sizes = [[len(share) for share in each] for each in shares]
    assert all(0 < max(each) <= min(each) + 1 for each in sizes)


def test_batch_norm_is_that_of_the_whole_batch(alone: Results, together: list[Results]) -> None:
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        shares = zip(*(member.norms[dtype] for member in together), strict=True)
        outputs, gradients, scales, shifts, means, variances = shares
        parts = [torch.cat(outputs), torch.cat(gradients), sum(scales), sum(shifts)]
        for number in range(len(together)):
            torch.testing.assert_close(
                [*parts, means[number], variances[number]],
                alone.norms[dtype],
                atol=tolerance,
                rtol=tolerance,
            )


def test_all_skip_a_step_that_overflows_in_one(together: list[Results]) -> None:
    assert [member.overflow for member in together] == [(2, 2.0**15)] * len(together)


# The stage

STEADY = {"optimizer.name": "sgd", "head_lr": 1e-3, "backbone_lr": 1e-3, "batch_size": 36}
"""Trains so that rounding stays small, which BatchNorm of few photos makes grow a thousandfold."""
STAGE = "-m", "stages.train", "0", "data/crop", "data/folds.csv", "data/initial.safetensors", "out"
OUTPUTS = [f"out/{name}" for name in ("out_of_fold.csv", "history.csv", "network.safetensors")]
READ = (
    "params.yaml",
    "data/crop/train/manifest.json",
    "data/crop/train/0000.npy",
    "data/crop/fallback.json",
    *STAGE[4:6],
)


@pytest.fixture
def fold(change: Change) -> Change:
    """Work in a folder with the inputs of fold 0: 54 photos of all classes, 18 of them held out."""
    for key, value in STEADY.items():
        change(f"train.{key}", value)
    change("train.precision", "fp32")
    change("train.epochs", 3)
    change("train.augmentation.mixup", 0.4)
    change("crop.side", 32)
    labels = np.arange(54) % 18
    rows = {"person": [f"p{row}" for row in range(54)], "photo": "1.jpg", "fold": labels // 6}
    rows |= {"fold": np.arange(54) // 18, "label": labels, "age": [20, 45, 70] * 18}
    write_table(Path("data/folds.csv"), pd.DataFrame(rows))
    pixels = np.random.default_rng(0).integers(0, 256, (54, 32, 32, 3), np.uint8)
    write_packed(Path("data/crop/train"), pixels, 54, 32)
    write_json(Path("data/crop/fallback.json"), {"box": FALLBACK})
    write_weights(Path("data/initial.safetensors"), build("resnet18", 32, "split").state_dict())
    return change


@contextmanager
def torchrun(log: Path, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", *STAGE]
    with log.open("wb") as file, subprocess.Popen(
        command, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT), **variables},
        stdout=file, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        yield process


def wait_for(condition: Callable[[], Any]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def read_outputs() -> dict[str, bytes]:
    return {path: Path(path).read_bytes() for path in OUTPUTS}


def test_torchrun_trains_a_fold_and_goes_on_after_a_kill(fold: Change) -> None:
    """With DVC around it, whose end the processes notice although they are in other sessions."""
    run_command(train.main, *STAGE[2:])
    alone = pd.read_csv("out/out_of_fold.csv"), pd.read_csv("out/history.csv")

    with torchrun(Path("whole.log"), DVC_STAGE="train@0"):
        pass
    log = Path("whole.log").read_text()
    assert log.count("parameters train, on cpu in torch.float32, in 2 processes\n") == 1, log
    assert len(re.findall("^fold 0 epoch ./3: ", log, re.M)) == 3
    assert Path(".cache/times/train@0.json").exists()
    expected = read_outputs()
    for one, two in zip(alone, (pd.read_csv(path) for path in OUTPUTS), strict=False):
        pd.testing.assert_frame_equal(one, two, atol=1e-3, rtol=0)

    shutil.rmtree("out")
    checkpoint = Path(".cache/checkpoints/fold0.checkpoint")
    with torchrun(Path("killed.log")) as process:
        wait_for(checkpoint.exists)
        members = psutil.Process(process.pid).children()
        process.kill()
    assert len(members) == 2
    assert all(ends_soon(str(member.pid)) for member in members)
    assert not Path("out").exists()

    shutil.copy(checkpoint, "saved")
    assert "hardware: set aside as" in run_command(train.main, *STAGE[2:]).output, "another number"
    pd.testing.assert_frame_equal(pd.read_csv("out/history.csv"), alone[1])
    shutil.copy("saved", checkpoint)
    with torchrun(Path("resumed.log")):
        pass
    assert re.search("^fold 0 resuming after epoch [12]/3$", Path("resumed.log").read_text(), re.M)
    assert read_outputs() == expected


def run_on_worker(
    files: Files, arguments: Sequence[str], outputs: Sequence[str] = (), number: int = 2
) -> Iterator[Event]:
    """Events of a worker of the cluster on which several processes run a stage."""
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DVC_STAGE": "train@0"}
    return run_stage(arguments, outputs, environment, {}, [files], {}, dict, number)


def errors(events: Sequence[Event]) -> list[str]:
    """The lines that are neither on progress nor DVC's advice."""
    usual = "started|train fold|fold 0|epoch|DVC has"
    return [str(text) for kind, text in events if kind == "line" and not re.match(usual, str(text))]


def members() -> list[psutil.Process]:
    """The processes that this one has started to train a fold."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE and "LOCAL_RANK" in child.environ()
    ]


def test_processes_on_a_worker_listen_to_their_machine_alone(fold: Change) -> None:
    addresses = set()
    events = list[Event]()
    for event in run_on_worker(read_files(Path(), READ), STAGE, OUTPUTS):
        events.append(event)
        for member in members():
            with suppress(psutil.NoSuchProcess):
                listening = member.net_connections("tcp")
                addresses |= {each.laddr.ip for each in listening if each.status == "LISTEN"}
    kind, outputs = events[-1]
    assert kind == "done", events
    assert list(outputs) == OUTPUTS
    assert addresses == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"head_lr": 1e6, "backbone_lr": 1e6}, "the .+ is nan at step 1, with train.head_lr .*"),
        ({"batch_size": 2}, "3 processes cannot share a batch of 2: start fewer, or raise .*"),
    ],
)
def test_what_all_processes_find_wrong_is_one_line(
    fold: Change, changes: dict[str, float], reason: str
) -> None:
    for key, value in changes.items():
        fold(f"train.{key}", value)
    *events, (kind, failure) = run_on_worker(read_files(Path(), READ), STAGE, number=3)
    lines = errors(events)
    assert len(lines) == 1 and re.fullmatch(f"error: {reason}", lines[0]), lines
    assert kind == "failed"
    assert re.fullmatch(rf"worker \S+: {reason}", str(failure))


MEMBER = """
import atexit, sys, time, torch
from face_attributes.command import user_command
from face_attributes.errors import UserError
from face_attributes.training.data_parallel import (
    check_agreement, process_group, rank, sum_over_processes,
)

@user_command
@process_group()
def main() -> None:
    print("started", flush=True)
    # Would be a second line: after a failure, nothing is torn down, which can abort the process.
    atexit.register(print, "torn down", file=sys.stderr)
    if rank() == 1:
        FAULT
    sum_over_processes(torch.ones(1))
    check_agreement(torch.ones(1), [torch.default_generator])

main()
"""


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raise torch.OutOfMemoryError('CUDA out of memory')", "out of memory .CUDA out of .*"),
        ("raise UserError('no room')", "no room"),
        ("torch.rand(1)", "the processes that train this fold no longer agree, as if memory .*"),
        (
            "import os; os.kill(os.getpid(), 9)",
            "another process that trains this fold has ended, perhaps because .*",
        ),
    ],
)
def test_what_one_process_finds_wrong_ends_all_with_one_line(fault: str, reason: str) -> None:
    text = MEMBER.replace("FAULT", fault)
    script = {"member.py": np.frombuffer(text.encode(), np.uint8)}
    start = time.monotonic()
    *events, (kind, failure) = run_on_worker(script, ["member.py"])
    lines = errors(events)
    assert len(lines) == 1 and re.fullmatch(f"error: {reason}", lines[0]), lines
    assert kind == "failed"
    assert re.fullmatch(rf"worker \S+: {reason}", str(failure))
    assert time.monotonic() - start < 60
    assert members() == []
