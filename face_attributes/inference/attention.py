"""Where a network looks: Grad-CAM (Selvaraju et al., ICCV 2017), with the library grad-cam."""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import SwinTransformer, VisionTransformer

from face_attributes.networks.freezing import parts
from face_attributes.networks.timm_networks import TimmNetwork

AttentionMaps = NDArray[np.float32]


def attention_maps(network: nn.Module, images: Tensor, classes: list[int]) -> AttentionMaps:
    """Compute how much each place in a photo supports a class: B x H x W, 0 to 1.

    For a network whose last features do not form a grid, the gradient of the class with respect
    to the pixels takes the place of Grad-CAM (Simonyan et al., ICLR 2014).

    Args:
        images: normalised photos, B x 3 x H x W, on the network's device.
        classes: the class to explain in each photo (B).
    """
    layer, prefix_tokens, channels_last = _last_spatial_layer(network)
    to_grid = partial(_to_grid, prefix_tokens=prefix_tokens, channels_last=channels_last)
    if not _is_grid(network, layer, images[:1], to_grid):
        return _saliency(network, images, classes)
    with GradCAM(network, [layer], reshape_transform=to_grid) as cam:
        maps: AttentionMaps = cam(images, [ClassifierOutputTarget(label) for label in classes])
    return maps


def _last_spatial_layer(network: nn.Module) -> tuple[nn.Module, int, bool]:
    """Find the last module with an output for each place.

    Returns:
        The module, its number of tokens before those of patches, and whether channels come last.
    """
    if isinstance(network, VisionTransformer):
        # The head reads only the class token, so take the input of the last attention layer.
        return network.encoder.layers[-1].get_submodule("ln_1"), 1, False
    if isinstance(network, TimmNetwork):
        backbone = network.backbone
        part = [name for name in parts(network) if not name.startswith(("head", "conv_head"))][-1]
        layer = backbone.get_submodule(part)
        tokens = getattr(backbone, "num_prefix_tokens", 0)
        channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        return getattr(layer, "norm1", layer) if tokens else layer, tokens, channels_last
    features = [name for name in parts(network) if not name.startswith("classifier")]
    return network.get_submodule(features[-1]), 0, isinstance(network, SwinTransformer)


def _to_grid(features: Tensor, prefix_tokens: int, channels_last: bool) -> Tensor:
    """Arrange features as B x C x H x W: tokens (B x T + P^2 x C) as a grid of patches."""
    if features.ndim == 3:
        patches = features[:, prefix_tokens:]
        side = round(patches.shape[1] ** 0.5)
        grid: Tensor = patches.unflatten(1, (side, side))
        return grid.permute(0, 3, 1, 2)
    return features.permute(0, 3, 1, 2) if channels_last else features


def _is_grid(
    network: nn.Module, layer: nn.Module, images: Tensor, to_grid: Callable[[Tensor], Tensor]
) -> bool:
    """Whether the layer's output for these images can be arranged as a grid."""
    outputs: list[object] = []
    handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
    with torch.no_grad():
        network(images)
    handle.remove()
    try:
        return len(outputs) == 1 and to_grid(outputs[0]).ndim == 4  # type: ignore[arg-type]
    except (AttributeError, IndexError, RuntimeError):
        return False


def _saliency(network: nn.Module, images: Tensor, classes: list[int]) -> AttentionMaps:
    """Gradient of each photo's class with respect to its pixels, smoothed, and scaled to 0 to 1."""
    pixels = images.detach().clone().requires_grad_()
    logits = network(pixels)
    logits[torch.arange(len(classes)), torch.tensor(classes)].sum().backward()
    assert pixels.grad is not None
    maps = functional.avg_pool2d(pixels.grad.abs().sum(dim=1, keepdim=True), 5, 1, 2).squeeze(1)
    maps -= maps.amin(dim=(1, 2), keepdim=True)
    maps /= maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
    scaled: AttentionMaps = maps.cpu().numpy()
    return scaled
