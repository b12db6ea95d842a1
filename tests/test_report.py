"""The report in a real browser, at two widths, and its numbers by hand."""

import contextlib
import re
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from face_attributes.files import read_json, write_json
from stages import report
from stages.report import age_errors, flatten, most_confident, stage_times
from tests.conftest import run_stage
from tests.finished_run import MARKUP, YOUNG, write_finished_run

pytestmark = pytest.mark.slow


def write_report(folder: Path, name: str, folds: str = "folds.json") -> Path:
    """Run the stage in a finished run; return the path of the page."""
    with contextlib.chdir(folder):
        run_stage(
            report.main, "metrics.json", "clean", "crop", "duplicates.json", folds, "weights.json",
            "train", "aggregate", "suspects.json", name,
        )  # fmt: skip
    return folder / name


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run."""
    return write_report(write_finished_run(tmp_path_factory.mktemp("run")), "report.html")


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_shows_the_run_and_works_offline(page: Page, path: Path, width: int) -> None:
    """The fixture `page` fails on anything in the console and on any request."""
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(path.as_uri())
    macro_f1 = read_json(path.parent / "metrics.json")["macro_f1"]
    expect(page.locator(".scores .first strong")).to_have_text(f"{macro_f1:.3f}")
    assert page.locator("figure svg").count() == 5
    assert page.locator("img[alt='attention map']").count() == 2 + 1
    for part in ("header", "#scores", "#stages"):
        assert "holdout" not in page.locator(part).inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no overflow"
    settings = page.locator("#made").inner_text()
    assert "train.freeze" in settings and "train.optimizer.ema" in settings

    cell = page.get_by_role(
        "button", name=re.compile("given worn, male, 60 .* predicted worn, fem")
    )
    expect(cell).to_have_text("5")
    cell.press("Enter")
    expect(page.locator("#cell h3")).to_contain_text("5 photos")
    expect(page.locator("#cell li")).to_have_count(5)
    assert MARKUP in page.locator("#cell").inner_text(), "markup in a name is shown as text"
    assert "%3C" in str(page.locator("#cell a").first.get_attribute("href"))
    confidences = [
        float(text.split()[-1].rstrip("%"))
        for text in page.locator("#cell li span:first-of-type").all_inner_texts()
    ]
    assert confidences == sorted(confidences, reverse=True)
    page.get_by_label("percent of the row").check()
    expect(cell).to_have_text("100")


def test_every_chart_has_a_table_which_is_printed(page: Page, path: Path) -> None:
    page.goto(path.as_uri())
    assert page.locator("details table").count() == 5
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0


def test_a_leak_is_reported_at_the_top(page: Page, path: Path) -> None:
    folds = {**read_json(path.parent / "folds.json"), "people_in_two_folds": 3}
    write_json(path.parent / "leak.json", folds)
    page.goto(write_report(path.parent, "leak.html", "leak.json").as_uri())
    expect(page.locator("header .warn")).to_contain_text("3 people are in two folds")


def test_scores_of_a_holdout_are_beside_those_out_of_fold(page: Page, tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, holdout=YOUNG)
    balance = {"photos": 7, "people": 1, "rarest_class_photos": 1, "worst_class_deviation": 0.25}
    write_json(folder / "with.json", {**read_json(folder / "folds.json"), "holdout": balance})
    page.goto(write_report(folder, "report.html", "with.json").as_uri())
    expect(page.locator("header p").first).to_contain_text("14 photos of 2 people, each predicted")
    expect(page.locator("header p").first).to_contain_text("7 photos of 1 people in no fold")
    expect(page.locator(".scores .first")).to_contain_text("on the holdout 0.000 (0.000 to 0.000)")
    expect(page.locator("#scores")).to_contain_text("Out of fold minus holdout: macro F1")
    expect(page.locator("#stages")).to_contain_text("worst deviation from an even share 25.0%")
    assert page.locator("#scores .warn").count() == 0

    metrics = read_json(folder / "metrics.json")
    metrics["holdout"]["out_of_fold_lead"]["accuracy"]["low"] = 0.01
    write_json(folder / "metrics.json", metrics)
    page.goto(write_report(folder, "report.html", "with.json").as_uri())
    expect(page.locator("#scores .warn")).to_contain_text(
        "Out of fold lies above the holdout by more than chance: accuracy"
    )


def test_age_errors_are_binned_by_years_from_the_nearest_edge() -> None:
    """45 is equally near to both edges and counts for the first; the classes are age groups."""
    table = pd.DataFrame({"person": list("abcde"), "age": [29, 30, 45, 58, 61]})
    table["predicted"] = [1, 1, 1, 2, 2]
    errors = age_errors(table, [30, 60], resamples=50)
    assert errors[["edge", "years", "photos", "wrong"]].to_numpy().tolist() == [
        [30, "-2, -1", 1, 1.0],
        [30, "0, 1", 1, 0.0],
        [30, "≥ 10", 1, 0.0],
        [60, "-2, -1", 1, 1.0],
        [60, "0, 1", 1, 0.0],
    ]


def test_confident_photos_are_of_different_people_and_correct_ones_of_different_classes() -> None:
    table = pd.DataFrame({"person": list("aabbcd"), "label": [0, 0, 1, 1, 1, 2]})
    table["predicted"] = [1, 1, 1, 1, 1, 2]
    table["confidence"] = [0.9, 0.8, 0.7, 0.95, 0.6, 0.5]
    assert most_confident(table, correct=False, count=5).index.to_list() == [0]
    assert most_confident(table, correct=True, count=5).index.to_list() == [3, 5]
    assert most_confident(table, correct=True, count=1).index.to_list() == [3]
    # Person a already stands for class 0, so another person stands for class 6.
    table = pd.DataFrame({"person": list("aab"), "label": [0, 6, 6], "confidence": [0.9, 0.8, 0.7]})
    chosen = most_confident(table.assign(predicted=table["label"]), correct=True, count=5)
    assert chosen.index.to_list() == [0, 2]


def test_parameters_are_flattened_at_any_depth() -> None:
    sections = {"train": {"epochs": 3, "optimizer": {"ema": 0.5}}, "labels": {"age_edges": [30]}}
    assert flatten(sections) == {
        "train.epochs": 3, "train.optimizer.ema": 0.5, "labels.age_edges": [30],
    }  # fmt: skip


def test_times_are_of_the_listed_folds_with_one_decimal(tmp_path: Path) -> None:
    for stage, seconds in {"clean": 1.94, "train@0": 123.46, "train@5": 9.0}.items():
        write_json(tmp_path / f"{stage}.json", {"seconds": seconds, "ended": "then"}, digits=3)
    times = stage_times(tmp_path, [0, 1]).sort_values("stage")
    assert times.to_numpy().tolist() == [["clean", "1.9", "then"], ["train@0", "123.5", "then"]]
    assert stage_times(tmp_path / "none", [0]).empty
