"""Review: one page on which a person examines the findings and decides.

    python -m stages.review data/suspects.csv data/clean/photos.csv data/clean/evaluation.csv \\
        data/crop data/aggregate/out_of_fold.csv data/predict/holdout.csv data/corrections.csv \\
        reports/review.html

The page needs no server and no network. It contains photos of people: never commit it. It saves the
decisions as corrections.csv, which the stage `clean` reads.
"""

from collections.abc import Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from face_attributes.command import stage_command
from face_attributes.files import write_whole
from face_attributes.pages.rendering import image_data, render
from face_attributes.params import read_params
from face_attributes.photos.label_edits import COLUMNS, OPTIONAL, read_corrections
from face_attributes.photos.labels import GENDERS, MASKS, NUM_AGE_GROUPS, age_group, attribute_names
from face_attributes.photos.opening import BadPhotoError, open_photo
from face_attributes.photos.packed import Pixels, read_packed
from face_attributes.photos.tables import PROBABILITIES, read_stage_table, read_stage_tables
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress

Entry = dict[str, Any]


def thumbnail(path: str, width: int, max_pixels: int) -> tuple[str, float]:
    """Thumbnail of a photo on disk as WebP in base64, and its width divided by its height.

    ("", 1.0) if the photo is missing or damaged.
    """
    try:
        photo = open_photo(Path(path), max_pixels)
    except (BadPhotoError, FileNotFoundError):
        return "", 1.0
    photo.thumbnail((width, 2 * width))
    return image_data(photo), photo.width / photo.height


def list_findings(suspects: pd.DataFrame, years: dict[Hashable, int]) -> list[Entry]:
    """Findings as the page needs them: photos, given and suggested labels as lists.

    Args:
        suspects: the table of the stage `suspects`.
        years: the age in years that stands for each age group, by the group's name.
    """
    return [
        {
            **{key: row[key] for key in ("rank", "kind", "person", "field", "score", "evidence")},
            "photos": row["photo"].split(";"),
            "given": str(row["given"]).split(";"),
            "suggested": row["suggested"].split(";"),
            "years": years.get(row["suggested"], 0),
        }
        for row in suspects.to_dict("records")
    ]


def photos_to_show(findings: Sequence[Entry], photos: pd.DataFrame) -> pd.DataFrame:
    """Rows of all photos of the people in the findings, and of the duplicates of these photos.

    Args:
        photos: person ("evaluation" for evaluation photos), photo, ...
    """
    people = {finding["person"] for finding in findings}
    copies = {
        tuple(given.split("/", 1))
        for finding in findings
        if finding["kind"] == "duplicate"
        for given in finding["given"]
    }
    people |= {person for person, _ in copies if person != "evaluation"}
    pairs = pd.Series(list(zip(photos["person"], photos["photo"], strict=True)), photos.index)
    return photos[photos["person"].isin(people) | pairs.isin(copies)]


def describe_people(
    photos: pd.DataFrame, crops: Sequence[Pixels], width: int, max_pixels: int
) -> dict[str, list[Entry]]:
    """Content of the page for each photo, by person.

    Args:
        photos: person, photo, path, mask, gender, age, origin, row (of `crops`), p0 to p17 (NaN
            without a prediction).
        width: width of a thumbnail in pixels.
        max_pixels: larger photos are not opened.
    """
    scale = partial(thumbnail, width=width, max_pixels=max_pixels)
    scaled = map_on_all_cores(scale, photos["path"], chunksize=8)
    thumbnails = list(progress(scaled, len(photos), "review: photos scaled"))
    probabilities = photos[PROBABILITIES].to_numpy(float)
    joint = probabilities.reshape(-1, len(MASKS), len(GENDERS), NUM_AGE_GROUPS)
    marginals = {"mask": joint.sum((2, 3)), "gender": joint.sum((1, 3)), "age": joint.sum((1, 2))}
    people: dict[str, list[Entry]] = {}
    for index, row in enumerate(photos.to_dict("records")):
        people.setdefault(row["person"], []).append(
            {
                **{key: row[key] for key in ("photo", "mask", "gender", "age", "origin")},
                "image": thumbnails[index][0],
                "ratio": round(thumbnails[index][1], 3),
                "crop": image_data(Image.fromarray(crops[row["row"]])),
                "probabilities": {}
                if np.isnan(probabilities[index]).any()
                else {field: rows[index].round(3).tolist() for field, rows in marginals.items()},
            }
        )
    return people


@stage_command
def main(
    suspects: Path,
    photos: Path,
    evaluation: Path,
    crop: Path,
    out_of_fold: Path,
    holdout: Path,
    corrections: Path,
    out: Path,
) -> None:
    """Show the findings in SUSPECTS with their photos, on the page OUT."""
    params = read_params()
    edges = params.labels.age_edges
    names = attribute_names(edges)
    training = read_stage_table(photos).assign(row=lambda table: range(len(table)))
    training = training.merge(
        read_stage_tables([out_of_fold, holdout])[["person", "photo", *PROBABILITIES]],
        on=["person", "photo"],
        how="left",
    )
    evaluated = (
        read_stage_table(evaluation)
        .query("rejected == ''")
        .assign(person="evaluation", mask="", gender="", age="", origin="")
    )
    evaluated["row"] = range(len(training), len(training) + len(evaluated))
    crops = [*read_packed(crop / "train"), *read_packed(crop / "evaluation")]

    groups = training["age"].map(lambda age: names["age"][age_group(age, edges)])
    years = training["age"].groupby(groups).median().astype(int).to_dict()
    findings = list_findings(read_stage_table(suspects), years)
    shown = photos_to_show(findings, pd.concat([training, evaluated], ignore_index=True))
    content = {
        "findings": findings,
        "people": describe_people(shown, crops, params.review.thumbnail, params.clean.max_pixels),
        "corrections": read_corrections(corrections).to_dict("records"),
        "columns": [*COLUMNS, *OPTIONAL],
        "names": names,
        "values": {"mask": MASKS, "gender": GENDERS},
    }
    page = render("review.html", content=content)
    with write_whole(out) as file:
        file.write(page.encode())
    print(f"review: {len(findings)} findings, {len(page) / 1e6:.1f} MB; open {out} in a browser")


if __name__ == "__main__":
    main()
