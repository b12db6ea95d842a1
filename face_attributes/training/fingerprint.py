"""Fingerprints: hashes of everything that a cached feature or a checkpoint was computed from."""

import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from face_attributes.networks.convolution import has_amx
from face_attributes.networks.device import Hardware

LIBRARY = Path(__file__).parents[1]
CODE = [
    *sorted((LIBRARY / "networks").glob("*.py")),
    *sorted((LIBRARY / "training").glob("*.py")),
    LIBRARY / "photos/labels.py",
    LIBRARY / "scoring/metrics.py",
    LIBRARY.parent / "stages/train.py",
]
"""The source files that features and checkpoints depend on."""


def fingerprint(facts: object, state: Mapping[str, Tensor], hardware: Hardware) -> str:
    """Hash facts (by their `repr`), tensors, CODE and the machine: SHA-256 in hexadecimal."""
    machine = (hardware.dtype, library_versions(), describe_device(hardware.device))
    digest = hashlib.sha256(repr((facts, machine)).encode())
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    for path in CODE:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def describe_device(device: torch.device) -> list[str]:
    """What rounding depends on: the GPU's model, CUDA and cuDNN; or the CPU's kind and threads.

    The number of threads changes the order of sums. The index of a GPU changes nothing: a run may
    resume on another one of the same model.
    """
    if device.type == "cuda":
        versions = [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
        return [torch.cuda.get_device_name(device), *versions]
    instructions = [torch.backends.cpu.get_cpu_capability(), *["AMX"] * has_amx()]
    return [device.type, *instructions, f"{torch.get_num_threads()} threads"]


def library_versions() -> list[str]:
    """Versions of the libraries whose code computes features; none of timm if it is missing."""
    return [
        f"{library.metadata['Name']} {library.version}"
        for name in ("torch", "torchvision", "timm")
        for library in metadata.distributions(name=name)
    ]
