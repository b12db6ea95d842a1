"""Classify the faces in any photos by mask, gender and age group, with the trained networks.

    python -m commands.classify photo.jpg holiday/ --csv labels.csv --annotate labelled

Photos are cropped as in training; the networks' files say how. Folders are searched recursively
for photos (jpg, png, webp, gif, avif; heic with pillow-heif). Hidden files, linked folders and
folders of thumbnails are skipped; what else was passed over is counted. A photo without a face is
listed as such, and classified only with --fallback. `face_attributes/inference/recognition.py`
describes the fields of a row. The class is the most probable one: `predict.tau` does not apply.

The exit code is 1 if a photo or folder could not be read (one line each), otherwise 0: a photo
without a face is not an error.
"""

import io
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from tqdm import tqdm

from face_attributes.command import user_command
from face_attributes.errors import UserError
from face_attributes.faces.detect import load_detector, use_one_thread
from face_attributes.files import MAX_NAME_BYTES
from face_attributes.inference.ensemble import Ensemble, read_networks
from face_attributes.inference.recognition import (
    MAX_BATCH,
    NO_FACE,
    ExaminedPhoto,
    classify,
    examine,
    find_networks,
)
from face_attributes.inference.row_writers import (
    copy_annotator,
    csv_writer,
    json_writer,
    table_printer,
)
from face_attributes.networks.device import prepare_hardware
from face_attributes.networks.recipe import Recipe
from face_attributes.networks.weight_files import read_recipe
from face_attributes.params import Device, Precision
from face_attributes.photos.names import readable_name
from face_attributes.photos.opening import (
    FORMAT_BY_SUFFIX,
    NEEDED_PACKAGE,
    SUFFIXES,
    readable_formats,
)
from face_attributes.processes import process_pool

THUMBNAILS = ("@eaDir", "__MACOSX")
"""Folders in which Synology's servers and macOS's archives store small copies; hidden folders such
as `.thumbnails` are skipped in any case."""

PHOTOS_AHEAD = 2 * MAX_BATCH
"""Photos that are open, or about to be, while the networks work on earlier ones."""


class PassedOver:
    """Files and folders that are not classified, by the reason."""

    def __init__(self) -> None:
        self.suffixes = Counter[str]()
        self.linked, self.thumbnails = list[str](), list[str]()
        self.unreadable = dict[str, str]()

    def lines(self) -> Iterator[str]:
        """Describe them, one line for each reason."""
        needed = {
            suffix: NEEDED_PACKAGE[name]
            for suffix, name in FORMAT_BY_SUFFIX.items()
            if name not in readable_formats() and name in NEEDED_PACKAGE
        }
        for suffix, package in needed.items():
            if count := self.suffixes.pop(suffix, 0):
                yield f"{count} {suffix} (`python -m pip install {package}` makes them readable)"
        if self.suffixes:
            kinds = [
                f"{count} {suffix or 'without a suffix'}"
                for suffix, count in self.suffixes.most_common(5)
            ]
            more = self.suffixes.total() - sum(count for _, count in self.suffixes.most_common(5))
            yield f"files that are not photos: {', '.join(kinds)}" + (f", {more} more" * bool(more))
        if self.thumbnails:
            yield f"{len(self.thumbnails)} folders of thumbnails, such as {self.thumbnails[0]}"
        if self.linked:
            yield (
                f"{len(self.linked)} linked folders, such as {self.linked[0]} (name them on the "
                "command line)"
            )
        for folder, reason in self.unreadable.items():
            yield f"{folder}, which cannot be read ({reason})"


def find_photos(arguments: Sequence[Path], passed_over: PassedOver) -> dict[Path, Path]:
    """Find the named photos, and those in the named folders: path -> path of an annotated copy.

    Each photo comes once, in the order of the arguments, then of names. The paths of the copies are
    relative to their folder, and unique even on a case-insensitive file system.

    Args:
        passed_over: receives what else is in the folders.

    Raises:
        UserError: if an argument does not exist, or a folder contains no photo.
    """
    copies, taken, known = dict[Path, Path](), set[str](), set[str]()
    for argument in arguments:
        if not argument.is_file() and not argument.is_dir():
            raise UserError(f"there is no photo or folder {readable_name(argument)}")
        paths = list(_walk(argument, passed_over)) if argument.is_dir() else [argument]
        if not paths:
            also = "; ".join(["", *passed_over.lines()])
            suffixes = [
                suffix for suffix, name in FORMAT_BY_SUFFIX.items() if name in readable_formats()
            ]
            raise UserError(
                f"{readable_name(argument)} contains no photo ({', '.join(suffixes)}){also}"
            )
        for path in paths:
            real = os.path.realpath(path)  # unlike resolve(), tolerates a self-referencing link
            if real in known:
                continue
            known.add(real)
            name = path.relative_to(argument) if argument.is_dir() else Path(path.name)
            if name.suffix.lower() not in SUFFIXES:
                name = _rename(name, ".jpg", name.name)
            copy, number = name, 1
            while copy.as_posix().casefold() in taken:
                number += 1
                copy = _rename(name, f"-{number}{name.suffix}", name.stem)
            taken.add(copy.as_posix().casefold())
            copies[path] = copy
    return copies


def _rename(path: Path, ending: str, stem: str) -> Path:
    """Name a file by a stem and an ending; the stem is cut to what file systems allow."""
    kept = os.fsencode(stem)[: MAX_NAME_BYTES - len(os.fsencode(ending))]
    return path.with_name(os.fsdecode(kept) + ending)


def _walk(folder: Path, passed_over: PassedOver) -> Iterator[Path]:
    def note_unreadable(error: OSError) -> None:
        passed_over.unreadable[readable_name(error.filename)] = str(error.strerror)

    for parent, folders, files in os.walk(folder, onerror=note_unreadable):
        visible = sorted(name for name in folders if not name.startswith("."))
        folders[:] = []
        for name in visible:
            path = Path(parent, name)
            if name in THUMBNAILS:
                passed_over.thumbnails.append(readable_name(path))
            elif path.is_symlink():
                passed_over.linked.append(readable_name(path))
            else:
                folders.append(name)
        for name in sorted(files):
            path, suffix = Path(parent, name), Path(name).suffix.lower()
            if name.startswith("."):
                continue
            pipe = path.exists() and not path.is_file()  # broken links are reported
            if pipe or FORMAT_BY_SUFFIX.get(suffix) not in readable_formats():
                passed_over.suffixes[suffix] += 1
            else:
                yield path


def examine_file(path: Path, recipe: Recipe, fallback: bool, max_pixels: int) -> ExaminedPhoto:
    """Examine a photo, named in its rows by its path."""
    return examine(readable_name(path), path, recipe, fallback, max_pixels)


def examine_ahead(
    pool: ProcessPoolExecutor, paths: Sequence[Path], examine_path: Callable[[Path], ExaminedPhoto]
) -> Iterator[list[ExaminedPhoto]]:
    """Examine photos in the pool, up to `PHOTOS_AHEAD` ahead, and yield them in order.

    The pool starts at the call. Each batch has the photos that are ready, and at least one, so that
    the first answer does not wait for a full batch.
    """
    remaining = iter(paths)
    pending = deque(pool.submit(examine_path, path) for path in islice(remaining, PHOTOS_AHEAD))

    def batches() -> Iterator[list[ExaminedPhoto]]:
        while pending:
            batch = [pending.popleft().result()]
            while pending and pending[0].done() and len(batch) < MAX_BATCH:
                batch.append(pending.popleft().result())
            pending.extend(
                pool.submit(examine_path, path) for path in islice(remaining, len(batch))
            )
            yield batch

    return batches()


def start_worker() -> None:
    """Set up a process of the pool: the main process handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    use_one_thread()


def check_outputs(csv_file: str, json_file: str, annotated: Path | None) -> None:
    """Check that no output overwrites another one or an original photo.

    Raises:
        UserError: if one does.
    """
    if csv_file == json_file == "-":
        raise UserError("--csv - and --json -: only one of them can be printed")
    paths = [Path(each).resolve() for each in (csv_file, json_file, annotated) if each]
    if len(set(paths)) < len(paths):
        raise UserError("--csv, --json and --annotate: two of them name the same path")
    if (
        annotated is not None
        and annotated.exists()
        and (not annotated.is_dir() or any(annotated.iterdir()))
    ):
        raise UserError(f"--annotate: {annotated} is not empty: name a new folder")


@user_command
def main(
    photos: Annotated[list[Path], typer.Argument(help="Photos, and folders of photos")],
    networks: Annotated[
        Path, typer.Option(help="Folder with fold0/network.safetensors, ...")
    ] = Path("data/train"),
    fold: Annotated[int | None, typer.Option(help="Use the network of one fold only")] = None,
    fallback: Annotated[
        bool, typer.Option("--fallback", help="Also classify photos without a face")
    ] = False,
    csv_file: Annotated[
        str, typer.Option("--csv", metavar="FILE", help="Write a table; - prints it")
    ] = "",
    json_file: Annotated[
        str, typer.Option("--json", metavar="FILE", help="Write all fields as JSON; - prints them")
    ] = "",
    annotate: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write copies with boxes and labels to a new folder"),
    ] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Reject photos with more pixels, without decoding them")
    ] = 50_000_000,
    device: Annotated[Device, typer.Option(help="auto: a GPU if there is one")] = "auto",
    precision: Annotated[
        Precision, typer.Option(help="auto: fp16 or bf16 where the hardware is fast in it")
    ] = "auto",
) -> None:
    """Classify the faces in PHOTOS: mask, gender and age group.

    The exit code is 1 if a photo could not be read or drawn on, or a folder not read; a photo
    without a face is not an error.
    """
    check_outputs(csv_file, json_file, annotate)
    files = list(find_networks(networks, fold).values())
    recipe = read_recipe(files[0])
    passed_over = PassedOver()
    copies = find_photos(photos, passed_over)
    load_detector(recipe.crop.detector, recipe.crop.yunet_model)  # fails before the pool starts
    examine_path = partial(examine_file, recipe=recipe, fallback=fallback, max_pixels=max_pixels)
    printed = "-" in (csv_file, json_file)
    counts = Counter[str]()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a name may have letters that the console lacks

    def report_missing_copy(path: Path, reason: str) -> None:
        counts["without a copy"] += 1
        tqdm.write(f"{readable_name(path)} {reason}", sys.stderr)

    with ExitStack() as stack:
        writers = [stack.enter_context(csv_writer(csv_file))] if csv_file else []
        writers += [stack.enter_context(json_writer(json_file))] if json_file else []
        cores = os.cpu_count() or 1
        workers = min(len(copies), max(1, cores // 2))
        pool = stack.enter_context(process_pool(workers, start_worker, "lower --max-pixels"))
        stack.callback(pool.shutdown, cancel_futures=True)
        if annotate is not None:
            annotator = copy_annotator(
                annotate, copies, pool, max_pixels, PHOTOS_AHEAD, report_missing_copy
            )
            writers.append(stack.enter_context(annotator))
        if not printed:  # last: what is printed is written already
            writers.append(stack.enter_context(table_printer(Console())))

        # Fork the workers before torch starts its threads: forked threads do not run.
        batches = examine_ahead(pool, list(copies), examine_path)
        # Share the cores between workers and networks: threads that compete for one cost 3x.
        torch.set_num_threads(min(torch.get_num_threads(), max(1, cores - workers)))
        hardware = prepare_hardware(device, precision, "--device")
        ensemble = Ensemble(*read_networks(files, hardware))
        bar = stack.enter_context(
            tqdm(total=len(copies), leave=False, disable=not sys.stderr.isatty())
        )
        paths = iter(copies)
        for batch in batches:
            for rows in classify(batch, ensemble, recipe, hardware):
                path = next(paths)
                for write in writers:
                    write(path, rows)
                problem = rows[0]["problem"]
                if not problem:
                    counts["faces"] += len(rows)
                elif problem == NO_FACE:
                    counts["without a face"] += 1
                else:
                    counts["unreadable"] += 1
                    tqdm.write(f"{rows[0]['file']} {problem}", sys.stderr)
            bar.update(len(batch))
    for line in passed_over.lines():
        print(f"passed over: {line}", file=sys.stderr)
    print(
        f"classify: {len(copies)} photos, {counts['faces']} faces ({len(files)} networks); "
        f"{counts['without a face']} without a face, {counts['unreadable']} unreadable",
        file=sys.stderr if printed else sys.stdout,
    )
    if counts["unreadable"] or counts["without a copy"] or passed_over.unreadable:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
