"""The crop: a square around the face, cut the same way for training, evaluation and new photos."""

import numpy as np
from PIL import Image

from face_attributes.faces.boxes import Boxes, square
from face_attributes.params import CropParams
from face_attributes.photos.packed import Pixels


def cut(photo: Image.Image, box: Boxes, turn: int, params: CropParams) -> Pixels:
    """Cut the square around a relative box, scale it, make it upright: side x side x 3, uint8.

    Args:
        turn: clockwise turn that makes the face upright: 0, 90, 180 or 270 degrees.
    """
    crop = photo.resize(
        (params.side, params.side),
        Image.Resampling.BILINEAR,
        box=square(box, photo.width, photo.height, params.margin),
        reducing_gap=3.0,
    )
    return np.rot90(np.asarray(crop), -turn // 90)
