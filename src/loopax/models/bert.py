"""BERT and a classifier on top of it, with the parameter names of PyTorch transformers.

The encoder of Devlin, Chang, Lee and Toutanova, "BERT: Pre-training of Deep Bidirectional
Transformers for Language Understanding" (2018): learned absolute positions, and a normalisation
after each residual sum. `bert/encoder/layer/0/attention/self/query/kernel` is what PyTorch calls
`bert.encoder.layer.0.attention.self.query.weight`, transposed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from loopax.errors import ConfigError

Ids = Int[Array, "batch length"]
Mask = Int[Array, "batch length"] | Bool[Array, "batch length"]
Hidden = Float[Array, "batch length hidden"]
Features = Float[Array, "batch hidden"]
Logits = Float[Array, "batch classes"]


def _gelu(x: Array) -> Array:
    """With erf, as BERT was trained; `jax.nn.gelu` goes by erfc, which costs twice as much."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _gelu,
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}
LIMIT = 2**31
"""No size reaches it: indices are int32."""
SUPPORTED = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
"""What a `config.json` may say of what is not a field here."""


@dataclass(frozen=True)
class BertConfig:
    """The architecture, by the names of Hugging Face's `config.json`.

    Attributes:
        vocab_size: number of tokens.
        hidden_size: width of the hidden states.
        num_hidden_layers: number of encoder layers.
        num_attention_heads: heads of each layer, of `hidden_size / num_attention_heads` each.
        intermediate_size: width inside of the feed-forward networks.
        max_position_embeddings: tokens in the longest text.
        type_vocab_size: how many segments a text can have; a pair has two.
        hidden_act: a name of `ACTIVATIONS`.
        hidden_dropout_prob, attention_probs_dropout_prob: shares left out in training.
        classifier_dropout: the share before the head; None is `hidden_dropout_prob`.
        layer_norm_eps: what is added to a variance before its root is taken.
        initializer_range: standard deviation of what is not pretrained.

    Raises:
        ConfigError: a value cannot work.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            value, name = getattr(self, field.name), field.name
            if field.type == "int" and not (type(value) is int and 1 <= value < LIMIT):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1")
            if name == "classifier_dropout" and value is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name.endswith(("_prob", "_dropout")) and not (number and 0 <= value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be at least 0 and below 1")
            if name in ("layer_norm_eps", "initializer_range") and not (number and 0 < value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be above 0 and below 1")
        if self.hidden_act not in list(ACTIVATIONS):  # which need not be hashable
            raise ConfigError(
                f"hidden_act is {self.hidden_act!r}; it must be one of {', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size is {self.hidden_size}; it must be divisible by num_attention_heads, "
                f"{self.num_attention_heads}"
            )

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any], where: str) -> BertConfig:
        """The architecture in the content of a `config.json`; `where` is for the error.

        Raises:
            ConfigError: it is of another kind of model, or a field is missing or cannot work.
        """
        for name, right in SUPPORTED.items():
            if (value := mapping.get(name, right)) != right:
                raise ConfigError(f"{where}: {name} is {value!r}; only {right!r} is supported")
        for field in fields(cls):
            if field.default is MISSING and field.name not in mapping:
                raise ConfigError(f"{where}: {field.name} is missing; a BERT has one")
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in mapping.items() if name in known})
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


class _Part(nn.Module):
    """What the parts below share: the architecture, and layers of its sizes."""

    config: BertConfig

    def dense(self, x: Array, features: int, name: str = "dense") -> Array:
        """Applied to one long list of tokens: the gradient of a kernel is then a plain product."""
        layer = nn.Dense(
            features,
            kernel_init=nn.initializers.normal(self.config.initializer_range),
            name=name,
        )
        return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], features)

    def layer_norm(self, x: Array) -> Array:
        """Its statistics are float32 whatever the parameters are."""
        epsilon = self.config.layer_norm_eps
        return nn.LayerNorm(epsilon, use_fast_variance=False, name="LayerNorm")(x)

    def dropout(self, x: Array, rate: float, deterministic: bool) -> Array:
        """By 16 random bits a number, to which the rate is rounded; the mean is kept.

        `nn.Dropout` draws 32, which costs a CPU as much as the attention that is dropped from.
        """
        if deterministic or not rate:
            return x
        halves = (*x.shape[:-1], -(-x.shape[-1] // 2))
        words = jax.random.bits(self.make_rng("dropout"), halves)
        bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)
        dropped = min(round(rate * 2**16), 2**16 - 1)
        scale = 2**16 / (2**16 - dropped)
        return x * jnp.where(bits[..., : x.shape[-1]] < dropped, 0, scale).astype(x.dtype)


class _Embeddings(_Part):
    """The sum of what a token, its position and its segment are, normalised."""

    @nn.compact
    def __call__(self, ids: Ids, segments: Ids, deterministic: bool) -> Hidden:
        config = self.config
        embed = functools.partial(
            nn.Embed,
            features=config.hidden_size,
            embedding_init=nn.initializers.normal(config.initializer_range),
        )
        words = embed(config.vocab_size, name="word_embeddings")(ids)
        positions = embed(config.max_position_embeddings, name="position_embeddings")(
            jnp.arange(ids.shape[1])[None]
        )
        types = embed(config.type_vocab_size, name="token_type_embeddings")(segments)
        hidden = self.layer_norm(words + types + positions)
        return self.dropout(hidden, config.hidden_dropout_prob, deterministic)


class _SelfAttention(_Part):
    """Scaled dot-product attention in several heads; masked positions are not attended to."""

    @nn.compact
    def __call__(self, hidden: Hidden, mask: Mask, deterministic: bool) -> Hidden:
        config = self.config
        heads = config.num_attention_heads
        size = config.hidden_size // heads

        def projected(name: str) -> Float[Array, "batch heads length size"]:
            x = self.dense(hidden, config.hidden_size, name)
            return x.reshape(*x.shape[:2], heads, size).transpose(0, 2, 1, 3)

        query, key, value = projected("query"), projected("key"), projected("value")
        # Heads come before positions, so that each product is of matrices as they lie.
        query /= math.sqrt(size)
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
        bias = jnp.where(mask > 0, 0, jnp.finfo(jnp.float32).min)
        scores += bias[:, None, None, :]
        # A softmax whose division comes last, where there is less to divide.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        total = weights.sum(-1, keepdims=True)
        weights = self.dropout(weights, config.attention_probs_dropout_prob, deterministic)
        weights = weights.astype(value.dtype)
        mixed = jnp.einsum("bhqk,bhkd->bhqd", weights, value, preferred_element_type=jnp.float32)
        mixed = (mixed / total).astype(value.dtype)
        return mixed.transpose(0, 2, 1, 3).reshape(hidden.shape)


class _Output(_Part):
    """Back to the hidden size, added to what came in before, normalised."""

    @nn.compact
    def __call__(self, x: Array, residual: Hidden, deterministic: bool) -> Hidden:
        config = self.config
        x = self.dense(x, config.hidden_size)
        x = self.dropout(x, config.hidden_dropout_prob, deterministic)
        return self.layer_norm(x + residual)


class _Attention(_Part):
    @nn.compact
    def __call__(self, hidden: Hidden, mask: Mask, deterministic: bool) -> Hidden:
        own = _SelfAttention(self.config, name="self")
        mixed = own(hidden, mask, deterministic)
        return _Output(self.config, name="output")(mixed, hidden, deterministic)


class _Intermediate(_Part):
    @nn.compact
    def __call__(self, hidden: Hidden) -> Float[Array, "batch length intermediate"]:
        x = self.dense(hidden, self.config.intermediate_size)
        return ACTIVATIONS[self.config.hidden_act](x)


class _Layer(_Part):
    @nn.compact
    def __call__(self, hidden: Hidden, mask: Mask, deterministic: bool) -> Hidden:
        attend = _Attention(self.config, name="attention")
        hidden = attend(hidden, mask, deterministic)
        wide = _Intermediate(self.config, name="intermediate")(hidden)
        return _Output(self.config, name="output")(wide, hidden, deterministic)


class _Layers(_Part):
    @nn.compact
    def __call__(self, hidden: Hidden, mask: Mask, deterministic: bool) -> Hidden:
        for index in range(self.config.num_hidden_layers):
            layer = _Layer(self.config, name=str(index))
            hidden = layer(hidden, mask, deterministic)
        return hidden


class _Encoder(_Part):
    @nn.compact
    def __call__(self, hidden: Hidden, mask: Mask, deterministic: bool) -> Hidden:
        return _Layers(self.config, name="layer")(hidden, mask, deterministic)


class _Pooler(_Part):
    """The hidden state of the first token, `[CLS]`, through a layer of its own."""

    @nn.compact
    def __call__(self, hidden: Hidden) -> Features:
        return jnp.tanh(self.dense(hidden[:, 0], self.config.hidden_size))


class BertModel(nn.Module):
    """The encoder: a hidden state for each token. `pool` makes one vector of them.

    It computes in the type of its parameters, but softmax and normalisation in float32.

    Attributes:
        config: the architecture.
    """

    config: BertConfig

    def setup(self) -> None:
        """Names the parts; one that is never called has no parameters."""
        self.embeddings = _Embeddings(self.config)
        self.encoder = _Encoder(self.config)
        self.pooler = _Pooler(self.config)

    def __call__(
        self,
        input_ids: Ids,
        token_type_ids: Ids | None = None,
        attention_mask: Mask | None = None,
        *,
        deterministic: bool = True,
    ) -> Hidden:
        """Hidden states; those of masked positions mean nothing.

        Args:
            input_ids: the tokens, special ones included.
            token_type_ids: which segment each belongs to; None is the first for all.
            attention_mask: 0 where a text is padded; None is all of it.
            deterministic: without dropout, which draws from the stream `dropout`.

        Raises:
            ConfigError: there are more tokens than positions.
        """
        longest = self.config.max_position_embeddings
        if input_ids.shape[1] > longest:
            raise ConfigError(
                f"input_ids is {input_ids.shape[1]} tokens long; max_position_embeddings is "
                f"{longest}, cut the texts to that"
            )
        segments = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        hidden = self.embeddings(input_ids, segments, deterministic)
        return self.encoder(hidden, mask, deterministic)

    def pool(self, hidden: Hidden) -> Features:
        """What BERT was pretrained to tell a text by."""
        return self.pooler(hidden)


class BertForSequenceClassification(nn.Module):
    """Logits of a text, or of a pair of texts, from one dense layer on the pooled hidden states.

    `features` and `classify` are its two halves: with the first deterministic and the second not,
    a frozen encoder has no dropout while the head has. The head computes in float32.

    Attributes:
        config: the architecture.
        classes: how many classes there are.
        pooling: `pooler` is BERT's own, on the first token; `mean` is the mean over the attended
            tokens, for encoders that were trained to be used so (Reimers and Gurevych, 2019).
    """

    config: BertConfig
    classes: int
    pooling: Literal["mean", "pooler"] = "pooler"

    def setup(self) -> None:
        """Makes the encoder, the head and the dropout before it."""
        if self.pooling not in ("mean", "pooler"):
            raise ConfigError(f"pooling is {self.pooling!r}; it must be mean or pooler")
        config = self.config
        self.bert = BertModel(config)
        rate = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if rate is None else rate)
        self.classifier = nn.Dense(
            self.classes,
            dtype=jnp.float32,
            kernel_init=nn.initializers.normal(config.initializer_range),
        )

    def __call__(
        self,
        input_ids: Ids,
        token_type_ids: Ids | None = None,
        attention_mask: Mask | None = None,
        *,
        deterministic: bool = True,
    ) -> Logits:
        """Logits, float32; the arguments are those of `BertModel`."""
        features = self.features(
            input_ids, token_type_ids, attention_mask, deterministic=deterministic
        )
        return self.classify(features, deterministic=deterministic)

    def features(
        self,
        input_ids: Ids,
        token_type_ids: Ids | None = None,
        attention_mask: Mask | None = None,
        *,
        deterministic: bool = True,
    ) -> Features:
        """What the head sees, float32."""
        hidden = self.bert(input_ids, token_type_ids, attention_mask, deterministic=deterministic)
        if self.pooling == "pooler":
            return self.bert.pool(hidden).astype(jnp.float32)
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask
        weight = mask.astype(jnp.float32)[:, :, None]
        total = (hidden.astype(jnp.float32) * weight).sum(axis=1)
        return total / jnp.maximum(weight.sum(axis=1), 1)

    def classify(self, features: Features, *, deterministic: bool = True) -> Logits:
        """Logits from `features`, float32; with dropout before the head, if not `deterministic`."""
        return self.classifier(self.dropout(features, deterministic=deterministic))
