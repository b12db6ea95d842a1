"""The recipe of a network: made from parameters, and described in words."""

import pytest
from pydantic import ValidationError

from face_attributes.networks.recipe import Recipe, describe_views, make_recipe
from face_attributes.params import PredictionParams, read_params
from tests.small import PARAMS


def test_recipe_has_the_parameters_that_the_network_depends_on() -> None:
    params, fallback = read_params(PARAMS), [0.1, 0.2, 0.5, 0.4]
    recipe = make_recipe(params, fallback, 0.75)
    assert (recipe.model, recipe.heads) == (params.weights.model, params.train.heads)
    assert (recipe.crop, recipe.prediction) == (params.crop, params.train.prediction)
    assert (recipe.age_edges, recipe.fallback) == (params.labels.age_edges, fallback)
    assert recipe.temperature == 0.75
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        make_recipe(read_params(PARAMS), None, temperature)


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
