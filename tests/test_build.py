"""Networks for 18 classes: heads, seeds, and which weights fit."""

import pytest
import torch
from torch import Tensor, nn

from face_attributes.errors import UserError
from face_attributes.networks.build import AgesHead, SplitHead, State, build, check_side
from face_attributes.networks.matching import fit_state
from face_attributes.photos.labels import NUM_CLASSES

SIDE = 32
MODEL = "mobilenet_v3_large"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network that no test changes."""
    return build(MODEL, SIDE, seed=1)


def without_head(state: State) -> State:
    return {name: t for name, t in state.items() if not name.startswith("classifier.3.")}


def test_split_head_is_the_product_of_three() -> None:
    head, features = SplitHead(512), torch.randn(5, 512)
    mask, gender, age = (
        part.softmax(dim=1)
        for part in nn.functional.linear(features, head.weight, head.bias).split([3, 2, 3], dim=1)
    )
    product = mask[:, :, None, None] * gender[:, None, :, None] * age[:, None, None, :]
    probabilities = head(features).softmax(dim=1)
    torch.testing.assert_close(probabilities, product.flatten(1))
    label = 1 * 6 + 1 * 3 + 2  # mask worn incorrectly, female, 60 and over
    torch.testing.assert_close(probabilities[:, label], mask[:, 1] * gender[:, 1] * age[:, 2])


def test_ages_head_sums_years_to_age_groups() -> None:
    head, features = AgesHead(512, (30, 58)), torch.randn(5, 512)
    outputs = nn.functional.linear(features, head.weight, head.bias).split([3, 2, 121], dim=1)
    mask, gender, years = (part.softmax(dim=1) for part in outputs)
    age = torch.stack([years[:, :30].sum(1), years[:, 30:58].sum(1), years[:, 58:].sum(1)], dim=1)
    product = mask[:, :, None, None] * gender[:, None, :, None] * age[:, None, None, :]
    torch.testing.assert_close(head.eval()(features).softmax(dim=1), product.flatten(1))
    logits = head.train()(features)
    assert logits.shape == (5, 18 + 121)
    torch.testing.assert_close(logits[:, :18].softmax(dim=1), product.flatten(1))
    torch.testing.assert_close(logits[:, 18:], outputs[2])


@pytest.mark.parametrize(("heads", "head"), [("split", SplitHead), ("ages", AgesHead)])
def test_other_heads_replace_the_last_layer(heads: str, head: type[nn.Module]) -> None:
    network = build("resnet18", SIDE, heads).eval()  # type: ignore[arg-type]
    assert isinstance(network.get_submodule("fc"), head)
    assert network(torch.randn(2, 3, SIDE, SIDE)).shape == (2, NUM_CLASSES)


def test_random_weights_depend_only_on_the_seed(network: nn.Module) -> None:
    first, again = network.state_dict(), build(MODEL, SIDE, seed=1).state_dict()
    torch.testing.assert_close(first, again, atol=0, rtol=0)
    other = build(MODEL, SIDE, seed=2).state_dict()
    assert not torch.equal(first["features.0.0.weight"], other["features.0.0.weight"])


def test_weights_in_half_precision_without_a_classifier_fit(network: nn.Module) -> None:
    half = {
        name: torch.full_like(tensor, 0.1).half()
        for name, tensor in network.state_dict().items()
        if not name.startswith("classifier.") and "num_batches" not in name
    }
    state = fit_state(network, half, "file")
    assert state.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], half[name].float() if name in half else tensor)


def test_only_a_head_of_18_classes_is_loaded(network: nn.Module) -> None:
    weights: dict[str, Tensor] = without_head(network.state_dict())
    weights["classifier.3.bias"] = torch.ones(18)
    weights["classifier.3.weight"] = torch.ones(18, 1280)
    assert fit_state(network, weights, "file")["classifier.3.bias"].eq(1).all()
    weights["classifier.3.bias"] = torch.ones(1000)
    weights["classifier.3.weight"] = torch.ones(1000, 1280)
    state = fit_state(network, weights, "file")
    assert torch.equal(state["classifier.3.weight"], network.state_dict()["classifier.3.weight"])


def test_tensors_that_do_not_fit_are_named(network: nn.Module) -> None:
    state, name = without_head(network.state_dict()), "features.0.0.weight"
    lacking = {key: tensor for key, tensor in state.items() if key != name}
    broken = {**state, name: torch.full_like(state[name], torch.nan)}
    for weights, problem in (
        (lacking, r"file does not fit the model: it lacks features\.0\.0\.weight \(it has clas"),
        (
            {**state, "layer5.weight": torch.ones(1)},
            r"has unknown tensors layer5\.weight \(wanted: classifier",
        ),
        (
            {**state, name: torch.ones(1)},
            r"has different shapes of features\.0\.0\.weight \(1, not 16 x 3 x 3 x 3\);",
        ),
        (broken, r"is damaged: features\.0\.0\.weight contain numbers that are not finite;"),
        ({}, r"lacks .* and \d+ more"),
    ):
        with pytest.raises(UserError, match=problem):
            fit_state(network, weights, "file")


def test_crops_have_a_side_that_the_network_can_take() -> None:
    for model, side, advice in (
        ("vit_b_16", 100, "write 96 or 112"),
        ("convnext_tiny", 16, "write 32"),
        ("maxvit_t", 200, "write 224"),
    ):
        with pytest.raises(UserError) as caught:
            check_side(model, side, "split")
        assert str(caught.value) == (
            f"crop.side: {model} cannot be trained on crops of {side} pixels: {advice}"
        )
        check_side(model, int(advice.split()[-1]), "split")


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("resnet19", "resnet19 is no network of torchvision: did you mean resnet18, "),
        ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn is not a classification network"),
        ("quantized_resnet18", "is not a classification network: did you mean resnet18"),
        ("timm/resnet19", "timm has no network 'resnet19': did you mean timm/resnet"),
        ("timm/resnet18.a9", "timm has no weights 'a9' of resnet18: write timm/resnet18 or one of"),
        ("timm/dla34", "timm/dla34 does not end in one linear layer (its classifier is a Conv2d)"),
        ("timm/", "timm has no network ''"),
    ],
)
def test_unknown_networks_are_named_with_similar_ones(model: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        build(model, SIDE)
    assert str(caught.value).startswith("weights.model: ")
    assert problem in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_position_embedding_of_a_vision_transformer_is_interpolated() -> None:
    """From 4 x 4 patches (a side of 64) to 2 x 2 (32); the class token has no position."""
    network = build("vit_b_16", 32)
    embedding = torch.randn(1, 4 * 4 + 1, 768)
    weights = {**network.state_dict(), "encoder.pos_embedding": embedding}
    fitted = fit_state(network, weights, "file")["encoder.pos_embedding"]
    assert fitted.shape == (1, 2 * 2 + 1, 768)
    assert torch.equal(fitted[:, 0], embedding[:, 0])
