"""Match the tensors of a weight file to a network."""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from face_attributes.errors import UserError
from face_attributes.networks.build import State, head_name
from face_attributes.networks.timm_networks import TimmNetwork, older_names
from face_attributes.photos.names import readable_name

WRAPPER_MODULES = ("module", "_orig_mod")
"""Components that DataParallel, AveragedModel and torch.compile insert into names."""

AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")
"""Of GoogLeNet and Inception, for training only; the networks here have none."""

OLD_NAMES = (
    (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2"),
    (r"\.mlp\.linear_1\.", ".mlp.0."),
    (r"\.mlp\.linear_2\.", ".mlp.3."),
)
"""Names in torchvision's own files that its DenseNets and vision transformers no longer have."""

POSITIONS = "encoder.pos_embedding"

SHOWN = 4
"""Number of names in an error."""


def fit_state(network: nn.Module, state: Mapping[str, Tensor], source: str) -> State:
    """Return the network's state with the tensors of `state` filled in, as float32.

    Names may have a prefix, such as `model.` or `backbone.`; tensors outside it are ignored, and
    their number is printed. A vision transformer's position embedding is interpolated to the
    network's size. A head with another number of outputs is ignored; a file without a head is fine.

    Args:
        source: name of the file, for errors.

    Raises:
        UserError: naming tensors that are missing or unknown, or that have another shape, another
            kind of numbers, or impossible numbers.
    """
    state = _without_wrappers(state, source)
    own = network.backbone if isinstance(network, TimmNetwork) else network
    wanted = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    head = f"{head_name(network).removeprefix('backbone.')}."
    body = {name for name in wanted if not name.startswith(head)}

    prefix = _find_prefix(state, body, source)
    inside = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    for name, tensor in inside.items():
        _check_kind(name, tensor, source)
    renamed = _rename(network, inside, source)
    _check_fit(renamed, wanted, head, source)
    if ignored := len(state) - len(inside):
        print(f"{source}: used the names below {prefix}, ignored {ignored} other tensors")

    for name in wanted:
        if name in renamed and wanted[name].shape == renamed[name].shape:
            wanted[name] = renamed[name].to(wanted[name].dtype).clone()
    _check_numbers(wanted, source)
    if isinstance(network, TimmNetwork):
        return network.state_dict() | {f"backbone.{name}": t for name, t in wanted.items()}
    return wanted


def _without_wrappers(state: Mapping[str, Tensor], source: str) -> State:
    """Remove WRAPPER_MODULES from the names, and the count of AveragedModel."""
    plain = State()
    for name, tensor in state.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPER_MODULES)
        if short in plain:
            raise UserError(
                f"{source} contains {short} twice, with and without module. or _orig_mod.: save "
                "the state dict of one network alone"
            )
        if name != "n_averaged":
            plain[short] = tensor
    return plain


def _find_prefix(state: Mapping[str, Tensor], body: set[str], source: str) -> str:
    """Find what the names of the file have before the network's: the prefix of the most of them.

    Raises:
        UserError: if two prefixes have more than half of the network's names each.
    """
    matches = dict[str, int]()
    for name in state:
        path = name.split(".")
        for depth in range(len(path)):
            if ".".join(path[depth:]) in body:
                prefix = "".join(f"{part}." for part in path[:depth])
                matches[prefix] = matches.get(prefix, 0) + 1
    found = sorted((p for p in matches if matches[p] > len(body) / 2), key=lambda p: -matches[p])
    if len(found) > 1:
        raise UserError(
            f"{source} contains the network more than once, as "
            f"{_shorten(p or 'names without a prefix' for p in found)}: save the state dict of one "
            "network alone"
        )
    return found[0] if found else ""


def _rename(network: nn.Module, state: State, source: str) -> State:
    """Rename older names, resize position embeddings, and leave out auxiliary heads."""
    if isinstance(network, TimmNetwork):
        return older_names(network.backbone, state)
    for pattern, replacement in OLD_NAMES:
        state = {re.sub(pattern, replacement, name): tensor for name, tensor in state.items()}
    if isinstance(network, VisionTransformer) and POSITIONS in state:
        resized = {POSITIONS: state[POSITIONS].float()}
        try:
            resized = interpolate_embeddings(network.image_size, network.patch_size, resized)
        except (ValueError, RuntimeError, IndexError):
            raise UserError(
                f"{source} does not fit the model: {POSITIONS} has the shape "
                f"{tuple(state[POSITIONS].shape)}, which is no square of patches and a class token"
            ) from None
        state = {**state, **resized}
    return {name: t for name, t in state.items() if not name.startswith(AUXILIARY_HEADS)}


def _check_kind(name: str, tensor: Tensor, source: str) -> None:
    """Refuse tensors that no layer here holds, before anything computes with them."""
    if tensor.layout is not torch.strided:
        kind = "sparse"
    elif tensor.is_quantized:
        kind = "quantised"
    elif tensor.is_meta:
        kind = "a placeholder without numbers (of the meta device)"
    elif tensor.is_complex():
        kind = "complex"
    elif tensor.nbytes > tensor.untyped_storage().nbytes():
        kind = "an expanded view, larger than the numbers it holds"
    else:
        return
    raise UserError(
        f"{source}: {name} is {kind}: save the network with ordinary tensors of floating-point "
        "numbers"
    )


def _check_fit(state: State, wanted: State, head: str, source: str) -> None:
    """Refuse a file whose names, shapes or kinds of numbers differ from the network's."""
    body = {name for name in wanted if not name.startswith(head)}
    # A file may lack the whole classifier, which is more than the head in some networks. Old
    # checkpoints lack BatchNorm's num_batches_tracked, which nothing here reads.
    classifier = head.split(".")[0] + "."
    headless = not any(name.startswith(classifier) for name in state)
    needed = {
        name
        for name in body
        if "num_batches_tracked" not in name and not (headless and name.startswith(classifier))
    }
    extra = {name for name in state if not name.startswith(head)} - body
    shared = body & state.keys()
    reshaped = {
        f"{name} ({_shape(state[name])}, not {_shape(wanted[name])})"
        for name in shared
        if wanted[name].shape != state[name].shape
    }
    lacking, found = needed - state.keys(), _shorten(extra or state) or "no tensors"
    for problem in (
        f"lacks {_shorten(lacking)} (it has {found})" if lacking else "",
        f"has unknown tensors {_shorten(extra)} (wanted: {_shorten(body)})" if extra else "",
        f"has different shapes of {_shorten(reshaped)}" if reshaped else "",
    ):
        if problem:
            raise UserError(
                f"{source} does not fit the model: it {problem}; set weights.model to the network "
                "that the file belongs to"
            )
    integers = {
        name
        for name in shared
        if state[name].is_floating_point() != wanted[name].is_floating_point()
        and "num_batches_tracked" not in name
    }
    if integers:
        raise UserError(
            f"{source}: {_shorten(f'{name} is {state[name].dtype}' for name in integers)}, where "
            "the network has another kind of numbers; quantised weights cannot be trained: use the "
            "file with floating-point numbers"
        )


def _check_numbers(state: State, source: str) -> None:
    """Refuse numbers that a trained network cannot have."""
    infinite = {name for name, tensor in state.items() if not tensor.isfinite().all()}
    negative = {
        name
        for name, tensor in state.items()
        if name.endswith("running_var") and (tensor < 0).any()
    }
    for problem, names in (
        ("numbers that are not finite", infinite),
        ("negative variances", negative),
    ):
        if names:
            raise UserError(
                f"{source} is damaged: {_shorten(names)} contain {problem}; use another file"
            )


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _shorten(names: Iterable[str]) -> str:
    ordered = sorted(map(readable_name, names))
    first = ", ".join(ordered[:SHOWN])
    return first if len(ordered) <= SHOWN else f"{first} and {len(ordered) - SHOWN} more"
