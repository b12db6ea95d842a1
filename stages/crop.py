"""Crop: cut a square around each face, the same way for training and evaluation photos.

    python -m stages.crop data/clean data/detectors data/crop

Writes to the output folder:

- `train.npy`, `evaluation.npy`: the crops, N x side x side x 3, uint8, for memory mapping
- `train.csv`, `evaluation.csv`: one row per crop, in the same order: person, photo, the face box as
  shares of the photo (left, top, width, height), way (how the box was found), confidence
- `fallback.json`: median box of the training photos, for photos without a detected face
- `contact_sheet.png`: crops of a few people
- `metrics.json`: detection rates and numbers of boxes by way, also per mask state
"""

from collections.abc import Callable, Sequence
from functools import partial
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
    open_photo,
    unreadable_explained,
)
from face_attributes.photos.packed import Pixels, packed_writer, read_packed
from face_attributes.photos.tables import read_stage_table
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress

CHUNK = 16
"""Photos that a worker takes at a time."""


class Faces(NamedTuple):
    """The largest face of each photo: relative boxes (N x 4, NaN: none), confidences and turns."""

    boxes: Boxes
    confidences: NDArray[np.float64]
    turns: list[int]


def crop_set(
    name: str,
    photos: pd.DataFrame,
    training: Faces | None,
    params: CropParams,
    out: Path,
) -> tuple[Faces, pd.DataFrame]:
    """Crop a set of photos, write `NAME.npy` and `NAME.csv` to `out`; return faces and boxes.

    A photo is decoded once, unless it shows no face: its box is known when all others are.

    Args:
        photos: photo, path, and person ("" if unknown).
        training: faces whose median replaces the missing ones; None: those of this set.

    Returns:
        The detected faces, and the table of boxes.
    """
    paths = photos["path"].to_list()
    with packed_writer(out / f"{name}.npy", len(photos), params.side) as write:
        faces = find_and_cut(name, paths, params, write)
        boxes, ways = fill_boxes(
            faces.boxes, faces.turns, photos["person"].to_list(), overall_median(training or faces)
        )
        missing = np.flatnonzero(np.isnan(faces.boxes).any(axis=1)).tolist()
        crops = map_on_all_cores(
            partial(_cut, params=params),
            [paths[row] for row in missing],
            boxes[missing],
            chunksize=CHUNK,
            remedy=LOWER_MAX_PIXELS,
        )
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


def find_and_cut(
    name: str, paths: Sequence[str], params: CropParams, write: Callable[[int, Pixels], None]
) -> Faces:
    """Detect the largest face of each photo, and write its crop, on all cores."""
    results = map_on_all_cores(
        partial(_find_and_cut, params=params),
        paths,
        chunksize=CHUNK,
        initializer=use_one_thread,
        remedy=LOWER_MAX_PIXELS,
    )
    faces = Faces(np.full((len(paths), 4), np.nan), np.zeros(len(paths)), [0] * len(paths))
    for row, found in enumerate(progress(results, len(paths), f"crop: photos searched, {name}")):
        if found is not None:
            faces.boxes[row], faces.confidences[row], faces.turns[row], crop = found
            write(row, crop)
    return faces


def overall_median(faces: Faces) -> Boxes | None:
    """Return the median box of a set, or None if no face was detected."""
    return median_box(faces.boxes, faces.turns)


def _find_and_cut(path: str, params: CropParams) -> tuple[Boxes, float, int, Pixels] | None:
    """Return the box, confidence, turn and crop of the largest face in a photo, if any."""
    with unreadable_explained(Path(path)):
        photo = _open_clean(path)
        boxes, confidences, turn = find_faces(photo, params)
        if not len(boxes):
            return None
        return boxes[0], float(confidences[0]), turn, cut(photo, boxes[0], turn, params)


def _cut(path: str, box: Boxes, params: CropParams) -> Pixels:
    with unreadable_explained(Path(path)):
        return cut(_open_clean(path), box, 0, params)


def _open_clean(path: str) -> Image.Image:
    """Open a photo that the stage `clean` accepted.

    Raises:
        UserError: if the photo has changed since, or cannot be read.
    """
    try:
        return open_photo(Path(path))
    except FileNotFoundError:
        problem = "is missing"
    except BadPhotoError as error:
        problem = str(error)
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
    photos = read_stage_table(clean / "photos.csv")
    evaluation = read_stage_table(clean / "evaluation.csv").assign(person="")
    evaluation = evaluation[evaluation["rejected"] == ""]

    if params.crop.detector == "yunet":
        refuse_outside(Path(params.crop.yunet_model), detectors, "crop.yunet_model")
    load_detector(params.crop.detector, params.crop.yunet_model)  # before the pools fork
    faces, boxes = crop_set("train", photos, None, params.crop, out)
    _, evaluation_boxes = crop_set("evaluation", evaluation, faces, params.crop, out)

    median = overall_median(faces)
    write_json(out / "fallback.json", {"box": None if median is None else median.tolist()})
    with write_whole(out / "contact_sheet.png") as file:
        sheet = draw_contact_sheet(boxes, photos["mask"], read_packed(out / "train.npy"))
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
