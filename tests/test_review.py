"""The review page in a real browser: decide by keys, close, reopen, save, feed to `clean`."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Page

from face_attributes.photos.label_edits import read_corrections
from face_attributes.photos.packed import write_packed
from face_attributes.photos.tables import PROBABILITIES
from stages import clean, review, suspects
from tests.conftest import ROOT, run_stage, write_raw

pytestmark = pytest.mark.slow

FEMALE, YOUNG, OLD = "000001_female_Any_25", "000001_male_Any_30", "3_male_Any_60"
MARKUP = "<img src=x onerror=\"document.title='run'\">"
FINDINGS = [
    ("swap", FEMALE, "incorrect_mask.jpg;normal.jpg", "mask", "incorrect;not_worn",
     "not_worn;incorrect", 0.97, "both look it"),
    ("gender", YOUNG, "", "gender", "male", "female", 0.9, MARKUP),
    ("age", OLD, "", "age", "60", "under 30", 0.8, 'looks "young", and so'),
    ("duplicate", YOUNG, "mask1.jpg", "drop", f"{OLD}/mask1.jpg", "drop", 0.7, "the same photo"),
    ("mask", OLD, "mask3.jpg", "mask", "worn", "drop", 0.6, "looks not worn"),
    ("duplicate", FEMALE, "mask2.jpg", "drop", "evaluation/a.jpg", "drop", 0.5, "the same photo"),
]  # fmt: skip
HEADER = "person,photo,field,old,new,reason\n"


def run_clean(out: str) -> None:
    """Run the stage `clean` in the working folder."""
    run_stage(clean.main, "raw/train", "raw/eval", "raw/corrections.csv", out)


def run_review(findings: Sequence[tuple[object, ...]] = FINDINGS) -> Path:
    """Write the page of these findings in the working folder; return its path."""
    columns = ["kind", "person", "photo", "field", "given", "suggested", "score", "evidence"]
    table = pd.DataFrame(findings, columns=columns)
    table.insert(0, "rank", range(1, len(table) + 1))
    table.to_csv("suspects.csv", index=False)
    tables = ["suspects.csv", "clean/photos.csv", "clean/evaluation.csv"]
    out = Path("reports/review.html")
    predictions = ["out_of_fold.csv", "holdout.csv"]
    run_stage(review.main, *tables, "crop", *predictions, "raw/corrections.csv", out)
    return out.resolve()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the inputs of the stage, and the page of FINDINGS; tests only read it."""
    folder = tmp_path_factory.mktemp("review")
    with contextlib.chdir(folder):
        shutil.copy(ROOT / "params.yaml", folder)
        write_raw(folder / "raw")
        run_clean("clean")
        photos = pd.read_csv("clean/photos.csv", dtype=str)
        rng = np.random.default_rng(0)
        for name, count in {"train": len(photos), "evaluation": 2}.items():
            crops = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            write_packed(Path(f"crop/{name}"), crops, count, 32)
        rows = pd.DataFrame(rng.dirichlet(np.ones(18), len(photos)), columns=PROBABILITIES)
        table = pd.concat([photos[["person", "photo"]], rows], axis=1)
        table.to_csv("out_of_fold.csv", index=False)
        table.iloc[:0].to_csv("holdout.csv", index=False)
        run_review()
    return folder


@pytest.fixture
def opened(page: Page, shared: Path) -> Page:
    """The page of FINDINGS in a new browser."""
    page.goto((shared / "reports/review.html").as_uri())
    return page


@pytest.fixture
def copy(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shared folder to change, as the working folder."""
    folder = shutil.copytree(shared, tmp_path / "copy")
    monkeypatch.chdir(folder)
    return folder


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def save(page: Page, path: Path) -> list[list[str]]:
    """Press the button, save the file to `path`, and return its rows without the header."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save corrections.csv").click()
    assert download.value.suggested_filename == "corrections.csv"
    download.value.save_as(path)
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().tolist()


def test_decisions_by_keys_survive_closing_and_are_read_by_clean(page: Page, copy: Path) -> None:
    path = copy / "reports/review.html"
    page.goto(path.as_uri())
    assert page.locator("article").count() == len(FINDINGS)
    assert page.locator("#progress").text_content() == "0 of 6"
    page.get_by_label("Reviewer").fill("Ann")
    page.get_by_label("Reviewer").blur()
    page.locator("article").first.focus()
    press(page, "a", "r", "a", "a", "a", "s")
    assert page.locator("#progress").text_content() == "6 of 6"

    page.goto("about:blank")
    page.goto(path.as_uri())
    assert page.locator("#progress").text_content() == "6 of 6"
    rows = save(page, copy / "raw/corrections.csv")
    assert {row[2]: row[8] for row in rows}["gender"] == "0.9000"
    assert [row[:5] + row[6:8] for row in rows] == [
        [FEMALE, "incorrect_mask.jpg", "mask", "incorrect", "not_worn", "Ann", "accepted"],
        [FEMALE, "normal.jpg", "mask", "not_worn", "incorrect", "Ann", "accepted"],
        [YOUNG, "", "gender", "male", "female", "Ann", "rejected"],
        [OLD, "", "age", "60", "25", "Ann", "accepted"],
        [YOUNG, "mask1.jpg", "drop", "", "", "Ann", "accepted"],
        [OLD, "mask3.jpg", "drop", "", "", "Ann", "accepted"],
    ]
    run_clean("after")
    photos = pd.read_csv("after/photos.csv").set_index(["person", "photo"])
    assert photos.loc[(FEMALE, "normal.jpg"), "mask"] == "incorrect"
    assert set(photos.loc[YOUNG, "gender"]) == {"male"}
    assert set(photos.loc[OLD, "age"]) == {25}
    assert (YOUNG, "mask1.jpg") not in photos.index


def test_other_label_other_photo_drop_and_undo(opened: Page, tmp_path: Path) -> None:
    press(opened, "ArrowDown", "ArrowDown", "l")
    opened.get_by_label(f"age of {OLD}").fill("44")
    press(opened, "Enter")
    press(opened, "l", "d", "a", "u")
    rows = save(opened, tmp_path / "out.csv")
    assert [row[:5] for row in rows] == [
        [OLD, "", "age", "60", "44"],
        [OLD, "mask1.jpg", "drop", "", ""],
        [OLD, "mask3.jpg", "drop", "", ""],
    ]
    assert opened.locator("#progress").text_content() == "3 of 6"


def test_a_rejected_duplicate_is_loaded_again(opened: Page, tmp_path: Path) -> None:
    """Its photo may be dropped for another reason, so that it is no rejected drop."""
    press(opened, "ArrowDown", "ArrowDown", "ArrowDown", "r", "r")
    out = tmp_path / "out.csv"
    rows = save(opened, out)
    assert [(row[2], row[7]) for row in rows] == [("duplicate", "rejected"), ("drop", "rejected")]
    opened.evaluate("localStorage.clear()")
    opened.reload()
    assert opened.locator("#progress").text_content() == "0 of 6"
    opened.locator("#file").set_input_files(out)
    opened.get_by_text("2 rows of out.csv loaded").wait_for()
    assert opened.locator("#progress").text_content() == "2 of 6"
    assert save(opened, tmp_path / "again.csv") == rows


def test_an_invalid_age_is_refused(opened: Page) -> None:
    press(opened, "ArrowDown", "ArrowDown", "l")
    opened.get_by_label(f"age of {OLD}").fill("121")
    press(opened, "Enter")
    assert "whole years, 0 to 120" in str(opened.locator("#notice").text_content())
    assert opened.locator("#progress").text_content() == "0 of 6"


def test_a_file_is_loaded_and_saved_again(opened: Page, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.csv"
    earlier.write_text(
        "\ufefffield,person,photo,old,new,reason\r\n"
        f'gender,{YOUNG},,male,female,"long, ""fair"" hair"\r\n'
        f"drop,{OLD},mask5.jpg,,,blurred\r\n",
        encoding="utf-8",
    )
    opened.locator("#file").set_input_files(earlier)
    opened.get_by_text("2 rows of earlier.csv loaded").wait_for()
    assert opened.locator("#progress").text_content() == "1 of 6"
    rows = save(opened, tmp_path / "out.csv")
    assert sorted(row[:6] for row in rows) == [
        [YOUNG, "", "gender", "male", "female", 'long, "fair" hair'],
        [OLD, "mask5.jpg", "drop", "", "", "blurred"],
    ]
    for content, problem in (
        ("a,b\n1,2\n", "column person is missing"),
        (f'{HEADER}{YOUNG},,gender,male,female,"hat\n', "a double quote is not closed"),
    ):
        earlier.write_text(content)
        opened.locator("#file").set_input_files(earlier)
        message = f"earlier.csv is not a valid corrections.csv: {problem}."
        opened.get_by_text(message).wait_for()
    assert len(save(opened, tmp_path / "out.csv")) == 2, "an invalid file changes nothing"


def test_loaded_decisions_can_be_changed_and_undone(opened: Page, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.csv"
    earlier.write_text(
        "person,photo,field,old,new,reason,reviewer,decision,score\n"
        f'{YOUNG},,gender,male,female,6" hat,Ann,accepted,0.8\n'
        f"{OLD},,age,60,25,seen,Ann,accepted,0.7\n"
        f"{OLD},mask1.jpg,drop,,,the same photo,Ann,accepted,0.7\n"
        f"{OLD},mask3.jpg,drop,,,no,Ann,rejected,0.5\n"
    )
    opened.locator("#file").set_input_files(earlier)
    opened.get_by_text("4 rows of earlier.csv loaded").wait_for()
    assert opened.locator("article .decision").all_text_contents() == [
        "", "accepted", "accepted: age 25, the median of under 30", "other photo dropped",
        "rejected", "",
    ]  # fmt: skip
    assert sorted(save(opened, tmp_path / "out.csv")) == sorted(
        line.split(",") for line in earlier.read_text().splitlines()[1:]
    )
    opened.locator("article").nth(1).focus()
    press(opened, "r", "u")
    rows = {row[2]: row for row in save(opened, tmp_path / "out.csv")}
    assert rows["gender"][7] == "rejected"
    assert "age" not in rows


def test_a_label_that_was_corrected_before_keeps_its_original_value(page: Page, copy: Path) -> None:
    (copy / "raw/corrections.csv").write_text(
        f"{HEADER}{YOUNG},,gender,male,female,seen\n{OLD},,age,60,62,typo\n"
    )
    findings = [
        ("gender", YOUNG, "", "gender", "female", "male", 0.9, "looks it"),
        ("age", OLD, "", "age", "62", "under 30", 0.8, "looks it"),
    ]
    page.goto(run_review(findings).as_uri())
    press(page, "a", "a")
    rows = save(page, copy / "out.csv")
    assert [row[:5] for row in rows] == [[OLD, "", "age", "60", "25"]]


def test_rejecting_a_doubt_about_a_correction_is_a_row_of_its_own(page: Page, copy: Path) -> None:
    corrections = copy / "raw/corrections.csv"
    corrections.write_text(f"{HEADER}{YOUNG},,gender,male,female,seen\n")
    finding = ("gender", YOUNG, "", "gender", "female", "male", 0.9, "looks it")
    page.goto(run_review([finding]).as_uri())
    press(page, "r")
    rows = save(page, corrections)
    assert [row[3:5] + row[7:8] for row in rows] == [
        ["male", "female", ""],
        ["female", "male", "rejected"],
    ]
    run_clean("after")
    claims = suspects.rejected_claims(read_corrections(corrections), [30, 60])
    assert claims == {(YOUNG, "", "gender", "male"): 0.9}
    page.locator("#file").set_input_files(corrections)
    page.get_by_text("2 rows of corrections.csv loaded").wait_for()
    assert page.locator("article .decision").text_content() == "rejected"
    assert save(page, corrections) == rows


def test_filters_select_findings_by_kind_field_and_state(opened: Page) -> None:
    visible = opened.locator("article:visible")
    opened.get_by_label("Kind").select_option("duplicate")
    assert visible.count() == 2
    opened.get_by_label("Kind").select_option("")
    opened.get_by_label("Field").select_option("mask")
    assert visible.count() == 2
    visible.first.focus()
    press(opened, "a")
    opened.get_by_label("Show").select_option("undecided")
    assert visible.count() == 1


def test_keys_alone_reach_the_filters_and_return(opened: Page) -> None:
    press(opened, "f", "ArrowDown", "ArrowDown")
    assert opened.get_by_label("Kind").input_value() == "duplicate"
    assert opened.locator("article:visible").count() == 2
    press(opened, "Escape", "r")
    assert opened.locator("article:visible").first.locator(".decision").text_content() == "rejected"


def test_keys_do_not_decide_on_hidden_findings(opened: Page) -> None:
    opened.get_by_label("Show").select_option("decided")
    assert opened.get_by_text("No finding matches the filters.").is_visible()
    opened.get_by_label("Show").blur()
    press(opened, "a")
    assert opened.locator("#progress").text_content() == "0 of 6"


def test_keys_continue_from_the_finding_that_was_clicked(opened: Page) -> None:
    opened.locator("article").nth(3).get_by_role("button", name="Reject").click()
    press(opened, "a")
    opened.locator("article").nth(1).get_by_role("button", name="Skip").focus()
    press(opened, "r")
    decisions = opened.locator("article .decision").all_text_contents()
    assert decisions == ["", "rejected", "", "rejected", "accepted", ""]


def test_nothing_moves_when_photos_load(opened: Page) -> None:
    """Or a click would hit another button. Photos load when they come near."""
    heights = "() => [...document.querySelectorAll('article')].map((each) => each.offsetHeight)"
    images = "[...document.querySelectorAll('article img')]"
    opened.evaluate(f"{images}.forEach((image) => image.removeAttribute('src'))")
    before = opened.evaluate(heights)
    opened.evaluate(
        f"Promise.all({images}.map((image) => "
        "{ image.src = image.dataset.source; return image.decode(); }))"
    )
    assert opened.evaluate(heights) == before
    ratios = f"{images}.map((image) => image.naturalWidth / image.naturalHeight)"
    assert len({round(ratio, 1) for ratio in opened.evaluate(ratios)}) > 1


def test_findings_are_shown_as_text_with_their_photos_marked(opened: Page) -> None:
    assert opened.get_by_text(MARKUP).is_visible()
    swap, gender, _, duplicate, *_ = opened.locator("article").all()
    assert "incorrect_mask.jpg: given incorrect, suggested not worn" in str(
        swap.locator(".claim").text_content()
    )
    assert swap.locator("li.doubtful").count() == duplicate.locator("li.doubtful").count() == 2
    assert f"mask1.jpg: the same as {OLD}/mask1.jpg, suggested drop" in str(
        duplicate.locator(".claim").text_content()
    )
    assert "likely wrong" not in str(duplicate.text_content())
    assert "90% likely wrong" in str(gender.text_content())
    names = opened.locator("button, input, select, img").evaluate_all(
        "nodes => nodes.map(n => n.ariaLabel || n.alt || n.textContent.trim() "
        "|| n.labels?.[0]?.textContent || '')"
    )
    assert all(names), "every control has an accessible name"
    assert opened.title() == "Label review", "markup did not run"


def test_missing_photos_are_stated(page: Page, copy: Path) -> None:
    (copy / "raw/train/images" / OLD / "mask1.jpg").unlink()
    path = run_review()
    page.goto(path.as_uri())
    assert page.get_by_text("photo missing").count() > 0
    text = path.read_text()
    start = text.index('id="content">') + len('id="content">')
    end = text.index("</script>", start)
    content = json.dumps({**json.loads(text[start:end]), "people": {}}).replace("<", "\\u003c")
    path.write_text(text[:start] + content + text[end:])
    page.goto(path.as_uri())
    assert page.get_by_text("This page has no photos of this person").count() > 0


def test_a_page_without_findings_says_so(page: Page, copy: Path) -> None:
    page.goto(run_review([]).as_uri())
    assert page.get_by_text("There are no doubtful labels.").is_visible()


def test_a_photo_without_a_prediction_has_no_probabilities(page: Page, copy: Path) -> None:
    predicted = pd.read_csv("out_of_fold.csv")
    predicted[predicted["person"] != OLD].to_csv("out_of_fold.csv", index=False)
    page.goto(run_review().as_uri())
    shares = [article.locator(".share").count() for article in page.locator("article").all()]
    assert shares[1] > 0 and shares[2] == 0


def test_a_photo_of_the_holdout_has_the_probabilities_of_the_ensemble(
    page: Page, copy: Path
) -> None:
    predicted = pd.read_csv("out_of_fold.csv")
    in_holdout = predicted["person"] == OLD
    predicted[in_holdout].to_csv("holdout.csv", index=False)
    predicted[~in_holdout].to_csv("out_of_fold.csv", index=False)
    page.goto(run_review().as_uri())
    assert page.locator("article").nth(2).locator(".share").count() > 0
