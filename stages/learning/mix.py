"""Mixing photos of a batch in pairs, and their labels with them."""

import torch
from torch import Tensor
from torchvision.transforms import v2

from stages.params import TrainParams


def mix(images: Tensor, targets: Tensor, params: TrainParams) -> tuple[Tensor, Tensor]:
    """Mix a share `mix_share` of the batches; the others stay as they are.

    `mixup` (Zhang et al., ICLR 2018) is torchvision's, with Beta(mix_alpha, mix_alpha). `cutmix`
    (after Yun et al., ICCV 2019) puts the left half of one face beside the right half of another,
    so that a face stays a face.

    Args:
        images: B x 3 x H x W.
        targets: shares of the classes of each photo, B x C.
    """
    if params.mix == "none" or torch.rand(()) >= params.mix_share:
        return images, targets
    if params.mix == "mixup":
        pairs = v2.MixUp(alpha=params.mix_alpha)
        mixed: tuple[Tensor, Tensor] = pairs(images, targets)
        return mixed
    half = images.shape[-1] // 2
    images = torch.cat([images[..., :half], images.roll(1, 0)[..., half:]], dim=-1)
    return images, (targets + targets.roll(1, 0)) / 2
