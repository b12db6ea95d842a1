"""The device, the precision, and memory on both."""

import resource

import pytest
import torch

from face_attributes.errors import UserError
from face_attributes.networks import device
from face_attributes.networks.device import Hardware, choose_hardware, prepare_hardware


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
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)  # noqa: B023
        assert choose_hardware("cpu", "auto", "").dtype == dtype


def test_data_moves_to_the_gpu_up_to_a_share_of_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device "meta" stands for a GPU of 1000 bytes, so that the test needs none."""
    hardware = Hardware(torch.device("meta"), torch.float32)
    photos = torch.zeros(300, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 1000))
    for allocated, moved in ((0, True), (200, True), (201, False)):
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: allocated)  # noqa: B023
        assert (hardware.to_device_if_it_fits(photos) is not photos) == moved
    assert hardware.gather(photos, torch.tensor([1, 2])).shape == (2,)


def test_same_seed_gives_same_numbers() -> None:
    prepare_hardware("cpu", "fp32")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.fp32_precision == "ieee"  # type: ignore[attr-defined]


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
