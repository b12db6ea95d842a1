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
from face_attributes.networks.device import Hardware
from face_attributes.networks.recipe import Recipe
from face_attributes.networks.views import average_views, count_views, make_views, normalise
from face_attributes.networks.weight_files import load_network, read_recipe
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.progress import progress

Probabilities = NDArray[np.float32]


def read_networks(paths: Sequence[Path], hardware: Hardware) -> tuple[list[nn.Module], Recipe]:
    """Read the networks that the stage `train` wrote, ready to predict, and their common recipe.

    Raises:
        UserError: if a file is missing, damaged, or has another recipe than the first.
    """
    recipe = read_recipe(paths[0])
    with torch.device("meta"):  # no initial weights: drawing them takes longer than reading
        empty = build(recipe.model, recipe.crop.side, recipe.heads, age_edges=recipe.age_edges)
    networks = []
    for path in paths:
        if read_recipe(path) != recipe:
            raise UserError(
                f"{path} has another recipe than {paths[0]}: `dvc repro` writes both again"
            )
        network = copy.deepcopy(empty)
        load_network(network, path)
        networks.append(network.to(memory_format=torch.channels_last).to(hardware.device).eval())
    return networks, recipe


class Ensemble(nn.Module):
    """Several networks as one, from crops to probabilities: used to predict and to export.

    Args:
        recipe: names the views of a crop over which the mean is taken.
    """

    def __init__(self, networks: Sequence[nn.Module], recipe: Recipe) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.prediction = recipe.prediction
        self.views = count_views(recipe.prediction)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map crops (B x S x S x 3, RGB, uint8) to probabilities (B x 18, float32)."""
        images = torch.cat(make_views(normalise(pixels), self.prediction))
        each = [average_views(network(images), self.views).exp() for network in self.networks]
        return torch.stack(each).mean(dim=0)


def predict_batch(ensemble: Ensemble, pixels: Tensor, hardware: Hardware) -> Tensor:
    """The ensemble's probabilities (B x 18, on the CPU) of crops that fit into memory at once."""
    with torch.inference_mode(), hardware.forward_pass():
        probabilities: Tensor = ensemble(pixels.to(hardware.device)).cpu()
    return probabilities


def mean_probabilities(
    networks: Sequence[nn.Module],
    pixels: Tensor,
    recipe: Recipe,
    hardware: Hardware,
    batch_size: int,
) -> Probabilities:
    """Mean probabilities (N x 18) of the networks, over the views of each crop.

    Args:
        pixels: crops, N x S x S x 3, uint8.
        batch_size: images computed at once; each view of a photo is one.
    """
    ensemble = Ensemble(networks, recipe)
    batches = pixels.split(max(1, batch_size // ensemble.views))
    chunks = [torch.empty(0, NUM_CLASSES)]
    for batch in progress(batches, len(batches), "predict: batches"):
        chunks.append(predict_batch(ensemble, batch, hardware))
    mean: Probabilities = torch.cat(chunks).numpy()
    return mean
