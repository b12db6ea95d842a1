"""Packed crops are written one at a time, and read from their shards, however large they are."""

import ctypes
import json
import mmap
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from face_attributes.errors import UserError
from face_attributes.files import sha256
from face_attributes.networks.device import gather
from face_attributes.photos import packed
from face_attributes.photos.packed import (
    Pixels,
    packed_writer,
    read_packed,
    write_packed,
)

SIDE = 4


def crops_of(values: range, side: int = SIDE) -> list[Pixels]:
    return [np.full((side, side, 3), value, dtype=np.uint8) for value in values]


@pytest.fixture
def three_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", 4 * SIDE * SIDE * 3 - 1)


@pytest.fixture
def eight(tmp_path: Path, three_a_shard: None) -> Path:
    """Eight crops in three shards."""
    write_packed(tmp_path / "eight", crops_of(range(8)), 8, SIDE)
    return tmp_path / "eight"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Writing


def test_few_crops_are_one_shard_which_numpy_reads(tmp_path: Path) -> None:
    write_packed(tmp_path, iter(crops_of(range(5))), 5, SIDE)
    assert sorted(contents(tmp_path)) == ["0000.npy", "manifest.json"]
    np.save(tmp_path / "numpy.npy", np.stack(crops_of(range(5))))
    assert (tmp_path / "0000.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    np.testing.assert_array_equal(read_packed(tmp_path)[:], crops_of(range(5)))


@pytest.mark.usefixtures("three_a_shard")
def test_the_manifest_tells_the_rows_and_hashes_of_shards(tmp_path: Path) -> None:
    write_packed(tmp_path, crops_of(range(8)), 8, SIDE)
    names = ["0000.npy", "0001.npy", "0002.npy"]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == {
        "side": SIDE,
        "shards": [
            {"file": name, "rows": rows, "sha256": sha256(tmp_path / name)}
            for name, rows in zip(names, (3, 3, 2), strict=True)
        ],
    }
    assert [len(np.load(tmp_path / name)) for name in names] == [3, 3, 2]
    assert sorted(contents(tmp_path)) == [*names, "manifest.json"]


@pytest.mark.usefixtures("three_a_shard")
@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_no_shard_is_empty_but_that_of_no_crops(tmp_path: Path, count: int) -> None:
    write_packed(tmp_path, crops_of(range(count)), count, SIDE)
    pixels = read_packed(tmp_path)
    assert [len(shard) for shard in pixels.shards] == ([3] * (count // 3) or [count])
    assert pixels.shape == pixels[:].shape == (count, SIDE, SIDE, 3)
    assert len(list(pixels)) == len(pixels) == count


def test_a_shard_of_ten_million_crops_is_below_the_limits_of_stores_and_of_open_files() -> None:
    rows = packed.SHARD_BYTES // (224 * 224 * 3)
    assert rows * 224 * 224 * 3 + 128 < 2**32
    assert 10**7 / rows < 1024 / 2


@pytest.mark.usefixtures("three_a_shard")
def test_crops_may_be_written_in_any_order(tmp_path: Path) -> None:
    crops = crops_of(range(8))
    write_packed(tmp_path / "in_order", crops, 8, SIDE)
    with packed_writer(tmp_path / "any", 8, SIDE) as write:
        for row in (3, 0, 7, 4, 1, 6, 2, 5):
            write(row, crops[row])
    assert contents(tmp_path / "any") == contents(tmp_path / "in_order")


def test_another_number_of_crops_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 crops instead of 6"):
        write_packed(tmp_path, crops_of(range(5)), 6, SIDE)
    assert contents(tmp_path) == {}


def test_shards_of_an_earlier_run_are_deleted_and_other_files_kept(eight: Path) -> None:
    (eight / "0007.npy.123.partial").write_text("of a killed run")
    (eight / "notes.txt").write_text("mine")
    write_packed(eight, crops_of(range(2)), 2, SIDE)
    assert sorted(contents(eight)) == ["0000.npy", "manifest.json", "notes.txt"]
    np.testing.assert_array_equal(read_packed(eight)[:], crops_of(range(2)))


def test_the_crops_of_an_earlier_run_stay_until_all_are_written(eight: Path) -> None:
    before = contents(eight)
    with pytest.raises(KeyboardInterrupt), packed_writer(eight, 2, SIDE) as write:
        write(0, crops_of(range(1))[0])
        np.testing.assert_array_equal(read_packed(eight)[:], crops_of(range(8)))
        raise KeyboardInterrupt
    assert contents(eight) == before


def test_a_run_that_is_killed_before_its_end_is_not_taken_for_a_whole_one(
    eight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it replaces the shards of the run before."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packed, "write_json", stop)
        write_packed(eight, crops_of(range(1, 6)), 5, SIDE)
    assert refusal(eight) == f"{eight / 'manifest.json'} is missing: {REMEDY}"
    write_packed(eight, crops_of(range(2)), 2, SIDE)
    assert sorted(contents(eight)) == ["0000.npy", "manifest.json"]


# Reading

INDICES: list[Any] = [
    0, 3, -1, -8, np.int64(5), slice(None), slice(2, 4), slice(None, None, -3), slice(5, 2),
    np.array([7, 0, 0, 4]), np.array([-1, -8]), np.array([], int), np.array([[1, 6], [2, 3]]),
    np.arange(8) % 2 == 0, np.zeros(8, bool),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=repr)
@pytest.mark.parametrize("shard_bytes", [200, 10**6])
def test_shards_are_indexed_as_one_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int, index: Any
) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", shard_bytes)
    write_packed(tmp_path, crops_of(range(8)), 8, SIDE)
    found, expected = read_packed(tmp_path)[index], np.stack(crops_of(range(8)))[index]
    np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize("index", [8, -9, np.array([0, 8]), np.array([-9]), np.ones(7, bool)])
@pytest.mark.parametrize("shard_bytes", [200, 10**6])
def test_an_index_that_is_out_of_range_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int, index: Any
) -> None:
    monkeypatch.setattr(packed, "SHARD_BYTES", shard_bytes)
    write_packed(tmp_path, crops_of(range(8)), 8, SIDE)
    with pytest.raises(IndexError):
        read_packed(tmp_path)[index]


def test_single_rows_are_views_of_the_file_that_cannot_be_written(eight: Path) -> None:
    pixels = read_packed(eight)
    for number, crop in enumerate(pixels):
        assert np.shares_memory(crop, pixels[number])
        assert not crop.flags.writeable
        np.testing.assert_array_equal(crop, number)


def test_rows_for_torch_may_be_written(eight: Path) -> None:
    pixels, rows = read_packed(eight), torch.tensor([7, 1, 4])
    gather(pixels, rows).zero_()
    assert gather(pixels, rows)[:, 0, 0, 0].tolist() == [7, 1, 4]


def test_more_crops_than_ram_holds_can_be_read(tmp_path: Path) -> None:
    """In sparse files, which take no room on the disk."""
    side, shards = 224, 3
    count = psutil.virtual_memory().total // (side * side * 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    for shard in range(shards):
        with (tmp_path / f"{shard}.npy").open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + count * side * side * 3 - 1)
            file.seek(0, 2)
            file.write(b"\x07")
    entries = [{"file": f"{each}.npy", "rows": count, "sha256": ""} for each in range(shards)]
    (tmp_path / "manifest.json").write_text(json.dumps({"side": side, "shards": entries}))
    pixels = read_packed(tmp_path)
    assert pixels.shape == (shards * count, side, side, 3)
    rows = gather(pixels, torch.tensor([5, count - 1, 2 * count, 3 * count - 1]))
    assert rows.sum((1, 2, 3), dtype=torch.long).tolist() == [0, 7, 0, 7]


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


@pytest.mark.parametrize("a_shard", [150, 400])
def test_prefetched_crops_are_in_memory_before_they_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_shard: int
) -> None:
    side, rows = 64, [399, 3, 170]
    nbytes = side * side * 3
    monkeypatch.setattr(packed, "SHARD_BYTES", a_shard * nbytes)
    crops = crops_of(range(200), side) * 2
    write_packed(tmp_path, crops, 400, side)
    for path in tmp_path.glob("*.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pixels = read_packed(tmp_path)
    pixels.prefetch(rows)
    places = [(tmp_path / f"{row // a_shard:04}.npy", 128 + row % a_shard * nbytes) for row in rows]
    for _ in range(100):
        if found := all(resident(path, start, nbytes) for path, start in places):
            break
        time.sleep(0.05)
    assert found
    np.testing.assert_array_equal(pixels[np.array(rows)], np.array(crops)[rows])


# What is damaged or missing

REMEDY = "`dvc checkout --force crop` restores it, or `dvc repro crop` makes it again"


def refusal(folder: Path) -> str:
    """The line that reading ends with."""
    with pytest.raises(UserError) as error:
        read_packed(folder).check_content()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["manifest.json", "0001.npy"])
def test_a_missing_file_is_a_line(eight: Path, name: str) -> None:
    (eight / name).unlink()
    assert refusal(eight) == f"{eight / name} is missing: {REMEDY}"


def test_so_is_a_missing_folder_or_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("folder", "file"):
        path = tmp_path / name / "manifest.json"
        assert refusal(tmp_path / name) == f"{path} is missing: {REMEDY}"


SHARD = {"file": "0000.npy", "rows": 3, "sha256": "0"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"side": 4, "sha',
        b"\xff\xfe",
        b"[]",
        b'{"side": 4, "shards": []}',
        json.dumps({"side": 4, "shards": [SHARD], "other": 1}).encode(),
        json.dumps({"side": "4", "shards": [SHARD]}).encode(),
        json.dumps({"side": 4, "shards": [{**SHARD, "rows": None}]}).encode(),
        json.dumps({"side": 4, "shards": [{"file": "0000.npy", "rows": 3}]}).encode(),
    ],
)
def test_a_damaged_or_foreign_manifest_is_a_line(eight: Path, content: bytes) -> None:
    path = eight / "manifest.json"
    path.write_bytes(content)
    assert refusal(eight) == f"{path} does not list packed crops: {REMEDY}"


@pytest.mark.parametrize(
    ("side", "rows"), [(4, 2), (4, 4), (5, 3), (-4, 3), (4, -3), (4, 10**30), (10**30, 3)]
)
def test_a_shard_of_other_rows_or_another_side_is_a_line(eight: Path, side: int, rows: int) -> None:
    path = eight / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["side"] = side
    manifest["shards"][0]["rows"] = rows
    path.write_text(json.dumps(manifest))
    assert refusal(eight) == (
        f"{eight / '0000.npy'} does not have {rows} crops of {side} pixels, as manifest.json says: "
        f"{REMEDY}"
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (rb".*", b""),
        (rb"^\x93NUMPY", b"\x93NUMPI"),
        (rb"^\x93NUMPY", b"PK\x03\x04xx"),
        (rb"4, 3\)", b"4, 3 "),
        (rb"'descr'", b" 'descr"),
        (rb"'\|u1'", b"'|i1'"),
        (rb"'\|u1'", b"'<u2'"),
        (rb"False", b"True "),
        (rb"\x03\Z", b""),
        (rb"\Z", b"\x03"),
        (rb"\A.{100}", b""),
    ],
)
def test_a_damaged_shard_is_a_line(eight: Path, old: bytes, new: bytes) -> None:
    path = eight / "0001.npy"
    content = re.sub(old, new, path.read_bytes().replace(b"\x05", b"\x03"), count=1, flags=re.S)
    path.write_bytes(content)
    assert refusal(eight) == (
        f"{path} does not have 3 crops of 4 pixels, as manifest.json says: {REMEDY}"
    )


def test_a_shard_of_other_crops_is_a_line_where_the_content_is_checked(eight: Path) -> None:
    path = eight / "0002.npy"
    path.write_bytes(path.read_bytes().replace(b"\x07", b"\x08"))
    assert read_packed(eight)[7][0, 0, 0] == 8
    assert refusal(eight) == (
        f"{path} is not what the stage crop wrote (its SHA-256 is another one than in "
        f"manifest.json): {REMEDY}"
    )


def test_what_is_damaged_in_dvcs_cache_is_to_be_deleted_there(eight: Path) -> None:
    """With `cache.type symlink`, DVC itself takes the damaged file for whole."""
    shard, cached = eight / "0001.npy", eight / f"files/md5/ab/{'c' * 30}"
    cached.parent.mkdir(parents=True)
    shard.rename(cached)
    shard.symlink_to(cached)
    read_packed(eight).check_content()
    cached.write_bytes(cached.read_bytes().replace(b"\x05", b"\x04"))
    line = refusal(eight)
    assert line.startswith(f"{shard} is not what the stage crop wrote")
    assert line.endswith(f": delete {cached}, then `dvc repro crop` makes it again")
    cached.unlink()
    assert refusal(eight) == f"{shard} is missing: {REMEDY}"
