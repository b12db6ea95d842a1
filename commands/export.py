"""Export the networks as files that run without this project, and check them against the original.

    python -m commands.export exported
    python -m commands.export exported --fold 0 --format onnx --int8

Run this to use the networks elsewhere; it is not a stage of the pipeline. It writes to the output
folder, for the ensemble of all folds' networks (or with `fold0` in place of `ensemble`):

- `ensemble.pt2`: a program for `torch.export.load`
- `ensemble.onnx`: for onnxruntime and others
- `ensemble.int8.onnx`: smaller, and faster on most CPUs, with the measured loss in scores

Each maps crops (uint8, any number x side x side x 3, RGB) to the probabilities of the 18 classes.
Normalisation, mirror images, softmax, calibration and the ensemble's mean are included; finding and
cropping the face is not. The metadata describe how that is done, name the classes, and identify the
networks.
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

from face_attributes.command import user_command
from face_attributes.errors import UserError
from face_attributes.faces.detect import LONG_SIDE
from face_attributes.files import sha256, write_whole
from face_attributes.inference.ensemble import (
    Ensemble,
    Probabilities,
    ensemble_probabilities,
    read_networks,
)
from face_attributes.inference.portable import (
    ONNX_PACKAGES,
    Predictor,
    add_onnx_metadata,
    check_onnx_packages,
    load_onnx,
    load_torch,
    quantise,
    to_onnx,
    to_torch,
    trace,
)
from face_attributes.inference.recognition import find_networks
from face_attributes.networks.device import Hardware
from face_attributes.networks.recipe import Recipe, describe_views
from face_attributes.params import AggregateParams, read_params
from face_attributes.photos.labels import NUM_CLASSES, class_names
from face_attributes.photos.packed import Crops, Pixels, read_packed
from face_attributes.photos.tables import read_stage_table
from face_attributes.progress import progress
from face_attributes.revisions import git_state
from face_attributes.scoring.metrics import SCORES
from face_attributes.scoring.out_of_fold import read_out_of_fold
from face_attributes.scoring.paired_differences import compare_scores, format_difference

PROJECT = "mask-gender-age"
TOLERANCE = 1e-3
"""Largest accepted difference between a probability and the original's."""
CHECK_CROPS = 256
CALIBRATION_CROPS = 300
"""Crops used to check a file, and to calibrate int8: a random sample, always the same."""
TIMED_BATCH = 32
TIMED_ROUNDS = 7
"""Photos per second are the median over this many batches of this size."""

CPU = Hardware(torch.device("cpu"), torch.float32)

CropRows = NDArray[np.int64]
"""Rows of the packed crops."""
NO_ROWS: CropRows = np.empty(0, dtype=np.int64)


class Source(NamedTuple):
    """The networks to export, with the weight file and the recipe of each fold."""

    name: str
    files: dict[int, Path]
    networks: list[torch.nn.Module]
    recipes: list[Recipe]


def read_source(folder: Path, fold: int | None) -> Source:
    """Read the networks of all folds in a folder, or of one.

    Raises:
        UserError: if there is no such fold, or no network.
    """
    files = find_networks(folder, fold)
    name = "ensemble" if fold is None else f"fold{fold}"
    return Source(name, files, *read_networks(list(files.values()), CPU))


def sample_crops(crops: Crops, count: int, exclude: CropRows = NO_ROWS) -> Pixels:
    """Draw `count` crops (or all there are) at random, always the same, in their order."""
    rows = np.setdiff1d(np.arange(len(crops)), exclude)
    sample: Pixels = crops[np.sort(np.random.default_rng(0).permutation(rows)[:count])]
    return sample


# --- metadata


def crop_rule(recipe: Recipe) -> str:
    """Describe in words how a crop is cut from a photo."""
    crop = recipe.crop
    scale = f"Scale it to {crop.side} x {crop.side} pixels, bilinear with antialiasing."
    if crop.detector == "none":
        return (
            "Turn the photo upright by its EXIF orientation. Take the square in its middle whose "
            f"side is {crop.margin:g} times its longer side, but at most its shorter side. " + scale
        )
    box = "the whole photo" if recipe.fallback is None else f"{recipe.fallback} of the photo"
    return (
        f"Turn the photo upright by its EXIF orientation. Shrink a copy to {LONG_SIDE} pixels and "
        f"find the largest face in it ({crop.detector}, confidence {crop.min_confidence:g} or "
        f"more); without one, its box (left, top, width, height) is {box}. Take the square around "
        f"the centre of the box whose side is {crop.margin:g} times the box's longer side, but at "
        "most the photo's shorter side, and move it inside the photo if it extends over an edge. "
        + scale
    )


def describe(source: Source, packages: Sequence[str]) -> dict[str, Any]:
    """Collect the metadata of a file: how to use it, and where it comes from."""
    recipe = source.recipes[0]
    side = recipe.crop.side
    steps = ["ImageNet normalisation", recipe.model, "softmax"]
    if views := describe_views(recipe.prediction):
        steps.append(f"mean of {views}")
    steps.append("calibration by temperatures")
    if len(source.networks) > 1:
        steps.append(f"geometric mean of {len(source.networks)} networks")
    return {
        "project": PROJECT,
        "input": f"crops: uint8, batch x {side} x {side} x 3, RGB; batch is any number from 1",
        "output": "probabilities: float32, batch x 18, calibrated, in the order of classes",
        "inside": ", ".join(steps),
        "classes": class_names(recipe.age_edges),
        "crop_rule": crop_rule(recipe),
        "recipe": recipe.model_dump(mode="json", exclude={"temperature"}),
        "temperatures": {
            f"fold{fold}": recipe.temperature
            for fold, recipe in zip(source.files, source.recipes, strict=True)
        },
        "networks": {
            f"fold{fold}": f"sha256:{sha256(file)}" for fold, file in source.files.items()
        },
        "exported_from": git_state(),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "torchvision", *packages)},
        },
    }


# --- the check against the original


def largest_difference(predict: Predictor, crops: Pixels, original: Probabilities) -> float:
    """Largest difference from the original probabilities, in batches of one, two, and the rest."""
    batches = [batch for batch in np.split(crops, [1, 3]) if len(batch)]
    exported = np.concatenate([predict(batch) for batch in batches])
    return float(np.abs(exported - original).max())


def write_checked(
    path: Path, content: bytes, predict: Predictor, crops: Pixels, original: Probabilities
) -> None:
    """Write a file if what it predicts equals the original.

    Raises:
        UserError: if it does not; nothing is written then.
    """
    largest = largest_difference(predict, crops, original)
    if not largest <= TOLERANCE:
        raise UserError(
            f"{path} is not written: its probabilities differ from the original by up to "
            f"{largest:.2g}, more than {TOLERANCE:g}"
        )
    with write_whole(path) as file:
        file.write(content)
    print(
        f"export: {path}: {len(content) / 1e6:.1f} MB, differs from the original by at most "
        f"{largest:.1e} on {len(crops)} crops"
    )


# --- int8


def crop_rows(photos: pd.DataFrame, crop_table: pd.DataFrame) -> CropRows:
    """Find the row of each photo in the table of crops.

    Raises:
        UserError: if a photo has no crop.
    """
    keys = ["person", "photo"]
    index = pd.MultiIndex.from_frame(crop_table[keys])
    rows: CropRows = index.get_indexer(pd.MultiIndex.from_frame(photos[keys]))
    if (rows < 0).any():
        person, photo = photos[keys].iloc[int((rows < 0).argmax())]
        raise UserError(
            f"the networks were validated on {person} {photo}, which has no crop: "
            "`dvc repro` makes both again"
        )
    return rows


def predict_onnx(contents: Sequence[bytes], crops: Pixels) -> NDArray[np.float32]:
    """Predict crops with each ONNX file: files x N x 18."""
    batches = [crops[i : i + TIMED_BATCH] for i in range(0, len(crops), TIMED_BATCH)]
    predictors = [load_onnx(content) for content in contents]
    return np.stack(
        [np.concatenate([predict(batch) for batch in batches]) for predict in predictors]
    )


def predict_out_of_fold(
    source: Source, held_out: pd.DataFrame, rows: CropRows, crops: Crops
) -> NDArray[np.float32]:
    """Predict held-out photos in fp32 and in int8: 2 x N x 18.

    Each network is calibrated on photos of its training part, and predicts its held-out photos.

    Args:
        rows: rows in `crops` of the photos of `held_out`.
    """
    probabilities = np.empty((2, len(rows), NUM_CLASSES), dtype=np.float32)
    folds = list(zip(source.files, source.networks, source.recipes, strict=True))
    for fold, network, recipe in progress(folds, len(folds), "int8: networks scored"):
        in_fold = (held_out["fold"] == fold).to_numpy()
        fp32 = to_onnx(trace(Ensemble([network], [recipe]), recipe.crop.side))
        int8 = quantise(fp32, sample_crops(crops, CALIBRATION_CROPS, exclude=rows[in_fold]))
        probabilities[:, in_fold] = predict_onnx((fp32, int8), crops[rows[in_fold]])
    return probabilities


def score_int8(
    held_out: pd.DataFrame, probabilities: NDArray[np.float32], params: AggregateParams
) -> dict[str, dict[str, Any]]:
    """Score fp32 and int8: both scores, int8 minus fp32 with its 95% interval, and the verdict.

    Args:
        probabilities: in fp32 and in int8, 2 x N x 18.
    """
    before, after = (held_out.assign(predicted=each.argmax(axis=1)) for each in probabilities)
    scores = {name: SCORES[name] for name in ("macro_f1", "accuracy")}
    labels = held_out["label"].to_numpy()
    table = compare_scores(before, after, labels, scores, params.bootstrap).set_index("score")
    table = table.rename(columns={"before": "fp32", "after": "int8"})
    columns = ["fp32", "int8", "difference", "low", "high", "verdict"]
    return {
        name: dict(zip(columns, figures, strict=True))
        for name, *figures in table[columns].itertuples()
    }


def photos_per_second(contents: Sequence[bytes], crops: Pixels) -> list[float]:
    """Time each ONNX file in turn, so that a busy machine slows all of them alike."""
    batch = np.resize(crops, (TIMED_BATCH, *crops.shape[1:]))
    predictors = [load_onnx(content) for content in contents]
    seconds: list[list[float]] = [[] for _ in predictors]
    for _ in range(1 + TIMED_ROUNDS):
        for predict, times in zip(predictors, seconds, strict=True):
            start = perf_counter()
            predict(batch)
            times.append(perf_counter() - start)
    return [TIMED_BATCH / median(times[1:]) for times in seconds]  # the first round warms up


def print_int8(path: Path, figures: dict[str, Any]) -> None:
    """Print the size, the speed and the scores of int8 beside those of fp32."""
    speed, size = figures["photos_per_second"], figures["megabytes"]
    print(
        f"export: {path}: {size['int8']:.1f} MB (fp32 {size['fp32']:.1f}), "
        f"{speed['int8']:.0f} photos/s (fp32 {speed['fp32']:.0f}), {figures['measured']}"
    )
    for name, label in (("macro_f1", "macro F1"), ("accuracy", "accuracy")):
        score = figures[name]
        difference = format_difference(score["difference"], score["low"], score["high"])
        print(
            f"export: int8 out of fold, {label}: {score['int8']:.3f} (fp32 {score['fp32']:.3f}), "
            f"{difference}: {score['verdict']}"
        )
    if speed["int8"] < speed["fp32"]:
        print("export: int8 is slower than fp32 on this CPU")


def make_int8(
    source: Source, fp32: bytes, held_out: pd.DataFrame, rows: CropRows, crops: Crops
) -> tuple[bytes, NDArray[np.float32]]:
    """Quantise an ONNX file, and predict held-out photos in fp32 and in int8 (2 x N x 18).

    One network is calibrated without its held-out photos. An ensemble has none, so that its scores
    are those of its networks, each quantised separately.

    Args:
        rows: rows in `crops` of the photos of `held_out`.
    """
    if len(source.files) > 1:
        int8 = quantise(fp32, sample_crops(crops, CALIBRATION_CROPS))
        return int8, predict_out_of_fold(source, held_out, rows, crops)
    int8 = quantise(fp32, sample_crops(crops, CALIBRATION_CROPS, exclude=rows))
    return int8, predict_onnx((fp32, int8), crops[rows])


def read_held_out(results: Path, source: Source) -> pd.DataFrame:
    """Read the out-of-fold predictions of the networks: person, photo, fold, label, p0 to p17.

    Raises:
        UserError: if the folders are not named after the folds.
    """
    held_out = read_out_of_fold(results, list(source.files))
    if set(held_out["fold"]) != set(source.files):
        raise UserError(
            f"--int8 cannot be scored: the folders in {results} are not named after the folds of "
            "their photos: `dvc repro` makes them again"
        )
    return held_out


def measure(fp32: bytes, int8: bytes, crops: Pixels) -> dict[str, Any]:
    """Measure the speed and the size of two ONNX files."""
    speeds = photos_per_second([fp32, int8], crops)
    return {
        "measured": f"{TIMED_BATCH} at once, {torch.get_num_threads()} CPU threads, "
        f"{torch.backends.cpu.get_cpu_capability()}",
        "photos_per_second": dict(zip(("fp32", "int8"), speeds, strict=True)),
        "megabytes": {"fp32": len(fp32) / 1e6, "int8": len(int8) / 1e6},
    }


@user_command
def main(
    out: Annotated[Path, typer.Argument(help="Folder to write to")],
    networks: Annotated[
        Path, typer.Option(help="Folder with fold0/network.safetensors, ...")
    ] = Path("data/train"),
    fold: Annotated[
        int | None,
        typer.Option(help="Export one fold's network, not the ensemble of all", show_default=False),
    ] = None,
    format: Annotated[
        Literal["onnx", "torch", "both"], typer.Option(help="torch: for torch.export.load")
    ] = "both",
    int8: Annotated[
        bool, typer.Option("--int8", help="Also write an ONNX file in int8, and score it")
    ] = False,
    crops: Annotated[
        Path, typer.Option(help="Folder of packed crops, for the check and the calibration")
    ] = Path("data/crop"),
) -> None:
    """Write the networks to OUT as files that run without this project.

    They map crops (uint8, batch x side x side x 3, RGB) to calibrated probabilities of 18 classes;
    their metadata name the classes, and say how a crop is cut from a photo. ONNX needs
    `pip install -r requirements-export.txt`.
    """
    if int8 and format == "torch":
        raise UserError("--int8 writes an ONNX file: set --format onnx or both")
    if format != "torch":
        check_onnx_packages()
    params = read_params()
    source = read_source(networks, fold)
    recipe = source.recipes[0]
    table, training = read_stage_table(crops / "train.csv"), read_packed(crops / "train")
    evaluation = read_packed(crops / "evaluation")
    sample = sample_crops(evaluation if len(evaluation) else training, CHECK_CROPS)
    if sample.shape[1] != recipe.crop.side:
        raise UserError(
            f"{crops} has crops of {sample.shape[1]} pixels, but the networks take "
            f"{recipe.crop.side}: `dvc repro` makes both again"
        )
    batch_size = params.predict.batch_size
    original = ensemble_probabilities(source.networks, sample, source.recipes, CPU, batch_size)
    described = describe(source, ONNX_PACKAGES if format != "torch" else ())
    print(f"export: networks of {networks}: {', '.join(described['networks'])} ({recipe.model})")
    program = trace(Ensemble(source.networks, source.recipes), recipe.crop.side)

    if format != "onnx":
        content = to_torch(program, described)
        write_checked(out / f"{source.name}.pt2", content, load_torch(content), sample, original)
    if format == "torch":
        return
    fp32 = to_onnx(program)
    content = add_onnx_metadata(fp32, described)
    write_checked(out / f"{source.name}.onnx", content, load_onnx(content), sample, original)
    if not int8:
        return

    held_out = read_held_out(networks, source)
    rows = crop_rows(held_out, table)
    quantised, probabilities = make_int8(source, fp32, held_out, rows, training)
    figures: dict[str, Any] = score_int8(held_out, probabilities, params.aggregate)
    figures |= measure(fp32, quantised, sample) | {"photos": len(held_out)}
    path = out / f"{source.name}.int8.onnx"
    with write_whole(path) as file:
        file.write(add_onnx_metadata(quantised, described | {"int8": figures}))
    print_int8(path, figures)


if __name__ == "__main__":
    main()
