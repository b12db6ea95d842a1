"""The device and the precision of a network."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from face_attributes.errors import UserError
from face_attributes.networks.convolution import MatrixProducts
from face_attributes.params import Device, Precision

RESIDENT_SHARE = 0.5
"""Largest share of a GPU's memory in use when data is moved there for a whole run."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Constants of glibc's malloc.h."""

LARGEST_KEPT_BLOCK = 2**25
"""Bytes of the largest block of memory that glibc can be set to keep."""


@dataclass(frozen=True)
class Hardware:
    """The device, and the precision of forward passes (autocast; parameters stay float32)."""

    device: torch.device
    dtype: torch.dtype

    @contextlib.contextmanager
    def forward_pass(self) -> Iterator[None]:
        """The context of a forward pass: its precision and, on a CPU, its matrix products."""
        half = self.dtype != torch.float32
        products = MatrixProducts() if self.device.type == "cpu" else contextlib.nullcontext()
        with torch.autocast(self.device.type, self.dtype, enabled=half), products:
            yield

    def to_device_if_it_fits(self, data: Tensor) -> Tensor:
        """Move to the device if this process would then use at most RESIDENT_SHARE of its memory.

        Otherwise return `data` unchanged; `gather` then fetches one batch at a time.
        """
        if self.device.type == "cpu":
            return data
        _, memory = torch.cuda.mem_get_info(self.device)
        used = torch.cuda.memory_allocated(self.device) + data.nbytes
        return data.to(self.device) if used <= RESIDENT_SHARE * memory else data

    def gather(self, data: Tensor, rows: Tensor) -> Tensor:
        """Return rows of data from `to_device_if_it_fits`, on the device."""
        return data[rows.to(data.device)].to(self.device)


def prepare_hardware(device: Device, precision: Precision, key: str = "train.device") -> Hardware:
    """Choose the device and the precision, and set up this process to use them.

    Afterwards the same seed gives the same numbers on the same machine, and freed memory is kept
    for the next batch.

    Args:
        device: "auto" is CUDA if there is a GPU, else the CPU.
        precision: "auto" is bfloat16 if the hardware supports it, else float32.
        key: parameter or option that `device` comes from, for the error.

    Raises:
        UserError: if `device` is "cuda" and there is no GPU.
    """
    hardware = choose_hardware(device, precision, key)
    _be_deterministic()
    _keep_memory()
    return hardware


def choose_hardware(device: Device, precision: Precision, key: str) -> Hardware:
    """Choose the device and the precision as `prepare_hardware` does, without side effects."""
    gpu = torch.cuda.is_available()
    if device == "cuda" and not gpu:
        raise UserError(f"{key}: cuda cannot be used here: no GPU was found; set it to auto or cpu")
    if gpu and device != "cpu":
        chosen = torch.device("cuda")
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        chosen = torch.device("cpu")
        native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    half = precision == "bf16" or (precision == "auto" and native)
    return Hardware(chosen, torch.bfloat16 if half else torch.float32)


def _be_deterministic() -> None:
    """Make the same seed give the same numbers on the same machine, on a GPU as well."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling memory that is overwritten anyway would take a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # No TF32 in place of float32: it has only 10 bits of mantissa.
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]


def _keep_memory() -> None:
    """Make glibc keep freed memory for the next allocation.

    Returning it to the system after each batch and requesting it again, page by page, would take up
    to a sixth of the training time on a CPU. Blocks larger than LARGEST_KEPT_BLOCK are still
    returned.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BLOCK)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
