"""Predictions for the evaluation photos by the networks of all folds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from face_attributes.networks.build import build
from face_attributes.networks.recipe import make_recipe
from face_attributes.networks.views import normalise
from face_attributes.networks.weight_files import write_weights
from face_attributes.params import read_params
from face_attributes.photos.packed import write_packed
from face_attributes.photos.tables import PROBABILITIES
from stages import predict
from tests.conftest import Change, Run

SIDE = 32


def test_predictions_are_the_calibrated_mean_of_the_folds_in_the_order_of_info(
    run: Run, change: Change
) -> None:
    values = {
        "folds.index": [0, 1], "crop.side": SIDE, "weights.model": "resnet18",
        "train.precision": "fp32", "train.heads": "joint", "train.prediction.flip": False,
        "train.prediction.zoom": 0.0, "predict.tau": 0.0,
    }  # fmt: skip
    for key, value in values.items():
        change(key, value)
    networks = [build("resnet18", SIDE, "joint", seed=fold) for fold in range(2)]
    for fold, network in enumerate(networks):
        path = Path(f"data/train/fold{fold}/network.safetensors")
        recipe = make_recipe(read_params(), None, temperature=0.5 + fold)
        write_weights(path, network.state_dict(), recipe)
    crops = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8)
    write_packed(Path("crop/evaluation"), crops[:2], 2, SIDE)
    write_packed(Path("crop/train"), crops[2:], 4, SIDE)
    rows = "photo,path,rejected\nz.jpg,z,\nbroken.jpg,b,truncated\na.jpg,a,\n"
    Path("evaluation.csv").write_text(rows)
    folds = "p,x,7,0\np,y,7,1\n0,h,3,-1\n0,i,4,-1\n"
    Path("folds.csv").write_text("person,photo,label,fold\n" + folds)
    inputs = ["data/train", "crop", "evaluation.csv", "folds.csv"]
    run(predict.main, *inputs, "out", "submission.csv")

    with torch.inference_mode():
        images = normalise(torch.from_numpy(crops))
        first, second = (network.eval()(images) for network in networks)
        expected = ((first / 0.5 + second / 1.5) / 2).softmax(1)
    probabilities = pd.read_csv("out/probabilities.csv")
    assert probabilities["photo"].to_list() == ["z.jpg", "a.jpg"], "broken: none"
    assert probabilities[PROBABILITIES].to_numpy() == pytest.approx(expected[:2].numpy(), abs=1e-4)
    submission = pd.read_csv("submission.csv")
    assert list(submission) == ["ImageID", "ans"]
    assert submission["ImageID"].to_list() == ["z.jpg", "broken.jpg", "a.jpg"]
    first, second = expected[:2].argmax(1).tolist()
    assert submission["ans"].to_list() == [first, 7, second], "broken: the most common class"

    holdout = pd.read_csv("out/holdout.csv", dtype={"person": str})
    assert list(holdout) == ["person", "photo", "fold", "label", *PROBABILITIES]
    assert holdout.iloc[:, :4].to_numpy().tolist() == [["0", "h", -1, 3], ["0", "i", -1, 4]]
    assert holdout[PROBABILITIES].to_numpy() == pytest.approx(expected[4:].numpy(), abs=1e-4)
