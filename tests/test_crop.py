"""Training and evaluation photos are cropped alike; missing face boxes are substituted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from face_attributes.faces import detect
from face_attributes.faces.boxes import DETECTED
from face_attributes.faces.cut import cut
from face_attributes.params import read_params
from face_attributes.photos.opening import open_photo
from face_attributes.photos.packed import read_packed
from stages import clean, crop, sample
from tests.conftest import Change, Run, save_photo

PERSON = "000001_female_Any_25"
METADATA = ["left", "top", "width", "height", "way", "confidence"]


@pytest.fixture
def cleaned(raw: Path, run: Run, change: Change) -> Path:
    """The small data set after the stage `clean`."""
    change("crop.side", 16)
    run(clean.main, "raw/train", "raw/eval", "raw/corrections.csv", "clean")
    return raw


def crop_with_face_in(paths: list[str], portrait: Path, run: Run) -> None:
    """Run the stages clean and crop; only the photos in `paths` show a face."""
    for path in paths:
        shutil.copy(portrait, path)
    run(clean.main, "raw/train", "raw/eval", "raw/corrections.csv", "clean")
    run(crop.main, "clean", "data/detectors", "crop")


def test_both_sets_are_cropped_alike_and_missing_boxes_are_substituted(
    raw: Path, portraits: list[Path], run: Run, change: Change
) -> None:
    """The same photo in both sets gives the same box and the same pixels."""
    change("crop.side", 32)
    photos = [f"raw/train/images/{PERSON}/normal.jpg", "raw/eval/images/a.jpg"]
    crop_with_face_in(photos, portraits[0], run)
    train, evaluation = (pd.read_csv(f"crop/{name}.csv") for name in ("train", "evaluation"))
    row = train.index[(train["person"] == PERSON) & (train["photo"] == "normal.jpg")][0]
    evaluation_row = evaluation.index[evaluation["photo"] == "a.jpg"][0]
    assert train.loc[row, METADATA].to_list() == evaluation.loc[evaluation_row, METADATA].to_list()
    pixels, evaluation_pixels = (
        read_packed(Path("crop/train")),
        read_packed(Path("crop/evaluation")),
    )
    np.testing.assert_array_equal(pixels[row], evaluation_pixels[evaluation_row])

    ways = train.groupby("person")["way"].value_counts().unstack(fill_value=0)
    assert ways.loc[PERSON].to_dict() == {"detected": 1, "person": 6, "all": 0}
    assert ways.loc["3_male_Any_60", "all"] == 7
    other = evaluation.loc[evaluation["photo"] == "b.jpg"].iloc[0]
    fallback = json.loads(Path("crop/fallback.json").read_text())["box"]
    assert other["way"] == "all"
    assert other[METADATA[:4]].to_list() == pytest.approx(fallback, abs=1e-4)


def test_without_a_face_in_training_evaluation_photos_are_cropped_in_the_middle(
    raw: Path, portraits: list[Path], run: Run, change: Change
) -> None:
    change("crop.side", 16)
    crop_with_face_in(["raw/eval/images/a.jpg"], portraits[0], run)
    ways = pd.read_csv("crop/evaluation.csv", index_col="photo")["way"].to_dict()
    assert ways == {"a.jpg": "detected", "b.jpg": "centre"}


def test_the_arrays_match_the_tables(cleaned: Path, run: Run, change: Change) -> None:
    change("crop.detector", "none")
    run(crop.main, "clean", "data/detectors", "crop")
    pixels = np.load("crop/train/0000.npy", mmap_mode="r")
    assert (pixels.shape, pixels.dtype) == ((21, 16, 16, 3), np.uint8)
    assert read_packed(Path("crop/evaluation")).shape == (2, 16, 16, 3)
    photos, boxes = pd.read_csv("clean/photos.csv"), pd.read_csv("crop/train.csv")
    assert boxes[["person", "photo"]].equals(photos[["person", "photo"]])
    middle = open_photo(Path(photos["path"][3])).crop((0, 8, 48, 56)).resize((16, 16))
    assert np.abs(pixels[3].astype(int) - np.asarray(middle).astype(int)).mean() < 12
    metrics = json.loads(Path("crop/metrics.json").read_text())
    assert metrics["train"]["boxes"] == {
        **dict.fromkeys(DETECTED.values(), 0),
        "person": 0,
        "all": 0,
        "centre": 21,
    }
    assert metrics["by_mask"].keys() == {"worn", "incorrect", "not_worn"}
    assert json.loads(Path("crop/fallback.json").read_text()) == {"box": None}
    with Image.open("crop/contact_sheet.png") as sheet:
        assert sheet.width > 400


@pytest.mark.parametrize("detector", ["yuface", "haar"])
def test_detectors_find_the_face(portraits: list[Path], detector: str) -> None:
    params = read_params().crop.model_copy(update={"detector": detector, "min_confidence": 0.5})
    (box, *_), (confidence, *_), turn = detect.find_faces(open_photo(portraits[0]), params)
    left, top, width, height = box
    assert 0 < left + width / 2 < 1
    assert abs(top + height / 2 - 0.5) < 0.25
    assert 0.2 < width < 1
    assert confidence >= 0.5
    assert turn == 0


def test_no_face_is_found_in_noise(tmp_path: Path) -> None:
    save_photo(tmp_path / "noise.png")
    params = read_params().crop.model_copy(update={"min_confidence": 0.6})
    boxes, confidences, _ = detect.find_faces(open_photo(tmp_path / "noise.png"), params)
    assert (boxes.shape, confidences.shape) == ((0, 4), (0,))


def test_all_faces_are_found_the_largest_first(portraits: list[Path]) -> None:
    photo = open_photo(portraits[0])
    both = Image.new("RGB", (photo.width * 2, photo.height), "white")
    half = photo.resize((photo.width // 2, photo.height // 2))
    both.paste(half, (photo.width // 4, photo.height // 4))
    both.paste(photo, (photo.width, 0))
    boxes, _, _ = detect.find_faces(both, read_params().crop)
    assert len(boxes) == 2
    assert boxes[0, 0] > 0.5 > boxes[1, 0]
    assert boxes[0, 2] > 1.5 * boxes[1, 2]


def face_in(photo: Image.Image) -> Image.Image:
    """The part of a portrait around its face, whose box is the height of the result."""
    boxes, _, _ = detect.find_faces(photo, read_params().crop)
    left, top, width, height = boxes[0] * ([photo.width, photo.height] * 2)
    return photo.crop((round(left), round(top), round(left + width), round(top + height)))


@pytest.mark.parametrize("height", [65, 93, 140, 400])
def test_small_faces_in_a_large_photo_are_found(portraits: list[Path], height: int) -> None:
    """As small as a crop, in a photo of 12 megapixels, and each once."""
    photo = open_photo(portraits[0])
    scale = height / face_in(photo).height
    person = photo.resize((round(photo.width * scale), round(photo.height * scale)))
    scene = Image.new("RGB", (4000, 3000), "grey")
    places = [(x, y) for x in (100, 1500, 2900) for y in (100, 1700)]
    for place in places:
        scene.paste(person, place)
    boxes, _, turn = detect.find_faces(scene, read_params().crop)
    assert (len(boxes), turn) == (len(places), 0)
    np.testing.assert_allclose(boxes[:, 3] * 3000, height, rtol=0.4)


@pytest.mark.parametrize("turn", [90, 270])
@pytest.mark.parametrize("person", range(3))
def test_a_turned_face_is_found_and_cropped_upright(
    portraits: list[Path], person: int, turn: int
) -> None:
    """Two of the faces are also found as they lie, with less confidence."""
    params = read_params().crop
    upright = open_photo(portraits[person])
    turned = upright.rotate(turn, expand=True)  # counterclockwise
    (box, *_), _, found = detect.find_faces(turned, params)
    expected = cut(upright, detect.find_faces(upright, params).boxes[0], 0, params)
    assert found == turn
    difference = np.abs(cut(turned, box, found, params).astype(int) - expected)
    assert difference.mean() < 8, "the boxes differ by a pixel or two"


def test_a_mask_that_looks_like_a_face_upside_down_turns_no_photo() -> None:
    """The detector is surer of this one upside down."""
    params = read_params().crop
    photo = sample.draw_photo(sample.roster(3)[2], "mask1", seed=0)
    upright, upside_down = detect.find_faces(photo, params), photo.rotate(180)
    assert upright.turn == 0
    assert detect.find_faces(upside_down, params).confidences[0] > upright.confidences[0]


def test_how_a_turned_face_was_found_is_in_the_table(
    raw: Path, portraits: list[Path], run: Run, change: Change
) -> None:
    photo = raw / f"train/images/{PERSON}/normal.jpg"
    change("crop.side", 16)
    with Image.open(portraits[0]) as upright:
        upright.rotate(90, expand=True).save("turned.jpg")
    crop_with_face_in([str(photo)], Path("turned.jpg"), run)
    boxes = pd.read_csv("crop/train.csv")
    assert boxes["way"].value_counts().to_dict() == {"turned_90": 1, "centre": 20}
    metrics = json.loads(Path("crop/metrics.json").read_text())["train"]
    assert metrics["boxes"]["turned_90"] == 1
    assert metrics["detection_rate"] == pytest.approx(1 / 21, abs=1e-6)


def test_a_yunet_model_that_is_missing_bad_or_outside_the_dependency_is_an_error(
    cleaned: Path, run: Run, change: Change
) -> None:
    def error() -> str:
        return run(crop.main, "clean", "data/detectors", "crop", code=1).stderr

    model = Path("data/detectors/face_detection_yunet_2023mar.onnx")
    change("crop.detector", "yunet")
    assert f"crop.yunet_model: '{model}' is missing: download" in error()
    model.parent.mkdir(parents=True)
    model.write_bytes(b"no model")
    assert f"error: crop.yunet_model: {model} is not a YuNet model" in error()
    model.rename("model.onnx")
    model.symlink_to(Path("model.onnx").absolute())
    assert f"crop.yunet_model: {model} is outside data/detectors, where DVC would not" in error()
    change("crop.yunet_model", "model.onnx")
    assert "crop.yunet_model: model.onnx is outside data/detectors, where DVC would not" in error()
    assert not Path("crop/train").exists()


def test_a_photo_that_changed_after_the_stage_clean_is_an_error(cleaned: Path, run: Run) -> None:
    photo = Path(f"raw/train/images/{PERSON}/mask1.jpg")
    photo.write_text("text")
    error = run(crop.main, "clean", "data/detectors", "crop", code=1).stderr
    assert f"{photo} is not a JPEG or PNG, but the stage clean accepted it: run" in error
    photo.write_bytes(b"")
    error = run(crop.main, "clean", "data/detectors", "crop", code=1).stderr
    assert f"{photo} is empty, but the stage clean" in error
    photo.unlink()
    error = run(crop.main, "clean", "data/detectors", "crop", code=1).stderr
    assert f"error: {photo} is missing, but" in error
