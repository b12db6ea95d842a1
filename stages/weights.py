"""Weights: the state that the network of every fold starts from.

    python -m stages.weights data/pretrained data/weights

Reads a file in the folder of pretrained weights where `weights.source` names one. Writes
`initial.safetensors` (float32, torchvision's names, a head as `train.heads` says) and
`metrics.json` (model, source, sha256).
"""

import pickle
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
import torchvision

from stages.command import stage_command, warn_if_outside
from stages.errors import UserError
from stages.files import sha256, write_json
from stages.learning.network import State, build, fit_state
from stages.learning.weight_files import read_weights, write_weights
from stages.params import Heads, WeightParams, read_params


def imagenet(model: str) -> State:
    """torchvision's own ImageNet weights, downloaded once to TORCH_HOME.

    Raises:
        UserError: if they are not there and cannot be downloaded.
    """
    weights = torchvision.models.get_model_weights(model).DEFAULT
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        state: State = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError):  # also: not of the hash in its name
        raise UserError(
            f"weights.source: imagenet: what was downloaded from {weights.url} is damaged: delete "
            f"{cached}, if it is there, and run again"
        ) from None
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        raise UserError(
            f"weights.source: imagenet cannot be downloaded ({getattr(error, 'reason', error)}): "
            f"fetch {weights.url} where there is internet and put it at {cached}"
        ) from None
    return state


def initial_state(params: WeightParams, heads: Heads, size: int) -> tuple[State, str]:
    """The network's initial state (float32, with a new head), and the sha256 of its source.

    Args:
        size: side of the crops in pixels.
    """
    network = build(params.model, size, heads, params.seed)
    match params.source:
        case "none":
            return network.state_dict(), ""
        case "imagenet":
            weights = torchvision.models.get_model_weights(params.model).DEFAULT
            state = fit_state(network, imagenet(params.model), f"{params.model} of torchvision")
            return state, sha256(Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name)
        case _:
            path = Path(params.source)
            return fit_state(network, read_weights(path), str(path)), sha256(path)


@stage_command
def main(folder: Path, out: Path) -> None:
    """Write the state to start from to OUT; files of weights belong in FOLDER."""
    params = read_params()
    source = params.weights.source
    if source not in ("none", "imagenet"):
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
