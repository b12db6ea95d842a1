"""Clean: labels from folders and tables; what is wrong is named, what cannot be read is counted."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from stages import clean
from tests.conftest import ROOT, Change, Run, save_photo

PERSON = "000001_female_Any_25"
TABLE = Path("raw/train/train.csv")
INFO = Path("raw/eval/info.csv")
FOLDER = Path("raw/train/images") / PERSON

Clean = Callable[..., str]


@pytest.fixture
def clean_raw(raw: Path, run: Run) -> Clean:
    """Run the stage on the small data set; with code=1, give the line of the error."""

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


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def correct(*rows: str) -> None:
    with Path("raw/corrections.csv").open("a") as file:
        file.writelines(row + "\n" for row in rows)


def test_a_row_a_photo_with_its_label(clean_raw: Clean) -> None:
    clean_raw()
    table = photos()
    assert list(table) == [
        "person", "photo", "path", "mask", "gender", "age", "race", "origin", "label",
        "given_label",
    ]  # fmt: skip
    assert len(table) == 21
    of_person = table[table["person"] == PERSON].set_index("photo")
    assert of_person["label"].to_dict() == {
        **{f"mask{number}.jpg": 3 for number in range(1, 6)},
        "incorrect_mask.jpg": 9,
        "normal.jpg": 15,
    }
    assert table.groupby("person")["label"].max().to_list() == [15, 13, 14]
    assert all(Path(path).is_file() for path in table["path"])
    assert set(table["origin"]) == {"given"}


def test_two_people_may_have_one_id(clean_raw: Clean) -> None:
    clean_raw()
    assert photos()["person"].nunique() == 3


def test_evaluation_photos_keep_the_order_of_info_csv(clean_raw: Clean) -> None:
    clean_raw()
    assert pd.read_csv("out/evaluation.csv")["photo"].to_list() == ["b.jpg", "a.jpg"]


def test_age_edges_are_a_knob(clean_raw: Clean, change: Change) -> None:
    change("labels.age_edges", [20, 30])
    clean_raw()
    assert photos().groupby("person")["label"].min().to_list() == [4, 2, 2]


def test_ages_may_be_written_as_pandas_writes_whole_numbers(clean_raw: Clean) -> None:
    TABLE.write_text(TABLE.read_text().replace(",25,", ",25.0,"))
    clean_raw()
    assert photos()["age"].dtype == int
    assert photos()["age"].iloc[0] == 25


def test_hidden_files_are_never_photos(clean_raw: Clean) -> None:
    for name in ("._mask1.jpg", ".DS_Store", ".mask1.png"):
        (FOLDER / name).write_bytes(b"junk")
    (FOLDER.parent / f"._{PERSON}").write_bytes(b"junk")
    clean_raw()
    assert len(photos()) == 21
    assert rejected() == []


@pytest.mark.parametrize("name", ["mask1.JPG", "mask1.jpeg", "Mask1.Png"])
def test_endings_and_case_do_not_matter(clean_raw: Clean, name: str) -> None:
    (FOLDER / "mask1.jpg").rename(FOLDER / name)
    clean_raw()
    assert name in photos()["photo"].to_list()


def test_a_name_in_no_encoding_is_listed_all_the_same(clean_raw: Clean) -> None:
    (FOLDER / os.fsdecode(b"\xc1\xa4.txt")).write_text("hello")
    clean_raw()
    assert [photo for _, _, photo, _ in rejected()] == ["\\udcc1\\udca4.txt"]


def test_what_is_no_photo_and_who_has_no_row_is_listed(clean_raw: Clean) -> None:
    (FOLDER / "notes.txt").write_text("hello")
    (FOLDER.parent / "nobody").mkdir()
    clean_raw()
    assert rejected() == [
        ("train", PERSON, "notes.txt", "not one of the seven photos"),
        ("train", "nobody", "", "no row in train.csv"),
    ]


def test_unreadable_photos_are_rejected_and_counted(clean_raw: Clean, change: Change) -> None:
    change("clean.max_rejected", 0.5)
    (FOLDER / "mask1.jpg").write_bytes(b"")
    Path("raw/eval/images/b.jpg").write_text("no photo")
    clean_raw()
    assert (counts()["photos"], counts()["rejected"], counts()["evaluation_rejected"]) == (20, 1, 1)
    assert rejected() == [
        ("train", PERSON, "mask1.jpg", "is empty"),
        ("evaluation", "", "b.jpg", "is no JPEG or PNG"),
    ]
    evaluation = pd.read_csv("out/evaluation.csv", keep_default_na=False)
    assert evaluation["rejected"].to_list() == ["is no JPEG or PNG", ""]


def test_too_many_unreadable_photos_stop_the_run(clean_raw: Clean) -> None:
    clean_raw()
    before = Path("out/photos.csv").read_bytes()
    (FOLDER / "mask1.jpg").write_bytes(b"")
    error = clean_raw(code=1)
    assert "1 of 21 photos of the training set cannot be used" in error
    assert f"{FOLDER}/mask1.jpg is empty" in error
    assert Path("out/photos.csv").read_bytes() == before


def test_a_bomb_is_rejected_by_its_size(clean_raw: Clean, change: Change) -> None:
    change("clean.max_rejected", 0.5)
    change("clean.max_pixels", 48 * 64)
    save_photo(FOLDER / "mask1.jpg", size=(80, 64))
    clean_raw()
    assert rejected() == [("train", PERSON, "mask1.jpg", "has 80 x 64 pixels, more than 3072")]


# What a user can get wrong: one line, that says what and where.


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "id,gender",
            "id,sex",
            "train.csv has no column 'gender'; it has id, sex, race, age, path",
        ),
        (",female,", ",woman,", "row 2: gender 'woman' is not known: write male or female"),
        (",25,", ",young,", "row 2: age 'young' is not a whole number of years from 0 to 120"),
        (",25,", ",121,", "row 2: age '121' is not"),
        (",25,", ",-1,", "row 2: age '-1' is not"),
        (",25,", ",25.5,", "row 2: age '25.5' is not"),
        (
            ",3_male",
            ",000001_male",
            "row 4: there is no folder raw/train/images/000001_male_Any_60",
        ),
        (",3_male_Any_60", ",000001_male_Any_30", "row 4: path '000001_male_Any_30' is already"),
        (",3_male_Any_60", ",../images/3_male_Any_60", "row 4: '../images/3_male_Any_60' must be"),
        (
            ",3_male_Any_60",
            ",3;male",
            "row 4: '3;male' must be the plain, visible name of something",
        ),
        (",3_male_Any_60", ",/etc", "row 4: '/etc' must be the plain, visible name"),
        (",3_male_Any_60", ",", "row 4: '' must be the plain, visible name"),
        (",3_male_Any_60", ",.hidden", "row 4: '.hidden' must be"),
        (",3_male_Any_60", f",{'x' * 300}", "must be the plain, visible name"),
        (",60,", f",{'9' * 5000},", "is not a whole number of years from 0 to 120"),
        (",60,", ",٦٠,", "row 4: age '٦٠' is not a whole number"),
        (",3_male_Any_60", ",3_male_Any_60,more", "row 4: it has more cells than the header"),
        (",race,", ",path ,", "train.csv has more than one column 'path'"),
    ],
)
def test_a_wrong_row_of_train_csv_is_named(
    clean_raw: Clean, old: str, new: str, expected: str
) -> None:
    edit(TABLE, old, new)
    error = clean_raw(code=1)
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not Path("out").exists()


def test_rows_are_counted_as_an_editor_counts_lines(clean_raw: Clean) -> None:
    edit(TABLE, "000001,female,Any", '000001,female,"Any\nthing"')
    edit(TABLE, "3,male,", "\n3,man,")
    assert "row 6: gender 'man' is not known" in clean_raw(code=1)


def test_a_missing_or_empty_train_csv_is_named(clean_raw: Clean) -> None:
    TABLE.write_text("id,gender,race,age,path\n")
    assert "raw/train/train.csv has no row below its header" in clean_raw(code=1)
    TABLE.write_text("")
    assert "raw/train/train.csv is empty" in clean_raw(code=1)
    TABLE.write_bytes("id,gender,race,age,path\n1,männlich,x,1,y".encode("utf-16"))
    assert "raw/train/train.csv is not in UTF-8" in clean_raw(code=1)
    TABLE.unlink()
    assert "raw/train/train.csv is missing" in clean_raw(code=1)
    TABLE.mkdir()
    assert "raw/train/train.csv is no file" in clean_raw(code=1)


def test_a_spreadsheets_train_csv_is_fine(clean_raw: Clean) -> None:
    TABLE.write_bytes(
        b"\xef\xbb\xbf" + TABLE.read_text().replace("\n", ",,\r\n").encode() + b"\r\n"
    )
    clean_raw()
    assert len(photos()) == 21


def test_a_missing_or_doubled_photo_is_named(clean_raw: Clean) -> None:
    save_photo(FOLDER / "mask1.png")
    assert f"{FOLDER} has mask1.jpg and mask1.png: a person has one mask1" in clean_raw(code=1)
    (FOLDER / "mask1.png").unlink()
    (FOLDER / "mask1.jpg").unlink()
    assert f"{FOLDER} has no mask1 (with .jpg, .jpeg, .png)" in clean_raw(code=1)


def test_links_are_refused(clean_raw: Clean, tmp_path: Path) -> None:
    (FOLDER / "mask1.jpg").rename(tmp_path / "elsewhere.jpg")
    (FOLDER / "mask1.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    assert f"{FOLDER}/mask1.jpg is a link: put what it leads to" in clean_raw(code=1)
    (FOLDER / "mask1.jpg").unlink()
    (tmp_path / "elsewhere.jpg").rename(FOLDER / "mask1.jpg")
    FOLDER.rename(tmp_path / "elsewhere")
    for target in (tmp_path / "elsewhere", FOLDER.parent / "3_male_Any_60", FOLDER, tmp_path / "x"):
        FOLDER.unlink(missing_ok=True)
        FOLDER.symlink_to(target)
        assert f"{FOLDER} is a link: put what it leads to" in clean_raw(code=1)
    FOLDER.unlink()
    (tmp_path / "elsewhere").rename(FOLDER)
    (FOLDER / "mask1.jpg").unlink()
    (FOLDER / "mask1.jpg").mkdir()
    assert f"{FOLDER}/mask1.jpg is no file" in clean_raw(code=1)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("a.jpg", "c.jpg", "info.csv, row 3: there is no photo raw/eval/images/c.jpg"),
        ("a.jpg", "b.jpg", "info.csv, row 3: its photo has a row above"),
        ("a.jpg", "../images/a.jpg", "info.csv, row 3: '../images/a.jpg' must be"),
        ("ImageID", "image", "info.csv has no column 'ImageID'"),
    ],
)
def test_a_wrong_row_of_info_csv_is_named(
    clean_raw: Clean, old: str, new: str, expected: str
) -> None:
    edit(INFO, old, new)
    assert expected in clean_raw(code=1)


def test_no_evaluation_photos_are_fine(clean_raw: Clean) -> None:
    INFO.write_text("ImageID,ans\n")
    clean_raw()
    assert counts()["evaluation_photos"] == 0


# Corrections


def test_corrections_change_a_person_or_a_photo_and_say_so(clean_raw: Clean) -> None:
    before = {path: path.read_bytes() for path in FOLDER.iterdir()}
    correct(f"{PERSON},,gender,female,male,seen", f"{PERSON},,age,25,61,seen")
    correct("3_male_Any_60,mask2.jpg,drop,,,blurred")
    clean_raw()
    table = photos().set_index("person")
    assert table.loc[PERSON, "label"].to_list() == [2, 2, 2, 2, 2, 8, 14]
    assert set(table.loc[PERSON, "origin"]) == {"corrected"}
    assert "mask2.jpg" not in table.loc["3_male_Any_60", "photo"].to_list()
    assert (counts()["corrected"], counts()["dropped"]) == (7, 1)
    assert {path: path.read_bytes() for path in FOLDER.iterdir()} == before


def test_two_rows_swap_two_photos(clean_raw: Clean) -> None:
    correct(
        f"{PERSON},normal.jpg,mask,not_worn,incorrect,swapped",
        f"{PERSON},incorrect_mask.jpg,mask,incorrect,not_worn,swapped",
    )
    clean_raw()
    of_person = photos()[photos()["person"] == PERSON].set_index("photo")["label"]
    assert (of_person["normal.jpg"], of_person["incorrect_mask.jpg"]) == (9, 15)


def test_a_comma_in_a_reason_is_named_where_it_is_not_quoted(clean_raw: Clean) -> None:
    correct(f"{PERSON},mask1.jpg,drop,,,blurred, twice")
    assert "corrections.csv, row 2: it has more cells than the header" in clean_raw(code=1)


def test_dropping_everybody_is_said(clean_raw: Clean) -> None:
    people = sorted(path.name for path in FOLDER.parent.iterdir())
    correct(*(f"{person},,drop,,,x" for person in people))
    assert "no photo of raw/train is left" in clean_raw(code=1)


def test_a_dropped_person_is_gone(clean_raw: Clean) -> None:
    correct(f"{PERSON},,drop,,,no face")
    clean_raw()
    assert PERSON not in photos()["person"].to_list()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("nobody,,gender,male,female,x", "row 2: there is no person 'nobody'"),
        (f"{PERSON},mask9.jpg,gender,female,male,x", "row 2: 000001_female_Any_25 has no photo"),
        (f"{PERSON},,gender,male,female,x", "row 2: old is 'male', but the data says 'female'"),
        (f"{PERSON},,age,26,62,x", "row 2: old is '26', but the data says '25'"),
        (f"{PERSON},,mask,worn,incorrect,x", "row 2: old is 'worn', but the data says 'incorrect'"),
        (f"{PERSON},,race,a,b,x", "row 2: field 'race' is not one of gender, age, mask, drop"),
        (f"{PERSON},,age,25,old,x", "row 2: new is 'old': write the age in whole years, 0 to 120"),
        (f"{PERSON},,gender,female,Male,x", "row 2: new is 'Male': write one of male, female"),
        (f"{PERSON},,drop,yes,,x", "row 2: old is 'yes': leave old and new empty"),
        (f"{PERSON},,gender,male,male,x", "row 2: old and new are both 'male'"),
    ],
)
def test_a_correction_that_does_not_fit_is_named(clean_raw: Clean, row: str, expected: str) -> None:
    correct(row)
    error = clean_raw(code=1)
    assert error.startswith("error: raw/corrections.csv, ")
    assert expected in error


def test_two_corrections_of_one_thing_are_named(clean_raw: Clean) -> None:
    correct(f"{PERSON},,age,25,61,x", f"{PERSON},mask1.jpg,age,25,62,x")
    assert "row 3: row 2 already changes the age of" in clean_raw(code=1)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["mask1.jpg,mask,worn,not_worn,x"], "row 2: mask1.jpg becomes 'not_worn', and"),
        (["normal.jpg,mask,not_worn,worn,x"], f"{PERSON} has 6 photos of that kind instead of 5"),
        (
            ["normal.jpg,mask,not_worn,incorrect,x", "mask1.jpg,mask,worn,not_worn,x"],
            "row 2: normal.jpg becomes 'incorrect'",
        ),
    ],
)
def test_a_swap_that_would_make_two_of_a_kind_is_named(
    clean_raw: Clean, rows: list[str], expected: str
) -> None:
    correct(*(f"{PERSON},{row}" for row in rows))
    error = clean_raw(code=1)
    assert expected in error
    assert "add the row of the photo it was swapped with, or drop it" in error
    assert len(error.splitlines()) == 1


def test_the_photo_in_whose_place_another_comes_may_be_dropped(clean_raw: Clean) -> None:
    correct(
        f"{PERSON},normal.jpg,mask,not_worn,incorrect,x", f"{PERSON},incorrect_mask.jpg,drop,,,x"
    )
    clean_raw()
    of_person = photos()[photos()["person"] == PERSON].set_index("photo")["label"]
    assert of_person["normal.jpg"] == 9
    assert len(of_person) == 6


def test_where_nothing_more_can_be_written_earlier_tables_stay_whole(clean_raw: Clean) -> None:
    clean_raw()
    before = Path("out/photos.csv").read_bytes()
    correct(f"{PERSON},,age,25,61,x")
    command = f"python -m stages.clean {TABLE.parent} {INFO.parent} raw/corrections.csv out"
    limited = subprocess.run(
        ["bash", "-c", f"ulimit -f 1; exec {command}"],
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


def test_photos_of_all_modes_pass(clean_raw: Clean) -> None:
    Image.new("RGBA", (48, 64), (200, 100, 50, 128)).save(FOLDER / "mask1.png")
    (FOLDER / "mask1.jpg").unlink()
    Image.new("CMYK", (48, 64)).save(FOLDER / "mask2.jpg")
    clean_raw()
    assert counts()["rejected"] == 0
