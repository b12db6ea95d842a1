"""What is fed to the part of the network that trains: photos, or features of a frozen prefix."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.learning.augment import augment
from stages.learning.device import Hardware, normalise
from stages.learning.feature_store import FeatureStore
from stages.learning.fingerprint import fingerprint
from stages.learning.network import split
from stages.learning.views import count_views, views_at_test
from stages.params import TrainParams
from stages.photos.labels import CLASSES
from stages.progress import progress

CHUNK = 128
"""Photos whose features are computed at once."""

CODE = [
    Path(__file__).parent / name
    for name in ("augment.py", "convolution.py", "device.py", "inputs.py", "network.py", "views.py")
]
"""What features depend on beside data and parameters."""


@dataclass(frozen=True)
class Photos:
    """Crops (N x H x W x 3, uint8), their labels (N, int64), and the SHA-256 of the crops."""

    pixels: Tensor
    labels: Tensor
    sha256: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Inputs:
    """Batches for a network of which a prefix may be frozen.

    `views` (augmented ones), `plain` and `zoomed` (those of a prediction) hold kept features
    (N x V x ...), channels last; None where there are none.
    """

    photos: Photos
    params: TrainParams
    hardware: Hardware
    prefix: nn.Module | None
    rest: nn.Module
    views: Tensor | None = None
    plain: Tensor | None = None
    zoomed: Tensor | None = None

    def augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A batch for `forward`, augmented anew, or a view drawn for each photo."""
        if self.views is None:
            pixels = self.hardware.gather(self.photos.pixels, rows)
            return augment(pixels, self.params, generator)
        view = torch.randint(
            self.views.shape[1], (len(rows),), generator=generator, device=generator.device
        )
        return self._kept(self.views, view, rows)

    def forward(self, batch: Tensor) -> Tensor:
        """What the network says (B x 18 logits or more, float32) of a batch from `augmented`."""
        with self.hardware.computing():
            if self.prefix is not None and self.views is None:
                with torch.no_grad():
                    batch = self.prefix(batch)
            logits: Tensor = self.rest(batch)
        return logits.float()

    @torch.no_grad()
    def predict(self, rows: Tensor, zoomed: bool = False) -> Tensor:
        """Log-probabilities (R x 18, float32, on the CPU) without augmentation.

        Those of the mean over the views of each photo: its mirror image with `flip_at_test` and,
        with `zoomed`, the ones of `zoom_at_test`.
        """
        self.rest.eval()
        found = [torch.empty(0, CLASSES)]
        for chosen in rows.split(CHUNK):
            with self.hardware.computing():
                logits = [self.rest(view) for view in self._views(chosen, zoomed)]
            views = torch.stack([each.float().log_softmax(dim=1) for each in logits])
            found.append((views.logsumexp(dim=0) - math.log(len(views))).cpu())
        return torch.cat(found)

    def _views(self, rows: Tensor, zoomed: bool) -> Iterator[Tensor]:
        """What the rest of the network takes of each view; of kept ones, where they are all."""
        zoom = self.params.zoom_at_test if zoomed else 0.0
        wanted = [self.plain, self.zoomed] if zoom else [self.plain]
        kept = [features for features in wanted if features is not None]
        if len(kept) == len(wanted):
            for features in kept:
                for place in range(features.shape[1]):
                    yield self._kept(features, torch.full_like(rows, place), rows)
            return
        images = normalise(self.hardware.gather(self.photos.pixels, rows))
        for view in views_at_test(images, self.params.flip_at_test, zoom):
            yield view if self.prefix is None else self.prefix(view)

    def _kept(self, features: Tensor, view: Tensor, rows: Tensor) -> Tensor:
        place = rows * features.shape[1] + view
        return self.hardware.gather(features.flatten(0, 1), place).movedim(-1, 1)


def prepare(
    network: nn.Module,
    photos: Photos,
    params: TrainParams,
    hardware: Hardware,
    store: FeatureStore,
) -> Inputs:
    """The inputs of a network that is frozen as wanted, features of its prefix kept in the store.

    Raises:
        UserError: if the store has no room for the cached views.
        OSError: if the store cannot be written.
    """
    if all(parameter.requires_grad for parameter in network.parameters()):
        return Inputs(photos, params, hardware, None, network)
    prefix, rest = split(network)
    prefix.eval()
    keep = partial(_keep_features, prefix, photos, hardware, store)
    views = keep(_augmented_views(params)) if params.cached_views else None
    return Inputs(photos, params, hardware, prefix, rest, views, keep(_plain_views(params)))


def keep_zoomed(inputs: Inputs, store: FeatureStore) -> Inputs:
    """The same inputs, the views of `zoom_at_test` behind a frozen prefix kept in the store too.

    They are not part of `prepare`, since no epoch looks at them, and where the store has no room
    beside what is there, or cannot be written, they are computed for each prediction.
    """
    if inputs.prefix is None or not inputs.params.zoom_at_test:
        return inputs
    views = _zoomed_views(inputs.params)
    try:
        zoomed = _keep_features(inputs.prefix, inputs.photos, inputs.hardware, store, views)
    except OSError as error:
        print(f"features of zoomed views are not kept: {error}", flush=True)
        return inputs
    return replace(inputs, zoomed=zoomed)


@dataclass(frozen=True)
class Views:
    """Views of each photo, whose features are kept.

    `see` makes their images, of pixels and of random numbers from `seed`; the knobs that it reads
    are in `made_by`, but for those that `count` tells of. Those that each epoch looks at may drive
    others out of the store, and lie on a GPU.
    """

    kind: Literal["augmented", "plain", "zoomed"]
    count: int
    seed: int
    made_by: tuple[float, ...]
    see: Callable[[Tensor, torch.Generator], Iterable[Tensor]]
    each_epoch: bool


def _augmented_views(params: TrainParams) -> Views:
    made_by = (
        params.shift, params.flip, params.brightness, params.rotation, params.zoom, params.erasing,
    )  # fmt: skip

    def see(pixels: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        return (augment(pixels, params, generator) for _ in range(params.cached_views))

    return Views("augmented", params.cached_views, params.seed, made_by, see, each_epoch=True)


def _plain_views(params: TrainParams) -> Views:
    flip = params.flip_at_test

    def see(pixels: Tensor, _: torch.Generator) -> list[Tensor]:
        return views_at_test(normalise(pixels), flip, 0.0)

    return Views("plain", count_views(flip, 0.0), 0, (), see, each_epoch=True)


def _zoomed_views(params: TrainParams) -> Views:
    flip, zoom = params.flip_at_test, params.zoom_at_test
    plain = count_views(flip, 0.0)

    def see(pixels: Tensor, _: torch.Generator) -> list[Tensor]:
        return views_at_test(normalise(pixels), flip, zoom)[plain:]

    return Views("zoomed", count_views(flip, zoom) - plain, 0, (zoom,), see, each_epoch=False)


def _keep_features(
    prefix: nn.Module, photos: Photos, hardware: Hardware, store: FeatureStore, wanted: Views
) -> Tensor | None:
    """Outputs of the prefix (N x V x ..., channels last) for the wanted views of all photos.

    None where the store has no room for them, unless they are the augmented ones. No fold is in
    them, so that all folds share them.

    Raises:
        UserError: if the store has no room for the augmented ones.
        OSError: if the store cannot be written.
    """
    generator = torch.Generator(hardware.device)

    def compute(rows: Tensor) -> Iterator[Tensor]:
        for images in wanted.see(hardware.gather(photos.pixels, rows), generator):
            with torch.no_grad(), hardware.computing():
                features: Tensor = prefix(images)
            yield features.to(hardware.dtype).movedim(1, -1)

    def compute_all() -> Iterator[Tensor]:
        generator.manual_seed(wanted.seed)
        chunks = torch.arange(len(photos), device=hardware.device).split(CHUNK)
        for rows in progress(chunks, len(chunks), f"features, {wanted.kind}: batches"):
            yield torch.stack(list(compute(rows)), dim=1)

    one = next(compute(torch.zeros(1, dtype=torch.long, device=hardware.device)))
    shape = (len(photos), wanted.count, *one.shape[1:])
    facts = (photos.sha256, str(prefix), shape, wanted.kind, wanted.seed, wanted.made_by)
    key = fingerprint(facts, prefix.state_dict(), CODE, hardware)
    kept = store.get(key, shape, hardware.dtype, compute_all, evict=wanted.each_epoch)
    if kept is None and wanted.kind == "augmented":
        size = math.prod(shape) * hardware.dtype.itemsize / 1e9
        raise UserError(
            f"train.cached_views: {wanted.count} views of {len(photos)} photos take {size:.1f} GB, "
            f"more than train.cache_gb allows ({store.limit / 1e9:g}): take fewer views or raise it"
        )
    return hardware.hold(kept) if kept is not None and wanted.each_epoch else kept
