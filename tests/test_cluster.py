"""Folds and crops of a cluster of two raylets on this machine: lost nodes, unchanged bytes."""

import ast
import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from commands.cluster import PACKAGES, app
from commands.remote_stage import Event, run_stage
from face_attributes import ray_cluster
from face_attributes.command import LOCKS
from face_attributes.params import read_params
from face_attributes.processes import one_at_a_time
from face_attributes.ray_cluster import (
    CODE,
    CachedFile,
    Files,
    package_version,
    read_files,
    read_parts,
)
from stages import crop
from tests.conftest import save_photo
from tests.project import ENVIRONMENT, ROOT, Project
from tests.test_contract import imports

pytestmark = pytest.mark.slow

TOKEN = "0123456789abcdef" * 2
CLUSTER = {  # raylets on 127.0.0.1 alone, as a driver without RAY_ADDRESS starts them
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module", autouse=True)
def ray_settings() -> Iterator[None]:
    """Ray keeps those that it finds when it is imported first."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CLUSTER.items():
            patch.setenv(name, value)
        yield


# What needs no cluster


def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> tuple[str, float]:
    """What `repro` prints with this RAY_ADDRESS, and the seconds until then."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", address)
    start = time.monotonic()
    result = CliRunner().invoke(app, ["repro"])
    assert result.exit_code == 1, result.output + str(result.exception)
    return result.output, time.monotonic() - start


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:99999"])
def test_an_address_of_nothing_is_a_line_within_five_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    output, seconds = refusal(tmp_path, monkeypatch, address)
    assert output == (
        f"error: RAY_ADDRESS: no Ray cluster answers at {address}: start one with `ray start "
        "--head`, or unset RAY_ADDRESS to use this machine alone\n"
    )
    assert seconds < 5


def test_so_is_a_server_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        output, seconds = refusal(tmp_path, monkeypatch, f"127.0.0.1:{server.getsockname()[1]}")
    assert "no Ray cluster answers" in output
    assert seconds < 5


@pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001", "127.0.0.1:port"])
def test_an_address_is_a_host_and_a_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    output, _ = refusal(tmp_path, monkeypatch, address)
    assert output == (
        "error: RAY_ADDRESS: write HOST:PORT of a cluster with this machine as a node (is "
        f"{address})\n"
    )


def test_without_ray_the_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    output, _ = refusal(tmp_path, monkeypatch, "127.0.0.1:9")
    assert output == "error: Ray is not installed: pip install -r requirements-cluster.txt\n"


def test_a_second_driver_in_the_project_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_at_a_time(tmp_path / LOCKS / "cluster.lock", "the test"):
        output, _ = refusal(tmp_path, monkeypatch, "127.0.0.1:9")
    assert output == (
        f"error: python -m commands.cluster in this project is still running (pid {os.getpid()}): "
        "wait, or end it\n"
    )


@pytest.mark.parametrize(
    ("stage", "compared", "optional"),
    [
        ("train", PACKAGES, {"timm", "huggingface_hub"}),
        ("crop", (*crop.PACKAGES, "yuface"), set[str]()),
    ],
)
def test_versions_are_compared_of_all_packages_that_a_stage_imports(
    stage: str, compared: Sequence[str], optional: set[str]
) -> None:
    """Of all, because a worker without one of them fails, and one with another may be wrong."""
    seen, waiting = set[Path](), {ROOT / f"stages/{stage}.py", ROOT / "stages/__init__.py"}
    while waiting:
        seen |= waiting
        waiting = {path for each in waiting for path in imports(each)} - seen
    modules = set()
    for path in seen:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module))
    names = {module.split(".")[0] for module in modules} - sys.stdlib_module_names
    assert names >= optional, "for some networks alone"
    pinned_by_pydantic, the_cluster_itself = {"pydantic_core"}, {"ray"}
    here = {"stages", "face_attributes"} | optional | pinned_by_pydantic | the_cluster_itself
    packages = {"ruamel": "ruamel.yaml", "PIL": "pillow", "cv2": "opencv-python-headless"}
    assert {packages.get(name, name) for name in names - here} == set(compared)


def script(text: str) -> dict[str, Any]:
    """A stage for a worker: a module of its own."""
    return {"stage.py": np.frombuffer(textwrap.dedent(text).encode(), np.uint8)}


def run(text: str, *outputs: str, **versions: str) -> list[Event]:
    """What a worker reports of a stage."""
    environment, inputs = {"WORD": "hello"}, [script(text)]
    return list(run_stage(["-m", "stage"], outputs, environment, versions, inputs, {}, dict))


def test_a_worker_reports_lines_checkpoints_and_outputs(tmp_path: Path) -> None:
    events = run(
        """
        import os, pathlib, time
        print(os.environ["WORD"], flush=True)
        place = pathlib.Path(".cache/checkpoints")
        place.mkdir(parents=True)
        (place / "fold0.checkpoint").write_text("epoch 1")
        time.sleep(1)
        (place / "fold0.checkpoint").unlink()
        pathlib.Path("out.csv").write_text("result")
        print("last line", end="")
        """,
        "out.csv",
    )
    contents = [
        (kind, value if isinstance(value, str) else {k: bytes(v) for k, v in value.items()})
        for kind, value in events
    ]
    assert contents == [
        ("line", "hello"),
        ("saved", {".cache/checkpoints/fold0.checkpoint": b"epoch 1"}),
        ("line", "last line"),
        ("done", {"out.csv": b"result"}),
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("print('error: no such fold'); print('more'); exit(1)", "no such fold"),
        ("exit(3)", "exit code 3; its output is above"),
        ("import os; os.kill(os.getpid(), 9)", "the system killed the stage (signal 9), probably"),
        ("", "out.csv: No such file or directory"),
    ],
)
def test_a_failed_stage_is_a_line_that_names_the_worker(text: str, reason: str) -> None:
    kind, value = run(text, "out.csv")[-1]
    assert kind == "failed"
    assert re.fullmatch(rf"worker \S+: .*{re.escape(reason)}.*", str(value))


def test_a_worker_with_another_version_refuses_by_name() -> None:
    [(kind, value)] = run("print('ran')", numpy=package_version("numpy"), torch="1.0", none="2")
    assert kind == "refused"
    assert re.fullmatch(
        rf"worker \S+ has torch {re.escape(package_version('torch'))}, but this machine has 1.0: "
        r"install the same versions on both \(requirements.txt, constraints.txt\)",
        str(value),
    )


def test_large_files_travel_in_parts_that_fit_into_memory(tmp_path: Path) -> None:
    """Of 1, 10 and 6 bytes, and without any, in parts of 5 bytes."""
    contents = {"a": b"1", "empty": b"", "b/c": b"0123456789", "b/d": b"abcdef"}
    for path, content in contents.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    parts = list(read_parts({path: tmp_path / path for path in contents}, limit=5))
    assert [{path: bytes(part) for path, part in files.items()} for files in parts] == [
        {"a": b"1", "empty": b"", "b/c": b"0123"},
        {"b/c": b"45678"},
        {"b/c": b"9", "b/d": b"abcd"},
        {"b/d": b"ef"},
    ]
    stage = script("for name in ('a', 'empty', 'b/c', 'b/d'): print(open(name).read())")
    *lines, done = run_stage(["-m", "stage"], [], {}, {}, [stage, *parts], {}, dict)
    assert lines == [("line", content.decode()) for content in contents.values()]
    assert done == ("done", {})


def test_a_file_in_a_cache_that_the_worker_sees_is_linked_and_any_other_is_sent(
    tmp_path: Path,
) -> None:
    """Only if it is as large as here, and read-only, as DVC makes what never changes."""
    cache = tmp_path / "cdef"
    cache.write_text("crops")
    stage = script("import os; print(os.path.islink('data/a'), open('data/a').read())")

    def answers(size: int, parts: list[Files]) -> list[Event]:
        files = {"data/a": CachedFile(str(cache), size, parts)}
        return list(run_stage(["-m", "stage"], [], {}, {}, [stage], files, dict))

    sent = [{"data/a": np.frombuffer(text, np.uint8)} for text in (b"cro", b"ps")]
    assert answers(5, []) == [("missing", ["data/a"])]
    cache.chmod(0o444)
    assert answers(5, []) == [("line", "True crops"), ("done", {})]
    assert answers(4, []) == [("missing", ["data/a"])]
    cache.unlink()
    assert answers(5, []) == [("missing", ["data/a"])]
    assert answers(5, sent) == [("line", "False crops"), ("done", {})]


def test_a_worker_out_of_disk_says_so() -> None:
    """A limit on the size of files stands for the disk."""
    code = (
        "import resource, numpy; from commands.remote_stage import run_stage\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "files = {'crops.npy': numpy.zeros(2000, 'u1')}\n"
        "print(list(run_stage([], [], {}, {}, [files], {}, dict)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(r"\[\('failed', 'worker \S+: \S*: File too large'\)\]\n", result.stdout), (
        result.stdout + result.stderr
    )


def call_far_away(
    folder: Path,
    function: Callable[..., Any],
    calls: Sequence[tuple[object, ...]],
    initializer: Callable[[], None] | None = None,
    files: Files | None = None,
    **versions: str,
) -> tuple[str, Any]:
    """What a worker answers: a process in an empty folder, with the packages and nothing else."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(ray_cluster)
    paths = [path.relative_to(ROOT) for name in CODE for path in (ROOT / name).rglob("*.py")]
    project = read_files(ROOT, map(str, paths))
    call = partial(
        ray_cluster._call_each,
        cloudpickle.dumps((function, initializer)),
        calls,
        [{**project, **(files or {})}],
        versions,
        dict,
    )
    code = (
        "import sys, pickle; sys.stdout.buffer.write(pickle.dumps(pickle.load(sys.stdin.buffer)()))"
    )
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, env={**os.environ, "TMPDIR": str(folder)},
        input=cloudpickle.dumps(call), capture_output=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr.decode()
    assert list(folder.iterdir()) == []
    answer: tuple[str, Any] = pickle.loads(result.stdout)
    return answer


def test_a_worker_crops_the_content_of_photos_as_this_machine_crops_their_files(
    portraits: list[Path], tmp_path: Path
) -> None:
    params = read_params(ROOT / "params.yaml").crop
    save_photo(tmp_path / "noise.jpg")
    find = partial(crop._find_and_cut, params=params)
    paths = [*map(str, portraits[:2]), str(tmp_path / "noise.jpg")]
    calls = [(path, Path(path).read_bytes()) for path in paths]
    prepare = partial(crop._prepare_worker, params)
    kind, found = call_far_away(tmp_path / "worker", find, calls, prepare)
    assert kind == "done"
    assert found[2] is None
    for path, (box, confidence, turn, pixels) in zip(paths, found[:2], strict=False):
        expected = find(path, None)
        assert expected is not None
        np.testing.assert_array_equal(box, expected[0])
        assert (confidence, turn) == expected[1:3]
        np.testing.assert_array_equal(pixels, expected[3])


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "text.jpg",
            "is not a JPEG or PNG, but the stage clean accepted it: run `dvc repro` again",
        ),
        ("large.png", "needs more memory than there is: the photo may be good; remedy this, then"),
    ],
)
def test_a_photo_that_a_worker_cannot_crop_is_a_line(
    tmp_path: Path, name: str, problem: str
) -> None:
    def limit_memory() -> None:
        import resource

        import psutil

        limit = psutil.Process().memory_info().vms + 5 * 10**7
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    (tmp_path / "text.jpg").write_text("text")
    Image.new("RGB", (6000, 6000)).save(tmp_path / "large.png")
    find = partial(crop._find_and_cut, params=read_params(ROOT / "params.yaml").crop)
    calls = [(f"photos/{name}", (tmp_path / name).read_bytes())]
    kind, message = call_far_away(tmp_path / "worker", find, calls, limit_memory)
    assert kind == "failed"
    assert re.match(rf"worker \S+: photos/{name} {problem}", message)


def test_a_worker_has_the_model_of_the_detector_while_it_loads_it(tmp_path: Path) -> None:
    load = partial(Path("model.onnx").rename, "loaded")
    files = {"model.onnx": np.frombuffer(b"weights", np.uint8)}
    answer = call_far_away(tmp_path / "worker", len, [("abc",), ("de",)], load, files)
    assert answer == ("done", [3, 2])


def test_a_worker_with_another_version_crops_nothing(tmp_path: Path) -> None:
    kind, message = call_far_away(tmp_path / "worker", len, [("abc",)], pillow="1.0")
    assert kind == "failed"
    assert re.match(r"worker \S+ has pillow [\d.]+, but this machine has 1.0: install the", message)


# Two raylets


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node with one CPU, to which tests add others."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 3 * 10**8, "include_dashboard": False}
    # A node that does not answer three times is lost: after 3 seconds instead of 15.
    soon = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
    started = Cluster(initialize_head=True, head_node_args={**node, "_system_config": soon})
    yield started
    started.shutdown()


@contextmanager
def second_node(cluster: Any) -> Iterator[Any]:
    node = cluster.add_node(num_cpus=1, object_store_memory=3 * 10**8)
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node, allow_graceful=False)


@contextmanager
def driver(
    project: Project, cluster: Any, *arguments: str, **environment: str
) -> Iterator["subprocess.Popen[str]"]:
    """A running `python -m commands.cluster`, in a process group of its own."""
    with subprocess.Popen(
        [sys.executable, "-m", "commands.cluster", *arguments], cwd=project.folder,
        env={**ENVIRONMENT, **CLUSTER, "RAY_ADDRESS": cluster.address, **environment},
        text=True, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        yield process


def read_until(process: "subprocess.Popen[str]", pattern: str) -> str:
    """The output up to the first line that matches."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.match(pattern, line):
            return "".join(lines)
    raise AssertionError("".join(lines))


def wait_for_checkpoints(project: Project, number: int) -> None:
    """Until the driver has a checkpoint of so many folds."""
    for _ in range(600):
        if len(list(project.folder.glob(".cache/cluster/*/*.checkpoint"))) == number:
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoints")


EPOCHS = {"epochs": 4, "patience": 4}
DATA = [
    "data/crop/fallback.json",
    "data/crop/train/0000.npy",
    "data/crop/train/manifest.json",
    "data/folds/folds.csv",
    "data/weights/initial.safetensors",
]
"""What `train` depends on beside code and parameters."""


@pytest.fixture(scope="module")
def at_home(project: Project) -> dict[str, bytes]:
    """dvc.lock and metrics.json of `dvc repro` with EPOCHS, without the cluster."""
    project.set(train=EPOCHS)
    project.run("dvc", "repro", "aggregate")
    results = {name: (project.folder / name).read_bytes() for name in ("dvc.lock", "metrics.json")}
    project.restore()
    shutil.rmtree(project.folder / ".dvc/cache/runs")  # and it trains again
    return results


def wait_for_task(node: Any, name: str) -> None:
    """Until a worker of the node runs a task."""
    [raylet] = node.all_processes["raylet"]
    for _ in range(600):
        workers = psutil.Process(raylet.process.pid).children(recursive=True)
        if any(f"ray::{name}" in worker.cmdline() for worker in workers):
            return
        time.sleep(0.05)
    raise AssertionError(f"no {name}")


def test_a_node_killed_while_it_crops_changes_no_byte(project: Project, cluster: Any) -> None:
    lock, yaml = project.folder / "dvc.lock", YAML(typ="safe")
    at_home = yaml.load(lock)["stages"]
    content = yaml.load(lock)
    del content["stages"]["crop"]
    yaml.dump(content, lock)
    shutil.rmtree(project.folder / ".dvc/cache/runs")  # and it crops again
    with second_node(cluster) as node, driver(project, cluster, "repro", "crop") as process:
        wait_for_task(node, "_call_each")
        cluster.remove_node(node, allow_graceful=False)
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert re.search("^lost a worker, its photos go elsewhere: ", output, re.M), output
    assert yaml.load(lock)["stages"] == at_home
    project.restore()


def test_a_node_killed_within_a_fold_changes_no_byte(
    project: Project, cluster: Any, at_home: dict[str, bytes]
) -> None:
    project.set(train=EPOCHS)
    with second_node(cluster) as node, driver(project, cluster, "repro", "aggregate") as process:
        output = read_until(process, "fold . epoch 2/")
        wait_for_checkpoints(project, 2)
        for path in project.folder.glob(".dvc/cache/files/md5/*/*"):
            path.chmod(0o644)  # stands for a cache that the other node does not see
        cluster.remove_node(node, allow_graceful=False)
        output += process.communicate()[0]
    assert process.returncode == 0, output
    assert re.search(
        r"^train@.: lost its worker, continues elsewhere: .* dead or unavailable$", output, re.M
    ), output
    assert re.search(r"^fold . resuming after epoch [1-3]/4", output, re.M), output
    sent = re.findall(r"^(\S+): sent to workers, which do not see DVC's cache$", output, re.M)
    assert sorted(sent) == DATA
    assert "Running stage 'train" not in output
    assert {name: (project.folder / name).read_bytes() for name in at_home} == at_home
    assert not list((project.folder / ".cache/cluster").iterdir())
    project.restore()


def test_finished_folds_outlive_a_killed_driver_and_changed_parameters(
    project: Project, cluster: Any
) -> None:
    project.set(train={"freeze": "layer4", "seed": 5})
    before = (project.folder / "dvc.lock").read_bytes()
    with driver(project, cluster, "repro", "aggregate") as first:
        read_until(first, "train@.: finished")
        os.killpg(first.pid, signal.SIGKILL)
    assert (project.folder / "dvc.lock").read_bytes() == before

    with driver(project, cluster, "repro", "aggregate") as process:
        output = read_until(process, "train fold .: 126 photos")
        project.set(train={"seed": 6})
        output += process.communicate()[0]
    assert process.returncode == 1
    assert len(re.findall("^train@.: finished", output, re.M)) == 1, output
    assert output.endswith(
        "error: parameters, code or data changed while the cluster trained, and train@0 is out of "
        "date: run the same command again (what is finished is kept)\n"
    )
    assert (project.folder / "dvc.lock").read_bytes() == before

    project.set(train={"seed": 5})
    output = project.run("dvc", "repro", "train")
    assert output.count("is cached - skipping run") == 2
    assert json.loads((project.folder / ".cache/times/train@0.json").read_text())["seconds"] > 0
    project.restore()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:dvc.*")
def test_what_a_cluster_lacks_is_a_line(
    project: Project, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for name in ("PATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, ENVIRONMENT[name])

    def last_line(*arguments: str) -> str:
        """What `repro` ends with; in this process, to save time."""
        result = CliRunner().invoke(app, ["repro", *arguments])
        assert result.exit_code == 1, result.output
        return result.output.splitlines()[-1]

    project.set(train={"device": "cuda"})
    assert last_line() == (
        "error: train.device: cuda cannot be used: no node of the cluster has a GPU; set it to "
        "auto or cpu"
    )
    project.set(train={"device": "cpu", "seed": 7})
    assert last_line("--per-fold", "3") == (
        "error: --per-fold 3: a fold needs 3 CPUs of one node of the cluster, and nodes have "
        "at most 1 CPUs: start a larger one, or lower --per-fold or OMP_NUM_THREADS"
    )
    with driver(project, cluster, "repro", OMP_NUM_THREADS="2") as process:
        assert process.communicate()[0].splitlines()[-1] == (
            "error: training uses 2 threads here, and no node of the cluster has more than 1 CPUs: "
            "set OMP_NUM_THREADS=1, also for `dvc repro`: rounding depends on it"
        )
    with driver(project, cluster, "repro", RAY_AUTH_TOKEN="f" * 32) as process:
        assert process.communicate()[0].splitlines()[-1] == (
            f"error: RAY_ADDRESS: the cluster at {cluster.address} does not accept this token: set "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the token that the cluster was started with"
        )
    project.restore()


def test_a_sweep_trains_the_folds_of_all_experiments_on_the_cluster(
    project: Project, cluster: Any
) -> None:
    """One that fails does so alone."""
    sweep = "sweep", "train.freeze=layer4,nosuch"
    with second_node(cluster), driver(project, cluster, *sweep) as process:
        output, _ = process.communicate()
    assert process.returncode == 1
    assert output.endswith("error: failed, and not in the table: freeze-nosuch\n"), output
    assert len(re.findall("train@.: finished", output)) == 2
    table = pd.read_csv(project.folder / "sweep/sweep.csv")
    assert table["run"].to_list() == ["freeze-layer4"]
    log = project.folder.glob("sweep/*/freeze-layer4/log.txt")
    assert next(log).read_text().count("is cached - skipping run") >= 2
    compared = project.python("commands.compare", "HEAD", "freeze-layer4")
    assert "macro F1" in compared
    project.run("dvc", "exp", "apply", "freeze-layer4")
    assert project.outdated().isdisjoint({"train@0", "train@1", "predict", "aggregate"})
    project.restore()
    assert project.run("git", "status", "--porcelain") == ""
