"""Training against the reference loop: seconds, ratios and memory, as a table and as JSON.

    python -m benchmarks.training data/sample/train --out benchmark.json

Contenders take turns, on the same photos, the same network and the same number of epochs; medians
over the repeats are printed. An epoch is a later one of four, `seconds` is all the work of all
folds, the packing of the crops included, and `wall` the start of the processes as well. A case is
printed and written as soon as it is done, so that a run that is stopped keeps its figures.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from stages.files import write_json
from stages.params import read_params
from stages.photos.labels import encode
from stages.photos.raw import list_photos, read_people
from stages.progress import progress


class Case(NamedTuple):
    """What is trained, and what counts: an epoch, all work, or that and the start of processes."""

    name: str
    side: int
    freeze: str
    epochs: int
    folds: int
    views: int
    counted: Literal["epoch", "seconds", "wall"]

    def options(self) -> list[str]:
        """On the command line of either contender."""
        return [
            "--side", str(self.side), "--epochs", str(self.epochs), "--freeze", self.freeze,
        ]  # fmt: skip


CASES = [
    Case("224 px, nothing frozen, an epoch", 224, "none", 4, 1, 0, "epoch"),
    Case("128 px, layer2, fresh augmentation, an epoch", 128, "layer2", 4, 1, 0, "epoch"),
    Case("128 px, layer3, fresh augmentation, an epoch", 128, "layer3", 4, 1, 0, "epoch"),
    Case("128 px, layer3, 4 views, 10 epochs, 5 folds, all costs", 128, "layer3", 10, 5, 4, "wall"),
    Case("128 px, layer4, 4 views, 10 epochs, 5 folds", 128, "layer4", 10, 5, 4, "seconds"),
    Case("128 px, layer4, 1 view, 10 epochs, 5 folds", 128, "layer4", 10, 5, 1, "seconds"),
]


def list_people(train: Path) -> pd.DataFrame:
    """Photos of a folder in the competition's layout: person, path, label, fold (of five)."""
    photos, _ = list_photos(read_people(train / "train.csv"), train)
    edges = read_params().labels.age_edges
    photos["label"] = [
        encode(mask, gender, age, edges)
        for mask, gender, age in photos[["mask", "gender", "age"]].itertuples(index=False)
    ]
    photos["fold"] = photos.groupby("person", sort=False).ngroup() % 5
    return photos[["person", "path", "label", "fold"]]


def run(contender: str, case: Case, photos: pd.DataFrame) -> dict[str, float]:
    """All folds of a case, a process each: seconds, wall (seconds) and peak_mb."""
    total = {"epoch": 0.0, "seconds": 0.0, "wall": 0.0, "peak_mb": 0.0}
    views = ["--views", str(case.views)] if contender == "ours" else []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "photos.csv"
        photos.to_csv(table, index=False)
        for fold in range(case.folds):
            start = time.perf_counter()
            output = subprocess.run(
                [sys.executable, "-m", f"benchmarks.{contender}", str(table), str(fold)]
                + case.options()
                + views,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            ).stdout
            result = json.loads(output.splitlines()[-1])
            total["wall"] += time.perf_counter() - start
            total["seconds"] += result["seconds"]
            total["epoch"] += result["epoch"]
            total["peak_mb"] = max(total["peak_mb"], result["peak_mb"])
    return total


def compare(case: Case, photos: pd.DataFrame, repeats: int) -> dict[str, Any]:
    """Medians of both contenders, taking turns, and the ratio of what counts in this case."""
    runs: dict[str, list[dict[str, float]]] = {"reference": [], "ours": []}
    for _ in range(repeats):
        for contender, results in runs.items():
            results.append(run(contender, case, photos))
    medians = {
        contender: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for contender, results in runs.items()
    }
    ratio = medians["reference"][case.counted] / medians["ours"][case.counted]
    named = {"case": case.name, "photos": len(photos), "counted": case.counted}
    return {**named, "ratio": ratio, **medians}


def cells(figure: dict[str, Any]) -> list[str]:
    """A row of the table: case, photos, reference, ours, ratio, peak MB."""
    reference, ours = figure["reference"], figure["ours"]
    return [
        figure["case"],
        str(figure["photos"]),
        f"{reference[figure['counted']]:.1f} s",
        f"{ours[figure['counted']]:.1f} s",
        f"{figure['ratio']:.1f}x",
        f"{reference['peak_mb']:.0f} / {ours['peak_mb']:.0f}",
    ]


def main(
    train: Annotated[Path, typer.Argument(help="Folder with train.csv and images/")],
    people: Annotated[int, typer.Option(help="People at 1x; 4x takes four times as many")] = 25,
    repeats: Annotated[int, typer.Option(help="Runs of each contender")] = 3,
    only: Annotated[str, typer.Option(help="Cases whose name has this in it")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the figures as JSON")] = None,
) -> None:
    """Compare this project's training with the reference loop on the photos of TRAIN."""
    everybody = list_people(train)
    names = everybody["person"].unique()
    work = [
        (case, everybody[everybody["person"].isin(names[: people * scale])])
        for case in CASES
        if only in case.name
        for scale in (1, 4)
    ]
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    figures = []
    table = Table("case", "photos", "reference", "ours", "ratio", "peak MB, reference / ours")
    for case, photos in progress(work, len(work), "benchmark: cases"):
        figure = compare(case, photos, repeats)
        figures.append(figure)
        row = cells(figure)
        table.add_row(*row)
        print("{}, {} photos: reference {}, ours {}: {}; {} MB".format(*row), flush=True)
        if out is not None:
            write_json(out, {"machine": machine, "figures": figures})
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
