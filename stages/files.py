"""Files are written whole or not at all: under a temporary name, then renamed.

A sealed file begins with the SHA-256 of what follows, so that a damaged one is known.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # importing it takes a quarter of a second, which `classify` has no use for
    import pandas as pd

SEAL = hashlib.sha256().digest_size


@contextmanager
def write_whole(path: Path, wait_for_disk: bool = True) -> Iterator[BufferedRandom]:
    """Open `path` for writing; it appears under its name only when the block ends well.

    Args:
        wait_for_disk: whether that shall hold for a power failure, too.

    A killed process leaves at most `NAME.partial`, which git and DVC ignore and the next run
    overwrites.

    Raises:
        OSError: if the disk is full, the folder cannot be written, or `path` is a folder itself;
            `path` is as it was.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with naming(path), partial.open("w+b") as file:
            yield file
            file.flush()
            if wait_for_disk:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in a failed write's error, which does not say to which file that was."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def write_sealed(path: Path) -> Iterator[BinaryIO]:
    """As `write_whole`, with a seal before what the block writes."""
    with write_whole(path) as file:
        file.write(bytes(SEAL))
        yield file
        file.seek(SEAL)
        seal = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        file.write(seal)


@contextmanager
def read_sealed(path: Path) -> Iterator[BinaryIO | None]:
    """Open what `write_sealed` wrote, behind its seal; None if it is missing or damaged."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        seal = file.read(SEAL)
        whole = hashlib.file_digest(file, "sha256").digest() == seal
        file.seek(SEAL)
        yield file if whole else None


def write_table(path: Path, table: "pd.DataFrame", float_format: str | None = None) -> None:
    """Write a table as CSV, without its index, with `\\n` line ends on every system."""
    with write_whole(path) as file:
        table.to_csv(
            file,
            index=False,
            lineterminator="\n",
            float_format=float_format,
            errors="backslashreplace",  # a name from a disk may be in no encoding at all
        )


def write_json(path: Path, content: dict[str, Any], digits: int = 6) -> None:
    """Write nested figures as JSON, floats rounded to `digits` decimals."""
    with write_whole(path) as file:
        file.write((json.dumps(_rounded(content, digits), indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Figures that `write_json` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, digits) for item in value]
    return round(float(value), digits) if isinstance(value, float) else value
