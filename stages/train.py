"""Train: the network of one fold, on the other folds' photos; its score, on its own.

    python -m stages.train 0 data/crop/train.npy data/folds/folds.csv \\
        data/weights/initial.safetensors data/train/fold0

Writes to the output folder:

- `network.safetensors`: the weights of the best epoch
- `out_of_fold.csv`: person, photo, fold, label and the probabilities p0 to p17 of the fold's photos
- `history.csv`: losses and scores, a row an epoch
- `metrics.json`: the epoch kept, training and validation scores, parameters
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from stages.command import stage_command
from stages.files import write_json, write_table
from stages.learning.device import be_deterministic, choose_device, choose_dtype, predict_logits
from stages.learning.fit import Photos, evaluate, fit
from stages.learning.network import build, count_parameters, freeze
from stages.learning.weight_files import load_network, write_weights
from stages.params import read_params
from stages.photos.packed import Pixels, read_packed
from stages.photos.tables import probability_table, read_stage_table


def take(
    crops: Pixels, folds: pd.DataFrame, rows: "pd.Series[bool]", device: torch.device
) -> Photos:
    """The chosen rows of the packed crops and their labels, on the device."""
    chosen = rows.to_numpy().nonzero()[0]
    return Photos(
        torch.from_numpy(crops[chosen]).to(device),
        torch.from_numpy(folds["label"].to_numpy()[chosen].copy()).to(device),
    )


@stage_command
def main(
    fold: Annotated[int, typer.Argument(help="Which fold to hold out")],
    crops: Annotated[Path, typer.Argument(help="Packed crops of the training photos")],
    folds: Annotated[Path, typer.Argument(help="Table of folds")],
    initial: Annotated[Path, typer.Argument(help="Weights to start from")],
    out: Annotated[Path, typer.Argument(help="Folder to write to")],
) -> None:
    """Train on all folds but FOLD, and predict FOLD."""
    params = read_params()
    device = choose_device(params.train.device, "train.device")
    dtype = choose_dtype(params.train.precision, device)
    be_deterministic()

    table = read_stage_table(folds)
    pixels = read_packed(crops)
    held_out = table["fold"] == fold
    training = take(pixels, table, ~held_out, device)
    validation = take(pixels, table, held_out, device)

    network = build(params.weights.model, pixels.shape[1])
    load_network(network, initial)
    freeze(network, params.train.freeze)
    network.to(memory_format=torch.channels_last).to(device)
    size = count_parameters(network)
    print(
        f"train fold {fold}: {len(training)} photos, {len(validation)} held out, "
        f"{params.weights.model} frozen to {params.train.freeze}: {size['trainable']:,} of "
        f"{sum(size.values()):,} parameters train, on {device} in {dtype}"
    )
    fitted = fit(
        network,
        training,
        validation,
        params.train,
        dtype,
        params.train.seed + fold,
        report=lambda line: print(f"fold {fold} {line}", flush=True),
    )

    logits = predict_logits(network, validation.pixels, params.train.batch_size, device, dtype)
    probabilities = logits.softmax(dim=1).numpy()
    scores = {
        name: evaluate(network, photos, params.train.batch_size, dtype)
        for name, photos in {"train": training, "validation": validation}.items()
    }
    write_weights(out / "network.safetensors", fitted.state)
    write_table(
        out / "out_of_fold.csv",
        probability_table(table[held_out][["person", "photo", "fold", "label"]], probabilities),
        float_format="%.6g",
    )
    write_table(out / "history.csv", pd.DataFrame(fitted.history), float_format="%.6f")
    epochs = {"kept": fitted.epoch, "run": len(fitted.history)}
    write_json(out / "metrics.json", {"epoch": epochs, **scores, "parameters": size})
    print(
        f"train fold {fold}: macro F1 {scores['validation']['macro_f1']:.3f} "
        f"(training {scores['train']['macro_f1']:.3f}), epoch {fitted.epoch + 1} kept"
    )


if __name__ == "__main__":
    main()
