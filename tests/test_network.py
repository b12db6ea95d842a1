"""Networks by name: freezing up to a part, and weights that fit or say why not."""

import pytest
import torch
from torch import nn

from stages.errors import UserError
from stages.learning.network import (
    AgesHead,
    SplitHead,
    build,
    count_parameters,
    fit_state,
    freeze,
    head_name,
    parameter_groups,
    parts,
    set_training,
    split,
)
from stages.photos.labels import CLASSES

SIZE = 32
MODELS = {
    "resnet18": ("layer2", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
    "resnet50": ("layer3", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
    "wide_resnet50_2": ("layer4", ["conv1", "layer1", "layer2", "layer3", "layer4"]),
    "mobilenet_v2": ("features.7", [f"features.{place}" for place in range(19)]),
    "mobilenet_v3_large": (
        "features.3",
        [*(f"features.{place}" for place in range(17)), "classifier.0"],
    ),
    "efficientnet_b0": ("features.4", [f"features.{place}" for place in range(9)]),
    "convnext_tiny": ("features.5", [f"features.{place}" for place in range(8)]),
    "vit_b_16": (
        "encoder.layers.encoder_layer_5",
        ["conv_proj", *(f"encoder.layers.encoder_layer_{place}" for place in range(12))],
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_each_model_freezes_and_learns(model: str) -> None:
    point, expected = MODELS[model]
    network = build(model, SIZE)
    found = parts(network)
    assert list(found) == expected
    in_parts = [name for names in found.values() for name in names]
    head = f"{head_name(network)}."
    everything = [name for name, _ in network.named_parameters()]
    assert sorted(in_parts) == sorted(name for name in everything if not name.startswith(head))

    freeze(network, point)
    set_training(network)
    frozen = {name for part in expected[: expected.index(point) + 1] for name in found[part]}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(network, 0.1, 0.1, 1.0))
    nn.init.normal_(network.get_submodule(head_name(network)).weight)  # type: ignore[arg-type]
    logits = network(torch.randn(2, 3, SIZE, SIZE))
    assert logits.shape == (2, CLASSES)
    logits.logsumexp(dim=1).sum().backward()
    optimizer.step()
    after = network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not changed & frozen
    assert f"{head}weight" in changed
    assert set(found[expected[-1]]) & changed or expected[-1] == point


@pytest.mark.parametrize("model", MODELS)
def test_a_frozen_network_cut_in_two_gives_the_same_logits(model: str) -> None:
    network = build(model, SIZE)
    images = torch.randn(2, 3, SIZE, SIZE)
    last = list(parts(network))[-1]
    for point in (MODELS[model][0], last):
        freeze(network, point)
        prefix, rest = split(network.eval())
        features = prefix(images)
        assert torch.allclose(rest(features), network(images), atol=1e-5)
        assert not any(p.requires_grad for p in prefix.parameters())
        trainable = {id(p) for p in network.parameters() if p.requires_grad}
        assert trainable <= {id(p) for p in rest.parameters()}
    assert features.ndim == (3 if model == "vit_b_16" else 2), "pooled before it is kept"


def test_freezing_nothing_and_all_but_the_head() -> None:
    network = build("resnet18", SIZE)
    freeze(network, "none")
    assert count_parameters(network)["frozen"] == 0
    freeze(network, "layer4")
    head = 512 * 18 + 18
    assert count_parameters(network) == {
        "trainable": head,
        "frozen": 11_176_512,
        "total": 11_176_512 + head,
    }
    freeze(network, "conv1")
    assert count_parameters(network)["frozen"] == 64 * 3 * 7 * 7 + 2 * 64


def test_an_unknown_part_lists_those_there_are() -> None:
    with pytest.raises(UserError) as caught:
        freeze(build("resnet18", SIZE), "layer5")
    assert "no part 'layer5'" in str(caught.value)
    assert "none or one of conv1, layer1, layer2, layer3, layer4" in str(caught.value)


def test_frozen_batchnorm_keeps_its_statistics_and_the_rest_does_not() -> None:
    network = build("resnet18", SIZE)
    freeze(network, "layer1")
    set_training(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.randn(4, 3, 32, 32))
    after = network.state_dict()
    assert torch.equal(before["bn1.running_mean"], after["bn1.running_mean"])
    assert torch.equal(before["layer1.1.bn2.running_var"], after["layer1.1.bn2.running_var"])
    assert not torch.equal(before["layer2.0.bn1.running_mean"], after["layer2.0.bn1.running_mean"])


def test_each_trainable_parameter_is_in_one_group_and_rates_fall_with_depth() -> None:
    network = build("resnet18", SIZE)
    freeze(network, "layer2")
    groups = parameter_groups(network, head_lr=0.1, backbone_lr=0.01, lr_decay=0.5)
    assert [group["lr"] for group in groups] == [0.005, 0.01, 0.1]
    grouped = [parameter for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    assert {id(p) for p in grouped} == {id(p) for p in network.parameters() if p.requires_grad}
    assert len(grouped) == len({id(p) for p in grouped})
    assert [tuple(p.shape) for p in groups[-1]["params"]] == [(18, 512), (18,)]  # type: ignore[attr-defined]


def test_a_split_head_is_the_product_of_three() -> None:
    network = build("resnet18", SIZE, "split")
    head = network.get_submodule("fc")
    assert isinstance(head, SplitHead)
    features = torch.randn(5, 512)
    mask, gender, age = (
        part.softmax(dim=1)
        for part in nn.functional.linear(features, head.weight, head.bias).split([3, 2, 3], dim=1)
    )
    product = mask[:, :, None, None] * gender[:, None, :, None] * age[:, None, None, :]
    probabilities = head(features).softmax(dim=1)
    assert torch.allclose(probabilities, product.flatten(1), atol=1e-6)
    label = 1 * 6 + 1 * 3 + 2  # worn wrongly, a woman, 60 and over
    assert torch.allclose(probabilities[:, label], mask[:, 1] * gender[:, 1] * age[:, 2])
    assert network(torch.randn(2, 3, SIZE, SIZE)).shape == (2, CLASSES)
    freeze(network, "layer4")
    assert count_parameters(network)["trainable"] == 512 * 8 + 8


def test_age_groups_are_sums_over_years() -> None:
    network = build("resnet18", SIZE, "ages", age_edges=(30, 58))
    head = network.get_submodule("fc")
    assert isinstance(head, AgesHead)
    features = torch.randn(5, 512)
    outputs = nn.functional.linear(features, head.weight, head.bias).split([3, 2, 121], dim=1)
    mask, gender, years = (part.softmax(dim=1) for part in outputs)
    age = torch.stack([years[:, :30].sum(1), years[:, 30:58].sum(1), years[:, 58:].sum(1)], dim=1)
    product = mask[:, :, None, None] * gender[:, None, :, None] * age[:, None, None, :]
    head.eval()
    torch.testing.assert_close(head(features).softmax(dim=1), product.flatten(1))
    head.train()
    learnt = head(features)
    assert learnt.shape == (5, 18 + 121)
    torch.testing.assert_close(learnt[:, :18].softmax(dim=1), product.flatten(1))
    torch.testing.assert_close(learnt[:, 18:], outputs[2])


def test_random_weights_follow_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build("resnet18", SIZE, seed=3).state_dict()
    torch.manual_seed(2)
    again, other = (
        build("resnet18", SIZE, seed=3).state_dict(),
        build("resnet18", SIZE, seed=4).state_dict(),
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def body_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t for name, t in network.state_dict().items() if not name.startswith("fc.")}


def test_weights_without_a_classifier_in_half_precision_are_taken() -> None:
    source, target = build("resnet18", SIZE, seed=1), build("resnet18", SIZE, seed=2)
    half = {name: t.half() for name, t in body_of(source).items() if "num_batches" not in name}
    state = fit_state(target, half, "file")
    assert state["conv1.weight"].dtype == torch.float32
    assert torch.equal(state["conv1.weight"], half["conv1.weight"].float())
    assert torch.equal(state["fc.weight"], target.state_dict()["fc.weight"])


def test_a_head_of_18_is_taken_and_one_of_1000_is_not() -> None:
    source, target = build("resnet18", SIZE, seed=1), build("resnet18", SIZE, seed=2)
    state = fit_state(target, source.state_dict(), "file")
    assert torch.equal(state["fc.weight"], source.state_dict()["fc.weight"])
    imagenet = {
        **source.state_dict(),
        "fc.weight": torch.ones(1000, 512),
        "fc.bias": torch.ones(1000),
    }
    state = fit_state(target, imagenet, "file")
    assert torch.equal(state["fc.weight"], target.state_dict()["fc.weight"])


def test_tensors_that_do_not_fit_are_named() -> None:
    network = build("resnet18", SIZE)
    state = body_of(network)
    with pytest.raises(UserError, match=r"file does not fit the model: it lacks conv1.weight;"):
        fit_state(network, {n: t for n, t in state.items() if n != "conv1.weight"}, "file")
    with pytest.raises(UserError, match=r"has unknown layer5.weight;"):
        fit_state(network, {**state, "layer5.weight": torch.ones(1)}, "file")
    with pytest.raises(UserError, match=r"has of another shape conv1.weight;"):
        fit_state(network, {**state, "conv1.weight": torch.ones(1)}, "file")
    with pytest.raises(UserError, match=r"lacks .* and \d+ more"):
        fit_state(network, build("mobilenet_v2", SIZE).state_dict(), "file")


def test_a_vision_transformer_knows_its_size() -> None:
    with pytest.raises(UserError, match="crop.side: vit_b_16 needs a multiple of 16, not 100"):
        build("vit_b_16", 100)
    with pytest.raises(UserError, match="crop.side: convnext_tiny needs at least 32, not 16"):
        build("convnext_tiny", 16)
    large, small = build("vit_b_16", 64, seed=1), build("vit_b_16", 32, seed=2)
    state = fit_state(small, large.state_dict(), "file")
    assert state["encoder.pos_embedding"].shape == (1, 2 * 2 + 1, 768)
    class_token = large.state_dict()["encoder.pos_embedding"][:, 0]
    assert torch.equal(state["encoder.pos_embedding"][:, 0], class_token)
