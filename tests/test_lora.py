"""LoRA: adapters train, the model stays, and what is saved is either the one or both together."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import loopax
import loopax.paths
from loopax.errors import CheckpointError, ConfigError
from loopax.lora import LoRA
from loopax.run import serialization
from loopax.weights import read_weights, save_weights, with_weights

LORA = LoRA(("**/kernel",), rank=1, alpha=2, train=("Dense_1/bias",))


class Fields(nn.Module):
    """A convolution and two layers, of which the last one has three classes."""

    @nn.compact
    def __call__(self, image):
        hidden = nn.relu(nn.Conv(2, (3, 3))(image))
        hidden = nn.relu(nn.Dense(8)(hidden.reshape(hidden.shape[0], -1)))
        return nn.Dense(3)(hidden)


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def loss_fn(params, batch, rngs):
    return cross_entropy(Fields().apply(params, batch["image"]), batch)


@pytest.fixture(scope="module")
def new_state(dataset):
    def create(lora=LORA, **options):
        tx = options.pop("tx", optax.adam(1e-2))
        return loopax.TrainState.create(Fields(), dataset, tx, lora=lora, **options)

    return create


@pytest.fixture(scope="module")
def trained(new_state, dataset, tmp_path_factory):
    """The states before and after a short training, with averages, and its run directory."""
    before, run_dir = new_state(ema_decay=0.9), tmp_path_factory.mktemp("runs") / "lora"
    batches = dataset.batches(8)
    run = loopax.fit(before, loss_fn, batches, steps=40, run_dir=run_dir, progress=False)
    return before, run.state, run_dir


def by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {loopax.paths.leaf_path(path): leaf for path, leaf in leaves}


def test_training_begins_with_the_model_as_it_is(new_state, bits):
    assert bits(new_state().params) == bits(new_state(lora=None).params)


def test_the_change_is_the_scaled_product_and_all_else_stays(trained):
    before, after, _ = trained
    start, params = by_path(before.params), by_path(after.params)
    parts = by_path(after.trainable)
    for path in ("Conv_0/kernel", "Dense_0/kernel", "Dense_1/kernel"):
        a, b = parts[f"{path}/lora_a"], parts[f"{path}/lora_b"]
        assert a.shape[1] == b.shape[0] == LORA.rank
        change = np.asarray(a, np.float64) @ np.asarray(b, np.float64) * LORA.alpha / LORA.rank
        assert np.abs(change).max() > 1e-3
        expected = start[path] + change.reshape(start[path].shape)
        np.testing.assert_allclose(params[path], expected, atol=1e-6)
    assert (params["Dense_1/bias"] != start["Dense_1/bias"]).any(), "what train names trains"
    for path in ("Conv_0/bias", "Dense_0/bias"):
        assert (params[path] == start[path]).all()
    assert len(parts) == len(jax.tree.leaves(optax.tree.get(after.opt_state, "mu"))) == 7


def test_a_convolution_is_adapted_as_the_matrix_with_the_smallest_adapters():
    params = {"conv": jnp.zeros((3, 3, 16, 32)), "query": jnp.zeros((64, 4, 8))}
    trainable, _ = LoRA(("**",), rank=2).split(params, jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in by_path(trainable).items()}
    assert shapes == {
        "conv/lora_a": (144, 2),
        "conv/lora_b": (2, 32),
        "query/lora_a": (64, 2),
        "query/lora_b": (2, 32),
    }


def test_a_checkpoint_holds_no_parameter_that_is_frozen(trained):
    _, state, run_dir = trained
    *_, latest = sorted((run_dir / "checkpoints").glob("[0-9]*"))
    saved = set(by_path(serialization.read(latest)["trainable"]))
    assert saved == set(by_path(state.trainable))
    once = set(by_path(serialization.read(run_dir / "checkpoints" / "frozen")["frozen"]))
    assert "Dense_0/kernel/base" in once


def test_checkpoints_give_the_sum_or_the_adapters_alone(trained, tmp_path):
    before, state, run_dir = trained
    with loopax.CheckpointStore(run_dir / "checkpoints") as store:
        weights, adapters = store.weights(), store.weights(trained_only=True)
        assert "Dense_0/kernel" not in adapters
        assert "Dense_0/kernel/lora_a" in adapters
    for path, leaf in by_path(state.eval_params).items():
        np.testing.assert_allclose(weights[path], leaf, atol=1e-7)
    save_weights(tmp_path / "adapters.safetensors", adapters)
    small = with_weights(
        before.trainable, read_weights(tmp_path / "adapters.safetensors"), source="adapters"
    )
    again = by_path(before.replace(trainable=small).params)
    for path, leaf in by_path(state.eval_params).items():
        np.testing.assert_allclose(again[path], leaf, atol=1e-7)


def test_a_run_resumes_exactly(new_state, dataset, tmp_path, bits):
    def fit(steps, run_dir):
        state, batches = new_state(ema_decay=0.9), dataset.batches(8)
        return loopax.fit(state, loss_fn, batches, steps=steps, run_dir=run_dir, progress=False)

    fit(11, tmp_path / "resumed")
    assert bits(fit(20, tmp_path / "resumed").state) == bits(fit(20, None).state)


def test_another_rank_or_alpha_is_another_run(new_state, dataset, tmp_path):
    def fit(lora):
        state = new_state(lora=lora)
        loopax.fit(state, loss_fn, dataset.batches(8), steps=2, run_dir=tmp_path, progress=False)

    fit(LORA)
    with pytest.raises(
        CheckpointError, match=r"lora_a is float32\[3, 1\] there and float32\[3, 2\]"
    ):
        fit(LoRA(LORA.targets, 2, 4, LORA.train))
    with pytest.raises(CheckpointError, match=r"alpha / rank \{2.0\}, and now it is \{4.0\}"):
        fit(LoRA(LORA.targets, 1, 4, LORA.train))


def test_any_library(dataset):
    """NNX with state in its layers, and Equinox: the loss is given the model with its adapters."""

    class Normed(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(16, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.last = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, image):
            hidden = self.norm(self.first(image.reshape(len(image), -1)))
            return self.last(nnx.relu(hidden))

    def nnx_loss(model, batch, rngs):
        return cross_entropy(model(batch["image"]), batch)

    def eqx_loss(model, batch, rngs):
        images = batch["image"].reshape(-1, 16)
        return cross_entropy(jax.vmap(model)(images), batch)

    models = {
        "kernel": (Normed(nnx.Rngs(0)), nnx_loss),
        "weight": (eqx.nn.MLP(16, 3, 8, 1, key=jax.random.key(0)), eqx_loss),
    }
    for name, (model, loss) in models.items():
        lora = LoRA((f"**/{name}",), rank=2)
        state = loopax.TrainState.create(model, tx=optax.adam(3e-2), lora=lora)
        paths = by_path(state.trainable)
        assert {path.rpartition("/")[2] for path in paths} == {"lora_a", "lora_b"}
        run = loopax.fit(state, loss, dataset.batches(24), steps=100, progress=False)
        before, after = (
            loopax.evaluate(each, loss, dataset.batches(240))["loss"] for each in (state, run.state)
        )
        assert after < before - 0.01
        assert type(run.state.eval_model) is type(model)


def test_half_precision_keeps_its_type_and_small_changes():
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    state = loopax.TrainState.create(params=params, tx=optax.sgd(1e-3), lora=LoRA(("w",), rank=2))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    assert state.params["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("lora", "options", "message"),
    [
        ({"targets": ("**/kernl",)}, {}, "lora targets: '\\*\\*/kernl' matches none"),
        ({"targets": ("**/kernel",), "train": ("head",)}, {}, "lora train: 'head' matches none"),
        ({"targets": ("**/bias",)}, {}, "Conv_0/bias is float32\\[2\\], and adapters are for mat"),
        ({"targets": ("Dense_1",)}, {}, "Dense_1/bias is float32\\[3\\]"),
        (
            {"targets": ("**/kernel",), "rank": 4},
            {},
            "Conv_0/kernel is a matrix of 3 x 6; give at m",
        ),
        ({"targets": "**/kernel"}, {}, "it must be a tuple of patterns: \\('\\*\\*/kernel',\\)"),
        ({"targets": ("**/kernel",), "rank": 0}, {}, "rank is 0; it must be"),
        ({"targets": ("**/kernel",), "rank": 1}, {"frozen": ("Conv_0",)}, "leave frozen out"),
    ],
)
def test_mistakes_are_named(new_state, lora, options, message):
    with pytest.raises(ConfigError, match=message):
        new_state(lora=LoRA(**lora), **options)


def test_other_parameters_are_refused_in_one_line(new_state):
    state = new_state()
    with pytest.raises(ConfigError) as refused:
        state.with_params(new_state(lora=None).params)
    assert "\n" not in str(refused.value)
    assert "lora" in str(refused.value)
