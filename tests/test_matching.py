"""Weight files as people have them: prefixes, wrappers, kinds of tensors, and what is refused."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from face_attributes.errors import UserError
from face_attributes.networks.build import State, build
from face_attributes.networks.matching import fit_state
from face_attributes.networks.weight_files import read_weights

SIDE = 32
MODEL = "resnet18"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network that no test changes."""
    return build(MODEL, SIDE, seed=1)


@pytest.fixture(scope="module")
def pretrained() -> State:
    """Weights of the same network that differ from its own, with the head of another task."""
    state = torchvision.models.resnet18(num_classes=7).state_dict()
    return {name: tensor + 1 for name, tensor in state.items()}


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def is_loaded(network: nn.Module, pretrained: State, path: Path) -> bool:
    """Whether every tensor but the head comes from the file."""
    fitted = fit_state(network, read_weights(path), str(path))
    assert fitted.keys() == network.state_dict().keys()
    return all(
        torch.equal(fitted[name], network.state_dict()[name] if "fc." in name else tensor)
        for name, tensor in pretrained.items()
    )


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "model.",
        "backbone.",
        "model.backbone.",
        "module._orig_mod.net.",
    ],
)
def test_prefixes_are_removed(
    network: nn.Module, pretrained: State, tmp_path: Path, prefix: str, suffix: str
) -> None:
    path, state = tmp_path / f"file.{suffix}", prefixed(pretrained, prefix)
    if suffix == "pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    assert is_loaded(network, pretrained, path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {"net": state, "acc": 0.9},
        lambda state: {"ema": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"n_averaged": torch.tensor(5), **prefixed(state, "module.")},
        lambda state: {"state_dict": prefixed(state, "model."), "pytorch-lightning_version": "2"},
    ],
)
def test_wrappers_are_removed(
    network: nn.Module, pretrained: State, tmp_path: Path, wrap: Callable[[State], object]
) -> None:
    torch.save(wrap(pretrained), tmp_path / "file.pth")
    assert is_loaded(network, pretrained, tmp_path / "file.pth")


def test_compiled_or_parallel_submodules_are_removed(
    network: nn.Module, pretrained: State, tmp_path: Path
) -> None:
    names = {name: name.replace("layer1.", "layer1._orig_mod.module.") for name in pretrained}
    torch.save({names[name]: t for name, t in pretrained.items()}, tmp_path / "file.pth")
    assert is_loaded(network, pretrained, tmp_path / "file.pth")


def test_tensors_outside_the_prefix_are_ignored_and_counted(
    network: nn.Module, pretrained: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"loss.weight": torch.ones(18), "accuracy.total": torch.tensor(3)}
    torch.save({"state_dict": {**prefixed(pretrained, "model."), **others}}, tmp_path / "a.ckpt")
    assert is_loaded(network, pretrained, tmp_path / "a.ckpt")
    assert "used the names below model., ignored 2 other tensors" in capsys.readouterr().out


def test_first_of_several_wrapped_networks_is_named(
    network: nn.Module, pretrained: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {name: tensor + 1 for name, tensor in pretrained.items()}
    torch.save({"ema": other, "model": pretrained}, tmp_path / "file.pth")
    assert is_loaded(network, pretrained, tmp_path / "file.pth")
    assert "contains model and ema: model is read" in capsys.readouterr().out


def test_two_networks_in_one_file_are_refused(network: nn.Module, pretrained: State) -> None:
    both = {**prefixed(pretrained, "student."), **prefixed(pretrained, "teacher.")}
    with pytest.raises(UserError, match=r"contains the network more than once, as student., teach"):
        fit_state(network, both, "file")


def test_names_without_a_state_dict_are_listed(tmp_path: Path) -> None:
    torch.save({"weights": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"must map names to tensors, and has weights, epoch; save"):
        read_weights(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (torch.ones(64, 3, 7, 7, dtype=torch.int8), "conv1.weight is torch.int8, where the netw"),
        (torch.ones(64, 3, 7, 7).to_sparse(), "conv1.weight is sparse: save the network with"),
        (torch.quantize_per_tensor(torch.ones(64, 3, 7, 7), 1, 0, torch.qint8), "is quantised"),
        (torch.ones(64, 3, 7, 7, device="meta"), "is a placeholder without numbers"),
        (torch.ones(64, 3, 7, 7, dtype=torch.complex64), "is complex"),
        (torch.ones(1).expand(10**9, 10**6), "is an expanded view"),
        (torch.ones(64, 3, 3, 3), "different shapes of conv1.weight (64 x 3 x 3 x 3, not 64 x 3"),
    ],
)
def test_other_kinds_of_tensors_are_refused(
    network: nn.Module, pretrained: State, tmp_path: Path, tensor: Tensor, problem: str
) -> None:
    torch.save({**pretrained, "conv1.weight": tensor}, tmp_path / "file.pth")
    with pytest.raises(UserError) as caught:
        fit_state(network, read_weights(tmp_path / "file.pth"), "file")
    assert problem in str(caught.value)


def test_negative_variances_are_refused(network: nn.Module, pretrained: State) -> None:
    state = {**pretrained, "bn1.running_var": -torch.ones(64)}
    with pytest.raises(UserError, match=r"bn1\.running_var contain negative variances; use"):
        fit_state(network, state, "file")


def test_compressed_file_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(5_000_000)}, tmp_path / "plain.pth")
    path = tmp_path / "small.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for name in plain.namelist():
            compressed.writestr(name, plain.read(name))
    with pytest.raises(UserError, match=r"small.pth is compressed and would open to 0.0 GB"):
        read_weights(path)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("resnet34", "resnet50", "wide_resnet50_2")
        ),
    ],
)
def test_resnets_of_torchvision_and_timm_have_the_same_names(name: str) -> None:
    """So that either's files fit the other's networks."""
    ours = build(name, SIDE)
    of_timm = build(f"timm/{name}", SIDE)
    weights = {key: tensor + 1 for key, tensor in ours.state_dict().items()}
    fitted = fit_state(of_timm, weights, "file")
    assert torch.equal(
        fitted["backbone.layer2.0.downsample.0.weight"], weights["layer2.0.downsample.0.weight"]
    )
    back = fit_state(
        ours,
        {k.removeprefix("backbone."): t for k, t in fitted.items() if k.startswith("backbone.")},
        "file",
    )
    torch.testing.assert_close(back, weights, atol=0, rtol=0)


def test_old_names_in_files_of_torchvision_are_renamed() -> None:
    """The downloads of DenseNets and vision transformers have names from before a change."""
    for model, new, old in (
        ("densenet121", "denselayer1.norm2.", "denselayer1.norm.2."),
        ("vit_b_16", ".mlp.0.", ".mlp.linear_1."),
    ):
        network = build(model, SIDE)
        state = {name.replace(new, old): t + 1 for name, t in network.state_dict().items()}
        assert any(old in name for name in state)
        fitted = fit_state(network, state, "file")
        assert all(torch.equal(fitted[name], t + 1) for name, t in network.state_dict().items())


def test_auxiliary_heads_in_files_of_torchvision_are_ignored() -> None:
    network = build("googlenet", SIDE)
    extra = {"aux1.conv.conv.weight": torch.ones(1), "aux2.fc1.bias": torch.ones(1)}
    fitted = fit_state(network, {**network.state_dict(), **extra}, "file")
    assert fitted.keys() == network.state_dict().keys()
