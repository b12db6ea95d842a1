"""Render pages as single files without external resources, which open from disk, offline."""

import base64
import io
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template, select_autoescape
from PIL import Image

QUALITY = 60
"""WebP quality: the photos of 500 people stay under 30 MB."""


def template(name: str) -> Template:
    """Load a template from this folder. HTML templates escape their content."""
    environment = Environment(
        loader=PackageLoader("face_attributes", "pages"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(name: str, **content: Any) -> str:
    """Render a template from this folder."""
    return template(name).render(content)


def image_data(image: Image.Image) -> str:
    """Encode an image as WebP in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "webp", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
