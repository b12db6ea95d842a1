"""The exceptions that end a command with one line instead of a traceback."""

import errno
import sys
from types import TracebackType

OUT_OF_MEMORY = (
    "allocate memory",  # torch, the operating system
    "could not create a primitive",  # oneDNN
    "failed to map segment",  # the dynamic linker, of a library that is imported
    "can't start new thread",
    "Insufficient memory",  # OpenCV
    "out of memory",  # CUDA
    "STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN
)
"""Parts of the messages of exceptions that mean the same as MemoryError."""
NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""Part of the message of `tempfile`, which torch asks as it is imported."""


class UserError(Exception):
    """A mistake that the user can fix. The message says what is wrong, where, and what to do."""


class StillRunningError(UserError):
    """Another process is writing the same files; nothing was changed."""


def shortage(error: BaseException) -> str:
    """Say in one line that memory or room for temporary files ran out, if the exception means it.

    Else "".
    """
    text = " ".join(str(error).split())
    if isinstance(error, FileNotFoundError) and NO_TEMPORARY_FOLDER in text:
        return (
            "there is no room for temporary files: free some space on the disk, or set TMPDIR to a "
            "folder on another one, then run again"
        )
    short = isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
    if not short and not (
        isinstance(error, RuntimeError | ImportError | OSError)
        and any(sign in text for sign in OUT_OF_MEMORY)
    ):
        return ""
    reason = f" ({text[:160]})" if text else ""
    return (
        f"out of memory{reason}: end other programs or raise the limit on memory; "
        "docs/troubleshooting.md lists parameters that need less"
    )


def last_error(stderr: str) -> str:
    """Return the last line of what git or DVC says of its failure; below it, DVC offers help."""
    lines = [line for line in stderr.splitlines() if line.strip() and "dvc.org/support" not in line]
    return lines[-1].strip() if lines else "failed"


def explain_shortage(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Print a line if something ran out, the traceback of any other exception (sys.excepthook)."""
    if problem := shortage(error):
        print(f"error: {problem}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
