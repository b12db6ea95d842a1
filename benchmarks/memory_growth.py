"""Measure how memory grows with the number of crops: packing, training, predicting.

    python -m benchmarks.memory_growth --budget 64

Packs 1, 4 and 16 times as many synthetic crops as the budget holds, trains an epoch on them and
predicts them, each in a process of its own. `private` is the peak of the memory that a process
cannot give back; `mapped` is the peak of its pages of files, which the system takes back when
memory is short. The baseline trains on a copy of all crops in memory. The network is tiny, so that
crops make the difference.
"""

import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

from face_attributes.command import user_command
from face_attributes.inference.ensemble import ensemble_probabilities
from face_attributes.networks.device import prepare_hardware
from face_attributes.networks.recipe import make_recipe
from face_attributes.params import Params, read_params
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.packed import Pixels, read_packed, write_packed
from face_attributes.processes import map_on_all_cores
from face_attributes.training.inputs import Inputs, Photos, load_photos
from face_attributes.training.loop import Fold, evaluate, make_step, start_run, train_epoch

FACTORS = (1, 4, 16)
BATCH = 256
POLL_SECONDS = 0.005


class Peak(NamedTuple):
    """Peak memory of a process in bytes, and the seconds that its work took."""

    private: int
    mapped: int
    seconds: float


def measure(work: Callable[[], object]) -> Peak:
    """Call `work` and watch the memory of this process, without its workers."""
    looks, done, process = list[tuple[int, int]](), threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(POLL_SECONDS):
            info = process.memory_info()
            looks.append((info.rss - info.shared, info.shared))

    watcher, start = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    work()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    private, mapped = map(max, zip(*looks, strict=True))
    return Peak(private, mapped, seconds)


def synthetic_crop(number: int, side: int) -> Pixels:
    """Draw a crop of noise (side x side x 3)."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)


def pack(crops: Path, count: int, params: Params) -> None:
    """Make and pack the crops as the stage `crop` does."""
    draw = partial(synthetic_crop, side=params.crop.side)
    made = map_on_all_cores(draw, range(count), chunksize=16)
    write_packed(crops, made, count, params.crop.side)


def train(crops: Path, count: int, params: Params, in_memory: bool = False) -> None:
    """Train an epoch on all crops, and score a tenth of them, as the stage `train` does."""
    hardware = prepare_hardware("cpu", "fp32")
    labels = np.arange(count) % NUM_CLASSES
    photos = load_photos(crops, labels, hardware)
    if in_memory:
        photos = Photos(torch.from_numpy(np.stack([*read_packed(crops)])), photos.labels, "")
    rows = torch.arange(count)
    fold = Fold(0, rows, rows[::10], functional.one_hot(photos.labels, NUM_CLASSES).float())
    network = tiny_network()
    settings = params.train.model_copy(update={"batch_size": BATCH, "freeze": "none"})
    inputs = Inputs(photos, settings, hardware, None, network)
    run = start_run(network, fold, settings, hardware.loss_scaler())
    train_epoch(run, inputs, fold, make_step(run, inputs, fold))
    evaluate(inputs, fold.validation)


def predict(crops: Path, count: int, params: Params) -> None:
    """Predict all crops as the stage `predict` does."""
    hardware = prepare_hardware("cpu", "fp32")
    recipe = make_recipe(params, None, 1.0)
    network = tiny_network().eval()
    ensemble_probabilities([network], read_packed(crops), [recipe], hardware, BATCH)


def tiny_network() -> nn.Module:
    """A network that takes less time and memory than its photos."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, NUM_CLASSES),
    )  # fmt: skip


STEPS: dict[str, Callable[[Path, int, Params], None]] = {
    "pack": pack,
    "train": train,
    "train, all in memory (baseline)": partial(train, in_memory=True),
    "predict": predict,
}


@user_command
def main(
    budget: Annotated[int, typer.Option(help="MB of crops that count as 1")] = 64,
    side: Annotated[int, typer.Option(help="Side of the crops in pixels")] = 48,
) -> None:
    """Print the peak memory of each step for 1, 4 and 16 budgets of crops."""
    shipped = read_params()
    params = shipped.model_copy(update={"crop": shipped.crop.model_copy(update={"side": side})})
    table = Table("step", "crops", "of crops", "private", "mapped", "seconds")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for factor in FACTORS:
            count = factor * budget * 10**6 // (side * side * 3)
            crops = Path(folder) / f"{factor}"
            for name, step in STEPS.items():
                # A new process each, which does not inherit memory.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    peak = pool.submit(measure, partial(step, crops, count, params)).result()
                table.add_row(
                    name,
                    f"{count:,}",
                    f"{factor * budget} MB",
                    *(f"{nbytes / 1e6:.0f} MB" for nbytes in peak[:2]),
                    f"{peak.seconds:.1f}",
                )
            shutil.rmtree(crops)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
