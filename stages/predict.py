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

from stages.command import stage_command
from stages.files import write_table
from stages.learning.device import be_deterministic, choose_hardware, keep_memory
from stages.learning.ensemble import mean_probabilities, read_networks
from stages.params import read_params
from stages.photos.packed import read_packed
from stages.photos.tables import PROBABILITIES, probability_table, read_stage_table
from stages.scoring.out_of_fold import fold_folders, read_out_of_fold, remove_stale_folds
from stages.scoring.tau import adjusted, choose_tau, class_prior


@stage_command
def main(
    results: Path, crops: Path, photos: Path, folds: Path, out: Path, submission: Path
) -> None:
    """Average the networks in RESULTS over CROPS; write OUT and SUBMISSION."""
    params = read_params()
    be_deterministic()
    keep_memory()
    asked = read_stage_table(photos)
    readable = (asked["rejected"] == "").to_numpy()
    labels = read_stage_table(folds)["label"].to_numpy()

    remove_stale_folds(results, params.folds.index)
    hardware = choose_hardware(params.predict.device, params.predict.precision, "predict.device")
    networks, recipe = read_networks(
        [folder / "network.safetensors" for folder in fold_folders(results, params.folds.index)],
        hardware,
    )
    pixels = torch.from_numpy(np.array(read_packed(crops)))
    prior = class_prior(labels)
    probabilities = np.tile(prior.astype(np.float32), (len(asked), 1))
    probabilities[readable] = mean_probabilities(
        networks, pixels, recipe, hardware, params.predict.batch_size
    )

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
