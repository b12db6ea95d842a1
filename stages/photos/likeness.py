"""Which photos are the same one: perceptual hashes of the crops, then their pixels, aligned."""

from collections.abc import Iterator

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.photos.packed import Pixels

SIDE = 64
"""Side to which crops are scaled before their pixels are compared."""
INNER = slice(9, SIDE - 9)
"""What of the first crop is looked for in the second."""
SCALES = np.arange(0.86, 1.15, 0.02)
"""Of the second crop: a detector's box is a little larger or smaller in a copy of a photo."""

Hashes = NDArray[np.uint64]
Grey = NDArray[np.uint8]


def perceptual_hash(crop: Pixels) -> np.uint64:
    """64 bits that say what a crop (size x size x 3) looks like: ImageHash's DCT hash."""
    bits = imagehash.phash(Image.fromarray(crop)).hash
    return np.uint64(int.from_bytes(np.packbits(bits).tobytes()))


def close_pairs(hashes: Hashes, distance: int) -> Iterator[tuple[int, int]]:
    """Places (i < j) of all hashes (N) that differ in at most `distance` of their bits."""
    for place, own in enumerate(hashes):
        differing = np.bitwise_count(hashes[place + 1 :] ^ own)
        for after in np.flatnonzero(differing <= distance):
            yield place, place + 1 + int(after)


def small_grey(crop: Pixels) -> Grey:
    """A crop (size x size x 3) as it is compared: SIDE x SIDE, grey."""
    grey = cv2.cvtColor(np.ascontiguousarray(crop), cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def similarity(first: Grey, second: Grey) -> float:
    """Correlation (-1 to 1) of two small grey crops where they lie best on each other.

    A copy that was compressed, scaled, brightened or cut anew gets a slightly other face box, and
    so a shifted and scaled crop; the best shift and scale are looked for (OpenCV's
    `matchTemplate`). Such copies of real photos reach 0.975, photos of other people stay below.
    """
    if np.array_equal(first, second):
        return 1.0
    if first.std() < 1 or second.std() < 1:
        return -1.0  # a surface of one colour correlates with nothing
    best = -1.0
    for scale in SCALES:
        side = round(SIDE * scale)
        scaled = cv2.resize(second, (side, side), interpolation=cv2.INTER_AREA)
        found = cv2.matchTemplate(scaled, first[INNER, INNER], cv2.TM_CCOEFF_NORMED)
        best = max(best, float(found.max()))
    return min(best, 1.0)
