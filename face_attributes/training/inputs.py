"""Inputs of the trainable part of a network: photos, or features from its frozen prefix."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from face_attributes.errors import UserError
from face_attributes.files import sha256
from face_attributes.networks.device import Hardware, Rows, gather, in_halves, mapped_tensor
from face_attributes.networks.freezing import split
from face_attributes.networks.views import average_views, count_views, make_views, normalise
from face_attributes.params import PredictionParams, Section, TrainParams
from face_attributes.photos.labels import NUM_CLASSES
from face_attributes.photos.packed import MANIFEST, PackedPixels, read_packed
from face_attributes.progress import progress
from face_attributes.training.augmentation import augment
from face_attributes.training.data_parallel import gather_shares, own_share
from face_attributes.training.feature_store import FeatureStore
from face_attributes.training.fingerprint import fingerprint
from face_attributes.training.whole_batch_norm import whole_batch_norm

CHUNK = {"cpu": 128, "cuda": 512}
"""Number of photos per batch of features or predictions, on each kind of device."""


@dataclass(frozen=True)
class Photos:
    """Crops (N x S x S x 3, uint8), their labels (N, int64), and a SHA-256 that identifies them."""

    pixels: Tensor | PackedPixels
    labels: Tensor
    sha256: str

    def __len__(self) -> int:
        return len(self.labels)

    def read_ahead(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the batches of rows, each while the photos of the next are read from disk.

        For a GPU, `fetch` reads ahead.
        """
        mapped = self.pixels if isinstance(self.pixels, PackedPixels) else None
        for rows, following in zip_longest(batches, batches[1:]):
            if mapped is not None and following is not None and self.labels.device.type == "cpu":
                mapped.prefetch(following.tolist())
            yield rows


def load_photos(crops: Path, labels: np.ndarray, hardware: Hardware) -> Photos:
    """Load all packed crops, onto the device if they fit, and their labels (N, int).

    Others stay in their files, mapped into memory, so that they may be more than RAM holds.

    Args:
        crops: folder of packed crops.

    Raises:
        UserError: if they are not what the stage `crop` wrote.
    """
    packed = read_packed(crops)
    packed.check_content()
    resident = hardware.to_device_if_it_fits([mapped_tensor(shard) for shard in packed.shards])
    return Photos(
        packed if resident is None else resident,
        torch.tensor(labels, device=hardware.device),
        sha256(crops / MANIFEST),  # which has the hashes of the crops
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

    def training_batches(
        self, batches: Sequence[Tensor], generator: torch.Generator
    ) -> Iterator[Tensor]:
        """Yield a batch for `forward` of the photos of each batch of rows.

        They are freshly augmented, or a random cached view each.
        """

        def augmented(pixels: Tensor) -> tuple[Tensor]:
            return (augment(pixels, self.params.augmentation, generator),)

        if self.augmented_features is None:
            photos = self.photos
            for pixels in self.hardware.fetch(photos.pixels, photos.read_ahead(batches)):
                (images,) = in_halves(augmented, pixels, generators=[generator])
                yield images
            return
        count = self.augmented_features.shape[1]
        chosen = (
            rows * count
            + torch.randint(count, (len(rows),), generator=generator, device=generator.device)
            for rows in batches
        )
        for features in self.hardware.fetch(self.augmented_features.flatten(0, 1), chosen):
            yield features.movedim(-1, 1)

    def forward(self, batch: Tensor) -> Tensor:
        """Compute the logits (B x 18 or more, float32) of a batch from `training_batches`.

        Or of this process's share of it.
        """
        with self.hardware.forward_pass(), whole_batch_norm():
            if self.prefix is not None and self.augmented_features is None:
                with torch.no_grad():
                    batch = self.prefix(batch)
            logits: Tensor = self.rest(batch)
        return logits.float()

    @torch.no_grad()
    def predict(self, rows: Tensor, views: PredictionParams) -> Tensor:
        """Return the log of each photo's mean probabilities over its views (R x 18, on the CPU).

        Each process predicts its share, and all get all predictions.
        """
        self.rest.eval()
        data: Rows = self.photos.pixels
        make_inputs: Callable[[Tensor, PredictionParams], Iterator[Tensor]] = self._render
        if self.plain_features is not None and views == plain_views(self.params):
            data, make_inputs = self.plain_features, self._unpack

        def predict_batch(batch: Tensor) -> tuple[Tensor]:
            with self.hardware.forward_pass():
                logits = torch.cat([self.rest(view) for view in make_inputs(batch, views)])
            return (average_views(logits, count_views(views)),)

        chunks = [torch.empty(0, NUM_CLASSES, device=self.hardware.device)]
        batches = own_share(rows).split(CHUNK[self.hardware.device.type])
        for batch in self.hardware.fetch(data, batches):
            chunks += in_halves(predict_batch, batch)
        predicted = gather_shares(torch.cat(chunks), len(rows))
        return predicted.cpu()  # one copy at the end: each waits for the GPU

    def _render(self, pixels: Tensor, views: PredictionParams) -> Iterator[Tensor]:
        """Yield each view of photos (B x S x S x 3), as inputs of the rest of the network."""
        for image in make_views(normalise(pixels), views):
            yield image if self.prefix is None else self.prefix(image)

    def _unpack(self, features: Tensor, _: PredictionParams) -> Iterator[Tensor]:
        """Yield each view of photos from their cached features (B x V x ...)."""
        for view in features.unbind(1):
            yield view.contiguous().movedim(-1, 1)


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

    def compute(pixels: Tensor) -> Iterator[Tensor]:
        for images in views.render(pixels, generator):
            with torch.no_grad(), hardware.forward_pass():
                features: Tensor = prefix(images)
            yield features.to(hardware.dtype).movedim(1, -1)

    def compute_batch(pixels: Tensor) -> tuple[Tensor]:
        return (torch.stack(list(compute(pixels)), dim=1),)

    def compute_all() -> Iterator[Tensor]:
        generator.manual_seed(views.seed)
        chunks = torch.arange(len(photos), device=hardware.device).split(
            CHUNK[hardware.device.type]
        )
        batches = hardware.fetch(photos.pixels, chunks)
        for pixels in progress(batches, len(chunks), f"features, {views.kind}: batches"):
            yield from in_halves(compute_batch, pixels, generators=[generator])

    first = next(compute(gather(photos.pixels, torch.arange(1)).to(hardware.device)))
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
    if features is None:
        return None
    resident = hardware.to_device_if_it_fits([features])
    return features if resident is None else resident
