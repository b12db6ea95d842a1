"""Draw boxes and captions on a copy of a photo."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""
Area = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

MIN_SIDE = 480
"""Photos with a shorter side below this are enlarged to it, so that captions are legible."""
FONT_DIVISOR = 24
"""The font size is the shorter side divided by this."""

MIN_FONT_SIZE = 5
"""Captions of narrower photos are cut off: FreeType draws nothing below a pixel."""


def mark(photo: Image.Image, boxes: Sequence[Box], captions: Sequence[str]) -> Image.Image:
    """Copy an RGB photo and draw boxes with captions, white on black for any background."""
    # The second term limits how far a narrow strip is enlarged.
    scale = max(1.0, min(MIN_SIDE / min(photo.size), 4 * MIN_SIDE / max(photo.size)))
    marked = photo.resize((round(photo.width * scale), round(photo.height * scale)))
    draw = ImageDraw.Draw(marked)
    font_size = max(8, min(marked.size) // FONT_DIVISOR)
    line = max(2, font_size // 8)
    areas = [
        (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
        for left, top, width, height in boxes
    ]
    for left, top, right, bottom in areas:
        inner = (left + line, top + line, max(left, right - line), max(top, bottom - line))
        draw.rectangle((left, top, right, bottom), outline="black", width=3 * line)
        draw.rectangle(_ordered(inner), outline="white", width=line)
    used_areas = list[Area]()
    for area, caption in zip(areas, captions, strict=True):
        font = _font_that_fits(draw, caption, font_size, marked.width)
        caption_area = _place_caption(draw, caption, font, area, marked.size, used_areas)
        draw.rectangle(caption_area, fill="black")
        position = (caption_area[0] + font_size / 4, caption_area[1])
        draw.multiline_text(position, caption, "white", font)
        used_areas.append(caption_area)
    return marked


def _ordered(area: Area) -> Area:
    left, top, right, bottom = area
    return left, top, max(left, right), max(top, bottom)


def _font_that_fits(
    draw: ImageDraw.ImageDraw, caption: str, font_size: int, max_width: int
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    size = float(font_size)
    width = draw.multiline_textbbox((0, 0), caption, ImageFont.load_default(size))[2] + font_size
    return ImageFont.load_default(max(MIN_FONT_SIZE, min(size, size * max_width / width)))


def _place_caption(
    draw: ImageDraw.ImageDraw,
    caption: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    area: Area,
    photo_size: tuple[int, int],
    used_areas: Sequence[Area],
) -> Area:
    """Place a caption above, below or inside its box, clear of other captions if possible."""
    _, _, width, height = draw.multiline_textbbox((0, 0), caption, font)
    width, height = width + height / 4, height * 1.2
    left = max(0.0, min(area[0], photo_size[0] - width))
    tops = (area[1] - height, area[3], area[3] - height, area[1])
    candidates = [
        (left, top, left + width, top + height)
        for top in tops
        if top >= 0 and top + height <= photo_size[1]
    ]
    free = (
        candidate
        for candidate in candidates
        if not any(_overlap(candidate, used) for used in used_areas)
    )
    return next(free, candidates[0] if candidates else (left, 0.0, left + width, height))


def _overlap(first: Area, second: Area) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )
