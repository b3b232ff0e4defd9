"""What a frozen model makes of texts, computed once and kept.

A frozen model without dropout gives the same features in each epoch; training the head is then
training a small model on small data.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock

from loopax.caches import cache_folder
from loopax.models.bert import BertForSequenceClassification
from loopax.recipes.bert.tokens import in_batches, model_inputs
from loopax.weights import read_weights, save_weights

FORMAT = 1


def features_of(
    tokens: Mapping[str, np.ndarray],
    model: BertForSequenceClassification,
    params: Any,
    longest: int,
    file: Path | None,
    say: Callable[[str], None],
) -> np.ndarray:
    """The features `[texts, hidden]` of tokens: from `file`, or computed now and kept there."""
    # Another process may compute the same, such as one that trains together with this one.
    with nullcontext() if file is None else FileLock(f"{file}.lock"):
        if file is not None and file.exists():
            return read_weights(file)["features"]
        say(f"computing features of {len(tokens['length']):,} texts, once: {file or 'not kept'}")
        computed = in_batches(functools.partial(_features, model, params), tokens, longest)
        if file is not None:
            save_weights(file, {"features": computed})
        return computed


@functools.partial(jax.jit, static_argnums=0)
def _features(model: BertForSequenceClassification, params: Any, batch: Any) -> Any:
    return model.apply(params, *model_inputs(batch), method=model.features)


def file_for(*parts: str) -> Path | None:
    """Where features are kept, in the user's cache, by all that they depend on; None without."""
    name = hashlib.sha256(repr((FORMAT, *parts)).encode()).hexdigest()[:16]
    folder = cache_folder("features")
    return None if folder is None else folder / f"{name}.safetensors"
