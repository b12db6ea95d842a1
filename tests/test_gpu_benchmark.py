"""The benchmark for a GPU, as far as it goes without one."""

import os
import re
import subprocess
import sys

import pytest

from tests.project import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_checks_that_need_no_gpu_pass_and_the_others_say_that_they_did_not_run() -> None:
    done = run("-m", "benchmarks.gpu", "--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    marks = dict(re.findall(r"^\[ *\d+ s\] (\S+) +([\w, ]+):", done.stdout, re.M)[::-1])
    assert set(marks) == {"ok", "----"}, done.stdout
    for name in ("float32", "predictions", "reproducible"):
        assert f"ok   {name}: " in done.stdout
    for name in ("precision", "host", "memory", "synchronisations", "graphs", "without graphs"):
        assert f"---- {name}: NOT MEASURED: there is no GPU" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("NO GPU: nothing above says how fast")
    assert "| GPU |" not in done.stdout, "no row for the results"


@pytest.mark.slow
def test_nothing_is_measured_without_a_gpu() -> None:
    done = run("-m", "benchmarks.gpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(
        "no GPU can be used here, so NOTHING WAS MEASURED; --cpu checks the rest\n"
    )


def test_missing_packages_are_one_line_with_the_way_to_carry_them() -> None:
    done = run(
        "-c",
        "import runpy, sys; sys.modules['pydantic'] = sys.modules['tqdm'] = None\n"
        "runpy.run_module('benchmarks.gpu', run_name='__main__')",
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"error: missing here: pydantic, tqdm\. Where .* pip install --target carried .* pydantic "
        r"tqdm; copy .*: PYTHONPATH=carried python -m benchmarks\.gpu\n",
        done.stderr,
    )
