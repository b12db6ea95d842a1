"""Export: the networks as files that run without this project, checked against the original.

    python -m stages.export exported
    python -m stages.export exported --fold 0 --format onnx --int8

Not a stage of the pipeline: it is run when the networks shall be used elsewhere. Writes to the
output folder, for the mean of all folds' networks (or `fold0` in the place of `ensemble`):

- `ensemble.pt2`: a program for `torch.export.load`
- `ensemble.onnx`: for onnxruntime and others
- `ensemble.int8.onnx`: smaller, and on most CPUs faster; what that costs is measured

All take crops (uint8, any number x size x size x 3, RGB) and give the probabilities of the 18
classes. Normalisation, mirror images, softmax and mean are inside; finding and cutting the face is
not. The metadata say how that is done, what the classes are, and where the networks come from.
"""

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray

from stages.classifying import find_networks
from stages.command import stage_command
from stages.errors import UserError
from stages.faces.detect import LONG_SIDE
from stages.files import sha256, write_whole
from stages.learning.device import Hardware
from stages.learning.ensemble import Ensemble, Probabilities, mean_probabilities, read_networks
from stages.learning.portable import (
    ONNX_PACKAGES,
    Classify,
    describe_onnx,
    need_onnx_packages,
    quantise,
    run_onnx,
    run_torch,
    to_onnx,
    to_torch,
    trace,
)
from stages.learning.recipe import Recipe
from stages.learning.views import name_views
from stages.params import AggregateParams, read_params
from stages.photos.labels import CLASSES, class_names
from stages.photos.packed import Pixels, read_packed
from stages.photos.tables import read_stage_table
from stages.progress import progress
from stages.revisions import git_state
from stages.scoring.comparison import judge, signed
from stages.scoring.metrics import SCORES
from stages.scoring.out_of_fold import read_out_of_fold

PROJECT = "mask-gender-age"
TOLERANCE = 1e-3
"""Most difference of a probability from the original's."""
CHECKED = 256
CALIBRATED = 300
"""Crops that are checked, and that int8 is calibrated on: drawn at random, always the same."""
BATCH = 32
ROUNDS = 7
"""Photos a second are the median over so many batches."""

CPU = Hardware(torch.device("cpu"), torch.float32)

Rows = NDArray[np.int64]
NO_ROWS: Rows = np.empty(0, dtype=np.int64)


class Source(NamedTuple):
    """Networks to export: what they are called, the file of each fold, and how they are used."""

    name: str
    files: dict[int, Path]
    networks: list[torch.nn.Module]
    recipe: Recipe


def read_source(folder: Path, fold: int | None) -> Source:
    """The networks of all folds in a folder, or of one.

    Raises:
        UserError: if there is no such fold, or no network yet.
    """
    files = find_networks(folder, fold)
    name = "ensemble" if fold is None else f"fold{fold}"
    return Source(name, files, *read_networks(list(files.values()), CPU))


def some(crops: Pixels, count: int, but_not: Rows = NO_ROWS) -> Pixels:
    """That many crops (or all), drawn without regard to their order, always the same."""
    rows = np.setdiff1d(np.arange(len(crops)), but_not)
    drawn: Pixels = crops[np.sort(np.random.default_rng(0).permutation(rows)[:count])]
    return drawn


def crop_rule(recipe: Recipe) -> str:
    """In words, how a crop is cut from a photo."""
    crop = recipe.crop
    scale = (
        f"Scale it to {crop.side} x {crop.side} pixels, bilinear with antialiasing"
        f"{', and make it grey' if crop.greyscale else ''}."
    )
    if crop.detector == "none":
        return (
            "Turn the photo upright by its EXIF orientation. Take the square in its middle whose "
            f"side is {crop.margin:g} times its longer side, but no more than its shorter one. "
            + scale
        )
    box = "the whole photo" if recipe.fallback is None else f"{recipe.fallback} of the photo"
    return (
        f"Turn the photo upright by its EXIF orientation. Shrink a copy to {LONG_SIDE} pixels and "
        f"find the largest face in it ({crop.detector}, confidence {crop.min_confidence:g} or "
        f"more); without one, its box (left, top, width, height) is {box}. Take the square around "
        f"the centre of the box whose side is {crop.margin:g} times the box's longer side, but no "
        "more than the photo's shorter side, and move it inside where it reaches over an edge. "
        + scale
    )


def describe(source: Source, packages: Sequence[str]) -> dict[str, Any]:
    """What a user of the file has to know, and where it comes from."""
    recipe = source.recipe
    size = recipe.crop.side
    means = [of for of in [name_views(recipe.flip_at_test, recipe.zoom_at_test)] if of]
    means += [f"{len(source.networks)} networks"] if len(source.networks) > 1 else []
    return {
        "project": PROJECT,
        "input": f"crops: uint8, batch x {size} x {size} x 3, RGB; batch is any number from 1",
        "output": "probabilities: float32, batch x 18, in the order of classes",
        "inside": ", ".join(
            ["ImageNet normalisation", recipe.model, "softmax", *(f"mean of {of}" for of in means)]
        ),
        "classes": class_names(recipe.age_edges),
        "crop_rule": crop_rule(recipe),
        "recipe": recipe.model_dump(mode="json"),
        "networks": {
            f"fold{fold}": f"sha256:{sha256(file)}" for fold, file in source.files.items()
        },
        "exported_from": git_state(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "torchvision", *packages)},
        },
    }


def largest_difference(classify: Classify, crops: Pixels, original: Probabilities) -> float:
    """Largest difference of a probability, the crops given as one, two, and all others."""
    found = np.concatenate([classify(batch) for batch in np.split(crops, [1, 3]) if len(batch)])
    return float(np.abs(found - original).max())


def write_checked(
    path: Path, content: bytes, classify: Classify, crops: Pixels, original: Probabilities
) -> None:
    """Write a file whose `classify` gives what the original does.

    Raises:
        UserError: if it does not; nothing is written then.
    """
    largest = largest_difference(classify, crops, original)
    if not largest <= TOLERANCE:
        raise UserError(
            f"{path} is not written: its probabilities differ from the original's by up to "
            f"{largest:.2g}, more than {TOLERANCE:g}"
        )
    with write_whole(path) as file:
        file.write(content)
    print(
        f"export: {path}: {len(content) / 1e6:.1f} MB, differs from the original by at most "
        f"{largest:.1e} on {len(crops)} crops"
    )


def rows_of(photos: pd.DataFrame, table: pd.DataFrame) -> Rows:
    """The row of each photo in a table of crops.

    Raises:
        UserError: if one is not there.
    """
    keys = ["person", "photo"]
    index = pd.MultiIndex.from_frame(table[keys])
    rows: Rows = index.get_indexer(pd.MultiIndex.from_frame(photos[keys]))
    if (rows < 0).any():
        person, photo = photos[keys].iloc[int((rows < 0).argmax())]
        raise UserError(
            f"the networks were validated on {person} {photo}, of which there is no crop: "
            "`dvc repro` makes both anew"
        )
    return rows


def predict_both(contents: Sequence[bytes], crops: Pixels) -> NDArray[np.float32]:
    """Probabilities of each ONNX file: files x N x 18."""
    batches = [crops[i : i + BATCH] for i in range(0, len(crops), BATCH)]
    runs = [run_onnx(content) for content in contents]
    return np.stack([np.concatenate([run(batch) for batch in batches]) for run in runs])


def predict_folds(
    source: Source, held_out: pd.DataFrame, rows: Rows, crops: Pixels
) -> NDArray[np.float32]:
    """Out-of-fold probabilities in fp32 and in int8: 2 x N x 18.

    Each network is calibrated on photos of its training part, and predicts those held out of it.

    Args:
        rows: where in `crops` the photos of `held_out` are.
    """
    predicted = np.empty((2, len(rows), CLASSES), dtype=np.float32)
    folds = list(zip(source.files, source.networks, strict=True))
    for fold, network in progress(folds, len(folds), "int8: networks scored"):
        own = (held_out["fold"] == fold).to_numpy()
        ensemble = Ensemble([network], source.recipe)
        fp32 = to_onnx(trace(ensemble, source.recipe.crop.side))
        int8 = quantise(fp32, some(crops, CALIBRATED, but_not=rows[own]))
        predicted[:, own] = predict_both((fp32, int8), crops[rows[own]])
    return predicted


def compare(
    held_out: pd.DataFrame, predicted: NDArray[np.float32], knobs: AggregateParams
) -> dict[str, dict[str, Any]]:
    """Scores in fp32 and int8; the difference, int8 minus fp32, with its 95% interval by person.

    And the word for it: better, worse, no difference shown.

    Args:
        predicted: probabilities in fp32 and in int8, 2 x N x 18.
    """
    before, after = (held_out.assign(predicted=each.argmax(axis=1)) for each in predicted)
    scores = {name: SCORES[name] for name in ("macro_f1", "accuracy")}
    labels = held_out["label"].to_numpy()
    judged = judge(before, after, labels, scores, knobs.bootstrap, knobs.seed).set_index("score")
    judged = judged.rename(columns={"before": "fp32", "after": "int8"})
    shown = ["fp32", "int8", "difference", "low", "high", "verdict"]
    rows = judged[shown].itertuples()
    return {name: dict(zip(shown, figures, strict=True)) for name, *figures in rows}


def photos_per_second(contents: Sequence[bytes], crops: Pixels) -> list[float]:
    """Of each ONNX file, `BATCH` at once, by turns, so that a busy machine slows all alike."""
    batch = np.resize(crops, (BATCH, *crops.shape[1:]))
    runs = [run_onnx(content) for content in contents]
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(1 + ROUNDS):
        for run, taken in zip(runs, seconds, strict=True):
            start = perf_counter()
            run(batch)
            taken.append(perf_counter() - start)
    return [BATCH / median(taken[1:]) for taken in seconds]  # the first one warms up


def tell_int8(path: Path, figures: dict[str, Any]) -> None:
    """Print what int8 gains and costs."""
    speed, size = figures["photos_per_second"], figures["megabytes"]
    print(
        f"export: {path}: {size['int8']:.1f} MB (fp32 {size['fp32']:.1f}), "
        f"{speed['int8']:.0f} photos/s (fp32 {speed['fp32']:.0f}), {figures['measured']}"
    )
    for name, label in (("macro_f1", "macro F1"), ("accuracy", "accuracy")):
        score = figures[name]
        print(
            f"export: int8 out of fold, {label}: {score['int8']:.3f} (fp32 {score['fp32']:.3f}), "
            f"{signed(score['difference'], score['low'], score['high'])}: {score['verdict']}"
        )
    if speed["int8"] < speed["fp32"]:
        print("export: int8 is slower than fp32 on this CPU")


@stage_command
def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to")],
    networks: Annotated[Path, typer.Option(help="Folder of the folds' networks")] = Path(
        "data/train"
    ),
    fold: Annotated[
        int | None, typer.Option(help="One fold's network, not the mean of all", show_default=False)
    ] = None,
    format: Annotated[
        Literal["onnx", "torch", "both"], typer.Option(help="torch is for torch.export.load")
    ] = "both",
    int8: Annotated[
        bool, typer.Option("--int8", help="Make an ONNX file in int8 too, and measure its score")
    ] = False,
    crops: Annotated[
        Path, typer.Option(help="Folder of packed crops, to check and calibrate with")
    ] = Path("data/crop"),
) -> None:
    """Write the networks to OUT as files that run without this project.

    They take crops (uint8, batch x size x size x 3, RGB) and give the probabilities of 18 classes;
    their metadata name the classes, and say how a crop is cut from a photo. ONNX needs
    `pip install -r requirements-export.txt`.
    """
    if int8 and format == "torch":
        raise UserError("--int8 makes an ONNX file: take --format onnx or both")
    if format != "torch":
        need_onnx_packages()
    params = read_params()
    source = read_source(networks, fold)
    recipe = source.recipe
    table, training = read_stage_table(crops / "train.csv"), read_packed(crops / "train.npy")
    evaluation = read_packed(crops / "evaluation.npy")
    real = some(evaluation if len(evaluation) else training, CHECKED)
    if real.shape[1] != recipe.crop.side:
        raise UserError(
            f"{crops} has crops of {real.shape[1]} pixels, and the networks want "
            f"{recipe.crop.side}: `dvc repro` makes both anew"
        )
    original = mean_probabilities(
        source.networks, torch.from_numpy(real), recipe, CPU, params.predict.batch_size
    )
    described = describe(source, ONNX_PACKAGES if format != "torch" else ())
    print(f"export: networks of {networks}: {', '.join(described['networks'])} ({recipe.model})")
    program = trace(Ensemble(source.networks, recipe), recipe.crop.side)

    if format != "onnx":
        content = to_torch(program, described)
        write_checked(out / f"{source.name}.pt2", content, run_torch(content), real, original)
    if format == "torch":
        return
    fp32 = to_onnx(program)
    content = describe_onnx(fp32, described)
    write_checked(out / f"{source.name}.onnx", content, run_onnx(content), real, original)
    if not int8:
        return

    held_out = read_out_of_fold(networks, list(source.files))
    if set(held_out["fold"]) != set(source.files):
        raise UserError(
            f"--int8: the folders in {networks} are not named after the folds of their photos, so "
            "that it cannot be scored: `dvc repro` makes them anew"
        )
    rows = rows_of(held_out, table)
    if fold is None:
        small = quantise(fp32, some(training, CALIBRATED))
        predicted = predict_folds(source, held_out, rows, training)
    else:
        small = quantise(fp32, some(training, CALIBRATED, but_not=rows))
        predicted = predict_both((fp32, small), training[rows])
    figures: dict[str, Any] = compare(held_out, predicted, params.aggregate)
    speeds = photos_per_second([fp32, small], real)
    figures |= {
        "measured": f"{BATCH} at once, {torch.get_num_threads()} CPU threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "photos_per_second": dict(zip(("fp32", "int8"), speeds, strict=True)),
        "megabytes": {"fp32": len(fp32) / 1e6, "int8": len(small) / 1e6},
        "photos": len(held_out),
    }
    path = out / f"{source.name}.int8.onnx"
    with write_whole(path) as file:
        file.write(describe_onnx(small, described | {"int8": figures}))
    tell_int8(path, figures)


if __name__ == "__main__":
    main()
