"""Where a network looks: Grad-CAM (Selvaraju et al., ICCV 2017), with the library grad-cam."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from face_attributes.networks.freezing import parts

AttentionMaps = NDArray[np.float32]


def attention_maps(network: nn.Module, images: Tensor, classes: list[int]) -> AttentionMaps:
    """Compute how much each place in a photo supports a class: B x H x W, 0 to 1.

    Args:
        images: normalised photos, B x 3 x H x W, on the network's device.
        classes: the class to explain in each photo (B).
    """
    layer, to_grid = _last_spatial_layer(network)
    with GradCAM(network, [layer], reshape_transform=to_grid) as cam:
        maps: AttentionMaps = cam(images, [ClassifierOutputTarget(label) for label in classes])
    return maps


def _last_spatial_layer(
    network: nn.Module,
) -> tuple[nn.Module, Callable[[Tensor], Tensor] | None]:
    """Find the last module with a spatial output, and what reshapes it to B x C x H x W."""
    if isinstance(network, VisionTransformer):
        # The head reads only the class token, so take the input of the last attention layer.
        return network.encoder.layers[-1].get_submodule("ln_1"), _patch_grid
    features = [name for name in parts(network) if not name.startswith("classifier")]
    return network.get_submodule(features[-1]), None


def _patch_grid(tokens: Tensor) -> Tensor:
    """Arrange a vision transformer's tokens (B x 1 + P^2 x C, class token first) as a grid."""
    side = round((tokens.shape[1] - 1) ** 0.5)
    grid: Tensor = tokens[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return grid
