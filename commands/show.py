"""Show the scores of the last run, and where to find more.

python -m commands.show
"""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from face_attributes.command import user_command
from face_attributes.errors import UserError
from face_attributes.scoring.holdout import describe_leads
from face_attributes.scoring.metrics import SCORE_NAMES

OUTPUTS = {
    "reports/report.html": "scores, errors, and what each stage did",
    "reports/review.html": "labels that are probably wrong, to decide on",
    "reports/model_card.md": "what to know before using the networks",
    "metrics.json": "all scores; `python -m commands.compare` compares two runs",
    "data/submission.csv": "labels of the evaluation photos",
}


@user_command
def main(
    metrics: Annotated[Path, typer.Option(help="Scores that the pipeline wrote")] = Path(
        "metrics.json"
    ),
) -> None:
    """Print the scores of the last run, and the files that show more."""
    if not metrics.is_file():
        raise UserError(f"{metrics} is missing: `dvc repro` makes it")
    try:
        scores = json.loads(metrics.read_text(encoding="utf-8"))
    except ValueError:
        scores = None
    if not isinstance(scores, dict) or not {"interval_95", "folds", "calibration"} <= scores.keys():
        raise UserError(f"{metrics} is not the metrics.json of a run: `dvc repro` makes it")
    table = Table(title="Scores on photos that the networks were not trained on")
    others = {part: scores[part] for part in ("holdout", "evaluation") if part in scores}
    for column in ("", "out of fold", "95% interval", *others):
        table.add_column(column, justify="left" if not column else "right")
    for key, name in SCORE_NAMES.items():
        low, high = scores["interval_95"][key].values()
        cells = (f"{part[key]:.3f}" if key in part else "" for part in others.values())
        table.add_row(name, f"{scores[key]:.3f}", f"{low:.3f} to {high:.3f}", *cells)
    console = Console()
    console.print(table)
    console.print(
        f"macro F1 over the folds {scores['folds']['macro_f1_mean']:.3f} "
        f"± {scores['folds']['macro_f1_std']:.3f}; on the photos trained on "
        f"{scores['train']['macro_f1']:.3f}"
    )
    if "holdout" in scores:
        holdout = scores["holdout"]
        low, high = holdout["interval_95"]["macro_f1"].values()
        console.print(
            f"holdout, {holdout['photos']} photos of {holdout['people']} people in no fold: macro "
            f"F1 95% {low:.3f} to {high:.3f}; {describe_leads(holdout['out_of_fold_lead'])}"
        )
    calibration = scores["calibration"]
    console.print(
        f"expected calibration error {calibration['expected_calibration_error_after']:.3f}, before "
        f"calibration {calibration['expected_calibration_error_before']:.3f}"
    )
    for path, contents in OUTPUTS.items():
        console.print(f"  [bold]{path}[/bold]  {contents}", soft_wrap=True)


if __name__ == "__main__":
    main()
