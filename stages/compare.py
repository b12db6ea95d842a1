"""Compare: is a run better than another, or is it chance?

    python -m stages.compare main                 # the workspace against the branch main
    python -m stages.compare main frozen          # the experiment frozen against it
    python -m stages.compare main frozen longer   # several against the first, ranked

`dvc metrics diff` shows a number; this shows whether to believe it.
"""

from collections.abc import Sequence
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

from stages.command import stage_command
from stages.errors import UserError
from stages.files import write_table
from stages.params import AggregateParams, read_params
from stages.photos.labels import Labels
from stages.revisions import WORKSPACE, read_run
from stages.scoring.comparison import (
    Run,
    Score,
    judge,
    lead_by_chance,
    leaks,
    people_who_differ,
    remarks,
    shared_photos,
    signed,
    simultaneous_interval,
    verdict,
    without_age,
)
from stages.scoring.metrics import (
    NAMES,
    SCORES,
    Counts,
    Figures,
    confusion_by_person,
    f1_per_class,
    interval,
    macro_f1,
    resample_people,
)

FIRST = "the first"
LEAK = "leak: no verdict"
BOTH = "both"
STYLES = {"better": "bold green", "worse": "bold red", LEAK: "yellow"}


def scores_of(before: Run, after: Run, labels: Labels) -> dict[str, Score]:
    """What two runs can be compared in: the scores and F1 of each class that is among the labels.

    Where their age groups differ, what these have no part in.
    """
    if before.classes != after.classes:
        return {NAMES[key]: SCORES[key] for key in ("mask_macro_f1", "gender_macro_f1")}
    return {NAMES[key]: SCORES[key] for key in SCORES} | {
        before.classes[label]: partial(f1_of, label=label) for label in np.unique(labels)
    }


def f1_of(counts: Counts, label: int) -> Figures:
    """F1 of one class (...)."""
    return np.asarray(f1_per_class(counts)[..., label])


def compare(before: Run, after: Run, knobs: AggregateParams) -> pd.DataFrame:
    """Two runs, score by score: as `judge` gives it, and whose labels it is by.

    Where labels differ, all scores are there twice: both runs judged by the labels before, and both
    by those after.
    """
    first, second = shared_photos([before.predictions, after.predictions])
    by = {"before": first["label"].to_numpy(), "after": second["label"].to_numpy()}
    if (by["before"] == by["after"]).all():
        by = {BOTH: by["before"]}
    table = pd.concat(
        judge(
            first, second, labels, scores_of(before, after, labels), knobs.bootstrap, knobs.seed
        ).assign(labels=which)
        for which, labels in by.items()
    )
    if leaks(before.predictions) or leaks(after.predictions):
        table["verdict"] = LEAK
    return table


def rank(runs: Sequence[Run], knobs: AggregateParams) -> tuple[pd.DataFrame, float]:
    """Runs by macro F1, each against the first; how far chance alone would put the best ahead.

    Returns:
        run, macro_f1, low, high, difference, difference_low, difference_high, verdict, photos,
        people: the best first, those that leak last. The intervals of the differences hold for all
        at once. And the lead of the best of those that do not leak.
    """
    tables = shared_photos([run.predictions for run in runs])
    labels, people = tables[0]["label"].to_numpy(), tables[0]["person"].to_numpy(str)
    counts = [confusion_by_person(labels, run["predicted"].to_numpy(), people) for run in tables]
    score = np.array([float(macro_f1(run.sum(axis=0))) for run in counts])
    resampled = macro_f1(resample_people(np.stack(counts, axis=1), knobs.bootstrap, knobs.seed))
    low, high = interval(resampled)
    least, most = simultaneous_interval(resampled - resampled[:, :1])
    leaked = np.array([leaks(run.predictions) > 0 for run in runs])
    words = [
        LEAK if leaked[place] or leaked[0]
        else verdict(least[place], most[place], int(people_who_differ(macro_f1, counts[0], run)))
        for place, run in enumerate(counts)
    ]  # fmt: skip
    table = pd.DataFrame(
        {
            "run": [run.name for run in runs],
            "macro_f1": score,
            "low": low,
            "high": high,
            "difference": score - score[0],
            "difference_low": least,
            "difference_high": most,
            "verdict": [FIRST, *words[1:]],
            "photos": len(labels),
            "people": len(counts[0]),
        }
    )
    lead = 0.0 if leaked.all() else lead_by_chance(resampled[:, ~leaked])
    return table.iloc[np.lexsort((-score, leaked))], lead


def pair_table(before: Run, after: Run, rows: pd.DataFrame) -> Table:
    """`compare`'s rows for one set of labels, as they are printed."""
    shown = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, title_justify="left")
    names = f"{before.name} (before) and {after.name} (after)"
    shown.title = f"\n{escape(names)}: {counted(rows)}"
    if (rows["labels"] != BOTH).any():
        shown.title += f"\njudged by the labels {rows['labels'].iloc[0]}"
    shown.add_column("")
    for column in ("before", "after", "difference (95%)"):
        shown.add_column(column, justify="right")
    shown.add_column("after is")
    above = ""
    for _, row in rows.iterrows():
        name = row["score"]
        if name in before.classes:
            mask, _, name = name.partition(", ")
            if mask != above:
                shown.add_section()
                shown.add_row(f"F1, mask {mask}")
            above = mask
        difference = signed(row["difference"], row["low"], row["high"])
        scores = (f"{row[run]:.3f}" for run in ("before", "after"))
        shown.add_row(name, *scores, difference, styled(row["verdict"]))
    return shown


def rank_table(table: pd.DataFrame) -> Table:
    """`rank`'s table as it is printed."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title_justify="left")
    shown.title = f"\n{counted(table)}, judged by the labels of the first"
    shown.add_column("run", overflow="fold")
    for column in ("macro F1 (95%)", "minus the first", "against the first"):
        shown.add_column(column)
    for _, row in table.iterrows():
        score = f"{row['macro_f1']:.3f}\n({row['low']:.3f} to {row['high']:.3f})"
        minus = signed(row["difference"], row["difference_low"], row["difference_high"])
        first = row["verdict"] == FIRST
        shown.add_row(
            escape(row["run"]),
            score,
            "" if first else minus.replace(" ", "\n", 1),
            styled(row["verdict"]),
        )
    return shown


def counted(table: pd.DataFrame) -> str:
    """How many photos and people a table is of."""
    return f"{table['photos'].iloc[0]} photos of {table['people'].iloc[0]} people"


def styled(word: str) -> str:
    """A verdict in its colour."""
    return f"[{STYLES[word]}]{word}" if word in STYLES else word


def print_pair(before: Run, after: Run, knobs: AggregateParams) -> pd.DataFrame:
    """Compare two runs and print it; the figures."""
    console = Console()
    if before.classes != after.classes:
        before, after = without_age(before), without_age(after)
    for line in remarks(before, after):
        console.print(f"note: {line}", markup=False)
    table = compare(before, after, knobs)
    for _, rows in table.groupby("labels", sort=False):
        console.print(pair_table(before, after, rows))
    console.print(
        "\nEach interval is for its own row: of 18 equal classes, about one looks better or worse "
        "by chance. What another train.seed would change is not in it."
    )
    return table


def print_ranking(runs: Sequence[Run], knobs: AggregateParams) -> pd.DataFrame:
    """Rank runs and print it; the figures.

    Raises:
        UserError: if their classes are not the same.
    """
    console = Console()
    first, *others = runs
    for run in others:
        if run.classes != first.classes:
            raise UserError(f"{run.name} has other age groups than {first.name}: compare these two")
    for line in dict.fromkeys(line for run in others for line in remarks(first, run)):
        console.print(f"note: {line}", markup=False)
    table, lead = rank(runs, knobs)
    console.print(rank_table(table))
    console.print(
        f"\nThe intervals against the first are widened, to hold for all {len(others)} at once. "
        f"The best of many has luck in its score: if all were equally good, it would be seen "
        f"{lead:.3f} above its true score. Score it on other people (evaluation in metrics.json) "
        "or with another train.seed before you believe it."
    )
    return table


@stage_command
def main(
    revisions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REV]...", help="Default: HEAD", show_default=False),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the figures to this file, too")] = None,
) -> None:
    """Compare runs on the same photos and people, by out-of-fold predictions.

    A REV is a commit, branch, tag, experiment, or `workspace`. Of two, the
    first is before and the second after, and a difference is after minus
    before. A single one is before, and the workspace after.

    Three or more are ranked by macro F1, each against the first, whose choice
    the scores had no part in. The best has luck in its score: others would
    look worse against it than they are. The intervals of the differences hold
    for all at once.

    Intervals are 95%, from a paired bootstrap over people: what other people
    could change. What another train.seed would change comes on top.
    """
    knobs = read_params().aggregate
    names = revisions or ["HEAD"]
    runs = [read_run(name) for name in (names if len(names) > 1 else [*names, WORKSPACE])]
    table = print_pair(runs[0], runs[1], knobs) if len(runs) == 2 else print_ranking(runs, knobs)
    if csv is not None:
        write_table(csv, table, float_format="%.6f")


if __name__ == "__main__":
    main()
