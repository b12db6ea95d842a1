"""Corrections: check, merge and undo rows of corrections.csv, and measure their effect on scores.

python -m commands.corrections check ~/Downloads/corrections.csv
python -m commands.corrections merge mine.csv yours.csv data/corrections.csv
python -m commands.corrections undo 4
python -m commands.corrections effect
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from face_attributes.command import errors_in_one_line
from face_attributes.errors import UserError
from face_attributes.files import write_table, write_whole
from face_attributes.params import read_params
from face_attributes.photos.label_edits import (
    COLUMNS,
    OPTIONAL,
    apply_corrections,
    read_corrections,
)
from face_attributes.photos.raw import list_photos, read_people
from face_attributes.revisions import WORKSPACE
from face_attributes.scoring.metrics import macro_f1
from face_attributes.scoring.paired_differences import (
    compare_scores,
    format_difference,
    remarks,
    shared_photos,
)
from face_attributes.scoring.runs import Run, read_run

TARGET = ["person", "photo", "field"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def original_photos() -> pd.DataFrame:
    """List the photos in data.train with their labels before corrections."""
    train = Path(read_params().data.train)
    photos, _ = list_photos(read_people(train / "train.csv"), train)
    return photos


@app.command()
@errors_in_one_line
def check(file: Annotated[Path, typer.Argument(help="A corrections.csv")]) -> None:
    """Show what FILE would change, and errors in it; write nothing."""
    photos, corrections = original_photos(), read_corrections(file)
    corrected = apply_corrections(photos, corrections, file)
    for row, person, photo, field, old, new, *_ in corrections.itertuples(name=None):
        target = f"{person} {photo}".strip()
        change = f"{field} {old} -> {new}"
        if not new:
            change = "dropped" if field == "drop" else "dropped as a duplicate"
        if corrections.loc[row, "decision"] == "rejected":
            change = f"unchanged ({change} was rejected)"
        print(f"row {row}: {target}: {change}")
    changed = (corrected["origin"] == "corrected").sum()
    print(f"{changed} photos corrected, {len(photos) - len(corrected)} dropped, of {len(photos)}")


def merge_tables(mine: pd.DataFrame, yours: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Merge the corrections of two reviewers; return the rows without conflict and the conflicts.

    Conflicts are different new values for one field, or a value that one accepts and the other
    rejects. Rows that agree become one row with both reviewers.
    """
    both = pd.concat(
        [mine.assign(author="the first"), yours.assign(author="the second")], ignore_index=True
    )
    both["author"] = both["reviewer"].where(both["reviewer"] != "", both["author"])
    both["summary"] = [_summary(row) for _, row in both.iterrows()]
    merged, conflicts = list[dict[Hashable, str]](), list[str]()
    for target, rows in both.groupby(TARGET, sort=False):
        rejected = rows["decision"] == "rejected"
        accepted = rows[~rejected]
        if (
            accepted["summary"].nunique() > 1
            or rows.loc[rejected, "new"].isin(accepted["new"]).any()
        ):
            claims = (rows["summary"] + " by " + rows["author"]).to_list()
            conflicts.append(f"{' '.join(filter(None, map(str, target)))}: {', '.join(claims)}")
            continue
        for _, agreeing in rows.groupby("summary", sort=False):
            reviewers = ", ".join(dict.fromkeys(filter(None, agreeing["reviewer"])))
            merged.append({**agreeing.iloc[0].to_dict(), "reviewer": reviewers})
    return pd.DataFrame(merged, columns=[*COLUMNS, *OPTIONAL]), conflicts


def _summary(row: "pd.Series[str]") -> str:
    change = f"{row['old']} -> {row['new']}" if row["new"] else row["field"]
    return f"{change} rejected" if row["decision"] == "rejected" else change


@app.command()
@errors_in_one_line
def merge(
    mine: Annotated[Path, typer.Argument(help="One reviewer's corrections.csv")],
    yours: Annotated[Path, typer.Argument(help="Another reviewer's corrections.csv")],
    out: Annotated[Path, typer.Argument(help="File to write")],
) -> None:
    """Merge the corrections of two reviewers into OUT; leave out conflicts and list them."""
    merged, conflicts = merge_tables(read_corrections(mine), read_corrections(yours))
    write_table(out, merged)
    for file in (mine, yours):
        header = map(str, pd.read_csv(file, nrows=0))
        if others := [name for name in header if name.strip() not in merged]:
            print(f"{file}: columns left out: {', '.join(others)}")
    for conflict in conflicts:
        print(f"conflict, left out: {conflict}")
    print(f"{out}: {len(merged)} rows; {len(conflicts)} conflicts left out")


@app.command()
@errors_in_one_line
def undo(
    rows: Annotated[
        list[int], typer.Argument(help="Rows as numbered by `check`; both rows of a swap")
    ],
    file: Annotated[Path | None, typer.Option(help="Default: data.corrections")] = None,
) -> None:
    """Remove rows from the corrections."""
    file = file or Path(read_params().data.corrections)
    corrections = read_corrections(file)
    for row in rows:
        if row not in corrections.index:
            known = ", ".join(map(str, corrections.index)) or "none"
            raise UserError(f"{file} has no row {row}; its rows are {known}")
    remaining = corrections.drop(index=rows)
    try:
        apply_corrections(original_photos(), remaining, file)
    except UserError as error:
        numbers = ", ".join(map(str, rows))
        raise UserError(f"row {numbers} is kept; without it, {error}") from None
    lines, ends = file.read_bytes().splitlines(keepends=True), [*corrections.index[1:], None]
    removed = {
        number
        for start, end in zip(corrections.index, ends, strict=True)
        if start in rows
        for number in range(start, end or len(lines) + 1)
    }
    with write_whole(file) as output:
        output.writelines(text for number, text in enumerate(lines, 1) if number not in removed)
    for row in rows:
        cells = " ".join(corrections.loc[[row], COLUMNS[:5]].iloc[0])
        print(f"{file}: row {row} removed ({cells})")


def effect_table(before: Run, after: Run) -> Table:
    """Compare macro F1 of both runs, once on the labels before and once on the labels after.

    Each row of the table scores both runs on the same labels, so that corrections cannot gain by
    changing the labels they are scored on.

    Raises:
        UserError: if the runs have different classes.
    """
    if before.classes != after.classes:
        raise UserError(
            f"{after.name} has other age groups than {before.name}: use `python -m "
            "commands.compare` for mask and gender"
        )
    resamples = read_params().aggregate.bootstrap
    first, second = shared_photos([before.predictions, after.predictions])
    table = Table(title=f"Macro F1 of {len(first)} photos in both runs")
    for column in ("scored on", "trained before", "trained after", "difference (95%)"):
        table.add_column(column)
    for when, run in (("before", first), ("after", second)):
        labels, scores = run["label"].to_numpy(), {"macro F1": macro_f1}
        row = compare_scores(first, second, labels, scores, resamples).iloc[0]
        difference = format_difference(row["difference"], row["low"], row["high"])
        table.add_row(f"labels {when}", f"{row['before']:.3f}", f"{row['after']:.3f}", difference)
    return table


@app.command()
@errors_in_one_line
def effect(
    before: Annotated[str, typer.Argument(help="Commit without the corrections")] = "HEAD",
    after: Annotated[str, typer.Argument(help="Commit with the corrections")] = WORKSPACE,
) -> None:
    """Compare scores BEFORE and AFTER corrections, each time on the same labels."""
    runs = read_run(before), read_run(after)
    console = Console()
    table = effect_table(*runs)
    for line in remarks(*runs):
        console.print(f"note: {line}")
    if any(run.holdout is not None for run in runs):
        console.print("note: without the holdout, which `python -m commands.compare` shows")
    console.print(table)


if __name__ == "__main__":
    app()
