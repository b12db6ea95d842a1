"""`commands.export` and `inference.portable`: files that run elsewhere and describe themselves."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import torchvision
from torch import Tensor, nn
from typer.testing import CliRunner

from commands import export
from face_attributes.errors import UserError
from face_attributes.inference import portable
from face_attributes.inference.ensemble import Ensemble, Probabilities, ensemble_probabilities
from face_attributes.networks.build import build
from face_attributes.networks.weight_files import write_weights
from face_attributes.photos.packed import Pixels, write_packed
from tests.small import CPU, FALLBACK, PARAMS, small_recipe

pytestmark = pytest.mark.slow

SIDE, PHOTOS = 32, 40
CROPS = np.random.default_rng(0).integers(0, 256, (PHOTOS, SIDE, SIDE, 3), dtype=np.uint8)
FOLD = np.arange(PHOTOS) % 2


class SmallNetwork(nn.Module):
    """The operators of a ResNet, in few layers: exporting takes time for each."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 5, 4)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.bn1(self.conv1(images)).relu()
        features = (features + self.conv2(features)).relu()
        logits: Tensor = self.fc(features.mean((2, 3)))
        return logits


def get_small_network(*_: object, **options: int) -> nn.Module:
    return SmallNetwork(options["num_classes"])


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module", autouse=True)
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with the networks of two folds, with random weights, and crops of noise."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torchvision.models, "get_model", get_small_network)
        shutil.copy(PARAMS, folder)
        git("init", "--quiet")
        git("add", "params.yaml")
        git("-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "-m", "one")

        photos = pd.DataFrame({"person": [f"p{i // 4}" for i in range(PHOTOS)]})
        photos["photo"] = [f"{i}.jpg" for i in range(PHOTOS)]
        crops = Path("data/crop")
        write_packed(crops / "train", CROPS, PHOTOS, SIDE)
        write_packed(crops / "evaluation", CROPS[:9], 9, SIDE)
        photos.to_csv(crops / "train.csv", index=False)
        recipe = small_recipe(FALLBACK)
        for fold in range(2):
            state = build(recipe.model, SIDE, recipe.heads, seed=fold).state_dict()
            state["fc.weight"] *= 20  # confident, so that photos get different probabilities
            results = Path(f"data/train/fold{fold}")
            own = recipe.model_copy(update={"temperature": 1.0 + fold / 2})
            write_weights(results / "network.safetensors", state, own)
            held_out = photos[fold == FOLD].assign(fold=fold, label=np.arange(PHOTOS // 2) % 18)
            held_out.to_csv(results / "out_of_fold.csv", index=False)
        yield folder


def run_export(*arguments: str, code: int = 0) -> str:
    """The output of the command."""
    result = CliRunner().invoke(export.main, arguments)
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


@pytest.fixture
def calibrated_on(monkeypatch: pytest.MonkeyPatch) -> list[Pixels]:
    """Records the crops that each int8 file is calibrated on."""
    return record_calibration(monkeypatch)


def record_calibration(patch: pytest.MonkeyPatch) -> list[Pixels]:
    recorded = []

    def quantise(content: bytes, crops: Pixels) -> bytes:
        recorded.append(np.array(crops))
        return portable.quantise(content, crops)

    patch.setattr(export, "quantise", quantise)
    return recorded


class Exported(NamedTuple):
    output: str
    calibrated_on: list[Pixels]


@pytest.fixture(scope="module")
def exported(workspace: Path) -> Exported:
    """An export of the ensemble in all formats to the folder `exported`."""
    with pytest.MonkeyPatch.context() as patch:
        calibrated_on = record_calibration(patch)
        return Exported(run_export("exported", "--int8"), calibrated_on)


@pytest.fixture(scope="module")
def original(workspace: Path) -> Probabilities:
    """The probabilities of all crops by the networks themselves."""
    source = export.read_source(Path("data/train"), None)
    probabilities = ensemble_probabilities(
        source.networks, CROPS, source.recipes, CPU, batch_size=16
    )
    assert probabilities.std(axis=0).max() > 0.01, "photos must differ for the tests to matter"
    return probabilities


@pytest.mark.usefixtures("exported")
@pytest.mark.parametrize(
    ("name", "load"),
    [("ensemble.pt2", portable.load_torch), ("ensemble.onnx", portable.load_onnx)],
)
def test_a_file_predicts_like_the_networks_for_any_number_of_crops(
    name: str, load: Any, original: Probabilities
) -> None:
    predict = load(Path("exported", name).read_bytes())
    for count in (1, 2, PHOTOS):
        probabilities = predict(CROPS[:count])
        assert probabilities.dtype == np.float32
        assert probabilities == pytest.approx(original[:count], abs=1e-5)


ELSEWHERE = """
import sys, importlib.util, numpy
assert importlib.util.find_spec('face_attributes') is None
crops = numpy.load('crops.npy')

import onnxruntime
session = onnxruntime.InferenceSession('ensemble.onnx')
by_onnx = session.run(None, {session.get_inputs()[0].name: crops})[0]
assert 'torch' not in sys.modules

import torch
program = torch.export.load('ensemble.pt2').module()
by_torch = program(torch.from_numpy(crops)).detach().numpy()
numpy.save('probabilities.npy', [by_onnx, by_torch])
"""


@pytest.mark.usefixtures("exported")
def test_the_files_run_without_this_project(tmp_path: Path, original: Probabilities) -> None:
    """And ONNX without torch."""
    for name in ("ensemble.onnx", "ensemble.pt2"):
        shutil.copy(Path("exported", name), tmp_path)
    np.save(tmp_path / "crops.npy", CROPS)
    command = [sys.executable, "-I", "-c", ELSEWHERE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for probabilities in np.load(tmp_path / "probabilities.npy"):
        assert probabilities == pytest.approx(original, abs=1e-5)


def onnx_metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def torch_metadata(path: Path) -> dict[str, Any]:
    files = {portable.METADATA: ""}
    torch.export.load(path, extra_files=files)
    metadata: dict[str, Any] = json.loads(files[portable.METADATA])
    return metadata


@pytest.mark.usefixtures("exported")
def test_the_metadata_say_how_to_use_the_files_and_where_they_come_from() -> None:
    metadata = torch_metadata(Path("exported/ensemble.pt2"))
    assert len(metadata["classes"]) == 18
    assert metadata["classes"][0] == "worn, male, under 30"
    assert metadata["recipe"]["crop"]["detector"] == "yuface"
    assert metadata["recipe"]["fallback"] == FALLBACK
    assert "1.7 times the box's longer side" in metadata["crop_rule"]
    assert "batch x 32 x 32 x 3, RGB" in metadata["input"]
    assert metadata["inside"].endswith(
        "mean of a crop, closer and farther, and their mirror images, "
        "calibration by temperatures, geometric mean of 2 networks"
    )
    assert metadata["temperatures"] == {"fold0": 1.0, "fold1": 1.5}
    assert "temperature" not in metadata["recipe"]
    assert "calibrated" in metadata["output"]
    commit = git("rev-parse", "HEAD").strip()
    assert metadata["exported_from"] == {"commit": commit, "changed": True}
    assert list(metadata["networks"]) == ["fold0", "fold1"]
    assert metadata["versions"]["torch"] == torch.__version__.split("+")[0]

    of_onnx = onnx_metadata(Path("exported/ensemble.onnx"))
    assert of_onnx.keys() == metadata.keys()
    assert json.loads(of_onnx["recipe"]) == metadata["recipe"]
    assert of_onnx["crop_rule"] == metadata["crop_rule"]


def test_the_largest_difference_is_printed(exported: Exported) -> None:
    for name in ("ensemble.pt2", "ensemble.onnx"):
        line = next(line for line in exported.output.splitlines() if f"{name}: " in line)
        assert "differs from the original by at most" in line
        assert line.endswith("on 9 crops")


@pytest.mark.parametrize("error", [0.002, np.nan])
def test_a_file_with_other_probabilities_is_not_written(error: float, tmp_path: Path) -> None:
    original = np.full((9, 18), 1 / 18, dtype=np.float32)

    def predict(crops: Pixels) -> Probabilities:
        return original[: len(crops)] + np.float32(error)

    path = tmp_path / "ensemble.onnx"
    with pytest.raises(UserError, match="is not written: its probabilities differ"):
        export.write_checked(path, b"", predict, CROPS[:9], original)
    assert list(tmp_path.iterdir()) == []


def test_the_ensembles_int8_score_is_that_of_its_networks_out_of_fold(exported: Exported) -> None:
    """The file is calibrated on all photos, each network for its score on its training part."""
    everything, first, second = exported.calibrated_on
    assert np.array_equal(everything, CROPS)
    assert np.array_equal(first, CROPS[FOLD == 1])
    assert np.array_equal(second, CROPS[FOLD == 0])
    figures = json.loads(onnx_metadata(Path("exported/ensemble.int8.onnx"))["int8"])
    for name in ("macro_f1", "accuracy"):
        score = figures[name]
        assert score["int8"] - score["fp32"] == pytest.approx(score["difference"])
        assert score["low"] <= score["difference"] <= score["high"]
    assert figures["photos"] == PHOTOS
    assert figures["megabytes"]["int8"] < 0.5 * figures["megabytes"]["fp32"]
    assert "int8 out of fold, macro F1" in exported.output


@pytest.mark.usefixtures("exported")
def test_one_networks_int8_is_scored_on_photos_it_was_not_calibrated_on(
    calibrated_on: list[Pixels],
) -> None:
    source = export.read_source(Path("data/train"), 1)
    held_out = export.read_held_out(Path("data/train"), source)
    rows = export.crop_rows(held_out, pd.read_csv("data/crop/train.csv"))
    assert np.array_equal(rows, np.flatnonzero(FOLD == 1))
    fp32 = Path("exported/ensemble.onnx").read_bytes()
    int8, probabilities = export.make_int8(source, fp32, held_out, rows, CROPS)
    assert [np.array_equal(crops, CROPS[FOLD == 0]) for crops in calibrated_on] == [True]
    for content, predicted in zip((fp32, int8), probabilities, strict=True):
        expected = portable.load_onnx(content)(CROPS[FOLD == 1])
        assert predicted == pytest.approx(expected, abs=1e-5)


def test_the_cost_of_int8_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    difference = {"difference": -0.1, "low": -0.15, "high": -0.05, "verdict": "worse"}
    score = {"fp32": 0.7, "int8": 0.6, **difference}
    slower = {"fp32": 40.0, "int8": 30.0}
    figures = {"photos_per_second": slower, "megabytes": slower, "measured": "on this machine"}
    export.print_int8(Path("x.int8.onnx"), figures | {"macro_f1": score, "accuracy": score})
    printed = capsys.readouterr().out
    assert "macro F1: 0.600 (fp32 0.700), -0.100 (-0.150 to -0.050): worse" in printed
    assert "int8 is slower than fp32 on this CPU" in printed


def test_without_onnx_packages_only_torch_files_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find_spec = importlib.util.find_spec

    def find_all_but_onnx(name: str) -> object:
        return None if name.startswith("onnx") else find_spec(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_all_but_onnx)
    output = run_export("none", code=1)
    assert "onnxruntime: run `pip install -r requirements-export.txt`" in output
    run_export("only_torch", "--format", "torch", "--fold", "0")
    assert [path.name for path in Path("only_torch").iterdir()] == ["fold0.pt2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "nowhere"], "nowhere contains no trained network"),
        (["--fold", "7"], "--fold: data/train has no fold 7: choose from 0, 1"),
        (["--crops", "nowhere"], "nowhere/train.csv is missing: `dvc repro`"),
        (["--int8", "--format", "torch"], "--int8 writes an ONNX file: set --format onnx"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    output = run_export("none", *arguments, code=1)
    assert output.startswith(f"error: {message}")
    assert output.count("\n") == 1
    assert not Path("none").exists()


def test_networks_too_large_for_onnx_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "MAX_ONNX_WEIGHTS", 1000)
    program = portable.trace(Ensemble([SmallNetwork(18)], [small_recipe(None)]), SIDE)
    with pytest.raises(UserError, match="an ONNX file at most 2 GB: export one network with"):
        portable.to_onnx(program)
