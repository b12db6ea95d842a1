"""The crop: a square around the face, for training, evaluation and any photo later alike."""

import numpy as np
from PIL import Image

from stages.faces.boxes import Boxes, square
from stages.params import CropParams
from stages.photos.packed import Pixels


def cut(photo: Image.Image, box: Boxes, params: CropParams) -> Pixels:
    """Cut and scale the square around a relative box: size x size x 3, uint8."""
    crop = photo.resize(
        (params.side, params.side),
        Image.Resampling.BILINEAR,
        box=square(box, photo.width, photo.height, params.margin),
        reducing_gap=3.0,
    )
    return np.asarray(crop.convert("L").convert("RGB") if params.greyscale else crop)
