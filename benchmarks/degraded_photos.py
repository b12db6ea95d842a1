"""Score a finished run on degraded photos: how robust are its networks to bad cameras?

    python -m benchmarks.degraded_photos                # out-of-fold photos
    python -m benchmarks.degraded_photos --evaluation   # evaluation photos, by the ensemble

Pillow degrades each crop in a fixed way, the same for every run, independently of the code that
augments photos for training. An out-of-fold photo is scored by the network that was not trained on
its person. The crops are cut from undegraded photos, so the face detector is not tested.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter
from rich.console import Console
from rich.table import Table
from torch import Tensor

from face_attributes.command import user_command
from face_attributes.errors import UserError
from face_attributes.inference.ensemble import ensemble_probabilities, read_networks
from face_attributes.networks.device import prepare_hardware
from face_attributes.params import read_params
from face_attributes.photos.packed import read_packed
from face_attributes.photos.tables import HOLDOUT, read_stage_table, read_text_table
from face_attributes.scoring.metrics import accuracy, attribute_counts, confusion, macro_f1
from face_attributes.scoring.out_of_fold import fold_folders

GENERATOR_SEED = 0
DEVIATION = 20.0
"""Standard deviation of the noise, of 255."""


def jpeg(photo: Image.Image) -> Image.Image:
    """Compress as JPEG with quality 30."""
    file = BytesIO()
    photo.save(file, "JPEG", quality=30)
    return Image.open(file)


def noise(photo: Image.Image) -> Image.Image:
    """Add the same noise to every photo."""
    pixels = np.asarray(photo)
    grain = np.random.default_rng(GENERATOR_SEED).normal(0, DEVIATION, pixels.shape)
    return Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))


def low_resolution(photo: Image.Image) -> Image.Image:
    """Reduce to a third of the side, and enlarge again."""
    return photo.resize((photo.width // 3, photo.height // 3)).resize(photo.size)


def hand(photo: Image.Image) -> Image.Image:
    """Cover a cheek and half of the mouth with a skin-coloured ellipse."""
    covered, side = photo.copy(), photo.width
    box = (0.5 * side, 0.55 * side, 0.75 * side, 1.1 * side)
    ImageDraw.Draw(covered).ellipse(box, fill=(190, 140, 110))
    return covered


DEGRADATIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "none": lambda photo: photo,
    "blur": lambda photo: photo.filter(ImageFilter.GaussianBlur(photo.width / 48)),
    "JPEG, quality 30": jpeg,
    "noise": noise,
    "dark": lambda photo: ImageEnhance.Brightness(photo).enhance(0.4),
    "low resolution": low_resolution,
    "hand": hand,
}


def degrade(pixels: Tensor, degradation: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Degrade crops (N x S x S x 3, uint8)."""
    photos = [np.asarray(degradation(Image.fromarray(crop))) for crop in pixels.numpy()]
    return torch.from_numpy(np.stack(photos))


@user_command
def main(
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="Score the evaluation photos that have answers")
    ] = False,
) -> None:
    """Print the scores of a finished run for each degradation."""
    params = read_params()
    hardware = prepare_hardware(params.train.device, params.train.precision)
    folders = fold_folders(Path("data/train"), params.folds.index)
    networks, recipes = read_networks([each / "network.safetensors" for each in folders], hardware)
    if evaluation:
        answers = read_text_table(Path(params.data.answers), ["ImageID", "ans"])
        photos = read_stage_table(Path("data/crop/evaluation.csv"))["photo"]
        given = photos.map(dict(zip(answers["ImageID"], answers["ans"], strict=True)))
        rows = np.flatnonzero(given.notna())
        if not len(rows):
            raise UserError(f"{params.data.answers} has no answer for any evaluation photo")
        labels = given.iloc[rows].astype(int).to_numpy()
        pixels = torch.from_numpy(read_packed(Path("data/crop/evaluation"))[rows])
        parts = [(networks, recipes, np.arange(len(rows)))]
    else:
        table = read_stage_table(Path("data/folds/folds.csv"))
        rows = np.flatnonzero(table["fold"] != HOLDOUT)
        labels, folds = (table[column].to_numpy()[rows] for column in ("label", "fold"))
        pixels = torch.from_numpy(read_packed(Path("data/crop/train"))[rows])
        parts = [
            ([network], [recipe], np.flatnonzero(folds == fold))
            for fold, network, recipe in zip(params.folds.index, networks, recipes, strict=True)
        ]
    shown = Table(
        "degradation", "mask accuracy", "accuracy", "macro F1", title=f"{len(labels)} photos"
    )
    for name, degradation in DEGRADATIONS.items():
        degraded = degrade(pixels, degradation)
        predicted = np.zeros(len(labels), dtype=int)
        for members, their_recipes, own in parts:
            batch = params.predict.batch_size
            each = ensemble_probabilities(
                members, degraded.numpy(), their_recipes, hardware, batch, rows=own
            )
            predicted[own] = each.argmax(axis=1)
        counts = confusion(labels, predicted)
        scores = accuracy(attribute_counts(counts, "mask")), accuracy(counts), macro_f1(counts)
        shown.add_row(name, *(f"{score:.3f}" for score in scores))
    Console().print(shown)


if __name__ == "__main__":
    main()
