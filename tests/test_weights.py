"""The stage `weights`: random weights, torchvision's, or a file; errors are one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from typer.testing import Result

from face_attributes.networks.build import State, build
from face_attributes.params import read_params
from stages import weights
from tests.conftest import Change, Run
from tests.small import PARAMS

MODEL = "mobilenet_v2"
FIRST = "features.0.0.weight"


@pytest.fixture(scope="module")
def pretrained() -> State:
    """Weights that no test changes."""
    return build(MODEL, 48, seed=5).state_dict()


@pytest.fixture
def run_weights(run: Run, change: Change, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage in a folder with data/pretrained: run_weights(source, code=1)."""
    change("weights.model", MODEL)
    change("train.heads", "joint")
    Path("data/pretrained").mkdir(parents=True)
    # Nothing listens at this address, as on a machine without internet access.
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", "torch_home")

    def run_stage(source: object, code: int = 0) -> Result:
        change("weights.source", str(source))
        return run(weights.main, "data/pretrained", "out", code=code)

    return run_stage


def read_initial() -> dict[str, Tensor]:
    return safetensors.torch.load_file("out/initial.safetensors")


def test_random_weights_depend_on_the_seed(run_weights: Run, change: Change) -> None:
    run_weights("none")
    first = Path("out/initial.safetensors").read_bytes()
    run_weights("none")
    assert Path("out/initial.safetensors").read_bytes() == first
    change("weights.seed", 1)
    run_weights("none")
    assert Path("out/initial.safetensors").read_bytes() != first


@pytest.mark.slow
def test_drawn_faces_pretrain_everything_but_the_head(
    run_weights: Run, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "DRAWN_FACES", 64)
    change("train.precision", "fp32")
    run_weights("none")
    random = read_initial()
    assert "pretrained on 64 drawn faces" in run_weights("drawn").output
    first = read_initial()
    assert first.keys() == random.keys()
    same = {name for name in first if torch.equal(first[name], random[name])}
    assert same == {"classifier.1.weight", "classifier.1.bias"}
    run_weights("drawn")
    assert all(torch.equal(first[name], tensor) for name, tensor in read_initial().items())


def test_faces_are_drawn_for_crops_of_any_side() -> None:
    crop = read_params(PARAMS).crop
    for side in range(16, 257):
        pixels, _ = weights.draw_face(0, 0, crop.model_copy(update={"side": side}))
        assert pixels.shape == (side, side, 3)


def test_no_drawn_person_is_in_the_sample() -> None:
    """Their random numbers differ from those of the sample's people and of their photos."""
    seeds = [[0, number, weights.STREAM] for number in range(50)]
    seeds += [[0, number] for number in range(50)]
    seeds += [[0, number, photo] for number in range(50) for photo in range(1, 7)]
    assert len({np.random.default_rng(seed).random() for seed in seeds}) == len(seeds)
    crops = {
        weights.draw_face(number, 0, read_params(PARAMS).crop)[0].tobytes() for number in (0, 1)
    }
    assert len(crops) == 2


@pytest.mark.parametrize(
    ("suffix", "half", "classifier"),
    [("safetensors", False, True), ("pth", False, False), ("pth", True, True)],
)
def test_file_is_loaded(
    run_weights: Run, pretrained: State, suffix: str, half: bool, classifier: bool
) -> None:
    state = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in pretrained.items()
        if classifier or not name.startswith("classifier")
    }
    path = Path(f"data/pretrained/file.{suffix}")
    if suffix == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        safetensors.torch.save_file(state, path)
    run_weights(path)
    initial = read_initial()
    assert initial.keys() == pretrained.keys()
    for name, tensor in state.items():
        assert torch.equal(initial[name], tensor.to(initial[name].dtype)), name
    assert {tensor.dtype for tensor in initial.values()} == {torch.float32, torch.int64}
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["source"] == str(path)
    assert len(metrics["sha256"]) == 64


def test_classifier_of_other_classes_is_replaced_by_a_new_head(
    run_weights: Run, pretrained: State
) -> None:
    classifier = {
        "classifier.1.weight": torch.ones(1000, 1280),
        "classifier.1.bias": torch.ones(1000),
    }
    path = "data/pretrained/1000.safetensors"
    safetensors.torch.save_file({**pretrained, **classifier}, path)
    run_weights(path)
    initial = read_initial()
    assert initial["classifier.1.weight"].shape == (18, 1280)
    assert torch.equal(initial[FIRST], pretrained[FIRST])


def test_imagenet_without_internet_names_the_file_to_download(run_weights: Run) -> None:
    output = run_weights("imagenet", code=1).output
    assert "cannot be downloaded" in output
    assert "https://download.pytorch.org/models/mobilenet_v2" in output
    assert str(Path("torch_home/hub/checkpoints/mobilenet_v2-7ebf99e0.pth")) in output


def test_damaged_imagenet_weights_name_the_file_to_delete(run_weights: Run) -> None:
    cached = Path("torch_home/hub/checkpoints/mobilenet_v2-7ebf99e0.pth")
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"<html>please log in</html>")
    assert f"is damaged: delete {cached}" in run_weights("imagenet", code=1).output


def test_weights_of_another_model_are_one_line(run_weights: Run) -> None:
    path = "data/pretrained/other.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.ones(1)}, path)
    output = run_weights(path, code=1).output
    assert f"error: {path} does not fit the model: it lacks features.0.0.weight" in output
    assert not Path("out").exists()


def test_files_that_are_not_weights_are_one_line(run_weights: Run) -> None:
    Path("data/pretrained/a.safetensors").write_bytes(b"no tensors")
    Path("data/pretrained/b.pth").write_bytes(b"no pickle")
    torch.save([1, 2], "data/pretrained/c.pth")
    torch.save(torch.nn.ReLU(), "data/pretrained/d.pth")  # a whole module, with code to execute
    for name, problem in (
        ("a.safetensors", "is damaged, or neither"),
        ("b.pth", "is damaged, or neither"),
        ("c.pth", "is not a state dict"),
        ("d.pth", "holds torch.nn.modules.activation.ReLU, which may execute code: save the"),
        ("absent.pth", "there is no file"),
    ):
        lines = run_weights(f"data/pretrained/{name}", code=1).output.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: weights.source: ")
        assert name in lines[0]
        assert problem in lines[0]
        assert "weights_only" not in lines[0], "torch's own advice is to trust the file"


def test_a_file_that_dvc_cannot_see_change_is_an_error(run_weights: Run, pretrained: State) -> None:
    safetensors.torch.save_file(pretrained, "elsewhere.safetensors")
    link = Path("data/pretrained/link.safetensors")
    link.symlink_to(Path("elsewhere.safetensors").absolute())
    for name in ("elsewhere.safetensors", str(link)):
        assert run_weights(name, code=1).output == (
            f"error: weights.source: {name} is outside data/pretrained, where DVC would not notice "
            "when it changes: copy it to data/pretrained, and write its path there\n"
        )


def test_a_link_that_dvc_made_is_a_file(run_weights: Run, pretrained: State) -> None:
    """With `cache.type symlink`."""
    cached = Path(f"cache/files/md5/{'0' * 2}/{'1' * 30}").absolute()
    cached.parent.mkdir(parents=True)
    safetensors.torch.save_file(pretrained, cached)
    Path("data/pretrained/own.safetensors").symlink_to(cached)
    run_weights("data/pretrained/own.safetensors")


def test_pretrained_weights_of_timm_without_internet_name_the_file_to_download(
    run_weights: Run, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "hub")
    change("weights.model", "timm/resnet18")
    output = run_weights("pretrained", code=1).output
    assert "pretrained cannot be downloaded" in output
    assert "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors" in output
    assert "imagenet names torchvision's weights" in run_weights("imagenet", code=1).output
