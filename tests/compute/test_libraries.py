"""One network with dropout and batch statistics, as each library's users write it.

All five are trained on the same batches.
"""

import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import loopax
from loopax.data import Dataset
from loopax.diagnose import Replay
from loopax.diagnose.examine import examine
from loopax.errors import ConfigError
from loopax.lora import LoRA
from loopax.optimizer import Group, Optimizer
from loopax.paths import leaf_paths, map_with_path
from loopax.randomness import Rngs
from loopax.run.checkpoint import CheckpointStore
from loopax.weights import read_weights, save_weights, with_weights

PLAIN = {"progress": False, "probe_every": None}
RATE, MOMENTUM, EPSILON = 0.25, 0.9, 1e-5


def cross_entropy(logits, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


# --- Linen -----------------------------------------------------------------------------------


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(16, name="first")(x)
        x = nn.BatchNorm(not train, momentum=MOMENTUM, epsilon=EPSILON, name="norm")(x)
        x = nn.Dropout(RATE, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="last")(x)


def linen_loss(params, batch, rngs, model_state):
    logits, model_state = Linen().apply(
        {**params, **model_state}, batch["x"], rngs.training, rngs=rngs, mutable=[*model_state]
    )
    return cross_entropy(logits, batch), {}, model_state


def linen_loop(state, tx, batches, keys):
    @jax.jit
    def step(variables, opt_state, batch, key):
        def loss(params):
            logits, updates = Linen().apply(
                {**variables, "params": params},
                batch["x"],
                True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            return cross_entropy(logits, batch), updates

        params = variables["params"]
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return {"params": optax.apply_updates(params, updates), **stats}, opt_state, value

    variables, opt_state = {**state.params, **state.model_state}, tx.init(state.params["params"])
    for batch, key in zip(batches, keys, strict=True):
        variables, opt_state, loss = step(variables, opt_state, batch, key)
        yield loss


# --- NNX -------------------------------------------------------------------------------------


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)])
        self.norm = nnx.BatchNorm(16, momentum=MOMENTUM, epsilon=EPSILON, rngs=rngs)
        self.dropout = nnx.Dropout(RATE, rngs=rngs)

    def __call__(self, x):
        first, last = self.layers
        return last(self.dropout(nnx.relu(self.norm(first(x)))))


def nnx_loss(model, batch, rngs):
    return cross_entropy(model(batch["x"]), batch)


def nnx_loop(state, tx, batches, keys):
    @nnx.jit
    def step(model, optimizer, batch, key):
        nnx.reseed(model, policy="match_shape", dropout=key)
        loss, grads = nnx.value_and_grad(lambda m: cross_entropy(m(batch["x"]), batch))(model)
        optimizer.update(model, grads)
        return loss

    model = state.model
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for batch, key in zip(batches, keys, strict=True):
        yield step(model, optimizer, batch, key)


# --- Equinox ---------------------------------------------------------------------------------


class Equinox(eqx.Module):
    layers: list
    norm: eqx.nn.BatchNorm
    dropout: eqx.nn.Dropout
    activation: Callable
    name: str = "a text is a leaf too"

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.layers = [eqx.nn.Linear(4, 16, key=first), eqx.nn.Linear(16, 3, key=last)]
        self.norm = eqx.nn.BatchNorm(16, "batch", eps=EPSILON, momentum=MOMENTUM, mode="batch")
        self.dropout = eqx.nn.Dropout(RATE)
        self.activation = jax.nn.relu

    def __call__(self, x, state, key):
        first, last = self.layers
        x, state = self.norm(first(x), state)
        return last(self.dropout(self.activation(x), key=key)), state


def equinox_loss(model, batch, rngs, model_state):
    keys = jax.random.split(rngs["dropout"], len(batch["x"]))
    call = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")
    logits, model_state = call(batch["x"], model_state, keys)
    return cross_entropy(logits, batch), {}, model_state


def equinox_loop(state, tx, batches, keys):
    @eqx.filter_jit
    def step(model, statistics, opt_state, batch, key):
        def loss(model, statistics):
            keys = jax.random.split(key, len(batch["x"]))
            call = jax.vmap(model, (0, None, 0), (0, None), axis_name="batch")
            logits, statistics = call(batch["x"], statistics, keys)
            return cross_entropy(logits, batch), statistics

        (value, statistics), grads = eqx.filter_value_and_grad(loss, has_aux=True)(
            model, statistics
        )
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), statistics, opt_state, value

    model, statistics = state.model, state.model_state
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
    for batch, key in zip(batches, keys, strict=True):
        model, statistics, opt_state, loss = step(model, statistics, opt_state, batch, key)
        yield loss


# --- Haiku -----------------------------------------------------------------------------------


@hk.transform_with_state
def haiku(x, training=True):
    x = hk.Linear(16, name="first")(x)
    x = hk.BatchNorm(True, True, 1 - MOMENTUM, eps=EPSILON, name="norm")(x, training)
    x = jax.nn.relu(x)
    x = hk.dropout(hk.next_rng_key(), RATE, x) if training else x
    return hk.Linear(3, name="last")(x)


def haiku_loss(params, batch, rngs, model_state):
    logits, model_state = haiku.apply(
        params, model_state, rngs["dropout"], batch["x"], rngs.training
    )
    return cross_entropy(logits, batch), {}, model_state


def pure_loop(call):
    """The loop of Haiku's users, and of those who write functions alone."""

    def loop(state, tx, batches, keys):
        @jax.jit
        def step(params, statistics, opt_state, batch, key):
            def loss(params):
                logits, after = call(params, statistics, key, batch["x"], True)
                return cross_entropy(logits, batch), after

            (value, after), grads = jax.value_and_grad(loss, has_aux=True)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), after, opt_state, value

        params, statistics, opt_state = state.params, state.model_state, tx.init(state.params)
        for batch, key in zip(batches, keys, strict=True):
            params, statistics, opt_state, value = step(params, statistics, opt_state, batch, key)
            yield value

    return loop


# --- Plain functions -------------------------------------------------------------------------


def plain(params, state, key, x, training):
    x = x @ params["first"]["w"] + params["first"]["b"]
    moments = {"mean": x.mean(0, keepdims=True), "var": x.var(0, keepdims=True)}
    used = moments if training else state
    x = (x - used["mean"]) * jax.lax.rsqrt(used["var"] + EPSILON)
    x = jax.nn.relu(x * params["norm"]["scale"] + params["norm"]["offset"])
    if training:
        kept = jax.random.bernoulli(key, 1 - RATE, x.shape)
        x = jnp.where(kept, x / (1 - RATE), 0)
        state = jax.tree.map(lambda old, new: MOMENTUM * old + (1 - MOMENTUM) * new, state, moments)
    return x @ params["last"]["w"] + params["last"]["b"], state


def plain_loss(params, batch, rngs, model_state):
    logits, model_state = plain(params, model_state, rngs["dropout"], batch["x"], rngs.training)
    return cross_entropy(logits, batch), {}, model_state


# --- All of them -----------------------------------------------------------------------------


BATCHES = 20
NUMBERS = np.random.default_rng(0)
DATA = Dataset(
    {
        "x": NUMBERS.normal(size=(200, 4)).astype(np.float32),
        "label": NUMBERS.integers(0, 3, 200).astype(np.int32),
    },
    name="points",
)


LIST = [
    {name: column[at : at + 20] for name, column in DATA.columns.items()}
    for at in range(0, 200, 20)
]


def plain_arguments():
    first, last = jax.random.split(jax.random.key(0))
    ones, zeros = jnp.ones((1, 16)), jnp.zeros((1, 16))
    layer = {"w": 0.5 * jax.random.normal(first, (4, 16)), "b": zeros}
    head = {"w": 0.25 * jax.random.normal(last, (16, 3)), "b": jnp.zeros((1, 3))}
    norm = {"scale": ones, "offset": zeros}
    params = {"first": layer, "norm": norm, "last": head}
    return {"params": params, "model_state": {"mean": zeros, "var": ones}}


@dataclasses.dataclass(frozen=True)
class Case:
    arguments: Callable[[], dict[str, Any]]
    """Of `TrainState.create`."""
    loss: Callable[..., Any]
    loop: Callable[..., Any]
    """Yields the losses of a loop as the library's users write it."""
    paths: tuple[str, ...]
    """Of what are `PATHS` in plain functions."""

    def state(self, **options):
        options = {"tx": optax.adam(1e-2), "seed": 7} | options
        return loopax.TrainState.create(**self.arguments(), **options)


PATHS = ("first/w", "first/b", "norm/scale", "norm/offset", "last/w", "last/b")
NNX_PATHS = (
    *("layers/0/kernel", "layers/0/bias", "norm/scale", "norm/bias"),
    *("layers/1/kernel", "layers/1/bias"),
)
EQUINOX_PATHS = (
    *("layers/0/weight", "layers/0/bias", "norm/weight", "norm/bias"),
    *("layers/1/weight", "layers/1/bias"),
)
LINEN_PATHS = (
    *("first/kernel", "first/bias", "norm/scale", "norm/bias", "last/kernel", "last/bias"),
)
CASES = {
    "linen": Case(lambda: {"model": Linen(), "example": DATA}, linen_loss, linen_loop, LINEN_PATHS),
    "nnx": Case(
        lambda: {"model": Nnx(nnx.Rngs(params=0, dropout=1))}, nnx_loss, nnx_loop, NNX_PATHS
    ),
    "equinox": Case(
        lambda: {"model": Equinox(jax.random.key(0))}, equinox_loss, equinox_loop, EQUINOX_PATHS
    ),
    "haiku": Case(
        lambda: {"model": haiku, "example": DATA}, haiku_loss, pure_loop(haiku.apply), PATHS
    ),
    "plain": Case(plain_arguments, plain_loss, pure_loop(plain), PATHS),
}


MODULES = ("nnx", "equinox")
"""Whose models are what the loss is given. The others' are functions of parameters, as Linen's are,
which the tests of each part of loopax have.
"""


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@functools.cache
def trained(case):
    """A run of 30 steps with averages, and nothing else."""
    return loopax.fit(
        case.state(ema_decay=0.9), case.loss, DATA.batches(BATCHES), steps=30, **PLAIN
    )


def alike(case):
    """The state of a case with the first parameters of the plain functions."""
    params = CASES["plain"].state().params
    values = dict(zip(case.paths, (params[a][b] for a, b in map(split, PATHS)), strict=True))
    state = case.state()

    def value(path, leaf):
        return jnp.reshape(values[path].T if path.endswith("weight") else values[path], leaf.shape)

    return state.with_params(map_with_path(value, state.params))


def split(path):
    return path.split("/")


def losses_by_fit(case, steps):
    run = loopax.fit(alike(case), case.loss, LIST, steps=steps, log_every=1, **PLAIN)
    return [row["loss"] for row in run.history.of("train")]


STEPS = 60


def test_the_losses_are_those_of_the_librarys_own_loop(case):
    state = alike(case)
    batches = (LIST[step % len(LIST)] for step in range(STEPS))
    keys = (Rngs(state.key, step)["dropout"] for step in range(STEPS))
    own = [float(loss) for loss in case.loop(state, optax.adam(1e-2), batches, keys)]
    np.testing.assert_allclose(losses_by_fit(case, STEPS), own, rtol=1e-5)
    assert own[-1] < own[0]


def test_without_dropout_all_libraries_have_the_same_losses(monkeypatch):
    """Haiku's loss is that of its own loop, as shown above, and its network as plain."""
    monkeypatch.setattr(sys.modules[__name__], "RATE", 0.0)
    losses = {name: losses_by_fit(CASES[name], STEPS) for name in ("linen", *MODULES, "plain")}
    for each in losses.values():
        np.testing.assert_allclose(each, losses["plain"], rtol=1e-4)


@pytest.mark.parametrize("name", MODULES)
def test_a_run_goes_on_exactly_where_it_was(name, bits, tmp_path):
    case = CASES[name]
    for steps in (13, 30):
        run = loopax.fit(
            case.state(ema_decay=0.9),
            case.loss,
            DATA.batches(BATCHES),
            steps=steps,
            evaluation=DATA.batches(50),
            run_dir=tmp_path,
            **PLAIN,
        )
    assert bits(run.state) == bits(trained(case).state)


@pytest.mark.parametrize("name", MODULES)
def test_an_evaluation_draws_nothing_and_leaves_the_statistics_alone(name):
    case = CASES[name]
    state = trained(case).state
    other = state.replace(key=jax.random.key(1))
    measures = [loopax.evaluate(each, case.loss, DATA.batches(50)) for each in (state, other)]
    assert measures[0] == measures[1]


@pytest.mark.parametrize("name", ["nnx", "equinox"])
def test_the_trained_model_is_had_back(name):
    state = trained(CASES[name]).state
    x, label = DATA.columns["x"], DATA.columns["label"]
    if name == "nnx":
        logits = state.eval_model(x)
    else:
        call = jax.vmap(lambda x: state.eval_model(x, state.eval_model_state, None)[0])
        logits = call(x)
    measured = loopax.evaluate(state, CASES[name].loss, DATA.batches(200))
    expected = cross_entropy(logits, {"label": label})
    assert measured["loss"] == pytest.approx(float(expected), rel=1e-5)
    first = [
        jax.tree.leaves(state.replace(trainable=params).model.layers[0])[-1].tolist()
        for params in (state.trainable, state.ema)
    ]
    assert jax.tree.leaves(state.model.layers[0])[-1].tolist() == first[0]
    assert jax.tree.leaves(state.eval_model.layers[0])[-1].tolist() == first[1]
    with pytest.raises(ConfigError, match=r"call model.apply\(state.eval_params"):
        _ = trained(CASES["linen"]).state.model


@pytest.fixture(scope="module")
def frozen_runs(tmp_path_factory):
    """By name, a run whose first layer does not train, with checkpoints."""

    @functools.cache
    def run(name):
        return loopax.fit(
            CASES[name].state(frozen=frozen(CASES[name]), ema_decay=0.9),
            CASES[name].loss,
            DATA.batches(BATCHES),
            steps=8,
            run_dir=tmp_path_factory.mktemp(name),
            checkpoints=loopax.Checkpoints(every=4),
            **PLAIN,
        )

    return run


def frozen(case):
    return (case.paths[0].rsplit("/", 1)[0],)


@pytest.mark.parametrize("name", MODULES)
def test_what_is_frozen_by_path_stays_and_is_exported_with_the_rest(name, frozen_runs, tmp_path):
    run, case = frozen_runs(name), CASES[name]
    before, after = (
        dict(zip(leaf_paths(each), jax.tree.leaves(each), strict=True))
        for each in (case.state().params, run.state.params)
    )
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert moved == set(case.paths[2:])
    file = tmp_path / "weights.safetensors"
    save_weights(file, run.state.eval_params)
    weights = read_weights(file)
    assert set(weights) == set(case.paths)
    stored = CheckpointStore(run.dir.checkpoints).weights()
    assert all(np.array_equal(stored[path], weights[path]) for path in case.paths)
    params = with_weights(case.state().params, weights, source="file")
    assert jax.tree.structure(params) == jax.tree.structure(run.state.params)


@pytest.mark.parametrize("name", MODULES)
def test_any_step_is_made_again(name, frozen_runs):
    run, case = frozen_runs(name), CASES[name]
    state = case.state(frozen=frozen(case), ema_decay=0.9)
    replay = Replay(run.dir, state, case.loss, DATA.batches(BATCHES))
    logged = loopax.fit(state, case.loss, DATA.batches(BATCHES), steps=7, log_every=1, **PLAIN)
    assert replay.step(6).metrics["loss"] == list(logged.history.of("train"))[-1]["loss"]


LAYERS = {
    "linen": "Linen/first",
    "nnx": "Nnx/Linear",
    "equinox": "eqx.nn.Linear",
    "haiku": "first",
    "plain": "",
}


@pytest.mark.parametrize("name", CASES)
def test_where_a_nan_began_is_told_by_layer_and_by_the_users_own_line(name):
    case = CASES[name]
    params = map_with_path(
        lambda path, leaf: jnp.full_like(leaf, 3e38) if path == case.paths[0] else leaf,
        case.state().params,
    )
    report = examine(case.loss, case.state().replace(params=params), LIST[0])
    assert report.origin.layer == LAYERS[name]
    assert report.origin.source.startswith(__file__)


class Leaf(eqx.Module):
    """A module with a leaf of any kind beside one that trains."""

    weight: jax.Array
    leaf: Any


class Attribute(nnx.Module):
    def __init__(self, leaf):
        self.weight = nnx.Param(jnp.ones(3))
        self.leaf = leaf


LEAVES = {
    "a function": jax.nn.relu,
    "a text": "text",
    "nothing": None,
    "a whole number": 3,
    "a boolean": True,
    "complex numbers": jnp.ones(2) + 1j,
    "no numbers": jnp.zeros((0, 3)),
    "an array of NumPy": np.ones(2, np.float32),
}
FIXED = {
    "whole numbers": jnp.arange(3),
    "booleans": np.array([True]),
    "a random key": jax.random.key(0),
}


def norm(model, batch, rngs):
    leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
    return sum(jnp.abs(leaf).sum() for leaf in leaves)


@pytest.mark.parametrize("kind", [Leaf, Attribute])
def test_leaves_of_every_kind_are_kept_and_go_on(kind, bits, tmp_path):
    model = Leaf(jnp.ones(3), LEAVES) if kind is Leaf else Attribute(nnx.data(LEAVES))
    state = loopax.TrainState.create(model, tx=optax.sgd(0.1), ema_decay=0.5)
    loss = norm if kind is Leaf else lambda model, batch, rngs: (model.weight[...] ** 2).sum()
    for steps in (2, 4):
        run = loopax.fit(state, loss, LIST, steps=steps, run_dir=tmp_path, **PLAIN)
    undisturbed = loopax.fit(state, loss, LIST, steps=4, **PLAIN)
    assert bits(run.state) == bits(undisturbed.state)
    assert np.all(np.asarray(run.state.model.weight[...]) < 1)
    kept = run.state.model.leaf
    assert kept.keys() == LEAVES.keys()
    assert kept["a function"] is jax.nn.relu


@pytest.mark.parametrize("leaf", FIXED.values(), ids=FIXED.keys())
@pytest.mark.parametrize("kind", [Leaf, Attribute])
def test_what_cannot_be_differentiated_stays_and_is_said(kind, leaf):
    model = Leaf(jnp.ones(3), leaf) if kind is Leaf else Attribute(nnx.Param(leaf))
    with pytest.warns(UserWarning, match=r"not of a type that can be trained .*: leaf \("):
        state = loopax.TrainState.create(model, tx=optax.sgd(0.1))
    assert leaf_paths(state.trainable) == ["weight"]


NNX = {"model": Attribute(1), "tx": optax.sgd(0.1)}
STATEFUL, STATISTICS = eqx.nn.make_with_state(Equinox)(jax.random.key(0))
WRONG = {
    "a function in a variable": (
        {**NNX, "model": Attribute(nnx.Variable(jax.nn.relu))},
        "model_state: leaf is the function relu",
    ),
    "a text in a parameter": (
        {**NNX, "model": Attribute(nnx.Param("text"))},
        "params: leaf is the text 'text'",
    ),
    "arrays that are not there yet": (
        {**NNX, "model": nnx.eval_shape(lambda: Nnx(nnx.Rngs(0)))},
        "params: layers/0/bias is ShapeDtypeStruct",
    ),
    "a leaf that cannot be compared": (
        {**NNX, "model": Leaf(jnp.ones(3), {1, 2})},
        "the model's leaf is set, which is neither an array nor a constant",
    ),
    "parameters beside a module": ({**NNX, "params": {}}, "Attribute holds its parameters"),
    "variables beside a module": ({**NNX, "model_state": {}}, "Attribute holds its variables"),
    "the optimiser second": (
        {"model": Attribute(1), "example": optax.sgd(0.1)},
        r"example is an optimiser: create\(model, tx=...\)",
    ),
    "an optimiser of NNX": (
        {**NNX, "tx": nnx.Optimizer(Attribute(1), optax.sgd(0.1), wrt=nnx.Param)},
        "tx is Optimizer, .* its .tx",
    ),
    "a state that is missing": ({**NNX, "model": STATEFUL}, "give it as model_state="),
    "a state twice": (
        {**NNX, "model": Equinox(jax.random.key(0)), "model_state": STATISTICS},
        "leave model_state out",
    ),
    "a state of another kind": (
        {**NNX, "model": STATEFUL, "model_state": {"mean": jnp.ones(2)}},
        "model_state is dict; Equinox takes an eqx.nn.State",
    ),
    "a model in two parts": (
        {**NNX, "model": eqx.partition(Leaf(jnp.ones(3), 1), eqx.is_array)},
        r"of a model in parts give the whole: eqx.combine\(\*parts\)",
    ),
    "a mask of what is frozen": (
        {**NNX, "frozen": Leaf(True, False)},
        "frozen has Leaf; it must be a tuple of patterns",
    ),
    "statistics among the parameters": (
        {"params": {"params": {}, "batch_stats": {}}, "tx": optax.sgd(0.1)},
        "batch_stats beside 'params', .* model_state=",
    ),
    "a model and its state in one": (
        {**NNX, "model": (STATEFUL, STATISTICS)},
        "of a model and its state give the second as model_state=",
    ),
    "no example": ({**NNX, "model": haiku}, "the Haiku function needs an example"),
    "another example": (
        {**NNX, "model": haiku, "example": {"image": np.ones(2)}},
        "the Haiku function takes x, training, and the example has image: 'x' is missing",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_trained_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        loopax.TrainState.create(**arguments)
    assert "\n" not in str(caught.value)


def adding(model, batch, rngs):
    model.seen = nnx.Param(jnp.ones(2))
    return model.weight[...].sum()


def noting(model, batch, rngs):
    model.seen = nnx.Intermediate(model.weight[...])
    return model.weight[...].sum()


def test_a_loss_may_note_down_but_not_add_what_lasts():
    state = loopax.TrainState.create(Attribute(1), tx=optax.sgd(0.1))
    with pytest.raises(ConfigError, match="the loss added seen to the model"):
        loopax.fit(state, adding, LIST, steps=1, **PLAIN)
    assert not loopax.fit(state, noting, LIST, steps=2, **PLAIN).state.model_state


def clipping(model, batch, rngs):
    model.weight[...] = jnp.clip(model.weight[...], -1, 1)
    return model.weight[...].sum()


def test_what_a_loss_assigns_to_a_parameter_is_told_to_be_dropped():
    state = loopax.TrainState.create(Attribute(1), tx=optax.sgd(1.0))
    with pytest.warns(UserWarning, match=r"assigns to the nnx.Param weight, .* this step alone"):
        run = loopax.fit(state, clipping, LIST, steps=3, **PLAIN)
    run.state.model.weight[...] = jnp.ones(3)  # One's own is one's own.


@nnx.remat
def remat_loss(model, batch, rngs):
    return nnx_loss(model, batch, rngs)


def test_a_loss_may_be_transformed_by_nnx():
    """What it hands back of a module is then made anew, the parameters too."""
    case = CASES["nnx"]
    states = [
        loopax.fit(case.state(), loss, LIST, steps=3, **PLAIN).state
        for loss in (case.loss, remat_loss)
    ]
    means = [state.model_state["norm"]["mean"] for state in states]
    assert np.any(means[0] != 0), "what a loss changes in a module is kept"
    np.testing.assert_allclose(*means, rtol=1e-5)


@pytest.mark.parametrize("transform", [jax.checkpoint, jax.jit])
def test_what_hides_the_changes_of_a_module_is_refused(transform):
    case = CASES["nnx"]
    with pytest.raises(ConfigError, match="changes norm/mean, norm/var of the model"):
        loopax.fit(case.state(), transform(nnx_loss), LIST, steps=1, **PLAIN)
    state = loopax.TrainState.create(Attribute(1), tx=optax.sgd(0.1))
    loopax.fit(state, transform(norm), LIST, steps=1, **PLAIN)  # which changes nothing


def test_a_module_split_by_hand_is_merged_in_the_loss():
    """As Flax's guide of its functional interface has it, without a copy."""
    graph, params, seeds, rest = nnx.split(
        Nnx(nnx.Rngs(params=0, dropout=1)), nnx.Param, nnx.RngState, ...
    )

    def loss(params, batch, rngs, model_state):
        model = nnx.merge(graph, params, *model_state)
        value = cross_entropy(model(batch["x"]), batch)
        return value, {}, nnx.split(model, nnx.Param, nnx.RngState, ...)[2:]

    state = loopax.TrainState.create(params=params, model_state=(seeds, rest), tx=optax.sgd(0.1))
    run = loopax.fit(state, loss, LIST, steps=3, **PLAIN)
    assert not np.array_equal(run.state.model_state[1]["norm"]["mean"][...], np.zeros(16))


def test_no_library_is_imported_before_a_model_of_it_is_there():
    program = (
        "import sys, jax.numpy as jnp, numpy as np, optax, loopax\n"
        "state = loopax.TrainState.create(params=jnp.ones(2), tx=optax.sgd(0.1))\n"
        "loopax.fit(state, lambda p, b, r: p.sum(), [np.ones(1)], steps=1, progress=False)\n"
        "print([name for name in ('flax.nnx', 'equinox', 'haiku') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["nnx", "equinox", "haiku"])
def test_optimisers_and_adapters_find_parameters_by_path(name):
    """A group trains a layer hardly at all here; LoRA trains it by two small matrices."""
    case = CASES[name]
    first, last = case.paths[0], case.paths[4]
    still = Group((first,), Optimizer(learning_rate=1e-9))
    grouped = case.state(tx=Optimizer(groups=(still,)), total_steps=3)
    after = loopax.fit(grouped, case.loss, LIST, steps=3, **PLAIN).state
    assert np.allclose(at(after.params, first), at(grouped.params, first), atol=1e-7)
    assert not np.allclose(at(after.params, last), at(grouped.params, last), atol=1e-7)
    adapted = case.state(lora=LoRA((first,), rank=2))
    after = loopax.fit(adapted, case.loss, LIST, steps=3, **PLAIN).state
    assert leaf_paths(after.trainable) == [f"{first}/lora_a", f"{first}/lora_b"]
    assert not np.array_equal(at(after.params, first), at(adapted.params, first))


def at(params, path):
    return dict(zip(leaf_paths(params), jax.tree.leaves(params), strict=True))[path]


def own_step(state, batch, rngs):
    def loss(trainable):
        model = state.replace(trainable=trainable).model
        return nnx_loss(model, batch, rngs), state.structure.changed(model)

    (value, model_state), grads = jax.value_and_grad(loss, has_aux=True)(state.trainable)
    return state.apply_gradients(grads=grads, model_state=model_state), {"loss": value}


def test_a_step_of_ones_own_merges_and_reads_back_as_fit_does():
    case = CASES["nnx"]
    own = loopax.fit(case.state(), data=LIST, step=own_step, steps=3, progress=False).state
    usual = loopax.fit(case.state(), case.loss, LIST, steps=3, **PLAIN).state
    for each, other in zip(
        jax.tree.leaves(own.model_state), jax.tree.leaves(usual.model_state), strict=True
    ):
        np.testing.assert_allclose(each, other, rtol=1e-6)
