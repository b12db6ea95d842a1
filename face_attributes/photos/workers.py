"""Processes that work on photos, one per core."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from face_attributes.errors import UserError


@contextmanager
def process_pool(
    remedy: str, workers: int | None = None, initializer: Callable[[], None] | None = None
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes; explain in one line that the system killed one.

    Args:
        remedy: what to do if memory runs out, such as "lower clean.max_pixels".
        workers: number of processes. None: one per core.

    Raises:
        UserError: if a process was killed.
    """
    try:
        with ProcessPoolExecutor(workers, initializer=initializer) as pool:
            yield pool
    except BrokenProcessPool:
        raise UserError(
            "the system killed a worker process, probably because memory ran out: close other "
            f"programs, or {remedy}, then run again"
        ) from None
