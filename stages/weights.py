"""Weights: write the initial weights that the networks of all folds start from.

    python -m stages.weights data/pretrained data/weights

Reads a file of pretrained weights if `weights.source` names one; pretrains on drawn faces if it is
`drawn`. Writes `initial.safetensors` (float32, the library's names, with the head that
`train.heads` chooses) and `metrics.json` (model, source, sha256, numbers).
"""

import pickle
import sys
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
import torchvision
from torch import Tensor

from face_attributes.command import refuse_outside, stage_command
from face_attributes.errors import UserError
from face_attributes.faces.cut import cut
from face_attributes.faces.drawing import (
    HEIGHT,
    WIDTH,
    draw_portrait,
    random_circumstances,
    random_traits,
    visible_attributes,
)
from face_attributes.files import sha256, write_json
from face_attributes.networks import timm_networks
from face_attributes.networks.build import State, build, check_side
from face_attributes.networks.device import prepare_hardware
from face_attributes.networks.matching import fit_state
from face_attributes.networks.weight_files import read_weights, write_weights
from face_attributes.params import CropParams, Params, read_params
from face_attributes.photos.labels import GENDERS, MASKS
from face_attributes.photos.packed import Pixels
from face_attributes.processes import map_on_all_cores
from face_attributes.progress import progress
from face_attributes.training.pretraining import pretrain

DRAWN_FACES = 2000
"""Faces to pretrain on, each of a different person."""
DRAWN_AGES = (15, 85)
STREAM = 20_000
"""Sets the random numbers of these people apart from those of the sample (stages/sample.py)."""


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


def draw_face(number: int, seed: int, crop: CropParams) -> tuple[Pixels, list[bool]]:
    """Draw the crop of a person (side x side x 3, uint8), and list the person's attributes."""
    rng = np.random.default_rng([seed, number, STREAM])
    traits = random_traits(str(rng.choice(GENDERS)), int(rng.integers(*DRAWN_AGES)), rng)
    circumstances = random_circumstances(str(rng.choice(MASKS)), rng)
    # As small as the crop allows, for speed: the crop is about as wide as the photo.
    photo = draw_portrait(traits, circumstances, rng, max(1, WIDTH // (2 * crop.side)))
    x, y = circumstances.centre
    half = circumstances.scale
    box = [x - half, y - 1.1 * half, 2 * half, 2.4 * half] / np.tile([WIDTH, HEIGHT], 2)
    return cut(photo, box, 0, crop), visible_attributes(traits, circumstances)


def draw_faces(count: int, seed: int, crop: CropParams) -> tuple[Tensor, Tensor]:
    """Draw people on all cores: crops (N x S x S x 3, uint8), attributes (N x A, float32)."""
    drawn = map_on_all_cores(partial(draw_face, seed=seed, crop=crop), range(count), chunksize=50)
    pairs = list(progress(drawn, count, "weights: faces drawn"))
    crops, attributes = zip(*pairs, strict=True)
    return torch.from_numpy(np.stack(crops)), torch.tensor(attributes, dtype=torch.float32)


def initial_state(params: Params) -> tuple[State, str]:
    """Make the initial weights (float32), and the SHA-256 of the file they come from, or "".

    Raises:
        UserError: if the network cannot be built for the crops, or the weights do not fit it.
    """
    weights, side, heads = params.weights, params.crop.side, params.train.heads
    check_side(weights.model, side, heads)
    network = build(weights.model, side, heads, weights.seed)
    of_timm = weights.model.startswith(timm_networks.PREFIX)
    match weights.source:
        case "none":
            return network.state_dict(), ""
        case "drawn":
            crops, attributes = draw_faces(DRAWN_FACES, weights.seed, params.crop)
            hardware = prepare_hardware(params.train.device, params.train.precision)
            accuracy = pretrain(network, crops, attributes, weights.seed, hardware)
            print(
                f"weights: pretrained on {len(crops)} drawn faces, whose {attributes.shape[1]} "
                f"attributes were right in {accuracy:.1%} in the last epoch"
            )
            return network.state_dict(), ""
        case "imagenet" if of_timm:
            raise UserError(
                f"weights.source: imagenet names torchvision's weights: for {weights.model} write "
                "pretrained"
            )
        case "pretrained" if of_timm:
            path = timm_networks.download(weights.model)
            return fit_state(network, read_weights(path), f"timm's {weights.model}"), sha256(path)
        case "imagenet" | "pretrained":
            default = torchvision.models.get_model_weights(weights.model).DEFAULT
            state = fit_state(network, download(weights.model), f"torchvision's {weights.model}")
            return state, sha256(Path(torch.hub.get_dir()) / "checkpoints" / Path(default.url).name)
        case _:
            path = Path(weights.source)
            return fit_state(network, read_weights(path), str(path)), sha256(path)


@stage_command
def main(folder: Path, out: Path) -> None:
    """Write the initial weights to OUT; FOLDER is the folder for pretrained weights."""
    params = read_params()
    source = params.weights.source
    if source not in ("none", "drawn", "imagenet", "pretrained"):
        refuse_outside(Path(source), folder, "weights.source")
    state, digest = initial_state(params)
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
