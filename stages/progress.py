"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

PLAIN_LINE_SECONDS = 10.0


def progress(items: Iterable[Item], total: int, label: str) -> Iterator[Item]:
    """Pass `items` on, with a bar on a terminal and a plain line now and then elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, leave=False)
        return
    last = time.monotonic()
    for done, item in enumerate(items, start=1):
        if time.monotonic() - last > PLAIN_LINE_SECONDS:
            last = time.monotonic()
            print(f"{label}: {done} of {total}", flush=True)
        yield item
