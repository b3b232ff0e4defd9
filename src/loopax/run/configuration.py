"""Any configuration as plain JSON that is equal to itself in the next process."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import math
import numbers
import os
import types
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from loopax.arguments import kind_of
from loopax.errors import ConfigError

CLASS = "class"
"""Beside the fields of a dataclass inside of a configuration: another class is another setting."""


def as_mapping(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values: from a dataclass, a mapping, or nothing.

    Functions and classes become `module:name`, arrays their form and digest, sets are sorted, and
    numbers that JSON does not have become words.

    Raises:
        ConfigError: something in it cannot be compared with what it is in the next process.
    """
    fields = _fields(config)
    if fields is None:
        raise ConfigError(f"config is {kind_of(config)}; it must be a dataclass or a mapping")
    try:
        return {str(name): plain(value, str(name)) for name, value in fields.items()}
    except RecursionError as error:
        raise ConfigError("config contains itself; give a dataclass or a mapping") from error


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What two configurations differ in, a field each: `rate = 0.1, not 0.2`."""
    if isinstance(old, dict) and isinstance(new, dict):
        # The version before did not keep the classes.
        keys = [*old, *(key for key in new if key not in old and key != CLASS)]
        return [
            line
            for key in keys
            for line in differences(old.get(key), new.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if old == new or _same_file(old, new) else [f"{name} = {old!r}, not {new!r}"]


def _same_file(old: Any, new: Any) -> bool:
    """Whether both are paths to one file or folder: from where it was named is no setting."""
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    with suppress(OSError, ValueError):
        return os.path.samefile(os.path.expanduser(old), os.path.expanduser(new))
    return False


def plain(value: Any, name: str) -> Any:
    """A value of a configuration as JSON; `name` is that of its field.

    Raises:
        ConfigError: it cannot be compared with what it is in the next process.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind, fields = type(value), _fields(value) or {}
        defaults = {field.name: field.default for field in dataclasses.fields(value)}
        named = {}
        for key, field in fields.items():
            try:
                named[key] = plain(field, f"{name}.{key}")
            except ConfigError:
                # An initialiser that a Flax module has by default is what its class says it is.
                if field is not defaults[key]:
                    raise
                named[key] = "default"
        return named | {CLASS: f"{kind.__module__}:{kind.__qualname__}"}
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}.{key!s}") for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item, name) for item in value), key=json.dumps)
    if isinstance(value, np.dtype) or (isinstance(value, type) and hasattr(value, "dtype")):
        return np.dtype(value).name
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _array(value, name)
    if isinstance(value, functools.partial):
        parts = {"args": value.args, "keywords": value.keywords}
        return {"partial": plain(value.func, name), **plain(parts, name)}
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | range):
        return [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    return _atom(value, name)


def _atom(value: Any, name: str) -> Any:
    """What has no parts: a number, a word, a function, or an object that tells what it is."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value.value if isinstance(value, enum.Enum) else value)
    if isinstance(value, enum.Enum) and not isinstance(value, int | float):
        return str(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, types.MethodType) and not isinstance(value.__self__, type):
        return [plain(value.__self__, name), value.__name__]
    module, qualified = (getattr(value, key, None) for key in ("__module__", "__qualname__"))
    if isinstance(qualified, str) and isinstance(module, str):
        if "<" in qualified:
            what = "a lambda" if "<lambda>" in qualified else "made inside of another function"
            raise ConfigError(
                f"config's {name} is {what} ({qualified}), and cannot be told from another in "
                "the next process; give a function of a module, or its name"
            )
        return f"{module}:{qualified}"
    if isinstance(value, np.ufunc):
        return f"numpy:{value.__name__}"
    if " at 0x" in (text := str(value)):  # as an object says that says nothing of itself
        raise ConfigError(
            f"config's {name} is {kind_of(value)}, which does not tell what it holds; give what it "
            "was made of: numbers, words, a dataclass, or a function of a module"
        )
    return text


def _array(value: Any, name: str) -> Any:
    """A number as itself, an array as its form and the digest of its bytes."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.dtype == object:
        return plain(array.tolist(), name)
    if array.ndim == 0:
        return plain(array.item(), name)
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{array.dtype}{list(array.shape)} sha256:{digest}"


def _fields(config: Any) -> Mapping[Any, Any] | None:
    """The fields of what holds some by name, not copied: a copy of a function may lose its name."""
    if config is None:
        return {}
    if isinstance(config, Mapping):
        return config
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        # Of a Flax module, `parent` says where it stands and not what it is.
        names = [f.name for f in dataclasses.fields(config) if f.name != "parent" or f.repr]
        return {name: getattr(config, name) for name in names if hasattr(config, name)}
    for method in ("model_dump", "to_dict"):  # pydantic, ml_collections
        if callable(getattr(config, method, None)) and not isinstance(config, type):
            told = getattr(config, method)()
            return told if isinstance(told, Mapping) else None
    simple = hasattr(config, "__dict__") and not isinstance(config, type) and not callable(config)
    return vars(config) if simple and type(config).__module__ in ("argparse", "types") else None
