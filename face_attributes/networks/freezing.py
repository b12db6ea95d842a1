"""Freeze a network up to a part, and split it there."""

import operator
from typing import Any

from torch import fx, nn

from face_attributes.errors import UserError
from face_attributes.networks.build import head_name
from face_attributes.networks.timm_networks import TimmNetwork

CONTAINERS = (
    "features",
    "classifier",
    "encoder",
    "encoder.layers",
    "heads",
    "layers",
    "trunk_output",
    "blocks",
)
"""Modules of torchvision's networks whose children are separate parts; others are one part each."""

NORMS = (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def parts(network: nn.Module) -> dict[str, list[str]]:
    """Map each part that can be frozen to its parameters, in the order of the forward pass.

    For a ResNet: conv1 (with bn1), layer1 to layer4. For networks of timm: timm's own groups. A
    normalisation between two parts belongs to the part before it. Parameters outside any submodule
    (ViT's class token and position embedding) belong to the first part. The head is not a part.
    """
    head, names_by_part, last = head_name(network), dict[str, list[str]](), ""
    groups = timm_groups(network) if isinstance(network, TimmNetwork) else module_groups(network)
    for part, group in groups.items():
        names = [name for name in group if not name.startswith(f"{head}.")]
        owners = [network.get_submodule(name.rpartition(".")[0]) for name in names]
        if last and all(isinstance(owner, NORMS) for owner in owners):
            names_by_part[last] += names
        else:
            names_by_part[part], last = names, part
    assigned = {name for names in names_by_part.values() for name in names}
    names_by_part[next(iter(names_by_part))] += [
        name
        for name, _ in network.named_parameters()
        if name not in assigned and not name.startswith(f"{head}.")
    ]
    return names_by_part


def module_groups(network: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters of each module with parameters, by its name, through CONTAINERS."""
    groups = dict[str, list[str]]()

    def walk(module: nn.Module, prefix: str) -> None:
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            if full in CONTAINERS:
                walk(child, f"{full}.")
            elif parameters := [f"{full}.{parameter}" for parameter, _ in child.named_parameters()]:
                groups[full] = parameters

    walk(network, "")
    return groups


def timm_groups(network: TimmNetwork) -> dict[str, list[str]]:
    """timm's groups of parameters, each named by the shortest module name that no other group has.

    For example conv1, layer1, blocks.3, stages.0; without a submodule, by the parameter itself.
    """
    head = f"{head_name(network)}."
    groups = [[name for name in group if not name.startswith(head)] for group in network.groups()]
    groups = [group for group in [*groups, [f"{head}weight"]] if group]
    prefixes = [{p for name in group for p in _ancestors(name)} for group in groups]
    named = {}
    for index, group in enumerate(groups):
        others = set().union(*prefixes[:index], *prefixes[index + 1 :])
        modules = [name for name in group if name.count(".") > 1] or group
        own = [each for each in [*_ancestors(modules[0]), modules[0]] if each not in others]
        named[own[0].removeprefix("backbone.")] = group
    return named


def _ancestors(name: str) -> list[str]:
    """The modules that contain a parameter, the outermost first: a, a.b for a.b.weight."""
    path = name.split(".")[:-1]
    return [".".join(path[: depth + 1]) for depth in range(len(path))]


def freeze(network: nn.Module, upto: str) -> None:
    """Turn off gradients of all parts up to and including `upto`; "none" freezes nothing.

    Raises:
        UserError: if the network has no part named `upto`; it lists those it has.
    """
    network.requires_grad_(True)
    if upto == "none":
        return
    names_by_part = parts(network)
    if upto not in names_by_part:
        raise UserError(
            f"train.freeze: this network has no part {upto!r}: write none or one of "
            f"{', '.join(names_by_part)}"
        )
    named = dict(network.named_parameters())
    for part, names in names_by_part.items():
        for name in names:
            named[name].requires_grad_(False)
        if part == upto:
            break


def split(network: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Split a network with frozen parts into a frozen prefix and the rest.

    Returns:
        The prefix (normalised photos to features) and the rest (features to logits), which share
        the network's modules. The prefix includes the layers without parameters that follow the
        frozen parts, such as pooling, but no dropout. None if the network cannot be split, because
        its forward pass depends on data or has no single tensor between its parts.
    """
    try:
        return _half(network, prefix=True), _half(network, prefix=False)
    except Exception:
        # Tracing executes the network's own code, which may fail in any way.
        return None


def _half(network: nn.Module, prefix: bool) -> fx.GraphModule:
    graph = _PartTracer(network).trace(network)
    nodes = list(graph.nodes)
    first = next(index for index, node in enumerate(nodes) if _varies(network, node))
    # The last place up to there that a single tensor crosses.
    cut, features = next(
        (index, crossing.pop())
        for index in range(first, 1, -1)
        if len(crossing := _crossing(nodes, index)) == 1
    )
    before, after = nodes[:cut], nodes[cut:]
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


def _crossing(nodes: list[fx.Node], cut: int) -> set[fx.Node]:
    """Nodes before the cut whose outputs are used after it."""
    after = set(nodes[cut:])
    return {node for node in nodes[:cut] if after & node.users.keys()}


class _PartTracer(fx.Tracer):
    """Traces the operations between the parts of a network, not those inside them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.head = head_name(network)
        self.part_of = {name: part for part, names in parts(network).items() for name in names}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        names = [f"{module_qualified_name}.{name}" for name, _ in m.named_parameters()]
        contains_head = self.head.startswith(f"{module_qualified_name}.")
        return not contains_head and len({self.part_of.get(name) for name in names}) <= 1


def _varies(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node's output for the same input varies during training."""
    name = str(node.target)
    if node.op == "get_attr":
        return bool(operator.attrgetter(name)(network).requires_grad)
    if node.op != "call_module":
        return False
    module = network.get_submodule(name)
    dropout = any(isinstance(each, nn.Dropout) and each.p > 0 for each in module.modules())
    return dropout or any(p.requires_grad for p in module.parameters())


def set_train_modes(network: nn.Module) -> None:
    """Put trainable modules into training mode, and frozen ones into evaluation mode.

    In training mode, a frozen BatchNorm would still update its running statistics, and a frozen
    dropout would still drop values.
    """
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Count the parameters: trainable, frozen and total."""
    counts = {True: 0, False: 0}
    for parameter in network.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    return {"trainable": counts[True], "frozen": counts[False], "total": sum(counts.values())}


def trained_names(network: nn.Module) -> list[str]:
    """Names of the tensors that training changes: trainable parameters and BatchNorm statistics."""
    names = []
    for name, module in network.named_modules():
        parameters = dict(module.named_parameters(name, recurse=False))
        if any(parameter.requires_grad for parameter in parameters.values()):
            names += [*parameters, *dict(module.named_buffers(name, recurse=False))]
    return names


def parameter_groups(
    network: nn.Module, head_lr: float, backbone_lr: float, lr_decay: float
) -> list[dict[str, Any]]:
    """Group the trainable parameters for the optimizer: one group per part, and one for the head.

    The last part has the learning rate `backbone_lr`, and each earlier part `lr_decay` times that
    of the next (ULMFiT, Howard and Ruder, ACL 2018).
    """
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    head = f"{head_name(network)}."
    groups: list[dict[str, Any]] = []
    for depth, names in enumerate(reversed(parts(network).values())):
        rate = backbone_lr * lr_decay**depth
        groups.insert(0, {"params": [named[n] for n in names if n in named], "lr": rate})
    groups.append({"params": [named[n] for n in named if n.startswith(head)], "lr": head_lr})
    return [group for group in groups if group["params"]]
