"""Training by this recipe."""

import functools

import loopax
from loopax.recipes.images.recipe import ImagesRecipe

train = functools.partial(loopax.recipe.train, ImagesRecipe())
