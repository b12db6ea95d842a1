"""Model card: what the networks are, whom they were tried on, how well, and where they fall short.

    python -m stages.model_card metrics.json data/clean data/crop/metrics.json \\
        data/folds/metrics.json data/weights/metrics.json data/aggregate data/corrections.csv \\
        reports/model_card.md

In Markdown, after Mitchell et al., "Model Cards for Model Reporting", 2019. All figures come from
the run.
"""

from pathlib import Path

import pandas as pd

from stages.command import stage_command
from stages.files import read_json, write_whole
from stages.pages.rendering import render
from stages.params import read_params
from stages.photos.corrections import read_corrections
from stages.photos.labels import age_group, attribute_names
from stages.photos.tables import PROBABILITIES, read_stage_table
from stages.scoring.calibration import calibration, expected_calibration_error
from stages.scoring.groups import score_groups
from stages.scoring.metrics import NAMES

GROUPS = {"gender": "Gender", "age": "Age", "race": "Race, as given"}


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
    """Describe the networks whose scores are in METRICS, for those who would use them, in OUT."""
    params = read_params()
    edges = params.labels.age_edges
    known = read_stage_table(clean / "photos.csv")
    table = read_stage_table(aggregate / "out_of_fold.csv").merge(
        known[["person", "photo", "gender", "age", "race"]], on=["person", "photo"]
    )
    # A correction may be of one photo alone; a person is in one group.
    table[["gender", "age"]] = table.groupby("person")[["gender", "age"]].transform("first")
    ages = attribute_names(edges)["age"]
    table["age"] = table["age"].map(lambda age: ages[age_group(age, edges)])
    table["race"] = table["race"].replace("", "not said")
    knobs = params.aggregate
    groups = {
        title: score_groups(
            table, table[column], params.model_card.min_people, knobs.bootstrap, knobs.seed
        )
        for column, title in GROUPS.items()
        if (table[column] != "not said").any()
    }
    bins = calibration(
        table[PROBABILITIES].to_numpy(float), table["label"].to_numpy(), params.report.bins
    )
    classes = pd.read_csv(aggregate / "f1_per_class.csv")
    people = table.groupby("label")["person"].nunique()
    classes["people"] = people.reindex(range(len(classes)), fill_value=0).to_numpy()
    card = render(
        "model_card.md",
        metrics=read_json(metrics),
        score_names=NAMES,
        clean=read_json(clean / "metrics.json"),
        crop=read_json(crop),
        folds=read_json(folds),
        weights=read_json(weights),
        classes=classes,
        groups=groups,
        min_people=params.model_card.min_people,
        calibration_error=expected_calibration_error(bins),
        corrections=corrections_by_field(read_corrections(corrections)),
        by_photo=params.folds.group_by == "photo",
        edges=edges,
        rule=params.crop,
        train=params.train,
    )
    with write_whole(out) as file:
        file.write(card.encode())
    print(f"model_card: {len(table)} photos, {len(groups)} ways to group their people -> {out}")


def corrections_by_field(corrections: pd.DataFrame) -> dict[str, int]:
    """How many rows of corrections.csv were accepted, by field."""
    accepted = corrections[corrections["decision"] != "rejected"]
    return {str(field): int(count) for field, count in accepted["field"].value_counts().items()}


if __name__ == "__main__":
    main()
