"""Numbers that go bad on purpose: the report names the layer and the line that did it."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.marks import line_of

import loopax
from loopax.diagnose.examine import examine
from loopax.diagnose.origins import find_origin


class Net(nn.Module):
    """Three dense layers, and a function of what comes out of the third."""

    end: str

    @nn.compact
    def __call__(self, image):
        hidden = nn.relu(nn.Dense(4)(image))
        hidden = nn.relu(nn.Dense(4)(hidden))
        return Head(self.end, name="third")(hidden)


class Head(nn.Module):
    end: str

    @nn.compact
    def __call__(self, hidden):
        hidden = nn.Dense(4)(hidden)
        zero = 0.0 * hidden
        if self.end == "log of a negative":
            return jnp.log(-1.0 - hidden**2)  # born: log of a negative
        if self.end == "log of zero":
            return jnp.log(zero)  # born: log of zero
        if self.end == "division by zero":
            return 1.0 / zero  # born: division by zero
        if self.end == "overflow":
            return jnp.exp(hidden + 100.0)  # born: overflow
        if self.end == "overflow in a library":
            huge = nn.Dense(2, kernel_init=nn.initializers.ones)
            return huge(zero + 3e38)  # born: overflow in a library
        if self.end == "a function of JAX":
            return jax.scipy.special.logit(zero + 1.0)  # born: a function of JAX
        if self.end == "slope of sqrt":
            return jnp.sqrt(zero)  # born: slope of sqrt
        return hidden


def loss_of(model):
    def loss(params, batch, rngs):
        return model.apply(params, batch["image"], rngs=rngs).sum()

    return loss


def state_of(model, example, tx=None, **options):
    return loopax.TrainState.create(model, example, tx or optax.adam(1e-3), **options)


@pytest.fixture
def batch():
    return {"image": np.linspace(0.5, 2, 24, dtype=np.float32).reshape(6, 4)}


@pytest.mark.parametrize(
    ("end", "what", "primitive"),
    [
        ("log of a negative", "nan", "log"),
        ("overflow", "inf", "exp"),
        ("a function of JAX", "inf", "div"),
    ],
)
def test_a_loss_gone_bad_names_layer_operation_and_line(batch, end, what, primitive):
    model = Net(end)
    report = examine(loss_of(model), state_of(model, batch["image"]), batch)
    origin = report.origin
    assert (origin.what, origin.primitive, origin.pass_) == (what, primitive, "forward")
    assert origin.layer == "Net/third"
    assert origin.source == line_of(__file__, end)
    assert report.non_finite["loss"] == ("loss",)
    assert not report.non_finite["batch"]
    assert not report.non_finite["state"]
    first, second, third, *_ = report.lines()
    assert first.startswith("step 0: loss ")
    assert f"{what} is born in Net/third: {primitive} at test_examine.py:" in second
    assert third == "not finite: loss: loss"


def test_inside_of_a_layer_of_flax_the_line_is_the_one_that_called_it(batch):
    model = Net("overflow in a library")
    state = state_of(model, batch["image"])
    origin = examine(loss_of(model), state, batch).origin
    assert (origin.layer, origin.primitive) == ("Net/third/Dense_1", "dot_general")
    assert origin.source == line_of(__file__, "overflow in a library")


def test_the_inputs_of_the_birth_are_told(batch):
    model = Net("division by zero")
    origin = examine(loss_of(model), state_of(model, batch["image"]), batch).origin
    assert origin.inputs == ("1", "0")
    assert str(origin).endswith("(forward pass; inputs: 1, 0)")


def test_a_gradient_gone_bad_behind_a_finite_loss_is_the_backward_pass(batch):
    model = Net("slope of sqrt")
    report = examine(loss_of(model), state_of(model, batch["image"]), batch)
    assert np.isfinite(report.metrics["loss"])
    assert report.non_finite["loss"] == ()
    assert "Dense_0/kernel" in report.non_finite["gradients"]
    assert report.origin.pass_ == "backward"
    assert report.origin.layer == "Net/third"
    assert report.origin.source == line_of(__file__, "slope of sqrt")
    assert not np.isfinite(report.grad_norms["third/Dense_0/kernel"])


def test_a_gradient_through_a_branch_that_was_masked_out_names_the_hidden_line():
    """The loss never sees the infinity; its gradient is zero times infinity."""

    def loss(params, batch, rngs):
        del rngs
        scores = params["w"] * batch
        return jnp.where(scores > 0, jnp.sqrt(scores), 0.0).sum()  # born: masked out

    state = loopax.TrainState.create(params={"w": jnp.ones(3)}, tx=optax.sgd(0.1))
    report = examine(loss, state, np.array([0.0, 1.0, 2.0], np.float32))
    assert report.metrics["loss"] == pytest.approx(1 + np.sqrt(2))
    assert report.origin.pass_ == "backward"
    assert report.origin.source == line_of(__file__, "masked out")
    assert report.origin.what == "inf"


def test_nan_in_the_batch_is_named_by_its_field(batch):
    model = Net("plain")
    state = state_of(model, batch["image"])
    batch["image"][2, 1] = np.nan
    report = examine(loss_of(model), state, batch)
    assert str(report.origin) == "nan comes in with the batch's image"
    assert report.non_finite["batch"] == ("image",)


def test_nan_in_a_parameter_is_named_by_its_path(batch):
    model = Net("plain")
    state = state_of(model, batch["image"])
    params = jax.tree.map(lambda leaf: leaf, state.params)
    kernel = params["params"]["Dense_1"]["kernel"]
    params["params"]["Dense_1"]["kernel"] = kernel.at[0, 0].set(jnp.nan)
    report = examine(loss_of(model), state.replace(params=params), batch)
    assert str(report.origin) == "nan comes in with the parameter Dense_1/kernel"
    assert not np.isfinite(report.param_norms["Dense_1/kernel"])
    assert np.isfinite(report.param_norms["Dense_0/kernel"])


class Attention(nn.Module):
    """Scores masked with -inf, which softmax makes exact zeros; then a logarithm."""

    @nn.compact
    def __call__(self, tokens, shift):
        scores = nn.Dense(4)(tokens)
        scores = jnp.where(jnp.arange(4) < 2, scores, -jnp.inf)  # born: mask
        weights = nn.softmax(scores)
        return jnp.log(weights[:, :2].sum(-1) - shift)  # born: behind the mask


def attention_loss(shift):
    def loss(params, batch, rngs):
        del rngs
        return Attention().apply(params, batch["image"], shift).sum()

    return loss


def attention_state(batch):
    return state_of(Attention(), (batch["image"], 0.0))


def test_a_mask_that_does_its_work_is_not_blamed(batch):
    state = attention_state(batch)
    assert examine(attention_loss(0.0), state, batch).origin is None
    bad = examine(attention_loss(2.0), state, batch).origin
    assert (bad.what, bad.primitive, bad.source) == (
        "nan",
        "log",
        line_of(__file__, "behind the mask"),
    )


class Block(nn.Module):
    @nn.compact
    def __call__(self, hidden, _=None):
        hidden = nn.Dense(1, kernel_init=nn.initializers.ones)(hidden)
        return jnp.log(hidden), None  # born: in the block


def test_inside_of_a_scan_over_layers_the_layer_and_its_number_are_named():
    layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=4)
    model = layers(name="layers")
    state = state_of(model, (jnp.ones((1, 1)), None))

    def loss(params, batch, rngs):
        del rngs
        return model.apply(params, batch, None)[0].sum()

    report = examine(loss, state, jnp.full((1, 1), 2.0))
    origin = report.origin
    assert origin.primitive == "log"
    assert origin.source == line_of(__file__, "in the block")
    assert origin.what == "nan"
    assert origin.iteration == 2, "log(log(2)) is negative, and the next one takes its logarithm"
    assert ", iteration 2: log at" in str(origin)


class Exploding(nn.Module):
    @nn.compact
    def __call__(self, hidden):
        return jnp.exp(nn.Dense(1)(hidden) + 100.0)  # born: recomputed


class Recomputed(nn.Module):
    @nn.compact
    def __call__(self, image):
        return nn.remat(Exploding)(name="inner")(image)


def test_inside_of_rematerialisation_the_scopes_are_named_once(batch):
    state = state_of(Recomputed(), batch["image"])
    loss = loss_of(Recomputed())
    origin = examine(loss, state, batch).origin
    assert origin.layer == "Recomputed/inner"
    assert origin.source == line_of(__file__, "recomputed")

    def gradient(params, batch):
        return jax.grad(lambda params: loss(params, batch, {}))(params)

    assert find_origin(gradient, state.params, batch).layer == "Recomputed/inner"


def test_without_flax_the_line_alone_is_named():
    @jax.jit
    def inner(x):
        return jnp.sqrt(x)  # born: inside of jit

    def loss(params, batch, rngs):
        del rngs
        return inner(params["w"] * batch).sum()

    state = loopax.TrainState.create(params={"w": -jnp.ones(3)}, tx=optax.sgd(0.1))
    inner(jnp.ones(3))  # It was traced before, from elsewhere.
    origin = examine(loss, state, np.ones(3, np.float32)).origin
    assert origin.layer == ""
    assert origin.source == line_of(__file__, "inside of jit")
    assert str(origin).startswith("nan is born: sqrt at test_examine.py:")


def test_an_optimiser_that_overflows_is_the_update():
    """A gradient of 1e30 is finite, and its square in Adam is not."""

    def loss(params, batch, rngs):
        del rngs
        return (params["w"] * batch).sum() * 1e30

    state = loopax.TrainState.create(params={"w": jnp.ones(3)}, tx=optax.adam(0.1))
    report = examine(loss, state, np.ones(3, np.float32))
    assert report.non_finite["gradients"] == ()
    assert "opt_state/0/nu/w" in report.non_finite["updated_state"]
    assert report.origin.pass_ == "update"
    assert "optax" in report.origin.source


def test_a_scalar_of_the_optimiser_that_is_infinite_by_right_is_not_blamed():
    """As the best value so far, of a schedule that waits for a plateau, before the first one."""
    best = optax.GradientTransformation(
        lambda params: jnp.float32(jnp.inf), lambda updates, state, params=None: (updates, state)
    )

    def loss(params, batch, rngs):
        del rngs
        return (params["w"] * batch).sum()

    tx = optax.chain(best, optax.adam(0.1))
    state = loopax.TrainState.create(params={"w": jnp.ones(3)}, tx=tx)
    healthy = examine(loss, state, np.ones(3, np.float32))
    assert healthy.origin is None
    assert not any(healthy.non_finite.values())
    overflowing = examine(loss, state, np.full(3, 1e30, np.float32)).origin
    assert (overflowing.what, overflowing.pass_) == ("inf", "update")
    assert overflowing.primitive not in ("argument", "constant")


def test_a_healthy_step_measures_norms_and_changes_nothing(batch, bits):
    model = Net("plain")
    state = state_of(model, batch["image"], optax.sgd(0.1), frozen=("Dense_0",))
    before = bits(state)
    report = examine(loss_of(model), state, batch)
    assert bits(state) == before
    assert report.origin is None
    assert not any(report.non_finite.values())
    grads = jax.grad(lambda params: loss_of(model)(params, batch, {}))(state.params)["params"]
    assert set(report.grad_norms) == {
        f"{layer}/{kind}" for layer in ("Dense_1", "third/Dense_0") for kind in ("kernel", "bias")
    }
    expected = np.linalg.norm(grads["Dense_1"]["kernel"])
    assert report.grad_norms["Dense_1/kernel"] == pytest.approx(expected, rel=1e-5)
    assert report.update_norms["Dense_1/kernel"] == pytest.approx(0.1 * expected, rel=1e-5)
    assert "Dense_0/kernel" in report.param_norms


def test_the_table_begins_with_what_is_not_finite_and_then_the_largest():
    def loss(params, batch, rngs):
        del rngs
        bad = jnp.sqrt(params["bad"] * 0).sum()
        return bad + (params["small"] + 5 * params["large"]).sum() * batch.sum()

    params = {name: jnp.ones(2) for name in ("large", "bad", "small")}
    state = loopax.TrainState.create(params=params, tx=optax.sgd(0.1))
    lines = examine(loss, state, np.ones(1, np.float32)).lines(limit=2)
    assert [line.split()[-1] for line in lines[-3:-1]] == ["bad", "large"]
    assert lines[-1] == "and 1 more with smaller gradients"


def test_the_report_is_json_that_any_language_reads(batch):
    model = Net("log of zero")
    report = examine(loss_of(model), state_of(model, batch["image"]), batch)

    def refuse(constant):
        raise AssertionError(constant)

    text = json.dumps(report.to_json())
    read = json.loads(text, parse_constant=refuse)
    assert read["metrics"]["loss"] == "-inf"
    assert read["origin"]["layer"] == "Net/third"
    assert read["non_finite"]["loss"] == ["loss"]


def test_it_works_while_jax_itself_looks_for_nans(batch):
    model = Net("log of a negative")
    state = state_of(model, batch["image"])
    with jax.debug_nans(True):
        assert examine(loss_of(model), state, batch).origin.primitive == "log"
