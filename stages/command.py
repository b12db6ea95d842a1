"""What the stages' command lines share: errors in one line, the time they took, and a warning."""

import errno
import functools
import gc
import os
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import typer

from stages.errors import UserError
from stages.files import write_json

TIMES = Path(".cache/times")
"""A file for each stage that DVC has run here. Beside DVC's outputs, which are the same to the byte
each time, as times are not."""

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
    """Make `main` a command: a user's mistake is one line and exit code 1.

    Anything unexpected keeps its traceback. What DVC runs leaves its time in `TIMES`.
    """
    if main.__module__ == "__main__":
        gc.freeze()  # all imports are done: no look for garbage among them, above all at exit
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(errors_in_one_line(timed(main)))
    return app


def timed(main: Callable[..., None]) -> Callable[..., None]:
    """`main`, which notes in `TIMES` how long it took and when it ended, where DVC runs it."""

    @functools.wraps(main)
    def command(*args: object, **options: object) -> None:
        start = time.perf_counter()
        main(*args, **options)
        if "DVC_STAGE" in os.environ:
            seconds = time.perf_counter() - start
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            name = os.environ["DVC_STAGE"].split(":")[-1]
            write_json(TIMES / f"{name}.json", {"seconds": seconds, "ended": ended}, digits=1)

    return command


def errors_in_one_line(main: Callable[..., None]) -> Callable[..., None]:
    """`main`, with a user's mistake as one line and exit code 1."""

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


def warn_if_outside(path: Path, folder: Path, key: str) -> None:
    """Say so where the file that a knob names is not in the folder that the stage depends on."""
    if not path.resolve().is_relative_to(folder.resolve()):
        print(
            f"warning: {key}: {path} is outside of {folder}: DVC will not see when it changes",
            file=sys.stderr,
        )


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    if "DVC_STAGE" in os.environ:
        print(
            "what earlier runs made is in DVC's cache: `dvc checkout` brings it back",
            file=sys.stderr,
        )
    raise typer.Exit(1)
