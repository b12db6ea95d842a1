"""Open untrusted photos safely: any mode, any orientation, no decompression bombs.

A fault of the content is a `BadPhotoError`: the photo is rejected. A fault of the machine, such as
a failing disk or too little memory, is an `UnreadableError`, which stops a stage: the photo may be
good.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from face_attributes.errors import UserError
from face_attributes.photos.repair import SIGNATURES, repair

FORMATS = ("JPEG", "PNG")
SUFFIXES = (".jpg", ".jpeg", ".png")

FORMAT_BY_SUFFIX = dict.fromkeys(SUFFIXES[:2], "JPEG") | {
    ".png": "PNG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
}
"""Common photo formats. The pipeline itself takes only FORMATS, on every machine alike."""
NEEDED_PACKAGE = {"HEIF": "pillow-heif"}
"""Packages that this project does not install, by the format that they read."""

MAX_SIDE = 65_500
"""Maximum width or height, in pixels: libjpeg's. A PNG one pixel wide and as many high as
`max_pixels` allows would take gigabytes: Pillow stores a pointer and padding for each row."""
LOWER_MAX_PIXELS = "lower clean.max_pixels"
"""What helps where photos take more memory than there is."""

MAX_BYTES = 10**9
"""Maximum size of a file: it is read at once."""
MAX_MISSING = 0.05
"""Maximum share of a JPEG's rows that may be missing at its end."""

TRANSPOSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a photo upright, by the orientation in its EXIF."""

MISSING_END = "missing end"
"""Key of an opened photo's `info`."""


@cache
def readable_formats() -> tuple[str, ...]:
    """Return the formats of FORMAT_BY_SUFFIX that this installation reads."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in dict.fromkeys(FORMAT_BY_SUFFIX.values()) if name in Image.OPEN)


class BadPhotoError(Exception):
    """A photo that cannot be used; the message is the reason."""


class UnreadableError(UserError):
    """A photo that this machine cannot read now, whatever its content: its name, the reason."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"{self.file} {self.reason}: the photo may be good; remedy this, then run again"


@contextmanager
def unreadable_explained(source: Path | BytesIO) -> Iterator[None]:
    """Name the photo when the system cannot read it, or memory runs out.

    Raises:
        UnreadableError: in these cases.
        FileNotFoundError: as it is: whether a photo may be missing depends on who asks.
    """
    name = str(source) if isinstance(source, Path) else "the photo"
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(name, f"cannot be opened ({error.strerror or error})") from None
    except MemoryError:
        raise UnreadableError(name, "needs more memory than there is") from None


def open_photo(
    source: Path | BytesIO, max_pixels: int | None = None, formats: tuple[str, ...] = FORMATS
) -> Image.Image:
    """Open a photo as upright 8-bit RGB; transparent areas become white.

    A JPEG of which at most MAX_MISSING is missing is used: `missing_end` says how much is.

    Args:
        source: a file, or the content of one.
        max_pixels: maximum number of pixels, checked before decoding. None: no limit, for photos
            that were checked before.
        formats: Pillow's names of the formats to accept, whatever the suffix.

    Raises:
        BadPhotoError: if the photo is empty, truncated, too large, or of another format.
        UnreadableError: if the file cannot be read, or there is not enough memory.
        FileNotFoundError: if the file is missing.
    """
    with unreadable_explained(source):
        # All at once: from here on, every complaint is about the content, except for memory.
        content = read_photo(source) if isinstance(source, Path) else source.getvalue()
        # Damaged photos are listed in rejected.csv; odd EXIF is not worth a warning.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            return _decode(content, max_pixels, formats)


def read_photo(path: Path) -> bytes:
    """Read a photo's file.

    Raises:
        BadPhotoError: if it is too large.
        OSError, MemoryError: if it cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise BadPhotoError(f"has more than {MAX_BYTES // 10**6} MB")
    return path.read_bytes()


def missing_end(photo: Image.Image) -> float | None:
    """Return the share of rows missing in an opened photo's file, or None if its end is there."""
    share: float | None = photo.info.get(MISSING_END)
    return share


def _decode(content: bytes, max_pixels: int | None, formats: tuple[str, ...]) -> Image.Image:
    """Decode a photo, mended if that is needed and possible."""
    if not content:
        raise BadPhotoError("is empty")
    missing = None
    try:
        image = _load(content, max_pixels, formats)
    except (BadPhotoError, MemoryError):
        raise
    except UnidentifiedImageError:
        if content.startswith(SIGNATURES):
            raise BadPhotoError("cannot be decoded (its header is damaged)") from None
        raise BadPhotoError(f"is not a {', '.join(formats[:-1])} or {formats[-1]}") from None
    except Exception as error:  # damaged files raise all kinds of exceptions in Pillow
        repaired = repair(content)
        if repaired is None:
            raise _undecodable(error) from None
        content, missing = repaired
        if missing is not None and missing > MAX_MISSING:
            raise BadPhotoError(f"is truncated: {missing:.0%} of its rows are missing") from None
        try:
            image = _load(content, max_pixels, formats)
        except (BadPhotoError, MemoryError):
            raise
        except Exception as still:
            raise _undecodable(still) from None
    try:
        photo = _to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:
        raise _undecodable(error) from None
    photo.info[MISSING_END] = missing
    return photo


def _undecodable(error: Exception) -> BadPhotoError:
    return BadPhotoError(f"cannot be decoded ({' '.join(str(error).split())})")


def _load(content: bytes, max_pixels: int | None, formats: tuple[str, ...]) -> Image.Image:
    """Read the header, check the size, then decode, with Pillow's own exceptions."""
    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit would warn at one size and raise at another
    image = Image.open(BytesIO(content), formats=formats)
    width, height = image.size
    if max_pixels is not None and width * height > max_pixels:
        raise BadPhotoError(f"has {width} x {height} pixels, more than {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise BadPhotoError(f"has {width} x {height} pixels, more than {MAX_SIDE} on one side")
    try:
        image.load()
    except Exception as error:
        if "out of memory" in str(error):
            raise MemoryError from None
        # libjpeg reports a lack of memory as a broken file. Its buffers for a progressive JPEG
        # take 6 bytes a pixel: this asks for as much, without using it.
        bytearray(8 * width * height)
        raise
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turn and mirror a photo as its EXIF or XMP says, of which damaged ones say nothing.

    `ImageOps.exif_transpose` also rewrites the EXIF, which fails for odd values in it.
    """
    try:
        method = TRANSPOSE_OF_ORIENTATION.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # of all kinds, as above
        method = None
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit grey: Pillow would clip at 255 instead of scaling.
        grey = np.asarray(image, dtype=np.uint32) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
