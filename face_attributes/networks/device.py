"""The device and the precision of a network, and what to do if its memory runs out."""

import contextlib
import ctypes
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from face_attributes.errors import UserError
from face_attributes.files import project_folder
from face_attributes.networks.convolution import MatrixProducts
from face_attributes.params import Device, Precision
from face_attributes.photos.packed import Crops
from face_attributes.processes import claim

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

RESIDENT_SHARE = 0.5
"""Largest share in use, when data is moved to a GPU for a whole run, of the memory that this
process can have there."""

OUT_OF_GPU_MEMORY = (
    "out of memory",  # CUDA itself
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",  # cuDNN, also if there is no room for its workspace
    "unable to find an engine",  # likewise
)
"""Parts of the messages of errors that mean, or may mean, that a GPU's memory did not suffice."""

Rows = Tensor | Crops
"""Photos, or features of photos, by row."""

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

    def loss_scaler(self) -> torch.amp.GradScaler:
        """Scale losses in float16, whose smallest numbers gradients fall below; else do nothing."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def to_device_if_it_fits(self, parts: Sequence[Tensor]) -> Tensor | None:
        """Concatenate on the device if this process then uses at most RESIDENT_SHARE of its memory.

        Memory that other processes use does not count as its own. Otherwise, and on a CPU, return
        None; `fetch` then moves one batch at a time.
        """
        if self.device.type == "cpu":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        own = free + torch.cuda.memory_reserved(self.device)
        nbytes = sum(part.nbytes for part in parts)
        if torch.cuda.memory_allocated(self.device) + nbytes > RESIDENT_SHARE * own:
            return None
        try:
            return concatenate(parts, self.device)
        except torch.OutOfMemoryError:  # another process was faster
            return None

    def fetch(self, data: Rows, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the rows of each batch, on the device.

        From the host, a thread collects the next batch in pinned memory meanwhile.

        Args:
            data: on the device or on the host.
            batches: row numbers, on any device.
        """
        home = data.device if isinstance(data, Tensor) else torch.device("cpu")
        if home.type == self.device.type:
            for rows in batches:
                yield gather(data, rows)
            return

        def collect(rows: Tensor) -> Tensor:
            collected = gather(data, rows)
            return collected.pin_memory() if self.device.type == "cuda" else collected

        # All row numbers first: to copy some later would wait for the GPU's work until then.
        waiting = deque(rows.to(home) for rows in batches)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(collect, waiting.popleft()) if waiting else None
            while ahead is not None:
                batch = ahead.result()
                ahead = pool.submit(collect, waiting.popleft()) if waiting else None
                yield batch.to(self.device, non_blocking=True)


def concatenate(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Copy the rows of all parts into one tensor on a device, with no other copy on either side."""
    lengths, first = [len(part) for part in parts], parts[0]
    whole = first.new_empty((sum(lengths), *first.shape[1:]), device=device)
    for part, place in zip(parts, whole.split(lengths), strict=True):
        place.copy_(part)
    return whole


def gather(data: Rows, rows: Tensor) -> Tensor:
    """Collect rows, where the data is.

    Packed crops by numpy, which copies a row at once, where torch copies each byte.
    """
    return data[rows] if isinstance(data, Tensor) else torch.from_numpy(data[rows.numpy()])


def mapped_tensor(mapped: NDArray[Any]) -> Tensor:
    """Wrap a read-only memory-mapped array in a tensor; do not write to it.

    Linux counts a writable mapping as memory in use, and refuses one that is larger than RAM.
    """
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of just that
        return torch.from_numpy(mapped)


def prepare_hardware(
    device: Device,
    precision: Precision,
    key: str = "train.device",
    rank: int = 0,
    processes: int = 1,
) -> Hardware:
    """Choose the device and the precision, and set up this process to use them.

    Afterwards the same seed gives the same numbers on the same machine, except for operations that
    a line names, and freed memory is kept for the next batch. Of several GPUs, this process claims
    the one that the fewest other processes of the project use.

    Args:
        device: "auto" is CUDA if there is a GPU that can be used, else the CPU.
        precision: "auto" is float16 on an NVIDIA GPU with tensor cores, bfloat16 on AMD's GPUs and
            on a CPU that has hardware for it, else float32.
        key: parameter or option that `device` comes from, for the error.
        rank, processes: of this process among several, each of which uses the GPU of its place.

    Raises:
        UserError: if `device` is "cuda" and there is no GPU that can be used, or there are fewer
            GPUs than processes.
    """
    gpus = choose_gpus(device, key)
    several = len(gpus) > 1
    if gpus and processes > len(gpus):
        raise UserError(
            f"{processes} processes are to train on a GPU each, and {len(gpus)} can be used here: "
            f"start {len(gpus)}, or set {key}: cpu"
        )
    if processes > 1:
        gpus = gpus[rank : rank + 1]
    hardware = make_hardware(_claim(gpus) if several else next(iter(gpus), None), precision)
    if hardware.device.type == "cuda":
        torch.cuda.set_device(hardware.device)
    _be_deterministic()
    _keep_memory()
    return hardware


def choose_hardware(device: Device, precision: Precision, key: str) -> Hardware:
    """Choose as `prepare_hardware` does, of several GPUs the first, and leave the process as is."""
    return make_hardware(next(iter(choose_gpus(device, key)), None), precision)


def choose_gpus(device: Device, key: str) -> list[int]:
    """Indices of the visible GPUs that can be used; none: use the CPU.

    Raises:
        UserError: if `device` is "cuda" and there is no such GPU.
    """
    if device == "cpu":
        return []
    found = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    capabilities = [torch.cuda.get_device_capability(gpu) for gpu in found]
    usable = [gpu for gpu in found if has_code_for(capabilities[gpu], torch.cuda.get_arch_list())]
    if usable or (device == "auto" and not found):
        return usable
    problem = "no GPU was found"
    if found:
        (major, minor), name = capabilities[0], torch.cuda.get_device_name(0)
        problem = (
            f"torch {torch.__version__} has no code for the {name} (sm_{major}{minor}); "
            "docs/troubleshooting.md names a torch that has"
        )
    if device == "cuda":
        raise UserError(f"{key}: cuda cannot be used here: {problem}; set it to auto or cpu")
    print(f"{key}: auto uses the CPU: {problem}", flush=True)
    return []


def has_code_for(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether a build of torch has code for a GPU.

    Machine code (`sm_86`) runs on GPUs of the same major version and the same or a higher minor
    one, PTX (`compute_86`) on all later ones too. With a suffix, as in `sm_90a`, both run on that
    version alone. (CUDA C++ Programming Guide, "Compute Capability".)

    Args:
        architectures: from `torch.cuda.get_arch_list()`; those of AMD's GPUs (`gfx90a`) are not
            checked.
    """
    if torch.version.hip:
        return True
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if match is None:
            continue
        built_for = int(match[2]), int(match[3])
        later = built_for < capability and not match[4]
        if built_for == capability or (
            later and (match[1] == "compute" or built_for[0] == capability[0])
        ):
            return True
    return False


def make_hardware(gpu: int | None, precision: Precision) -> Hardware:
    """The GPU of that index, or the CPU for None, in the precision that `prepare_hardware` says."""
    if gpu is None:
        device = torch.device("cpu")
        native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        automatic = torch.bfloat16 if native else torch.float32
    else:
        device = torch.device("cuda", gpu)
        capability, name = torch.cuda.get_device_capability(gpu), torch.cuda.get_device_name(gpu)
        automatic = gpu_precision(capability, name)
    return Hardware(device, automatic if precision == "auto" else DTYPES[precision])


def gpu_precision(capability: tuple[int, int], name: str) -> torch.dtype:
    """The fastest precision that a GPU has hardware for.

    Not bfloat16 on NVIDIA's: torch then computes BatchNorm by slow kernels of its own instead of
    cuDNN's (a third more time on an H200, `benchmarks.gpu`), and three more bits of mantissa bring
    gradients nearer to float32's. A GTX 16xx, although of the T4's generation, has no tensor cores.
    """
    if torch.version.hip:
        return torch.bfloat16
    if capability >= (7, 0) and "GTX 16" not in name:
        return torch.float16
    return torch.float32


def _claim(gpus: Sequence[int]) -> int:
    """Claim one of several GPUs for this process, a free one first, and say which."""
    names = [f"gpu-{torch.cuda.get_device_properties(gpu).uuid}" for gpu in gpus]
    try:
        index, others = claim(names, project_folder() / ".cache/locks")
    except OSError as error:
        print(f"using GPU {gpus[0]}, whether or not another process does: {error}", flush=True)
        return gpus[0]
    shared = f", shared with other runs ({others})" if others else ""
    print(f"using GPU {gpus[index]}{shared}", flush=True)
    return gpus[index]


def global_generators(device: torch.device) -> list[torch.Generator]:
    """The generators that dropout, stochastic depth and mixup draw from: the CPU's, the GPU's.

    Args:
        device: of a tensor or generator.
    """
    own = [torch.cuda.default_generators[device.index]] if device.type == "cuda" else []
    return [torch.default_generator, *own]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that the GPU's memory did not suffice, if only for a fast algorithm.

    cuBLAS and cuDNN report it in their own ways, not as `torch.OutOfMemoryError`.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in str(error) for sign in OUT_OF_GPU_MEMORY
    )


def does_not_fit(
    error: RuntimeError,
    photos: str = "a single photo",
    remedy: str = "lower crop.side, choose a smaller weights.model or set train.device: cpu",
) -> RuntimeError | UserError:
    """The error to raise if so few photos fail with one that `is_out_of_memory`.

    cuDNN's errors may have another cause, and stay as they are.
    """
    if not isinstance(error, torch.OutOfMemoryError):
        return error
    return UserError(f"the GPU's memory does not hold {photos}: {remedy}")


def in_halves(
    compute: Callable[..., tuple[Tensor, ...]],
    *batch: Tensor,
    generators: Sequence[torch.Generator] = (),
) -> tuple[Tensor, ...]:
    """Return `compute(*batch)`; if memory runs out, compute the halves of the batch, and so on.

    Args:
        compute: takes and returns tensors with a row per photo.
        generators: the random generators that it draws from; they restart before the halves.

    Raises:
        UserError: if a single photo does not fit into memory.
    """
    states = [generator.get_state() for generator in generators]
    try:
        return compute(*batch)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(batch[0]) <= 1:
            raise does_not_fit(error) from None
    # After the except block, because its traceback keeps the failed tensors alive.
    torch.cuda.empty_cache()
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    halves = zip(*(tensor.tensor_split(2) for tensor in batch), strict=True)
    computed = [in_halves(compute, *half, generators=generators) for half in halves]
    return tuple(torch.cat(parts) for parts in zip(*computed, strict=True))


def _be_deterministic() -> None:
    """Make the same seed give the same numbers on the same machine, on a GPU as well."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    warnings.showwarning = _announce_nondeterminism  # type: ignore[assignment]
    # Filling memory that is overwritten anyway would take a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    # No TF32 in place of float32: it has only 10 bits of mantissa. The first line covers cuDNN in
    # current versions of torch, and not in 2.11.
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]


_show_warning = warnings.showwarning


def _announce_nondeterminism(message: Warning | str, *details: Any) -> None:
    """Show torch's warning about an operation that is not deterministic as a line of the run."""
    match = re.match(r"(.+?) (?:does not have|defaults to) a (?:non-)?deterministic", str(message))
    if match is None:
        _show_warning(message, *details)
    else:
        print(
            f"note: {match[1]} is not deterministic on this device: scores may differ a little "
            "between runs",
            flush=True,
        )


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
