"""Runs that are killed or stopped: they end at once, and continue to the same bytes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.project import ENVIRONMENT, Project, ends_soon, heed_interrupts

pytestmark = pytest.mark.slow

EPOCH = re.compile(r"^fold \d epoch \d", re.MULTILINE)
OUTPUTS = ["network.safetensors", "out_of_fold.csv", "history.csv", "metrics.json"]


def start(project: Project, *command: str, threads: int = 1) -> "subprocess.Popen[str]":
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command, cwd=project.folder, env={**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)},
        preexec_fn=heed_interrupts, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def train(out: str) -> list[str]:
    """The command line of a stage `train` that writes to another folder."""
    inputs = ["data/crop", "data/folds/folds.csv", "data/weights/initial.safetensors"]
    return [sys.executable, "-m", "stages.train", "0", *inputs, out]


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
    project.set(train={"epochs": 30, "patience": 30})
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
    assert "from a run with other code, data or parameters: set aside" in output
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
