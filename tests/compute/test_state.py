"""One tree is the run: how it begins, what trains of it, what is averaged, what is random."""

import copy
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state
from hypothesis import given
from hypothesis import strategies as st

import loopax
from loopax.compute.step import train_step
from loopax.data import Dataset
from loopax.diagnose.examine import examine
from loopax.errors import ConfigError
from loopax.optimizer import Optimizer
from loopax.paths import leaf_paths, map_with_path, matches, merge, partition, path_mask
from loopax.randomness import Rngs

PLAIN = {"progress": False, "probe_every": None}


class Compact(nn.Module):
    @nn.compact
    def __call__(self, image, label):
        return nn.Dense(2)(image.reshape(image.shape[0], -1)) + label[:, None]


class Setup(nn.Module):
    def setup(self):
        self.dense = nn.Dense(2)

    def __call__(self, image, label, scale=1.0):
        return scale * self.dense(image.reshape(image.shape[0], -1)) + label[:, None]


class TakesBatch(nn.Module):
    @nn.compact
    def __call__(self, batch):
        return nn.Dense(2)(batch["image"].reshape(batch["image"].shape[0], -1))


IMAGE, LABEL = np.ones((3, 4, 4, 1), np.float32), np.zeros(3, np.int32)
EXAMPLES = {
    "a dataset": (Compact, lambda dataset: dataset),
    "batches": (Compact, lambda dataset: dataset.batches(4)),
    "a batch": (Compact, lambda _: {"image": IMAGE, "label": LABEL, "unused": LABEL}),
    "a tuple": (Compact, lambda _: (IMAGE, LABEL)),
    "defaults left alone": (Setup, lambda dataset: dataset),
    "an argument called batch": (TakesBatch, lambda dataset: dataset),
}


@pytest.mark.parametrize(("module", "example"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_a_module_is_initialised_with_what_its_arguments_are_called(dataset, module, example):
    state = loopax.TrainState.create(module(), example(dataset), optax.adam(0.1))
    (layer,) = state.params["params"].values()
    assert layer["kernel"].shape == (16, 2)
    assert int(state.step) == 0


@pytest.mark.parametrize(
    "module", [nn.Dense(2), nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])], ids=["one", "many"]
)
def test_a_module_that_takes_one_array_is_initialised_with_one(module):
    state = loopax.TrainState.create(module, jnp.ones((1, 5)), optax.sgd(0.1))
    assert state.apply_fn(state.params, jnp.ones((7, 5))).shape == (7, 2)


def test_the_seed_decides_the_parameters_and_nothing_else_does(bits, dataset):
    def create(seed, tx=None):
        return loopax.TrainState.create(Compact(), dataset, tx or optax.sgd(0.1), seed=seed)

    assert bits(create(0)) == bits(create(0))
    assert bits(create(0).params) == bits(create(0, optax.adam(0.1)).params)
    assert bits(create(0).params) != bits(create(1).params)


def test_any_tree_is_a_model():
    params = [np.float32(2.0), {"a": np.arange(3.0)}]
    state = loopax.TrainState.create(params=params, tx=optax.sgd(0.1))
    assert state.apply_fn is None
    assert jax.tree.structure(state.params) == jax.tree.structure(params)


def test_parameters_that_are_all_zero_are_parameters(dataset):
    model = Compact()
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGE, LABEL)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    state = loopax.TrainState.create(model, params=zeros, tx=optax.sgd(0.1))
    assert jnp.all(state.apply_fn(state.params, IMAGE, LABEL) == 0)

    def loss(params, batch, rngs):
        return jnp.square(model.apply(params, batch["image"], batch["label"]) - 1.0).mean()

    run = loopax.fit(state, loss, dataset.batches(4), steps=3, **PLAIN)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(run.state.params))


def test_an_interactive_model_can_be_bound_to_the_parameters(dataset):
    """Flax's `bind`, for debugging."""
    state = loopax.TrainState.create(Setup(), dataset, optax.sgd(0.1))
    bound = Setup().bind(state.params)
    assert bound.dense(jnp.ones((1, 16))).shape == (1, 2)
    assert bound.unbind()[0] == Setup()


class Hungry(nn.Module):
    @nn.compact
    def __call__(self, image, mask):
        return nn.Dense(2)(image * mask)


class Somebodys:
    """A model of another library."""


PARAMS = {"layer": {"kernel": jnp.ones(2)}}
WRONG = {
    "nothing": ({}, "tx is missing"),
    "no model": ({"tx": optax.sgd(1)}, "there is no model; .* params="),
    "a function": (
        {"model": print, "tx": optax.sgd(1)},
        "model is the function print, and no model",
    ),
    "parameters as a model": (
        {"model": PARAMS, "tx": optax.sgd(1)},
        "model is dict, and no model .*; if these are parameters, pass them as params=",
    ),
    "a class as a model": (
        {"model": Compact, "example": IMAGE, "tx": optax.sgd(1)},
        r"model is the class Compact, .*; make one: Compact\(...\)",
    ),
    "a model as parameters": (
        {"params": Compact(), "tx": optax.sgd(1)},
        "params is the model Compact itself; give it first",
    ),
    "a foreign model": ({"model": Somebodys(), "tx": optax.sgd(1)}, "pass its parameters as par"),
    "swapped": (
        {"model": Compact(), "example": optax.sgd(1), "tx": IMAGE},
        "example is an optimiser; these two are swapped",
    ),
    "a swapped description": (
        {"model": Compact(), "example": Optimizer()},
        r"example is an optimiser: create\(model, example, tx\)",
    ),
    "a schedule": (
        {"params": PARAMS, "tx": optax.cosine_decay_schedule(1.0, 5)},
        r"a schedule is the learning rate of an optimiser: optax.adamw\(schedule\)",
    ),
    "an optimiser that was not called": (
        {"params": PARAMS, "tx": optax.adam},
        r"tx is the function adam, .*; call it: optax.adam\(...\)",
    ),
    "a description's class": (
        {"params": PARAMS, "tx": Optimizer},
        r"tx is the class Optimizer, .*; make one",
    ),
    "a rate": ({"params": PARAMS, "tx": 0.1}, "tx is float, not an Optax transformation"),
    "an optimiser that keeps a function": (
        {
            "params": PARAMS,
            "tx": optax.GradientTransformation(lambda _: {"f": nn.relu}, lambda g, s, p: (g, s)),
        },
        "tx: the state of the optimiser: f is the function relu",
    ),
    "a group without an optimiser": (
        {"params": PARAMS, "tx": optax.partition({"a": optax.sgd(1)}, lambda _: "b")},
        "tx: it cannot begin with these parameters: .*labels: .'b'",
    ),
    "two iterates in a group": (
        {
            "params": PARAMS,
            "tx": optax.partition({"a": optax.lookahead(optax.sgd(1), 2, 0.5)}, lambda _: "a"),
        },
        "tx: optax.lookahead inside of optax.masked or partition",
    ),
    "a text as an example": (
        {"model": Compact(), "example": "image", "tx": optax.sgd(1)},
        "example is the text 'image'; it must be a dataset",
    ),
    "a text among parameters": (
        {"params": {**PARAMS, "name": "x"}, "tx": optax.sgd(1)},
        "params: name is the text 'x'; what a run keeps are arrays and numbers",
    ),
    "a function among parameters": (
        {"params": {"layer": {"activation": nn.relu}}, "tx": optax.sgd(1)},
        "params: layer/activation is the function relu; what a run keeps are arrays",
    ),
    "nothing to train": ({"params": {}, "tx": optax.sgd(1)}, "no parameters are left.*are none"),
    "everything frozen": (
        {"params": PARAMS, "tx": optax.sgd(1), "frozen": ("layer",)},
        r"no parameters are left to train: frozen=\('layer',\) matches every one",
    ),
    "a seed that would wrap": (
        {"params": PARAMS, "tx": optax.sgd(1), "seed": 2**32},
        "seed is 4294967296; it must be a whole number from 0",
    ),
    "a negative seed": ({"params": PARAMS, "tx": optax.sgd(1), "seed": -1}, "seed is -1"),
    "half a seed": ({"params": PARAMS, "tx": optax.sgd(1), "seed": 0.5}, "seed is 0.5"),
    "no example": ({"model": Compact(), "tx": optax.sgd(1)}, "Compact needs an example"),
    "a missing argument": (
        {"model": Hungry(), "example": {"image": IMAGE, "label": LABEL}, "tx": optax.sgd(1)},
        "Hungry.__call__ takes image, mask.*has image, label: 'mask' is missing",
    ),
    "an average of 1": ({"params": [1.0], "tx": optax.sgd(1), "ema_decay": 1.0}, "ema_decay is 1"),
    "a negative average": (
        {"params": [1.0], "tx": optax.sgd(1), "ema_decay": -0.1},
        "ema_decay is -0.1",
    ),
    "a pattern of nothing": (
        {
            "params": {"encoder": jnp.ones(2), "head": jnp.ones(2)},
            "tx": optax.sgd(1),
            "frozen": ("encodr",),
        },
        "frozen: 'encodr' matches none of the 2 parameters; the nearest paths are encoder",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_become_a_state_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        loopax.TrainState.create(**arguments)
    assert "\n" not in str(caught.value)


LOSSES = {
    "a missing column": (
        lambda params, batch, rngs: batch["images"].sum(),
        "the loss looked for 'images': the batch has image, label, the parameters bias, weights",
    ),
    "two arguments": (
        lambda params, batch: 0.0,
        r"the loss takes \(params, batch\), and is called with \(params, batch, rngs\)",
    ),
    "no return": (lambda params, batch, rngs: None, "returned nothing; did you forget `return`"),
    "a list of metrics": (
        lambda params, batch, rngs: (params["bias"].sum(), [1.0]),
        "the loss must return loss or .* metrics a dict; it gave 2 values: array, list",
    ),
    "no collections": (
        lambda params, batch, rngs: (
            nn.BatchNorm(use_running_average=False).apply({}, batch["image"]).sum()
        ),
        "the model wants a collection .* TrainState.create as model_state",
    ),
    "an argument that nobody gives": (
        lambda params, batch, rngs, scale: 0.0,
        r"takes \(params, batch, rngs, scale\), .*missing a required argument: 'scale'",
    ),
}


@pytest.mark.parametrize(("loss", "message"), LOSSES.values(), ids=LOSSES.keys())
def test_mistakes_in_a_loss_are_named(dataset, line_state, loss, message):
    with pytest.raises(ConfigError, match=message) as caught:
        loopax.fit(line_state(), loss, dataset.batches(2), steps=1, **PLAIN)
    assert "\n" not in str(caught.value)


def counting(params, batch, rngs, seen, scale=1.0):
    return scale * params["x"].sum(), {}, seen + 1


def test_a_state_with_a_model_state_hands_it_to_the_loss_and_gets_it_back():
    params, tx = {"x": jnp.zeros(2)}, optax.sgd(0.1)
    state = loopax.TrainState.create(params=params, tx=tx, model_state=jnp.zeros(1))
    loss = functools.partial(counting, scale=2.0)
    run = loopax.fit(state, loss, [np.zeros(1)], steps=2, log_every=1, **PLAIN)
    assert run.state.model_state.tolist() == [2]
    with pytest.raises(ConfigError, match=r"has a model_state, .* fourth argument"):
        loopax.fit(state, lambda params, batch, rngs: 0.0, [np.zeros(1)], steps=1, **PLAIN)


class FlaxState(train_state.TrainState):
    seen: jax.Array
    key: jax.Array


class OwnUpdate(train_state.TrainState):
    def apply_gradients(self, *, grads, **fields):
        return super().apply_gradients(grads=grads, **fields)


def test_a_state_of_flaxs_own_is_gone_on_with_as_far_as_that_is_sound():
    params, key = {"x": jnp.zeros(2)}, jax.random.key(5)
    made = {"apply_fn": None, "params": params, "tx": optax.adam(0.1)}
    state = FlaxState.create(**made, seen=jnp.zeros(1), key=key).replace(step=3)
    run = loopax.fit(state, counting_seen, [np.zeros(1)], steps=2, **PLAIN)
    assert run.state.model_state["seen"].tolist() == [2]
    assert int(run.state.step) == 5
    assert words(run.state.key) == words(key)
    with pytest.raises(ConfigError, match="OwnUpdate of Flax, which makes its own update"):
        loopax.fit(OwnUpdate.create(**made), counting, [np.zeros(1)], steps=1, **PLAIN)


def counting_seen(params, batch, rngs, model_state):
    return params["x"].sum(), {}, {"seen": model_state["seen"] + 1}


def test_given_collections_take_the_place_of_the_models():
    stats = {"BatchNorm_0": {"mean": jnp.full(2, 5.0), "var": jnp.full(2, 6.0)}}
    x, tx = np.ones((1, 3), np.float32), optax.sgd(0.1)
    given = {"batch_stats": stats, "more": jnp.ones(1)}
    state = loopax.TrainState.create(Normed(), (x, True), tx, model_state=given)
    assert state.model_state["batch_stats"]["BatchNorm_0"]["mean"].tolist() == [5, 5]
    assert state.model_state["more"].tolist() == [1]
    with pytest.raises(ConfigError, match="'batch_stats' is not of the form that the model has"):
        loopax.TrainState.create(Normed(), (x, True), tx, model_state={"batch_stats": {}})


@pytest.mark.parametrize("seed", [0, 2**32 - 1, np.int64(7), np.uint32(7)])
def test_every_seed_of_32_bits_is_a_seed(seed, line_state):
    assert words(line_state(seed=seed).key) == words(jax.random.key(int(seed)))


def test_a_dataset_without_what_a_module_takes_is_named(dataset):
    with pytest.raises(ConfigError, match="the example has image, label: 'mask' is missing"):
        loopax.TrainState.create(Hungry(), dataset, optax.sgd(1.0))


# --- Freezing -----------------------------------------------------------------


class Deep(nn.Module):
    """A backbone of four equal layers, and a head that is small beside it."""

    @nn.compact
    def __call__(self, x):
        for index in range(4):
            x = nn.relu(nn.Dense(64, name=f"backbone_{index}")(x))
        return nn.Dense(1, name="head")(x)


deep = Deep()
ROWS = {"x": np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32)}


def deep_loss(params, batch, rngs):
    return jnp.square(deep.apply(params, batch["x"]) - 1.0).mean()


def deep_state(tx, *frozen, **options):
    example = {"x": ROWS["x"][:1]}
    return loopax.TrainState.create(deep, example, tx, frozen=frozen, **options)


HEAD = ["head/bias", "head/kernel"]


def test_what_is_frozen_has_no_optimiser_state_no_average_and_no_gradient():
    state = deep_state(optax.adam(0.1), "backbone_*", ema_decay=0.9)
    assert leaf_paths(state.trainable) == HEAD
    assert leaf_paths(state.opt_state[0].mu) == leaf_paths(state.opt_state[0].nu) == HEAD
    assert leaf_paths(state.ema) == HEAD
    assert len(leaf_paths(state.params)) == 10


def test_what_is_frozen_stays_the_same_bits_and_the_rest_trains(bits):
    """With weight decay, which would move every parameter that it is shown."""
    state = deep_state(optax.adamw(0.1, weight_decay=0.5), "backbone_*")
    run = loopax.fit(state, deep_loss, Dataset(ROWS).batches(8), steps=10, **PLAIN)
    before, after = bits(state.params), bits(run.state.params)
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {path for path in before if "head" in path}


def test_a_frozen_part_trains_the_rest_as_if_it_were_a_constant():
    state = deep_state(optax.sgd(0.1), "backbone_*")
    data = Dataset(ROWS).batches(32, shuffle=False)
    run = loopax.fit(state, deep_loss, data, steps=1, **PLAIN)
    grads = jax.grad(deep_loss)(state.params, ROWS, {})["params"]["head"]
    head, trained = state.params["params"]["head"], run.state.params["params"]["head"]
    for name in ("kernel", "bias"):
        np.testing.assert_allclose(
            trained[name], head[name] - 0.1 * grads[name], rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("frozen", [(), ("backbone_*",)], ids=["all train", "frozen"])
def test_the_logged_gradient_norm_is_that_of_what_trains(frozen):
    state = deep_state(optax.sgd(0.1), *frozen)
    data = Dataset(ROWS).batches(32, shuffle=False)
    run = loopax.fit(state, deep_loss, data, steps=1, probe_every=1, progress=False)
    grads = jax.grad(deep_loss)(state.params, ROWS, {})["params"]
    trained = grads["head"] if frozen else grads
    assert run.latest("probe")["grad_norm"] == pytest.approx(
        float(optax.tree.norm(trained)), rel=1e-4
    )


def flops(state):
    compiled = jax.jit(train_step(deep_loss)).lower(state, ROWS).compile()
    return compiled.cost_analysis()["flops"]


CHAINS = {
    "clipped by global norm": optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    "accumulated": optax.MultiSteps(optax.adam(0.1), 4).gradient_transformation(),
}


@pytest.mark.parametrize("tx", CHAINS.values(), ids=CHAINS.keys())
def test_a_frozen_part_costs_no_backward_pass_whatever_is_in_front_of_the_optimiser(tx):
    """Forward only is a third of forward and backward; the head is small."""
    assert flops(deep_state(tx, "backbone_*")) < 0.45 * flops(deep_state(tx))


def test_several_patterns_freeze_what_any_of_them_picks():
    state = deep_state(optax.sgd(0.1), "backbone_*/kernel", "head")
    assert leaf_paths(state.trainable) == [f"backbone_{index}/bias" for index in range(4)]


# --- The moving average -------------------------------------------------------


def slope(params, batch, rngs):
    """Its gradient is 1 everywhere, so that SGD walks with equal steps."""
    return params["x"].sum()


def walk(tx, steps, **options):
    state = loopax.TrainState.create(params={"x": jnp.zeros(2)}, tx=tx, **options)
    return loopax.fit(state, slope, [np.zeros(1)], steps=steps, **PLAIN).state


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_moving_average_warms_up_to_its_decay(decay):
    """After t updates it keeps min(decay, (1 + t) / (10 + t)); here p_t = -t."""
    n, expected = 20, 0.0
    state = walk(optax.sgd(1.0), n, ema_decay=decay)
    np.testing.assert_allclose(state.params["x"], -n)
    for t in range(1, n + 1):
        keep = min(decay, (1 + t) / (10 + t))
        expected = keep * expected + (1 - keep) * -t
    np.testing.assert_allclose(state.ema["x"], expected, rtol=1e-5)
    np.testing.assert_array_equal(state.eval_params["x"], state.ema["x"])


def test_an_average_forgets_where_it_began():
    """Without a warm-up, one of decay 0.999 would be half of the first parameters for long."""
    tx, params = optax.sgd(0.2), {"x": jnp.full(2, 100.0)}
    state = loopax.TrainState.create(params=params, tx=tx, ema_decay=0.999)
    for _ in range(200):
        state = state.apply_gradients(grads={"x": state.params["x"]})
    assert abs(state.params["x"][0]) < 1e-10
    assert abs(state.ema["x"][0]) < 1e-3


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_the_average_of_half_precision_moves(kind):
    """Adding a thousandth to a half-precision number gives the number again."""
    params = {"x": jnp.ones(2, kind)}
    tx = optax.sgd(2.0**-6)
    state = loopax.TrainState.create(params=params, tx=tx, ema_decay=0.999)
    whole = loopax.TrainState.create(params={"x": jnp.ones(2)}, tx=tx, ema_decay=0.999)
    for _ in range(30):
        grads = jax.tree.map(jnp.ones_like, state.params)
        state, whole = (s.apply_gradients(grads=grads) for s in (state, whole))
    assert state.ema["x"].dtype == jnp.float32
    np.testing.assert_allclose(state.ema["x"], whole.ema["x"], rtol=1e-5)
    assert state.eval_params["x"].dtype == jnp.dtype(kind)


def test_without_a_decay_there_is_no_average(bits):
    state = walk(optax.sgd(1.0), 3)
    assert state.ema is None
    assert bits(state.eval_params) == bits(state.params)


ACCUMULATED = optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation()
TWICE = optax.MultiSteps(
    optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation(), 2
).gradient_transformation()
NESTED = {
    "alone": ACCUMULATED,
    "behind a clip": optax.chain(optax.clip(10.0), ACCUMULATED),
    "of a part": optax.multi_transform({"it": ACCUMULATED}, {"x": "it"}),
    "masked": optax.masked(ACCUMULATED, {"x": True}),
    "twice": TWICE,
}


@pytest.mark.parametrize("tx", NESTED.values(), ids=NESTED.keys())
def test_while_gradients_accumulate_neither_parameters_nor_average_move(tx):
    state = loopax.TrainState.create(params={"x": jnp.zeros(2)}, tx=tx, ema_decay=0.1)
    states = [state := state.apply_gradients(grads={"x": jnp.ones(2)}) for _ in range(11)]
    three, four, eleven = (states[count - 1] for count in (3, 4, 11))
    assert three.params["x"].tolist() == three.ema["x"].tolist() == [0, 0]
    assert four.params["x"].tolist() == [-1, -1]
    np.testing.assert_allclose(four.ema["x"], -0.9, rtol=1e-6)
    assert eleven.params["x"].tolist() == [-2, -2]
    np.testing.assert_allclose(eleven.ema["x"], -1.89, rtol=1e-6)


def test_each_part_is_averaged_at_its_own_updates():
    """One of 1 batch, and one of 2: the average of the second stands still at every other step."""
    every_two = optax.MultiSteps(optax.sgd(1.0), 2).gradient_transformation()
    tx = optax.multi_transform({"a": optax.sgd(1.0), "b": every_two}, {"x": "a", "y": "b"})
    params = {"x": jnp.zeros(1), "y": jnp.zeros(1)}
    state = loopax.TrainState.create(params=params, tx=tx, ema_decay=0.1)
    for _ in range(3):
        state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    np.testing.assert_allclose(state.ema["x"], 0.1 * 0.1 * -0.9 + 0.1 * -1.8 + 0.9 * -3, rtol=1e-6)
    np.testing.assert_allclose(state.ema["y"], -0.9, rtol=1e-6)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(2)(x))


def test_collections_are_averaged_along_with_the_parameters_and_evaluated():
    """Averaged weights with the statistics of other weights would be no model at all."""
    model, x = Normed(), np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)

    def loss(params, batch, rngs, model_state):
        variables = {**params, "batch_stats": model_state["batch_stats"]}
        out, new = model.apply(variables, batch["x"], rngs.training, mutable=["batch_stats"])
        return jnp.square(out - 1.0).mean(), {}, {**model_state, **new}

    state = loopax.TrainState.create(model, (x, True), optax.sgd(0.5), ema_decay=0.5)
    state = state.replace(
        model_state={**state.model_state, "masks": {"m": jnp.array([0.0, -jnp.inf])}}
    )
    state = state.with_params(state.params)
    step, mean = train_step(loss), state.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    for t in range(1, 6):
        state, _ = step(state, {"x": x + t})
        keep = min(0.5, (1 + t) / (10 + t))
        mean = keep * mean + (1 - keep) * state.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    seen = state.eval_model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(seen, mean, rtol=1e-5)
    assert state.eval_model_state["masks"]["m"].tolist() == [0.0, -np.inf]
    expected = loss(state.eval_params, {"x": x}, eval_rngs(state), state.eval_model_state)[0]
    assert loopax.evaluate(state, loss, [{"x": x}])["loss"] == pytest.approx(float(expected))
    assert state.replace(ema=None, ema_model_state=None).eval_model_state == state.model_state


def eval_rngs(state):
    return Rngs(state.key, 0, training=False)


def test_parts_that_accumulate_over_different_numbers_of_steps_can_be_averaged():
    tx = optax.multi_transform(
        {
            k: optax.MultiSteps(optax.sgd(1.0), n).gradient_transformation()
            for k, n in (("a", 2), ("b", 3))
        },
        {"x": "a", "y": "b"},
    )
    params = {"x": jnp.zeros(1), "y": jnp.zeros(1)}
    state = loopax.TrainState.create(params=params, tx=tx, ema_decay=0.5)

    def loss(params, batch, rngs):
        return params["x"].sum() + params["y"].sum()

    run = loopax.fit(state, loss, [np.zeros(1)], steps=6, **PLAIN)
    assert run.state.params["x"].tolist() == [-3]
    assert run.state.params["y"].tolist() == [-2]
    assert jax.tree.structure(run.state.ema) == jax.tree.structure(params)


# --- What is no number, or another kind of number ---------------------------------


def table_loss(params, batch, rngs):
    rows = params["table"][params["rows"]] * jnp.where(params["on"], 1.0, 0.0)
    noise = 0.0 * jax.random.uniform(params["key"])
    return jnp.square(rows - batch["to"]).mean() + noise


def test_what_cannot_be_differentiated_stays_as_it_is_and_is_said(tmp_path, bits):
    fixed = {"rows": jnp.arange(3), "on": jnp.array([True, False, True]), "key": jax.random.key(5)}

    def create(**options):
        params = {"table": jnp.ones(4), **fixed}
        return loopax.TrainState.create(params=params, tx=optax.adam(0.1), ema_decay=0.9, **options)

    with pytest.warns(UserWarning, match=r"key \(.*, on \(bool\[3\]\), rows \(int32\[3\]\)"):
        state = create()
    named = create(frozen=tuple(fixed))  # and says nothing
    assert bits(named.opt_state) == bits(state.opt_state)
    assert [leaf.shape for leaf in jax.tree.leaves(state.ema)] == [(4,)]
    data = [{"to": np.float32(3.0)}]
    run = loopax.fit(state, table_loss, data, steps=10, run_dir=tmp_path, progress=False)
    run = loopax.fit(state, table_loss, data, steps=20, run_dir=tmp_path, progress=False)
    left = {name: leaf for name, leaf in run.state.eval_params.items() if name in fixed}
    assert bits(left) == bits(fixed)
    assert run.state.params["table"][0] > 2
    assert run.state.params["table"][3] == 1


def test_complex_parameters_go_downhill():
    """JAX's gradient of them is the conjugate of the direction of ascent."""

    def loss(params, batch, rngs):
        return jnp.square(jnp.abs(params["z"] - (1 + 2j))).sum()

    params = {"z": jnp.zeros(2, jnp.complex64)}
    state = loopax.TrainState.create(params=params, tx=optax.sgd(0.1), ema_decay=0.5)
    run = loopax.fit(state, loss, [np.zeros(1)], steps=50, progress=False, probe_every=10)
    np.testing.assert_allclose(run.state.params["z"], 1 + 2j, rtol=1e-3)
    np.testing.assert_allclose(run.state.eval_params["z"], 1 + 2j, rtol=1e-2)


ODD = {
    "scalar": jnp.float32(1.0),
    "empty": jnp.zeros((0, 3)),
    "half": jnp.ones(2, jnp.float16),
    "brain": jnp.ones(2, jnp.bfloat16),
    "none": None,
}


def test_parameters_of_odd_shapes_and_types_train(tmp_path, bits):
    def loss(params, batch, rngs):
        return sum(jnp.square(leaf.astype(jnp.float32)).sum() for leaf in jax.tree.leaves(params))

    key = jax.random.key(0, impl="rbg")
    state = loopax.TrainState.create(params=ODD, tx=optax.adam(0.1), ema_decay=0.9)
    state = state.replace(key=key)
    once = loopax.fit(state, loss, [np.zeros(1)], steps=6, progress=False)
    for steps in (3, 6):
        run = loopax.fit(state, loss, [np.zeros(1)], steps=steps, run_dir=tmp_path, progress=False)
    assert bits(run.state) == bits(once.state)
    assert bits(copy.deepcopy(run.state.params)) == bits(run.state.params)
    kinds = [leaf.dtype.name for leaf in jax.tree.leaves(run.state.eval_params)]
    assert kinds == ["bfloat16", "float32", "float16", "float32"]


# --- Optimisers that want more than the gradient ----------------------------------


def plateau():
    return optax.contrib.reduce_on_plateau(patience=2, factor=0.5, accumulation_size=1)


def accumulated(tx):
    return optax.MultiSteps(tx, 2).gradient_transformation()


ADVERSARY = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
HESSIAN = optax.contrib.hutchinson_estimator_diag_hessian(jax.random.key(0))
WANTING = {
    "plateau": optax.chain(optax.adam(0.3), plateau()),
    "plateau, accumulated": accumulated(optax.chain(optax.adam(0.3), plateau())),
    "polyak": optax.polyak_sgd(),
    "lbfgs": optax.lbfgs(),
    "opaque sam": optax.contrib.sam(optax.sgd(0.1), ADVERSARY, opaque_mode=True),
    "sophia": optax.contrib.sophia(0.1, hessian_diagonal_fn=HESSIAN),
    "momo": optax.contrib.momo(0.3),
}


@pytest.mark.parametrize("tx", WANTING.values(), ids=WANTING.keys())
def test_an_optimiser_that_wants_the_loss_is_given_it(tx, tmp_path):
    """In the step and in the probe, and in a state that is saved."""
    state = loopax.TrainState.create(params=TWO, tx=tx)
    data = [{"to": np.float32(3.0)}]
    run = loopax.fit(
        state, quadratic, data, steps=60, run_dir=tmp_path, progress=False, probe_every=20
    )
    assert quadratic(run.state.eval_params, data[0], None) < 5.0  # from 25
    report = examine(quadratic, run.state, data[0])
    assert report.origin is None


def test_a_line_search_sees_the_loss_of_its_own_batch_and_keys():
    """Driven by hand with the same batch and the same noise, the parameters are the same."""

    def noisy(params, batch, rngs):
        noise = jax.random.normal(rngs["noise"], (2,))
        return jnp.square(params["x"] - batch["to"] - 0.1 * noise).sum()

    tx, params = optax.lbfgs(), {"x": jnp.zeros(2)}
    start = loopax.TrainState.create(params=params, tx=tx)
    data = [{"to": np.float32(value)} for value in (3.0, 4.0, 5.0)]
    run = loopax.fit(start, noisy, data, steps=3, **PLAIN)
    opt_state = tx.init(params)
    for step, batch in enumerate(data):
        rngs = start.replace(step=step).rngs
        value, grad = jax.value_and_grad(noisy)(params, batch, rngs)
        updates, opt_state = tx.update(
            grad,
            opt_state,
            params,
            value=value,
            grad=grad,
            value_fn=lambda params, batch=batch, rngs=rngs: noisy(params, batch, rngs),
        )
        params = optax.apply_updates(params, updates)
    close(run.state.params, params)


def test_what_is_not_handed_on_is_named():
    tx = optax.chain(optax.clip(1.0), accumulated(optax.chain(optax.adam(0.1), plateau())))
    state = loopax.TrainState.create(params=TWO, tx=tx)
    with pytest.raises(
        ConfigError, match=r"wants value, .* optax.MultiSteps is one: put it around"
    ):
        loopax.fit(state, quadratic, [{"to": np.float32(3.0)}], steps=4, **PLAIN)


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        (optax.chain(optax.sgd(0.1), plateau()), "value"),
        (loopax.Optimizer("sgd", accumulate=2).build(), "weight"),
    ],
)
def test_what_one_part_wants_and_another_refuses_is_named(other, wanted):
    """As `sam` does, which takes nothing but its own; a retry without end would be a hang."""
    sam = optax.contrib.sam(optax.sgd(0.1), ADVERSARY)
    tx = optax.multi_transform({"a": sam, "b": other}, {"x": "a", "y": "b"})
    state = loopax.TrainState.create(params=TWO, tx=tx)
    with pytest.raises(ConfigError, match=f"wants {wanted}, and another part refuses it"):
        loopax.fit(state, weighing, [{"to": np.float32(3.0)}], steps=4, **PLAIN)


def weighing(params, batch, rngs):
    return quadratic(params, batch, rngs), {"weight": 3}


# --- Optimisers that mean other parameters than those they train ------------------


def quadratic(params, batch, rngs):
    return sum(jnp.square(leaf - batch["to"]).sum() for leaf in jax.tree.leaves(params))


def sequence(tx, params, steps):
    """The states of an optimiser driven by hand."""
    opt_state = tx.init(params)
    for _ in range(steps):
        grads = jax.grad(quadratic)(params, {"to": 3.0}, None)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params, opt_state


TWO = {"x": jnp.zeros(2), "y": jnp.ones(3)}
FREE = optax.contrib.schedule_free_sgd(0.05, b1=0.8)
FREE_ADAM = optax.contrib.schedule_free_adamw(0.05)
SCHEDULE_FREE = {
    "alone": (FREE, lambda s: s),
    "behind a clip": (optax.chain(optax.clip(1.0), FREE_ADAM), lambda s: s[1]),
    "accumulating": (
        optax.MultiSteps(FREE, 2).gradient_transformation(),
        lambda s: s.inner_opt_state,
    ),
}


@pytest.mark.parametrize(("tx", "inside"), SCHEDULE_FREE.values(), ids=SCHEDULE_FREE.keys())
def test_schedule_free_is_evaluated_saved_and_exported_at_its_average(tx, inside, tmp_path):
    params, opt_state = sequence(tx, TWO, 7)
    expected = optax.contrib.schedule_free_eval_params(inside(opt_state), params)
    assert differ(expected, params)
    state = loopax.TrainState.create(params=TWO, tx=tx)
    batches = [{"to": np.float32(3.0)}]
    run = loopax.fit(state, quadratic, batches, steps=7, run_dir=tmp_path, **PLAIN)
    close(run.state.params, params)
    close(run.state.eval_params, expected)
    loss = float(quadratic(expected, {"to": 3.0}, None))
    assert loopax.evaluate(run.state, quadratic, batches)["loss"] == pytest.approx(loss)
    close(loopax.CheckpointStore(run.dir.checkpoints).weights(), expected)


def test_a_part_that_is_schedule_free_leaves_the_others_alone():
    tx = optax.multi_transform({"a": FREE, "b": optax.sgd(0.05)}, {"x": "a", "y": "b"})
    state = loopax.TrainState.create(params=TWO, tx=tx)
    for _ in range(5):
        grads = jax.grad(quadratic)(state.params, {"to": 3.0}, None)
        state = state.apply_gradients(grads=grads)
    x, opt_state = sequence(FREE, {"x": TWO["x"]}, 5)
    expected = optax.contrib.schedule_free_eval_params(opt_state, x)
    close(state.eval_params, {**expected, "y": state.params["y"]})


@pytest.mark.parametrize(
    ("synced", "chained"),
    [(False, False), (True, True)],
    ids=["params, alone", "LookaheadParams, behind a clip"],
)
def test_lookahead_trains_the_fast_parameters_and_is_evaluated_at_the_slow(
    synced, chained, tmp_path
):
    ahead = optax.lookahead(optax.sgd(0.1), sync_period=4, slow_step_size=0.5)
    tx = optax.chain(optax.clip(1.0), ahead) if chained else ahead
    both = optax.LookaheadParams.init_synced(TWO)
    state = loopax.TrainState.create(params=both if synced else TWO, tx=tx, frozen=("y",))
    opt_state = tx.init(both)
    for _ in range(7):
        grads = jax.grad(quadratic)({"x": both.fast["x"]}, {"to": 3.0}, None)
        grads = {**grads, "y": jnp.zeros(3)}
        updates, opt_state = tx.update(grads, opt_state, both)
        both = optax.apply_updates(both, updates)
    batches = [{"to": np.float32(3.0)}]
    run = loopax.fit(state, quadratic, batches, steps=7, run_dir=tmp_path, **PLAIN)
    close(run.state.params, both.fast)
    close(run.state.eval_params, both.slow)
    assert differ(both.fast, both.slow)
    close(loopax.CheckpointStore(run.dir.checkpoints).weights(), both.slow)


def test_sam_is_evaluated_where_it_comes_back_to():
    """Between two updates it stands at the worst point near its parameters."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.5))
    tx = optax.contrib.sam(optax.sgd(0.1), adversary, sync_period=2)
    state = loopax.TrainState.create(params=TWO, tx=tx)
    batches = [{"to": np.float32(3.0)}]
    two, three = (loopax.fit(state, quadratic, batches, steps=n, **PLAIN).state for n in (2, 3))
    assert differ(three.params, two.params)
    close(three.eval_params, two.params)


def test_other_parameters_start_the_optimiser_anew():
    """The average of schedule_free would else be of parameters that are gone."""
    state = loopax.TrainState.create(params=TWO, tx=FREE, ema_decay=0.5)
    other = jax.tree.map(lambda leaf: leaf + 7.0, TWO)
    close(state.with_params(other).eval_params, other)
    close(state.with_params(other).replace(ema=None).eval_params, other)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def differ(a, b):
    return any(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.any(x != y)), a, b)))


# --- Randomness ---------------------------------------------------------------


def words(key):
    return tuple(jax.random.key_data(key).tolist())


def test_streams_are_told_apart_by_name_step_and_seed(line_state):
    names = ("params", "dropout", "noise", "augment", "mixup")
    keys = [
        words(line_state(seed=seed).replace(step=step).rngs[name])
        for seed in (0, 1)
        for step in (0, 1, 2)
        for name in names
    ]
    assert len(set(keys)) == len(keys)


def test_the_keys_of_a_step_depend_on_nothing_else(line_state):
    one = line_state(seed=3).replace(step=jnp.int32(5))
    two = line_state(seed=3, cls=loopax.TrainState, ema_decay=0.5).replace(step=5)
    assert words(one.rngs["noise"]) == words(two.rngs["noise"])
    asked_for_another = one.rngs
    asked_for_another["augment"]
    assert words(asked_for_another["noise"]) == words(one.rngs["noise"])


def test_streams_are_the_same_on_every_machine_and_in_every_version(line_state):
    """Otherwise an old run could not be continued. These words must never change."""
    rngs = line_state(seed=0xFFFF).replace(step=7).rngs
    assert {name: words(rngs[name]) for name in ("dropout", "noise", "augment")} == {
        "dropout": (4118201370, 1198733015),
        "noise": (3026696095, 3061777141),
        "augment": (517912472, 4257950106),
    }


def test_a_stream_needs_no_declaration(dataset, line_loss, line_state):
    def loss(params, batch, rngs):
        value, _ = line_loss(params, batch, rngs)
        return value, {"drawn": jax.random.uniform(rngs["never_heard_of"])}

    run = loopax.fit(line_state(), loss, dataset.batches(2), steps=4, log_every=1, **PLAIN)
    assert len({row["drawn"] for row in run.history}) == 4


def test_a_module_may_draw_from_streams_of_its_own(dataset):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, image):
            x = nn.Dense(1)(image.reshape(image.shape[0], -1)).mean()
            drawn = [jax.random.uniform(self.make_rng(name)) for name in ("noise", "augment")]
            return x, drawn

    model = Noisy()

    def loss(params, batch, rngs):
        x, (noise, augment) = model.apply(params, batch["image"], rngs=rngs)
        return x, {"noise": noise, "augment": augment}

    state = loopax.TrainState.create(model, dataset, optax.sgd(0.1))
    run = loopax.fit(state, loss, dataset.batches(2), steps=4, log_every=1, **PLAIN)
    assert len({row[name] for row in run.history for name in ("noise", "augment")}) == 8


def test_the_keys_are_the_same_where_the_loss_is_rematerialised(dataset):
    """`jax.checkpoint` over the whole loss, and `Rngs` handed on to Flax."""

    class Dropped(nn.Module):
        @nn.compact
        def __call__(self, image, training):
            hidden = nn.Dense(8)(image.reshape(image.shape[0], -1))
            return nn.Dropout(0.5, deterministic=not training)(hidden)

    model = Dropped()

    def loss(params, batch, rngs):
        hidden = model.apply(params, batch["image"], rngs.training, rngs=rngs)
        shift = jax.random.uniform(rngs["of my own"])
        return jnp.square(hidden).mean() + shift, {"step": rngs.step, "noise": shift}

    params = model.init(jax.random.key(0), jnp.ones((1, 4, 4, 1)), False)
    state = loopax.TrainState.create(params=params, tx=optax.sgd(0.1)).replace(step=jnp.int32(3))
    batch = {"image": jnp.ones((4, 4, 4, 1))}
    plain = jax.value_and_grad(loss, has_aux=True)(params, batch, state.rngs)
    again = jax.value_and_grad(jax.checkpoint(loss), has_aux=True)(params, batch, state.rngs)
    assert plain[0][1] == again[0][1]
    assert plain[0][1]["step"] == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, again)


def test_a_loss_knows_whether_it_trains_and_at_which_step(dataset, line_loss, line_state):
    def loss(params, batch, rngs):
        trains = 1.0 if rngs.training else 0.0
        return line_loss(params, batch, rngs)[0], {"trains": trains, "at": rngs.step}

    data = dataset.batches(60)
    run = loopax.fit(line_state(), loss, data, steps=3, log_every=1, evaluation=data, **PLAIN)
    rows = [row for row in run.history if row["source"] == "train"]
    assert [(row["trains"], row["at"]) for row in rows] == [(1, 0), (1, 1), (1, 2)]
    assert (run.latest("test")["trains"], run.latest("test")["at"]) == (0, 3)


# --- Paths --------------------------------------------------------------------


MATCHES = [
    ("bert/embeddings/kernel", "bert", True),
    ("bert/embeddings/kernel", "bert/**", True),
    ("bert/embeddings/kernel", "bert/", True),
    ("bert/embeddings/kernel", "bert/*", True),
    ("bert/embeddings/kernel", "bert/*/kernel", True),
    ("bert/embeddings/kernel", "bert/kernel", False),
    ("bert/embeddings/kernel", "bert/**/kernel", True),
    ("bert/kernel", "bert/**/kernel", True),
    ("bert/embeddings/kernel", "embeddings", False),
    ("bert/embeddings/kernel", "**/embeddings", True),
    ("bert/embeddings/kernel", "ber", False),
    ("bertha/kernel", "bert", False),
    ("bertha/kernel", "bert*", True),
    ("head/bias", "**/bias", True),
    ("bias", "**/bias", True),
    ("head/bias_scale", "**/bias", False),
    ("layer_1/attention", "layer_*", True),
    ("layer_1/attention/query", "layer_*/attention", True),
    ("layer_12/attention", "layer_?", False),
    ("layer_1/mlp/attention", "layer_*/attention", False),
    ("a/b/c/d", "a/**/d", True),
    ("a/b/c/d", "**", True),
    ("a/b", "*", True),
    ("a.b/c", "a?b", True),
    ("axb/c", "a.b", False),
    ("a+b/[0]", "a+b/[0]", True),
    ("0/kernel", "0", True),
]


@pytest.mark.parametrize(
    ("path", "pattern", "expected"),
    MATCHES,
    ids=[f"{pattern} {'picks' if yes else 'leaves'} {path}" for path, pattern, yes in MATCHES],
)
def test_a_pattern_picks_what_it_says(path, pattern, expected):
    assert matches(path, pattern) is expected


def test_the_outer_params_of_flax_is_not_part_of_a_path():
    tree = {"params": {"head": {"bias": jnp.zeros(1)}}}
    assert leaf_paths(tree) == ["head/bias"]
    assert leaf_paths(tree["params"]) == ["head/bias"]


def test_functions_of_a_leaf_may_know_its_path():
    tree = {"a": 1, "b": [2, 3]}
    assert map_with_path(lambda path, leaf: f"{path}={leaf}", tree) == {
        "a": "a=1",
        "b": ["b/0=2", "b/1=3"],
    }


names = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(
    st.integers(),
    lambda inner: (
        st.dictionaries(names, inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@given(tree=trees, choices=st.randoms(use_true_random=False))
def test_a_tree_that_was_split_in_two_is_put_together_again(tree, choices):
    mask = jax.tree.map(lambda _: choices.random() < 0.5, tree)
    picked, rest = partition(tree, mask)
    assert merge(picked, rest) == merge(rest, picked) == tree
    chosen = [leaf for leaf, yes in zip(*map(jax.tree.leaves, (tree, mask)), strict=True) if yes]
    assert jax.tree.leaves(picked) == chosen
    assert len(jax.tree.leaves(picked)) + len(jax.tree.leaves(rest)) == len(jax.tree.leaves(tree))


@given(tree=trees)
def test_every_path_is_a_pattern_that_picks_its_leaf(tree):
    for index, path in enumerate(leaf_paths(tree)):
        if path:
            mask = jax.tree.leaves(path_mask(tree, [path], purpose="test"))
            assert mask[index]
