"""Wrong labels that all photos of a person contradict, ranked in one list.

The predictions imitate a network that is reliable on the mask, fair on the gender and poor on the
age, above all near the edges of age groups.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from face_attributes.params import SuspectParams
from face_attributes.photos.labels import GENDERS, MASK_BY_STEM, MASKS, encode
from face_attributes.photos.tables import HOLDOUT, PROBABILITIES
from stages import suspects
from tests.conftest import Run

EDGES = [30, 60]
PARAMS = SuspectParams(min_score=0.05, near_edge=5)

Stage = Callable[..., tuple[pd.DataFrame, dict[str, Any], str]]


def softmax(logits: Any) -> Any:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """240 people with correct labels: person, photo, mask, gender, age, label, fold, p0 to p17."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(240):
        gender, age = GENDERS[number % 2], int(rng.integers(18, 80))
        female_logit = (1 if gender == "female" else -1) * 2.0 + rng.normal(0, 0.8)
        apparent_age = age + rng.normal(0, 7)
        for stem, mask in MASK_BY_STEM.items():
            genders = softmax(np.array([0, 1]) * (female_logit + rng.normal(0, 0.5)))
            centres = np.array([20, 45, 72])
            ages = softmax(-(((apparent_age + rng.normal(0, 3) - centres) / 16) ** 2))
            masks = softmax(7.0 * np.eye(3)[MASKS.index(mask)] + rng.normal(0, 0.5, 3))
            joint = masks[:, None, None] * genders[:, None] * ages
            label = encode(mask, gender, age, EDGES)
            row = [f"{number:03}", f"{stem}.jpg", mask, gender, age, label, number % 5]
            rows.append([*row, *joint.ravel()])
    columns = ["person", "photo", "mask", "gender", "age", "label", "fold", *PROBABILITIES]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture(scope="module")
def noisy(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, set[str]]]:
    """The table with wrong labels, and their people by kind: six genders, six ages, six swaps."""
    noisy = table.copy()
    people = noisy.drop_duplicates("person")
    far = people[(people["age"] < 25) | (people["age"] > 68)]["person"].to_list()[:6]
    others = [person for person in people["person"] if person not in far]
    wrong = {"age": set(far), "gender": set(others[10:16]), "swap": set(others[50:56])}
    rows = {kind: noisy["person"].isin(chosen) for kind, chosen in wrong.items()}
    opposite = {"male": "female", "female": "male"}
    noisy.loc[rows["gender"], "gender"] = noisy.loc[rows["gender"], "gender"].map(opposite)
    noisy.loc[rows["age"], "age"] = np.where(noisy.loc[rows["age"], "age"] < 30, 66, 22)
    swap = {"incorrect": "not_worn", "not_worn": "incorrect", "worn": "worn"}
    noisy.loc[rows["swap"], "mask"] = noisy.loc[rows["swap"], "mask"].map(swap)
    return noisy, wrong


def test_wrong_labels_of_all_fields_lead_one_list(
    noisy: tuple[pd.DataFrame, dict[str, set[str]]],
) -> None:
    table, wrong = noisy
    findings = suspects.rank_findings(
        [*suspects.doubtful_people(table, EDGES, PARAMS), *suspects.doubtful_masks(table, PARAMS)]
    ).head(26)
    for kind, people in wrong.items():
        missed = people - set(findings.loc[findings["kind"] == kind, "person"])
        assert len(missed) <= 1, kind


def test_correct_labels_give_few_findings(table: pd.DataFrame) -> None:
    findings = suspects.doubtful_people(table, EDGES, PARAMS)
    assert sum(finding["score"] > 0.5 for finding in findings) <= 5
    assert suspects.doubtful_masks(table, PARAMS) == []


def test_a_swap_is_one_finding_that_corrects_both_photos(
    noisy: tuple[pd.DataFrame, dict[str, set[str]]],
) -> None:
    table, wrong = noisy
    findings = suspects.doubtful_masks(table, PARAMS)
    assert {finding["kind"] for finding in findings} == {"swap"}
    assert {finding["person"] for finding in findings} == wrong["swap"]
    first = findings[0]
    assert first["photo"] == "incorrect_mask.jpg;normal.jpg"
    assert first["given"] == "not_worn;incorrect"
    assert first["suggested"] == "incorrect;not_worn"


def test_for_a_single_doubtful_photo_the_suggestion_is_to_drop_it(table: pd.DataFrame) -> None:
    doubtful = table.copy()
    looks = {("000", "normal.jpg"): "worn", ("001", "mask3.jpg"): "not worn"}
    for (person, photo), source in zip(looks, (0, 6), strict=True):
        row = (doubtful["person"] == person) & (doubtful["photo"] == photo)
        doubtful.loc[row, PROBABILITIES] = table.loc[source, PROBABILITIES].to_list()
    findings = {
        (finding["person"], finding["photo"]): finding
        for finding in suspects.doubtful_masks(doubtful, PARAMS)
        if finding["kind"] == "mask"
    }
    assert set(findings) == set(looks)
    for photo, finding in findings.items():
        assert finding["suggested"] == "drop"
        assert f"looks {looks[photo].replace(' ', '_')} (" in finding["evidence"]


def test_an_untrained_network_makes_no_worn_mask_doubtful(table: pd.DataFrame) -> None:
    """It predicts about the same for all photos, and so the given label of most photos."""
    masks = np.random.default_rng(0).dirichlet([180, 20, 100], len(table))
    untrained = table.copy()
    untrained[PROBABILITIES] = np.repeat(masks / 6, 6, axis=1)
    findings = suspects.doubtful_masks(untrained, PARAMS)
    assert not [each for each in findings if each["kind"] == "mask" and each["given"] == "worn"]


def test_ages_near_an_edge_are_a_kind_of_their_own_ranked_last(table: pd.DataFrame) -> None:
    wrong = table.copy()
    near, far = wrong[wrong["age"] < 24]["person"].unique()[:2]
    wrong.loc[wrong["person"] == near, "age"] = 33
    wrong.loc[wrong["person"] == far, "age"] = 45
    everything = SuspectParams(min_score=0.0, near_edge=5)
    findings = suspects.rank_findings(suspects.doubtful_people(wrong, EDGES, everything))
    kinds = findings[findings["field"] == "age"].set_index("person")["kind"]
    assert (kinds[near], kinds[far]) == ("age_edge", "age")
    assert findings["kind"].eq("age_edge").is_monotonic_increasing


def test_a_rejected_duplicate_is_no_answer_about_the_mask() -> None:
    duplicate = {"kind": "duplicate", "person": "A", "photo": "x.jpg", "field": "drop"}
    duplicate |= {"suggested": "drop", "score": 0.5}
    mask = duplicate | {"kind": "mask", "field": "mask"}
    rejections = {"duplicate": duplicate, "drop": mask}
    for field, finding in rejections.items():
        rejected = {("A", "x.jpg", field, ""): 0.5}
        others = [other for other in rejections.values() if other is not finding]
        assert suspects.was_rejected(finding, rejected)
        assert not any(suspects.was_rejected(other, rejected) for other in others)


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
    findings = suspects.rank_findings(
        suspects.duplicate_findings(pairs, photos, {"a": 0, "b": 1, "c": 0})
    )
    assert findings["given"].to_list()[0] == "b/1.jpg"
    assert "in a different fold" in findings["evidence"].iloc[0]
    assert "the labels of 1 of 1 differ" in findings["evidence"].iloc[0]
    assert set(findings["given"][1:]) == {"c/1.jpg", "evaluation/x.jpg"}


@pytest.fixture
def stage(run: Run, noisy: tuple[pd.DataFrame, dict[str, set[str]]]) -> Stage:
    """Run the stage on the noisy table; return the findings, the metrics and the output."""

    def run_suspects(
        corrections: str = "", by_photo: bool = False, holdout: Sequence[str] = ()
    ) -> tuple[pd.DataFrame, dict[str, Any], str]:
        table, _ = noisy
        if by_photo:
            table = table.assign(fold=np.arange(len(table)) % 5)
        columns = ["person", "photo", "mask", "gender", "age", "label"]
        table[columns].to_csv("photos.csv", index=False)
        in_holdout = table["person"].isin(holdout)
        predictions = table[["person", "photo", "fold", *PROBABILITIES]]
        predictions[~in_holdout].to_csv("out_of_fold.csv", index=False)
        predictions[in_holdout].assign(fold=HOLDOUT).to_csv("holdout.csv", index=False)
        Path("duplicates.csv").write_text("person,photo,other_person,other_photo,similarity\n")
        header = "person,photo,field,old,new,reason,reviewer,decision,score\n"
        Path("corrections.csv").write_text(header + corrections)
        predicted = ["out_of_fold.csv", "holdout.csv"]
        labels = ["photos.csv", "duplicates.csv", "corrections.csv"]
        result = run(suspects.main, *predicted, *labels, "suspects.csv", "suspects.json")
        findings = pd.read_csv("suspects.csv", dtype={"person": str}, keep_default_na=False)
        return findings, json.loads(Path("suspects.json").read_text()), result.stdout

    return run_suspects


def test_rejected_findings_return_only_with_a_higher_score(stage: Stage) -> None:
    findings, counts, _ = stage()
    assert list(findings) == ["rank", *suspects.COLUMNS]
    assert findings["rank"].to_list() == list(range(1, len(findings) + 1))
    assert counts["swap"] == 6 and counts["refused"] is False
    assert sum(counts[kind] for kind in suspects.KINDS) == len(findings)

    gender, swap, age = (
        findings[findings["kind"] == kind].iloc[0] for kind in ("gender", "swap", "age")
    )
    years = {"under 30": 20, "30 to 59": 40, "60 and over": 70}[age["suggested"]]
    rows = [
        f"{gender.person},,gender,{gender.given},{gender.suggested},seen,me,rejected,{{score}}",
        f"{age.person},,age,{age.given},{years},seen,me,rejected,1",
        *(
            f"{swap.person},{photo},mask,{old},{new},seen,me,rejected,1"
            for photo, old, new in zip(
                swap.photo.split(";"), swap.given.split(";"), swap.suggested.split(";"), strict=True
            )
        ),
    ]
    rejections = "\n".join(rows)
    remaining, counts, output = stage(rejections.format(score=f"{gender.score:.4f}"))
    assert counts["rejected_before"] == 3
    assert "3 more were rejected before" in output
    assert len(remaining) == len(findings) - 3
    _, counts, _ = stage(rejections.format(score="0.1"))
    assert counts["rejected_before"] == 2


def test_labels_of_the_holdout_are_not_questioned(
    stage: Stage, noisy: tuple[pd.DataFrame, dict[str, set[str]]]
) -> None:
    """Corrections on the networks' advice would raise their score there."""
    _, wrong = noisy
    findings, *_ = stage()
    held_out = wrong["gender"] | wrong["swap"]
    assert held_out <= set(findings["person"])
    with_holdout, *_ = stage(holdout=sorted(held_out))
    assert wrong["age"] <= set(with_holdout["person"])
    assert held_out.isdisjoint(with_holdout["person"])


def test_folds_by_photo_are_refused(stage: Stage) -> None:
    findings, counts, output = stage(by_photo=True)
    assert findings.empty and counts["refused"] is True
    assert "suspects: refused: 240 people are in two folds" in output
    assert "set folds.group_by to person" in output
