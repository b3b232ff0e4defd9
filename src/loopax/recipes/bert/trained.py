"""A fine-tuned classifier: to ask for classes, as training or `load` gives it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import loopax
from loopax.data import Columns, Texts, read_texts
from loopax.deadline import check_time
from loopax.errors import RunDirError
from loopax.extras import require
from loopax.models.bert import BertConfig, BertForSequenceClassification
from loopax.recipe import MODEL_FILE, params_at
from loopax.recipes.bert.config import NAME, FineTuneConfig
from loopax.recipes.bert.problem import Problem, longest_of
from loopax.recipes.bert.saving import save_pretrained
from loopax.recipes.bert.tokens import BATCH, encode, in_batches, model_inputs
from loopax.run import RunDir
from loopax.terminal import to_stderr
from loopax.weights import SUFFIX, save_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NOTED = {
    "architecture": dict,
    "pooling": str,
    "tokenizer": str,
    "class_names": (str,),
    "text": (str,),
}
"""What a run must know of its model and its classes to be used without its data."""


Probabilities = Float[np.ndarray, "texts classes"]


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier of texts with its parameters, and its run directory.

    Attributes:
        config: how it was trained.
        tokenizer: reads the texts.
        model, params: the Flax module, and what its `apply` takes.
        class_names: the classes, in the order of the probabilities.
        columns: where the texts and labels were found that it was trained on.
        dir: the run directory.
        step: how many updates the parameters have seen.
    """

    config: FineTuneConfig
    tokenizer: Tokenizer
    model: BertForSequenceClassification
    params: Any
    class_names: tuple[str, ...]
    columns: Columns
    dir: RunDir
    step: int

    def probabilities(
        self, texts: Sequence[str | tuple[str, ...]], *, batch_size: int = BATCH
    ) -> Probabilities:
        """How likely each text, or pair of texts, is of each class."""
        if not texts:
            return np.empty((0, len(self.class_names)), np.float32)
        rows = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
        columns, _ = encode(self.tokenizer, rows, self.longest)

        def probabilities(batch: Mapping[str, np.ndarray]) -> jax.Array:
            check_time()
            return _probabilities(self.model, self.params, batch)

        return in_batches(probabilities, columns, self.longest, batch_size)

    def classify(self, texts: Sequence[str | tuple[str, ...]]) -> list[str]:
        """The most likely class of each text, or pair of texts."""
        return [self.class_names[index] for index in self.probabilities(texts).argmax(-1)]

    @property
    def longest(self) -> int:
        """Tokens that a text is cut to."""
        return longest_of(self.config, self.model.config)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: BertForSequenceClassification, params: Any, batch: Any) -> Any:
    logits: Any = model.apply(params, *model_inputs(batch))
    return jax.nn.softmax(logits)


def load(
    run: str | Path,
    checkpoint: str | int = "best",
    *,
    problem: Problem | None = None,
    say: Callable[[str], None] = to_stderr,
) -> TrainedClassifier:
    """The classifier of a run, for which neither the pretrained model nor the texts are needed.

    Args:
        run: its directory.
        checkpoint: `best` (the latest, before validation texts were measured), `latest`, or a step.
        problem: makes no difference here.
        say: is told which checkpoint it is.

    Raises:
        RunDirError: `run` is not the directory of a fine-tuning run, or is damaged.
        CheckpointError: there is no such checkpoint.
    """
    del problem
    require("bert", "a pretrained BERT", "tokenizers")
    from tokenizers import Tokenizer

    config = loopax.recipe.config_of(run, NAME, FineTuneConfig)
    directory = RunDir.open(run)
    noted = loopax.recipe.noted(directory, NOTED)
    names = tuple(noted["class_names"])
    try:
        tokenizer: Tokenizer = Tokenizer.from_str(noted["tokenizer"])
        architecture = BertConfig.from_json(noted["architecture"], "architecture")
    except Exception as error:  # The library raises nothing narrower.
        raise RunDirError(
            f"{directory.path / MODEL_FILE}: is damaged ({ascii(str(error))[1:-1][:200]}); remove "
            "it, and the same training command writes it anew"
        ) from error
    model = BertForSequenceClassification(architecture, len(names), noted["pooling"])
    form = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    params, step = params_at(directory, checkpoint, form, say)
    columns = Columns(tuple(noted["text"]), noted.get("label"))
    return TrainedClassifier(config, tokenizer, model, params, names, columns, directory, step)


def texts_like(trained: TrainedClassifier, path: str | Path) -> Texts:
    """The texts of another table, read from the columns that a run was trained on.

    Raises:
        DataError: it cannot be read, or has a class that the run does not know.
    """
    text, label, _ = trained.columns
    return read_texts(path, text=text, label=label, class_names=trained.class_names)


def export(
    run: str | Path, checkpoint: str | int, out: Path | None, say: Callable[[str], None] = print
) -> list[Path]:
    """Writes a run's classifier as a folder that PyTorch transformers loads as well.

    Adapters of LoRA are added to the weights there, and stand alone in a file beside it.
    """
    trained = load(run, checkpoint, say=say)
    model, params, names = trained.model, trained.params, trained.class_names
    out = out or trained.dir.path / "exported"
    save_pretrained(out, model, params, trained.tokenizer, names, max_length=trained.longest)
    if trained.config.lora is None:
        return [out]
    adapters = out.with_name(f"{out.name}-adapters{SUFFIX}")
    with loopax.CheckpointStore(trained.dir.checkpoints) as store:
        save_weights(adapters, store.weights(trained.step, trained_only=True))
    return [out, adapters]
