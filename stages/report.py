"""Report: one page with the scores of the run, its errors, and how it was made.

    python -m stages.report metrics.json data/clean data/crop data/duplicates/metrics.json \\
        data/folds/metrics.json data/weights/metrics.json data/train data/aggregate \\
        data/suspects.json reports/report.html

The page needs no server and no network. It contains photos of people: never commit it. All
predictions are out of fold, by the network that was not trained on the person.
"""

import importlib.metadata
import os
import platform
from collections.abc import Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from pytorch_grad_cam.utils.image import show_cam_on_image

from face_attributes.command import TIMES, stage_command
from face_attributes.errors import UserError
from face_attributes.files import read_json, write_whole
from face_attributes.inference.attention import attention_maps
from face_attributes.inference.ensemble import read_networks
from face_attributes.networks.device import choose_hardware
from face_attributes.networks.views import normalise
from face_attributes.pages import charts
from face_attributes.pages.rendering import image_data, render
from face_attributes.params import Params, read_params
from face_attributes.photos.labels import NUM_AGE_GROUPS, age_group, attribute_names, class_names
from face_attributes.photos.packed import Crops, read_packed
from face_attributes.photos.tables import PROBABILITIES, read_stage_table
from face_attributes.progress import progress
from face_attributes.revisions import git_state, read_metrics
from face_attributes.scoring.calibration import calibration_table
from face_attributes.scoring.groups import f1_per_attribute
from face_attributes.scoring.holdout import describe_leads
from face_attributes.scoring.metrics import (
    SCORE_NAMES,
    SCORES,
    counts_by_person,
    interval,
    resample_people,
)
from face_attributes.scoring.out_of_fold import read_fold_metrics, read_out_of_fold
from face_attributes.scoring.paired_differences import (
    compare_scores,
    format_difference,
    people_in_two_folds,
    shared_photos,
)
from face_attributes.scoring.runs import read_run

Entry = dict[str, Any]

PACKAGES = (
    "torch", "torchvision", "dvc", "scikit-learn", "numpy", "pandas", "pillow",
    "opencv-python-headless", "yuface", "cleanlab",
)  # fmt: skip

YEAR_BINS = {
    "≤ -11": (-120, -11), "-10 .. -6": (-10, -6), "-5 .. -3": (-5, -3), "-2, -1": (-2, -1),
    "0, 1": (0, 1), "2 .. 4": (2, 4), "5 .. 9": (5, 9), "≥ 10": (10, 120),
}  # fmt: skip
"""First and last year from the nearest age edge, by the label on the chart of age errors."""

PHOTOS_PER_CELL = 24
"""Maximum number of photos shown for a cell of the confusion matrix."""

OVERLAY_SIDE = 160
"""Side of a Grad-CAM overlay in pixels."""

PAGE_SECTIONS = {"data", "review", "report", "model_card"}
"""Sections of params.yaml that change no score."""


def join_photos(predictions: pd.DataFrame, photos: pd.DataFrame) -> pd.DataFrame:
    """Add path, age, row (of the packed crops) and confidence to the out-of-fold predictions."""
    photos = photos.assign(row=range(len(photos)))[["person", "photo", "path", "age", "row"]]
    table = predictions.merge(photos, on=["person", "photo"])
    return table.assign(confidence=table[PROBABILITIES].to_numpy(float).max(axis=1))


def fit_table(index: Sequence[int], fold_metrics: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Scores of each fold at its kept epoch, which counts from 1.

    Returns:
        fold, part ("training" or "held out"), macro_f1, loss, epoch.
    """
    return pd.DataFrame(
        {
            "fold": fold,
            "part": part,
            "macro_f1": metrics[key]["macro_f1"],
            "loss": metrics[key]["loss"],
            "epoch": metrics["epoch"]["kept"] + 1,
        }
        for fold, metrics in zip(index, fold_metrics, strict=True)
        for part, key in (("training", "train"), ("held out", "validation"))
    )


def age_errors(table: pd.DataFrame, edges: Sequence[int], resamples: int) -> pd.DataFrame:
    """Error rate of the age group by the distance of the age from the nearest edge.

    Args:
        table: person, age (years), predicted (class); one row per photo.

    Returns:
        edge, years, order, people, photos, wrong (error rate), low, high (95%, by resampling
        people).
    """
    ages = table["age"].to_numpy()
    wrong = table["predicted"].to_numpy() % NUM_AGE_GROUPS != [
        age_group(age, edges) for age in ages
    ]
    nearest = np.abs(ages[:, None] - np.array(edges)).argmin(axis=1)
    distance = ages - np.array(edges)[nearest]
    rows = []
    for edge_index, edge in enumerate(edges):
        for order, (years, (first, last)) in enumerate(YEAR_BINS.items()):
            in_bin = (nearest == edge_index) & (distance >= first) & (distance <= last)
            if not in_bin.any():
                continue
            by_person = pd.Series(wrong[in_bin]).groupby(table["person"][in_bin].array)
            counts = by_person.agg(["sum", "size"]).to_numpy(float)
            resampled = resample_people(counts, resamples)
            low, high = interval(resampled[:, 0] / resampled[:, 1])
            rows.append(
                {
                    "edge": edge, "years": years, "order": order, "people": len(counts),
                    "photos": int(in_bin.sum()), "wrong": float(wrong[in_bin].mean()),
                    "low": float(low), "high": float(high),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def most_confident(table: pd.DataFrame, correct: bool, count: int) -> pd.DataFrame:
    """The most confident correct or wrong predictions, at most one per person.

    Correct ones are also limited to one per class: the most confident are all of one common class.

    Args:
        table: person, label, predicted, confidence.
        count: maximum number of photos.
    """
    candidates = table[(table["predicted"] == table["label"]) == correct]
    ranked = candidates.sort_values("confidence", ascending=False, kind="stable")
    if not correct:
        return ranked.drop_duplicates("person").head(count)
    chosen, people, labels = list[Hashable](), set[str](), set[int]()
    for index, person, label in ranked[["person", "label"]].itertuples():
        if person not in people and label not in labels:
            chosen.append(index)
            people.add(person)
            labels.add(label)
    return ranked.loc[chosen].head(count)


def describe_photo(row: dict[Hashable, Any], names: Sequence[str]) -> Entry:
    """Text that the page shows for a photo: file, classes and their probabilities."""
    return {
        "person": row["person"],
        "photo": row["photo"],
        "link": quote(row["path"] if Path(row["path"]).is_absolute() else f"../{row['path']}"),
        "given": names[row["label"]],
        "predicted": names[row["predicted"]],
        "confidence": row["confidence"],
        "given_probability": row[PROBABILITIES[row["label"]]],
    }


def photos_by_cell(
    table: pd.DataFrame, crops: Crops, names: Sequence[str]
) -> dict[str, list[Entry]]:
    """Photos of each cell of the confusion matrix, by "given-predicted", most confident first.

    Args:
        table: person, photo, path, label, predicted, confidence, row (of `crops`), p0 to p17.
    """
    ranked = table.sort_values("confidence", ascending=False, kind="stable")
    shown = ranked.groupby(["label", "predicted"]).head(PHOTOS_PER_CELL)
    cells: dict[str, list[Entry]] = {}
    for row in progress(shown.to_dict("records"), len(shown), "report: photos"):
        image = image_data(Image.fromarray(crops[row["row"]]))
        entry = {**describe_photo(row, names), "image": image}
        cells.setdefault(f"{row['label']}-{row['predicted']}", []).append(entry)
    return cells


def attention_overlays(
    table: pd.DataFrame, crops: Crops, results: Path, names: Sequence[str]
) -> list[Entry]:
    """Photos with a Grad-CAM overlay for the predicted class, by the network of their fold.

    Args:
        table: as for `photos_by_cell`, and fold.
    """
    hardware = choose_hardware("cpu", "fp32", "train.device")
    maps: dict[int, Any] = {}
    for fold, photos in table.groupby("fold"):
        path = results / f"fold{fold}" / "network.safetensors"
        (network,), _ = read_networks([path], hardware)
        pixels = torch.from_numpy(crops[photos["row"].to_numpy()].copy())
        fold_maps = attention_maps(network, normalise(pixels), photos["predicted"].to_list())
        maps |= dict(zip(photos["row"], fold_maps, strict=True))
    entries = []
    for row in table.to_dict("records"):
        crop = crops[row["row"]]
        overlay = show_cam_on_image(
            crop / np.float32(255), maps[row["row"]], True, cv2.COLORMAP_INFERNO, 0.6
        )
        image, attention = (
            image_data(Image.fromarray(pixels).resize((OVERLAY_SIDE, OVERLAY_SIDE)))
            for pixels in (crop, overlay)
        )
        entries.append({**describe_photo(row, names), "image": image, "attention": attention})
    return entries


def compare_with_last_commit(
    table: pd.DataFrame, names: Sequence[str], resamples: int
) -> dict[str, str]:
    """Difference of each score to the last commit's run, with its interval and verdict.

    Both runs are scored on the photos they share, against the current labels. Empty if the last
    commit has no predictions that can be compared.

    Args:
        table: person, photo, fold, label, predicted; one row per photo.
    """
    try:
        run = read_run("HEAD")
        before, after = shared_photos([run.predictions, table])
    except UserError:
        return {}
    leaks = people_in_two_folds(run.predictions) or people_in_two_folds(table)
    if run.classes != names or leaks:
        return {}
    compared = compare_scores(before, after, after["label"].to_numpy(), SCORES, resamples)
    return {
        score: f"{format_difference(difference, low, high)}, {verdict}"
        for score, difference, low, high, verdict in compared[
            ["score", "difference", "low", "high", "verdict"]
        ].itertuples(index=False)
    }


def score_content(
    table: pd.DataFrame,
    uncalibrated: pd.DataFrame,
    fit: pd.DataFrame,
    classes: pd.DataFrame,
    curves: pd.DataFrame,
    params: Params,
) -> Entry:
    """Tables and charts of the page.

    Args:
        table: from `join_photos`.
        uncalibrated: label, p0 to p17, from `read_out_of_fold`.
        fit: from `fit_table`.
        classes: F1 per class, from the stage `aggregate`.
        curves: learning curves, from the stage `aggregate`.
    """
    edges, resamples = params.labels.age_edges, params.aggregate.bootstrap
    by_person = counts_by_person(table)
    curves = curves.assign(epoch=curves["epoch"] + 1)
    kept = fit.loc[fit["part"] == "held out", ["fold", "epoch"]]
    bins, raw_bins = (
        calibration_table(
            predictions[PROBABILITIES].to_numpy(float), predictions["label"].to_numpy()
        )
        for predictions in (table, uncalibrated)
    )
    ages = age_errors(table, edges, resamples)
    return {
        "counts": by_person.sum(axis=0).astype(int).tolist(),
        "classes": classes,
        "attributes": f1_per_attribute(by_person, attribute_names(edges), resamples),
        "ages": ages,
        "bins": pd.concat(
            [
                raw_bins.assign(probabilities="before calibration"),
                bins.assign(probabilities="calibrated"),
            ]
        ),
        "fit": fit,
        "losses": curves.pivot(
            index=["fold", "epoch"], columns="curve", values="loss"
        ).reset_index(),
        "charts": {
            "f1": charts.f1_chart(classes.rename(columns={"class": "name"})),
            "curves": charts.learning_chart(curves, kept),
            "calibration": charts.calibration_chart(bins, raw_bins),
            "ages": charts.age_chart(ages),
            "fit": charts.fit_chart(fit),
        },
    }


def photo_content(table: pd.DataFrame, crops: Crops, results: Path, params: Params) -> Entry:
    """Photos of the page: those behind the confusion matrix, and the most confident with maps."""
    names, count = class_names(params.labels.age_edges), params.report.examples
    wrong, correct = (
        attention_overlays(most_confident(table, right, count), crops, results, names)
        for right in (False, True)
    )
    return {"cells": photos_by_cell(table, crops, names), "wrong": wrong, "correct": correct}


def stage_times(folder: Path, index: Sequence[int]) -> pd.DataFrame:
    """Duration of each stage's last run on this machine by DVC: stage, seconds (text), ended.

    Args:
        index: folds.index, which other folds may have been in before.
    """
    folds = {f"train@{fold}" for fold in index}
    rows = [
        {"stage": path.stem, **read_json(path)}
        for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        if path.stem in folds or not path.stem.startswith("train@")
    ]
    times = pd.DataFrame(rows, columns=["stage", "seconds", "ended"])
    return times.assign(seconds=times["seconds"].map("{:.1f}".format))


def machine_info() -> dict[str, str]:
    """Operating system, processor, GPU, and versions of Python and packages."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    info = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": f"{processor}, {os.cpu_count()} cores",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            info[name] = importlib.metadata.version(name)
    return info


def flatten(sections: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to keys such as `train.optimizer.ema`."""
    flat: dict[str, Any] = {}
    for name, value in sections.items():
        key = prefix + name
        flat |= flatten(value, f"{key}.") if isinstance(value, dict) else {key: value}
    return flat


@stage_command
def main(
    metrics: Path,
    clean: Path,
    crop: Path,
    duplicates: Path,
    folds: Path,
    weights: Path,
    results: Path,
    aggregate: Path,
    suspects: Path,
    out: Path,
) -> None:
    """Show the run whose scores are in METRICS on the page OUT."""
    params = read_params()
    scores = read_json(metrics)
    names, index = class_names(params.labels.age_edges), params.folds.index
    predictions = read_stage_table(aggregate / "out_of_fold.csv")
    table = join_photos(predictions, read_stage_table(clean / "photos.csv"))
    classes = pd.read_csv(aggregate / "f1_per_class.csv")
    curves = read_stage_table(aggregate / "learning_curves.csv")
    stages: dict[str, Any] = {
        "clean": read_json(clean / "metrics.json"), "crop": read_json(crop / "metrics.json"),
        "duplicates": read_json(duplicates), "folds": read_json(folds),
        "weights": read_json(weights), "train": read_fold_metrics(results, index),
        "suspects": read_json(suspects),
    }  # fmt: skip
    page = render(
        "report.html",
        metrics=scores,
        holdout_remark="holdout" in scores
        and describe_leads(scores["holdout"]["out_of_fold_lead"]),
        score_names=SCORE_NAMES,
        names=names,
        git=git_state(),
        before=read_metrics("HEAD", metrics),
        changes=compare_with_last_commit(table, names, params.aggregate.bootstrap),
        stages=stages,
        rejected=read_stage_table(clean / "rejected.csv"),
        params=flatten(params.model_dump(exclude=PAGE_SECTIONS)),
        machine=machine_info(),
        times=stage_times(TIMES, params.folds.index),
        **score_content(
            table,
            read_out_of_fold(results, index),
            fit_table(index, stages["train"]),
            classes,
            curves,
            params,
        ),
        **photo_content(table, read_packed(crop / "train"), results, params),
    )
    with write_whole(out) as file:
        file.write(page.encode())
    print(f"report: {len(table)} photos, {len(page) / 1e6:.1f} MB; open {out} in a browser")


if __name__ == "__main__":
    main()
