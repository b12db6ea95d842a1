"""A Ray cluster: connecting to it, sending files to its workers, mapping a function over it.

`RAY_ADDRESS` says where it is, as HOST:PORT; without it, Ray starts one on this machine. Workers
are machines with the Python packages, and nothing else. Ray is optional, and imported when used.
"""

import contextlib
import importlib
import itertools
import logging
import os
import pickle
import platform
import re
import secrets
import socket
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from face_attributes.errors import UserError

CROP_VARIABLE = "CROP_ON_CLUSTER"
"""Environment variable that `commands.cluster` sets: the stage `crop` then uses the cluster."""
CODE = ("stages", "face_attributes")
"""The folders of the project whose code runs on workers."""
MOST_LOSSES = 5
"""Workers that a piece of work may lose before it counts as failed."""
PART_BYTES = 2**28
"""Maximum size of an object in Ray's store, for files: larger ones are sent in parts."""
CHUNKS_AHEAD = 4
"""Chunks per CPU that are computed or waiting."""
CHUNK_BYTES = 4 * 2**20
"""Bytes after which a chunk ends, so that few large photos take no more memory than many small."""

CACHE_MODE = 0o444
"""Mode of the files in DVC's cache: they are named by their content, and never change."""

PROBE_SECONDS = 2.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""The first bytes from a gRPC client, with empty settings; a server answers with its settings."""
HTTP2_SETTINGS = 4

Content = np.ndarray[tuple[int], np.dtype[np.uint8]]
"""The bytes of a file, as an array: Ray shares those between the processes of a machine."""
Files = dict[str, Content]
"""Files, or the next part of some, by their path in the project."""

_prepared = dict[bytes, Callable[..., Any]]()
"""On a worker: functions that are ready to be called, by what they were unpickled from."""


# On the driver


def import_ray(*by_value: ModuleType) -> Any:
    """Import Ray with token authentication and without usage statistics.

    A cluster that Ray then starts on this machine listens on 127.0.0.1 only. Variables that are set
    already have precedence.

    Args:
        by_value: modules, beside this one, whose functions workers run without having them.

    Raises:
        UserError: if Ray is not installed, or no cluster answers at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    settings = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    if not address:
        # Despite its name it works on every system: with 0, Ray listens on 127.0.0.1 only.
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            settings["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: pip install -r requirements-cluster.txt") from None
    if address:
        _probe(address)
    for module in (sys.modules[__name__], *by_value):
        ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]
    return ray


def _probe(address: str) -> None:
    """Check within seconds that a gRPC server answers; Ray alone would wait for 80 seconds.

    Raises:
        UserError: if none answers.
    """
    from ray._private.services import canonicalize_bootstrap_address

    try:
        # Ray replaces 127.0.0.1 by this machine's network address, unless it is local only.
        used = str(canonicalize_bootstrap_address(address))
    except (ValueError, ConnectionError):
        used = ""
    host, _, port = used.rpartition(":")
    if "/" in host or not port.isdecimal():
        raise UserError(
            f"RAY_ADDRESS: write HOST:PORT of a cluster with this machine as a node (is {address})"
        )
    answer = b""
    with (
        contextlib.suppress(OSError, OverflowError),
        socket.create_connection((host, int(port)), PROBE_SECONDS) as connected,
    ):
        connected.sendall(HTTP2_PREFACE)
        answer = connected.recv(9)
    if answer[3:4] != bytes([HTTP2_SETTINGS]):
        raise UserError(
            f"RAY_ADDRESS: no Ray cluster answers at {used}: start one with `ray start --head`, or "
            "unset RAY_ADDRESS to use this machine alone"
        )


@contextlib.contextmanager
def connection(ray: Any) -> Iterator[None]:
    """Connect to the cluster at RAY_ADDRESS, or start one on this machine.

    Raises:
        UserError: if the cluster has another token or another version of Ray.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if address:
            # This fails at once on a wrong token; ray.init would retry for 20 seconds.
            ray._raylet.GcsClient(ray._private.services.canonicalize_bootstrap_address(address))
        ray.init(
            address or "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ray.exceptions.AuthenticationError:
        raise UserError(
            f"RAY_ADDRESS: the cluster at {address} does not accept this token: set RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH to the token that the cluster was started with"
        ) from None
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"RAY_ADDRESS: {address or 'this machine'}: {reason}") from None
    ray._private.worker._worker_logs_enabled = False  # 30 lines for each lost node
    try:
        yield
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError):
        raise UserError(
            "Ray's object store is full, on this machine or a worker: free some disk space, or set "
            "a larger --object-store-memory for `ray start`, then run again (what is finished "
            "is kept)"
        ) from None
    finally:
        ray.shutdown()


@contextlib.contextmanager
def map_on_cluster(files: Files, packages: Iterable[str]) -> Iterator[Callable[..., Iterator[Any]]]:
    """Connect to the cluster, and yield a function like `map_on_all_cores` that uses all its CPUs.

    Its calls are sent with their arguments, a few chunks ahead of what is fetched. Those whose
    worker is lost are made again elsewhere.

    Args:
        files: what the calls read beside the project's code, such as a model.
        packages: those whose version must be the same on each worker as here.

    Raises:
        UserError: as `import_ray` and `connection`; if no node has a CPU; and, by the function that
            is yielded, if a call raises one, a worker has another version of a package, or calls
            lose one worker after the other.
    """
    ray = import_ray()
    with connection(ray):
        cpus = sum(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        if not cpus:
            raise UserError("no node of the cluster has a CPU: let one join with `--num-cpus=N`")
        versions = {package: package_version(package) for package in packages}
        # In a list, because Ray would fetch the argument itself for each task.
        project = [ray.put({**read_files(Path(), list_files(CODE)), **files})]
        worker = ray.remote(_call_each).options(num_cpus=1, max_retries=0)

        def map_calls(
            function: Callable[..., Any],
            *arguments: Iterable[object],
            chunksize: int = 1,
            initializer: Callable[[], None] | None = None,
            remedy: str = "",
        ) -> Iterator[Any]:
            pickled = ray.cloudpickle.dumps((function, initializer))
            waiting = deque[tuple[Callable[[], Any], Any]]()
            for calls in _chunks(zip(*arguments, strict=False), chunksize):
                submit = partial(worker.remote, pickled, ray.put(calls), project, versions, ray.get)
                waiting.append((submit, submit()))
                if len(waiting) > CHUNKS_AHEAD * cpus:
                    yield from _results(*waiting.popleft(), remedy, ray)
            while waiting:
                yield from _results(*waiting.popleft(), remedy, ray)

        yield map_calls


def _results(submit: Callable[[], Any], running: Any, remedy: str, ray: Any) -> list[Any]:
    """Wait for the results of a chunk of calls, and submit it again if its worker is lost."""
    for losses in itertools.count(1):
        try:
            kind, value = ray.get(running)
            break
        except ray.exceptions.RayTaskError:  # a mistake in this project
            raise
        except ray.exceptions.RayError as error:
            reason = loss_reason(error)
            if losses > MOST_LOSSES:
                raise UserError(
                    f"the same photos lost {losses} workers, probably because memory ran out: use "
                    f"machines with more{remedy and ', or '}{remedy}, then run again: {reason}"
                ) from None
            _report(f"lost a worker, its photos go elsewhere: {reason}")
            running = submit()
    if kind == "failed":
        raise UserError(value)
    results: list[Any] = value
    return results


def loss_reason(error: Exception) -> str:
    """The first sentence of what Ray says about a lost worker, without the name of an object."""
    return re.sub(r" [0-9a-f]{40,}", "", " ".join(str(error).split()).split(". ")[0])


@cache
def _report(message: str) -> None:
    """Print a message, once: with a node, many chunks may be lost."""
    print(message, flush=True)


def _chunks(
    calls: Iterable[tuple[object, ...]], chunksize: int
) -> Iterator[list[tuple[object, ...]]]:
    """Group calls, until there are enough of them or their bytes are many."""
    chunk, nbytes = list[tuple[object, ...]](), 0
    for call in calls:
        chunk.append(call)
        nbytes += sum(len(argument) for argument in call if isinstance(argument, bytes))
        if len(chunk) == chunksize or nbytes > CHUNK_BYTES:
            yield chunk
            chunk, nbytes = [], 0
    if chunk:
        yield chunk


def read_parts(files: Mapping[str, Path], limit: int = PART_BYTES) -> Iterator[Files]:
    """Read files, `limit` bytes at a time, for `write_files` to append in this order.

    Args:
        files: by their path in the project.

    Raises:
        OSError: if one cannot be read.
    """
    part, room = Files(), limit
    for path, place in files.items():
        with place.open("rb") as file:
            while len(content := np.fromfile(file, np.uint8, room)) == room:
                yield {**part, path: content}
                part, room = Files(), limit
            part[path], room = content, room - len(content)
    yield part


def list_files(paths: Iterable[str]) -> list[str]:
    """The files at these paths, and in folders at any depth, without compiled code."""
    found = [each for path in paths for each in (Path(path), *sorted(Path(path).rglob("*")))]
    return [path.as_posix() for path in found if path.is_file() and path.suffix != ".pyc"]


# On both sides. Ray sends these functions to the workers by value: they use nothing of the project
# but each other.


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
    """Write files, or append the next parts of some, under a folder of this process's own.

    Raises:
        OSError: if one cannot be written.
    """
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("ab") as file:
            file.write(content.data)


class CachedFile(NamedTuple):
    """A file in DVC's cache, which machines with a common file system need not send each other.

    `parts` are references to its content, if it has been sent.
    """

    path: str
    size: int
    parts: list[Any]

    def is_here(self) -> bool:
        """Whether this machine has the file. DVC, too, trusts those that it made read-only."""
        try:
            status = Path(self.path).stat()
        except OSError:
            return False
        return status.st_size == self.size and status.st_mode == stat.S_IFREG | CACHE_MODE


# On a worker


def worker_name() -> str:
    """How messages call this machine."""
    return f"worker {platform.node()}"


def fault_of_files(error: OSError) -> str:
    """Say which file this worker cannot read or write, and why."""
    place = error.filename or tempfile.gettempdir()
    return f"{worker_name()}: {place}: {error.strerror or error}"


def refusal(versions: Mapping[str, str]) -> str:
    """Why this worker cannot take the driver's work, if its packages differ; else ""."""
    for package, version in versions.items():
        if (installed := package_version(package)) != version:
            return (
                f"{worker_name()} has {package} {installed}, but this machine has {version}: "
                "install the same versions on both (requirements.txt, constraints.txt)"
            )
    return ""


def _call_each(
    pickled: bytes,
    calls: Sequence[tuple[object, ...]],
    project: Sequence[Any],
    versions: Mapping[str, str],
    fetch: Callable[[Any], Files],
) -> tuple[Literal["done"], list[Any]] | tuple[Literal["failed"], str]:
    """Call a function of the project several times; return its results, or what is wrong.

    Args:
        pickled: the function, and another to call before the first time, or None.
        project: references to the project's code, and to the other files that the functions read.
        versions: what `package_version` must return here for each package.
        fetch: gets the files of a reference.
    """
    if pickled not in _prepared:
        if problem := refusal(versions):
            return "failed", problem
        try:
            _prepared[pickled] = _prepare(pickled, map(fetch, project))
        except OSError as error:
            return "failed", fault_of_files(error)
    from face_attributes.errors import UserError  # which _prepare has imported

    try:
        return "done", [_prepared[pickled](*arguments) for arguments in calls]
    except UserError as error:
        return "failed", f"{worker_name()}: {error}"


def _prepare(pickled: bytes, project: Iterable[Files]) -> Callable[..., Any]:
    """Unpickle a function in a copy of the project, and call what is to be called before it.

    The copy is gone as soon as modules and models are loaded, so that no kill leaves one.
    """
    with (
        tempfile.TemporaryDirectory(prefix="face-attributes-") as folder,
        contextlib.chdir(folder),
    ):
        for files in project:
            write_files(Path(folder), files)
        sys.path.insert(0, folder)
        importlib.import_module("face_attributes.errors")
        function, initializer = pickle.loads(pickled)
        if initializer is not None:
            initializer()
        sys.path.remove(folder)
    prepared: Callable[..., Any] = function
    return prepared
