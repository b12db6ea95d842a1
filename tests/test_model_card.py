"""The model card of a finished run, and what it says about unknowns."""

import contextlib
import shutil
from pathlib import Path

import pytest

from face_attributes.photos.tables import read_stage_table
from stages import model_card
from tests.conftest import run_stage, set_param
from tests.finished_run import YOUNG, write_finished_run

INPUTS = ["metrics.json", "clean", "crop/metrics.json", "folds.json", "weights.json", "aggregate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    return write_finished_run(tmp_path_factory.mktemp("run"))


def test_the_card_is_filled_in_from_the_run(folder: Path) -> None:
    with contextlib.chdir(folder):
        run_stage(model_card.main, *INPUTS, "raw/corrections.csv", "card.md")
        card = Path("card.md").read_text()
    assert "21 photos of 3 people" in card
    assert "| male | 2 | 14 | 0.000 (0.000 to 0.000) | 1.000 (1.000 to 1.000) | 0.000" in card
    assert "| female | 1 | 7 | – | – | – | – |" in card, "too few people: listed without scores"
    assert "Fewer than two groups have at least 2 people, so gaps are unknown" in card
    assert "### Race, as given" in card
    assert "too high" not in card and "holdout" not in card


def test_scores_of_a_holdout_are_beside_those_out_of_fold(tmp_path: Path) -> None:
    write_finished_run(tmp_path, holdout=YOUNG)
    with contextlib.chdir(tmp_path):
        set_param("folds.group_by", "photo")
        run_stage(model_card.main, *INPUTS, "raw/corrections.csv", "card.md")
        card = Path("card.md").read_text()
    assert "- 21 photos of 3 people" in card
    assert "- Of these, 7 photos of 1 people are the holdout" in card
    assert "| | out of fold (95%) | holdout (95%) |\n|---|---|---|\n" in card
    assert "| macro F1, 18 classes | 0.333 (0.000 to 1.000) | 0.000 (0.000 to 0.000) |\n" in card
    assert "Out of fold minus holdout: macro F1, 18 classes +0.333 (+0.000 to +1.000): not" in card
    assert "every score here except the holdout's is too high" in card


def test_unknown_race_and_leaking_folds_are_stated(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    with contextlib.chdir(copy):
        photos = read_stage_table(Path("clean/photos.csv"))
        photos.assign(race="").to_csv("clean/photos.csv", index=False)
        set_param("folds.group_by", "photo")
        run_stage(model_card.main, *INPUTS, "raw/corrections.csv", "card.md")
        card = Path("card.md").read_text()
    assert "The data set gives no race" in card
    assert "every score here is too high" in card
