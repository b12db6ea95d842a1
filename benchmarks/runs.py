"""Training beside the workspace: folders of folds' results, trained once and scored.

What is there already is not done again, so that a run can be stopped and continued, fold by fold.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from stages.photos.tables import PROBABILITIES
from stages.scoring.metrics import Counts, counts_of

ROOT = Path(__file__).parents[1]

Changes = dict[str, dict[str, Any]]
"""Knobs by section of params.yaml."""


def train_folds(
    changes: Changes,
    crop: Path,
    folds: Path,
    held_out: Sequence[int],
    out: Path,
    jobs: int,
) -> None:
    """Train with these changes to params.yaml, a network for each fold held out, into `out`.

    Args:
        crop: folder of the packed crops; `folds` is the table of the same photos.
        jobs: how many folds are trained at a time.
    """
    missing = [fold for fold in held_out if not (out / f"fold{fold}/seconds").exists()]
    if not missing:
        return
    print(f"{out.name}: trains", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    params = YAML(typ="safe").load(Path("params.yaml"))
    for section, knobs in changes.items():
        params[section] |= knobs
    # Files are named from the folder that the command was started in.
    source = params["weights"]["source"]
    if source not in ("none", "imagenet"):
        params["weights"]["source"] = str(Path(source).resolve())
    YAML(typ="safe").dump(params, out / "params.yaml")
    # Features of frozen parts are shared with the folders beside this one, checkpoints are not.
    features, shared = out / ".cache/features", out.parent.resolve() / ".cache/features"
    for folder in (features.parent, shared):
        folder.mkdir(parents=True, exist_ok=True)
    if not features.exists():
        features.symlink_to(shared)
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONPATH": str(ROOT)}

    def stage(*arguments: object) -> None:
        subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=out,
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def train(fold: int) -> None:
        folder = out / f"fold{fold}"
        start = time.perf_counter()
        tables = [crop.resolve(), folds.resolve(), "weights/initial.safetensors"]
        stage("stages.train", fold, *tables, folder.name)
        (folder / "network.safetensors").unlink()
        (folder / "seconds").write_text(f"{time.perf_counter() - start:.1f}")

    stage("stages.weights", Path("data/pretrained").resolve(), "weights")
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, missing))
    (out / "weights/initial.safetensors").unlink()


def seconds_of(out: Path, held_out: Sequence[int]) -> float:
    """How long these folds took, one after the other."""
    return sum(float((out / f"fold{fold}/seconds").read_text()) for fold in held_out)


def counts_by_person(table: pd.DataFrame) -> Counts:
    """Confusion counts by person of out-of-fold predictions: person, label, p0 to p17."""
    return counts_of(table.assign(predicted=table[PROBABILITIES].to_numpy().argmax(axis=1)))
