"""How PyTorch transformers stores a BERT: its files, and what it calls the parameters.

Our paths are the same names with slashes. A weight of PyTorch is a `kernel`, an `embedding` or a
`scale` in Flax, and kernels are transposed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loopax.errors import ConfigError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, VOCABULARY = "tokenizer.json", "vocab.txt"
TOKENIZER_CONFIG = "tokenizer_config.json"
CLASSIFIER, MEAN_CLASSIFIER = "BertForSequenceClassification", "BertForMeanPooledClassification"
MEAN_TYPE = "bert-mean-pooling"
"""The `model_type` of a classifier that transformers must not take for one with a pooler."""
BACKBONE = ("embeddings", "encoder", "pooler")
OLD = {"gamma": "weight", "beta": "bias"}
"""What files of before 2019 call the parameters of a normalisation."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {ascii(str(error))[1:-1]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; it must be a JSON object")
    return content


def path_of(name: str) -> str:
    """Our path of a parameter that PyTorch calls `name`, with or without `bert.` before it."""
    *module, leaf = name.removeprefix("bert.").split(".")
    if module[:1] and module[0] in BACKBONE:
        module = ["bert", *module]
    leaf = OLD.get(leaf, leaf)
    if leaf == "weight" and module:
        embeds = module[-1].endswith("_embeddings")
        leaf = "scale" if module[-1] == "LayerNorm" else "embedding" if embeds else "kernel"
    return "/".join([*module, leaf])


def transposed(path: str, array: np.ndarray) -> np.ndarray:
    """An array at `path` as the other side holds it, whichever that is."""
    return array.T if path.endswith("/kernel") else array


def as_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by our paths as a file for PyTorch holds them."""
    found = {}
    for path, array in arrays.items():
        *module, leaf = path.split("/")
        name = ".".join([*module, leaf if leaf == "bias" else "weight"])
        found[name] = transposed(path, array)
    return found
