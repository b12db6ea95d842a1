"""The review page in a real browser: decide with keys, close, come back, save, feed to `clean`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from playwright.sync_api import Page

from stages import clean, review, suspects
from stages.photos.corrections import read_corrections
from stages.photos.packed import write_packed
from stages.photos.tables import PROBABILITIES
from tests.conftest import Change, Run

Write = Callable[..., Path]

FEMALE, YOUNG, OLD = "000001_female_Any_25", "000001_male_Any_30", "3_male_Any_60"
EVIL = "<img src=x onerror=\"document.title='run'\">"
FINDINGS = [
    ("swap", FEMALE, "incorrect_mask.jpg;normal.jpg", "mask", "incorrect;not_worn",
     "not_worn;incorrect", 0.97, "both look it"),
    ("gender", YOUNG, "", "gender", "male", "female", 0.9, EVIL),
    ("age", OLD, "", "age", "60", "under 30", 0.8, 'looks "young", and so'),
    ("duplicate", YOUNG, "mask1.jpg", "drop", f"{OLD}/mask1.jpg", "drop", 0.7, "the same photo"),
    ("mask", OLD, "mask3.jpg", "mask", "worn", "drop", 0.6, "looks not worn"),
    ("duplicate", FEMALE, "mask2.jpg", "drop", "evaluation/a.jpg", "drop", 0.5, "the same photo"),
]  # fmt: skip


def write_inputs(run: Run, raw: Path, findings: list[tuple[object, ...]]) -> None:
    """What the stages before leave behind, for the three people of `raw`."""
    run(clean.main, raw / "train", raw / "eval", raw / "corrections.csv", "clean")
    photos = pd.read_csv("clean/photos.csv", dtype=str)
    rng = np.random.default_rng(0)
    for name, count in {"train": len(photos), "evaluation": 2}.items():
        crops = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        write_packed(Path(f"crop/{name}.npy"), crops, count, 32)
    shares = pd.DataFrame(rng.dirichlet(np.ones(18), len(photos)), columns=PROBABILITIES)
    pd.concat([photos[["person", "photo"]], shares], axis=1).to_csv("oof.csv", index=False)
    columns = ["kind", "person", "photo", "field", "given", "suggested", "score", "evidence"]
    table = pd.DataFrame(findings, columns=columns)
    table.insert(0, "rank", range(1, len(table) + 1))
    table.to_csv("suspects.csv", index=False)


@pytest.fixture
def write_page(run: Run, change: Change, raw: Path) -> Write:
    def write(findings: list[tuple[object, ...]] = FINDINGS) -> Path:
        write_inputs(run, raw, findings)
        corrections = raw / "corrections.csv"
        tables = ["suspects.csv", "clean/photos.csv", "clean/evaluation.csv"]
        run(review.main, *tables, "crop", "oof.csv", corrections, "reports/review.html")
        return Path("reports/review.html").resolve()

    return write


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def saved(page: Page, path: Path) -> list[list[str]]:
    """Press the button, write the file to `path`; its rows without the header."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Save corrections.csv").click()
    assert download.value.suggested_filename == "corrections.csv"
    download.value.save_as(path)
    return pd.read_csv(path, dtype=str, keep_default_na=False).to_numpy().tolist()


def test_decisions_by_keys_survive_and_are_what_clean_reads(
    write_page: Write, page: Page, run: Run, raw: Path
) -> None:
    path = write_page()
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
    rows = saved(page, raw / "corrections.csv")
    score = {row[2]: row[8] for row in rows}
    assert score["gender"] == "0.9000"
    assert [row[:5] + row[6:8] for row in rows] == [
        [FEMALE, "incorrect_mask.jpg", "mask", "incorrect", "not_worn", "Ann", "accepted"],
        [FEMALE, "normal.jpg", "mask", "not_worn", "incorrect", "Ann", "accepted"],
        [YOUNG, "", "gender", "male", "female", "Ann", "rejected"],
        [OLD, "", "age", "60", "25", "Ann", "accepted"],
        [YOUNG, "mask1.jpg", "drop", "", "", "Ann", "accepted"],
        [OLD, "mask3.jpg", "drop", "", "", "Ann", "accepted"],
    ]
    run(clean.main, raw / "train", raw / "eval", raw / "corrections.csv", "after")
    photos = pd.read_csv("after/photos.csv").set_index(["person", "photo"])
    assert photos.loc[(FEMALE, "normal.jpg"), "mask"] == "incorrect"
    assert set(photos.loc[YOUNG, "gender"]) == {"male"}
    assert set(photos.loc[OLD, "age"]) == {25}
    assert (YOUNG, "mask1.jpg") not in photos.index


def test_another_label_drop_undo_and_the_other_photo(
    write_page: Write, page: Page, raw: Path
) -> None:
    page.goto(write_page().as_uri())
    press(page, "ArrowDown", "ArrowDown", "l")
    page.get_by_label(f"age of {OLD}").fill("44")
    press(page, "Enter")
    press(page, "l", "d", "a", "u")
    rows = saved(page, raw / "out.csv")
    assert [row[:5] for row in rows] == [
        [OLD, "", "age", "60", "44"],
        [OLD, "mask1.jpg", "drop", "", ""],
        [OLD, "mask3.jpg", "drop", "", ""],
    ]
    assert page.locator("#progress").text_content() == "3 of 6"


def test_an_age_that_is_none_is_not_taken(write_page: Write, page: Page) -> None:
    page.goto(write_page().as_uri())
    press(page, "ArrowDown", "ArrowDown", "l")
    page.get_by_label(f"age of {OLD}").fill("121")
    press(page, "Enter")
    assert "whole years, 0 to 120" in page.locator("#notice").text_content()
    assert page.locator("#progress").text_content() == "0 of 6"


def test_an_earlier_file_is_taken_up_and_saved_again(
    write_page: Write, page: Page, raw: Path
) -> None:
    earlier = raw / "earlier.csv"
    earlier.write_text(
        "\ufefffield,person,photo,old,new,reason\r\n"
        f'gender,{YOUNG},,male,female,"long, ""fair"" hair"\r\n'
        f"drop,{OLD},mask5.jpg,,,blurred\r\n",
        encoding="utf-8",
    )
    page.goto(write_page().as_uri())
    page.locator("#file").set_input_files(earlier)
    page.get_by_text("2 rows of earlier.csv are taken over").wait_for()
    assert page.locator("#progress").text_content() == "1 of 6"
    rows = saved(page, raw / "out.csv")
    assert sorted(row[:6] for row in rows) == [
        [YOUNG, "", "gender", "male", "female", 'long, "fair" hair'],
        [OLD, "mask5.jpg", "drop", "", "", "blurred"],
    ]
    broken = raw / "broken.csv"
    broken.write_text("a,b\n1,2\n")
    page.locator("#file").set_input_files(broken)
    page.get_by_text("broken.csv is no corrections.csv: it has no column person").wait_for()
    assert len(saved(page, raw / "out.csv")) == 2


def test_a_label_corrected_before_keeps_its_first_value(
    write_page: Write, page: Page, raw: Path
) -> None:
    (raw / "corrections.csv").write_text(
        f"person,photo,field,old,new,reason\n{YOUNG},,gender,male,female,seen\n"
        f"{OLD},,age,60,62,typo\n"
    )
    doubtful = [
        ("gender", YOUNG, "", "gender", "female", "male", 0.9, "looks it"),
        ("age", OLD, "", "age", "62", "under 30", 0.8, "looks it"),
    ]
    page.goto(write_page(doubtful).as_uri())
    press(page, "a", "a")
    rows = saved(page, raw / "out.csv")
    assert [row[:5] for row in rows] == [[OLD, "", "age", "60", "25"]]


def test_a_decision_of_an_earlier_file_can_be_changed_and_taken_back(
    write_page: Write, page: Page, raw: Path
) -> None:
    earlier = raw / "earlier.csv"
    earlier.write_text(
        "person,photo,field,old,new,reason,reviewer,decision,score\n"
        f'{YOUNG},,gender,male,female,6" hat,Ann,accepted,0.8\n'
        f"{OLD},,age,60,25,seen,Ann,accepted,0.7\n"
        f"{OLD},mask1.jpg,drop,,,the same photo,Ann,accepted,0.7\n"
        f"{OLD},mask3.jpg,drop,,,no,Ann,rejected,0.5\n"
    )
    page.goto(write_page().as_uri())
    page.locator("#file").set_input_files(earlier)
    page.get_by_text("4 rows of earlier.csv are taken over").wait_for()
    decisions = page.locator("article .decision")
    assert decisions.all_text_contents() == [
        "", "accepted", "accepted: age 25, the median of under 30", "the other is dropped",
        "rejected", "",
    ]  # fmt: skip
    assert sorted(saved(page, raw / "out.csv")) == sorted(
        line.split(",") for line in earlier.read_text().splitlines()[1:]
    )
    page.locator("article").nth(1).focus()
    press(page, "r", "u")
    rows = {row[2]: row for row in saved(page, raw / "out.csv")}
    assert rows["gender"][7] == "rejected"
    assert "age" not in rows
    earlier.write_text(earlier.read_text().replace('6" hat', '"hat'))
    page.locator("#file").set_input_files(earlier)
    page.get_by_text("earlier.csv is no corrections.csv: a double quote is not closed").wait_for()


def test_a_rejection_stands_beside_the_correction_that_it_confirms(
    write_page: Write, page: Page, raw: Path, run: Run
) -> None:
    """A label that was corrected looks wrong again: that it was looked at is remembered."""
    table = raw / "corrections.csv"
    table.write_text(f"person,photo,field,old,new,reason\n{YOUNG},,gender,male,female,seen\n")
    page.goto(
        write_page([("gender", YOUNG, "", "gender", "female", "male", 0.9, "looks it")]).as_uri()
    )
    press(page, "r")
    rows = saved(page, table)
    assert [row[3:5] + row[7:8] for row in rows] == [
        ["male", "female", ""],
        ["female", "male", "rejected"],
    ]
    run(clean.main, raw / "train", raw / "eval", table, "after")
    claims = suspects.rejected_claims(read_corrections(table), [30, 60])
    assert claims == {(YOUNG, "", "gender", "male"): 0.9}
    page.locator("#file").set_input_files(table)
    page.get_by_text("2 rows of corrections.csv are taken over").wait_for()
    assert page.locator("article .decision").text_content() == "rejected"
    assert saved(page, table) == rows


def test_filters_show_a_kind_and_what_is_left(write_page: Write, page: Page) -> None:
    page.goto(write_page().as_uri())
    visible = page.locator("article:visible")
    page.get_by_label("Kind").select_option("duplicate")
    assert visible.count() == 2
    page.get_by_label("Kind").select_option("")
    page.get_by_label("Field").select_option("mask")
    assert visible.count() == 2
    visible.first.focus()
    press(page, "a")
    page.get_by_label("Show").select_option("undecided")
    assert visible.count() == 1


def test_the_keyboard_alone_reaches_filters_and_comes_back(write_page: Write, page: Page) -> None:
    page.goto(write_page().as_uri())
    kind = page.get_by_label("Kind")
    press(page, "f", "ArrowDown", "ArrowDown")
    assert kind.input_value() == "duplicate"
    assert page.locator("article:visible").count() == 2
    press(page, "Escape", "r")
    assert page.locator("article:visible").first.locator(".decision").text_content() == "rejected"


def test_keys_decide_on_nothing_that_is_not_shown(write_page: Write, page: Page) -> None:
    page.goto(write_page().as_uri())
    page.get_by_label("Show").select_option("decided")
    assert page.get_by_text("No finding is of that kind.").is_visible()
    page.get_by_label("Show").blur()
    press(page, "a")
    assert page.locator("#progress").text_content() == "0 of 6"


def test_a_click_decides_where_it_is_and_keys_go_on_from_there(
    write_page: Write, page: Page
) -> None:
    page.goto(write_page().as_uri())
    decision = page.locator("article .decision")
    page.locator("article").nth(3).get_by_role("button", name="Reject").click()
    press(page, "a")
    page.locator("article").nth(1).get_by_role("button", name="Skip").focus()
    press(page, "r")
    assert decision.all_text_contents() == ["", "rejected", "", "rejected", "accepted", ""]


def test_markup_in_texts_is_shown_and_never_run(write_page: Write, page: Page) -> None:
    page.goto(write_page().as_uri())
    assert page.get_by_text(EVIL).is_visible()
    page.wait_for_timeout(200)
    assert page.title() == "Review of labels"


def test_the_doubtful_photos_are_marked_and_every_control_has_a_name(
    write_page: Write, page: Page
) -> None:
    page.goto(write_page().as_uri())
    assert page.locator("article").first.locator("li.doubtful").count() == 2
    assert page.locator("article").nth(3).locator("li.doubtful").count() == 2
    names = page.locator("button, input, select, img").evaluate_all(
        "nodes => nodes.map(n => n.ariaLabel || n.alt || n.textContent.trim() "
        "|| n.labels?.[0]?.textContent || '')"
    )
    assert all(names)


def test_photos_that_are_gone_are_said_to_be_missing(
    write_page: Write, page: Page, raw: Path, run: Run
) -> None:
    write_page()
    (raw / "train" / "images" / OLD / "mask1.jpg").unlink()
    tables = ["suspects.csv", "clean/photos.csv", "clean/evaluation.csv"]
    run(review.main, *tables, "crop", "oof.csv", raw / "corrections.csv", "reports/review.html")
    page.goto(Path("reports/review.html").resolve().as_uri())
    assert page.get_by_text("photo missing").count() > 0
    text = Path("reports/review.html").read_text()
    start = text.index('id="content">') + len('id="content">')
    content = json.loads(text[start : text.index("</script>", start)])
    content["people"] = {}
    empty = json.dumps(content).replace("<", "\\u003c")
    Path("reports/empty.html").write_text(
        text[:start] + empty + text[text.index("</script>", start) :]
    )
    page.goto(Path("reports/empty.html").resolve().as_uri())
    assert page.get_by_text("The photos of this person are not on this page").count() > 0


def test_no_finding_is_said(write_page: Write, page: Page) -> None:
    page.goto(write_page([]).as_uri())
    assert page.get_by_text("No label is doubtful.").is_visible()


def test_a_photo_without_a_prediction_is_shown_without_one(
    write_page: Write, page: Page, run: Run, raw: Path
) -> None:
    write_page()
    predicted = pd.read_csv("oof.csv")
    predicted[predicted["person"] != OLD].to_csv("oof.csv", index=False)
    tables = ["suspects.csv", "clean/photos.csv", "clean/evaluation.csv"]
    run(review.main, *tables, "crop", "oof.csv", raw / "corrections.csv", "reports/review.html")
    page.goto(Path("reports/review.html").resolve().as_uri())
    shares = page.locator("article").nth(2).locator(".share")
    assert page.locator("article").count() == len(FINDINGS)
    assert shares.count() == 0


def test_a_duplicate_is_said_to_be_the_same_as_the_other(write_page: Write, page: Page) -> None:
    page.goto(write_page().as_uri())
    duplicate, gender = page.locator("article").nth(3), page.locator("article").nth(1)
    assert f"mask1.jpg: the same as {OLD}/mask1.jpg, suggested drop" in (
        duplicate.locator(".claim").text_content()
    )
    assert "likely wrong" not in duplicate.text_content()
    assert "90% likely wrong" in gender.text_content()
