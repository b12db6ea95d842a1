"""Opening a photo that nobody has checked: any mode, any orientation, never a bomb."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Limits are checked here, on every photo; Pillow's own would warn at one size and raise at another.
Image.MAX_IMAGE_PIXELS = None
# Of a damaged photo the table of rejected ones tells; of odd EXIF in a good one nobody need know.
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")

FORMATS = ("JPEG", "PNG")
SUFFIXES = (".jpg", ".jpeg", ".png")


class BadPhotoError(Exception):
    """A photo that cannot be used; the message is the reason."""


def open_photo(source: Path | BytesIO, max_pixels: int | None = None) -> Image.Image:
    """Open a JPEG or PNG as upright 8-bit RGB; what is transparent becomes white.

    Args:
        source: a file, or what is in one.

    Raises:
        BadPhotoError: if it is empty, truncated, no JPEG or PNG, or has more than `max_pixels`
            pixels, which is checked before any is decoded (None: no limit, for photos that were
            checked before).
    """
    size = source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes
    if size == 0:
        raise BadPhotoError("is empty")
    try:
        image = Image.open(source, formats=FORMATS)
    except PermissionError:
        raise
    except Exception:  # as below
        raise BadPhotoError("is no JPEG or PNG") from None
    with image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise BadPhotoError(
                f"has {image.width} x {image.height} pixels, more than {max_pixels}"
            )
        try:
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
        except Exception as error:  # a damaged file brings out all kinds in Pillow
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
