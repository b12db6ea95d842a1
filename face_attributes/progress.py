"""Progress of long tasks: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from face_attributes.processes import place_in_group

Item = TypeVar("Item")

SECONDS_BETWEEN_LINES = 10.0


def progress(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Yield `items` and show progress: a bar on a terminal, a line every 10 seconds elsewhere.

    Of processes that `torchrun` started together, the first shows its own.
    """
    if sys.stderr.isatty() and place_in_group()[0] == 0:
        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{label}: {done} of {total}", flush=True)
        yield item
