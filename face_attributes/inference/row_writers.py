"""Writers of classified photos: CSV, JSON, a table on the terminal, annotated copies.

Each context manager yields a function that takes a photo's path and its rows (`recognition.Row`).
"""

import csv
import io
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from face_attributes.errors import UserError
from face_attributes.faces.boxes import TURNS
from face_attributes.faces.marking import mark
from face_attributes.files import write_whole
from face_attributes.inference.recognition import COLUMNS, NO_FACE, Row, is_readable
from face_attributes.photos.opening import FORMAT_BY_SUFFIX, open_photo, readable_formats

COLUMN_WIDTHS = {"face": 8, "mask": 14, "gender": 11, "age": 16, "class": 8}
"""Characters: on a terminal of 80, they leave 17 for the file name."""

Writer = Callable[[Path, Sequence[Row]], None]


@contextmanager
def csv_writer(path: str) -> Iterator[Writer]:
    """Write rows as CSV with a header; "-" is standard output."""
    with _open_text(path) as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()

        def write(_: Path, rows: Sequence[Row]) -> None:
            table.writerows(rows)
            file.flush()

        yield write


@contextmanager
def json_writer(path: str) -> Iterator[Writer]:
    """Write rows as a JSON list with one object per line; "-" is standard output."""
    with _open_text(path) as file:
        separator = "[\n"

        def write(_: Path, rows: Sequence[Row]) -> None:
            nonlocal separator
            for row in rows:
                file.write(separator + json.dumps(row, ensure_ascii=False))
                separator = ",\n"
            file.flush()

        yield write
        file.write("\n]\n")


@contextmanager
def _open_text(path: str) -> Iterator[TextIO]:
    """Open a text file that appears once it is complete, or standard output for "-".

    A pipe or a device is written to as it is, and so is the target of a link.

    Raises:
        UserError: if the path is a folder, or has the suffix of a photo, which it could overwrite.
    """
    if Path(path).suffix.lower() in FORMAT_BY_SUFFIX or Path(path).is_dir():
        raise UserError(f"{path} is a photo or a folder: name a file to write")
    if path == "-":
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as in a file, whatever the console's is
        yield sys.stdout
        return
    target = Path(path).resolve() if Path(path).is_symlink() else Path(path)
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8", newline="") as text:
            yield text
        return
    with write_whole(target) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()


@contextmanager
def table_printer(console: Console) -> Iterator[Writer]:
    """Print rows as they come; on a terminal, only as many as fit on the screen."""
    max_rows = max(1, console.height - 5) if console.is_terminal else sys.maxsize
    printed = total = 0

    def write(_: Path, rows: Sequence[Row]) -> None:
        nonlocal printed, total
        readable = [row for row in rows if is_readable(row)]
        fitting = readable[: max_rows - printed]
        if fitting:
            with tqdm.external_write_mode(file=sys.stdout):
                console.print(_table(fitting, console.width, header=not printed))
        printed, total = printed + len(fitting), total + len(readable)

    yield write
    if total > printed:
        console.print(f"... and {total - printed} more rows: --csv FILE writes all")


def _table(rows: Sequence[Row], width: int, header: bool) -> Table:
    """Lay rows out in columns of fixed width, so that consecutive tables align."""
    name_width = max(10, width - sum(COLUMN_WIDTHS.values()) - len(COLUMN_WIDTHS) - 1)
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, 1, 0, 0))
    for column, column_width in {"file": name_width, **COLUMN_WIDTHS}.items():
        table.add_column(column, width=column_width, no_wrap=True)
    for row in rows:
        name = row["file"]
        while cell_len(name) > name_width:
            name = "…" + name[2:]
        if row["problem"]:
            table.add_row(Text(name), "", row["problem"])
            continue
        attributes = [
            f"{row[field]:<{COLUMN_WIDTHS[field] - 5}} {row[f'{field}_probability']:4.0%}"
            for field in ("mask", "gender", "age")
        ]
        face = str(row["face"]) if row["way"] in TURNS else row["way"]
        table.add_row(Text(name), face, *attributes, f"{row['class']:2} {row['probability']:4.0%}")
    return table


@contextmanager
def copy_annotator(
    folder: Path,
    names: dict[Path, Path],
    pool: Executor,
    max_pixels: int,
    max_pending: int,
    report: Callable[[Path, str], None],
) -> Iterator[Writer]:
    """Write annotated copies of photos to a folder, in the pool's processes.

    Args:
        names: path of each photo -> path of its copy in the folder.
        max_pending: copies that may wait to be written.
        report: called with a photo whose copy could not be drawn, and the reason.
    """
    pending = deque[tuple[Path, Future[None]]]()

    def finish() -> None:
        path, copied = pending.popleft()
        try:
            copied.result()
        except DrawingError as error:
            report(path, str(error))

    def write(path: Path, rows: Sequence[Row]) -> None:
        if is_readable(rows[0]):
            copy = folder / names[path]
            pending.append((path, pool.submit(write_annotated, path, rows, copy, max_pixels)))
        if len(pending) > max_pending:
            finish()

    yield write
    while pending:
        finish()


class DrawingError(Exception):
    """A copy that could not be drawn; the message is the reason."""


def write_annotated(path: Path, rows: Sequence[Row], copy: Path, max_pixels: int) -> None:
    """Write a copy of a photo with the boxes and labels of its rows.

    Raises:
        DrawingError: if that photo cannot be drawn on.
        OSError: if the copy cannot be written.
    """
    try:
        photo = open_photo(path, max_pixels, readable_formats())
        boxes, captions = [(0, 0, *photo.size)], [NO_FACE]
        if not rows[0]["problem"]:
            boxes = [(row["left"], row["top"], row["width"], row["height"]) for row in rows]
            captions = [
                f"mask {row['mask']}: {row['mask_probability']:.0%}\n"
                f"{row['gender']}: {row['gender_probability']:.0%}\n"
                f"age {row['age']}: {row['age_probability']:.0%}"
                for row in rows
            ]
        drawn = io.BytesIO()
        file_format = "PNG" if copy.suffix.lower() == ".png" else "JPEG"
        mark(photo, boxes, captions).save(drawn, file_format, quality=90)
    except Exception as error:  # of whatever kind: the labels of all other photos must not be lost
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DrawingError(f"has no annotated copy ({reason})") from None
    with write_whole(copy, fsync=False) as file:
        file.write(drawn.getbuffer())
