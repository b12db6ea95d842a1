"""Scores of all folds together, and predictions by all of their networks."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from stages import aggregate, predict, show, weights
from stages.learning.device import normalise
from stages.learning.network import build
from stages.learning.weight_files import write_weights
from stages.params import read_params
from stages.photos.packed import write_packed
from stages.photos.tables import PROBABILITIES
from stages.scoring.out_of_fold import remove_stale_folds
from stages.train import recipe_of
from tests.conftest import Change, Run

SIDE = 32


def write_fold(fold: int, right: bool) -> None:
    """A fold's results in data/train: two people with all classes between them."""
    folder = Path(f"data/train/fold{fold}")
    folder.mkdir(parents=True)
    labels = np.arange(18)
    predicted = labels if right else (labels + 6) % 18  # the mask wrong, gender and age right
    table = pd.DataFrame(
        {"person": [f"f{fold}p{label % 2}" for label in labels], "photo": "x", "fold": fold}
    )
    table["label"] = labels
    table[PROBABILITIES] = np.eye(18)[predicted]
    table.to_csv(folder / "out_of_fold.csv", index=False)
    scores = {"loss": 1.0 + fold, "macro_f1": 0.5, "accuracy": 0.5}
    (folder / "metrics.json").write_text(json.dumps({"train": scores, "validation": scores}))
    history = {"epoch": [0, 1], "train_loss": [2.0, 1.0], "validation_loss": [2.5, 1.5]}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)


@pytest.fixture
def two_folds(change: Change) -> None:
    """One fold all right, one with every mask wrong; two evaluation photos."""
    change("folds.index", [0, 1])
    change("aggregate.bootstrap", 200)
    write_fold(0, right=True)
    write_fold(1, right=False)
    pd.DataFrame({"ImageID": ["b.jpg", "a.jpg"], "ans": [3, 4]}).to_csv("s.csv", index=False)
    Path("answers.csv").write_text("ImageID,ans\na.jpg,4\nb.jpg,5\n")


def score(run: Run, code: int = 0) -> str:
    arguments = ["data/train", "s.csv", "answers.csv", "out", "metrics.json"]
    return run(aggregate.main, *arguments, code=code).output


@pytest.mark.usefixtures("two_folds")
def test_metrics_json_holds_the_scores_of_all_folds(run: Run) -> None:
    score(run)
    metrics = json.loads(Path("metrics.json").read_text())
    assert metrics["accuracy"] == 0.5
    assert metrics["macro_f1"] == 0.5
    assert metrics["gender_macro_f1"] == metrics["age_macro_f1"] == 1
    assert metrics["mask_macro_f1"] == pytest.approx(0.5)
    assert metrics["folds"]["macro_f1_mean"] == 0.5
    assert metrics["folds"]["macro_f1_std"] == pytest.approx(np.std([0, 1], ddof=1), abs=1e-6)
    assert metrics["validation"]["loss"] == 1.5
    assert len(metrics["f1_per_class"]) == 18
    assert metrics["interval_95"]["accuracy"]["low"] < 0.5
    assert metrics["interval_95"]["accuracy"]["high"] > 0.5
    assert metrics["evaluation"]["accuracy"] == 0.5


@pytest.mark.usefixtures("two_folds")
def test_tables_hold_every_photo_every_class_and_every_curve(run: Run) -> None:
    score(run)
    table = pd.read_csv("out/out_of_fold.csv")
    assert len(table) == 36
    assert (table["predicted"] == table["label"]).sum() == 18
    confusion = pd.read_csv("out/confusion.csv")
    assert len(confusion) == 18 * 18
    assert confusion["photos"].sum() == 36
    right = confusion[confusion["actual"] == confusion["predicted"]]
    assert len(right) == 18 and right["photos"].sum() == 18
    assert confusion.groupby("actual")["share"].sum().isin([0, 1]).all()
    classes = pd.read_csv("out/f1_per_class.csv")
    assert (classes["low"] <= classes["f1"]).all()
    assert (classes["f1"] <= classes["high"]).all()
    curves = pd.read_csv("out/learning_curves.csv")
    assert curves.groupby(["fold", "curve"]).size().to_dict() == {
        (fold, curve): 2 for fold in (0, 1) for curve in ("training", "validation")
    }


@pytest.mark.usefixtures("two_folds")
def test_without_answers_there_is_no_evaluation_score(run: Run) -> None:
    Path("answers.csv").write_text("ImageID,ans\n")
    score(run)
    assert json.loads(Path("metrics.json").read_text())["evaluation"] == {}
    run(show.main)


@pytest.mark.usefixtures("two_folds")
def test_answers_to_some_photos_score_those(run: Run) -> None:
    Path("answers.csv").write_text("ImageID,ans\nb.jpg,4\n")
    assert "answers.csv has answers for 1 of 2 photos" in score(run)
    assert json.loads(Path("metrics.json").read_text())["evaluation"]["accuracy"] in (0, 1)


@pytest.mark.usefixtures("two_folds")
@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("a.jpg,4\nb.jpg,18\n", "row 3: ans '18' is not a class"),
        ("a.jpg,4\nb.jpg,4\nc.jpg,4\n", "row 4: info.csv has no photo 'c.jpg'"),
        ("a.jpg,4\nb.jpg,4\na.jpg,4\n", "row 4: its photo has a row above"),
    ],
)
def test_answers_that_do_not_fit_stop_the_run(run: Run, answers: str, message: str) -> None:
    Path("answers.csv").write_text("ImageID,ans\n" + answers)
    Path("metrics.json").write_text("{}")
    assert message in score(run, code=1)
    assert Path("metrics.json").read_text() == "{}"


@pytest.mark.usefixtures("two_folds")
def test_show_prints_the_scores(run: Run) -> None:
    score(run)
    output = run(show.main).output
    assert "0.500" in output
    assert "data/submission.csv" in output


def test_show_without_scores_says_what_makes_them(run: Run) -> None:
    assert "metrics.json is missing: `dvc repro` makes it" in run(show.main, code=1).output


def test_folders_of_folds_that_are_gone_are_deleted(tmp_path: Path) -> None:
    for fold in range(4):
        (tmp_path / f"fold{fold}").mkdir()
    (tmp_path / "fold_notes.txt").write_text("not a fold")
    (tmp_path / "fold0_before").mkdir()
    remove_stale_folds(tmp_path, [0, 1])
    kept = ["fold0", "fold0_before", "fold1", "fold_notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_predictions_are_the_folds_mean_in_the_order_of_info(run: Run, change: Change) -> None:
    change("folds.index", [0, 1])
    change("train.precision", "fp32")
    change("predict.precision", "fp32")
    change("train.flip_at_test", False)
    change("train.heads", "joint")
    change("crop.side", SIDE)
    Path("fallback.json").write_text('{"box": null}')
    recipe = recipe_of(read_params(), Path("fallback.json"))
    for fold in range(2):
        state = build("resnet18", SIDE, seed=fold).state_dict()
        write_weights(Path(f"data/train/fold{fold}/network.safetensors"), state, recipe)
    crops = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    write_packed(Path("evaluation.npy"), crops, 2, SIDE)
    rows = "photo,path,rejected\nz.jpg,z,\nbroken.jpg,b,truncated\na.jpg,a,\n"
    Path("evaluation.csv").write_text(rows)
    Path("folds.csv").write_text("person,photo,label,fold\np,x,7,0\np,y,7,1\nq,z,3,1\n")
    arguments = ["data/train", "evaluation.npy", "evaluation.csv", "folds.csv", "p.csv", "s.csv"]
    run(predict.main, *arguments)

    submission = pd.read_csv("s.csv")
    assert list(submission) == ["ImageID", "ans"]
    assert submission["ImageID"].to_list() == ["z.jpg", "broken.jpg", "a.jpg"]
    assert submission["ans"][1] == 7
    probabilities = pd.read_csv("p.csv")[PROBABILITIES].to_numpy()
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-4)
    images = normalise(torch.from_numpy(crops[:1]))
    with torch.inference_mode():
        each = [build("resnet18", SIDE, seed=fold).eval()(images).softmax(1) for fold in range(2)]
    assert probabilities[0] == pytest.approx(((each[0] + each[1]) / 2).numpy()[0], abs=1e-4)


def test_every_stage_has_help(run: Run) -> None:
    for command in (aggregate.main, predict.main, weights.main):
        assert "Usage" in run(command, "--help").output
