"""params.yaml: strict, complete, and errors that name the key."""

import re
from pathlib import Path

import pytest

from face_attributes.errors import UserError
from face_attributes.params import read_params
from tests.conftest import Change


def read_error() -> str:
    with pytest.raises(UserError) as caught:
        read_params()
    return str(caught.value)


def replace(pattern: str, text: str) -> None:
    path = Path("params.yaml")
    content, count = re.subn(pattern, text, path.read_text(), flags=re.M)
    assert count == 1
    path.write_text(content)


def test_shipped_file_is_valid(change: Change) -> None:
    params = read_params()
    assert params.labels.age_edges == [30, 60]
    assert params.train.optimizer.name == "adamw"


def test_exponent_is_a_number_as_in_yaml_1_2(change: Change) -> None:
    replace("head_lr: 0.002", "head_lr: 2e-3")
    assert read_params().train.head_lr == 0.002


@pytest.mark.parametrize(
    ("key", "sibling"), [("train.freze", "freeze"), ("train.optimizer.nam", "name")]
)
def test_unknown_key_is_named_with_the_known_ones(change: Change, key: str, sibling: str) -> None:
    change(key, "layer3")
    expected = f"params.yaml: {key} is unknown; the keys there are {sibling}, "
    assert read_error().startswith(expected)


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        (r"^  patience:.*\n", "train.patience", "input should be a valid integer"),
        (r"^    name:.*\n", "train.optimizer.name", "input should be 'adamw' or 'sgd'"),
        (r"^  tau:.*\n", "predict.tau", "write auto or a number from 0 to 10"),
        (r"^review:\n(^ .*\n)*", "review", "its keys belong below it, one per line"),
    ],
)
def test_missing_key_is_named_with_what_is_allowed(
    change: Change, pattern: str, key: str, expected: str
) -> None:
    replace(pattern, "")
    assert read_error() == f"params.yaml: {key} is missing: add it; {expected}"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.epochs", "3", "input should be a valid integer (is '3')"),
        ("train.epochs", True, "input should be a valid integer (is True)"),
        ("train.epochs", 0, "input should be greater than or equal to 1 (is 0)"),
        ("train.head_lr", float("nan"), "input should be a finite number (is nan)"),
        ("train.batch_size", 10**30, "input should be less than or equal to 65536 (is 1000"),
        ("train.optimizer.ema", 1.0, "input should be less than 1 (is 1.0)"),
        ("train.optimizer", "adamw", "its keys belong below it, one per line (is 'adamw')"),
        ("crop.detector", "mtcnn", "input should be 'yuface', 'haar', 'yunet' or 'none' (is"),
        ("folds.index", [0, 1, 1], "count up from 0, each fold once, such as [0, 1, 2] (is"),
        ("folds.index", 5, "input should be a valid list (is 5)"),
        ("folds.holdout", 0.51, "input should be less than or equal to 0.5 (is 0.51)"),
        ("folds.holdout", -0.1, "input should be greater than or equal to 0 (is -0.1)"),
        ("folds.holdout", float("nan"), "input should be"),
        ("folds.holdout", "0.2", "input should be a valid number (is '0.2')"),
        ("folds.holdout", True, "input should be a valid number (is True)"),
        ("predict.tau", "best", "write auto or a number from 0 to 10 (is 'best')"),
        ("predict.tau", -1.0, "write auto or a number from 0 to 10 (is -1.0)"),
        ("predict.tau", {"a": 1}, "write auto or a number from 0 to 10 (is {'a': 1})"),
        ("labels.age_edges", [60, 30], "write two ages, the lower one first, such as [30, 60]"),
    ],
)
def test_invalid_value_is_named_with_what_is_allowed(
    change: Change, key: str, value: object, expected: str
) -> None:
    change(key, value)
    assert read_error().startswith(f"params.yaml: {key}: {expected}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"train.heads": "ages", "train.imbalance.loss": "focal"},
            "params.yaml: train.imbalance.loss: focal weights classes, but heads: ages also learns "
            "the age in years, which has no class weights: set train.imbalance.loss to "
            "cross_entropy, or train.heads to split",
        ),
        (
            {"train.cached_views": 4, "train.augmentation.mixup": 0.2},
            "params.yaml: train.augmentation.mixup: 0.2 mixes different photos in each epoch, "
            "which cannot be cached: set train.cached_views or train.augmentation.mixup to 0",
        ),
    ],
)
def test_contradicting_parameters_are_one_line(
    change: Change, changes: dict[str, object], expected: str
) -> None:
    for key, value in changes.items():
        change(key, value)
    assert read_error() == expected


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("!!int x", "not a valid value (invalid literal for int() with base 10: 'x')"),
        ("!!float z", "not a valid value (could not convert string to float: 'z')"),
        ("!!bool maybe", "not a valid value ('maybe')"),
        ("!!int ''", "not a valid value (string index out of range)"),
        ("2020-13-45", "not a valid value (month must be in 1..12)"),
        ("9" * 5000, "not a valid value (Exceeds the limit (4300 digits)"),
        ("!person x", "could not determine a constructor for the tag '!person'"),
    ],
)
def test_a_tag_or_scalar_that_is_no_value_is_named_with_line_and_key(
    change: Change, value: str, problem: str
) -> None:
    replace("^    lr_decay: 1.0", f"    lr_decay: {value}")
    lines = Path("params.yaml").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "lr_decay" in text)
    assert read_error().startswith(
        f"params.yaml is not valid YAML: line {line}, train.optimizer.lr_decay: {problem}"
    )
    assert len(read_error().splitlines()) == 1


@pytest.mark.parametrize("value", ["[" * 600 + "]" * 600, "[" * 600, "{a: " * 600])
def test_brackets_nested_too_deeply_are_named_with_their_line(change: Change, value: str) -> None:
    replace("^  epochs: 4", f"  epochs: {value}")
    lines = Path("params.yaml").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if value in text)
    assert read_error() == f"params.yaml: line {line} is nested too deeply"


def test_values_that_cannot_be_shown_in_full_are_shortened(change: Change) -> None:
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 12)
    ]
    replace("^  epochs: 4", "  epochs: 0x" + "f" * 6000)
    replace("^data: ", "\n".join(levels) + "\ndata: ")
    replace("^  seed: 0   .*drawings.*", "  seed: *a11")
    *unknown, seed, epochs = sorted(read_error().splitlines())
    assert len(unknown) == 12
    assert all(len(line) < 250 for line in (*unknown, seed, epochs))
    assert epochs == (
        "params.yaml: train.epochs: input should be less than 2147483648 "
        "(is a number of thousands of digits)"
    )


def test_a_key_with_a_line_end_is_one_line(change: Change) -> None:
    replace("^review:", '"a\\\\nb": 1\nreview:')
    assert read_error().startswith("params.yaml: 'a\\nb' is unknown; the keys there are data, ")


def test_every_problem_has_its_own_line(change: Change) -> None:
    change("train.epochs", 0)
    change("crop.side", 1)
    assert len(read_error().splitlines()) == 2


def test_section_without_keys_is_named(change: Change) -> None:
    replace(r"^review:\n(^ .*\n)*", "review:\n")
    assert read_error() == "params.yaml: review: its keys belong below it, one per line (is None)"


def test_broken_or_missing_file_is_one_line(change: Change) -> None:
    path = Path("params.yaml")
    path.write_text("train: [")
    assert "params.yaml is not valid YAML" in read_error()
    assert len(read_error().splitlines()) == 1
    path.write_text("")
    assert read_error() == "params.yaml: the file: its keys belong below it, one per line (is None)"
    path.unlink()
    assert read_error() == "params.yaml is missing: run in the folder that contains it"
    path.mkdir()
    assert read_error() == "params.yaml cannot be read: Is a directory"
