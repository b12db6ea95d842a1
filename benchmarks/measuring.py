"""What both contenders share: batches, augmentation, and how they report what they took."""

import gc
import itertools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

BATCH = 32
CLASSES = 18
SHIFT, FLIP, BRIGHTNESS = 0.08, 0.5, 0.2
"""The augmentation of both."""


def measured(work: Callable[[Callable[[], None]], None]) -> None:
    """Do the work and print, as JSON: its seconds, the median of its epochs', and `peak_mb`.

    Args:
        work: is given what it calls before its first epoch and after each. The first, in which
            workers start and caches fill, is not among the epochs whose median is taken.

    `peak_mb` is the memory of the largest process.
    """
    gc.freeze()  # as stages do (`stages/command.py`)
    marks: list[float] = []
    start = time.perf_counter()
    work(lambda: marks.append(time.perf_counter()))
    seconds = time.perf_counter() - start
    epochs = [end - begin for begin, end in itertools.pairwise(marks)]
    peaks = [
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    # Kilobytes on Linux, bytes on macOS.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    epoch = statistics.median(epochs[1:])
    print(json.dumps({"seconds": seconds, "epoch": epoch, "peak_mb": max(peaks) / unit}))
