"""A small data set in the competition's layout, the shipped params.yaml to change, a browser."""

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from ruamel.yaml import YAML
from typer import Typer
from typer.testing import CliRunner, Result

from stages import sample
from stages.photos.labels import class_names
from tests.small import torch_as_it_is

ROOT = Path(__file__).parents[1]
STEMS = ["mask1", "mask2", "mask3", "mask4", "mask5", "incorrect_mask", "normal"]

Change = Callable[..., None]
Run = Callable[..., Result]


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (48, 64)) -> None:
    """A photo of nothing, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3))
    Image.fromarray(pixels.astype(np.uint8)).resize(size).save(path)


@pytest.fixture(autouse=True)
def torch_for_each() -> Iterator[None]:
    """No test is run with what another's stage set for torch."""
    with torch_as_it_is():
        yield


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three people with seven photos each, and two evaluation photos: raw/train and raw/eval."""
    folder = tmp_path / "raw"
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
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Work in a folder with the shipped params.yaml; change("train.epochs", 1) changes a value."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    yaml = YAML()

    def change_value(key: str, value: Any) -> None:
        content = yaml.load(Path("params.yaml"))
        section, name = key.split(".")
        content[section][name] = value
        yaml.dump(content, Path("params.yaml"))

    return change_value


@pytest.fixture
def run(change: Change) -> Run:
    """Run a stage's command in the working folder: run(clean.main, "raw/train", ...)."""

    def run_stage(command: Typer, *arguments: object, code: int = 0) -> Result:
        result = CliRunner().invoke(command, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output + str(result.exception)
        return result

    return run_stage


@pytest.fixture(scope="session")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Drawn faces without a mask, 384 x 512, of three people."""
    folder = tmp_path_factory.mktemp("portraits")
    for person in sample.roster(3):
        sample.draw_person(person, folder / str(person.number), seed=0)
    return sorted(folder.glob("*/normal.jp*g"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two networks, for crops of 32 pixels."""
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
    """What a page may ask for: addresses that begin so. A page of a server has its own."""
    return "file:"


@pytest.fixture
def page(browser: Browser, home: str) -> Iterator[Page]:
    """A page that fails on anything in the console and on any request beyond its home."""
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


def start_repository() -> None:
    """Make the working folder a repository of git and DVC."""
    git("init", "-qb", "main")
    git("config", "user.email", "a@b.c")
    git("config", "user.name", "A")
    subprocess.run(["dvc", "init", "-q"], check=True)


CLASS_NAMES = class_names([30, 60])


def save_run(predictions: pd.DataFrame, classes: Sequence[str] = CLASS_NAMES) -> None:
    """Put a run's results into the working folder and DVC's cache, ready for git to commit."""
    folder = Path("data/aggregate")
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        folder / "out_of_fold.csv": predictions,
        folder / "f1_per_class.csv": pd.DataFrame({"class": classes}),
    }
    for path, table in tables.items():
        path.unlink(missing_ok=True)
        table.to_csv(path, index=False)
    subprocess.run(["dvc", "add", "-q", *tables], check=True)
    git("add", "-A")
