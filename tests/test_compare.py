"""`commands.compare`: which scores are compared, and the command on real revisions."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dvc.repo import Repo
from typer.testing import CliRunner

from commands import compare
from face_attributes.photos.labels import NUM_CLASSES, class_names
from face_attributes.photos.tables import HOLDOUT, probability_table
from face_attributes.scoring.runs import Run, read_run
from tests.conftest import ROOT, git, save_run, start_repository
from tests.runs import LABELS, change_run, make_run, predict

pytestmark = pytest.mark.slow

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


# --- the holdout


def with_holdout(run: Run, accuracy: float, seed: int, people: int = 40) -> Run:
    """The same run with a holdout of other people."""
    labels = LABELS[: 3 * people]
    table = make_run(labels, predict(labels, accuracy, seed)).predictions
    return replace(run, holdout=table.assign(person="h" + table["person"], fold=HOLDOUT))


def printed(before: Run, after: Run, capsys: pytest.CaptureFixture[str]) -> str:
    """The comparison as text in one line, from the holdout on."""
    compare.print_pair(before, after, RESAMPLES)
    text = " ".join(capsys.readouterr().out.split())
    return text[text.index("The holdout" if "The holdout" in text else "No comparison on") :]


def test_runs_with_the_same_holdout_are_compared_on_it(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(LABELS, predict(LABELS, 0.9, 0), "before")
    before = with_holdout(run, 0.2, 1)
    after = with_holdout(replace(run, name="after"), 0.9, 2)
    table = compare.compare_holdouts(before, after, RESAMPLES).set_index("score")
    assert len(table) == 5
    assert table.loc["accuracy", "verdict"] == "better"
    assert set(table["people"]) == {40}
    assert set(compare.compare_runs(before, after, RESAMPLES)["verdict"]) == {"no difference shown"}
    text = printed(before, after, capsys)
    assert "before (before) and after (after): 120 photos of 40 people" in text
    assert "before: out of fold lies above the holdout by more than chance: macro F1" in text
    assert "after: out of fold minus holdout: macro F1" in text
    parts = compare.print_pair(before, after, RESAMPLES).groupby("part").size()
    assert parts.to_dict() == {"out of fold": 23, "holdout": 5}


def test_a_leak_gets_a_verdict_on_the_holdout() -> None:
    run = make_run(LABELS, predict(LABELS, 0.3, 0), "before")
    by_photo = change_run(run, fold=np.arange(120) % 5, predicted=LABELS)
    before, after = with_holdout(run, 0.9, 1), with_holdout(by_photo, 0.3, 2)
    assert set(compare.compare_runs(before, after, RESAMPLES)["verdict"]) == {"leak: no verdict"}
    table = compare.compare_holdouts(before, after, RESAMPLES).set_index("score")
    assert table.loc["macro F1, 18 classes", "verdict"] == "worse"


def test_holdouts_of_different_people_are_not_compared(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(LABELS, predict(LABELS, 0.6, 0))
    one = with_holdout(run, 0.6, 1)
    for other in (run, with_holdout(run, 0.6, 1, people=39)):
        assert compare.compare_holdouts(one, other, RESAMPLES).empty
        assert "the two runs do not have the same people in it" in printed(one, other, capsys)
    compare.print_pair(run, run, RESAMPLES)
    assert "holdout" not in capsys.readouterr().out


def test_with_different_age_groups_the_holdout_is_scored_on_mask_and_gender() -> None:
    before = with_holdout(make_run(LABELS, LABELS, "before"), 0.5, 0)
    after = with_holdout(Run("after", before.predictions, class_names([25, 60])), 1.0, 0)
    table = compare.print_pair(before, after, RESAMPLES)
    holdout = table[table["part"] == "holdout"]
    assert holdout["score"].to_list() == ["macro F1, mask", "macro F1, gender"]
    assert (holdout["after"] == 1).all()


def test_a_ranking_says_that_it_leaves_holdouts_out(capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(LABELS, predict(LABELS, 0.6, 0))
    compare.print_ranking([run, run, with_holdout(run, 0.6, 1)], RESAMPLES)
    assert "The holdout is not shown here" in capsys.readouterr().out


def test_the_holdout_of_a_revision_is_read_if_it_has_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in the first commit, by an older pipeline, and without rows in the second."""
    monkeypatch.chdir(tmp_path)
    start_repository()
    out_of_fold = make_run(LABELS, LABELS).predictions
    save_run(out_of_fold)
    git("commit", "-qm", "before")
    rows = out_of_fold[["person", "photo", "fold", "label"]].assign(fold=HOLDOUT)
    holdout = probability_table(rows, np.eye(18, dtype=np.float32)[RELABELLED])
    save_run(out_of_fold, holdout=holdout.iloc[:0])
    git("commit", "-qm", "without")
    save_run(out_of_fold, holdout=holdout)
    assert read_run("HEAD~1").holdout is read_run("HEAD").holdout is None
    run = read_run("workspace")
    assert run.holdout is not None
    assert run.holdout["predicted"].to_list() == RELABELLED.tolist()
    assert run.holdout["person"].to_list() == out_of_fold["person"].to_list()


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
