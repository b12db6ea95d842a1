"""Inputs of the trainable part: cached features equal fresh ones; predictions average views."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from face_attributes.errors import UserError
from face_attributes.files import sha256
from face_attributes.networks import convolution
from face_attributes.networks.build import build
from face_attributes.networks.freezing import freeze, split
from face_attributes.networks.views import make_views, normalise
from face_attributes.params import AugmentationParams, PredictionParams
from face_attributes.photos import packed
from face_attributes.photos.packed import PackedPixels, write_packed
from face_attributes.training import inputs as inputs_module
from face_attributes.training.feature_store import FeatureStore
from face_attributes.training.inputs import Inputs, load_photos, plain_views, prepare_inputs
from tests.small import CPU, LittleMemory, graded_photos, seeded, tiny_network, train_params

ROWS = torch.arange(36)
UNCHANGED = {
    f"augmentation.{name}": 0.0 for name in ("shift", "flip", "brightness", "rotation", "zoom")
}


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features", 10**8)


def prepare(store: FeatureStore, freeze_point: str = "0", **changes: Any) -> Inputs:
    network = tiny_network()
    freeze(network, freeze_point)
    return prepare_inputs(network, graded_photos(), train_params(**changes), CPU, store)


def count_files(store: FeatureStore) -> int:
    return len(list(store.folder.glob("*.features")))


@pytest.mark.parametrize("a_shard", [10, 36])
def test_photos_that_stay_in_their_files_give_the_same_batches(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_shard: int
) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", a_shard * 16 * 16 * 3)
    photos, network = graded_photos(), tiny_network()
    write_packed(tmp_path / "train", photos.pixels.numpy(), len(photos), 16)
    loaded = load_photos(tmp_path / "train", photos.labels.numpy(), CPU)
    assert isinstance(loaded.pixels, PackedPixels)
    assert loaded.sha256 == sha256(tmp_path / "train/manifest.json")
    assert torch.equal(loaded.labels, photos.labels)
    batches, predictions = [], []
    for each in (photos, loaded):
        inputs = prepare_inputs(network, each, train_params(), CPU, store)
        read = inputs.training_batches(ROWS[5:].split(20), seeded())
        batches.append(torch.cat(list(read)))
        predictions.append(inputs.predict(ROWS[::3], PredictionParams(flip=True, zoom=0.1)))
    assert torch.equal(*batches)
    assert torch.equal(*predictions)


def test_the_photos_of_the_next_batch_are_read_ahead_on_a_cpu(tmp_path: Path) -> None:
    photos, prefetched = graded_photos(), list[list[int]]()
    write_packed(tmp_path / "train", photos.pixels.numpy(), len(photos), 16)
    loaded = load_photos(tmp_path / "train", photos.labels.numpy(), CPU)
    loaded.pixels.prefetch = prefetched.append
    for number, _ in enumerate(loaded.read_ahead(ROWS[:5].split(2))):
        assert prefetched == [[2, 3], [4]][: number + 1]


def test_cached_views_without_augmentation_equal_fresh_ones(store: FeatureStore) -> None:
    fresh = prepare(store, **UNCHANGED)
    cached = prepare(store, cached_views=2, **UNCHANGED)
    assert fresh.augmented_features is None
    assert cached.augmented_features is not None
    assert cached.augmented_features.shape == (36, 2, 8), "pooled"
    logits = [
        each.forward(next(each.training_batches([ROWS], seeded()))) for each in (fresh, cached)
    ]
    torch.testing.assert_close(*logits)


def test_features_and_predictions_that_do_not_fit_are_computed_in_halves(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both computed by a network for up to 5 of the 36 photos at a time."""
    expected = prepare(store, cached_views=2, **UNCHANGED)

    def split_with_little_memory(network: nn.Module) -> tuple[nn.Module, nn.Module] | None:
        halves = split(network)
        assert halves is not None
        return LittleMemory(halves[0], 5), LittleMemory(halves[1], 5)

    monkeypatch.setattr(inputs_module, "split", split_with_little_memory)
    tight = prepare(FeatureStore(tmp_path / "others", 10**8), cached_views=2, **UNCHANGED)
    for name in ("augmented_features", "plain_features"):
        torch.testing.assert_close(getattr(tight, name), getattr(expected, name))
    for views in (plain_views(tight.params), PredictionParams(flip=True, zoom=0.2)):
        torch.testing.assert_close(tight.predict(ROWS, views), expected.predict(ROWS, views))


def test_batch_takes_a_random_view_of_each_photo(store: FeatureStore) -> None:
    inputs = prepare(store, cached_views=3)
    assert inputs.augmented_features is not None
    batch = next(inputs.training_batches([ROWS], seeded()))
    is_view = (inputs.augmented_features == batch[:, None]).all(dim=2)
    assert is_view.any(dim=1).all()
    assert is_view.any(dim=0).all()


@pytest.mark.parametrize("name", AugmentationParams.model_fields)
def test_cache_key_changes_with_every_augmentation_parameter(
    store: FeatureStore, name: str
) -> None:
    params = train_params(cached_views=1)
    network = tiny_network()
    freeze(network, "0")
    changed = params.augmentation.model_copy(update={name: 0.7})
    for augmentation in (params.augmentation, params.augmentation, changed):
        # mixup does not go with cached views, but is part of the section and so of the key.
        section = params.model_copy(update={"augmentation": augmentation})
        prepare_inputs(network, graded_photos(), section, CPU, store)
    assert count_files(store) == 3, "plain features, and augmented ones of both sections"


@pytest.mark.parametrize(
    ("changes", "new_files"),
    [
        ({}, 0),
        ({"seed": 1}, 1),
        ({"cached_views": 2}, 1),
        ({"prediction.flip": True}, 1),
        ({"prediction.zoom": 0.2}, 0),  # zoomed views are not cached
        ({"epochs": 3}, 0),
    ],
)
def test_only_features_whose_parameters_change_are_computed_again(
    store: FeatureStore, changes: dict[str, Any], new_files: int
) -> None:
    prepare(store, cached_views=1)
    assert count_files(store) == 2
    prepare(store, **{"cached_views": 1, **changes})
    assert count_files(store) == 2 + new_files


@pytest.mark.parametrize("freeze_point", ["none", "0"])
@pytest.mark.parametrize("zoom", [0.0, 0.2])
def test_prediction_is_the_mean_of_the_softmaxes_of_all_views(
    store: FeatureStore, freeze_point: str, zoom: float
) -> None:
    inputs = prepare(store, freeze_point)
    views = PredictionParams(flip=True, zoom=zoom)
    images = make_views(normalise(graded_photos().pixels[:12]), views)
    with torch.inference_mode():
        network = tiny_network().eval()
        expected = torch.stack([network(image).softmax(dim=1) for image in images]).mean(dim=0)
    assert len(images) == (6 if zoom else 2)
    torch.testing.assert_close(inputs.predict(ROWS[:12], views).exp(), expected)


def test_predictions_without_room_for_features_are_the_same(store: FeatureStore) -> None:
    views = PredictionParams(flip=True, zoom=0.0)
    cached, fresh = prepare(store), prepare(FeatureStore(store.folder, 0))
    assert cached.plain_features is not None
    assert fresh.plain_features is None
    torch.testing.assert_close(cached.predict(ROWS, views), fresh.predict(ROWS, views))
    assert fresh.predict(ROWS[:0], views).shape == (0, 18)


def test_cached_views_without_room_are_one_line(store: FeatureStore) -> None:
    with pytest.raises(UserError, match=r"train\.cached_views: 4 views of 36 photos take 0\.0 GB"):
        prepare(FeatureStore(store.folder, 36 * 4 * 8 * 4 - 1), cached_views=4)


def test_last_layers_are_matrix_products(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 channels enter three convolutions of layer4; a prediction computes two views."""
    channels, convolve = list[int](), convolution.convolve

    def record(images: Tensor, *others: Any) -> Tensor:
        channels.append(images.shape[1])
        return convolve(images, *others)

    monkeypatch.setattr(convolution, "convolve", record)
    network: nn.Module = build("resnet18", 32)
    photos = graded_photos(32)
    inputs = prepare_inputs(network, photos, train_params(), CPU, store)
    batch = next(inputs.training_batches([ROWS[:8]], seeded()))
    inputs.forward(batch).sum().backward()
    assert channels.count(512) == 3
    inputs.predict(ROWS[:8], PredictionParams(flip=True, zoom=0.0))
    assert channels.count(512) == 3 * 3
