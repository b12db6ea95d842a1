"""Weight files: the recipe that travels with the weights, and files that do not fit."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from face_attributes.errors import UserError
from face_attributes.networks.weight_files import load_network, read_recipe, write_weights
from tests.small import small_recipe, tiny_network

RECIPE = small_recipe([0.1, 0.2, 0.5, 0.4])


def test_weights_and_recipe_are_read_as_written(tmp_path: Path) -> None:
    path, network = tmp_path / "network.safetensors", tiny_network()
    network[5].bias.data.fill_(7)  # type: ignore[index]
    write_weights(path, network.state_dict(), RECIPE)
    assert read_recipe(path) == RECIPE
    loaded = tiny_network()
    load_network(loaded, path)
    torch.testing.assert_close(loaded.state_dict(), network.state_dict(), atol=0, rtol=0)


def test_file_without_a_recipe_is_one_line(tmp_path: Path) -> None:
    write_weights(tmp_path / "bare.safetensors", tiny_network().state_dict())
    for name, problem in (("bare", "has no recipe of this version"), ("absent", "is missing or")):
        with pytest.raises(UserError, match=problem):
            read_recipe(tmp_path / f"{name}.safetensors")


def test_recipe_without_a_temperature_is_one_line(tmp_path: Path) -> None:
    """As networks had before they were calibrated."""
    path = tmp_path / "old.safetensors"
    recipe = RECIPE.model_dump_json(exclude={"temperature"})
    safetensors.torch.save_file(tiny_network().state_dict(), path, {"recipe": recipe})
    with pytest.raises(UserError, match="has no recipe of this version"):
        read_recipe(path)


def test_another_network_or_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    write_weights(path, nn.Linear(3, 4).state_dict())
    with pytest.raises(UserError, match="belongs to another network than weights.model"):
        load_network(tiny_network(), path)
    path.write_bytes(path.read_bytes()[:-1])
    for read in (lambda: load_network(tiny_network(), path), lambda: read_recipe(path)):
        with pytest.raises(UserError, match="is missing or damaged"):
            read()
