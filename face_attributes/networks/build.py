"""Build networks of torchvision and timm with a head for the 18 classes."""

import difflib
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import SqueezeNet

from face_attributes.errors import UserError
from face_attributes.networks import timm_networks
from face_attributes.params import Heads
from face_attributes.photos.labels import GENDERS, MASKS, NUM_AGE_GROUPS, NUM_CLASSES, NUM_YEARS

State = dict[str, Tensor]

SIDES = sorted({*range(16, 513, 16), *range(28, 513, 14)})
"""Sides in pixels that `check_side` proposes: multiples of common patches."""
SIDES_TRIED = 4
"""Number of smaller sides that `check_side` tries."""


class SplitHead(nn.Linear):
    """A head for mask, gender and age group (3 + 2 + 3 outputs); their sums are the 18 logits.

    The softmax of the sums is the product of the three softmaxes, so their cross entropy is the sum
    of the three.
    """

    SIZES = (len(MASKS), len(GENDERS), NUM_AGE_GROUPS)

    def __init__(self, features: int) -> None:
        super().__init__(features, sum(self.SIZES))

    def forward(self, input: Tensor) -> Tensor:
        """Map features (B x F) to logits (B x 18)."""
        return joint_logits(*super().forward(input).split(self.SIZES, dim=-1))


class AgesHead(nn.Linear):
    """A head for mask, gender and age in years (3 + 2 + 121 outputs); age groups sum over years.

    Faces of 58 help to learn 61, which three groups cannot express (expectation over years: DEX,
    Rothe et al., IJCV 2018; years as a distribution: Gao et al., TIP 2017). In training mode the
    logits of the years follow the 18, so that the loss can include them.

    Args:
        age_edges: ages at which the second and the third age group begin.
    """

    SIZES = (len(MASKS), len(GENDERS), NUM_YEARS)

    def __init__(self, features: int, age_edges: Sequence[int]) -> None:
        super().__init__(features, sum(self.SIZES))
        low, high = age_edges
        self.group_sizes = (low, high - low, NUM_YEARS - high)

    def forward(self, input: Tensor) -> Tensor:
        """Map features (B x F) to logits: B x 18, or B x (18 + 121) in training mode."""
        mask, gender, years = super().forward(input).float().split(self.SIZES, dim=-1)
        groups = [group.logsumexp(dim=-1) for group in years.split(self.group_sizes, dim=-1)]
        joint = joint_logits(mask, gender, torch.stack(groups, dim=-1))
        return torch.cat([joint, years], dim=-1) if self.training else joint


def joint_logits(mask: Tensor, gender: Tensor, age: Tensor) -> Tensor:
    """Sum the logits of mask (B x 3), gender (B x 2) and age group (B x 3) for all 18 classes."""
    return (mask[:, :, None, None] + gender[:, None, :, None] + age[:, None, None, :]).flatten(1)


def build(
    model: str,
    side: int,
    heads: Heads = "joint",
    seed: int = 0,
    age_edges: Sequence[int] = (30, 60),
) -> nn.Module:
    """Build a network for the 18 classes, with random weights drawn from `seed`.

    Args:
        model: a classification network of torchvision, or timm/NAME.
        side: side of the crops in pixels; it sets the size of a vision transformer.
        heads: one head for 18 classes; separate mask, gender and age group; or age in years.
        age_edges: ages at which the second and the third age group begin, for `heads: ages`; the
            weights do not depend on them.

    Raises:
        UserError: if there is no such network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.startswith(timm_networks.PREFIX):
            network: nn.Module = timm_networks.create(model, NUM_CLASSES, side)
        else:
            network = _create(model, side)
        if heads != "joint":
            head = head_name(network)
            joint = network.get_submodule(head)
            assert isinstance(joint, nn.Linear)
            features = joint.in_features
            new = SplitHead(features) if heads == "split" else AgesHead(features, age_edges)
            network.set_submodule(head, new)
    return network


def _create(model: str, side: int) -> nn.Module:
    """Create a network of torchvision.

    Raises:
        UserError: if torchvision has no such classification network.
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        other = model in torchvision.models.list_models()
        near = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
        raise UserError(
            f"weights.model: {model} "
            + ("is not a classification network" if other else "is no network of torchvision")
            + (f": did you mean {', '.join(near)}?" if near else "")
            + "; networks of timm are written timm/NAME"
        )
    options: dict[str, Any] = {"num_classes": NUM_CLASSES}
    if model.startswith("vit_"):
        options["image_size"] = side
    elif model.startswith("maxvit_"):
        options["input_size"] = (side, side)
    elif model in ("googlenet", "inception_v3"):
        # Their published weights expect the inputs that `transform_input` makes.
        options |= {"aux_logits": False, "transform_input": True, "init_weights": True}
    # A RegNet computes its sizes with tensors, which the meta device cannot.
    constructor_device = "cpu" if model.startswith("regnet_") else torch.get_default_device()
    with torch.device(constructor_device):
        network: nn.Module = torchvision.models.get_model(model, weights=None, **options)
    if isinstance(network, SqueezeNet):
        # Its own classifier ends in a ReLU, and heads replace a linear layer.
        pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5))
        network.classifier = nn.Sequential(pooling, nn.Linear(512, NUM_CLASSES))
    return network


def check_side(model: str, side: int, heads: Heads) -> None:
    """Check that a network can be trained on crops of `side` pixels.

    Raises:
        UserError: if it cannot, with the nearest sides that it takes; or if there is no such
            network.
    """
    if _takes(model, side, heads):
        return
    smaller = [s for s in SIDES if s < side][: -1 - SIDES_TRIED : -1]
    larger = [s for s in SIDES if s > side]
    near = [
        next((str(each) for each in sides if _takes(model, each, heads)), "")
        for sides in (smaller, larger)
    ]
    advice = " or ".join(filter(None, near))
    raise UserError(
        f"crop.side: {model} cannot be trained on crops of {side} pixels: "
        + (f"write {advice}" if advice else "choose another weights.model")
    )


def _takes(model: str, side: int, heads: Heads) -> bool:
    """Whether a network maps crops of this side to logits; tried without computing any."""
    try:
        with torch.device("meta"):
            network = build(model, side, heads).to("meta").train()
            logits = network(torch.empty(2, 3, side, side))
    except UserError:
        raise
    except Exception:  # networks say in many ways that a side does not fit
        return False
    return isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[1] >= NUM_CLASSES


def head_name(network: nn.Module) -> str:
    """Name of the last linear layer, which outputs the logits: `fc`, `classifier.1`, ..."""
    if isinstance(network, timm_networks.TimmNetwork):
        return network.head_name()
    names = [str(name) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]
