"""Crop: cut a square around each face, the same way for training and evaluation photos.

    python -m stages.crop data/clean data/detectors data/crop

Writes to the output folder:

- `train/`, `evaluation/`: the crops, N x side x side x 3, uint8, in files for memory mapping
- `train.csv`, `evaluation.csv`: one row per crop, in the same order: person, photo, the face box as
  shares of the photo (left, top, width, height), way (how the box was found), confidence
- `fallback.json`: median box of the training photos, for photos without a detected face
- `contact_sheet.png`: crops of a few people
- `metrics.json`: detection rates and numbers of boxes by way, also per mask state as given, before
  corrections
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from io import BytesIO
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from face_attributes.command import refuse_outside, stage_command
from face_attributes.errors import UserError
from face_attributes.faces.boxes import BOX, TURNS, Boxes, Way, fill_boxes, median_box
from face_attributes.faces.contact_sheet import draw_contact_sheet
from face_attributes.faces.cut import cut
from face_attributes.faces.detect import find_faces, load_detector, use_one_thread
from face_attributes.files import write_json, write_table, write_whole
from face_attributes.params import CropParams, read_params
from face_attributes.photos.labels import MASKS
from face_attributes.photos.opening import (
    LOWER_MAX_PIXELS,
    BadPhotoError,
    UnreadableError,
    open_photo,
    read_photo,
    unreadable_explained,
)
from face_attributes.photos.packed import Pixels, packed_writer, read_packed
from face_attributes.photos.tables import read_stage_table
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress
from face_attributes.ray_cluster import CROP_VARIABLE, Files, map_on_cluster, read_files

PACKAGES = (
    "filelock", "numpy", "opencv-python-headless", "pandas", "pillow", "psutil", "pydantic",
    "ruamel.yaml", "threadpoolctl", "tqdm", "typer",
)  # fmt: skip
"""What this stage imports; beside it, yuface for `crop.detector: yuface`."""

MapPhotos = Callable[..., Iterator[Any]]
"""Of a function, paths, and other arguments of the function for each path: the results, in order.
The function also gets the content of the file, or None where it can read that, and the params."""


class Faces(NamedTuple):
    """The largest face of each photo: relative boxes (N x 4, NaN: none), confidences and turns."""

    boxes: Boxes
    confidences: NDArray[np.float64]
    turns: list[int]


@contextmanager
def photo_map(params: CropParams) -> Iterator[MapPhotos]:
    """Yield a function that calls another one for each photo, on all cores or those of a cluster.

    To a cluster, photos go as bytes, and so does the model of `crop.yunet_model`.
    """
    load_detector(params.detector, params.yunet_model)  # before the pools fork
    with ExitStack() as stack:
        map_calls, on_cluster = map_on_all_cores, bool(os.environ.get(CROP_VARIABLE))
        if on_cluster:
            files, packages = Files(), [*PACKAGES]
            if params.detector == "yuface":
                packages.append("yuface")
            if params.detector == "yunet":
                model = Path(params.yunet_model)
                files = read_files(model.parent, [model.name])
                params = params.model_copy(update={"yunet_model": model.name})
            map_calls = stack.enter_context(map_on_cluster(files, packages))

        def map_photos(
            function: Callable[..., Any], paths: Sequence[str], *arguments: Iterable[object]
        ) -> Iterator[Any]:
            return map_calls(
                partial(function, params=params),
                paths,
                map(_read_clean, paths) if on_cluster else repeat(None),
                *arguments,
                chunksize=16,
                initializer=partial(_prepare_worker, params),
                remedy=LOWER_MAX_PIXELS,
            )

        yield map_photos


def _prepare_worker(params: CropParams) -> None:
    use_one_thread()
    load_detector(params.detector, params.yunet_model)


def crop_set(
    name: str,
    photos: pd.DataFrame,
    training: Faces | None,
    side: int,
    map_photos: MapPhotos,
    out: Path,
) -> tuple[Faces, pd.DataFrame]:
    """Crop a set of photos, write `NAME/` and `NAME.csv` to `out`; return faces and boxes.

    A photo is decoded once, unless it shows no face: its box is known when all others are.

    Args:
        photos: photo, path, and person ("" if unknown).
        training: faces whose median replaces the missing ones; None: those of this set.
        side: of the crops, in pixels.

    Returns:
        The detected faces, and the table of boxes.
    """
    paths = photos["path"].to_list()
    with packed_writer(out / name, len(photos), side) as write:
        faces = Faces(np.full((len(paths), 4), np.nan), np.zeros(len(paths)), [0] * len(paths))
        searched = map_photos(_find_and_cut, paths)
        searched = progress(searched, len(paths), f"crop: photos searched, {name}")
        for row, found in enumerate(searched):
            if found is not None:
                faces.boxes[row], faces.confidences[row], faces.turns[row], crop = found
                write(row, crop)
        boxes, ways = fill_boxes(
            faces.boxes, faces.turns, photos["person"].to_list(), overall_median(training or faces)
        )
        missing = np.flatnonzero(np.isnan(faces.boxes).any(axis=1)).tolist()
        crops = map_photos(_cut, [paths[row] for row in missing], boxes[missing])
        crops = progress(crops, len(missing), f"crop: photos without a face, {name}")
        for row, crop in zip(missing, crops, strict=True):
            write(row, crop)
    table = pd.concat(
        [
            photos[["person", "photo"]].reset_index(drop=True),
            pd.DataFrame(boxes, columns=BOX),
            pd.DataFrame({"way": ways, "confidence": faces.confidences}),
        ],
        axis=1,
    )
    write_table(out / f"{name}.csv", table, float_format="%.5f")
    return faces, table


def overall_median(faces: Faces) -> Boxes | None:
    """Return the median box of a set, or None if no face was detected."""
    return median_box(faces.boxes, faces.turns)


def _find_and_cut(
    path: str, content: bytes | None, params: CropParams
) -> tuple[Boxes, float, int, Pixels] | None:
    """Return the box, confidence, turn and crop of the largest face in a photo, if any.

    Args:
        content: of the file; None: read it.
    """
    with unreadable_explained(Path(path)):
        photo = _open_clean(path, content)
        boxes, confidences, turn = find_faces(photo, params)
        if not len(boxes):
            return None
        return boxes[0], float(confidences[0]), turn, cut(photo, boxes[0], turn, params)


def _cut(path: str, content: bytes | None, box: Boxes, params: CropParams) -> Pixels:
    with unreadable_explained(Path(path)):
        return cut(_open_clean(path, content), box, 0, params)


def _open_clean(path: str, content: bytes | None) -> Image.Image:
    with _still_clean(path):
        return open_photo(Path(path) if content is None else BytesIO(content))


def _read_clean(path: str) -> bytes:
    with _still_clean(path), unreadable_explained(Path(path)):
        return read_photo(Path(path))


@contextmanager
def _still_clean(path: str) -> Iterator[None]:
    """Name a photo that the stage `clean` accepted, and that cannot be opened now.

    Raises:
        UserError: if it has changed since, or cannot be read.
    """
    try:
        yield
        return
    except FileNotFoundError:
        problem = "is missing"
    except BadPhotoError as error:
        problem = str(error)
    except UnreadableError as error:
        raise UnreadableError(path, error.reason) from None
    raise UserError(f"{path} {problem}, but the stage clean accepted it: run `dvc repro` again")


def count_ways(table: pd.DataFrame) -> dict[str, Any]:
    """Compute the share of detected faces and the number of boxes by way."""
    ways = table["way"].value_counts()
    return {
        "detection_rate": float(table["way"].isin(list(TURNS)).mean()) if len(table) else 0.0,
        "boxes": {way: int(ways.get(way, 0)) for way in get_args(Way)},
    }


@stage_command
def main(clean: Path, detectors: Path, out: Path) -> None:
    """Crop the photos in the tables of CLEAN and pack the crops in OUT.

    The models of detectors are in DETECTORS.
    """
    params = read_params()
    photos = read_stage_table(clean / "to_crop.csv")
    evaluation = read_stage_table(clean / "evaluation.csv").assign(person="")
    evaluation = evaluation[evaluation["rejected"] == ""]

    if params.crop.detector == "yunet":
        refuse_outside(Path(params.crop.yunet_model), detectors, "crop.yunet_model")
    with photo_map(params.crop) as map_photos:
        side = params.crop.side
        faces, boxes = crop_set("train", photos, None, side, map_photos, out)
        _, evaluation_boxes = crop_set("evaluation", evaluation, faces, side, map_photos, out)

    median = overall_median(faces)
    write_json(out / "fallback.json", {"box": None if median is None else median.tolist()})
    with write_whole(out / "contact_sheet.png") as file:
        sheet = draw_contact_sheet(boxes, photos["mask"], read_packed(out / "train"))
        sheet.save(file, format="png")
    masks = photos["mask"].reset_index(drop=True)
    metrics = {
        "train": count_ways(boxes),
        "by_mask": {mask: count_ways(boxes[masks == mask]) for mask in MASKS},
        "evaluation": count_ways(evaluation_boxes),
    }
    write_json(out / "metrics.json", metrics)
    print(
        f"crop: {len(boxes)} photos, faces detected in {metrics['train']['detection_rate']:.1%}; "
        f"{len(evaluation_boxes)} evaluation photos, {metrics['evaluation']['detection_rate']:.1%}"
    )


if __name__ == "__main__":
    main()
