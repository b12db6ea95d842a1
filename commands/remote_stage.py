"""Run a stage on a worker of a cluster: a machine with the Python packages, and nothing else.

It needs no project, git, DVC or shared folder. Ray sends this module to the workers by value, so it
imports nothing of the project.
"""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

Content = np.ndarray[tuple[int], np.dtype[np.uint8]]
"""The bytes of a file, as an array: Ray shares those between the processes of a machine."""
Files = dict[str, Content]
"""Files by their path in the project."""
Event = tuple[Literal["line", "refused", "failed"], str] | tuple[Literal["saved", "done"], Files]
"""A line of the stage's output; why this worker refuses the stage; why the stage failed; its
checkpoint so far; its outputs."""

CHECKPOINTS = ".cache/checkpoints/*.checkpoint"
POLL_SECONDS = 0.2


def run_stage(
    arguments: Sequence[str],
    outputs: Sequence[str],
    environment: Mapping[str, str],
    versions: Mapping[str, str],
    inputs: Iterable[Any],
    fetch: Callable[[Any], Files],
    processes: int = 1,
) -> Iterator[Event]:
    """Run a stage in a temporary folder, and report what happens until it ends.

    Args:
        arguments: of Python, such as ["-m", "stages.train", "0", ...].
        outputs: paths of the files to report at the end.
        environment: variables to set in addition to the worker's.
        versions: what `package_version` must return here for each package.
        inputs: references to the stage's code, the files that it reads and its checkpoint, if any.
        fetch: gets the files of a reference. One after the other, so that they need not fit into
            Ray's memory together, which a task's arguments have to.
        processes: how many run the stage together.
    """
    worker = f"worker {platform.node()}"
    for package, version in versions.items():
        if (installed := package_version(package)) != version:
            yield (
                "refused",
                f"{worker} has {package} {installed}, but this machine has {version}: install the "
                "same versions on both (requirements.txt, constraints.txt)",
            )
            return
    try:
        with tempfile.TemporaryDirectory(prefix="face-attributes-") as folder:
            for reference in inputs:
                write_files(Path(folder), fetch(reference))
            yield from _run(Path(folder), arguments, outputs, environment, worker, processes)
    except MemoryError:
        yield "failed", f"{worker}: out of memory"
    except OSError as error:
        place = error.filename or tempfile.gettempdir()
        yield "failed", f"{worker}: {place}: {error.strerror or error}"


def package_version(package: str) -> str:
    """The installed version without its build (+cpu, +cu130), or "missing"."""
    try:
        return metadata.version(package).split("+")[0]
    except metadata.PackageNotFoundError:
        return "missing"


def read_files(folder: Path, paths: Iterable[str]) -> Files:
    """Read files into memory.

    Raises:
        OSError: if one cannot be read.
    """
    return {path: np.fromfile(folder / path, np.uint8) for path in paths}


def write_files(folder: Path, files: Files) -> None:
    """Write files under a folder of this process's own.

    Raises:
        OSError: if one cannot be written.
    """
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.data)


def _run(
    folder: Path,
    arguments: Sequence[str],
    outputs: Sequence[str],
    environment: Mapping[str, str],
    worker: str,
    processes: int,
) -> Iterator[Event]:
    log = folder / "output.log"
    with log.open("wb") as written, log.open("rb") as output:
        lines = list[str]()
        saved = _time_saved(folder)
        running = list["subprocess.Popen[bytes]"]()
        try:
            for variables in _group_variables(folder, processes):
                process = subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=folder,
                    env={**os.environ, **environment, **variables},
                    stdin=subprocess.DEVNULL,
                    stdout=written,
                    stderr=subprocess.STDOUT,
                )
                running.append(process)
            while (code := _exit_code(running)) is None:
                time.sleep(POLL_SECONDS)
                for line in _new_lines(output):
                    lines.append(line)
                    yield "line", line
                if (time_saved := _time_saved(folder)) > saved:
                    saved = time_saved
                    yield "saved", _checkpoint(folder)
        finally:  # also if the driver is gone
            for process in running:
                process.kill()
                process.wait()
        for line in output.read().decode(errors="replace").splitlines():
            lines.append(line)
            yield "line", line
    if code == 0:
        yield "done", read_files(folder, outputs)
    elif errors := [line for line in lines if line.startswith("error: ")]:
        yield "failed", f"{worker}: {errors[-1].removeprefix('error: ')}"
    elif code < 0:
        yield (
            "failed",
            f"{worker}: the system killed the stage (signal {-code}), probably because memory ran "
            "out",
        )
    else:
        yield "failed", f"{worker}: exit code {code}; its output is above"


def _group_variables(folder: Path, processes: int) -> list[dict[str, str]]:
    """The environment variables of each process, as `torchrun` sets them; none for one alone.

    Not `torchrun` itself, which would listen on all addresses of the machine.
    """
    if processes == 1:
        return [{}]
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "PROCESS_GROUP_STORE": f"file://{folder}/process_group",
    }
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _exit_code(running: Sequence["subprocess.Popen[bytes]"]) -> int | None:
    """None while all processes run or have succeeded; the code of a failed one, a killed first."""
    codes = [process.poll() for process in running]
    failed = [code for code in codes if code]
    return min(failed) if failed else None if None in codes else 0


def _new_lines(output: BinaryIO) -> Iterator[str]:
    """The lines that are complete by now."""
    start = output.tell()
    while (line := output.readline()).endswith(b"\n"):
        start = output.tell()
        yield line.decode(errors="replace").rstrip()
    output.seek(start)


def _time_saved(folder: Path) -> int:
    """When the stage last saved its checkpoint (in ns since 1970); 0 without one."""
    with contextlib.suppress(FileNotFoundError):  # the stage deletes it at its end
        return max((path.stat().st_mtime_ns for path in folder.glob(CHECKPOINTS)), default=0)
    return 0


def _checkpoint(folder: Path) -> Files:
    """The stage's checkpoint, which it writes whole; nothing after its end."""
    with contextlib.suppress(FileNotFoundError):
        paths = [path.relative_to(folder).as_posix() for path in folder.glob(CHECKPOINTS)]
        return read_files(folder, paths)
    return {}
