"""Hashes of large files are remembered, and never those of other content."""

import os
from pathlib import Path

import pytest

from face_attributes import files
from face_attributes.files import remembered_sha256, sha256

HOUR = 3600 * 10**9


@pytest.fixture
def crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is an hour old, in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "train.npy"
    path.write_bytes(b"pixels")
    age(path, HOUR)
    return path


def age(path: Path, nanoseconds: int) -> None:
    written = path.stat().st_mtime_ns - nanoseconds
    os.utime(path, ns=(written, written))


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read from now on."""
    hashed = list[Path]()

    def record(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr(files, "sha256", record)
    return hashed


def test_an_unchanged_file_is_hashed_once(crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = count_hashes(monkeypatch)
    assert [remembered_sha256(path) for path in (crops, crops, Path("train.npy"))] == [
        sha256(crops)
    ] * 3
    assert hashed == [crops]


@pytest.mark.parametrize("change", ["content", "size", "replaced"])
def test_a_changed_file_is_hashed_again(crops: Path, change: str) -> None:
    before = remembered_sha256(crops)
    if change == "replaced":  # by a file of the same size and time
        status = crops.stat()
        crops.with_name("other").write_bytes(b"PIXELS")
        os.utime(crops.with_name("other"), ns=(status.st_mtime_ns, status.st_mtime_ns))
        crops.with_name("other").replace(crops)
    else:
        crops.write_bytes(b"PIXELS" if change == "content" else b"more pixels")
    assert remembered_sha256(crops) == sha256(crops) != before


def test_a_file_that_was_just_written_is_hashed_again(
    crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops.write_bytes(b"pixels")
    hashed = count_hashes(monkeypatch)
    assert remembered_sha256(crops) == remembered_sha256(crops)
    assert len(hashed) == 2


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", b'{"file": null, "sha256": 1}', b"\xff"])
def test_a_damaged_note_is_ignored(crops: Path, note: bytes) -> None:
    remembered_sha256(crops)
    (path,) = Path(".cache/hashes").iterdir()
    path.write_bytes(note)
    assert remembered_sha256(crops) == sha256(crops)


def test_without_a_place_for_the_note_the_hash_is_right(crops: Path) -> None:
    Path(".cache").write_text("in the way")
    assert remembered_sha256(crops) == sha256(crops)
