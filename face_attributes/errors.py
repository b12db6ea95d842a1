"""The exceptions that end a command with one line instead of a traceback."""

import errno

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


class UserError(Exception):
    """A mistake that the user can fix. The message says what is wrong, where, and what to do."""


class StillRunningError(UserError):
    """Another process is writing the same files; nothing was changed."""


def lack_of_memory(error: BaseException) -> str:
    """Say in one line that memory ran out, if that is what the exception means; else ""."""
    text = " ".join(str(error).split())
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
