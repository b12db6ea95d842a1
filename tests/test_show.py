"""Show: the scores of the last run on the terminal."""

from pathlib import Path

import pytest

from commands import show
from face_attributes.files import write_json
from face_attributes.scoring.metrics import SCORES
from tests.conftest import Run


@pytest.mark.parametrize("evaluation", [{}, dict.fromkeys(SCORES, 0.75)])
def test_scores_are_shown_with_and_without_evaluation_photos(
    run: Run, evaluation: dict[str, float]
) -> None:
    interval = {"low": 0.25, "high": 0.5}
    metrics = {
        **dict.fromkeys(SCORES, 0.375),
        "interval_95": dict.fromkeys(SCORES, interval),
        "evaluation": evaluation,
        "folds": {"macro_f1_mean": 0.3, "macro_f1_std": 0.1},
        "train": {"macro_f1": 0.9},
        "calibration": {
            "expected_calibration_error_before": 0.1234,
            "expected_calibration_error_after": 0.0234,
        },
    }
    write_json(Path("metrics.json"), metrics)
    output = run(show.main).output
    assert output.count("0.375") == output.count("0.250 to 0.500") == len(SCORES)
    assert output.count("0.750") == len(evaluation)
    assert "expected calibration error 0.023, before calibration 0.123" in output
    assert "data/submission.csv" in output


def test_scores_of_a_holdout_are_shown_with_their_distance(run: Run) -> None:
    interval = {"low": 0.25, "high": 0.5}
    scores = dict.fromkeys(SCORES, 0.375) | {"interval_95": dict.fromkeys(SCORES, interval)}
    lead = dict.fromkeys(SCORES, {"difference": 0.1, "low": 0.02, "high": 0.2})
    metrics = {
        **scores,
        "evaluation": {},
        "folds": {"macro_f1_mean": 0.3, "macro_f1_std": 0.1},
        "train": {"macro_f1": 0.9},
        "calibration": {
            "expected_calibration_error_before": 0.1234,
            "expected_calibration_error_after": 0.0234,
        },
        "holdout": scores
        | dict.fromkeys(SCORES, 0.275)
        | {"people": 20, "photos": 140, "out_of_fold_lead": lead},
    }
    write_json(Path("metrics.json"), metrics)
    output = " ".join(run(show.main).output.split())
    assert output.count("0.275") == len(SCORES)
    assert "holdout, 140 photos of 20 people in no fold: macro F1 95% 0.250 to 0.500" in output
    assert "out of fold lies above the holdout by more than chance: macro F1" in output


def test_missing_scores_are_an_error_that_names_the_remedy(run: Run) -> None:
    assert "metrics.json is missing: `dvc repro` makes it" in run(show.main, code=1).output


@pytest.mark.parametrize("content", ["{", "[]", '{"train": {}}'])
def test_a_file_that_is_not_of_a_run_is_one_line(run: Run, content: str) -> None:
    Path("other.json").write_text(content)
    assert "other.json is not the metrics.json of a run" in run(
        show.main, "--metrics", "other.json", code=1
    ).output.replace("\n", " ")
