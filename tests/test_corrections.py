"""Checking, merging and undoing corrections, and what they did to the score."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from stages import corrections
from stages.photos.corrections import COLUMNS, OPTIONAL
from stages.photos.labels import class_names
from stages.scoring.comparison import Run
from tests.conftest import Change, git, save_run, start_repository

FEMALE, YOUNG, OLD = "000001_female_Any_25", "000001_male_Any_30", "3_male_Any_60"
HEADER = "person,photo,field,old,new,reason,reviewer,decision,score\n"

Command = Callable[..., str]


@pytest.fixture
def command(raw: Path, change: Change) -> Command:
    """Run `python -m stages.corrections ...` on the people of `raw`; what it prints."""
    change("data.train", str(raw / "train"))
    change("data.corrections", "corrections.csv")

    def run_command(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(corrections.app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output + str(result.exception)
        return result.stdout if code == 0 else result.stderr

    return run_command


def write(path: str, *rows: str, header: str = HEADER) -> None:
    Path(path).write_text(header + "".join(row + "\n" for row in rows))


def test_check_says_what_would_change_and_writes_nothing(command: Command) -> None:
    write(
        "c.csv",
        f"{YOUNG},,gender,male,female,seen,me,accepted,0.9",
        f"{OLD},,age,60,25,seen,me,rejected,0.4",
        f"{FEMALE},mask1.jpg,drop,,,blurred,,,",
    )
    before = sorted(Path.cwd().rglob("*"))
    assert command("check", "c.csv").splitlines() == [
        f"row 2: {YOUNG}: gender male -> female",
        f"row 3: {OLD}: stays (age 60 -> 25 was rejected)",
        f"row 4: {FEMALE} mask1.jpg: dropped",
        "7 photos corrected, 1 dropped, of 21",
    ]
    assert sorted(Path.cwd().rglob("*")) == before


def test_check_names_all_rows_that_are_wrong_at_once(command: Command) -> None:
    write(
        "c.csv",
        "nobody,,gender,male,female,,,,",
        f"{YOUNG},,gender,female,male,,,,",
        f"{OLD},,age,60,25,,,,",
        f"{OLD},mask1.jpg,age,60,26,,,,",
        f"{FEMALE},normal.jpg,mask,not_worn,incorrect,,,,",
    )
    lines = command("check", "c.csv", code=1).splitlines()
    assert [line.split(": ")[-2 if "correct or" in line else 1] for line in lines]
    assert "c.csv, row 2: there is no person 'nobody'" in lines[0]
    assert "c.csv, row 3: old is 'female', but the data says 'male'" in lines[1]
    assert f"c.csv, row 5: row 4 already changes the age of {OLD} mask1.jpg" in lines[2]
    assert "c.csv, row 6: normal.jpg becomes 'incorrect'" in lines[3]
    assert "add the row of the photo it was swapped with, or drop it" in lines[3]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (",gender,male,female,,,maybe,", "row 2: decision is 'maybe': write accepted or rejected"),
        (",gender,male,female,,,,2", "row 2: score is '2': write a number from 0 to 1"),
        (",gender,male,male,,,,", "row 2: old and new are both 'male': take the row out"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(command: Command, cells: str, message: str) -> None:
    write("c.csv", YOUNG + "," + cells)
    assert message in command("check", "c.csv", code=1)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("accepted", "rejected", "row 3: row 2 decides otherwise on the same: keep one of them"),
        ("rejected", "accepted", "row 3: row 2 decides otherwise on the same: keep one of them"),
        ("rejected", "rejected", "row 3: row 2 says the same: keep one of them"),
        ("accepted", "", "row 3: row 2 says the same: keep one of them"),
    ],
)
def test_two_decisions_on_one_claim_are_named(
    command: Command, first: str, second: str, message: str
) -> None:
    write("c.csv", *(f"{YOUNG},,gender,male,female,x,me,{each}," for each in (first, second)))
    assert message in command("check", "c.csv", code=1)


def test_rejections_of_several_claims_are_fine(command: Command) -> None:
    write("c.csv", *(f"{OLD},,age,60,{years},x,me,rejected," for years in (25, 40)))
    assert "0 photos corrected" in command("check", "c.csv")


def test_a_rejection_for_nobody_is_named(command: Command) -> None:
    write("c.csv", "nobody,,gender,male,female,x,me,rejected,")
    assert "row 2: there is no person 'nobody'" in command("check", "c.csv", code=1)


def test_a_file_as_a_spreadsheet_saves_it_is_fine(command: Command) -> None:
    Path("c.csv").write_bytes(
        b"\xef\xbb\xbfreason,old,new,field,photo,person\r\n"
        + f'"hat, ""fair"" hair" ,male , female,gender,,{YOUNG} \r\n'.encode()
    )
    assert f"row 2: {YOUNG}: gender male -> female" in command("check", "c.csv")


@pytest.mark.parametrize("below", [f"{OLD},,age,60,25,young,,,", f'{OLD},,age,60,25,"young",,,'])
def test_a_quote_that_is_not_closed_does_not_swallow_the_rows_below(
    command: Command, below: str
) -> None:
    write("c.csv", f'{YOUNG},,gender,male,female,"seen,,,', below)
    error = command("check", "c.csv", code=1)
    assert error.startswith("error: c.csv, row 2: ")
    assert error.endswith("put the whole text in double quotes, and double those within it\n")


def test_a_quote_within_a_text_is_text(command: Command) -> None:
    write("c.csv", f'{YOUNG},,gender,male,female,6" hat,,,', f"{OLD},,age,60,25,x,,,")
    assert "14 photos corrected" in command("check", "c.csv")


def test_merge_keeps_agreements_and_lists_conflicts(command: Command) -> None:
    write(
        "a.csv",
        f"{YOUNG},,gender,male,female,seen,Ann,accepted,0.9",
        f"{OLD},,age,60,25,young,Ann,accepted,0.5",
        f"{FEMALE},mask1.jpg,drop,,,blurred,Ann,,",
    )
    write(
        "b.csv",
        f"{YOUNG},,gender,male,female,seen,Bob,accepted,0.9",
        f"{OLD},,age,60,25,old enough,Bob,rejected,0.5",
        f"{OLD},,gender,male,female,seen,Bob,accepted,0.6",
    )
    out = command("merge", "a.csv", "b.csv", "merged.csv")
    assert f"conflict, left out: {OLD} age: 60 -> 25 by Ann, 60 -> 25 rejected by Bob" in out
    assert "merged.csv: 3 rows; 1 conflicts left out" in out
    merged = pd.read_csv("merged.csv", dtype=str, keep_default_na=False)
    assert list(merged) == [*COLUMNS, *OPTIONAL]
    assert merged[["person", "field", "reviewer"]].to_numpy().tolist() == [
        [YOUNG, "gender", "Ann, Bob"],
        [FEMALE, "drop", "Ann"],
        [OLD, "gender", "Bob"],
    ]


def test_merge_loses_no_row_of_one_file(command: Command) -> None:
    """Several claims on one thing: rejected ones stand together, accepted ones are a conflict."""
    write("a.csv", f"{YOUNG},,gender,male,female,seen,Ann,accepted,0.9")
    write(
        "b.csv",
        f"{OLD},,age,60,25,no,Bob,rejected,0.5",
        f"{OLD},,age,60,40,no,Bob,rejected,0.5",
        f"{FEMALE},,age,25,40,x,,accepted,",
        f"{FEMALE},,age,25,70,x,,accepted,",
    )
    out = command("merge", "a.csv", "b.csv", "merged.csv")
    assert f"{FEMALE} age: 25 -> 40 by the second, 25 -> 70 by the second" in out
    merged = pd.read_csv("merged.csv", dtype=str, keep_default_na=False)
    assert merged["new"].to_list() == ["female", "25", "40"]
    write("none.csv")
    assert "merged.csv: 0 rows" in command("merge", "none.csv", "none.csv", "merged.csv")


def test_undo_takes_a_row_out_and_keeps_the_others(command: Command) -> None:
    write(
        "corrections.csv",
        f"{YOUNG},,gender,male,female,seen,me,accepted,0.9",
        f"{OLD},,age,60,25,seen,me,accepted,0.5",
    )
    assert f"row 2 is out ({YOUNG}  gender male female)" in command("undo", 2)
    left = pd.read_csv("corrections.csv", dtype=str, keep_default_na=False)
    assert left["person"].to_list() == [OLD]
    assert "corrections.csv has no row 9; its rows are 2" in command("undo", 9, code=1)


def test_undo_of_half_a_swap_is_refused(command: Command) -> None:
    write(
        "corrections.csv",
        f"{OLD},normal.jpg,mask,not_worn,incorrect,swapped,me,accepted,0.9",
        f"{OLD},incorrect_mask.jpg,mask,incorrect,not_worn,swapped,me,accepted,0.9",
    )
    before = Path("corrections.csv").read_bytes()
    assert "without row 2, which stays" in command("undo", 2, code=1)
    assert Path("corrections.csv").read_bytes() == before
    assert len(command("undo", 2, 3).splitlines()) == 2
    assert Path("corrections.csv").read_text() == HEADER


def out_of_fold(label: "np.ndarray[tuple[int], np.dtype[np.int64]]", seed: int) -> pd.DataFrame:
    """Predictions for 60 people with 3 photos, right on all but some."""
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.random(180) < 0.1, (label + 1) % 18, label)
    people = np.repeat([f"p{number}" for number in range(60)], 3)
    photo = np.tile(["a", "b", "c"], 60)
    return pd.DataFrame(
        {"person": people, "photo": photo, "fold": 0, "label": label, "predicted": predicted}
    )


def test_effect_judges_both_runs_by_the_same_labels(command: Command) -> None:
    wrong = np.arange(180) % 18
    right = wrong.copy()
    right[:9] = (right[:9] + 5) % 18
    before = Run("before", out_of_fold(wrong, 0), [])
    after = Run("after", out_of_fold(right, 0), [])
    table = corrections.effect_table(before, after)
    judged, first, second, difference = (list(column.cells) for column in table.columns)
    assert judged == ["labels before", "labels after"]
    assert first[0] > second[0] and first[1] < second[1]
    assert difference[0].startswith("-") and difference[1].startswith("+")


def test_effect_reads_a_commit_and_the_workspace(command: Command) -> None:
    start_repository()
    table = out_of_fold(np.arange(180) % 18, 0)
    save_run(table)
    git("commit", "-qm", "before")
    table.loc[:2, "predicted"] = table.loc[:2, "label"]
    save_run(table)
    out = command("effect")
    assert "Macro F1 of 180 photos that both have" in out
    assert "labels before" in out and "labels after" in out
    assert "revision 'nowhere' cannot be read" in command("effect", "nowhere", code=1)
    save_run(table, class_names([25, 60]))
    assert "workspace has other age groups than HEAD" in command("effect", code=1)
