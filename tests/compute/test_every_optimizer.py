"""Everything in `optax` and `optax.contrib` that makes a transformation goes through `fit`."""

import functools
import inspect
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import loopax
from loopax.errors import ConfigError

PAGE = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
PLAIN = {"progress": False, "probe_every": None}
RATE = 0.05
SGD = optax.sgd(RATE)
PARTS = {"w": "a", "b": "b"}


def makes_a_transformation(function):
    """By what it says that it returns, or by its source where it says nothing."""
    returns = inspect.signature(function).return_annotation
    text = inspect.getsource(function) if returns is inspect.Signature.empty else str(returns)
    return "GradientTransformation" in text


FOUND = {"MultiSteps": optax.MultiSteps} | {
    prefix + name: value
    for prefix, module in (("", optax), ("contrib.", contrib))
    for name, value in vars(module).items()
    if not name.startswith("_") and inspect.isfunction(value) and makes_a_transformation(value)
}
REFUSED = {
    "contrib.differentially_private_aggregate": (1.0, 0.1, 0),
    "contrib.dpsgd": (RATE, 1.0, 0.1, 0),
}
"""What cannot work, and what it is made with."""


def alone(*args, **kwargs):
    return lambda make: make(*args, **kwargs)


def first(*args, **kwargs):
    """Of a gradient, in front of a step downhill."""
    return lambda make: optax.chain(make(*args, **kwargs), SGD)


def last(*args, **kwargs):
    """Of an update that goes downhill already."""
    return lambda make: optax.chain(SGD, make(*args, **kwargs))


def of_matrices(make):
    numbers = functools.partial(jax.tree.map, lambda _: contrib.MuonDimensionNumbers())
    tx = optax.chain(make(weight_dimension_numbers=numbers), SGD)
    return optax.partition({"a": tx, "b": SGD}, PARTS)


HOW = {
    "MultiSteps": alone(SGD, 2),
    "adaptive_grad_clip": first(0.5),
    "add_noise": first(0.01, 0.5, 0),
    "apply_every": first(2),
    "apply_if_finite": alone(SGD, 3),
    "chain": alone(optax.clip(1.0), SGD),
    "clip": first(1.0),
    "clip_by_block_rms": first(1.0),
    "clip_by_global_norm": first(1.0),
    "conditionally_mask": alone(SGD, lambda step: step % 2 == 0),
    "conditionally_transform": alone(SGD, lambda step: step < 100),
    "contrib.hutchinson_estimator_diag_hessian": lambda make: contrib.sophia(
        RATE, hessian_diagonal_fn=make(jax.random.key(0))
    ),
    "contrib.mechanize": alone(SGD),
    "contrib.reduce_on_plateau": last(),
    "contrib.sam": alone(SGD, optax.chain(contrib.normalize(), SGD)),
    "contrib.scale_by_cocob": alone(),
    "contrib.scale_by_madgrad": alone(RATE),
    "contrib.scale_by_muon": of_matrices,
    "contrib.schedule_free": alone(SGD, RATE),
    "contrib.split_real_and_imaginary": alone(SGD),
    "ema": first(0.5),
    "flatten": alone(SGD),
    "freeze": first({"w": False, "b": True}),
    "inject_hyperparams": lambda make: make(optax.sgd)(learning_rate=RATE),
    "inject_stateful_hyperparams": lambda make: make(optax.sgd)(learning_rate=RATE),
    "keep_params_nonnegative": last(),
    "lbfgs": alone(),
    "lookahead": alone(SGD, 3, 0.5),
    "masked": alone(SGD, {"w": True, "b": True}),
    "maybe_update": alone(SGD, lambda step: step < 100),
    "measure_with_ema": lambda make: first({"norm": make(optax.tree.norm, 0.5)})(optax.monitor),
    "monitor": first({"norm": optax.tree.norm}),
    "multi_transform": alone({"a": SGD, "b": optax.adam(RATE)}, PARTS),
    "named_chain": alone(("clip", optax.clip(1.0)), ("sgd", SGD)),
    "partition": alone({"a": SGD, "b": optax.adam(RATE)}, PARTS),
    "polyak_sgd": alone(),
    "scale": alone(-RATE),
    "scale_by_backtracking_linesearch": last(15),
    "scale_by_learning_rate": alone(RATE),
    "scale_by_polyak": last(),
    "scale_by_schedule": first(lambda step: 1.0),
    "scale_by_zoom_linesearch": last(15),
    "selective_transform": alone(SGD, freeze_mask={"w": False, "b": True}),
    "set_to_zero": lambda make: optax.partition({"a": SGD, "b": make()}, PARTS),
    "snapshot": first("norm", optax.tree.norm),
    "stateless": first(lambda updates, params: updates),
    "stateless_with_tree_map": first(lambda update, param: update),
    "trace": first(0.5),
    "with_extra_args_support": alone(SGD),
}
"""How those are called, and where they stand, that are no optimisers by themselves."""


def made(name):
    make = FOUND[name]
    if name in HOW:
        return HOW[name](make)
    rate = {"learning_rate": RATE} if "learning_rate" in inspect.signature(make).parameters else {}
    return (first if is_part(name) else alone)(**rate)(make)


def is_part(name):
    """Whether it is a part of optimisers, such as `scale_by_adam`, and nothing else is known."""
    takes_rate = "learning_rate" in inspect.signature(FOUND[name]).parameters
    scales = name.rpartition(".")[2].startswith("scale_by_")
    return name not in HOW and (scales or not takes_rate)


NOT_ALIKE = {"adam", "adafactor", "noisy_sgd", "sm3"}
"""One of the optimisers that are alike, and those with states of other shapes or with a key."""


def is_alike(name):
    """Whether loopax can tell it from `adam` by nothing: what it is given, and how it is called."""
    return not (name in HOW or name in NOT_ALIKE or name.startswith("contrib."))


X = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
DATA = [{"x": X, "y": X @ np.arange(12.0, dtype=np.float32).reshape(4, 3) / 6 + 0.5}]
PARAMS = {"w": jnp.full((4, 3), 0.1), "b": jnp.full(3, 0.1)}


def loss(params, batch, rngs):
    out = batch["x"] @ params["w"] + params["b"][None]
    return jnp.square(out - batch["y"]).mean()


def state(tx):
    return loopax.TrainState.create(params=PARAMS, tx=tx)


@pytest.fixture(autouse=True)
def _as_a_user_has_jax():
    """Optax has old keys inside, and shapes that fit by rank."""
    with jax.numpy_rank_promotion("allow"), jax.legacy_prng_key("allow"):
        yield


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if is_part(name) or is_alike(name) else [])
        for name in sorted(FOUND.keys() - REFUSED)
    ],
)
def test_it_trains(name):
    run = loopax.fit(state(made(name)), loss, DATA, steps=20, log_every=1, **PLAIN)
    losses = [row["loss"] for row in run.history]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_work_is_refused_by_name_with_the_reason(name):
    with pytest.raises(ConfigError, match=name.partition(".")[2]) as raised:
        state(FOUND[name](*REFUSED[name]))
    assert "the gradient of each example" in str(raised.value)
    assert "\n" not in str(raised.value)


def table():
    """What is trained here, as the page has it; `python -m tests.compute.test_every_optimizer`."""
    names = {"optax": [], "optax.contrib": []}
    for name in sorted(FOUND.keys() - REFUSED, key=str.lower):
        names["optax.contrib" if "." in name else "optax"].append(f"`{name.split('.')[-1]}`")
    rows = [f"| `{module}` | {', '.join(made)} |" for module, made in names.items()]
    return "\n".join([f"| Optax {optax.__version__} | trained |", "|---|---|", *rows])


def test_the_page_has_the_table_of_what_trains_and_of_what_is_refused():
    if f"| Optax {optax.__version__} |" not in PAGE:
        pytest.skip(f"the page is not about Optax {optax.__version__}")
    assert table() in PAGE
    assert all(f"`optax.{name}`" in PAGE for name in REFUSED)


@pytest.mark.parametrize(
    ("tx", "message"),
    [
        (optax.MultiSteps(optax.lbfgs(), 2), "optax.MultiSteps would go by the last batch"),
        (optax.partition({"a": optax.lbfgs(), "b": SGD}, PARTS), "optax.masked or partition is"),
        (
            optax.masked(
                optax.chain(SGD, optax.scale_by_backtracking_linesearch(9)), {"w": True, "b": False}
            ),
            "optax.masked",
        ),
    ],
)
def test_a_line_search_where_it_cannot_see_the_loss_is_refused(tx, message):
    with pytest.raises(ConfigError, match=f"tx: a line search inside of {message}"):
        state(tx)


# --- Resumption ---------------------------------------------------------------------------------


STOPPED = {
    "schedule_free_adamw, accumulated": optax.MultiSteps(contrib.schedule_free_adamw(RATE), 2),
    "lookahead behind a clip": optax.chain(optax.clip(1.0), optax.lookahead(SGD, 3, 0.5)),
    "lbfgs": optax.lbfgs(),
}


@pytest.mark.parametrize("tx", STOPPED.values(), ids=STOPPED.keys())
def test_a_run_that_stops_ends_as_one_that_does_not(tx, tmp_path, bits):
    def fit(steps, run_dir=None):
        return loopax.fit(state(tx), loss, DATA, steps=steps, run_dir=run_dir, **PLAIN)

    for steps in (5, 16):
        run = fit(steps, tmp_path)
    once = fit(16)
    assert bits(run.state) == bits(once.state)
    assert bits(run.state.eval_params) == bits(once.state.eval_params)


# --- Wrappers in one another ----------------------------------------------------------------------


WRAPPERS = {
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "partition": lambda tx: optax.partition({"a": tx, "b": optax.adam(RATE)}, PARTS),
    "masked": lambda tx: optax.masked(tx, lambda params: jax.tree.map(lambda _: True, params)),
    "inject_hyperparams": lambda tx: optax.inject_hyperparams(
        lambda rate: optax.chain(tx, optax.scale(rate))
    )(rate=0.5),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
}


def by_hand(tx, steps):
    params, opt_state = PARAMS, tx.init(PARAMS)
    for _ in range(steps):
        grads = jax.grad(loss)(params, DATA[0], None)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    ("outer", "inner"),
    [*itertools.pairwise([*WRAPPERS, "MultiSteps"]), ("partition", "MultiSteps")],
)
def test_wrappers_in_one_another_do_what_optax_does(outer, inner):
    """Each inside of another one and around one, and accumulation both ways."""
    tx = WRAPPERS[outer](WRAPPERS[inner](optax.sgd(RATE, momentum=0.9)))
    run = loopax.fit(state(tx), loss, DATA, steps=6, **PLAIN)
    params = jax.jit(functools.partial(by_hand, tx, 6))()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), run.state.params, params)


if __name__ == "__main__":
    print(table())
