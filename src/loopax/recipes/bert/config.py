"""What a fine-tuning run is made of. Importing this does not import JAX: `--help` is instant."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from loopax import Optimizer, Schedule
from loopax.errors import ConfigError
from loopax.recipe import check_fields

NAME = "bert"
"""Of the recipe."""
Preset = Literal["full", "head"]


@dataclass(frozen=True)
class FineTuneConfig:
    """A classifier of texts, fine-tuned from a pretrained BERT."""

    PLACES: ClassVar = ("data", "test_data")

    preset: Preset = "full"
    """full: everything trains, which is most accurate; head: the pretrained part is frozen and its
    features are computed once, so that an epoch takes a moment."""
    data: str = "rotten-tomatoes"
    """Texts and labels in a table (CSV, TSV, JSON lines, Parquet), or in several: a folder or a
    pattern; or one of `loopax data list`."""
    test_data: str | None = None
    """A table to test on; otherwise a part of the data is kept aside."""
    text: tuple[str, ...] = ()
    """The column of the texts, or the two columns of pairs; found by itself when left out."""
    label: str | None = None
    """The column of the labels; found by itself when left out."""
    group: str | None = None
    """A column whose rows with the same value are never both trained and tested on."""
    test_fraction: float = 0.1
    """The part of the rows to test on, where there is no table for it."""
    validation_fraction: float = 0.1
    """The part of the other rows by which the best checkpoint is chosen."""
    model: str = "minilm"
    """A folder as Hugging Face stores models, an installed package that carries one, a name of
    `loopax data list`, or a name on the Hugging Face hub."""
    max_length: int = 128
    """Tokens of a text, special ones included; what is longer is cut."""
    pooling: Literal["auto", "pooler", "mean"] = "auto"
    """What the head sees: BERT's own pooler, or the mean over all tokens; auto: what the model
    came with a head for or says itself, else the mean."""
    epochs: int | None = None
    """Passes over the training texts; when left out 3 (30 of the head), and as many as make 400
    steps (2,000) of fewer texts, unless the validation texts tell to stop."""
    batch_size: int | None = None
    """Texts in a step; when left out 32, and fewer where a pass would have but a few steps."""
    seed: int = 0xFFFF
    """Of the head, the dropout, the order of the texts and the parts they are split into."""
    dropout: float | None = None
    """Instead of what the model says; what is frozen as a whole has none before the head."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: errors weigh as much in a rare class as in a frequent one."""
    compute_dtype: Literal["bfloat16"] | None = None
    """bfloat16: a step computes in it; parameters, their updates and what is measured at the end
    stay float32."""
    remat: Literal["dots", "dots_with_no_batch_dims"] | None = None
    """What a step keeps for its gradient; when left out, all that it needs."""
    warmup_fraction: float = 0.1
    """The part of the run in which the learning rate grows from 0."""
    lora: int | None = None
    """Rank of LoRA adapters in the attention of a model that stays as it is; they and the head
    train."""
    lora_learning_rate: float = 1e-3
    """With lora, instead of that of the optimizer: adapters begin at nothing and need a higher."""
    layer_decay: float = 1.0
    """Factor on the learning rate for each layer further down; 1 trains all alike."""
    cache_features: bool = True
    """Compute the features of a frozen model once, instead of in each epoch."""
    metric: Literal["auto", "accuracy", "macro-f1", "loss"] = "auto"
    """What the best checkpoint is best in, on the validation texts; auto: accuracy, or macro-F1
    where classes are weighed alike."""
    patience: int = 10
    """Evaluations without a better one after which training ends."""
    evaluations_per_epoch: int = 1
    """How often the validation texts are measured."""
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer(
            learning_rate=5e-5,
            schedule=Schedule("linear"),
            weight_decay=0.01,
            decay_vectors=False,
            clip_norm=1.0,
        )
    )
    """How the parameters are updated; `freeze` picks those that are not."""
    nonfinite: Literal["stop", "skip"] = "stop"
    """When a number is NaN or infinite: stop, or skip the update."""
    log_every: int = 20
    """Steps between logged rows."""

    def __post_init__(self) -> None:
        counts = "epochs batch_size lora patience evaluations_per_epoch log_every"
        check_fields(self, counts, lambda count: count >= 1, "at least 1")
        check_fields(self, "max_length", lambda length: length >= 8, "at least 8")
        check_fields(self, "seed", lambda seed: seed >= 0, "at least 0")
        check_fields(self, "text", lambda text: len(text) <= 2, "one column, or two of pairs")
        parts = "test_fraction validation_fraction"
        check_fields(self, parts, lambda part: 0 < part < 1, "within 0 and 1")
        shares = "dropout warmup_fraction"
        check_fields(self, shares, lambda share: 0 <= share < 1, "at least 0 and below 1")
        check_fields(self, "layer_decay", lambda by: 0 < by <= 1, "above 0 and at most 1")
        check_fields(self, "lora_learning_rate", lambda rate: rate > 0, "above 0")
        if self.lora is not None and self.optimizer.freeze:
            raise ConfigError(
                f"lora is {self.lora} and optimizer.freeze {self.optimizer.freeze}; under lora all "
                "but adapters and head is frozen: leave optimizer.freeze (and the preset head) out"
            )
        if self.lora is not None and self.layer_decay < 1:
            raise ConfigError("layer_decay is for parameters that train themselves; leave lora out")
        if self.layer_decay < 1 and self.optimizer.groups:
            raise ConfigError("layer_decay makes groups of its own; leave out optimizer.groups")


_FULL = FineTuneConfig()
PRESETS: dict[Preset, FineTuneConfig] = {
    "full": _FULL,
    "head": replace(
        _FULL,
        preset="head",
        warmup_fraction=0.0,
        optimizer=Optimizer(
            learning_rate=3e-3,
            schedule=Schedule("cosine"),
            weight_decay=0.01,
            decay_vectors=False,
            freeze=("bert",),
        ),
    ),
}
