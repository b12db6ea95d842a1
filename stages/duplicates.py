"""Duplicates: find copies of photos by comparing the crops.

    python -m stages.duplicates data/crop data/duplicates

Writes `duplicates.csv`, one row per pair: person, photo, other_person (empty for an evaluation
photo), other_photo, similarity (1: the same pixels), and `metrics.json`.

A photo in the folders of two people makes their labels doubtful, and would leak between folds: the
stage `folds` keeps such people together. Within a person's folder, where seven photos show the same
face, only copies of the same photo count.

Crops with similar perceptual hashes are candidates; their pixels decide.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from face_attributes.command import stage_command
from face_attributes.files import write_json, write_table
from face_attributes.params import DuplicateParams, read_params
from face_attributes.photos.packed import Pixels, read_packed
from face_attributes.photos.tables import read_stage_table
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress

COLUMNS = ["person", "photo", "other_person", "other_photo", "similarity"]

SIDE = 64
"""Crops are scaled to this side before their pixels are compared."""
TEMPLATE = slice(9, SIDE - 9)
"""The part of the first crop that is searched for in the second."""
SCALES = np.arange(0.86, 1.15, 0.02)
"""Scales of the second crop: the face box of a copy may be slightly larger or smaller."""
MAX_COPY_DIFFERENCE = 4.0
"""Maximum mean difference of pixels (0 to 255) between copies in one folder. Different photos of
one face with the same mask differ by 8 or more."""

Hashes = NDArray[np.uint64]
Grey = NDArray[np.uint8]


def perceptual_hash(crop: Pixels) -> np.uint64:
    """Compute ImageHash's 64-bit DCT hash of a crop (side x side x 3)."""
    bits = imagehash.phash(Image.fromarray(crop)).hash
    return np.uint64(int.from_bytes(np.packbits(bits).tobytes()))


def close_pairs(hashes: Hashes, distance: int) -> Iterator[tuple[int, int]]:
    """Yield the indices (i < j) of hashes (N) that differ in at most `distance` bits."""
    for index, value in enumerate(hashes):
        differing_bits = np.bitwise_count(hashes[index + 1 :] ^ value)
        for offset in np.flatnonzero(differing_bits <= distance):
            yield index, index + 1 + int(offset)


def small_grey(crop: Pixels) -> Grey:
    """Scale a crop (side x side x 3) to SIDE x SIDE and convert it to grey."""
    grey = cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def similarity(first: Grey, second: Grey) -> float:
    """Correlate two small grey crops (-1 to 1) at the best shift and scale.

    A compressed, scaled, brightened or cropped copy gets a slightly different face box, so its crop
    is shifted and scaled; OpenCV's `matchTemplate` finds the shift. Such copies of real photos
    reach 0.975, photos of different people stay below.
    """
    if np.array_equal(first, second):
        return 1.0
    if first.std() < 1 or second.std() < 1:
        return -1.0  # the correlation with a uniform image is undefined
    best = -1.0
    for scale in SCALES:
        side = round(SIDE * scale)
        scaled = cv2.resize(second, (side, side), interpolation=cv2.INTER_AREA)
        correlations = cv2.matchTemplate(scaled, first[TEMPLATE, TEMPLATE], cv2.TM_CCOEFF_NORMED)
        best = max(best, float(correlations.max()))
    return min(best, 1.0)


def find_duplicates(
    photos: pd.DataFrame, crops: Sequence[Pixels], params: DuplicateParams
) -> pd.DataFrame:
    """Find pairs of copies: `COLUMNS`, the most similar first.

    Pairs of two evaluation photos are left out: their people are unknown, and seven of them show
    one person.

    Args:
        photos: person (empty for evaluation photos, which come last), photo.
        crops: crops of these photos, side x side x 3, uint8.
    """
    people, names = photos["person"].to_numpy(str), photos["photo"].to_numpy(str)
    hashes = np.array([perceptual_hash(crop) for crop in crops], dtype=np.uint64)
    small = [small_grey(crop) for crop in crops]
    pairs = [pair for pair in close_pairs(hashes, params.hash_distance) if people[pair[0]]]
    rows = []
    first_crops, second_crops = ([small[pair[side]] for pair in pairs] for side in (0, 1))
    similarities = map_on_all_cores(similarity, first_crops, second_crops, chunksize=64)
    results = progress(similarities, len(pairs), "duplicates: pairs compared")
    for (first, second), value in zip(pairs, results, strict=True):
        if people[first] == people[second]:
            difference = np.abs(crops[first].astype(int) - crops[second]).mean()
            is_copy = difference <= MAX_COPY_DIFFERENCE
        else:
            is_copy = value >= params.similarity
        if is_copy:
            rows.append((people[first], names[first], people[second], names[second], value))
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("similarity", ascending=False, kind="stable", ignore_index=True)


def count_duplicates(duplicates: pd.DataFrame) -> dict[str, int]:
    """Count pairs within a person, across people, and across training and evaluation photos."""
    evaluation = duplicates["other_person"] == ""
    same_person = duplicates["person"] == duplicates["other_person"]
    return {
        "within_a_person": int(same_person.sum()),
        "across_people": int((~same_person & ~evaluation).sum()),
        "in_training_and_evaluation": int(evaluation.sum()),
    }


@stage_command
def main(crop: Path, out: Path) -> None:
    """Find duplicate photos among the crops in CROP; write the pairs to OUT."""
    params = read_params()
    training = read_stage_table(crop / "train.csv")[["person", "photo"]]
    evaluation = read_stage_table(crop / "evaluation.csv")[["photo"]].assign(person="")
    photos = pd.concat([training, evaluation], ignore_index=True)
    crops = [*read_packed(crop / "train.npy"), *read_packed(crop / "evaluation.npy")]

    duplicates = find_duplicates(photos, crops, params.duplicates)
    counts = count_duplicates(duplicates)
    write_table(out / "duplicates.csv", duplicates, float_format="%.4f")
    write_json(out / "metrics.json", counts)
    print(
        f"duplicates: {counts['across_people']} pairs across people, {counts['within_a_person']} "
        f"within a person, {counts['in_training_and_evaluation']} across training and evaluation"
    )


if __name__ == "__main__":
    main()
