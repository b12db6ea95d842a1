"""Weights: write the initial weights that the networks of all folds start from.

    python -m stages.weights data/pretrained data/weights

Reads a file of pretrained weights if `weights.source` names one. Writes `initial.safetensors`
(float32, the library's names, with the head that `train.heads` chooses) and `metrics.json` (model,
source, sha256, numbers).
"""

import pickle
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision

from face_attributes.command import stage_command, warn_if_outside
from face_attributes.errors import UserError
from face_attributes.files import sha256, write_json
from face_attributes.networks import timm_networks
from face_attributes.networks.build import State, build, check_side
from face_attributes.networks.matching import fit_state
from face_attributes.networks.weight_files import read_weights, write_weights
from face_attributes.params import Heads, WeightParams, read_params


def download(model: str) -> State:
    """Load torchvision's pretrained weights, downloaded once to TORCH_HOME.

    Raises:
        UserError: if they are damaged, or neither cached nor downloadable.
    """
    weights = torchvision.models.get_model_weights(model).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state: State = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):  # RuntimeError: also a wrong hash
        raise UserError(
            f"weights.source: imagenet: the download of {weights.url} is damaged: delete {cached}, "
            "if it exists, and run again"
        ) from None
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(
            f"weights.source: imagenet cannot be downloaded ({getattr(error, 'reason', error)}): "
            f"download {weights.url} on a machine with internet access and put it at {cached}"
        ) from None
    return state


def initial_state(params: WeightParams, heads: Heads, side: int) -> tuple[State, str]:
    """Make the initial weights (float32), and the SHA-256 of the file they come from, or "".

    Args:
        side: side of the crops in pixels.

    Raises:
        UserError: if the network cannot be built for that side, or the weights do not fit it.
    """
    check_side(params.model, side, heads)
    network = build(params.model, side, heads, params.seed)
    of_timm = params.model.startswith(timm_networks.PREFIX)
    match params.source:
        case "none":
            return network.state_dict(), ""
        case "imagenet" if of_timm:
            raise UserError(
                f"weights.source: imagenet names torchvision's weights: for {params.model} write "
                "pretrained"
            )
        case "pretrained" if of_timm:
            path = timm_networks.download(params.model)
            return fit_state(network, read_weights(path), f"timm's {params.model}"), sha256(path)
        case "imagenet" | "pretrained":
            weights = torchvision.models.get_model_weights(params.model).DEFAULT
            state = fit_state(network, download(params.model), f"torchvision's {params.model}")
            return state, sha256(Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name)
        case _:
            path = Path(params.source)
            return fit_state(network, read_weights(path), str(path)), sha256(path)


@stage_command
def main(folder: Path, out: Path) -> None:
    """Write the initial weights to OUT; FOLDER is the folder for pretrained weights."""
    params = read_params()
    source = params.weights.source
    if source not in ("none", "imagenet", "pretrained"):
        warn_if_outside(Path(source), folder, "weights.source")
    state, digest = initial_state(params.weights, params.train.heads, params.crop.side)
    write_weights(out / "initial.safetensors", state)
    numbers = sum(tensor.numel() for tensor in state.values())
    figures = {
        "model": params.weights.model,
        "source": source,
        "sha256": digest,
        "numbers": numbers,
    }
    write_json(out / "metrics.json", figures)
    print(f"weights: {params.weights.model} from {source}, {numbers / 1e6:.1f} million numbers")


if __name__ == "__main__":
    main()
