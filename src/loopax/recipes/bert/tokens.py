"""Texts as tokens, and a model applied to many of them in few shapes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from loopax.data import bucket_lengths, kept
from loopax.errors import CheckpointError, ConfigError, DataError
from loopax.extras import require
from loopax.models.bert import BertConfig
from loopax.recipes.bert.layout import CONFIG, TOKENIZER, TOKENIZER_CONFIG, VOCABULARY, read_json
from loopax.terminal import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CUT = ("input_ids", "token_type_ids")
"""The columns that are cut to the length of their bucket."""
BATCH, BLOCK = 64, 2**13
"""Texts that a model is given at once, and that are tokenised at once."""


def read_tokenizer(folder: Path, config: BertConfig) -> Tokenizer:
    """The tokenizer of a folder; it neither cuts nor pads, whatever its file says.

    Raises:
        CheckpointError: it is damaged, or of another model than `config`.
    """
    require("bert", "a pretrained BERT", "tokenizers")
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    try:
        if path.is_file():
            tokenizer: Tokenizer = Tokenizer.from_file(str(path))
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


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, ...]],
    max_length: int,
    place: kept.Place = kept.in_memory,
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, " rows"]]:
    """Rows of one text or of a pair as columns of tokens, padded; and which rows were truncated.

    `input_ids` and, where there is a pair, `token_type_ids` are int32 `[rows, longest]`; `length`
    is int32 `[rows]`. Of a row that is too long, tokens are taken from the end of its longer text.

    Args:
        tokenizer: is not changed.
        texts: the rows.
        max_length: tokens in a row at most, special ones included.
        place: makes the arrays of a shape and a type that the padded columns are written to.

    Raises:
        ConfigError: `max_length` leaves no room beside the special tokens.
        DataError: a row is not one or two texts.
    """
    for index, row in enumerate(texts):
        # Half of a surrogate pair cannot be written, and no tokenizer takes it.
        texts_of = row if isinstance(row, tuple) and len(row) in (1, 2) else (None,)
        if any(not isinstance(t, str) or re.search("[\ud800-\udfff]", t) for t in texts_of):
            raise DataError(f"row {index} is {ascii(row)[:80]}; it must be one or two texts")
    pairs = any(len(row) == 2 for row in texts)
    least = tokenizer.num_special_tokens_to_add(pairs) + 1 + pairs
    if max_length < least:
        raise ConfigError(f"max_length is {max_length}; it must be at least {least} for these rows")
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.enable_truncation(max_length)
    names = ("ids", "type_ids") if pairs else ("ids",)
    length, truncated = np.zeros(len(texts), np.int32), np.zeros(len(texts), bool)
    # What the tokenizer says of a token takes fifty times as many bytes as the token.
    tokens: dict[str, list[np.ndarray]] = {name: [] for name in names}
    with Progress("tokenising texts", len(texts)) as progress:
        for first in range(0, len(texts), BLOCK):
            block = slice(first, first + BLOCK)
            rows = [row if len(row) == 2 else row[0] for row in texts[block]]
            encodings = tokenizer.encode_batch_fast(rows)
            length[block] = [len(encoding) for encoding in encodings]
            truncated[block] = [bool(encoding.overflowing) for encoding in encodings]
            for name, parts in tokens.items():
                flat = (token for each in encodings for token in getattr(each, name))
                parts.append(np.fromiter(flat, np.int32))
            progress.at(first + len(rows))
    fill = tokenizer.token_to_id("[PAD]") or 0
    columns = {"input_ids": _padded(tokens.pop("ids"), length, fill, place)}
    if pairs:
        columns["token_type_ids"] = _padded(tokens.pop("type_ids"), length, 0, place)
    return {**columns, "length": length}, truncated


def model_inputs(batch: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Ids, segments (None where there are no pairs) and mask of a batch of tokens."""
    ids = batch["input_ids"]
    mask = jnp.arange(ids.shape[1])[None] < batch["length"][:, None]
    return ids, batch.get("token_type_ids"), mask


def in_batches(
    function: Callable[[Mapping[str, np.ndarray]], jax.Array],
    columns: Mapping[str, np.ndarray],
    longest: int,
    size: int = BATCH,
) -> np.ndarray:
    """`function` of all rows of `columns`, in their order, `size` rows of similar length at a time.

    The last rows are filled up with copies, and none is longer than `longest`, so that `function`
    meets one shape for each length that a bucket can have.
    """
    lengths = columns["length"]
    order = np.argsort(lengths, kind="stable")
    bounds = [min(bound, longest) for bound in bucket_lengths(longest)]
    results = []
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        bound = next(bound for bound in bounds if bound >= lengths[rows].max())
        batch = {name: column[np.resize(rows, size)] for name, column in columns.items()}
        for name in CUT:
            if name in batch:  # Columns that are shorter than their bucket are filled up.
                short = max(0, bound - batch[name].shape[1])
                batch[name] = np.pad(batch[name][:, :bound], ((0, 0), (0, short)))
        results.append(np.asarray(function(batch))[: len(rows)])
    return np.concatenate(results)[np.argsort(order)]


def _read_vocabulary(folder: Path) -> Tokenizer:
    """The tokenizer of a folder that has its words alone, as BERT reads texts."""
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    settings = folder / TOKENIZER_CONFIG
    said = read_json(settings) if settings.is_file() else {}
    tokenizer = BertWordPieceTokenizer(
        str(folder / VOCABULARY),
        lowercase=said.get("do_lower_case", True),
        strip_accents=said.get("strip_accents"),
        handle_chinese_chars=said.get("tokenize_chinese_chars", True),
    )
    plain: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    return plain


def _padded(
    parts: Sequence[np.ndarray], length: np.ndarray, fill: int, place: kept.Place
) -> np.ndarray:
    """The tokens of each block of rows, one after another, as a row for each text."""
    padded = place((len(length), int(length.max(initial=0))), np.int32)
    padded[:] = fill
    for index, part in enumerate(parts):
        block = slice(index * BLOCK, (index + 1) * BLOCK)
        is_token = np.arange(padded.shape[1])[None] < length[block, None]
        padded[block][is_token] = part
    return padded
