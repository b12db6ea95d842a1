"""A disk cache of features, computed once for all folds and later runs.

It is in `.cache/features` of the project folder, outside DVC's outputs: one file with a checksum
per set of features, named by the hash of everything they depend on. It can be deleted at any time.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from face_attributes.files import (
    project_folder,
    read_checksummed,
    remove_leftovers,
    write_checksummed,
)
from face_attributes.networks.device import mapped_tensor

STORED_AS = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2"}
"""numpy types of the numbers in a file; numpy has no bfloat16."""


class FeatureStore:
    """A folder of feature files, `limit` bytes in total.

    The least recently used file is evicted first. Processes that need the same features at the same
    time wait for the one that computes them.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def get(
        self,
        key: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        compute: Callable[[], Iterable[Tensor]],
    ) -> Tensor | None:
        """Return the features stored under `key`, memory-mapped; compute them if necessary.

        Args:
            compute: yields consecutive parts of the features, in any shape.

        Returns:
            A tensor of `shape` and `dtype` on the CPU; None if it is larger than the limit.

        Raises:
            OSError: if the folder cannot be written.
        """
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if nbytes > self.limit:
            return None
        path = self.folder / f"{key}.features"
        features = _read(path, shape, dtype)
        if features is not None:
            return features
        with self._locked():
            features = _read(path, shape, dtype)  # another process may have written it meanwhile
            if features is None:
                self._make_room(nbytes)
                with write_checksummed(path) as file:
                    for part in compute():
                        file.write(part.cpu().contiguous().view(torch.uint8).numpy().data)
                features = _read(path, shape, dtype)
        assert features is not None, f"{path} was just written"
        return features

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("waiting for another run that is computing features", flush=True)
            lock.acquire()
        try:
            remove_leftovers(self.folder)
            yield
        finally:
            lock.release()

    def _make_room(self, nbytes: int) -> None:
        """Evict the least recently used files until `nbytes` more fit."""
        files = sorted(self.folder.glob("*.features"), key=lambda path: path.stat().st_mtime)
        used = sum(path.stat().st_size for path in files)
        for path in files:
            if used + nbytes <= self.limit:
                break
            used -= path.stat().st_size
            path.unlink()


def open_store(cache_gb: float) -> FeatureStore:
    """Open the project's store, even from one of DVC's temporary copies of the project."""
    return FeatureStore(project_folder() / ".cache/features", int(cache_gb * 1e9))


def _read(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    with read_checksummed(path) as file:
        if file is None:
            return None
        numbers = np.memmap(file, STORED_AS[dtype], "r", offset=file.tell(), shape=shape)
    with contextlib.suppress(OSError):  # fails for another user's file, which is still readable
        os.utime(path)
    return mapped_tensor(numbers).view(dtype)
