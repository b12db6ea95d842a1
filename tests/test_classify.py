"""Any photos, classified as the pipeline would: what is said of each, and where it is written."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stages import classify, clean, crop, predict
from stages.errors import UserError
from stages.faces.marking import mark
from stages.learning.device import Hardware
from stages.learning.ensemble import read_networks
from stages.learning.network import AgesHead, head_name
from stages.learning.recipe import Recipe
from stages.params import read_params
from stages.photos.labels import attribute_names, class_names
from stages.photos.tables import PROBABILITIES
from stages.train import recipe_of
from tests.conftest import Change, Run, save_photo
from tests.small import FALLBACK, small_recipe, torch_as_it_is, two_faces, write_networks


@pytest.fixture(autouse=True)
def networks(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """Two networks in data/train, and their recipe; there is no params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "data/train")
    with torch_as_it_is():
        yield small_recipe(FALLBACK)


@pytest.fixture
def photos(portraits: list[Path]) -> Path:
    """A folder with a portrait, one in a folder of its own, and a photo of nothing."""
    folder = Path("photos")
    (folder / "more").mkdir(parents=True)
    shutil.copy(portraits[0], folder / "a.jpg")
    shutil.copy(portraits[1], folder / "more" / "a.jpg")
    save_photo(folder / "nobody.png")
    return folder


def classified(run: Run, *arguments: object, code: int = 0) -> list[dict[str, Any]]:
    """The rows that the command writes as JSON."""
    Path("params.yaml").unlink(missing_ok=True)
    run(classify.main, *arguments, "--json", "rows.json", code=code)
    return list(json.loads(Path("rows.json").read_text()))


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_box_and_probabilities_are_those_of_the_pipeline(
    raw: Path, portraits: list[Path], run: Run, change: Change
) -> None:
    """Also where no face is found, and the crop is the median box of the training photos."""
    for key, value in {
        "crop.side": 32,
        "weights.model": "mobilenet_v2",
        "folds.index": [0, 1],
        "predict.precision": "fp32",
    }.items():
        change(key, value)
    shutil.copy(portraits[0], raw / "train/images/3_male_Any_60/normal.jpg")
    for portrait, name in zip(portraits[1:], ("one.jpg", "two.jpg"), strict=True):
        shutil.copy(portrait, raw / "eval/images" / name)
    (raw / "eval/info.csv").write_text("ImageID,ans\ntwo.jpg,0\na.jpg,0\none.jpg,0\nb.jpg,0\n")
    run(clean.main, raw / "train", raw / "eval", raw / "corrections.csv", "clean")
    run(crop.main, "clean", "data/detectors", "crop")
    recipe = recipe_of(read_params(), Path("crop/fallback.json"))
    write_networks(Path("results"), recipe)
    pd.DataFrame({"label": range(18)}).to_csv("folds.csv", index=False)
    tables = ["clean/evaluation.csv", "folds.csv", "probabilities.csv", "submission.csv"]
    run(predict.main, "results", "crop/evaluation.npy", *tables)
    boxes = pd.read_csv("crop/evaluation.csv", index_col="photo")
    expected = pd.read_csv("probabilities.csv", index_col="photo")
    answers = pd.read_csv("submission.csv", index_col="ImageID")["ans"]
    assert expected[PROBABILITIES].max(axis=None) > 0.1 and expected["p0"].std() > 1e-3

    images = raw / "eval/images"
    options = ["--networks", "results", "--fallback", "--precision", "fp32"]
    rows = classified(run, images, *options)
    assert [Path(row["file"]).name for row in rows] == ["a.jpg", "b.jpg", "one.jpg", "two.jpg"]
    for row in rows:
        name = Path(row["file"]).name
        width, height = Image.open(images / name).size
        box = boxes.loc[name, crop.BOX].to_numpy(float) * [width, height, width, height]
        assert [row[side] for side in crop.BOX] == pytest.approx(box, abs=0.51)
        assert {"detected": "detected", "fallback": "all"}[row["way"]] == boxes.loc[name, "way"]
        assert row["confidence"] == pytest.approx(boxes.loc[name, "confidence"], abs=1e-5)
        assert row["classes"] == pytest.approx(expected.loc[name, PROBABILITIES], abs=1e-5)
        assert row["class"] == answers[name]


def test_a_row_says_in_words_what_its_class_is(run: Run, photos: Path) -> None:
    (row,) = classified(run, photos / "a.jpg")
    words = f"{row['mask']}, {row['gender']}, {row['age']}"
    assert class_names([30, 60])[row["class"]] == words
    assert row["probability"] == max(row["classes"])
    joint = np.reshape(row["classes"], (3, 2, 3))
    for axes, (field, names) in zip(
        [(1, 2), (0, 2), (0, 1)], attribute_names([30, 60]).items(), strict=True
    ):
        assert list(row["attributes"][field]) == names
        assert list(row["attributes"][field].values()) == pytest.approx(joint.sum(axes), abs=1e-5)
        assert row[f"{field}_probability"] == row["attributes"][field][row[field]]


def test_each_face_of_a_photo_has_a_row_the_largest_first(run: Run, portraits: list[Path]) -> None:
    two_faces(portraits, Path("two.png"))
    rows = classified(run, "two.png")
    assert [(row["face"], row["way"]) for row in rows] == [(1, "detected"), (2, "detected")]
    assert rows[0]["left"] > 400 > rows[1]["left"] + rows[1]["width"]
    assert rows[0]["width"] > rows[1]["width"]


def test_a_photo_that_lies_on_its_side_is_seen_upright(run: Run, portraits: list[Path]) -> None:
    upright = Image.open(portraits[0])
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.save("upright.png")
    turned.save("turned.png", exif=exif)
    one, other = classified(run, "upright.png", "turned.png")
    assert one | {"file": ""} == other | {"file": ""}


def test_the_networks_are_averaged_or_one_is_asked(run: Run, photos: Path) -> None:
    of_all, first, second = (
        classified(run, photos / "a.jpg", "--precision", "fp32", *which)[0]["classes"]
        for which in ([], ["--fold", 0], ["--fold", 1])
    )
    assert first != second
    assert of_all == pytest.approx(np.mean([first, second], axis=0), abs=1e-5)


def test_a_photo_without_a_face_is_said_to_have_none(run: Run, photos: Path) -> None:
    result = run(classify.main, photos, "--csv", "rows.csv")
    assert any("nobody.png" in line and "no face found" in line for line in lines(result.stdout))
    assert "3 photos, 2 faces by 2 networks; 1 photos without a face, 0" in result.stdout
    with Path("rows.csv").open() as file:
        row = list(csv.DictReader(file))[1]
    assert {key: value for key, value in row.items() if value} == {
        "file": "photos/nobody.png",
        "face": "0",
        "problem": "no face found",
    }


def test_it_is_classified_when_asked_for(run: Run, photos: Path, networks: Recipe) -> None:
    (row,) = classified(run, photos / "nobody.png", "--fallback")
    assert [row[side] for side in crop.BOX] == [12, 16, 24, 32]  # of 48 x 64
    assert (row["way"], row["confidence"]) == ("fallback", 0)
    never_found = networks.model_copy(update={"fallback": None})
    write_networks(Path("data/train"), never_found)
    (row,) = classified(run, photos / "nobody.png", "--fallback")
    assert ([row[side] for side in crop.BOX], row["way"]) == ([0, 0, 48, 64], "whole")


def test_networks_of_whole_photos_are_given_whole_photos(
    run: Run, photos: Path, networks: Recipe
) -> None:
    cropped = networks.crop.model_copy(update={"detector": "none"})
    whole = networks.model_copy(update={"crop": cropped, "fallback": None})
    write_networks(Path("data/train"), whole)
    rows = classified(run, photos)
    assert [(row["face"], row["way"], row["problem"]) for row in rows] == [(1, "whole", "")] * 3


def test_folders_are_searched_through_and_hidden_files_passed_over(run: Run, photos: Path) -> None:
    for name in ("._a.jpg", ".DS_Store", "notes.txt", ".hidden/b.jpg", "more/c.JPEG"):
        (photos / name).parent.mkdir(exist_ok=True)
        shutil.copy(photos / "a.jpg", photos / name)
    os.mkfifo(photos / "pipe.jpg")
    found = [row["file"] for row in classified(run, photos / "more", photos, photos / "a.jpg")]
    assert found == [
        "photos/more/a.jpg",
        "photos/more/c.JPEG",
        "photos/a.jpg",
        "photos/nobody.png",
    ]


def test_broken_photos_are_told_counted_and_passed_over(run: Run, photos: Path) -> None:
    (photos / "b.jpg").write_bytes(b"")
    (photos / "c.png").write_bytes((photos / "a.jpg").read_bytes()[:5000])
    (photos / "d.jpg").symlink_to("gone.jpg")
    (photos / "e.jpg").write_text("no photo")
    result = run(classify.main, photos, "--csv", "rows.csv", code=1)
    told = lines(result.stderr)
    assert told[0] == "photos/b.jpg is empty"
    assert told[1].startswith("photos/c.png cannot be decoded")
    assert told[2:] == [
        "photos/d.jpg cannot be opened (No such file or directory)",
        "photos/e.jpg is no JPEG or PNG",
    ]
    assert "7 photos, 2 faces by 2 networks; 1 photos without a face, 4 that" in result.stdout
    table = pd.read_csv("rows.csv", keep_default_na=False).set_index("file")["problem"]
    assert len(table) == 7
    assert (table["photos/a.jpg"], table["photos/b.jpg"]) == ("", "is empty")


def test_a_photo_of_too_many_pixels_is_not_decoded(run: Run, photos: Path) -> None:
    Image.new("L", (10_000, 10_000)).save("huge.png", compress_level=1)
    result = run(classify.main, "huge.png", photos / "a.jpg", code=1)
    line = "huge.png has 10000 x 10000 pixels, more than 50000000"
    assert lines(result.stderr) == [line]
    run(classify.main, photos / "nobody.png", "--max-pixels", 48 * 64)
    run(classify.main, photos / "nobody.png", "--max-pixels", 48 * 64 - 1, code=1)


def test_many_photos_come_in_order(run: Run, photos: Path) -> None:
    """More than are opened ahead of the networks."""
    many = Path("many")
    many.mkdir()
    for number in range(150):
        shutil.copy(photos / "nobody.png", many / f"{number:03}.png")
    (many / "070.png").write_text("broken")
    rows = classified(run, many, "--fallback", code=1)
    assert [row["file"] for row in rows] == [f"many/{number:03}.png" for number in range(150)]
    assert [row["file"] for row in rows if row["problem"]] == ["many/070.png"]


def test_the_table_fits_80_columns(run: Run, photos: Path) -> None:
    long = photos / ("long [bold]name" * 8 + ".jpg")
    (photos / "a.jpg").rename(long)
    result = run(classify.main, photos, "--fallback")
    shown = lines(result.stdout)
    assert max(map(len, shown[:-1])) <= 80
    assert shown[0].split() == ["file", "face", "mask", "gender", "age", "class"]
    assert shown[1].startswith("…old]name.jpg") or "name.jpg" in shown[1]
    assert len(shown) == 5  # the table is one, though its rows come as they are ready


def test_what_is_printed_can_be_read_by_programs(run: Run, photos: Path) -> None:
    (photos / "b.jpg").write_text("broken")
    as_json = run(classify.main, photos, "--json", "-", code=1)
    rows = json.loads(as_json.stdout)
    as_csv = run(classify.main, photos, "--csv", "-", code=1)
    table = list(csv.DictReader(as_csv.stdout.splitlines()))
    assert [row["file"] for row in table] == [row["file"] for row in rows]
    assert [row["class"] for row in table][:2] == [str(rows[0]["class"]), ""]
    both = run(classify.main, photos, "--csv", "-", "--json", "-", code=1)
    assert "only one of them can be printed" in both.stderr


def test_a_name_in_no_encoding_is_written_with_backslashes(run: Run, photos: Path) -> None:
    odd = os.fsdecode(b'odd\xff, "name".jpg')
    (photos / "a.jpg").rename(photos / odd)
    run(classify.main, photos / odd, "--csv", "rows.csv", "--json", "rows.json")
    with Path("rows.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["file"] == 'photos/odd\\xff, "name".jpg'
    assert json.loads(Path("rows.json").read_text())[0]["file"] == row["file"]


def test_annotated_copies_have_names_that_never_clash_and_originals_stay(
    run: Run, photos: Path
) -> None:
    shutil.copy(photos / "nobody.png", photos / "more" / "A.jpg")  # a PNG by another name
    before = {path: path.read_bytes() for path in photos.rglob("*.*")}
    arguments = [photos / "a.jpg", photos / "more", photos / "nobody.png"]
    run(classify.main, *arguments, "--annotate", "out")
    made = sorted(path.name for path in Path("out").iterdir())
    assert made == ["A-2.jpg", "a-3.jpg", "a.jpg", "nobody.png"]
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before
    copy, original = Image.open("out/a.jpg"), Image.open(photos / "a.jpg")
    assert copy.width / copy.height == pytest.approx(original.width / original.height, abs=0.01)
    assert min(copy.size) >= 480
    again = run(classify.main, *arguments, "--annotate", "out", code=1)
    assert "--annotate: out is not empty: name a folder that is new" in again.stderr
    run(classify.main, photos, "--annotate", photos, code=1)
    assert {path: path.read_bytes() for path in photos.rglob("*.*")} == before


def test_tables_may_lie_beside_annotated_copies_but_not_in_each_other(
    run: Run, photos: Path
) -> None:
    run(classify.main, photos / "a.jpg", "--csv", "out/rows.csv", "--annotate", "out")
    assert sorted(os.listdir("out")) == ["a.jpg", "rows.csv"]
    same = run(classify.main, photos, "--csv", "rows", "--json", "./rows", code=1)
    assert same.stderr == "error: --csv, --json and --annotate: two of them have the same name\n"
    assert not Path("rows").exists()
    same = run(classify.main, photos, "--csv", "new", "--annotate", "new/", code=1)
    assert "two of them have the same name" in same.stderr


def test_a_strip_of_a_photo_is_not_blown_up(run: Run, photos: Path) -> None:
    Image.new("RGB", (20_000, 1)).save(photos / "strip.png")
    Image.new("RGB", (2_000, 10)).save(photos / "strip.jpg")
    strips = [photos / "strip.png", photos / "strip.jpg"]
    Image.new("RGB", (70_000, 1)).save(photos / "wide.jpg", "PNG")  # more than JPEG can hold
    strips.append(photos / "wide.jpg")
    run(classify.main, *strips, "--fallback", "--annotate", "out")
    for path in Path("out").iterdir():
        with Image.open(path) as copy:
            assert copy.width * copy.height < 1_000_000


def test_a_link_that_leads_nowhere_is_told_of(run: Run, photos: Path) -> None:
    (photos / "loop.jpg").symlink_to("loop.jpg")
    result = run(classify.main, photos, code=1)
    assert "photos/loop.jpg cannot be opened" in result.stderr


def test_a_process_that_the_system_ends_is_told_of() -> None:
    with (
        pytest.raises(UserError, match="the system has ended a process that opened photos"),
        classify.ended_processes_told(),
        ProcessPoolExecutor(1) as pool,
    ):
        pool.submit(os._exit, 9).result()


def test_a_table_never_takes_the_place_of_a_photo(run: Run, photos: Path) -> None:
    before = (photos / "a.jpg").read_bytes()
    for option in ("--csv", "--json"):
        result = run(classify.main, photos, option, photos / "a.jpg", code=1)
        assert "a.jpg is a photo or a folder: name the file to write" in result.stderr
    assert (photos / "a.jpg").read_bytes() == before


def test_a_fold_between_others_is_missed(run: Run, photos: Path) -> None:
    """A failed `dvc repro` leaves the folds after it: the mean over fewer would look as good."""
    shutil.rmtree("data/train/fold0")  # as a failed `dvc repro` leaves it
    half = run(classify.main, photos, code=1)
    assert half.stderr.startswith("error: data/train lacks the network of fold 0: `dvc checkout`")


def test_what_is_missing_is_named_with_the_command_that_makes_it(run: Run, photos: Path) -> None:
    nowhere = run(classify.main, photos, "--networks", "elsewhere", code=1)
    assert nowhere.stderr.startswith("error: elsewhere holds no trained network")
    assert "`dvc repro` trains them" in nowhere.stderr
    no_fold = run(classify.main, photos, "--fold", 7, code=1)
    assert "there is no fold 7 in data/train; its folds are 0, 1" in no_fold.stderr
    gone = run(classify.main, "gone.jpg", code=1)
    assert gone.stderr == "error: there is no photo or folder gone.jpg\n"
    Path("empty").mkdir()
    empty = run(classify.main, "empty", code=1)
    assert empty.stderr == "error: empty holds no photo (.jpg, .jpeg, .png)\n"


def test_networks_are_read_with_the_age_edges_they_were_trained_with(networks: Recipe) -> None:
    recipe = networks.model_copy(update={"heads": "ages", "age_edges": [20, 50]})
    write_networks(Path("other"), recipe, folds=1)
    path = Path("other/fold0/network.safetensors")
    (network,), read = read_networks([path], Hardware(torch.device("cpu"), torch.float32))
    assert read == recipe
    head = network.get_submodule(head_name(network))
    assert isinstance(head, AgesHead)
    assert head.group_sizes == (20, 30, 71)


def test_networks_of_two_ways_are_not_averaged(run: Run, photos: Path, networks: Recipe) -> None:
    other = networks.model_copy(update={"flip_at_test": False})
    write_networks(Path("other"), other)
    shutil.copy("other/fold1/network.safetensors", "data/train/fold1/network.safetensors")
    result = run(classify.main, photos, code=1)
    assert "fold1/network.safetensors is used in another way than data/train/fold0" in result.stderr


def test_captions_are_white_on_black_in_the_photo_and_apart() -> None:
    boxes, captions = [(0, 0, 60, 90), (30, 20, 70, 79)], ["worn 93%\nmale 60%", "not worn"]
    for background in ("black", "white", "grey"):
        photo = Image.new("RGB", (100, 100), background)
        bare = np.asarray(mark(photo, boxes, ["", ""])).astype(int)
        marked = [np.asarray(mark(photo, boxes, some)) for some in (captions, [captions[0], ""])]
        both, first = ((each != bare).any(axis=2) for each in marked)
        second = both & ~first
        assert bare.shape == (480, 480, 3), "small photos are enlarged"
        for written in (first, second):
            assert written.sum() > 300
            rows, columns = (np.flatnonzero(written.any(axis=axis)) for axis in (1, 0))
            area = marked[0][rows[0] : rows[-1], columns[0] : columns[-1]]
            assert (area.min(), area.max()) == (0, 255)


def test_help_says_what_the_exit_code_means(run: Run) -> None:
    shown = run(classify.main, "--help").stdout
    assert "exit code" in shown.lower()
