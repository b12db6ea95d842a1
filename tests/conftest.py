"""A small data set in the competition's layout, the shipped params.yaml to change, a browser."""

import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dvc.repo import Repo
from filelock import FileLock
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from ruamel.yaml import YAML
from typer import Typer
from typer.testing import CliRunner, Result

from face_attributes.photos.labels import class_names
from stages import sample
from tests.project import Project, create_project
from tests.small import restore_torch_settings

ROOT = Path(__file__).parents[1]
STEMS = ["mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"]

LONGEST = [
    "test_cluster", "test_backbones", "test_interrupted", "test_presets", "test_own_ray",
    "test_sweep", "test_pipeline", "test_remote",
]  # fmt: skip
"""The first makes the `project` that others wait for; so the second does not need it."""

Change = Callable[..., None]
Run = Callable[..., Result]


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: many tests wait for processes that they started."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no worker is left alone with one at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (48, 64)) -> None:
    """Save a photo of random blocks, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3))
    Image.fromarray(pixels.astype(np.uint8)).resize(size).save(path)


@pytest.fixture(autouse=True)
def torch_for_each() -> Iterator[None]:
    """Undo the torch settings of each test's stages."""
    with restore_torch_settings():
        yield


def write_raw(folder: Path) -> Path:
    """Write three people with seven photos each to `train` and two evaluation photos to `eval`."""
    (folder / "eval" / "images").mkdir(parents=True)
    rows = ["id,gender,race,age,path"]
    people = {
        "000001_female_Any_25": "female",
        "000001_male_Any_30": "male",
        "3_male_Any_60": "male",
    }
    for number, (person, gender) in enumerate(people.items()):
        rows.append(f"{person.split('_')[0]},{gender},Any,{person.split('_')[-1]},{person}")
        images = folder / "train" / "images" / person
        images.mkdir(parents=True)
        for place, stem in enumerate(STEMS):
            save_photo(images / f"{stem}.jpg", number * 10 + place)
    (folder / "train" / "train.csv").write_text("\n".join(rows) + "\n")
    (folder / "eval" / "info.csv").write_text("ImageID,ans\nb.jpg,0\na.jpg,0\n")
    save_photo(folder / "eval" / "images" / "a.jpg", 100)
    save_photo(folder / "eval" / "images" / "b.jpg", 101)
    (folder / "corrections.csv").write_text("person,photo,field,old,new,reason\n")
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """The small data set of `write_raw`."""
    return write_raw(tmp_path / "raw")


def set_param(key: str, value: Any) -> None:
    """Change params.yaml in the working folder: set_param("train.epochs", 1)."""
    yaml = YAML()
    content = yaml.load(Path("params.yaml"))
    *sections, name = key.split(".")
    section = content
    for each in sections:
        section = section[each]
    section[name] = value
    yaml.dump(content, Path("params.yaml"))


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Work in a folder with the shipped params.yaml; change("train.epochs", 1) sets a value."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return set_param


def run_stage(command: Typer, *arguments: object, code: int = 0) -> Result:
    """Run a stage's command in the working folder: run_stage(clean.main, "raw/train", ...)."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


@pytest.fixture
def run(change: Change) -> Run:
    """`run_stage`, in a folder of the test's own with the shipped params.yaml."""
    return run_stage


@pytest.fixture(scope="session")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Drawn faces of three people without a mask, 384 x 512."""
    folder = tmp_path_factory.mktemp("portraits")
    paths = [folder / f"{person}.jpg" for person in range(3)]
    for person, path in zip(sample.roster(3), paths, strict=True):
        sample.draw_photo(person, "normal", seed=0).save(path, quality=85)
    return paths


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two networks for crops of 32 pixels."""
    from tests.small import FALLBACK, small_recipe, write_networks  # torch: not for every test

    folder = tmp_path_factory.mktemp("trained")
    write_networks(folder, small_recipe(FALLBACK))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    installed = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def home() -> str:
    """Prefix of the addresses that a page may request; tests with a server override it."""
    return "file:"


@pytest.fixture
def page(browser: Browser, home: str) -> Iterator[Page]:
    """A page that fails on console messages and on requests outside `home`."""
    context = browser.new_context(accept_downloads=True)
    opened, problems = context.new_page(), list[str]()
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((home, "data:", "blob:"))
            else problems.append(request.url)
        ),
    )
    yield opened
    assert problems == []
    context.close()


def git(*arguments: str) -> None:
    """Run git in the working folder."""
    subprocess.run(["git", *arguments], check=True, capture_output=True)


def start_repository(folder: str = "") -> None:
    """Make the working folder a repository of git, and it or a folder in it one of DVC."""
    git("init", "-qb", "main")
    git("config", "user.email", "a@b.c")
    git("config", "user.name", "A")
    Path(folder).mkdir(parents=True, exist_ok=True)
    Repo.init(folder or ".", subdir=bool(folder)).close()


CLASS_NAMES = class_names([30, 60])


def save_run(
    predictions: pd.DataFrame,
    classes: Sequence[str] = CLASS_NAMES,
    holdout: pd.DataFrame | None = None,
) -> None:
    """Save a run's results to the working folder and DVC's cache, and stage them in git."""
    tables = {
        Path("data/aggregate/out_of_fold.csv"): predictions,
        Path("data/aggregate/f1_per_class.csv"): pd.DataFrame({"class": classes}),
    }
    if holdout is not None:
        tables[Path("data/predict/holdout.csv")] = holdout
    for path, table in tables.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        table.to_csv(path, index=False)
    # In this process, because `dvc add` takes seconds to start.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning), Repo() as repo:
        repo.add([str(path) for path in tables])
    git("add", "-A")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after its first `dvc repro`, which all workers share: a copy for each module."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    baseline = shared / "baseline"
    with FileLock(shared / "baseline.lock"):
        if not (baseline / ".git/first_run.txt").exists():
            shutil.rmtree(baseline, ignore_errors=True)
            baseline.mkdir()
            create_project(baseline)
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(baseline, folder, symlinks=True, dirs_exist_ok=True)
    return Project(folder)
