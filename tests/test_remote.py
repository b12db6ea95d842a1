"""A team: results travel over an S3 server, experiments over git, and a cache can be shared."""

import stat
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests import project as projects
from tests.project import Project

pytestmark = pytest.mark.slow

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server on loopback with the empty bucket `faces`."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
            patch.setitem(projects.ENVIRONMENT, name, value)
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="faces")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def origin(project: Project, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare git repository with the project, whose results are on the server."""
    project.run("dvc", "remote", "add", "--default", "store", "s3://faces/masks")
    project.run("dvc", "remote", "modify", "store", "endpointurl", s3)
    project.run("git", "commit", "-qam", "a remote")
    folder = tmp_path_factory.mktemp("origin")
    project.run("git", "clone", "-q", "--bare", ".", str(folder))
    project.run("git", "remote", "add", "origin", str(folder))
    project.run("dvc", "push", "--run-cache")
    return folder


def clone(origin: Path, folder: Path) -> Project:
    """A clone as another person has it, without any results."""
    folder.mkdir()
    copy = Project(folder)
    copy.run("git", "clone", "-q", str(origin), ".")
    assert not (folder / "data/crop").exists()
    return copy


@pytest.fixture
def colleague(origin: Path, tmp_path: Path) -> Project:
    return clone(origin, tmp_path / "colleague")


def test_a_clone_pulls_the_results_and_runs_nothing(project: Project, colleague: Project) -> None:
    colleague.run("dvc", "pull")
    assert "up to date" in colleague.run("dvc", "status")
    assert "in sync" in colleague.run("dvc", "status", "--cloud")
    assert colleague.repro() == set()
    assert colleague.run("git", "status", "--porcelain") == ""
    for name in ("data/crop/train.npy", "data/train/fold1/network.safetensors"):
        assert (colleague.folder / name).read_bytes() == (project.folder / name).read_bytes()


def test_an_experiment_travels_with_its_results(project: Project, colleague: Project) -> None:
    project.run("dvc", "exp", "run", "-n", "large", "-S", "review.thumbnail=64")
    project.run("dvc", "exp", "push", "origin", "large")
    project.restore()
    assert "large" in colleague.run("dvc", "exp", "list", "origin")
    colleague.run("dvc", "exp", "pull", "origin", "large")
    colleague.run("dvc", "exp", "apply", "large")
    assert "thumbnail: 64" in (colleague.folder / "params.yaml").read_text()
    assert colleague.repro() == set()
    assert "macro F1" in colleague.python("commands.compare", "HEAD", "large")


def test_the_ensemble_of_a_version_is_downloaded_without_a_clone(
    project: Project, origin: Path, tmp_path: Path
) -> None:
    project.run("gto", "register", "ensemble", "--version", "v1.0.0")
    project.run("git", "push", "-q", "origin", "ensemble@v1.0.0")
    project.run(
        "dvc", "artifacts", "get", str(origin), "ensemble", "--rev", "v1.0.0",
        "--out", str(tmp_path / "ensemble"),
    )  # fmt: skip
    for name in ("fold0/network.safetensors", "fold1/network.safetensors"):
        original = project.folder / "data/train" / name
        assert (tmp_path / "ensemble" / name).read_bytes() == original.read_bytes()


def test_a_shared_cache_serves_everybody(origin: Path, tmp_path: Path) -> None:
    """What one person has pulled or computed, the other has without a remote."""
    cache = tmp_path / "cache"
    first, second = people = [clone(origin, tmp_path / name) for name in ("first", "second")]
    for person in people:
        person.run("dvc", "cache", "dir", "--local", str(cache))
        person.run("dvc", "config", "--local", "cache.shared", "group")
        person.set(review={"thumbnail": 64})
    first.run("dvc", "pull")
    assert first.repro("review") == {"review"}
    folders = [path for path in cache.rglob("*") if path.is_dir()]
    assert folders and all(path.stat().st_mode & stat.S_IWGRP for path in folders)

    nowhere = ("endpointurl", "http://127.0.0.1:9")
    second.run("dvc", "remote", "modify", "--local", "store", *nowhere)
    second.run("dvc", "checkout")
    assert "is cached - skipping run" in second.run("dvc", "repro", "review")
    assert second.repro() == set()
    page = "reports/review.html"
    assert (first.folder / page).read_bytes() == (second.folder / page).read_bytes()
