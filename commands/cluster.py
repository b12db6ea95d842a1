"""Cluster: train the folds, and crop, on the machines of a Ray cluster.

python -m commands.cluster repro
python -m commands.cluster sweep train.freeze=none,layer3 train.seed=0,1,2
python -m commands.cluster repro --per-fold 4

`RAY_ADDRESS` says where the cluster is, as HOST:PORT; without it, Ray starts one on this machine.
The stages before `train` run here; `crop` also uses the CPUs of the cluster at RAY_ADDRESS (not in
a sweep). Then workers train the folds that DVC has no results of. Their results go into DVC's run
cache, where `dvc repro` finds them as if this machine had trained the folds. After a failure or a
kill, run the same command again: finished folds and epochs are kept. `--per-fold` trains each fold
on several GPUs of one machine, or in several processes on its CPUs.
"""

import contextlib
import hashlib
import io
import logging
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from dvc.dependency.base import Dependency
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage
from dvc.stage.cache import RunCacheNotFoundError
from dvc.utils.hydra import apply_overrides
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_objects.errors import ObjectFormatError

from commands import remote_stage
from commands.remote_stage import run_stage
from commands.sweep import (
    TARGET,
    Grid,
    check_installed,
    run_command,
    run_sweep,
    uncommitted_state,
)
from face_attributes.command import LOCKS, TIMES, errors_in_one_line
from face_attributes.errors import UserError
from face_attributes.files import write_whole
from face_attributes.params import read_params
from face_attributes.processes import one_at_a_time
from face_attributes.progress import progress
from face_attributes.ray_cluster import (
    CODE,
    CROP_VARIABLE,
    MOST_LOSSES,
    CachedFile,
    Files,
    connection,
    import_ray,
    list_files,
    loss_reason,
    package_version,
    read_files,
    read_parts,
)

TRAIN = "train"
"""The stage that runs on the cluster, once per fold."""
NOT_DATA = (*CODE, "params.yaml")
"""The first parts of paths that are sent to every worker; the other dependencies are data."""
PACKAGES = (
    "filelock", "numpy", "pandas", "psutil", "pydantic", "ruamel.yaml", "safetensors", "scipy",
    "torch", "torchvision", "tqdm", "typer",
)  # fmt: skip
"""The packages that TRAIN imports; for networks timm/NAME, timm, too."""
CHECKPOINTS = Path(".cache/cluster")
"""A folder for each unfinished fold, with its last checkpoint."""
ABANDONED = 30 * 24 * 3600
"""Seconds after which a checkpoint counts as that of an abandoned run."""

EVENTS_IN_WAITING = 2
"""Unread events after which a worker waits, so that checkpoints do not pile up."""
CANCEL_SECONDS = 5.0

Objects = dict[str, list[Any]]
"""Ray's references to the parts of files, by their content: each is sent once to a node."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass
class Task:
    """A fold to train.

    `stage` has the hashes of its dependencies, as they were when the task was made; `digest`
    identifies them. `inputs` are references to files that the stage reads, `cached` others, by
    their path; `versions` are those of the packages that it imports. `processes` run the stage
    together, each with a GPU if `gpus`, and with `threads`.
    """

    stage: PipelineStage
    digest: str
    inputs: list[Any]
    cached: dict[str, CachedFile]
    versions: dict[str, str]
    processes: int
    threads: int
    gpus: bool
    times: Path
    label: str
    losses: int = 0

    @property
    def name(self) -> str:
        return f"{self.label}{self.stage.name}"

    @property
    def checkpoint(self) -> Path:
        return CHECKPOINTS / self.digest


@contextlib.contextmanager
def locked_project() -> Iterator[Repo]:
    """Open the DVC project of this folder, and keep other DVC processes from changing it.

    Raises:
        UserError: with what DVC says is wrong, such as a mistake in dvc.yaml.
    """
    logging.getLogger("dvc").setLevel(logging.WARNING)
    try:
        with Repo() as repo, repo.lock:
            yield repo
    except DvcException as error:
        raise UserError(" ".join(str(error).split())) from None


def folds_and_what_they_need(targets: Sequence[str]) -> tuple[list[str], list[str]]:
    """List the folds that `dvc repro TARGETS` trains, and the stages that must run before.

    Raises:
        UserError: if DVC cannot read dvc.yaml, or does not know a target.
    """
    with locked_project() as repo:
        wanted = {
            stage
            for target in targets or [""]  # all
            for stage in repo.stage.collect(target, with_deps=bool(target))
        }
        folds = {stage for stage in wanted if stage.addressing.split("@")[0] == TRAIN}
        before = {
            stage for fold in folds for stage in repo.stage.collect(fold.addressing, with_deps=True)
        } - folds
        in_order = repo.index.stages
        return (
            [stage.addressing for stage in in_order if stage in folds],
            [stage.addressing for stage in in_order if stage in before],
        )


def is_finished(stage: PipelineStage) -> bool:
    """Whether DVC has the outputs of a stage, in the workspace or in its cache.

    Otherwise the stage has the hashes of its present dependencies afterwards.
    """
    if not stage.changed():
        return True
    if not stage.changed_stage() and stage.deps_cached() and stage.outs_cached():
        return True
    stage.save_deps()
    for out in stage.outs:  # dvc.lock lists the outputs of other dependencies
        out.hash_info = HashInfo()
    try:
        stage.repo.stage_cache.restore(stage, dry=True)
    except RunCacheNotFoundError:
        return False
    return True


def unfinished(names: Sequence[str]) -> list[str]:
    """List those of the stages that `dvc repro` would run."""
    with locked_project() as repo:
        stages = [stage for name in names for stage in repo.stage.collect(name)]
        return [stage.addressing for stage in stages if not is_finished(stage)]


def make_tasks(
    names: Sequence[str],
    objects: Objects,
    ray: Any,
    per_fold: int,
    times: Path = TIMES,
    label: str = "",
) -> list[Task]:
    """Make a task for each fold, of the project in this folder, that is not finished.

    Args:
        names: of the folds' stages.
        objects: what earlier calls have put into Ray's object store; added to.
        per_fold: number of GPUs, or of processes on CPUs, that train a fold together.
        times: folder for the times of the stages.
        label: what messages about these folds start with.

    Raises:
        UserError: if params.yaml is invalid, a dependency changes meanwhile, or `train.device` is
            cuda and the cluster has no GPU.
    """
    with locked_project() as repo:
        stages = [stage for name in names for stage in repo.stage.collect(name)]
        stages = [stage for stage in stages if not is_finished(stage)]
        if not stages:
            return []
        params = read_params()
        device, model = params.train.device, params.weights.model
        gpus = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
        if device == "cuda" and not gpus:
            raise UserError(
                "train.device: cuda cannot be used: no node of the cluster has a GPU; set it to "
                "auto or cpu"
            )
        packages = [*PACKAGES, "timm"] if model.startswith("timm/") else PACKAGES
        versions = {package: package_version(package) for package in packages}
        threads = _training_threads()
        tasks = []
        for stage in stages:
            digest = _digest(stage)
            data = [dep for dep in stage.deps if Path(dep.def_path).parts[0] not in NOT_DATA]
            inputs, cached = list[Any](), dict[str, CachedFile]()
            for paths in (CODE, ["params.yaml"]):
                files = read_files(Path(), list_files(paths))
                inputs += _put(_hash(files), [files], objects, ray)
            for dep in data:
                for path, md5 in _files(dep).items():
                    if file := _find_in_cache(md5, repo):
                        cached[path] = file
                    else:
                        parts = read_parts({path: Path(path)})
                        inputs += _put(f"{path} {md5}", parts, objects, ray)
            stage.save_deps()
            if _digest(stage) != digest:
                raise UserError("what train depends on changed while it was read: run again")
            tasks.append(
                Task(
                    stage,
                    digest,
                    inputs,
                    cached,
                    versions,
                    processes=per_fold,
                    threads=threads,
                    gpus=device != "cpu" and gpus > 0,
                    times=times.resolve(),
                    label=label,
                )
            )
    return tasks


def _training_threads() -> int:
    """The number of threads with which DVC would train here."""
    import torch  # takes seconds, and only an unfinished fold needs it

    return torch.get_num_threads()


def _digest(stage: PipelineStage) -> str:
    """A hash of the command and the dependencies of a stage."""
    deps = sorted((str(dep), repr(dep.hash_info.value)) for dep in stage.deps)
    return hashlib.sha256(repr((stage.cmd, deps)).encode()).hexdigest()


def _files(dep: Dependency) -> dict[str, str]:
    """The files of a dependency, which is one or a folder, and DVC's hashes of them.

    Of a stage that `is_finished` has found unfinished: its dependencies were saved then.
    """
    if not dep.hash_info.isdir:
        return {dep.def_path: dep.hash_info.value}
    return {"/".join((dep.def_path, *parts)): md5.value for parts, _, md5 in dep.get_obj()}


def _find_in_cache(md5: str, repo: Repo) -> CachedFile | None:
    """Find a file in DVC's cache."""
    path = Path(repo.cache.local.oid_to_path(md5))
    file = CachedFile(str(path), path.stat().st_size if path.exists() else 0, [])
    return file if file.is_here() else None


def _hash(files: Files) -> str:
    digest = hashlib.sha256()
    for path, content in files.items():
        digest.update(f"{path} {len(content)} ".encode())
        digest.update(content.data)
    return digest.hexdigest()


def _put(key: str, parts: Iterable[Files], objects: Objects, ray: Any) -> list[Any]:
    """Put files into Ray's object store, with a part in memory at a time; return the references.

    Args:
        key: for `objects`, which tells one content from another. With DVC's hash in it, large files
            are not read to find that they have been sent. (If they changed since, the task's
            digest does not match afterwards.)
    """
    if key not in objects:
        objects[key] = [ray.put(part) for part in parts]
    return objects[key]


def train_all(tasks: Sequence[Task], objects: Objects, ray: Any) -> dict[str, str]:
    """Train folds on the cluster, and store each one's outputs as soon as it is finished.

    A fold whose worker is lost continues on another one from its last checkpoint.

    Args:
        objects: what has been put into Ray's object store; added to.

    Returns:
        Why folds failed, by the digest of their task.

    Raises:
        UserError: if no node is large enough, a worker has other package versions, or Ctrl-C.
    """
    _check_nodes(tasks, ray)
    running = {_submit(task, ray): task for task in tasks}
    failed = dict[str, str]()
    try:
        while running:
            [stream], _ = ray.wait(list(running), num_returns=1)
            task = running[stream]
            try:
                kind, value = ray.get(next(stream))
            except ray.exceptions.RayTaskError:  # a mistake in this project
                raise
            except ray.exceptions.RayError as error:
                del running[stream]
                reason = loss_reason(error)
                task.losses += 1
                if task.losses > MOST_LOSSES:
                    failed[task.digest] = f"{task.stage.name}: lost {task.losses} workers: {reason}"
                else:
                    print(
                        f"{task.name}: lost its worker, continues elsewhere: {reason}", flush=True
                    )
                    running[_submit(task, ray)] = task
                continue
            if kind == "line":
                print(f"{task.label}{value}", flush=True)
            elif kind == "saved":
                _write(value, task.checkpoint)
            elif kind == "refused":
                raise UserError(value)
            elif kind == "missing":
                del running[stream]
                _send(task, value, objects, ray)
                running[_submit(task, ray)] = task
            else:
                del running[stream]
                if kind == "failed":
                    failed[task.digest] = f"{task.stage.name} on {value}"
                else:
                    store(task, value)
    except KeyboardInterrupt:
        raise UserError(
            "stopped: finished folds and epochs are kept; the same command continues there"
        ) from None
    finally:
        if running:
            _cancel(list(running), ray)
    for folder in CHECKPOINTS.glob("*"):
        if time.time() - folder.stat().st_mtime > ABANDONED:
            shutil.rmtree(folder, ignore_errors=True)
    return failed


def _send(task: Task, paths: Sequence[str], objects: Objects, ray: Any) -> None:
    """Put files of DVC's cache that a worker does not see into Ray's object store.

    Raises:
        UserError: if one is no longer what it was.
    """
    for path in paths:
        file = task.cached[path]
        cache = task.stage.repo.cache.local
        try:
            cache.check(cache.path_to_oid(file.path))
        except (FileNotFoundError, ObjectFormatError):
            raise UserError(
                f"{file.path} is damaged or gone, which was in DVC's cache: run the same command "
                "again (what is finished is kept)"
            ) from None
        if (key := f"{path} {file.path}") not in objects:
            print(f"{path}: sent to workers, which do not see DVC's cache", flush=True)
        parts = _put(key, read_parts({path: Path(file.path)}), objects, ray)
        task.cached[path] = file._replace(parts=parts)


def _cancel(streams: Sequence[Any], ray: Any) -> None:
    """End stages that still run, and give their workers time to delete the temporary folders."""
    for stream in streams:
        ray.cancel(stream)
    ended = [stream.completed() for stream in streams]
    ray.wait(ended, num_returns=len(ended), timeout=CANCEL_SECONDS)


def _check_nodes(tasks: Sequence[Task], ray: Any) -> None:
    """Check that some node has the CPUs and GPUs of a fold; otherwise it would wait forever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for task in tasks:
        needed = {kind: number for kind, number in _resources(task).items() if number}
        if any(all(node.get(kind, 0) >= needed[kind] for kind in needed) for node in nodes):
            continue
        most = {kind: max(int(node.get(kind, 0)) for node in nodes) for kind in needed}
        if task.processes > 1 or task.gpus:
            raise UserError(
                f"--per-fold {task.processes}: a fold needs {_count(needed)} of one node of the "
                f"cluster, and nodes have at most {_count(most)}: start a larger one, or lower "
                "--per-fold" + ("" if task.gpus else " or OMP_NUM_THREADS")
            )
        cpus = most["CPU"]
        raise UserError(
            f"training uses {task.threads} threads here, and no node of the cluster has more than "
            f"{cpus} CPUs: set OMP_NUM_THREADS={cpus}, also for `dvc repro`: rounding depends on it"
        )


def _count(resources: Mapping[str, int]) -> str:
    return " and ".join(f"{number} {kind}s" for kind, number in resources.items())


def _resources(task: Task) -> dict[str, int]:
    """The CPUs and GPUs of one node that a fold needs."""
    threads = 1 if task.gpus else task.threads
    return {"CPU": threads * task.processes, "GPU": task.processes if task.gpus else 0}


def _submit(task: Task, ray: Any) -> Any:
    """Queue a fold with its last checkpoint; return the stream of its events."""
    saved = [path.name for path in task.checkpoint.glob("*.checkpoint")]
    checkpoint = {
        f".cache/checkpoints/{name}": content
        for name, content in read_files(task.checkpoint, saved).items()
    }
    worker = ray.remote(run_stage).options(
        num_cpus=_resources(task)["CPU"],
        num_gpus=_resources(task)["GPU"],
        num_returns="streaming",
        _generator_backpressure_num_objects=EVENTS_IN_WAITING,
        max_retries=0,
    )
    return worker.remote(
        shlex.split(task.stage.cmd)[1:],
        [*(out.def_path for out in task.stage.outs), _times_file(task)],
        # DVC_STAGE as DVC sets it; the threads of this machine, since rounding depends on them.
        {"DVC_STAGE": task.stage.addressing, "OMP_NUM_THREADS": str(task.threads)},
        task.versions,
        [*task.inputs, ray.put(checkpoint)],
        task.cached,
        ray.get,
        task.processes,
    )


def _times_file(task: Task) -> str:
    return (TIMES / f"{task.stage.name}.json").as_posix()


def _write(files: Files, folder: Path) -> None:
    """Write files to a folder, by their names, each whole."""
    for path, content in files.items():
        with write_whole(folder / Path(path).name, fsync=False) as file:
            file.write(content.data)


def store(task: Task, outputs: Files) -> None:
    """Put a fold's outputs into DVC's cache, and record them in its run cache.

    `dvc repro` finds them there, also in a copy of the project, but only for the same command,
    parameters and dependencies.
    """
    _write({_times_file(task): outputs.pop(_times_file(task))}, task.times)
    stage = task.stage
    _write(outputs, task.checkpoint)
    for out in stage.outs:
        content = outputs[out.def_path]
        out.hash_info = HashInfo("md5", hashlib.md5(content.data).hexdigest())
        out.meta = Meta(size=len(content))
        path = task.checkpoint / Path(out.def_path).name
        out.cache.add(str(path.resolve()), out.fs, out.hash_info.value)
    with contextlib.chdir(stage.repo.root_dir):
        stage.repo.stage_cache.save(stage)
    shutil.rmtree(task.checkpoint)
    print(f"{task.name}: finished", flush=True)


def run_dvc(*arguments: str) -> None:
    """Run DVC with its output on this terminal; its stage `crop` uses the cluster, if there is one.

    Raises:
        UserError: if it is not on PATH, or fails.
    """
    check_installed("dvc")
    environment = {**os.environ, CROP_VARIABLE: os.environ.get("RAY_ADDRESS", "")}
    if subprocess.run(["dvc", *arguments], env=environment).returncode:
        raise UserError(f"dvc {' '.join(arguments)} failed: see above")


@contextlib.contextmanager
def project_copy() -> Iterator[Path]:
    """Copy what git tracks, with uncommitted changes, to a folder that shares DVC's cache.

    These are the files from which `dvc exp run --temp` starts.
    """
    commit = run_command("git", "stash", "create").strip() or "HEAD"
    cache = run_command("dvc", "cache", "dir").strip()
    archive = subprocess.run(["git", "archive", commit], stdout=subprocess.PIPE, check=True).stdout
    with tempfile.TemporaryDirectory(dir=".dvc/tmp", prefix="cluster-") as name:
        copy = Path(name).resolve()
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            # An attribute, because Python before 3.11.4 knows no argument `filter`.
            files.extraction_filter = getattr(tarfile, "tar_filter", None)
            files.extractall(copy)
        if Path(".dvc/config.local").exists():
            shutil.copy(".dvc/config.local", copy / ".dvc")
        with contextlib.chdir(copy):
            run_command("dvc", "config", "--local", "core.no_scm", "true")
            run_command("dvc", "config", "--local", "cache.dir", cache)
            run_command("dvc", "checkout", "--quiet", "--allow-missing")
        yield copy


def train_experiments(grid: Grid, folder: Path, ray: Any, per_fold: int) -> list[str]:
    """Train the folds of all experiments in one queue; return the names of those that failed.

    Args:
        folder: of a folder per experiment, for its log and the times of its stages.
        per_fold: as for `make_tasks`.
    """
    objects, tasks = Objects(), dict[str, Task]()
    needed, failures = dict[str, list[str]](), dict[str, str]()
    with project_copy() as copy:
        params = (copy / "params.yaml").read_text(encoding="utf-8")
        for name, overrides in progress(grid.items(), len(grid), "sweep: inputs of experiments"):
            times = (folder / name / "times").resolve()
            with contextlib.chdir(copy):
                Path("params.yaml").write_text(params, encoding="utf-8")
                try:
                    apply_overrides("params.yaml", overrides)
                    folds, before = folds_and_what_they_need([TARGET])
                    run_command("dvc", "repro", *before)
                    made = make_tasks(folds, objects, ray, per_fold, times, label=f"{name}: ")
                except (UserError, DvcException) as error:
                    failures[name] = " ".join(str(error).split())
                    continue
            needed[name] = [task.digest for task in made]
            for task in made:  # experiments may share folds
                tasks.setdefault(task.digest, task)
        failed = train_all(list(tasks.values()), objects, ray)
    for name, digests in needed.items():
        for digest in digests:
            if digest in failed:
                failures[name] = failed[digest]
    for name, reason in failures.items():
        print(f"{name}: failed: {reason}", flush=True)
    return list(failures)


def only_driver() -> contextlib.AbstractContextManager[None]:
    """Keep other drivers out of this project."""
    return one_at_a_time(LOCKS / "cluster.lock", "python -m commands.cluster in this project")


PerFold = Annotated[
    int,
    typer.Option(min=1, help="GPUs, or processes on CPUs, that train each fold together"),
]


@app.command()
@errors_in_one_line
def repro(
    targets: Annotated[list[str] | None, typer.Argument(help="As of `dvc repro`")] = None,
    per_fold: PerFold = 1,
) -> None:
    """Reproduce the pipeline as `dvc repro` does, with the folds trained on the cluster."""
    wanted = targets or []
    with only_driver():
        ray = import_ray(remote_stage)
        folds, before = folds_and_what_they_need(wanted)
        if before:
            run_dvc("repro", *before)
        if unfinished(folds):
            with connection(ray):
                objects = Objects()
                failed = train_all(make_tasks(folds, objects, ray, per_fold), objects, ray)
            if failed:
                raise UserError(f"failed: {'; '.join(failed.values())}")
        if changed := unfinished([*before, *folds]):
            raise UserError(
                f"parameters, code or data changed while the cluster trained, and {changed[0]} is "
                "out of date: run the same command again (what is finished is kept)"
            )
    run_dvc("repro", *wanted)


@app.command()
@errors_in_one_line
def sweep(
    arguments: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE,...", help="Values of a parameter to combine")
    ],
    out: Annotated[Path, typer.Option(help="Output folder")] = Path("sweep"),
    per_fold: PerFold = 1,
) -> None:
    """Like `python -m commands.sweep`, with the folds of all experiments trained on the cluster."""

    with only_driver():
        ray = import_ray(remote_stage)

        def train(grid: Grid, folder: Path) -> list[str]:
            before = _project_state()
            with connection(ray):
                failed = train_experiments(grid, folder, ray, per_fold)
            if _project_state() != before:
                raise UserError(
                    "the project changed while the cluster trained: undo that, or run the same "
                    "command again (what is finished is kept)"
                )
            return failed

        run_sweep(arguments, out, train_first=train)


def _project_state() -> tuple[str, str]:
    """What experiments start from: the commit and the uncommitted changes."""
    return run_command("git", "rev-parse", "HEAD"), uncommitted_state()


if __name__ == "__main__":
    app()
