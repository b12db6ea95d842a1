"""Packed crops are written one at a time, and read from their file, however large it is."""

import ctypes
import mmap
import os
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from face_attributes.networks.device import mapped_tensor
from face_attributes.photos.packed import (
    Pixels,
    packed_writer,
    prefetch,
    read_packed,
    write_packed,
)


def crops_of(values: range, side: int = 4) -> list[Pixels]:
    return [np.full((side, side, 3), value, dtype=np.uint8) for value in values]


def test_crops_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_packed(tmp_path / "a.npy", iter(crops_of(range(5))), 5, 4)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), crops_of(range(5)))
    np.testing.assert_array_equal(read_packed(tmp_path / "a.npy"), crops_of(range(5)))
    write_packed(tmp_path / "none.npy", [], 0, 4)
    assert read_packed(tmp_path / "none.npy").shape == (0, 4, 4, 3)


def test_crops_may_be_written_in_any_order(tmp_path: Path) -> None:
    crops = crops_of(range(5))
    write_packed(tmp_path / "in_order.npy", crops, 5, 4)
    with packed_writer(tmp_path / "a.npy", 5, 4) as write:
        for row in (3, 0, 4, 1, 2):
            write(row, crops[row])
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "in_order.npy").read_bytes()


def test_a_file_with_another_number_of_crops_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 crops instead of 6"):
        write_packed(tmp_path / "a.npy", crops_of(range(5)), 6, 4)
    assert list(tmp_path.iterdir()) == []


def test_more_crops_than_ram_holds_can_be_read(tmp_path: Path) -> None:
    """A sparse file, which takes no room on the disk."""
    side, path = 224, tmp_path / "large.npy"
    count = 2 * psutil.virtual_memory().total // (side * side * 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + count * side * side * 3 - 1)
        file.seek(0, 2)
        file.write(b"\x07")
    pixels = mapped_tensor(read_packed(path))
    assert pixels.shape == (count, side, side, 3)
    rows = pixels[torch.tensor([5, count - 1])]
    assert rows.sum(dtype=torch.long) == 7


def resident(path: Path, start: int, nbytes: int) -> bool:
    """Whether all pages of a part of a file are in memory."""
    start -= start % mmap.PAGESIZE
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    buffer = ctypes.c_char.from_buffer(mapped, start)
    pages = (ctypes.c_ubyte * -(-nbytes // mmap.PAGESIZE))()
    address = ctypes.c_void_p(ctypes.addressof(buffer))
    assert ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(nbytes), pages) == 0
    return all(page & 1 for page in pages)


def test_prefetched_crops_are_in_memory_before_they_are_used(tmp_path: Path) -> None:
    path, side, rows = tmp_path / "a.npy", 64, [3, 170, 399]
    write_packed(path, crops_of(range(200), side) * 2, 400, side)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pixels = read_packed(path)
    prefetch(pixels, rows)
    nbytes = side * side * 3
    for _ in range(100):
        if found := all(resident(path, pixels.offset + row * nbytes, nbytes) for row in rows):
            break
        time.sleep(0.05)
    assert found
    np.testing.assert_array_equal(pixels[rows], np.array(crops_of(range(200), side) * 2)[rows])
