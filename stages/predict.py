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
from stages.scoring.out_of_fold import fold_folders, remove_stale_folds

Probabilities = NDArray[np.float32]


def mean_probabilities(networks: list[Path], crops: Path, params: Params) -> Probabilities:
    """Mean over the networks of their softmax outputs for all crops (N x 18)."""
    hardware = choose_hardware(params.predict.device, params.predict.precision, "predict.device")
    pixels = torch.from_numpy(np.array(read_packed(crops)))
    network = (
        build(params.weights.model, pixels.shape[1])
        .to(memory_format=torch.channels_last)
        .to(hardware.device)
        .eval()
    )
    total = torch.zeros(len(pixels), len(PROBABILITIES))
    for path in progress(networks, len(networks), "predict: folds"):
        load_network(network, path)
        logits = [torch.empty(0, len(PROBABILITIES))]
        for batch in pixels.split(params.predict.batch_size):
            with torch.inference_mode(), hardware.autocast():
                logits.append(network(normalise(batch.to(hardware.device))).float().cpu())
        total += torch.cat(logits).softmax(dim=1)
    mean: Probabilities = (total / len(networks)).numpy()
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
    labels = read_stage_table(folds)["label"]

    remove_stale_folds(results, params.folds.index)
    networks = [
        folder / "network.safetensors" for folder in fold_folders(results, params.folds.index)
    ]
    shares = labels.value_counts(normalize=True).reindex(range(len(PROBABILITIES)), fill_value=0)
    probabilities = np.tile(shares.to_numpy(np.float32), (len(asked), 1))
    probabilities[readable] = mean_probabilities(networks, crops, params)

    write_table(out, probability_table(asked[["photo"]], probabilities), float_format="%.6g")
    answers = pd.DataFrame({"ImageID": asked["photo"], "ans": probabilities.argmax(axis=1)})
    write_table(submission, answers)
    print(f"predict: {len(asked)} photos by {len(networks)} networks -> {submission}")
    if not readable.all():
        print(f"predict: {(~readable).sum()} of them cannot be read: given the most common class")


if __name__ == "__main__":
    main()
