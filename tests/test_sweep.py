"""Sweeps: a grid of DVC experiments that survives failures and kills, ranked at the end."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import psutil
import pytest
from PIL import Image

from commands import cluster, sweep
from commands.sweep import make_grid, uncommitted_state
from face_attributes.errors import UserError, last_error
from tests.conftest import Run, git, start_repository
from tests.project import ENVIRONMENT, PEOPLE, SMALL, Project, ends_soon, processes_of


def test_a_grid_has_an_experiment_for_each_combination_of_values() -> None:
    grid = make_grid(["train.freeze=none,layer3", "train.seed=0,1", "predict.tau=auto"])
    assert list(grid) == [
        "freeze-none_seed-0_predict.tau-auto",
        "freeze-none_seed-1_predict.tau-auto",
        "freeze-layer3_seed-0_predict.tau-auto",
        "freeze-layer3_seed-1_predict.tau-auto",
    ]
    assert grid["freeze-layer3_seed-1_predict.tau-auto"] == [
        "train.freeze=layer3",
        "train.seed=1",
        "predict.tau=auto",
    ]


def test_values_may_be_lists_and_paths_and_a_repeated_value_counts_once() -> None:
    grid = make_grid(["labels.age_edges=[30,60],[30,58]", "train.seed=1,1"])
    assert list(grid) == ["labels.age_edges-30-60_seed-1", "labels.age_edges-30-58_seed-1"]
    assert list(make_grid(["weights.source=data/pretrained/a.pth,none"])) == [
        "weights.source-data-pretrained-a.pth",
        "weights.source-none",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.freeze"], "'train.freeze': write KEY=VALUE,VALUE"),
        (["train.seed=[0,1"], "write KEY=VALUE,VALUE"),
        (["train.seed=0", "train.seed=1"], "train.seed occurs twice"),
        (["weights.source=a/b,a-b"], "two experiments would have the name weights.source-a-b"),
    ],
)
def test_an_argument_that_is_no_list_of_values_is_one_line(
    arguments: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        make_grid(arguments)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("train.frez=0,1", "frez-0: params.yaml has no train.frez"),
        ("predict.tau=1.0,99.0", "predict.tau-99.0: params.yaml: predict.tau: write auto or a num"),
        ("train.seed=0,x", "seed-x: params.yaml: train.seed: "),
    ],
)
def test_values_that_params_yaml_refuses_are_one_line_before_any_run(
    run: Run, argument: str, message: str
) -> None:
    output = run(sweep.main, argument, code=1).output
    assert output.startswith(f"error: {message}")
    assert output.count("\n") == 1


def test_of_a_failed_program_its_last_error_is_shown() -> None:
    with pytest.raises(UserError, match=r"^git frob: git: 'frob' is not a git command\."):
        sweep.run_command("git", "frob")
    dvc = (
        "ERROR: unexpected error - no space\n\nHaving any troubles? Hit us up at dvc.org/support!\n"
    )
    assert last_error(dvc) == "ERROR: unexpected error - no space"
    assert last_error("\n") == "failed"


def test_uncommitted_changes_of_the_pipeline_alone_name_experiments_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    start_repository()
    for name in ("params.yaml", "README.md"):
        Path(name).write_text("first\n")
    git("add", "-A")
    git("commit", "-qm", "first")
    assert uncommitted_state() == ""
    Path("README.md").write_text("second\n")
    assert uncommitted_state() == ""
    Path("params.yaml").write_text("second\n")
    second = uncommitted_state()
    Path("params.yaml").write_text("third\n")
    assert "" != second != uncommitted_state()


def test_without_git_or_dvc_on_the_path_it_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without the virtual environment's activation."""
    start_repository()
    git("add", "-A")
    git("commit", "-qm", "first")
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs/git").symlink_to(shutil.which("git") or "")
    for path, program in {"programs": "dvc", "nowhere": "git"}.items():
        monkeypatch.setenv("PATH", str(tmp_path / path))
        assert run(sweep.main, "train.seed=0,1", code=1).output == (
            f"error: {program} is not on PATH: `source .venv/bin/activate`, or install it, then "
            "run again\n"
        )
    with pytest.raises(UserError, match="^dvc is not on PATH"):
        cluster.run_dvc("repro")


def test_names_are_shown_whole_in_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a sweep often differ at their end alone."""
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"freeze-layer4_seed-{seed}-93cc53" for seed in (1, 2)]
    scores = ["macro_f1", "low", "high", "difference", "difference_low", "difference_high"]
    ranking = pd.DataFrame(0.5, index=[0, 1], columns=scores)
    verdict = ["the first", "no difference shown"]
    sweep.print_ranking(ranking.assign(run=names, verdict=verdict, seconds=9.0), "")
    shown = capsys.readouterr().out
    first_cells = [line.split("│")[1].strip() for line in shown.splitlines() if "│" in line]
    assert "".join(first_cells) == "".join(names)


@pytest.mark.slow
def test_a_sweep_continues_after_a_kill_and_past_a_failure(project: Project) -> None:
    """DVC has the results of `none`; there is no part `nosuch`."""
    sweep = ["commands.sweep", "train.freeze=none,nosuch,layer4"]
    with subprocess.Popen(
        [sys.executable, "-m", *sweep], cwd=project.folder, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        next(line for line in process.stdout if line == "freeze-none: done\n")
        left = processes_of(psutil.Process(process.pid))
        process.kill()
    assert all(map(ends_soon, left)), "the experiment that was running"

    output = project.python(*sweep, code=1)
    assert "freeze-none: done before" in output
    assert "freeze-layer4: done\n" in output
    assert "freeze-nosuch: failed; the end of" in output
    assert "train.freeze: this network has no part 'nosuch'" in output
    assert output.endswith("error: failed, and not in the table: freeze-nosuch\n")
    assert project.run("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_its_experiments_are_ranked_and_drawn_and_known_to_dvc(project: Project) -> None:
    output = project.python("commands.sweep", "train.freeze=none,layer4", "--jobs", "2")
    assert "freeze-layer4: done before" in output
    table = pd.read_csv(project.folder / "sweep/sweep.csv").set_index("run")
    assert set(table.index) == {"freeze-none", "freeze-layer4"}
    assert (table["low"] <= table["macro_f1"]).all()
    assert table.loc["freeze-none", "difference"] == 0
    assert table.loc["freeze-none", "verdict"] == "the first"
    assert table.loc["freeze-layer4", "seconds"] > 0
    assert pd.isna(table.loc["freeze-none", "seconds"]), "not trained again"
    assert table["folds_choosing"].sum() == len(SMALL["folds"]["index"])
    assert "Nested choice, which chooses on all folds but one" in " ".join(output.split())
    with Image.open(project.folder / "sweep/sweep.png") as picture:
        assert picture.width > 200
    assert "freeze-layer4" in (project.folder / "sweep/sweep.html").read_text()

    shown = project.run("dvc", "exp", "show", "--csv")
    assert "freeze-layer4" in shown
    compared = project.python("commands.compare", "HEAD", "freeze-layer4")
    assert f"{PEOPLE * 7} photos of {PEOPLE} people" in compared
    before = project.metrics()["macro_f1"]
    project.run("dvc", "exp", "apply", "freeze-layer4")
    assert project.metrics()["macro_f1"] == pytest.approx(
        table.loc["freeze-layer4", "macro_f1"], abs=1e-5
    )
    assert project.metrics()["macro_f1"] != before
    assert "macro_f1" in project.run("dvc", "metrics", "diff", "--targets", "metrics.json")
    project.restore()


@pytest.mark.slow
def test_an_experiment_in_a_copy_uses_tracked_photos_and_weights(project: Project) -> None:
    """As in a queue and a sweep: the copy has what git and DVC track."""
    data, weights = project.folder / "data", "data/pretrained/own.safetensors"
    shutil.copytree(data / "sample", data / "raw")
    shutil.copy(data / "train/fold0/network.safetensors", project.folder / weights)
    project.run("dvc", "add", "-q", "data/raw", weights)
    project.run("git", "add", "--all")
    project.run("git", "commit", "-qm", "own photos and weights")
    own = ("data.train=data/raw/train", "data.eval=data/raw/eval", f"weights.source={weights}")
    settings = [word for value in own for word in ("-S", value)]
    output = project.run("dvc", "exp", "run", "--temp", "-n", "own", *settings, "folds", "weights")
    assert f"weights: resnet18 from {weights}" in output
    assert "own" in project.run("dvc", "exp", "list", "--name-only").split()
    project.run("git", "reset", "-q", "--hard", "HEAD~1")
    shutil.rmtree(data / "raw")
    Path(project.folder / weights).unlink()
    project.run("dvc", "checkout", "-q")
