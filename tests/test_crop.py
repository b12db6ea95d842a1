"""One crop for training and evaluation, and the chain of what stands in for a face not found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages import clean, crop, sample
from stages.faces import detect
from stages.params import read_params
from stages.photos.opening import open_photo
from tests.conftest import Change, Run, save_photo


@pytest.fixture(scope="module")
def portrait(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn face without a mask."""
    folder = tmp_path_factory.mktemp("faces") / "one"
    sample.draw_person(sample.roster(1)[0], folder, seed=0)
    return folder / "normal.jpg"


@pytest.fixture
def cleaned(raw: Path, run: Run, change: Change) -> Path:
    change("crop.side", 16)
    run(clean.main, "raw/train", "raw/eval", "raw/corrections.csv", "clean")
    return raw


def test_evaluation_photos_are_cut_as_training_photos_are(
    raw: Path, portrait: Path, run: Run, change: Change
) -> None:
    """The same photo in both sets gives the same box and the same pixels."""
    person = "000001_female_Any_25"
    for path in [raw / "train/images" / person / "normal.jpg", raw / "eval/images/a.jpg"]:
        shutil.copy(portrait, path)
    change("crop.side", 32)
    run(clean.main, "raw/train", "raw/eval", "raw/corrections.csv", "clean")
    run(crop.main, "clean", "data/detectors", "crop")
    train, evaluation = (pd.read_csv(f"crop/{name}.csv") for name in ("train", "evaluation"))
    here = train.index[(train["person"] == person) & (train["photo"] == "normal.jpg")][0]
    there = evaluation.index[evaluation["photo"] == "a.jpg"][0]
    same = ["left", "top", "width", "height", "way", "confidence"]
    assert train.loc[here, "way"] == "detected"
    assert train.loc[here, same].to_list() == evaluation.loc[there, same].to_list()
    assert (np.load("crop/train.npy")[here] == np.load("crop/evaluation.npy")[there]).all()


def test_what_is_packed_is_what_the_tables_say(cleaned: Path, run: Run, change: Change) -> None:
    change("crop.detector", "none")
    run(crop.main, "clean", "data/detectors", "crop")
    pixels = np.load("crop/train.npy", mmap_mode="r")
    assert (pixels.shape, pixels.dtype) == ((21, 16, 16, 3), np.uint8)
    assert np.load("crop/evaluation.npy").shape == (2, 16, 16, 3)
    photos, boxes = pd.read_csv("clean/photos.csv"), pd.read_csv("crop/train.csv")
    assert boxes[["person", "photo"]].equals(photos[["person", "photo"]])
    middle = open_photo(Path(photos["path"][3])).crop((0, 8, 48, 56)).resize((16, 16))
    assert np.abs(pixels[3].astype(int) - np.asarray(middle).astype(int)).mean() < 12
    metrics = json.loads(Path("crop/metrics.json").read_text())
    assert metrics["train"]["boxes"] == {"detected": 0, "person": 0, "all": 0, "centre": 21}
    assert metrics["by_mask"].keys() == {"worn", "incorrect", "not_worn"}
    assert json.loads(Path("crop/fallback.json").read_text()) == {"box": None}
    with Image.open("crop/contact_sheet.png") as sheet:
        assert sheet.width > 400


def test_a_face_not_found_takes_the_box_of_the_person_then_of_all(
    raw: Path, portrait: Path, run: Run, change: Change
) -> None:
    shutil.copy(portrait, raw / "train/images/000001_female_Any_25/normal.jpg")
    change("crop.side", 16)
    run(clean.main, "raw/train", "raw/eval", "raw/corrections.csv", "clean")
    run(crop.main, "clean", "data/detectors", "crop")
    boxes = pd.read_csv("crop/train.csv", index_col="person")
    assert boxes.loc["000001_female_Any_25", "way"].value_counts().to_dict() == {
        "person": 6,
        "detected": 1,
    }
    assert set(boxes.loc["3_male_Any_60", "way"]) == {"all"}
    assert set(pd.read_csv("crop/evaluation.csv")["way"]) == {"all"}
    fallback = json.loads(Path("crop/fallback.json").read_text())["box"]
    stood_in = pd.read_csv("crop/evaluation.csv")[["left", "top", "width", "height"]]
    assert stood_in.iloc[0].to_list() == pytest.approx(fallback, abs=1e-4)


def test_without_a_face_in_training_evaluation_takes_the_middle(
    raw: Path, portrait: Path, run: Run, change: Change
) -> None:
    shutil.copy(portrait, raw / "eval/images/a.jpg")
    change("crop.side", 16)
    run(clean.main, "raw/train", "raw/eval", "raw/corrections.csv", "clean")
    run(crop.main, "clean", "data/detectors", "crop")
    ways = pd.read_csv("crop/evaluation.csv", index_col="photo")["way"].to_dict()
    assert ways == {"a.jpg": "detected", "b.jpg": "centre"}


def test_greyscale_crops_have_three_equal_channels(cleaned: Path, run: Run, change: Change) -> None:
    change("crop.detector", "none")
    change("crop.greyscale", True)
    run(crop.main, "clean", "data/detectors", "crop")
    pixels = np.load("crop/train.npy")
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("detector", ["yuface", "haar"])
def test_detectors_find_a_face_where_it_is(portrait: Path, detector: str) -> None:
    params = read_params().crop.model_copy(update={"detector": detector, "min_confidence": 0.5})
    (box, *_), (confidence, *_) = detect.find_faces(open_photo(portrait), params)
    left, top, width, height = box
    assert 0 < left + width / 2 < 1
    assert abs(top + height / 2 - 0.5) < 0.25
    assert 0.2 < width < 1
    assert confidence >= 0.5


def test_no_face_is_found_where_there_is_none(tmp_path: Path) -> None:
    save_photo(tmp_path / "noise.png")
    params = read_params().crop.model_copy(update={"min_confidence": 0.6})
    boxes, confidences = detect.find_faces(open_photo(tmp_path / "noise.png"), params)
    assert (boxes.shape, confidences.shape) == ((0, 4), (0,))


def test_several_faces_are_all_found_the_largest_first(portrait: Path) -> None:
    photo = open_photo(portrait)
    both = Image.new("RGB", (photo.width * 2, photo.height), "white")
    half = photo.resize((photo.width // 2, photo.height // 2))
    both.paste(half, (photo.width // 4, photo.height // 4))
    both.paste(photo, (photo.width, 0))
    boxes, _ = detect.find_faces(both, read_params().crop)
    assert len(boxes) == 2
    assert boxes[0, 0] > 0.5 > boxes[1, 0]
    assert boxes[0, 2] > 1.5 * boxes[1, 2]


def test_yunet_without_its_model_says_what_to_do(cleaned: Path, run: Run, change: Change) -> None:
    change("crop.detector", "yunet")
    result = run(crop.main, "clean", "data/detectors", "crop", code=1)
    assert "crop.yunet_model: there is no file" in result.output
    Path("model.onnx").write_bytes(b"no model")
    change("crop.yunet_model", "model.onnx")
    output = run(crop.main, "clean", "data/detectors", "crop", code=1).output
    assert "warning: crop.yunet_model: model.onnx is outside of data/detectors" in output
    assert (
        "is not a YuNet model" in run(crop.main, "clean", "data/detectors", "crop", code=1).output
    )
    assert not Path("crop/train.npy").exists()


def test_a_photo_that_has_changed_since_it_was_checked_is_named(cleaned: Path, run: Run) -> None:
    photo = Path("raw/train/images/000001_female_Any_25/mask1.jpg")
    photo.write_text("no photo")
    assert f"error: {photo} is no JPEG or PNG, but was fine for the stage clean" in (
        run(crop.main, "clean", "data/detectors", "crop", code=1).stderr
    )
    photo.unlink()
    assert f"error: {photo} is gone" in (
        run(crop.main, "clean", "data/detectors", "crop", code=1).stderr
    )
