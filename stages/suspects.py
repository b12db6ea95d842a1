"""Suspects: labels that are probably wrong and duplicate photos, the most likely first.

    python -m stages.suspects data/aggregate/out_of_fold.csv data/predict/holdout.csv \\
        data/clean/photos.csv data/duplicates/duplicates.csv data/corrections.csv \\
        data/suspects.csv data/suspects.json

Writes suspects.csv, one row per finding (rank, kind, person, photo, field, given, suggested, score,
evidence), and a metrics file with the counts. No label is changed: a person decides, on the page of
the stage `review` or in corrections.csv. The score is the probability that the label is wrong.
Kinds:

- `gender`, `age`: all photos of a person together contradict the label
- `age_edge`: like `age`, but the age is close to the edge of the suggested group; ranked last
- `swap`: two photos of a person look like each other's label; one finding corrects both
- `mask`: the mask state of one photo is doubtful; the suggestion is to drop the photo, since among
  a person's seven usual photos a new label would give two of one state; for people with other
  photos corrections.csv may correct it
- `duplicate`: the same photo is also stored elsewhere, as listed in `given`; lists are separated by
  semicolons

Findings that were rejected in corrections.csv are not listed again unless their score has risen.
Of people in the holdout only duplicates are listed: corrections that follow the networks' advice
would raise the networks' scores there.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray

from face_attributes.command import stage_command
from face_attributes.files import write_json, write_table
from face_attributes.params import SuspectParams, read_params
from face_attributes.photos.label_edits import read_corrections
from face_attributes.photos.labels import (
    GENDERS,
    MASKS,
    MAX_AGE,
    NUM_AGE_GROUPS,
    Labels,
    age_group,
    attribute_names,
)
from face_attributes.photos.tables import (
    HOLDOUT,
    PROBABILITIES,
    read_stage_table,
    read_stage_tables,
)
from face_attributes.scoring.label_noise import (
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
"""A rejected finding is listed again when its score has risen by this much."""

Finding = dict[str, Any]
Claim = tuple[str, str, str, str]
"""Person, photo, field, new value."""


def attribute_probabilities(table: pd.DataFrame) -> dict[str, Floats]:
    """Marginal probabilities of mask (N x 3), gender (N x 2) and age group (N x 3)."""
    joint = table[PROBABILITIES].to_numpy(float).clip(1e-9)
    joint = joint.reshape(-1, len(MASKS), len(GENDERS), NUM_AGE_GROUPS)
    joint /= joint.sum(axis=(1, 2, 3), keepdims=True)
    return {
        "mask": joint.sum(axis=(2, 3)),
        "gender": joint.sum(axis=(1, 3)),
        "age": joint.sum(axis=(1, 2)),
    }


def mean_by_person(probabilities: Floats, person: "pd.Series[str]") -> Floats:
    """Normalised geometric mean over each person's photos (P x K), people in sorted order."""
    logs = pd.DataFrame(np.log(probabilities)).groupby(person.to_numpy()).mean().to_numpy()
    means: Floats = np.exp(logs - np.logaddexp.reduce(logs, axis=1)[:, None])
    return means


def confident_learning(labels: Labels, probabilities: Floats) -> NDArray[np.bool_]:
    """Whether confident learning, as in cleanlab, flags each label as wrong (N)."""
    flags: NDArray[np.bool_] = find_label_issues(
        labels, probabilities, filter_by="confident_learning"
    )
    return flags


def doubtful_people(
    table: pd.DataFrame, edges: Sequence[int], params: SuspectParams
) -> list[Finding]:
    """People whose gender or age group is doubtful, one finding per attribute.

    Args:
        table: person, photo, gender, age, p0 to p17; one row per photo.
        edges: edges of the age groups in years.
    """
    probabilities = attribute_probabilities(table)
    people = table.groupby("person").agg(gender=("gender", "first"), age=("age", "first"))
    ages = people["age"].to_numpy()
    given = {
        "gender": people["gender"].map(GENDERS.index).to_numpy(),
        "age": np.array([age_group(age, edges) for age in ages]),
    }
    means = {field: mean_by_person(probabilities[field], table["person"]) for field in given}
    log_odds = np.log(means["gender"][:, 1] / means["gender"][:, 0])
    apparent_age = means["age"] @ np.arange(NUM_AGE_GROUPS)
    posteriors = {
        "gender": two_class_posterior(log_odds, given["gender"]),
        "age": ordinal_posterior(apparent_age, ages, given["age"]),
    }
    names = attribute_names(edges)
    limits = [0, *edges, MAX_AGE + 1]
    findings = []
    for field, labels in given.items():
        flagged = confident_learning(labels, means[field])
        likeliest = pd.Series(probabilities[field].argmax(axis=1))
        votes = likeliest.groupby(table["person"].to_numpy()).agg(list)
        for index, (person, gender, age) in enumerate(people.itertuples(name=None)):
            mean, label = means[field][index], labels[index]
            suggested = int(np.where(np.arange(len(mean)) == label, 0, mean).argmax())
            low, high = limits[suggested], limits[suggested + 1]
            near = low - params.near_edge <= age < high + params.near_edge
            name = names[field][suggested]
            evidence = (
                f"looks {name} in {votes[person].count(suggested)} of {len(votes[person])} photos, "
                f"mean probability {mean[suggested]:.2f} against {mean[label]:.2f}"
            )
            findings.append(
                {
                    "kind": "age_edge" if field == "age" and near else field,
                    "person": person,
                    "photo": "",
                    "field": field,
                    "given": gender if field == "gender" else str(age),
                    "suggested": name,
                    "score": 1 - float(posteriors[field][index, label]),
                    "evidence": evidence + "; confident learning agrees" * bool(flagged[index]),
                }
            )
    return [finding for finding in findings if finding["score"] >= params.min_score]


def doubtful_masks(table: pd.DataFrame, params: SuspectParams) -> list[Finding]:
    """Pairs of photos that look swapped, and single photos whose mask state is doubtful.

    For a single photo the suggestion is to drop it, which every set of photos allows: among the
    seven usual photos of a person a new label would give two of one state.

    Args:
        table: person, photo, mask, p0 to p17; one row per photo.
    """
    probabilities = attribute_probabilities(table)["mask"]
    given = table["mask"].map(MASKS.index).to_numpy()
    logs, photos = np.log(probabilities), table["photo"].to_numpy(str)
    swaps = []
    for person, rows in table.groupby("person").indices.items():
        if len(set(given[rows])) > 1:
            first, second, odds = likeliest_swap(logs[rows], given[rows])
            swaps.append((person, rows[first], rows[second], odds))
    scores = swap_posterior(np.array([odds for *_, odds in swaps]))
    findings, swapped = list[Finding](), set[int]()
    for (person, first, second, _), score in zip(swaps, scores, strict=True):
        pair = [(first, given[second]), (second, given[first])]
        both_fit = all(
            probabilities[row, state] > probabilities[row, given[row]] for row, state in pair
        )
        if score < params.min_score or not both_fit:
            continue
        swapped |= {first, second}
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
                    f"{photos[row]} looks {MASKS[state]} ({probabilities[row, state]:.2f})"
                    for row, state in pair
                ),
            }
        )
    prior = np.bincount(given, minlength=len(MASKS)) / len(given)
    posteriors = posterior(logs - np.log(prior.clip(1e-9)), given)
    flagged = confident_learning(given, probabilities)
    for row in range(len(table)):
        score = 1 - posteriors[row, given[row]]
        likeliest = int(probabilities[row].argmax())
        # The score alone can be high for a photo that a weak network predicts as labelled.
        if score < params.min_score or row in swapped or likeliest == given[row]:
            continue
        evidence = f"looks {MASKS[likeliest]} ({probabilities[row, likeliest]:.2f})"
        findings.append(
            {
                "kind": "mask",
                "person": table["person"].iloc[row],
                "photo": photos[row],
                "field": "mask",
                "given": MASKS[given[row]],
                "suggested": "drop",
                "score": float(score),
                "evidence": evidence + "; confident learning agrees" * bool(flagged[row]),
            }
        )
    return findings


def duplicate_findings(
    duplicates: pd.DataFrame, photos: pd.DataFrame, folds: dict[Hashable, int]
) -> list[Finding]:
    """Duplicate photos, one finding per pair of people; conflicting labels double the score.

    Args:
        duplicates: person, photo, other_person, other_photo, similarity.
        photos: person, photo, mask, gender, label.
        folds: the fold of each person; HOLDOUT is one, too.
    """
    labels = photos.set_index(["person", "photo"])["label"].to_dict()
    findings = []
    for people, pairs in duplicates.groupby(["person", "other_person"], sort=False):
        person, other = map(str, people)
        similarity = float(pairs["similarity"].max())
        others = [f"{other or 'evaluation'}/{name}" for name in pairs["other_photo"]]
        conflicts = sum(
            labels[person, photo] != labels[other, other_photo]
            for photo, other_photo in zip(pairs["photo"], pairs["other_photo"], strict=True)
            if other
        )
        where = "in the evaluation set"
        if other == person:
            where = "in the same folder"
        elif other:
            where = f"in the folder of {other}, in the holdout"
            if folds[person] != HOLDOUT:
                same = folds[person] == folds[other]
                where = f"in the folder of {other}, in {'the same' if same else 'a different'} fold"
        findings.append(
            {
                "kind": "duplicate",
                "person": person,
                "photo": ";".join(pairs["photo"]),
                "field": "drop",
                "given": ";".join(others),
                "suggested": "drop",
                "score": similarity * (1.0 if conflicts else 0.5),
                "evidence": f"the same photo {where} (similarity {similarity:.3f})"
                + (f"; the labels of {conflicts} of {len(pairs)} differ" if conflicts else ""),
            }
        )
    return findings


def claims(finding: Finding) -> list[Claim]:
    """Claims of a finding, one per row that it would have in corrections.csv."""
    photos, suggested = finding["photo"].split(";"), finding["suggested"].split(";")
    if suggested == ["drop"]:
        # A photo may have both kinds of findings: rejecting one answers nothing about the other.
        field = "duplicate" if finding["kind"] == "duplicate" else "drop"
        return [(finding["person"], photo, field, "") for photo in photos]
    return [
        (finding["person"], photo, finding["field"], value)
        for photo, value in zip(photos, suggested, strict=True)
    ]


def rejected_claims(corrections: pd.DataFrame, edges: Sequence[int]) -> dict[Claim, float]:
    """Claims rejected in corrections.csv, with ages as groups, and their scores at that time."""
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
    """Whether all claims of a finding were rejected at a score that was not much lower."""
    return all(
        finding["score"] < rejected.get(claim, -1) + NEW_EVIDENCE for claim in claims(finding)
    )


def rank_findings(findings: Sequence[Finding]) -> pd.DataFrame:
    """Rank findings by score in one table, ages near an edge after all others."""
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
    holdout: Path,
    photos: Path,
    duplicates: Path,
    corrections: Path,
    out: Path,
    metrics: Path,
) -> None:
    """Rank the labels in PHOTOS that the predictions in OUT_OF_FOLD contradict, and duplicates."""
    params = read_params()
    edges = params.labels.age_edges
    predicted = read_stage_tables([out_of_fold, holdout])
    labelled = read_stage_table(photos)
    folds = predicted.groupby("person")["fold"]
    counts: dict[str, Any] = dict.fromkeys(KINDS, 0)
    counts["rejected_before"] = 0
    counts["refused"] = bool((folds.nunique() > 1).any())
    findings = list[Finding]()
    if counts["refused"]:
        # Not an error, so that an experiment that demonstrates the leak runs to the end.
        print(
            f"suspects: refused: {(folds.nunique() > 1).sum()} people are in two folds, so the "
            "networks were trained on the labels that they would check: set folds.group_by to "
            "person"
        )
    else:
        table = labelled.merge(
            predicted.loc[predicted["fold"] != HOLDOUT, ["person", "photo", *PROBABILITIES]],
            on=["person", "photo"],
        )
        candidates = [
            *doubtful_people(table, edges, params.suspects),
            *doubtful_masks(table, params.suspects),
            *duplicate_findings(read_stage_table(duplicates), labelled, folds.first().to_dict()),
        ]
        rejected = rejected_claims(read_corrections(corrections), edges)
        findings = [finding for finding in candidates if not was_rejected(finding, rejected)]
        counts |= Counter(finding["kind"] for finding in findings)
        counts["rejected_before"] = len(candidates) - len(findings)
    write_table(out, rank_findings(findings), float_format="%.4f")
    write_json(metrics, counts)
    kinds = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    print(
        f"suspects: {len(findings)} findings ({kinds}); {counts['rejected_before']} more were "
        "rejected before"
    )


if __name__ == "__main__":
    main()
