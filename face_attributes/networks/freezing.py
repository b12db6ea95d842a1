"""Freeze a network up to a part, and split it there."""

from typing import Any

from torch import fx, nn

from face_attributes.errors import UserError
from face_attributes.networks.build import head_name

CONTAINERS = ("features", "classifier", "encoder", "encoder.layers", "heads")
"""Modules whose children are separate parts; any other module is one part."""

NORMS = (nn.BatchNorm2d, nn.LayerNorm)


def parts(network: nn.Module) -> dict[str, list[str]]:
    """Map each part that can be frozen to its parameters, in the order of the forward pass.

    For a ResNet: conv1 (with bn1), layer1 to layer4. A normalisation between two parts belongs to
    the part before it. Parameters outside any submodule (ViT's class token and position embedding)
    belong to the first part. The head is not a part.
    """
    head, names_by_part, last = head_name(network), dict[str, list[str]](), ""

    def walk(module: nn.Module, prefix: str) -> None:
        nonlocal last
        for name, child in module.named_children():
            full = f"{prefix}{name}"
            if full in CONTAINERS:
                walk(child, f"{full}.")
                continue
            parameters = [f"{full}.{parameter}" for parameter, _ in child.named_parameters()]
            if not parameters or full == head:
                continue
            if isinstance(child, NORMS) and last:
                names_by_part[last] += parameters
            else:
                names_by_part[full], last = parameters, full

    walk(network, "")
    assigned = {name for names in names_by_part.values() for name in names}
    names_by_part[next(iter(names_by_part))] += [
        name
        for name, _ in network.named_parameters()
        if name not in assigned and not name.startswith(f"{head}.")
    ]
    return names_by_part


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


def split(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Split a network with frozen parts into a frozen prefix and the rest.

    Returns:
        The prefix (normalised photos to features) and the rest (features to logits), which share
        the network's modules. The prefix includes the layers without parameters that follow the
        frozen parts, such as pooling, but no dropout.
    """
    return _half(network, prefix=True), _half(network, prefix=False)


def _half(network: nn.Module, prefix: bool) -> fx.GraphModule:
    graph = _PartTracer().trace(network)
    nodes = list(graph.nodes)
    cut = next(index for index, node in enumerate(nodes) if _varies(network, node))
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
    """Traces the operations between the parts of a network, not those inside them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in CONTAINERS


def _varies(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node's output for the same input varies during training."""
    name = str(node.target)
    if node.op == "get_attr":
        return network.get_parameter(name).requires_grad
    if node.op != "call_module":
        return False
    module = network.get_submodule(name)
    return isinstance(module, nn.Dropout) or any(p.requires_grad for p in module.parameters())


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
