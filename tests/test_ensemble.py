"""The ensemble of the folds' networks, and reading them from their files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from face_attributes.errors import UserError
from face_attributes.inference.ensemble import ensemble_probabilities, read_networks
from face_attributes.networks.build import AgesHead, head_name
from face_attributes.networks.device import Hardware
from face_attributes.networks.views import make_views
from face_attributes.params import PredictionParams
from tests.small import CPU, FALLBACK, LittleMemory, small_recipe, write_networks


def network_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("fold*/network.safetensors"))


def test_probabilities_are_the_geometric_mean_of_calibrated_networks(trained: Path) -> None:
    """Each network's are the mean over its views, to the power of 1 / temperature."""
    networks, recipes = read_networks(network_files(trained), CPU)
    assert [recipe.temperature for recipe in recipes] == [1.0, 1.5]
    recipe = recipes[0]
    crops = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    images = (crops / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    views = make_views(torch.from_numpy(images.transpose(0, 3, 1, 2)).float(), recipe.prediction)
    assert (len(networks), len(views)) == (2, 6)
    with torch.inference_mode():
        first, second = (
            np.mean([network(view).softmax(1).numpy() for view in views], axis=0)
            for network in networks
        )
    product = np.sqrt(first * second ** (1 / 1.5))
    expected = product / product.sum(axis=1, keepdims=True)
    mean = ensemble_probabilities(networks, crops, recipes, CPU, batch_size=16)
    assert mean == pytest.approx(expected, abs=1e-5)
    assert mean.std(axis=0).max() > 0.01, "photos must differ for the test to mean anything"
    tight = [LittleMemory(network, 6) for network in networks]  # that is one photo with its views
    in_halves = ensemble_probabilities(tight, crops, recipes, CPU, batch_size=16)
    assert in_halves == pytest.approx(mean, abs=1e-5)
    for network in tight:
        network.limit = 5
    with pytest.raises(UserError, match="does not hold a single photo"):
        ensemble_probabilities(tight, crops, recipes, CPU, batch_size=16)


def test_outputs_that_are_no_numbers_are_one_line(trained: Path) -> None:
    """As in float16, whose numbers end at 65,504."""
    networks, recipes = read_networks(network_files(trained), CPU)
    head = networks[0].get_submodule(head_name(networks[0]))
    with torch.no_grad():
        next(head.parameters()).fill_(torch.inf)
    crops = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    half = Hardware(CPU.device, torch.float16)
    for hardware, remedy in ((CPU, "weights are damaged"), (half, "set train.precision .* bf16")):
        with pytest.raises(UserError, match=f"outputs are not finite: .*{remedy}"):
            ensemble_probabilities(networks, crops, recipes, hardware, batch_size=16)


def test_networks_keep_the_age_edges_they_were_trained_with(tmp_path: Path) -> None:
    recipe = small_recipe(None).model_copy(update={"heads": "ages", "age_edges": [20, 50]})
    write_networks(tmp_path, recipe, folds=1)
    (network,), read = read_networks(network_files(tmp_path), CPU)
    assert read == [recipe]
    head = network.get_submodule(head_name(network))
    assert isinstance(head, AgesHead)
    assert head.group_sizes == (20, 30, 71)


def test_networks_with_different_recipes_are_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    recipe = small_recipe(FALLBACK)
    without_views = recipe.model_copy(update={"prediction": PredictionParams(flip=False, zoom=0)})
    write_networks(tmp_path / "other", without_views, folds=1)
    second = tmp_path / "fold1/network.safetensors"
    shutil.copy(tmp_path / "other/fold0/network.safetensors", second)
    with pytest.raises(UserError, match=r"fold1/network.* has another recipe than .*fold0/network"):
        read_networks(network_files(tmp_path), CPU)
