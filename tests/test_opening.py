"""Photos of any mode and orientation open as upright RGB; bad photos are rejected with a reason."""

import contextlib
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from face_attributes.photos.opening import BadPhotoError, open_photo
from tests.conftest import ROOT

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


def test_transparent_areas_become_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(open_photo(tmp_path / "clear.png")) == 255).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 30), "black")
    image.paste("white", (0, 0, 40, 10))  # white at the top ...
    exif = Image.Exif()
    exif[0x0112] = 6  # ... which the camera says is the right
    image.save(tmp_path / "turned.jpg", exif=exif)
    upright = open_photo(tmp_path / "turned.jpg")
    assert upright.size == (30, 40)
    assert np.asarray(upright)[:, -5:].mean() > 200 > np.asarray(upright)[:, :15].mean()


def test_the_content_decides_the_format_not_the_suffix(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.JPG", format="png")
    assert open_photo(tmp_path / "photo.JPG").size == (4, 4)
    Image.new("RGB", (4, 4)).save(tmp_path / "animation.png", format="gif")
    with pytest.raises(BadPhotoError, match="is not a JPEG or PNG"):
        open_photo(tmp_path / "animation.png")


def test_an_empty_or_foreign_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(BadPhotoError, match="is empty"):
        open_photo(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(BadPhotoError, match="is not a JPEG or PNG"):
        open_photo(tmp_path / "text.jpg")


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_a_truncated_photo_is_rejected(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = BytesIO()
    Image.fromarray(noise).save(whole, image_format)
    half = BytesIO(whole.getvalue()[: len(whole.getvalue()) // 2])
    with pytest.raises(BadPhotoError, match="cannot be decoded"):
        open_photo(half)


def test_any_damage_is_rejected_or_harmless_and_never_warns() -> None:
    """Random bytes of a photo with EXIF are changed; it opens or is rejected."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "a face", {0x9003: "2020:01:01 00:00:00"}
    whole = BytesIO()
    Image.new("RGB", (16, 12), "red").save(whole, "jpeg", exif=exif)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(action="error"):
        for _ in range(3000):
            damaged = bytearray(whole.getvalue())
            for position in rng.integers(0, 200, 3):
                damaged[position] = rng.integers(256)
            with contextlib.suppress(BadPhotoError):
                assert open_photo(BytesIO(damaged), 10**6).mode == "RGB"


def test_a_decompression_bomb_is_rejected_before_decoding(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit plays no part
        Image.new("1", (6000, 5000)).save(tmp_path / "bomb.png")
        with pytest.raises(BadPhotoError, match="6000 x 5000 pixels, more than 1000000"):
            open_photo(tmp_path / "bomb.png", max_pixels=1_000_000)


def test_importing_the_module_changes_nothing_in_pillow_or_warnings() -> None:
    code = (
        "import warnings, numpy; from PIL import Image; "
        "before = Image.MAX_IMAGE_PIXELS, list(warnings.filters); "
        "import face_attributes.photos.opening; "
        "assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
