"""From a photo to labels: its faces, cut as for training, and what the networks say of them.

What `classify` and `demo` share. A row (`Row`) tells of a face, or of a photo without one:

- `file`, `face`: 1 is the largest of the photo, 0 none
- `mask`, `gender`, `age` in words, and `class` (0 to 17): the class that is likeliest
- `probability` of that class; `mask_probability`, `gender_probability`, `age_probability`
- `left`, `top`, `width`, `height`: the face's box, in pixels of the upright photo
- `way`: detected, fallback (the median box of the faces trained on) or whole (the whole photo)
- `confidence` of the detector, 0 to 1; 0 where it did not find the box
- `problem`: empty, or why the photo has no label; all but `file` and `face` is None then
- `attributes`: for mask, gender and age, the probability of each value in words
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

from stages.errors import UserError
from stages.faces.boxes import CENTRE, Boxes
from stages.faces.cut import cut
from stages.faces.detect import find_faces
from stages.learning.device import Hardware
from stages.learning.ensemble import Ensemble, predict_batch
from stages.learning.recipe import Recipe
from stages.photos.labels import AGE_GROUPS, GENDERS, MASKS, attribute_names
from stages.photos.opening import BadPhotoError, open_photo
from stages.photos.packed import Pixels

COLUMNS = [
    "file", "face", "mask", "gender", "age", "class", "probability", "mask_probability",
    "gender_probability", "age_probability", "left", "top", "width", "height", "way", "confidence",
    "problem",
]  # fmt: skip
"""Of a row, what fits into a table."""

BOX = ["left", "top", "width", "height"]

NO_FACE = "no face found"

MOST_AT_ONCE = 32
"""Crops that go through the networks together."""

Row = dict[str, Any]
Way = Literal["detected", "fallback", "whole"]


class Face(NamedTuple):
    """A face, or what stands in for one: relative box (4), way, confidence, crop."""

    box: Boxes
    way: Way
    confidence: float
    crop: Pixels


class Seen(NamedTuple):
    """What was seen in a photo before any network was asked; `problem` is that of a row."""

    file: str
    width: int
    height: int
    faces: list[Face]
    problem: str


def find_networks(folder: Path, fold: int | None) -> dict[int, Path]:
    """The file of each fold's network, or of that of `fold` alone.

    Raises:
        UserError: if there is none, or one between the others is missing.
    """
    found = {
        int(path.parent.name.removeprefix("fold")): path
        for path in folder.glob("fold*/network.safetensors")
        if path.parent.name.removeprefix("fold").isdecimal()
    }
    if not found:
        raise UserError(
            f"{folder} holds no trained network (fold0/network.safetensors, ...): `dvc repro` "
            "trains them, `dvc pull` gets them, --networks names another folder"
        )
    missing = set(range(max(found))) - set(found)
    if fold is None and missing:
        raise UserError(
            f"{folder} lacks the network of fold {min(missing)}: `dvc checkout` brings back that "
            "of the last run, `dvc repro` trains it anew, and --fold asks one of the others"
        )
    if fold is not None and fold not in found:
        folds = ", ".join(map(str, sorted(found)))
        raise UserError(f"--fold: there is no fold {fold} in {folder}; its folds are {folds}")
    return {each: found[each] for each in sorted(found) if fold in (None, each)}


def look(
    file: str, source: Path | BytesIO, recipe: Recipe, fallback: bool, max_pixels: int
) -> Seen:
    """Open a photo and cut out its faces, the largest first.

    Args:
        file: the photo's name in rows.
        fallback: whether a photo without a face is cut at the median box of training. Where the
            networks were trained on whole photos, every photo is cut as those were in any case.
    """
    try:
        photo = open_photo(source, max_pixels)
    except BadPhotoError as error:
        return Seen(file, 0, 0, [], str(error))
    except OSError as error:
        return Seen(file, 0, 0, [], f"cannot be opened ({error.strerror})")
    faces = _find(photo, recipe, fallback)
    return Seen(file, photo.width, photo.height, faces, "" if faces else NO_FACE)


def _find(photo: Image.Image, recipe: Recipe, fallback: bool) -> list[Face]:
    boxes, confidences = find_faces(photo, recipe.crop)
    found = [
        Face(box, "detected", float(confidence), cut(photo, box, recipe.crop))
        for box, confidence in zip(boxes, confidences, strict=True)
    ]
    if found or not (fallback or recipe.crop.detector == "none"):
        return found
    if recipe.fallback is None:
        return [Face(CENTRE, "whole", 0.0, cut(photo, CENTRE, recipe.crop))]
    box = np.array(recipe.fallback)
    return [Face(box, "fallback", 0.0, cut(photo, box, recipe.crop))]


def classify(
    photos: Sequence[Seen], ensemble: Ensemble, recipe: Recipe, hardware: Hardware
) -> list[list[Row]]:
    """The rows of each photo: one a face, or one that tells its problem."""
    crops = [face.crop for seen in photos for face in seen.faces]
    probabilities = [
        of_face
        for start in range(0, len(crops), MOST_AT_ONCE)
        for of_face in predict_batch(
            ensemble,
            torch.from_numpy(np.stack(crops[start : start + MOST_AT_ONCE])),
            hardware,
        ).numpy()
    ]
    of_faces = iter(probabilities)
    names = attribute_names(recipe.age_edges)
    return [
        [
            _row(seen, number, face, next(of_faces), names)
            for number, face in enumerate(seen.faces, start=1)
        ]
        or [dict.fromkeys(COLUMNS) | {"file": seen.file, "face": 0, "problem": seen.problem}]
        for seen in photos
    ]


def _row(
    seen: Seen,
    number: int,
    face: Face,
    probabilities: NDArray[np.float32],
    names: dict[str, list[str]],
) -> Row:
    label = int(probabilities.argmax())
    joint = probabilities.reshape(len(MASKS), len(GENDERS), AGE_GROUPS)
    values = dict(zip(names, np.unravel_index(label, joint.shape), strict=True))
    shares = {"mask": joint.sum((1, 2)), "gender": joint.sum((0, 2)), "age": joint.sum((0, 1))}
    pixels = face.box * [seen.width, seen.height, seen.width, seen.height]
    return {
        "file": seen.file,
        "face": number,
        **{field: names[field][value] for field, value in values.items()},
        "class": label,
        "probability": _share(probabilities[label]),
        **{f"{field}_probability": _share(shares[field][value]) for field, value in values.items()},
        **dict(
            zip(
                ("left", "top", "width", "height"), pixels.round().astype(int).tolist(), strict=True
            )
        ),
        "way": face.way,
        "confidence": _share(face.confidence),
        "problem": "",
        "attributes": {
            field: dict(zip(names[field], map(_share, of_field), strict=True))
            for field, of_field in shares.items()
        },
        "classes": [_share(each) for each in probabilities],
    }


def was_read(row: Row) -> bool:
    """Whether the row's photo could be opened, with a face or without."""
    return row["problem"] in ("", NO_FACE)


def _share(value: float) -> float:
    return round(float(value), 6)
