"""The processes of a stage: one at a time for each output, workers on all cores, and their end."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import psutil
from filelock import FileLock, Timeout

from face_attributes.errors import StillRunningError, UserError
from face_attributes.files import path_in_errors

Result = TypeVar("Result")

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that Linux sends to a process whose parent has ended."""
POLL_SECONDS = 0.5
CHUNKS_AHEAD = 4
"""Chunks per core that are computed or waiting: results that are not fetched fill no memory."""
GROUP_VARIABLES = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
"""Environment variables that `torchrun` sets in the processes that it starts together."""
GROUP_STORE = "PROCESS_GROUP_STORE"
"""Environment variable with the URL of a file through which such processes find each other. Without
it they use the server of `torchrun`, which listens on all of the machine's addresses."""
PARENT_IS_GONE = "\nstopped: the process that started this one is gone"

_claims = list[FileLock]()
"""Locks that `claim` holds; an unreferenced one would be released."""


@contextlib.contextmanager
def process_pool(
    workers: int | None = None, initializer: Callable[[], None] | None = None, remedy: str = ""
) -> Iterator[ProcessPoolExecutor]:
    """Open a pool of processes that end with this one.

    Args:
        workers: number of processes. None: one per core.
        initializer: called once in each worker.
        remedy: what else to do if memory runs out, such as "lower clean.max_pixels".

    Raises:
        UserError: if the system killed a worker.
    """
    try:
        with ProcessPoolExecutor(
            workers, initializer=_start_worker, initargs=(initializer,)
        ) as pool:
            yield pool
    except BrokenProcessPool:
        raise UserError(
            "the system killed a worker process, probably because memory ran out: end other "
            f"programs{remedy and ', or '}{remedy}, then run again"
        ) from None


def map_on_all_cores(
    function: Callable[..., Result],
    *arguments: Iterable[object],
    chunksize: int = 1,
    initializer: Callable[[], None] | None = None,
    remedy: str = "",
) -> Iterator[Result]:
    """Like `map`, in one process per core; the results are in order.

    Arguments are taken, and results computed, only a few chunks ahead of what is fetched, so that
    memory does not grow with the number of calls.

    Args:
        chunksize: number of calls that a worker takes at a time.
        initializer, remedy: as for `process_pool`.

    Raises:
        UserError: if the system killed a worker.
    """
    with process_pool(None, initializer, remedy) as pool:
        calls = zip(*arguments, strict=False)
        waiting = deque[Future[list[Result]]]()
        try:
            while chunk := list(islice(calls, chunksize)):
                waiting.append(pool.submit(_call_each, function, chunk))
                if len(waiting) > CHUNKS_AHEAD * (os.cpu_count() or 1):
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for chunk_results in waiting:
                chunk_results.cancel()


def _call_each(
    function: Callable[..., Result], chunk: Iterable[tuple[object, ...]]
) -> list[Result]:
    return [function(*arguments) for arguments in chunk]


def _start_worker(initializer: Callable[[], None] | None) -> None:
    end_with_parent()
    # The parent may have ended before that, and then its end goes unnoticed.
    parent = multiprocessing.parent_process()
    assert parent is not None
    forked = multiprocessing.get_start_method() == "fork"
    if os.getppid() != parent.pid if forked else not parent.is_alive():
        os._exit(128 + signal.SIGKILL)
    if initializer is not None:
        initializer()


def place_in_group() -> tuple[int, int]:
    """The place of this process among those that `torchrun` started together, and their number.

    (0, 1) for a process that was started alone.
    """
    if not os.environ.keys() >= GROUP_VARIABLES:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def one_at_a_time(lock: Path, description: str) -> Iterator[None]:
    """Keep other processes out of this block, by a lock on a file that stays.

    Args:
        description: what the block does, for messages.

    Raises:
        StillRunningError: if another process is in this block, with its process id.
    """
    holder = lock.with_name(lock.name + ".pid")  # on Windows, a locked file cannot be read
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        pid = holder.read_text() if holder.exists() else "unknown"
        raise StillRunningError(
            f"{description} is still running (pid {pid}): wait, or end it"
        ) from None
    try:
        with path_in_errors(holder):
            holder.write_text(str(os.getpid()))
        yield
    finally:
        held.release()


def claim(names: Sequence[str], folder: Path) -> tuple[int, int]:
    """Claim one of several resources until this process ends: the one with the fewest claims.

    Args:
        folder: of the lock files, one per claim; the same for all processes.

    Returns:
        The index of the resource, and how many other claims it has.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "claims.lock"):  # only one process counts at a time
        counts = [sum(map(_is_held, folder.glob(f"{name}-*.lock"))) for name in names]
        others = min(counts)
        index = counts.index(others)
        lock = FileLock(folder / f"{names[index]}-{uuid4().hex}.lock")
        lock.acquire()
        _claims.append(lock)
    return index, others


def _is_held(path: Path) -> bool:
    """Whether a process holds the lock of a claim; if not, delete it."""
    try:
        with FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
    except Timeout:
        return True
    return False


def end_with_parent() -> None:
    """End this process, and its workers, when the process that started it is gone.

    However that one ended: nothing can catch `kill -9`. For a stage that DVC started through a
    shell, it is DVC that counts. It may be gone already, while Python started: then the system has
    handed this process over to one in another session (each process of `torchrun` begins its own).
    """
    starters = _starters()
    own = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
    if sys.platform != "win32" and not (starters and _in_one_session(own, starters[-1].pid)):
        _end(PARENT_IS_GONE, signal.SIGKILL)
    if sys.platform == "linux":  # at once, even within a long step
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while _starters() == starters:
            time.sleep(POLL_SECONDS)
        _end(PARENT_IS_GONE, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _in_one_session(pid: int, other: int) -> bool:
    try:
        return os.getsid(pid) == os.getsid(other)
    except OSError:  # it has just ended; some systems do not tell of other sessions
        return False


def _starters() -> list[psutil.Process]:
    """The parent and, if that is a shell in which DVC runs a stage, its parents up to DVC."""
    starters = list[psutil.Process]()
    process = psutil.Process().parent()
    with contextlib.suppress(psutil.Error):
        while process is not None:
            starters.append(process)
            process = process.parent() if "DVC_STAGE" in process.environ() else None
    return starters


def end_on_interrupt() -> None:
    """End this process and its workers on Ctrl-C, even within a long step, and say what follows.

    Files are written whole or not at all, so that nothing is left half-written.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    # A socket, because any library's thread may receive the signal while the main thread is busy.
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    signal.set_wakeup_fd(sender.detach())
    signal.signal(signal.SIGINT, lambda *_: None)

    def wait_and_end() -> None:
        while signal.SIGINT not in receiver.recv(1):
            pass
        _end(
            "\nstopped: finished stages, folds and epochs are kept; `dvc repro` continues there",
            signal.SIGINT,
        )

    threading.Thread(target=wait_and_end, daemon=True).start()


def _end(message: str, cause: signal.Signals) -> None:
    """End this process and its workers, with a line and the exit code of a signal."""
    workers = [child.pid for child in psutil.Process().children(recursive=True)]
    with contextlib.suppress(OSError):  # whoever read the output may be gone, too
        print(message, flush=True)
    # Last, so that the main thread does not get to report its dead workers.
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    os._exit(128 + cause)
