"""What a frozen model makes of texts, computed once and kept.

A frozen model without dropout gives the same features in each epoch; training the head is then
training a small model on small data.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import loopax
from loopax.models.bert import BertForSequenceClassification
from loopax.recipes.bert.tokens import in_batches, model_inputs

FORMAT = 1


def features_of(
    tokens: Mapping[str, np.ndarray],
    model: BertForSequenceClassification,
    params: Any,
    longest: int,
    file: Path,
    say: Callable[[str], None],
) -> np.ndarray:
    """The features `[texts, hidden]` of tokens: from `file`, or computed now and kept there.

    Raises:
        StorageError: they cannot be kept.
    """
    if not file.exists():
        say(f"computing the features of {len(tokens['length']):,} texts, once: {file}")
        with loopax.storing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
        computed = in_batches(functools.partial(_features, model, params), tokens, longest)
        loopax.save_weights(file, {"features": computed})
    return loopax.read_weights(file)["features"]


@functools.partial(jax.jit, static_argnums=0)
def _features(model: BertForSequenceClassification, params: Any, batch: Any) -> Any:
    return model.apply(params, *model_inputs(batch), method=model.features)


def file_for(*parts: str) -> Path:
    """Where features are kept, in the user's cache, by all that they depend on."""
    name = hashlib.sha256(repr((FORMAT, *parts)).encode()).hexdigest()[:16]
    return loopax.cache_dir() / "features" / f"{name}.safetensors"
