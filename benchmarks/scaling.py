"""Simulate runs on up to 64 GPUs from parts that are measured here, and say where scaling stops.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --photos-per-second 3000 --side 224 --out scaling.json

Measures on this machine the cost per photo of the stages before `train`, the start of a task, the
rate of training and the rate of the disk. The network, the commands of DVC and what the driver does
for a photo that others crop are not measured: their figures are options. A run of
`commands.cluster` is then the sum of

- the stages before `train`, once: `crop` on all machines, the others on one
- copying the crops, as there is no shared file system: the machines that have them pass them on, so
  that their number doubles in each round
- rounds of tasks: experiments x folds, one GPU each
- DVC's work for each experiment, one after the other

Stages after `train` are counted with DVC's work. Faults are not simulated.
"""

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from face_attributes.command import user_command
from face_attributes.faces.cut import cut
from face_attributes.faces.detect import find_faces
from face_attributes.files import write_json
from face_attributes.networks.build import build
from face_attributes.networks.device import prepare_hardware
from face_attributes.params import Params, read_params
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.opening import open_photo
from face_attributes.training.inputs import Inputs, Photos
from face_attributes.training.loop import Fold, make_step, start_run, train_epoch
from stages.duplicates import close_pairs, perceptual_hashes
from stages.sample import draw_photo, roster

GPUS = (1, 2, 4, 8, 16, 32, 64)
ENOUGH = 0.5
"""Share of their time that GPUs must train for a run to count as scaling."""
MEASURED_BATCH, MEASURED_STEPS, MEASURED_EPOCHS, REPEATS = 64, 6, 3, 15
ADAM_COPIES = 5
"""Copies of the weights in a checkpoint: last, best and average, and two of the optimizer."""
BYTES_PER_WEIGHT = 4


class Parts(NamedTuple):
    """What a run is made of; seconds of one core, bytes, and photos per second of one GPU."""

    clean: float
    crop: float
    send: float
    hash: float
    pair: float
    start: float
    photos_per_second: float
    disk_bytes_per_second: float
    network_bytes_per_second: float
    dvc_per_experiment: float
    cores: int
    bytes_per_photo: int
    bytes_per_row: float
    checkpoint_bytes: int


class Workload(NamedTuple):
    """What to compute: experiments on the same photos, which differ in training alone."""

    photos: int
    experiments: int
    epochs: int
    folds: int


def phases(parts: Parts, work: Workload, gpus: int, gpus_per_machine: int) -> dict[str, float]:
    """Seconds of each phase of a run, by name; they follow each other."""
    machines = math.ceil(gpus / gpus_per_machine)
    copy_rounds = math.ceil(math.log2(machines + 1))
    slowest = min(parts.disk_bytes_per_second, parts.network_bytes_per_second)
    rounds = math.ceil(work.experiments * work.folds / gpus)
    pairs = work.photos * (work.photos - 1) / 2
    return {
        "clean": work.photos * parts.clean / parts.cores,
        "crop": work.photos * max(parts.crop / (parts.cores * machines), parts.send),
        "duplicates": (work.photos * parts.hash + pairs * parts.pair) / parts.cores,
        "copy": copy_rounds * work.photos * parts.bytes_per_photo / slowest,
        "train": rounds * task_seconds(parts, work),
        "dvc": work.experiments * parts.dvc_per_experiment,
    }


def task_seconds(parts: Parts, work: Workload) -> float:
    """Seconds to train one fold; scoring the held-out photos costs a third as much per photo."""
    share = (work.folds - 1) / work.folds
    photos_per_epoch = work.photos * (share + (1 - share) / 3)
    return parts.start + work.epochs * photos_per_epoch / parts.photos_per_second


def efficiency(parts: Parts, work: Workload, gpus: int, gpus_per_machine: int) -> float:
    """Share of the GPUs' time, while they are held, that is spent in training."""
    held = sum(phases(parts, work, gpus, gpus_per_machine).values())
    return work.experiments * work.folds * task_seconds(parts, work) / (gpus * held)


def checkpointed_share(parts: Parts, work: Workload, gpus: int) -> float:
    """Share of the epochs whose checkpoint reaches the driver, over its one network connection."""
    busy = min(gpus, work.experiments * work.folds)
    epoch = (task_seconds(parts, work) - parts.start) / work.epochs
    return min(1.0, epoch * parts.network_bytes_per_second / (busy * parts.checkpoint_bytes))


def limit(parts: Parts, work: Workload, gpus_per_machine: int) -> str:
    """Say up to how many GPUs a run scales, and what takes most of the time of more."""
    worth = [n for n in GPUS if efficiency(parts, work, n, gpus_per_machine) >= ENOUGH]
    best = max(worth, default=0)
    scales = f"scales to {best} GPU{'s' if best > 1 else ''}"
    if best == GPUS[-1]:
        return scales
    beyond = GPUS[GPUS.index(best) + 1] if best else GPUS[0]
    seconds = phases(parts, work, beyond, gpus_per_machine)
    tasks = work.experiments * work.folds
    idle = 1 - tasks / (beyond * math.ceil(tasks / beyond))
    losses = {
        **{name: value for name, value in seconds.items() if name != "train"},
        f"{tasks} tasks for more GPUs": idle * seconds["train"],
    }
    cause = max(losses, key=lambda name: losses[name])
    return f"{scales}; beyond: {cause}" if best else f"even one GPU waits for: {cause}"


def median_seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median seconds of a call, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measure_parts(
    params: Params,
    photos_per_second: float | None,
    network: float,
    dvc: float,
    send: float,
    cores: int,
) -> Parts:
    """Measure everything but the network, DVC's commands and `send` on this machine."""
    side = params.crop.side
    weights = sum(each.numel() for each in build(params.weights.model, side).parameters())
    with tempfile.TemporaryDirectory(dir=".") as folder:
        photo = Path(folder) / "photo.jpg"
        draw_photo(roster(1)[0], "normal", seed=0).save(photo)

        def crop_photo() -> None:
            opened = open_photo(photo)
            boxes, _, turn = find_faces(opened, params.crop)
            cut(opened, boxes[0], turn, params.crop)

        clean, crop = median_seconds(lambda: open_photo(photo)), median_seconds(crop_photo)
        disk = 2**28 / median_seconds(lambda: write_and_read(Path(folder) / "blob"), 3)
    crops = np.random.default_rng(0).integers(0, 256, (20, side, side, 3), dtype=np.uint8)
    hashes = np.random.default_rng(0).integers(0, 2**63, (8000, 8)).astype(np.uint64)
    pairs_of_a_core = len(hashes) * (len(hashes) - 1) / 2 / (os.cpu_count() or 1)
    return Parts(
        clean=clean,
        crop=crop,
        send=send,
        hash=median_seconds(lambda: [perceptual_hashes(each) for each in crops]) / len(crops),
        pair=median_seconds(lambda: list(close_pairs(hashes, 10)), 3) / pairs_of_a_core,
        start=median_seconds(
            lambda: subprocess.run(
                [sys.executable, "-m", "stages.train", "--help"], capture_output=True, check=True
            ),
            3,
        ),
        photos_per_second=photos_per_second or training_rate(params),
        disk_bytes_per_second=disk,
        network_bytes_per_second=network,
        dvc_per_experiment=dvc,
        cores=cores,
        bytes_per_photo=side * side * 3,
        bytes_per_row=row_bytes(),
        checkpoint_bytes=weights * BYTES_PER_WEIGHT * ADAM_COPIES,
    )


def write_and_read(path: Path) -> None:
    """Write 256 MB and read them again, as a machine does with the crops that it gets."""
    path.write_bytes(bytes(2**28))
    path.read_bytes()


def row_bytes() -> float:
    """Bytes in memory of a row of the table of folds."""
    rows = 10_000
    people = [f"{number // 7:06}_female_Asian_{number % 60}" for number in range(rows)]
    table = pd.DataFrame({"person": people, "photo": "incorrect_mask.jpg"})
    table = table.assign(label=0, age=0, fold=0)
    return float(table.memory_usage(deep=True).sum()) / rows


def training_rate(params: Params) -> float:
    """Photos per second of training on this machine's device, with the parameters given."""
    changes = {"batch_size": MEASURED_BATCH, "freeze": "none", "epochs": MEASURED_EPOCHS}
    train = params.train.model_copy(update=changes)
    hardware = prepare_hardware(train.device, train.precision)
    count, side = MEASURED_BATCH * MEASURED_STEPS, params.crop.side
    labels = (torch.arange(count) % NUM_CLASSES).to(hardware.device)
    pixels = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8)
    photos = Photos(pixels.to(hardware.device), labels, "")
    network = build(params.weights.model, side).to(memory_format=torch.channels_last)
    network = network.to(hardware.device)
    rows = torch.arange(count, device=hardware.device)
    fold = Fold(0, rows, rows, functional.one_hot(labels, NUM_CLASSES).float())
    inputs = Inputs(photos, train, hardware, None, network)
    run = start_run(network, fold, train, hardware.loss_scaler())
    step = make_step(run, inputs, fold)
    return count / median_seconds(lambda: train_epoch(run, inputs, fold, step), MEASURED_EPOCHS - 1)


@user_command
def main(
    photos_per_second: Annotated[
        float | None, typer.Option(help="Training rate of a GPU; otherwise this machine's")
    ] = None,
    side: Annotated[int | None, typer.Option(help="Side of the crops in pixels")] = None,
    network: Annotated[float, typer.Option(help="Network between machines, GB/s")] = 1.1,
    dvc: Annotated[float, typer.Option(help="DVC's seconds per experiment")] = 7.5,
    send: Annotated[float, typer.Option(help="Driver's seconds per photo that others crop")] = 4e-4,
    cores: Annotated[int, typer.Option(help="Cores of each machine")] = 16,
    gpus_per_machine: Annotated[int, typer.Option(help="GPUs per machine")] = 8,
    epochs: Annotated[int, typer.Option(help="Epochs of each training")] = 10,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures")] = None,
) -> None:
    """Print hours and efficiency for 1 to 64 GPUs, and where each workload stops scaling."""
    params = read_params()
    if side is not None:
        crop = params.crop.model_copy(update={"side": side})
        params = params.model_copy(update={"crop": crop})
    parts = measure_parts(params, photos_per_second, network * 1e9, dvc, send, cores)
    for name, value in parts._asdict().items():
        print(f"{name}: {value:.4g}")
    workloads = {
        "19,000 photos, 1 experiment": Workload(19_000, 1, epochs, 5),
        "19,000 photos, 1,000 experiments": Workload(19_000, 1000, epochs, 5),
        "1 million photos, 20 experiments": Workload(10**6, 20, epochs, 5),
        "10 million photos, 1 experiment": Workload(10**7, 1, epochs, 5),
        "10 million photos, 20 experiments": Workload(10**7, 20, epochs, 5),
        "10 million photos, 1,000 experiments": Workload(10**7, 1000, epochs, 5),
    }
    limits = {name: limit(parts, work, gpus_per_machine) for name, work in workloads.items()}
    for name, work in workloads.items():
        crops, tables = work.photos * parts.bytes_per_photo, work.photos * parts.bytes_per_row
        table = Table("GPUs", *phases(parts, work, 1, 1), "all", "efficiency", "checkpoints kept")
        for gpus in GPUS:
            seconds = phases(parts, work, gpus, gpus_per_machine)
            table.add_row(
                str(gpus),
                *(f"{value / 3600:,.2f} h" for value in (*seconds.values(), sum(seconds.values()))),
                f"{efficiency(parts, work, gpus, gpus_per_machine):.0%}",
                f"{checkpointed_share(parts, work, gpus):.0%}",
            )
        print(f"\n{name}: crops {crops / 1e9:,.1f} GB, tables {tables / 1e9:.1f} GB")
        print(limits[name])
        Console(width=110).print(table)
    if out is not None:
        write_json(out, {"parts": parts._asdict(), "limits": limits}, digits=12)


if __name__ == "__main__":
    main()
