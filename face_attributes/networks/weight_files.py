"""Weight files, read as data and never executed as code."""

import errno
import re
import zipfile
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
from face_attributes.photos.names import readable_name

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "ema")
"""Keys under which training scripts save a state dict; the first one found is read."""

LARGEST_RATIO = 4
"""A `.pth` file may open to this many times its size: torch does not compress what it saves."""


def read_weights(path: Path) -> State:
    """Read tensors by name from safetensors, or from a PyTorch state dict (`.pth`, `.pt`).

    Unwraps a state dict under one of the keys WRAPPERS, also one in another.

    Raises:
        UserError: if the file is missing, damaged, compressed, or contains anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"weights.source: there is no file {path}: put it there or change the path")
    _check_opened_size(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # EINVAL: a position before the file's start
        # torch's own message says to trust the file.
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise UserError(
            f"weights.source: {path} holds {refused[1]}, which may execute code: save the state "
            "dict alone, torch.save(network.state_dict(), FILE)"
            if refused
            else f"weights.source: {path} is damaged, or neither safetensors nor a state dict of "
            "tensors only"
        ) from None
    return _unwrap(content, path)


def _check_opened_size(path: Path) -> None:
    """Refuse a compressed file, whose content could be larger than the memory."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            opened = sum(entry.file_size for entry in archive.infolist())
    except (ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # torch reads it, or says that it is damaged
    if opened > LARGEST_RATIO * path.stat().st_size:
        raise UserError(
            f"weights.source: {path} is compressed and would open to {opened / 1e9:.1f} GB: save "
            "it with torch.save, which does not compress"
        )


def _unwrap(content: object, path: Path) -> State:
    """Return the state dict in what a file contains.

    Raises:
        UserError: if there is none; it names the keys found.
    """
    while isinstance(content, dict):
        inside = [key for key in WRAPPERS if isinstance(content.get(key), dict)]
        if not inside:
            break
        if len(inside) > 1:
            print(f"weights.source: {path} contains {' and '.join(inside)}: {inside[0]} is read")
        content = content[inside[0]]
    if not isinstance(content, dict) or not content:
        raise UserError(f"weights.source: {path} is not a state dict: it must map names to tensors")
    others = [
        readable_name(str(key)) for key, value in content.items() if not isinstance(value, Tensor)
    ]
    if others:
        raise UserError(
            f"weights.source: {path} is not a state dict: it must map names to tensors, and has "
            f"{', '.join(others[:4])}; save the state dict alone, or under {' or '.join(WRAPPERS)}"
        )
    return {str(name): tensor for name, tensor in content.items()}


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
