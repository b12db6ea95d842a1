"""What to freeze: much or little data, from a near or a distant source.

    dvc repro crop folds
    python -m benchmarks.transfer results/transfer

Trains on subsets of the people outside a fold, nested and with all classes in them, and scores each
network on the people of that fold, who are the same for all subsets. Prints macro F1 with its
interval for each source, number of people and freeze point. What is in the folder already is not
done again, so that a run can be stopped and continued.
"""

import shutil
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.runs import Changes, counts_by_person, seconds_of, train_folds
from stages.files import write_table
from stages.params import read_params
from stages.photos.labels import AGE_GROUPS, GENDERS
from stages.photos.packed import read_packed, write_packed
from stages.photos.tables import read_stage_table
from stages.scoring.metrics import interval, macro_f1, resample_people
from stages.scoring.out_of_fold import read_out_of_fold

SOURCES = {
    "faces": ("resnet18", ["none", "layer2", "layer4"]),
    "imagenet": ("mobilenet_v2", ["none", "features.10", "features.18"]),
}
"""What the weights were pretrained on: the network, whose file is NETWORK_SOURCE.safetensors in
data/pretrained, and its freeze points: nothing, about half, all but the head."""

EPOCHS = {50: 18, 100: 13, 200: 9, 480: 6}
"""People to learn from, and epochs: the fewer there are, the more often each is seen."""

RUNS = [
    (source, people, point)
    for source, (_, points) in SOURCES.items()
    for people in EPOCHS
    for point in points
]

CROP = Path("data/crop")


def nested_order(people: "pd.Series[str]", labels: "pd.Series[int]", seed: int) -> list[str]:
    """People in an order whose every beginning has gender and age in the proportions of all.

    Args:
        people, labels: of each photo.
    """
    kind = labels.groupby(people).first() % (len(GENDERS) * AGE_GROUPS)
    shuffled = kind.sample(frac=1, random_state=seed)
    within = shuffled.groupby(shuffled)
    place = (within.cumcount() + 0.5) / within.transform("size")
    return [str(person) for person in place.sort_values(kind="stable").index]


def write_subset(table: pd.DataFrame, fold: int, count: int, seed: int, out: Path) -> None:
    """Crops and table of the people of `fold` and of `count` others, to `out`."""
    if (out / "folds.csv").exists():
        return
    others = table[table["fold"] != fold]
    learned = nested_order(others["person"], others["label"], seed)[:count]
    rows = (table["fold"] == fold) | table["person"].isin(learned)
    places = rows.to_numpy().nonzero()[0]
    crops = read_packed(CROP / "train.npy")
    write_packed(out / "train.npy", (crops[place] for place in places), len(places), crops.shape[1])
    shutil.copy(CROP / "fallback.json", out)
    write_table(out / "folds.csv", table[rows])


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the results")],
    held_out: Annotated[str, typer.Option(help="Folds to score on, with commas")] = "0",
    only: Annotated[str, typer.Option(help="Runs whose name, as faces_50_layer2, has this")] = "",
) -> None:
    """Compare freeze points by how much there is to learn from, and where the weights are from."""
    params = read_params()
    knobs, folds = params.aggregate, [int(fold) for fold in held_out.split(",")]
    everybody = read_stage_table(Path("data/folds/folds.csv"))
    shown = Table("pretrained on", "people", "frozen up to", "macro F1 (95%)", "minutes")
    for source, people, point in RUNS:
        folder = out / f"{source}_{people}_{point}"
        if only not in folder.name:
            continue
        model, points = SOURCES[source]
        # A head alone takes longer to learn, and next to no time.
        epochs = EPOCHS[people] * (5 if point == points[-1] else 1)
        changes: Changes = {
            "weights": {
                "model": model,
                "source": f"data/pretrained/{model}_{source}.safetensors",
            },
            "train": {
                "freeze": point,
                "cached_views": 0 if point == "none" else 4,
                "epochs": epochs,
                "patience": epochs,
                "batch_size": 32,
            },
        }
        for fold in folds:
            subset = out / f"people{people}_fold{fold}"
            write_subset(everybody, fold, people, params.folds.seed, subset)
            train_folds(changes, subset, subset / "folds.csv", [fold], folder, jobs=1)
        counts = counts_by_person(read_out_of_fold(folder, folds))
        low, high = interval(macro_f1(resample_people(counts, knobs.bootstrap, knobs.seed)))
        shown.add_row(
            source,
            str(people),
            point,
            f"{macro_f1(counts.sum(axis=0)):.3f} ({low:.3f} to {high:.3f})",
            f"{seconds_of(folder, folds) / 60:.1f}",
        )
        Console(width=100).print(shown)


if __name__ == "__main__":
    typer.run(main)
