"""Presets: what their comments promise, their values, and a run of each on a small set."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from commands.adopt import new_params
from face_attributes.networks.build import build
from face_attributes.networks.freezing import freeze
from face_attributes.networks.weight_files import write_weights
from face_attributes.params import read_yaml
from tests.conftest import ROOT
from tests.project import Project

PRESETS = sorted((ROOT / "presets").iterdir())
NAMES = [path.stem for path in PRESETS]


def keys(values: Any, prefix: str = "") -> set[str]:
    """The full names of all keys of a preset."""
    if not isinstance(values, dict):
        return {prefix}
    return {name for key in values for name in keys(values[key], f"{prefix}.{key}".lstrip("."))}


def test_there_are_three_presets() -> None:
    assert [path.name for path in PRESETS] == ["faces.yaml", "gpu.yaml", "quick.yaml"]


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_a_preset_begins_with_its_command_its_data_and_its_score(preset: Path) -> None:
    comment = preset.read_text().partition("\n\n")[0]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert re.search(rf"python -m commands\.adopt .* --preset {preset.stem}$", comment, re.M)
    assert re.search("^# Data: ", comment, re.M)
    assert re.search(r"^# Score: (not measured|out-of-fold macro F1 0\.\d{3})", comment, re.M)


def test_all_presets_set_the_same_keys_so_that_one_replaces_another_whole() -> None:
    first, *others = (keys(read_yaml(preset)) for preset in PRESETS)
    assert all(first == other for other in others)


def test_the_best_preset_has_the_values_of_the_readme() -> None:
    text = (ROOT / "presets/faces.yaml").read_text()
    for value in ("margin: 1.0", "side: 96", "freeze: layer1", "heads: ages", "epochs: 8"):
        assert value in text


@pytest.mark.parametrize("preset", PRESETS, ids=NAMES)
def test_the_network_of_a_preset_has_the_part_that_it_freezes(preset: Path) -> None:
    _, params = new_params(preset, {})
    freeze(build(params.weights.model, params.crop.side, params.train.heads), params.train.freeze)


@pytest.fixture(scope="module")
def photos(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos outside the project; the same for all presets, so that DVC checks them once."""
    folder = tmp_path_factory.mktemp("outside") / "photos"
    shutil.copytree(project.folder / "data/sample/train", folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_on_photos_outside_the_project(
    project: Project, photos: Path, tmp_path: Path, name: str
) -> None:
    """Without evaluation photos, with weights that fit; smaller and shorter for the test."""
    model = read_yaml(ROOT / f"presets/{name}.yaml")["weights"]["model"]  # type: ignore[index]
    own = tmp_path / f"{name}.safetensors"
    write_weights(own, build(model, 32).state_dict())
    given = ["--weights", str(own), "--preset", name, "--yes"]
    project.python("commands.adopt", str(photos), *given)
    project.set(crop={"side": 32}, folds={"index": [0, 1]}, train={"epochs": 1})
    if name == "quick":  # to the end once: that is the same for all
        assert project.repro() >= {"clean", "train@1", "report", "review", "model_card"}
        assert project.metrics()["evaluation"] == {}
        assert (project.folder / "data/submission.csv").read_text() == "ImageID,ans\n"
    else:
        assert project.repro("train@0") >= {"clean", "crop", "weights", "train@0"}
    photo = next((photos / "images").glob("0*")) / "mask1.jpg"
    content = photo.read_bytes()
    photo.write_bytes(b"")
    assert "clean" in project.outdated()
    photo.write_bytes(content)
    project.restore()
