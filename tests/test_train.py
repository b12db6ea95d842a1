"""The stage `train`: the data of a fold, its files of crops, and the tables it writes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from face_attributes.errors import UserError
from face_attributes.files import write_json, write_table
from face_attributes.networks.build import build
from face_attributes.networks.device import Hardware
from face_attributes.networks.weight_files import write_weights
from face_attributes.params import read_params
from face_attributes.photos import packed
from face_attributes.photos.packed import write_packed
from face_attributes.photos.tables import HOLDOUT
from stages import train
from stages.train import announce, held_out_mask, make_fold, out_of_fold_table
from tests.conftest import Change, Run
from tests.small import CPU, FALLBACK, PARAMS

FOLDS = pd.DataFrame(
    {
        "person": [f"p{row}" for row in range(36)],
        "photo": [f"{row}.jpg" for row in range(36)],
        "fold": [0, 1] * 18,
        "label": [label for label in range(18) for _ in range(2)],
        "age": [age for _ in range(6) for age in (20, 20, 45, 45, 70, 70)],
    }
)


def test_unknown_fold_is_named_with_the_known_ones() -> None:
    assert held_out_mask(FOLDS, 1).to_list() == [False, True] * 18
    with pytest.raises(UserError, match="there is no fold 7: the folds are 0, 1"):
        held_out_mask(FOLDS, 7)


def test_fold_trains_on_the_other_folds() -> None:
    fold = make_fold(FOLDS, 1, read_params(PARAMS), torch.device("cpu"))
    assert fold.training.tolist() == list(range(0, 36, 2))
    assert fold.validation.tolist() == list(range(1, 36, 2))
    assert fold.targets.argmax(dim=1).tolist() == FOLDS["label"].to_list()


def test_no_fold_trains_on_the_holdout_or_holds_it_out() -> None:
    table = pd.concat([FOLDS, FOLDS.iloc[:4].assign(fold=HOLDOUT)], ignore_index=True)
    fold = make_fold(table, 0, read_params(PARAMS), torch.device("cpu"))
    assert fold.training.tolist() == list(range(1, 36, 2))
    assert fold.validation.tolist() == list(range(0, 36, 2))
    with pytest.raises(UserError, match="there is no fold -1: the folds are 0, 1$"):
        held_out_mask(table, HOLDOUT)


def test_fold_without_a_photo_of_a_class_is_one_line() -> None:
    with pytest.raises(UserError, match="fold 1: the training part has no photo of class 0"):
        make_fold(FOLDS.drop(index=0), 1, read_params(PARAMS), torch.device("cpu"))


def test_out_of_fold_table_has_the_held_out_photos_in_order() -> None:
    fold = make_fold(FOLDS, 0, read_params(PARAMS), torch.device("cpu"))
    probabilities = torch.arange(18.0 * 18).reshape(18, 18).softmax(dim=1)
    table = out_of_fold_table(FOLDS, fold, probabilities.log())
    columns = ["person", "photo", "fold", "label", *(f"p{label}" for label in range(18))]
    assert table.columns.to_list() == columns
    assert table["photo"].to_list() == [f"{row}.jpg" for row in range(0, 36, 2)]
    assert table["p3"].to_numpy() == pytest.approx(probabilities[:, 3].numpy())


def test_parameters_without_effect_are_announced(
    change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    change("train.cached_views", 2)
    change("train.batch_size", 100)
    params = read_params(Path("params.yaml"))
    hardware = Hardware(CPU.device, torch.float16)
    fold = make_fold(FOLDS, 0, params, CPU.device)
    announce(params, fold, {"trainable": 1, "total": 2}, hardware)
    printed = capsys.readouterr().out
    assert "train.precision: fp16 is for GPUs, and very slow on a CPU" in printed
    assert "train.cached_views has no effect with train.freeze: none" in printed
    assert "train.batch_size: 100 exceeds the 18 photos: one batch per epoch" in printed


@pytest.fixture
def pixels(change: Change) -> np.ndarray:
    """The crops of FOLDS, beside which the working folder has what the stage reads."""
    for key, value in {"crop.side": 32, "train.epochs": 2, "train.batch_size": 8}.items():
        change(key, value)
    write_table(Path("folds.csv"), FOLDS)
    write_json(Path("crop/fallback.json"), {"box": FALLBACK})
    heads = read_params().train.heads
    write_weights(Path("initial.safetensors"), build("resnet18", 32, heads).state_dict())
    return np.random.default_rng(0).integers(0, 256, (36, 32, 32, 3), np.uint8)


def train_fold(run: Run, code: int = 0) -> str:
    """What the stage says of an error."""
    return run(train.main, 0, "crop", "folds.csv", "initial.safetensors", "out", code=code).stderr


@pytest.mark.slow
@pytest.mark.parametrize(("freeze", "cached_views"), [("none", 0), ("layer3", 2)])
def test_crops_in_several_shards_train_the_same_network(
    pixels: np.ndarray, run: Run, change: Change, monkeypatch: pytest.MonkeyPatch,
    freeze: str, cached_views: int,
) -> None:  # fmt: skip
    """Of 36, or at most 5, crops a shard; the features are not those of the run before."""
    change("train.freeze", freeze)
    change("train.cached_views", cached_views)
    results = []
    for rows in (36, 5):
        monkeypatch.setattr(packed, "SHARD_BYTES", rows * 32 * 32 * 3)
        write_packed(Path("crop/train"), pixels, 36, 32)
        assert len(list(Path("crop/train").glob("*.npy"))) == -(-36 // rows)
        train_fold(run)
        results.append({path.name: path.read_bytes() for path in Path("out").iterdir()})
    assert results[0] == results[1]
    assert {"network.safetensors", "out_of_fold.csv"} <= results[0].keys()
    features = len(list(Path(".cache/features").glob("*.features")))
    assert features == (4 if cached_views else 0)


def test_crops_that_changed_are_a_line_before_training(pixels: np.ndarray, run: Run) -> None:
    write_packed(Path("crop/train"), pixels, 36, 32)
    with Path("crop/train/0000.npy").open("r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    assert train_fold(run, code=1).startswith(
        "error: crop/train/0000.npy is not what the stage crop wrote (its SHA-256 is another one "
        "than in manifest.json): `dvc checkout --force crop` restores it"
    )
    assert not Path("out").exists()
