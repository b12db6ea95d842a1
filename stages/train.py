"""Train: the network of one fold, on the other folds' photos; its score, on its own.

    python -m stages.train 0 data/crop data/folds/folds.csv \\
        data/weights/initial.safetensors data/train/fold0

Writes to the output folder:

- `network.safetensors`: the weights of the best epoch, and how to use them
- `out_of_fold.csv`: person, photo, fold, label and the probabilities p0 to p17 of the fold's photos
- `history.csv`: losses and scores, a row an epoch
- `metrics.json`: the epoch kept, training and validation scores, parameters
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

from stages.command import stage_command
from stages.errors import UserError
from stages.files import sha256, write_json, write_table
from stages.learning.checkpoint import Checkpoint
from stages.learning.device import Hardware, be_deterministic, choose_hardware, keep_memory
from stages.learning.feature_store import FeatureStore, project_folder
from stages.learning.fingerprint import fingerprint
from stages.learning.fit import fit, score
from stages.learning.inputs import Photos, keep_zoomed, prepare
from stages.learning.network import build, count_parameters, freeze
from stages.learning.recipe import Recipe
from stages.learning.weight_files import load_network, write_weights
from stages.params import Params, TrainParams, read_params
from stages.photos.labels import AGE_GROUPS, CLASSES, YEARS
from stages.photos.packed import read_packed
from stages.photos.tables import probability_table, read_stage_table

STAGES = Path(__file__).parent
CODE = [
    Path(__file__),
    *sorted((STAGES / "learning").glob("*.py")),
    STAGES / "scoring/metrics.py",
]
"""What a checkpoint depends on beside data and parameters."""


def end_on_interrupt(fold: int) -> None:
    """End at once on Ctrl-C, even within a long step; what is on disk is whole at any moment."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    # A socket, since any of the libraries' threads may get the signal, and the main one be busy.
    told, telling = socket.socketpair()
    telling.setblocking(False)
    signal.set_wakeup_fd(telling.detach())
    signal.signal(signal.SIGINT, lambda *_: None)

    def end() -> None:
        while signal.SIGINT not in told.recv(1):
            pass
        print(
            f"\nstopped: the finished epochs of fold {fold} are kept, and so are finished folds; "
            "`dvc repro` goes on from there",
            flush=True,
        )
        os._exit(130)

    threading.Thread(target=end, daemon=True).start()


def hold_photos(crops: Path, labels: "pd.Series[int]", hardware: Hardware) -> Photos:
    """All photos of the packed crops and their labels, on the device where they fit."""
    return Photos(
        hardware.hold(torch.from_numpy(np.array(read_packed(crops)))),
        torch.from_numpy(labels.to_numpy(copy=True)).to(hardware.device),
        sha256(crops),
    )


def photos_of(table: pd.DataFrame, fold: int) -> "pd.Series[bool]":
    """Which photos of the table of folds are held out.

    Raises:
        UserError: if there is no such fold.
    """
    held_out = table["fold"] == fold
    if not held_out.any():
        there = ", ".join(map(str, sorted(table["fold"].unique())))
        raise UserError(f"there is no fold {fold}: the folds are {there}")
    return held_out


def labels_to_learn(table: pd.DataFrame, old_from: int, edges: Sequence[int]) -> "pd.Series[int]":
    """Labels for training, in which people of the middle group are old from `old_from` on.

    Raises:
        UserError: if that is not an age of the middle group, or the one at which the last begins.
    """
    middle, last = edges
    if not middle < old_from <= last:
        raise UserError(
            f"train.old_from: {old_from} must be above {middle} and not above {last}, the ages in "
            "labels.age_edges"
        )
    return table["label"] + table["age"].between(old_from, last - 1)


def shares_by_age(
    ages: "pd.Series[int]", edges: Sequence[int], softness: float
) -> NDArray[np.float64]:
    """How much a photo is of each of the groups that begin at `edges`, and of the one before them.

    A person's age is taken for a normal distribution around the given one, with a standard
    deviation of `softness` years: a person of 59 looks much the same as one of 60 (label
    distribution learning, Gao et al., TIP 2017). With 0 all is of the one group.

    Returns:
        N x (number of edges + 1), rows that sum to 1.
    """
    # The edge is between two ages in years: who is 59 is below 59.5, who is 60 above it.
    distances = np.subtract(edges, 0.5) - ages.to_numpy()[:, None]
    if softness:
        below = torch.special.ndtr(torch.from_numpy(distances / softness)).numpy()
    else:
        below = (distances > 0).astype(float)
    return np.diff(below, prepend=0, append=1)


def targets_to_learn(
    labels: "pd.Series[int]", ages: "pd.Series[int]", edges: Sequence[int], params: TrainParams
) -> Tensor:
    """Shares of the classes of each photo (N x 18, float32), as the network is to learn them.

    With `heads: ages` those of the ages in years come after them (N x (18 + 121)).

    Args:
        labels: of which mask and gender are taken; the age group is that of `ages`.
        edges: ages at which the second and the third group begin, for training.
    """
    of_face = np.eye(CLASSES // AGE_GROUPS)[labels.to_numpy() // AGE_GROUPS]
    of_group = shares_by_age(ages, edges, params.age_softness)
    targets = (of_face[:, :, None] * of_group[:, None, :]).reshape(-1, CLASSES)
    if params.heads == "ages":
        of_year = shares_by_age(ages, range(1, YEARS), params.age_softness)
        targets = np.concatenate([targets, of_year], axis=1)
    return torch.from_numpy(targets).float()


def check_classes(labels: "pd.Series[int]", fold: int) -> None:
    """Every class must have a photo to learn from.

    Raises:
        UserError: naming the classes without one.
    """
    missing = sorted(set(range(CLASSES)) - set(labels))
    if missing:
        raise UserError(
            f"fold {fold}: the training part has no photo of class {', '.join(map(str, missing))}: "
            "take more folds, or add people"
        )


def check_together(params: TrainParams) -> None:
    """Some knobs do not go together.

    Raises:
        UserError: naming two such knobs, and what to set.
    """
    if params.heads == "ages" and params.loss != "cross_entropy":
        raise UserError(
            f"train.loss: {params.loss} weighs classes, which the ages in years that train.heads: "
            "ages learns would undo: set train.loss to cross_entropy, or train.heads to split"
        )
    if params.cached_views and params.mix != "none":
        raise UserError(
            f"train.mix: {params.mix} mixes other photos in each epoch, which cannot be cached: "
            "set train.cached_views to 0, or train.mix to none"
        )


def recipe_of(params: Params, fallback: Path) -> Recipe:
    """How the networks of this run are used; `fallback` is what the stage `crop` wrote."""
    return Recipe(
        model=params.weights.model,
        heads=params.train.heads,
        flip_at_test=params.train.flip_at_test,
        zoom_at_test=params.train.zoom_at_test,
        age_edges=params.labels.age_edges,
        crop=params.crop,
        fallback=json.loads(fallback.read_text(encoding="utf-8"))["box"],
    )


@stage_command
def main(
    fold: Annotated[int, typer.Argument(help="Which fold to hold out")],
    crop: Annotated[Path, typer.Argument(help="Folder of the packed crops")],
    folds: Annotated[Path, typer.Argument(help="Table of folds")],
    initial: Annotated[Path, typer.Argument(help="Weights to start from")],
    out: Annotated[Path, typer.Argument(help="Folder to write to")],
) -> None:
    """Train on all folds but FOLD, and predict FOLD."""
    start = time.perf_counter()
    end_on_interrupt(fold)
    params = read_params()
    hardware = choose_hardware(params.train.device, params.train.precision, "train.device")
    be_deterministic()
    keep_memory()

    table = read_stage_table(folds)
    held_out = photos_of(table, fold)
    photos = hold_photos(crop / "train.npy", table["label"], hardware)
    training, validation = (
        torch.from_numpy(rows.to_numpy().nonzero()[0]).to(hardware.device)
        for rows in (~held_out, held_out)
    )

    to_learn = labels_to_learn(table, params.train.old_from, params.labels.age_edges)
    check_classes(to_learn[~held_out], fold)
    check_together(params.train)
    edges = (params.labels.age_edges[0], params.train.old_from)
    targets = targets_to_learn(table["label"], table["age"], edges, params.train)
    if params.train.cached_views and params.train.freeze == "none":
        print("train.cached_views: nothing is frozen, so that photos are augmented in each epoch")
    if params.train.batch_size > len(training):
        print(
            f"train.batch_size: {params.train.batch_size} is more than the {len(training)} photos: "
            "one batch an epoch"
        )

    network = build(
        params.weights.model,
        photos.pixels.shape[1],
        params.train.heads,
        age_edges=params.labels.age_edges,
    )
    load_network(network, initial)
    network.to(memory_format=torch.channels_last).to(hardware.device)
    freeze(network, params.train.freeze)
    size = count_parameters(network)
    print(
        f"train fold {fold}: {len(training)} photos, {len(validation)} held out, "
        f"{params.weights.model} frozen to {params.train.freeze}: {size['trainable']:,} of "
        f"{size['total']:,} parameters train, on {hardware.device} in {hardware.dtype}"
    )
    store = FeatureStore(project_folder() / ".cache/features", int(params.train.cache_gb * 1e9))
    facts = (
        fold,
        params.train,
        params.labels.age_edges,
        params.weights.model,
        photos.sha256,
        sha256(folds),
    )
    checkpoint = Checkpoint(
        Path(f".cache/checkpoints/fold{fold}.checkpoint"),
        fingerprint(facts, network.state_dict(), CODE, hardware),
    )
    with checkpoint.alone():
        fitted = fit(
            network,
            partial(prepare, photos=photos, params=params.train, hardware=hardware, store=store),
            training,
            validation,
            targets.to(hardware.device),
            params.train,
            params.train.seed + fold,
            checkpoint,
            report=lambda line: print(f"fold {fold} {line}", flush=True),
        )

    # Zoomed views are for these predictions alone: they would cost an epoch more than they tell it.
    inputs = keep_zoomed(fitted.inputs, store)
    predicted = inputs.predict(validation, zoomed=True)
    scores = {
        "train": score(inputs.predict(training, zoomed=True), photos.labels[training].cpu()),
        "validation": score(predicted, photos.labels[validation].cpu()),
    }
    recipe = recipe_of(params, crop / "fallback.json")
    write_weights(out / "network.safetensors", network.state_dict(), recipe)
    write_table(
        out / "out_of_fold.csv",
        probability_table(
            table[held_out][["person", "photo", "fold", "label"]], predicted.exp().numpy()
        ),
        float_format="%.6g",
    )
    write_table(out / "history.csv", pd.DataFrame(fitted.history), float_format="%.6f")
    epochs = {"kept": fitted.epoch, "run": len(fitted.history)}
    write_json(out / "metrics.json", {"epoch": epochs, **scores, "parameters": size})
    checkpoint.delete()
    print(
        f"train fold {fold}: macro F1 {scores['validation']['macro_f1']:.3f} "
        f"(training {scores['train']['macro_f1']:.3f}), epoch {fitted.epoch + 1} kept, "
        f"{time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    main()
