"""A loss in bfloat16 around parameters in float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.errors import CheckpointError, ConfigError

SEEN = {}


class Network(nn.Module):
    """Two layers with what is computed in float32 by itself between them."""

    @nn.compact
    def __call__(self, image, train):
        hidden = nn.Dense(16, name="first")(image)
        hidden = nn.BatchNorm(use_running_average=not train, name="norm")(hidden)
        return nn.Dense(3, name="last")(nn.tanh(hidden))


def loss(params, batch, rngs, model_state):
    variables = {**params, **model_state}
    SEEN.update(
        {
            "first": params["params"]["first"]["kernel"].dtype,
            "norm": params["params"]["norm"]["scale"].dtype,
            "image": batch["image"].dtype,
            "label": batch["label"].dtype,
            "mean": model_state["batch_stats"]["norm"]["mean"].dtype,
        }
    )
    logits, changed = Network().apply(
        variables, batch["image"], rngs.training, mutable=["batch_stats"]
    )
    SEEN["logits"] = logits.dtype
    errors = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), batch["label"]
    )
    return errors.mean(), {}, changed


def batches(count=6):
    random = np.random.default_rng(0)
    return [
        {
            "image": random.normal(size=(8, 4)).astype(np.float32),
            "label": random.integers(0, 3, 8).astype(np.int32),
        }
        for _ in range(count)
    ]


def state_of(**options):
    example = (np.ones((1, 4), np.float32), True)
    return loopax.TrainState.create(
        Network(), example, optax.sgd(0.1, momentum=0.9), ema_decay=0.9, **options
    )


def trained(state, loss_fn=loss, **options):
    return loopax.fit(state, loss_fn, batches(), steps=6, progress=False, **options)


def dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree) if leaf.dtype.kind in "fV"}


def test_the_loss_is_computed_in_bfloat16_and_all_that_lasts_is_float32():
    SEEN.clear()
    run = trained(state_of(compute_dtype="bfloat16"), evaluation=batches(2))
    narrow = {name for name, dtype in SEEN.items() if dtype == jnp.bfloat16}
    assert narrow == {"first", "norm", "image", "logits"}
    assert SEEN["label"] == jnp.int32
    parts = (run.state.params, run.state.opt_state, run.state.ema, run.state.model_state)
    assert dtypes(parts) == {"float32"}
    exact = trained(state_of(), evaluation=batches(2))
    for source in ("train", "test"):
        ours, theirs = run.latest(source)["loss"], exact.latest(source)["loss"]
        assert ours == pytest.approx(theirs, rel=0.02)
        assert ours != theirs


def test_what_is_named_keeps_its_type():
    SEEN.clear()
    trained(state_of(compute_dtype=jnp.bfloat16, full_precision=("norm", "batch/image")))
    assert SEEN["norm"] == SEEN["image"] == jnp.float32
    assert SEEN["first"] == jnp.bfloat16


def test_a_number_of_three_digits_is_told():
    def short(params, batch, rngs):
        del rngs
        return jnp.square(batch["x"] @ params["w"]).mean(), {"mean": batch["x"].mean()}

    state = loopax.TrainState.create(
        params={"w": jnp.ones(3)}, tx=optax.sgd(0.1), compute_dtype="bfloat16"
    )
    with pytest.warns(UserWarning, match=r"gives loss, mean in bfloat16.*astype\(jnp.float32\)"):
        run = loopax.fit(state, short, [{"x": np.ones((2, 3), np.float32)}], steps=1)
    assert dtypes(run.state.params) == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_dtype": "float16"}, "'float16'.*bfloat16 or float32.*small gradients"),
        ({"compute_dtype": "bf16"}, "'bf16'; it must be bfloat16 or float32$"),
        ({"full_precision": ("norm",)}, "there is none; give compute_dtype"),
        ({"compute_dtype": "bfloat16", "full_precision": "norm"}, r"must be a tuple.*'norm',"),
        ({"compute_dtype": "bfloat16", "full_precision": ("nrm",)}, "'nrm' matches none of"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        state_of(**options)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_not_there_is_refused():
    state = state_of(compute_dtype="bfloat16", full_precision=("batch/picture",))
    with pytest.raises(ConfigError, match=r"'batch/picture'.*batch/image, batch/label"):
        trained(state)


def test_a_run_goes_on_in_its_precision_and_in_no_other(tmp_path, bits):
    whole = trained(state_of(compute_dtype="bfloat16"))
    half = {"run_dir": tmp_path, "checkpoints": loopax.Checkpoints(every=3)}
    state = state_of(compute_dtype="bfloat16")
    loopax.fit(state, loss, batches(), steps=3, progress=False, **half)
    for other, name in ((None, "None"), ("float32", "float32")):
        with pytest.raises(CheckpointError, match=f"compute_dtype bfloat16, and now it is {name};"):
            trained(state_of(compute_dtype=other), **half)
    assert bits(trained(state, **half).state) == bits(whole.state)


def test_a_replay_has_the_numbers_of_the_run_in_its_precision(tmp_path):
    seen = []

    def watch(run):
        seen.append(run.latest("train")["loss"])

    options = {"run_dir": tmp_path, "log_every": 1, "hooks": loopax.Hook(watch, every=1)}
    run = trained(state_of(compute_dtype="bfloat16"), **options)
    replay = loopax.diagnose.Replay(run.dir, state_of(compute_dtype="bfloat16"), loss, batches())
    assert [replay.step(at).metrics["loss"] for at in (0, 4)] == [seen[0], seen[4]]
    with pytest.raises(CheckpointError, match="compute_dtype"):
        loopax.diagnose.Replay(run.dir, state_of(), loss, batches()).state_at(6)
