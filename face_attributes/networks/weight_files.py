"""Weight files, read as data and never executed as code."""

from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from face_attributes.errors import UserError
from face_attributes.files import write_whole
from face_attributes.networks.build import State
from face_attributes.networks.recipe import Recipe


def read_weights(path: Path) -> State:
    """Read tensors by name from safetensors, or from a PyTorch state dict (`.pth`, `.pt`).

    Unwraps a state dict under the key `state_dict` or `model`, as training scripts save it, and
    drops the prefix `module.` of DataParallel.

    Raises:
        UserError: if the file is missing, damaged, or contains anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"weights.source: there is no file {path}: put it there or change the path")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # damaged pickles raise anything, and torch's message says to trust the file
        raise UserError(
            f"weights.source: {path} is damaged, or neither safetensors nor a state dict of "
            "tensors only"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"weights.source: {path} is not a state dict: it must map names to tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def load_network(network: nn.Module, path: Path) -> None:
    """Load the weights that a stage wrote into `network`, which may be on the meta device.

    Raises:
        UserError: if the file is missing, damaged, or belongs to another network.
    """
    try:
        # Not memory-mapped: a file that changes later must not change the network.
        state = safetensors.torch.load_file(path, backend="pread")
        network.load_state_dict(state, assign=True)
    except (FileNotFoundError, SafetensorError):
        raise UserError(f"{path} is missing or damaged: `dvc repro` writes it again") from None
    except RuntimeError:
        raise UserError(
            f"{path} belongs to another network than weights.model: `dvc repro` writes it again"
        ) from None


def read_recipe(path: Path) -> Recipe:
    """Read the recipe from a weight file that the stage `train` wrote.

    Raises:
        UserError: if the file is missing, damaged, or has no valid recipe.
    """
    try:
        with safe_open(path, "pt") as file:
            recipe = (file.metadata() or {}).get("recipe", "")
        return Recipe.model_validate_json(recipe)
    except (OSError, SafetensorError):
        raise UserError(f"{path} is missing or damaged: `dvc repro` writes it again") from None
    except ValidationError:
        raise UserError(
            f"{path} has no recipe of this version, which says how to use the network: "
            "`dvc repro` writes it again"
        ) from None


def write_weights(path: Path, state: State, recipe: Recipe | None = None) -> None:
    """Write tensors by name, and a recipe, as safetensors, whole or not at all."""
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in state.items()},
        None if recipe is None else {"recipe": recipe.model_dump_json()},
    )
    with write_whole(path) as file:
        file.write(content)
