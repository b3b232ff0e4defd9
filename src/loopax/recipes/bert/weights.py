"""The weights of a BERT as PyTorch transformers stores them, checked, by our paths."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

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
    if not shards or not isinstance(shards, dict):
        raise CheckpointError(f"{folder / INDEX}: has no weight_map of names of files")
    files = [folder / Path(str(name)).name for name in sorted(set(shards.values()))]
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
    together = hashlib.sha256("".join(digests).encode()).hexdigest()
    return digests[0] if len(digests) == 1 else together


def read_weights(files: Sequence[Path], config: BertConfig) -> dict[str, np.ndarray]:
    """The parameters of files by our paths, as float32.

    Raises:
        CheckpointError: they are not just those of the architecture, or are no numbers.
    """
    source = str(files[0] if len(files) == 1 else files[0].with_name(INDEX))
    weights = {}
    for file in files:
        for name, array in loopax.weights.read_weights(file).items():
            if not name.startswith(OTHER_HEADS) and not name.endswith("embeddings.position_ids"):
                weights[path_of(name)] = transposed(path_of(name), _as_float32(array))
    layers = {path.split("/")[3] for path in weights if path.startswith("bert/encoder/layer/")}
    if len(layers) != config.num_hidden_layers:
        raise CheckpointError(
            f"{source}: has {len(layers)} layers; {CONFIG} says {config.num_hidden_layers}"
        )
    classes = weights.get("classifier/bias", np.zeros(1)).size
    model = BertForSequenceClassification(config, max(1, classes))
    form = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    absent = tuple(part for part in OPTIONAL if not any(p.startswith(part) for p in weights))
    leaves = flatten_dict(form["params"], sep="/").items()
    wanted = {path: leaf for path, leaf in leaves if not path.startswith(absent)}
    loopax.weights.with_weights(unflatten_dict(wanted, sep="/"), weights, source=source)
    for path, array in weights.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{source}: {path} holds NaN or infinity; the file is damaged")
    return weights


def _as_float32(array: np.ndarray) -> np.ndarray:
    """Floats of any precision; what is no float stays, to be refused."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)
