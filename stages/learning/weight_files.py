"""Files of weights, read as data and never as code."""

from pathlib import Path

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stages.errors import UserError
from stages.files import write_whole
from stages.learning.network import State
from stages.learning.recipe import Recipe


def read_weights(path: Path) -> State:
    """Read tensors by name from safetensors, or from a PyTorch state dict (`.pth`, `.pt`).

    A state dict under the key `state_dict` or `model`, as training scripts save it, is found; the
    prefix `module.` of DataParallel goes.

    Raises:
        UserError: if the file is missing, damaged, or holds something else than tensors.
    """
    if not path.is_file():
        raise UserError(
            f"weights.source: there is no file {path}: put it there, or change the path"
        )
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # a damaged pickle brings out all kinds; torch's advice would be to trust it
        raise UserError(
            f"weights.source: {path} is damaged, or no safetensors or state dict of tensors alone"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"weights.source: {path} is no state dict: it must map names to tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def load_network(network: nn.Module, path: Path) -> None:
    """Give `network`, which may be on the meta device, the state that another stage wrote.

    Raises:
        UserError: if it is not there, is damaged, or is that of another network.
    """
    try:
        # Read, not mapped: a file that changes while the network is used must not change it.
        state = safetensors.torch.load_file(path, backend="pread")
        network.load_state_dict(state, assign=True)
    except (FileNotFoundError, SafetensorError):
        raise UserError(f"{path} is missing or damaged: `dvc repro` makes it anew") from None
    except RuntimeError:
        raise UserError(
            f"{path} is not of the network that weights.model names: `dvc repro` makes it anew"
        ) from None


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file of weights that the stage `train` wrote.

    Raises:
        UserError: if the file is not there, is damaged, or holds no recipe.
    """
    try:
        with safe_open(path, "pt") as file:
            described = (file.metadata() or {}).get("recipe", "")
        return Recipe.model_validate_json(described)
    except (OSError, SafetensorError):
        raise UserError(f"{path} is missing or damaged: `dvc repro` makes it anew") from None
    except ValidationError:
        raise UserError(
            f"{path} does not say how its network is used: `dvc repro` makes it anew"
        ) from None


def write_weights(path: Path, state: State, recipe: Recipe | None = None) -> None:
    """Write tensors by name as safetensors, whole or not at all."""
    content = safetensors.torch.save(
        {name: tensor.contiguous() for name, tensor in state.items()},
        None if recipe is None else {"recipe": recipe.model_dump_json()},
    )
    with write_whole(path) as file:
        file.write(content)
