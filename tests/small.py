"""Small networks as the stage `train` writes them, and photos, for what uses both."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from stages.learning.network import build
from stages.learning.recipe import Recipe
from stages.learning.weight_files import write_weights
from stages.params import read_params

FALLBACK = [0.25, 0.25, 0.5, 0.5]


def small_recipe(fallback: list[float] | None) -> Recipe:
    """A recipe like the pipeline's, for crops of 32 pixels."""
    crop = read_params(Path(__file__).parents[1] / "params.yaml").crop
    return Recipe(
        model="mobilenet_v2",
        heads="ages",
        flip_at_test=True,
        zoom_at_test=0.1,
        age_edges=[30, 60],
        crop=crop.model_copy(update={"side": 32}),
        fallback=fallback,
    )


def write_networks(folder: Path, recipe: Recipe, folds: int = 2) -> None:
    """A network for each fold, which answers differently to different photos."""
    for fold in range(folds):
        network = build(recipe.model, recipe.crop.side, recipe.heads, seed=fold).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # takes over the statistics of the one batch as they are
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold)
            network(torch.randn(16, 3, recipe.crop.side, recipe.crop.side))
        write_weights(folder / f"fold{fold}/network.safetensors", network.state_dict(), recipe)


def two_faces(portraits: list[Path], path: Path) -> None:
    """A photo of two people, the one to the right nearer."""
    photo = Image.new("RGB", (800, 512), "grey")
    photo.paste(Image.open(portraits[0]).resize((288, 384)), (20, 60))
    photo.paste(Image.open(portraits[1]), (400, 0))
    photo.save(path)


@contextmanager
def torch_as_it_is() -> Iterator[None]:
    """What stages set for their process, torch's threads and exactness, is not left to other tests.

    `torch.export`, which some use, does not run with the latter.
    """
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
