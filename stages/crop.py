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

from collections.abc import Iterator, Sequence
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
from face_attributes.photos.packed import Pixels, read_packed, write_packed
from face_attributes.photos.tables import read_stage_table
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress


class LargestFaces(NamedTuple):
    """The largest face of each photo: relative boxes (N x 4, NaN: none), confidences and turns."""

    boxes: Boxes
    confidences: NDArray[np.float64]
    turns: list[int]


def find_all(name: str, paths: Sequence[str], params: CropParams) -> LargestFaces:
    """Detect the largest face of each photo, on all cores."""
    find = partial(_find_largest, params=params)
    results = map_on_all_cores(
        find, paths, chunksize=16, initializer=use_one_thread, remedy=LOWER_MAX_PIXELS
    )
    faces = list(progress(results, len(paths), f"crop: photos searched, {name}"))
    return LargestFaces(
        np.array([box for box, _, _ in faces]).reshape(-1, 4),
        np.array([confidence for _, confidence, _ in faces]),
        [turn for _, _, turn in faces],
    )


def _find_largest(path: str, params: CropParams) -> tuple[Boxes, float, int]:
    with unreadable_explained(Path(path)):
        boxes, confidences, turn = find_faces(_open_clean(path), params)
    return (boxes[0], float(confidences[0]), turn) if len(boxes) else (np.full(4, np.nan), 0.0, 0)


def crop_set(
    name: str,
    photos: pd.DataFrame,
    faces: LargestFaces,
    overall_median: Boxes | None,
    params: CropParams,
    out: Path,
) -> pd.DataFrame:
    """Crop a set of photos, write `NAME.npy` and `NAME.csv` to `out`, return the table of boxes.

    Args:
        photos: photo, path, and person ("" if unknown).
        overall_median: median box of the training photos, or None if no face was detected.
    """
    boxes, ways = fill_boxes(faces.boxes, faces.turns, photos["person"].to_list(), overall_median)
    table = pd.concat(
        [
            photos[["person", "photo"]].reset_index(drop=True),
            pd.DataFrame(boxes, columns=BOX),
            pd.DataFrame({"way": ways, "confidence": faces.confidences}),
        ],
        axis=1,
    )
    crops = cut_all(name, photos["path"].to_list(), boxes, faces.turns, params)
    write_packed(out / f"{name}.npy", crops, len(photos), params.side)
    write_table(out / f"{name}.csv", table, float_format="%.5f")
    return table


def cut_all(
    name: str, paths: Sequence[str], boxes: Boxes, turns: Sequence[int], params: CropParams
) -> Iterator[Pixels]:
    """Yield the crop of each photo (side x side x 3, uint8) in order, cut on all cores."""
    cut_file = partial(_cut_file, params=params)
    crops = map_on_all_cores(cut_file, paths, boxes, turns, chunksize=16, remedy=LOWER_MAX_PIXELS)
    yield from progress(crops, len(paths), f"crop: photos cropped, {name}")


def _cut_file(path: str, box: Boxes, turn: int, params: CropParams) -> Pixels:
    with unreadable_explained(Path(path)):
        return cut(_open_clean(path), box, turn, params)


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
    faces = find_all("train", photos["path"].to_list(), params.crop)
    evaluation_faces = find_all("evaluation", evaluation["path"].to_list(), params.crop)
    median = median_box(faces.boxes, faces.turns)
    boxes = crop_set("train", photos, faces, median, params.crop, out)
    evaluation_boxes = crop_set(
        "evaluation", evaluation, evaluation_faces, median, params.crop, out
    )

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
