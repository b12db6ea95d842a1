"""The recipe of a network: how its inputs are made from photos, and what its outputs mean.

It travels in the file of the weights, so that this file alone is enough to classify a photo.
"""

from stages.params import AgeEdges, CropParams, Heads, Model, Section, Zoom


class Recipe(Section):
    """What a network's state does not tell.

    `fallback` is the median box of the faces trained on (left, top, width, height as shares of the
    photo), for photos in which no face is found; None if there was none in training either.
    """

    model: Model
    heads: Heads
    flip_at_test: bool
    zoom_at_test: Zoom
    age_edges: AgeEdges
    crop: CropParams
    fallback: list[float] | None
