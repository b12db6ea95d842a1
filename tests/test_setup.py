"""What holds before anything is installed: line endings, and what `make` says first."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import git
from tests.project import ROOT

LOCK = ROOT / "requirements.lock"


def test_a_clone_with_windows_line_endings_has_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Git for Windows sets core.autocrlf, and DVC would take every file for changed."""
    (tmp_path / "original").mkdir()
    monkeypatch.chdir(tmp_path / "original")
    names = [".gitattributes", "params.yaml", "dvc.yaml", "Makefile", "docs/report.png"]
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, name)
    git("init", "-q")
    git("add", "--all")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "files")
    git("-c", "core.autocrlf=true", "clone", "-q", ".", "../clone")
    for name in names:
        assert Path("../clone", name).read_bytes() == Path(name).read_bytes(), name


def make(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run `make run` in a copy of the project that is in no git repository."""
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    # Of the make that runs these tests: below another, make announces the folders it enters.
    environment.pop("MAKELEVEL", None)
    return subprocess.run(
        ["make", "run", "PYTHON=no-python"],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_a_downloaded_copy_without_git_is_refused_before_anything_is_installed(
    tmp_path: Path,
) -> None:
    result = make(tmp_path)
    assert result.returncode != 0
    assert result.stdout == (
        "error: this folder is not a git repository, which DVC needs. Clone it with git; or, in a "
        "downloaded copy: git init && git add --all && git commit -m start\n"
    )
    assert not (tmp_path / ".venv").exists()


def test_its_remedy_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    assert make(tmp_path).stdout.startswith("error: no-python is not installed: install Python")


def test_the_lock_has_every_constraint_that_is_required_with_hashes() -> None:
    """Else `make lock` was forgotten."""
    locked = re.findall(r"^([\w.-]+)==(\S+)(.*?)(?=^[\w.-]+==|\Z)", LOCK.read_text(), re.M | re.S)
    assert all("--hash=sha256:" in hashes for _, _, hashes in locked)
    versions = {re.sub(r"[_.]", "-", name.lower()): version for name, version, _ in locked}
    pinned = re.compile(r"^([\w.-]+)==([\w.]+)", re.MULTILINE)
    for path in [ROOT / "constraints.txt", *ROOT.glob("requirements*.txt")]:
        for name, version in pinned.findall(path.read_text()):
            assert versions.get(re.sub(r"[_.]", "-", name.lower()), version) == version, path
    for path in ROOT.glob("requirements*.txt"):
        names = {re.sub(r"[_.]", "-", name.lower()) for name, _ in pinned.findall(path.read_text())}
        assert names <= set(versions), path


def test_every_requirement_is_also_in_the_constraints() -> None:
    """So that other packages cannot ask for another version."""
    pinned = re.compile(r"^([\w-]+==[\w.]+)", re.MULTILINE)
    constraints = set(pinned.findall((ROOT / "constraints.txt").read_text().lower()))
    for path in ROOT.glob("requirements*.txt"):
        required = set(pinned.findall(path.read_text().lower()))
        assert required, path
        assert required <= constraints
