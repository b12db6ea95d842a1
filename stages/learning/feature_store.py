"""Features of photos that are computed once and kept: by fold after fold, and by later runs.

They lie in `.cache/features` of the project's folder, beside DVC's outputs, in one sealed file each
whose name is the hash of all that they depend on. All of it can be deleted at any time.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from stages.files import read_sealed, write_sealed

NUMPY = {torch.float32: "<f4", torch.bfloat16: "<i2"}
"""How numpy, which has no bfloat16, sees the numbers in the file."""


def project_folder() -> Path:
    """The folder of the project, also from within one of DVC's temporary copies of it."""
    inside, _, _ = str(Path.cwd()).partition("/.dvc/tmp/exps/")
    return Path(inside)


class FeatureStore:
    """A folder of feature files, no larger together than `limit` bytes.

    The file that was used least recently goes first. Processes that want the same features at once
    wait for the one that computes them.
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
        evict: bool = True,
    ) -> Tensor | None:
        """The features of that key, mapped into memory, computed where they are not there.

        Args:
            compute: gives consecutive parts of the features, flattened or not.
            evict: whether other features may go to make room for these.

        Returns:
            A tensor of `shape` and `dtype` on the CPU; None if it is larger than the limit, or than
            what is left of it where nothing may go.

        Raises:
            OSError: if the folder cannot be written.
        """
        size = int(np.prod(shape)) * dtype.itemsize
        if size > self.limit:
            return None
        path = self.folder / f"{key}.features"
        kept = _read(path, shape, dtype)
        if kept is not None:
            return kept
        with self._locked():
            kept = _read(path, shape, dtype)  # another process may have been at it
            if kept is None:
                if not self._make_room(size, evict):
                    return None
                with write_sealed(path) as file:
                    for part in compute():
                        file.write(part.cpu().contiguous().view(torch.uint8).numpy().data)
                kept = _read(path, shape, dtype)
        assert kept is not None, f"{path} was just written"
        return kept

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print("waiting for another run that computes features", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _make_room(self, size: int, evict: bool) -> bool:
        """Whether `size` bytes more fit; files go for it, the one used least recently first."""
        files = sorted(self.folder.glob("*.features"), key=lambda path: path.stat().st_mtime)
        used = sum(path.stat().st_size for path in files)
        for path in files:
            if used + size <= self.limit or not evict:
                break
            used -= path.stat().st_size
            path.unlink()
        return used + size <= self.limit


def _read(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    with read_sealed(path) as file:
        if file is None:
            return None
        numbers = np.memmap(file, NUMPY[dtype], "c", offset=file.tell(), shape=shape)
    with contextlib.suppress(OSError):  # a file of somebody else's can be read all the same
        os.utime(path)
    return torch.from_numpy(numbers).view(dtype)
