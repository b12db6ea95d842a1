"""Networks of timm, an optional package: `weights.model: timm/NAME`."""

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from face_attributes.errors import UserError
from face_attributes.networks.views import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PREFIX = "timm/"
"""What marks a network of timm in `weights.model`."""

WEIGHTS_NAME = "model.safetensors"


class TimmNetwork(nn.Module):
    """A network of timm that takes images normalised as for ImageNet, like torchvision's.

    timm's weights were trained with the mean and the standard deviation of their data config, which
    differ for some networks. They are kept in the state, as `scale` and `offset`, and applied to
    every image, so that training, prediction and exported files cannot differ in them.
    """

    backbone: Any
    scale: Tensor
    offset: Tensor

    def __init__(self, backbone: nn.Module, config: "PretrainedCfg") -> None:
        super().__init__()
        self.backbone = backbone
        own_mean, own_std = torch.tensor(config.mean), torch.tensor(config.std)
        mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", (std / own_std).view(-1, 1, 1))
        self.register_buffer("offset", ((mean - own_mean) / own_std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B x 3 x S x S, normalised as for ImageNet) to logits (B x 18)."""
        logits: Tensor = self.backbone(images * self.scale + self.offset)
        return logits

    def head_name(self) -> str:
        """Name of the last linear layer."""
        classifier = self.backbone.get_classifier()
        return next(str(name) for name, module in self.named_modules() if module is classifier)

    def groups(self) -> list[list[str]]:
        """Names of the parameters in timm's own groups, in the order of the forward pass."""
        from timm.models import group_parameters

        matcher = self.backbone.group_matcher(coarse=True)
        by_depth = group_parameters(self.backbone, matcher)
        return [[f"backbone.{name}" for name in names] for _, names in sorted(by_depth.items())]


def create(model: str, num_classes: int, side: int) -> TimmNetwork:
    """Create a network of timm with random weights, for crops of `side` pixels.

    Raises:
        UserError: if timm is not installed or has no such network, or the network has another last
            layer than a linear one.
    """
    config = read_config(model)
    import timm

    options: dict[str, Any] = {"img_size": side} if config.fixed_input_size else {}
    # Not on the meta device: buffers that are not in the state could not be loaded afterwards.
    with torch.device("cpu"):
        backbone: Any = timm.create_model(
            model.removeprefix(PREFIX), pretrained=False, num_classes=num_classes, **options
        )
        network = TimmNetwork(backbone, config)
    classifier = backbone.get_classifier()
    if not hasattr(backbone, "group_matcher"):
        raise UserError(
            f"weights.model: timm does not group the layers of {model}, so that it cannot be "
            "frozen: choose another network"
        )
    if not isinstance(classifier, nn.Linear):
        raise UserError(
            f"weights.model: {model} does not end in one linear layer (its classifier is a "
            f"{type(classifier).__name__}), which the heads need: choose another network"
        )
    return network


def read_config(model: str) -> "PretrainedCfg":
    """Return timm's description of a network and its pretrained weights.

    Raises:
        UserError: if timm is not installed, or has no such network or no such weights of it.
    """
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError(
            f"weights.model: {model} needs timm: run `pip install -r requirements-timm.txt`"
        ) from None
    name = model.removeprefix(PREFIX)
    base, _, tag = name.partition(".")
    if base not in timm.list_models():
        near = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.5)
        raise UserError(
            f"weights.model: timm has no network {base!r}: "
            + (f"did you mean {', '.join(PREFIX + each for each in near)}?" if near else "")
            + " `timm.list_models()` lists all"
        )
    tags = [each.partition(".")[2] for each in timm.list_pretrained(base)]
    if tag and tag not in tags:
        raise UserError(
            f"weights.model: timm has no weights {tag!r} of {base}: write {PREFIX}{base}"
            + (f" or one of {', '.join(f'{PREFIX}{base}.{each}' for each in tags)}" if tags else "")
        )
    config = timm.get_pretrained_cfg(name)
    assert config is not None, name
    return config


def older_names(backbone: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename and resize tensors as timm does for the published weights of this network.

    Among them are a vision transformer's position embedding for another side, and files in their
    authors' original format.
    """
    convert = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        converted: dict[str, Tensor] = convert(dict(state), backbone)
    except Exception:  # made for files of its own networks: others may raise anything
        return state
    return converted


def download(model: str) -> Path:
    """Download a network's pretrained weights once, to the cache of the Hugging Face hub.

    Raises:
        UserError: if the hub has none, or they are neither cached nor downloadable.
    """
    config = read_config(model)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if not config.hf_hub_id:
        raise UserError(
            f"weights.source: timm has no pretrained weights of {model} on the Hugging Face hub: "
            "name a file in data/pretrained, or write none"
        )
    repository, _, revision = config.hf_hub_id.partition("@")
    url = f"https://huggingface.co/{repository}/resolve/{revision or 'main'}/{WEIGHTS_NAME}"
    try:
        return Path(hf_hub_download(repository, WEIGHTS_NAME, revision=revision or None))
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError) as error:
        raise UserError(
            f"weights.source: pretrained cannot be downloaded ({type(error).__name__}): download "
            f"{url} on a machine with internet access, put it into data/pretrained and name it in "
            "weights.source"
        ) from None
