"""The device and the precision, and what a network is fed there."""

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
