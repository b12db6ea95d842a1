"""Cached features: computed once, limited in size, checked for damage."""

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from face_attributes.training.feature_store import FeatureStore, open_store

SHAPE = (2, 5, 3)
NBYTES = 2 * 5 * 3 * 2


class Source:
    """Yields features in parts, and counts the calls."""

    def __init__(self, value: float = 0.0) -> None:
        self.calls = 0
        self.features = (torch.arange(30).reshape(SHAPE) + value).to(torch.bfloat16)

    def __call__(self) -> Iterator[Tensor]:
        self.calls += 1
        yield from self.features.flatten(0, 1).split(3)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features", limit=10 * NBYTES)


def get(store: FeatureStore, source: Source, key: str = "a") -> Tensor | None:
    return store.get(key, SHAPE, torch.bfloat16, source)


def assert_stored(store: FeatureStore, source: Source, key: str = "a") -> None:
    features = get(store, source, key)
    assert features is not None
    assert features.dtype == torch.bfloat16
    assert torch.equal(features, source.features)


def test_features_are_computed_once(store: FeatureStore) -> None:
    source = Source()
    for _ in range(2):
        assert_stored(store, source)
    assert source.calls == 1
    assert_stored(store, Source(value=40), "b")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_keep_their_precision(store: FeatureStore, dtype: torch.dtype) -> None:
    numbers = torch.linspace(-3, 3, 30).reshape(SHAPE).to(dtype)
    features = FeatureStore(store.folder, 1000).get("a", SHAPE, dtype, lambda: [numbers])
    assert features is not None and features.dtype == dtype
    assert torch.equal(features, numbers)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_file_is_computed_again(store: FeatureStore, damage: str) -> None:
    get(store, Source())
    (path,) = store.folder.glob("*.features")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-7] ^= 1
    path.write_bytes({"cut": content[:-2], "flipped": content, "empty": b""}[damage])
    source = Source()
    assert_stored(store, source)
    assert source.calls == 1


def test_least_recently_used_file_is_evicted_first(store: FeatureStore) -> None:
    store = FeatureStore(store.folder, limit=2 * (NBYTES + 32) + NBYTES - 1)
    for age, key in enumerate("abc"):
        get(store, Source(), key)
        os.utime(store.folder / f"{key}.features", (age, age))
        if key == "b":
            get(store, Source(), "a")  # now b is the least recently used
    assert sorted(path.stem for path in store.folder.glob("*.features")) == ["a", "c"]


def test_features_above_the_limit_are_not_computed(store: FeatureStore) -> None:
    source = Source()
    assert get(FeatureStore(store.folder, limit=NBYTES - 1), source) is None
    assert source.calls == 0


def test_nothing_is_stored_if_computing_fails(store: FeatureStore) -> None:
    def fail() -> Iterator[Tensor]:
        yield torch.zeros(3, 3, dtype=torch.bfloat16)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.get("a", SHAPE, torch.bfloat16, fail)
    assert not list(store.folder.glob("*.features*"))
    assert_stored(store, Source())


def test_concurrent_runs_compute_features_once(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Threads with a store each: the lock on the file excludes them like processes."""
    computing = threading.Event()

    class SlowSource(Source):
        def __call__(self) -> Iterator[Tensor]:
            computing.set()
            time.sleep(0.2)
            yield from super().__call__()

    first, second = SlowSource(), SlowSource()
    with ThreadPoolExecutor() as pool:
        result = pool.submit(assert_stored, store, first)
        assert computing.wait(10)
        assert_stored(FeatureStore(store.folder, store.limit), second)
        result.result()
    assert (first.calls, second.calls) == (1, 0)
    assert "waiting for another run that is computing features" in capsys.readouterr().out


def test_experiments_in_temporary_copies_share_the_project_s_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    for folder in (tmp_path, copy):
        monkeypatch.chdir(folder)
        store = open_store(2.5)
        assert store.folder == tmp_path / ".cache/features"
        assert store.limit == 2_500_000_000
