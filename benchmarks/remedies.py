"""Remedies against imbalance and overfitting, each against the default, on the photos at hand.

    dvc repro crop folds weights
    python -m benchmarks.remedies results/remedies

Trains all folds of the workspace's data with `train` as params.yaml has it and once more for each
remedy, and prints macro F1 with its interval and the difference to the default, paired by person.
What is in the folder already is not done again, so that a run can be stopped and continued.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.runs import counts_by_person, seconds_of, train_folds
from stages.params import read_params
from stages.photos.tables import PROBABILITIES
from stages.scoring.comparison import paired_difference, signed
from stages.scoring.metrics import (
    Counts,
    accuracy,
    counts_of,
    interval,
    macro_f1,
    resample_people,
)
from stages.scoring.out_of_fold import read_out_of_fold
from stages.scoring.tau import nested

REMEDIES: dict[str, dict[str, Any]] = {
    "default": {},
    "heads joint": {"heads": "joint"},
    "heads split": {"heads": "split"},
    "heads ages, age_softness 3": {"heads": "ages", "age_softness": 3.0},
    "ema 0": {"ema": 0.0},
    "flip_at_test false": {"flip_at_test": False},
    "zoom_at_test 0": {"zoom_at_test": 0.0},
    "zoom_at_test 0.08": {"zoom_at_test": 0.08},
    "head_epochs 0": {"head_epochs": 0},
    "unfreeze_every 1": {"unfreeze_every": 1},
    "lr_decay 0.7": {"lr_decay": 0.7},
    "balanced, strength 0.5": {"sampler": "balanced", "sampler_strength": 0.5},
    "balanced, strength 1": {"sampler": "balanced"},
    "undersampled, strength 0.5": {"sampler": "undersampled", "sampler_strength": 0.5},
    "class_weighted": {"loss": "class_weighted"},
    "effective_number": {"loss": "effective_number"},
    "focal": {"loss": "focal"},
    "logit_adjusted, tau 0.5": {"loss": "logit_adjusted", "tau": 0.5},
    "logit_adjusted, tau 1": {"loss": "logit_adjusted"},
    "ldam": {"loss": "ldam"},
    "mixup": {"mix": "mixup"},
    "cutmix": {"mix": "cutmix"},
    "old_from 58": {"old_from": 58},
    "age_softness 3": {"age_softness": 3.0},
    "age_softness 6": {"age_softness": 6.0},
    "label_smoothing 0": {"label_smoothing": 0.0},
    "stop_on macro_f1": {"stop_on": "macro_f1"},
    "erasing 0.5": {"erasing": 0.5},
    "rotation 10, zoom 0.15": {"rotation": 10.0, "zoom": 0.15},
    "rotation 0, zoom 0": {"rotation": 0.0, "zoom": 0.0},
}

CROP, FOLDS = Path("data/crop"), Path("data/folds/folds.csv")


def score(folder: Path, index: Sequence[int]) -> tuple[Counts, Counts]:
    """Confusion counts by person of the out-of-fold predictions: as they are, and with tau."""
    table = read_out_of_fold(folder, index)
    probabilities, labels = table[PROBABILITIES].to_numpy(), table["label"].to_numpy()
    tuned = nested(probabilities, labels, table["fold"].to_numpy())
    return counts_by_person(table), counts_of(table.assign(predicted=tuned))


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the folds' results")],
    only: Annotated[str, typer.Option(help="Remedies of these names, with ; between them")] = "",
    jobs: Annotated[int, typer.Option(help="Folds trained at a time")] = 2,
) -> None:
    """Compare each remedy with the default on the crops, folds and weights of the workspace."""
    params = read_params()
    knobs, index = params.aggregate, params.folds.index
    wanted = [name for name in REMEDIES if not only or name in ["default", *only.split(";")]]
    table = Table("remedy", "macro F1 (95%)", "accuracy", "against the default (95%)",
                  "with tau tuned", "minutes")  # fmt: skip
    default: Counts | None = None
    for name in wanted:
        folder = out / name.replace(" ", "_").replace(",", "")
        train_folds({"train": REMEDIES[name]}, CROP, FOLDS, index, folder, jobs)
        plain, tuned = score(folder, index)
        default = plain if default is None else default
        low, high = interval(macro_f1(resample_people(plain, knobs.bootstrap, knobs.seed)))
        against = paired_difference(macro_f1, default, plain, knobs.bootstrap, knobs.seed)
        counts = plain.sum(axis=0)
        table.add_row(
            name,
            f"{macro_f1(counts):.3f} ({low:.3f} to {high:.3f})",
            f"{accuracy(counts):.3f}",
            signed(float(against.value), float(against.low), float(against.high)),
            f"{macro_f1(tuned.sum(axis=0)):.3f}",
            f"{seconds_of(folder, index) / 60:.1f}",
        )
        Console(width=130).print(table)


if __name__ == "__main__":
    typer.run(main)
