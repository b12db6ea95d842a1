"""The whole pipeline with real DVC, on a small drawn sample, in a repository of its own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from face_attributes.inference.ensemble import ensemble_probabilities, read_networks
from face_attributes.networks.device import choose_hardware
from face_attributes.photos.packed import read_packed
from face_attributes.photos.tables import HOLDOUT, PROBABILITIES
from tests.project import PEOPLE, Project

pytestmark = pytest.mark.slow

TRAIN = {"train@0", "train@1"}
PAGES = {"review", "report", "model_card"}
READS_LABELS = {"sample", "clean", "folds", "aggregate", "suspects"} | TRAIN | PAGES
EVERYTHING = {
    "sample", "clean", "crop", "duplicates", "folds", "weights", "predict", "aggregate", "suspects",
} | TRAIN | PAGES  # fmt: skip


def test_the_first_run_runs_every_stage_and_a_second_one_nothing(project: Project) -> None:
    assert set((project.folder / ".git/first_run.txt").read_text().split()) == EVERYTHING
    assert project.repro() == set()
    assert project.outdated() == set()


def test_a_run_writes_scores_and_a_submission(project: Project) -> None:
    metrics = project.metrics()
    assert {"macro_f1", "accuracy", "interval_95", "folds", "f1_per_class", "evaluation"} <= set(
        metrics
    )
    assert 0 < metrics["macro_f1"] < 1
    info = pd.read_csv(project.folder / "data/sample/eval/info.csv")
    submission = pd.read_csv(project.folder / "data/submission.csv")
    assert list(submission) == ["ImageID", "ans"]
    assert (submission["ImageID"] == info["ImageID"]).all()
    assert submission["ans"].between(0, 17).all()
    out_of_fold = pd.read_csv(project.folder / "data/aggregate/out_of_fold.csv")
    assert len(out_of_fold) == PEOPLE * 7
    assert (out_of_fold.groupby("person")["fold"].nunique() == 1).all()


def test_out_of_fold_scores_average_the_same_views_as_predictions(project: Project) -> None:
    """Out-of-fold photos over mirror images and zoomed views, training photos over the former."""
    data, hardware = project.folder / "data", choose_hardware("cpu", "auto", "device")
    networks, (recipe,) = read_networks([data / "train/fold0/network.safetensors"], hardware)
    pixels = read_packed(data / "crop/train")
    photos = pd.read_csv(data / "folds/folds.csv")
    held_out = (photos["fold"] == 0).to_numpy()
    written = pd.read_csv(data / "train/fold0/out_of_fold.csv")[PROBABILITIES].to_numpy()
    loss = json.loads((data / "train/fold0/metrics.json").read_text())["train"]["loss"]

    def distances(zoom: float) -> tuple[float, float]:
        views = recipe.prediction.model_copy(update={"zoom": zoom})
        same = recipe.model_copy(update={"prediction": views, "temperature": 1.0})
        means = ensemble_probabilities(networks, pixels, [same], hardware, 256)
        right = means[np.arange(len(means)), photos["label"]][~held_out]
        return abs(means[held_out] - written).mean(), abs(-np.log(right).mean() - loss)

    zoomed, plain = distances(0.1), distances(0.0)
    assert zoomed[0] < plain[0] / 3
    assert plain[1] < zoomed[1] / 3


def test_git_tracks_metrics_and_nothing_that_dvc_tracks(project: Project) -> None:
    tracked = project.run("git", "ls-files").split()
    assert {"metrics.json", "dvc.lock"} <= set(tracked)
    assert not [name for name in tracked if name.endswith((".npy", ".jpg", ".safetensors"))]
    assert "data/submission.csv" not in tracked
    assert project.run("git", "status", "--porcelain") == ""


def test_the_same_run_again_gives_the_same_bytes(project: Project) -> None:
    before = project.checksums(), (project.folder / "metrics.json").read_bytes()
    stages = ("crop", "train@1", "predict", "aggregate", "review", "model_card")
    assert project.repro("--force", "--no-run-cache", "--single-item", *stages) == set(stages)
    assert (project.checksums(), (project.folder / "metrics.json").read_bytes()) == before


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("sample", {"seed": 5}, {"sample", "report"}),
        ("clean", {"max_rejected": 0.5}, {"clean", "report"}),
        ("labels", {"age_edges": [30, 58]}, READS_LABELS),
        ("crop", {"margin": 1.2}, {"crop", "weights", "report", "model_card"} | TRAIN),
        ("crop", {"side": 48}, {"crop", "weights", "report", "model_card"} | TRAIN),
        ("duplicates", {"similarity": 0.99}, {"duplicates", "report"}),
        ("folds", {"seed": 3}, {"folds", "report"}),
        ("folds", {"holdout": 0.25}, {"folds", "report"}),
        ("weights", {"seed": 3}, {"weights", "report"}),
        ("train", {"freeze": "layer4"}, {"report", "model_card"} | TRAIN),
        ("train", {"device": "cpu"}, {"weights", "predict", "report", "model_card"} | TRAIN),
        ("predict", {"tau": 1.0}, {"predict", "report"}),
        ("aggregate", {"bootstrap": 200}, {"aggregate", "report", "model_card"}),
        ("suspects", {"min_score": 0.0}, {"suspects", "report"}),
        ("review", {"thumbnail": 64}, {"review"}),
        ("report", {"examples": 5}, {"report"}),
        ("model_card", {"min_people": 4}, {"model_card"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_parameter_outdates_exactly_the_stages_that_read_it(
    project: Project, section: str, values: dict[str, object], expected: set[str]
) -> None:
    project.set(**{section: values})
    assert project.outdated() == expected
    project.run("git", "checkout", "-q", "params.yaml")


def test_a_holdout_is_in_no_fold_and_scored_by_all_networks(project: Project) -> None:
    data = project.folder / "data"
    assert "holdout" not in project.metrics()
    assert pd.read_csv(data / "predict/holdout.csv").empty
    project.set(folds={"holdout": 0.25})
    assert project.repro() == EVERYTHING - {"sample", "clean", "crop", "duplicates", "weights"}

    folds = pd.read_csv(data / "folds/folds.csv", dtype={"person": str})
    in_holdout = (folds["fold"] == HOLDOUT).to_numpy()
    held_out = set(folds.loc[in_holdout, "person"])
    assert len(held_out) >= 6 and held_out.isdisjoint(folds.loc[~in_holdout, "person"])
    out_of_fold = pd.read_csv(data / "aggregate/out_of_fold.csv", dtype={"person": str})
    assert set(out_of_fold["person"]) == set(folds.loc[~in_holdout, "person"])
    holdout = pd.read_csv(data / "predict/holdout.csv", dtype={"person": str})
    assert holdout["photo"].to_list() == folds.loc[in_holdout, "photo"].to_list()
    hardware = choose_hardware("cpu", "auto", "device")
    paths = [data / f"train/fold{fold}/network.safetensors" for fold in (0, 1)]
    networks, recipe = read_networks(paths, hardware)
    pixels = read_packed(data / "crop/train")[in_holdout]
    means = ensemble_probabilities(networks, pixels, recipe, hardware, 256)
    assert holdout[PROBABILITIES].to_numpy() == pytest.approx(means, abs=0.01)

    scores = project.metrics()["holdout"]
    assert (scores["people"], scores["photos"]) == (len(held_out), in_holdout.sum())
    assert scores["interval_95"]["macro_f1"]["low"] <= scores["interval_95"]["macro_f1"]["high"]
    assert "of the rarest class" in (project.folder / "reports/report.html").read_text()
    assert "holdout (95%)" in (project.folder / "reports/model_card.md").read_text()
    assert "No comparison on the holdout" in project.python("commands.compare", "HEAD")
    project.run("git", "commit", "-qam", "a holdout")
    text = project.python("commands.compare", "HEAD")
    assert "The holdout, people in no fold, by the networks of all folds together" in text
    project.run("git", "reset", "-q", "--hard", "HEAD~1")
    project.restore()
    assert project.outdated() == set()


def test_a_corrected_label_crops_no_photo_again(project: Project) -> None:
    person, gender = pd.read_csv(project.folder / "data/clean/photos.csv", dtype=str).loc[
        0, ["person", "gender"]
    ]
    other = {"male": "female", "female": "male"}[gender]
    with (project.folder / "data/none.csv").open("a") as file:
        file.write(f"{person},,gender,{gender},{other},seen\n")
    assert project.repro("folds") == {"clean", "folds"}
    project.restore()


FRAME = ["command", "errors", "files", "params", "processes", "progress", "revisions"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([f"face_attributes/{name}.py" for name in FRAME], set[str]()),
        (["face_attributes/networks/device.py"], {"weights", "predict", "report"} | TRAIN),
        (["face_attributes/training/loop.py"], TRAIN),
        (["face_attributes/faces/cut.py"], {"crop", "weights"}),
        (["face_attributes/scoring/groups.py"], {"predict", "aggregate", "report", "model_card"}),
        (["face_attributes/pages/report.html"], {"report"}),
        (["face_attributes/pages/review.html"], {"review"}),
        (["face_attributes/pages/model_card.md"], {"model_card"}),
        (["face_attributes/pages/demo.html", "commands/classify.py"], set[str]()),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_an_edit_of_code_outdates_exactly_the_stages_whose_results_it_can_change(
    project: Project, names: list[str], expected: set[str]
) -> None:
    for name in names:
        with (project.folder / name).open("a") as file:
            file.write("\n# edited\n")
    assert project.outdated() == expected
    project.run("git", "checkout", "-q", ".")


def test_a_fold_that_is_not_listed_any_more_leaves_nothing(project: Project) -> None:
    before, results = project.metrics(), project.folder / "data/train"
    shutil.copytree(results / "fold1", results / "fold2")
    assert project.repro("aggregate") <= {"predict", "aggregate"}
    assert not (results / "fold2").exists()
    assert project.metrics() == before
    project.restore()
    assert project.outdated() == set()


def test_more_folds_outdate_training_and_everything_that_lists_folds(project: Project) -> None:
    project.set(folds={"index": [0, 1, 2]})
    assert project.outdated() == {"folds", "train@2", "predict", "aggregate", "report"}
    project.run("git", "checkout", "-q", "params.yaml")


def test_an_error_is_one_line_and_earlier_results_can_be_restored(project: Project) -> None:
    before = (project.folder / "metrics.json").read_bytes()
    project.set(train={"freeze": "layer9"})
    output = project.run("dvc", "repro", code=1)
    assert "error: train.freeze: this network has no part 'layer9'" in output
    assert "conv1, layer1, layer2, layer3, layer4" in output
    assert "`dvc checkout` restores them" in output
    assert "Traceback" not in output
    assert (project.folder / "metrics.json").read_bytes() == before
    project.restore()
    assert (project.folder / "data/train/fold0/network.safetensors").exists()
    assert project.outdated() == set()


def test_a_failed_aggregate_keeps_the_scores_of_the_run_before(project: Project) -> None:
    """DVC's cache does not have metrics.json: what is not committed would be lost."""
    (project.folder / "metrics.json").write_text("uncommitted")
    (project.folder / "data/answers.csv").write_text("ImageID,ans\nnobody.jpg,0\n")
    project.set(data={"answers": "data/answers.csv"})
    output = project.run("dvc", "repro", "aggregate", code=1)
    assert "data/answers.csv, row 2" in output
    assert (project.folder / "metrics.json").read_text() == "uncommitted"
    project.restore()
    assert project.outdated() == set()


def test_the_ensemble_can_be_registered_and_downloaded(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.run("git", "commit", "-qam", "a remote")
    project.run("dvc", "push", "train")
    project.run("gto", "register", "ensemble", "--version", "v1.0.0")
    assert "v1.0.0" in project.run("gto", "show", "ensemble")
    origin, copy = tmp_path / "origin", tmp_path / "ensemble"
    project.run("git", "clone", "-q", "--bare", ".", str(origin))
    where = ("--rev", "v1.0.0", "--out", str(copy))
    project.run("dvc", "artifacts", "get", str(origin), "ensemble", *where)
    for fold in ("fold0", "fold1"):
        network = f"{fold}/network.safetensors"
        original = project.folder / "data/train" / network
        assert (copy / network).read_bytes() == original.read_bytes()
