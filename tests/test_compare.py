"""Comparing runs: the statistics, what can be compared, and the command on real revisions."""

import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from stages import compare
from stages.params import AggregateParams
from stages.photos.labels import CLASSES, Labels, class_names
from stages.scoring import comparison
from stages.scoring.comparison import Run, paired_difference, verdict
from stages.scoring.metrics import (
    SCORES,
    accuracy,
    confusion_by_person,
    f1_per_class,
    interval,
    macro_f1,
)
from tests.conftest import ROOT, git, save_run, start_repository

KNOBS = AggregateParams(bootstrap=300, seed=0)
NAMES = class_names([30, 60])


def people_with(photos: int, people: int) -> "np.ndarray[tuple[int], np.dtype[np.str_]]":
    return np.repeat([f"p{number:03}" for number in range(people)], photos)


def run_of(
    labels: Labels, predicted: Labels, name: str = "run", photos: int = 3, folds: int = 5
) -> Run:
    """A run on people with so many photos each, the people spread over the folds."""
    people = people_with(photos, len(labels) // photos)
    table = pd.DataFrame(
        {
            "person": people,
            "photo": np.tile([f"{number}.jpg" for number in range(photos)], len(people) // photos),
            "fold": np.arange(len(labels)) // photos % folds,
            "label": labels,
            "predicted": predicted,
        }
    )
    return Run(name, table, NAMES)


def noisy(labels: Labels, right: float, seed: int, photos: int = 3) -> Labels:
    """Predictions that are right with this probability, all photos of a person or none."""
    rng = np.random.default_rng(seed)
    person_right = np.repeat(rng.random(len(labels) // photos) < right, photos)
    return np.where(person_right, labels, rng.integers(0, CLASSES, len(labels)))


# --- differences


def test_a_difference_by_hand() -> None:
    """Two people with a photo each; the second is right only after.

    Of the four samples of two people, accuracy goes up by 0 in one, 1/2 in two and 1 in one.
    """
    labels, people = np.array([0, 1]), np.array(["a", "b"])
    before = confusion_by_person(labels, np.array([0, 0]), people)
    after = confusion_by_person(labels, np.array([0, 1]), people)
    difference = paired_difference(accuracy, before, after, 2000, seed=0)
    assert difference == (0.5, 0, 1, 1)
    # Macro F1 before: F1 2/3 of class 0 and 0 of class 1. After: 1.
    assert paired_difference(macro_f1, before, after, 100, 0).value == pytest.approx(2 / 3)
    assert paired_difference(macro_f1, after, before, 100, 0).value == pytest.approx(-2 / 3)


def test_of_several_figures_each_is_as_it_is_alone() -> None:
    labels = np.arange(120) % CLASSES
    people = people_with(3, 40)
    before, after = (
        confusion_by_person(labels, noisy(labels, 0.6, seed), people) for seed in (1, 2)
    )
    both = (macro_f1, accuracy)
    together = paired_difference(
        lambda counts: np.stack([score(counts) for score in both], axis=-1), before, after, 200, 5
    )
    for place, score in enumerate(both):
        alone = paired_difference(score, before, after, 200, 5)
        assert [float(part[place]) for part in together] == pytest.approx(list(map(float, alone)))


def test_a_difference_to_itself_is_exactly_nothing() -> None:
    labels = np.arange(120) % CLASSES
    run = confusion_by_person(labels, noisy(labels, 0.5, 0), people_with(3, 40))
    for score in SCORES.values():
        assert paired_difference(score, run, run, 200, seed=0) == (0, 0, 0, 0)
    assert verdict(0.0, 0.0, 0) == "no difference shown"


def test_paired_is_narrower_than_among_strangers() -> None:
    rng = np.random.default_rng(0)
    people = people_with(7, 100)
    labels = rng.integers(0, 18, 700)
    base = np.where(rng.random(700) < 0.6, labels, rng.integers(0, 18, 700))
    better = np.where(rng.random(700) < 0.1, labels, base)
    before, after = (confusion_by_person(labels, run, people) for run in (base, better))
    value, low, high, _ = paired_difference(macro_f1, before, after, 500, seed=0)
    assert value == pytest.approx(float(macro_f1(after.sum(axis=0)) - macro_f1(before.sum(axis=0))))
    assert 0 < low < value < high < 0.1


@pytest.mark.parametrize(("people", "word"), [(5, "too few people"), (6, "better"), (40, "better")])
def test_better_on_every_person_is_better_unless_they_are_few(people: int, word: str) -> None:
    """Five coins fall the same way in one of 16 throws; the bootstrap alone would believe them."""
    labels = np.tile([0, 1, 2], people)
    before = run_of(labels, np.roll(labels, 1))
    after = run_of(labels, labels)
    for first, second, expected in (
        (before, after, word),
        (after, before, word.replace("better", "worse")),
    ):
        table = compare.compare(first, second, KNOBS).set_index("score")
        assert table.loc["accuracy", "verdict"] == expected
        assert table.loc["macro F1, 18 classes", "verdict"] == expected
    assert verdict(0.1, 0.2, people) == word


def test_of_two_equal_runs_hardly_any_looks_better_or_worse() -> None:
    labels = np.arange(180) % CLASSES
    words = Counter(
        word
        for seed in range(40)
        for word in compare.compare(
            run_of(labels, noisy(labels, 0.6, seed)),
            run_of(labels, noisy(labels, 0.6, seed + 1000)),
            KNOBS,
        )["verdict"]
    )
    assert words["no difference shown"] / words.total() > 0.9


@pytest.mark.filterwarnings("error")
def test_a_class_that_few_resamples_have_does_not_count_where_it_is_missing() -> None:
    """One person has class 17: 37% of the samples are without, and its F1 there is no number."""
    labels = np.arange(120) % 17
    labels[0] = 17
    people = people_with(3, 40)
    before = confusion_by_person(labels, np.where(labels == 17, 0, labels), people)
    after = confusion_by_person(labels, labels, people)
    value, low, high, differ = paired_difference(
        lambda counts: f1_per_class(counts)[..., 17], before, after, 300, seed=0
    )
    assert (value, low, high, differ) == (1, 1, 1, 1)
    assert verdict(float(low), float(high), int(differ)) == "too few people"


def test_simultaneous_intervals_are_those_of_one_figure_and_wider_of_many() -> None:
    figures = np.random.default_rng(0).normal(size=(4000, 6))
    one = comparison.simultaneous_interval(figures[:, :1])
    assert np.array(one) == pytest.approx(np.array(interval(figures[:, :1])), abs=0.01)
    low, high = comparison.simultaneous_interval(figures)
    inside = ((low <= figures) & (figures <= high)).all(axis=1).mean()
    assert 0.95 <= inside < 0.955
    # Of independent figures, each has to hold at 0.95 ** (1 / 6): 2.63 standard deviations.
    assert high == pytest.approx(np.full(6, 2.63), abs=0.2)
    with_itself = np.concatenate([figures, np.zeros((4000, 1))], axis=1)
    assert (comparison.simultaneous_interval(with_itself)[0] == [*low, 0]).all()


def test_the_best_of_many_is_lucky_and_of_one_is_not() -> None:
    figures = 0.7 + 0.1 * np.random.default_rng(0).normal(size=(20_000, 5))
    # The largest of five normal figures is expected 1.163 standard deviations above the mean.
    assert comparison.lead_by_chance(figures) == pytest.approx(0.1163, abs=0.002)
    assert comparison.lead_by_chance(figures[:, :1]) == pytest.approx(0)
    assert comparison.lead_by_chance(figures[:, [0, 0, 0]]) == pytest.approx(0)


# --- what can be compared

LABELS = np.arange(120) % CLASSES


def changed(run: Run, name: str = "after", **columns: object) -> Run:
    return Run(name, run.predictions.assign(**columns), run.classes)


def test_photos_of_one_run_alone_are_left_out() -> None:
    before = run_of(LABELS, noisy(LABELS, 0.5, 0), "before")
    after = changed(before)
    after = Run("after", after.predictions.iloc[::-1].iloc[:-6], NAMES)
    assert (
        comparison.remarks(before, after)[0] == "photos of before that after has not, left out: 6"
    )
    table = compare.compare(before, after, KNOBS)
    assert set(table["photos"]) == {114} and set(table["people"]) == {38}
    assert (table["difference"] == 0).all() and (table["low"] == 0).all()
    strangers = changed(before, person="somebody")
    with pytest.raises(compare.UserError, match="no photo in common"):
        comparison.remarks(before, strangers)


def test_where_labels_differ_both_runs_are_judged_by_each() -> None:
    right = LABELS.copy()
    right[:30] = (right[:30] + 3) % CLASSES
    before, after = run_of(LABELS, LABELS, "before"), run_of(right, right, "after")
    assert "photos with another label in after: 30" in comparison.remarks(before, after)
    table = compare.compare(before, after, KNOBS)
    accuracies = table[table["score"] == "accuracy"].set_index("labels")
    assert accuracies[["before", "after"]].to_numpy().tolist() == [[1, 0.75], [0.75, 1]]
    assert accuracies["verdict"].to_list() == ["worse", "better"]


def test_other_folds_are_named_and_a_leak_gets_no_verdict() -> None:
    before = run_of(LABELS, noisy(LABELS, 0.2, 0), "before")
    moved = changed(before, fold=(before.predictions["fold"] + 1) % 5)
    line = "photos in another fold in after: 120; other people were trained on"
    assert [each[: len(line)] for each in comparison.remarks(before, moved)[:1]] == [line]
    by_photo = changed(before, fold=np.arange(120) % 5, predicted=LABELS)
    for runs in ((before, by_photo), (by_photo, before)):
        lines = comparison.remarks(*runs)
        assert lines[0].startswith("after leaks: its folds are by photo (40 people are in more")
        assert set(compare.compare(*runs, KNOBS)["verdict"]) == {"leak: no verdict"}


def test_of_other_age_groups_mask_and_gender_are_compared() -> None:
    before = run_of(LABELS, noisy(LABELS, 0.5, 0), "before")
    older = LABELS - LABELS % 3 + (LABELS + 1) % 3
    after = Run("after", run_of(older, older).predictions, class_names([25, 60]))
    table = compare.print_pair(before, after, KNOBS)
    assert table["score"].to_list() == ["macro F1, mask", "macro F1, gender"]
    assert set(table["labels"]) == {"both"}
    assert (table["after"] == 1).all()
    with pytest.raises(compare.UserError, match="after has other age groups than before"):
        compare.print_ranking([before, before, after], KNOBS)


def test_runs_are_ranked_against_the_first_and_leaks_come_last() -> None:
    first = run_of(LABELS, noisy(LABELS, 0.3, 0), "first")
    good = run_of(LABELS, noisy(LABELS, 0.9, 1), "good")
    bad = run_of(LABELS, np.roll(LABELS, 1), "bad")
    leak = changed(first, "leak", fold=np.arange(120) % 5, predicted=LABELS)
    table, lead = compare.rank([first, leak, bad, good], KNOBS)
    assert table["run"].to_list() == ["good", "first", "bad", "leak"]
    assert table["verdict"].to_list() == ["better", "the first", "worse", "leak: no verdict"]
    assert table["difference"].to_list()[1] == 0
    assert (table["difference_low"] <= table["difference"]).all()
    assert 0 < lead < 0.1
    alone = paired_difference(
        macro_f1,
        *(
            confusion_by_person(LABELS, run.predictions["predicted"].to_numpy(), people_with(3, 40))
            for run in (first, good)
        ),
        KNOBS.bootstrap,
        KNOBS.seed,
    )
    best = table.iloc[0]
    assert best["difference"] == pytest.approx(float(alone.value))
    assert best["difference_high"] - best["difference_low"] >= alone.high - alone.low
    to_a_leak, _ = compare.rank([leak, first, good], KNOBS)
    assert set(to_a_leak["verdict"]) == {"the first", "leak: no verdict"}
    assert compare.rank([leak, leak, leak], KNOBS)[1] == 0


# --- the command, on real revisions


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A commit `v1`, one with corrected labels, an experiment `better`, and an empty branch."""
    folder = tmp_path_factory.mktemp("repository")
    right = LABELS.copy()
    right[:9] = (right[:9] + 3) % CLASSES
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        start_repository()
        Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
        save_run(run_of(LABELS, noisy(LABELS, 0.4, 0)).predictions)
        git("commit", "-qm", "first")
        git("tag", "-a", "v1", "-m", "v1")
        save_run(run_of(right, noisy(LABELS, 0.4, 1)).predictions)
        git("commit", "-qm", "corrected")
        save_run(run_of(right, noisy(right, 0.9, 2)).predictions)
        subprocess.run(["dvc", "exp", "save", "-n", "better"], check=True, capture_output=True)
        git("reset", "--hard", "-q")
        git("checkout", "-q", "--orphan", "empty")
        git("rm", "-rqf", ".")
        git("commit", "-q", "--allow-empty", "-m", "empty")
        git("checkout", "-q", "main")
        subprocess.run(["dvc", "checkout", "-q"], check=True)
    return folder


def run_command(*arguments: str, width: int = 80, code: int = 0) -> str:
    """Run the command in the working folder; its output, or its errors where it fails."""
    result = CliRunner().invoke(compare.main, arguments, env={"COLUMNS": str(width)})
    assert result.exit_code == code, result.output + str(result.exception)
    return result.stdout if code == 0 else result.stderr


def row_of(output: str, start: str) -> list[str]:
    return next(line for line in output.splitlines() if line.startswith(start)).split()


def test_commits_experiments_and_the_workspace_are_read(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    output = run_command("HEAD", "better")
    assert "HEAD (before) and better (after): 120 photos of 40 people" in output
    assert "note:" not in output
    assert row_of(output, "accuracy")[-1] == "better"
    assert row_of(run_command("better", "HEAD"), "accuracy")[-1] == "worse"
    output = run_command()
    assert "HEAD (before) and workspace (after)" in output
    assert "note: workspace predicts the same as HEAD for every photo" in output
    output = run_command("v1")
    assert "photos with another label in workspace: 9" in output
    assert "judged by the labels before" in output and "judged by the labels after" in output


def test_a_table_fits_a_terminal_and_a_file_has_the_figures(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(repository)
    for width in (80, 120):
        lines = run_command("HEAD", "better", width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert sum(line.startswith(("male", "female")) for line in lines) == 18
    run_command("HEAD", "better", "--csv", str(tmp_path / "figures.csv"))
    table = pd.read_csv(tmp_path / "figures.csv")
    assert len(table) == 5 + 18
    assert (table["low"] <= table["difference"] + 1e-6).all()


def test_many_are_ranked_with_a_warning(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    output = run_command("HEAD", "better", "workspace", width=120)
    ranked = [
        line.split()[0]
        for line in output.splitlines()
        if line.startswith(("HEAD ", "better ", "workspace "))
    ]
    assert ranked == ["better", "HEAD", "workspace"]
    assert row_of(output, "better ")[-1] == "better"
    assert "The best of many has luck in its score" in output


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nowhere", "revision 'nowhere' cannot be read (unknown Git revision 'nowhere'): name"),
        ("empty", "empty has no data/aggregate/out_of_fold.csv: name a revision whose dvc.lock"),
        ("", "a revision is empty"),
        ("HEAD^{tree}", "revision 'HEAD^{tree}' is no commit: name"),
    ],
)
def test_a_revision_that_cannot_be_read_is_named_in_one_line(
    repository: Path, monkeypatch: pytest.MonkeyPatch, revision: str, message: str
) -> None:
    monkeypatch.chdir(repository)
    error = run_command(revision, "HEAD", code=1)
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_where_nothing_was_run_the_command_that_does_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    start_repository()
    error = run_command("workspace", code=1)
    assert error == (
        "error: workspace has no data/aggregate/out_of_fold.csv: `dvc repro` makes it\n"
    )
