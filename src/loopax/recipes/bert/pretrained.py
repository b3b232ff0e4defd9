"""Pretrained models as Hugging Face stores them: found, checked, read, and made the start of ours.

Nothing of a model is executed: `config.json`, `model.safetensors` and `tokenizer.json` are data.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Bool

import loopax
from loopax.errors import CheckpointError, ConfigError, DataError
from loopax.models.bert import BertConfig, BertForSequenceClassification
from loopax.recipes.bert.layout import (
    CLASSIFIER,
    CONFIG,
    MEAN_CLASSIFIER,
    MEAN_TYPE,
    TOKENIZER,
    WEIGHTS,
    name_of,
    path_of,
    transposed,
)
from loopax.recipes.bert.saving import save_pretrained as save_pretrained

if TYPE_CHECKING:
    from tokenizers import Tokenizer

INDEX, VOCABULARY, TOKENIZER_CONFIG = (
    "model.safetensors.index.json",
    "vocab.txt",
    "tokenizer_config.json",
)
POOLING = "1_Pooling/config.json"
"""How a model of sentence-transformers pools."""
PATTERNS = (CONFIG, "model*.safetensors", INDEX, TOKENIZER, VOCABULARY, TOKENIZER_CONFIG, POOLING)
"""The files of a model on the hub that are of use here."""
LFS = b"version https://git-lfs"
"""How a file begins that Git left a pointer for."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
NO_CLASSES = ("multi_label_classification", "regression")
"""Kinds of heads whose outputs are not one class of several."""
OTHER_HEADS = ("cls.", "qa_outputs.")
"""Of pretraining and of another task, which a classifier has no use for."""
OPTIONAL = ("bert/pooler/", "classifier/")
"""Parts that a file has as a whole or not at all."""
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model as it was read.

    Attributes:
        source: where it was found, in words.
        folder: where its files are.
        config: its architecture.
        weights: float32 arrays by our paths: all of `bert/...` (the pooler if the file has it), and
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
    stored = _read_json(folder / CONFIG)
    if stored.get("pooling", "mean") not in ("mean", "pooler"):
        raise ConfigError(
            f"{folder / CONFIG}: pooling is {stored['pooling']!r}; it must be mean or pooler"
        )
    if stored.get("model_type") == MEAN_TYPE and stored.get("pooling") == "mean":
        stored["model_type"] = "bert"
    config = BertConfig.from_json(stored, str(folder / CONFIG))
    files = _weight_files(folder)
    weights = _read_weights(files, config)
    task = stored.get("architectures") not in (None, [CLASSIFIER], [MEAN_CLASSIFIER])
    if task or stored.get("problem_type") in NO_CLASSES:
        # What other tasks call a classifier looks the same and means something else.
        weights = {path: array for path, array in weights.items() if path.startswith("bert/")}
    names = _class_names(stored, weights)
    pooling = _pooling(folder, stored, bool(names), "bert/pooler/dense/kernel" in weights)
    return Pretrained(
        source=source,
        folder=folder,
        config=config,
        weights=weights,
        tokenizer=_read_tokenizer(folder, config),
        digest=_digest(files),
        pooling=pooling,
        class_names=names,
        notes=tuple(
            f"{folder / POOLING}: pools by {way}, which is not supported here; see --pooling"
            for way in _poolings(folder)
            if way != "mean"
        ),
    )


def params_for(
    pretrained: Pretrained,
    model: BertForSequenceClassification,
    start: Any,
    class_names: Sequence[str] = (),
) -> Any:
    """Parameters of `model` that begin as the pretrained ones.

    The head is pretrained too if the file has one of the same classes (`head_order`).

    Args:
        pretrained: as it was read.
        model: a classifier of the same architecture; its dropout may differ.
        start: parameters of `model`, or a random key to make those that are not pretrained.
        class_names: the classes of `model`, in the order of its logits.

    Raises:
        ConfigError: `model` pools by the pooler, and there is no pretrained one.
        CheckpointError: `model` is of another architecture.
    """
    for field in fields(BertConfig):
        here, there = (getattr(each.config, field.name) for each in (model, pretrained))
        if here != there and field.name not in DROPOUTS:
            raise CheckpointError(
                f"{pretrained.folder}: {field.name} is {there}, and the model's is {here}"
            )
    params = _new(model, start) if isinstance(start, jax.Array) else start
    leaves = flatten_dict(params["params"], sep="/")
    weights = {path: array for path, array in pretrained.weights.items() if path in leaves}
    if missing := [path for path in leaves if path.startswith("bert/") and path not in weights]:
        raise ConfigError(
            f"{pretrained.folder / WEIGHTS}: has no {name_of(missing[0])}, which is not "
            f"pretrained; {'pool by mean' if 'pooler' in missing[0] else 'take another model'}"
        )
    order = head_order(pretrained, model.pooling, class_names)
    for path in [path for path in weights if path.startswith("classifier/")]:
        array = weights.pop(path)
        if order is not None:
            weights[path] = array[..., order]
    source = str(pretrained.folder / WEIGHTS)
    return loopax.with_weights(params, weights, source=source, partial=True)


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


def _new(model: BertForSequenceClassification, key: jax.Array) -> Any:
    """Parameters with a new head; the encoder, which would take seconds to draw, is zeros."""
    config = model.config
    head = jax.jit(functools.partial(model.init, method=model.classify))(
        key, jnp.zeros((1, config.hidden_size))
    )
    encoder = {
        path: jnp.zeros(shape)
        for path, shape in _shapes(config, model.classes).items()
        if path.startswith("bert/")
        and (model.pooling == "pooler" or not path.startswith("bert/pooler/"))
    }
    return {"params": {**unflatten_dict(encoder, sep="/"), **head["params"]}}


def encode(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], max_length: int
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, " rows"]]:
    """Rows of one text or of a pair as columns of tokens, padded; and which rows were truncated.

    `input_ids` and, where there is a pair, `token_type_ids` are int32 `[rows, longest]`; `length`
    is int32 `[rows]`. Of a row that is too long, tokens are taken from the end of its longer text.

    Args:
        tokenizer: is not changed.
        texts: the rows.
        max_length: tokens in a row at most, special ones included.

    Raises:
        ConfigError: `max_length` leaves no room beside the special tokens.
        DataError: a row is not one or two texts.
    """
    for index, row in enumerate(texts):
        if isinstance(row, str) or len(row) not in (1, 2) or not all(map(_is_text, row)):
            raise DataError(f"row {index} is {ascii(row)[:80]}; it must be one or two texts")
    pairs = any(len(row) == 2 for row in texts)
    least = tokenizer.num_special_tokens_to_add(pairs) + 1 + pairs
    if max_length < least:
        raise ConfigError(f"max_length is {max_length}; it must be at least {least} for these rows")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.enable_truncation(max_length)
    encodings = tokenizer.encode_batch_fast([row if len(row) == 2 else row[0] for row in texts])
    columns = {"input_ids": [encoding.ids for encoding in encodings]}
    if pairs:
        columns["token_type_ids"] = [encoding.type_ids for encoding in encodings]
    length = np.array([len(encoding) for encoding in encodings], np.int32)
    fill = {"input_ids": tokenizer.token_to_id("[PAD]") or 0, "token_type_ids": 0}
    padded = {name: _padded(rows, length, fill[name]) for name, rows in columns.items()}
    truncated = np.array([bool(encoding.overflowing) for encoding in encodings], bool)
    return {**padded, "length": length}, truncated


def needed(module: str) -> Any:
    """A module of the extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{module} is needed for a pretrained BERT: pip install 'loopax[bert]' ({error})"
        ) from error


def _is_text(text: Any) -> bool:
    """Text that can be written; half of a surrogate pair cannot, and no tokenizer takes it."""
    return isinstance(text, str) and not re.search("[\ud800-\udfff]", text)


def _padded(rows: Sequence[Sequence[int]], length: np.ndarray, fill: int) -> np.ndarray:
    padded = np.full((len(rows), length.max(initial=0)), fill, np.int32)
    padded[np.arange(padded.shape[1])[None] < length[:, None]] = [x for row in rows for x in row]
    return padded


def _located(name: str) -> tuple[Path, str]:
    """The folder of a model, and where that is in words."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve(), str(folder.resolve())
    if re.fullmatch(r"[\w.-]+", name):
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            pass
        else:
            for file in package.files or ():
                found = Path(str(package.locate_file(file)))
                if file.name == CONFIG and not _missing(found.parent):
                    return found.parent.resolve(), f"{name} {package.version}"
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise ConfigError(f"{name}: there is no such folder")
    return _downloaded(name)


def _downloaded(name: str) -> tuple[Path, str]:
    """A model of the hub, from the hub's own cache if it is there."""
    hub = needed("huggingface_hub")
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=list(PATTERNS)))
    except Exception as error:  # The hub raises its own, those of its HTTP client, and OSError.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ConfigError(
            f"{name}: is neither a folder nor an installed package that carries a model, and the "
            f"Hugging Face hub does not give it: {ascii(reason)[1:-1][:200]}"
        ) from error
    return folder, f"{name} at {folder.name}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {ascii(str(error))[1:-1]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}; it must be a JSON object")
    return content


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


def _weight_files(folder: Path) -> list[Path]:
    """The file of the weights, or those that an index names.

    Raises:
        CheckpointError: one of these is not there.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    shards = _read_json(folder / INDEX).get("weight_map")
    is_map = isinstance(shards, dict) and all(isinstance(name, str) for name in shards.values())
    if not shards or not is_map:
        raise CheckpointError(f"{folder / INDEX}: has no weight_map of names of files")
    files = [folder / Path(name).name for name in sorted(set(shards.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder / INDEX}: names {file.name}, which is not there")
    return files


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of a file; of several that of theirs."""
    digests = []
    for file in files:
        with file.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def _pooling(
    folder: Path, stored: Mapping[str, Any], has_head: bool, has_pooler: bool
) -> Literal["mean", "pooler"]:
    """What a classifier of the folder sees, by its own word or its kind; else the mean."""
    if "pooling" in stored:
        return "mean" if stored["pooling"] == "mean" else "pooler"
    if "mean" in _poolings(folder):
        return "mean"
    return "pooler" if has_head and has_pooler else "mean"


def _poolings(folder: Path) -> list[str]:
    """The ways in which a folder of sentence-transformers pools; none where it does not say."""
    if not (folder / POOLING).is_file():
        return []
    said = _read_json(folder / POOLING)
    mode = "pooling_mode_"
    ways = [
        name.removeprefix(mode) for name in said if name.startswith(mode) and said[name] is True
    ]
    ways += [said["pooling_mode"]] if isinstance(said.get("pooling_mode"), str) else []
    return [way.removesuffix("_tokens").removesuffix("_token") for way in ways]


def _read_vocabulary(folder: Path) -> Tokenizer:
    """The tokenizer of a folder that has its words alone, as BERT reads texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    settings = folder / TOKENIZER_CONFIG
    said = _read_json(settings) if settings.is_file() else {}
    vocabulary = models.WordPiece.read_file(str(folder / VOCABULARY))
    if missing := [token for token in SPECIAL[:4] if token not in vocabulary]:
        raise ValueError(f"it has no {missing[0]}")
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens([token for token in SPECIAL if token in vocabulary])
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=said.get("do_lower_case", True),
        strip_accents=said.get("strip_accents"),
        handle_chinese_chars=said.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = {token: vocabulary[token] for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=list(ends.items()),
    )
    return tokenizer


def _read_tokenizer(folder: Path, config: BertConfig) -> Tokenizer:
    tokenizers = needed("tokenizers")
    path = folder / TOKENIZER
    try:
        if path.is_file():
            tokenizer: Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        else:
            path = folder / VOCABULARY
            tokenizer = _read_vocabulary(folder)
    except ConfigError:
        raise
    except Exception as error:  # The library raises nothing narrower.
        reason = ascii(str(error))[1:-1][:200]
        raise CheckpointError(f"{path}: is not a tokenizer: {reason}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{path}: has a token {largest}, and {CONFIG} a vocab_size of {config.vocab_size}; "
            "they are of different models"
        )
    return tokenizer


def _read_weights(files: Sequence[Path], config: BertConfig) -> dict[str, np.ndarray]:
    """The parameters of files by our paths, each checked against the architecture."""
    path = files[0] if len(files) == 1 else files[0].with_name(INDEX)
    arrays = {name: array for file in files for name, array in loopax.read_weights(file).items()}
    stored = _paths(path, arrays)
    layers = {name.split("/")[3] for name in stored if name.startswith("bert/encoder/layer/")}
    if len(layers) != config.num_hidden_layers:
        raise CheckpointError(
            f"{path}: has {len(layers)} layers; {CONFIG} says {config.num_hidden_layers}"
        )
    head = arrays.get("classifier.bias", np.zeros(1))
    shapes = _shapes(config, classes=max(1, head.size))
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
def _shapes(config: BertConfig, classes: int) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a classifier with a pooler, by path."""
    init = BertForSequenceClassification(config, classes).init
    form = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    return {path: leaf.shape for path, leaf in flatten_dict(form["params"], sep="/").items()}


def _class_names(stored: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """As `id2label` has them; numbers where it says nothing sensible."""
    if "classifier/bias" not in weights:
        return ()
    names = stored.get("id2label")
    names = names if isinstance(names, dict) else {}
    return tuple(
        str(names.get(str(index), f"LABEL_{index}"))
        for index in range(len(weights["classifier/bias"]))
    )
