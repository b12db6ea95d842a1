"""Build torchvision's networks with a head for the 18 classes."""

from collections.abc import Mapping, Sequence

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from face_attributes.errors import UserError
from face_attributes.params import Heads
from face_attributes.photos.labels import GENDERS, MASKS, NUM_AGE_GROUPS, NUM_CLASSES, NUM_YEARS

State = dict[str, Tensor]

PATCH = 16
"""Side of the patches of vit_b_16, in pixels."""
POSITIONS = "encoder.pos_embedding"


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
    """Build a torchvision network for the 18 classes, with random weights drawn from `seed`.

    Args:
        side: side of the crops in pixels; it sets the size of a vision transformer.
        heads: one head for 18 classes; separate mask, gender and age group; or age in years.
        age_edges: ages at which the second and the third age group begin, for `heads: ages`; the
            weights do not depend on them.

    Raises:
        UserError: if the network cannot take crops of that side.
    """
    options: dict[str, int] = {"num_classes": NUM_CLASSES}
    if model.startswith("vit_"):
        if side % PATCH:
            raise UserError(f"crop.side: {model} needs a multiple of {PATCH}, not {side}")
        options["image_size"] = side
    if model.startswith("convnext_") and side < 32:
        raise UserError(f"crop.side: {model} needs at least 32, not {side}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = torchvision.models.get_model(model, weights=None, **options)
        if heads != "joint":
            head = head_name(network)
            joint = network.get_submodule(head)
            assert isinstance(joint, nn.Linear)
            features = joint.in_features
            new = SplitHead(features) if heads == "split" else AgesHead(features, age_edges)
            network.set_submodule(head, new)
    return network


def head_name(network: nn.Module) -> str:
    """Name of the last linear layer, which outputs the logits: `fc`, `classifier.1`, ..."""
    names = [str(name) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def fit_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> State:
    """Return the network's state with the tensors of `state` filled in, as float32.

    A vision transformer's position embedding is interpolated to the network's size. A head with
    another number of outputs is ignored; a file without a head is fine.

    Args:
        source: name of the file, for errors.

    Raises:
        UserError: naming tensors that are missing or unknown, or that have another shape or
            numbers that are not finite.
    """
    fitted = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if isinstance(network, VisionTransformer) and POSITIONS in state:
        resized = {POSITIONS: state[POSITIONS].float()}
        state = {**state, **interpolate_embeddings(network.image_size, PATCH, resized)}
    head = f"{head_name(network)}."
    body = {name for name in fitted if not name.startswith(head)}
    # A file may lack the whole classifier, which is more than the head in some networks. Old
    # checkpoints lack BatchNorm's num_batches_tracked, which nothing here reads.
    classifier = head.split(".")[0] + "."
    needed = {n for n in body if not n.startswith(classifier) and "num_batches_tracked" not in n}
    extra = {name for name in state if not name.startswith(head)} - body
    reshaped = {name for name in body & state.keys() if fitted[name].shape != state[name].shape}
    for problem, names in {
        "lacks": needed - state.keys(),
        "has unknown tensors": extra,
        "has different shapes of": reshaped,
    }.items():
        if names:
            raise UserError(
                f"{source} does not fit the model: it {problem} {_shorten(names)}; set "
                "weights.model to the network that the file belongs to"
            )
    for name in fitted:
        if name in state and fitted[name].shape == state[name].shape:
            fitted[name] = state[name].to(fitted[name].dtype).clone()
    broken = {name for name, tensor in fitted.items() if not tensor.isfinite().all()}
    if broken:
        raise UserError(
            f"{source} is damaged: {_shorten(broken)} contain numbers that are not finite; use "
            "another file"
        )
    return fitted


def _shorten(names: set[str], limit: int = 4) -> str:
    first = ", ".join(sorted(names)[:limit])
    return first if len(names) <= limit else f"{first} and {len(names) - limit} more"
