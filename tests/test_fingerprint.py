"""Fingerprints change with everything that results depend on."""

import pytest
import torch

from face_attributes.networks.device import Hardware
from face_attributes.training.fingerprint import CODE, LIBRARY, fingerprint, library_versions
from tests.small import CPU

STATE = {"weight": torch.arange(4.0)}


def test_fingerprint_changes_with_facts_tensors_and_machine() -> None:
    first = fingerprint(("a", 1), STATE, CPU)
    assert first == fingerprint(("a", 1), {"weight": torch.arange(4.0)}, CPU)
    others = {
        fingerprint(("a", 2), STATE, CPU),
        fingerprint(("a", 1), {"bias": torch.arange(4.0)}, CPU),
        fingerprint(("a", 1), {"weight": torch.arange(4.0).view(2, 2)}, CPU),
        fingerprint(("a", 1), {"weight": torch.arange(4.0) + 1}, CPU),
        fingerprint(("a", 1), STATE, Hardware(CPU.device, torch.bfloat16)),
    }
    torch.set_num_threads(torch.get_num_threads() + 1)
    others.add(fingerprint(("a", 1), STATE, CPU))
    assert len(others - {first}) == 6


def test_fingerprint_on_a_gpu_changes_with_its_model_and_not_with_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def on_gpu(index: int, name: str, cudnn: int) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        return fingerprint("a", STATE, Hardware(torch.device("cuda", index), torch.float32))

    first = on_gpu(0, "H100", 92400)
    assert on_gpu(1, "H100", 92400) == first
    torch.set_num_threads(torch.get_num_threads() + 1)
    assert on_gpu(0, "H100", 92400) == first
    assert len({first, on_gpu(0, "T4", 92400), on_gpu(0, "H100", 91000)}) == 3


def test_code_of_networks_and_training_is_included() -> None:
    for name in ("networks/build.py", "training/loop.py", "photos/labels.py"):
        assert LIBRARY / name in CODE
    assert all(path.is_file() for path in CODE)


def test_versions_of_torchvision_and_timm_are_included() -> None:
    """Their code computes features as well, and a network's definition may change in it."""
    names = {version.split()[0] for version in library_versions()}
    assert {"torch", "torchvision", "timm"} <= names
