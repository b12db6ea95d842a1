"""A finished run in a folder, as the stages before the report and the model card leave it."""

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from face_attributes.files import write_json
from face_attributes.networks.build import build
from face_attributes.networks.recipe import make_recipe
from face_attributes.networks.weight_files import write_weights
from face_attributes.params import read_params
from face_attributes.photos.tables import HOLDOUT, probability_table, read_stage_table
from stages import aggregate, clean, crop
from tests.conftest import ROOT, run_stage, set_param, write_raw

SIDE = 32
FEMALE, YOUNG, OLD = "000001_female_Any_25", "000001_male_Any_30", "3_male_Any_60"
MARKUP = f"{OLD}<img src=x onerror=alert(1)>"
"""The old man's folder is renamed to this."""


def write_finished_run(folder: Path, holdout: str = "nobody") -> Path:
    """Write a run on the people of `write_raw` to `folder`.

    The woman is in fold 0, where all predictions are correct; the men are in fold 1, where all are
    predicted as women. `holdout` is in no fold.
    """
    with contextlib.chdir(folder):
        shutil.copy(ROOT / "params.yaml", folder)
        values = {
            "crop.side": SIDE, "crop.detector": "none", "weights.model": "resnet18",
            "folds.index": [0, 1], "aggregate.bootstrap": 100, "model_card.min_people": 2,
        }  # fmt: skip
        for key, value in values.items():
            set_param(key, value)
        raw = write_raw(folder / "raw")
        (raw / "train/images" / OLD).rename(raw / "train/images" / MARKUP)
        people = raw / "train/train.csv"
        people.write_text(people.read_text().replace(f",{OLD}", f",{MARKUP}"))
        (raw / "answers.csv").write_text("ImageID,ans\n")
        Path("submission.csv").write_text("ImageID,ans\nb.jpg,0\na.jpg,0\n")
        run_stage(clean.main, raw / "train", raw / "eval", raw / "corrections.csv", "clean")
        run_stage(crop.main, "clean", "data/detectors", "crop")
        write_stage_metrics()
        photos = read_stage_table(Path("clean/photos.csv"))
        photos["fold"] = (photos["person"] != FEMALE).astype(int)
        photos.loc[photos["person"] == holdout, "fold"] = HOLDOUT
        for fold in (0, 1):
            write_fold(fold, photos[photos["fold"] == fold])
        predict(photos[photos["fold"] == HOLDOUT]).to_csv("holdout.csv", index=False)
        evaluation = pd.DataFrame({"photo": ["b.jpg", "a.jpg"]})
        uniform = np.full((2, 18), 1 / 18, dtype=np.float32)
        probability_table(evaluation, uniform).to_csv("probabilities.csv", index=False)
        inputs = ["train", ".", "submission.csv", raw / "answers.csv"]
        run_stage(aggregate.main, *inputs, "aggregate", "metrics.json")
    return folder


def write_stage_metrics() -> None:
    """Write the metrics of the stages that these runs leave out."""
    pairs = dict.fromkeys(["within_a_person", "across_people", "in_training_and_evaluation"], 1)
    write_json(Path("duplicates.json"), pairs)
    write_json(Path("weights.json"), {"model": "resnet18", "source": "none", "sha256": ""})
    write_json(
        Path("folds.json"),
        {"folds": 2, "people_in_two_folds": 0, "people_who_share_photos": 0,
         "photos": {"0": 7, "1": 14}, "rarest_class_photos": 1, "worst_class_deviation": 0.5},
    )  # fmt: skip
    kinds = dict.fromkeys(["gender", "age", "age_edge", "mask", "swap", "duplicate"], 1)
    write_json(Path("suspects.json"), {**kinds, "rejected_before": 0, "refused": False})


def predict(photos: pd.DataFrame) -> pd.DataFrame:
    """Invent predictions with the men's gender wrong."""
    predicted = photos["label"] + 3 * (photos["gender"] == "male")
    probabilities = np.full((len(photos), 18), 0.01, dtype=np.float32)
    probabilities[np.arange(len(photos)), predicted] = np.linspace(0.6, 0.83, len(photos))
    return probability_table(photos[["person", "photo", "fold", "label"]], probabilities)


def write_fold(fold: int, photos: pd.DataFrame) -> None:
    """Write a fold's results: a random network, and predictions."""
    folder = Path(f"train/fold{fold}")
    recipe = make_recipe(read_params(), None, 1.0)
    state = build(recipe.model, SIDE, recipe.heads, seed=fold).state_dict()
    write_weights(folder / "network.safetensors", state, recipe)
    predict(photos).to_csv(folder / "out_of_fold.csv", index=False)
    scores = {"loss": 1.0, "macro_f1": 1.0 - fold, "accuracy": 1.0 - fold}
    metrics = {
        "epoch": {"kept": 1, "run": 2}, "train": scores, "validation": scores,
        "parameters": {"trainable": 5, "frozen": 3, "total": 8},
    }  # fmt: skip
    write_json(folder / "metrics.json", metrics)
    history = {"epoch": [0, 1], "train_loss": [2.0, 1.0], "validation_loss": [2.5, 1.5]}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
