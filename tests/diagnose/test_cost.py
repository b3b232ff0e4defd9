"""What a step costs, against numbers that one can work out; and too little memory, for real."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.diagnose.cost import estimate
from loopax.errors import ConfigError, DataError

WIDTHS = (32, 64, 128, 16)
QUICK = {"seconds": 0.01}


class Matmuls(nn.Module):
    """Three matrix products with nothing around them."""

    @nn.compact
    def __call__(self, image):
        for width in WIDTHS[1:]:
            image = nn.Dense(width, use_bias=False)(image)
        return image


def loss(params, batch, rngs):
    del rngs
    return Matmuls().apply(params, batch["image"]).sum()


def data_of(batch_size, count=3):
    return [{"image": np.ones((batch_size, WIDTHS[0]), np.float32)}] * count


def state_of(tx=None, **options):
    return loopax.TrainState.create(
        Matmuls(), np.ones((1, WIDTHS[0]), np.float32), tx or optax.adam(1e-3), **options
    )


def products(batch_size):
    """FLOPs of each matrix product: two for each weight and example."""
    return [2 * batch_size * a * b for a, b in itertools.pairwise(WIDTHS)]


def test_parameters_and_optimiser_are_counted_with_what_is_frozen():
    found = estimate(state_of(frozen=("Dense_0",)), loss, data_of(8), **QUICK)
    weights = [a * b for a, b in itertools.pairwise(WIDTHS)]
    assert found.frozen == weights[0]
    assert found.trainable == weights[1] + weights[2]
    assert found.frozen_bytes == 4 * weights[0]
    assert found.trainable_bytes == 4 * found.trainable
    assert found.optimizer_bytes == 2 * found.trainable_bytes + 4, "two moments and a count"
    assert found.batch_size == 8
    assert found.steps_per_epoch == 3
    assert found.seconds_per_step > 0


def test_flops_are_those_of_the_matrix_products_and_fewer_where_layers_are_frozen():
    """Forward, each product once; backward once for each weight and once for each input."""
    one, two, three = products(256)
    whole = estimate(state_of(optax.sgd(0.1)), loss, data_of(256), **QUICK)
    analytic = (one + two + three) + (one + two + three) + (two + three)
    assert whole.flops_per_step == pytest.approx(analytic, rel=0.02)
    last_only = state_of(optax.sgd(0.1), frozen=("Dense_0", "Dense_1"))
    part = estimate(last_only, loss, data_of(256), **QUICK)
    assert part.flops_per_step == pytest.approx(one + two + 2 * three, rel=0.02)


def test_each_iteration_of_a_scan_counts():
    def repeated(params, batch, rngs):
        del rngs

        def layer(hidden, _):
            return jax.lax.scan(lambda h, _: (h @ params["w"], None), hidden, None, length=2)

        return jax.lax.scan(layer, batch, None, length=5)[0].sum()

    state = loopax.TrainState.create(params={"w": jnp.eye(64)}, tx=optax.sgd(0.1))
    found = estimate(state, repeated, [np.ones((128, 64), np.float32)], **QUICK)
    # A scan adds up the gradient of the weights in all iterations, and keeps its inputs for it.
    assert found.flops_per_step == pytest.approx(10 * 3 * 2 * 128 * 64 * 64, rel=0.05)


def test_memory_grows_with_the_batch_and_holds_state_and_data():
    small, large = (estimate(state_of(), loss, data_of(size), **QUICK) for size in (16, 1024))
    assert large.temporary_bytes > small.temporary_bytes
    assert large.peak_bytes > small.peak_bytes
    state_bytes = small.trainable_bytes + small.optimizer_bytes
    assert small.argument_bytes > state_bytes
    assert small.peak_bytes >= small.argument_bytes + small.temporary_bytes


def test_the_state_stays_whole_and_nothing_is_written(dataset, new_state, loss_fn, bits, tmp_path):
    before = bits(new_state())
    found = estimate(new_state(), loss_fn, dataset.batches(4), **QUICK)
    assert bits(new_state()) == before
    assert found.steps_per_epoch == 60
    assert found.argument_bytes > dataset.nbytes, "the data lives on the device"
    assert list(tmp_path.iterdir()) == []


def test_the_lines_have_units():
    found = estimate(state_of(frozen=("Dense_0",)), loss, data_of(256), **QUICK)
    text = "\n".join(found.lines())
    assert "10,240 trainable (40.0 KiB), 2,048 frozen (8.0 KiB)" in text
    assert "MiB at its peak" in text
    assert "MFLOP (" in text
    assert "FLOP/s), batch size 256" in text
    assert "3 steps" in text


def test_what_is_lifted_out_of_the_computing_type_shows():
    def lifted(params, batch, rngs):
        noise = jax.random.normal(rngs["noise"], (8, WIDTHS[0]))
        return loss(params, {"image": batch["image"] + noise}, rngs).astype(jnp.float32)

    state = state_of(compute_dtype="bfloat16")
    whole = estimate(state, lambda *args: jnp.float32(loss(*args)), data_of(8), **QUICK)
    assert whole.compute_dtype == "bfloat16"
    assert whole.computed_share == 1
    assert any("bfloat16 (100% of all products)" in line for line in whole.lines())
    part = estimate(state, lifted, data_of(8), **QUICK)
    assert part.computed_share == 0
    assert estimate(state_of(), loss, data_of(8), **QUICK).computed_share is None


def test_a_loss_that_goes_bad_ends_the_measurement():
    reads = []

    class Counting(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    def exploding(params, batch, rngs):
        del rngs
        return (params["w"] ** 4).sum() * batch.mean()

    state = loopax.TrainState.create(params={"w": jnp.ones(3)}, tx=optax.sgd(1e30))
    data = Counting([np.ones(2, np.float32)] * 1000)
    assert estimate(state, exploding, data, seconds=1.0).seconds_per_step > 0
    assert len(reads) <= 1 + 100, "the first step, and the chunk in which it happened"


def test_an_iterator_is_not_used_up():
    batches = iter(data_of(2))
    with pytest.raises(ConfigError, match="data is a list_iterator, and the batches"):
        estimate(state_of(), loss, batches)
    assert len(list(batches)) == 3


def test_data_without_a_batch_is_refused():
    with pytest.raises(DataError, match="there is no batch to train on"):
        estimate(state_of(), loss, [])


def test_one_device_sends_nothing(new_state, loss_fn, dataset):
    found = estimate(new_state(), loss_fn, dataset.batches(4), **QUICK)
    assert (found.mesh, found.collectives) == ("data=1", {})
    assert not any(line.startswith("devices") for line in found.lines())
