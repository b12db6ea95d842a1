"""Classify the faces in any photos by mask, gender and age group, with the trained networks.

    python -m commands.classify photo.jpg holiday/ --csv labels.csv --annotate labelled

Photos are cropped as in training; the networks' files say how. Folders are searched recursively
for jpg, jpeg and png; hidden files and folders are skipped. A photo without a face is listed as
such, and classified only with --fallback. `face_attributes/inference/recognition.py` describes the
fields of a row. The class is the most probable one: `predict.tau` does not apply.

The exit code is 1 if a photo could not be read (one line each), otherwise 0: a photo without a face
is not an error.
"""

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
from face_attributes.photos.opening import SUFFIXES
from face_attributes.photos.workers import process_pool

PHOTOS_AHEAD = 2 * MAX_BATCH
"""Photos that are open, or about to be, while the networks work on earlier ones."""


def find_photos(arguments: Sequence[Path]) -> dict[Path, Path]:
    """Find the named photos, and those in the named folders: path -> path of an annotated copy.

    Each photo comes once, in the order of the arguments, then of names. The paths of the copies are
    relative to their folder, and unique even on a case-insensitive file system.

    Raises:
        UserError: if an argument does not exist, or a folder contains no photo.
    """
    copies, taken, known = dict[Path, Path](), set[str](), set[str]()
    for argument in arguments:
        if not argument.is_file() and not argument.is_dir():
            raise UserError(f"there is no photo or folder {argument}")
        paths = list(_walk(argument)) if argument.is_dir() else [argument]
        if not paths:
            raise UserError(f"{argument} contains no photo ({', '.join(SUFFIXES)})")
        for path in paths:
            real = os.path.realpath(path)  # unlike resolve(), tolerates a self-referencing link
            if real in known:
                continue
            known.add(real)
            name = path.relative_to(argument) if argument.is_dir() else Path(path.name)
            copy, number = name, 1
            while copy.as_posix().casefold() in taken:
                number += 1
                copy = name.with_stem(f"{name.stem}-{number}")
            taken.add(copy.as_posix().casefold())
            copies[path] = copy
    return copies


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            is_photo = not name.startswith(".") and path.suffix.lower() in SUFFIXES
            if is_photo and (path.is_file() or not path.exists()):  # broken links are reported
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
        Precision, typer.Option(help="auto: bf16 where the hardware computes in it")
    ] = "auto",
) -> None:
    """Classify the faces in PHOTOS: mask, gender and age group.

    The exit code is 1 if a photo could not be read; a photo without a face is not an error.
    """
    check_outputs(csv_file, json_file, annotate)
    files = list(find_networks(networks, fold).values())
    recipe = read_recipe(files[0])
    copies = find_photos(photos)
    load_detector(recipe.crop.detector, recipe.crop.yunet_model)  # fails before the pool starts
    examine_path = partial(examine_file, recipe=recipe, fallback=fallback, max_pixels=max_pixels)
    printed = "-" in (csv_file, json_file)
    counts = Counter[str]()

    with ExitStack() as stack:
        writers = [] if printed else [stack.enter_context(table_printer(Console()))]
        writers += [stack.enter_context(csv_writer(csv_file))] if csv_file else []
        writers += [stack.enter_context(json_writer(json_file))] if json_file else []
        cores = os.cpu_count() or 1
        workers = min(len(copies), max(1, cores // 2))
        pool = stack.enter_context(process_pool("lower --max-pixels", workers, start_worker))
        stack.callback(pool.shutdown, cancel_futures=True)
        if annotate is not None:
            annotator = copy_annotator(annotate, copies, pool, max_pixels, PHOTOS_AHEAD)
            writers.append(stack.enter_context(annotator))

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
    print(
        f"classify: {len(copies)} photos, {counts['faces']} faces ({len(files)} networks); "
        f"{counts['without a face']} without a face, {counts['unreadable']} unreadable",
        file=sys.stderr if printed else sys.stdout,
    )
    if counts["unreadable"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
