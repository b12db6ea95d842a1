"""The embedded sample: the same for everybody, in the competition's layout, warts included."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import clean, sample
from stages.params import SampleParams
from stages.photos.labels import MASK_OF_PHOTO
from tests.conftest import ROOT, Change, Run

EDGES = [30, 60]


def knobs(people: int = 13, evaluation_people: int = 2, seed: int = 0) -> SampleParams:
    return SampleParams(people=people, evaluation_people=evaluation_people, seed=seed)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    sample.draw_sample(folder, knobs(), EDGES)
    return folder


def photos_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if not path.name.startswith("."))


def test_the_same_seed_draws_the_same_bytes_and_another_others(drawn: Path, tmp_path: Path) -> None:
    person = sample.roster(1)[0]
    for name, seed in {"again": 0, "other": 1}.items():
        sample.draw_person(person, tmp_path / name, seed)
    first = drawn / "train" / "images" / person.name / "normal.jpg"
    assert (tmp_path / "again" / "normal.jpg").read_bytes() == first.read_bytes()
    assert (tmp_path / "other" / "normal.jpg").read_bytes() != first.read_bytes()


def test_it_has_the_layout_of_the_competition(drawn: Path) -> None:
    table = pd.read_csv(drawn / "train" / "train.csv", dtype=str)
    assert list(table) == ["id", "gender", "race", "age", "path"]
    for path in table["path"]:
        stems = {photo.stem for photo in photos_in(drawn / "train" / "images" / path)}
        assert stems == set(MASK_OF_PHOTO)
    info = pd.read_csv(drawn / "eval" / "info.csv")
    assert len(info) == 14
    assert (info["ans"] == 0).all()
    assert set(info["ImageID"]) == {p.name for p in photos_in(drawn / "eval" / "images")}


def test_photos_are_384_by_512(drawn: Path) -> None:
    for path in photos_in(drawn / "train" / "images")[:20] + photos_in(drawn / "eval" / "images"):
        with Image.open(path) as photo:
            assert photo.size == (384, 512)


def test_answers_are_those_of_the_people(drawn: Path) -> None:
    answers = pd.read_csv(drawn / "eval" / "answers.csv")["ans"]
    kinds = answers.to_numpy() % 6
    people = sample.roster(2, first=3600)
    expected = [3 * (p.gender == "female") + np.searchsorted(EDGES, p.age, "right") for p in people]
    assert sorted(kinds) == sorted(np.repeat(expected, 7))
    assert sorted(answers // 6) == [0] * 10 + [1] * 2 + [2] * 2


def test_it_has_the_warts(drawn: Path) -> None:
    images = drawn / "train" / "images"
    names = {path.name for path in images.rglob("*")}
    assert {".DS_Store", "._normal.jpg", "mask2.png", "normal.jpeg"} <= names
    ids = pd.read_csv(drawn / "train" / "train.csv", dtype=str)["id"]
    assert ids.duplicated().sum() == 1
    with Image.open(next(images.rglob("mask2.png"))) as photo:
        assert photo.mode == "RGBA"


def test_ninety_people_are_enough_for_every_class_in_five_folds() -> None:
    people = pd.DataFrame(sample.roster(90))
    groups = np.searchsorted(EDGES, people["age"], "right")
    assert people.groupby(["gender", groups]).size().min() >= 5
    assert people.groupby(["gender", groups]).size().max() >= 20


def test_corrections_in_the_repository_repair_some_of_what_was_planted() -> None:
    planted = sample.planted(sample.roster(100)).astype(str)
    corrections = pd.read_csv(ROOT / "data/corrections.csv", dtype=str, keep_default_na=False)
    keys = ["person", "photo", "field"]
    repaired = corrections.merge(planted, on=keys, how="left")
    assert (repaired["old"] == repaired["given"]).all()
    assert (repaired["new"] == repaired["true"]).all()
    assert 0 < len(repaired) < len(planted)


def test_clean_takes_it_with_the_corrections_of_those_who_are_there(
    drawn: Path, run: Run, change: Change, tmp_path: Path
) -> None:
    corrections = pd.read_csv(ROOT / "data/corrections.csv", dtype=str, keep_default_na=False)
    there = {person.name for person in sample.roster(13)}
    corrections[corrections["person"].isin(there)].to_csv("corrections.csv", index=False)
    run(clean.main, drawn / "train", drawn / "eval", "corrections.csv", "out")
    photos = pd.read_csv("out/photos.csv")
    assert len(photos) == 13 * 7
    assert (photos["origin"] == "corrected").sum() == 2 + 7
    assert set(photos.groupby("person")["mask"].agg(lambda m: (m == "worn").sum())) == {5}


def test_drawing_again_replaces_what_was_there(run: Run, change: Change) -> None:
    change("sample.people", 12)
    change("sample.evaluation_people", 1)
    stale = Path("data/sample/train/images/stale")
    stale.mkdir(parents=True)
    run(sample.main, "data/sample")
    assert not stale.exists()
    assert len(pd.read_csv("data/sample/eval/info.csv")) == 7
    assert not Path("data/sample.partial").exists()


def test_where_nothing_more_can_be_written_the_place_is_named(change: Change) -> None:
    change("sample.people", 12)
    Path("data/sample").mkdir(parents=True)
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; exec {sys.executable} -m stages.sample data/sample"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 1
    assert limited.stderr.startswith("error: data/sample.partial: the file would be larger")
    assert len(limited.stderr.splitlines()) == 1
    assert os.listdir("data/sample") == []
