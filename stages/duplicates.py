"""Duplicates: find copies of photos by comparing the crops.

    python -m stages.duplicates data/crop data/duplicates

Writes `duplicates.csv`, one row per pair: person, photo, other_person (empty for an evaluation
photo), other_photo, similarity (1: the same pixels), orientation (how the first crop becomes the
other one: same, or mirrored, turned clockwise or both), and `metrics.json`.

A photo in the folders of two people makes their labels doubtful, and would leak between folds: the
stage `folds` keeps such people together. Within a person's folder, where seven photos show the same
face, only copies of the same photo count.

Crops with similar perceptual hashes in one of eight orientations are candidates; their pixels
decide.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
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

COLUMNS = ["person", "photo", "other_person", "other_photo", "similarity", "orientation"]

ORIENTATIONS: dict[str, tuple[bool, int]] = {
    "same": (False, 0),
    "turned_90": (False, 1),
    "turned_180": (False, 2),
    "turned_270": (False, 3),
    "mirrored": (True, 0),
    "mirrored_turned_90": (True, 1),
    "mirrored_turned_180": (True, 2),
    "mirrored_turned_270": (True, 3),
}
"""Whether a crop is mirrored left to right, and the quarter turns clockwise that follow."""
EXTRA_BITS = 2
"""By how many more bits the hash of a mirrored or turned copy may differ: its face is found at a
slightly different place. Of mirrored real photos, 84% are candidates instead of 72%."""
COMPARED = 2**16
"""Hashes that a crop's are compared with at once: memory does not grow with their number."""
HASHED_SIDE = 32
"""The side to which ImageHash scales a crop before it computes the DCT."""

SIDE = 64
"""Crops are scaled to this side before their pixels are compared."""
TEMPLATE = slice(9, SIDE - 9)
"""The part of the first crop that is searched for in the second."""
SCALES = np.arange(0.86, 1.15, 0.02)
"""Scales of the second crop: the face box of a copy may be slightly larger or smaller."""
MOST_SMALL_CROPS = 100_000
"""Small crops that are kept for other pairs, of 4 KB each."""
COARSE_SCALES = SCALES[2::5]
"""Scales that are tried first."""
MIN_COARSE = 0.8
"""Below this correlation at the coarse scales, the others are not tried. Copies with a
similarity of 0.96 reach 0.87 there."""
MAX_COPY_DIFFERENCE = 4.0
"""Maximum mean difference of pixels (0 to 255) between copies in one folder. Different photos of
one face with the same mask differ by 8 or more."""

Hashes = NDArray[np.uint64]
Grey = NDArray[np.uint8]


def orient(crop: Pixels, orientation: str) -> Pixels:
    """Mirror and turn a crop (side x side, or side x side x 3)."""
    mirrored, turns = ORIENTATIONS[orientation]
    return np.ascontiguousarray(np.rot90(crop[:, ::-1] if mirrored else crop, -turns))


def perceptual_hashes(crop: Pixels) -> Hashes:
    """Compute ImageHash's 64-bit DCT hash of a crop in each of the ORIENTATIONS (8)."""
    grey = Image.fromarray(crop).convert("L")
    small = np.asarray(grey.resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.LANCZOS))
    bits = [imagehash.phash(Image.fromarray(orient(small, name))).hash for name in ORIENTATIONS]
    return np.array([int.from_bytes(np.packbits(each).tobytes()) for each in bits], dtype=np.uint64)


def close_pairs(hashes: Hashes, distance: int) -> Iterator[tuple[int, int, str]]:
    """Yield the indices (i < j) of crops with similar hashes, and the orientation of the first.

    On all cores, in threads: numpy's loops run at the same time. Time grows with the square of N,
    memory does not.

    Args:
        hashes: of each crop in each orientation, N x 8.
        distance: maximum number of differing bits, EXTRA_BITS more if mirrored or turned.
    """
    names = list(ORIENTATIONS)
    limits = np.array([distance + EXTRA_BITS * (name != "same") for name in names])[:, None]
    upright = hashes[:, names.index("same")].copy()

    def compare(rows: range) -> list[tuple[int, int, str]]:
        pairs = []
        for index in rows:
            for start in range(index + 1, len(upright), COMPARED):
                others = upright[start : start + COMPARED]
                differing_bits = np.bitwise_count(hashes[index][:, None] ^ others)
                for orientation, offset in zip(*np.nonzero(differing_bits <= limits), strict=True):
                    pairs.append((index, start + int(offset), names[orientation]))
        return pairs

    blocks = [range(len(hashes))[start : start + 256] for start in range(0, len(hashes), 256)]
    with ThreadPoolExecutor() as pool:
        for pairs in progress(pool.map(compare, blocks), len(blocks), "duplicates: blocks of 256"):
            yield from pairs


def small_grey(crop: Pixels) -> Grey:
    """Scale a crop (side x side x 3) to SIDE x SIDE and convert it to grey."""
    grey = cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def small_colour(crop: Pixels) -> Pixels:
    """Scale a crop (side x side x 3) to SIDE x SIDE x 3."""
    contiguous = np.ascontiguousarray(crop)
    return np.asarray(cv2.resize(contiguous, (SIDE, SIDE), interpolation=cv2.INTER_AREA))


def similarity(first: Pixels, second: Pixels) -> float:
    """Correlate two small crops, grey or in colour (-1 to 1), at the best shift and scale.

    A compressed, scaled, brightened or cropped copy gets a slightly different face box, so its crop
    is shifted and scaled; OpenCV's `matchTemplate` finds the shift. Such copies of real photos
    reach 0.975, photos of different people stay below. Values below MIN_COARSE are lower bounds.
    """
    if np.array_equal(first, second):
        return 1.0
    if first.std() < 1 or second.std() < 1:
        return -1.0  # the correlation with a uniform image is undefined
    coarse = max(_correlation(first, second, scale) for scale in COARSE_SCALES)
    if coarse < MIN_COARSE:
        return coarse
    return min(max(_correlation(first, second, scale) for scale in SCALES), 1.0)


def _correlation(first: Pixels, second: Pixels, scale: float) -> float:
    """Correlate two small crops at the best shift, the second one scaled."""
    side = round(SIDE * scale)
    scaled = cv2.resize(second, (side, side), interpolation=cv2.INTER_AREA)
    template = first[TEMPLATE, TEMPLATE]
    return float(cv2.matchTemplate(scaled, template, cv2.TM_CCOEFF_NORMED).max())


def oriented_similarity(first: Pixels, second: Pixels, orientation: str) -> float:
    """Compute the similarity of two small crops after the first one is mirrored and turned."""
    return similarity(orient(first, orientation), second)


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
    hashed = map_on_all_cores(perceptual_hashes, crops, chunksize=64)
    hashes = np.array(list(progress(hashed, len(crops), "duplicates: crops hashed")), np.uint64)
    candidates = close_pairs(hashes.reshape(-1, len(ORIENTATIONS)), params.hash_distance)
    pairs = [pair for pair in candidates if people[pair[0]]]

    @lru_cache(MOST_SMALL_CROPS)
    def small(index: int) -> Grey:
        return small_grey(crops[index])

    rows = []
    similarities = map_on_all_cores(
        oriented_similarity,
        (small(first) for first, _, _ in pairs),
        (small(second) for _, second, _ in pairs),
        (orientation for _, _, orientation in pairs),
        chunksize=64,
    )
    results = progress(similarities, len(pairs), "duplicates: pairs compared")
    for (first, second, orientation), value in zip(pairs, results, strict=True):
        if people[first] == people[second]:
            oriented = orient(crops[first], orientation).astype(int)
            is_copy = np.abs(oriented - crops[second]).mean() <= MAX_COPY_DIFFERENCE
        else:
            mirrored, _ = ORIENTATIONS[orientation]
            if mirrored and value >= params.similarity:
                # Faces are nearly symmetric: mirrored, two drawn people reach 0.985 in grey. Their
                # colours differ.
                colours = small_colour(crops[first]), small_colour(crops[second])
                value = min(value, oriented_similarity(*colours, orientation))
            is_copy = value >= params.similarity
        if is_copy:
            names_of_pair = people[first], names[first], people[second], names[second]
            rows.append((*names_of_pair, value, orientation))
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table.sort_values("similarity", ascending=False, kind="stable", ignore_index=True)
    return table.drop_duplicates(COLUMNS[:4], ignore_index=True)  # the best orientation


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
    crops = [*read_packed(crop / "train"), *read_packed(crop / "evaluation")]

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
