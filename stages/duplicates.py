"""Duplicates: the same photo twice, found by how the crops look.

    python -m stages.duplicates data/crop data/duplicates

Writes `duplicates.csv`, a row a pair: person, photo, other_person, other_photo (the other's person
is empty where it is an evaluation photo), similarity (1: the same pixels), and `metrics.json`.

A photo in the folders of two people makes their labels doubtful, and in two folds it is a leak: the
stage `folds` keeps such people together. Within one person's folder, where seven photos show one
face, only copies of a photo count.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from stages.command import stage_command
from stages.files import write_json, write_table
from stages.params import DuplicateParams, read_params
from stages.photos.likeness import (
    close_pairs,
    perceptual_hash,
    similarity,
    small_grey,
)
from stages.photos.packed import Pixels, read_packed
from stages.photos.tables import read_stage_table
from stages.progress import progress

COPY_DIFFERENCE = 4.0
"""Most mean difference of the pixels (0 to 255) of a copy in the same folder. Another photo of the
same face, with the same mask, has 8 and more."""

COLUMNS = ["person", "photo", "other_person", "other_photo", "similarity"]


def find_duplicates(
    photos: pd.DataFrame, crops: Sequence[Pixels], params: DuplicateParams
) -> pd.DataFrame:
    """Pairs of photos that are the same: `COLUMNS`, the most alike first.

    Pairs of two evaluation photos are left out: whose they are is not known, and seven of them show
    one person.

    Args:
        photos: person (empty for evaluation photos, which come last), photo.
        crops: of these photos, size x size x 3, uint8.
    """
    people, names = photos["person"].to_numpy(str), photos["photo"].to_numpy(str)
    hashes = np.array([perceptual_hash(crop) for crop in crops], dtype=np.uint64)
    small = [small_grey(crop) for crop in crops]
    pairs = [pair for pair in close_pairs(hashes, params.hash_distance) if people[pair[0]]]
    found = []
    with ProcessPoolExecutor() as pool:
        firsts, seconds = ([small[pair[side]] for pair in pairs] for side in (0, 1))
        alike = pool.map(similarity, firsts, seconds, chunksize=64)
        shown = progress(alike, len(pairs), "duplicates: pairs compared")
        for (first, second), value in zip(pairs, shown, strict=True):
            if people[first] == people[second]:
                apart = np.abs(crops[first].astype(int) - crops[second]).mean()
                same = apart <= COPY_DIFFERENCE
            else:
                same = value >= params.similarity
            if same:
                found.append((people[first], names[first], people[second], names[second], value))
    table = pd.DataFrame(found, columns=COLUMNS)
    return table.sort_values("similarity", ascending=False, kind="stable", ignore_index=True)


def count_duplicates(duplicates: pd.DataFrame) -> dict[str, int]:
    """How many pairs are of one person, of two people, and of a training and evaluation photo."""
    evaluation = duplicates["other_person"] == ""
    own = duplicates["person"] == duplicates["other_person"]
    return {
        "within_a_person": int(own.sum()),
        "across_people": int((~own & ~evaluation).sum()),
        "in_training_and_evaluation": int(evaluation.sum()),
    }


@stage_command
def main(crop: Path, out: Path) -> None:
    """Find photos that are there twice among the crops in CROP; write the pairs to OUT."""
    params = read_params()
    training = read_stage_table(crop / "train.csv")[["person", "photo"]]
    evaluation = read_stage_table(crop / "evaluation.csv")[["photo"]].assign(person="")
    photos = pd.concat([training, evaluation], ignore_index=True)
    crops = [*read_packed(crop / "train.npy"), *read_packed(crop / "evaluation.npy")]

    found = find_duplicates(photos, crops, params.duplicates)
    counts = count_duplicates(found)
    write_table(out / "duplicates.csv", found, float_format="%.4f")
    write_json(out / "metrics.json", counts)
    print(
        f"duplicates: {counts['across_people']} pairs across people, {counts['within_a_person']} "
        f"within a person, {counts['in_training_and_evaluation']} in training and evaluation"
    )


if __name__ == "__main__":
    main()
