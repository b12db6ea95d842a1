"""Where the network runs, and in which precision."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.errors import UserError
from stages.learning.convolution import MatrixProducts

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESIDENT_SHARE = 0.5
"""What may lie on a GPU for the whole of a run, as a share of its memory."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""

MOST_KEPT = 2**25
"""Bytes of the largest piece of memory that glibc can be told to keep."""


@dataclass(frozen=True)
class Hardware:
    """The device, and the precision of forward passes (autocast; parameters stay float32)."""

    device: torch.device
    dtype: torch.dtype

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """The context of a forward pass: its precision and, on a CPU, its matrix products."""
        half = self.dtype != torch.float32
        products = MatrixProducts() if self.device.type == "cpu" else contextlib.nullcontext()
        with torch.autocast(self.device.type, self.dtype, enabled=half), products:
            yield

    def hold(self, data: Tensor) -> Tensor:
        """`data` on the device, if no more than `RESIDENT_SHARE` of it is taken by then.

        By this process, that is. Else `data` as it is, of which `gather` fetches a batch at a time.
        """
        if self.device.type == "cpu":
            return data
        _, memory = torch.cuda.mem_get_info(self.device)
        taken = torch.cuda.memory_allocated(self.device) + data.nbytes
        return data.to(self.device) if taken <= RESIDENT_SHARE * memory else data

    def gather(self, data: Tensor, rows: Tensor) -> Tensor:
        """Rows of what `hold` gave, on the device."""
        return data[rows.to(data.device)].to(self.device)


def choose_hardware(wanted: str, precision: str, key: str) -> Hardware:
    """The device of that name; "auto" is CUDA where there is a GPU, else the CPU.

    bfloat16 is taken where it is asked for or, with "auto", where the hardware computes in it.

    Raises:
        UserError: if CUDA is asked for and cannot be used; `key` is the knob to change.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError(f"{key}: cuda cannot be used here: no GPU was found; set it to auto or cpu")
    if there and wanted != "cpu":
        device = torch.device("cuda")
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device = torch.device("cpu")
        native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    half = precision == "bf16" or (precision == "auto" and native)
    return Hardware(device, torch.bfloat16 if half else torch.float32)


def be_deterministic() -> None:
    """Make the same seed give the same numbers on the same machine, on a GPU as well."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling memory that is about to be written costs a tenth of the time, and nothing reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # Where float32 is asked for it is meant: no TF32, which has 10 bits of it.
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]


def keep_memory() -> None:
    """Have the C library keep memory that is free for what comes next, where it is glibc.

    It would give it back to the system after each batch and ask for it anew, page by page, which
    takes up to a sixth of the time of training on a CPU. Pieces of more than `MOST_KEPT` still go.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MOST_KEPT)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def normalise(pixels: Tensor) -> Tensor:
    """ImageNet-normalised float32 (B x 3 x H x W, channels_last) of uint8 (B x H x W x 3)."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device) * 255
    std = torch.tensor(IMAGENET_STD, device=pixels.device) * 255
    return pixels.sub(mean).div_(std).permute(0, 3, 1, 2)
