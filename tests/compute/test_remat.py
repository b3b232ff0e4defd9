"""Activations that are computed again: the same numbers in less memory."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.errors import ConfigError, NonFiniteError

DEPTH, WIDTH = 12, 32
DATA = [np.random.default_rng(0).normal(size=(64, WIDTH)).astype(np.float32)] * 4


def layer(hidden, inner, outer, key):
    inner = nn.relu(hidden @ inner) * jax.random.bernoulli(key, 0.9, (1, 4 * WIDTH))
    return hidden + jnp.sin(nn.gelu(inner)) @ outer


@jax.jit
def scanned(params, image, key):
    def body(carry, weights):
        hidden, key = carry
        key, mine = jax.random.split(key)
        return (layer(hidden, *weights, mine), key), None

    return jax.lax.scan(body, (image, key), (params["inner"], params["outer"]))[0][0]


def unrolled(params, image, key):
    for inner, outer in zip(params["inner"], params["outer"], strict=True):
        key, mine = jax.random.split(key)
        image = layer(image, inner, outer, mine)
    return image


def loss_of(network):
    def loss(params, batch, rngs):
        output = network(params, batch, rngs["dropout"])
        return jnp.square(output - 1).mean(), {"mean": output.mean()}

    return loss


def state_of(remat=None):
    random = np.random.default_rng(1)
    params = {
        "inner": random.normal(size=(DEPTH, WIDTH, 4 * WIDTH)) / 20,
        "outer": random.normal(size=(DEPTH, 4 * WIDTH, WIDTH)) / 20,
    }
    params = jax.tree.map(jnp.float32, params)
    return loopax.TrainState.create(params=params, tx=optax.sgd(0.1), remat=remat)


def trained(network, remat=None):
    return loopax.fit(state_of(remat), loss_of(network), DATA, steps=4, progress=False)


@pytest.mark.parametrize(("network", "remat"), [(scanned, "dots"), (unrolled, "nothing")])
def test_recomputing_changes_no_number(network, remat):
    ours, theirs = trained(network, remat), trained(network)
    for name in ("loss", "mean"):
        value = theirs.latest("train")[name]
        assert ours.latest("train")[name] == pytest.approx(value, rel=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        ours.state.params,
        theirs.state.params,
    )


def test_layers_in_a_scan_take_the_memory_of_one_and_the_estimate_says_so():
    def found(remat):
        return loopax.diagnose.estimate(state_of(remat), loss_of(scanned), DATA, seconds=0.01)

    plain, dots, nothing = map(found, (None, "dots", "nothing"))
    assert plain.remat is plain.plain_temporary_bytes is None
    assert dots.plain_temporary_bytes == nothing.plain_temporary_bytes == plain.temporary_bytes
    assert 1.3 * nothing.temporary_bytes < dots.temporary_bytes
    assert 2.5 * dots.temporary_bytes < plain.temporary_bytes
    assert any("remat nothing" in line and "MiB less temporary" in line for line in nothing.lines())
    assert not any(line.startswith("computing") for line in plain.lines())


def test_a_policy_that_jax_does_not_have_is_refused():
    with pytest.raises(ConfigError, match=r"'all'; it must be one of .*dots.*nothing"):
        state_of("all")


def test_recomputing_other_parts_is_told_when_a_run_goes_on(tmp_path, capsys):
    loopax.fit(state_of(), loss_of(scanned), DATA, steps=2, run_dir=tmp_path, progress=False)
    loopax.fit(state_of("dots"), loss_of(scanned), DATA, steps=4, run_dir=tmp_path)
    assert "remat unset -> 'dots'; from here on" in capsys.readouterr().err


def test_a_bad_gradient_is_found_on_its_line_all_the_same(tmp_path):
    def rooted(params, batch, rngs):
        hidden = scanned(params, batch, rngs["dropout"])
        return jnp.sqrt(hidden * (rngs.step < 2)).mean() * 0.0

    with pytest.raises(NonFiniteError) as caught:
        loopax.fit(state_of("nothing"), rooted, DATA, steps=4, run_dir=tmp_path, progress=False)
    assert "test_remat.py" in caught.value.__notes__[0]
