"""Where the network runs, and in which precision."""

import os

import torch
from torch import Tensor, nn

from stages.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def choose_device(wanted: str, key: str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is a GPU, else the CPU.

    Raises:
        UserError: if CUDA is asked for and cannot be used; `key` is the knob to change.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError(f"{key}: cuda cannot be used here: no GPU was found; set it to auto or cpu")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """bfloat16 where it is asked for or, with "auto", where the hardware computes in it."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    wanted = precision == "bf16" or (precision == "auto" and native)
    return torch.bfloat16 if wanted else torch.float32


def be_deterministic() -> None:
    """Make the same seed give the same numbers on the same machine, on a GPU as well."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling memory that is about to be written costs a tenth of the time, and nothing reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def normalise(pixels: Tensor) -> Tensor:
    """ImageNet-normalised float32 (B x 3 x H x W, channels_last) of uint8 (B x H x W x 3)."""
    mean = torch.tensor(IMAGENET_MEAN, device=pixels.device) * 255
    std = torch.tensor(IMAGENET_STD, device=pixels.device) * 255
    images = ((pixels.float() - mean) / std).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    pixels: Tensor,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Logits (N x 18, float32, on the CPU) of uint8 pixels (N x H x W x 3), in evaluation mode."""
    network.eval()
    logits = [torch.empty(0, 18)]
    for batch in pixels.split(batch_size):
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits.append(network(normalise(batch.to(device))).float().cpu())
    return torch.cat(logits)
