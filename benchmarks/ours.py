"""Train one fold with this project, with the same arguments as the reference loop.

    python -m benchmarks.ours photos.csv FOLD --side 128 --epochs 10 --freeze layer3 --views 4

The first process packs the crops; this counts as part of its work. Features are cached beside the
table, for the following folds.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch.nn import functional

from benchmarks.measuring import BATCH, BRIGHTNESS, FLIP, SHIFT, measure
from face_attributes.faces.boxes import WHOLE_PHOTO
from face_attributes.faces.cut import cut
from face_attributes.networks.build import build
from face_attributes.networks.device import prepare_hardware
from face_attributes.params import (
    AugmentationParams,
    CropParams,
    PredictionParams,
    TrainParams,
    read_params,
)
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.opening import open_photo
from face_attributes.photos.packed import MANIFEST, Pixels, write_packed
from face_attributes.training.checkpoint import Checkpoint
from face_attributes.training.feature_store import FeatureStore
from face_attributes.training.inputs import load_photos, prepare_inputs
from face_attributes.training.loop import Fold, fit


def crop(path: str, params: CropParams) -> Pixels:
    """Crop the square middle of a photo, like the reference loop."""
    return cut(open_photo(Path(path)), WHOLE_PHOTO, 0, params)


def train(
    table: Path,
    fold: int,
    side: int,
    epochs: int,
    freeze: str,
    views: int,
    mark: Callable[[], None],
) -> None:
    """Pack the crops, unless they exist, and train on all folds but one."""
    params = read_params()
    photos = pd.read_csv(table)
    crops = table.with_name(f"{table.stem}{side}")
    if not (crops / MANIFEST).exists():
        crop_photo = partial(crop, params=params.crop.model_copy(update={"side": side}))
        with ProcessPoolExecutor() as pool:
            write_packed(
                crops, pool.map(crop_photo, photos["path"], chunksize=16), len(photos), side
            )
    train_params = comparable(params.train, freeze, views, epochs)
    hardware = prepare_hardware(train_params.device, train_params.precision)
    loaded = load_photos(crops, photos["label"].to_numpy(), hardware)
    network = build("resnet18", side).to(memory_format=torch.channels_last).to(hardware.device)
    rows = torch.arange(len(photos), device=hardware.device)
    held_out = torch.from_numpy((photos["fold"] == fold).to_numpy(copy=True)).to(hardware.device)
    targets = functional.one_hot(loaded.labels, NUM_CLASSES).float()
    store = FeatureStore(table.parent / "features", int(train_params.cache_gb * 1e9))
    mark()
    fit(
        network,
        Fold(fold, rows[~held_out], rows[held_out], targets),
        partial(prepare_inputs, photos=loaded, params=train_params, hardware=hardware, store=store),
        train_params,
        Checkpoint(table.with_name(f"fold{fold}.checkpoint"), f"{fold} {train_params}"),
        report=lambda _: mark(),
        scaler=hardware.loss_scaler(),
    )


def comparable(params: TrainParams, freeze: str, views: int, epochs: int) -> TrainParams:
    """Return the parameters that make this project train like the reference loop."""
    return params.model_copy(
        update={
            "freeze": freeze,
            "cached_views": views,
            "epochs": epochs,
            "patience": epochs,
            "batch_size": BATCH,
            "head_lr": 1e-3,
            "backbone_lr": 1e-3,
            "optimizer": params.optimizer.model_copy(
                update={"name": "adamw", "head_epochs": 0, "lr_decay": 1.0, "ema": 0.0}
            ),
            "targets": params.targets.model_copy(update={"label_smoothing": 0.1}),
            "imbalance": params.imbalance.model_copy(
                update={"sampler": "as_is", "loss": "cross_entropy"}
            ),
            "augmentation": AugmentationParams(
                shift=SHIFT,
                flip=FLIP,
                brightness=BRIGHTNESS,
                rotation=0.0,
                zoom=0.0,
                camera=0.0,
                occlusion=0.0,
                mixup=0.0,
            ),
            "prediction": PredictionParams(flip=False, zoom=0.0),
        }
    )


def main(
    photos: Path,
    fold: int,
    side: Annotated[int, typer.Option()],
    epochs: Annotated[int, typer.Option()],
    freeze: Annotated[str, typer.Option()],
    views: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train one fold of PHOTOS (path, label, fold)."""
    measure(lambda mark: train(photos, fold, side, epochs, freeze, views, mark))


if __name__ == "__main__":
    typer.run(main)
