"""Files of any revision (commit, branch, tag, experiment, workspace), read through DVC."""

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException, NotDvcRepoError
from dvc.repo import Repo

from face_attributes.errors import UserError

WORKSPACE = "workspace"
NAME_ONE = (
    f"name a commit, branch, tag, {WORKSPACE} or an experiment, as `dvc exp list --all-commits` "
    "lists them"
)


def read_outputs(revision: str, paths: Sequence[str], optional: Sequence[str] = ()) -> list[bytes]:
    """Read outputs of stages as they are in a revision.

    Args:
        optional: read after `paths`; left out if the revision has none.

    Raises:
        UserError: if there is no such revision, or it lacks one of the files.
    """
    if not revision:
        raise UserError("a revision is empty: name one, or leave it out")
    contents = []
    try:
        files, folder = _open(revision)
        for path in [*paths, *(path for path in optional if files.exists(folder + path))]:
            contents.append(files.read_bytes(folder + path))
    except FileNotFoundError:
        remedy = "`dvc repro` makes it"
        if revision != WORKSPACE:
            remedy = (
                "name a revision whose dvc.lock was committed after `dvc repro`, and whose results "
                "DVC still has (`dvc fetch --all-commits` gets those of a remote)"
            )
        raise UserError(f"{revision} has no {path}: {remedy}") from None
    except DvcException as error:
        reason = " ".join(str(error).split())
        raise UserError(f"revision {revision!r} cannot be read ({reason}): {NAME_ONE}") from None
    except AttributeError as error:
        if error.name != "tree":  # which every commit has
            raise
        raise UserError(f"revision {revision!r} is not a commit: {NAME_ONE}") from None
    return contents


def read_metrics(revision: str, path: Path) -> dict[str, Any]:
    """Read a metrics file that git tracks, as it is in a revision; {} if it is missing there."""
    try:
        files, folder = _open(revision)
        content = files.read_text(folder + path.as_posix(), encoding="utf-8")
    except (DvcException, FileNotFoundError):
        return {}
    metrics: dict[str, Any] = json.loads(content)
    return metrics


def hidden_from_dvc(paths: Iterable[str]) -> list[str]:
    """List the paths that a .dvcignore hides from DVC, which does not notice when they change."""
    try:
        with Repo() as repo:
            return [path for path in paths if repo.dvcignore.is_ignored_file(path)]
    except NotDvcRepoError:
        return []


def _open(revision: str) -> tuple[dvc.api.DVCFileSystem, str]:
    """The files of a revision, and the project's folder in them, such as "work/faces/".

    Of the workspace, DVC gives the project; of a commit, the whole git repository, of which the
    project may be a folder (`dvc init --subdir`).
    """
    if revision == WORKSPACE:
        return dvc.api.DVCFileSystem(), ""
    try:
        folder = _git("rev-parse", "--show-prefix")
    except (FileNotFoundError, subprocess.CalledProcessError):
        folder = ""  # without git, DVC says what is wrong
    return dvc.api.DVCFileSystem(rev=revision, subrepos=bool(folder)), folder


def git_state() -> dict[str, Any]:
    """The commit of the workspace, and whether the project has uncommitted changes."""
    try:
        changes = _git("status", "--porcelain", "--", ".")
        return {"commit": _git("rev-parse", "HEAD"), "changed": changes != ""}
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {"commit": "none", "changed": True}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
