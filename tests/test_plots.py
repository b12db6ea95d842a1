"""DVC's plots of the pipeline, of one run and of two."""

import json
import re

import pytest
import vl_convert

from tests.project import Project

TITLES = ["Out-of-fold photos", "F1 per class", "Loss in each fold"]


@pytest.mark.slow
def test_plots_show_one_run_and_compare_two(project: Project) -> None:
    project.run("dvc", "exp", "run", "-n", "tuned", "-S", "predict.tau=1.0", "aggregate")
    project.run("dvc", "plots", "show", "--out", "page")
    page = (project.folder / "page/index.html").read_text()
    for title in TITLES:
        assert title in page
    project.run("dvc", "plots", "diff", "HEAD", "tuned", "--out", "page")
    page = (project.folder / "page/index.html").read_text()
    drawn = [
        json.JSONDecoder().raw_decode(page, match.end())[0]
        for match in re.finditer("var spec = ", page)
    ]
    for title in TITLES:
        (plot,) = (each for each in drawn if title in str(each["title"]))
        assert {row["rev"] for row in plot["data"]["values"]} == {"HEAD", "tuned"}
        assert "<svg" in vl_convert.vegalite_to_svg(plot)
    for revision in ("HEAD", "tuned"):
        sheet = f"static/{revision}_data_crop_contact_sheet.png"
        assert sheet in page and (project.folder / "page" / sheet).exists()
