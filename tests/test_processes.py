"""Stages lock their outputs, and their workers end with them."""

import itertools
import os
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from face_attributes.command import LOCKS, stage_command
from face_attributes.errors import StillRunningError, UserError
from face_attributes.processes import map_on_all_cores, one_at_a_time, process_pool
from tests.conftest import Run
from tests.project import ROOT, ends_soon
from tests.test_contract import PIPELINE, STAGES


def arguments(stage: str, project: Path = ROOT) -> list[str]:
    """The arguments of a stage in dvc.yaml, of fold 0, with the paths in the project's params."""
    data = YAML(typ="safe").load((project / "params.yaml").read_text())["data"]
    command = PIPELINE[stage]["cmd"].replace("${item.fold}", "0")
    return [
        data[word[7:-1]] if word.startswith("${data.") else word
        for word in shlex.split(command)[3:]
    ]


def outputs(stage: str) -> list[str]:
    """The arguments of a stage that it writes to: the last ones."""
    return arguments(stage)[-2 if stage in ("predict", "aggregate", "suspects") else -1 :]


@pytest.mark.parametrize(
    ("stage", "output"), [(stage, output) for stage in STAGES for output in outputs(stage)]
)
def test_a_stage_stops_at_once_if_another_process_writes_its_output(
    run: Run, stage: str, output: str
) -> None:
    with one_at_a_time(LOCKS / f"{output}.lock", "the test"):
        result = run(import_module(f"stages.{stage}").main, *arguments(stage), code=1)
    assert result.output == (
        f"error: {output}: stage {stage} of an earlier run is still running (pid {os.getpid()}): "
        "wait, or end it\n"
    )
    assert sorted(os.listdir()) == [".cache", "params.yaml"]


def test_a_lock_is_on_the_place_and_not_on_the_way_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @stage_command
    def main(out: Path) -> None:
        pass

    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with one_at_a_time(LOCKS / "real/out.lock", "the test"):
        for name in ("real/out", "link/out", "./real/../real/out", str(tmp_path / "link/out")):
            assert CliRunner().invoke(main, [name]).exit_code == 1
        for name in ("real/other", "real", "/elsewhere/out"):
            assert CliRunner().invoke(main, [name]).exit_code == 0
    assert CliRunner().invoke(main, ["real/out"]).exit_code == 0


def test_the_line_about_a_running_stage_does_not_advise_dvc_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would write to the same outputs as the running stage."""

    @stage_command
    def main(out: Path) -> None:
        pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "crop")
    with one_at_a_time(LOCKS / "data.lock", "the test"):
        assert "dvc checkout" not in CliRunner().invoke(main, ["data"]).output


def test_without_a_place_for_the_lock_a_stage_warns_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @stage_command
    def main(out: Path) -> None:
        out.write_text("done")

    monkeypatch.chdir(tmp_path)
    (tmp_path / ".cache").write_text("in the way")
    result = CliRunner().invoke(main, ["out"])
    assert result.exit_code == 0
    assert result.output.startswith("warning: out is not locked against other runs: [Errno ")
    assert (tmp_path / "out").read_text() == "done"


def test_a_lock_ends_with_its_process_and_names_it(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path\n"
        "from face_attributes.processes import one_at_a_time\n"
        f"with one_at_a_time(Path({str(tmp_path / 'lock')!r}), 'it'):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "locked\n"
        with (
            pytest.raises(
                StillRunningError,
                match=rf"^it is still running \(pid {process.pid}\): wait, or end it$",
            ),
            one_at_a_time(tmp_path / "lock", "it"),
        ):
            pass
        process.kill()
    with one_at_a_time(tmp_path / "lock", "it"):
        pass


CLAIM = """
import sys; from pathlib import Path
from face_attributes.processes import claim
print(*claim(["gpu-a", "gpu-b"], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


def start_claiming(folder: Path) -> tuple[subprocess.Popen[str], tuple[int, int]]:
    """A process that claims one of two GPUs until it ends: its index, and how many share it."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    index, others = map(int, process.stdout.readline().split())
    return process, (index, others)


def test_processes_spread_over_what_they_claim_and_free_it_when_they_end(tmp_path: Path) -> None:
    processes = list[subprocess.Popen[str]]()

    def start() -> tuple[int, int]:
        process, claimed = start_claiming(tmp_path / "locks")
        processes.append(process)
        return claimed

    try:
        assert [start() for _ in range(3)] == [(0, 0), (1, 0), (0, 1)]
        processes[1].kill()
        processes[1].wait()
        assert start() == (1, 0), "a free one first"
        assert start() == (1, 1)
        processes[0].communicate()  # ends by itself
        assert start() == (0, 1), "with the one that shared it"
        assert len(list((tmp_path / "locks").glob("gpu-*.lock"))) == 4, "old ones are deleted"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_processes_that_start_at_once_claim_different_ones(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        started = list(pool.map(start_claiming, [tmp_path / "locks"] * 4))
    for process, _ in started:
        process.communicate()
    assert sorted(claimed for _, claimed in started) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_results_are_in_order() -> None:
    assert list(map_on_all_cores(pow, range(100), [2] * 100, chunksize=7)) == [
        number**2 for number in range(100)
    ]


def test_results_come_without_end_if_the_arguments_do() -> None:
    """So memory does not grow with their number."""
    results = map_on_all_cores(abs, itertools.count(), chunksize=3)
    assert list(itertools.islice(results, 100)) == list(range(100))
    results.close()


def kill_worker(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_line_with_what_else_to_do() -> None:
    message = "the system killed a worker process.* end other programs, or lower the limit, then"
    with pytest.raises(UserError, match=message), process_pool(1, remedy="lower the limit") as pool:
        pool.submit(os._exit, 9).result()


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(UserError, match="the system killed a worker process, probably because "):
        list(map_on_all_cores(kill_worker, [1, 2]))


def test_a_stage_does_not_start_if_dvc_is_gone_by_then(tmp_path: Path) -> None:
    """What is killed here has DVC's part: the stage's Python starts after that."""
    out = tmp_path / "out"
    stage = f"sleep 0.5; exec {sys.executable} -m stages.sample {out}"
    code = f"import subprocess; subprocess.Popen({stage!r}, shell=True)"
    output = subprocess.run(  # until the stage closes it, too
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "DVC_STAGE": "dvc.yaml:sample"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ).stdout
    assert output == "\nstopped: the process that started this one is gone\n"
    assert not out.exists()


def test_waiting_workers_end_with_a_killed_process() -> None:
    code = (
        "import time; from face_attributes.processes import map_on_all_cores\n"
        "pids = map_on_all_cores(eval, ['__import__(\"os\").getpid()'] * 20)\n"
        "print(next(pids), flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = process.stdout.readline().strip()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert worker in children
    assert all(map(ends_soon, children))
