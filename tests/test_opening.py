"""A photo of any mode and orientation opens as upright RGB; a bad one says what is wrong."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.photos.opening import BadPhotoError, open_photo

GREY = 136


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_every_mode_becomes_rgb_of_the_same_brightness(mode: str, tmp_path: Path) -> None:
    grey = Image.new("L", (40, 30), 255 if mode == "1" else GREY)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert(mode)
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    image.save(path)
    opened = open_photo(path)
    assert opened.mode == "RGB"
    assert opened.size == (40, 30)
    assert abs(np.asarray(opened).mean() - np.asarray(grey).mean()) < 2


def test_what_is_transparent_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(open_photo(tmp_path / "clear.png")) == 255).all()


def test_a_turned_photo_is_set_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 30), "black")
    image.paste("white", (0, 0, 40, 10))  # white at the top ...
    exif = Image.Exif()
    exif[0x0112] = 6  # ... which the camera says is the right
    image.save(tmp_path / "turned.jpg", exif=exif)
    upright = open_photo(tmp_path / "turned.jpg")
    assert upright.size == (30, 40)
    assert np.asarray(upright)[:, -5:].mean() > 200 > np.asarray(upright)[:, :15].mean()


def test_the_ending_does_not_matter_the_content_does(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.JPG", format="png")
    assert open_photo(tmp_path / "photo.JPG").size == (4, 4)
    Image.new("RGB", (4, 4)).save(tmp_path / "moving.png", format="gif")
    with pytest.raises(BadPhotoError, match="no JPEG or PNG"):
        open_photo(tmp_path / "moving.png")


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_a_truncated_photo_is_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{ending}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadPhotoError, match="cannot be decoded"):
        open_photo(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_damaged_photo_is_refused_whatever_the_damage(tmp_path: Path) -> None:
    """Single bytes of a photo with EXIF, changed at random: it opens, or is refused."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "a face", {0x9003: "2020:01:01 00:00:00"}
    Image.new("RGB", (16, 12), "red").save(tmp_path / "whole.jpg", exif=exif)
    whole = (tmp_path / "whole.jpg").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(3000):
        damaged = bytearray(whole)
        for place in rng.integers(0, 200, 3):
            damaged[place] = rng.integers(256)
        (tmp_path / "damaged.jpg").write_bytes(damaged)
        with contextlib.suppress(BadPhotoError):
            assert open_photo(tmp_path / "damaged.jpg", 10**6).mode == "RGB"


def test_an_empty_or_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(BadPhotoError, match="is empty"):
        open_photo(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(BadPhotoError, match="no JPEG or PNG"):
        open_photo(tmp_path / "text.jpg")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (30000, 30000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(BadPhotoError, match="30000 x 30000 pixels, more than 1000000"):
        open_photo(tmp_path / "bomb.png", max_pixels=1_000_000)
