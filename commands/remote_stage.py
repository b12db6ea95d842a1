"""Run a stage on a worker of a cluster: a machine with the Python packages, and nothing else.

It needs no project, git, DVC or shared folder. Ray sends this module to the workers by value, as it
does `ray_cluster`, so it imports nothing else of the project.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

from face_attributes.ray_cluster import (
    CachedFile,
    Files,
    fault_of_files,
    read_files,
    refusal,
    worker_name,
    write_files,
)

Event = (
    tuple[Literal["line", "refused", "failed"], str]
    | tuple[Literal["missing"], list[str]]
    | tuple[Literal["saved", "done"], Files]
)
"""A line of the stage's output; why this worker refuses the stage; why the stage failed; files that
it must be sent; its checkpoint so far; its outputs."""

CHECKPOINTS = ".cache/checkpoints/*.checkpoint"
POLL_SECONDS = 0.2


def run_stage(
    arguments: Sequence[str],
    outputs: Sequence[str],
    environment: Mapping[str, str],
    versions: Mapping[str, str],
    inputs: Iterable[Any],
    cached: Mapping[str, CachedFile],
    fetch: Callable[[Any], Files],
    processes: int = 1,
) -> Iterator[Event]:
    """Run a stage in a temporary folder, and report what happens until it ends.

    Args:
        arguments: of Python, such as ["-m", "stages.train", "0", ...].
        outputs: paths of the files to report at the end.
        environment: variables to set in addition to the worker's.
        versions: what `package_version` must return here for each package.
        inputs: references to the stage's code, files that it reads and its checkpoint, if any.
        cached: other files that it reads, by their path in the project; those that this machine has
            are not fetched.
        fetch: gets the files of a reference. One after the other, so that they need not fit into
            Ray's memory together, which a task's arguments have to.
        processes: how many run the stage together.
    """
    if problem := refusal(versions):
        yield "refused", problem
        return
    try:
        with tempfile.TemporaryDirectory(prefix="face-attributes-") as folder:
            fetched, missing = [*inputs], list[str]()
            for path, file in cached.items():
                if file.is_here():
                    link = Path(folder, path)
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(file.path)
                elif file.parts:
                    fetched += file.parts
                else:
                    missing.append(path)
            if missing:
                yield "missing", missing
                return
            for reference in fetched:
                write_files(Path(folder), fetch(reference))
            yield from _run(Path(folder), arguments, outputs, environment, processes)
    except MemoryError:
        yield "failed", f"{worker_name()}: out of memory"
    except OSError as error:
        yield "failed", fault_of_files(error)


def _run(
    folder: Path,
    arguments: Sequence[str],
    outputs: Sequence[str],
    environment: Mapping[str, str],
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
        yield "failed", f"{worker_name()}: {errors[0].removeprefix('error: ')}"
    elif code < 0:
        yield (
            "failed",
            f"{worker_name()}: the system killed the stage (signal {-code}), probably because "
            "memory ran out",
        )
    else:
        yield "failed", f"{worker_name()}: exit code {code}; its output is above"


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
