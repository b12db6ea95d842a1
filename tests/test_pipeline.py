"""The whole pipeline with real DVC, on a small drawn set, in a repository of its own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import vl_convert
from PIL import Image
from ruamel.yaml import YAML

from benchmarks.freeze_ladder import dvc_command, queue_status
from stages.learning.device import choose_hardware
from stages.learning.ensemble import mean_probabilities, read_networks
from stages.photos.packed import read_packed
from stages.photos.tables import PROBABILITIES
from tests.conftest import ROOT

PEOPLE = 36
SMALL = {
    "data": {"corrections": "data/none.csv"},
    "sample": {"people": PEOPLE, "evaluation_people": 3},
    "crop": {"side": 32},
    "folds": {"index": [0, 1]},
    "train": {"epochs": 1, "zoom_at_test": 0.1},
    "aggregate": {"bootstrap": 100},
}
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
}  # fmt: skip
TITLES = ["Out-of-fold photos", "F1 per class", "Loss in each fold"]
SHOWN = {"report", "model_card"}
TRAINED = {"train@0", "train@1", "predict", "aggregate", "suspects", "review"} | SHOWN


class Project:
    """A clone of the project with a small sample, to run commands in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command; its output, both streams together, without that of what it leaves running.

        The latter holds on to a pipe.
        """
        with tempfile.TemporaryFile("w+") as output:
            result = subprocess.run(
                command, cwd=self.folder, env=ENVIRONMENT, stdout=output, stderr=output, timeout=900
            )
            output.seek(0)
            said = output.read()
        assert (result.returncode == 0) == (code == 0), said
        return said

    def repro(self, *options: str) -> set[str]:
        """Reproduce; the stages that ran, or came from the run cache."""
        output = self.run("dvc", "repro", *options)
        return set(re.findall(r"(?:Running stage|Stage) '([\w@]+)'(?::| is cached)", output))

    def set(self, **sections: dict[str, object]) -> None:
        """Change values in params.yaml: set(train={"freeze": "layer3"})."""
        yaml, path = YAML(), self.folder / "params.yaml"
        content = yaml.load(path)
        for section, values in sections.items():
            content[section].update(values)
        yaml.dump(content, path)

    def metrics(self) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.folder / "metrics.json").read_text())
        return content

    def checksums(self) -> dict[str, str]:
        """What dvc.lock says of every output but the report, which has times: path -> md5."""
        lock = YAML(typ="safe").load(self.folder / "dvc.lock")
        outs = [out for stage in lock["stages"].values() for out in stage.get("outs", [])]
        return {out["path"]: out["md5"] for out in outs if out["path"] != "reports/report.html"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, committed, after its first `dvc repro`."""
    folder = tmp_path_factory.mktemp("project")
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for name in names:
        if not name.startswith("tests/") and name not in ("dvc.lock", "metrics.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    here = Project(folder)
    here.set(**SMALL)
    (folder / "data" / "none.csv").write_text("person,photo,field,old,new,reason\n")
    here.run("git", "init", "-q")
    here.run("git", "add", "--all")
    here.run("git", "add", "--force", "data/none.csv")
    everything = {"sample", "clean", "crop", "duplicates", "folds", "weights"} | TRAINED
    assert here.repro() == everything
    here.run("git", "add", "--all")
    here.run("git", "commit", "-qm", "baseline")
    return here


def test_scores_and_a_submission_come_out(project: Project) -> None:
    metrics = project.metrics()
    assert {"macro_f1", "accuracy", "interval_95", "folds", "f1_per_class", "evaluation"} <= set(
        metrics
    )
    assert 0 < float(str(metrics["macro_f1"])) < 1
    info = pd.read_csv(project.folder / "data/sample/eval/info.csv")
    submission = pd.read_csv(project.folder / "data/submission.csv")
    assert list(submission) == ["ImageID", "ans"]
    assert (submission["ImageID"] == info["ImageID"]).all()
    assert submission["ans"].between(0, 17).all()
    out_of_fold = pd.read_csv(project.folder / "data/aggregate/out_of_fold.csv")
    assert len(out_of_fold) == PEOPLE * 7
    assert (out_of_fold.groupby("person")["fold"].nunique() == 1).all()


def test_scores_are_of_the_views_that_photos_are_predicted_with(project: Project) -> None:
    """Held out and in training: mirror images, nearer and farther, as `predict` has them."""
    data, hardware = project.folder / "data", choose_hardware("cpu", "auto", "device")
    networks, recipe = read_networks([data / "train/fold0/network.safetensors"], hardware)
    pixels = torch.from_numpy(np.array(read_packed(data / "crop/train.npy")))
    photos = pd.read_csv(data / "folds/folds.csv")
    held_out = (photos["fold"] == 0).to_numpy()
    told = pd.read_csv(data / "train/fold0/out_of_fold.csv")[PROBABILITIES].to_numpy()
    loss = json.loads((data / "train/fold0/metrics.json").read_text())["train"]["loss"]

    def distances(zoom: float) -> tuple[float, float]:
        of_views = recipe.model_copy(update={"zoom_at_test": zoom})
        means = mean_probabilities(networks, pixels, of_views, hardware, 256)
        right = means[np.arange(len(means)), photos["label"]][~held_out]
        return abs(means[held_out] - told).mean(), abs(-np.log(right).mean() - loss)

    for zoomed, plain in zip(distances(0.1), distances(0.0), strict=True):
        assert zoomed < plain / 3


def test_git_tracks_metrics_and_nothing_that_dvc_has(project: Project) -> None:
    tracked = project.run("git", "ls-files").split()
    assert {"metrics.json", "dvc.lock"} <= set(tracked)
    assert not [name for name in tracked if name.endswith((".npy", ".jpg", ".safetensors"))]
    assert "data/submission.csv" not in tracked
    assert project.run("git", "status", "--porcelain") == ""


def test_a_second_time_does_nothing(project: Project) -> None:
    assert project.repro() == set()


def test_the_same_again_gives_the_same_bytes(project: Project) -> None:
    before = project.checksums(), (project.folder / "metrics.json").read_bytes()
    everything_but_the_report = ("review", "model_card")  # that has times in it
    ran = project.repro("--force", "--no-run-cache", *everything_but_the_report)
    assert "train@1" in ran
    assert (project.checksums(), (project.folder / "metrics.json").read_bytes()) == before


@pytest.mark.parametrize(
    ("section", "values", "expected"),
    [
        ("aggregate", {"seed": 5}, {"aggregate"} | SHOWN),
        ("predict", {"tau": 1.0}, {"predict", "aggregate"} | SHOWN),
        ("train", {"freeze": "layer4"}, TRAINED),
        ("weights", {"seed": 3}, {"weights"} | TRAINED),
        ("folds", {"seed": 3}, {"folds"} | TRAINED),
        ("crop", {"margin": 1.2}, {"crop", "duplicates"} | TRAINED),
        ("duplicates", {"similarity": 0.99}, {"duplicates", "report"}),
        ("suspects", {"min_score": 0.0}, {"suspects", "review", "report"}),
        ("review", {"thumbnail": 64}, {"review"}),
        ("report", {"bins": 5}, SHOWN),
        ("model_card", {"min_people": 4}, {"model_card"}),
        ("clean", {"max_rejected": 0.5}, {"clean", "report"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_knob_runs_exactly_the_stages_that_read_it(
    project: Project, section: str, values: dict[str, object], expected: set[str]
) -> None:
    project.set(**{section: values})
    assert project.repro() == expected
    project.run("git", "checkout", "-q", "params.yaml")
    project.repro()
    assert project.run("git", "status", "--porcelain") == ""


def test_folds_that_come_and_go_leave_nothing(project: Project) -> None:
    before = project.metrics()
    project.set(folds={"index": [0, 1, 2]})
    assert "train@2" in project.repro()
    assert (project.folder / "data/train/fold2/network.safetensors").exists()
    assert project.metrics() != before
    project.run("git", "checkout", "-q", "params.yaml")
    project.repro()
    assert not (project.folder / "data/train/fold2").exists()
    assert project.metrics() == before
    assert project.repro() == set()


def test_the_ensemble_can_be_registered_and_downloaded(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.run("git", "commit", "-qam", "a remote")
    project.run("dvc", "push", "train")
    project.run("gto", "register", "ensemble", "--version", "v1.0.0")
    assert "v1.0.0" in project.run("gto", "show", "ensemble")
    origin, got = tmp_path / "origin", tmp_path / "ensemble"
    project.run("git", "clone", "-q", "--bare", ".", str(origin))
    place = ("--rev", "v1.0.0", "--out", str(got))
    project.run("dvc", "artifacts", "get", str(origin), "ensemble", *place)
    for fold in ("fold0", "fold1"):
        network = f"{fold}/network.safetensors"
        there = project.folder / "data/train" / network
        assert (got / network).read_bytes() == there.read_bytes()


def test_experiments_can_be_run_compared_and_shown(project: Project) -> None:
    output = project.run("dvc", "exp", "run", "-n", "frozen", "-S", "train.freeze=layer3")
    assert "resnet18 frozen to layer3" in output or "is cached" in output
    assert "macro_f1" in project.run("dvc", "metrics", "diff")
    shown = project.run("dvc", "exp", "show", "--csv")
    assert "frozen" in shown
    assert "layer3" in shown
    project.run("dvc", "plots", "show", "--out", "page")
    page = (project.folder / "page" / "index.html").read_text()
    for title in TITLES:
        assert title in page
    project.run("dvc", "plots", "diff", "HEAD", "frozen", "--out", "page")
    page = (project.folder / "page" / "index.html").read_text()
    drawn = [
        json.JSONDecoder().raw_decode(page, found.end())[0]
        for found in re.finditer("var spec = ", page)
    ]
    for title in TITLES:
        (plot,) = (each for each in drawn if title in str(each["title"]))
        assert {row["rev"] for row in plot["data"]["values"]} == {"HEAD", "frozen"}
        assert "<svg" in vl_convert.vegalite_to_svg(plot)
    for revision in ("HEAD", "frozen"):
        sheet = f"static/{revision}_data_crop_contact_sheet.png"
        assert sheet in page and (project.folder / "page" / sheet).exists()
    shutil.rmtree(project.folder / "page")
    compared = project.run(sys.executable, "-m", "stages.compare", "HEAD", "frozen")
    assert f"HEAD (before) and frozen (after): {PEOPLE * 7} photos of {PEOPLE} people" in compared
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout")


def test_a_sweep_is_queued_and_run_with_photos_and_weights_of_ones_own(project: Project) -> None:
    data, source = project.folder / "data", "data/pretrained/own.safetensors"
    shutil.copytree(data / "sample", data / "raw")
    shutil.copy(data / "train/fold0/network.safetensors", project.folder / source)
    project.set(
        data={"train": "data/raw/train", "eval": "data/raw/eval"}, weights={"source": source}
    )
    project.run("dvc", "add", "data/raw", source)
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "photos and weights of my own")
    project.run("dvc", "exp", "run", "--queue", "-S", "train.freeze=layer3,layer4")
    project.run("dvc", "queue", "start", "-j", "1")
    for _ in range(300):
        status = project.run("dvc", "queue", "status")
        if "Queued" not in status and "Running" not in status:
            break
        time.sleep(1)
    assert status.count("Success") == 2, status
    project.run("dvc", "queue", "stop", "--kill")
    project.run("git", "reset", "-q", "--hard", "HEAD~1")
    shutil.rmtree(data / "raw")
    (project.folder / source).unlink()
    project.run("dvc", "checkout")


def test_the_freeze_ladder_compares_freeze_points(project: Project) -> None:
    ladder = [sys.executable, "-m", "benchmarks.freeze_ladder", "ladder"]
    project.set(train={"seed": 7})  # so that DVC has no results of these
    output = project.run(*ladder, "--points", "layer3,layer4")
    assert "ladder-layer4 is done" in output
    table = pd.read_csv(project.folder / "ladder/ladder.csv")
    assert table["freeze"].to_list() == ["layer3", "layer4"]
    assert table["trainable"].to_list() == [8_397_832, 4_104]
    assert (table["low"] <= table["macro_f1"]).all()
    assert (table["seconds"] > 0).all()
    with Image.open(project.folder / "ladder/ladder.png") as picture:
        assert picture.width > 500
    assert "had them" in project.run(*ladder, "--points", "layer4")
    output = project.run(*ladder, "--points", "layer9,layer4", code=1)
    why = "error: train.freeze: this network has no part"
    assert re.search(rf"^ladder-layer9 has failed, [01] to go: {why}", output, re.MULTILINE)
    assert "had them" in output
    assert output.endswith("error: ladder-layer9: failed, as said above, and not in the table\n")
    project.run("git", "checkout", "-q", "params.yaml")
    assert project.run("git", "status", "--porcelain") == ""


def test_the_ladder_does_not_wait_for_what_a_command_leaves_running(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    dvc_command("exp", "run", "--queue", "-n", "ladder-long", "-S", "train.seed=8")
    dvc_command("queue", "start", "-j", "1")
    tasks, _ = queue_status()
    assert tasks["ladder-long"] in ("Queued", "Running")
    dvc_command("queue", "stop", "--kill")
    dvc_command("queue", "remove", "ladder-long")


def test_an_error_is_one_line_and_keeps_the_earlier_results(project: Project) -> None:
    before = (project.folder / "metrics.json").read_bytes()
    project.set(train={"freeze": "layer9"})
    output = project.run("dvc", "repro", code=1)
    assert "error: train.freeze: this network has no part 'layer9'" in output
    assert "conv1, layer1, layer2, layer3, layer4" in output
    assert "Traceback" not in output
    assert (project.folder / "metrics.json").read_bytes() == before
    project.run("git", "checkout", "-q", "params.yaml")
    project.run("dvc", "checkout")
    assert project.repro() == set()


def kill_when(project: Project, start: str, seconds: float) -> list[str]:
    """Reproduce, `kill -9` all of it so long after a line; the epochs that were finished."""
    finished = []
    with subprocess.Popen(
        ["dvc", "repro", "--no-run-cache"],
        cwd=project.folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            finished += re.findall(r"^fold \d epoch \d", line)
            if line.startswith(start):
                time.sleep(seconds)
                os.killpg(process.pid, signal.SIGKILL)
                finished += re.findall(r"^fold \d epoch \d", process.stdout.read(), re.M)
    return finished


def test_ctrl_c_ends_at_once_and_says_what_is_kept(project: Project) -> None:
    project.set(train={"epochs": 30, "patience": 30})
    threads = {**ENVIRONMENT, "OMP_NUM_THREADS": "2"}  # one of the libraries may get the signal
    with subprocess.Popen(
        ["dvc", "repro"], cwd=project.folder, env=threads, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("fold 0 epoch 2/"))
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=2)
        said = process.stdout.read()
    assert "stopped: the finished epochs of fold 0 are kept" in said
    assert "Traceback" not in said
    project.set(train={"epochs": 2})
    assert "of other code, data or parameters: set aside" in project.run("dvc", "repro")
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout")


@pytest.mark.parametrize(
    ("start", "seconds"),
    [
        ("fold 0 epoch 1/", 0.0),
        ("fold 0 epoch 2/", 0.3),
        ("fold 0 epoch 3/", 0.0),
        ("fold 1 epoch 1/", 0.1),
    ],
)
def test_a_killed_run_goes_on_where_it_was_to_the_same_bytes(
    project: Project, start: str, seconds: float
) -> None:
    project.set(train={"epochs": 3, "freeze": "layer2"})
    project.repro()
    expected = project.checksums(), (project.folder / "metrics.json").read_bytes()
    project.run("git", "checkout", "-q", "dvc.lock")  # DVC forgets that it has the results
    results = project.folder / "data/train"
    shutil.rmtree(results)
    before = kill_when(project, start, seconds)
    assert not (results / "fold1/network.safetensors").exists()
    output = project.run("dvc", "repro", "--no-run-cache")
    after = re.findall(r"^fold \d epoch \d", output, re.M)
    assert set(before + after) == {f"fold {f} epoch {e}" for f in (0, 1) for e in (1, 2, 3)}
    assert len(before + after) <= 6 + 1, "at most one epoch was done twice"
    assert (project.checksums(), (project.folder / "metrics.json").read_bytes()) == expected
    assert not list((project.folder / ".cache/checkpoints").glob("*.checkpoint"))
    project.run("git", "checkout", "-q", ".")
    project.run("dvc", "checkout")
