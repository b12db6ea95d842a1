"""params.yaml: strict, complete, and errors that name the key."""

import re
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.params import read_params
from tests.conftest import Change


def error_of(*_: object) -> str:
    with pytest.raises(UserError) as caught:
        read_params()
    return str(caught.value)


def replace_section(name: str, text: str) -> None:
    path = Path("params.yaml")
    path.write_text(re.sub(rf"^{name}:\n(^( .*)?\n)*", text, path.read_text(), flags=re.M))


def test_the_shipped_file_is_valid(change: Change) -> None:
    params = read_params()
    assert params.labels.age_edges == [30, 60]
    assert params.train.freeze == "none"


def test_a_folder_in_its_place_is_one_line(change: Change) -> None:
    Path("params.yaml").unlink()
    Path("params.yaml").mkdir()
    assert error_of() == "params.yaml cannot be read: Is a directory"


def test_yaml_1_2_reads_an_exponent_as_a_number(change: Change) -> None:
    text = Path("params.yaml").read_text().replace("head_lr: 0.002", "head_lr: 2e-3")
    Path("params.yaml").write_text(text)
    assert read_params().train.head_lr == 0.002


def test_an_unknown_key_is_named_with_those_that_exist(change: Change) -> None:
    change("train.freze", "layer3")
    assert error_of().startswith(
        "params.yaml: train.freze is not known; the keys there are freeze,"
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("patience", "input should be a valid integer"),
        ("optimizer", "input should be 'adamw' or 'sgd'"),
        ("micro_batch", "write auto or a number of photos, at least 1"),
    ],
)
def test_a_missing_key_is_named_with_what_is_allowed(
    change: Change, key: str, expected: str
) -> None:
    text = Path("params.yaml").read_text().splitlines(keepends=True)
    Path("params.yaml").write_text(
        "".join(line for line in text if not line.startswith(f"  {key}:"))
    )
    assert error_of() == f"params.yaml: train.{key} is missing: add it; {expected}"


def test_a_missing_section_is_named(change: Change) -> None:
    replace_section("review", "")
    assert error_of() == (
        "params.yaml: review is missing: add it; its keys belong below it, one a line"
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", "3", "train.epochs: input should be a valid integer (is '3')"),
        ("train.epochs", True, "train.epochs: input should be a valid integer (is True)"),
        ("train.epochs", 0, "train.epochs: input should be greater than or equal to 1 (is 0)"),
        ("train.head_lr", float("nan"), "train.head_lr: input should be a finite number (is nan)"),
        ("crop.detector", "mtcnn", "crop.detector: input should be 'yuface', 'haar', 'yunet' or"),
        ("weights.model", "resnet19", "weights.model: input should be 'resnet18', "),
        ("folds.index", [0, 1, 1], "folds.index: count up from 0, each fold once, such as [0"),
        ("folds.index", [1, 2, 3], "folds.index: count up from 0, each fold once, such as [0"),
        ("folds.index", 5, "folds.index: input should be a valid list (is 5)"),
        ("train.batch_size", 1, "train.batch_size: input should be greater than or equal to 2"),
        ("train.batch_size", 10**30, "train.batch_size: input should be less than or equal to"),
        ("train.micro_batch", "all", "train.micro_batch: write auto or a number of photos"),
        ("train.micro_batch", True, "train.micro_batch: write auto or a number of photos"),
        ("predict.tau", "best", "predict.tau: write auto or a number from 0 to 10 (is 'best')"),
        ("predict.tau", -1.0, "predict.tau: write auto or a number from 0 to 10 (is -1.0)"),
        ("train.loss", "hinge", "train.loss: input should be 'cross_entropy', 'class_weighted',"),
        ("train.ema", 1.0, "train.ema: input should be less than 1"),
        ("train.lr_decay", 0.0, "train.lr_decay: input should be greater than 0"),
        ("labels.age_edges", [60, 30], "labels.age_edges: write two ages, the lower one first"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    change: Change, key: str, value: object, expected: str
) -> None:
    change(key, value)
    assert expected in error_of()


def test_every_problem_has_a_line_of_its_own(change: Change) -> None:
    change("train.epochs", 0)
    change("crop.side", 1)
    assert len(error_of().splitlines()) == 2


def test_a_section_without_keys_is_named(change: Change) -> None:
    replace_section("review", "review:\n")
    assert error_of() == "params.yaml: review: its keys belong below it, one a line (is None)"


def test_a_broken_or_missing_file_is_said_in_one_line(change: Change) -> None:
    Path("params.yaml").write_text("train: [")
    assert "params.yaml is not valid YAML" in error_of()
    assert len(error_of().splitlines()) == 1
    Path("params.yaml").write_text("")
    assert "params.yaml: the file" in error_of()
    Path("params.yaml").unlink()
    assert "params.yaml is missing" in error_of()
