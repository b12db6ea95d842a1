"""The commands that check, merge and undo corrections, and measure their effect on scores."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from commands import corrections
from face_attributes.photos.label_edits import COLUMNS, OPTIONAL
from face_attributes.photos.labels import class_names
from face_attributes.photos.tables import HOLDOUT, probability_table
from face_attributes.scoring.runs import Run
from tests.conftest import Change, git, save_run, start_repository

FEMALE, YOUNG, OLD = "000001_female_Any_25", "000001_male_Any_30", "3_male_Any_60"
HEADER = "person,photo,field,old,new,reason,reviewer,decision,score\n"

Command = Callable[..., str]


@pytest.fixture
def command(raw: Path, change: Change) -> Command:
    """Run `python -m commands.corrections ...` on the people of `raw`; return what it prints."""
    change("data.train", str(raw / "train"))
    change("data.corrections", "corrections.csv")

    def run_command(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(corrections.app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output + str(result.exception)
        return result.stdout if code == 0 else result.stderr

    return run_command


def write(path: str, *rows: str, header: str = HEADER) -> None:
    Path(path).write_text(header + "".join(row + "\n" for row in rows))


def test_check_shows_all_changes_and_writes_nothing(command: Command) -> None:
    write(
        "c.csv",
        f"{YOUNG},,gender,male,female,seen,me,accepted,0.9",
        f"{OLD},,age,60,25,seen,me,rejected,0.4",
        f"{FEMALE},mask1.jpg,drop,,,blurred,,,",
    )
    before = sorted(Path.cwd().rglob("*"))
    assert command("check", "c.csv").splitlines() == [
        f"row 2: {YOUNG}: gender male -> female",
        f"row 3: {OLD}: unchanged (age 60 -> 25 was rejected)",
        f"row 4: {FEMALE} mask1.jpg: dropped",
        "7 photos corrected, 1 dropped, of 21",
    ]
    assert sorted(Path.cwd().rglob("*")) == before


def test_check_reports_every_wrong_row(command: Command) -> None:
    write("c.csv", "nobody,,gender,male,female,,,,", f"{YOUNG},,gender,female,male,,,,")
    lines = command("check", "c.csv", code=1).splitlines()
    assert lines[0] == "error: c.csv, row 2: there is no person 'nobody': correct or remove the row"
    assert lines[1].startswith("c.csv, row 3: old is 'female', but")


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


def test_merge_keeps_the_rows_of_one_file(command: Command) -> None:
    """Several claims on one field: rejected ones are kept, accepted ones are a conflict."""
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


def test_undo_removes_a_row_and_keeps_the_others(command: Command) -> None:
    write(
        "corrections.csv",
        f"{YOUNG},,gender,male,female,seen,me,accepted,0.9",
        f"{OLD},,age,60,25,seen,me,accepted,0.5",
    )
    assert f"row 2 removed ({YOUNG}  gender male female)" in command("undo", 2)
    left = pd.read_csv("corrections.csv", dtype=str, keep_default_na=False)
    assert left["person"].to_list() == [OLD]
    assert "corrections.csv has no row 9; its rows are 2" in command("undo", 9, code=1)


def test_undo_leaves_the_rest_of_the_file_as_it_is(command: Command) -> None:
    """Quotes, line endings and columns of one's own: git then shows the removed rows alone."""
    rows = [
        b"person,photo,field,old,new,reason,comment\r\n",
        f'"{YOUNG}",,gender,male,female,"two\r\nlines",a\r\n'.encode(),
        f'"{OLD}",,age,60,25,"seen, twice",b\r\n'.encode(),
    ]
    file = Path("corrections.csv")
    file.write_bytes(b"".join(rows))
    assert f"row 2 removed ({YOUNG}  gender male female)" in command("undo", 2)
    assert file.read_bytes() == rows[0] + rows[2]
    command("undo", 2)
    assert file.read_bytes() == rows[0]


def test_merge_names_the_columns_that_it_leaves_out(command: Command) -> None:
    Path("a.csv").write_text("person,photo,field,old,new,reason,comment,x\n")
    write("b.csv")
    assert "a.csv: columns left out: comment, x\n" in command("merge", "a.csv", "b.csv", "c.csv")


def test_undo_of_half_a_swap_is_an_error(command: Command) -> None:
    write(
        "corrections.csv",
        f"{OLD},normal.jpg,mask,not_worn,incorrect,swapped,me,accepted,0.9",
        f"{OLD},incorrect_mask.jpg,mask,incorrect,not_worn,swapped,me,accepted,0.9",
    )
    before = Path("corrections.csv").read_bytes()
    assert (
        "row 2 is kept; without it, corrections.csv, row 3: incorrect_mask.jpg becomes"
        in command("undo", 2, code=1)
    )
    assert Path("corrections.csv").read_bytes() == before
    assert len(command("undo", 2, 3).splitlines()) == 2
    assert Path("corrections.csv").read_text() == HEADER


def out_of_fold(label: "np.ndarray[tuple[int], np.dtype[np.int64]]", seed: int) -> pd.DataFrame:
    """Predictions for 60 people with 3 photos, right for 90% of the photos."""
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.random(180) < 0.1, (label + 1) % 18, label)
    people = np.repeat([f"p{number}" for number in range(60)], 3)
    photo = np.tile(["a", "b", "c"], 60)
    return pd.DataFrame(
        {"person": people, "photo": photo, "fold": 0, "label": label, "predicted": predicted}
    )


def test_effect_scores_both_runs_on_the_same_labels(command: Command) -> None:
    wrong = np.arange(180) % 18
    right = wrong.copy()
    right[:9] = (right[:9] + 5) % 18
    before = Run("before", out_of_fold(wrong, 0), [])
    after = Run("after", out_of_fold(right, 0), [])
    table = corrections.effect_table(before, after)
    scored_on, first, second, difference = (list(column.cells) for column in table.columns)
    assert scored_on == ["labels before", "labels after"]
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
    assert "Macro F1 of 180 photos in both runs" in out
    assert "labels before" in out and "labels after" in out
    assert "holdout" not in out
    rows = table[["person", "photo", "fold", "label"]]
    rows = rows.assign(person="h" + rows["person"], fold=HOLDOUT)
    holdout = probability_table(rows, np.eye(18, dtype=np.float32)[rows["label"]])
    save_run(table, holdout=holdout)
    assert "note: without the holdout, which `python -m commands.compare` shows" in command(
        "effect"
    )
    assert "revision 'nowhere' cannot be read" in command("effect", "nowhere", code=1)
    save_run(table, class_names([25, 60]))
    assert "workspace has other age groups than HEAD" in command("effect", code=1)
