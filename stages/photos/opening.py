"""Opening a photo that nobody has checked: any mode, any orientation, never a bomb."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Limits are checked here, on every photo; Pillow's own would warn at one size and raise at another.
Image.MAX_IMAGE_PIXELS = None

FORMATS = ("JPEG", "PNG")
SUFFIXES = (".jpg", ".jpeg", ".png")
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)


class BadPhotoError(Exception):
    """A photo that cannot be used; the message is the reason."""


def open_photo(path: Path, max_pixels: int | None = None) -> Image.Image:
    """Open a JPEG or PNG as upright 8-bit RGB; what is transparent becomes white.

    Raises:
        BadPhotoError: if the file is empty, truncated, no JPEG or PNG, or has more than
            `max_pixels` pixels, which is checked before any is decoded (None: no limit, for
            photos that were checked before).
    """
    if path.stat().st_size == 0:
        raise BadPhotoError("is empty")
    try:
        image = Image.open(path, formats=FORMATS)
    except DECODING_ERRORS:
        raise BadPhotoError("is no JPEG or PNG") from None
    with image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise BadPhotoError(
                f"has {image.width} x {image.height} pixels, more than {max_pixels}"
            )
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _rgb(upright)
        except DECODING_ERRORS as error:
            raise BadPhotoError(f"cannot be decoded ({error})") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # 16-bit grey: Pillow would clip at 255 instead of scaling.
        grey = np.asarray(image, dtype=np.uint32) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
