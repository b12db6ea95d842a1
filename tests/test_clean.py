"""The stage clean: labels of all photos; unusable photos are rejected, listed and counted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from face_attributes.errors import UserError
from stages import clean
from tests.conftest import ROOT, Change, Run, save_photo

PERSON = "000001_female_Any_25"
FOLDER = Path("raw/train/images") / PERSON

Clean = Callable[..., str]


@pytest.fixture
def clean_raw(raw: Path, run: Run) -> Clean:
    """Run the stage on the small data set; return the error line if `code` is 1."""

    def run_clean(code: int = 0) -> str:
        result = run(clean.main, "raw/train", "raw/eval", "raw/corrections.csv", "out", code=code)
        return result.stderr if code else result.stdout

    return run_clean


def photos() -> pd.DataFrame:
    return pd.read_csv("out/photos.csv", dtype={"person": str})


def counts() -> dict[str, int]:
    return dict(json.loads(Path("out/metrics.json").read_text()))


def rejected() -> list[tuple[str, ...]]:
    table = pd.read_csv("out/rejected.csv", keep_default_na=False)
    return [tuple(row) for row in table.itertuples(index=False)]


def correct(*rows: str) -> None:
    with Path("raw/corrections.csv").open("a") as file:
        file.writelines(row + "\n" for row in rows)


def test_every_photo_has_a_row_with_its_label(clean_raw: Clean) -> None:
    clean_raw()
    table = photos()
    assert list(table) == [
        "person", "photo", "path", "mask", "gender", "age", "race", "origin", "label",
    ]  # fmt: skip
    assert len(table) == 21
    labels = table[table["person"] == PERSON].set_index("photo")["label"]
    assert labels.to_dict() == {
        **{f"mask{number}.jpg": 3 for number in range(1, 6)},
        "incorrect_mask.jpg": 9,
        "normal.jpg": 15,
    }
    assert table.groupby("person")["label"].max().to_list() == [15, 13, 14]
    assert all(Path(path).is_file() for path in table["path"])
    assert set(table["origin"]) == {"given"}
    assert pd.read_csv("out/evaluation.csv")["photo"].to_list() == ["b.jpg", "a.jpg"]


def test_age_edges_come_from_params(clean_raw: Clean, change: Change) -> None:
    change("labels.age_edges", [20, 30])
    clean_raw()
    assert photos().groupby("person")["label"].min().to_list() == [4, 2, 2]


def test_corrections_change_labels_and_never_photos(clean_raw: Clean) -> None:
    before = {path: path.read_bytes() for path in FOLDER.iterdir()}
    clean_raw()
    to_crop = Path("out/to_crop.csv").read_text()
    correct(f"{PERSON},,gender,female,male,seen", f"{PERSON},,age,25,61,seen")
    correct(f"{PERSON},normal.jpg,mask,not_worn,incorrect,seen")
    correct(f"{PERSON},incorrect_mask.jpg,mask,incorrect,not_worn,seen")
    clean_raw()
    assert Path("out/to_crop.csv").read_text() == to_crop
    assert photos()["photo"].to_list() == pd.read_csv("out/to_crop.csv")["photo"].to_list()
    correct("3_male_Any_60,mask2.jpg,drop,,,blurred")
    clean_raw()
    dropped = "3_male_Any_60,mask2.jpg,"
    lines = [line for line in to_crop.splitlines() if not line.startswith(dropped)]
    assert Path("out/to_crop.csv").read_text().splitlines() == lines != to_crop.splitlines()
    table = photos().set_index("person")
    assert table.loc[PERSON, "label"].to_list() == [2, 2, 2, 2, 2, 14, 8]
    given = pd.read_csv("out/given_labels.csv").set_index("person")
    assert given.loc[PERSON, "label"].to_list() == [3, 3, 3, 3, 3, 9, 15]
    assert "mask2.jpg" in given.loc["3_male_Any_60", "photo"].to_list(), "although it is dropped"
    assert set(table.loc[PERSON, "origin"]) == {"corrected"}
    assert "mask2.jpg" not in table.loc["3_male_Any_60", "photo"].to_list()
    assert (counts()["corrected"], counts()["dropped"]) == (7, 1)
    assert {path: path.read_bytes() for path in FOLDER.iterdir()} == before


def test_dropping_everybody_is_an_error(clean_raw: Clean) -> None:
    people = sorted(path.name for path in FOLDER.parent.iterdir())
    correct(*(f"{person},,drop,,,x" for person in people))
    assert "no photo of raw/train is left" in clean_raw(code=1)


def test_unusable_photos_are_rejected_and_counted(clean_raw: Clean, change: Change) -> None:
    change("clean.max_rejected", 0.5)
    change("clean.max_pixels", 48 * 64)
    (FOLDER / "mask1.jpg").write_bytes(b"")
    save_photo(FOLDER / "mask2.jpg", size=(80, 64))
    (FOLDER / os.fsdecode(b"\xc1\xa4.txt")).write_text("not a photo, with a name in no encoding")
    Path("raw/eval/images/b.jpg").write_text("text")
    clean_raw()
    assert rejected() == [
        ("train", PERSON, "\\xc1\\xa4.txt", "not named like a photo of this person"),
        ("train", PERSON, "mask1.jpg", "is empty"),
        ("train", PERSON, "mask2.jpg", "has 80 x 64 pixels, more than 3072"),
        ("evaluation", "", "b.jpg", "is not a JPEG or PNG"),
    ]
    evaluation = pd.read_csv("out/evaluation.csv", keep_default_na=False)
    assert evaluation["rejected"].to_list() == ["is not a JPEG or PNG", ""]
    assert counts() == {
        "people": 3, "photos": 19, "corrected": 0, "dropped": 0, "rejected": 2, "truncated": 0,
        "not_a_photo": 1, "evaluation_photos": 2, "evaluation_rejected": 1,
    }  # fmt: skip


def test_a_photo_without_its_end_mark_is_used_and_counted(clean_raw: Clean) -> None:
    photo = FOLDER / "mask1.jpg"
    photo.write_bytes(photo.read_bytes()[:-2])
    clean_raw()
    assert (counts()["truncated"], counts()["rejected"]) == (1, 0)


def test_a_photo_that_cannot_be_read_stops_the_stage_and_is_not_rejected() -> None:
    with pytest.raises(UserError, match=r"/proc/self/mem cannot be opened \(Input/output error\)"):
        clean.decode("/proc/self/mem", 10**6)
    with pytest.raises(UserError, match=r"nowhere.jpg was removed"):
        clean.decode("nowhere.jpg", 10**6)


def test_too_many_unusable_photos_are_an_error(clean_raw: Clean) -> None:
    clean_raw()
    before = Path("out/photos.csv").read_bytes()
    (FOLDER / "mask1.jpg").write_bytes(b"")
    error = clean_raw(code=1)
    assert "1 of 21 photos of the training set cannot be used" in error
    assert (
        f"such as {FOLDER}/mask1.jpg is empty: replace them, or raise clean.max_rejected" in error
    )
    assert Path("out/photos.csv").read_bytes() == before


def test_a_data_set_without_evaluation_photos_is_accepted(clean_raw: Clean) -> None:
    Path("raw/eval/info.csv").write_text("ImageID,ans\n")
    clean_raw()
    assert counts()["evaluation_photos"] == 0


def test_photos_of_all_modes_are_accepted(clean_raw: Clean) -> None:
    Image.new("RGBA", (48, 64), (200, 100, 50, 128)).save(FOLDER / "mask1.png")
    (FOLDER / "mask1.jpg").unlink()
    Image.new("CMYK", (48, 64)).save(FOLDER / "mask2.jpg")
    clean_raw()
    assert counts()["rejected"] == 0


def test_an_error_in_the_data_is_one_line_and_writes_nothing(clean_raw: Clean) -> None:
    table = Path("raw/train/train.csv")
    table.write_text(table.read_text().replace(",female,", ",woman,"))
    error = clean_raw(code=1)
    assert error.startswith("error: raw/train/train.csv, row 2: gender 'woman' is unknown")
    assert len(error.splitlines()) == 1
    assert not Path("out").exists()


def test_a_failed_write_keeps_the_earlier_tables(clean_raw: Clean) -> None:
    clean_raw()
    before = Path("out/photos.csv").read_bytes()
    correct(f"{PERSON},,age,25,61,x")
    command = "-m stages.clean raw/train raw/eval raw/corrections.csv out"
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; exec {sys.executable} {command}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 1
    assert "out/photos.csv" in limited.stderr
    assert "larger than this system allows" in limited.stderr
    assert len(limited.stderr.splitlines()) == 1
    assert Path("out/photos.csv").read_bytes() == before
    assert not list(Path("out").glob("*.partial"))
