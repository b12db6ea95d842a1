"""The device, the precision, and memory on both."""

import queue
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from face_attributes.errors import UserError
from face_attributes.networks import device
from face_attributes.networks.device import (
    Hardware,
    choose_hardware,
    concatenate,
    gpu_precision,
    has_code_for,
    in_halves,
    is_out_of_memory,
    prepare_hardware,
)
from tests.small import CPU, seeded

META = Hardware(torch.device("meta"), torch.float32)
"""Stands for a GPU, so that tests need none."""


def test_gpu_is_used_if_there_is_one() -> None:
    if torch.cuda.is_available():
        assert choose_hardware("auto", "auto", "train.device").device.type == "cuda"
    else:
        assert choose_hardware("auto", "auto", "train.device").device.type == "cpu"
        with pytest.raises(UserError, match="--device: cuda cannot be used here: no GPU was found"):
            choose_hardware("cuda", "auto", "--device")
    assert choose_hardware("cpu", "auto", "train.device").device.type == "cpu"


def test_precision_is_bfloat16_if_requested_or_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_hardware("cpu", "bf16", "").dtype == torch.bfloat16
    assert choose_hardware("cpu", "fp32", "").dtype == torch.float32
    assert choose_hardware("cpu", "fp16", "").dtype == torch.float16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)  # noqa: B023
        assert choose_hardware("cpu", "auto", "").dtype == dtype


def test_data_moves_to_the_gpu_up_to_a_share_of_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device "meta" stands for a GPU of 1000 bytes, so that the test needs none."""
    photos = torch.zeros(300, dtype=torch.uint8)
    for allocated, cached, others, moved in (
        (0, 0, 0, True),
        (200, 0, 0, True),
        (201, 0, 0, False),
        (0, 0, 400, True),
        (0, 0, 401, False),
        (100, 150, 200, True),  # memory that this process has cached is its own
        (100, 150, 201, False),
    ):
        free = 1000 - allocated - cached - others
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1000))  # noqa: B023
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated)  # noqa: B023
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: allocated + cached)  # noqa: B023
        assert (META.to_device_if_it_fits([photos]) is not None) == moved


def test_parts_of_data_are_one_tensor_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 1000))
    parts = [torch.zeros(rows, 2, 3, dtype=torch.uint8) for rows in (5, 0, 4)]
    moved = META.to_device_if_it_fits(parts)
    assert moved is not None
    assert (moved.device.type, moved.shape, moved.dtype) == ("meta", (9, 2, 3), torch.uint8)
    assert CPU.to_device_if_it_fits(parts) is None


def test_parts_are_concatenated_in_order() -> None:
    parts = [torch.arange(15).reshape(5, 3), torch.empty(0, 3).long(), torch.full((4, 3), 7)]
    assert concatenate(parts, torch.device("cpu")).equal(torch.cat(parts))


def test_batches_come_in_order_from_the_device_and_from_the_host() -> None:
    data, batches = torch.arange(10.0), [torch.tensor([1, 2]), torch.tensor([7]), torch.tensor([0])]
    fetched = list(CPU.fetch(data, batches))
    assert [batch.tolist() for batch in fetched] == [[1, 2], [7], [0]]
    to_other_device = META.fetch(data, iter(batches))
    assert [(batch.device.type, len(batch)) for batch in to_other_device] == [
        ("meta", 2), ("meta", 1), ("meta", 1)
    ]  # fmt: skip
    assert list(META.fetch(data, [])) == []


def test_batch_from_the_host_is_collected_while_the_one_before_is_used() -> None:
    asked = queue.SimpleQueue[int]()

    class Recorded(torch.Tensor):
        def __getitem__(self, rows: Any) -> Any:
            asked.put(int(rows))
            return super().__getitem__(rows)

    data = torch.arange(3.0).as_subclass(Recorded)
    fetched = META.fetch(data, list(torch.arange(3)))
    next(fetched)
    assert [asked.get(timeout=10), asked.get(timeout=10)] == [0, 1]
    assert asked.empty()


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((7, 0), "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", False),  # a V100 with current wheels
        ((6, 0), "sm_75 sm_80", False),
        ((7, 0), "sm_50 sm_60 sm_70 sm_75 sm_80", True),
        ((6, 1), "sm_50 sm_60 sm_70", True),
        ((8, 9), "sm_75 sm_80 sm_86 sm_90", True),
        ((8, 0), "sm_75 sm_86", False),
        ((12, 1), "sm_100 sm_120", True),
        ((12, 0), "sm_90 sm_100", False),
        ((12, 0), "sm_90 compute_90", True),
        ((7, 0), "sm_75 compute_75", False),
        ((9, 0), "sm_90a", True),
        ((12, 0), "sm_120a compute_100a", True),
        ((12, 1), "sm_120a compute_100a", False),
    ],
)
def test_gpu_is_used_only_if_torch_has_code_for_it(
    capability: tuple[int, int], architectures: str, runs: bool
) -> None:
    assert has_code_for(capability, architectures.split()) == runs


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, *capabilities: tuple[int, int]) -> None:
    """What torch says of GPUs that this machine does not have."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu: capabilities[gpu])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80"])


def test_gpu_without_code_is_a_line_for_auto_and_an_error_for_cuda(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_gpus(monkeypatch, (7, 0))
    assert choose_hardware("auto", "fp32", "train.device") == CPU
    problem = f"torch {torch.__version__} has no code for the Tesla V100 (sm_70); docs/troubleshoo"
    assert capsys.readouterr().out.startswith(f"train.device: auto uses the CPU: {problem}")
    with pytest.raises(UserError, match=r"cuda cannot be used here: torch .* Tesla V100 \(sm_70\)"):
        choose_hardware("cuda", "fp32", "train.device")
    assert choose_hardware("cpu", "fp32", "train.device") == CPU
    assert capsys.readouterr().out == ""


def test_precision_of_a_gpu_is_the_fastest_that_it_has_hardware_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_gpus(monkeypatch, (7, 0), (7, 5), (8, 6))
    assert choose_hardware("auto", "auto", "") == Hardware(torch.device("cuda:1"), torch.float16)
    assert choose_hardware("auto", "fp32", "").dtype == torch.float32
    assert choose_hardware("auto", "bf16", "").dtype == torch.bfloat16
    assert gpu_precision((6, 0), "Tesla P100") == torch.float32
    assert gpu_precision((7, 5), "NVIDIA GeForce GTX 1660 Ti") == torch.float32, "no tensor cores"


def test_one_of_several_gpus_is_claimed_and_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of those that torch has code for, by their UUID, as CUDA_VISIBLE_DEVICES may renumber them.

    The experiments of a queue run in copies below the project, and share its locks.
    """
    pretend_gpus(monkeypatch, (7, 0), (8, 6), (8, 6))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid=f"uuid{gpu}")
    )
    chosen = []
    for folder in (".dvc/tmp/exps/tmp1", ".dvc/tmp/exps/tmp2", "."):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        chosen.append(prepare_hardware("auto", "fp32").device.index)
    assert chosen == [1, 2, 1]
    assert capsys.readouterr().out == (
        "using GPU 1\nusing GPU 2\nusing GPU 1, shared with other runs (1)\n"
    )
    assert len(list((tmp_path / ".cache/locks").glob("gpu-uuid1-*.lock"))) == 2


def test_processes_that_train_together_have_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    pretend_gpus(monkeypatch, (7, 0), (8, 6), (8, 6))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid=f"uuid{gpu}")
    )
    for rank, gpu in ((0, 1), (1, 2), (0, 1)):  # whatever others have claimed
        hardware = prepare_hardware("auto", "fp32", rank=rank, processes=2)
        assert hardware.device == torch.device("cuda", gpu)
    assert prepare_hardware("cpu", "fp32", rank=2, processes=3) == CPU
    with pytest.raises(UserError, match="3 processes are to train on a GPU each, and 2 can be use"):
        prepare_hardware("auto", "fp32", rank=0, processes=3)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear"), True),
        (RuntimeError("FIND was unable to find an engine to execute this computation"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_of_all_libraries_mean_out_of_memory(error: RuntimeError, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_batch_that_does_not_fit_is_computed_in_halves_as_if_it_had_not_been_tried() -> None:
    generator, sizes = seeded(), list[int]()

    def add_noise(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(batch))
        noise = torch.rand(len(batch), generator=generator)
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch + noise, batch

    batch = torch.arange(7.0)
    noisy, same = in_halves(add_noise, batch, generators=[generator])
    assert sizes == [7, 4, 2, 2, 3]
    expected = torch.cat(
        [torch.rand(size, generator=again) for again in [seeded()] for size in (2, 2, 3)]
    )
    assert torch.equal(noisy - batch, expected + batch - batch)
    assert torch.equal(same, batch)


@pytest.mark.parametrize("first_size", [1, 8])
def test_photo_that_does_not_fit_alone_is_an_error(first_size: int) -> None:
    def fail(error: RuntimeError, _: torch.Tensor) -> tuple[torch.Tensor]:
        raise error

    photos = torch.zeros(first_size)
    with pytest.raises(UserError, match="does not hold a single photo"):
        in_halves(partial(fail, torch.OutOfMemoryError("CUDA out of memory")), photos)
    with pytest.raises(RuntimeError, match="^CUDNN_STATUS_NOT_SUPPORTED$"):
        in_halves(partial(fail, RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")), photos)
    with pytest.raises(RuntimeError, match="^another error$"):
        in_halves(partial(fail, RuntimeError("another error")), photos)


@pytest.mark.slow
def test_operation_that_is_not_deterministic_is_a_line() -> None:
    """Of any device: on a CPU, `put_` is one."""
    code = (
        "import torch; from face_attributes.networks.device import prepare_hardware\n"
        "prepare_hardware('cpu', 'fp32')\n"
        "for _ in range(2): torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))\n"
        "import warnings; warnings.warn('another')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "note: put_ is not deterministic on this device: scores may differ a little between runs\n"
    )
    assert done.stderr.endswith("UserWarning: another\n")
    assert "deterministic" not in done.stderr


def test_requirements_allow_torch_builds_with_code_for_older_gpus() -> None:
    """Such as 2.14.1+cu126, which has code for a V100 (docs/troubleshooting.md)."""
    lines = (Path(__file__).parents[1] / "requirements.txt").read_text().splitlines()
    for package in ("torch", "torchvision"):
        line = next(line for line in lines if line.startswith(f"{package}=="))
        specifier = Requirement(line.split("#")[0].strip()).specifier
        version = next(iter(specifier)).version
        assert specifier.contains(f"{version}+cu126")


def test_same_seed_gives_same_numbers() -> None:
    prepare_hardware("cpu", "fp32")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.fp32_precision == "ieee"  # type: ignore[attr-defined]
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
    assert torch.backends.cudnn.rnn.fp32_precision == "ieee"  # type: ignore[attr-defined]


def test_freed_memory_is_kept_for_the_next_batch() -> None:
    """Otherwise every allocation would fault in its pages again."""

    def count_faults(rounds: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(rounds):
            blocks = [torch.ones(2**24, dtype=torch.uint8) for _ in range(5)]
            del blocks
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert device.LARGEST_KEPT_BLOCK > 2**24
    prepare_hardware("cpu", "fp32")
    count_faults(3)
    pages = 3 * 5 * 2**24 // resource.getpagesize()
    assert count_faults(3) < pages / 4
