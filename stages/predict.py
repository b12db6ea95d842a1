"""Predict: labels for the photos without any, by all the folds' networks together.

    python -m stages.predict data/train data/crop/evaluation.npy data/clean/evaluation.csv \\
        data/folds/folds.csv data/predict/probabilities.csv data/submission.csv

Writes the probabilities (photo, p0 to p17: the mean over the folds) and the submission (ImageID,
ans), which has a row for each row of info.csv, in its order. A photo that could not be read gets
the training set's most common class.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from stages.command import stage_command
from stages.files import write_table
from stages.learning.device import be_deterministic, choose_hardware, normalise
from stages.learning.network import build
from stages.learning.weight_files import load_network
from stages.params import Params, read_params
from stages.photos.packed import read_packed
from stages.photos.tables import PROBABILITIES, probability_table, read_stage_table
from stages.progress import progress
from stages.scoring.out_of_fold import fold_folders, read_out_of_fold, remove_stale_folds
from stages.scoring.tau import adjusted, choose_tau, class_prior

Probabilities = NDArray[np.float32]


def mean_probabilities(networks: list[Path], crops: Path, params: Params) -> Probabilities:
    """Mean over the networks of their softmax outputs for all crops (N x 18)."""
    hardware = choose_hardware(params.predict.device, params.predict.precision, "predict.device")
    pixels = torch.from_numpy(np.array(read_packed(crops)))
    network = (
        build(params.weights.model, pixels.shape[1], params.train.heads)
        .to(memory_format=torch.channels_last)
        .to(hardware.device)
        .eval()
    )
    views = 1 + params.train.flip_at_test
    total = torch.zeros(len(pixels), len(PROBABILITIES))
    for path in progress(networks, len(networks), "predict: folds"):
        load_network(network, path)
        for mirrored in range(views):
            logits = [torch.empty(0, len(PROBABILITIES))]
            for batch in pixels.split(params.predict.batch_size):
                images = normalise((batch.flip(2) if mirrored else batch).to(hardware.device))
                with torch.inference_mode(), hardware.autocast():
                    logits.append(network(images).float().cpu())
            total += torch.cat(logits).softmax(dim=1)
    mean: Probabilities = (total / (views * len(networks))).numpy()
    return mean


@stage_command
def main(
    results: Path, crops: Path, photos: Path, folds: Path, out: Path, submission: Path
) -> None:
    """Average the networks in RESULTS over CROPS; write OUT and SUBMISSION."""
    params = read_params()
    be_deterministic()
    asked = read_stage_table(photos)
    readable = (asked["rejected"] == "").to_numpy()
    labels = read_stage_table(folds)["label"].to_numpy()

    remove_stale_folds(results, params.folds.index)
    networks = [
        folder / "network.safetensors" for folder in fold_folders(results, params.folds.index)
    ]
    prior = class_prior(labels)
    probabilities = np.tile(prior.astype(np.float32), (len(asked), 1))
    probabilities[readable] = mean_probabilities(networks, crops, params)

    write_table(out, probability_table(asked[["photo"]], probabilities), float_format="%.6g")
    tau = params.predict.tau
    if tau == "auto":
        known = read_out_of_fold(results, params.folds.index)
        tau = choose_tau(known[PROBABILITIES].to_numpy(), known["label"].to_numpy())
    answers = np.where(readable, adjusted(probabilities, prior, tau), prior.argmax())
    write_table(submission, pd.DataFrame({"ImageID": asked["photo"], "ans": answers}))
    print(f"predict: {len(asked)} photos by {len(networks)} networks, tau {tau:g} -> {submission}")
    if not readable.all():
        print(f"predict: {(~readable).sum()} of them cannot be read: given the most common class")


if __name__ == "__main__":
    main()
