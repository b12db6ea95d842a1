"""Settings that both contenders share, and the measurement of time and memory."""

import gc
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

BATCH = 32
NUM_CLASSES = 18
SHIFT, FLIP, BRIGHTNESS = 0.08, 0.5, 0.2
"""Augmentation: maximum shift, probability of a flip, maximum change of brightness."""


def measure(work: Callable[[Callable[[], None]], None]) -> None:
    """Call `work` and print, as JSON: its seconds, median seconds per epoch, and `peak_mb`.

    `peak_mb` is the peak memory of the largest process. The median excludes the first epoch, in
    which workers start and caches fill.

    Args:
        work: receives a function to call before the first epoch and after each epoch.
    """
    gc.freeze()  # as stages do (`face_attributes/command.py`)
    times: list[float] = []
    start = time.perf_counter()
    work(lambda: times.append(time.perf_counter()))
    seconds = time.perf_counter() - start
    epochs = [end - begin for begin, end in itertools.pairwise(times)]
    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    # Kilobytes on Linux, bytes on macOS.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    epoch = statistics.median(epochs[1:])
    print(json.dumps({"seconds": seconds, "epoch": epoch, "peak_mb": max(peaks) / unit}))
