"""The problem that a configuration states: which texts, which model, which loss."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import loopax
from loopax.data import BucketedBatches, Dataset, Texts, read_texts, split_texts
from loopax.errors import ConfigError, DataError
from loopax.models.bert import BertConfig, BertForSequenceClassification
from loopax.recipes.bert.config import FineTuneConfig
from loopax.recipes.bert.features import features_of, file_for
from loopax.recipes.bert.pretrained import (
    Pretrained,
    encode,
    head_order,
    params_for,
    read_pretrained,
)
from loopax.recipes.bert.probe import fit_probe
from loopax.recipes.bert.tokens import BATCH, CUT, model_inputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LENGTHS = {"full": (3, 400), "head": (30, 2000)}
"""Of a training whose length is left to the data: passes, and steps in more passes of few texts."""
PROBED = 2000
"""Texts that a new head is fitted to before the training, where no features are kept of all."""
BATCH_SIZE, SMALLEST_BATCH = 32, 8
BATCHES_AT_LEAST = 40
"""In a pass, where the size of batches is left to the data."""


class Parts(NamedTuple):
    """Texts to train on, to choose a checkpoint by, and never looked at before the end.

    `notes` are lines on what was found in them.
    """

    train: Texts
    validation: Texts
    test: Texts
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the texts and labels of each part."""
        parts = (part.fingerprint for part in self[:3])
        return hashlib.sha256("".join(parts).encode()).hexdigest()


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
        config = dataclasses.replace(config, model=loopax.data.absolute(config.model))
        pretrained = read_pretrained(located(config.model))
        texts = texts_of(config, pretrained.tokenizer, longest_of(config, pretrained.config))
        if len(texts.train.columns.text) > 1 and pretrained.config.type_vocab_size < 2:
            raise ConfigError(
                f"{pretrained.source}: tells no pairs apart (type_vocab_size is 1), and "
                f"{texts.train.name} holds pairs; take another model, or name one column of texts"
            )
        model = model_of(config, pretrained, texts.train.class_names)
        return cls(config, texts, pretrained, model, say)

    @cached_property
    def params(self) -> Any:
        """The pretrained parameters, and those of a head that is random where it is new."""
        names = self.texts.train.class_names
        return params_for(self.pretrained, self.model, jax.random.key(self.config.seed), names)

    @cached_property
    def initial_params(self) -> Any:
        """The parameters that training begins with: a new head is a linear probe."""
        if self._takes_head:
            return self.params
        if self.uses_features:
            probed = self.batches.dataset.columns
        else:
            texts = self.texts.train
            order = np.random.default_rng(self.config.seed).permutation(len(texts))
            tokens = self.tokens(texts.subset(order[:PROBED]))
            probed = {"features": self._features(tokens), "label": tokens.columns["label"]}
        head = fit_probe(probed["features"], probed["label"], self._class_weights)
        return {**self.params, "params": {**self.params["params"], "classifier": head}}

    @property
    def _takes_head(self) -> bool:
        """Whether the model came with a head of just these classes."""
        names = self.texts.train.class_names
        return head_order(self.pretrained, self.model.pooling, names) is not None

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
        return self._batches(self.tokens(self.texts.train), self.batch_size)

    @cached_property
    def validation(self) -> BucketedBatches:
        """The validation texts, by length."""
        data = self.tokens(self.texts.validation)
        return self._batches(data, min(BATCH, len(data)))

    def tokens(self, texts: Texts) -> Dataset:
        """Texts as the model is given them."""
        columns, _ = encode(self.pretrained.tokenizer, texts.rows, self.longest)
        return Dataset(
            {**columns, "label": texts.labels}, name=texts.name, class_names=texts.class_names
        )

    @property
    def longest(self) -> int:
        """Tokens that a text is cut to."""
        return longest_of(self.config, self.pretrained.config)

    def _batches(self, tokens: Dataset, size: int) -> BucketedBatches:
        """Batches of tokens; of their features in the same order, where these stand for them."""
        if not self.uses_features:
            return BucketedBatches(
                tokens, size, cut=[name for name in CUT if name in tokens.columns]
            )
        columns = {name: tokens.columns[name] for name in ("length", "label")}
        data = Dataset({"features": self._features(tokens), **columns}, name=tokens.name)
        made_from = f"{tokens.fingerprint} by {self.pretrained.digest}"
        return BucketedBatches(data, size, cut=(), fingerprint=made_from)

    def _features(self, tokens: Dataset) -> Float[np.ndarray, "texts hidden"]:
        """What the pretrained part makes of tokens, computed once."""
        made_by = repr(self.pretrained.config), self.pretrained.digest
        file = file_for(*made_by, tokens.fingerprint, self.model.pooling, self.config.dtype)
        return features_of(tokens.columns, self.model, self.params, self.longest, file, self.say)

    @property
    def batch_size(self) -> int:
        """Texts in a step."""
        return self.config.batch_size or batch_size_for(len(self.texts.train))

    @property
    def epochs(self) -> int:
        """Passes over the training texts, if nothing ends them early."""
        if self.config.epochs is not None:
            return self.config.epochs
        passes, steps = LENGTHS[self.config.preset]
        return max(passes, -(-steps // (len(self.texts.train) // self.batch_size)))

    @property
    def steps(self) -> int:
        """How many steps the whole training has, if nothing ends it early."""
        return self.epochs * (len(self.texts.train) // self.batch_size)

    @property
    def evaluate_every(self) -> int:
        """Steps between two looks at the validation texts."""
        return max(1, self.batches.steps_per_epoch // self.config.evaluations_per_epoch)

    @property
    def metric(self) -> str:
        """What the best checkpoint is best in."""
        return metric_of(self.config)

    @property
    def ranking(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that the best checkpoint is best in, as the log names it, and its mode."""
        name = "hook/macro_f1" if self.metric == "macro-f1" else f"validation/{self.metric}"
        return name, "min" if self.metric == "loss" else "max"

    @property
    def evaluation(self) -> loopax.Evaluation:
        """The validation texts, and when they are measured."""
        return loopax.Evaluation({"validation": self.validation}, every=self.evaluate_every)

    @property
    def noted(self) -> dict[str, Any]:
        """What the run directory keeps: all that its weights need to be used, and the columns."""
        train = self.texts.train
        return {
            "data_sha256": self.texts.fingerprint,
            "pretrained_sha256": self.pretrained.digest,
            "architecture": dataclasses.asdict(self.model.config),
            "pooling": self.model.pooling,
            "tokenizer": self.pretrained.tokenizer.to_str(),
            "class_names": list(train.class_names),
            "text": list(train.columns.text),
            "label": train.columns.label,
        }

    @property
    def hooks(self) -> list[loopax.Hook]:
        """What is logged of an evaluation that is no mean over its batches: the macro-F1."""
        if self.metric != "macro-f1":
            return []

        def macro_f1(run: loopax.Run) -> dict[str, float]:
            counts = run.latest("validation")
            return {"macro_f1": mean_f1(*(np.asarray(counts[name]) for name in COUNTS))}

        return [loopax.Hook(macro_f1, every=self.evaluate_every)]

    @property
    def description(self) -> str:
        """What is trained on what, in lines."""
        train, validation, test = self.texts[:3]
        lines = [
            train.description,
            f"{len(train):,} texts to train on, {len(validation):,} to choose by, {len(test):,} "
            f"to test on; model {self.pretrained.source}",
            *self.texts.notes,
            *self.pretrained.notes,
            *self._head_said(),
        ]
        passes, _ = LENGTHS[self.config.preset]
        if self.epochs > passes or self.batch_size < (self.config.batch_size or BATCH_SIZE):
            lines.append(
                f"few texts, so batches of {self.batch_size} and at most {self.epochs:,} passes "
                f"({self.steps:,} steps)"
            )
        return "\n".join(lines)

    def _head_said(self) -> list[str]:
        """What becomes of a head that the model came with."""
        theirs = self.pretrained.class_names
        if not theirs:
            return []
        if self._takes_head:
            count = len(self.texts.train.class_names)
            return [f"the head of the model is taken: it is of the same {count} classes"]
        listed = ", ".join(theirs[:6]) + (", ..." if len(theirs) > 6 else "")
        return [f"the head is new: that of the model is of the classes {listed}"]

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """Cross-entropy as `fit` takes it; dropout and class weights are for training alone."""
        weights, frozen = self._class_weights, self.is_frozen
        counted = self.metric == "macro-f1"

        def loss(params: Any, batch: Any, rngs: Any) -> Any:
            if not rngs.training:
                logits = self._logits(params, batch, True, None)
                mean, metrics = measured(logits, batch["label"])
                return mean, metrics | (counts_of(logits, batch["label"]) if counted else {})
            logits = self._logits(params, batch, frozen, {"dropout": rngs["dropout"]})
            return measured(logits, batch["label"], weights)

        return loss

    @property
    def _class_weights(self) -> Float[np.ndarray, " classes"]:
        if self.config.class_weights == "balanced":
            return class_weights(self.texts.train)
        return np.ones(len(self.texts.train.class_names), np.float32)

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

    def state(self, *, resumed: bool = False) -> loopax.TrainState:
        """The state that training begins with; for one that is resumed no probe is fitted."""
        return loopax.TrainState.create(
            params=self.params if resumed else self.initial_params,
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
    return loopax.estimate(problem.state(resumed=True), problem.loss_fn, problem.batches).lines()


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
        pooling=pretrained.pooling if config.pooling == "auto" else config.pooling,
        dtype=jnp.dtype(config.dtype),
    )


def measured(logits: Float[Array, "n classes"], labels: Any, weights: Any = None) -> Any:
    """The mean cross-entropy of logits, in nats, and the part of them that is right."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if weights is not None:
        each = each * jnp.asarray(weights)[labels]
    return each.mean(), {"accuracy": (logits.argmax(-1) == labels).mean()}


COUNTS = ("right", "predicted", "occurring")
"""What an evaluation counts of each class, for F1 over all of its batches."""


def counts_of(logits: Float[Array, "n classes"], labels: Any) -> dict[str, Array]:
    """How often each class is right, predicted, and there: int32 `[classes]`, by `COUNTS`."""
    classes = logits.shape[-1]
    predicted = logits.argmax(-1)
    found = (jnp.where(predicted == labels, labels, classes), predicted, labels)
    return {
        name: jnp.bincount(each, length=classes + 1)[:classes].astype(jnp.int32)
        for name, each in zip(COUNTS, found, strict=True)
    }


def mean_f1(right: np.ndarray, predicted: np.ndarray, occurring: np.ndarray) -> float:
    """The macro-F1: the mean over the classes that occur or are predicted."""
    there = predicted + occurring > 0
    return float((2 * right[there] / (predicted + occurring)[there]).mean())


def metric_of(config: FineTuneConfig) -> str:
    """What the best checkpoint is best in: what is named, or what the weights of classes mean."""
    if config.metric != "auto":
        return config.metric
    return "accuracy" if config.class_weights == "none" else "macro-f1"


def batch_size_for(texts: int) -> int:
    """A power of two by which a pass has enough steps: `BATCH_SIZE`, or less for few texts."""
    fitting = min(BATCH_SIZE, max(SMALLEST_BATCH, texts // BATCHES_AT_LEAST))
    return max(1, min(1 << (fitting.bit_length() - 1), texts))


def longest_of(config: FineTuneConfig, architecture: BertConfig) -> int:
    """Tokens that a text is cut to: no model reads more than it has positions."""
    return min(config.max_length, architecture.max_position_embeddings)


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


def texts_of(config: FineTuneConfig, tokenizer: Tokenizer, longest: int) -> Parts:
    """The texts that a configuration names, in three parts, of which none has a text of another.

    What is compared are tokens, as the model sees them, at most `longest` of a text: many models
    see no case, and no model sees what is cut off.

    Raises:
        LoopaxError: they cannot be used.
    """
    seen = functools.partial(_seen, tokenizer, longest=longest)
    texts = read_texts(
        located(config.data), text=config.text, label=config.label, group=config.group
    )
    contents, cut = seen(texts)
    notes, count = [], len(texts)
    if config.test_data is None:
        first, second = _split(texts, contents, config.test_fraction, config.seed)
        texts, test = texts.subset(first), texts.subset(second)
        contents = [contents[index] for index in first]
    else:
        names, columns = texts.class_names, texts.columns
        test = read_texts(
            config.test_data, text=columns.text, label=columns.label, class_names=names
        )
        notes += [f"{test.name}: {note}" for note in test.notes]
        tested, cut_there = seen(test)
        cut, count = cut + cut_there, count + len(test)
        there = {*tested}
        kept = [index for index, each in enumerate(contents) if each not in there]
        if left_out := len(texts) - len(kept):
            notes.append(
                f"{left_out:,} of {len(texts):,} texts are also in {test.name}; they are left out "
                "of the training"
            )
        texts, contents = texts.subset(kept), [contents[index] for index in kept]
        if not len(texts):
            raise DataError(
                f"{config.test_data}: every text of {config.data} is also there; test on others"
            )
    first, second = _split(texts, contents, config.validation_fraction, config.seed)
    train, validation = texts.subset(first), texts.subset(second)
    notes += _notes(train, [contents[index] for index in first])
    if cut:
        notes.append(
            f"{cut:,} of {count:,} texts are longer than {longest} tokens and are cut there"
        )
    if longest < config.max_length:
        notes.append(f"the model reads at most {longest} tokens, not {config.max_length}")
    if len(train) < (config.batch_size or 1):
        raise ConfigError(
            f"batch_size is {config.batch_size}, and {len(train)} texts are left to train on; "
            "it must not be larger"
        )
    return Parts(train, validation, test, tuple(notes))


def _seen(tokenizer: Any, texts: Texts, longest: int) -> tuple[list[bytes], int]:
    """Of each text what the model sees of it, and how many are cut."""
    columns, cut = encode(tokenizer, texts.rows, longest)
    ids, length = columns["input_ids"], columns["length"]
    contents = [row[:end].tobytes() for row, end in zip(ids, length.tolist(), strict=True)]
    return contents, int(cut.sum())


def _split(
    texts: Texts, contents: Sequence[bytes], fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """The places of the two parts that `split_texts` makes."""
    numbered = dataclasses.replace(texts, rows=[(str(index),) for index in range(len(texts))])
    first, second = split_texts(numbered, fraction, seed, contents=contents)
    return [int(row[0]) for row in first.rows], [int(row[0]) for row in second.rows]


def _notes(texts: Texts, contents: Sequence[bytes]) -> list[str]:
    """What to know of texts that come more than once."""
    labels: dict[bytes, set[int]] = {}
    for content, label in zip(contents, texts.labels.tolist(), strict=True):
        labels.setdefault(content, set()).add(label)
    notes = []
    if again := len(contents) - len(labels):
        notes.append(
            f"of the texts to train on {again:,} repeat others; such stay in one part together"
        )
    if torn := sum(len(each) > 1 for each in labels.values()):
        notes.append(
            f"different labels of the same text: {torn:,} times; one of them must be wrong"
        )
    return notes


def located(name: str) -> str:
    """A path or name, or where `loopax data get` has put what is called so."""
    from loopax.data import catalogue

    if Path(name).exists() or name not in catalogue.known():
        return name
    return str(catalogue.located(name, loopax.cache_dir()))
