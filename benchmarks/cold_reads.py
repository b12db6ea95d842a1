"""Measure how long training waits for crops that are on disk, with and without prefetching.

    python -m benchmarks.cold_reads --side 224 --gigabytes 3

Random batches are read from packed crops that the system has forgotten, as they are when crops
outgrow RAM. Between batches the process sleeps for as long as a step of training takes. Both ways
alternate; medians are printed. Linux only: other systems cannot be told to forget a file.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from face_attributes.command import user_command
from face_attributes.networks.device import gather
from face_attributes.photos.packed import Pixels, read_packed, write_packed

BATCHES, REPEATS = 40, 3


def noise(count: int, side: int) -> Iterator[Pixels]:
    """Yield crops of noise, which no file system can compress."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        yield generator.integers(0, 256, (side, side, 3), dtype=np.uint8)


def waits(folder: Path, batches: list[Tensor], ahead: bool, step: float) -> float:
    """Median seconds of reading a batch after the system has forgotten the files."""
    for shard in folder.glob("*.npy"):
        with shard.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    packed, seconds = read_packed(folder), []
    for batch, following in zip(batches, [*batches[1:], batches[0]], strict=True):
        start = time.perf_counter()
        if ahead:
            packed.prefetch(following.tolist())
        gather(packed, batch)
        seconds.append(time.perf_counter() - start)
        time.sleep(step)
    return statistics.median(seconds)


@user_command
def main(
    side: Annotated[int, typer.Option(help="Side of the crops in pixels")] = 224,
    gigabytes: Annotated[float, typer.Option(help="Size of the crops")] = 3.0,
    batch: Annotated[int, typer.Option(help="Photos per batch")] = 64,
    step: Annotated[float, typer.Option(help="Seconds of a step of training")] = 0.05,
) -> None:
    """Print the milliseconds for which a step waits for its batch."""
    count = int(gigabytes * 1e9 / (side * side * 3))
    results: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        crops = Path(folder) / "crops"
        write_packed(crops, noise(count, side), count, side)
        generator = torch.Generator().manual_seed(0)
        for _ in range(REPEATS):
            for ahead, medians in results.items():
                rows = torch.randperm(count, generator=generator)[: batch * BATCHES]
                medians.append(waits(crops, list(rows.split(batch)), ahead, step))
    without, ahead_too = (1000 * statistics.median(medians) for medians in results.values())
    print(
        f"{count:,} crops of {side} px, {batch} a batch, from disk: a step waits {without:.1f} ms; "
        f"with the next batch prefetched, {ahead_too:.1f} ms"
    )


if __name__ == "__main__":
    main()
