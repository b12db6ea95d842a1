"""The initial state: random, torchvision's, or a file; what does not fit says which tensors."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from stages import weights
from stages.errors import UserError
from stages.learning.network import build
from stages.learning.weight_files import load_network, read_recipe, write_weights
from stages.params import read_params
from stages.train import recipe_of
from tests.conftest import Change, Run

MODEL = "mobilenet_v3_large"


@pytest.fixture
def weigh(run: Run, change: Change, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the stage in a folder with data/pretrained/; weigh(source, code=1) expects an error."""
    change("weights.model", MODEL)
    change("train.heads", "joint")
    Path("data/pretrained").mkdir(parents=True)
    # Nothing listens there: as on a machine without internet.
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", "torch_home")

    def weigh_source(source: object, code: int = 0) -> object:
        change("weights.source", str(source))
        return run(weights.main, "data/pretrained", "out", code=code)

    return weigh_source  # type: ignore[return-value]


def written() -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file("out/initial.safetensors")


def pretrained(seed: int = 5) -> nn.Module:
    return build(MODEL, 48, seed=seed)


def test_random_weights_follow_from_the_seed(weigh: Run, change: Change) -> None:
    weigh("none")
    first = Path("out/initial.safetensors").read_bytes()
    weigh("none")
    assert Path("out/initial.safetensors").read_bytes() == first
    change("weights.seed", 1)
    weigh("none")
    assert Path("out/initial.safetensors").read_bytes() != first


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("classifier", [False, True])
def test_a_file_is_taken_over(weigh: Run, ending: str, half: bool, classifier: bool) -> None:
    state = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in pretrained().state_dict().items()
        if classifier or not name.startswith("classifier")
    }
    path = Path(f"data/pretrained/some.{ending}")
    if ending == "pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        safetensors.torch.save_file(state, path)
    weigh(path)
    initial = written()
    assert initial.keys() == pretrained().state_dict().keys()
    for name, tensor in state.items():
        assert torch.equal(initial[name], tensor.to(initial[name].dtype)), name
    assert {t.dtype for t in initial.values()} <= {torch.float32, torch.int64}
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert metrics["source"] == str(path)
    assert len(metrics["sha256"]) == 64


def test_a_classifier_of_other_classes_gives_way_to_a_new_head(weigh: Run) -> None:
    imagenet = torchvision.models.get_model(MODEL, weights=None)
    safetensors.torch.save_file(imagenet.state_dict(), "data/pretrained/1000.safetensors")
    weigh("data/pretrained/1000.safetensors")
    initial = written()
    assert initial["classifier.3.weight"].shape == (18, 1280)
    assert torch.equal(initial["features.0.0.weight"], imagenet.state_dict()["features.0.0.weight"])


def test_imagenet_without_internet_says_which_file_to_put_where(weigh: Run) -> None:
    output = weigh("imagenet", code=1).output
    assert "cannot be downloaded" in output
    assert "https://download.pytorch.org/models/mobilenet_v3_large" in output
    assert str(Path("torch_home/hub/checkpoints/mobilenet_v3_large-5c1a4163.pth")) in output


def test_damaged_imagenet_weights_say_which_file_to_delete(weigh: Run) -> None:
    cached = Path("torch_home/hub/checkpoints/mobilenet_v3_large-5c1a4163.pth")
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"<html>please log in</html>")
    output = weigh("imagenet", code=1).output
    assert f"is damaged: delete {cached}" in output


def test_weights_of_another_model_name_the_tensors(weigh: Run) -> None:
    other = build("resnet18", 48)
    safetensors.torch.save_file(other.state_dict(), "data/pretrained/other.safetensors")
    output = weigh("data/pretrained/other.safetensors", code=1).output
    assert "does not fit the model: it lacks features.0.0.weight" in output
    assert not Path("out").exists()


def test_tensors_of_another_shape_are_named(weigh: Run) -> None:
    state = pretrained().state_dict()
    state["features.0.0.weight"] = torch.zeros(1)
    safetensors.torch.save_file(state, "data/pretrained/shape.safetensors")
    output = weigh("data/pretrained/shape.safetensors", code=1).output
    assert "of another shape features.0.0.weight" in output


def test_tensors_that_are_not_finite_are_named(weigh: Run) -> None:
    state = pretrained().state_dict()
    state["features.0.0.weight"][0, 0, 0, 0] = torch.nan
    safetensors.torch.save_file(state, "data/pretrained/nan.safetensors")
    output = weigh("data/pretrained/nan.safetensors", code=1).output
    assert "is damaged: there are numbers that are not finite in features.0.0.weight;" in output


def test_files_that_are_no_weights_are_one_line(weigh: Run) -> None:
    Path("data/pretrained/a.safetensors").write_bytes(b"no tensors")
    Path("data/pretrained/b.pth").write_bytes(b"no pickle")
    torch.save([1, 2], "data/pretrained/c.pth")
    torch.save(pretrained(), "data/pretrained/d.pth")  # a whole module: its code would run
    for name in ("a.safetensors", "b.pth", "c.pth", "d.pth", "absent.pth"):
        output = weigh(f"data/pretrained/{name}", code=1).output
        assert output.startswith(
            f"error: weights.source: {'' if name != 'absent.pth' else 'there'}"
        )
        assert name in output
        assert "Traceback" not in output
        assert "weights_only" not in output, "torch's own advice is to trust the file"


def test_a_file_elsewhere_is_warned_of(weigh: Run) -> None:
    safetensors.torch.save_file(pretrained().state_dict(), "elsewhere.safetensors")
    assert "warning: weights.source" in weigh("elsewhere.safetensors").output


def test_how_a_network_is_used_travels_with_its_weights(run: Run, change: Change) -> None:
    change("crop.margin", 1.25)
    Path("fallback.json").write_text('{"box": [0.1, 0.2, 0.5, 0.4]}')
    recipe = recipe_of(read_params(), Path("fallback.json"))
    state = build("resnet18", 32).state_dict()
    write_weights(Path("network.safetensors"), state, recipe)
    again = read_recipe(Path("network.safetensors"))
    assert again == recipe
    assert (again.model, again.crop.margin, again.fallback) == (
        "resnet18",
        1.25,
        [0.1, 0.2, 0.5, 0.4],
    )
    write_weights(Path("bare.safetensors"), state)
    for name, why in {"bare": "does not say how", "absent": "is missing or damaged"}.items():
        with pytest.raises(UserError, match=why):
            read_recipe(Path(f"{name}.safetensors"))


def test_a_stage_refuses_the_state_of_another_network_and_half_a_file(tmp_path: Path) -> None:
    path, network = tmp_path / "network.safetensors", build("resnet18", 32)
    write_weights(path, build(MODEL, 32).state_dict())
    with pytest.raises(UserError, match="is not of the network that weights.model names"):
        load_network(network, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="is missing or damaged"):
        load_network(network, path)
