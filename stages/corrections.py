"""Corrections: check, merge and undo rows of corrections.csv, and see what they did to the score.

python -m stages.corrections check ~/Downloads/corrections.csv
python -m stages.corrections merge mine.csv yours.csv data/corrections.csv
python -m stages.corrections undo 4
python -m stages.corrections effect
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from stages.command import errors_in_one_line
from stages.errors import UserError
from stages.files import write_table
from stages.params import read_params
from stages.photos.corrections import COLUMNS, OPTIONAL, apply_corrections, read_corrections
from stages.photos.raw import list_photos, read_people
from stages.revisions import WORKSPACE, read_run
from stages.scoring.comparison import Run, judge, remarks, shared_photos, signed
from stages.scoring.metrics import macro_f1

PLACE = ["person", "photo", "field"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def given_photos() -> pd.DataFrame:
    """The photos that data.train names, with their labels as they came."""
    train = Path(read_params().data.train)
    photos, _ = list_photos(read_people(train / "train.csv"), train)
    return photos


@app.command()
@errors_in_one_line
def check(file: Annotated[Path, typer.Argument(help="A corrections.csv")]) -> None:
    """Say what FILE would change, and what matches nothing; nothing is written."""
    photos, corrections = given_photos(), read_corrections(file)
    corrected = apply_corrections(photos, corrections, file)
    for row, person, photo, field, old, new, *_ in corrections.itertuples(name=None):
        who = f"{person} {photo}".strip()
        what = "dropped" if field == "drop" else f"{field} {old} -> {new}"
        if corrections.loc[row, "decision"] == "rejected":
            what = f"stays ({what} was rejected)"
        print(f"row {row}: {who}: {what}")
    changed = (corrected["origin"] == "corrected").sum()
    print(f"{changed} photos corrected, {len(photos) - len(corrected)} dropped, of {len(photos)}")


def merge_tables(mine: pd.DataFrame, yours: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """All rows that two reviewers do not contradict each other in; a line for each contradiction.

    That is: another new value, or one who rejects what the other accepts. Where both say the same,
    both are named as reviewers.
    """
    both = pd.concat(
        [mine.assign(who="the first"), yours.assign(who="the second")], ignore_index=True
    )
    both["who"] = both["reviewer"].where(both["reviewer"] != "", both["who"])
    both["says"] = [_says(row) for _, row in both.iterrows()]
    merged, conflicts = list[dict[Hashable, str]](), list[str]()
    for place, rows in both.groupby(PLACE, sort=False):
        rejected = rows["decision"] == "rejected"
        made = rows[~rejected]
        if made["says"].nunique() > 1 or rows.loc[rejected, "new"].isin(made["new"]).any():
            what = (f"{says} by {who}" for says, who in zip(rows["says"], rows["who"], strict=True))
            conflicts.append(f"{' '.join(filter(None, map(str, place)))}: {', '.join(what)}")
            continue
        for _, same in rows.groupby("says", sort=False):
            names = ", ".join(dict.fromkeys(filter(None, same["reviewer"])))
            merged.append({**same.iloc[0].to_dict(), "reviewer": names})
    return pd.DataFrame(merged, columns=[*COLUMNS, *OPTIONAL]), conflicts


def _says(row: "pd.Series[str]") -> str:
    what = "drop" if row["field"] == "drop" else f"{row['old']} -> {row['new']}"
    return f"{what} rejected" if row["decision"] == "rejected" else what


@app.command()
@errors_in_one_line
def merge(
    mine: Annotated[Path, typer.Argument(help="One reviewer's corrections.csv")],
    yours: Annotated[Path, typer.Argument(help="The other's")],
    out: Annotated[Path, typer.Argument(help="File to write")],
) -> None:
    """Write what two reviewers agree on, and what only one says; list what they contradict."""
    merged, conflicts = merge_tables(read_corrections(mine), read_corrections(yours))
    write_table(out, merged)
    for conflict in conflicts:
        print(f"conflict, left out: {conflict}")
    print(f"{out}: {len(merged)} rows; {len(conflicts)} conflicts left out")


@app.command()
@errors_in_one_line
def undo(
    rows: Annotated[
        list[int], typer.Argument(help="Lines of rows, as `check` prints them; of a swap, both")
    ],
    file: Annotated[Path | None, typer.Option(help="Default: data.corrections")] = None,
) -> None:
    """Take rows out of the corrections."""
    file = file or Path(read_params().data.corrections)
    corrections = read_corrections(file)
    for row in rows:
        if row not in corrections.index:
            there = ", ".join(map(str, corrections.index)) or "none"
            raise UserError(f"{file} has no row {row}; its rows are {there}")
    rest = corrections.drop(index=rows)
    try:
        apply_corrections(given_photos(), rest, file)
    except UserError as error:
        which = f"row {', '.join(map(str, rows))}"
        raise UserError(f"without {which}, which stays: {error}") from None
    write_table(file, rest)
    for row in rows:
        print(f"{file}: row {row} is out ({' '.join(corrections.loc[[row], COLUMNS[:5]].iloc[0])})")


def effect_table(before: Run, after: Run) -> Table:
    """Macro F1 of both runs' predictions, on the labels before and on those after: with intervals.

    Both rows of the table judge both runs by the same labels: corrections cannot look good by
    having changed the exam.

    Raises:
        UserError: if the runs have different classes.
    """
    if before.classes != after.classes:
        raise UserError(
            f"{after.name} has other age groups than {before.name}: `python -m stages.compare` "
            "compares the rest"
        )
    knobs = read_params().aggregate
    first, second = shared_photos([before.predictions, after.predictions])
    table = Table(title=f"Macro F1 of {len(first)} photos that both have")
    for column in ("judged by", "trained before", "trained after", "difference (95%)"):
        table.add_column(column)
    for when, run in (("before", first), ("after", second)):
        labels, scores = run["label"].to_numpy(), {"macro F1": macro_f1}
        row = judge(first, second, labels, scores, knobs.bootstrap, knobs.seed).iloc[0]
        difference = signed(row["difference"], row["low"], row["high"])
        table.add_row(f"labels {when}", f"{row['before']:.3f}", f"{row['after']:.3f}", difference)
    return table


@app.command()
@errors_in_one_line
def effect(
    before: Annotated[str, typer.Argument(help="Commit without the corrections")] = "HEAD",
    after: Annotated[str, typer.Argument(help="Commit with them")] = WORKSPACE,
) -> None:
    """Compare the scores BEFORE and AFTER corrections, on the same labels both ways."""
    runs = read_run(before), read_run(after)
    console = Console()
    table = effect_table(*runs)
    for line in remarks(*runs):
        console.print(f"note: {line}")
    console.print(table)


if __name__ == "__main__":
    app()
