"""The weights of a BERT as PyTorch transformers stores them, each checked, by our paths."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

import loopax
from loopax.errors import CheckpointError
from loopax.models.bert import BertConfig, BertForSequenceClassification
from loopax.recipes.bert.layout import CONFIG, INDEX, WEIGHTS, path_of, read_json, transposed

OTHER_HEADS = ("cls.", "qa_outputs.")
"""Of pretraining and of another task, which a classifier has no use for."""
OPTIONAL = ("bert/pooler/", "classifier/")
"""Parts that a file has as a whole or not at all."""


def weight_files(folder: Path) -> list[Path]:
    """The file of the weights, or those that an index names.

    Raises:
        CheckpointError: one of these is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    shards = read_json(folder / INDEX).get("weight_map")
    is_map = isinstance(shards, dict) and all(isinstance(name, str) for name in shards.values())
    if not shards or not is_map:
        raise CheckpointError(f"{folder / INDEX}: has no weight_map of names of files")
    files = [folder / Path(name).name for name in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder / INDEX}: names {file.name}, which is not there")
    return files


def digest_of(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several that of theirs."""
    digests = []
    for file in files:
        with file.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def read_weights(files: Sequence[Path], config: BertConfig) -> dict[str, np.ndarray]:
    """The parameters of files by our paths, each checked against the architecture."""
    path = files[0] if len(files) == 1 else files[0].with_name(INDEX)
    arrays = {
        name: array for file in files for name, array in loopax.weights.read_weights(file).items()
    }
    stored = _paths(path, arrays)
    layers = {name.split("/")[3] for name in stored if name.startswith("bert/encoder/layer/")}
    if len(layers) != config.num_hidden_layers:
        raise CheckpointError(
            f"{path}: has {len(layers)} layers; {CONFIG} says {config.num_hidden_layers}"
        )
    head = arrays.get("classifier.bias", np.zeros(1))
    shapes = shapes_of(config, classes=max(1, head.size))
    for ours, shape in shapes.items():
        part = next((part for part in OPTIONAL if ours.startswith(part)), None)
        wanted = part is None or any(other.startswith(part) for other in stored)
        if wanted and ours not in stored:
            raise CheckpointError(f"{path}: {ours} is missing; {CONFIG} makes it {list(shape)}")
    for ours, name in stored.items():
        if ours not in shapes:
            raise CheckpointError(f"{path}: {name} is in no BERT of this {CONFIG}")
    return {ours: _checked(path, ours, arrays[name], shapes[ours]) for ours, name in stored.items()}


def _paths(path: Path, names: Iterable[str]) -> dict[str, str]:
    """The names of a file by our paths; without what a classifier has no use for."""
    stored: dict[str, str] = {}
    for name in names:
        if name.startswith(OTHER_HEADS) or name.endswith("embeddings.position_ids"):
            continue
        ours = path_of(name)
        if ours is None:
            raise CheckpointError(f"{path}: {name} is no parameter of a BERT or its classifier")
        if ours in stored:
            raise CheckpointError(f"{path}: {stored[ours]} and {name} are the same parameter")
        stored[ours] = name
    return stored


def _checked(path: Path, ours: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a file as ours: float32, with the shape that it must have."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise CheckpointError(f"{path}: {ours} is {array.dtype}; a parameter is a float")
    array = transposed(ours, array)
    if array.shape != shape:
        raise CheckpointError(
            f"{path}: {ours} is {list(array.shape)}; {CONFIG} makes it {list(shape)}"
        )
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise CheckpointError(f"{path}: {ours} holds NaN or infinity; the file is damaged")
    return array


@functools.cache
def shapes_of(config: BertConfig, classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a classifier with a pooler, by path."""
    init = BertForSequenceClassification(config, classes).init
    form = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return {path: leaf.shape for path, leaf in flatten_dict(form["params"], sep="/").items()}
