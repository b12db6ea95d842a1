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
        files = dvc.api.DVCFileSystem(rev=None if revision == WORKSPACE else revision)
        for path in [*paths, *(path for path in optional if files.exists(path))]:
            contents.append(files.read_bytes(path))
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
        content = dvc.api.DVCFileSystem(rev=revision).read_text(path.as_posix(), encoding="utf-8")
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


def git_state() -> dict[str, Any]:
    """The commit of the workspace, and whether the workspace has uncommitted changes."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain") != ""}
    except (FileNotFoundError, subprocess.CalledProcessError):
        return {"commit": "none", "changed": True}
