"""The report in a real browser, at two widths, and the model card; their figures by hand."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from playwright.sync_api import Page, expect

from stages import aggregate, clean, crop, duplicates, model_card, report, weights
from stages.files import write_json
from stages.learning.gradcam import attention_maps
from stages.learning.network import build, head_name
from stages.learning.weight_files import write_weights
from stages.params import read_params
from stages.photos.tables import probability_table, read_stage_table
from stages.report import age_errors, surest
from stages.train import recipe_of
from tests.conftest import Change, Run

SIDE = 32
FEMALE, YOUNG, OLD = "000001_female_Any_25", "000001_male_Any_30", "3_male_Any_60"
EVIL = f"{OLD}<img src=x onerror=alert(1)>"
TABLES = ["crop/metrics.json", "folds.json", "weights/metrics.json"]


@pytest.fixture
def results(run: Run, change: Change, raw: Path) -> None:
    """What the stages before leave behind, for the three people of `raw`, one of an evil name.

    The woman is in fold 0, where all is right; the men are in fold 1, taken for women.
    """
    knobs = {
        "crop.side": SIDE, "crop.detector": "none", "folds.index": [0, 1],
        "aggregate.bootstrap": 100, "model_card.min_people": 2,
    }  # fmt: skip
    for key, value in knobs.items():
        change(key, value)
    (raw / "train/images" / OLD).rename(raw / "train/images" / EVIL)
    table = raw / "train/train.csv"
    table.write_text(table.read_text().replace(f",{OLD}", f",{EVIL}"))
    (raw / "answers.csv").write_text("ImageID,ans\n")
    Path("submission.csv").write_text("ImageID,ans\nb.jpg,0\na.jpg,0\n")
    run(clean.main, raw / "train", raw / "eval", raw / "corrections.csv", "clean")
    run(crop.main, "clean", "data/detectors", "crop")
    run(duplicates.main, "crop", "duplicates")
    run(weights.main, "data/pretrained", "weights")
    write_json(
        Path("folds.json"),
        {"folds": 2, "people_in_two_folds": 0, "people_who_share_photos": 0,
         "photos": {"0": 7, "1": 14}, "rarest_class_photos": 1, "worst_class_deviation": 0.5},
    )  # fmt: skip
    counts = dict.fromkeys(["gender", "age", "age_edge", "mask", "swap", "duplicate"], 1)
    write_json(Path("suspects.json"), {**counts, "rejected_before": 0, "refused": False})
    photos = read_stage_table(Path("clean/photos.csv"))
    photos["fold"] = (photos["person"] != FEMALE).astype(int)
    for fold, part in photos.groupby("fold"):
        write_fold(int(str(fold)), part)
    run(aggregate.main, "train", "submission.csv", raw / "answers.csv", "aggregate", "metrics.json")


def write_fold(fold: int, photos: pd.DataFrame) -> None:
    """A fold's results in train/: a random network, predictions right but for the men's gender."""
    folder = Path(f"train/fold{fold}")
    predicted = photos["label"] + 3 * (photos["gender"] == "male")
    sure = np.full((len(photos), 18), 0.01, dtype=np.float32)
    sure[np.arange(len(photos)), predicted] = np.linspace(0.6, 0.83, len(photos))
    recipe = recipe_of(read_params(), Path("crop/fallback.json"))
    state = build(recipe.model, SIDE, recipe.heads, seed=fold).state_dict()
    write_weights(folder / "network.safetensors", state, recipe)
    rows = probability_table(photos[["person", "photo", "fold", "label"]], sure)
    rows.to_csv(folder / "out_of_fold.csv", index=False)
    scores = {"loss": 1.0, "macro_f1": 1.0 - fold, "accuracy": 1.0 - fold}
    figures = {
        "epoch": {"kept": 1, "run": 2}, "train": scores, "validation": scores,
        "parameters": {"trainable": 5, "frozen": 3, "total": 8},
    }  # fmt: skip
    write_json(folder / "metrics.json", figures)
    history = {"epoch": [0, 1], "train_loss": [2.0, 1.0], "validation_loss": [2.5, 1.5]}
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)


@pytest.fixture
def written(run: Run, results: None) -> Path:
    run(
        report.main, "metrics.json", "clean", "crop", "duplicates/metrics.json", *TABLES[1:],
        "train", "aggregate", "suspects.json", "reports/report.html",
    )  # fmt: skip
    return Path("reports/report.html").resolve()


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_shows_the_run_and_opens_offline(page: Page, written: Path, width: int) -> None:
    """The fixture `page` fails on anything in the console and on any request."""
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(written.as_uri())
    expect(page.locator(".scores .first strong")).to_have_text(
        f"{json.loads(Path('metrics.json').read_text())['macro_f1']:.3f}"
    )
    assert page.locator("figure svg").count() == 5
    assert page.locator("img[alt='where the network looked']").count() == 2 + 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
    assert "train.freeze" in page.locator("#made").inner_text()

    cell = page.get_by_role(
        "button", name=re.compile("given worn, male, 60 .* predicted worn, fem")
    )
    expect(cell).to_have_text("5")
    cell.press("Enter")
    expect(page.locator("#cell h3")).to_contain_text("5 photos")
    expect(page.locator("#cell li")).to_have_count(5)
    assert EVIL in page.locator("#cell").inner_text(), "a name is text, whatever it looks like"
    assert "%3C" in str(page.locator("#cell a").first.get_attribute("href"))
    sure = [
        float(text.split()[-1].rstrip("%"))
        for text in page.locator("#cell li span:first-of-type").all_inner_texts()
    ]
    assert sure == sorted(sure, reverse=True)
    page.get_by_label("percent of the row").check()
    expect(cell).to_have_text("100")


def test_every_chart_has_its_table_and_paper_shows_them(page: Page, written: Path) -> None:
    page.goto(written.as_uri())
    assert page.locator("details table").count() == 5
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0


def test_a_run_with_a_leak_says_so_first(page: Page, run: Run, results: None) -> None:
    gate = json.loads(Path("folds.json").read_text())
    write_json(Path("folds.json"), {**gate, "people_in_two_folds": 3})
    run(
        report.main, "metrics.json", "clean", "crop", "duplicates/metrics.json", *TABLES[1:],
        "train", "aggregate", "suspects.json", "report.html",
    )  # fmt: skip
    page.goto(Path("report.html").resolve().as_uri())
    expect(page.locator("header .warn")).to_contain_text("3 people are in two folds")


def test_age_errors_are_counted_by_the_years_from_the_nearest_edge() -> None:
    """45 is as near to 30 as to 60 and counts for the first; predicted classes 0, 1, 2 are ages."""
    table = pd.DataFrame({"person": list("abcde"), "age": [29, 30, 45, 58, 61]})
    table["predicted"] = [1, 1, 1, 2, 2]
    errors = age_errors(table, [30, 60], resamples=50, seed=0)
    assert errors[["edge", "years", "photos", "wrong"]].to_numpy().tolist() == [
        [30, "-2, -1", 1, 1.0],
        [30, "0, 1", 1, 0.0],
        [30, "≥ 10", 1, 0.0],
        [60, "-2, -1", 1, 1.0],
        [60, "0, 1", 1, 0.0],
    ]


def test_the_surest_photos_are_of_different_people_and_right_ones_of_different_classes() -> None:
    table = pd.DataFrame({"person": list("aabbcd"), "label": [0, 0, 1, 1, 1, 2]})
    table["predicted"] = [1, 1, 1, 1, 1, 2]
    table["sure"] = [0.9, 0.8, 0.7, 0.95, 0.6, 0.5]
    assert surest(table, right=False, count=5).index.to_list() == [0]
    assert surest(table, right=True, count=5).index.to_list() == [3, 5]
    assert surest(table, right=True, count=1).index.to_list() == [3]
    # The surest of class 6 is of a person who stands for class 0 already: another one does.
    table = pd.DataFrame({"person": list("aab"), "label": [0, 6, 6], "sure": [0.9, 0.8, 0.7]})
    chosen = surest(table.assign(predicted=table["label"]), right=True, count=5)
    assert chosen.index.to_list() == [0, 2]


MODELS = ["resnet18", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "convnext_tiny"]


@pytest.mark.parametrize("model", [*MODELS, "vit_b_16"])
def test_where_a_network_looks_is_a_map_from_0_to_1(model: str) -> None:
    network, images = build(model, 96), torch.randn(8, 3, 96, 96)
    head = network.get_submodule(head_name(network))
    torch.nn.init.normal_(head.get_parameter("weight"))  # a vision transformer's starts at 0
    for _ in range(30):  # until BatchNorm knows what it normalises, features fade away
        network.train()(images)
    maps = attention_maps(network.eval(), images, list(range(8)))
    assert maps.shape == (8, 96, 96)
    assert maps.min() >= 0 and maps.max() <= 1
    assert maps.std() > 0


def test_a_network_looks_at_what_speaks_for_the_class() -> None:
    """A network whose logit of class 0 is the brightness of the last part's first channel."""
    network = build("resnet18", 64).eval()
    with torch.no_grad():
        network.get_parameter("fc.weight").zero_()[0, 0] = 1.0
    images = torch.randn(1, 3, 64, 64)
    features = torch.nn.Sequential(*list(network.children())[:-2])(images)[0, 0].detach()
    expected = torch.nn.functional.interpolate(
        features.relu()[None, None], size=(64, 64), mode="bilinear"
    )[0, 0].numpy()
    (found,) = attention_maps(network, images, [0])
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.9


def test_the_model_card_is_filled_in_from_the_run(run: Run, results: None, raw: Path) -> None:
    inputs = ["metrics.json", "clean", *TABLES, "aggregate", raw / "corrections.csv"]
    run(model_card.main, *inputs, "card.md")
    card = Path("card.md").read_text()
    assert "21 photos of 3 people" in card
    assert "| male | 2 | 14 | 0.000 (0.000 to 0.000) | 1.000 (1.000 to 1.000) | 0.000" in card
    assert "| female | 1 | 7 | – | – | – | – |" in card, "too few people are named, not scored"
    assert "There are no two groups of at least 2 people to compare: nothing is known" in card
    assert "### Race, as given" in card
    assert "too good" not in card


def test_the_model_card_says_what_is_not_known(
    run: Run, results: None, change: Change, raw: Path
) -> None:
    photos = read_stage_table(Path("clean/photos.csv"))
    photos.assign(race="").to_csv("clean/photos.csv", index=False)
    change("folds.group_by", "photo")
    inputs = ["metrics.json", "clean", *TABLES, "aggregate", raw / "corrections.csv"]
    run(model_card.main, *inputs, "card.md")
    card = Path("card.md").read_text()
    assert "The table of people says nothing of race" in card
    assert "every score here is too good" in card
