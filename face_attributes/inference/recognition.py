"""From a photo to labels: find its faces, crop them as for training, and run the networks.

Shared by `commands.classify` and `commands.demo`. A row (`Row`) describes a face, or a photo
without one:

- `file`; `face`: its number in the photo, 1 for the largest; 0 if there is none
- `mask`, `gender`, `age` in words, and `class` (0 to 17): the most probable class
- `probability` of that class; `mask_probability`, `gender_probability`, `age_probability`
- `left`, `top`, `width`, `height`: the face's box, in pixels of the upright photo
- `way`: detected, turned_90, turned_180 or turned_270 (detected in the photo turned clockwise by so
  many degrees), fallback (the median box of the training faces) or whole (the whole photo)
- `confidence` of the detector, 0 to 1; 0 if it did not find the box
- `problem`: empty, or why the photo has no label; then all but `file` and `face` are None
- `attributes`: the probability of each value of mask, gender and age, by its name
- `classes`: the probabilities of the 18 classes
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from face_attributes.errors import UserError
from face_attributes.faces.boxes import BOX, DETECTED, WHOLE_PHOTO, Boxes
from face_attributes.faces.boxes import Way as DetectedWay
from face_attributes.faces.cut import cut
from face_attributes.faces.detect import find_faces
from face_attributes.inference.ensemble import Ensemble, predict_batch, to_host
from face_attributes.networks.device import Hardware
from face_attributes.networks.recipe import Recipe
from face_attributes.photos.labels import GENDERS, MASKS, NUM_AGE_GROUPS, attribute_names
from face_attributes.photos.opening import (
    BadPhotoError,
    UnreadableError,
    open_photo,
    readable_formats,
    unreadable_explained,
)
from face_attributes.photos.packed import Pixels

COLUMNS = [
    "file", "face", "mask", "gender", "age", "class", "probability", "mask_probability",
    "gender_probability", "age_probability", "left", "top", "width", "height", "way", "confidence",
    "problem",
]  # fmt: skip
"""The fields of a row that fit into a table."""

NO_FACE = "no face found"

MAX_BATCH = 32
"""Most crops that go through the networks at once."""

Row = dict[str, Any]
Way = DetectedWay | Literal["fallback", "whole"]


class Face(NamedTuple):
    """A face, or the part of a photo used in its place; `box` (4) is relative to the photo."""

    box: Boxes
    way: Way
    confidence: float
    crop: Pixels


class ExaminedPhoto(NamedTuple):
    """A photo, before any network has run: its size, its faces, and `problem` as in a row."""

    file: str
    width: int
    height: int
    faces: list[Face]
    problem: str


def find_networks(folder: Path, fold: int | None) -> dict[int, Path]:
    """Find the weight file of each fold, or of `fold` alone.

    Raises:
        UserError: if there are none, or one is missing.
    """
    found = {
        int(path.parent.name.removeprefix("fold")): path
        for path in folder.glob("fold*/network.safetensors")
        if path.parent.name.removeprefix("fold").isdecimal()
    }
    if not found:
        raise UserError(
            f"{folder} contains no trained network (fold0/network.safetensors, ...): `dvc repro` "
            "trains them, `dvc pull` downloads them, --networks names another folder"
        )
    missing = set(range(max(found))) - set(found)
    if fold is None and missing:
        raise UserError(
            f"{folder} has no network of fold {min(missing)}: `dvc checkout` restores the last "
            "run's, `dvc repro` trains it again, --fold uses another one alone"
        )
    if fold is not None and fold not in found:
        folds = ", ".join(map(str, sorted(found)))
        raise UserError(f"--fold: {folder} has no fold {fold}: choose from {folds}")
    return {each: found[each] for each in sorted(found) if fold in (None, each)}


def examine(
    file: str, source: Path | BytesIO, recipe: Recipe, fallback: bool, max_pixels: int
) -> ExaminedPhoto:
    """Open a photo and crop its faces, the largest first.

    Args:
        file: the photo's name in rows.
        fallback: whether to crop a photo without a face at the median box of training. If the
            networks were trained on whole photos, every photo is used whole in any case.
    """
    try:
        with unreadable_explained(source):
            photo = open_photo(source, max_pixels, readable_formats())
            faces = _crop_faces(photo, recipe, fallback)
    except BadPhotoError as error:
        return ExaminedPhoto(file, 0, 0, [], str(error))
    except UnreadableError as error:
        return ExaminedPhoto(file, 0, 0, [], error.reason)
    except FileNotFoundError as error:
        return ExaminedPhoto(file, 0, 0, [], f"cannot be opened ({error.strerror})")
    return ExaminedPhoto(file, photo.width, photo.height, faces, "" if faces else NO_FACE)


def _crop_faces(photo: Image.Image, recipe: Recipe, fallback: bool) -> list[Face]:
    boxes, confidences, turn = find_faces(photo, recipe.crop)
    faces = [
        Face(box, DETECTED[turn], float(confidence), cut(photo, box, turn, recipe.crop))
        for box, confidence in zip(boxes, confidences, strict=True)
    ]
    if faces or not (fallback or recipe.crop.detector == "none"):
        return faces
    if recipe.fallback is None:
        return [Face(WHOLE_PHOTO, "whole", 0.0, cut(photo, WHOLE_PHOTO, 0, recipe.crop))]
    box = np.array(recipe.fallback)
    return [Face(box, "fallback", 0.0, cut(photo, box, 0, recipe.crop))]


def classify(
    photos: Sequence[ExaminedPhoto], ensemble: Ensemble, recipe: Recipe, hardware: Hardware
) -> list[list[Row]]:
    """Make the rows of each photo: one per face, or one with the photo's problem."""
    crops = [face.crop for photo in photos for face in photo.faces]
    probabilities = [
        crop_probabilities
        for start in range(0, len(crops), MAX_BATCH)
        for crop_probabilities in to_host(
            predict_batch(
                ensemble, torch.from_numpy(np.stack(crops[start : start + MAX_BATCH])), hardware
            ),
            hardware,
        ).numpy()
    ]
    next_probabilities = iter(probabilities)
    names = attribute_names(recipe.age_edges)
    return [
        [
            _row(photo, number, face, next(next_probabilities), names)
            for number, face in enumerate(photo.faces, start=1)
        ]
        or [dict.fromkeys(COLUMNS) | {"file": photo.file, "face": 0, "problem": photo.problem}]
        for photo in photos
    ]


def _row(
    photo: ExaminedPhoto,
    number: int,
    face: Face,
    probabilities: NDArray[np.float32],
    names: dict[str, list[str]],
) -> Row:
    label = int(probabilities.argmax())
    joint = probabilities.reshape(len(MASKS), len(GENDERS), NUM_AGE_GROUPS)
    values = dict(zip(names, np.unravel_index(label, joint.shape), strict=True))
    marginals = {"mask": joint.sum((1, 2)), "gender": joint.sum((0, 2)), "age": joint.sum((0, 1))}
    box = (face.box * [photo.width, photo.height, photo.width, photo.height]).round().astype(int)
    return {
        "file": photo.file,
        "face": number,
        **{field: names[field][value] for field, value in values.items()},
        "class": label,
        "probability": _rounded(probabilities[label]),
        **{
            f"{field}_probability": _rounded(marginals[field][value])
            for field, value in values.items()
        },
        **dict(zip(BOX, box.tolist(), strict=True)),
        "way": face.way,
        "confidence": _rounded(face.confidence),
        "problem": "",
        "attributes": {
            field: dict(zip(names[field], map(_rounded, marginal), strict=True))
            for field, marginal in marginals.items()
        },
        "classes": [_rounded(probability) for probability in probabilities],
    }


def is_readable(row: Row) -> bool:
    """Whether the row's photo could be opened, with a face or without."""
    return row["problem"] in ("", NO_FACE)


def _rounded(probability: float) -> float:
    return round(float(probability), 6)
