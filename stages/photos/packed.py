"""The packed pixel array: all crops of a set as one `.npy`, N x size x size x 3, uint8."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.files import write_whole

Pixels = NDArray[np.uint8]


def write_packed(path: Path, crops: Iterable[Pixels], count: int, size: int) -> None:
    """Write `count` crops (size x size x 3, uint8) one after the other, holding one at a time.

    Plain writes, not a memory map: on a full disk these raise, where a map would kill the process.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
    with write_whole(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        written = 0
        for crop in crops:
            file.write(np.ascontiguousarray(crop).tobytes())
            written += 1
        if written != count:
            raise ValueError(f"{path}: {written} crops, not {count}")


def read_packed(path: Path) -> Pixels:
    """Map a packed array into memory, read-only: N x size x size x 3, uint8."""
    pixels: Pixels = np.load(path, mmap_mode="r")
    return pixels
