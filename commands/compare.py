"""Compare runs: is one better than another, or is the difference due to chance?

    python -m commands.compare main                 # the workspace with the branch main
    python -m commands.compare main frozen          # the experiment frozen with the branch main
    python -m commands.compare main frozen longer   # several runs with the first, ranked

`dvc metrics diff` shows a difference; this command shows whether it is more than chance.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from face_attributes.command import user_command
from face_attributes.files import write_table
from face_attributes.params import read_params
from face_attributes.photos.labels import Labels
from face_attributes.revisions import WORKSPACE
from face_attributes.scoring.holdout import describe_leads, out_of_fold_leads
from face_attributes.scoring.metrics import (
    SCORE_NAMES,
    SCORES,
    Counts,
    Floats,
    counts_by_person,
    f1_per_class,
)
from face_attributes.scoring.paired_differences import (
    FIRST,
    LEAK,
    Score,
    compare_scores,
    format_difference,
    people_in_two_folds,
    rank_runs,
    remarks,
    shared_photos,
    without_age,
    worth_of_the_best,
)
from face_attributes.scoring.runs import Run, read_run

BOTH = "both"
"""In the column `labels`: the runs have the same labels."""
STYLES = {"better": "bold green", "worse": "bold red", LEAK: "yellow"}


def comparable_scores(before: Run, after: Run, labels: Labels) -> dict[str, Score]:
    """Choose the scores to compare: all of them, and F1 of each class among the labels.

    If the age groups differ, only the scores of mask and gender.
    """
    if before.classes != after.classes:
        return {SCORE_NAMES[key]: SCORES[key] for key in ("mask_macro_f1", "gender_macro_f1")}
    return {SCORE_NAMES[key]: SCORES[key] for key in SCORES} | {
        before.classes[label]: partial(class_f1, label=label) for label in np.unique(labels)
    }


def class_f1(counts: Counts, label: int) -> Floats:
    """F1 of one class (...)."""
    return np.asarray(f1_per_class(counts)[..., label])


def compare_runs(before: Run, after: Run, resamples: int) -> pd.DataFrame:
    """Compare two runs, one row per score: the columns of `compare_scores`, and `labels`.

    If the labels differ, each score has two rows: one with both runs scored against the labels
    before, and one against those after.
    """
    first, second = shared_photos([before.predictions, after.predictions])
    label_sets = {"before": first["label"].to_numpy(), "after": second["label"].to_numpy()}
    if (label_sets["before"] == label_sets["after"]).all():
        label_sets = {BOTH: label_sets["before"]}
    tables = []
    for name, labels in label_sets.items():
        scores = comparable_scores(before, after, labels)
        table = compare_scores(first, second, labels, scores, resamples)
        tables.append(table.assign(labels=name))
    comparison = pd.concat(tables)
    if people_in_two_folds(before.predictions) or people_in_two_folds(after.predictions):
        comparison["verdict"] = LEAK
    return comparison


def compare_holdouts(before: Run, after: Run, resamples: int) -> pd.DataFrame:
    """Compare two runs on their holdout: `compare_runs` without single classes.

    No rows unless both have a holdout, of the same people.
    """
    first, second = before.holdout, after.holdout
    if first is None or second is None or set(first["person"]) != set(second["person"]):
        return pd.DataFrame(columns=["labels"])
    runs = replace(before, predictions=first), replace(after, predictions=second)
    table = compare_runs(*runs, resamples)
    return table[table["score"].isin(SCORE_NAMES.values())]


def holdout_remarks(runs: Sequence[Run], resamples: int) -> list[str]:
    """Whether out-of-fold scores lie above the holdout's, for each run that has one."""
    return [
        f"{run.name}: "
        + describe_leads(
            out_of_fold_leads(
                counts_by_person(run.predictions), counts_by_person(run.holdout), resamples
            )
        )
        for run in runs
        if run.holdout is not None
    ]


def pair_table(before: Run, after: Run, rows: pd.DataFrame) -> Table:
    """Format the rows of `compare_runs` for one set of labels."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title_justify="left")
    names = f"{before.name} (before) and {after.name} (after)"
    table.title = f"\n{escape(names)}: {sample_size(rows)}"
    if (rows["labels"] != BOTH).any():
        table.title += f"\nscored against the labels {rows['labels'].iloc[0]}"
    table.add_column("")
    for column in ("before", "after", "difference (95%)"):
        table.add_column(column, justify="right")
    table.add_column("after is")
    mask_above = ""
    for _, row in rows.iterrows():
        name = row["score"]
        if name in before.classes:
            mask, _, name = name.partition(", ")
            if mask != mask_above:
                table.add_section()
                table.add_row(f"F1, mask {mask}")
            mask_above = mask
        difference = format_difference(row["difference"], row["low"], row["high"])
        scores = (f"{row[run]:.3f}" for run in ("before", "after"))
        table.add_row(name, *scores, difference, styled(row["verdict"]))
    return table


def rank_table(ranking: pd.DataFrame) -> Table:
    """Format a ranking's table."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    table.title = f"\n{sample_size(ranking)}, scored against the labels of the first run"
    table.add_column("run", overflow="fold")
    for column in ("macro F1 (95%)", "minus the first", "against the first"):
        table.add_column(column)
    for _, row in ranking.iterrows():
        score = f"{row['macro_f1']:.3f}\n({row['low']:.3f} to {row['high']:.3f})"
        difference = format_difference(
            row["difference"], row["difference_low"], row["difference_high"]
        )
        is_first = row["verdict"] == FIRST
        table.add_row(
            escape(row["run"]),
            score,
            "" if is_first else difference.replace(" ", "\n", 1),
            styled(row["verdict"]),
        )
    return table


def sample_size(table: pd.DataFrame) -> str:
    """Format the number of photos and people in a table."""
    return f"{table['photos'].iloc[0]} photos of {table['people'].iloc[0]} people"


def styled(verdict: str) -> str:
    """Add the colour of a verdict."""
    return f"[{STYLES[verdict]}]{verdict}" if verdict in STYLES else verdict


def print_pair(before: Run, after: Run, resamples: int) -> pd.DataFrame:
    """Compare two runs, print the comparison, and return its table."""
    console = Console()
    on_the_holdout = holdout_remarks([before, after], resamples)
    if before.classes != after.classes:
        before, after = without_age(before), without_age(after)
    for line in remarks(before, after):
        console.print(f"note: {line}", markup=False)
    table = compare_runs(before, after, resamples)
    for _, rows in table.groupby("labels", sort=False):
        console.print(pair_table(before, after, rows))
    holdout = compare_holdouts(before, after, resamples)
    if len(holdout):
        console.print("\nThe holdout, people in no fold, by the networks of all folds together:")
        for _, rows in holdout.groupby("labels", sort=False):
            console.print(pair_table(before, after, rows))
    elif on_the_holdout:
        console.print(
            "\nNo comparison on the holdout: the two runs do not have the same people in it."
        )
    for line in on_the_holdout:
        console.print(f"\n{line}", markup=False)
    console.print(
        "\nEach interval is for its own row alone: of 18 equal classes, about one looks better or "
        "worse by chance. The intervals do not cover the choice of train.seed."
    )
    return pd.concat([table.assign(part="out of fold"), holdout.assign(part="holdout")])


def print_ranking(runs: Sequence[Run], resamples: int) -> pd.DataFrame:
    """Rank runs, print the ranking, and return its table.

    Raises:
        UserError: if the runs have different classes.
    """
    console = Console()
    first, *others = runs
    for line in dict.fromkeys(line for run in others for line in remarks(first, run)):
        console.print(f"note: {line}", markup=False)
    ranking = rank_runs(runs, resamples)
    console.print(rank_table(ranking.table))
    console.print(
        f"\nThe differences' intervals are widened to hold for all {len(others)} at once. The best "
        f"of many runs is partly lucky. {worth_of_the_best(ranking)} Score the best on other "
        "people (evaluation in metrics.json) or with another train.seed before you trust it.",
        markup=False,
    )
    if any(run.holdout is not None for run in runs):
        console.print(
            "The holdout is not shown here, since a choice would spoil it. To see it, compare the "
            "chosen run with the first."
        )
    return ranking.table


@user_command
def main(
    revisions: Annotated[
        list[str] | None,
        typer.Argument(metavar="REV", help="Default: HEAD", show_default=False),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write the table to this file")] = None,
) -> None:
    """Compare runs on the same photos and people, by their out-of-fold predictions.

    A REV is a commit, branch, tag, experiment, or `workspace`. With two, the
    first is "before" and the second "after", and a difference is after minus
    before. With one, it is "before" and the workspace "after".

    Three or more are ranked by macro F1, each compared with the first. Choose
    the first without looking at scores: the best of many is partly lucky, and
    others would look worse against it than they are. The intervals of the
    differences hold for all runs at once. The best is also scored by nested
    choice: chosen on all folds but one, scored on that one.

    Two runs with the same people in their holdout (folds.holdout) are compared
    on it, too.

    Intervals are 95%, from a paired bootstrap over people. They cover the
    choice of people, not the choice of train.seed.
    """
    resamples = read_params().aggregate.bootstrap
    names = revisions or ["HEAD"]
    runs = [read_run(name) for name in (names if len(names) > 1 else [*names, WORKSPACE])]
    if len(runs) == 2:
        table = print_pair(runs[0], runs[1], resamples)
    else:
        table = print_ranking(runs, resamples)
    if csv is not None:
        write_table(csv, table, float_format="%.6f")


if __name__ == "__main__":
    main()
