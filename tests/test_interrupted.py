"""Runs that are killed or stopped: they end at once, and continue to the same bytes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from face_attributes.command import LOCKS
from tests.project import ENVIRONMENT, Project, ends_soon, heed_interrupts, processes_of
from tests.test_contract import STAGES
from tests.test_processes import arguments, outputs

pytestmark = pytest.mark.slow

EPOCH = re.compile(r"^fold \d epoch \d", re.MULTILINE)
OUTPUTS = ["network.safetensors", "out_of_fold.csv", "history.csv", "metrics.json"]


def start(
    project: Project, *command: str, threads: int = 1, shell: str = "/bin/sh"
) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command, cwd=project.folder,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": str(threads), "SHELL": shell},
        preexec_fn=heed_interrupts, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def train(out: str) -> list[str]:
    """The command line of a stage `train` that writes to another folder."""
    inputs = ["data/crop", "data/folds/folds.csv", "data/weights/initial.safetensors"]
    return [sys.executable, "-m", "stages.train", "0", *inputs, out]


@contextmanager
def started(
    project: Project, stage: str, *command: str, shell: str = "/bin/sh"
) -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """Start a command that runs a stage; give both processes once the stage is at work."""
    holder = project.folder / LOCKS / f"{outputs(stage)[0]}.lock.pid"
    holder.unlink(missing_ok=True)
    with start(project, *command, shell=shell) as process:
        for _ in range(3000):
            if holder.exists() and holder.read_text():
                break
            assert process.poll() is None, process.stdout and process.stdout.read()
            time.sleep(0.01)
        yield process, psutil.Process(int(holder.read_text()))


@pytest.fixture(scope="module")
def uninterrupted(project: Project) -> Path:
    """Results of fold 0 after three epochs, with parts frozen and cached."""
    project.set(train={"epochs": 3, "freeze": "layer2"})
    with start(project, *train("data/uninterrupted")) as process:
        assert process.wait() == 0
    return project.folder / "data/uninterrupted"


@pytest.mark.parametrize(("epoch", "delay"), [(1, 0.0), (2, 0.15), (3, 0.0)])
def test_killed_training_resumes_to_the_same_bytes(
    project: Project, uninterrupted: Path, epoch: int, delay: float
) -> None:
    out = f"data/killed{epoch}"
    with start(project, *train(out)) as process:
        assert process.stdout is not None
        before = []
        for line in process.stdout:
            before += EPOCH.findall(line)
            if line.startswith(f"fold 0 epoch {epoch}/"):
                time.sleep(delay)
                os.killpg(process.pid, signal.SIGKILL)
    with start(project, *train(out)) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    after = EPOCH.findall(output)
    assert set(before + after) == {f"fold 0 epoch {number}" for number in (1, 2, 3)}
    assert len(before + after) <= 4, "at most one epoch is done twice"
    for name in OUTPUTS:
        assert (project.folder / out / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert not list((project.folder / ".cache/checkpoints").glob("*.checkpoint"))
    shutil.rmtree(project.folder / out)


def test_a_killed_run_keeps_its_finished_folds(project: Project) -> None:
    """With `kill -9` of DVC and of the stage that it runs."""
    project.set(train={"epochs": 2, "freeze": "layer4"})
    with start(project, "dvc", "repro", "aggregate") as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("fold 1 epoch 1/"))
        os.killpg(process.pid, signal.SIGKILL)
    output = project.run("dvc", "repro", "aggregate")
    assert "Running stage 'train@0'" not in output
    assert "Running stage 'train@1'" in output
    assert project.outdated().isdisjoint({"train@0", "train@1", "predict", "aggregate"})
    project.restore()


def test_ctrl_c_ends_training_at_once_and_says_what_is_kept(project: Project) -> None:
    project.set(train={"epochs": 30, "patience": 30, "freeze": "layer4"})
    # With two threads, one of the libraries' may get the signal.
    with start(project, "dvc", "repro", threads=2) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("fold 0 epoch 2/"))
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=10)
        output = process.stdout.read()
    assert "stopped: finished stages, folds and epochs are kept" in output
    assert "Traceback" not in output
    project.set(train={"epochs": 1})
    output = project.run(*train("data/other"))
    assert "from a run with other code, data, parameters or hardware: set aside" in output
    project.restore()


def test_ctrl_c_ends_the_workers_of_a_stage_with_it(project: Project) -> None:
    command = [sys.executable, "-m", "stages.crop", "data/clean", "data/detectors", "data/other"]
    with start(project, *command) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for _ in range(300):
            if children.read_text().split():
                break
            time.sleep(0.05)
        workers = children.read_text().split()
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=10)
    assert workers
    assert process.returncode == 130
    assert output.strip().startswith("stopped: finished stages")
    assert "Traceback" not in output
    assert all(map(ends_soon, workers))


@pytest.mark.parametrize("stage", STAGES[::-1])  # DVC deletes what the later ones need
def test_a_stage_ends_when_dvc_is_killed(project: Project, stage: str) -> None:
    """`kill -9` of DVC alone, or of the terminal's session."""
    address = "train@0" if stage == "train" else stage
    with started(project, stage, "dvc", "repro", "-fs", address) as (dvc, process):
        left = processes_of(process)
        dvc.kill()
    assert all(map(ends_soon, left))
    if stage == STAGES[0]:
        project.restore()


def test_a_stage_ends_when_dvc_is_killed_behind_a_shell(project: Project, tmp_path: Path) -> None:
    """Some shells (fish, for one) stay between DVC and the stage."""
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\n/bin/sh "$@"\nexit $?\n')
    shell.chmod(0o755)
    with started(project, "crop", "dvc", "repro", "-fs", "crop", shell=str(shell)) as (
        dvc,
        process,
    ):
        left = processes_of(process)
        assert process.ppid() != dvc.pid
        dvc.kill()
    assert all(map(ends_soon, left))
    project.restore()


def test_a_stage_started_by_hand_outlives_what_started_it(project: Project) -> None:
    """As with `nohup`, or from a script that does not wait."""
    words = " ".join([sys.executable, "-m", "stages.sample", "data/other"])
    with start(project, "/bin/sh", "-c", f"{words} & exit") as shell:
        output, _ = shell.communicate()
    assert "sample: 273 photos" in output
    shutil.rmtree(project.folder / "data/other")


def test_a_run_after_killing_dvc_alone_keeps_its_own_results(project: Project) -> None:
    project.set(crop={"margin": 1.5})
    with started(project, "crop", "dvc", "repro", "crop") as (dvc, process):
        left = processes_of(process)
        dvc.kill()
    project.set(crop={"margin": 1.7, "detector": "none"})
    project.run("dvc", "repro", "crop")
    assert all(map(ends_soon, left))
    assert "crop" not in project.outdated()
    assert (
        json.loads((project.folder / "data/crop/metrics.json").read_text())["train"][
            "detection_rate"
        ]
        == 0
    )
    project.restore()


def test_a_stage_started_by_hand_beside_dvc_leaves_it_alone(project: Project) -> None:
    command = [sys.executable, "-m", "stages.crop", *arguments("crop", project.folder)]
    with started(project, "crop", "dvc", "repro", "-fs", "crop") as (dvc, process):
        output = project.run(*command, code=1)
        assert dvc.wait() == 0
    assert output == (
        f"error: data/crop: stage crop of an earlier run is still running (pid {process.pid}): "
        "wait, or end it\n"
    )
    assert "crop" not in project.outdated()
    project.restore()


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_every_stage_and_its_workers_with_a_line(project: Project, stage: str) -> None:
    command = [sys.executable, "-m", f"stages.{stage}", *arguments(stage, project.folder)]
    with started(project, stage, *command) as (process, at_work):
        left = processes_of(at_work)
        os.killpg(process.pid, signal.SIGINT)
        sent = time.monotonic()
        output, _ = process.communicate(timeout=10)
    assert time.monotonic() - sent < 2
    assert process.returncode == 130
    assert "stopped: finished stages, folds and epochs are kept" in output
    assert "Traceback" not in output
    assert all(map(ends_soon, left))


def test_ctrl_c_while_a_stage_imports_torch_is_a_line(project: Project) -> None:
    with start(project, *train("data/other")) as process:
        while "torch" not in "".join(
            mapped.path for mapped in psutil.Process(process.pid).memory_maps()
        ):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=10)
    assert output.startswith("\nstopped: finished stages")
    assert "Traceback" not in output


@pytest.mark.parametrize("stage", ["train@0", "predict", "aggregate"])
def test_a_full_disk_leaves_earlier_results_whole_and_they_come_back(
    project: Project, tmp_path: Path, stage: str
) -> None:
    """A limit on the size of the stage's files stands for the disk."""
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\nulimit -f 1\nexec /bin/sh "$@"\n')
    shell.chmod(0o755)
    folder = project.folder
    paths = [folder / "metrics.json", folder / "data/submission.csv"]
    paths += [*(folder / "data/aggregate").iterdir(), *(folder / "data/train/fold0").iterdir()]
    before = {path: path.read_bytes() for path in paths}
    with start(project, "dvc", "repro", "-fs", stage, shell=str(shell)) as process:
        output, _ = process.communicate()
    assert process.returncode != 0
    assert "the file would be larger than this system allows, then run again" in output
    assert "Traceback" not in output
    assert (folder / "metrics.json").read_bytes() == before[folder / "metrics.json"]
    left = {path: path.read_bytes() for path in paths if path.exists()}
    assert left.items() <= before.items()  # DVC deletes outputs before it runs their stage
    project.run("dvc", "repro")
    assert {path: path.read_bytes() for path in paths} == before


@pytest.mark.parametrize(
    ("stage", "limit"), [*((stage, "-f 0") for stage in STAGES), ("clean", "-n 10")]
)
def test_a_stage_that_cannot_write_or_open_files_is_one_line_and_changes_nothing(
    project: Project, stage: str, limit: str
) -> None:
    """Also where DVC's database fails first, of which two stages ask."""
    folder = project.folder / "data"
    words = " ".join(arguments(stage, project.folder))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = subprocess.run(
        ["bash", "-c", f"ulimit {limit}; exec {sys.executable} -m stages.{stage} {words}"],
        cwd=project.folder, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and error.endswith(", then run again")
    assert "Traceback" not in done.stderr, "though libraries may warn"
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    # What an interrupted stage has left, the next run of it deletes.
    for path in [path for path in before if path.suffix == ".partial"]:
        del before[path]
        after.pop(path, None)
    assert after == before


def test_few_open_files_are_enough(project: Project) -> None:
    """Also with worker processes; the limit is often 256 or 1024."""
    limited = "ulimit -n 64; exec"
    stages = ["clean", "crop", "train@0"]
    before = project.checksums()
    project.run("bash", "-c", f"{limited} dvc repro -f --no-run-cache -s {' '.join(stages)}")
    assert project.checksums() == before
    options = "--fallback --csv results/labels.csv --annotate results/labelled"
    photos = "data/sample/eval/images"
    project.run("bash", "-c", f"{limited} {sys.executable} -m commands.classify {photos} {options}")
    copies = list((project.folder / "results/labelled").iterdir())
    assert len(copies) == len(list((project.folder / photos).iterdir()))
