"""Training by this recipe."""

import functools

import loopax
from loopax.recipes.vae.recipe import VAERecipe

train = functools.partial(loopax.recipe.train, VAERecipe())
