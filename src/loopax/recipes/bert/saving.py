"""A fine-tuned classifier as a folder that PyTorch transformers loads and scores alike."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flax.traverse_util import flatten_dict

from loopax.errors import ConfigError
from loopax.files import storing, write_text
from loopax.models.bert import BertForSequenceClassification
from loopax.recipes.bert.layout import (
    CLASSIFIER,
    CONFIG,
    MEAN_CLASSIFIER,
    MEAN_TYPE,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    as_torch,
)
from loopax.weights import save_weights

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODELING = "modeling_mean_pooling.py"
SPECIAL_TOKENS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")
}


def save_pretrained(
    folder: str | Path,
    model: BertForSequenceClassification,
    params: Any,
    tokenizer: Tokenizer,
    class_names: Sequence[str],
    *,
    max_length: int | None = None,
) -> None:
    """Writes a classifier for `AutoModelForSequenceClassification.from_pretrained(folder)`.

    Transformers has no BERT that pools by mean. One is written beside such a classifier, which
    transformers loads when told `trust_remote_code=True` and otherwise refuses to.

    Args:
        folder: appears whole or not at all; one that was written here before is replaced.
        model: what `params` are of.
        params: the tree that `model.apply` takes.
        tokenizer: what the texts were encoded with.
        class_names: the classes in the order of the logits.
        max_length: tokens that texts were cut to in training, and are then cut to there; all that
            the model has positions for when left out.

    Raises:
        ConfigError: there are not as many names as classes, or `folder` holds something else.
        StorageError: it cannot be written.
    """
    folder = Path(folder).resolve()
    if not len(class_names) == len(set(class_names)) == model.classes:
        raise ConfigError(
            f"class_names are {len(set(class_names))} different names; the model has "
            f"{model.classes} classes"
        )
    _refuse_other(folder)
    weights = flatten_dict(params["params"], sep="/")
    arrays = as_torch({path: np.asarray(leaf) for path, leaf in weights.items()})
    texts = {
        CONFIG: _json(_config(model, class_names)),
        TOKENIZER: tokenizer.to_str(pretty=True),
        TOKENIZER_CONFIG: _json(_tokenizer_config(model, tokenizer, max_length)),
    }
    if model.pooling == "mean":
        texts[MODELING] = (resources.files(__package__) / f"{MODELING}.txt").read_text("utf-8")
    with storing(folder), _replacing_folder(folder) as partial:
        save_weights(partial / WEIGHTS, arrays, {"format": "pt"})
        for name, text in texts.items():
            write_text(partial / name, text)


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which then takes the place of `folder`; or is gone, if that fails."""
    partial, old = (folder.with_name(f".{word}-{folder.name}") for word in ("partial", "old"))
    try:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        # Moved and not removed: half of the old one must not be taken for a whole.
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)


def _refuse_other(folder: Path) -> None:
    """Only what an earlier call has written may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; a model is a folder")
    own = {CONFIG, WEIGHTS, TOKENIZER, TOKENIZER_CONFIG, MODELING}
    if others := sorted({path.name for path in folder.iterdir()} - own):
        raise ConfigError(f"{folder}: holds {others[0]!a} and would be replaced; name a new folder")


def _config(model: BertForSequenceClassification, class_names: Sequence[str]) -> dict[str, Any]:
    stored = {
        "model_type": "bert",
        "architectures": [CLASSIFIER],
        **dataclasses.asdict(model.config),
        "position_embedding_type": "absolute",
        "problem_type": "single_label_classification",
        "num_labels": model.classes,
        "id2label": {str(index): name for index, name in enumerate(class_names)},
        "label2id": {name: index for index, name in enumerate(class_names)},
        "pooling": model.pooling,
        "torch_dtype": "float32",
    }
    if model.pooling == "mean":
        module = MODELING.removesuffix(".py")
        stored |= {
            "model_type": MEAN_TYPE,
            "architectures": [MEAN_CLASSIFIER],
            "auto_map": {
                "AutoConfig": f"{module}.MeanPoolingConfig",
                "AutoModelForSequenceClassification": f"{module}.{MEAN_CLASSIFIER}",
            },
        }
    return stored


def _tokenizer_config(
    model: BertForSequenceClassification, tokenizer: Tokenizer, max_length: int | None
) -> dict[str, Any]:
    positions = model.config.max_position_embeddings
    known = tokenizer.get_vocab(with_added_tokens=True)
    return {
        # The class that takes tokenizer.json as it is; the one of BERT may lower-case anew.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": min(max_length or positions, positions),
        **{role: token for role, token in SPECIAL_TOKENS.items() if token in known},
    }


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
