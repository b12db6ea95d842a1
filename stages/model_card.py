"""Model card: what the networks are, how they were evaluated, how well they do, and their limits.

    python -m stages.model_card metrics.json data/clean data/crop/metrics.json \\
        data/folds/metrics.json data/weights/metrics.json data/aggregate data/corrections.csv \\
        reports/model_card.md

In Markdown, after Mitchell et al., "Model Cards for Model Reporting", 2019. All numbers come from
the run.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from face_attributes.command import stage_command
from face_attributes.files import read_json, write_whole
from face_attributes.networks.recipe import describe_views
from face_attributes.pages.rendering import render
from face_attributes.params import read_params
from face_attributes.photos.label_edits import read_corrections
from face_attributes.photos.labels import age_group, attribute_names
from face_attributes.photos.tables import read_stage_table
from face_attributes.scoring.groups import Gap, score_groups
from face_attributes.scoring.holdout import describe_leads
from face_attributes.scoring.metrics import SCORE_NAMES

GROUPS = {"gender": "Gender", "age": "Age", "race": "Race, as given"}
"""Columns that people are grouped by, and their headings."""

UNKNOWN = "not given"


def join_people(
    predictions: pd.DataFrame, photos: pd.DataFrame, edges: Sequence[int]
) -> pd.DataFrame:
    """Add the gender, age group and race of each person to the out-of-fold predictions."""
    table = predictions.merge(
        photos[["person", "photo", "gender", "age", "race"]], on=["person", "photo"]
    )
    # A correction may change one photo alone, but a person belongs to one group.
    table[["gender", "age"]] = table.groupby("person")[["gender", "age"]].transform("first")
    names = attribute_names(edges)["age"]
    table["age"] = table["age"].map(lambda age: names[age_group(age, edges)])
    table["race"] = table["race"].replace("", UNKNOWN)
    return table


def score_all_groups(
    table: pd.DataFrame, min_people: int, resamples: int
) -> dict[str, tuple[pd.DataFrame, list[Gap]]]:
    """Scores and gaps of `score_groups` by heading, without columns that are never given."""
    return {
        heading: score_groups(table, table[column], min_people, resamples)
        for column, heading in GROUPS.items()
        if (table[column] != UNKNOWN).any()
    }


def add_people(classes: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Add the number of people with photos of each class to the table of F1 per class."""
    people = table.groupby("label")["person"].nunique()
    return classes.assign(people=people.reindex(range(len(classes)), fill_value=0).to_numpy())


def count_corrections(corrections: pd.DataFrame) -> dict[str, int]:
    """Number of accepted rows in corrections.csv by field."""
    accepted = corrections[corrections["decision"] != "rejected"]
    return {str(field): int(count) for field, count in accepted["field"].value_counts().items()}


@stage_command
def main(
    metrics: Path,
    clean: Path,
    crop: Path,
    folds: Path,
    weights: Path,
    aggregate: Path,
    corrections: Path,
    out: Path,
) -> None:
    """Describe the networks whose scores are in METRICS, for people who would use them, in OUT."""
    params = read_params()
    scores = read_json(metrics)
    edges, min_people = params.labels.age_edges, params.model_card.min_people
    predictions = read_stage_table(aggregate / "out_of_fold.csv")
    table = join_people(predictions, read_stage_table(clean / "photos.csv"), edges)
    groups = score_all_groups(table, min_people, params.aggregate.bootstrap)
    card = render(
        "model_card.md",
        metrics=scores,
        holdout_remark="holdout" in scores
        and describe_leads(scores["holdout"]["out_of_fold_lead"]),
        score_names=SCORE_NAMES,
        clean=read_json(clean / "metrics.json"),
        crop=read_json(crop),
        folds=read_json(folds),
        weights=read_json(weights),
        classes=add_people(pd.read_csv(aggregate / "f1_per_class.csv"), table),
        groups=groups,
        min_people=min_people,
        corrections=count_corrections(read_corrections(corrections)),
        by_photo=params.folds.group_by == "photo",
        edges=edges,
        crop_params=params.crop,
        train=params.train,
        views=describe_views(params.train.prediction),
    )
    with write_whole(out) as file:
        file.write(card.encode())
    print(f"model_card: {len(table)} photos, {len(groups)} ways to group people -> {out}")


if __name__ == "__main__":
    main()
