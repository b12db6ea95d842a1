"""This project's training of one fold, with the same arguments as the reference loop.

    python -m benchmarks.ours photos.csv FOLD --side 128 --epochs 10 --freeze layer3 --views 4

The crops are packed by the first process that wants them, which counts as part of its work.
Features are kept in the folder of the table, for the folds that follow.
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

from benchmarks.measuring import BATCH, BRIGHTNESS, FLIP, SHIFT, measured
from stages.faces.boxes import CENTRE
from stages.faces.cut import cut
from stages.learning.checkpoint import Checkpoint
from stages.learning.device import be_deterministic, choose_hardware, keep_memory
from stages.learning.feature_store import FeatureStore
from stages.learning.fit import fit
from stages.learning.inputs import prepare
from stages.learning.network import build
from stages.params import CropParams, read_params
from stages.photos.labels import CLASSES
from stages.photos.opening import open_photo
from stages.photos.packed import Pixels, write_packed
from stages.train import hold_photos


def crop(path: str, params: CropParams) -> Pixels:
    """The square middle of a photo, as the reference takes it."""
    return cut(open_photo(Path(path)), CENTRE, params)


def train(
    table: Path,
    fold: int,
    side: int,
    epochs: int,
    freeze: str,
    views: int,
    mark: Callable[[], None],
) -> None:
    """Pack the crops, if that is not done, and train on all folds but one."""
    params = read_params()
    photos = pd.read_csv(table)
    crops = table.with_name(f"{table.stem}{side}.npy")
    if not crops.exists():
        middle = partial(crop, params=params.crop.model_copy(update={"side": side}))
        with ProcessPoolExecutor() as pool:
            write_packed(crops, pool.map(middle, photos["path"], chunksize=16), len(photos), side)
    be_deterministic()
    keep_memory()
    knobs = params.train.model_copy(
        update={
            "freeze": freeze, "cached_views": views, "epochs": epochs, "patience": epochs,
            "batch_size": BATCH, "head_lr": 1e-3, "backbone_lr": 1e-3, "lr_decay": 1.0,
            "head_epochs": 0, "unfreeze_every": 0, "optimizer": "adamw", "loss": "cross_entropy",
            "label_smoothing": 0.1, "sampler": "as_is", "mix": "none",
            "shift": SHIFT, "flip": FLIP, "brightness": BRIGHTNESS, "rotation": 0.0, "zoom": 0.0,
            "erasing": 0.0, "flip_at_test": False, "ema": 0.0,
        }
    )  # fmt: skip
    hardware = choose_hardware(knobs.device, knobs.precision, "train.device")
    held = hold_photos(crops, photos["label"], hardware)
    network = build("resnet18", side).to(memory_format=torch.channels_last).to(hardware.device)
    places = torch.arange(len(photos), device=hardware.device)
    held_out = torch.from_numpy((photos["fold"] == fold).to_numpy(copy=True)).to(hardware.device)
    store = FeatureStore(table.parent / "features", int(knobs.cache_gb * 1e9))
    mark()
    fit(
        network,
        partial(prepare, photos=held, params=knobs, hardware=hardware, store=store),
        places[~held_out],
        places[held_out],
        functional.one_hot(held.labels, CLASSES).float(),
        knobs,
        seed=fold,
        checkpoint=Checkpoint(table.with_name(f"fold{fold}.checkpoint"), f"{fold} {knobs}"),
        report=lambda _: mark(),
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
    measured(lambda mark: train(photos, fold, side, epochs, freeze, views, mark))


if __name__ == "__main__":
    typer.run(main)
