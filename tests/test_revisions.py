"""Files of revisions, read through DVC, and the state of git."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from face_attributes.errors import UserError
from face_attributes.revisions import WORKSPACE, git_state, read_metrics, read_outputs
from tests.conftest import git, start_repository

OUTPUT = "output.csv"


def save(text: str, message: str) -> None:
    """Commit an output of DVC and a metrics file of git."""
    Path(OUTPUT).unlink(missing_ok=True)
    Path(OUTPUT).write_text(text)
    Path("metrics.json").write_text(f'{{"text": "{text}"}}')
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning), Repo() as repo:
        repo.add(OUTPUT)
    git("add", "-A")
    git("commit", "-qm", message)


@pytest.fixture(scope="module", autouse=True, params=["", "work/a face"])
def repository(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """The annotated tag `v1`, a commit after it, a changed workspace, and an empty branch.

    As a repository of its own, and in a folder of a larger one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("repository"))
        start_repository(request.param)
        if request.param:
            Path("other.txt").write_text("not of this project")
            patch.chdir(request.param)
        git("commit", "-q", "--allow-empty", "-m", "empty")
        git("branch", "empty")
        save("one", "first")
        git("tag", "-a", "v1", "-m", "v1")
        save("two", "second")
        Path(OUTPUT).unlink()
        Path(OUTPUT).write_text("three")
        yield


def test_outputs_are_read_from_commits_branches_tags_and_the_workspace() -> None:
    for revision, text in {"HEAD": "two", "main": "two", "v1": "one", WORKSPACE: "three"}.items():
        assert read_outputs(revision, [OUTPUT]) == [text.encode()]


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nowhere", "revision 'nowhere' cannot be read (unknown Git revision 'nowhere'): name a"),
        ("empty", "empty has no output.csv: name a revision whose dvc.lock was committed"),
        ("HEAD^{tree}", "revision 'HEAD^{tree}' is not a commit: name a commit, branch, tag"),
        ("", "a revision is empty: name one, or leave it out"),
    ],
)
def test_an_unreadable_revision_is_one_line_with_the_remedy(revision: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_outputs(revision, [OUTPUT])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_file_missing_in_the_workspace_is_made_by_dvc_repro() -> None:
    with pytest.raises(UserError, match=r"^workspace has no new\.csv: `dvc repro` makes it$"):
        read_outputs(WORKSPACE, ["new.csv"])


def test_metrics_are_read_from_git_and_empty_if_missing() -> None:
    path = Path("metrics.json")
    assert [read_metrics(revision, path) for revision in ("v1", "main", "empty", "nowhere")] == [
        {"text": "one"},
        {"text": "two"},
        {},
        {},
    ]


def test_the_state_of_git_tells_the_commit_and_whether_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = git_state()
    assert len(state["commit"]) == 40 and state["changed"] is False  # DVC's outputs do not count
    Path("metrics.json").write_text("{}")
    assert git_state() == state | {"changed": True}
    git("checkout", "-q", "metrics.json")
    monkeypatch.chdir(tmp_path)
    assert git_state() == {"commit": "none", "changed": True}
