"""Where a network looks: Grad-CAM (Selvaraju et al., ICCV 2017), by the library grad-cam."""

import numpy as np
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from stages.learning.network import parts

Maps = NDArray[np.float32]


def attention_maps(network: nn.Module, images: Tensor, classes: list[int]) -> Maps:
    """How much each place of a photo speaks for a class: B x H x W, 0 to 1.

    Args:
        images: normalised photos, B x 3 x H x W, on the network's device.
        classes: the class that each photo's map is of.
    """
    layer, reshape = _last_places(network)
    with GradCAM(network, [layer], reshape_transform=reshape) as cam:
        maps: Maps = cam(images, [ClassifierOutputTarget(label) for label in classes])
    return maps


def _last_places(network: nn.Module):  # type: ignore[no-untyped-def]
    """The last module whose output still has places, and how to lay that out as B x C x H x W."""
    if isinstance(network, VisionTransformer):
        # After the last attention only the class token counts: what goes into it has places.
        return network.encoder.layers[-1].ln_1, _grid
    features = [name for name in parts(network) if not name.startswith("classifier")]
    return network.get_submodule(features[-1]), None


def _grid(tokens: Tensor) -> Tensor:
    """The patches of a vision transformer (B x 1 + P^2 x C, the class token first) as a grid."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    grid: Tensor = tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return grid
