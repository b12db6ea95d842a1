"""Sample: a data set drawn by code, in the competition's layout, warts included.

    python -m stages.sample data/sample

Writes `train/train.csv`, `train/images/`, `eval/info.csv`, `eval/images/` as the competition has
them, and beside them `eval/answers.csv` (true labels of the evaluation photos) and `truth.csv` (the
wrong labels planted in train.csv). The warts: hidden files, an id that two people share, photos as
.jpeg, an RGBA PNG, wrong labels.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from stages.command import stage_command
from stages.faces.drawing import Mask, draw_circumstances, draw_portrait, draw_traits
from stages.files import naming
from stages.params import SampleParams, read_params
from stages.photos.labels import MASK_OF_PHOTO, encode
from stages.progress import progress

# How many of 36 people in a row are of each gender and age group: imbalanced as in real data, where
# women from 30 to 59 are most, and few are 60 or over.
PATTERN = (
    ["female middle"] * 10
    + ["female young"] * 7
    + ["male middle"] * 6
    + ["male young"] * 5
    + ["female old"] * 4
    + ["male old"] * 4
)
AGES = {"young": (18, 28), "middle": (33, 56), "old": (62, 76)}

# Labels planted wrong, by the person's number: a gender, an age in a far group, two files swapped.
WRONG_GENDER = (7, 26)
WRONG_AGE = (16, 41)
SWAPPED = {4: ("incorrect_mask", "normal"), 33: ("mask3", "normal")}

SHARED_ID = (11, 12)
JPEG_ENDING = (2, 9)
RGBA_PERSON, RGBA_PHOTO = 5, "mask2"
HIDDEN_IN = (0, 3, 8)
APPLE_DOUBLE = b"\x00\x05\x16\x07" + b"\x00" * 4092


@dataclass(frozen=True)
class Person:
    """Who somebody is, and what the table says of them."""

    number: int
    gender: str
    age: int
    given_gender: str
    given_age: int
    name: str  # of the folder


def roster(people: int, first: int = 0) -> list[Person]:
    """Who the people are, from the number `first` on.

    It follows from the number alone, so that corrections in git, which name people, fit any seed
    and any size of the sample.
    """
    return [_person(number) for number in range(first, first + people)]


def _person(number: int) -> Person:
    kinds = np.random.default_rng(number // len(PATTERN)).permutation(PATTERN)
    gender, group = kinds[number % len(PATTERN)].split()
    age = int(np.random.default_rng([number, 1]).integers(*AGES[group]))
    given_gender, given_age = gender, age
    if number in WRONG_GENDER:
        given_gender = "female" if gender == "male" else "male"
    if number in WRONG_AGE:
        given_age = 67 if age < 45 else 22
    shared = SHARED_ID[0] if number in SHARED_ID else number
    return Person(
        number=number,
        gender=gender,
        age=age,
        given_gender=given_gender,
        given_age=given_age,
        name=f"{shared:06}_{given_gender}_Drawn_{given_age}",
    )


def file_names(person: Person) -> dict[str, str]:
    """The name of each of a person's files -> the stem of the photo that is in it."""
    first, second = SWAPPED.get(person.number, ("", ""))
    shown = {first: second, second: first}
    names = {}
    for stem in MASK_OF_PHOTO:
        ending = "jpeg" if person.number in JPEG_ENDING else "jpg"
        if (person.number, stem) == (RGBA_PERSON, RGBA_PHOTO):
            ending = "png"
        names[f"{stem}.{ending}"] = shown.get(stem, stem)
    return names


def draw_person(person: Person, folder: Path, seed: int) -> None:
    """Draw a person's seven photos into `folder`: 384 x 512, JPEG, one of all as an RGBA PNG."""
    traits = draw_traits(person.gender, person.age, np.random.default_rng([seed, person.number]))
    folder.mkdir(parents=True)
    stems = list(MASK_OF_PHOTO)
    for name, stem in file_names(person).items():
        rng = np.random.default_rng([seed, person.number, stems.index(stem)])
        mask: Mask = next(m for m in get_args(Mask) if m == MASK_OF_PHOTO[stem])
        photo = draw_portrait(traits, draw_circumstances(mask, rng), rng)
        if name.endswith(".png"):
            photo.convert("RGBA").save(folder / name)
        else:
            photo.save(folder / name, quality=85)


def draw_all(people: Sequence[Person], folder: Path, seed: int) -> Iterator[None]:
    """Draw the folders of all people, on all cores."""
    folders = [folder / person.name for person in people]
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(partial(draw_person, seed=seed), people, folders)
        yield from progress(drawn, len(people), "sample: people drawn")


def plant_hidden_files(images: Path, people: Sequence[Person]) -> None:
    """Leave what a Mac leaves in folders and archives."""
    (images / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1" + b"\x00" * 6140)
    for person in people:
        if person.number in HIDDEN_IN:
            (images / f"._{person.name}").write_bytes(APPLE_DOUBLE)
            for name in file_names(person):
                (images / person.name / f"._{name}").write_bytes(APPLE_DOUBLE)


def planted(people: Sequence[Person]) -> pd.DataFrame:
    """The wrong labels: person, photo (empty for all of them), field, given, true."""
    rows: list[tuple[str, str, str, str | int, str | int]] = []
    for person in people:
        if person.given_gender != person.gender:
            rows.append((person.name, "", "gender", person.given_gender, person.gender))
        if person.given_age != person.age:
            rows.append((person.name, "", "age", person.given_age, person.age))
        for name, stem in file_names(person).items():
            given, true = MASK_OF_PHOTO[Path(name).stem], MASK_OF_PHOTO[stem]
            if given != true:
                rows.append((person.name, name, "mask", given, true))
    return pd.DataFrame(rows, columns=["person", "photo", "field", "given", "true"])


def move_evaluation(
    people: Sequence[Person], drawn: Path, images: Path, edges: Sequence[int], seed: int
) -> pd.DataFrame:
    """Move the evaluation people's photos under names that say nothing, in no order: ImageID, ans.

    Args:
        drawn: the folder with a folder for each person.
        images: where the photos go.
    """
    images.mkdir(parents=True)
    rows = []
    for person in people:
        for photo in sorted((drawn / person.name).iterdir()):
            name = hashlib.sha1(f"{seed} {person.name} {photo.stem}".encode()).hexdigest() + ".jpg"
            photo.rename(images / name)
            label = encode(MASK_OF_PHOTO[photo.stem], person.gender, person.age, edges)
            rows.append({"ImageID": name, "ans": label})
        (drawn / person.name).rmdir()
    table = pd.DataFrame(rows, columns=["ImageID", "ans"])
    return table.sort_values("ImageID", ignore_index=True)


def draw_sample(folder: Path, params: SampleParams, edges: Sequence[int]) -> None:
    """Draw the whole data set into `folder`, which must not exist."""
    train, evaluation = folder / "train", folder / "eval"
    people = roster(params.people)
    # Far from the training people's numbers, so that more of these leave those as they are.
    others = roster(params.evaluation_people, first=100 * len(PATTERN))

    for _ in draw_all(people, train / "images", params.seed):
        pass
    plant_hidden_files(train / "images", people)
    rows = [(p.name.split("_")[0], p.given_gender, "Drawn", p.given_age, p.name) for p in people]
    table = pd.DataFrame(rows, columns=["id", "gender", "race", "age", "path"])
    table.to_csv(train / "train.csv", index=False)
    planted(people).to_csv(folder / "truth.csv", index=False)

    drawn = folder / "drawn"
    drawn.mkdir()
    for _ in draw_all(others, drawn, params.seed):
        pass
    answers = move_evaluation(others, drawn, evaluation / "images", edges, params.seed)
    drawn.rmdir()
    answers.to_csv(evaluation / "answers.csv", index=False)
    answers.assign(ans=0).to_csv(evaluation / "info.csv", index=False)


@stage_command
def main(out: Path) -> None:
    """Draw the embedded data set into OUT, in place of what is there."""
    params = read_params()
    partial_out = out.with_name(out.name + ".partial")
    if partial_out.exists():
        shutil.rmtree(partial_out)
    with naming(partial_out):
        draw_sample(partial_out, params.sample, params.labels.age_edges)
    shutil.rmtree(out, ignore_errors=True)
    partial_out.rename(out)
    count = 7 * (params.sample.people + params.sample.evaluation_people)
    print(
        f"sample: {count} photos of {params.sample.people} people for training and "
        f"{params.sample.evaluation_people} for evaluation"
    )


if __name__ == "__main__":
    main()
