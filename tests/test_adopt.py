"""Adopt: photos in either layout, in place or copied; nothing is written before it is confirmed."""

import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from commands import adopt
from face_attributes.networks.build import build
from face_attributes.networks.weight_files import write_weights
from face_attributes.params import read_params
from face_attributes.photos.labels import MASK_BY_STEM
from face_attributes.photos.raw import list_photos, read_people
from stages import clean, folds
from tests.conftest import ROOT, Change, git, run_stage, save_photo, start_repository

pytestmark = pytest.mark.slow

PEOPLE = {
    f"{number:06}_{gender}_Any_{age}": (gender, age)
    for number, (gender, age) in enumerate(
        [(gender, age) for gender in ("male", "female") for age in (29, 30, 60)] * 2
    )
}
FIRST = next(iter(PEOPLE))
TABLES = ["data/corrections.csv", "data/answers.csv", "data/no_evaluation"]


@pytest.fixture
def project(tmp_path: Path, change: Change) -> Path:
    """A repository with the shipped parameters, presets and tables; it is the working folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    os.chdir(folder)  # `change` returns to the former folder
    (tmp_path / "params.yaml").rename("params.yaml")
    for name in ["presets", ".gitignore", *TABLES]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        Path(name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, name)
    start_repository()
    git("add", "--all")
    git("commit", "-qm", "shipped")
    return folder


@pytest.fixture
def train(project: Path) -> Path:
    """Two people of each gender and age group outside the project, with two other files."""
    folder = project.parent / "photos"
    rows = ["id,gender,race,age,path"]
    for number, (person, (gender, age)) in enumerate(PEOPLE.items()):
        rows.append(f"{number},{gender},Any,{age},{person}")
        (folder / "images" / person).mkdir(parents=True)
        for place, stem in enumerate(MASK_BY_STEM):
            save_photo(folder / "images" / person / f"{stem}.jpg", 10 * number + place)
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    (folder / "images" / FIRST / "._mask1.jpg").write_bytes(b"junk")
    (folder / "images" / FIRST / "notes.txt").write_text("hello")
    return folder


@pytest.fixture
def evaluation(project: Path) -> Path:
    """Two photos to predict, and the label of one of them in `answers.csv`."""
    folder = project.parent / "eval"
    (folder / "images").mkdir(parents=True)
    for seed, name in enumerate(["a.jpg", "b.jpg"]):
        save_photo(folder / "images" / name, 1000 + seed)
    (folder / "info.csv").write_text("ImageID,ans\na.jpg,0\nb.jpg,0\n")
    (folder / "answers.csv").write_text("ImageID,ans\nb.jpg,17\n")
    return folder


@pytest.fixture
def table(project: Path) -> Path:
    """A table with a row per photo: two people of each gender and age group, three photos each."""
    folder = project.parent / "table"
    folder.mkdir()
    rows = ["path,person,mask,gender,age,camera"]
    for number, (gender, age) in enumerate(list(PEOPLE.values())):
        for mask in ("worn", "1", "Not worn"):
            name = f"{number}{mask}.JPG"
            save_photo(folder / name, len(rows))
            rows.append(f"{name},p{number},{mask},{gender[0].upper()},{age},x")
    (folder / "photos.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def weights(project: Path) -> Path:
    """A file of weights for the presets' resnet18, outside the project."""
    path = project.parent / "faces.safetensors"
    write_weights(path, build("resnet18", 64, seed=1).state_dict())
    return path


def run(*arguments: object, code: int = 0) -> str:
    """Adopt without asking, and return the output."""
    return run_stage(adopt.main, *arguments, "--yes", code=code).output


def error(*arguments: object) -> str:
    """Return the one line of an error; nothing is written."""
    before = contents()
    last = run(*arguments, code=1).splitlines()[-1]
    assert last.startswith("error: ")
    assert contents() == before
    return last.removeprefix("error: ")


def contents(folder: Path = Path()) -> dict[str, bytes]:
    """All files of a folder, outside .git and .dvc."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not {".git", ".dvc"} & set(path.relative_to(folder).parts)
    }


def changed() -> list[str]:
    """Files in git that differ from the last commit, and files that git does not know."""
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True)
    return [line[3:] for line in status.stdout.splitlines()]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_the_project_uses_the_photos_in_place_with_the_values_of_the_preset(
    train: Path, evaluation: Path, weights: Path
) -> None:
    photos = contents(train)
    given = ["--eval", evaluation, "--answers", evaluation / "answers.csv", "--weights", weights]
    output = run(train, *given)
    params = read_params()
    assert params.data.model_dump() == {
        "train": str(train), "eval": str(evaluation), "answers": str(evaluation / "answers.csv"),
        "corrections": "data/corrections.csv",
    }  # fmt: skip
    assert params.weights.source == "data/pretrained/faces.safetensors"
    assert Path("data/pretrained/faces.safetensors").read_bytes() == weights.read_bytes()
    assert (params.train.heads, params.train.freeze, params.crop.side) == ("ages", "layer1", 96)
    assert changed() == ["data/corrections.csv", "params.yaml"]
    assert Path("data/corrections.csv").read_text() == "person,photo,field,old,new,reason\n"
    assert contents(train) == photos
    assert output.splitlines()[-2:] == [
        "undo: git checkout params.yaml data/corrections.csv; "
        "rm -r data/pretrained/faces.safetensors",
        "next: dvc repro",
    ]
    git("checkout", "params.yaml", "data/corrections.csv")
    assert changed() == []


def test_comments_and_all_other_lines_of_params_yaml_stay(train: Path) -> None:
    before = Path("params.yaml").read_text().splitlines()
    run(train)
    after = Path("params.yaml").read_text().splitlines()

    def comment(line: str) -> str:
        return line.partition("#")[2]

    assert [comment(line) for line in before] == [comment(line) for line in after]
    keys = {line.split(":")[0].strip() for line in before if line not in after}
    assert keys <= {
        "train", "eval", "answers", "margin", "side", "similarity", "source", "freeze", "epochs",
        "batch_size", "head_lr", "backbone_lr", "heads", "cached_views", "head_epochs", "ema",
        "age_softness", "rotation", "zoom", "flip", "model", "index", "patience",
    }  # fmt: skip


def test_it_says_what_is_there(train: Path, evaluation: Path) -> None:
    (train / "images" / FIRST / "mask2.jpg").write_bytes(b"")
    (train / "images/nobody").mkdir()
    output = run(train, "--eval", evaluation)
    lines = output.splitlines()
    assert f"{train}/train.csv: 12 people, 84 photos" in lines
    assert "evaluation photos: 2" in lines
    assert f"hidden files: 1, ignored; other files: 2, such as {FIRST}/notes.txt" in lines
    worn = next(line for line in lines if "worn" in line and "male" in line and "(2)" in line)
    assert [cell.strip() for cell in worn.strip("│").split("│")] == [
        "worn", "male", "10 (2)", "10 (2)", "10 (2)",
    ]  # fmt: skip
    edges = "people with an age at an edge between age groups: 29: 4, 30: 4, 59: 0, 60: 4"
    assert edges in lines
    assert f"unreadable labelled photos: 1, such as {train}/images/{FIRST}/mask2.jpg is empty" in (
        output
    )
    assert "unreadable evaluation photos: 0" in lines
    assert "folds that every class can fill: 2, because of worn, male, under 30" in output
    assert "photos: used in place, nothing is copied" in lines


def test_more_folds_than_a_class_can_fill_are_lowered(train: Path) -> None:
    assert "folds.index gets 2" in run(train)
    assert read_params().folds.index == [0, 1]
    assert "index: [0, 1] " in Path("params.yaml").read_text()


def test_the_people_of_the_holdout_fill_no_fold(train: Path) -> None:
    edit(Path("params.yaml"), "holdout: 0.0", "holdout: 0.5")
    message = error(train)
    assert "which needs two or more beside folds.holdout: 0.5 (worn, male, under 30: 1; " in message
    edit(Path("params.yaml"), "holdout: 0.5", "holdout: 0.1")
    message = error(train)
    assert "folds.holdout: 0.1 holds out nobody of a class (worn, male, under 30: 2; " in message


def test_folds_are_promised_that_the_holdout_leaves(table: Path) -> None:
    rows = (table / "photos.csv").read_text().splitlines()
    for line in rows[1:]:  # three more people of each two
        for more in "abc":
            name, person, rest = line.split(",", 2)
            shutil.copy(table / name, table / f"{more}{name}")
            rows.append(f"{more}{name},{person}{more},{rest}")
    (table / "photos.csv").write_text("\n".join(rows) + "\n")
    edit(Path("params.yaml"), "holdout: 0.0", "holdout: 0.5")
    output = run(table, "--copy")
    assert "fill beside folds.holdout: 0.5: 4, because of" in output
    assert read_params().folds.index == [0, 1, 2, 3]
    run_stage(clean.main, "data/raw/train", "data/no_evaluation", "data/corrections.csv", "clean")
    Path("duplicates.csv").write_text("person,photo,other_person,other_photo,similarity\n")
    run_stage(folds.main, "clean", "duplicates.csv", "folds")


def test_without_evaluation_photos_the_shipped_empty_folder_is_used(train: Path) -> None:
    assert "evaluation photos: none (--eval FOLDER names some)" in run(train)
    assert read_params().data.eval == "data/no_evaluation"
    assert read_params().data.answers == "data/answers.csv"


def test_without_weights_training_starts_from_random_ones_and_freezes_nothing(train: Path) -> None:
    output = run(train, "--preset", "quick")
    assert "weights: none named, so networks start from random ones, with nothing frozen" in output
    assert "--weights imagenet, or --weights FILE" in output
    params = read_params()
    assert params.weights.source == "none"
    assert (params.train.freeze, params.train.cached_views) == ("none", 0)


def test_weights_from_imagenet_or_the_project_are_named_in_place(
    train: Path, weights: Path
) -> None:
    run(train, "--weights", "imagenet")
    assert read_params().weights.source == "imagenet"
    Path("data/pretrained").mkdir()
    inside = shutil.copy(weights, "data/pretrained/own.safetensors")
    assert "weights: data/pretrained/own.safetensors, in place" in run(train, "--weights", inside)
    assert read_params().weights.source == "data/pretrained/own.safetensors"


def test_weights_may_be_a_link_into_the_cache_of_dvc_and_their_path_may_contain_quotes(
    train: Path, weights: Path
) -> None:
    Path("data/pretrained").mkdir()
    Path("data/pretrained/own.safetensors").symlink_to(weights)
    output = run(train, "--copy", "--weights", "data/pretrained/own.safetensors")
    assert "weights: data/pretrained/own.safetensors, in place" in output
    assert read_params().weights.source == "data/pretrained/own.safetensors"
    quoted = weights.rename(weights.with_name("my 'own'.safetensors"))
    Path("data/pretrained/own.safetensors").unlink()
    git("checkout", "params.yaml")
    shutil.rmtree("data/raw")
    run(train, "--weights", quoted)
    assert read_params().weights.source == "data/pretrained/my 'own'.safetensors"


def test_without_git_it_warns_that_nothing_can_be_undone(
    train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(train, "own")
    with monkeypatch.context() as context:
        context.setenv("PATH", "")
        output = run("own")
    assert "warning: params.yaml, data/corrections.csv: not committed" in output
    assert "undo: " not in output
    assert read_params().data.train == "own"


def test_photos_inside_the_project_are_named_relative_to_it(train: Path) -> None:
    shutil.move(train, "data/own")
    assert "warning: git" not in run(Path("data/own").resolve())
    assert read_params().data.train == "data/own"
    shutil.move("data/own", "own")
    assert "warning: git does not ignore own: add --track, or a line to .gitignore" in run("own")


def test_a_second_preset_replaces_the_first_whole(train: Path) -> None:
    run(train, "--weights", "imagenet", "--preset", "faces")
    before = Path("params.yaml").read_text()
    run(train, "--weights", "imagenet", "--preset", "gpu")
    assert read_params().crop.side == 224
    run(train, "--weights", "imagenet", "--preset", "faces")
    assert Path("params.yaml").read_text() == before
    assert "next: dvc repro" in run(train, "--weights", "imagenet", "--preset", "faces")


def test_a_copy_has_the_photos_and_tables_alone(
    train: Path, evaluation: Path, weights: Path
) -> None:
    given = ["--eval", evaluation, "--answers", evaluation / "answers.csv", "--weights", weights]
    output = run(train, *given, "--copy")
    assert "photos: 88 files, 0.00 GB, will be copied to data/raw" in output
    assert (
        "undo: git checkout params.yaml data/corrections.csv data/answers.csv; "
        "rm -r data/pretrained/faces.safetensors data/raw\n"
    ) in output
    used = {
        name: content
        for name, content in contents(train).items()
        if not name.endswith(("._mask1.jpg", "notes.txt"))
    }
    assert contents(Path("data/raw/train")) == used
    assert set(contents(Path("data/raw/eval"))) == {"info.csv", "images/a.jpg", "images/b.jpg"}
    data, source = read_params().data, read_params().weights.source
    assert (data.train, data.eval) == ("data/raw/train", "data/raw/eval")
    assert Path(data.answers).read_text() == "ImageID,ans\nb.jpg,17\n"
    assert Path(source).read_bytes() == weights.read_bytes()
    assert source == "data/pretrained/faces.safetensors"
    assert changed() == ["data/answers.csv", "data/corrections.csv", "params.yaml"]


def test_a_table_with_a_row_per_photo_becomes_the_other_layout(table: Path) -> None:
    save_photo(table / "more.png", 7)
    with (table / "photos.csv").open("a") as file:
        file.write("more.png,p0,0,male,29,\nsub/../more2.jpg,p0,worn,m,29,\n")
    (table / "sub").mkdir()
    save_photo(table / "more2.jpg", 8)
    photos = contents(table)
    output = run(table, "--copy")
    assert "columns that are not used: camera" in output
    assert (
        "mask codes: 0 is read as worn (1 photos), 1 is read as incorrect (12 photos), "
        "2 is read as not_worn (0 photos); if your codes mean something else, write words in their "
        "place"
    ) in output
    assert contents(table) == photos
    folder = Path("data/raw/train")
    copied, rejections = list_photos(read_people(folder / "train.csv"), folder)
    assert rejections == []
    first = copied.loc[copied["person"] == "p0", ["photo", "mask", "gender", "age"]]
    assert first.to_numpy().tolist() == [
        ["mask1.jpg", "worn", "male", 29],
        ["mask2.png", "worn", "male", 29],
        ["mask3.jpg", "worn", "male", 29],
        ["incorrect_mask.jpg", "incorrect", "male", 29],
        ["normal.jpg", "not_worn", "male", 29],
    ]  # fmt: skip
    assert copied["person"].value_counts().to_list() == [5] + [3] * 11
    origin = pd.read_csv(folder / "origin.csv").set_index(["person", "photo"])["path"]
    for row in copied.itertuples():
        assert Path(row.path).read_bytes() == Path(origin[row.person, row.photo]).read_bytes()


def test_mask_codes_are_described_where_they_occur(table: Path) -> None:
    text = (table / "photos.csv").read_text()
    (table / "photos.csv").write_text(text.replace(",1,", ",incorrect,"))
    assert "mask code" not in run(table, "--copy")


def test_columns_may_have_other_names(table: Path) -> None:
    edit(table / "photos.csv", "path,person,mask", "file,who,state")
    assert "photos.csv has no column 'path'; it has file, who, state" in error(table)
    assert "--columns: 'who': write person=NAME" in error(table, "--columns", "who")
    assert "--columns: 'name=who': write person=NAME" in error(table, "--columns", "name=who")
    twice = "path=file,person=file"
    assert "names one column of your table twice" in error(table, "--columns", twice)
    unknown = "path=file,person=whom,mask=state"
    assert "has no column 'whom'" in error(table / "photos.csv", "--columns", unknown, "--copy")
    run(table, "--columns", "path=file, person=who, mask=state", "--copy")
    assert len(read_people(Path("data/raw/train/train.csv"))) == 12


def test_a_table_with_a_row_per_photo_is_not_used_in_place(table: Path) -> None:
    message = error(table)
    assert "a table with a row per photo needs --copy: 36 photos (0.00 GB) are then copied" in (
        message
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",worn,", ",on,", "row 2: mask 'on' is unknown: write one of worn, incorrect, not"),
        (",M,", ",x,", "row 2: gender 'x' is unknown: write one of male, female, m, f"),
        (",29,", ",old,", "row 2: age 'old' is not a whole number of years"),
        (",M,", ",F,", "row 3: p0 has gender 'male', but 'female' in row 2: correct one"),
        (",29,", ",28,", "row 3: p0 has age 29, but 28 in row 2"),
        ("01.JPG", "0worn.JPG", "row 3: '0worn.JPG' is already in row 2: keep one"),
        ("0worn.JPG", "gone.JPG", "row 2: there is no photo"),
        ("0worn.JPG", "photos.csv", "photos.csv is not named like a photo (.jpg"),
        ("0worn.JPG", "._0.JPG", "is a hidden file: remove the row"),
        (",p0,", ",P0,", "row 3: 'p0' and 'P0' differ in case only"),
        (",p0,", ",a/b,", "row 2: 'a/b' must be a plain, visible name"),
        ("path,", "id,", "has no column 'path'"),
        (",29,x", ",29,x,y", "row 2 has more cells than the header"),
    ],
)  # fmt: skip
def test_an_invalid_row_of_a_table_is_one_line(
    table: Path, old: str, new: str, message: str
) -> None:
    edit(table / "photos.csv", old, new)
    assert message in error(table, "--copy")


def test_anything_else_is_one_line_that_says_what_is_expected(train: Path, project: Path) -> None:
    expected = "expected a folder with train.csv (gender, age, path) and images/<path>/, or a table"
    empty = project.parent / "empty"
    empty.mkdir()
    assert f"{empty} has no table: {expected}" in error(empty)
    for name in ("a.csv", "b.csv"):
        (empty / name).write_text("x\n")
    assert f"{empty} has several tables: {expected}" in error(empty)
    assert f"nowhere is neither a folder nor a table: {expected}" in error("nowhere")
    photo = train / "images" / FIRST / "mask1.jpg"
    assert f"{photo} is neither a folder nor a table" in error(photo)
    shutil.move(train / "images", train / "photos")
    assert f"{train} has no folder images: {expected}" in error(train)
    train.rename(project.parent / "train")
    assert f"pass {project.parent}/train" in error(project.parent)
    shutil.copytree(project.parent / "train/photos", "images")
    shutil.copy(project.parent / "train/train.csv", "train.csv")
    assert "contains this project: move the photos to a folder of their own" in error(project)


def test_a_link_in_place_of_a_folder_is_refused(train: Path, evaluation: Path) -> None:
    for folder in (train, evaluation):
        for target in (folder, folder / "images"):
            target.rename(target.with_name("moved"))
            target.symlink_to("moved")
            message = error(train, "--eval", evaluation)
            assert f"{target} is a link: pass the folder itself, {target.resolve()}" in message
            target.unlink()
            target.with_name("moved").rename(target)


def test_missing_photos_and_classes_are_one_line(train: Path, evaluation: Path) -> None:
    (evaluation / "info.csv").rename(evaluation / "other.csv")
    assert "has no info.csv: expected a folder with info.csv" in error(train, "--eval", evaluation)
    answers = evaluation / "answers.csv"
    assert error(train, "--answers", answers).startswith("--answers needs --eval FOLDER")
    (evaluation / "info.csv").write_text("ImageID,ans\na.jpg,0\n")
    given = ["--eval", evaluation, "--answers", answers]
    assert "photo 'b.jpg' is not in info.csv" in error(train, *given)
    edit(train / "train.csv", ",male,Any,60,", ",male,Any,59,")
    message = error(train)
    assert "too few people in a class, which needs two or more (worn, male, 60 and over: 1" in (
        message
    )
    assert "first change labels.age_edges in params.yaml" in message
    (train / "images" / FIRST / "mask2.jpg").unlink()
    assert f"{FIRST} has no mask2" in error(train)


def test_a_path_that_commands_cannot_contain_is_refused(train: Path) -> None:
    quoted = train.rename(train.with_name('a"b'))
    assert "rename it, or add --copy" in error(quoted)
    run(quoted, "--copy")
    assert read_params().data.train == "data/raw/train"


def test_a_preset_that_does_not_exist_is_one_line_with_those_that_do(train: Path) -> None:
    for name in ("best", "../params", ""):
        message = error(train, "--preset", name)
        assert message == f"there is no preset {name!r}: choose one of faces, gpu, quick"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train:\n  epocs: 3\n", "presets/own.yaml: train.epocs is unknown; the keys there are"),
        ("trian:\n  epochs: 3\n", "presets/own.yaml: trian is unknown; the keys there are data,"),
        ("train:\n  epochs: many\n", "presets/own.yaml: train.epochs: input should be a valid int"),
        ("train: 3\n", "presets/own.yaml: train: its keys belong below it"),
        ("train:\n  freeze: layer9\n", "presets/own.yaml (weights.model: resnet18): train.freeze:"),
        ("# nothing\n", "presets/own.yaml must have the sections of params.yaml"),
        ("train: [\n", "presets/own.yaml is not valid YAML"),
    ],
)
def test_an_invalid_preset_is_one_line_that_names_it(train: Path, text: str, message: str) -> None:
    Path("presets/own.yaml").write_text(text)
    assert message in error(train, "--preset", "own")


def test_weights_of_another_network_are_one_line(train: Path, weights: Path) -> None:
    message = error(train, "--weights", weights, "--preset", "gpu")
    assert message.startswith("presets/gpu.yaml (weights.model: resnet50): ")
    assert f"{weights} does not fit the model" in message
    write_weights(weights, build("resnet50", 64).state_dict())
    message = error(train, "--weights", weights)
    assert message.endswith(
        "the preset sets weights.model: choose one for your file, such as --preset gpu for a "
        "resnet50, or add one of your own to presets/"
    )
    assert "--weights: there is no file gone.pth" in error(train, "--weights", "gone.pth")


def test_what_is_in_the_way_of_a_copy_is_never_replaced(train: Path, weights: Path) -> None:
    Path("data/pretrained").mkdir()
    target = Path(shutil.copy(weights, "data/pretrained"))
    assert "weights: a copy in data/pretrained" in run(train, "--weights", weights)
    target.write_text("another file")
    message = error(train, "--copy", "--weights", weights)
    assert "data/pretrained/faces.safetensors is in the way of the copy" in message
    Path("data/raw").mkdir()
    Path("data/raw/own.jpg").write_text("a photo")
    assert "data/raw is in the way of the copy: move it" in error(train, "--copy")


def test_a_file_that_cannot_be_written_leaves_everything_as_it_was(
    train: Path, weights: Path
) -> None:
    Path(f"data/corrections.csv.{os.getpid()}.partial").mkdir()
    message = error(train, "--copy", "--weights", weights)
    assert "a folder is in the way of the file" in message
    assert not Path("data/raw").exists()
    assert not list(Path("data").glob("raw*"))


def test_corrections_and_answers_of_these_photos_are_kept(train: Path, evaluation: Path) -> None:
    own = f"person,photo,field,old,new,reason\n{FIRST},,gender,male,female,seen\n"
    Path("data/corrections.csv").write_text(own)
    Path("data/answers.csv").write_text("ImageID,ans\na.jpg,3\n")
    run(train, "--eval", evaluation)
    assert Path("data/corrections.csv").read_text() == own
    assert Path("data/answers.csv").read_text() == "ImageID,ans\na.jpg,3\n"
    run(train)  # there are no evaluation photos any more
    assert Path("data/answers.csv").read_text() == "ImageID,ans\n"


def test_without_a_terminal_it_shows_the_difference_and_writes_nothing(train: Path) -> None:
    before = contents()
    output = run_stage(adopt.main, train, code=1).output
    assert "-  side: 48                     # side of the crop in pixels" in output
    assert "+  side: 96                     # side of the crop in pixels" in output
    assert output.splitlines()[-1] == (
        "error: nothing is written: there is no terminal to ask on; add --yes"
    )
    assert contents() == before


def answer(reply: bytes, *arguments: object) -> tuple[int, str]:
    """Adopt on a terminal with a reply to the question; return the exit code and the output."""
    terminal, inside = pty.openpty()
    command = [sys.executable, "-m", "commands.adopt", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        os.write(terminal, reply)
        output = process.communicate(timeout=120)[0].decode()
    os.close(terminal)
    os.close(inside)
    return process.returncode, output


def test_it_asks_on_a_terminal_and_says_what_git_cannot_undo(train: Path) -> None:
    with Path("params.yaml").open("a") as file:
        file.write("# my own remark\n")
    before = contents()
    code, output = answer(b"n\n", train)
    assert (code, contents()) == (1, before)
    assert "warning: params.yaml: not committed, so `git checkout` cannot undo the change" in output
    assert "Write this? [y/N]" in output
    assert output.splitlines()[-1].endswith("nothing is written")
    code, output = answer(b"y\n", train)
    assert (code, output.splitlines()[-1]) == (0, "next: dvc repro")
    assert read_params().data.train == str(train)
    assert "# my own remark" in Path("params.yaml").read_text()


def test_a_closed_input_is_no_terminal(train: Path) -> None:
    command = ["sh", "-c", '"$0" -m commands.adopt "$1" <&-', sys.executable, str(train)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        1, "error: nothing is written: there is no terminal to ask on; add --yes",
    )  # fmt: skip


def test_dvc_tracks_the_copies(train: Path, weights: Path) -> None:
    assert "is outside the project, where DVC cannot track it: add --copy" in error(
        train, "--track"
    )
    output = run(train, "--copy", "--track", "--weights", weights)
    assert Path("data/raw.dvc").exists()
    assert Path("data/pretrained/faces.safetensors.dvc").exists()
    assert set(changed()) >= {"data/raw.dvc", "params.yaml"}
    assert not [name for name in changed() if name.endswith((".jpg", ".safetensors"))]
    undo(output)
    assert not Path("data/raw").exists()


def test_dvc_tracks_evaluation_photos_inside_the_others_with_them(
    train: Path, evaluation: Path
) -> None:
    photos = Path(shutil.move(train, "own"))
    evaluation.rename(photos / "eval")
    output = run(photos, "--eval", photos / "eval", "--track")
    assert changed() == [".gitignore", "data/corrections.csv", "params.yaml", "own.dvc"]
    undo(output)
    assert (photos / "eval/images/a.jpg").exists()


def undo(output: str) -> None:
    """Run the commands of the line that undoes a run of adopt."""
    line = next(line for line in output.splitlines() if line.startswith("undo: "))
    dvc = f"{shlex.quote(sys.executable)} -m dvc"
    commands = line.removeprefix("undo: ").replace("dvc remove", f"{dvc} remove")
    subprocess.run(commands.replace("; ", " && "), shell=True, check=True)
    assert [name for name in changed() if name != "own/"] == []
