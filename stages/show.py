"""Show: the scores of the last run, and where to look further.

python -m stages.show
"""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.command import stage_command
from stages.errors import UserError
from stages.scoring.metrics import NAMES

LOOK = {
    "reports/report.html": "how good it is, where it is wrong, what it was made from",
    "reports/review.html": "labels that are probably wrong, to decide on",
    "reports/model_card.md": "what to know before the networks are used",
    "metrics.json": "all scores; `python -m stages.compare` sets two runs side by side",
    "data/submission.csv": "labels of the evaluation photos",
}


@stage_command
def main(metrics: Path = Path("metrics.json")) -> None:
    """Print the scores in METRICS."""
    if not metrics.is_file():
        raise UserError(f"{metrics} is missing: `dvc repro` makes it")
    scores = json.loads(metrics.read_text(encoding="utf-8"))
    table = Table(title="Scores on photos of people that the network has not seen")
    for column in ("", "out of fold", "95% interval", "evaluation"):
        table.add_column(column, justify="left" if not column else "right")
    for key, name in NAMES.items():
        low, high = scores["interval_95"][key].values()
        evaluation = scores["evaluation"].get(key)
        shown = "" if evaluation is None else f"{evaluation:.3f}"
        table.add_row(name, f"{scores[key]:.3f}", f"{low:.3f} to {high:.3f}", shown)
    console = Console()
    console.print(table)
    console.print(
        f"macro F1 over the folds {scores['folds']['macro_f1_mean']:.3f} "
        f"± {scores['folds']['macro_f1_std']:.3f}; on the photos trained on "
        f"{scores['train']['macro_f1']:.3f}"
    )
    for what, why in LOOK.items():
        console.print(f"  [bold]{what}[/bold]  {why}", soft_wrap=True)


if __name__ == "__main__":
    main()
