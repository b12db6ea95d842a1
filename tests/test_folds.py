"""Folds keep people together, spread the classes evenly, and are checked for leaks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from face_attributes.errors import UserError
from face_attributes.params import FoldParams
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.tables import HOLDOUT
from stages import folds
from tests.conftest import Change, Run

Pairs = Sequence[tuple[str, str]]

NAMES = [str(label) for label in range(NUM_CLASSES)]


def photos_of(people: dict[int, int]) -> pd.DataFrame:
    """Seven photos (5 worn, 1 incorrect, 1 not worn) per person.

    Args:
        people: number of people by gender and age group (0 to 5).
    """
    rows = [
        {
            "person": f"{kind}-{number:03}",
            "photo": f"{photo}.jpg",
            "label": mask * 6 + kind,
            "age": 20,
        }
        for kind, count in people.items()
        for number in range(count)
        for photo, mask in enumerate([0, 0, 0, 0, 0, 1, 2])
    ]
    return pd.DataFrame(rows)


def even_photos(people: int) -> pd.DataFrame:
    """Photos with the same number of people in each gender and age group."""
    return photos_of(dict.fromkeys(range(6), people))


def fold_params(count: int = 5, seed: int = 0, holdout: float = 0.0) -> FoldParams:
    return FoldParams(index=list(range(count)), group_by="person", holdout=holdout, seed=seed)


def assign(table: pd.DataFrame, params: FoldParams) -> folds.Folds:
    return folds.assign_folds(table["label"].to_numpy(), table["person"], params)


@settings(max_examples=5, deadline=None)
@given(
    st.fixed_dictionaries({kind: st.integers(8, 20) for kind in range(6)}),
    st.integers(2, 5),
    st.integers(0, 1000),
)
def test_a_person_is_in_one_fold_and_a_class_in_every_fold(
    people: dict[int, int], count: int, seed: int
) -> None:
    table, params = photos_of(people), fold_params(count, seed)
    table["fold"] = assign(table, params)
    assert set(table["fold"]) == set(range(count))
    assert (table.groupby("person")["fold"].nunique() == 1).all()
    counts = folds.class_counts(table["label"].to_numpy(), table["fold"].to_numpy(), count)
    assert (counts > 0).all()
    metrics = folds.check_folds(table.assign(group=table["person"]), params, NAMES)
    assert metrics["people_in_two_folds"] == metrics["people_who_share_photos"] == 0


def test_the_seed_determines_the_folds() -> None:
    table = even_photos(6)
    first, same, other = (assign(table, fold_params(seed=seed)) for seed in (0, 0, 1000))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_the_deviation_is_the_largest_relative_one_of_any_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert folds.class_deviation(labels, np.array([0, 0, 1, 1, 0, 1]), 2) == 0
    assert folds.class_deviation(labels, np.array([0, 0, 0, 1, 0, 1]), 2) == 0.5


def test_one_person_of_a_class_per_fold_is_enough() -> None:
    table = photos_of({**dict.fromkeys(range(5), 20), 5: 5})
    table["fold"] = assign(table, fold_params())
    folds.check_folds(table.assign(group=table["person"]), fold_params(), NAMES)


def test_people_who_share_photos_are_grouped_in_chains() -> None:
    people = pd.Series(["a", "a", "b", "c", "d"])
    pairs = pd.DataFrame({"person": ["a", "d", "c"], "other_person": ["b", "", "b"]})
    assert folds.group_people(people, pairs).tolist() == [0, 0, 0, 0, 1]


def test_people_who_share_a_photo_in_two_folds_are_an_error() -> None:
    table = even_photos(5)
    table["fold"] = assign(table, fold_params())
    group = table["person"].where(table["label"] % 6 > 0, "shared")
    with pytest.raises(UserError, match="share a photo are in two folds: 0-000, 0-001"):
        folds.check_folds(table.assign(group=group), fold_params(), NAMES)


def test_a_fold_without_a_class_is_an_error() -> None:
    table = even_photos(5)
    table["fold"] = assign(table, fold_params())
    table = table.assign(group=table["person"])
    missing = (table["label"] == 8) & (table["fold"] == 3)
    with pytest.raises(UserError, match=r"fold 3 has no photo of class 8 \(8\), which 4 people"):
        folds.check_folds(table[~missing], fold_params(), NAMES)


# --- the holdout


def draw(table: pd.DataFrame, holdout: float, seed: int = 0, group: str = "person") -> pd.DataFrame:
    """The photos in the holdout."""
    params = fold_params(seed=seed, holdout=holdout)
    people = table["person"]
    return table[folds.draw_holdout(table["label"].to_numpy(), people, table[group], params)]


@settings(max_examples=10, deadline=None)
@given(
    st.fixed_dictionaries({kind: st.integers(5, 40) for kind in range(6)}),
    st.floats(0.1, 0.5),
    st.integers(0, 1000),
)
def test_the_holdout_is_the_same_share_of_each_gender_and_age_group(
    people: dict[int, int], share: float, seed: int
) -> None:
    table = photos_of(people)
    holdout = draw(table, share, seed)
    assert (holdout.groupby("person").size() == 7).all(), "people with all their photos"
    chosen = holdout.groupby(holdout["label"] % 6)["person"].nunique()
    for kind, count in people.items():
        assert chosen.get(kind, 0) == round(share * count)


def test_the_seed_determines_the_holdout_and_the_number_of_folds_does_not() -> None:
    table = even_photos(10)
    first, same, other = (set(draw(table, 0.2, seed)["person"]) for seed in (0, 0, 1000))
    assert first == same != other
    params = fold_params(count=3, holdout=0.2)
    people = table["person"]
    mask = folds.draw_holdout(table["label"].to_numpy(), people, people, params)
    assert set(table.loc[mask, "person"]) == first


def test_a_person_who_leaves_hardly_changes_who_else_is_in_the_holdout() -> None:
    """At most one other person of the same gender and age group, where the number is rounded."""
    table = photos_of(dict.fromkeys(range(6), 20))
    before = set(draw(table, 0.2)["person"])
    for leaving in table["person"].unique()[::7]:
        after = set(draw(table[table["person"] != leaving].reset_index(drop=True), 0.2)["person"])
        changed = (before ^ after) - {leaving}
        assert len(changed) <= 1
        assert all(person[0] == leaving[0] for person in changed)


@pytest.fixture
def run_folds(run: Run) -> Callable[..., str]:
    """Run the stage on a table of photos, pairs of people who share a photo, and dropped photos."""

    def run_stage(
        table: pd.DataFrame, code: int = 0, shared: Pairs = (), dropped: Sequence[int] = ()
    ) -> str:
        Path("clean").mkdir(exist_ok=True)
        given = table.assign(label=table.get("given_label", table["label"]))
        given[["person", "photo", "label"]].to_csv("clean/given_labels.csv", index=False)
        table.drop(index=list(dropped)).to_csv("clean/photos.csv", index=False)
        pairs = pd.DataFrame(shared, columns=["person", "other_person"])
        pairs.to_csv("duplicates.csv", index=False)
        return run(folds.main, "clean", "duplicates.csv", "out", code=code).stderr

    return run_stage


def test_the_stage_writes_folds_and_metrics(run_folds: Callable[..., str]) -> None:
    run_folds(even_photos(10))
    table = pd.read_csv("out/folds.csv")
    assert list(table) == ["person", "photo", "label", "age", "fold"]
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["people_in_two_folds"] == 0
    assert sum(metrics["photos"].values()) == 420
    assert metrics["rarest_class_photos"] == 2
    assert metrics["worst_class_deviation"] == 0


def test_people_who_share_a_photo_share_a_fold(run_folds: Callable[..., str]) -> None:
    pairs = [(f"0-{number:03}", f"0-{number + 1:03}") for number in range(0, 9, 2)]
    run_folds(even_photos(10), shared=[*pairs, ("1-000", "")])
    fold = pd.read_csv("out/folds.csv").groupby("person")["fold"].first()
    assert all(fold[first] == fold[second] for first, second in pairs)
    assert json.loads(Path("out/metrics.json").read_text())["people_who_share_photos"] == 5


def test_corrections_move_nobody_to_another_fold(run_folds: Callable[..., str]) -> None:
    table = even_photos(10)
    run_folds(table)
    before = pd.read_csv("out/folds.csv")
    table["given_label"] = table["label"]
    table.loc[table["person"].isin(["0-003", "2-001"]), "label"] += 1
    run_folds(table)
    after = pd.read_csv("out/folds.csv")
    assert (before["fold"] == after["fold"]).all()
    assert (before["label"] != after["label"]).sum() == 14


@pytest.mark.parametrize("holdout", [0.0, 0.2])
@pytest.mark.parametrize("group_by", ["person", "photo"])
def test_a_dropped_photo_moves_no_other_one(
    run_folds: Callable[..., str], change: Change, holdout: float, group_by: str
) -> None:
    change("folds.holdout", holdout)
    change("folds.group_by", group_by)
    table = even_photos(10)
    run_folds(table)
    before = pd.read_csv("out/folds.csv")
    dropped = [3, 4, *range(70, 77)]
    run_folds(table, dropped=dropped)
    after = pd.read_csv("out/folds.csv")
    assert after.equals(before.drop(index=dropped).reset_index(drop=True))


def test_classes_with_too_few_people_are_an_error(run_folds: Callable[..., str]) -> None:
    table = photos_of({**dict.fromkeys(range(5), 10), 5: 3})
    error = run_folds(table[table["label"] != 8], code=1)
    assert "class 5 (worn, female, 60 and over) has 3;" in error
    assert "class 8 (incorrect, male, 60 and over) has 0;" in error
    assert "class 17 (not worn, female, 60 and over) has 3: use fewer folds, or add" in error
    assert not Path("out").exists()


def test_the_stage_puts_the_holdout_in_no_fold(
    run_folds: Callable[..., str], change: Change
) -> None:
    run_folds(even_photos(20))
    without = json.loads(Path("out/metrics.json").read_text())
    assert "holdout" not in without
    change("folds.holdout", 0.2)
    pairs = [(f"0-{number:03}", f"0-{number + 1:03}") for number in range(0, 9, 2)]
    run_folds(even_photos(20), shared=pairs)
    table = pd.read_csv("out/folds.csv")
    people = table.groupby("person")["fold"].agg(["first", "nunique"])
    assert (people["nunique"] == 1).all()
    held_out = int((people["first"] == HOLDOUT).sum())
    assert 23 <= held_out <= 26, "3 of the 15 groups with pairs, 4 of the 20 people of other kinds"
    assert all(people["first"][first] == people["first"][second] for first, second in pairs)
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["holdout"]["people"] == held_out
    assert metrics["holdout"]["photos"] == 7 * held_out
    assert 3 <= metrics["holdout"]["rarest_class_photos"] <= 4
    assert metrics["holdout"]["worst_class_deviation"] < 0.5
    assert list(metrics["people"]) == list(metrics["photos"]) == ["0", "1", "2", "3", "4"]
    assert sum(metrics["people"].values()) == 120 - held_out
    assert sum(metrics["photos"].values()) == 840 - 7 * held_out


def test_folds_by_photo_leave_the_holdout_by_person(
    run_folds: Callable[..., str], change: Change
) -> None:
    change("folds.holdout", 0.2)
    run_folds(even_photos(10))
    by_person = pd.read_csv("out/folds.csv")
    change("folds.group_by", "photo")
    warning = run_folds(even_photos(10))
    assert "the holdout is by person, and its scores do not leak" in warning
    by_photo = pd.read_csv("out/folds.csv")
    assert ((by_photo["fold"] == HOLDOUT) == (by_person["fold"] == HOLDOUT)).all()


def test_corrections_move_nobody_into_the_holdout_or_out_of_it(
    run_folds: Callable[..., str], change: Change
) -> None:
    change("folds.holdout", 0.2)
    table = even_photos(20)
    run_folds(table)
    before = pd.read_csv("out/folds.csv")
    table["given_label"] = table["label"]
    table.loc[table["person"].isin(["0-003", "2-001"]), "label"] += 1
    run_folds(table)
    assert (pd.read_csv("out/folds.csv")["fold"] == before["fold"]).all()


def test_a_holdout_that_leaves_too_few_people_is_an_error_that_counts_them(
    run_folds: Callable[..., str], change: Change
) -> None:
    change("folds.holdout", 0.4)
    error = run_folds(photos_of({**dict.fromkeys(range(5), 10), 5: 6}), code=1)
    assert error == (
        "error: folds.holdout: 0.4 leaves too few people for 5 folds, which need 5 in every class: "
        "class 5 (worn, female, 60 and over) keeps 4 of 6; class 11 (incorrect, female, 60 and "
        "over) keeps 4 of 6; class 17 (not worn, female, 60 and over) keeps 4 of 6: use a smaller "
        "folds.holdout or fewer folds, or add people\n"
    )
    assert not Path("out").exists()


def test_a_holdout_without_a_class_is_an_error_that_counts_its_people(
    run_folds: Callable[..., str], change: Change
) -> None:
    change("folds.holdout", 0.05)
    error = run_folds(photos_of({**dict.fromkeys(range(5), 20), 5: 6}), code=1)
    assert error.startswith(
        "error: folds.holdout: 0.05 holds out nobody of a class: class 5 (worn, female, 60 and "
        "over) has 6 people; class 11 (incorrect, female, 60 and over) has 6 people; class 17"
    )
    assert error.endswith("use a larger folds.holdout (0 for none), or add people\n")
    assert error.count("\n") == 1
    assert not Path("out").exists()


def test_folds_by_photo_leak_and_warn(run_folds: Callable[..., str], change: Change) -> None:
    change("folds.group_by", "photo")
    warning = run_folds(even_photos(10))
    assert "warning: folds.group_by: photo puts" in warning
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["people_in_two_folds"] > 30
