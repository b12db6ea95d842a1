"""The device and the precision, and what a network is fed there."""

import subprocess
import sys
import textwrap

import pytest
import torch

from stages.errors import UserError
from stages.learning import device


def test_normalised_pixels_are_imagenet_s() -> None:
    image = device.normalise(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8))
    assert image.shape == (1, 3, 2, 2)
    assert image[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)


def test_cuda_is_used_where_it_is_and_asked_for_elsewhere_is_one_line() -> None:
    if torch.cuda.is_available():
        assert device.choose_hardware("auto", "auto", "train.device").device.type == "cuda"
    else:
        assert device.choose_hardware("auto", "auto", "train.device").device.type == "cpu"
        with pytest.raises(UserError, match="train.device: cuda cannot be used here"):
            device.choose_hardware("cuda", "auto", "train.device")
    assert device.choose_hardware("cpu", "auto", "train.device").device.type == "cpu"


def test_a_gpu_holds_what_fits_beside_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # The device "meta" stands for a GPU of 1000 bytes, which can be tried without one.
    hardware, taken = device.Hardware(torch.device("meta"), torch.float32), [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, 1000))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: taken[0])
    photos = torch.zeros(300, dtype=torch.uint8)
    assert hardware.hold(photos).device.type == "meta"
    taken[0] = 200
    assert hardware.hold(photos).device.type == "meta"
    taken[0] = 201
    assert hardware.hold(photos) is photos
    assert hardware.gather(photos, torch.tensor([1, 2])).shape == (2,)


def test_memory_that_is_free_is_kept_for_what_comes_next() -> None:
    """In a process of its own, of which the memory would else never be the same again."""
    program = """
        import resource, torch
        from stages.learning.device import keep_memory

        def faults(rounds):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(rounds):
                pieces = [torch.ones(2**24, dtype=torch.uint8) for _ in range(5)]
                del pieces
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        faults(10)
        print(faults(10))
        keep_memory()
        faults(10)
        print(faults(10))
    """
    printed = subprocess.check_output([sys.executable, "-c", textwrap.dedent(program)], text=True)
    usual, kept = map(int, printed.split())
    assert kept < usual / 10
