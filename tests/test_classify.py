"""`commands.classify`: any photos get the labels that the pipeline would give them."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from commands import classify
from commands.classify import PassedOver
from face_attributes.faces.boxes import BOX
from face_attributes.inference.row_writers import copy_annotator
from face_attributes.networks.recipe import Recipe, make_recipe
from face_attributes.params import read_params
from face_attributes.photos.labels import attribute_names, class_names
from face_attributes.photos.names import readable_name
from face_attributes.photos.opening import readable_formats
from face_attributes.photos.tables import PROBABILITIES
from stages import clean, crop, predict
from tests.conftest import ROOT, Change, Run, save_photo
from tests.small import (
    FALLBACK,
    png_header,
    restore_torch_settings,
    small_recipe,
    two_faces,
    write_networks,
)

pytestmark = pytest.mark.slow


class Classified(NamedTuple):
    """What the command printed and wrote; rows are by file name."""

    stdout: list[str]
    stderr: list[str]
    json_rows: dict[str, list[dict[str, Any]]]
    csv_rows: dict[str, dict[str, str]]
    copies: Path
    originals_unchanged: bool


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def result(
    trained: Path, portraits: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Classified]:
    """The command's result for a folder of good, odd and broken photos, with every output.

    A table is written beside the annotated copies.
    """
    folder = tmp_path_factory.mktemp("classify")
    photos = folder / "photos"
    photos.mkdir()
    face = Image.open(portraits[0])
    shutil.copy(portraits[0], photos / "face.jpg")
    face.save(photos / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to display
    face.transpose(Image.Transpose.ROTATE_90).save(photos / "rotated.png", exif=exif)
    shutil.copy(portraits[0], photos / ("long [bold]name" * 8 + ".jpg"))
    shutil.copy(portraits[0], photos / os.fsdecode(b'odd\xff, "name".jpg'))
    two_faces(portraits, photos / "two.png")
    save_photo(photos / "nobody.png")
    Image.new("RGB", (20_000, 1)).save(photos / "strip.png")
    Image.new("RGB", (65_500, 1)).save(photos / "wide.jpg", "PNG")  # as wide as a JPEG can be
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "text.jpg").write_text("not a photo")
    (photos / "torn.png").write_bytes((photos / "upright.png").read_bytes()[:5000])
    (photos / "huge.png").write_bytes(png_header(10_000, 10_000))
    (photos / "gone.jpg").symlink_to("elsewhere.jpg")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    before = contents(photos)
    outputs = ["--csv", "copies/rows.csv", "--json", "rows.json", "--annotate", "copies"]
    with pytest.MonkeyPatch.context() as patch, restore_torch_settings():
        patch.chdir(folder)
        arguments = ["photos", "--networks", str(trained), *outputs]
        done = CliRunner().invoke(classify.main, arguments)
    assert done.exit_code == 1, done.output
    json_rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads((folder / "rows.json").read_text()):
        json_rows.setdefault(row["file"].removeprefix("photos/"), []).append(row)
    with (folder / "copies/rows.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == sum(map(len, json_rows.values()))
    yield Classified(
        [line.rstrip() for line in done.stdout.splitlines()],
        done.stderr.splitlines(),
        json_rows,
        {row["file"].removeprefix("photos/"): row for row in table},
        folder / "copies",
        contents(photos) == before,
    )


@pytest.fixture
def networks(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Two networks in data/train of the working folder, without params.yaml; their recipe."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, "data/train")
    return small_recipe(FALLBACK)


def classified(*arguments: object, code: int = 0) -> list[dict[str, Any]]:
    """The rows that the command writes as JSON."""
    run_command(*arguments, "--json", "rows.json", code=code)
    return list(json.loads(Path("rows.json").read_text()))


def run_command(*arguments: object, code: int = 0) -> tuple[str, str]:
    """What the command prints to stdout and stderr."""
    result = CliRunner().invoke(classify.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + str(result.exception)
    return result.stdout, result.stderr


# --- labels


def test_boxes_and_probabilities_equal_the_pipelines(
    raw: Path, portraits: list[Path], run: Run, change: Change
) -> None:
    """Also without a detected face, when the crop is the median box of the training photos."""
    for key, value in {
        "crop.side": 32,
        "weights.model": "mobilenet_v2",
        "folds.index": [0, 1],
        "train.precision": "fp32",
    }.items():
        change(key, value)
    shutil.copy(portraits[0], raw / "train/images/3_male_Any_60/normal.jpg")
    shutil.copy(portraits[1], raw / "eval/images/face.jpg")
    (raw / "eval/info.csv").write_text("ImageID,ans\nface.jpg,0\na.jpg,0\nb.jpg,0\n")
    run(clean.main, raw / "train", raw / "eval", raw / "corrections.csv", "clean")
    run(crop.main, "clean", "data/detectors", "crop")
    fallback = json.loads(Path("crop/fallback.json").read_text())["box"]
    write_networks(Path("results"), make_recipe(read_params(), fallback, 1.0))
    photos = pd.read_csv("clean/photos.csv")[["person", "photo", "label"]]
    photos.assign(fold=0).to_csv("folds.csv", index=False)
    run(predict.main, "results", "crop", "clean/evaluation.csv", "folds.csv", ".", "submission.csv")
    boxes = pd.read_csv("crop/evaluation.csv", index_col="photo")
    expected = pd.read_csv("probabilities.csv", index_col="photo")
    answers = pd.read_csv("submission.csv", index_col="ImageID")["ans"]
    assert expected[PROBABILITIES].max(axis=None) > 0.1 and expected["p0"].std() > 1e-3

    images = raw / "eval/images"
    Path("params.yaml").unlink()
    options = ["--networks", "results", "--fallback", "--precision", "fp32"]
    rows = classified(images, *options)
    assert [Path(row["file"]).name for row in rows] == ["a.jpg", "b.jpg", "face.jpg"]
    for row in rows:
        name = Path(row["file"]).name
        width, height = Image.open(images / name).size
        box = boxes.loc[name, BOX].to_numpy(float) * [width, height, width, height]
        assert [row[side] for side in BOX] == pytest.approx(box, abs=0.51)
        assert {"detected": "detected", "fallback": "all"}[row["way"]] == boxes.loc[name, "way"]
        assert row["confidence"] == pytest.approx(boxes.loc[name, "confidence"], abs=1e-5)
        assert row["classes"] == pytest.approx(expected.loc[name, PROBABILITIES], abs=1e-5)
        assert row["class"] == answers[name]


def test_a_row_names_the_most_probable_class_and_sums_its_attributes(result: Classified) -> None:
    (row,) = result.json_rows["face.jpg"]
    assert class_names([30, 60])[row["class"]] == f"{row['mask']}, {row['gender']}, {row['age']}"
    assert row["probability"] == max(row["classes"])
    joint = np.reshape(row["classes"], (3, 2, 3))
    for axes, (field, names) in zip(
        [(1, 2), (0, 2), (0, 1)], attribute_names([30, 60]).items(), strict=True
    ):
        probabilities = row["attributes"][field]
        assert list(probabilities) == names
        assert list(probabilities.values()) == pytest.approx(joint.sum(axes), abs=1e-5)
        assert row[f"{field}_probability"] == probabilities[row[field]]


def test_each_face_has_a_row_the_largest_first(result: Classified) -> None:
    nearer, farther = result.json_rows["two.png"]
    assert [(row["face"], row["way"]) for row in (nearer, farther)] == [
        (1, "detected"),
        (2, "detected"),
    ]
    assert nearer["left"] > 400 > farther["left"] + farther["width"]
    assert nearer["width"] > farther["width"]


def test_the_exif_orientation_is_applied(result: Classified) -> None:
    (upright,), (rotated,) = result.json_rows["upright.png"], result.json_rows["rotated.png"]
    same = [*BOX, "class", "confidence", "problem"]
    assert [upright[key] for key in same] == [rotated[key] for key in same]
    # They may be in batches of different sizes, which round differently in bfloat16.
    assert upright["classes"] == pytest.approx(rotated["classes"], abs=1e-3)


@pytest.mark.usefixtures("networks")
def test_the_networks_are_averaged_unless_one_fold_is_chosen(portraits: list[Path]) -> None:
    mean, first, second = (
        classified(portraits[0], "--precision", "fp32", *fold)[0]["classes"]
        for fold in ([], ["--fold", 0], ["--fold", 1])
    )
    assert first != second
    product = np.sqrt(np.multiply(first, second))
    assert mean == pytest.approx(product / product.sum(), abs=1e-5)


def test_with_fallback_a_photo_without_a_face_is_classified(networks: Recipe) -> None:
    """At the median box of training, or as a whole if no face was found there either."""
    save_photo(Path("nobody.png"))
    (row,) = classified("nobody.png", "--fallback")
    assert [row[side] for side in BOX] == [12, 16, 24, 32]  # of 48 x 64
    assert (row["way"], row["confidence"]) == ("fallback", 0)
    write_networks(Path("data/train"), networks.model_copy(update={"fallback": None}), folds=1)
    (row,) = classified("nobody.png", "--fallback", "--fold", 0)
    assert ([row[side] for side in BOX], row["way"]) == ([0, 0, 48, 64], "whole")


def test_networks_trained_on_whole_photos_get_whole_photos(
    networks: Recipe, portraits: list[Path]
) -> None:
    cropped = networks.crop.model_copy(update={"detector": "none"})
    whole = networks.model_copy(update={"crop": cropped, "fallback": None})
    write_networks(Path("data/train"), whole, folds=1)
    (row,) = classified(portraits[0], "--fold", 0)
    assert (row["face"], row["way"], row["problem"]) == (1, "whole", "")


@pytest.mark.usefixtures("networks")
def test_photos_come_in_order_however_many_there_are() -> None:
    Path("many").mkdir()
    save_photo(Path("many/000.png"))
    count = classify.PHOTOS_AHEAD + 6
    for number in range(1, count):
        shutil.copy("many/000.png", f"many/{number:03}.png")
    Path("many/030.png").write_text("broken")
    rows = classified("many", "--fallback", code=1)
    assert [row["file"] for row in rows] == [f"many/{number:03}.png" for number in range(count)]
    assert [row["file"] for row in rows if row["problem"]] == ["many/030.png"]


# --- what is read


def test_folders_are_searched_and_hidden_files_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.png", "more/c.JPEG", "._a.jpg", "notes.txt", ".hidden/b.jpg"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).touch()
    os.mkfifo("photos/pipe.jpg")
    arguments = ["photos/more", "photos", "photos/a.jpg"]
    assert list(map(str, find_photos(arguments))) == [
        "photos/more/c.JPEG",
        "photos/a.jpg",
        "photos/b.png",
    ]


def find_photos(arguments: list[str]) -> dict[Path, Path]:
    return classify.find_photos([Path(each) for each in arguments], PassedOver())


@pytest.mark.usefixtures("networks")
def test_what_is_passed_over_is_counted_with_the_reason() -> None:
    for name in (
        "a.mp4", "b.mp4", "c.txt", "README", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "d.heic",
        "__MACOSX/a.jpg", ".thumbnails/a.jpg", "../elsewhere/b.jpg",
    ):  # fmt: skip
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).touch()
    Path("photos/link").symlink_to("../elsewhere")
    os.mkfifo("photos/pipe.jpg")
    save_photo(Path("photos/a.png"))
    (row,), errors = classified("photos"), run_command("photos")[1]
    assert row["file"] == "photos/a.png"
    heic = "" if "HEIF" in readable_formats() else (
        "passed over: 1 .heic (`python -m pip install pillow-heif` makes them readable)\n"
    )  # fmt: skip
    assert errors == heic + (
        "passed over: files that are not photos: 2 .mp4, 1 without a suffix, 1 .txt, 1 .jpg\n"
        "passed over: 2 folders of thumbnails, such as photos/@eaDir\n"
        "passed over: 1 linked folders, such as photos/link (name them on the command line)\n"
    )
    assert [row["file"] for row in classified("photos/link", code=1)] == ["photos/link/b.jpg"]


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("suffix", ["webp", "gif", "avif"])
def test_other_formats_of_photos_are_read_and_get_jpeg_copies(
    suffix: str, portraits: list[Path]
) -> None:
    Path("photos").mkdir()
    Image.open(portraits[0]).save(f"photos/face.{suffix}")
    (row,) = classified("photos", "--annotate", "copies")
    assert (row["problem"], row["way"]) == ("", "detected")
    with Image.open(f"copies/face.{suffix}.jpg") as copy:
        assert copy.format == "JPEG"


@pytest.mark.usefixtures("networks")
def test_rows_go_through_a_link_and_into_a_pipe(tmp_path: Path, portraits: list[Path]) -> None:
    """A device or a pipe is no file to replace."""
    link, target, pipe = tmp_path / "link.csv", tmp_path / "target.csv", tmp_path / "pipe"
    link.symlink_to(target)
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        piped = pool.submit(pipe.read_text, encoding="utf-8")
        run_command(portraits[0], "--csv", str(link), "--json", str(pipe))
        rows = json.loads(piped.result(timeout=10))
    assert link.is_symlink() and pipe.is_fifo()
    assert len(pd.read_csv(target)) == len(rows) == 1


@pytest.mark.usefixtures("networks")
def test_a_reader_that_goes_away_ends_it_quietly() -> None:
    Path("photos").mkdir()
    for number in range(100):
        save_photo(Path(f"photos/{number}.png"), number)
    command = f"{sys.executable} -m commands.classify photos --fallback | head -1"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_names_of_copies_never_clash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even on a file system that ignores case."""
    monkeypatch.chdir(tmp_path)
    Path("more/deep").mkdir(parents=True)
    for name in ("a.jpg", "more/A.jpg", "more/a.jpg", "more/deep/a.jpg"):
        Path(name).touch()
    names = find_photos([Path("a.jpg"), Path("more")])
    assert list(map(str, names.values())) == ["a.jpg", "A-2.jpg", "a-3.jpg", "deep/a.jpg"]


def test_broken_photos_are_reported_counted_and_skipped(result: Classified) -> None:
    formats = f"{', '.join(readable_formats()[:-1])} or {readable_formats()[-1]}"
    assert [line for line in result.stderr if not line.startswith("photos/torn.png")] == [
        "photos/empty.jpg is empty",
        "photos/gone.jpg cannot be opened (No such file or directory)",
        "photos/huge.png has 10000 x 10000 pixels, more than 50000000",
        "photos/loop.jpg cannot be opened (Too many levels of symbolic links)",
        f"photos/text.jpg is not a {formats}",
    ]
    assert any(line.startswith("photos/torn.png cannot be decoded (") for line in result.stderr)
    assert result.stdout[-1] == (
        "classify: 15 photos, 7 faces (2 networks); 3 without a face, 6 unreadable"
    )
    assert result.csv_rows["empty.jpg"]["problem"] == "is empty"
    assert result.csv_rows["face.jpg"]["problem"] == ""


@pytest.mark.usefixtures("networks")
def test_max_pixels_sets_the_limit() -> None:
    save_photo(Path("nobody.png"))
    _, errors = run_command("nobody.png", "--max-pixels", 48 * 64 - 1, code=1)
    assert errors == "nobody.png has 48 x 64 pixels, more than 3071\n"


@pytest.mark.usefixtures("networks")
def test_missing_inputs_are_one_line_with_the_remedy() -> None:
    _, nowhere = run_command(".", "--networks", "nowhere", code=1)
    assert nowhere.startswith("error: nowhere contains no trained network")
    assert "`dvc repro` trains them" in nowhere and nowhere.count("\n") == 1
    _, no_fold = run_command(".", "--fold", 7, code=1)
    assert no_fold == "error: --fold: data/train has no fold 7: choose from 0, 1\n"
    _, gone = run_command("gone.jpg", code=1)
    assert gone == "error: there is no photo or folder gone.jpg\n"
    _, empty = run_command("data", code=1)
    assert empty.startswith("error: data contains no photo (.jpg, .jpeg, .png, .webp")
    assert empty.endswith("; files that are not photos: 2 .safetensors\n")
    shutil.rmtree("data/train/fold0")  # a mean over fewer networks would look just as good
    _, incomplete = run_command(".", code=1)
    assert incomplete.startswith("error: data/train has no network of fold 0: `dvc checkout`")


# --- what is written


def test_a_photo_without_a_face_is_listed_without_labels(result: Classified) -> None:
    row = result.csv_rows["nobody.png"]
    assert {key: value for key, value in row.items() if value} == {
        "file": "photos/nobody.png",
        "face": "0",
        "problem": "no face found",
    }
    line = next(line for line in result.stdout if "nobody.png" in line)
    assert line.endswith("no face found")


def test_the_printed_table_fits_80_columns(result: Classified) -> None:
    header, *rows, _ = result.stdout
    assert max(map(len, [header, *rows])) <= 80
    assert header.split() == ["file", "face", "mask", "gender", "age", "class"]
    assert sum("…" in row and "name.jpg" in row for row in rows) == 1  # the end of a long name
    assert len(rows) == 7 + 3  # faces and photos without one: the header is not repeated


def test_undecodable_file_names_are_written_with_backslashes(result: Classified) -> None:
    name = 'odd\\xff, "name".jpg'
    assert result.csv_rows[name]["problem"] == ""
    assert len(result.json_rows[name]) == 1


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize("encoding", ["ascii", "cp949", "utf-8"])
def test_any_name_can_be_printed_and_written(encoding: str) -> None:
    """As long as file systems allow, with line ends, and letters that the console lacks."""
    long = "얼굴" * 41 + ".png"  # 250 bytes
    names = {long: long, "two\r\nlines.png": r"two\r\nlines.png", "Ä ß ё.png": "Ä ß ё.png"}
    Path("photos").mkdir()
    for name in names:
        save_photo(Path("photos", name))
    save_photo(Path("photos", long.upper().replace("PNG", "PNg")))
    outputs = ["--csv", "rows.csv", "--json", "rows.json", "--annotate", "copies"]
    done = subprocess.run(
        [sys.executable, "-m", "commands.classify", "photos", *outputs],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(Path("rows.json").read_text())
    assert {row["file"] for row in rows} >= {f"photos/{shown}" for shown in names.values()}
    with Path("rows.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [row["file"] for row in rows]
    assert len(Path("rows.csv").read_text().splitlines()) == 1 + len(rows)
    assert len(list(Path("copies").iterdir())) == len(rows)


@pytest.mark.usefixtures("networks")
def test_a_copy_that_cannot_be_drawn_is_named_and_the_rest_is_written() -> None:
    """A drawing fails where the photo was removed after its faces were found."""
    Path("photos").mkdir()
    for name in ("a.png", "b.png"):
        save_photo(Path("photos", name))
    rows = classified("photos")
    Path("photos/a.png").unlink()
    reported = list[tuple[Path, str]]()
    paths = {Path("photos", name): Path(name) for name in ("a.png", "b.png")}
    with (
        ThreadPoolExecutor(1) as pool,
        copy_annotator(Path("copies"), paths, pool, 10**6, 1,
                       lambda *each: reported.append(each)) as write,
    ):  # fmt: skip
        for path, row in zip(paths, rows, strict=True):
            write(path, [row])
    ((path, reason),) = reported
    assert path == Path("photos/a.png") and reason.startswith("has no annotated copy (")
    assert [copy.name for copy in Path("copies").iterdir()] == ["b.png"]


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    ("options", "file"), [("--csv rows.csv", "rows.csv"), ("--annotate copies", "copies/00.png")]
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(options: str, file: str) -> None:
    """The shell's limit on file sizes stands for it."""
    Path("photos").mkdir()
    for number in range(20):
        save_photo(Path(f"photos/{number:02}.png"), number)
    Path("rows.csv").write_text("earlier")
    command = f"ulimit -f 1; exec {sys.executable} -m commands.classify photos --fallback {options}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {file}: the file would be larger than this system allows, then run again\n"
    )
    assert Path("rows.csv").read_text() == "earlier"
    assert not list(Path().rglob("*.partial"))


@pytest.mark.usefixtures("networks")
def test_programs_can_read_what_is_printed() -> None:
    save_photo(Path("a.png"))
    Path("b.jpg").write_text("broken")
    printed, _ = run_command("a.png", "b.jpg", "--fallback", "--json", "-", code=1)
    rows = json.loads(printed)
    printed, _ = run_command("a.png", "b.jpg", "--fallback", "--csv", "-", code=1)
    table = list(csv.DictReader(printed.splitlines()))
    assert [row["file"] for row in table] == [row["file"] for row in rows] == ["a.png", "b.jpg"]
    assert [row["class"] for row in table] == [str(rows[0]["class"]), ""]


def test_readable_photos_get_annotated_copies_and_originals_stay(result: Classified) -> None:
    broken = {"empty.jpg", "gone.jpg", "huge.png", "loop.jpg", "text.jpg", "torn.png"}
    copies = {readable_name(Path(path.name)) for path in result.copies.iterdir()}
    assert copies - {"rows.csv"} == result.json_rows.keys() - broken
    with Image.open(result.copies / "face.jpg") as copy:
        assert copy.width / copy.height == pytest.approx(384 / 512, abs=0.01)
        assert min(copy.size) >= 480, "small photos are enlarged"
    for strip in ("strip.png", "wide.jpg"):
        with Image.open(result.copies / strip) as copy:
            assert copy.width * copy.height < 1_000_000, "thin ones are not"
    assert result.originals_unchanged


@pytest.mark.usefixtures("networks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--csv - --json -", "--csv - and --json -: only one of them can be printed"),
        ("--csv x --json ./x", "--csv, --json and --annotate: two of them name the same path"),
        ("--csv x --annotate x/", "--csv, --json and --annotate: two of them name the same path"),
        ("--annotate photos", "--annotate: photos is not empty: name a new folder"),
        ("--csv photos/a.jpg", "photos/a.jpg is a photo or a folder: name a file to write"),
        ("--json photos", "photos is a photo or a folder: name a file to write"),
    ],
)
def test_no_output_overwrites_a_photo_or_another_output(options: str, message: str) -> None:
    Path("photos").mkdir()
    save_photo(Path("photos/a.jpg"))
    before = contents(Path("photos"))
    _, error = run_command("photos", *options.split(), code=1)
    assert error == f"error: {message}\n"
    assert contents(Path("photos")) == before
    assert sorted(os.listdir()) == ["data", "photos"]


def test_the_help_explains_the_exit_code() -> None:
    printed, _ = run_command("--help")
    assert "The exit code is 1 if a photo could not be read" in printed
