"""Files are written whole or not at all: under a temporary name, then renamed."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for writing; it appears under its name only when the block ends well.

    A killed process leaves at most `NAME.partial`, which git and DVC ignore and the next run
    overwrites.

    Raises:
        OSError: if the disk is full or the folder cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        # A failed write does not say to which file; whoever reads the message needs to know.
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_table(path: Path, table: pd.DataFrame, float_format: str | None = None) -> None:
    """Write a table as CSV, without its index, with `\\n` line ends on every system."""
    with write_whole(path) as file:
        table.to_csv(file, index=False, lineterminator="\n", float_format=float_format)


def write_json(path: Path, content: dict[str, Any], digits: int = 6) -> None:
    """Write nested figures as JSON, floats rounded to `digits` decimals."""
    with write_whole(path) as file:
        file.write((json.dumps(_rounded(content, digits), indent=2) + "\n").encode())


def _rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {str(key): _rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item, digits) for item in value]
    return round(float(value), digits) if isinstance(value, float) else value
