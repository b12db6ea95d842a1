"""Classify: mask, gender and age group of the faces in any photos, by the trained networks.

    python -m stages.classify photo.jpg holiday/ --csv labels.csv --annotate labelled

Photos are cut as those were that the networks learned from: their files say how. Folders are
searched through for jpg, jpeg and png; hidden files and folders are passed over. A photo without a
face is listed as such, and classified only with --fallback. What a row has is told in
`stages/classifying.py`. The class is the likeliest: `predict.tau` is not in it.

The exit code is 1 if a photo could not be read, of which there is a line each, and 0 otherwise: a
photo without a face is no error.
"""

import csv
import io
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, TextIO

import torch
import typer
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from stages.classifying import (
    COLUMNS,
    MOST_AT_ONCE,
    NO_FACE,
    Row,
    Seen,
    classify,
    find_networks,
    look,
    was_read,
)
from stages.command import stage_command
from stages.errors import UserError
from stages.faces.detect import load_detector, one_thread
from stages.faces.marking import mark
from stages.files import write_whole
from stages.learning.device import be_deterministic, choose_hardware, keep_memory
from stages.learning.ensemble import Ensemble, read_networks
from stages.learning.recipe import Recipe
from stages.learning.weight_files import read_recipe
from stages.params import Device
from stages.photos.opening import SUFFIXES, open_photo

AHEAD = 2 * MOST_AT_ONCE
"""Photos that are open, or about to be, while the networks work on earlier ones."""
JPEG_SIDE = 65_500
"""The most pixels that a side of a JPEG may have."""

Write = Callable[[Path, Sequence[Row]], None]
"""Takes a photo and its rows."""


def list_photos(arguments: Sequence[Path]) -> dict[Path, Path]:
    """The photos that are named, and those in folders that are: path -> name in another folder.

    Each is there once, in the order of the arguments and then of names; no two have the same name
    in the other folder, not even on a disk that does not tell case.

    Raises:
        UserError: if there is no such photo or folder, or a folder holds no photo.
    """
    names, taken, known = dict[Path, Path](), set[str](), set[str]()
    for argument in arguments:
        if not argument.is_file() and not argument.is_dir():
            raise UserError(f"there is no photo or folder {argument}")
        found = list(_walk(argument)) if argument.is_dir() else [argument]
        if not found:
            raise UserError(f"{argument} holds no photo ({', '.join(SUFFIXES)})")
        for path in found:
            real = os.path.realpath(path)  # which bears a link to itself, as resolve() does not
            if real in known:
                continue
            known.add(real)
            name = path.relative_to(argument) if argument.is_dir() else Path(path.name)
            free, number = name, 1
            while free.as_posix().casefold() in taken:
                number += 1
                free = name.with_stem(f"{name.stem}-{number}")
            taken.add(free.as_posix().casefold())
            names[path] = free
    return names


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(place, name)
            photo = not name.startswith(".") and path.suffix.lower() in SUFFIXES
            if photo and (path.is_file() or not path.exists()):  # a link to nothing is told of
                yield path


def look_ahead(
    pool: ProcessPoolExecutor, paths: Sequence[Path], see: Callable[[Path], Seen]
) -> Iterator[list[Seen]]:
    """Start to look at photos at once, a few ahead; give them in order, as many as are ready.

    So the first answer does not wait for a full batch, and no more than `AHEAD` are in memory.
    """
    todo = iter(paths)
    waiting = deque(pool.submit(see, path) for path in islice(todo, AHEAD))

    def ready() -> Iterator[list[Seen]]:
        while waiting:
            batch = [waiting.popleft().result()]
            while waiting and waiting[0].done() and len(batch) < MOST_AT_ONCE:
                batch.append(waiting.popleft().result())
            waiting.extend(pool.submit(see, path) for path in islice(todo, len(batch)))
            yield batch

    return ready()


@contextmanager
def ended_processes_told() -> Iterator[None]:
    """Say what it means where the system ends a process of the pool.

    Raises:
        UserError: if it did.
    """
    try:
        yield
    except BrokenProcessPool:
        raise UserError(
            "the system has ended a process that opened photos, as it does when memory runs out: "
            "lower --max-pixels"
        ) from None


def see_file(path: Path, recipe: Recipe, fallback: bool, max_pixels: int) -> Seen:
    """As `look`, of a file."""
    return look(readable_name(path), path, recipe, fallback, max_pixels)


def readable_name(path: Path) -> str:
    """A path as text that any file and terminal can take."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def start_worker() -> None:
    """Ctrl-C is the main process's to tell of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one_thread()


@contextmanager
def text_to(path: str) -> Iterator[TextIO]:
    """A text file that appears when it is whole, or standard output for "-".

    Raises:
        UserError: if the name is that of a photo, which it would take the place of, or of a folder.
    """
    if Path(path).suffix.lower() in SUFFIXES or Path(path).is_dir():
        raise UserError(f"{path} is a photo or a folder: name the file to write")
    if path == "-":
        yield sys.stdout
        return
    with write_whole(Path(path)) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()


@contextmanager
def csv_to(path: str) -> Iterator[Write]:
    """Write rows as a table with a header."""
    with text_to(path) as file:
        table = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        table.writeheader()

        def write(_: Path, rows: Sequence[Row]) -> None:
            table.writerows(rows)
            file.flush()

        yield write


@contextmanager
def json_to(path: str) -> Iterator[Write]:
    """Write rows as a list of objects, one a line."""
    with text_to(path) as file:
        before = "[\n"

        def write(_: Path, rows: Sequence[Row]) -> None:
            nonlocal before
            for row in rows:
                file.write(before + json.dumps(row, ensure_ascii=False))
                before = ",\n"
            file.flush()

        yield write
        file.write("\n]\n")


@contextmanager
def table_to(console: Console) -> Iterator[Write]:
    """Print rows as they come; on a terminal no more than fit on it."""
    room = max(1, console.height - 5) if console.is_terminal else sys.maxsize
    shown = total = 0

    def write(_: Path, rows: Sequence[Row]) -> None:
        nonlocal shown, total
        told = [row for row in rows if was_read(row)]
        fit = told[: room - shown]
        if fit:
            with tqdm.external_write_mode(file=sys.stdout):
                console.print(_table(fit, console.width, header=not shown))
        shown, total = shown + len(fit), total + len(told)

    yield write
    if total > shown:
        console.print(f"... and {total - shown} rows more: --csv FILE has all")


WIDTHS = {"face": 8, "mask": 14, "gender": 11, "age": 16, "class": 8}
"""Of the table's columns, which fill 80 characters with a file name of 17."""


def _table(rows: Sequence[Row], width: int, header: bool) -> Table:
    """Rows with columns of fixed width, so that parts of a table fit together."""
    name_width = max(10, width - sum(WIDTHS.values()) - len(WIDTHS) - 1)
    table = Table(box=None, show_header=header, pad_edge=False, padding=(0, 1, 0, 0))
    for column, wide in {"file": name_width, **WIDTHS}.items():
        table.add_column(column, width=wide, no_wrap=True)
    for row in rows:
        name = row["file"]
        while cell_len(name) > name_width:
            name = "…" + name[2:]
        if row["problem"]:
            table.add_row(Text(name), "", row["problem"])
            continue
        shown = [
            f"{row[key]:<{WIDTHS[key] - 5}} {row[f'{key}_probability']:4.0%}"
            for key in ("mask", "gender", "age")
        ]
        face = str(row["face"]) if row["way"] == "detected" else row["way"]
        table.add_row(Text(name), face, *shown, f"{row['class']:2} {row['probability']:4.0%}")
    return table


def annotate(path: Path, rows: Sequence[Row], out: Path, max_pixels: int) -> None:
    """Write a copy of a photo with the boxes and labels of its rows."""
    photo = open_photo(path, max_pixels)
    boxes, captions = [(0, 0, *photo.size)], [NO_FACE]
    if not rows[0]["problem"]:
        boxes = [(row["left"], row["top"], row["width"], row["height"]) for row in rows]
        captions = [
            f"mask {row['mask']}: {row['mask_probability']:.0%}\n"
            f"{row['gender']}: {row['gender_probability']:.0%}\n"
            f"age {row['age']}: {row['age_probability']:.0%}"
            for row in rows
        ]
    with write_whole(out, wait_for_disk=False) as file:
        form = "PNG" if out.suffix.lower() == ".png" else "JPEG"
        marked = mark(photo, boxes, captions)
        marked.thumbnail((JPEG_SIDE, JPEG_SIDE))  # what JPEG cannot hold shrinks; no other does
        marked.save(file, form, quality=90)


def check_empty(folder: Path) -> None:
    """Copies are written to a folder in which there is nothing that could be an original.

    Raises:
        UserError: if there is.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--annotate: {folder} is not empty: name a folder that is new")


@contextmanager
def annotated_in(
    folder: Path, names: dict[Path, Path], pool: ProcessPoolExecutor, max_pixels: int
) -> Iterator[Write]:
    """Draw on copies of the photos, in the pool's processes, no more than `AHEAD` photos behind."""
    waiting = deque[Future[None]]()

    def write(path: Path, rows: Sequence[Row]) -> None:
        if was_read(rows[0]):
            waiting.append(pool.submit(annotate, path, rows, folder / names[path], max_pixels))
        if len(waiting) > AHEAD:
            waiting.popleft().result()

    yield write
    for drawn in waiting:
        drawn.result()


@stage_command
def main(
    photos: Annotated[list[Path], typer.Argument(help="Photos, and folders of them")],
    networks: Annotated[
        Path, typer.Option(help="Folder with fold0/network.safetensors, ...")
    ] = Path("data/train"),
    fold: Annotated[int | None, typer.Option(help="Ask the network of one fold alone")] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Classify photos without a face, too")
    ] = False,
    csv_file: Annotated[
        str, typer.Option("--csv", metavar="FILE", help="Write a table; - prints it")
    ] = "",
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write all there is as JSON; - prints it")
    ] = "",
    annotate_in: Annotated[
        Path | None,
        typer.Option("--annotate", metavar="DIR", help="Draw boxes and labels on copies there"),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="A larger photo is not decoded")
    ] = 50_000_000,
    device: Annotated[Device, typer.Option()] = "auto",
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option()] = "auto",
) -> None:
    """Classify the faces in PHOTOS: mask, gender and age group.

    The exit code is 1 if a photo could not be read; a photo without a face is no error.
    """
    if csv_file == json_file == "-":
        raise UserError("--csv - and --json -: only one of them can be printed")
    named = [Path(each).resolve() for each in (csv_file, json_file, annotate_in) if each]
    if len(set(named)) < len(named):
        raise UserError("--csv, --json and --annotate: two of them have the same name")
    if annotate_in is not None:
        check_empty(annotate_in)
    files = list(find_networks(networks, fold).values())
    recipe = read_recipe(files[0])
    names = list_photos(photos)
    load_detector(recipe.crop.detector, recipe.crop.yunet_model)  # an unusable one ends here
    printed = "-" in (csv_file, json_file)
    see = partial(see_file, recipe=recipe, fallback=fallback, max_pixels=max_pixels)
    faces = without = unreadable = 0

    with ended_processes_told(), ExitStack() as stack:
        writers = [] if printed else [stack.enter_context(table_to(Console()))]
        writers += [stack.enter_context(csv_to(csv_file))] if csv_file else []
        writers += [stack.enter_context(json_to(json_file))] if json_file else []
        cores = os.cpu_count() or 1
        workers = min(len(names), max(1, cores // 2))
        pool = stack.enter_context(ProcessPoolExecutor(workers, initializer=start_worker))
        stack.callback(pool.shutdown, cancel_futures=True)
        if annotate_in is not None:
            writers.append(stack.enter_context(annotated_in(annotate_in, names, pool, max_pixels)))

        # Before torch computes anything: a process that has threads is not to fork.
        batches = look_ahead(pool, list(names), see)
        # A core is a worker's or the networks': threads that wait for each other cost 3x.
        torch.set_num_threads(min(torch.get_num_threads(), max(1, cores - workers)))
        be_deterministic()
        keep_memory()
        hardware = choose_hardware(device, precision, "--device")
        asked, recipe = read_networks(files, hardware)
        ensemble = Ensemble(asked, recipe)
        bar = stack.enter_context(
            tqdm(total=len(names), leave=False, disable=not sys.stderr.isatty())
        )
        paths = iter(names)
        for batch in batches:
            for rows in classify(batch, ensemble, recipe, hardware):
                path = next(paths)
                for write in writers:
                    write(path, rows)
                faces += bool(rows[0]["face"]) and len(rows)
                without += rows[0]["problem"] == NO_FACE
                if not was_read(rows[0]):
                    unreadable += 1
                    tqdm.write(f"{rows[0]['file']} {rows[0]['problem']}", sys.stderr)
            bar.update(len(batch))
    print(
        f"classify: {len(names)} photos, {faces} faces by {len(files)} networks; {without} photos "
        f"without a face, {unreadable} that cannot be read",
        file=sys.stderr if printed else sys.stdout,
    )
    if unreadable:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
