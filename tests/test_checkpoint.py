"""Checkpoints: loaded only whole, and only by the run that wrote them."""

import resource
import struct
from pathlib import Path

import pytest
import torch

from face_attributes.errors import UserError
from face_attributes.training.checkpoint import Checkpoint

CPU = torch.device("cpu")
CONTENT = {"network": {"fc.bias": torch.arange(3.0)}, "history": [{"loss": 0.1}], "best": [1, 2]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "fold0.checkpoint"


def test_checkpoint_is_saved_loaded_and_deleted(path: Path) -> None:
    checkpoint = Checkpoint(path, "f")
    assert checkpoint.load(CPU) is None
    checkpoint.save(CONTENT)
    checkpoint.wait()
    loaded = checkpoint.load(CPU)
    assert loaded is not None
    assert torch.equal(loaded["network"]["fc.bias"], torch.arange(3.0))
    assert loaded["history"] == [{"loss": 0.1}]
    checkpoint.delete()
    assert checkpoint.load(CPU) is None
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("cut", "is damaged"),
        ("flipped", "is damaged"),
        ("foreign", "is from a run with other code, data, parameters or hardware"),
    ],
)
def test_damaged_or_foreign_checkpoint_is_set_aside(
    path: Path, capsys: pytest.CaptureFixture[str], damage: str, problem: str
) -> None:
    checkpoint = Checkpoint(path, "f")
    checkpoint.save(CONTENT)
    checkpoint.wait()
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[content.index(struct.pack("<3f", 0, 1, 2)) + 5] ^= 1
    path.write_bytes(content[:-5] if damage == "cut" else content)
    assert Checkpoint(path, "other" if damage == "foreign" else "f").load(CPU) is None
    expected = f"the checkpoint {path} {problem}: set aside as fold0.aside\n"
    assert capsys.readouterr().out == expected
    assert [file.name for file in path.parent.iterdir()] == ["fold0.aside"]


def test_only_one_process_trains_a_fold(path: Path) -> None:
    with (
        Checkpoint(path, "f").locked(),
        pytest.raises(UserError, match="another training of this fold is still running"),
        Checkpoint(path, "f").locked(),
    ):
        pass


def test_file_in_place_of_the_folder_is_an_error(path: Path) -> None:
    path.parent.write_text("no folder")
    checkpoint = Checkpoint(path, "f")
    checkpoint.save(CONTENT)
    with pytest.raises(OSError, match="checkpoints"):
        checkpoint.wait()


def test_failed_write_gives_its_reason_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """A real failing write: a limit on file sizes stands for a full disk."""
    checkpoint = Checkpoint(tmp_path / "fold0.checkpoint", "a")
    checkpoint.save({"epoch": 1})
    checkpoint.wait()
    before = checkpoint.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        checkpoint.save({"state": torch.zeros(10_000)})
        with pytest.raises(OSError, match="File too large"):
            checkpoint.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.path.read_bytes() == before
