"""DVC notices every change of the data that stages read, also behind links."""

import shutil
from importlib.util import source_from_cache
from pathlib import Path

import pytest
from dvc.repo import Repo

from tests.project import Project
from tests.test_contract import FRAME, STAGES

pytestmark = pytest.mark.slow


NOT_DEPENDENCIES = {
    Path("params.yaml"),  # dvc.yaml lists parameters by name
    *map(Path, (".dvc", ".dvcignore", ".gitignore")),  # `clean` asks DVC which photos it ignores
    Path(".git"),  # the last commit, with which the report compares the run
    Path(".cache"),  # checkpoints and features, by a fingerprint of what they were made from; times
    *(Path(f"face_attributes/{name}.py") for name in FRAME),
}


def test_stages_open_only_what_they_depend_on(project: Project) -> None:
    """The files of the first run: data, and modules of the project that a stage imports."""
    with Repo(str(project.folder)) as repo:
        known = {
            stage.name: {Path(each.fs_path) for each in [*stage.deps, *stage.outs]}
            for stage in repo.index.stages
        }
    opened = dict[str, set[Path]]()
    for line in (project.folder / ".git/recorder/opened.txt").read_text().splitlines():
        stage, _, name = line.partition(" ")
        opened.setdefault(stage, set()).add(
            Path(source_from_cache(name) if name.endswith(".pyc") else name)
        )
    assert {stage.split("@")[0] for stage in opened} == set(STAGES)
    for stage, paths in opened.items():
        places = NOT_DEPENDENCIES | {path.relative_to(project.folder) for path in known[stage]}
        assert any(path.suffix == ".py" for path in paths), "modules are recorded"
        undeclared = {
            path
            for path in paths
            if path.name != "__init__.py" and not places & {path, *path.parents}
        }
        assert undeclared == set(), stage


@pytest.fixture(scope="module")
def own_photos(project: Project) -> Path:
    """The project with its sample as a user's own photos, in the state after a run."""
    data = project.folder / "data"
    shutil.copytree(data / "sample", data / "raw")
    (data / "raw/eval/answers.csv").rename(data / "answers.csv")
    project.set(data={"train": "data/raw/train", "eval": "data/raw/eval"})
    project.set(data={"answers": "data/answers.csv"})
    (data / "detectors/model.onnx").write_text("a model")
    (data / "pretrained/weights.safetensors").write_text("weights")
    project.run("dvc", "commit", "--force")
    assert project.outdated() == set()
    return data


def photo(folder: Path) -> Path:
    return next(path for path in sorted(folder.rglob("*.jpg")))


def test_a_change_of_each_input_is_noticed(project: Project, own_photos: Path) -> None:
    raw = own_photos / "raw"
    photos, labels = {"clean", "crop", "review"}, {"clean", "suspects", "review", "model_card"}
    expected = {
        raw / "train/train.csv": photos,
        photo(raw / "train/images"): photos,
        raw / "eval/info.csv": photos,
        photo(raw / "eval/images"): photos,
        own_photos / "none.csv": labels,
        own_photos / "answers.csv": {"aggregate"},
        own_photos / "detectors/model.onnx": {"crop"},
        own_photos / "pretrained/weights.safetensors": {"weights"},
    }
    for path, stages in expected.items():
        before = path.read_bytes()
        path.write_bytes(before + b"x")
        assert project.outdated() == stages, path
        path.unlink()
        assert project.outdated() == stages, path
        path.write_bytes(before)
        assert project.outdated() == set(), path


@pytest.mark.parametrize("name", ["raw", "raw/train"])
def test_a_change_behind_a_link_to_another_disk_is_noticed(
    project: Project, own_photos: Path, name: str, tmp_path: Path
) -> None:
    folder = own_photos / name
    folder.rename(tmp_path / "disk")
    folder.symlink_to(tmp_path / "disk")
    assert project.outdated() == set()
    changed = photo(tmp_path / "disk")
    changed.write_bytes(changed.read_bytes() + b"x")
    assert {"clean", "crop", "review"} <= project.outdated()
    changed.write_bytes(changed.read_bytes()[:-1])
    folder.unlink()
    (tmp_path / "disk").rename(folder)


@pytest.mark.parametrize(
    ("pattern", "hidden"), [("0*.jpg", "images/0"), ("images/", "images/"), ("*.csv", "info.csv")]
)
def test_a_file_that_dvcignore_hides_is_an_error(
    project: Project, own_photos: Path, pattern: str, hidden: str
) -> None:
    ignore = own_photos / "raw/eval/.dvcignore"
    ignore.write_text(f"{pattern}\n")
    command = ["stages.clean", "data/raw/train", "data/raw/eval", "data/none.csv", "data/other"]
    output = project.python(*command, code=1)
    ignore.unlink()
    assert f"error: data/raw/eval/{hidden}" in output and "a .dvcignore hides it" in output
    assert not (own_photos / "other").exists()


def test_the_pipeline_accepts_dvcs_links_into_its_cache(project: Project) -> None:
    """`cache.type symlink`, as for a cache that several projects or disks share."""
    project.restore()
    project.run("dvc", "config", "--local", "cache.type", "symlink")
    project.run("dvc", "checkout", "--relink")
    assert photo(project.folder / "data/sample").is_symlink()
    stages = {"clean", "crop", "duplicates", "folds"}
    before = project.checksums()
    assert project.repro("--force", "--no-run-cache", "--single-item", *stages) == stages
    assert project.checksums() == before
    project.run("dvc", "config", "--local", "--unset", "cache.type")
    project.run("dvc", "checkout", "--relink")
