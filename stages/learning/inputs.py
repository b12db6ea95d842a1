"""What is fed to the part of the network that trains: photos, or features of a frozen prefix."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.errors import UserError
from stages.learning.augment import augment
from stages.learning.device import Hardware, normalise
from stages.learning.feature_store import FeatureStore
from stages.learning.fingerprint import fingerprint
from stages.learning.network import split
from stages.learning.views import views_at_test
from stages.params import TrainParams
from stages.photos.labels import CLASSES
from stages.progress import progress

CHUNK = 128
"""Photos whose features are computed at once."""

CODE = [
    Path(__file__).parent / name for name in ("augment.py", "device.py", "inputs.py", "network.py")
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

    `plain` and `views` hold kept features (V x N x ...), channels last; None where there are none.
    """

    photos: Photos
    params: TrainParams
    hardware: Hardware
    prefix: nn.Module | None
    rest: nn.Module
    plain: Tensor | None
    views: Tensor | None

    def augmented(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """A batch for `forward`, augmented anew, or a view drawn for each photo."""
        if self.views is None:
            pixels = self.hardware.gather(self.photos.pixels, rows)
            return augment(pixels, self.params, generator)
        view = torch.randint(
            len(self.views), (len(rows),), generator=generator, device=generator.device
        )
        return self._kept(self.views, view, rows)

    def forward(self, batch: Tensor) -> Tensor:
        """What the network says (B x 18 logits or more, float32) of a batch from `augmented`."""
        with self.hardware.autocast():
            if self.prefix is not None and self.views is None:
                with torch.no_grad():
                    batch = self.prefix(batch)
            logits: Tensor = self.rest(batch)
        return logits.float()

    @torch.no_grad()
    def predict(self, rows: Tensor, zoom: float = 0.0) -> Tensor:
        """Log-probabilities (R x 18, float32, on the CPU) without augmentation.

        Those of the mean over the views of each photo: its mirror image with `flip_at_test`, and
        nearer and farther ones by `zoom`.
        """
        self.rest.eval()
        found = [torch.empty(0, CLASSES)]
        for chosen in rows.split(CHUNK):
            with self.hardware.autocast():
                logits = [self.rest(view) for view in self._views(chosen, zoom)]
            views = torch.stack([each.float().log_softmax(dim=1) for each in logits])
            found.append((views.logsumexp(dim=0) - math.log(len(views))).cpu())
        return torch.cat(found)

    def _views(self, rows: Tensor, zoom: float) -> Iterator[Tensor]:
        """What the rest of the network takes of each view; of kept ones, where they are all."""
        if self.plain is not None and not zoom:
            for mirrored, _ in enumerate(self.plain):
                yield self._kept(self.plain, torch.full_like(rows, mirrored), rows)
            return
        images = normalise(self.hardware.gather(self.photos.pixels, rows))
        for view in views_at_test(images, self.params.flip_at_test, zoom):
            yield view if self.prefix is None else self.prefix(view)

    def _kept(self, features: Tensor, view: Tensor, rows: Tensor) -> Tensor:
        place = view * len(self.photos) + rows
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
        return Inputs(photos, params, hardware, None, network, None, None)
    prefix, rest = split(network)
    prefix.eval()

    keep = partial(_keep_features, prefix, photos, params, hardware, store)
    views = keep(params.cached_views, augmented=True) if params.cached_views else None
    plain = keep(1 + params.flip_at_test, augmented=False)
    return Inputs(photos, params, hardware, prefix, rest, plain, views)


def _keep_features(
    prefix: nn.Module,
    photos: Photos,
    params: TrainParams,
    hardware: Hardware,
    store: FeatureStore,
    views: int,
    augmented: bool,
) -> Tensor | None:
    """Outputs of the prefix (V x N x ..., channels last) for `views` views of all photos.

    Augmented ones, or the photos as they are and, as a second view, mirrored; None where the store
    has no room for those. They depend on the seed alone, not on the fold: all folds share them.
    """
    generator = torch.Generator(hardware.device)

    def compute(view: int, rows: Tensor) -> Tensor:
        pixels = hardware.gather(photos.pixels, rows)
        if augmented:
            images = augment(pixels, params, generator)
        else:
            images = normalise(pixels.flip(2) if view else pixels)
        with torch.no_grad(), hardware.autocast():
            features: Tensor = prefix(images)
        return features.to(hardware.dtype).movedim(1, -1)

    def compute_all() -> Iterator[Tensor]:
        generator.manual_seed(params.seed)
        everything = torch.arange(len(photos), device=hardware.device)
        chunks = list(itertools.product(range(views), everything.split(CHUNK)))
        shown = progress(chunks, len(chunks), "features: batches")
        yield from itertools.starmap(compute, shown)

    one = compute(0, torch.zeros(1, dtype=torch.long, device=hardware.device))
    shape = (views, len(photos), *one.shape[1:])
    augmentation = (
        params.seed, params.shift, params.flip, params.brightness, params.rotation, params.zoom,
        params.erasing,
    )  # fmt: skip
    facts = (photos.sha256, str(prefix), shape, augmentation if augmented else "as they are")
    key = fingerprint(facts, prefix.state_dict(), CODE, hardware)
    kept = store.get(key, shape, hardware.dtype, compute_all)
    if kept is None:
        if not augmented:
            return None
        size = math.prod(shape) * hardware.dtype.itemsize / 1e9
        raise UserError(
            f"train.cached_views: {views} views of {len(photos)} photos take {size:.1f} GB, more "
            f"than train.cache_gb allows ({params.cache_gb:g}): take fewer views or raise it"
        )
    return hardware.hold(kept)
