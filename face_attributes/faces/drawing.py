"""Draw portraits for the embedded sample: distinguishable people in varied photos.

Traits belong to a person, circumstances to one photo. Gender and age affect the traits on average;
each cue has its own noise, so that classes are visible but overlap.

Face coordinates: the origin is between the eyes and the nose, the unit is half the width of the
face, y points down. The chin is near (0, 1.35), the top of the head near (0, -1.35).
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]

WIDTH, HEIGHT = 384, 512
SUPERSAMPLING = 2

GENDER_NOISE = 0.55
"""Standard deviation of a person's apparent gender around 1 (women) or -1 (men)."""
CUE_NOISE = 0.2
"""Standard deviation of each gender cue around the apparent gender."""
AGE_NOISE = 3.5
"""Standard deviation of the apparent age around a person's age, in years."""

SKIN_COLOURS: list[Colour] = [
    (244, 208, 177),
    (229, 184, 143),
    (198, 144, 103),
    (141, 94, 62),
    (104, 67, 44),
]
HAIR_COLOURS: list[Colour] = [
    (35, 26, 22),
    (66, 44, 30),
    (104, 70, 42),
    (160, 118, 66),
    (122, 52, 30),
]
IRIS_COLOURS: list[Colour] = [(74, 50, 32), (92, 120, 76), (76, 112, 148), (60, 42, 30)]
MASK_COLOURS: list[Colour] = [
    (120, 176, 214),
    (238, 240, 242),
    (44, 46, 52),
    (150, 190, 160),
    (214, 150, 170),
]
GREY_HAIR: Colour = (206, 206, 208)
LIPSTICK: Colour = (176, 48, 66)


@dataclass(frozen=True)
class Traits:
    """Properties of a person, the same in all photos."""

    skin: Colour
    hair: Colour
    iris: Colour
    shirt: Colour
    wall: Colour
    hair_length: float  # 0 cropped, 1 shoulder length
    hair_volume: float
    hairline: float  # 0 low, 1 receded to the top of the head
    parting: float
    jaw: float  # width of the jaw, in half face widths
    brow: float  # thickness of the eyebrows
    eye_distance: float
    eye_size: float
    nose: float
    mouth: float
    lips: Colour
    beard: float  # 0 none, 1 full
    wrinkles: float  # 0 smooth, 1 deep
    flush: float  # of the cheeks
    glasses: bool
    earrings: bool


@dataclass(frozen=True)
class Circumstances:
    """Properties of one photo."""

    mask: str  # worn, incorrect or not_worn
    mask_colour: Colour
    mask_top: float  # in face coordinates
    mask_bottom: float
    centre: tuple[float, float]  # of the face, in pixels
    scale: float  # half the width of the face, in pixels
    tilt: float  # radians
    smile: float
    gaze: float
    brightness: float
    side_light: float  # above 0: brighter on the right


def random_traits(gender: str, age: int, rng: np.random.Generator) -> Traits:
    """Generate a person's traits: `gender` is male or female, `age` is in years."""
    apparent_gender = (1 if gender == "female" else -1) + rng.normal(0, GENDER_NOISE)
    apparent_age = age + rng.normal(0, AGE_NOISE)

    def cue(male: float, female: float) -> float:
        share = (apparent_gender + rng.normal(0, CUE_NOISE) + 1) / 2
        return male + (female - male) * float(np.clip(share, -0.2, 1.2))

    skin = _jitter(SKIN_COLOURS[rng.integers(len(SKIN_COLOURS))], 8, rng)
    hair = _jitter(HAIR_COLOURS[rng.integers(len(HAIR_COLOURS))], 4, rng)
    grey = 0.3 * _ramp(apparent_age, 26, 38) + 0.7 * _ramp(apparent_age, 52, 64)
    lips = _mix(_mix(skin, (150, 70, 66), 0.45), LIPSTICK, max(0.0, cue(-0.1, 0.65)))
    return Traits(
        skin=skin,
        hair=_mix(hair, GREY_HAIR, grey),
        iris=IRIS_COLOURS[rng.integers(len(IRIS_COLOURS))],
        shirt=_mix(_random_colour(rng, 30, 200), (120, 120, 124), 0.25),
        wall=_mix(_random_colour(rng, 90, 225), (176, 178, 174), 0.45),
        hair_length=float(np.clip(cue(0.08, 0.95), 0, 1)),
        hair_volume=float(rng.uniform(0.1, 0.24)),
        hairline=float(np.clip(cue(0.55, 0.1) * _ramp(apparent_age, 25, 65), 0, 1)),
        parting=float(rng.uniform(-0.5, 0.5)),
        jaw=cue(0.86, 0.66),
        brow=cue(0.105, 0.05),
        eye_distance=float(rng.uniform(0.38, 0.47)),
        eye_size=float(rng.uniform(0.17, 0.2)) * (1 - 0.12 * _ramp(apparent_age, 40, 80)),
        nose=float(rng.uniform(0.17, 0.25)),
        mouth=float(rng.uniform(0.32, 0.42)),
        lips=lips,
        beard=float(np.clip(cue(0.55, -0.5), 0, 1)) if apparent_age > 17 else 0.0,
        wrinkles=_ramp(apparent_age, 26, 60),
        flush=1 - _ramp(apparent_age, 26, 38),
        glasses=bool(rng.random() < 0.18 + 0.2 * _ramp(apparent_age, 35, 65)),
        earrings=bool(rng.random() < max(0.02, cue(-0.1, 0.5))),
    )


def random_circumstances(mask: str, rng: np.random.Generator) -> Circumstances:
    """Generate the circumstances of a photo: `mask` is worn, incorrect or not_worn."""
    top, bottom = 0.2 + rng.normal(0, 0.04), 1.42
    if mask == "incorrect":  # below the nose, or on the chin
        top = 0.68 + rng.normal(0, 0.03) if rng.random() < 0.65 else 1.02 + rng.normal(0, 0.03)
        bottom = 1.5
    scale = WIDTH * rng.uniform(0.4, 0.68) / 2
    return Circumstances(
        mask=mask,
        mask_colour=_jitter(MASK_COLOURS[rng.integers(len(MASK_COLOURS))], 14, rng),
        mask_top=float(top),
        mask_bottom=bottom,
        centre=(
            WIDTH / 2 + float(rng.normal(0, 0.06)) * WIDTH,
            HEIGHT * 0.5 + float(rng.normal(0, 0.04)) * HEIGHT,
        ),
        scale=float(scale),
        tilt=float(rng.uniform(-8, 8)) * math.pi / 180,
        smile=float(rng.uniform(-0.02, 0.12)),
        gaze=float(rng.normal(0, 0.02)),
        brightness=float(rng.uniform(0.82, 1.14)),
        side_light=float(rng.uniform(-0.25, 0.25)),
    )


def visible_attributes(traits: Traits, circumstances: Circumstances) -> list[bool]:
    """Simple facts that a photo shows, to pretrain on; none of them is one of the 18 classes."""
    masked = circumstances.mask != "not_worn"
    return [
        traits.glasses,
        traits.earrings,
        traits.hair_length > 0.4,
        traits.hairline > 0.3,
        traits.brow > 0.08,
        traits.beard > 0.25,
        traits.wrinkles > 0.5,
        traits.flush > 0.5,
        sum(traits.skin) > 3 * 150,  # fair
        sum(traits.hair) > 3 * 110,
        circumstances.smile > 0.05,
        masked,
        not masked or circumstances.mask_top > 0.9,  # the mouth is visible
    ]


def draw_portrait(
    traits: Traits, circumstances: Circumstances, rng: np.random.Generator, reduction: int = 1
) -> Image.Image:
    """Draw a photo of a person: RGB, 384 x 512.

    Args:
        reduction: divides width and height, to draw small photos faster.
    """
    size = (WIDTH * SUPERSAMPLING // reduction, HEIGHT * SUPERSAMPLING // reduction)
    image = Image.new("RGB", size, traits.wall)
    brush = Brush(image, circumstances, SUPERSAMPLING / reduction)
    _shoulders(brush, traits)
    _back_hair(brush, traits)
    _head(brush, traits)
    _wrinkles(brush, traits)
    _eyes(brush, traits, circumstances.gaze)
    _nose(brush, traits)
    _mouth(brush, traits, circumstances.smile)
    _beard(brush, traits)
    _front_hair(brush, traits)
    if traits.glasses:
        _glasses(brush)
    if circumstances.mask != "not_worn":
        _mask(brush, circumstances)
    small = image.reduce(SUPERSAMPLING).filter(ImageFilter.SMOOTH)
    return _light(small, circumstances, rng, reduction)


class Brush:
    """Draws in face coordinates on an image `zoom` times as large as the circumstances say."""

    def __init__(self, image: Image.Image, circumstances: Circumstances, zoom: float) -> None:
        self.draw = ImageDraw.Draw(image)
        self.origin = np.array(circumstances.centre) * zoom
        self.scale = circumstances.scale * zoom
        cos, sin = math.cos(circumstances.tilt), math.sin(circumstances.tilt)
        self.transform = np.array([[cos, sin], [-sin, cos]]) * self.scale

    def pixels(self, points: Points) -> Points:
        placed = np.asarray(points) @ self.transform + self.origin
        return [(float(x), float(y)) for x, y in placed]

    def fill(self, points: Points, colour: Colour) -> None:
        self.draw.polygon(self.pixels(points), fill=colour)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        pixels = max(1, round(width * self.scale))
        self.draw.line(self.pixels(points), fill=colour, width=pixels, joint="curve")

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        self.fill(_ellipse(x, y, rx, ry), colour)


def _ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360
) -> Points:
    angles = np.radians(np.linspace(start, end, 48))
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


def _face_outline(traits: Traits) -> Points:
    """Outline of the head: from ear to ear over the top, then back along the jaw."""
    top = _ellipse(0, -0.1, 1, 1.22, 180, 360)
    steps = np.linspace(0, 1, 24)
    right = [
        (math.cos(s * math.pi / 2) ** (0.4 + 0.6 * (1 - traits.jaw)), -0.1 + 1.46 * s)
        for s in steps
    ]
    return [*top, *right, *((-x, y) for x, y in reversed(right))]


def _shoulders(brush: Brush, traits: Traits) -> None:
    dark = _mix(traits.skin, (60, 30, 20), 0.22)
    shirt = traits.shirt
    brush.fill([(-2.4, 4.5), (-2.0, 2.1), (-0.9, 1.7), (0.9, 1.7), (2.0, 2.1), (2.4, 4.5)], shirt)
    brush.fill([(-0.55, 0.8), (0.55, 0.8), (0.62, 1.75), (0, 2.05), (-0.62, 1.75)], dark)
    line = _mix(shirt, (0, 0, 0), 0.25)
    brush.line([(-0.62, 1.75), (0, 2.05), (0.62, 1.75)], line, 0.05)


def _back_hair(brush: Brush, traits: Traits) -> None:
    dark = _mix(traits.hair, (0, 0, 0), 0.25)
    around = 1 + traits.hair_volume
    brush.fill(_ellipse(0, -0.25, around, 1.15 + traits.hair_volume), dark)
    if traits.hair_length > 0.3:
        down = -0.1 + 2.1 * traits.hair_length
        wide = around + 0.08
        side = [(-around, -0.3), (-wide, down * 0.6), (-wide * 0.9, down), (-0.5, down)]
        brush.fill([*side, *((-x, y) for x, y in reversed(side))], dark)
        brush.fill(
            [(-0.5, 0.9), (0.5, 0.9), (0.5, 1.7), (0, 2.0), (-0.5, 1.7)],
            _mix(traits.skin, (60, 30, 20), 0.22),
        )


def _head(brush: Brush, traits: Traits) -> None:
    ear = _mix(traits.skin, (150, 70, 50), 0.18)
    for side in (-1, 1):
        brush.ellipse(side * 1.0, 0.05, 0.13, 0.27, ear)
        if traits.earrings:
            brush.ellipse(side * 1.03, 0.42, 0.055, 0.075, (232, 205, 110))
    brush.fill(_face_outline(traits), traits.skin)
    flush = _mix(traits.skin, (214, 96, 84), 0.04 + 0.36 * traits.flush)
    for side in (-1, 1):
        brush.ellipse(side * 0.55, 0.42, 0.24, 0.17, flush)


def _wrinkles(brush: Brush, traits: Traits) -> None:
    colour = _mix(traits.skin, (70, 36, 24), 0.55 * traits.wrinkles)
    width = 0.012 + 0.045 * traits.wrinkles
    for row in range(3):
        y = -0.78 + 0.13 * row
        brush.line([(-0.45, y + 0.03), (0, y), (0.45, y + 0.03)], colour, width)
    bag = _mix(traits.skin, (96, 60, 70), 0.4 * traits.wrinkles)
    for side in (-1, 1):
        brush.ellipse(side * traits.eye_distance, 0.03, 0.24, 0.14, bag)
        brush.line([(side * 0.27, 0.42), (side * 0.46, 0.7), (side * 0.47, 0.86)], colour, width)
        under = _ellipse(side * 0.42, 0.02, 0.22, 0.18, 30, 150)
        brush.line(under, colour, width)
        for spread in (-0.1, 0.0, 0.1):
            brush.line(
                [(side * 0.68, -0.12 + spread * 0.3), (side * 0.88, -0.12 + spread)],
                colour,
                width * 0.8,
            )


def _eyes(brush: Brush, traits: Traits, gaze: float) -> None:
    size, dark = traits.eye_size, (38, 26, 22)
    socket = _mix(traits.skin, (90, 50, 40), 0.2)
    brow = _mix(traits.hair, (20, 14, 10), 0.35)
    for side in (-1, 1):
        x, y = side * traits.eye_distance, -0.12
        brush.ellipse(x, y - 0.03, size * 1.35, size * 0.95, socket)
        brush.ellipse(x, y, size, size * 0.52, (246, 244, 240))
        brush.ellipse(x + gaze, y, size * 0.5, size * 0.5, traits.iris)
        brush.ellipse(x + gaze, y, size * 0.25, size * 0.25, (12, 10, 10))
        brush.ellipse(
            x + gaze + size * 0.16, y - size * 0.16, size * 0.1, size * 0.1, (255, 255, 255)
        )
        brush.line(_ellipse(x, y, size * 1.05, size * 0.58, 185, 355), dark, 0.04)
        brush.line(_ellipse(x, y, size, size * 0.54, 20, 160), socket, 0.02)
        low, high, inner = -0.36, -0.45, x - side * size * 1.2
        arch = [(inner, low), (x, high), (x + side * size * 1.35, low + 0.02)]
        brush.line(arch, brow, traits.brow)


def _nose(brush: Brush, traits: Traits) -> None:
    shade = _mix(traits.skin, (90, 44, 30), 0.26)
    light = _mix(traits.skin, (255, 250, 240), 0.25)
    wide = traits.nose
    brush.fill([(0.02, -0.2), (wide * 0.45, 0.3), (wide, 0.47), (0, 0.52), (0.04, 0.3)], shade)
    brush.line([(0, -0.15), (-0.01, 0.38)], light, 0.06)
    brush.ellipse(0, 0.42, wide * 0.6, 0.09, _mix(traits.skin, light, 0.5))
    for side in (-1, 1):
        brush.ellipse(side * wide * 0.55, 0.49, wide * 0.28, 0.035, _mix(shade, (30, 10, 8), 0.6))


def _mouth(brush: Brush, traits: Traits, smile: float) -> None:
    half, y = traits.mouth, 0.8
    corner = y - smile
    upper = [(-half, corner), (-half * 0.3, y - 0.09), (0, y - 0.06), (half * 0.3, y - 0.09),
             (half, corner), (0, y + 0.02)]  # fmt: skip
    lower = [(-half, corner), (-half * 0.5, y + 0.1), (0, y + 0.14), (half * 0.5, y + 0.1),
             (half, corner), (0, y + 0.03)]  # fmt: skip
    brush.fill(upper, _mix(traits.lips, (60, 10, 16), 0.15))
    brush.fill(lower, traits.lips)
    brush.line([(-half, corner), (0, y + 0.025), (half, corner)], (70, 26, 26), 0.022)
    brush.ellipse(0, 0.99, 0.2, 0.03, _mix(traits.skin, (90, 44, 30), 0.18))


def _beard(brush: Brush, traits: Traits) -> None:
    if traits.beard < 0.25:
        return
    colour = _mix(traits.skin, traits.hair, min(0.85, traits.beard))
    jaw = [(x, y) for x, y in _face_outline(traits) if y > 0.45]
    right = [point for point in jaw if point[0] >= 0]
    left = [point for point in jaw if point[0] < 0]
    inner = [(-0.62, 0.75), (-0.42, 0.98), (0, 1.03), (0.42, 0.98), (0.62, 0.75)]
    brush.fill([*right, *left, *inner], colour)
    brush.fill([(-0.4, 0.72), (0, 0.6), (0.4, 0.72), (0.3, 0.68), (0, 0.68), (-0.3, 0.68)], colour)


def _front_hair(brush: Brush, traits: Traits) -> None:
    out, low = 1 + traits.hair_volume * 0.6, -0.62 - 0.5 * traits.hairline
    temple = -0.1 if traits.hair_length > 0.3 else -0.3
    top = _ellipse(0, -0.3, out, 1.08 + traits.hair_volume * 0.7, 180, 360)
    middle = (traits.parting, low - 0.12)
    brush.fill(
        [(-out, temple), *top, (out, temple), (0.86, low + 0.3), (0.6, low), middle, (-0.6, low),
         (-0.86, low + 0.3)],
        traits.hair,
    )  # fmt: skip
    shine = _mix(traits.hair, (255, 255, 255), 0.18)
    brush.line(_ellipse(traits.parting * 0.5, -0.4, 0.72, 0.78, 215, 300), shine, 0.05)


def _glasses(brush: Brush) -> None:
    dark = (32, 30, 34)
    for side in (-1, 1):
        brush.line(_ellipse(side * 0.43, -0.09, 0.31, 0.25), dark, 0.035)
        brush.line([(side * 0.74, -0.12), (side * 1.0, -0.14)], dark, 0.035)
    brush.line([(-0.12, -0.12), (0.12, -0.12)], dark, 0.035)


def _mask(brush: Brush, circumstances: Circumstances) -> None:
    colour, top, bottom = (
        circumstances.mask_colour,
        circumstances.mask_top,
        circumstances.mask_bottom,
    )
    edge, fold = _mix(colour, (20, 20, 30), 0.3), _mix(colour, (20, 20, 30), 0.16)
    wide = 0.92 if top < 0.9 else 0.72
    middle = (top + bottom) / 2
    sides = [(wide, top + 0.1), (wide * 0.93, middle + 0.1), (wide * 0.55, bottom - 0.06)]
    outline = [(0, top - 0.06), (0.35, top), *sides, (0, bottom + 0.04)]
    outline += [(-x, y) for x, y in reversed(outline[1:-1])]
    for side in (-1, 1):
        brush.line([(side * wide * 0.96, top + 0.14), (side * 1.02, -0.12)], edge, 0.03)
        brush.line([(side * wide * 0.86, middle + 0.14), (side * 1.04, 0.25)], edge, 0.03)
    brush.fill(outline, colour)
    for share in (0.3, 0.5, 0.7):
        y = top + (bottom - top) * share
        half = wide * (0.95 - 0.35 * max(0.0, share - 0.4))
        brush.line([(-half, y - 0.02), (0, y + 0.05), (half, y - 0.02)], fold, 0.022)
    brush.line([*outline, outline[0]], edge, 0.022)


def _light(
    image: Image.Image, circumstances: Circumstances, rng: np.random.Generator, reduction: int
) -> Image.Image:
    """Add light from one side, shading of the round head, and camera noise."""
    x = reduction * np.arange(image.width, dtype=np.float32)
    y = reduction * np.arange(image.height, dtype=np.float32)[:, None]
    dx = (x - circumstances.centre[0]) / circumstances.scale
    dy = (y - circumstances.centre[1]) / circumstances.scale
    distance = np.sqrt(dx**2 + (dy / 1.35) ** 2)
    rounded = (
        1.0
        + 0.1 * np.clip(1.1 - distance, -0.5, 0.6)
        - 0.1 * np.exp(-(((distance - 0.98) / 0.12) ** 2))
    )
    shade = (
        circumstances.brightness * rounded * (1 + circumstances.side_light * np.clip(dx, -1.5, 1.5))
    )
    noise = 5 / reduction * rng.standard_normal((len(y), len(x), 1), dtype=np.float32)
    lit = np.asarray(image, dtype=np.float32) * shade[:, :, None] + noise
    return Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))


def _ramp(value: float, low: float, high: float) -> float:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    share = float(np.clip((value - low) / (high - low), 0, 1))
    return share * share * (3 - 2 * share)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    mixed = [round(a + (b - a) * share) for a, b in zip(first, second, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _jitter(colour: Colour, deviation: float, rng: np.random.Generator) -> Colour:
    red, green, blue = (int(np.clip(c + rng.normal(0, deviation), 0, 255)) for c in colour)
    return red, green, blue


def _random_colour(rng: np.random.Generator, low: int, high: int) -> Colour:
    red, green, blue = (int(c) for c in rng.integers(low, high, 3))
    return red, green, blue
