"""Boxes and captions on a copy of a photo, to look at."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Box = tuple[int, int, int, int]
"""Left, top, width, height in pixels."""
Area = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

SMALLEST = 480
"""A photo whose shorter side is less is enlarged to this, so that captions can be read."""
LETTERS = 24
"""Height of the letters, as a fraction of the shorter side: one 24th."""


def mark(photo: Image.Image, boxes: Sequence[Box], captions: Sequence[str]) -> Image.Image:
    """A copy of an RGB photo with boxes and their captions, white on black on any background."""
    # A strip is not enlarged beyond what a wide photo would be.
    scale = max(1.0, min(SMALLEST / min(photo.size), 4 * SMALLEST / max(photo.size)))
    marked = photo.resize((round(photo.width * scale), round(photo.height * scale)))
    draw = ImageDraw.Draw(marked)
    letter = max(8, min(marked.size) // LETTERS)
    line = max(2, letter // 8)
    areas = [
        (left * scale, top * scale, (left + width) * scale, (top + height) * scale)
        for left, top, width, height in boxes
    ]
    for left, top, right, bottom in areas:
        inner = (left + line, top + line, max(left, right - line), max(top, bottom - line))
        draw.rectangle((left, top, right, bottom), outline="black", width=3 * line)
        draw.rectangle(_ordered(inner), outline="white", width=line)
    taken = list[Area]()
    for area, caption in zip(areas, captions, strict=True):
        font = _font_that_fits(draw, caption, letter, marked.width)
        place = _place(draw, caption, font, area, marked.size, taken)
        draw.rectangle(place, fill="black")
        draw.multiline_text((place[0] + letter / 4, place[1]), caption, "white", font)
        taken.append(place)
    return marked


def _ordered(area: Area) -> Area:
    left, top, right, bottom = area
    return left, top, max(left, right), max(top, bottom)


def _font_that_fits(
    draw: ImageDraw.ImageDraw, caption: str, letter: int, width: int
) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    size = float(letter)
    wide = draw.multiline_textbbox((0, 0), caption, ImageFont.load_default(size))[2] + letter
    return ImageFont.load_default(min(size, size * width / wide))


def _place(
    draw: ImageDraw.ImageDraw,
    caption: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    area: Area,
    size: tuple[int, int],
    taken: Sequence[Area],
) -> Area:
    """Where the caption goes: above the box, below, or in it; on no other caption if possible."""
    _, _, wide, high = draw.multiline_textbbox((0, 0), caption, font)
    wide, high = wide + high / 4, high * 1.2
    left = max(0.0, min(area[0], size[0] - wide))
    tops = (area[1] - high, area[3], area[3] - high, area[1])
    places = [
        (left, top, left + wide, top + high) for top in tops if top >= 0 and top + high <= size[1]
    ]
    free = (place for place in places if not any(_meet(place, other) for other in taken))
    return next(free, places[0] if places else (left, 0.0, left + wide, high))


def _meet(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
