"""The recipe of a network: how to make its inputs from photos, and what its outputs mean.

It is stored in the weight file, so that the file alone is enough to classify a photo.
"""

from typing import Annotated

from pydantic import Field

from face_attributes.params import (
    AgeEdges,
    CropParams,
    Heads,
    Model,
    Params,
    PredictionParams,
    Section,
)


class Recipe(Section):
    """Everything except the weights that is needed to use a network.

    `fallback` is the median face box of the training photos (left, top, width, height as shares of
    the photo), for photos without a detected face; None if no training photo had one. `temperature`
    divides the network's log-probabilities, to calibrate them; the networks of a run differ in it
    alone.
    """

    model: Model
    heads: Heads
    prediction: PredictionParams
    age_edges: AgeEdges
    crop: CropParams
    fallback: list[float] | None
    temperature: Annotated[float, Field(gt=0)]


def make_recipe(params: Params, fallback: list[float] | None, temperature: float) -> Recipe:
    """Make the recipe of a network that was trained with `params`."""
    return Recipe(
        model=params.weights.model,
        heads=params.train.heads,
        prediction=params.train.prediction,
        age_edges=params.labels.age_edges,
        crop=params.crop,
        fallback=fallback,
        temperature=temperature,
    )


def describe_views(views: PredictionParams) -> str:
    """Describe the views in words; empty for the crop alone."""
    zoomed = ", closer and farther" if views.zoom else ""
    mirrored = " and its mirror image" if views.flip else ""
    if zoomed and mirrored:
        mirrored = ", and their mirror images"
    return f"a crop{zoomed}{mirrored}" if zoomed or mirrored else ""
