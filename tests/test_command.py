"""A user's mistake is one line; what is unexpected keeps its traceback; files are whole."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from face_attributes.command import LOCKS, TIMES, TIMES_VARIABLE, stage_command, user_command
from face_attributes.errors import UserError
from face_attributes.files import write_json, write_whole
from face_attributes.progress import progress
from tests.project import ROOT, ends_soon, heed_interrupts


def test_a_user_s_mistake_is_one_line_and_exit_code_1() -> None:
    @stage_command
    def main() -> None:
        raise UserError("train.csv, row 3: what to do")

    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert result.output == "error: train.csv, row 3: what to do\n"


def test_anything_unexpected_keeps_its_traceback() -> None:
    @stage_command
    def main() -> None:
        raise ZeroDivisionError

    assert isinstance(CliRunner().invoke(main).exception, ZeroDivisionError)


def test_a_stage_run_by_dvc_records_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @stage_command
    def main() -> None:
        time.sleep(0.2)

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    assert CliRunner().invoke(main).exit_code == 0
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("DVC_STAGE", "train@3")
    assert CliRunner().invoke(main).exit_code == 0
    assert json.loads((TIMES / "train@3.json").read_text())["seconds"] >= 0.2


def test_of_processes_that_torchrun_starts_the_first_locks_and_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a stage that is made for that; in others the lock stops the second."""

    def main(out: Path) -> None:
        print("ran")

    monkeypatch.chdir(tmp_path)
    group = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {"DVC_STAGE": "train@3", **group}.items():
        monkeypatch.setenv(name, value)
    assert CliRunner().invoke(stage_command(main, in_group=True), ["out"]).output == "ran\n"
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("RANK", "0")
    for in_group in (True, False):
        assert CliRunner().invoke(stage_command(main, in_group), ["out"]).exit_code == 0
        assert (TIMES / "train@3.json").exists()
        assert (LOCKS / "out.lock").exists()
        shutil.rmtree(".cache")


def test_a_time_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @stage_command
    def main() -> None:
        print("all work is done")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train@3")
    (tmp_path / ".cache").write_text("in the way")
    result = CliRunner().invoke(main)
    assert result.exit_code == 0
    assert result.stdout == "all work is done\n"
    assert result.stderr.startswith("warning: the report will not show the time of train@3: [Errno")


def test_times_go_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @stage_command
    def main() -> None:
        pass

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "train@3")
    monkeypatch.setenv(TIMES_VARIABLE, str(tmp_path / "elsewhere"))
    assert CliRunner().invoke(main).exit_code == 0
    assert os.listdir(tmp_path) == ["elsewhere"]


def test_ctrl_c_ends_a_stage_and_its_workers_with_a_line(tmp_path: Path) -> None:
    program = f"""
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from face_attributes.command import stage_command
from face_attributes.processes import end_on_interrupt

end_on_interrupt()

@stage_command
def main() -> None:
    with ProcessPoolExecutor(16) as pool:
        waiting = [pool.submit(time.sleep, 60) for _ in range(16)]
        Path({str(tmp_path / "started")!r}).write_text(str(max(pool._processes)))
        waiting[0].result()

main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
    ) as process:
        for _ in range(600):
            if (tmp_path / "started").exists() and (tmp_path / "started").read_text():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=5)
    assert process.returncode == 130
    assert output == (
        "\nstopped: finished stages, folds and epochs are kept; `dvc repro` continues there\n"
    )
    assert ends_soon((tmp_path / "started").read_text())


def test_ctrl_c_while_a_command_imports_torch_ends_it_without_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "commands.classify", "nowhere.jpg"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_interrupts,
    ) as process:
        while "torch" not in "".join(
            mapped.path for mapped in psutil.Process(process.pid).memory_maps()
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=5)
    assert (process.returncode, output) == (-signal.SIGINT, "")


def test_in_a_command_ctrl_c_is_an_exception_again() -> None:
    """Which `demo`, for one, waits for."""

    @user_command
    def main() -> None:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        print("ended")

    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        assert CliRunner().invoke(main).output == "ended\n"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_full_disk_is_one_line_and_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_text("earlier")

    @stage_command
    def main() -> None:
        with write_whole(path) as file:
            file.write(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert f"{path}: the disk is full" in result.output
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["out.bin"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("megabytes", "reason"), [(500, "failed to map segment"), (12_000, "to allocate")]
)
def test_too_little_memory_is_one_line_and_so_is_a_low_limit(
    tmp_path: Path, megabytes: int, reason: str
) -> None:
    """While torch is imported, and later: under a limit on the process's memory."""
    (tmp_path / "stages").mkdir()
    shutil.copy(ROOT / "stages/__init__.py", tmp_path / "stages")
    (tmp_path / "stages/big.py").write_text(
        "import torch; from face_attributes.command import stage_command\n"
        "@stage_command\n"
        "def main(): torch.empty(2**40)\n"
        "main()"
    )
    command = f"ulimit -v {megabytes}000; exec {sys.executable} -m stages.big"
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    *warnings, error = result.stderr.splitlines()
    assert error.startswith("error: out of memory (")
    assert reason in error
    assert warnings == [
        "warning: `ulimit -v` allows 0.5 GB, with which libraries may crash or hang without a "
        "word: allow 5 GB or more"
    ] * (megabytes < 5000)


def test_a_folder_in_the_way_of_a_file_is_one_line(tmp_path: Path) -> None:
    @stage_command
    def main() -> None:
        write_json(tmp_path, {})

    result = CliRunner().invoke(main)
    assert result.exit_code == 1
    assert result.output.startswith(
        f"error: {tmp_path}: a folder is in the way of the file: name another"
    )


def test_a_file_larger_than_allowed_is_one_line(tmp_path: Path) -> None:
    """A real failing write: the shell's limit on file sizes stands for a disk that is full."""
    code = (
        "from pathlib import Path; import signal\n"
        "from face_attributes.command import stage_command\n"
        "from face_attributes.files import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "@stage_command\n"
        "def main():\n"
        f"    with write_whole(Path({str(tmp_path / 'big')!r})) as file:\n"
        "        file.write(bytes(10**6))\n"
        "main()"
    )
    command = f'ulimit -f 8; exec {sys.executable} -c "$CODE"'
    result = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "CODE": code}, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path / 'big'}: the file would be larger")
    assert os.listdir(tmp_path) == []


def test_too_many_open_files_are_one_line(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from contextlib import ExitStack\n"
        "from face_attributes.command import stage_command\n"
        "from face_attributes.files import write_whole\n"
        "@stage_command\n"
        "def main():\n"
        "    with ExitStack() as files:\n"
        "        for number in range(64):\n"
        f"            files.enter_context(write_whole(Path({str(tmp_path)!r}, str(number))))\n"
        "main()"
    )
    command = f'ulimit -n 32; exec {sys.executable} -c "$CODE"'
    result = subprocess.run(
        ["bash", "-c", command], env={**os.environ, "CODE": code}, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: {tmp_path}/")
    assert result.stderr.endswith(": too many files are open: raise `ulimit -n`, then run again\n")
    assert os.listdir(tmp_path) == []


def test_a_killed_process_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from face_attributes.files import write_whole\n"
        f"with write_whole(Path({str(tmp_path / 'out')!r})) as file:\n"
        "    file.write(b'half'); file.flush(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        for _ in range(600):
            if os.listdir(tmp_path):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert os.listdir(tmp_path) == [f"out.{process.pid}.partial"]


def test_of_two_processes_that_write_a_file_at_once_the_last_one_wins_whole(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from face_attributes.files import write_whole\n"
        f"with write_whole(Path({str(tmp_path / 'out')!r})) as file:\n"
        "    file.write(sys.argv[1].encode() * 100_000); print(flush=True); sys.stdin.readline()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    writers = [
        subprocess.Popen([sys.executable, "-c", code, letter], cwd=ROOT, text=True, **pipes)
        for letter in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "\n"
    for writer, letter in zip(writers, "ab", strict=True):
        assert writer.communicate("go on\n") == ("", None)
        assert (tmp_path / "out").read_text() == letter * 100_000
    assert os.listdir(tmp_path) == ["out"]


def test_a_stage_deletes_what_killed_ones_left_of_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @stage_command
    def main(out: Path) -> None:
        pass

    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    kept = ["data/a.1.partial.csv", "data/other.csv", "other.1.partial"]
    for name in ["data/a.npy.123.partial", "data.7.partial", *kept]:
        (tmp_path / name).touch()
    assert CliRunner().invoke(main, ["data"]).exit_code == 0
    files = [path for path in tmp_path.rglob("*") if path.is_file() and ".cache" not in path.parts]
    assert sorted(str(path.relative_to(tmp_path)) for path in files) == kept


def test_json_is_rounded_and_ends_with_a_line_end(tmp_path: Path) -> None:
    write_json(tmp_path / "m.json", {"a": {"b": 1 / 3}, "n": 2})
    assert (tmp_path / "m.json").read_text() == (
        '{\n  "a": {\n    "b": 0.333333\n  },\n  "n": 2\n}\n'
    )


def test_progress_yields_all_items_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter(range(5)), 5, "label")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == ""
