"""The problem that a configuration states: which texts, which model, which loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import loopax
from loopax.data import BucketedBatches, Dataset, Texts, read_texts, split_texts
from loopax.errors import ConfigError
from loopax.models.bert import BertForSequenceClassification
from loopax.recipes.bert.config import FineTuneConfig
from loopax.recipes.bert.features import features_of, file_for
from loopax.recipes.bert.pretrained import Pretrained, encode, params_for, read_pretrained
from loopax.recipes.bert.tokens import BATCH, CUT, model_inputs


class Parts(NamedTuple):
    """Texts to train on, to choose a checkpoint by, and never looked at before the end."""

    train: Texts
    validation: Texts
    test: Texts


@dataclass(eq=False)
class Problem:
    """What a configuration says is to be trained, in the terms of `loopax.fit`."""

    config: FineTuneConfig
    texts: Parts
    pretrained: Pretrained
    model: BertForSequenceClassification
    say: Callable[[str], None] = print

    @classmethod
    def of(cls, config: FineTuneConfig, say: Callable[[str], None] = print) -> Problem:
        """The problem that `config` states; `say` is told of what takes long.

        Raises:
            LoopaxError: the texts or the model cannot be used.
        """
        texts = texts_of(config)
        pretrained = read_pretrained(located(config.model))
        model = model_of(config, pretrained, texts.train.class_names)
        return cls(config, texts, pretrained, model, say)

    @cached_property
    def params(self) -> Any:
        """The parameters that training begins with: pretrained, and a new head."""
        return params_for(self.pretrained, self.model, jax.random.key(self.config.seed))

    @cached_property
    def is_frozen(self) -> bool:
        """Whether nothing of the pretrained part trains."""
        state = loopax.TrainState.create(
            params=self.params, tx=optax.identity(), frozen=self.config.optimizer.freeze
        )
        return not jax.tree.leaves(state.trainable["params"]["bert"])

    @cached_property
    def uses_features(self) -> bool:
        """Whether the head is trained on features that were computed once."""
        return self.config.cache_features and self.is_frozen

    @cached_property
    def batches(self) -> BucketedBatches:
        """The training texts, by length."""
        return self._batches(self.tokens(self.texts.train), self.config.batch_size)

    @cached_property
    def validation(self) -> BucketedBatches:
        """The validation texts, by length."""
        data = self.tokens(self.texts.validation)
        return self._batches(data, min(BATCH, len(data)))

    def tokens(self, texts: Texts) -> Dataset:
        """Texts as the model is given them."""
        columns = encode(self.pretrained.tokenizer, texts.rows, self.longest)
        return Dataset(
            {**columns, "label": texts.labels}, name=texts.name, class_names=texts.class_names
        )

    @property
    def longest(self) -> int:
        """Tokens that a text is cut to."""
        return min(self.config.max_length, self.pretrained.config.max_position_embeddings)

    def _batches(self, tokens: Dataset, size: int) -> BucketedBatches:
        """Batches of tokens; of their features in the same order, where these stand for them."""
        if not self.uses_features:
            return BucketedBatches(
                tokens, size, cut=[name for name in CUT if name in tokens.columns]
            )
        config, identity = self.config, tokens.fingerprint
        made_by = repr(self.pretrained.config), self.pretrained.digest
        file = file_for(*made_by, identity, config.pooling, config.dtype)
        features = features_of(
            tokens.columns, self.model, self.params, self.longest, file, self.say
        )
        columns = {name: tokens.columns[name] for name in ("length", "label")}
        data = Dataset({"features": features, **columns}, name=tokens.name)
        return BucketedBatches(data, size, cut=(), fingerprint=identity)

    @property
    def steps(self) -> int:
        """How many steps the whole training has, if nothing ends it early."""
        return self.config.epochs * (len(self.texts.train.rows) // self.config.batch_size)

    @property
    def evaluate_every(self) -> int:
        """Steps between two looks at the validation texts."""
        return max(1, self.batches.steps_per_epoch // self.config.evaluations_per_epoch)

    @property
    def chosen_by(self) -> str:
        """The metric that the best checkpoint is best in."""
        return f"validation/{self.config.metric}"

    @property
    def chosen_mode(self) -> Literal["min", "max"]:
        """Whether that is best at its lowest or at its highest."""
        return "min" if self.config.metric == "loss" else "max"

    @property
    def description(self) -> str:
        """What is trained on what, in two lines."""
        train, validation, test = (len(part.rows) for part in self.texts)
        return (
            f"{self.texts.train.description}\n{train:,} texts to train on, {validation:,} to "
            f"choose by, {test:,} to test on; model {self.pretrained.source}"
        )

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """Cross-entropy as `fit` takes it; dropout and class weights are for training alone."""
        weights = class_weights(self.texts.train) if self.config.class_weights == "balanced" else 1
        frozen = self.is_frozen

        def loss(params: Any, batch: Any, rngs: Any) -> Any:
            if not rngs.training:
                return measured(self._logits(params, batch, True, None), batch["label"], 1)
            logits = self._logits(params, batch, frozen, {"dropout": rngs["dropout"]})
            return measured(logits, batch["label"], weights)

        return loss

    def _logits(self, params: Any, batch: Any, settled: bool, rngs: Any) -> Any:
        """Of a batch; `settled` leaves out the dropout of the pretrained part."""
        model = self.model
        features = batch.get("features")
        if features is None:
            features = model.apply(
                params,
                *model_inputs(batch),
                deterministic=settled,
                method=model.features,
                rngs=rngs,
            )
        return model.apply(
            params, features, deterministic=rngs is None, method=model.classify, rngs=rngs
        )

    def state(self) -> loopax.TrainState:
        """The state that training begins with."""
        return loopax.TrainState.create(
            params=self.params,
            tx=self.optimizer,
            total_steps=self.steps,
            seed=self.config.seed,
        )

    @property
    def optimizer(self) -> loopax.Optimizer:
        """The optimiser of the configuration, with its warm-up and its rates by layer."""
        optimizer, config = self.config.optimizer, self.config
        warmup = round(config.warmup_fraction * optimizer.updates_in(self.steps))
        if warmup and not optimizer.schedule.warmup_steps:
            schedule = dataclasses.replace(optimizer.schedule, warmup_steps=warmup)
            optimizer = dataclasses.replace(optimizer, schedule=schedule)
        if config.layer_decay == 1:
            return optimizer
        return by_depth(optimizer, self.pretrained.config.num_hidden_layers, config.layer_decay)


def costs(config: FineTuneConfig) -> list[str]:
    """What a step of this training costs, in lines, and beside it one with nothing frozen."""
    plain = dataclasses.replace(config, cache_features=False)
    problem = Problem.of(plain)
    lines = [*problem.description.splitlines(), *_costs(problem)]
    if not config.optimizer.freeze:
        return lines
    free = dataclasses.replace(config.optimizer, freeze=())
    lines += [
        "",
        "with nothing frozen:",
        *_costs(Problem.of(dataclasses.replace(plain, optimizer=free))),
    ]
    if config.cache_features and problem.is_frozen:
        lines += ["", "The features are computed once; after that an epoch trains the head alone."]
    return lines


def _costs(problem: Problem) -> list[str]:
    return loopax.estimate(problem.state(), problem.loss_fn, problem.batches).lines()


def model_of(
    config: FineTuneConfig, pretrained: Pretrained, class_names: tuple[str, ...]
) -> BertForSequenceClassification:
    """The classifier that a configuration makes of a pretrained model."""
    architecture = pretrained.config
    if config.dropout is not None:
        architecture = dataclasses.replace(
            architecture,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            classifier_dropout=config.dropout,
        )
    return BertForSequenceClassification(
        architecture,
        classes=len(class_names),
        pooling=config.pooling,
        dtype=jnp.dtype(config.dtype),
    )


def measured(logits: Float[Array, "n classes"], labels: Any, weights: Any) -> Any:
    """The mean cross-entropy of logits, in nats, and the part of them that is right."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not isinstance(weights, int):
        each = each * jnp.asarray(weights)[labels]
    return each.mean(), {"accuracy": (logits.argmax(-1) == labels).mean()}


def class_weights(texts: Texts) -> Float[np.ndarray, " classes"]:
    """Weights by which every class weighs the same, 1 on average over the texts."""
    counts = np.bincount(texts.labels, minlength=len(texts.class_names))
    return (len(texts.labels) / (len(counts) * np.maximum(counts, 1))).astype(np.float32)


def by_depth(optimizer: loopax.Optimizer, layers: int, decay: float) -> loopax.Optimizer:
    """An optimiser whose rate shrinks with the distance from the head (Howard and Ruder, 2018).

    The head trains at the full rate, layer i at `decay ** (layers - i)`, the embeddings below all.
    A `clip_norm` then holds for each group by itself.
    """
    branches = ["bert/embeddings", *(f"bert/encoder/layer/{index}" for index in range(layers))]
    free = [branch for branch in branches if branch not in optimizer.freeze]
    inner = dataclasses.replace(optimizer, freeze=(), params_ema=None, accumulate=1)
    groups = tuple(
        loopax.Group(
            (branch,),
            dataclasses.replace(
                inner,
                learning_rate=optimizer.learning_rate
                * decay ** (len(branches) - branches.index(branch)),
            ),
        )
        for branch in free
    )
    return dataclasses.replace(optimizer, groups=groups)


def texts_of(config: FineTuneConfig) -> Parts:
    """The texts that a configuration names, in three parts.

    Raises:
        LoopaxError: they cannot be used.
    """
    text, label = config.text, config.label
    texts = read_texts(located(config.data), text=text, label=label, group=config.group)
    if config.test_data is None:
        texts, test = split_texts(texts, config.test_fraction, config.seed)
    else:
        names = texts.class_names
        test = read_texts(config.test_data, text=text, label=label, class_names=names)
    train, validation = split_texts(texts, config.validation_fraction, config.seed)
    if len(train.rows) < config.batch_size:
        raise ConfigError(
            f"batch_size is {config.batch_size}, and {len(train.rows)} texts are left to train on; "
            "it must not be larger"
        )
    return Parts(train, validation, test)


def located(name: str) -> str:
    """A path or name, or where `loopax data get` has put what is called so."""
    from loopax.data import catalogue

    if Path(name).exists() or name not in catalogue.known():
        return name
    return str(catalogue.located(name, loopax.cache_dir()))
