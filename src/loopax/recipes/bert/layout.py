"""How PyTorch transformers stores a BERT: its files, and what it calls the parameters.

Our paths are the same names with slashes. A weight of PyTorch is a `kernel`, an `embedding` or a
`scale` in Flax, and kernels are transposed.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
CLASSIFIER, MEAN_CLASSIFIER = "BertForSequenceClassification", "BertForMeanPooledClassification"
MEAN_TYPE = "bert-mean-pooling"
"""The `model_type` of a classifier that transformers must not take for one with a pooler."""
BACKBONE = ("embeddings", "encoder", "pooler")
OLD = {"gamma": "weight", "beta": "bias"}
"""What files of before 2019 call the parameters of a normalisation."""


def path_of(name: str) -> str | None:
    """Our path of a parameter that PyTorch calls `name`; None if it is of no classifier."""
    *module, leaf = name.removeprefix("bert.").split(".")
    if len(module) < 2 and module != ["classifier"]:
        return None
    if module[0] in BACKBONE:
        module = ["bert", *module]
    elif module[0] != "classifier":
        return None
    leaf = OLD.get(leaf, leaf)
    return "/".join([*module, _weight(module[-1]) if leaf == "weight" else leaf])


def name_of(path: str) -> str:
    """What PyTorch calls the parameter at our `path`."""
    *module, leaf = path.split("/")
    return ".".join([*module, leaf if leaf == "bias" else "weight"])


def transposed(path: str, array: np.ndarray) -> np.ndarray:
    """An array at `path` as the other side holds it, whichever that is."""
    return array.T if path.endswith("/kernel") else array


def as_torch(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters by our paths as a file for PyTorch holds them."""
    return {name_of(path): transposed(path, array) for path, array in arrays.items()}


def _weight(module: str) -> str:
    if module == "LayerNorm":
        return "scale"
    return "embedding" if module.endswith("_embeddings") else "kernel"
