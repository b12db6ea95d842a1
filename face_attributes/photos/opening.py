"""Open untrusted photos safely: any mode, any orientation, no decompression bombs."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG")
SUFFIXES = (".jpg", ".jpeg", ".png")


class BadPhotoError(Exception):
    """A photo that cannot be used; the message is the reason."""


def open_photo(source: Path | BytesIO, max_pixels: int | None = None) -> Image.Image:
    """Open a JPEG or PNG as upright 8-bit RGB; transparent areas become white.

    Args:
        source: a file, or the content of one.
        max_pixels: maximum number of pixels, checked before decoding. None: no limit, for photos
            that were checked before.

    Raises:
        BadPhotoError: if the photo is empty, truncated, not a JPEG or PNG, or too large.
    """
    size = source.stat().st_size if isinstance(source, Path) else source.getbuffer().nbytes
    if size == 0:
        raise BadPhotoError("is empty")
    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit would warn at one size and raise at another
    # Damaged photos are listed in rejected.csv; odd EXIF is not worth a warning.
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        try:
            image = Image.open(source, formats=FORMATS)
        except PermissionError:
            raise
        except Exception:  # damaged files raise all kinds of exceptions in Pillow
            raise BadPhotoError("is not a JPEG or PNG") from None
        with image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise BadPhotoError(
                    f"has {image.width} x {image.height} pixels, more than {max_pixels}"
                )
            try:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
            except Exception as error:
                raise BadPhotoError(f"cannot be decoded ({error})") from None


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
