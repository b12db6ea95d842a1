"""The ensemble of the folds' networks: what one gets wrong, the others may get right."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from face_attributes.errors import UserError
from face_attributes.networks.build import build
from face_attributes.networks.device import Hardware, in_halves
from face_attributes.networks.recipe import Recipe
from face_attributes.networks.views import average_views, count_views, make_views, normalise
from face_attributes.networks.weight_files import load_network, read_recipe
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.packed import Crops
from face_attributes.progress import progress

Probabilities = NDArray[np.float32]


def read_networks(
    paths: Sequence[Path], hardware: Hardware
) -> tuple[list[nn.Module], list[Recipe]]:
    """Read the networks that the stage `train` wrote, ready to predict, and the recipe of each.

    Raises:
        UserError: if a file is missing, damaged, or its recipe differs from the first in more than
            the temperature.
    """
    recipes = [read_recipe(path) for path in paths]
    recipe = recipes[0]
    with torch.device("meta"):  # no initial weights: drawing them takes longer than reading
        empty = build(recipe.model, recipe.crop.side, recipe.heads, age_edges=recipe.age_edges)
    networks = []
    for path, other in zip(paths, recipes, strict=True):
        if other.model_copy(update={"temperature": recipe.temperature}) != recipe:
            raise UserError(
                f"{path} has another recipe than {paths[0]}: `dvc repro` writes both again"
            )
        network = copy.deepcopy(empty)
        load_network(network, path)
        networks.append(network.to(memory_format=torch.channels_last).to(hardware.device).eval())
    return networks, recipes


class Ensemble(nn.Module):
    """Several networks as one, from crops to calibrated probabilities: to predict and to export.

    The probabilities of a network are the mean over its views, at its own temperature. The
    ensemble's are their normalised geometric mean: the arithmetic mean of calibrated probabilities
    is less confident than accurate (Ranjan and Gneiting, JRSS B 2010).

    Args:
        recipes: of each network, with its temperature; the views are the same for all.
    """

    def __init__(self, networks: Sequence[nn.Module], recipes: Sequence[Recipe]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.temperatures = [recipe.temperature for recipe in recipes]
        self.prediction = recipes[0].prediction
        self.views = count_views(self.prediction)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map crops (B x S x S x 3, RGB, uint8) to probabilities (B x 18, float32)."""
        images = torch.cat(make_views(normalise(pixels), self.prediction))
        scaled = [
            average_views(network(images), self.views) / temperature
            for network, temperature in zip(self.networks, self.temperatures, strict=True)
        ]
        return torch.stack(scaled).mean(dim=0).softmax(dim=1)


def predict_batch(ensemble: Ensemble, pixels: Tensor, hardware: Hardware) -> Tensor:
    """The ensemble's probabilities (B x 18, on the device) of crops (B x S x S x 3, uint8).

    Raises:
        UserError: if a single photo does not fit into the GPU's memory.
    """

    def predict(pixels: Tensor) -> tuple[Tensor]:
        with torch.inference_mode(), hardware.forward_pass():
            return (ensemble(pixels),)

    (probabilities,) = in_halves(predict, pixels.to(hardware.device))
    return probabilities


def to_host(probabilities: Tensor, hardware: Hardware) -> Tensor:
    """Copy probabilities from the device.

    Raises:
        UserError: if any is not finite.
    """
    copied = probabilities.cpu()
    if not copied.isfinite().all():
        raise UserError(
            "the networks' outputs are not finite: "
            + (
                "set train.precision (on the command line --precision) to bf16 or fp32"
                if hardware.dtype == torch.float16
                else "their weights are damaged: train them again"
            )
        )
    return copied


def ensemble_probabilities(
    networks: Sequence[nn.Module],
    pixels: Crops,
    recipes: Sequence[Recipe],
    hardware: Hardware,
    batch_size: int,
    rows: NDArray[np.intp] | None = None,
) -> Probabilities:
    """Probabilities (R x 18) of the `Ensemble` of the networks.

    Args:
        recipes: of each network.
        pixels: crops, N x S x S x 3, uint8; packed ones are read a batch at a time.
        batch_size: images computed at once; each view of a photo is one.
        rows: of the crops to predict (R); None: all.

    Raises:
        UserError: as `predict_batch` and `to_host`.
    """
    ensemble = Ensemble(networks, recipes)
    numbers = torch.arange(len(pixels)) if rows is None else torch.from_numpy(rows)
    size = max(1, batch_size // ensemble.views)
    batches = numbers.split(size) if len(numbers) else ()
    crops = hardware.fetch(pixels, batches)
    predicted = torch.empty(len(numbers), NUM_CLASSES, device=hardware.device)
    for number, batch in enumerate(progress(crops, len(batches), "predict: batches")):
        # In place, so that memory stays flat.
        predicted[number * size :][:size] = predict_batch(ensemble, batch, hardware)
    probabilities: Probabilities = to_host(predicted, hardware).numpy()
    return probabilities
