"""What command lines share: one-line errors, a lock on outputs, the time each stage took."""

import contextlib
import errno
import functools
import gc
import inspect
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import typer

from face_attributes.errors import StillRunningError, UserError, shortage
from face_attributes.files import is_link_into_cache, remove_leftovers, write_json
from face_attributes.processes import one_at_a_time, place_in_group

LOCKS = Path(".cache/locks")
"""A lock file per output of a stage, outside the outputs: DVC hashes and deletes those."""

TIMES = Path(".cache/times")
"""One file per stage that DVC has run here. Not a DVC output: outputs are identical in each run,
and times are not."""
TIMES_VARIABLE = "STAGE_TIMES"
"""Environment variable that names another folder than TIMES."""

FAULTS_OF_FILES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EROFS: "the file system is read-only: make it writable",
    errno.EACCES: "permission denied: check the owner of the folder",
    errno.EISDIR: "a folder is in the way of the file: name another",
    errno.ENAMETOOLONG: "the name is too long: shorten it",
    errno.EEXIST: "a file is in the way of a folder: move it",
    errno.ENOTDIR: "a file is in the way of a folder: move it",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENFILE: "all programs together have too many files open: end some",
    errno.EPERM: "permission denied: check the owner of the folder",
}

REMEDY_OF_DATABASE = (
    "see that the disk has space, .dvc/tmp and DVC's site_cache_dir (/var/tmp/dvc) can be written, "
    "and `ulimit -n` is not too low, then run again"
)


def stage_command(main: Callable[..., None], in_group: bool = False) -> typer.Typer:
    """Turn the `main` of a stage into a command line.

    A user's mistake is one line and exit code 1; anything unexpected keeps its traceback. The
    outputs, which are the argument `out` and those after it, are locked meanwhile. If DVC runs it,
    it writes the time it took to TIMES.

    Args:
        in_group: whether `main` is for processes that `torchrun` starts together, the first of
            which writes the outputs.
    """

    @functools.wraps(main)
    def stage(*args: object, **options: object) -> None:
        if in_group and place_in_group()[0] > 0:
            main(*args, **options)
            return
        arguments = inspect.signature(main).bind(*args, **options).arguments
        names = list(arguments)
        outputs = names[names.index("out") :] if "out" in names else []
        with contextlib.ExitStack() as stack:
            for name in outputs:
                stack.enter_context(locked(Path(str(arguments[name])), main))
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


@contextlib.contextmanager
def locked(output: Path, main: Callable[..., None]) -> Iterator[None]:
    """Keep every other process of this project from writing to an output of a stage.

    Killing only DVC may leave the stage's process running, which would then overwrite the outputs
    of the next run.

    Raises:
        StillRunningError: if another process has locked the output.
    """
    place = output.parent.resolve() / output.name  # not the target of a link into DVC's cache
    project = Path.cwd()
    name = place.relative_to(project if place.is_relative_to(project) else place.anchor)
    stage = Path(inspect.unwrap(main).__code__.co_filename).stem
    lock = one_at_a_time(LOCKS / f"{name}.lock", f"{output}: stage {stage} of an earlier run")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock)
        except OSError as error:
            _warn(f"{output} is not locked against other runs: {error}")
        else:
            remove_leftovers(place)
        yield


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
            try:
                write_json(folder / f"{name}.json", {"seconds": seconds, "ended": ended}, digits=1)
            except OSError as error:  # no reason to lose what the stage has done
                _warn(f"the report will not show the time of {name}: {error}")

    return command


def errors_in_one_line(main: Callable[..., None]) -> Callable[..., None]:
    """Wrap `main` so that a user's mistake is one line and exit code 1."""

    @functools.wraps(main)
    def command(*args: object, **options: object) -> None:
        try:
            with keyboard_interrupts():
                main(*args, **options)
        except UserError as error:
            _stop(str(error), restorable=not isinstance(error, StillRunningError))
        except Exception as error:
            if problem := shortage(error):
                _stop(problem)
            if isinstance(error, sqlite3.OperationalError):
                _stop(f"DVC cannot use its database ({error}): {REMEDY_OF_DATABASE}")
            if not isinstance(error, OSError) or error.errno not in FAULTS_OF_FILES:
                raise
            _stop(f"{error.filename or 'output'}: {FAULTS_OF_FILES[error.errno]}, then run again")

    return command


@contextlib.contextmanager
def keyboard_interrupts() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt in this block, where it ended the process before."""
    ends = signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # since commands/__init__.py
    if ends:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ends:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def refuse_outside(path: Path, folder: Path, key: str) -> None:
    """Refuse a file that a parameter names outside the folder that the stage depends on.

    Raises:
        UserError: if it is there, or behind a link; a link into DVC's cache (`cache.type symlink`)
            is none.
    """
    places = [path.parent] if is_link_into_cache(path) else [path.parent, path]
    if not all(place.resolve().is_relative_to(folder.resolve()) for place in places):
        raise UserError(
            f"{key}: {path} is outside {folder}, where DVC would not notice when it changes: copy "
            f"it to {folder}, and write its path there"
        )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _stop(message: str, restorable: bool = True) -> None:
    print(f"error: {message}", file=sys.stderr)
    if restorable and "DVC_STAGE" in os.environ:
        print("DVC has the results of earlier runs: `dvc checkout` restores them", file=sys.stderr)
    raise typer.Exit(1)
