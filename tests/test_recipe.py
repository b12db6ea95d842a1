"""The recipe of a network: made from parameters, and described in words."""

import pytest

from face_attributes.networks.recipe import describe_views, make_recipe
from face_attributes.params import PredictionParams, read_params
from tests.small import PARAMS


def test_recipe_has_the_parameters_that_the_network_depends_on() -> None:
    params, fallback = read_params(PARAMS), [0.1, 0.2, 0.5, 0.4]
    recipe = make_recipe(params, fallback)
    assert (recipe.model, recipe.heads) == (params.weights.model, params.train.heads)
    assert (recipe.crop, recipe.prediction) == (params.crop, params.train.prediction)
    assert (recipe.age_edges, recipe.fallback) == (params.labels.age_edges, fallback)


@pytest.mark.parametrize(
    ("flip", "zoom", "words"),
    [
        (False, 0.0, ""),
        (True, 0.0, "a crop and its mirror image"),
        (False, 0.2, "a crop, closer and farther"),
        (True, 0.2, "a crop, closer and farther, and their mirror images"),
    ],
)
def test_views_in_words(flip: bool, zoom: float, words: str) -> None:
    assert describe_views(PredictionParams(flip=flip, zoom=zoom)) == words
