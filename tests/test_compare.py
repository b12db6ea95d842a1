"""`commands.compare`: which scores are compared, and the command on real revisions."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

from commands import compare
from face_attributes.photos.labels import NUM_CLASSES, class_names
from face_attributes.scoring.runs import Run
from tests.conftest import ROOT, git, save_run, start_repository
from tests.runs import LABELS, change_run, make_run, predict

RESAMPLES = 300

RELABELLED = np.where(np.arange(len(LABELS)) < 30, (LABELS + 3) % NUM_CLASSES, LABELS)
"""LABELS with corrections to 30 photos."""


@pytest.mark.parametrize(("people", "word"), [(5, "too few people"), (6, "better"), (40, "better")])
def test_better_on_every_person_is_better_unless_they_are_few(people: int, word: str) -> None:
    labels = np.tile([0, 1, 2], people)
    wrong, correct = make_run(labels, np.roll(labels, 1)), make_run(labels, labels)
    for runs, expected in (
        ((wrong, correct), word),
        ((correct, wrong), word.replace("better", "worse")),
    ):
        table = compare.compare_runs(*runs, RESAMPLES).set_index("score")
        assert table.loc["accuracy", "verdict"] == expected
        assert table.loc["macro F1, 18 classes", "verdict"] == expected


def test_equally_good_runs_rarely_look_better_or_worse() -> None:
    verdicts = Counter[str]()
    for seed in range(20):
        before, after = (
            make_run(LABELS, predict(LABELS, 0.6, each)) for each in (seed, seed + 1000)
        )
        verdicts.update(compare.compare_runs(before, after, 200)["verdict"])
    assert verdicts["no difference shown"] / verdicts.total() > 0.9


def test_photos_of_one_run_alone_are_ignored() -> None:
    before = make_run(LABELS, predict(LABELS, 0.5, 0), "before")
    after = Run("after", before.predictions.iloc[::-1].iloc[:-6], before.classes)
    table = compare.compare_runs(before, after, RESAMPLES)
    assert set(table["photos"]) == {114} and set(table["people"]) == {38}
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)


def test_with_different_labels_both_runs_are_scored_against_each() -> None:
    before, after = make_run(LABELS, LABELS, "before"), make_run(RELABELLED, RELABELLED, "after")
    table = compare.compare_runs(before, after, RESAMPLES)
    accuracies = table[table["score"] == "accuracy"].set_index("labels")
    assert accuracies[["before", "after"]].to_numpy().tolist() == [[1, 0.75], [0.75, 1]]
    assert accuracies["verdict"].to_list() == ["worse", "better"]


def test_a_leak_gets_no_verdict() -> None:
    before = make_run(LABELS, predict(LABELS, 0.2, 0), "before")
    by_photo = change_run(before, fold=np.arange(120) % 5, predicted=LABELS)
    for runs in ((before, by_photo), (by_photo, before)):
        assert set(compare.compare_runs(*runs, RESAMPLES)["verdict"]) == {"leak: no verdict"}


def test_with_different_age_groups_only_mask_and_gender_are_compared() -> None:
    before = make_run(LABELS, predict(LABELS, 0.5, 0), "before")
    older = LABELS - LABELS % 3 + (LABELS + 1) % 3
    after = Run("after", make_run(older, older).predictions, class_names([25, 60]))
    table = compare.print_pair(before, after, RESAMPLES)
    assert table["score"].to_list() == ["macro F1, mask", "macro F1, gender"]
    assert set(table["labels"]) == {"both"}
    assert (table["after"] == 1).all()


# --- the command, on real revisions


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tag `v1`, then a commit with corrected labels, and the experiment `better`."""
    folder = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start_repository()
        Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        save_run(make_run(LABELS, predict(LABELS, 0.4, 0)).predictions)
        git("commit", "-qm", "first")
        git("tag", "v1")
        save_run(make_run(RELABELLED, predict(LABELS, 0.4, 1)).predictions)
        git("commit", "-qm", "corrected")
        save_run(make_run(RELABELLED, predict(RELABELLED, 0.9, 2)).predictions)
        with Repo() as repo:
            repo.experiments.save(name="better")
            git("reset", "--hard", "-q")
            repo.checkout(force=True)
        yield folder


@pytest.fixture
def in_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)


def run_command(*arguments: str, width: int = 80, code: int = 0) -> str:
    """The output of the command, or its errors if it fails."""
    result = CliRunner().invoke(compare.main, arguments, env={"COLUMNS": str(width)})
    assert result.exit_code == code, result.output + str(result.exception)
    return result.stdout if code == 0 else result.stderr


def row_of(output: str, start: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(start)).split()


@pytest.mark.usefixtures("in_repository")
def test_commits_experiments_and_the_workspace_are_compared() -> None:
    output = run_command("HEAD", "better")
    assert "HEAD (before) and better (after): 120 photos of 40 people" in output
    assert "note:" not in output
    assert row_of(output, "accuracy")[-1] == "better"
    assert row_of(run_command("better", "HEAD"), "accuracy")[-1] == "worse"
    output = run_command()
    assert "HEAD (before) and workspace (after)" in output
    assert "note: workspace predicts the same as HEAD for every photo" in output
    output = run_command("v1")
    assert "photos with a different label in workspace: 30" in output
    for labels in ("before", "after"):
        assert f"scored against the labels {labels}" in output


@pytest.mark.usefixtures("in_repository")
def test_the_table_fits_a_terminal_and_a_file_gets_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    for width in (80, 120):
        lines = run_command("HEAD", "better", "--csv", str(path), width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert sum(line.startswith(("male", "female")) for line in lines) == 18
    table = pd.read_csv(path)
    assert len(table) == 5 + 18
    assert (table["low"] <= table["difference"] + 1e-6).all()


@pytest.mark.usefixtures("in_repository")
def test_three_runs_are_ranked_with_a_warning_about_luck() -> None:
    output = run_command("HEAD", "better", "workspace", width=120)
    names = [line.split()[0] for line in output.splitlines() if line.strip()]
    assert [name for name in names if name in ("HEAD", "better", "workspace")] == [
        "better",
        "HEAD",
        "workspace",
    ]
    assert row_of(output, "better ")[-1] == "better"
    text = " ".join(output.split())
    assert "best of many runs is partly lucky. better scores 0." in text
    assert "expect this of the best of 3. Of 5 folds, it chooses better in 5." in text


@pytest.mark.usefixtures("in_repository")
def test_an_unreadable_revision_is_one_line() -> None:
    error = run_command("nowhere", "HEAD", code=1)
    assert error.startswith("error: revision 'nowhere' cannot be read")
    assert error.count("\n") == 1
