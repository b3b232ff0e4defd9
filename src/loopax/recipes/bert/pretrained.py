"""Pretrained models as Hugging Face stores them: found, checked, read, and made the start of ours.

Nothing of a model is executed: `config.json`, `model.safetensors` and `tokenizer.json` are data.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from loopax.errors import ConfigError
from loopax.extras import require
from loopax.models.bert import BertConfig, BertForSequenceClassification
from loopax.recipes.bert.layout import (
    CLASSIFIER,
    CONFIG,
    INDEX,
    MEAN_CLASSIFIER,
    MEAN_TYPE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VOCABULARY,
    WEIGHTS,
    read_json,
)
from loopax.recipes.bert.tokens import read_tokenizer
from loopax.recipes.bert.weights import digest_of, read_weights, weight_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

POOLING = "1_Pooling/config.json"
"""How a model of sentence-transformers pools."""
PATTERNS = (CONFIG, "model*.safetensors", INDEX, TOKENIZER, VOCABULARY, TOKENIZER_CONFIG, POOLING)
"""The files of a model on the hub that are of use here."""
LFS = b"version https://git-lfs"
"""How a file begins that Git left a pointer for."""
NO_CLASSES = ("multi_label_classification", "regression")
"""Kinds of heads whose outputs are not one class of several."""


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model as it was read.

    Attributes:
        source: where it was found, in words.
        folder: where its files are.
        config: its architecture.
        weights: float32 arrays by our paths: `bert/...` (the pooler if the file has it), and
            `classifier/...` if the file has a classifier of texts.
        tokenizer: neither cuts nor pads, whatever its file says.
        digest: SHA-256 of the files of weights.
        pooling: what its classifier sees, or what the model itself says; else `mean`.
        class_names: of its classifier, in the order of the logits; empty if it has none.
        notes: what its folder asks for and does not get, in lines.
    """

    source: str
    folder: Path
    config: BertConfig
    weights: Mapping[str, np.ndarray]
    tokenizer: Tokenizer
    digest: str
    pooling: Literal["mean", "pooler"]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_pretrained(name: str | Path) -> Pretrained:
    """Reads a pretrained BERT from a folder, an installed package, or the Hugging Face hub.

    Parameters may be stored in half precision, under old names, and with or without `bert.`;
    heads of other tasks are left aside. Whatever else does not fit the architecture is refused.

    Args:
        name: a folder that holds `config.json`, `model.safetensors` (or several with an index) and
            `tokenizer.json` (or `vocab.txt`); or a package that carries these, which is not
            imported; or a name on the hub, from where they are downloaded once.

    Raises:
        ConfigError: there is no such model, or it is not a BERT, or `loopax[bert]` is missing.
        CheckpointError: the weights or the tokenizer are damaged, or do not fit `config.json`.
    """
    folder, source = _located(str(name))
    if missing := _missing(folder):
        raise ConfigError(f"{folder}: {missing}")
    stored = read_json(folder / CONFIG)
    if stored.get("pooling", "mean") not in ("mean", "pooler"):
        raise ConfigError(
            f"{folder / CONFIG}: pooling is {stored['pooling']!r}; it must be mean or pooler"
        )
    if stored.get("model_type") == MEAN_TYPE and stored.get("pooling") == "mean":
        stored["model_type"] = "bert"
    config = BertConfig.from_json(stored, str(folder / CONFIG))
    files = weight_files(folder)
    weights = read_weights(files, config)
    task = stored.get("architectures") not in (None, [CLASSIFIER], [MEAN_CLASSIFIER])
    if task or stored.get("problem_type") in NO_CLASSES:
        # What other tasks call a classifier looks the same and means something else.
        weights = {path: array for path, array in weights.items() if path.startswith("bert/")}
    names, ways = _class_names(stored, weights), _poolings(folder)
    saw_pooler = bool(names) and "bert/pooler/dense/kernel" in weights and "mean" not in ways
    return Pretrained(
        source=source,
        folder=folder,
        config=config,
        weights=weights,
        tokenizer=read_tokenizer(folder, config),
        digest=digest_of(files),
        pooling=stored.get("pooling") or ("pooler" if saw_pooler else "mean"),
        class_names=names,
        notes=tuple(
            f"{folder / POOLING}: pools by {way}, which is not supported here; see --pooling"
            for way in ways
            if way != "mean"
        ),
    )


def params_for(
    pretrained: Pretrained,
    model: BertForSequenceClassification,
    key: jax.Array,
    class_names: Sequence[str] = (),
) -> Any:
    """Parameters of `model`, of the same architecture, that begin as the pretrained ones.

    The head is pretrained too if the file has one of the same classes (`head_order`).

    Args:
        pretrained: as it was read.
        model: a classifier of the same architecture; its dropout may differ.
        key: of a head that is new.
        class_names: the classes of `model`, in the order of its logits.

    Raises:
        ConfigError: `model` pools by the pooler, and there is no pretrained one.
    """
    left_out = ("classifier/",) if model.pooling == "pooler" else ("classifier/", "bert/pooler/")
    weights = {
        path: jnp.asarray(array)
        for path, array in pretrained.weights.items()
        if not path.startswith(left_out)
    }
    if model.pooling == "pooler" and "bert/pooler/dense/kernel" not in weights:
        raise ConfigError(
            f"{pretrained.folder / WEIGHTS}: has no bert.pooler, which is not pretrained; pool by "
            "mean"
        )
    order = head_order(pretrained, model.pooling, class_names)
    if order is None:
        features = jnp.zeros((1, model.config.hidden_size))
        head = jax.jit(functools.partial(model.init, method=model.classify))(key, features)
        return {"params": {**unflatten_dict(weights, sep="/"), **head["params"]}}
    for path in ("classifier/kernel", "classifier/bias"):
        weights[path] = jnp.asarray(pretrained.weights[path][..., order])
    return {"params": unflatten_dict(weights, sep="/")}


def head_order(
    pretrained: Pretrained, pooling: str, class_names: Sequence[str]
) -> list[int] | None:
    """Where a pretrained head has each of these classes; None if it is not of just these.

    Classes are the same by name, whatever their order is; case does not matter, so names that
    differ in nothing else tell no classes apart.
    """
    theirs = [name.casefold() for name in pretrained.class_names]
    ours = [name.casefold() for name in class_names]
    is_clear = theirs and len({*theirs}) == len(theirs) and sorted(theirs) == sorted(ours)
    if pretrained.pooling != pooling or not is_clear:
        return None
    return [theirs.index(name) for name in ours]


def _located(name: str) -> tuple[Path, str]:
    """The folder of a model, and where that is in words."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), str(folder.resolve())
    with suppress(metadata.PackageNotFoundError, ValueError):
        package = metadata.distribution(name)
        for file in package.files or ():
            found = Path(str(package.locate_file(file)))
            if file.name == CONFIG and not _missing(found.parent):
                return found.parent.resolve(), f"{name} {package.version}"
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ConfigError(f"{name}: there is no such folder")
    return _downloaded(name)


def _downloaded(name: str) -> tuple[Path, str]:
    """A model of the hub, from the hub's own cache if it is there."""
    require("bert", "a model of the hub", "huggingface_hub")
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=list(PATTERNS)))
    except Exception as error:  # The hub raises its own, those of its HTTP client, and OSError.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{name}: is neither a folder nor an installed package that carries a model, and the "
            f"Hugging Face hub does not give it: {ascii(reason)[1:-1][:200]}"
        ) from error
    return folder, f"{name} at {folder.name}"


def _missing(folder: Path) -> str | None:
    """What a folder lacks to be that of a model, and what to do, in words."""
    if not (folder / CONFIG).is_file():
        # As the cache of the hub and older models of sentence-transformers have it.
        inner = [*folder.glob(f"snapshots/*/{CONFIG}"), *folder.glob(f"*_Transformer/{CONFIG}")]
        there = f"; name {inner[0].parent}, which has one" if inner else ""
        return f"has no {CONFIG}{there or f'; a model has {CONFIG}, {WEIGHTS} and {TOKENIZER}'}"
    for file in (found for pattern in PATTERNS for found in folder.glob(pattern)):
        with file.open("rb") as content:
            if content.read(len(LFS)) == LFS:
                return f"{file.name} is a pointer of Git LFS; `git lfs pull` there fetches the file"
    if not any((folder / file).is_file() for file in (WEIGHTS, INDEX)):
        return (
            f"has no {WEIGHTS}; pytorch_model.bin, which can run code, is not read: save it anew "
            "with transformers, AutoModel.from_pretrained(...).save_pretrained(...)"
        )
    if not any((folder / file).is_file() for file in (TOKENIZER, VOCABULARY)):
        return f"has no {TOKENIZER} and no {VOCABULARY}; a model has one of them"
    return None


def _poolings(folder: Path) -> list[str]:
    """The ways in which a folder of sentence-transformers pools; none where it does not say."""
    if not (folder / POOLING).is_file():
        return []
    said = read_json(folder / POOLING)
    mode = "pooling_mode_"
    ways = [
        name.removeprefix(mode) for name in said if name.startswith(mode) and said[name] is True
    ]
    ways += [said["pooling_mode"]] if isinstance(said.get("pooling_mode"), str) else []
    return [way.removesuffix("_tokens").removesuffix("_token") for way in ways]


def _class_names(stored: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """As `id2label` has them; numbers where it says nothing sensible; none without a head."""
    classes = range(len(weights.get("classifier/bias", ())))
    names = stored.get("id2label")
    names = names if isinstance(names, dict) else {}
    return tuple(str(names.get(str(index), f"LABEL_{index}")) for index in classes)
