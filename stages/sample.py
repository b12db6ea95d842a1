"""Sample: a data set drawn by code in the competition's layout, with the faults of real data.

    python -m stages.sample data/sample

Writes `train/train.csv`, `train/images/`, `eval/info.csv`, `eval/images/` as in the competition,
plus `eval/answers.csv` (true labels of the evaluation photos) and `truth.csv` (the planted label
errors). The faults: hidden files, two people with one id, .jpeg files, an RGBA PNG, wrong labels.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from face_attributes.command import stage_command
from face_attributes.faces.drawing import draw_portrait, random_circumstances, random_traits
from face_attributes.files import path_in_errors
from face_attributes.params import SampleParams, read_params
from face_attributes.photos.labels import MASK_BY_STEM, encode
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress

# Gender and age group of every 36 people: imbalanced like real data, where women from 30 to 59 are
# the most frequent and people of 60 and over are rare.
PATTERN = (
    ["female middle"] * 10
    + ["female young"] * 7
    + ["male middle"] * 6
    + ["male young"] * 5
    + ["female old"] * 4
    + ["male old"] * 4
)
AGES = {"young": (18, 28), "middle": (33, 56), "old": (62, 76)}

# Planted label errors, by the number of the person: gender, age group, two swapped files.
WRONG_GENDER = (7, 26)
WRONG_AGE = (16, 41)
SWAPPED = {4: ("incorrect_mask", "normal"), 33: ("mask3", "normal")}

# Other faults, by the number of the person.
SHARED_ID = (11, 12)
JPEG_SUFFIX = (2, 9)
RGBA_PERSON, RGBA_PHOTO = 5, "mask2"
HIDDEN_FILES = (0, 3, 8)
APPLE_DOUBLE = b"\x00\x05\x16\x07" + b"\x00" * 4092


@dataclass(frozen=True)
class Person:
    """A person's true gender and age, and those in train.csv, which may be wrong."""

    number: int
    gender: str
    age: int
    given_gender: str
    given_age: int
    name: str  # of the folder


def roster(people: int, first: int = 0) -> list[Person]:
    """List people, numbered from `first`.

    A person depends on the number alone, so that the corrections in git fit any seed and any size
    of the sample.
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
    """Map the names of a person's files to the stems of the photos they really show."""
    first, second = SWAPPED.get(person.number, ("", ""))
    swapped = {first: second, second: first}
    names = {}
    for stem in MASK_BY_STEM:
        suffix = "jpeg" if person.number in JPEG_SUFFIX else "jpg"
        if (person.number, stem) == (RGBA_PERSON, RGBA_PHOTO):
            suffix = "png"
        names[f"{stem}.{suffix}"] = swapped.get(stem, stem)
    return names


def draw_photo(person: Person, stem: str, seed: int) -> Image.Image:
    """Draw the photo of a person with the given file stem: 384 x 512, RGB."""
    traits = random_traits(person.gender, person.age, np.random.default_rng([seed, person.number]))
    rng = np.random.default_rng([seed, person.number, list(MASK_BY_STEM).index(stem)])
    return draw_portrait(traits, random_circumstances(MASK_BY_STEM[stem], rng), rng)


def draw_person(person: Person, folder: Path, seed: int) -> None:
    """Write a person's seven photos to `folder`: JPEG files; one file of the sample is a PNG."""
    folder.mkdir(parents=True)
    for name, stem in file_names(person).items():
        photo = draw_photo(person, stem, seed)
        if name.endswith(".png"):
            photo.convert("RGBA").save(folder / name)
        else:
            photo.save(folder / name, quality=85)


def draw_all(people: Sequence[Person], folder: Path, seed: int) -> Iterator[None]:
    """Draw the folders of all people, on all cores."""
    folders = [folder / person.name for person in people]
    results = map_on_all_cores(partial(draw_person, seed=seed), people, folders)
    yield from progress(results, len(people), "sample: people drawn")


def plant_hidden_files(images: Path, people: Sequence[Person]) -> None:
    """Write the hidden files that macOS leaves in folders and archives."""
    (images / ".DS_Store").write_bytes(b"\x00\x00\x00\x01Bud1" + b"\x00" * 6140)
    for person in people:
        if person.number in HIDDEN_FILES:
            (images / f"._{person.name}").write_bytes(APPLE_DOUBLE)
            for name in file_names(person):
                (images / person.name / f"._{name}").write_bytes(APPLE_DOUBLE)


def planted_errors(people: Sequence[Person]) -> pd.DataFrame:
    """List the wrong labels: person, photo (empty: all photos), field, given, true."""
    rows: list[tuple[str, str, str, str | int, str | int]] = []
    for person in people:
        if person.given_gender != person.gender:
            rows.append((person.name, "", "gender", person.given_gender, person.gender))
        if person.given_age != person.age:
            rows.append((person.name, "", "age", person.given_age, person.age))
        for name, stem in file_names(person).items():
            given, true = MASK_BY_STEM[Path(name).stem], MASK_BY_STEM[stem]
            if given != true:
                rows.append((person.name, name, "mask", given, true))
    return pd.DataFrame(rows, columns=["person", "photo", "field", "given", "true"])


def move_evaluation(
    people: Sequence[Person], drawn: Path, images: Path, edges: Sequence[int], seed: int
) -> pd.DataFrame:
    """Move evaluation photos to anonymous names; return the answers: ImageID, ans.

    Args:
        drawn: folder with one folder per person.
        images: destination of the photos.
    """
    images.mkdir(parents=True)
    rows = []
    for person in people:
        for photo in sorted((drawn / person.name).iterdir()):
            name = hashlib.sha1(f"{seed} {person.name} {photo.stem}".encode()).hexdigest() + ".jpg"
            photo.rename(images / name)
            label = encode(MASK_BY_STEM[photo.stem], person.gender, person.age, edges)
            rows.append({"ImageID": name, "ans": label})
        (drawn / person.name).rmdir()
    table = pd.DataFrame(rows, columns=["ImageID", "ans"])
    return table.sort_values("ImageID", ignore_index=True)


def draw_sample(folder: Path, params: SampleParams, edges: Sequence[int]) -> None:
    """Draw the whole data set into `folder`, which must not exist."""
    train, evaluation = folder / "train", folder / "eval"
    people = roster(params.people)
    # Numbered far from the training people, so that more of those do not change these.
    evaluation_people = roster(params.evaluation_people, first=100 * len(PATTERN))

    for _ in draw_all(people, train / "images", params.seed):
        pass
    plant_hidden_files(train / "images", people)
    rows = [(p.name.split("_")[0], p.given_gender, "Drawn", p.given_age, p.name) for p in people]
    table = pd.DataFrame(rows, columns=["id", "gender", "race", "age", "path"])
    table.to_csv(train / "train.csv", index=False)
    planted_errors(people).to_csv(folder / "truth.csv", index=False)

    drawn = folder / "drawn"
    drawn.mkdir()
    for _ in draw_all(evaluation_people, drawn, params.seed):
        pass
    answers = move_evaluation(evaluation_people, drawn, evaluation / "images", edges, params.seed)
    drawn.rmdir()
    answers.to_csv(evaluation / "answers.csv", index=False)
    answers.assign(ans=0).to_csv(evaluation / "info.csv", index=False)


@stage_command
def main(out: Path) -> None:
    """Draw the embedded data set into OUT and replace its content."""
    params = read_params()
    partial_out = out.with_name(out.name + ".partial")
    shutil.rmtree(partial_out, ignore_errors=True)
    try:
        with path_in_errors(partial_out):
            draw_sample(partial_out, params.sample, params.labels.age_edges)
        shutil.rmtree(out, ignore_errors=True)
        partial_out.rename(out)
    finally:
        shutil.rmtree(partial_out, ignore_errors=True)
    count = 7 * (params.sample.people + params.sample.evaluation_people)
    print(
        f"sample: {count} photos of {params.sample.people} people for training and "
        f"{params.sample.evaluation_people} for evaluation"
    )


if __name__ == "__main__":
    main()
