"""Crop: the face and what is around it, cut the same way for training and for evaluation.

    python -m stages.crop data/clean data/detectors data/crop

Writes to the output folder:

- `train.npy`, `evaluation.npy`: the crops, N x size x size x 3, uint8, to be memory-mapped
- `train.csv`, `evaluation.csv`: a row a crop, in the same order: person, photo, the face's box as
  shares of the photo (left, top, width, height), the way it was found, the confidence
- `fallback.json`: the median box of the training photos, used where no face is found
- `contact_sheet.png`: crops of a few people, to look at
- `metrics.json`: how many faces were found, by mask state and by way
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from stages.command import stage_command, warn_if_outside
from stages.errors import UserError
from stages.faces.boxes import Boxes, Way, fill_boxes, median_box
from stages.faces.contact_sheet import draw_contact_sheet
from stages.faces.cut import cut
from stages.faces.detect import find_faces, load_detector, one_thread
from stages.files import write_json, write_table, write_whole
from stages.params import CropParams, read_params
from stages.photos.labels import MASKS
from stages.photos.opening import BadPhotoError, open_photo
from stages.photos.packed import Pixels, read_packed, write_packed
from stages.photos.tables import read_stage_table
from stages.progress import progress

BOX = ["left", "top", "width", "height"]


Faces = tuple[Boxes, NDArray[np.float64]]
"""Relative boxes (N x 4, NaN where no face was found) and confidences (N)."""


def crop_set(
    name: str,
    photos: pd.DataFrame,
    faces: Faces,
    of_all: Boxes | None,
    params: CropParams,
    out: Path,
) -> pd.DataFrame:
    """Cut a set of photos and write `NAME.npy` and `NAME.csv` to `out`; the table of boxes.

    Both sets go through here; they differ in their photos and faces alone.

    Args:
        photos: photo, path, and person ("" where it is not known).
        of_all: the median box of the training photos, or None if no face was found in any.
    """
    found, confidence = faces
    boxes, ways = fill_boxes(found, photos["person"].to_list(), of_all)
    table = pd.concat(
        [
            photos[["person", "photo"]].reset_index(drop=True),
            pd.DataFrame(boxes, columns=BOX),
            pd.DataFrame({"way": ways, "confidence": confidence}),
        ],
        axis=1,
    )
    crops = cut_all(name, photos["path"].to_list(), boxes, params)
    write_packed(out / f"{name}.npy", crops, len(photos), params.side)
    write_table(out / f"{name}.csv", table, float_format="%.5f")
    return table


def find_all(name: str, paths: Sequence[str], params: CropParams) -> Faces:
    """Look for the face in each photo, on all cores."""
    find = partial(_find_in, params=params)
    with ProcessPoolExecutor(initializer=one_thread) as pool:
        found = pool.map(find, paths, chunksize=16)
        results = list(progress(found, len(paths), f"crop: faces looked for, {name}"))
    boxes = np.array([box for box, _ in results]).reshape(-1, 4)
    return boxes, np.array([confidence for _, confidence in results])


def _find_in(path: str, params: CropParams) -> tuple[Boxes, float]:
    """The largest face (a portrait's face is in front): its box, NaN if there is none."""
    boxes, confidences = find_faces(_open_again(path), params)
    return (boxes[0], float(confidences[0])) if len(boxes) else (np.full(4, np.nan), 0.0)


def cut_all(name: str, paths: Sequence[str], boxes: Boxes, params: CropParams) -> Iterator[Pixels]:
    """The crop of each photo (size x size x 3, uint8), in order, on all cores."""
    with ProcessPoolExecutor() as pool:
        crops = pool.map(partial(_cut_from, params=params), paths, boxes, chunksize=16)
        yield from progress(crops, len(paths), f"crop: crops cut, {name}")


def _cut_from(path: str, box: Boxes, params: CropParams) -> Pixels:
    return cut(_open_again(path), box, params)


def _open_again(path: str) -> Image.Image:
    """A photo that the stage `clean` could open.

    Raises:
        UserError: if it has changed since then.
    """
    try:
        return open_photo(Path(path))
    except FileNotFoundError:
        problem = "is gone"
    except BadPhotoError as bad:
        problem = str(bad)
    raise UserError(f"{path} {problem}, but was fine for the stage clean: run `dvc repro` again")


def count_ways(table: pd.DataFrame) -> dict[str, Any]:
    """Share of the photos in which a face was found, and how many boxes came which way."""
    ways = table["way"].value_counts()
    return {
        "detection_rate": float((table["way"] == "detected").mean()) if len(table) else 0.0,
        "boxes": {way: int(ways.get(way, 0)) for way in get_args(Way)},
    }


@stage_command
def main(clean: Path, detectors: Path, out: Path) -> None:
    """Cut the faces of the photos in the tables of CLEAN, and pack them in OUT.

    Models of detectors belong in DETECTORS.
    """
    params = read_params()
    photos = read_stage_table(clean / "photos.csv")
    asked = read_stage_table(clean / "evaluation.csv")
    evaluation = asked[asked["rejected"] == ""].assign(person="")

    if params.crop.detector == "yunet":
        warn_if_outside(Path(params.crop.yunet_model), detectors, "crop.yunet_model")
    load_detector(params.crop.detector, params.crop.yunet_model)  # an unusable one ends here
    faces = find_all("train", photos["path"].to_list(), params.crop)
    faces_eval = find_all("evaluation", evaluation["path"].to_list(), params.crop)
    of_all = median_box(faces[0])
    found = crop_set("train", photos, faces, of_all, params.crop, out)
    found_eval = crop_set("evaluation", evaluation, faces_eval, of_all, params.crop, out)

    write_json(out / "fallback.json", {"box": None if of_all is None else of_all.tolist()})
    with write_whole(out / "contact_sheet.png") as file:
        sheet = draw_contact_sheet(found, photos["mask"], read_packed(out / "train.npy"))
        sheet.save(file, format="png")
    masks = photos["mask"].reset_index(drop=True)
    metrics = {
        "train": count_ways(found),
        "by_mask": {mask: count_ways(found[masks == mask]) for mask in MASKS},
        "evaluation": count_ways(found_eval),
    }
    write_json(out / "metrics.json", metrics)
    print(
        f"crop: {len(found)} photos, a face found in {metrics['train']['detection_rate']:.1%}; "
        f"{len(found_eval)} evaluation photos, {metrics['evaluation']['detection_rate']:.1%}"
    )


if __name__ == "__main__":
    main()
