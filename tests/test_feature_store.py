"""Features that are kept: computed once, bounded, never trusted when damaged."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.learning.feature_store import FeatureStore, project_folder
from tests.conftest import ROOT

SHAPE = (2, 5, 3)
SIZE = 2 * 5 * 3 * 2


class Source:
    """Gives features in parts, and counts how often it was asked."""

    def __init__(self, value: float = 0.0) -> None:
        self.asked = 0
        self.features = (torch.arange(30).reshape(SHAPE) + value).to(torch.bfloat16)

    def __call__(self) -> Iterator[Tensor]:
        self.asked += 1
        yield from self.features.flatten(0, 1).split(3)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "features", limit=10 * SIZE)


def get(store: FeatureStore, source: Source, key: str = "a") -> Tensor | None:
    return store.get(key, SHAPE, torch.bfloat16, source)


def test_features_are_computed_once_and_come_back_as_they_were(store: FeatureStore) -> None:
    source = Source()
    for _ in range(2):
        kept = get(store, source)
        assert kept is not None
        assert kept.dtype == torch.bfloat16
        assert torch.equal(kept, source.features)
    assert source.asked == 1
    other = Source(value=40)
    assert torch.equal(get(store, other, "b"), other.features)  # type: ignore[arg-type]


def test_nothing_goes_for_what_may_not_evict(tmp_path: Path) -> None:
    store, first, second = FeatureStore(tmp_path, limit=2 * SIZE), Source(), Source(value=1)

    def beside(key: str, source: Source) -> Tensor | None:
        return store.get(key, SHAPE, torch.bfloat16, source, evict=False)

    get(store, first)
    assert beside("b", second) is None
    assert second.asked == 0
    get(store, first)
    assert first.asked == 1
    assert torch.equal(beside("a", second), first.features)  # type: ignore[arg-type]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_computed_anew(store: FeatureStore, damage: str) -> None:
    get(store, Source())
    (path,) = store.folder.glob("*.features")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-7] ^= 1
    path.write_bytes({"cut": content[:-2], "flipped": content, "empty": b""}[damage])
    source = Source()
    assert torch.equal(get(store, source), source.features)  # type: ignore[arg-type]
    assert source.asked == 1


def test_the_least_recently_used_goes_first(store: FeatureStore) -> None:
    store = FeatureStore(store.folder, limit=2 * (SIZE + 32) + SIZE - 1)
    for age, key in enumerate("abc"):
        get(store, Source(), key)
        for path in store.folder.glob(f"{key}.features"):
            os.utime(path, (age, age))
        if key == "b":
            get(store, Source(), "a")  # used again: now b is the oldest
    assert sorted(path.stem for path in store.folder.glob("*.features")) == ["a", "c"]


def test_what_is_larger_than_the_limit_is_not_kept(store: FeatureStore) -> None:
    source = Source()
    assert get(FeatureStore(store.folder, limit=SIZE - 1), source) is None
    assert source.asked == 0


def test_features_that_failed_half_way_are_not_kept(store: FeatureStore) -> None:
    def fail() -> Iterator[Tensor]:
        yield torch.zeros(3, 3, dtype=torch.bfloat16)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.get("a", SHAPE, torch.bfloat16, fail)
    assert not list(store.folder.glob("*.features*"))
    source = Source()
    assert torch.equal(get(store, source), source.features)  # type: ignore[arg-type]


WANT = """
import sys, time, torch
from pathlib import Path
from stages.learning.feature_store import FeatureStore
def compute():
    print("computes", flush=True)
    for _ in range(2):
        time.sleep(0.5)
        yield torch.ones(5, 3, dtype=torch.bfloat16)
kept = FeatureStore(Path(sys.argv[1]), 1000).get("a", (2, 5, 3), torch.bfloat16, compute)
print(kept.sum().item())
"""


def test_two_processes_that_want_the_same_compute_it_once(store: FeatureStore) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WANT, str(store.folder)], cwd=ROOT, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    printed = b"".join(process.communicate()[0] for process in both).decode()
    assert printed.splitlines().count("computes") == 1
    assert printed.count("30.0") == 2


def test_experiments_in_temporary_copies_share_the_project_s_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert project_folder() == tmp_path
    copy = tmp_path / ".dvc/tmp/exps/tmp1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    assert project_folder() == tmp_path
