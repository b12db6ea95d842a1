"""Small inputs for several test modules: networks as `train` writes them, photos, parameters."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from face_attributes.networks.build import build
from face_attributes.networks.device import Hardware
from face_attributes.networks.recipe import Recipe
from face_attributes.networks.weight_files import write_weights
from face_attributes.params import PredictionParams, TrainParams, read_params
from face_attributes.training.inputs import Photos

CPU = Hardware(torch.device("cpu"), torch.float32)
FALLBACK = [0.25, 0.25, 0.5, 0.5]
PARAMS = Path(__file__).parents[1] / "params.yaml"


def seeded(seed: int = 0) -> torch.Generator:
    """A generator for random numbers that are the same in each run."""
    return torch.Generator().manual_seed(seed)


def train_params(**changes: Any) -> TrainParams:
    """The shipped section `train` with changes: train_params(**{"optimizer.ema": 0.9})."""
    section = read_params(PARAMS).train.model_dump()
    for key, value in changes.items():
        *parents, name = key.split(".")
        target = section
        for parent in parents:
            target = target[parent]
        assert name in target, key
        target[name] = value
    return TrainParams.model_validate(section)


def graded_photos(side: int = 16) -> Photos:
    """36 noisy photos of the classes 0, 1 and 2: the brighter, the higher the class."""
    labels = torch.arange(36) % 3
    noise = torch.randint(0, 30, (36, side, side, 3), generator=seeded())
    return Photos((noise + 90 * labels[:, None, None, None]).to(torch.uint8), labels, "sha")


def tiny_network() -> nn.Module:
    """A network with the parts "0" (a convolution and its BatchNorm) and the head "5"."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(8, 18),
        )  # fmt: skip


class LittleMemory(nn.Module):
    """A network that runs out of memory if it is given more than `limit` images."""

    def __init__(self, network: nn.Module, limit: int) -> None:
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        outputs: Tensor = self.network(images)
        return outputs


def small_recipe(fallback: list[float] | None) -> Recipe:
    """A recipe like the pipeline's, for crops of 32 pixels."""
    return Recipe(
        model="mobilenet_v2",
        heads="ages",
        prediction=PredictionParams(flip=True, zoom=0.1),
        age_edges=[30, 60],
        crop=read_params(PARAMS).crop.model_copy(update={"side": 32}),
        fallback=fallback,
        temperature=1.0,
    )


def write_networks(folder: Path, recipe: Recipe, folds: int = 2) -> None:
    """Write a random network for each fold, whose predictions differ between photos.

    Fold 0 has the temperature of the recipe, each other one is 1.5 times as hot as the one before.
    """
    for fold in range(folds):
        network = build(recipe.model, recipe.crop.side, recipe.heads, seed=fold).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # so that one batch sets the statistics
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold)
            network(torch.randn(16, 3, recipe.crop.side, recipe.crop.side))
        own = recipe.model_copy(update={"temperature": recipe.temperature * 1.5**fold})
        write_weights(folder / f"fold{fold}/network.safetensors", network.state_dict(), own)


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends where its pixels would begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n\0\0\0\x0d" + chunk + crc + b"\0\0\0\0IDAT\x35\xaf\x06\x1e"


def two_faces(portraits: list[Path], path: Path) -> None:
    """Save a photo of two people; the one on the right is closer."""
    photo = Image.new("RGB", (800, 512), "grey")
    photo.paste(Image.open(portraits[0]).resize((288, 384)), (20, 60))
    photo.paste(Image.open(portraits[1]), (400, 0))
    photo.save(path)


@contextmanager
def restore_torch_settings() -> Iterator[None]:
    """Restore torch's global settings, which stages change, when the block ends.

    `torch.export`, for one, fails with deterministic algorithms.
    """
    threads, show_warning = torch.get_num_threads(), warnings.showwarning
    backends = (torch.backends, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
    precisions = [backend.fp32_precision for backend in backends]  # type: ignore[attr-defined]
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    for backend, precision in zip(backends, precisions, strict=True):
        backend.fp32_precision = precision  # type: ignore[attr-defined]
    warnings.showwarning = show_warning
