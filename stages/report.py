"""Report: one page that shows how good the run is, where it is wrong, and what it was made from.

    python -m stages.report metrics.json data/clean data/crop data/duplicates/metrics.json \\
        data/folds/metrics.json data/weights/metrics.json data/train data/aggregate \\
        data/suspects.json reports/report.html

The page needs no server and no network. It is made from the users' photos and so is never
committed. All scores of single photos are out of fold: by the network that has not seen the person.
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

from stages.command import TIMES, stage_command
from stages.errors import UserError
from stages.files import read_json, write_whole
from stages.learning.device import choose_hardware, normalise
from stages.learning.ensemble import read_networks
from stages.learning.gradcam import attention_maps
from stages.pages import charts
from stages.pages.rendering import image_data, render
from stages.params import AggregateParams, read_params
from stages.photos.labels import AGE_GROUPS, age_group, attribute_names, class_names
from stages.photos.packed import Pixels, read_packed
from stages.photos.tables import PROBABILITIES, read_stage_table
from stages.progress import progress
from stages.revisions import git_state, read_metrics, read_run
from stages.scoring.calibration import calibration, expected_calibration_error
from stages.scoring.comparison import judge, leaks, shared_photos, signed
from stages.scoring.groups import f1_of_attributes
from stages.scoring.metrics import NAMES, SCORES, counts_of, interval, resample_people
from stages.scoring.out_of_fold import read_fold_metrics

Entry = dict[str, Any]

PACKAGES = (
    "torch", "torchvision", "dvc", "scikit-learn", "numpy", "pandas", "pillow",
    "opencv-python-headless", "yuface", "cleanlab",
)  # fmt: skip

YEARS = {
    "≤ -11": (-120, -11), "-10 .. -6": (-10, -6), "-5 .. -3": (-5, -3), "-2, -1": (-2, -1),
    "0, 1": (0, 1), "2 .. 4": (2, 4), "5 .. 9": (5, 9), "≥ 10": (10, 120),
}  # fmt: skip
"""Years from the edge of an age group, by how the chart of age errors calls them."""

OVERLAY = 160
"""Side of the Grad-CAM overlays in pixels."""


def age_errors(
    table: pd.DataFrame, edges: Sequence[int], resamples: int, seed: int
) -> pd.DataFrame:
    """How often the age group is wrong, by how far the age is from the nearest edge.

    Args:
        table: person, age (years), predicted (class), a row a photo.

    Returns:
        edge, years, order, people, photos, wrong (share), low, high (95%, by resampling people).
    """
    ages = table["age"].to_numpy()
    wrong = table["predicted"].to_numpy() % AGE_GROUPS != [age_group(age, edges) for age in ages]
    nearest = np.abs(ages[:, None] - np.array(edges)).argmin(axis=1)
    distance = ages - np.array(edges)[nearest]
    rows = []
    for place, edge in enumerate(edges):
        for order, (years, (low, high)) in enumerate(YEARS.items()):
            here = (nearest == place) & (distance >= low) & (distance <= high)
            if not here.any():
                continue
            of_person = pd.DataFrame({"wrong": wrong[here]}).groupby(table["person"][here].array)
            counts = of_person["wrong"].agg(["sum", "size"]).to_numpy(float)
            drawn = resample_people(counts, resamples, seed)
            lowest, highest = interval(drawn[:, 0] / drawn[:, 1])
            rows.append(
                {
                    "edge": edge, "years": years, "order": order, "people": len(counts),
                    "photos": int(here.sum()), "wrong": float(wrong[here].mean()),
                    "low": float(lowest), "high": float(highest),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def surest(table: pd.DataFrame, right: bool, count: int) -> pd.DataFrame:
    """The photos of which the networks are surest, rightly or wrongly: at most one a person.

    Of the right ones at most one a class, too: the surest of all are of one common class.

    Args:
        table: person, label, predicted, sure (probability of the predicted class).
        count: of photos, at most.
    """
    asked = table[(table["predicted"] == table["label"]) == right]
    ranked = asked.sort_values("sure", ascending=False, kind="stable")
    if not right:
        return ranked.drop_duplicates("person").head(count)
    chosen: dict[Hashable, tuple[str, int]] = {}
    for place, person, label in ranked[["person", "label"]].itertuples():
        if all(person != theirs and label != its for theirs, its in chosen.values()):
            chosen[place] = person, label
    return ranked.loc[list(chosen)].head(count)


def describe(row: dict[Hashable, Any], names: Sequence[str]) -> Entry:
    """What the page says of a photo: who, which file, actual and predicted class, how sure."""
    return {
        "person": row["person"],
        "photo": row["photo"],
        "link": quote(row["path"] if Path(row["path"]).is_absolute() else f"../{row['path']}"),
        "actual": names[row["label"]],
        "predicted": names[row["predicted"]],
        "sure": row["sure"],
        "given": row[PROBABILITIES[row["label"]]],
    }


def list_cells(
    table: pd.DataFrame, crops: Pixels, names: Sequence[str], most: int
) -> dict[str, list[Entry]]:
    """The photos behind each cell of the confusion matrix, the surest first, `most` at the most.

    Args:
        table: person, photo, path, label, predicted, sure, row (of `crops`), p0 to p17.

    Returns:
        By cell, as "actual-predicted": the photos.
    """
    ranked = table.sort_values("sure", ascending=False, kind="stable")
    shown = ranked.groupby(["label", "predicted"]).head(most)
    cells: dict[str, list[Entry]] = {}
    for row in progress(shown.to_dict("records"), len(shown), "report: photos"):
        image = image_data(Image.fromarray(crops[row["row"]]))
        entry = {**describe(row, names), "image": image}
        cells.setdefault(f"{row['label']}-{row['predicted']}", []).append(entry)
    return cells


def overlay(table: pd.DataFrame, crops: Pixels, results: Path, names: Sequence[str]) -> list[Entry]:
    """What the page shows of these photos: the crop, and where its network looked.

    Each photo's map is of the class predicted, by the network that has not seen the person.

    Args:
        table: as `list_cells`, and fold.
    """
    hardware = choose_hardware("cpu", "fp32", "predict.device")
    maps: dict[int, Any] = {}
    for fold, part in table.groupby("fold"):
        path = results / f"fold{fold}" / "network.safetensors"
        (network,), _ = read_networks([path], hardware)
        pixels = torch.from_numpy(crops[part["row"].to_numpy()].copy())
        found = attention_maps(network, normalise(pixels), part["predicted"].to_list())
        maps |= dict(zip(part["row"], found, strict=True))
    entries = []
    for row in table.to_dict("records"):
        crop = crops[row["row"]]
        colours = cv2.COLORMAP_INFERNO
        seen = show_cam_on_image(crop / np.float32(255), maps[row["row"]], True, colours, 0.6)
        images = [
            image_data(Image.fromarray(image).resize((OVERLAY, OVERLAY))) for image in (crop, seen)
        ]
        entries.append({**describe(row, names), "image": images[0], "seen": images[1]})
    return entries


def verdicts(table: pd.DataFrame, classes: list[str], knobs: AggregateParams) -> dict[str, str]:
    """For each of `SCORES`, the difference to the last commit's run, and what it is worth.

    Of the photos that both have, by the labels of now. Nothing where the last commit has no
    predictions that these can be compared with.

    Args:
        table: person, photo, fold, label, predicted, a row a photo.
    """
    try:
        before = read_run("HEAD")
        first, second = shared_photos([before.predictions, table])
    except UserError:
        return {}
    if before.classes != classes or leaks(before.predictions) or leaks(table):
        return {}
    labels = second["label"].to_numpy()
    judged = judge(first, second, labels, SCORES, knobs.bootstrap, knobs.seed)
    return {
        score: f"{signed(row['difference'], row['low'], row['high'])}, {row['verdict']}"
        for score, (_, row) in zip(SCORES, judged.iterrows(), strict=True)
    }


def times(folder: Path) -> pd.DataFrame:
    """What each stage that DVC ran on this machine took: stage, seconds, ended."""
    rows = [
        {"stage": path.stem, **read_json(path)}
        for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    ]
    return pd.DataFrame(rows, columns=["stage", "seconds", "ended"])


def machine() -> dict[str, str]:
    """What the page was made on: operating system, processor, GPU, Python and packages."""
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = models[0] if models else processor
    found = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": f"{processor}, {os.cpu_count()} cores",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def flat(sections: dict[str, Any]) -> dict[str, Any]:
    """Sections of parameters as `section.key` -> value."""
    return {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in section.model_dump().items()
    }


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
    scheme, split, knobs = params.labels, params.folds, params.aggregate
    edges = scheme.age_edges
    names, values = class_names(edges), attribute_names(edges)

    known = read_stage_table(clean / "photos.csv").assign(row=lambda table: range(len(table)))
    table = read_stage_table(aggregate / "out_of_fold.csv").merge(
        known[["person", "photo", "path", "age", "row"]], on=["person", "photo"]
    )
    probabilities = table[PROBABILITIES].to_numpy(float)
    table["sure"] = probabilities.max(axis=1)
    crops = read_packed(crop / "train.npy")
    by_person = counts_of(table)

    fold_metrics = read_fold_metrics(results, split.index)
    fit = pd.DataFrame(
        {
            "fold": fold,
            "part": part,
            "macro_f1": figures[key]["macro_f1"],
            "loss": figures[key]["loss"],
            "epoch": figures["epoch"]["kept"] + 1,
        }
        for fold, figures in zip(split.index, fold_metrics, strict=True)
        for part, key in (("trained on", "train"), ("held out", "validation"))
    )
    curves = read_stage_table(aggregate / "learning_curves.csv")
    curves["epoch"] += 1
    kept = fit.loc[fit["part"] == "held out", ["fold", "epoch"]]
    bins = calibration(probabilities, table["label"].to_numpy(), params.report.bins)
    classes = pd.read_csv(aggregate / "f1_per_class.csv")
    attributes = f1_of_attributes(by_person, values, knobs.bootstrap, knobs.seed)
    ages = age_errors(table, edges, knobs.bootstrap, knobs.seed)
    # What was made from these; the knobs of the pages themselves change no score.
    sections = {
        "sample": params.sample, "labels": scheme, "clean": params.clean,
        "crop": params.crop, "duplicates": params.duplicates, "folds": split,
        "weights": params.weights, "train": params.train, "aggregate": knobs,
        "predict": params.predict, "suspects": params.suspects,
    }  # fmt: skip
    page = render(
        "report.html",
        metrics=read_json(metrics),
        before=read_metrics("HEAD", metrics),
        verdicts=verdicts(table, names, knobs),
        git=git_state(),
        names=names,
        score_names=NAMES,
        counts=by_person.sum(axis=0).astype(int).tolist(),
        cells=list_cells(table, crops, names, params.report.photos_per_cell),
        most=params.report.photos_per_cell,
        classes=classes,
        attributes=attributes,
        ages=ages,
        bins=bins,
        calibration_error=expected_calibration_error(bins),
        fit=fit,
        losses=curves.pivot(index=["fold", "epoch"], columns="curve", values="loss").reset_index(),
        wrong=overlay(surest(table, False, params.report.examples), crops, results, names),
        right=overlay(surest(table, True, params.report.examples), crops, results, names),
        charts={
            "f1": charts.f1_chart(classes.rename(columns={"class": "name"})),
            "curves": charts.learning_chart(curves, kept),
            "calibration": charts.calibration_chart(bins),
            "ages": charts.age_chart(ages),
            "fit": charts.fit_chart(fit),
        },
        stages={
            "clean": read_json(clean / "metrics.json"),
            "crop": read_json(crop / "metrics.json"),
            "duplicates": read_json(duplicates),
            "folds": read_json(folds),
            "weights": read_json(weights),
            "train": fold_metrics,
            "suspects": read_json(suspects),
        },
        rejected=read_stage_table(clean / "rejected.csv"),
        times=times(TIMES),
        machine=machine(),
        params=flat(sections),
    )
    with write_whole(out) as file:
        file.write(page.encode())
    print(f"report: {len(table)} photos, {len(page) / 1e6:.1f} MB; open {out} in a browser")


if __name__ == "__main__":
    main()
