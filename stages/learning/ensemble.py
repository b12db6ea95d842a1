"""The folds' networks together: what one gets wrong, the others may get right."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.errors import UserError
from stages.learning.device import Hardware, normalise
from stages.learning.network import build
from stages.learning.recipe import Recipe
from stages.learning.views import count_views, views_at_test
from stages.learning.weight_files import load_network, read_recipe
from stages.photos.labels import CLASSES
from stages.progress import progress

Probabilities = NDArray[np.float32]


def read_networks(paths: Sequence[Path], hardware: Hardware) -> tuple[list[nn.Module], Recipe]:
    """The networks that the stage `train` wrote, ready to predict, and the recipe they share.

    Raises:
        UserError: if a file is not there, is damaged, or has another recipe than the first.
    """
    recipe = read_recipe(paths[0])
    with torch.device("meta"):  # without weights: to draw random ones takes longer than to read
        empty = build(
            recipe.model,
            recipe.crop.side,
            recipe.heads,
            age_edges=recipe.age_edges,
        )
    networks = []
    for path in paths:
        if read_recipe(path) != recipe:
            raise UserError(
                f"{path} is used in another way than {paths[0]}: `dvc repro` makes both anew"
            )
        network = copy.deepcopy(empty)
        load_network(network, path)
        networks.append(network.to(memory_format=torch.channels_last).to(hardware.device).eval())
    return networks, recipe


class Ensemble(nn.Module):
    """Networks as one, from crops to probabilities: what is predicted with, and exported.

    Args:
        recipe: says which views of a crop the mean is over.
    """

    def __init__(self, networks: Sequence[nn.Module], recipe: Recipe) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.flip, self.zoom = recipe.flip_at_test, recipe.zoom_at_test
        self.views = count_views(self.flip, self.zoom)

    def forward(self, pixels: Tensor) -> Tensor:
        """Probabilities (B x 18, float32) of crops (B x size x size x 3, RGB, uint8)."""
        images = torch.cat(views_at_test(normalise(pixels), self.flip, self.zoom))
        each = [network(images).float().softmax(dim=1) for network in self.networks]
        probabilities = torch.stack(each).mean(dim=0)
        return probabilities.unflatten(0, (self.views, -1)).mean(dim=0)  # type: ignore[no-any-return]


def predict_batch(ensemble: Ensemble, pixels: Tensor, hardware: Hardware) -> Tensor:
    """The ensemble's probabilities (B x 18, on the CPU) of crops that it can take at once."""
    with torch.inference_mode(), hardware.computing():
        probabilities: Tensor = ensemble(pixels.to(hardware.device)).cpu()
    return probabilities


def mean_probabilities(
    networks: Sequence[nn.Module],
    pixels: Tensor,
    recipe: Recipe,
    hardware: Hardware,
    batch_size: int,
) -> Probabilities:
    """Mean of the networks' softmaxes, over the views of each crop that the recipe names.

    Args:
        pixels: crops, N x size x size x 3, uint8.
        batch_size: images computed at once; each view of a photo is one.

    Returns:
        Probabilities of the classes, N x 18.
    """
    ensemble = Ensemble(networks, recipe)
    batches = pixels.split(max(1, batch_size // ensemble.views))
    found = [torch.empty(0, CLASSES)]
    for batch in progress(batches, len(batches), "photos predicted"):
        found.append(predict_batch(ensemble, batch, hardware))
    mean: Probabilities = torch.cat(found).numpy()
    return mean
