"""Photos of any mode and orientation open as upright RGB; bad photos are rejected with a reason."""

import contextlib
import pickle
import subprocess
import sys
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from face_attributes.photos.opening import (
    MAX_MISSING,
    BadPhotoError,
    UnreadableError,
    missing_end,
    open_photo,
)
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


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_applied_as_pillow_does(orientation: int) -> None:
    image = Image.linear_gradient("L").resize((40, 30)).rotate(30)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = BytesIO(encoded(image, "png", exif=exif))
    expected = ImageOps.exif_transpose(Image.open(content)).convert("RGB")
    assert np.array_equal(open_photo(content), expected)


@pytest.mark.parametrize("file_format", ["png", "jpeg"])
@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"XX*\0\x08\0\0\0", b"II*\0\x08\0\0\0\xff\xff", b"noise" * 9]
)
def test_a_photo_with_damaged_exif_is_good(file_format: str, exif: bytes) -> None:
    image = Image.new("RGB", (40, 30))
    assert open_photo(BytesIO(encoded(image, file_format, exif=b"Exif\0\0" + exif))).size == (
        40,
        30,
    )


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


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    content = BytesIO()
    image.save(content, image_format, **options)
    return content.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 64, 3), dtype=np.uint8))

JPEGS = {
    "sequential": encoded(NOISE, "jpeg"),
    "progressive": encoded(NOISE, "jpeg", progressive=True),
    "with restart markers": encoded(NOISE, "jpeg", restart_marker_rows=1),
}


def test_a_truncated_png_is_rejected() -> None:
    content = encoded(NOISE, "png")
    with pytest.raises(BadPhotoError, match="cannot be decoded"):
        open_photo(BytesIO(content[: len(content) // 2]))


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("lost", [1, 2])
def test_a_jpeg_without_its_end_mark_has_all_its_pixels(kind: str, lost: int) -> None:
    photo = open_photo(BytesIO(JPEGS[kind][:-lost]))
    np.testing.assert_array_equal(photo, open_photo(BytesIO(JPEGS[kind])))
    assert missing_end(photo) == 0


@pytest.mark.parametrize("kind", ["sequential", "with restart markers"])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.1, 0.3, 0.6])
def test_how_much_of_a_jpeg_is_missing_decides(kind: str, share: float) -> None:
    """Rows are stored in blocks of 16, of which this photo has 32."""
    content = JPEGS[kind]
    cut = BytesIO(content[: round(len(content) * (1 - share))])
    if share < 0.03:
        photo = open_photo(cut)
        missing = missing_end(photo)
        assert missing is not None and 0 < missing <= MAX_MISSING
        whole = open_photo(BytesIO(content))
        kept = round(whole.height * (1 - missing)) - 1
        np.testing.assert_array_equal(np.asarray(photo)[:kept], np.asarray(whole)[:kept])
        assert missing_end(whole) is None
    elif share > 0.05:
        with pytest.raises(BadPhotoError, match="is truncated: [0-9]+% of its rows are missing"):
            open_photo(cut)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_progressive_jpeg_without_its_last_scans_is_rejected(share: float) -> None:
    """Its rows are all there, but blurred."""
    content = JPEGS["progressive"]
    with pytest.raises(BadPhotoError):
        open_photo(BytesIO(content[: round(len(content) * (1 - share))]))


def test_the_size_of_a_pngs_metadata_does_not_matter() -> None:
    """Pillow refuses more than 1 MB of one text or colour profile."""
    large = {"icc_profile": bytes(2_000_000)}
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 2_000_000, zip=True)
    for options in (large, {"pnginfo": text}):
        image = Image.new("RGBA", (40, 30), (10, 20, 30, 0))
        exif = Image.Exif()
        exif[0x0112] = 6
        photo = open_photo(BytesIO(encoded(image, "png", exif=exif, **options)))
        assert photo.size == (30, 40), "EXIF still applies"
        assert (np.asarray(photo) == 255).all(), "and transparency"


def test_a_damaged_header_is_not_called_another_format() -> None:
    with pytest.raises(BadPhotoError, match=r"cannot be decoded \(its header is damaged\)"):
        open_photo(BytesIO(JPEGS["sequential"][:4] + b"\0" * 100))


def test_a_disk_that_fails_is_not_the_photos_fault() -> None:
    memory = Path("/proc/self/mem")  # of which the first page cannot be read
    with pytest.raises(UnreadableError) as raised:
        open_photo(memory)
    error = pickle.loads(pickle.dumps(raised.value))  # as it comes from a worker
    assert str(error).startswith(f"{memory} cannot be opened (Input/output error): ")
    with pytest.raises(FileNotFoundError):
        open_photo(Path("nowhere.jpg"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_too_little_memory_is_not_the_photos_fault(
    image_format: str, options: dict[str, bool], tmp_path: Path
) -> None:
    """Not even where the decoder calls the file broken, as libjpeg does."""
    path = tmp_path / "large.jpg"
    Image.new("RGB", (6000, 6000)).save(path, image_format, **options)
    code = f"""
import resource, psutil
from pathlib import Path
from face_attributes.photos.opening import *
limit = psutil.Process().memory_info().vms + {{}} * 10**6
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    open_photo(Path({str(path)!r}))
except (BadPhotoError, UnreadableError) as error:
    print(type(error).__name__, error)
"""
    for megabytes in (20, 150, 200, 300):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("{}", str(megabytes))],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        expected = f"UnreadableError {path} needs more memory than there is: "
        assert done.stdout == "" or done.stdout.startswith(expected)
        assert megabytes > 20 or done.stdout


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


def test_a_side_may_not_be_longer_than_a_jpegs() -> None:
    """Each row of a PNG one pixel wide takes Pillow 40 times what its pixel does."""
    with pytest.raises(BadPhotoError, match="has 1 x 65501 pixels, more than 65500 on one side"):
        open_photo(BytesIO(encoded(Image.new("RGB", (1, 65_501)), "png")))
    assert open_photo(BytesIO(encoded(Image.new("RGB", (65_500, 1)), "png"))).width == 65_500


def test_importing_the_module_changes_nothing_in_pillow_or_warnings() -> None:
    code = (
        "import warnings, numpy; from PIL import Image; "
        "before = Image.MAX_IMAGE_PIXELS, list(warnings.filters); "
        "import face_attributes.photos.opening; "
        "assert (Image.MAX_IMAGE_PIXELS, warnings.filters) == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
