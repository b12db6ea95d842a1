"""Packed crops: all crops of a set, N x side x side x 3, uint8, in `.npy` files of bounded size.

A folder holds the files, called shards (`0000.npy`, `0001.npy`, ...), and `manifest.json`: the side
of the crops, and the rows and the SHA-256 of each shard. Readers map shards into memory: the system
keeps in RAM what fits, and reads the rest from disk.
"""

import hashlib
import mmap
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedRandom
from itertools import accumulate
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from face_attributes.errors import UserError
from face_attributes.files import (
    is_link_into_cache,
    path_in_errors,
    remembered_sha256,
    remove_leftovers,
    write_json,
    write_whole,
)

Pixels = NDArray[np.uint8]

MANIFEST = "manifest.json"

SHARD_BYTES = 2**32 - 2**20
"""Largest size of the crops in a shard: file systems and object stores have limits of 4 GiB and
5 GB. Of 10 million crops at 224 pixels, 351 shards are open at once; the usual limit is 1,024."""


class Shard(BaseModel):
    """A line of the manifest."""

    model_config = ConfigDict(strict=True, extra="forbid")

    file: str
    rows: int
    sha256: str


class Manifest(BaseModel):
    """The content of `manifest.json`. A set without crops has a shard without rows."""

    model_config = ConfigDict(strict=True, extra="forbid")

    side: int
    shards: list[Shard] = Field(min_length=1)


@contextmanager
def packed_writer(folder: Path, count: int, side: int) -> Iterator[Callable[[int, Pixels], None]]:
    """Write `count` crops to a folder with one crop in memory at a time, in any order.

    Those of an earlier run stay until all are written. The manifest comes last: without it, the
    folder counts as unfinished. Uses plain writes: on a full disk they raise, where a memory map
    would kill the process.

    Yields:
        `write(row, crop)`, to call once per row with a crop of side x side x 3, uint8.
    """
    remove_leftovers(folder)
    limit = max(1, SHARD_BYTES // (side * side * 3))
    rows = [min(limit, count - start) for start in range(0, max(1, count), limit)]
    paths = [folder / f"{number:04}.npy" for number in range(len(rows))]
    written = np.zeros(count, dtype=bool)
    with ExitStack() as stack:
        files = [stack.enter_context(write_whole(path)) for path in paths]
        for file, length in zip(files, rows, strict=True):
            header = {"descr": "|u1", "fortran_order": False, "shape": (length, side, side, 3)}
            np.lib.format.write_array_header_1_0(file, header)
        starts = [file.tell() for file in files]

        def write(row: int, crop: Pixels) -> None:
            shard, place = divmod(row, limit)
            files[shard].seek(starts[shard] + place * crop.nbytes)
            files[shard].write(np.ascontiguousarray(crop).tobytes())
            written[row] = True

        yield write
        if not written.all():
            raise ValueError(f"{folder}: {written.sum()} crops instead of {count}")
        shards = [
            Shard(file=path.name, rows=length, sha256=_sha256(file))
            for path, length, file in zip(paths, rows, files, strict=True)
        ]
        _delete_packed(folder)
    write_json(folder / MANIFEST, Manifest(side=side, shards=shards).model_dump())


def _sha256(file: BufferedRandom) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def _delete_packed(folder: Path) -> None:
    """Delete packed crops, the manifest first, and no other file that is there."""
    for path in (folder / MANIFEST, *folder.glob("[0-9][0-9][0-9][0-9]*.npy")):
        path.unlink(missing_ok=True)


def write_packed(folder: Path, crops: Iterable[Pixels], count: int, side: int) -> None:
    """Write `count` crops (side x side x 3, uint8) that come in order."""
    with packed_writer(folder, count, side) as write:
        for row, crop in enumerate(crops):
            write(row, crop)


class PackedPixels:
    """Crops in mapped shards. Rows are numbered, and indexed, as in a single array.

    A number gives a read-only view of the file, side x side x 3; a slice, an array of numbers or a
    mask a copy of rows, R x side x side x 3.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Map the shards.

        Raises:
            UserError: if one is missing or is not what the manifest says.
        """
        self.folder, self.manifest = folder, manifest
        side = manifest.side
        self.shards = [
            _map(folder / shard.file, (shard.rows, side, side, 3)) for shard in manifest.shards
        ]
        self._ends = [*accumulate(map(len, self.shards))]
        self._numbers = np.arange(self._ends[-1])
        self.shape = (self._ends[-1], side, side, 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Pixels]:
        for shard in self.shards:
            yield from shard

    def __getitem__(self, rows: int | slice | NDArray[np.intp] | NDArray[np.bool_]) -> Pixels:
        numbers = self._numbers[rows]
        if numbers.ndim == 0:
            shard, row = self._find(int(numbers))
            crop: Pixels = self.shards[shard][row]
            return crop
        gathered = np.empty((*numbers.shape, *self.shape[1:]), np.uint8)
        for place, number in np.ndenumerate(numbers):
            shard, row = self._find(int(number))
            gathered[place] = self.shards[shard][row]
        return gathered

    def _find(self, number: int) -> tuple[int, int]:
        """The shard of a row, and its number there."""
        shard = bisect_right(self._ends, number)
        return shard, number - self._ends[shard] + len(self.shards[shard])

    def prefetch(self, rows: Iterable[int]) -> None:
        """Start to read rows from disk, all at once, without waiting for them.

        Windows cannot; there, each is read when it is used.
        """
        if not hasattr(mmap, "MADV_WILLNEED"):
            return
        nbytes = self.manifest.side**2 * 3
        for number in rows:
            shard, row = self._find(number)
            mapped = self.shards[shard].base
            assert isinstance(mapped, mmap.mmap)
            start = len(mapped) - self.shards[shard].nbytes + row * nbytes
            within_page = start % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start - within_page, within_page + nbytes)

    def check_content(self) -> None:
        """Check that each shard is what the stage `crop` wrote.

        Raises:
            UserError: naming one that is not.
        """
        for shard in self.manifest.shards:
            path = self.folder / shard.file
            if remembered_sha256(path) != shard.sha256:
                raise UserError(
                    f"{path} is not what the stage crop wrote (its SHA-256 is another one than in "
                    f"{MANIFEST}): {_remedy(path)}"
                )


def _remedy(path: Path) -> str:
    """What to do about missing or damaged crops, in the workspace or in DVC's cache."""
    if is_link_into_cache(path) and path.exists():
        return f"delete {path.readlink()}, then `dvc repro crop` makes it again"
    return "`dvc checkout --force crop` restores it, or `dvc repro crop` makes it again"


Crops = Pixels | PackedPixels
"""Crops by row, N x side x side x 3, uint8: in memory or packed."""


def _map(path: Path, shape: tuple[int, int, int, int]) -> Pixels:
    """Map a file of crops into memory, read-only; `base` of the array is the mapping.

    Raises:
        UserError: if there is none of that shape.
    """
    try:
        with path.open("rb") as file, path_in_errors(path):
            np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0(file)
            if header != (shape, False, np.dtype(np.uint8)):
                raise ValueError
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            crops: Pixels = np.ndarray(shape, np.uint8, mapped, file.tell())
            if file.tell() + crops.nbytes != len(mapped):
                raise ValueError
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {_remedy(path)}") from None
    except (ValueError, TypeError, SyntaxError, TokenError):
        raise UserError(
            f"{path} does not have {shape[0]} crops of {shape[1]} pixels, as {MANIFEST} says: "
            f"{_remedy(path)}"
        ) from None
    return crops


def read_packed(folder: Path) -> PackedPixels:
    """Map packed crops into memory.

    Raises:
        UserError: if the manifest or a shard is missing or damaged, or they do not match.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} is missing: {_remedy(path)}") from None
    except ValidationError:
        raise UserError(f"{path} does not list packed crops: {_remedy(path)}") from None
    return PackedPixels(folder, manifest)
