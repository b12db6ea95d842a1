"""torchvision's networks with a head for the 18 classes, and freezing them part by part."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor, fx, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from stages.errors import UserError
from stages.params import Heads, TrainParams
from stages.photos.labels import AGE_GROUPS, CLASSES, GENDERS, MASKS, YEARS

State = dict[str, Tensor]

OPENED = ("features", "classifier", "encoder", "encoder.layers", "heads")
"""Containers whose members are parts of their own; any other module is one part."""

PATCH = 16
"""Side of the patches of vit_b_16, in pixels."""
POSITIONS = "encoder.pos_embedding"

NORMS = (nn.BatchNorm2d, nn.LayerNorm)


class SplitHead(nn.Linear):
    """A head for mask, gender and age apart (3 + 2 + 3 outputs), whose sums are 18 logits.

    The softmax over the sums is the product of the three softmaxes, and the cross entropy the sum
    of the three.
    """

    SIZES = (len(MASKS), len(GENDERS), AGE_GROUPS)

    def __init__(self, features: int) -> None:
        super().__init__(features, sum(self.SIZES))

    def forward(self, input: Tensor) -> Tensor:
        """Logits (B x 18) of features (B x F)."""
        return joint_logits(*super().forward(input).split(self.SIZES, dim=-1))


class AgesHead(nn.Linear):
    """A head for mask, gender and age in years (3 + 2 + 121 outputs), of which age groups are sums.

    A face of 58 teaches something about 61, which three groups cannot say (expectation over years:
    DEX, Rothe et al., IJCV 2018; years as a distribution: Gao et al., TIP 2017). In training mode
    the logits of the years come after the 18, to be learnt as well.

    Args:
        edges: ages at which the second and the third group begin.
    """

    SIZES = (len(MASKS), len(GENDERS), YEARS)

    def __init__(self, features: int, edges: Sequence[int]) -> None:
        super().__init__(features, sum(self.SIZES))
        low, high = edges
        self.group_sizes = (low, high - low, YEARS - high)

    def forward(self, input: Tensor) -> Tensor:
        """Logits of features (B x F): B x 18, or B x (18 + 121) in training mode."""
        mask, gender, years = super().forward(input).float().split(self.SIZES, dim=-1)
        groups = [group.logsumexp(dim=-1) for group in years.split(self.group_sizes, dim=-1)]
        joint = joint_logits(mask, gender, torch.stack(groups, dim=-1))
        return torch.cat([joint, years], dim=-1) if self.training else joint


def joint_logits(mask: Tensor, gender: Tensor, age: Tensor) -> Tensor:
    """Logits of the 18 classes (B x 18) from those of mask (B x 3), gender (B x 2), age (B x 3)."""
    return (mask[:, :, None, None] + gender[:, None, :, None] + age[:, None, None, :]).flatten(1)


def build(
    model: str,
    size: int,
    heads: Heads = "joint",
    seed: int = 0,
    age_edges: Sequence[int] = (30, 60),
) -> nn.Module:
    """A torchvision network that tells the 18 classes, with random weights, drawn from `seed`.

    Args:
        size: side of the crops in pixels, which a vision transformer has to know.
        heads: one head of 18 classes; mask, gender and age group apart; or age in years.
        age_edges: ages at which the second and the third group begin, for `heads: ages`; the
            weights do not depend on them.

    Raises:
        UserError: if the network cannot take crops of that size.
    """
    options: dict[str, int] = {"num_classes": CLASSES}
    if model.startswith("vit_"):
        if size % PATCH:
            raise UserError(f"crop.side: {model} needs a multiple of {PATCH}, not {size}")
        options["image_size"] = size
    if model.startswith("convnext_") and size < 32:
        raise UserError(f"crop.side: {model} needs at least 32, not {size}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = torchvision.models.get_model(model, weights=None, **options)
        if heads != "joint":
            head = head_name(network)
            joint = network.get_submodule(head)
            assert isinstance(joint, nn.Linear)
            features = joint.in_features
            apart = SplitHead(features) if heads == "split" else AgesHead(features, age_edges)
            network.set_submodule(head, apart)
    return network


def head_name(network: nn.Module) -> str:
    """Name of the last linear layer, which gives the logits: `fc`, `classifier.1`, ..."""
    names = [str(name) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1]


def parts(network: nn.Module) -> dict[str, list[str]]:
    """What can be frozen, in the order of the forward pass: name of a part -> its parameters.

    For a ResNet: conv1 (with bn1), layer1 to layer4. A normalisation between two parts belongs to
    the one before it, as do parameters of no module of their own (ViT's class token and position
    embedding, which follow its `conv_proj`). The head is no part.
    """
    head, found, last = head_name(network), dict[str, list[str]](), ""

    def walk(module: nn.Module, prefix: str) -> None:
        nonlocal last
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            if full in OPENED:
                walk(child, f"{full}.")
                continue
            parameters = [f"{full}.{own}" for own, _ in child.named_parameters()]
            if not parameters or full == head:
                continue
            if isinstance(child, NORMS) and last:
                found[last] += parameters
            else:
                found[full], last = parameters, full

    walk(network, "")
    named = {name for names in found.values() for name in names}
    loose = [
        name
        for name, _ in network.named_parameters()
        if name not in named and not name.startswith(f"{head}.")
    ]
    found[next(iter(found))] += loose
    return found


def freeze(network: nn.Module, upto: str) -> None:
    """Turn off the gradients of all parts up to and including `upto`; "none" freezes nothing.

    Raises:
        UserError: if there is no such part; the message lists them.
    """
    network.requires_grad_(True)
    if upto == "none":
        return
    found = parts(network)
    if upto not in found:
        raise UserError(
            f"train.freeze: this network has no part {upto!r}: write none or one of "
            f"{', '.join(found)}"
        )
    named = dict(network.named_parameters())
    for part, names in found.items():
        for name in names:
            named[name].requires_grad_(False)
        if part == upto:
            break


def frozen_upto(network: nn.Module, params: TrainParams, epoch: int) -> str:
    """The last frozen part in an epoch: `params.freeze` in the end, more before that.

    The head alone trains for `head_epochs`; then all that will train or, with `unfreeze_every`, one
    part more every that many epochs, from the top (gradual unfreezing, ULMFiT, Howard and Ruder,
    ACL 2018).
    """
    points = ["none", *parts(network)]
    top = len(points) - 1
    after = epoch - params.head_epochs
    if after < 0:
        return points[top]
    opened = 1 + after // params.unfreeze_every if params.unfreeze_every else top
    return points[max(points.index(params.freeze), top - opened)]


def split(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Cut a network with a frozen part in two: what is frozen, and what comes after it.

    Returns:
        The frozen prefix (normalised photos -> features) and the rest (features -> logits), which
        share the network's modules. The cut lies behind all that has nothing to train, such as a
        pooling before the first part that trains, but never behind a dropout.
    """
    return _half(network, prefix=True), _half(network, prefix=False)


def _half(network: nn.Module, prefix: bool) -> fx.GraphModule:
    graph = _PartTracer().trace(network)
    nodes = list(graph.nodes)
    cut = next(place for place, node in enumerate(nodes) if _changes(network, node))
    before, after = nodes[:cut], nodes[cut:]
    (features,) = (node for node in before if not set(before).issuperset(node.users))
    if prefix:
        for node in reversed(after):
            graph.erase_node(node)
        graph.output(features)
    else:
        with graph.inserting_before(nodes[0]):
            features.replace_all_uses_with(graph.placeholder("features"))
        for node in reversed(before):
            graph.erase_node(node)
    return fx.GraphModule(network, graph)


class _PartTracer(fx.Tracer):
    """Sees the parts as they are, and what the network does between them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in OPENED


def _changes(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node's output for the same photo changes in the course of training."""
    name = str(node.target)
    if node.op == "get_attr":
        return network.get_parameter(name).requires_grad
    if node.op != "call_module":
        return False
    module = network.get_submodule(name)
    return isinstance(module, nn.Dropout) or any(p.requires_grad for p in module.parameters())


def set_training(network: nn.Module) -> None:
    """Training mode for what trains, evaluation mode for what is frozen.

    A frozen BatchNorm would otherwise go on moving its running statistics although none of its
    parameters has a gradient, and frozen dropout would go on dropping.
    """
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def count_parameters(network: nn.Module) -> dict[str, int]:
    """How many numbers train, how many are frozen, and all together."""
    sizes = {True: 0, False: 0}
    for parameter in network.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    return {"trainable": sizes[True], "frozen": sizes[False], "total": sum(sizes.values())}


def trained_names(network: nn.Module) -> list[str]:
    """Names of what training changes: parameters with a gradient, and BatchNorm's statistics."""
    names = []
    for name, module in network.named_modules():
        own = dict(module.named_parameters(name, recurse=False))
        if any(parameter.requires_grad for parameter in own.values()):
            names += [*own, *dict(module.named_buffers(name, recurse=False))]
    return names


def parameter_groups(
    network: nn.Module, head_lr: float, backbone_lr: float, lr_decay: float
) -> list[dict[str, Any]]:
    """The trainable parameters for the optimizer, each once: a group for each part and the head.

    Learning rates fall with depth: that of the last part is `backbone_lr`, that of each part before
    it `lr_decay` times that of the one after it (ULMFiT, Howard and Ruder, ACL 2018).
    """
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    head = f"{head_name(network)}."
    groups: list[dict[str, Any]] = []
    for depth, names in enumerate(reversed(parts(network).values())):
        rate = backbone_lr * lr_decay**depth
        groups.insert(0, {"params": [named[n] for n in names if n in named], "lr": rate})
    groups.append({"params": [named[n] for n in named if n.startswith(head)], "lr": head_lr})
    return [group for group in groups if group["params"]]


def fit_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> State:
    """The network's state with the tensors of `state` in it, as float32.

    A vision transformer's position embedding is interpolated to the network's size.

    The head is taken over only where it has as many outputs; a file without one is fine.

    Raises:
        UserError: naming tensors that the file lacks, has beside the network's, or of another
            shape, or that are not finite.
    """
    own = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if isinstance(network, VisionTransformer) and POSITIONS in state:
        resized = {POSITIONS: state[POSITIONS].float()}
        state = {**state, **interpolate_embeddings(network.image_size, PATCH, resized)}
    head = f"{head_name(network)}."
    body = {name for name in own if not name.startswith(head)}
    # A file may come without the classifier (for some networks more than the head), and old
    # checkpoints lack BatchNorm's count of batches, which nothing here reads.
    classifier = head.split(".")[0] + "."
    needed = {n for n in body if not n.startswith(classifier) and "num_batches_tracked" not in n}
    extra = {name for name in state if not name.startswith(head)} - body
    other = {name for name in body & state.keys() if own[name].shape != state[name].shape}
    for what, names in {
        "lacks": needed - state.keys(),
        "has unknown": extra,
        "has of another shape": other,
    }.items():
        if names:
            raise UserError(
                f"{source} does not fit the model: it {what} {_few(names)}; set weights.model to "
                "the network that the file is of"
            )
    for name in own:
        if name in state and own[name].shape == state[name].shape:
            own[name] = state[name].to(own[name].dtype).clone()
    broken = {name for name, tensor in own.items() if not tensor.isfinite().all()}
    if broken:
        raise UserError(
            f"{source} is damaged: there are numbers that are not finite in {_few(broken)}; take "
            "another file"
        )
    return own


def _few(names: set[str], most: int = 4) -> str:
    shown = ", ".join(sorted(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
