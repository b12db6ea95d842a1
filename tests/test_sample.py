"""The embedded sample: reproducible, in the competition's layout, with the faults of real data."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from face_attributes.params import SampleParams
from face_attributes.photos.labels import MASK_BY_STEM
from stages import clean, sample
from tests.conftest import ROOT, Change, Run

EDGES = [30, 60]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of 13 people for training and one for evaluation."""
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    sample.draw_sample(folder, SampleParams(people=13, evaluation_people=1, seed=0), EDGES)
    return folder


def photos_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if not path.name.startswith("."))


def test_the_same_seed_draws_the_same_bytes(drawn: Path, tmp_path: Path) -> None:
    person = sample.roster(1)[0]
    for name, seed in {"same": 0, "other": 1}.items():
        sample.draw_person(person, tmp_path / name, seed)
    first = drawn / "train" / "images" / person.name / "normal.jpg"
    assert (tmp_path / "same" / "normal.jpg").read_bytes() == first.read_bytes()
    assert (tmp_path / "other" / "normal.jpg").read_bytes() != first.read_bytes()


def test_it_has_the_layout_of_the_competition(drawn: Path) -> None:
    table = pd.read_csv(drawn / "train" / "train.csv", dtype=str)
    assert list(table) == ["id", "gender", "race", "age", "path"]
    for path in table["path"]:
        stems = {photo.stem for photo in photos_in(drawn / "train" / "images" / path)}
        assert stems == set(MASK_BY_STEM)
    info = pd.read_csv(drawn / "eval" / "info.csv")
    assert len(info) == 7
    assert (info["ans"] == 0).all()
    assert set(info["ImageID"]) == {p.name for p in photos_in(drawn / "eval" / "images")}


def test_photos_have_384_by_512_pixels(drawn: Path) -> None:
    for path in photos_in(drawn / "train" / "images")[:14] + photos_in(drawn / "eval" / "images"):
        with Image.open(path) as photo:
            assert photo.size == (384, 512)


def test_answers_are_the_true_labels(drawn: Path) -> None:
    answers = pd.read_csv(drawn / "eval" / "answers.csv")["ans"].to_numpy()
    (person,) = sample.roster(1, first=3600)
    group = 3 * (person.gender == "female") + np.searchsorted(EDGES, person.age, "right")
    assert sorted(answers) == [group] * 5 + [6 + group, 12 + group]


def test_it_has_the_faults_of_real_data(drawn: Path) -> None:
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


def test_corrections_in_the_repository_fix_some_of_the_planted_errors() -> None:
    errors = sample.planted_errors(sample.roster(100)).astype(str)
    corrections = pd.read_csv(ROOT / "data/corrections.csv", dtype=str, keep_default_na=False)
    fixed = corrections.merge(errors, on=["person", "photo", "field"], how="left")
    assert (fixed["old"] == fixed["given"]).all()
    assert (fixed["new"] == fixed["true"]).all()
    assert 0 < len(fixed) < len(errors)


def test_clean_accepts_it_with_the_corrections_of_its_people(drawn: Path, run: Run) -> None:
    corrections = pd.read_csv(ROOT / "data/corrections.csv", dtype=str, keep_default_na=False)
    names = {person.name for person in sample.roster(13)}
    corrections[corrections["person"].isin(names)].to_csv("corrections.csv", index=False)
    run(clean.main, drawn / "train", drawn / "eval", "corrections.csv", "out")
    photos = pd.read_csv("out/photos.csv")
    assert len(photos) == 13 * 7
    assert (photos["origin"] == "corrected").sum() == 2 + 7
    assert set(photos.groupby("person")["mask"].agg(lambda m: (m == "worn").sum())) == {5}


def test_the_stage_replaces_an_earlier_sample(run: Run, change: Change) -> None:
    change("sample.people", 12)
    change("sample.evaluation_people", 0)
    stale = Path("data/sample/train/images/stale")
    stale.mkdir(parents=True)
    run(sample.main, "data/sample")
    assert not stale.exists()
    assert len(pd.read_csv("data/sample/train/train.csv")) == 12
    assert pd.read_csv("data/sample/eval/info.csv").empty
    assert not Path("data/sample.partial").exists()


def test_a_failed_write_names_the_folder_and_keeps_the_earlier_sample(change: Change) -> None:
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
    assert os.listdir("data") == ["sample"]
