"""Train: fit a network to all folds but one, and score it on that fold.

    python -m stages.train 0 data/crop data/folds/folds.csv \\
        data/weights/initial.safetensors data/train/fold0

Writes to the output folder:

- `network.safetensors`: the weights of the best epoch, and their recipe, with the temperature that
  calibrates the network on the held-out photos
- `out_of_fold.csv`: person, photo, fold, label and probabilities p0 to p17 of the held-out photos,
  uncalibrated: the temperature was fitted to their labels
- `history.csv`: losses and scores, one row per epoch
- `metrics.json`: the best epoch, training and validation scores, number of parameters; training
  photos are scored without the views of `train.prediction.zoom`, which would triple the work

`torchrun --nproc-per-node 2 -m stages.train ...` trains a fold on two GPUs (without GPUs: in two
processes). The first process writes.
"""

import contextlib
import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from torch import Tensor, nn

from face_attributes.command import stage_command
from face_attributes.errors import UserError
from face_attributes.files import read_json, sha256, write_json, write_table
from face_attributes.networks.build import build
from face_attributes.networks.device import Hardware, prepare_hardware
from face_attributes.networks.freezing import count_parameters, freeze
from face_attributes.networks.recipe import make_recipe
from face_attributes.networks.weight_files import load_network, write_weights
from face_attributes.params import Params, read_params
from face_attributes.photos.tables import (
    HOLDOUT,
    PROBABILITIES,
    probability_table,
    read_stage_table,
)
from face_attributes.scoring.temperature import fit_temperature
from face_attributes.training.checkpoint import Checkpoint
from face_attributes.training.data_parallel import process_group, processes, rank
from face_attributes.training.feature_store import open_store
from face_attributes.training.fingerprint import fingerprint
from face_attributes.training.inputs import load_photos, prepare_inputs
from face_attributes.training.loop import FitResult, Fold, evaluate, fit, score
from face_attributes.training.targets import check_classes, make_targets, training_edges


def held_out_mask(table: pd.DataFrame, fold: int) -> "pd.Series[bool]":
    """Mask of the held-out photos in the table of folds.

    Raises:
        UserError: if there is no such fold.
    """
    mask = table["fold"] == fold
    if fold == HOLDOUT or not mask.any():
        folds = ", ".join(map(str, sorted(set(table["fold"]) - {HOLDOUT})))
        raise UserError(f"there is no fold {fold}: the folds are {folds}")
    return mask


def make_fold(table: pd.DataFrame, number: int, params: Params, device: torch.device) -> Fold:
    """Make the training and validation data of a fold from the table of folds.

    The holdout is in neither.

    Raises:
        UserError: if there is no such fold, or a class has no training photo.
    """
    held_out = held_out_mask(table, number)
    trained_on = ~held_out & (table["fold"] != HOLDOUT)
    train = params.train
    edges = training_edges(params.labels.age_edges, train.targets.old_from, train.heads)
    targets = make_targets(table["label"], table["age"], edges, train.heads, train.targets)
    training, validation = (
        torch.from_numpy(mask.to_numpy().nonzero()[0]) for mask in (trained_on, held_out)
    )
    check_classes(targets[training], number)
    return Fold(number, training.to(device), validation.to(device), targets.to(device))


def initial_network(params: Params, initial: Path, hardware: Hardware) -> nn.Module:
    """Build the network with its initial weights on the device, and freeze it."""
    network = build(
        params.weights.model,
        params.crop.side,
        params.train.heads,
        age_edges=params.labels.age_edges,
    )
    load_network(network, initial)
    network.to(memory_format=torch.channels_last).to(hardware.device)
    freeze(network, params.train.freeze)
    return network


def announce(params: Params, fold: Fold, parameters: dict[str, int], hardware: Hardware) -> None:
    """Print what is trained, and which parameters have no effect."""
    train, photos = params.train, len(fold.training)
    if train.cached_views and train.freeze == "none" and not train.optimizer.head_epochs:
        print(
            "train.cached_views has no effect with train.freeze: none, which has nothing to cache"
        )
    if train.batch_size > photos:
        print(
            f"train.batch_size: {train.batch_size} exceeds the {photos} photos: one batch per epoch"
        )
    if hardware.device.type == "cpu" and hardware.dtype == torch.float16:
        print("train.precision: fp16 is for GPUs, and very slow on a CPU: auto is faster")
    print(
        f"train fold {fold.number}: {photos} photos, {len(fold.validation)} held out, "
        f"{params.weights.model} frozen up to {train.freeze}: {parameters['trainable']:,} of "
        f"{parameters['total']:,} parameters train, on {hardware.device} in {hardware.dtype}"
        + (f", in {processes()} processes" if processes() > 1 else "")
    )


def out_of_fold_table(table: pd.DataFrame, fold: Fold, predicted: Tensor) -> pd.DataFrame:
    """Make the table of probabilities from log-probabilities of the held-out photos (V x 18)."""
    held_out = table.iloc[fold.validation.tolist()][["person", "photo", "fold", "label"]]
    return probability_table(held_out, predicted.exp().numpy())


def make_metrics(
    result: FitResult, fold: Fold, predicted: Tensor, parameters: dict[str, int]
) -> dict[str, Any]:
    """Make metrics.json from log-probabilities of the held-out photos (V x 18)."""
    labels = result.inputs.photos.labels[fold.validation].cpu()
    return {
        "epoch": {"kept": result.epoch, "run": len(result.history)},
        "train": evaluate(result.inputs, fold.training),
        "validation": score(predicted, labels),
        "parameters": parameters,
    }


def check_predictions(metrics: dict[str, Any], hardware: Hardware) -> None:
    """Stop if a photo has no prediction, as beyond the range of float16.

    Raises:
        UserError: naming the photos, and what to do.
    """
    for photos in ("train", "validation"):
        if not math.isfinite(metrics[photos]["loss"]):
            raise UserError(
                f"the network's outputs for the {photos} photos are not finite in "
                f"{hardware.dtype}: set train.precision to bf16 or fp32"
            )


@partial(stage_command, in_group=True)
@process_group()
def main(
    number: Annotated[int, typer.Argument(metavar="FOLD", help="Fold to hold out")],
    crop: Annotated[Path, typer.Argument(help="Folder of the packed crops")],
    folds: Annotated[Path, typer.Argument(help="Table of folds")],
    initial: Annotated[Path, typer.Argument(help="Initial weights")],
    out: Annotated[Path, typer.Argument(help="Output folder")],
) -> None:
    """Train on all folds but FOLD, and predict FOLD."""
    start = time.perf_counter()
    params = read_params()
    train = params.train
    hardware = prepare_hardware(train.device, train.precision, rank=rank(), processes=processes())
    table = read_stage_table(folds)
    fold = make_fold(table, number, params, hardware.device)
    photos = load_photos(crop / "train", table["label"].to_numpy(), hardware)
    network = initial_network(params, initial, hardware)
    parameters = count_parameters(network)
    announce(params, fold, parameters, hardware)

    store = open_store(train.cache_gb)
    make_inputs = partial(
        prepare_inputs, photos=photos, params=train, hardware=hardware, store=store
    )
    data = (number, photos.sha256, sha256(folds), params.labels.age_edges, processes())
    checkpoint = Checkpoint(
        Path(f".cache/checkpoints/fold{number}.checkpoint"),
        fingerprint((data, train, params.weights.model), network.state_dict(), hardware),
    )
    with checkpoint.locked() if rank() == 0 else contextlib.nullcontext():
        report = partial(print, "fold", number, flush=True)
        scaler = hardware.loss_scaler()
        result = fit(network, fold, make_inputs, train, checkpoint, report, scaler)

    predicted = result.inputs.predict(fold.validation, train.prediction)
    metrics = make_metrics(result, fold, predicted, parameters)
    check_predictions(metrics, hardware)
    if rank() > 0:
        return
    probabilities = out_of_fold_table(table, fold, predicted)
    temperature = fit_temperature(
        probabilities[PROBABILITIES].to_numpy(float), probabilities["label"].to_numpy()
    )
    recipe = make_recipe(params, read_json(crop / "fallback.json")["box"], temperature)
    write_weights(out / "network.safetensors", network.state_dict(), recipe)
    write_table(out / "out_of_fold.csv", probabilities, float_format="%.6g")
    write_table(out / "history.csv", pd.DataFrame(result.history), float_format="%.6f")
    write_json(out / "metrics.json", metrics)
    checkpoint.delete()
    print(
        f"train fold {number}: macro F1 {metrics['validation']['macro_f1']:.3f} "
        f"(training {metrics['train']['macro_f1']:.3f}), epoch {result.epoch + 1} kept, "
        f"{time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
