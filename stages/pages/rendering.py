"""Pages: one file each, with all that they show inside, so that they open from disk, offline."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from PIL import Image

QUALITY = 60
"""Of the WebP images: 500 people's photos stay under 30 MB."""


def template(name: str) -> Template:
    """A template of this folder. In HTML, what it is filled with is text and never markup."""
    environment = Environment(
        loader=PackageLoader("stages", "pages"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(name: str, **content: Any) -> str:
    """A template of this folder, filled in."""
    return template(name).render(content)


def image_data(image: Image.Image) -> str:
    """An image as WebP in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
