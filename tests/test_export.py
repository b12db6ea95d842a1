"""Files that run without this project, and say what they are."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet
from typer.testing import CliRunner

from stages import export
from stages.errors import UserError
from stages.learning import portable
from stages.learning.ensemble import Ensemble, Probabilities, mean_probabilities
from stages.learning.network import build
from stages.learning.views import views_at_test
from stages.learning.weight_files import write_weights
from stages.params import read_params
from stages.photos.packed import Pixels, write_packed
from stages.train import recipe_of
from tests.conftest import ROOT
from tests.small import small_recipe

SIDE, PHOTOS = 32, 40
CROPS = np.random.default_rng(0).integers(0, 256, (PHOTOS, SIDE, SIDE, 3), dtype=np.uint8)
FOLD = np.arange(PHOTOS) % 2


def small(*_: object, **options: int) -> nn.Module:
    """A ResNet of half the depth."""
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=options["num_classes"])


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with two folds' networks of random weights, and crops of noise."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torchvision.models, "get_model", small)
        text = (ROOT / "params.yaml").read_text()
        for old, new in {
            "index: [0, 1, 2, 3, 4]": "index: [0, 1]",
            "side: 48": f"side: {SIDE}",
            "heads: split": "heads: ages",
            "zoom_at_test: 0.0": "zoom_at_test: 0.2",
        }.items():
            assert old in text
            text = text.replace(old, new)
        Path("params.yaml").write_text(text)
        git("init", "--quiet")
        git("add", "params.yaml")
        git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", "one")

        photos = pd.DataFrame({"person": [f"p{i // 4}" for i in range(PHOTOS)]})
        photos["photo"] = [f"{i}.jpg" for i in range(PHOTOS)]
        crop = Path("data/crop")
        write_packed(crop / "train.npy", CROPS, PHOTOS, SIDE)
        write_packed(crop / "evaluation.npy", CROPS[:9], 9, SIDE)
        photos.to_csv(crop / "train.csv", index=False)
        Path("fallback.json").write_text('{"box": [0.2, 0.3, 0.5, 0.5]}')
        recipe = recipe_of(read_params(), Path("fallback.json"))
        for fold in range(2):
            state = build("resnet18", SIDE, "ages", seed=fold).state_dict()
            state["fc.weight"] *= 20  # sure of itself, and so different from photo to photo
            results = Path(f"data/train/fold{fold}")
            write_weights(results / "network.safetensors", state, recipe)
            held_out = photos[fold == FOLD].assign(fold=fold, label=np.arange(PHOTOS // 2) % 18)
            held_out.to_csv(results / "out_of_fold.csv", index=False)
        yield folder


def run_export(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(export.main, arguments)
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


@pytest.fixture(scope="module")
def printed(workspace: Path) -> str:
    """What an export of the ensemble in both formats printed."""
    return run_export("exported")


@pytest.fixture(scope="module")
def original(workspace: Path) -> Probabilities:
    """What the networks themselves say of all crops."""
    source = export.read_source(Path("data/train"), None)
    return mean_probabilities(
        source.networks, torch.from_numpy(CROPS), source.recipe, export.CPU, 16
    )


def test_the_ensemble_is_the_mean_over_networks_and_views(original: Probabilities) -> None:
    networks = export.read_source(Path("data/train"), None).networks
    scaled = CROPS.astype(np.float32) / 255
    images = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    views = views_at_test(torch.from_numpy(images.transpose(0, 3, 1, 2)).float(), True, 0.2)
    assert len(views) == 6
    with torch.inference_mode():
        each = [network(view).softmax(1).numpy() for network in networks for view in views]
    assert original == pytest.approx(np.mean(each, axis=0), abs=1e-5)
    assert original.std(axis=0).max() > 0.01, "photos differ, or nothing would be tested"


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize(
    ("name", "run"),
    [("ensemble.pt2", portable.run_torch), ("ensemble.onnx", portable.run_onnx)],
)
def test_a_file_gives_what_the_networks_give_for_any_number_of_crops(
    name: str, run: Any, original: Probabilities
) -> None:
    classify = run(Path("exported", name).read_bytes())
    for count in (1, 2, PHOTOS):
        found = classify(CROPS[:count])
        assert found.dtype == np.float32
        assert found == pytest.approx(original[:count], abs=1e-5)


def test_the_largest_difference_is_printed(printed: str) -> None:
    for name in ("ensemble.pt2", "ensemble.onnx"):
        line = next(line for line in printed.splitlines() if f"{name}: " in line)
        assert "differs from the original by at most" in line
        assert "on 9 crops" in line


ALONE = {
    "ensemble.onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(file)
found = session.run(None, {session.get_inputs()[0].name: crops})[0]
assert "torch" not in sys.modules
""",
    "ensemble.pt2": """
import torch
found = torch.export.load(file).module()(torch.from_numpy(crops)).detach().numpy()
""",
}


@pytest.mark.usefixtures("printed")
@pytest.mark.parametrize("name", ALONE)
def test_a_file_runs_without_this_project(
    name: str, tmp_path: Path, original: Probabilities
) -> None:
    shutil.copy(Path("exported", name), tmp_path)
    np.save(tmp_path / "crops.npy", CROPS)
    script = (
        "import sys, importlib.util, numpy\n"
        "assert importlib.util.find_spec('stages') is None\n"
        f"file, crops = {name!r}, numpy.load('crops.npy')\n"
        f"{ALONE[name]}\n"
        "numpy.save('found.npy', found)\n"
    )
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "found.npy") == pytest.approx(original, abs=1e-5)


def onnx_metadata(path: Path) -> dict[str, str]:
    onnx = pytest.importorskip("onnx")
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def torch_metadata(path: Path) -> dict[str, Any]:
    files = {portable.METADATA: ""}
    torch.export.load(path, extra_files=files)
    metadata: dict[str, Any] = json.loads(files[portable.METADATA])
    return metadata


@pytest.mark.usefixtures("printed")
def test_both_files_say_what_they_are_and_where_they_come_from() -> None:
    told = torch_metadata(Path("exported/ensemble.pt2"))
    assert len(told["classes"]) == 18
    assert told["classes"][0] == "worn, male, under 30"
    assert told["recipe"]["crop"]["detector"] == "yuface"
    assert told["recipe"]["fallback"] == [0.2, 0.3, 0.5, 0.5]
    assert "1.7 times the box's longer side" in told["crop_rule"]
    assert "batch x 32 x 32 x 3, RGB" in told["input"]
    assert told["exported_from"] == {"commit": git("rev-parse", "HEAD").strip(), "changed": True}
    assert list(told["networks"]) == ["fold0", "fold1"]
    assert told["versions"]["torch"] == torch.__version__.split("+")[0]

    same = onnx_metadata(Path("exported/ensemble.onnx"))
    assert same.keys() == told.keys()
    assert json.loads(same["recipe"]) == told["recipe"]
    assert same["crop_rule"] == told["crop_rule"]


@pytest.mark.parametrize("wrong", [0.002, np.nan])
def test_a_file_that_gives_something_else_is_not_written(wrong: float, tmp_path: Path) -> None:
    def classify(crops: Pixels) -> Probabilities:
        return np.full((len(crops), 18), 1 / 18 + wrong, dtype=np.float32)

    path, as_it_is = tmp_path / "ensemble.onnx", np.full((9, 18), 1 / 18, dtype=np.float32)
    with pytest.raises(UserError, match="is not written: its probabilities differ"):
        export.write_checked(path, b"", classify, CROPS[:9], as_it_is)
    assert list(tmp_path.iterdir()) == []


def test_int8_is_scored_on_photos_that_it_was_not_calibrated_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def spy(content: bytes, crops: Pixels) -> bytes:
        seen.append(crops)
        return portable.quantise(content, crops)

    monkeypatch.setattr(export, "quantise", spy)
    output = run_export("exported", "--fold", "1", "--format", "onnx", "--int8")
    for crops in seen:
        assert np.array_equal(crops, CROPS[FOLD == 0])
    figures = json.loads(onnx_metadata(Path("exported/fold1.int8.onnx"))["int8"])
    for name in ("macro_f1", "accuracy"):
        score = figures[name]
        assert score["int8"] - score["fp32"] == pytest.approx(score["difference"])
        assert score["low"] <= score["difference"] <= score["high"]
    assert figures["photos"] == PHOTOS // 2
    assert figures["megabytes"]["int8"] < 0.5 * figures["megabytes"]["fp32"]
    assert "int8 out of fold, macro F1" in output
    assert not Path("exported/fold1.pt2").exists()


def test_what_int8_costs_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    difference = {"difference": -0.1, "low": -0.15, "high": -0.05, "verdict": "worse"}
    score = {"fp32": 0.7, "int8": 0.6, **difference}
    both = {"fp32": 40.0, "int8": 30.0}
    figures = {"photos_per_second": both, "megabytes": both, "measured": "on this machine"}
    export.tell_int8(Path("x.int8.onnx"), figures | {"macro_f1": score, "accuracy": score})
    printed = capsys.readouterr().out
    assert "macro F1: 0.600 (fp32 0.700), -0.100 (-0.150 to -0.050): worse" in printed
    assert "int8 is slower than fp32 on this CPU" in printed


def test_without_its_packages_an_export_to_onnx_says_how_to_install_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec

    def find_but_onnx(name: str) -> object:
        return None if name.startswith("onnx") else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_but_onnx)
    output = run_export("exported", code=1)
    assert "onnxruntime: `pip install -r requirements-export.txt`" in output
    run_export("only_torch", "--format", "torch", "--fold", "0")
    assert [path.name for path in Path("only_torch").iterdir()] == ["fold0.pt2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--networks", "nowhere"],
            "nowhere holds no trained network (fold0/network.safetensors, ...): `dvc",
        ),
        (["--fold", "7"], "there is no fold 7 in data/train; its folds are 0, 1"),
        (["--crops", "nowhere"], "nowhere/train.csv is missing: `dvc repro` makes it"),
        (["--int8", "--format", "torch"], "--int8 makes an ONNX file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: list[str], message: str) -> None:
    output = run_export("none", *arguments, code=1)
    assert message in output
    assert output.count("\n") == 1
    assert not Path("none").exists()


def test_networks_that_are_too_large_for_onnx_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "ONNX_BYTES", 1000)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 18))
    with pytest.raises(UserError, match="an ONNX file ends at 2: export one with --fold"):
        portable.to_onnx(portable.trace(Ensemble([network], small_recipe(None)), SIDE))
