"""Benchmark training against the reference loop: seconds, ratios and memory, as a table and JSON.

    python -m benchmarks.epoch_times data/sample/train --out benchmark.json

The contenders alternate, with the same photos, network and number of epochs; medians over the
repeats are printed. `epoch` is the median epoch after the first, `seconds` the work for all folds
including packing the crops, and `wall` also includes starting the processes. Each case is printed
and written when it ends, so that an interrupted run keeps its results.
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

from face_attributes.command import user_command
from face_attributes.files import write_json
from face_attributes.params import read_params
from face_attributes.photos.labels import encode
from face_attributes.photos.raw import list_photos, read_people
from face_attributes.progress import progress


class Case(NamedTuple):
    """A setting to train with, and the time that is compared (`counted`)."""

    name: str
    side: int
    freeze: str
    epochs: int
    folds: int
    views: int
    counted: Literal["epoch", "seconds", "wall"]

    def options(self) -> list[str]:
        """Command-line options that both contenders take."""
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
    """List the photos of a raw folder: person, path, label, fold (0 to 4)."""
    photos, _ = list_photos(read_people(train / "train.csv"), train)
    edges = read_params().labels.age_edges
    photos["label"] = [
        encode(mask, gender, age, edges)
        for mask, gender, age in photos[["mask", "gender", "age"]].itertuples(index=False)
    ]
    photos["fold"] = photos.groupby("person", sort=False).ngroup() % 5
    return photos[["person", "path", "label", "fold"]]


def run(contender: str, case: Case, photos: pd.DataFrame) -> dict[str, float]:
    """Run all folds of a case, one process each: epoch, seconds, wall (in seconds) and peak_mb."""
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
    """Run both contenders alternately: medians, and the ratio of the times that are compared."""
    runs: dict[str, list[dict[str, float]]] = {"reference": [], "ours": []}
    for _ in range(repeats):
        for contender, results in runs.items():
            results.append(run(contender, case, photos))
    medians = {
        contender: {key: statistics.median(result[key] for result in results) for key in results[0]}
        for contender, results in runs.items()
    }
    ratio = medians["reference"][case.counted] / medians["ours"][case.counted]
    facts = {"case": case.name, "photos": len(photos), "counted": case.counted}
    return {**facts, "ratio": ratio, **medians}


def cells(figure: dict[str, Any]) -> list[str]:
    """Format a row of the table: case, photos, reference, ours, ratio, peak MB."""
    reference, ours = figure["reference"], figure["ours"]
    return [
        figure["case"],
        str(figure["photos"]),
        f"{reference[figure['counted']]:.1f} s",
        f"{ours[figure['counted']]:.1f} s",
        f"{figure['ratio']:.1f}x",
        f"{reference['peak_mb']:.0f} / {ours['peak_mb']:.0f}",
    ]


@user_command
def main(
    train: Annotated[Path, typer.Argument(help="Folder with train.csv and images/")],
    people: Annotated[
        int, typer.Option(help="People; each case also runs with four times as many")
    ] = 25,
    repeats: Annotated[int, typer.Option(help="Runs of each contender")] = 3,
    only: Annotated[str, typer.Option(help="Only cases whose name contains this")] = "",
    out: Annotated[Path | None, typer.Option(help="Write the results as JSON")] = None,
) -> None:
    """Compare this project's training with the reference loop on the photos of TRAIN."""
    photos = list_people(train)
    names = photos["person"].unique()
    work = [
        (case, photos[photos["person"].isin(names[: people * scale])])
        for case in CASES
        if only in case.name
        for scale in (1, 4)
    ]
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    figures = []
    table = Table("case", "photos", "reference", "ours", "ratio", "peak MB, reference / ours")
    for case, selection in progress(work, len(work), "benchmark: cases"):
        figure = compare(case, selection, repeats)
        figures.append(figure)
        row = cells(figure)
        table.add_row(*row)
        print("{}, {} photos: reference {}, ours {}: {}; {} MB".format(*row), flush=True)
        if out is not None:
            write_json(out, {"machine": machine, "figures": figures})
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
