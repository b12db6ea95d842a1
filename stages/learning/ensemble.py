"""The folds' networks together: what one gets wrong, the others may get right."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.learning.device import Hardware, normalise
from stages.learning.network import build
from stages.learning.recipe import Recipe
from stages.learning.weight_files import load_network, read_recipe
from stages.photos.labels import CLASSES
from stages.progress import progress

Probabilities = NDArray[np.float32]


def read_networks(paths: Sequence[Path], hardware: Hardware) -> tuple[list[nn.Module], Recipe]:
    """The networks that the stage `train` wrote, ready to predict, and the recipe they share.

    Raises:
        UserError: if a file is not there, is damaged, or is of another network than the first.
    """
    recipe = read_recipe(paths[0])
    networks = []
    for path in paths:
        network = build(recipe.model, recipe.crop.size, recipe.heads)
        load_network(network, path)
        networks.append(network.to(memory_format=torch.channels_last).to(hardware.device).eval())
    return networks, recipe


def mean_probabilities(
    networks: Sequence[nn.Module],
    pixels: Tensor,
    recipe: Recipe,
    hardware: Hardware,
    batch_size: int,
) -> Probabilities:
    """Mean over the networks, and over mirror images if the recipe says so, of their softmaxes.

    Args:
        pixels: crops, N x size x size x 3, uint8.

    Returns:
        Probabilities of the classes, N x 18.
    """
    mirrored = (False, True) if recipe.flip_at_test else (False,)
    total = torch.zeros(len(pixels), CLASSES)
    for network in progress(networks, len(networks), "networks"):
        for flip in mirrored:
            logits = [torch.empty(0, CLASSES)]
            for batch in pixels.split(batch_size):
                images = normalise((batch.flip(2) if flip else batch).to(hardware.device))
                with torch.inference_mode(), hardware.autocast():
                    logits.append(network(images).float().cpu())
            total += torch.cat(logits).softmax(dim=1)
    mean: Probabilities = (total / (len(mirrored) * len(networks))).numpy()
    return mean
