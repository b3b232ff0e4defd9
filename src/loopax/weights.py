"""Parameters as one safetensors file: written whole or not at all, checked before it is trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from loopax import placement
from loopax.errors import CheckpointError, ConfigError
from loopax.files import replacing, storing
from loopax.paths import PyTree, differing, form_of, leaf_path, map_with_path

SUFFIX = ".safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("bfloat16", "float16", "float32", "float64", "complex64"),
)
"""What comes back from a file as it was; the library writes some more that it cannot read."""


def save_weights(
    path: str | Path, params: PyTree, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes the arrays of `params`, each under its path as patterns name it, and `metadata`.

    Every array is gathered on the host. Values are kept bit for bit, NaN included.

    Raises:
        ConfigError: `path` does not end in `.safetensors`, or a leaf is not an array of numbers
            (such as a random key), or has a name that is taken or cannot be printed.
        StorageError: the file could not be written; what was there before is as it was.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ConfigError(f"{path}: weights are written as {SUFFIX}; name it {path.stem}{SUFFIX}")
    # The library writes the memory behind an array as it lies, whatever the array's strides.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in _flat(params).items()}
    # It also writes a header that nobody can read when both of these are empty mappings.
    content = save(arrays, dict(metadata) if metadata else None)
    with storing(path), replacing(path) as partial:
        partial.write_bytes(content)


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file by name.

    Values are what the file says, NaN and infinity included; `with_weights` checks what they fit.

    Raises:
        CheckpointError: there is no such file, or it is of another kind, damaged or ambiguous.
    """
    path = Path(path)
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path}: may be a pickle, which can run any program when it is read; "
            f"convert it to {SUFFIX}"
        )
    if path.suffix != SUFFIX:
        raise CheckpointError(f"{path}: is not a {SUFFIX} file; weights are read from no other")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file")
    try:
        # Read and not mapped: a file that shrinks meanwhile is an error then, and not a crash.
        with safe_open(path, framework="numpy", backend="pread") as file:
            weights: dict[str, np.ndarray] = file.get_tensors()
        _check_content(path, weights)
    except Exception as error:
        # The reason may quote the file, which can hold anything.
        reason = ascii(str(error))[1:-1][:200]
        raise CheckpointError(f"{path}: is not a sound safetensors file: {reason}") from error
    return weights


def with_weights(
    params: PyTree, weights: Mapping[str, np.ndarray], *, source: str, partial: bool = False
) -> PyTree:
    """`params` with the values of `weights`; a leaf on a device is replaced by one that lies alike.

    Args:
        params: arrays, or what `jax.eval_shape` gives; only their form matters.
        weights: one array for each leaf, by its path, of the same shape and dtype.
        source: where the weights are from, for the error.
        partial: leaves that `weights` does not name stay as they are.

    Raises:
        CheckpointError: a name, a shape or a dtype differs.
        ConfigError: `params` cannot be told apart by name, or are not arrays.
    """
    old = {name: form_of(array) for name, array in weights.items()}
    leaves = _flat(params)
    new = {name: form_of(leaf) for name, leaf in leaves.items() if name in old or not partial}
    if differences := differing(old, new):
        raise CheckpointError(f"{source}: of another model: {differences}")
    return map_with_path(
        lambda name, leaf: _placed_like(leaf, weights[name]) if name in weights else leaf, params
    )


def _flat(params: PyTree) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = leaf_path(key_path)
        dtype = str(getattr(leaf, "dtype", type(leaf).__name__))
        if dtype not in DTYPES:
            raise ConfigError(f"{name} is {dtype}; weights are arrays of {', '.join(DTYPES)}")
        if name in leaves:
            raise ConfigError(f"two of the parameters are named {name!r}; rename one of them")
        if name == "__metadata__" or not name.isprintable():
            raise ConfigError(f"{name!r} cannot name a parameter in a file; rename it")
        leaves[name] = leaf
    return leaves


def _placed_like(leaf: Any, array: np.ndarray) -> Any:
    return placement.put_like(array, leaf) if isinstance(leaf, jax.Array) else array


def _check_content(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Checks what the library lets pass; it has compared every length with the file's."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        json.loads(file.read(length), object_pairs_hook=_without_duplicates)
    for name, array in weights.items():
        if not name.isprintable():
            raise ValueError(f"the name {name!r} cannot be printed")
        if array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f"{name} is bool and holds a byte other than 0 and 1")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> None:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise ValueError(f"the header names {name!r} twice")
        names.add(name)
