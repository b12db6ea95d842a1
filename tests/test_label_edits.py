"""Label corrections: what they change, and which rows are errors."""

from pathlib import Path

import pandas as pd
import pytest

from face_attributes.errors import UserError
from face_attributes.photos.label_edits import apply_corrections, read_corrections
from face_attributes.photos.labels import MASK_BY_STEM

ANN, BEN, CEM = "1_female_25", "2_male_60", "3_male_40"
PHOTOS = pd.DataFrame(
    [
        (person, f"{stem}.jpg", mask, gender, age)
        for person, gender, age in [(ANN, "female", 25), (BEN, "male", 60)]
        for stem, mask in MASK_BY_STEM.items()
    ]
    + [
        (CEM, "mask1.jpg", "worn", "male", 40),
        (CEM, "mask2.jpg", "worn", "male", 40),
        (CEM, "normal.jpg", "not_worn", "male", 40),
    ],
    columns=["person", "photo", "mask", "gender", "age"],
)


def correct(path: Path, *rows: str) -> pd.DataFrame:
    """Apply rows of person, photo, field, old, new, decision; return the corrected photos."""
    cells = [row.split(",") for row in rows]
    columns = ["person", "photo", "field", "old", "new", "decision"]
    pd.DataFrame(cells, columns=columns).assign(reason="seen").to_csv(path, index=False)
    return apply_corrections(PHOTOS, read_corrections(path), path)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("c.csv")


def errors(path: Path, *rows: str) -> list[str]:
    with pytest.raises(UserError) as error:
        correct(path, *rows)
    return str(error.value).splitlines()


def test_a_correction_without_a_photo_changes_the_whole_person(path: Path) -> None:
    corrected = correct(path, f"{ANN},,gender,female,male,", f"{ANN},,age,25,61,")
    ann, ben = (corrected[corrected["person"] == person] for person in (ANN, BEN))
    assert set(ann[["gender", "age", "origin"]].itertuples(index=False, name=None)) == {
        ("male", 61, "corrected")
    }
    assert set(ben["origin"]) == {"given"}


def test_a_duplicate_can_only_be_rejected(path: Path) -> None:
    corrected = correct(path, f"{ANN},mask2.jpg,duplicate,,,rejected", f"{ANN},mask2.jpg,drop,,,")
    assert len(corrected) == len(PHOTOS) - 1, "it may be dropped for another reason"
    assert errors(path, f"{ANN},mask2.jpg,duplicate,,,") == [
        "c.csv, row 2: field duplicate needs the decision rejected: write drop to drop the photo"
    ]


def test_dropped_photos_and_people_are_removed(path: Path) -> None:
    corrected = correct(path, f"{ANN},mask2.jpg,drop,,,", f"{BEN},,drop,,,")
    ann = corrected[corrected["person"] != CEM]
    assert ann["photo"].to_list() == [
        "mask1.jpg", "mask3.jpg", "mask4.jpg", "mask5.jpg", "incorrect_mask.jpg", "normal.jpg",
    ]  # fmt: skip


def test_two_rows_swap_the_labels_of_two_photos(path: Path) -> None:
    corrected = correct(
        path,
        f"{ANN},normal.jpg,mask,not_worn,incorrect,",
        f"{ANN},incorrect_mask.jpg,mask,incorrect,not_worn,",
    )
    mask = corrected[corrected["person"] == ANN].set_index("photo")["mask"]
    assert (mask["normal.jpg"], mask["incorrect_mask.jpg"]) == ("incorrect", "not_worn")


def test_the_other_photo_of_a_swap_may_be_dropped(path: Path) -> None:
    corrected = correct(
        path, f"{ANN},normal.jpg,mask,not_worn,incorrect,", f"{ANN},incorrect_mask.jpg,drop,,,"
    )
    assert corrected[corrected["person"] == ANN]["mask"].to_list() == ["worn"] * 5 + ["incorrect"]


def test_rejected_rows_change_nothing(path: Path) -> None:
    rows = [f"{BEN},,age,60,{years},rejected" for years in (25, 40)]
    assert set(correct(path, *rows)["origin"]) == {"given"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("nobody,,gender,male,female,", "there is no person 'nobody': correct or remove the row"),
        ("nobody,,gender,male,female,rejected", "there is no person 'nobody'"),
        (f"{ANN},mask9.jpg,drop,,,", f"{ANN} has no photo 'mask9.jpg': write one of mask1.jpg, "),
        (f"{ANN},,gender,male,female,", "old is 'male', but the gender of"),
        (f"{ANN},,age,26,62,", f"old is '26', but the age of {ANN} mask1.jpg is '25' in the data"),
        (f"{ANN},,mask,worn,incorrect,", "old is 'worn', but the mask of"),
        (f"{ANN},,race,a,b,", "field 'race' is not one of gender, age, mask, drop"),
        (f"{ANN},,age,25,old,", "new is 'old': write the age in whole years, 0 to 120"),
        (f"{ANN},,gender,female,Male,", "new is 'Male': write one of male, female"),
        (f"{ANN},,drop,yes,,", "old is 'yes': leave old and new empty"),
        (f"{ANN},,gender,male,male,", "old and new are both 'male': remove the row"),
        (f"{ANN},,gender,female,male,maybe", "decision is 'maybe': write accepted or rejected"),
    ],
)
def test_an_invalid_row_is_an_error(path: Path, row: str, message: str) -> None:
    (line,) = errors(path, row)
    assert line.startswith(f"c.csv, row 2: {message}")


@pytest.mark.parametrize(("score", "valid"), [("0.5", True), ("1", True), ("2", False)])
def test_a_score_is_a_number_from_0_to_1(path: Path, score: str, valid: bool) -> None:
    path.write_text(
        "person,photo,field,old,new,reason,reviewer,decision,score\n"
        f"{ANN},,gender,female,male,seen,me,accepted,{score}\n"
    )
    if valid:
        assert read_corrections(path)["score"].to_list() == [score]
    else:
        with pytest.raises(UserError, match="row 2: score is '2': write a number from 0 to 1"):
            read_corrections(path)


@pytest.mark.parametrize(
    ("first", "second", "verb"),
    [
        ("accepted", "rejected", "contradicts"),
        ("rejected", "accepted", "contradicts"),
        ("rejected", "rejected", "repeats"),
        ("accepted", "", "repeats"),
    ],
)
def test_two_rows_with_one_claim_are_an_error(
    path: Path, first: str, second: str, verb: str
) -> None:
    rows = [f"{ANN},,gender,female,male,{decision}" for decision in (first, second)]
    assert errors(path, *rows) == [f"c.csv, row 3 {verb} row 2: keep one of them"]


def test_two_rows_that_change_one_field_of_a_photo_are_an_error(path: Path) -> None:
    (line,) = errors(path, f"{ANN},,age,25,61,", f"{ANN},mask1.jpg,age,25,62,")
    assert f"row 3: row 2 already changes the age of {ANN} mask1.jpg: keep one" in line


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["mask1.jpg,mask,worn,not_worn,"], "row 2: mask1.jpg becomes 'not_worn', which gives"),
        (["normal.jpg,mask,not_worn,worn,"], f"gives {ANN} 6 such photos instead of 5: add a row"),
        (
            ["normal.jpg,mask,not_worn,incorrect,", "mask1.jpg,mask,worn,not_worn,"],
            "row 2: normal.jpg becomes 'incorrect'",
        ),
    ],
)
def test_half_a_swap_is_an_error(path: Path, rows: list[str], message: str) -> None:
    (line,) = errors(path, *(f"{ANN},{row}" for row in rows))
    assert message in line


def test_a_single_mask_may_be_corrected_where_a_person_has_other_photos_than_the_usual_seven(
    path: Path,
) -> None:
    corrected = correct(path, f"{CEM},mask2.jpg,mask,worn,not_worn,")
    cem = corrected[corrected["person"] == CEM]
    assert cem["mask"].to_list() == ["worn", "not_worn", "not_worn"]
    assert cem["origin"].to_list() == ["given", "corrected", "given"]


def test_all_errors_are_reported_at_once(path: Path) -> None:
    lines = errors(
        path,
        "nobody,,gender,male,female,",
        f"{ANN},,gender,male,female,",
        f"{BEN},,age,60,25,",
        f"{BEN},mask1.jpg,age,60,26,",
        f"{ANN},normal.jpg,mask,not_worn,incorrect,",
    )
    assert [line.split(":")[0] for line in lines] == [f"c.csv, row {row}" for row in (2, 3, 5, 6)]
