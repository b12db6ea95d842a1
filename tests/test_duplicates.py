"""The same photo twice: found in spite of compression, scale, light and cut; and nothing else."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from stages import duplicates
from stages.faces.drawing import draw_circumstances, draw_portrait, draw_traits
from stages.photos.likeness import close_pairs, similarity, small_grey
from stages.photos.packed import Pixels, write_packed
from tests.conftest import Change, Run

SIDE = 64
MIDDLE = (72, 120, 312, 360)
"""Where the face is in a drawn portrait."""

Alter = Callable[[Image.Image], Image.Image]


def portrait(person: int) -> Image.Image:
    rng = np.random.default_rng(person)
    return draw_portrait(draw_traits("female", 40, rng), draw_circumstances("worn", rng), rng)


def crop(photo: Image.Image, box: tuple[int, int, int, int] = MIDDLE) -> Pixels:
    scale = photo.width / 384
    scaled = tuple(value * scale for value in box)
    resized = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=scaled)
    return np.asarray(resized)


def compressed(photo: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    photo.save(buffer, "jpeg", quality=40)
    return Image.open(buffer).convert("RGB")


COPIES: dict[str, Alter] = {
    "the same": lambda photo: photo,
    "compressed": compressed,
    "scaled": lambda photo: photo.resize((230, 307)),
    "brighter": lambda photo: ImageEnhance.Brightness(photo).enhance(1.15),
    "darker and grey": lambda photo: ImageEnhance.Brightness(photo.convert("L")).enhance(0.85),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_alike_however_it_was_saved(copy: str) -> None:
    first, second = crop(portrait(0)), crop(COPIES[copy](portrait(0)))
    assert similarity(small_grey(first), small_grey(second)) > 0.98


def test_a_copy_is_alike_where_its_face_box_is_a_little_off() -> None:
    first, second = crop(portrait(0)), crop(portrait(0), (66, 116, 318, 368))
    assert similarity(small_grey(first), small_grey(second)) > 0.975


def test_other_people_are_less_alike() -> None:
    faces = [small_grey(crop(portrait(person))) for person in range(12)]
    for place, face in enumerate(faces):
        assert all(similarity(face, other) < 0.975 for other in faces[:place])


def test_plain_surfaces_are_like_nothing() -> None:
    grey, white = np.full((SIDE, SIDE), 128, np.uint8), np.full((SIDE, SIDE), 255, np.uint8)
    assert similarity(grey, white) == -1
    assert similarity(small_grey(crop(portrait(0))), grey) == -1
    assert similarity(grey, grey) == 1


def test_close_pairs_differ_in_few_bits() -> None:
    hashes = np.array([0b0000, 0b0011, 0b0111, 1 << 63], dtype=np.uint64)
    assert list(close_pairs(hashes, 0)) == []
    assert list(close_pairs(hashes, 1)) == [(0, 3), (1, 2)]
    assert list(close_pairs(hashes, 2)) == [(0, 1), (0, 3), (1, 2)]


def test_the_stage_writes_pairs_across_people_within_one_and_to_the_evaluation(
    run: Run, change: Change
) -> None:
    photos = {
        ("001", "mask1.jpg"): crop(portrait(1)),
        ("001", "mask2.jpg"): crop(compressed(portrait(1))),
        ("001", "normal.jpg"): crop(portrait(2)),
        ("002", "mask1.jpg"): crop(portrait(3)),
        ("003", "mask1.jpg"): crop(COPIES["scaled"](portrait(3))),
    }
    evaluation = {"a.jpg": crop(portrait(4)), "b.jpg": crop(portrait(2))}
    write_packed(Path("crop/train.npy"), photos.values(), len(photos), SIDE)
    pd.DataFrame(photos.keys(), columns=["person", "photo"]).to_csv("crop/train.csv", index=False)
    write_packed(Path("crop/evaluation.npy"), evaluation.values(), len(evaluation), SIDE)
    pd.DataFrame({"photo": evaluation.keys()}).to_csv("crop/evaluation.csv", index=False)
    result = run(duplicates.main, "crop", "out")
    table = pd.read_csv("out/duplicates.csv", dtype=str, keep_default_na=False)
    assert set(table.drop(columns="similarity").itertuples(index=False, name=None)) == {
        ("001", "mask1.jpg", "001", "mask2.jpg"),
        ("001", "normal.jpg", "", "b.jpg"),
        ("002", "mask1.jpg", "003", "mask1.jpg"),
    }
    counts = {"within_a_person": 1, "across_people": 1, "in_training_and_evaluation": 1}
    assert json.loads(Path("out/metrics.json").read_text()) == counts
    assert "1 pairs across people, 1 within a person" in result.stdout


def test_photos_of_a_face_that_are_not_copies_are_left_alone() -> None:
    """Two photos of one person with the same mask, the light a little different."""
    photo = portrait(5)
    crops = [crop(photo), crop(ImageEnhance.Brightness(photo).enhance(1.2))]
    table = pd.DataFrame({"person": ["a", "a"], "photo": ["mask1.jpg", "mask2.jpg"]})
    knobs = duplicates.DuplicateParams(hash_distance=10, similarity=0.98)
    assert duplicates.find_duplicates(table, crops, knobs).empty
