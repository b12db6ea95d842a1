"""The reference loop: train one fold with code as in torchvision's examples.

    python -m benchmarks.reference photos.csv FOLD --side 128 --epochs 10 --freeze layer3

A `Dataset` that opens each JPEG with Pillow, torchvision's v2 transforms on single images, a
`DataLoader` with one worker per core, float32, AdamW, layers frozen by `requires_grad`, and
validation after each epoch. Prints seconds and peak memory as JSON.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import torchvision
import typer
from PIL import Image
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from benchmarks.measuring import BATCH, BRIGHTNESS, FLIP, NUM_CLASSES, SHIFT, measure

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class PhotoDataset(Dataset[tuple[Tensor, int]]):
    """Photos of a table (path, label), decoded on each access."""

    def __init__(self, table: pd.DataFrame, transform: v2.Compose) -> None:
        self.paths, self.labels = table["path"].to_list(), table["label"].to_list()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.labels[index]


def transforms(side: int, augmented: bool) -> v2.Compose:
    """Resize to `side` and normalise; when `augmented`, also shift, flip and change brightness."""
    shift = round(SHIFT * side)
    return v2.Compose(
        [
            v2.Resize(side),
            v2.CenterCrop(side),
            v2.ToImage(),
            *([v2.RandomCrop(side, shift, padding_mode="edge")] if augmented else []),
            *([v2.RandomHorizontalFlip(FLIP), v2.ColorJitter(BRIGHTNESS)] if augmented else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def loader(table: pd.DataFrame, side: int, augmented: bool) -> DataLoader[tuple[Tensor, int]]:
    """Make the loader: shuffled for training, in order for validation."""
    return DataLoader(
        PhotoDataset(table, transforms(side, augmented)),
        BATCH,
        shuffle=augmented,
        drop_last=augmented and len(table) > BATCH,
        num_workers=os.cpu_count() or 1,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
    )


def freeze(network: nn.Module, upto: str) -> nn.Module:
    """Turn off gradients up to and including a layer."""
    names = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    for name in names[: names.index(upto) + 1] if upto != "none" else []:
        network.get_submodule(name).requires_grad_(False)
    return network


def train(
    photos: pd.DataFrame,
    fold: int,
    side: int,
    epochs: int,
    freeze_upto: str,
    mark: Callable[[], None],
) -> None:
    """Train on all folds but one, and validate on that fold after each epoch."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = freeze(torchvision.models.resnet18(num_classes=NUM_CLASSES), freeze_upto).to(device)
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3)
    training = loader(photos[photos["fold"] != fold], side, augmented=True)
    validation = loader(photos[photos["fold"] == fold], side, augmented=False)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    mark()
    for _ in range(epochs):
        network.train()
        for module in network.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
        for images, labels in training:
            images, labels = images.to(device, non_blocking=True), labels.to(device)
            optimizer.zero_grad()
            loss_function(network(images), labels).backward()
            optimizer.step()
        network.eval()
        predicted, actual = [], []
        with torch.inference_mode():
            for images, labels in validation:
                predicted.append(network(images.to(device)).argmax(1).cpu())
                actual.append(labels)
        f1_score(torch.cat(actual), torch.cat(predicted), average="macro", zero_division=0)
        mark()


def main(
    photos: Path,
    fold: int,
    side: Annotated[int, typer.Option()],
    epochs: Annotated[int, typer.Option()],
    freeze: Annotated[str, typer.Option()],
) -> None:
    """Train one fold of PHOTOS (path, label, fold)."""
    measure(lambda mark: train(pd.read_csv(photos), fold, side, epochs, freeze, mark))


if __name__ == "__main__":
    typer.run(main)
