"""BERT: what PyTorch computes, what a mask hides, what dropout draws, what is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from loopax.errors import ConfigError
from loopax.models.bert import BertConfig, BertForSequenceClassification, BertModel
from loopax.recipes.bert.pretrained import params_for, read_pretrained

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"
STORED = json.loads((TINY / "config.json").read_text())
CONFIG = BertConfig.from_json(STORED, "config.json")


@pytest.fixture(scope="module")
def reference():
    return np.load(TINY / "reference.npz")


@pytest.fixture(scope="module")
def inputs(reference):
    return tuple(reference[name] for name in ("input_ids", "token_type_ids", "attention_mask"))


@pytest.fixture(scope="module")
def pretrained():
    return read_pretrained(TINY)


def classifier(pretrained, pooling="pooler", **changes):
    """A classifier with the parameters of the fixture, its dropout changed."""
    config = dataclasses.replace(pretrained.config, **changes)
    model = BertForSequenceClassification(config, 3, pooling)
    return model, params_for(pretrained, model, jax.random.key(0), pretrained.class_names)


def hidden_states(model, *inputs):
    return model.bert(*inputs)


# --- What is computed ---------------------------------------------------------


def test_the_numbers_are_those_of_pytorch(pretrained, inputs, reference):
    model, params = classifier(pretrained)
    attended = reference["attention_mask"] > 0
    hidden = np.asarray(model.apply(params, *inputs, method=hidden_states))
    np.testing.assert_allclose(hidden[attended], reference["hidden"][attended], rtol=0, atol=5e-6)
    features = model.apply(params, *inputs, method=model.features)
    np.testing.assert_allclose(features, reference["pooled"], rtol=0, atol=5e-6)
    logits = model.apply(params, *inputs)
    assert (logits.dtype, logits.shape) == (jnp.float32, (6, 3))
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=1e-5)


def test_mean_pooling_is_over_the_attended_tokens(pretrained, inputs, reference):
    model, params = classifier(pretrained, "mean")
    features = model.apply(params, *inputs, method=model.features)
    expected = [
        row[mask > 0].mean(0) for row, mask in zip(reference["hidden"], inputs[2], strict=True)
    ]
    np.testing.assert_allclose(features, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_padding_does_not_change_a_row(pretrained, inputs, pooling):
    model, params = classifier(pretrained, pooling)
    logits = model.apply(params, *inputs)
    for row in (0, 4):  # of which the second is the shortest
        length = inputs[2][row].sum()
        alone = (column[row : row + 1, :length] for column in inputs)
        np.testing.assert_allclose(model.apply(params, *alone)[0], logits[row], atol=2e-6)


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_what_is_masked_is_not_seen_and_what_is_attended_is(pretrained, inputs, pooling):
    model, params = classifier(pretrained, pooling)
    ids, segments, mask = inputs
    logits = model.apply(params, *inputs)
    other = np.where(mask > 0, ids, 7)
    assert (other != ids).any()
    np.testing.assert_array_equal(model.apply(params, other, segments, mask), logits)
    np.testing.assert_array_equal(model.apply(params, ids, segments, mask > 0), logits)
    everything = model.apply(params, ids, segments)
    assert not np.allclose(everything[0], logits[0], atol=1e-3)
    np.testing.assert_allclose(everything[1], logits[1], atol=1e-6)  # the longest has no padding


def test_segments_matter_and_default_to_the_first(pretrained, inputs):
    model, params = classifier(pretrained)
    ids, segments, mask = inputs
    first = model.apply(params, ids, None, mask)
    np.testing.assert_array_equal(model.apply(params, ids, 0 * segments, mask), first)
    is_pair = segments.any(1)
    assert is_pair.any()
    changed = np.abs(first - model.apply(params, *inputs)).max(1) > 1e-4
    np.testing.assert_array_equal(changed, is_pair)


def test_bfloat16_is_near_and_gives_float32(pretrained, inputs, reference):
    model, params = classifier(pretrained)
    logits = model.apply(jax.tree.map(jnp.bfloat16, params), *inputs)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, reference["logits"], atol=0.15)
    assert not np.array_equal(logits, reference["logits"])


# --- Parameters ---------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "has_pooler"), [("pooler", True), ("mean", False)])
def test_only_what_is_used_is_a_parameter(pooling, has_pooler):
    model = BertForSequenceClassification(CONFIG, 2, pooling)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    paths = flatten_dict(params, sep="/")
    assert set(params) == {"bert", "classifier"}
    assert ("bert/pooler/dense/kernel" in paths) == has_pooler
    assert paths["bert/encoder/layer/1/attention/self/query/kernel"].shape == (32, 32)
    assert paths["bert/encoder/layer/0/intermediate/dense/kernel"].shape == (32, 40)
    assert paths["classifier/kernel"].shape == (32, 2)
    spread = float(paths["bert/embeddings/word_embeddings/embedding"].std())
    assert spread == pytest.approx(CONFIG.initializer_range, rel=0.1)


def test_the_encoder_alone_gives_a_state_for_each_token():
    model = BertModel(CONFIG)
    ids = jnp.zeros((2, 5), jnp.int32)
    hidden, variables = model.init_with_output(jax.random.key(0), ids)
    assert hidden.shape == (2, 5, 32)
    assert set(variables["params"]) == {"embeddings", "encoder"}


# --- Dropout ------------------------------------------------------------------


def keyed(seed):
    return {"dropout": jax.random.key(seed)}


@pytest.mark.parametrize(
    "only", ["hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"]
)
def test_each_dropout_depends_on_the_key_and_on_nothing_else(pretrained, inputs, only):
    none = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
    }
    model, params = classifier(pretrained, **{**none, only: 0.5})

    def logits(seed):
        return model.apply(params, *inputs, deterministic=False, rngs=keyed(seed))

    np.testing.assert_array_equal(logits(1), logits(1))
    assert not np.allclose(logits(1), logits(2))
    model, params = classifier(pretrained, **none)
    np.testing.assert_allclose(logits(1), model.apply(params, *inputs), atol=1e-6)


def test_the_dropout_before_the_head_is_that_of_the_hidden_states_unless_said(pretrained, inputs):
    features = jnp.ones((200, 32))
    for changes, expected in [
        ({"hidden_dropout_prob": 0.3, "classifier_dropout": None}, 0.3),
        ({"hidden_dropout_prob": 0.3, "classifier_dropout": 0.6}, 0.6),
    ]:
        model, params = classifier(pretrained, **changes)
        identity = {"kernel": jnp.eye(32, 3), "bias": jnp.zeros(3)}
        params = {"params": {**params["params"], "classifier": identity}}
        seen = model.apply(
            params, features, deterministic=False, method=model.classify, rngs=keyed(0)
        )
        assert float((seen == 0).mean()) == pytest.approx(expected, abs=0.08)
        np.testing.assert_allclose(seen[seen > 0], 1 / (1 - expected), rtol=1e-3)


def test_the_encoder_can_be_settled_while_the_head_drops_out(pretrained, inputs):
    model, params = classifier(pretrained, hidden_dropout_prob=0.5)
    features = model.apply(params, *inputs, method=model.features)  # needs no key
    loose = model.apply(params, *inputs, deterministic=False, method=model.features, rngs=keyed(0))
    assert not np.allclose(features, loose)
    settled = model.apply(params, features, method=model.classify)
    np.testing.assert_array_equal(settled, model.apply(params, *inputs))
    dropped = model.apply(
        params, features, deterministic=False, method=model.classify, rngs=keyed(0)
    )
    assert not np.allclose(settled, dropped)


def test_dropout_keeps_the_mean(pretrained, inputs):
    """Of many draws, so that what is left is scaled by what was left out."""
    model, params = classifier(
        pretrained, "mean", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.1
    )
    draw = jax.jit(
        lambda key: model.apply(params, *inputs, deterministic=False, rngs={"dropout": key})
    )
    draws = np.stack([draw(key) for key in jax.random.split(jax.random.key(0), 200)])
    error = np.abs(draws.mean(0) - model.apply(params, *inputs))
    assert (error < 0.02 + 4 * draws.std(0) / np.sqrt(200)).all()


# --- Refusals -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hidden_act": "gelu_fast"},
            "hidden_act is 'gelu_fast'; it must be one of gelu, gelu_new",
        ),
        ({"hidden_act": ["gelu"]}, "hidden_act is"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key'; only 'absolute' is supported",
        ),
        ({"model_type": "roberta"}, "model_type is 'roberta'; only 'bert' is supported"),
        ({"is_decoder": True}, "is_decoder is True; only False is supported"),
        ({"add_cross_attention": True}, "add_cross_attention is True"),
        ({"num_attention_heads": 5}, "hidden_size is 32; it must be divisible .* 5"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be a whole number"),
        ({"vocab_size": -3}, "vocab_size is -3"),
        ({"vocab_size": 2**40}, "vocab_size is 1099511627776"),
        ({"hidden_size": 32.0}, r"hidden_size is 32\.0"),
        ({"type_vocab_size": True}, "type_vocab_size is True"),
        ({"intermediate_size": None}, "intermediate_size is None"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob is 1\.0; it must be at least 0"),
        ({"classifier_dropout": -0.1}, r"classifier_dropout is -0\.1"),
        ({"attention_probs_dropout_prob": "0.1"}, "attention_probs_dropout_prob is '0.1'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; it must be above 0"),
        ({"initializer_range": float("nan")}, "initializer_range is nan"),
    ],
)
def test_an_architecture_that_cannot_work_is_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=f"^here/config.json: {message}") as error:
        BertConfig.from_json({**STORED, **change}, "here/config.json")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ],
)
def test_a_size_that_is_missing_is_named(name):
    stored = {key: value for key, value in STORED.items() if key != name}
    with pytest.raises(ConfigError, match=f"here: {name} is missing"):
        BertConfig.from_json(stored, "here")


def test_a_text_longer_than_there_are_positions_is_refused():
    model = BertForSequenceClassification(CONFIG, 2)
    with pytest.raises(ConfigError, match="41 tokens long; max_position_embeddings is 40"):
        model.init(jax.random.key(0), jnp.zeros((1, 41), jnp.int32))


def test_an_unknown_pooling_is_refused():
    model = BertForSequenceClassification(CONFIG, 2, "max")
    with pytest.raises(ConfigError, match="pooling is 'max'; it must be mean or pooler"):
        model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
