"""Make a JPEG without its end, or a PNG with oversized metadata, decodable; say what is missing."""

import re
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image

JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
SIGNATURES = (JPEG_START, PNG_START)

END = b"\xff\xd9"
NOISE = bytes(range(7, 247, 3))
OTHER_END = NOISE + b"".join(b"\xff" + bytes([0xD0 + number]) + NOISE for number in range(8)) + END
"""Noise in place of the missing data, also after each of the eight restart markers."""
SCAN, FRAMES = 0xDA, {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)
COEFFICIENTS = 64

KEPT_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}


def repair(content: bytes) -> tuple[bytes, float | None] | None:
    """Return a decodable version of a photo that Pillow refuses, or None if there is none.

    Nothing but a JPEG's end and a PNG's metadata can be mended. With a JPEG comes the share of its
    rows that are missing.
    """
    if content.startswith(JPEG_START):
        missing = _missing_share(content)
        return None if missing is None else (_with_end(content, END), missing)
    if content.startswith(PNG_START):
        return _without_metadata(content), None
    return None


def _with_end(content: bytes, end: bytes) -> bytes:
    return content.rstrip(b"\xff") + end  # the first half of a marker may be there


def _missing_share(content: bytes) -> float | None:
    """Return the share of rows of a JPEG, from 0 to 1, whose pixels are missing at its end.

    Decoded with two different ends, the photo differs from the first missing row on. None if it
    has no pixels, or lacks whole scans, as a progressive JPEG does that is cut early.
    """
    if content.rstrip(b"\xff").endswith(END) or not _has_all_scans(content):
        return None
    try:
        first, second = (
            np.asarray(Image.open(BytesIO(_with_end(content, end)), formats=["JPEG"]))
            for end in (END, OTHER_END)
        )
    except MemoryError:
        raise
    except Exception:
        return None
    rows = (first != second).reshape(len(first), -1).any(axis=1)
    return 1 - int(rows.argmax()) / len(rows) if rows.any() else 0.0


def _has_all_scans(content: bytes) -> bool:
    """Whether each coefficient of each component was read to its last bit (ITU-T T.81, B.2)."""
    components, known = 0, defaultdict[int, set[int]](set)
    for marker, segment in _segments(content):
        if marker in FRAMES and len(segment) > 5:
            components = segment[5]
        if marker == SCAN and segment and len(segment) >= 4 + 2 * segment[0]:
            names = segment[1 : 1 + 2 * segment[0] : 2]
            first, last, bits = segment[1 + 2 * segment[0] : 4 + 2 * segment[0]]
            for name in names if bits & 15 == 0 else b"":
                known[name] |= set(range(first, last + 1))
    return 0 < components == sum(len(each) == COEFFICIENTS for each in known.values())


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    position = 2
    while found := NEXT_MARKER.search(content, position):
        position = found.end()
        length = int.from_bytes(content[position : position + 2])
        yield content[position - 1], content[position + 2 : position + length]
        position += length


def _without_metadata(content: bytes) -> bytes:
    """Leave out a PNG's text and colour profile, whose size Pillow limits; EXIF stays."""
    kept, position = [PNG_START], len(PNG_START)
    while position + 8 <= len(content):
        end = position + 12 + int.from_bytes(content[position : position + 4])
        if content[position + 4 : position + 8] in KEPT_CHUNKS:
            kept.append(content[position:end])
        position = end
    return b"".join(kept)
