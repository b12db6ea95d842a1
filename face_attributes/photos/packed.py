"""The packed pixel array: all crops of a set in one `.npy` file, N x side x side x 3, uint8.

Readers map it into memory: the system keeps in RAM what fits, and reads the rest from disk.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from face_attributes.files import write_whole

Pixels = NDArray[np.uint8]
PackedPixels = np.memmap[tuple[int, int, int, int], np.dtype[np.uint8]]


@contextmanager
def packed_writer(path: Path, count: int, side: int) -> Iterator[Callable[[int, Pixels], None]]:
    """Write a packed array of `count` crops with one crop in memory at a time, in any order.

    Uses plain writes: on a full disk they raise, where a memory map would kill the process.

    Yields:
        `write(row, crop)`, to call once per row with a crop of side x side x 3, uint8.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    with write_whole(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        start, written = file.tell(), np.zeros(count, dtype=bool)

        def write(row: int, crop: Pixels) -> None:
            file.seek(start + row * crop.nbytes)
            file.write(np.ascontiguousarray(crop).tobytes())
            written[row] = True

        yield write
        if not written.all():
            raise ValueError(f"{path}: {written.sum()} crops instead of {count}")


def write_packed(path: Path, crops: Iterable[Pixels], count: int, side: int) -> None:
    """Write `count` crops (side x side x 3, uint8) that come in order."""
    with packed_writer(path, count, side) as write:
        for row, crop in enumerate(crops):
            write(row, crop)


def read_packed(path: Path) -> PackedPixels:
    """Map a packed array into memory, read-only: N x side x side x 3, uint8."""
    pixels: PackedPixels = np.load(path, mmap_mode="r")
    return pixels


def prefetch(pixels: PackedPixels, rows: Iterable[int]) -> None:
    """Start to read rows of a packed array from disk, all at once, without waiting for them.

    Only Linux can; elsewhere, and on file systems that cannot, each is read when it is used.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    nbytes = pixels[:1].nbytes
    with Path(str(pixels.filename)).open("rb") as file:
        for row in rows:
            start = pixels.offset + row * nbytes
            os.posix_fadvise(file.fileno(), start, nbytes, os.POSIX_FADV_WILLNEED)
