"""Wrong labels are found where all of a person's photos speak against them, and ranked in one list.

People are drawn with the noise of a network that sees the mask well, the gender mostly, and the age
badly, and near the edges of age groups not at all.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import suspects
from stages.params import SuspectParams
from stages.photos.labels import GENDERS, MASK_OF_PHOTO, MASKS, encode
from stages.photos.tables import PROBABILITIES
from stages.scoring.suspects import likeliest_swap, posterior, two_class_posterior
from tests.conftest import Change, Run

EDGES = [30, 60]
KNOBS = SuspectParams(min_score=0.05, near_edge=5)


def softmax(logits: Any) -> Any:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """240 people with true labels: person, photo, mask, gender, age, label, fold, p0 to p17."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(240):
        gender, age = GENDERS[number % 2], int(rng.integers(18, 80))
        says_female = (1 if gender == "female" else -1) * 2.0 + rng.normal(0, 0.8)
        looks = age + rng.normal(0, 7)
        for photo, mask in MASK_OF_PHOTO.items():
            female = softmax(np.array([0, 1]) * (says_female + rng.normal(0, 0.5)))
            centres = np.array([20, 45, 72])
            old = softmax(-(((looks + rng.normal(0, 3) - centres) / 16) ** 2))
            worn = softmax(7.0 * np.eye(3)[MASKS.index(mask)] + rng.normal(0, 0.5, 3))
            joint = worn[:, None, None] * female[:, None] * old
            label = encode(mask, gender, age, EDGES)
            row = [f"{number:03}", f"{photo}.jpg", mask, gender, age, label, number % 5]
            rows.append([*row, *joint.ravel()])
    columns = ["person", "photo", "mask", "gender", "age", "label", "fold", *PROBABILITIES]
    return pd.DataFrame(rows, columns=columns)


def planted(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, set[str]]]:
    """The table with wrong labels: six genders, six ages far off, six swaps of two photos."""
    wrong = table.copy()
    people = wrong.drop_duplicates("person")
    far = people[(people["age"] < 25) | (people["age"] > 68)]["person"].to_list()[:6]
    others = [person for person in people["person"] if person not in far]
    found = {"age": set(far), "gender": set(others[10:16]), "swap": set(others[50:56])}
    of = {kind: wrong["person"].isin(chosen) for kind, chosen in found.items()}
    other = {"male": "female", "female": "male"}
    wrong.loc[of["gender"], "gender"] = wrong.loc[of["gender"], "gender"].map(other)
    wrong.loc[of["age"], "age"] = np.where(wrong.loc[of["age"], "age"] < 30, 66, 22)
    state = {"incorrect": "not_worn", "not_worn": "incorrect", "worn": "worn"}
    wrong.loc[of["swap"], "mask"] = wrong.loc[of["swap"], "mask"].map(state)
    return wrong, found


def test_wrong_labels_of_all_fields_lead_one_list(table: pd.DataFrame) -> None:
    wrong, expected = planted(table)
    found = suspects.rank(
        [*suspects.doubtful_people(wrong, EDGES, KNOBS), *suspects.doubtful_masks(wrong, KNOBS)]
    ).head(26)
    for kind, people in expected.items():
        missed = people - set(found.loc[found["kind"] == kind, "person"])
        assert len(missed) <= 1, kind


def test_right_labels_give_few_findings(table: pd.DataFrame) -> None:
    findings = suspects.doubtful_people(table, EDGES, KNOBS)
    assert sum(finding["score"] > 0.5 for finding in findings) <= 5
    assert suspects.doubtful_masks(table, KNOBS) == []


def test_a_swap_is_one_finding_with_one_repair(table: pd.DataFrame) -> None:
    wrong, expected = planted(table)
    findings = suspects.doubtful_masks(wrong, KNOBS)
    assert {finding["kind"] for finding in findings} == {"swap"}
    assert {finding["person"] for finding in findings} == expected["swap"]
    first = findings[0]
    assert first["photo"] == "incorrect_mask.jpg;normal.jpg"
    assert first["given"] == "not_worn;incorrect"
    assert first["suggested"] == "incorrect;not_worn"


def test_a_single_photo_is_suggested_to_be_dropped(table: pd.DataFrame) -> None:
    """With another label, its person would have two photos of that kind."""
    wrong = table.copy()
    normal, mask3 = wrong.index[:7][-1], wrong.index[7 + 2]
    columns = wrong[PROBABILITIES].to_numpy().copy()
    worn, bare = columns[0], columns[6]
    wrong.loc[normal, PROBABILITIES] = worn
    wrong.loc[mask3, PROBABILITIES] = bare
    found = {
        finding["person"]: finding
        for finding in suspects.doubtful_masks(wrong, KNOBS)
        if finding["kind"] == "mask"
    }
    for person, photo, looks in [("000", "normal.jpg", "worn"), ("001", "mask3.jpg", "not_worn")]:
        assert (found[person]["photo"], found[person]["suggested"]) == (photo, "drop")
        assert f"looks {looks}" in found[person]["evidence"]


def test_a_network_that_has_hardly_learned_makes_no_worn_mask_doubtful(table: pd.DataFrame) -> None:
    """It gives all photos about the same, and so most photos their label."""
    rng = np.random.default_rng(0)
    masks = rng.dirichlet([180, 20, 100], len(table))
    untrained = table.copy()
    untrained[PROBABILITIES] = np.repeat(masks / 6, 6, axis=1)
    findings = suspects.doubtful_masks(untrained, KNOBS)
    assert not [found for found in findings if found["kind"] == "mask" and found["given"] == "worn"]


def test_ages_near_an_edge_are_told_apart_and_come_last(table: pd.DataFrame) -> None:
    wrong = table.copy()
    young = wrong[wrong["age"] < 24]["person"].unique()[:2]
    wrong.loc[wrong["person"] == young[0], "age"] = 33
    wrong.loc[wrong["person"] == young[1], "age"] = 45
    knobs = SuspectParams(min_score=0.0, near_edge=5)
    found = suspects.rank(suspects.doubtful_people(wrong, EDGES, knobs)).set_index("person")
    ages = found[found["field"] == "age"]
    assert ages.loc[young[0], "kind"] == "age_edge"
    assert ages.loc[young[1], "kind"] == "age"
    assert found["kind"].eq("age_edge").is_monotonic_increasing


def test_the_posterior_of_clear_evidence_is_bayes() -> None:
    """Many labels that the evidence agrees with, one that it is e^6 against: hand-computed."""
    given = np.array([0] * 50 + [1] * 50)
    densities = np.where(np.eye(2)[given] > 0, 0.0, -50.0)
    densities[0] = [-6.0, 0.0]
    likely = posterior(densities, given)
    # The shares at the fixed point: (50 * 0.02 + likely) / (50 + 50) of class 0 is wrong.
    share = (50 * 0.02 + likely[0, 1]) / 100
    expected = share / (share + (1 - share) * np.exp(-6))
    assert likely[0, 1] == pytest.approx(expected, abs=1e-6)
    assert likely[1:, 0][given[1:] == 0] == pytest.approx(1)


def test_the_same_evidence_against_a_label_is_worth_the_same_both_ways() -> None:
    log_odds = np.array([2.0, 2.5, 1.5, 2.0, -2.0, -2.0, -2.5, -1.5, -2.0, 2.0])
    given = np.array([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    likely = two_class_posterior(log_odds, given)
    assert likely[4, 0] == pytest.approx(likely[9, 1])
    assert likely[4, 0] > likely[0, 0]


def test_the_likeliest_swap_is_the_pair_with_most_evidence() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    first, second, odds = likeliest_swap(np.log(probabilities), np.array([0, 0, 1]))
    assert (first, second) == (1, 2)
    assert odds == pytest.approx(np.log(0.8 / 0.2 * 0.6 / 0.4))


def test_duplicates_with_conflicting_labels_come_first() -> None:
    photos = pd.DataFrame(
        [("a", "1.jpg", 0), ("a", "2.jpg", 6), ("b", "1.jpg", 3), ("c", "1.jpg", 0)],
        columns=["person", "photo", "label"],
    )
    pairs = pd.DataFrame(
        [
            ("a", "1.jpg", "c", "1.jpg", 1.0),
            ("a", "1.jpg", "b", "1.jpg", 0.99),
            ("a", "2.jpg", "", "x.jpg", 1.0),
        ],
        columns=["person", "photo", "other_person", "other_photo", "similarity"],
    )
    found = suspects.rank(suspects.doubles(pairs, photos, {"a": 0, "b": 1, "c": 0}))
    assert found["given"].to_list()[0] == "b/1.jpg"
    assert "in another fold" in found["evidence"].iloc[0]
    assert "the labels differ on 1 of 1" in found["evidence"].iloc[0]
    assert set(found["given"][1:]) == {"c/1.jpg", "evaluation/x.jpg"}


@pytest.fixture
def stage(run: Run, change: Change, table: pd.DataFrame) -> Any:
    def run_suspects(corrections: str = "", folds: Any = None) -> tuple[pd.DataFrame, Any, str]:
        wrong, _ = planted(table)
        if folds is not None:
            wrong["fold"] = folds
        columns = ["person", "photo", "mask", "gender", "age", "label"]
        wrong[columns].to_csv("photos.csv", index=False)
        wrong[["person", "photo", "fold", *PROBABILITIES]].to_csv("out_of_fold.csv", index=False)
        pairs = ["person", "photo", "other_person", "other_photo", "similarity"]
        pd.DataFrame(columns=pairs).to_csv("duplicates.csv", index=False)
        header = "person,photo,field,old,new,reason,reviewer,decision,score\n"
        Path("corrections.csv").write_text(header + corrections)
        inputs = ["out_of_fold.csv", "photos.csv", "duplicates.csv", "corrections.csv"]
        result = run(suspects.main, *inputs, "suspects.csv", "suspects.json")
        findings = pd.read_csv("suspects.csv", dtype={"person": str}, keep_default_na=False)
        return findings, json.loads(Path("suspects.json").read_text()), result.stdout

    return run_suspects


def test_the_stage_writes_findings_and_counts(stage: Any) -> None:
    findings, counts, _ = stage()
    assert list(findings) == ["rank", *suspects.COLUMNS]
    assert findings["rank"].to_list() == list(range(1, len(findings) + 1))
    assert counts["swap"] == 6 and counts["refused"] is False
    assert sum(counts[kind] for kind in suspects.KINDS) == len(findings)


def test_what_was_rejected_is_not_shown_again_unless_the_evidence_changed(stage: Any) -> None:
    findings, _, _ = stage()
    top = findings[findings["kind"] == "gender"].iloc[0]
    swap = findings[findings["kind"] == "swap"].iloc[0]
    age = findings[findings["kind"] == "age"].iloc[0]
    years = {"under 30": 20, "30 to 59": 40, "60 and over": 70}[age["suggested"]]
    rows = [
        f"{top.person},,gender,{top.given},{top.suggested},seen,me,rejected,{{gender}}",
        f"{age.person},,age,{age.given},{years},seen,me,rejected,1",
        *(
            f"{swap.person},{photo},mask,{old},{new},seen,me,rejected,1"
            for photo, old, new in zip(
                swap.photo.split(";"), swap.given.split(";"), swap.suggested.split(";"), strict=True
            )
        ),
    ]
    text = "\n".join(rows)
    again, counts, out = stage(text.format(gender=f"{top.score:.4f}"))
    assert counts["rejected_before"] == 3
    assert "3 more were rejected before" in out
    assert len(again) == len(findings) - 3
    _, counts, _ = stage(text.format(gender="0.1"))
    assert counts["rejected_before"] == 2


def test_folds_that_are_not_by_person_are_refused(stage: Any) -> None:
    findings, counts, out = stage(folds=np.arange(240 * 7) % 5)
    assert findings.empty and counts["refused"] is True
    assert "suspects: refused: 240 people are in two folds" in out
    assert "set folds.group_by to person" in out
