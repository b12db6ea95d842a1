"""Inputs of the trainable part of a network: photos, or features from its frozen prefix."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from face_attributes.errors import UserError
from face_attributes.files import sha256
from face_attributes.networks.device import Hardware
from face_attributes.networks.freezing import split
from face_attributes.networks.views import average_views, count_views, make_views, normalise
from face_attributes.params import PredictionParams, Section, TrainParams
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.packed import PackedPixels, prefetch, read_packed
from face_attributes.progress import progress
from face_attributes.training.augmentation import augment
from face_attributes.training.feature_store import FeatureStore, share_memory
from face_attributes.training.fingerprint import fingerprint

CHUNK = 128
"""Number of photos per batch of features or predictions."""


@dataclass(frozen=True)
class Photos:
    """Crops (N x S x S x 3, uint8), their labels (N, int64), and the SHA-256 of the crops.

    `packed` is the file that `pixels` are mapped from, if they are not on the device.
    """

    pixels: Tensor
    labels: Tensor
    sha256: str
    packed: PackedPixels | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def prefetch(self, rows: Tensor) -> None:
        """Start to read photos that are needed next from disk, without waiting for them."""
        if self.packed is not None:
            prefetch(self.packed, rows.tolist())


def load_photos(crops: Path, labels: np.ndarray, hardware: Hardware) -> Photos:
    """Load all packed crops, onto the device if they fit, and their labels (N, int).

    Others stay in their file, mapped into memory, so that they may be more than RAM holds.
    """
    packed = read_packed(crops)
    pixels = hardware.to_device_if_it_fits(share_memory(packed))
    return Photos(
        pixels,
        torch.tensor(labels, device=hardware.device),
        sha256(crops),
        packed if pixels.is_cpu else None,
    )


@dataclass(frozen=True)
class Inputs:
    """Batches for a network that may have a frozen prefix.

    `augmented_features` and `plain_features` are cached outputs of the prefix for V views of all
    photos (N x V x ..., channels last); None if not cached.
    """

    photos: Photos
    params: TrainParams
    hardware: Hardware
    prefix: nn.Module | None
    rest: nn.Module
    augmented_features: Tensor | None = None
    plain_features: Tensor | None = None

    def training_batch(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Return a batch for `forward`: freshly augmented photos, or a random cached view each."""
        if self.augmented_features is None:
            pixels = self.hardware.gather(self.photos.pixels, rows)
            return augment(pixels, self.params.augmentation, generator)
        view = torch.randint(
            self.augmented_features.shape[1],
            (len(rows),),
            generator=generator,
            device=generator.device,
        )
        return self._cached(self.augmented_features, view, rows)

    def prefetch(self, rows: Tensor) -> None:
        """Start to read what `training_batch` needs for these photos, without waiting for it."""
        if self.augmented_features is None:
            self.photos.prefetch(rows)

    def forward(self, batch: Tensor) -> Tensor:
        """Compute the logits (B x 18 or more, float32) of a batch from `training_batch`."""
        with self.hardware.forward_pass():
            if self.prefix is not None and self.augmented_features is None:
                with torch.no_grad():
                    batch = self.prefix(batch)
            logits: Tensor = self.rest(batch)
        return logits.float()

    @torch.no_grad()
    def predict(self, rows: Tensor, views: PredictionParams) -> Tensor:
        """Return the log of each photo's mean probabilities over its views (R x 18, on the CPU)."""
        self.rest.eval()
        count = count_views(views)
        chunks = [torch.empty(0, NUM_CLASSES)]
        for chunk in rows.split(CHUNK):
            with self.hardware.forward_pass():
                logits = torch.cat([self.rest(view) for view in self._views(chunk, views)])
            chunks.append(average_views(logits, count).cpu())
        return torch.cat(chunks)

    def _views(self, rows: Tensor, views: PredictionParams) -> Iterator[Tensor]:
        """Yield the inputs of the rest of the network for each view, from the cache if possible."""
        if self.plain_features is not None and views == plain_views(self.params):
            for view in range(self.plain_features.shape[1]):
                yield self._cached(self.plain_features, torch.full_like(rows, view), rows)
            return
        images = normalise(self.hardware.gather(self.photos.pixels, rows))
        for image in make_views(images, views):
            yield image if self.prefix is None else self.prefix(image)

    def _cached(self, features: Tensor, view: Tensor, rows: Tensor) -> Tensor:
        flat_rows = rows * features.shape[1] + view
        return self.hardware.gather(features.flatten(0, 1), flat_rows).movedim(-1, 1)


def plain_views(params: TrainParams) -> PredictionParams:
    """Views for validation during training: without the zoomed ones, for speed."""
    return params.prediction.model_copy(update={"zoom": 0.0})


def prepare_inputs(
    network: nn.Module,
    photos: Photos,
    params: TrainParams,
    hardware: Hardware,
    store: FeatureStore,
) -> Inputs:
    """Make the inputs of a network for its current freeze point, caching its prefix's features.

    Raises:
        UserError: if views are to be cached and the store has no room for them, or the network
            cannot be split.
        OSError: if the store cannot be written.
    """
    if all(parameter.requires_grad for parameter in network.parameters()):
        return Inputs(photos, params, hardware, None, network)
    halves = split(network)
    if halves is None:
        if params.cached_views:
            raise UserError(
                "train.cached_views: this network's frozen parts cannot be computed apart from the "
                "rest: set it to 0"
            )
        return Inputs(photos, params, hardware, None, network)
    prefix, rest = halves
    prefix.eval()

    def render_plain(pixels: Tensor, _: torch.Generator) -> list[Tensor]:
        return make_views(normalise(pixels), plain_views(params))

    def render_augmented(pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        return (augment(pixels, params.augmentation, generator) for _ in range(params.cached_views))

    plain = CachedViews(
        "plain", count_views(plain_views(params)), 0, render_plain, plain_views(params)
    )
    augmented = CachedViews(
        "augmented", params.cached_views, params.seed, render_augmented, params.augmentation
    )
    augmented_features = None
    if params.cached_views:
        augmented_features = _features(prefix, photos, augmented, hardware, store)
    plain_features = _features(prefix, photos, plain, hardware, store)
    return Inputs(photos, params, hardware, prefix, rest, augmented_features, plain_features)


@dataclass(frozen=True)
class CachedViews:
    """Views of each photo whose features are cached.

    `render` turns pixels (B x S x S x 3, uint8) and a generator seeded with `seed` into `count`
    batches of images; `cache_key` holds every parameter it reads.
    """

    kind: Literal["augmented", "plain"]
    count: int
    seed: int
    render: Callable[[Tensor, torch.Generator], Iterable[Tensor]]
    cache_key: Section


def _features(
    prefix: nn.Module, photos: Photos, views: CachedViews, hardware: Hardware, store: FeatureStore
) -> Tensor | None:
    """Return the prefix's outputs (N x V x ..., channels last) for V views of all photos.

    None if plain ones exceed the store's limit. They do not depend on the fold, so all folds share
    them.

    Raises:
        UserError: if augmented ones exceed the store's limit.
        OSError: if the store cannot be written.
    """
    generator = torch.Generator(hardware.device)

    def compute(rows: Tensor) -> Iterator[Tensor]:
        for images in views.render(hardware.gather(photos.pixels, rows), generator):
            with torch.no_grad(), hardware.forward_pass():
                features: Tensor = prefix(images)
            yield features.to(hardware.dtype).movedim(1, -1)

    def compute_all() -> Iterator[Tensor]:
        generator.manual_seed(views.seed)
        chunks = torch.arange(len(photos), device=hardware.device).split(CHUNK)
        for rows in progress(chunks, len(chunks), f"features, {views.kind}: batches"):
            yield torch.stack(list(compute(rows)), dim=1)

    first = next(compute(torch.zeros(1, dtype=torch.long, device=hardware.device)))
    shape = (len(photos), views.count, *first.shape[1:])
    facts = (photos.sha256, str(prefix), shape, views.kind, views.seed, views.cache_key)
    key = fingerprint(facts, prefix.state_dict(), hardware)
    features = store.get(key, shape, hardware.dtype, compute_all)
    if features is None and views.kind == "augmented":
        size = math.prod(shape) * hardware.dtype.itemsize / 1e9
        raise UserError(
            f"train.cached_views: {views.count} views of {len(photos)} photos take {size:.1f} GB, "
            f"and train.cache_gb allows {store.limit / 1e9:g}: lower the one or raise the other"
        )
    return None if features is None else hardware.to_device_if_it_fits(features)
