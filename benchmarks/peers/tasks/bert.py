"""BERT classifiers of texts, with random weights: tiny, and of MiniLM's sizes.

Half of a text are tokens of its class, and every fifth label is wrong, so that the loss of all
comes to rest at about 0.5 nats. Dropout is on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Weights = dict[str, tuple[np.ndarray, ...]]

LENGTH, CLASSES = 128, 2
CONFIG = {
    "bert-tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "bert-minilm": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
}
"""By the names of Hugging Face's `config.json`."""
for _sizes in CONFIG.values():
    _sizes.update(
        vocab_size=30_522,
        intermediate_size=4 * _sizes["hidden_size"],
        max_position_embeddings=512,
        type_vocab_size=2,
    )


def weights(name: str) -> Weights:
    """The values that all begin with, by PyTorch's names of the layers."""
    config, rng = CONFIG[name], np.random.default_rng(0)
    hidden, wide = config["hidden_size"], config["intermediate_size"]

    def normal(*shape: int) -> np.ndarray:
        return (0.02 * rng.standard_normal(shape)).astype(np.float32)

    def dense(inputs: int, outputs: int) -> tuple[np.ndarray, ...]:
        return normal(inputs, outputs), np.zeros(outputs, np.float32)

    norm = (np.ones(hidden, np.float32), np.zeros(hidden, np.float32))
    found: Weights = {
        "bert.embeddings.word_embeddings": (normal(config["vocab_size"], hidden),),
        "bert.embeddings.position_embeddings": (normal(config["max_position_embeddings"], hidden),),
        "bert.embeddings.token_type_embeddings": (normal(config["type_vocab_size"], hidden),),
        "bert.embeddings.LayerNorm": norm,
        "bert.pooler.dense": dense(hidden, hidden),
        "classifier": dense(hidden, CLASSES),
    }
    for index in range(config["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{index}"
        for projection in ("query", "key", "value"):
            found[f"{layer}.attention.self.{projection}"] = dense(hidden, hidden)
        found[f"{layer}.attention.output.dense"] = dense(hidden, hidden)
        found[f"{layer}.attention.output.LayerNorm"] = norm
        found[f"{layer}.intermediate.dense"] = dense(hidden, wide)
        found[f"{layer}.output.dense"] = dense(wide, hidden)
        found[f"{layer}.output.LayerNorm"] = norm
    return found


def data(name: str, part: str) -> dict[str, np.ndarray]:
    """Tokens, int32 `(n, 128)`, how many of them are a text's, and labels, both int32 `(n,)`."""
    count, seed = (20_000, 0) if part == "train" else (256, 1)
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count)
    ids = rng.integers(2000, 30_000, (count, LENGTH))
    telling = rng.random(ids.shape) < 0.5
    ids[telling] = (1000 + 2 * label[:, None] + rng.integers(0, 2, ids.shape))[telling]
    ids[:, 0] = 101  # [CLS]
    length = rng.integers(LENGTH // 2, LENGTH + 1, count)
    ids[np.arange(LENGTH) >= length[:, None]] = 0
    label = np.where(rng.random(count) < 0.2, 1 - label, label)
    columns = {"input_ids": ids, "length": length, "label": label}
    return {key: column.astype(np.int32) for key, column in columns.items()}


def loss(name: str, weights: Weights, test: Mapping[str, np.ndarray], *, noise: bool) -> float:
    """The mean cross entropy in nats, without dropout. Nothing is drawn, `noise` or not."""
    from scipy.special import erf

    config, ids = CONFIG[name], test["input_ids"]
    shape = (*ids.shape, config["num_attention_heads"], -1)
    masked = np.where(np.arange(LENGTH) < test["length"][:, None], 0, -1e9)[:, None, None]

    def dense(at: str, x: np.ndarray) -> np.ndarray:
        kernel, bias = weights[at]
        return x @ kernel + bias

    def norm(at: str, x: np.ndarray) -> np.ndarray:
        scale, bias = weights[f"{at}.LayerNorm"]
        return (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * scale + bias

    words, positions, types = (
        weights[f"bert.embeddings.{kind}_embeddings"][0]
        for kind in ("word", "position", "token_type")
    )
    x = norm("bert.embeddings", words[ids] + positions[:LENGTH] + types[0])
    for layer in (f"bert.encoder.layer.{i}" for i in range(config["num_hidden_layers"])):
        query, key, value = (
            dense(f"{layer}.attention.self.{each}", x).reshape(shape).swapaxes(1, 2)
            for each in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(2, 3) / math.sqrt(query.shape[-1]) + masked
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention = (attention / attention.sum(-1, keepdims=True)).astype(np.float32)
        mixed = (attention @ value).swapaxes(1, 2).reshape(x.shape)
        x = norm(f"{layer}.attention.output", x + dense(f"{layer}.attention.output.dense", mixed))
        wide = dense(f"{layer}.intermediate.dense", x)
        wide = 0.5 * wide * (1 + erf(wide / np.float32(math.sqrt(2))))
        x = norm(f"{layer}.output", x + dense(f"{layer}.output.dense", wide))
    logits = dense("classifier", np.tanh(dense("bert.pooler.dense", x[:, 0])))
    total = np.log(np.exp(logits).sum(-1))
    return float((total - logits[np.arange(len(ids)), test["label"]]).mean())
