"""The crop: a square around the face, cut the same way for training, evaluation and new photos."""

import numpy as np
from PIL import Image

from face_attributes.faces.boxes import Boxes, square
from face_attributes.params import CropParams
from face_attributes.photos.packed import Pixels


def cut(photo: Image.Image, box: Boxes, params: CropParams) -> Pixels:
    """Cut the square around a relative box and scale it: side x side x 3, uint8."""
    crop = photo.resize(
        (params.side, params.side),
        Image.Resampling.BILINEAR,
        box=square(box, photo.width, photo.height, params.margin),
        reducing_gap=3.0,
    )
    return np.asarray(crop)
