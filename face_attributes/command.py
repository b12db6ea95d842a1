"""What command lines share: one-line errors, Ctrl-C, the time each stage took, a warning."""

import contextlib
import errno
import functools
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil
import typer

from face_attributes.errors import UserError
from face_attributes.files import write_json

TIMES = Path(".cache/times")
"""One file per stage that DVC has run here. Not a DVC output: outputs are identical in each run,
and times are not."""
TIMES_VARIABLE = "STAGE_TIMES"
"""Environment variable that names another folder than TIMES."""

CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EROFS: "the file system is read-only: make it writable",
    errno.EACCES: "permission denied: check the owner of the folder",
    errno.EISDIR: "a folder is in the way of the file: name another",
    errno.EEXIST: "a file is in the way of a folder: move it",
    errno.ENOTDIR: "a file is in the way of a folder: move it",
    errno.EPERM: "permission denied: check the owner of the folder",
}


def stage_command(main: Callable[..., None]) -> typer.Typer:
    """Turn the `main` of a stage into a command line.

    A user's mistake is one line and exit code 1; anything unexpected keeps its traceback. Ctrl-C
    ends it at once, with a line. If DVC runs it, it writes the time it took to TIMES.
    """

    @functools.wraps(main)
    def stage(*args: object, **options: object) -> None:
        if main.__module__ == "__main__":
            end_on_interrupt()
        timed(main)(*args, **options)

    return user_command(stage)


def user_command(main: Callable[..., None]) -> typer.Typer:
    """Turn the `main` of a command into a command line, with a user's mistake as one line."""

    @functools.wraps(main)
    def command(*args: object, **options: object) -> None:
        if main.__module__ == "__main__":
            gc.freeze()  # exempt imported objects from garbage collection
        errors_in_one_line(main)(*args, **options)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return app


def timed(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap `main` to write how long it took and when it ended to TIMES, if DVC runs it."""

    @functools.wraps(main)
    def command(*args: object, **options: object) -> None:
        start = time.perf_counter()
        main(*args, **options)
        if "DVC_STAGE" in os.environ:
            seconds = time.perf_counter() - start
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            name = os.environ["DVC_STAGE"].split(":")[-1]
            folder = Path(os.environ.get(TIMES_VARIABLE, TIMES))
            write_json(folder / f"{name}.json", {"seconds": seconds, "ended": ended}, digits=1)

    return command


def errors_in_one_line(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap `main` so that a user's mistake is one line and exit code 1."""

    @functools.wraps(main)
    def command(*args: object, **options: object) -> None:
        try:
            main(*args, **options)
        except UserError as error:
            _stop(str(error))
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            _stop(f"{error.filename or 'output'}: {CANNOT_WRITE[error.errno]}, then run again")

    return command


def end_on_interrupt() -> None:
    """End the process and its workers on Ctrl-C, even within a long step, and say what follows.

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
        workers = [child.pid for child in psutil.Process().children(recursive=True)]
        print(
            "\nstopped: finished stages, folds and epochs are kept; `dvc repro` continues there",
            flush=True,
        )
        # Last, so that the main thread does not get to report its dead workers.
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(130)

    threading.Thread(target=wait_and_end, daemon=True).start()


def warn_if_outside(path: Path, folder: Path, key: str) -> None:
    """Warn if the file that a parameter names is outside the folder that the stage depends on."""
    if not path.resolve().is_relative_to(folder.resolve()):
        print(
            f"warning: {key}: {path} is outside {folder}: DVC will not notice when it changes",
            file=sys.stderr,
        )


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    if "DVC_STAGE" in os.environ:
        print("DVC has the results of earlier runs: `dvc checkout` restores them", file=sys.stderr)
    raise typer.Exit(1)
