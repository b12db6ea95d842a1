"""Review: one page on which a person looks at the findings and decides.

    python -m stages.review data/suspects.csv data/clean/photos.csv data/clean/evaluation.csv \\
        data/crop data/aggregate/out_of_fold.csv data/corrections.csv reports/review.html

The page needs no server and no network. It is made from the users' photos and so is never
committed. Its decisions are saved as a corrections.csv that the stage `clean` reads.
"""

from collections.abc import Hashable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from stages.command import stage_command
from stages.files import write_whole
from stages.pages.rendering import image_data, render
from stages.params import read_params
from stages.photos.corrections import COLUMNS, OPTIONAL, read_corrections
from stages.photos.labels import AGE_GROUPS, GENDERS, MASKS, age_group, attribute_names
from stages.photos.opening import BadPhotoError, open_photo
from stages.photos.packed import Pixels, read_packed
from stages.photos.tables import PROBABILITIES, read_stage_table
from stages.progress import progress

Entry = dict[str, Any]


def thumbnail(path: str, width: int, max_pixels: int) -> str:
    """A photo on disk, small, as data; "" where it is not there any more."""
    try:
        photo = open_photo(Path(path), max_pixels)
    except (BadPhotoError, FileNotFoundError):
        return ""
    photo.thumbnail((width, 2 * width))
    return image_data(photo)


def list_findings(suspects: pd.DataFrame, years: dict[Hashable, int]) -> list[Entry]:
    """The findings as the page has them: photos, given and suggested labels as lists.

    Args:
        years: what to write as the age of people of a group, for each group's name.
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
    """Rows of all photos of the people in the findings, those that are there twice included.

    Args:
        photos: person ("evaluation" for evaluation photos), photo, ...
    """
    people = {finding["person"] for finding in findings}
    twins = {
        tuple(given.split("/", 1))
        for finding in findings
        if finding["kind"] == "duplicate"
        for given in finding["given"]
    }
    people |= {person for person, _ in twins if person != "evaluation"}
    pairs = pd.Series(list(zip(photos["person"], photos["photo"], strict=True)), photos.index)
    return photos[photos["person"].isin(people) | pairs.isin(twins)]


def describe(
    photos: pd.DataFrame, crops: Sequence[Pixels], width: int, max_pixels: int
) -> dict[str, list[Entry]]:
    """What the page shows of each photo, by person.

    Args:
        photos: person, photo, path, mask, gender, age, origin, p0 to p17 (NaN where there is no
            prediction), row: the place of the crop in `crops`.
    """
    with ProcessPoolExecutor() as pool:
        made = pool.map(
            partial(thumbnail, width=width, max_pixels=max_pixels), photos["path"], chunksize=8
        )
        thumbnails = list(progress(made, len(photos), "review: photos scaled"))
    of_classes = photos[PROBABILITIES].to_numpy(float)
    joint = of_classes.reshape(-1, len(MASKS), len(GENDERS), AGE_GROUPS)
    shares = {"mask": joint.sum((2, 3)), "gender": joint.sum((1, 3)), "age": joint.sum((1, 2))}
    people: dict[str, list[Entry]] = {}
    for place, row in enumerate(photos.to_dict("records")):
        people.setdefault(row["person"], []).append(
            {
                **{key: row[key] for key in ("photo", "mask", "gender", "age", "origin")},
                "image": thumbnails[place],
                "crop": image_data(Image.fromarray(crops[row["row"]])),
                "p": {}
                if np.isnan(of_classes[place]).any()
                else {field: share[place].round(3).tolist() for field, share in shares.items()},
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
    corrections: Path,
    out: Path,
) -> None:
    """Show the findings in SUSPECTS with their photos, on the page OUT."""
    params = read_params()
    edges = params.labels.age_edges
    names = attribute_names(edges)
    known = read_stage_table(photos).assign(row=lambda table: range(len(table)))
    known = known.merge(
        read_stage_table(out_of_fold)[["person", "photo", *PROBABILITIES]],
        on=["person", "photo"],
        how="left",
    )
    asked = read_stage_table(evaluation)
    asked = asked[asked["rejected"] == ""].assign(
        person="evaluation", mask="", gender="", age="", origin=""
    )
    asked["row"] = range(len(known), len(known) + len(asked))
    crops = [*read_packed(crop / "train.npy"), *read_packed(crop / "evaluation.npy")]

    groups = known["age"].map(lambda age: names["age"][age_group(age, edges)])
    years = known["age"].groupby(groups).median().astype(int).to_dict()
    findings = list_findings(read_stage_table(suspects), years)
    shown = photos_to_show(findings, pd.concat([known, asked], ignore_index=True))
    content = {
        "findings": findings,
        "people": describe(shown, crops, params.review.thumbnail, params.clean.max_pixels),
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
