"""A team: results travel over S3 and ssh, experiments over git, and a cache can be shared."""

import asyncio
import stat
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import asyncssh
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


@pytest.fixture
def ssh(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of an ssh server on loopback, and a home whose key it accepts and which knows it.

    It serves the folder `store`, by SFTP alone.
    """
    home, store = tmp_path / "home/.ssh", tmp_path / "store"
    home.mkdir(parents=True)
    store.mkdir()
    key, host_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    key.write_private_key(home / "id_ed25519")
    key.write_public_key(home / "authorized_keys")

    async def serve() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[host_key],
            authorized_client_keys=str(home / "authorized_keys"),
            sftp_factory=partial(asyncssh.SFTPServer, chroot=bytes(store)),
        )

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    port = server.get_port()
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key.export_public_key().decode()}")
    yield f"ssh://somebody@127.0.0.1:{port}/masks", home.parent
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    server.close()
    loop.run_until_complete(server.wait_closed())
    loop.close()


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
    for name in ("data/crop/train/0000.npy", "data/train/fold1/network.safetensors"):
        assert (colleague.folder / name).read_bytes() == (project.folder / name).read_bytes()


def test_results_travel_over_ssh(
    project: Project, colleague: Project, ssh: tuple[str, Path], tmp_path: Path
) -> None:
    """A host whose key is not known is refused, as by ssh itself."""
    url, home = ssh
    for person in (project, colleague):
        person.run("dvc", "remote", "add", "--local", "lab", url)
    said = project.run("dvc", "push", "--remote", "lab", code=1, HOME=str(tmp_path))
    assert "Host key is not trusted" in said or "Permission denied" in said
    assert list((tmp_path / "store").iterdir()) == []
    project.run("dvc", "push", "--run-cache", "--remote", "lab", HOME=str(home))
    colleague.run("dvc", "pull", "--run-cache", "--remote", "lab", HOME=str(home))
    assert colleague.repro() == set()
    for name in ("data/crop/train/0000.npy", "data/train/fold1/network.safetensors"):
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
