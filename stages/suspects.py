"""Suspects: labels that are probably wrong, and photos that are there twice, the surest first.

    python -m stages.suspects data/aggregate/out_of_fold.csv data/clean/photos.csv \\
        data/duplicates/duplicates.csv data/corrections.csv data/suspects.csv data/suspects.json

Writes suspects.csv, a row a finding (rank, kind, person, photo, field, given, suggested, score,
evidence), and a metric with the counts. Nothing is applied: that is what a person decides, on the
page that the stage `review` makes, or in corrections.csv. The score is the probability that the
label is wrong. Kinds:

- `gender`, `age`: all photos of a person together speak against the label
- `age_edge`: as `age`, but the age is so near to the suggested group that nobody can be sure; last
- `swap`: two photos in a person's folder look like each other's label; one finding, one repair
- `mask`: one photo's mask state is doubtful; to be left out, since with another label there would
  be two photos of one kind
- `duplicate`: a photo is there twice: in `given` the other one; more than one photo with ; between

What was rejected in corrections.csv is not shown again, unless the evidence has changed.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues

from stages.command import stage_command
from stages.files import write_json, write_table
from stages.params import SuspectParams, read_params
from stages.photos.corrections import read_corrections
from stages.photos.labels import AGE_GROUPS, GENDERS, MASKS, OLDEST, age_group, attribute_names
from stages.photos.tables import PROBABILITIES, read_stage_table
from stages.scoring.suspects import (
    Floats,
    likeliest_swap,
    ordinal_posterior,
    posterior,
    swap_posterior,
    two_class_posterior,
)

COLUMNS = ["kind", "person", "photo", "field", "given", "suggested", "score", "evidence"]
KINDS = ["gender", "age", "age_edge", "mask", "swap", "duplicate"]
NEW_EVIDENCE = 0.2
"""A rejected finding is shown again when its score has risen by so much."""

Finding = dict[str, Any]
Claim = tuple[str, str, str, str]
"""Person, photo, field, new value."""


def attribute_probabilities(table: pd.DataFrame) -> dict[str, Floats]:
    """Probabilities of mask, gender and age group apart, N x 3, N x 2, N x 3."""
    joint = table[PROBABILITIES].to_numpy(float).clip(1e-9)
    joint = joint.reshape(-1, len(MASKS), len(GENDERS), AGE_GROUPS)
    joint /= joint.sum(axis=(1, 2, 3), keepdims=True)
    return {
        "mask": joint.sum(axis=(2, 3)),
        "gender": joint.sum(axis=(1, 3)),
        "age": joint.sum(axis=(1, 2)),
    }


def mean_by_person(probabilities: Floats, person: "pd.Series[str]") -> Floats:
    """Geometric mean over each person's photos, people in sorted order: P x K."""
    logs = pd.DataFrame(np.log(probabilities)).groupby(person.to_numpy()).mean().to_numpy()
    means: Floats = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])
    return means


def confident(labels: Floats, probabilities: Floats) -> Floats:
    """Whether confident learning (cleanlab's) takes a label for wrong (N, bool)."""
    flags: Floats = find_label_issues(labels, probabilities, filter_by="confident_learning")
    return flags


def doubtful_people(
    table: pd.DataFrame, edges: Sequence[int], params: SuspectParams
) -> list[Finding]:
    """People whose gender or age group is doubtful, the two attributes apart.

    Args:
        table: person, photo, gender, age, p0 to p17, a row a photo.
    """
    shares = attribute_probabilities(table)
    people = table.groupby("person").agg(gender=("gender", "first"), age=("age", "first"))
    ages = people["age"].to_numpy()
    given = {
        "gender": people["gender"].map(GENDERS.index).to_numpy(),
        "age": np.array([age_group(age, edges) for age in ages]),
    }
    means = {field: mean_by_person(shares[field], table["person"]) for field in given}
    log_odds = np.log(means["gender"][:, 1] / means["gender"][:, 0])
    looks = means["age"] @ np.arange(AGE_GROUPS)
    likely = {
        "gender": two_class_posterior(log_odds, given["gender"]),
        "age": ordinal_posterior(looks, ages, given["age"]),
    }
    names = attribute_names(edges)
    limits = [0, *edges, OLDEST + 1]
    findings = []
    for field, labels in given.items():
        agrees = confident(labels, means[field])
        of_photos = pd.DataFrame(shares[field]).groupby(table["person"].to_numpy())
        top = of_photos.apply(lambda rows: rows.to_numpy().argmax(axis=1))
        for place, (person, gender, age) in enumerate(people.itertuples(name=None)):
            others = means[field][place].copy()
            others[labels[place]] = 0
            suggested = int(others.argmax())
            kind = field
            if field == "age" and (
                limits[suggested] - params.near_edge
                <= age
                < limits[suggested + 1] + params.near_edge
            ):
                kind = "age_edge"
            seen = top[person]
            name = names[field][suggested]
            evidence = (
                f"looks {name} in {(seen == suggested).sum()} of {len(seen)} photos, together "
                f"{means[field][place, suggested]:.2f} against "
                f"{means[field][place, labels[place]]:.2f}"
            )
            findings.append(
                {
                    "kind": kind,
                    "person": person,
                    "photo": "",
                    "field": field,
                    "given": gender if field == "gender" else str(age),
                    "suggested": name,
                    "score": 1 - float(likely[field][place, labels[place]]),
                    "evidence": evidence + "; confident learning agrees" * bool(agrees[place]),
                }
            )
    return [finding for finding in findings if finding["score"] >= params.min_score]


def doubtful_masks(table: pd.DataFrame, params: SuspectParams) -> list[Finding]:
    """Pairs of photos that look swapped, and single photos whose mask state is doubtful.

    A single photo is suggested to be dropped: with another label, its person would have one of that
    kind too many.

    Args:
        table: person, photo, mask, p0 to p17, a row a photo.
    """
    shares = attribute_probabilities(table)["mask"]
    given = table["mask"].map(MASKS.index).to_numpy()
    logs, photos = np.log(shares), table["photo"].to_numpy(str)
    swaps = []
    for person, rows in table.groupby("person").indices.items():
        if len(set(given[rows])) > 1:
            first, second, odds = likeliest_swap(logs[rows], given[rows])
            swaps.append((person, rows[first], rows[second], odds))
    scores = swap_posterior(np.array([odds for *_, odds in swaps]))
    findings, taken = list[Finding](), set[int]()
    for (person, first, second, _), score in zip(swaps, scores, strict=True):
        pair = [(first, given[second]), (second, given[first])]
        both = all(shares[row, state] > shares[row, given[row]] for row, state in pair)
        if score < params.min_score or not both:
            continue
        taken |= {first, second}
        findings.append(
            {
                "kind": "swap",
                "person": person,
                "photo": ";".join(photos[row] for row, _ in pair),
                "field": "mask",
                "given": ";".join(MASKS[given[row]] for row, _ in pair),
                "suggested": ";".join(MASKS[state] for _, state in pair),
                "score": float(score),
                "evidence": ", ".join(
                    f"{photos[row]} looks {MASKS[state]} ({shares[row, state]:.2f})"
                    for row, state in pair
                ),
            }
        )
    prior = np.bincount(given, minlength=len(MASKS)) / len(given)
    likely = posterior(logs - np.log(prior.clip(1e-9)), given)
    agrees = confident(given, shares)
    for row in range(len(table)):
        score = 1 - likely[row, given[row]]
        looks = int(shares[row].argmax())  # a network that knows little may still look as labelled
        if score < params.min_score or row in taken or looks == given[row]:
            continue
        evidence = f"looks {MASKS[looks]} ({shares[row, looks]:.2f})"
        findings.append(
            {
                "kind": "mask",
                "person": table["person"].iloc[row],
                "photo": photos[row],
                "field": "mask",
                "given": MASKS[given[row]],
                "suggested": "drop",
                "score": float(score),
                "evidence": evidence + "; confident learning agrees" * bool(agrees[row]),
            }
        )
    return findings


def doubles(
    duplicates: pd.DataFrame, photos: pd.DataFrame, folds: dict[Hashable, int]
) -> list[Finding]:
    """Photos that are there twice, one finding for two people; conflicting labels score double.

    Args:
        duplicates: person, photo, other_person, other_photo, similarity.
        photos: person, photo, mask, gender, label.
        folds: of each person.
    """
    label = photos.set_index(["person", "photo"])["label"].to_dict()
    findings = []
    for who, pairs in duplicates.groupby(["person", "other_person"], sort=False):
        person, other = map(str, who)
        similarity = float(pairs["similarity"].max())
        others = [f"{other or 'evaluation'}/{name}" for name in pairs["other_photo"]]
        conflict = [
            (mine, yours)
            for mine, yours in zip(pairs["photo"], pairs["other_photo"], strict=True)
            if other and label[person, mine] != label[other, yours]
        ]
        where = "in the evaluation set"
        if other == person:
            where = "in the same folder"
        elif other:
            same = folds[person] == folds[other]
            where = f"in the folder of {other}, in {'the same' if same else 'another'} fold"
        findings.append(
            {
                "kind": "duplicate",
                "person": person,
                "photo": ";".join(pairs["photo"]),
                "field": "drop",
                "given": ";".join(others),
                "suggested": "drop",
                "score": similarity * (1.0 if conflict else 0.5),
                "evidence": f"the same photo {where} (similarity {similarity:.3f})"
                + (f"; the labels differ on {len(conflict)} of {len(pairs)}" if conflict else ""),
            }
        )
    return findings


def claims(finding: Finding) -> list[Claim]:
    """What a finding says, photo by photo, as the rows of corrections.csv would say it."""
    photos, suggested = finding["photo"].split(";"), finding["suggested"].split(";")
    if suggested == ["drop"]:
        return [(finding["person"], photo, "drop", "") for photo in photos]
    return [
        (finding["person"], photo, finding["field"], value)
        for photo, value in zip(photos, suggested, strict=True)
    ]


def rejected_claims(corrections: pd.DataFrame, edges: Sequence[int]) -> dict[Claim, float]:
    """What was rejected in corrections.csv, ages as their groups, and the score it had then."""
    groups = attribute_names(edges)["age"]
    rejected = corrections[corrections["decision"] == "rejected"]
    return {
        (person, photo, field, groups[age_group(int(new), edges)] if field == "age" else new): (
            float(score or 1)
        )
        for person, photo, field, new, score in rejected[
            ["person", "photo", "field", "new", "score"]
        ].itertuples(index=False, name=None)
    }


def was_rejected(finding: Finding, rejected: dict[Claim, float]) -> bool:
    """Whether all that a finding says was rejected, on evidence that was not much weaker."""
    return all(
        finding["score"] < rejected.get(claim, -1) + NEW_EVIDENCE for claim in claims(finding)
    )


def rank(findings: Sequence[Finding]) -> pd.DataFrame:
    """The findings as a table, the surest first, ages near an edge after all others."""
    table = pd.DataFrame(findings, columns=COLUMNS)
    table["edge"] = table["kind"] == "age_edge"
    table = table.sort_values(
        ["edge", "score", "person", "photo"], ascending=[True, False, True, True]
    ).drop(columns="edge")
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


@stage_command
def main(
    out_of_fold: Path,
    photos: Path,
    duplicates: Path,
    corrections: Path,
    out: Path,
    metrics: Path,
) -> None:
    """Rank the labels in PHOTOS that the predictions in OUT_OF_FOLD speak against."""
    params = read_params()
    edges = params.labels.age_edges
    predicted = read_stage_table(out_of_fold)
    known = read_stage_table(photos)
    folds = predicted.groupby("person")["fold"]
    counts: dict[str, Any] = dict.fromkeys(KINDS, 0)
    counts["rejected_before"] = 0
    counts["refused"] = bool((folds.nunique() > 1).any())
    findings = list[Finding]()
    if counts["refused"]:
        # Not an error: an experiment that shows the leak shall come to its end.
        print(
            f"suspects: refused: {(folds.nunique() > 1).sum()} people are in two folds, so that "
            "the networks have learned the labels that they should judge: set folds.group_by to "
            "person"
        )
    else:
        table = known.merge(predicted[["person", "photo", *PROBABILITIES]], on=["person", "photo"])
        found = [
            *doubtful_people(table, edges, params.suspects),
            *doubtful_masks(table, params.suspects),
            *doubles(read_stage_table(duplicates), known, folds.first().to_dict()),
        ]
        rejected = rejected_claims(read_corrections(corrections), edges)
        findings = [finding for finding in found if not was_rejected(finding, rejected)]
        counts |= Counter(finding["kind"] for finding in findings)
        counts["rejected_before"] = len(found) - len(findings)
    write_table(out, rank(findings), float_format="%.4f")
    write_json(metrics, counts)
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    print(
        f"suspects: {len(findings)} findings ({kinds}); {counts['rejected_before']} more were "
        "rejected before"
    )


if __name__ == "__main__":
    main()
