"""Copies are found despite compression, scaling, brightness, cropping, mirroring and turning; other
photos are not."""

import io
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageOps

from face_attributes.faces.cut import cut
from face_attributes.faces.drawing import draw_portrait, random_circumstances, random_traits
from face_attributes.params import CropParams, DuplicateParams
from face_attributes.photos.packed import Pixels, write_packed
from stages import duplicates
from stages.duplicates import (
    ORIENTATIONS,
    close_pairs,
    find_duplicates,
    orient,
    oriented_similarity,
    similarity,
    small_grey,
)
from stages.folds import group_people
from tests.conftest import Run

SIDE = 64
SHIPPED = DuplicateParams(hash_distance=10, similarity=0.98)
"""The values of params.yaml."""
FACE_AREA = (72, 120, 312, 360)
"""Left, top, right, bottom of the face in a drawn portrait."""

Edit = Callable[[Image.Image], Image.Image]


@cache
def portrait(person: int) -> Image.Image:
    rng = np.random.default_rng(person)
    return draw_portrait(random_traits("female", 40, rng), random_circumstances("worn", rng), rng)


def crop(photo: Image.Image, area: tuple[int, int, int, int] = FACE_AREA) -> Pixels:
    scale = photo.width / 384
    box = tuple(value * scale for value in area)
    return np.asarray(photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))


def compress(photo: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    photo.save(buffer, "jpeg", quality=40)
    return Image.open(buffer).convert("RGB")


EDITS: dict[str, Edit] = {
    "none": lambda photo: photo,
    "compressed": compress,
    "scaled": lambda photo: photo.resize((230, 307)),
    "brighter": lambda photo: ImageEnhance.Brightness(photo).enhance(1.15),
    "darker and grey": lambda photo: ImageEnhance.Brightness(photo.convert("L")).enhance(0.85),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_copy_is_similar(edit: str) -> None:
    first, second = crop(portrait(0)), crop(EDITS[edit](portrait(0)))
    assert similarity(small_grey(first), small_grey(second)) > 0.98


def test_a_copy_with_a_slightly_different_face_box_is_similar() -> None:
    first, second = crop(portrait(0)), crop(portrait(0), (66, 116, 318, 368))
    assert similarity(small_grey(first), small_grey(second)) > 0.975


def test_different_people_are_less_similar() -> None:
    faces = [small_grey(crop(portrait(person))) for person in range(12)]
    for index, face in enumerate(faces):
        assert all(similarity(face, other) < 0.975 for other in faces[:index])


def test_a_uniform_image_is_similar_only_to_itself() -> None:
    grey, white = np.full((SIDE, SIDE), 128, np.uint8), np.full((SIDE, SIDE), 255, np.uint8)
    assert similarity(grey, white) == -1
    assert similarity(small_grey(crop(portrait(0))), grey) == -1
    assert similarity(grey, grey) == 1


def test_close_pairs_differ_in_few_bits() -> None:
    hashes = np.full((4, len(ORIENTATIONS)), 0x00FFFF00, dtype=np.uint64)
    hashes[:, 0] = [0b0000, 0b0011, 0b0111, 1 << 63]
    assert list(close_pairs(hashes, 0)) == []
    assert list(close_pairs(hashes, 1)) == [(0, 3, "same"), (1, 2, "same")]
    assert list(close_pairs(hashes, 2)) == [(0, 1, "same"), (0, 3, "same"), (1, 2, "same")]


def test_close_pairs_differ_in_slightly_more_bits_if_mirrored_or_turned() -> None:
    hashes = np.full((2, len(ORIENTATIONS)), 0x00FFFF00, dtype=np.uint64)
    hashes[:, 0] = [1 << 63, 0]
    hashes[0, list(ORIENTATIONS).index("mirrored")] = 0b0111
    assert list(close_pairs(hashes, 0)) == []
    assert list(close_pairs(hashes, 1)) == [(0, 1, "same"), (0, 1, "mirrored")]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("edit", ["none", "compressed", "scaled", "brighter"])
def test_mirrored_and_turned_copies_are_found_and_their_people_kept_together(
    orientation: str, edit: str
) -> None:
    """A side light, as in most photos, makes the face differ from its mirror image."""
    light = np.linspace(0.6, 1.0, SIDE)[:, None]
    first = (crop(portrait(0)) * light).astype(np.uint8)
    copy = orient((crop(EDITS[edit](portrait(0))) * light).astype(np.uint8), orientation)
    crops = [first, copy, crop(portrait(2))]
    table = pd.DataFrame({"person": ["a", "b", "c"], "photo": ["1.jpg", "2.jpg", "3.jpg"]})
    found = find_duplicates(table, crops, SHIPPED)
    assert found["orientation"].tolist() == [orientation]
    assert found["similarity"].item() >= 0.98
    groups = group_people(table["person"], found).tolist()
    assert groups[0] == groups[1] != groups[2]


def test_a_mirrored_copy_with_a_slightly_different_face_box_is_found() -> None:
    """The detector places the box of a mirrored photo a little differently."""
    crops = [crop(portrait(0)), crop(ImageOps.mirror(portrait(0)), (70, 118, 314, 362))]
    table = pd.DataFrame({"person": ["a", "b"], "photo": "mask1.jpg"})
    assert find_duplicates(table, crops, SHIPPED)["orientation"].tolist() == ["mirrored"]


def test_photos_turned_on_disk_are_found_whether_or_not_the_detector_turns_them() -> None:
    params = CropParams(detector="none", yunet_model="", min_confidence=0.4, margin=1.0, side=SIDE)
    whole = np.array([0.0, 0.0, 1.0, 1.0])
    photo = portrait(0)
    upright = cut(photo, whole, 0, params)
    turned = photo.rotate(-90, expand=True)
    unnoticed, noticed = cut(turned, whole, 0, params), cut(turned, whole, 270, params)
    for copy, orientation in ((unnoticed, "turned_90"), (noticed, "same")):
        table = pd.DataFrame({"person": ["a", "b"], "photo": "mask1.jpg"})
        found = find_duplicates(table, [upright, copy], SHIPPED)
        assert found["orientation"].tolist() == [orientation]


def test_drawn_people_are_not_copies_of_each_other() -> None:
    crops = [crop(portrait(person)) for person in range(12)]
    table = pd.DataFrame({"person": [f"{index:02}" for index in range(12)], "photo": "mask1.jpg"})
    assert find_duplicates(table, crops, SHIPPED).empty


def test_faces_that_mirror_each_other_in_grey_alone_are_not_copies() -> None:
    """Two people with nearly symmetric faces and different colours."""
    face = crop(portrait(0))
    other = (orient(face, "mirrored") * np.array([0.6, 1.0, 1.3])).clip(0, 255).astype(np.uint8)
    assert oriented_similarity(small_grey(face), small_grey(other), "mirrored") > 0.98
    table = pd.DataFrame({"person": ["a", "b"], "photo": "mask1.jpg"})
    assert find_duplicates(table, [face, other], SHIPPED).empty


def test_a_pair_is_listed_once_in_its_best_orientation() -> None:
    """A perfectly symmetric face equals its mirror image."""
    face = crop(portrait(0))
    symmetric = ((face.astype(int) + face[:, ::-1]) // 2).astype(np.uint8)
    table = pd.DataFrame({"person": ["a", "b"], "photo": "mask1.jpg"})
    found = find_duplicates(table, [symmetric, symmetric], SHIPPED)
    assert found["orientation"].tolist() == ["same"]


def test_different_photos_of_one_face_are_not_copies() -> None:
    """Two photos of one person with the same mask in slightly different light."""
    photo = portrait(5)
    crops = [crop(photo), crop(ImageEnhance.Brightness(photo).enhance(1.2))]
    table = pd.DataFrame({"person": ["a", "a"], "photo": ["mask1.jpg", "mask2.jpg"]})
    assert find_duplicates(table, crops, SHIPPED).empty


def test_the_stage_finds_copies_within_a_person_across_people_and_in_evaluation(run: Run) -> None:
    photos = {
        ("001", "mask1.jpg"): crop(portrait(1)),
        ("001", "mask2.jpg"): crop(compress(portrait(1))),
        ("001", "normal.jpg"): crop(portrait(2)),
        ("002", "mask1.jpg"): crop(portrait(3)),
        ("003", "mask1.jpg"): crop(EDITS["scaled"](portrait(3))),
    }
    evaluation = {"a.jpg": crop(portrait(4)), "b.jpg": crop(ImageOps.mirror(portrait(2)))}
    write_packed(Path("crop/train"), photos.values(), len(photos), SIDE)
    pd.DataFrame(photos.keys(), columns=["person", "photo"]).to_csv("crop/train.csv", index=False)
    write_packed(Path("crop/evaluation"), evaluation.values(), len(evaluation), SIDE)
    pd.DataFrame({"photo": evaluation.keys()}).to_csv("crop/evaluation.csv", index=False)
    result = run(duplicates.main, "crop", "out")
    table = pd.read_csv("out/duplicates.csv", dtype=str, keep_default_na=False)
    assert set(table.drop(columns="similarity").itertuples(index=False, name=None)) == {
        ("001", "mask1.jpg", "001", "mask2.jpg", "same"),
        ("001", "normal.jpg", "", "b.jpg", "mirrored"),
        ("002", "mask1.jpg", "003", "mask1.jpg", "same"),
    }
    counts = {"within_a_person": 1, "across_people": 1, "in_training_and_evaluation": 1}
    assert json.loads(Path("out/metrics.json").read_text()) == counts
    assert "1 pairs across people, 1 within a person" in result.stdout
