"""The original data: accepted in every harmless variation; errors name row, file and remedy."""

import re
import shutil
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from face_attributes.errors import UserError
from face_attributes.photos.raw import (
    Rejection,
    list_evaluation,
    list_photos,
    read_answers,
    read_people,
)
from tests.conftest import save_photo

PERSON = "000001_female_Any_25"
TRAIN, EVALUATION = Path("raw/train"), Path("raw/eval")
TABLE = TRAIN / "train.csv"
INFO = EVALUATION / "info.csv"
FOLDER = TRAIN / "images" / PERSON


@pytest.fixture(autouse=True)
def folder(raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder with the small data set."""
    monkeypatch.chdir(raw.parent)


def read() -> tuple[pd.DataFrame, list[Rejection]]:
    return list_photos(read_people(TABLE), TRAIN)


def error() -> str:
    """Read the training and evaluation data; return the one line of the error."""
    with pytest.raises(UserError) as raised:
        read(), list_evaluation(EVALUATION)
    assert len(str(raised.value).splitlines()) == 1
    return str(raised.value)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_every_person_has_seven_photos_with_mask_gender_and_age() -> None:
    photos, rejections = read()
    assert list(photos) == ["person", "photo", "path", "mask", "gender", "age", "race"]
    assert photos["person"].value_counts().to_list() == [7, 7, 7]
    assert photos.iloc[6].to_list() == [
        PERSON, "normal.jpg", f"{FOLDER}/normal.jpg", "not_worn", "female", 25, "Any",
    ]  # fmt: skip
    assert rejections == []


def test_race_is_optional_and_ages_may_be_written_as_floats() -> None:
    TABLE.write_text(re.sub(",Any,(..)", r",\1.0", TABLE.read_text()).replace("race,", ""))
    people = read_people(TABLE)
    assert people["race"].to_list() == ["", "", ""]
    assert people["age"].to_list() == [25, 30, 60]


def test_hidden_files_are_ignored() -> None:
    for name in ("._mask1.jpg", ".DS_Store", ".mask1.png"):
        (FOLDER / name).write_bytes(b"junk")
    (FOLDER.parent / f"._{PERSON}").write_bytes(b"junk")
    photos, rejections = read()
    assert len(photos) == 21
    assert rejections == []


@pytest.mark.parametrize("name", ["mask1.JPG", "mask1.jpeg", "Mask1.Png"])
def test_suffixes_and_case_may_vary(name: str) -> None:
    (FOLDER / "mask1.jpg").rename(FOLDER / name)
    assert name in read()[0]["photo"].to_list()


def test_other_files_and_people_without_a_row_are_listed() -> None:
    (FOLDER / "notes.txt").write_text("hello")
    (FOLDER.parent / "nobody").mkdir()
    assert read()[1] == [
        ("train", PERSON, "notes.txt", "not named like a photo of this person"),
        ("train", "nobody", "", "no row in train.csv"),
    ]


def count_photos(number: str) -> None:
    """Add the column `photos`, which is empty for all but the first person."""
    header, first, *others = TABLE.read_text().splitlines()
    rows = [f"{header},photos", f"{first},{number}", *(f"{row}," for row in others)]
    TABLE.write_text("\n".join(rows))


@pytest.mark.parametrize("number", ["4", "4.0"])
def test_a_person_may_have_any_number_of_photos_of_each_mask_state(number: str) -> None:
    for stem in ("mask1", "mask2", "mask3", "mask4", "incorrect_mask"):
        (FOLDER / f"{stem}.jpg").unlink()
    for name in ("normal10.jpg", "normal2.png"):
        save_photo(FOLDER / name)
    count_photos(number)
    photos, rejections = read()
    assert photos["person"].value_counts().to_list() == [7, 7, 4]
    assert photos.iloc[:4][["photo", "mask"]].to_numpy().tolist() == [
        ["mask5.jpg", "worn"],
        ["normal.jpg", "not_worn"],
        ["normal2.png", "not_worn"],
        ["normal10.jpg", "not_worn"],
    ]
    assert rejections == []


def test_another_number_of_photos_than_the_table_says_is_an_error() -> None:
    count_photos("8")
    assert f"{TABLE}, row 2: photos is 8, but {FOLDER} has 7 (mask, mask2," in error()


@pytest.mark.parametrize("number", ["0", "-1", "many", "7.5"])
def test_an_invalid_number_of_photos_is_an_error(number: str) -> None:
    count_photos(number)
    assert f"{TABLE}, row 2: photos {number!r} is not a number: write how many" in error()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",female,", ",woman,", "row 2: gender 'woman' is unknown: write male or female"),
        (",25,", ",young,", "row 2: age 'young' is not a whole number of years from 0 to 120"),
        (",25,", ",121,", "row 2: age '121' is not"),
        (",25,", ",-1,", "row 2: age '-1' is not"),
        (",25,", ",25.5,", "row 2: age '25.5' is not"),
        (",60,", f",{'9' * 5000},", "is not a whole number of years"),
        (",60,", ",٦٠,", "row 4: age '٦٠' is not"),
        (",3_male", ",1_male", "row 4: folder raw/train/images/1_male_Any_60 is missing: add it"),
        (",3_male_Any_60", f",{PERSON}", f"row 4: path '{PERSON}' is already in row 2: keep"),
        (",3_male_Any_60", ",../images/3_male_Any_60", "row 4: '../images/3_male_Any_60' must be"),
        (",3_male", ",3;male", "row 4: '3;male_Any_60' must be a plain, visible name in raw/train"),
        (",3_male_Any_60", ",/etc", "row 4: '/etc' must be"),
        (",3_male_Any_60", ",", "row 4: '' must be"),
        (",3_male_Any_60", ",evaluation", "row 4: a person cannot be called 'evaluation'"),
        (",3_male_Any_60", ",.hidden", "row 4: '.hidden' must be"),
        (",3_male_Any_60", f",{'x' * 300}", "must be a plain, visible name"),
    ],
)
def test_an_invalid_row_of_train_csv_is_an_error(old: str, new: str, message: str) -> None:
    edit(TABLE, old, new)
    assert message in error()


def test_an_empty_train_csv_is_an_error() -> None:
    TABLE.write_text("id,gender,race,age,path\n")
    assert "raw/train/train.csv has no rows below its header" in error()


def test_a_missing_or_duplicate_photo_is_an_error() -> None:
    save_photo(FOLDER / "mask1.png")
    assert f"{FOLDER} has mask1.jpg and mask1.png: a person has one mask1; remove one" in error()
    (FOLDER / "mask1.png").unlink()
    (FOLDER / "mask1.jpg").unlink()
    assert f"{FOLDER} has no mask1 (.jpg, .jpeg, .png): add it, or remove row 2" in error()


def test_a_folder_in_place_of_a_photo_is_an_error() -> None:
    (FOLDER / "mask1.jpg").unlink()
    (FOLDER / "mask1.jpg").mkdir()
    assert f"{FOLDER}/mask1.jpg is not a file" in error()


def test_a_link_to_a_photo_is_an_error(tmp_path: Path) -> None:
    (FOLDER / "mask1.jpg").rename(tmp_path / "outside.jpg")
    (FOLDER / "mask1.jpg").symlink_to(tmp_path / "outside.jpg")
    assert f"{FOLDER}/mask1.jpg is a link: replace it with its target" in error()


@pytest.mark.parametrize("target", ["../../../outside", "3_male_Any_60", PERSON, "nowhere"])
def test_a_link_to_a_folder_is_an_error(target: str, tmp_path: Path) -> None:
    """Outside, another person, the link itself, nothing."""
    FOLDER.rename(tmp_path / "outside")
    FOLDER.symlink_to(target)
    assert f"{FOLDER} is a link: replace it with its target" in error()


@pytest.mark.parametrize("data", [TRAIN, EVALUATION])
def test_a_link_in_place_of_the_folder_images_is_an_error(data: Path, tmp_path: Path) -> None:
    """DVC follows links above it, but not within what a stage depends on."""
    (data / "images").rename(tmp_path / "disk")
    (data / "images").symlink_to(tmp_path / "disk")
    assert error() == (
        f"{data}/images is a link, and DVC does not see what changes behind it: replace it with "
        f"its target, or make {data} or raw the link"
    )
    (data / "images").unlink()
    (tmp_path / "disk").rename(data / "images")
    data.rename(tmp_path / "disk")
    data.symlink_to(tmp_path / "disk")
    assert len(read()[0]) == 21 and len(list_evaluation(EVALUATION)) == 2


def test_links_into_dvcs_cache_are_accepted(tmp_path: Path) -> None:
    """`cache.type symlink` makes them."""
    cached = tmp_path / "cache/files/md5/0c/" / "0123456789abcdef0123456789abcd"
    cached.parent.mkdir(parents=True)
    for photo in (FOLDER / "mask1.jpg", EVALUATION / "images/a.jpg"):
        shutil.copy(photo, cached)
        photo.unlink()
        photo.symlink_to(cached)
    assert len(read()[0]) == 21 and len(list_evaluation(EVALUATION)) == 2


def test_names_may_be_composed_in_the_table_and_decomposed_on_the_disk() -> None:
    """macOS decomposes Hangul syllables, umlauts and accents."""
    composed, decomposed = (
        unicodedata.normalize(form, "000001_female_홍길동 Ä_25") for form in ("NFC", "NFD")
    )
    assert composed != decomposed
    for table_has, disk_has in [(composed, decomposed), (decomposed, composed)]:
        edit(TABLE, PERSON, table_has)
        FOLDER.rename(FOLDER.parent / disk_has)
        photos, rejections = read()
        assert photos["person"][0] == composed
        assert Path(photos["path"][0]).parent.name == disk_has
        assert rejections == []
        edit(TABLE, table_has, PERSON)
        (FOLDER.parent / disk_has).rename(FOLDER)
    edit(INFO, "a.jpg", f"{composed}.jpg")
    (EVALUATION / "images/a.jpg").rename(EVALUATION / f"images/{decomposed}.jpg")
    evaluation = list_evaluation(EVALUATION)
    assert evaluation["photo"].to_list() == ["b.jpg", f"{composed}.jpg"], "as in info.csv"
    assert Path(evaluation["path"][1]).name == f"{decomposed}.jpg"

    Path("answers.csv").write_text(f"ImageID,ans\n{decomposed}.jpg,3\n")
    answers = read_answers(Path("answers.csv"), evaluation["photo"])
    assert answers.to_numpy().tolist() == [[f"{composed}.jpg", 3]], "as in info.csv"

    INFO.write_text(f"ImageID,ans\n{composed}.jpg,0\n{decomposed}.jpg,0\n")
    assert "row 3: " in error() and "is already in a row above" in error()
    INFO.write_text("ImageID,ans\n")
    shutil.copy(EVALUATION / f"images/{decomposed}.jpg", EVALUATION / f"images/{composed}.jpg")
    assert "images has two names that look the same" in error()


def test_a_line_end_in_a_name_is_escaped_or_an_error() -> None:
    (FOLDER / "two\r\nlines,\u2028.txt").touch()
    (FOLDER.parent / "no\rbody").mkdir()
    assert [rejection[1:3] for rejection in read()[1]] == [
        (PERSON, r"two\r\nlines,\u2028.txt"),
        (r"no\rbody", ""),
    ]
    edit(INFO, "a.jpg", '"a\nb.jpg"')
    assert "info.csv, row 3: 'a\\nb.jpg' must be a plain, visible name" in error()


def test_evaluation_photos_are_in_the_order_of_info_csv() -> None:
    assert list_evaluation(EVALUATION)["photo"].to_list() == ["b.jpg", "a.jpg"]
    INFO.write_text("ImageID,ans\n")
    assert list_evaluation(EVALUATION).empty


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("a.jpg", "c.jpg", "info.csv, row 3: photo raw/eval/images/c.jpg is missing: add it"),
        ("a.jpg", "b.jpg", "info.csv, row 3: 'b.jpg' is already in a row above"),
        ("a.jpg", "../images/a.jpg", "info.csv, row 3: '../images/a.jpg' must be"),
        ("ImageID", "image", "info.csv has no column 'ImageID'"),
    ],
)
def test_an_invalid_row_of_info_csv_is_an_error(old: str, new: str, message: str) -> None:
    edit(INFO, old, new)
    assert message in error()
