"""Folds by person, every class in every fold, and a gate that says so."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import folds
from stages.errors import UserError
from stages.params import FoldParams
from stages.photos.labels import CLASSES
from tests.conftest import Change, Run

Pairs = Sequence[tuple[str, str]]


def photos_of(people: dict[int, int]) -> pd.DataFrame:
    """Seven photos (5 worn, 1 incorrect, 1 not worn) of as many people of each kind as said."""
    rows = [
        {
            "person": f"{kind}-{number:03}",
            "photo": f"{place}.jpg",
            "label": mask * 6 + kind,
            "age": 20,
        }
        for kind, count in people.items()
        for number in range(count)
        for place, mask in enumerate([0, 0, 0, 0, 0, 1, 2])
    ]
    return pd.DataFrame(rows)


def knobs(count: int = 5, group_by: str = "person", seed: int = 0) -> FoldParams:
    return FoldParams.model_validate(
        {"index": list(range(count)), "group_by": group_by, "seed": seed}
    )


NAMES = [str(label) for label in range(CLASSES)]


@settings(max_examples=20, deadline=None)
@given(
    st.fixed_dictionaries({kind: st.integers(8, 30) for kind in range(6)}),
    st.integers(2, 5),
    st.integers(0, 1000),
)
def test_folds_keep_people_together_and_classes_apart(
    people: dict[int, int], count: int, seed: int
) -> None:
    table = photos_of(people)
    labels = table["label"].to_numpy()
    table["fold"] = folds.assign_folds(labels, table["person"], knobs(count, seed=seed))
    assert set(table["fold"]) == set(range(count))
    assert (table.groupby("person")["fold"].nunique() == 1).all()
    assert (folds.class_counts(labels, table["fold"].to_numpy(), count) > 0).all()
    gate = folds.check_gate(table.assign(group=table["person"]), knobs(count), NAMES)
    assert gate["people_in_two_folds"] == gate["people_who_share_photos"] == 0


def test_the_same_seed_gives_the_same_folds_and_another_others() -> None:
    table = photos_of(dict.fromkeys(range(6), 12))
    labels = table["label"].to_numpy()
    first, again, other = (
        folds.assign_folds(labels, table["person"], knobs(seed=seed)) for seed in (0, 0, 1000)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_deviation_is_the_worst_share_of_a_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert folds.class_deviation(labels, np.array([0, 0, 1, 1, 0, 1]), 2) == 0
    assert folds.class_deviation(labels, np.array([0, 0, 0, 1, 0, 1]), 2) == 0.5


def test_as_few_people_as_folds_still_fit() -> None:
    table = photos_of({**dict.fromkeys(range(5), 20), 5: 5})
    table["fold"] = folds.assign_folds(table["label"].to_numpy(), table["person"], knobs())
    folds.check_gate(table.assign(group=table["person"]), knobs(), NAMES)


@pytest.fixture
def stage(run: Run) -> Callable[..., str]:
    def run_folds(table: pd.DataFrame, code: int = 0, shared: Pairs = ()) -> str:
        given = table["label"] if "given_label" not in table else table["given_label"]
        table.assign(given_label=given).to_csv("photos.csv", index=False)
        pairs = pd.DataFrame(shared, columns=["person", "other_person"])
        pairs.to_csv("duplicates.csv", index=False)
        return run(folds.main, "photos.csv", "duplicates.csv", "out", code=code).stderr

    return run_folds


def test_the_stage_writes_folds_and_the_gates_figures(stage: Callable[..., str]) -> None:
    stage(photos_of(dict.fromkeys(range(6), 10)))
    table = pd.read_csv("out/folds.csv")
    assert list(table) == ["person", "photo", "label", "age", "fold"]
    gate = json.loads(Path("out/metrics.json").read_text())
    assert gate["people_in_two_folds"] == 0
    assert sum(gate["photos"].values()) == 420
    assert gate["rarest_class_photos"] == 2
    assert gate["worst_class_deviation"] == 0


def test_people_who_share_a_photo_share_a_fold(stage: Callable[..., str]) -> None:
    chain = [(f"0-{number:03}", f"0-{number + 1:03}") for number in range(0, 9, 2)]
    stage(photos_of(dict.fromkeys(range(6), 10)), shared=[*chain, ("1-000", "")])
    fold = pd.read_csv("out/folds.csv").groupby("person")["fold"].first()
    assert all(fold[first] == fold[second] for first, second in chain)
    assert json.loads(Path("out/metrics.json").read_text())["people_who_share_photos"] == 5


def test_photos_are_shared_in_chains() -> None:
    people = pd.Series(["a", "a", "b", "c", "d"])
    pairs = pd.DataFrame({"person": ["a", "d", "c"], "other_person": ["b", "", "b"]})
    assert folds.linked_people(people, pairs).tolist() == [0, 0, 0, 0, 1]


def test_the_gate_stops_people_who_share_a_photo_in_two_folds() -> None:
    table = photos_of(dict.fromkeys(range(6), 10))
    table["fold"] = folds.assign_folds(table["label"].to_numpy(), table["person"], knobs())
    group = table["person"].where(table["label"] % 6 > 0, "one")
    with pytest.raises(UserError, match="in two folds, but the same person or photo: 0-000, 0-001"):
        folds.check_gate(table.assign(group=group), knobs(), NAMES)


def test_corrections_move_nobody_to_another_fold(stage: Callable[..., str]) -> None:
    table = photos_of(dict.fromkeys(range(6), 10))
    stage(table)
    before = pd.read_csv("out/folds.csv")
    table["given_label"] = table["label"]
    table.loc[table["person"].isin(["0-003", "2-001"]), "label"] += 1
    stage(table)
    after = pd.read_csv("out/folds.csv")
    assert (before["fold"] == after["fold"]).all()
    assert (before["label"] != after["label"]).sum() == 14


def test_a_class_that_too_few_people_have_is_named(stage: Callable[..., str]) -> None:
    error = stage(photos_of({**dict.fromkeys(range(5), 10), 5: 3}), code=1)
    assert "class 5 (worn, female, 60 and over) has 3;" in error
    assert "class 17 (not worn, female, 60 and over) has 3" in error
    assert "take fewer folds, or add people" in error
    assert not Path("out").exists()


def test_a_class_that_nobody_has_is_named(stage: Callable[..., str]) -> None:
    table = photos_of(dict.fromkeys(range(6), 10))
    assert "class 8 (incorrect, male, 60 and over) has 0" in stage(
        table[table["label"] != 8], code=1
    )


def test_by_photo_leaks_and_warns(stage: Callable[..., str], change: Change) -> None:
    change("folds.group_by", "photo")
    warning = stage(photos_of(dict.fromkeys(range(6), 10)))
    assert "warning: folds.group_by: photo puts" in warning
    gate = json.loads(Path("out/metrics.json").read_text())
    assert gate["people_in_two_folds"] > 30
