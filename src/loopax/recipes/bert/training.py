"""Training by this recipe."""

import functools

import loopax
from loopax.recipes.bert.recipe import BERTRecipe

train = functools.partial(loopax.recipe.train, BERTRecipe())
