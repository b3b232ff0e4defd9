"""The problem that a configuration states: which texts, which model, which loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import numpy as np
import optax
from jaxtyping import Float

import loopax
from loopax.data import BucketedBatches, Dataset
from loopax.errors import ConfigError
from loopax.extras import require
from loopax.lora import LoRA
from loopax.models.bert import BertConfig, BertForSequenceClassification
from loopax.recipe import batch_size_for
from loopax.recipes.bert.config import FineTuneConfig
from loopax.recipes.bert.features import features_of, file_for
from loopax.recipes.bert.loss import COUNTS, class_weights, counts_of, mean_f1, measured
from loopax.recipes.bert.pretrained import Pretrained, head_order, params_for, read_pretrained
from loopax.recipes.bert.probe import fit_probe
from loopax.recipes.bert.texts import Parts, located, texts_of
from loopax.recipes.bert.tokens import BATCH, CUT, model_inputs

LENGTHS = {"full": (3, 400), "head": (30, 2000)}
"""Of a training whose length is left to the data: passes, and steps in more passes of few texts."""
PROBED = 2000
"""Texts that a new head is fitted to before the training, where no features are kept of all."""
ATTENTION = "bert/encoder/**/attention/**/kernel"
"""What LoRA adapts: the kernels of queries, keys, values and outputs."""
BATCH_SIZE, SMALLEST_BATCH = 32, 8
BATCHES_AT_LEAST = 40
"""In a pass, where the size of batches is left to the data."""


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
        require("bert", "the BERT recipe", "tokenizers", "sklearn", "matplotlib", "jinja2")
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
            count = len(self.texts.train)
            order = np.random.default_rng(self.config.seed).permutation(count)
            tokens = self.texts.tokens["train"].pick(order[:PROBED])
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
        if self.config.lora is not None:
            return False
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
        return self._batches(self.texts.tokens["train"], self.batch_size)

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
        file = file_for(*made_by, tokens.fingerprint, self.model.pooling)
        return features_of(tokens.columns, self.model, self.params, self.longest, file, self.say)

    @property
    def batch_size(self) -> int:
        """Texts in a step."""
        count = len(self.texts.train)
        return self.config.batch_size or batch_size_for(
            count, BATCH_SIZE, SMALLEST_BATCH, BATCHES_AT_LEAST
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in a pass over the training texts."""
        return len(self.texts.train) // self.batch_size

    @property
    def epochs(self) -> int:
        """Passes over the training texts, if nothing ends them early."""
        passes, steps = LENGTHS[self.config.preset]
        return self.config.epochs or max(passes, -(-steps // self.steps_per_epoch))

    @property
    def steps(self) -> int:
        """How many steps the whole training has, if nothing ends it early."""
        return self.epochs * self.steps_per_epoch

    @property
    def evaluate_every(self) -> int:
        """Steps between two looks at the validation texts."""
        return max(1, self.steps_per_epoch // self.config.evaluations_per_epoch)

    @property
    def ranking(self) -> tuple[str, Literal["min", "max"]]:
        """The metric that the best checkpoint is best in, as the log names it, and its mode."""
        metric = metric_of(self.config)
        name = "hook/macro_f1" if metric == "macro-f1" else f"validation/{metric}"
        return name, "min" if metric == "loss" else "max"

    @cached_property
    def evaluation(self) -> loopax.Evaluation:
        """The validation texts, and when they are measured."""
        data = self.texts.tokens["validation"]
        batches = self._batches(data, min(BATCH, len(data)))
        return loopax.Evaluation({"validation": batches}, every=self.evaluate_every)

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
    def hooks(self) -> list[loopax.Hook | loopax.EarlyStopping]:
        """The macro-F1, which is no mean over batches, where it ranks; and early stopping."""
        metric, mode = self.ranking
        every = self.evaluate_every
        stopping = loopax.EarlyStopping(metric, self.config.patience, mode, every=every)

        def macro_f1(run: loopax.Run) -> dict[str, float]:
            counts = run.measured["validation"]
            return {"macro_f1": mean_f1(*(counts[name] for name in COUNTS))}

        counted = metric_of(self.config) == "macro-f1"
        return [*([loopax.Hook(macro_f1, every=every)] if counted else []), stopping]

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
        ]
        if self._takes_head:
            count = len(train.class_names)
            lines.append(f"the head of the model is taken: it is of the same {count} classes")
        elif theirs := self.pretrained.class_names:
            listed = ", ".join(theirs[:6]) + (", ..." if len(theirs) > 6 else "")
            lines.append(f"the head is new: that of the model is of the classes {listed}")
        passes, _ = LENGTHS[self.config.preset]
        if self.epochs > passes or self.batch_size < (self.config.batch_size or BATCH_SIZE):
            lines.append(
                f"few texts, so batches of {self.batch_size} and at most {self.epochs:,} passes "
                f"({self.steps:,} steps)"
            )
        return "\n".join(lines)

    @property
    def loss_fn(self) -> Callable[..., Any]:
        """Cross-entropy as `fit` takes it; dropout and class weights are for training alone."""
        weights, frozen = self._class_weights, self.is_frozen
        counted = metric_of(self.config) == "macro-f1"

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
        model, features = self.model, batch.get("features")
        if features is None:
            inputs = model_inputs(batch)
            told: Any = {"method": model.features, "rngs": rngs}
            features = model.apply(params, *inputs, deterministic=settled, **told)
        told = {"method": model.classify, "rngs": rngs}
        return model.apply(params, features, deterministic=rngs is None, **told)

    def state(self, *, resumed: bool = False) -> loopax.TrainState:
        """The state that training begins with; for one that is resumed no probe is fitted."""
        return loopax.TrainState.create(
            params=self.params if resumed else self.initial_params,
            tx=self.optimizer,
            lora=self.lora,
            compute_dtype=self.config.compute_dtype,
            remat=self.config.remat,
            total_steps=self.steps,
            seed=self.config.seed,
        )

    @property
    def lora(self) -> LoRA | None:
        """The adapters of the configuration, beside which a head trains as it is."""
        rank = self.config.lora
        return None if rank is None else LoRA((ATTENTION,), rank, train=("classifier",))

    @property
    def optimizer(self) -> loopax.Optimizer:
        """The optimiser of the configuration, with its warm-up and its rates by layer."""
        optimizer, config = self.config.optimizer, self.config
        if config.lora is not None:
            rate = config.lora_learning_rate
            optimizer = dataclasses.replace(optimizer, learning_rate=rate)
        warmup = round(config.warmup_fraction * optimizer.updates_in(self.steps))
        if warmup and not optimizer.schedule.warmup_steps:
            schedule = dataclasses.replace(optimizer.schedule, warmup_steps=warmup)
            optimizer = dataclasses.replace(optimizer, schedule=schedule)
        if config.layer_decay == 1:
            return optimizer
        return by_depth(optimizer, self.pretrained.config.num_hidden_layers, config.layer_decay)


def costs(config: FineTuneConfig, mesh: str | None = None) -> list[str]:
    """What a step of this training costs, in lines, and beside it one with nothing frozen."""
    plain = dataclasses.replace(config, cache_features=False)
    problem = Problem.of(plain)
    lines = [*problem.description.splitlines(), *_costs(problem, mesh)]
    if config.optimizer.freeze or config.lora is not None:
        optimizer = dataclasses.replace(config.optimizer, freeze=())
        free = dataclasses.replace(plain, lora=None, optimizer=optimizer)
        lines += ["", "with nothing frozen:", *_costs(Problem.of(free), mesh)]
    if config.cache_features and problem.is_frozen:
        lines += ["", "The features are computed once; after that an epoch trains the head alone."]
    return lines


def _costs(problem: Problem, mesh: str | None) -> list[str]:
    state = problem.state(resumed=True)
    costs = loopax.diagnose.estimate(state, problem.loss_fn, problem.batches, mesh=mesh)
    return costs.lines()


def model_of(
    config: FineTuneConfig, pretrained: Pretrained, class_names: tuple[str, ...]
) -> BertForSequenceClassification:
    """The classifier that a configuration makes of a pretrained model."""
    architecture = pretrained.config
    if (rate := config.dropout) is not None:
        places = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
        rates: Any = dict.fromkeys(places, rate)
        architecture = dataclasses.replace(architecture, **rates)
    pooling = pretrained.pooling if config.pooling == "auto" else config.pooling
    return BertForSequenceClassification(architecture, len(class_names), pooling)


def metric_of(config: FineTuneConfig) -> str:
    """What the best checkpoint is best in: what is named, or what the weights of classes mean."""
    if config.metric != "auto":
        return config.metric
    return "accuracy" if config.class_weights == "none" else "macro-f1"


def longest_of(config: FineTuneConfig, architecture: BertConfig) -> int:
    """Tokens that a text is cut to: no model reads more than it has positions."""
    return min(config.max_length, architecture.max_position_embeddings)


def by_depth(optimizer: loopax.Optimizer, layers: int, decay: float) -> loopax.Optimizer:
    """An optimiser whose rate shrinks with the distance from the head (Howard and Ruder, 2018).

    The head trains at the full rate, layer i at `decay ** (layers - i)`, the embeddings below all.
    A `clip_norm` then holds for each group by itself.
    """
    branches = ["bert/embeddings", *(f"bert/encoder/layer/{index}" for index in range(layers))]
    inner = dataclasses.replace(optimizer, freeze=(), params_ema=None, accumulate=1)
    groups = []
    for index, branch in enumerate(branches):
        if branch not in optimizer.freeze:
            rate = optimizer.learning_rate * decay ** (len(branches) - index)
            slower = dataclasses.replace(inner, learning_rate=rate)
            groups.append(loopax.Group((branch,), slower))
    return dataclasses.replace(optimizer, groups=tuple(groups))
