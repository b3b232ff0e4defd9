"""The warning about optimisers that freeze by themselves, and what freezing really saves."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.account import Account
from loopax.batches.iterable import as_batches
from loopax.compute.program import TrainProgram
from loopax.diagnose.frozen import frozen_by

LABELS = {"params": {"body": "frozen", "head": "trains"}}


class Model(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(64, name="body")(jnp.tanh(x))
        return nn.Dense(2, name="head")(jnp.tanh(x))


def loss_fn(params, batch, rngs):
    return jnp.square(Model().apply(params, batch["x"])).mean()


def data():
    return loopax.data.Dataset({"x": np.ones((64, 64), np.float32)}).batches(16)


def state_of(tx, **options):
    return loopax.TrainState.create(Model(), np.ones((1, 64), np.float32), tx, **options)


def freezing(inner=None):
    by_label = {"frozen": optax.set_to_zero(), "trains": inner or optax.adamw(1e-3)}
    return optax.multi_transform(by_label, LABELS)


def mask(body, head):
    branch = {"kernel": True, "bias": True}
    return {
        "params": {name: dict.fromkeys(branch, on) for name, on in (("body", body), ("head", head))}
    }


CLIP = optax.clip_by_global_norm(1.0)
FREE = {
    "labels as a prefix": freezing(),
    "labels by a function": optax.multi_transform(
        {"frozen": optax.set_to_zero(), "trains": optax.adamw(1e-3)},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: "frozen" if "body" in jax.tree_util.keystr(path) else "trains", params
        ),
    ),
    "clip inside": freezing(optax.chain(CLIP, optax.adamw(1e-3))),
    "zeros before the clip": optax.chain(
        optax.masked(optax.set_to_zero(), mask(True, False)), CLIP, freezing()
    ),
    "nothing is frozen": optax.chain(CLIP, optax.adamw(1e-3)),
}
PAID = {
    "clip in front": optax.chain(CLIP, freezing()),
    "finite check": optax.apply_if_finite(freezing(), 3),
    "accumulator": optax.MultiSteps(freezing(), 2).gradient_transformation(),
    "frozen after adamw": optax.chain(optax.adamw(1e-3), optax.freeze(mask(True, False))),
}


def test_no_warning_where_the_compiler_drops_the_backward_pass():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loopax.fit(state_of(freezing()), loss_fn, data(), steps=2, progress=False)


def test_a_warning_with_numbers_where_frozen_gradients_are_computed():
    state = state_of(PAID["clip in front"])
    with pytest.warns(UserWarning, match=r"freezes 4,160 parameters \(body/.* and 1 more\)") as all:
        run = loopax.fit(state, loss_fn, data(), steps=2, progress=False)
    assert "GFLOP a step instead of" in str(all[0].message)
    before = state.params["params"]["body"]["kernel"]
    assert (run.state.params["params"]["body"]["kernel"] == before).all()


def test_a_warning_where_what_is_masked_out_moves_by_its_raw_gradient():
    state = state_of(optax.masked(optax.adamw(1e-3), mask(False, True)))
    with pytest.warns(UserWarning, match="body/bias and 1 more by the gradient itself"):
        loopax.fit(state, loss_fn, data(), steps=1, progress=False)


def flops_of(state):
    batches = as_batches(data())
    items = batches.feed([0], 0, 2).take(1)
    train = TrainProgram(loss_fn, batches, Account())
    return train.compiled(state, items).cost_analysis()["flops"]


@pytest.fixture(scope="module")
def flops_of_the_head():
    return flops_of(state_of(optax.adamw(1e-3), frozen=("body",)))


@pytest.mark.parametrize("name", [*FREE, *PAID])
def test_what_is_told_is_what_xla_counts(flops_of_the_head, name):
    state = state_of({**FREE, **PAID}[name])
    paid = name in PAID or name == "nothing is frozen"
    assert (flops_of(state) > 1.2 * flops_of_the_head) == paid
    assert bool(frozen_by(state).paid) == (name in PAID)
