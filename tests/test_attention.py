"""Grad-CAM maps: their shape for each family of networks, and what they show."""

import numpy as np
import pytest
import torch
from torch import nn

from face_attributes.inference.attention import attention_maps
from face_attributes.networks.build import build, head_name
from face_attributes.params import Model

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "model",
    [
        "resnet18",
        "mobilenet_v3_large",
        "convnext_tiny",
        "vit_b_16",
        "swin_t",
        "squeezenet1_1",
        "timm/resnet18",
        "timm/efficientnet_b0",
        "timm/convnext_nano",
        "timm/vit_small_patch16_224",
        "timm/mobilenetv3_large_100",
        "timm/xcit_nano_12_p16_224",  # its last tokens are no grid
    ],
)
def test_a_map_is_as_large_as_the_photo_with_values_from_0_to_1(model: Model) -> None:
    network, images = build(model, 64, "joint", seed=0), torch.randn(4, 3, 64, 64)
    head = network.get_submodule(head_name(network))
    nn.init.normal_(head.get_parameter("weight"))  # a vision transformer's head starts at 0
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # takes the statistics of the one batch as they are
    network.train()(images)
    maps = attention_maps(network.eval(), images, list(range(4)))
    assert maps.shape == (4, 64, 64)
    assert maps.min() >= 0 and maps.max() <= 1
    assert maps.std() > 0


def test_a_map_shows_what_contributes_to_the_class() -> None:
    """The logit of class 0 is the mean of the first channel of the last features."""
    network = build("resnet18", 64, "joint", seed=0).eval()
    with torch.no_grad():
        network.get_parameter("fc.weight").zero_()[0, 0] = 1.0
    images = torch.randn(1, 3, 64, 64)
    features = nn.Sequential(*list(network.children())[:-2])(images)[:, :1].detach()
    expected = nn.functional.interpolate(features.relu(), size=(64, 64), mode="bilinear")
    (attention,) = attention_maps(network, images, [0])
    assert np.corrcoef(attention.ravel(), expected.numpy().ravel())[0, 1] > 0.9
