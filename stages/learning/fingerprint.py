"""Fingerprints of what a result was computed from."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from stages.learning.device import Hardware


def fingerprint(
    facts: object, state: Mapping[str, Tensor], code: list[Path], hardware: Hardware
) -> str:
    """SHA-256, in hexadecimal, of facts (by their `repr`), tensors, source files and the machine.

    The number of threads counts: sums in another order are rounded otherwise.
    """
    machine = (hardware, torch.__version__, torch.get_num_threads())
    digest = hashlib.sha256(repr((facts, machine)).encode())
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    for path in code:
        digest.update(path.read_bytes())
    return digest.hexdigest()
