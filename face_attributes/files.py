"""Write files whole or not at all: under a temporary name, then rename."""

import errno
import glob
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:  # importing pandas takes 0.25 s, and `commands.classify` does not need it
    import pandas as pd

MAX_NAME_BYTES = 255
"""Longest name of a file, on all common file systems."""

MIN_AGE = 2 * 10**9
"""Nanoseconds, more than the resolution of any file system's times."""

CHECKSUM_BYTES = hashlib.sha256().digest_size

IN_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""The end of a path in DVC's cache, where a file has the name of its content."""


def is_link_into_cache(path: Path) -> bool:
    """Whether a path is a link that DVC made in place of an output (`cache.type symlink`)."""
    return path.is_symlink() and bool(IN_DVC_CACHE.search(path.readlink().as_posix()))


def project_folder() -> Path:
    """The project's folder, even from one of DVC's temporary copies of it."""
    project, _, _ = str(Path.cwd()).partition("/.dvc/tmp/")
    return Path(project)


@contextmanager
def write_whole(path: Path, fsync: bool = True) -> Iterator[BufferedRandom]:
    """Open a temporary file for writing; rename it to `path` when the block ends without error.

    Processes that write the same file at once do not mix: the last one to finish has written it.
    A killed process leaves at most `NAME.PID.partial`, which git and DVC ignore, and whoever has
    the file to itself may delete with `remove_leftovers`.

    Args:
        fsync: whether to fsync, so that the guarantee survives a power failure.

    Raises:
        OSError: if the disk is full, the folder is not writable, or `path` is a folder; `path` is
            unchanged.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        with path_in_errors(path, partial), partial.open("w+b") as file:
            yield file
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """This process's temporary name of a file, no longer than file systems allow."""
    name, ending = os.fsencode(path.name), f".{os.getpid()}.partial"
    if len(name) + len(ending) > MAX_NAME_BYTES:
        return path.with_name(hashlib.sha256(name).hexdigest() + ending)
    return path.with_name(path.name + ending)


def remove_leftovers(path: Path) -> None:
    """Delete what killed processes left of a file, or of the files in a folder.

    No other process may be writing to it.
    """
    for folder, name in ((path.parent, glob.escape(path.name)), (path, "*")):
        for leftover in folder.glob(f"{name}.*[0-9].partial"):
            leftover.unlink(missing_ok=True)


@contextmanager
def path_in_errors(path: Path, partial: Path | None = None) -> Iterator[None]:
    """Name `path` in an OSError without a file name, as failed writes raise it.

    Args:
        partial: its temporary name, which is replaced by it.
    """
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(partial)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """Compute the SHA-256 of a large file, or remember it if the file has not changed since.

    DVC, too, takes a file for unchanged while inode, size and modification time are the same. A
    file that is younger than MIN_AGE is not remembered: its time might not tell two writes apart.
    """
    status = path.stat()
    facts = [status.st_ino, status.st_size, status.st_mtime_ns]
    place = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    note = project_folder() / f".cache/hashes/{place}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):  # no note, or none of ours
        known = read_json(note)
        if known["file"] == facts:
            return str(known["sha256"])
    digest = sha256(path)
    if time.time_ns() - status.st_mtime_ns > MIN_AGE:
        with suppress(OSError):  # the next run computes it again
            write_json(note, {"file": facts, "sha256": digest})
    return digest


@contextmanager
def write_checksummed(path: Path) -> Iterator[BinaryIO]:
    """Like `write_whole`, with the SHA-256 of the content at the start of the file."""
    with write_whole(path) as file:
        file.write(bytes(CHECKSUM_BYTES))
        yield file
        file.seek(CHECKSUM_BYTES)
        checksum = hashlib.file_digest(file, "sha256").digest()
        file.seek(0)
        file.write(checksum)


@contextmanager
def read_checksummed(path: Path) -> Iterator[BinaryIO | None]:
    """Open a file of `write_checksummed` at its content; None if it is missing or damaged."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        checksum = file.read(CHECKSUM_BYTES)
        intact = hashlib.file_digest(file, "sha256").digest() == checksum
        file.seek(CHECKSUM_BYTES)
        yield file if intact else None


def write_table(path: Path, table: "pd.DataFrame", float_format: str | None = None) -> None:
    """Write a table as CSV, without its index, with `\\n` line endings on every system."""
    with write_whole(path) as file:
        table.to_csv(
            file,
            index=False,
            lineterminator="\n",
            float_format=float_format,
            errors="backslashreplace",  # file names may be invalid UTF-8
        )


def write_json(path: Path, content: dict[str, Any], digits: int = 6) -> None:
    """Write nested values as JSON, floats rounded to `digits` decimals."""
    with write_whole(path) as file:
        file.write((json.dumps(_rounded(content, digits), indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that `write_json` wrote."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, digits) for item in value]
    return round(float(value), digits) if isinstance(value, float) else value
