"""The description of an optimiser builds the Optax transformation that one would write by hand."""

import dataclasses
import json
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import loopax
from loopax import Group, Optimizer, Schedule
from loopax.errors import ConfigError
from loopax.optimizer import optimizers, recorded_learning_rate

SHAPES = {
    "body": {"kernel": (3, 4), "bias": (4,)},
    "norm": {"scale": (4,)},
    "head": {"kernel": (4, 2), "bias": (2,)},
}
PLAIN = {"progress": False, "probe_every": None}


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32),
        SHAPES,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


PARAMS = tree(0)
GRADS = [tree(seed, scale) for seed, scale in enumerate((1, 5, 0.1, 2, 0.01, 3, 1, 0.5), start=1)]


def trained(tx, grads=GRADS):
    """The updates that a transformation makes of one gradient after the other."""
    params, state, made, update = PARAMS, tx.init(PARAMS), [], jax.jit(tx.update)
    for each in grads:
        updates, state = update(each, state, params)
        params = optax.apply_updates(params, updates)
        made.append(updates)
    return made


def assert_same(described, by_hand):
    for one, other in zip(trained(described), trained(by_hand), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def differ(one, other):
    return any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), one, other)))


def is_zero(updates):
    return not differ(updates, jax.tree.map(jnp.zeros_like, updates))


# --- It equals what one would write by hand, bit for bit ------------------------------------------


def by_part(body, norm, head):
    """A transformation of its own for each part of the parameters."""
    return optax.multi_transform(
        {"body": body, "norm": norm, "head": head}, {name: name for name in SHAPES}
    )


PAIRS = {
    "the default": (Optimizer(), optax.adamw(1e-3)),
    "adamw": (
        Optimizer("adamw", 0.01, weight_decay=0.1, arguments={"b1": 0.8}),
        optax.adamw(0.01, b1=0.8, weight_decay=0.1),
    ),
    "sgd": (
        Optimizer("sgd", 0.1, arguments={"momentum": 0.9, "nesterov": True}),
        optax.sgd(0.1, momentum=0.9, nesterov=True),
    ),
    "lion": (Optimizer("lion", 1e-4), optax.lion(1e-4)),
    "no decay of vectors": (
        Optimizer("adamw", 0.01, weight_decay=0.1, decay_vectors=False),
        optax.adamw(
            0.01,
            weight_decay=0.1,
            mask={
                "body": {"kernel": True, "bias": False},
                "norm": {"scale": False},
                "head": {"kernel": True, "bias": False},
            },
        ),
    ),
    "clip": (
        Optimizer("adam", 0.01, clip_norm=1.0),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)),
    ),
    "averaged updates": (
        Optimizer("adam", 0.01, update_ema=0.9),
        optax.chain(optax.adam(0.01), optax.ema(0.9)),
    ),
    "clip, schedule and averaged updates": (
        Optimizer("sgd", 0.1, Schedule("linear", steps=5), clip_norm=2.0, update_ema=0.5),
        optax.chain(
            optax.clip_by_global_norm(2.0),
            optax.sgd(optax.linear_schedule(0.1, 0.0, 5)),
            optax.ema(0.5),
        ),
    ),
    "accumulate": (
        Optimizer("adam", 0.01, clip_norm=1.0, accumulate=3),
        optax.MultiSteps(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01)), 3),
    ),
    "accumulate more later": (
        Optimizer("adam", 0.01, accumulate={0: 1, 2: 3}),
        optax.MultiSteps(optax.adam(0.01), lambda update: jnp.where(update < 2, 1, 3)),
    ),
    "groups": (
        Optimizer(
            "adamw",
            0.01,
            Schedule("cosine", steps=6),
            clip_norm=1.0,
            groups=(
                Group(("head",), Optimizer("sgd", 0.5, Schedule("linear", steps=4))),
                Group(("norm/scale",), Optimizer("lion", 1e-3, clip_norm=0.5)),
            ),
        ),
        by_part(
            body=optax.chain(
                optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(0.01, 6))
            ),
            norm=optax.chain(optax.clip_by_global_norm(0.5), optax.lion(1e-3)),
            head=optax.sgd(optax.linear_schedule(0.5, 0.0, 4)),
        ),
    ),
    "the first group that matches": (
        Optimizer(
            "sgd",
            1.0,
            groups=(
                Group(("**/scale", "head/**"), Optimizer("sgd", 2.0)),
                Group(("head", "norm", "body/bias"), Optimizer("sgd", 3.0)),
                Group(("head", "norm", "body/bias"), Optimizer("sgd", 4.0)),
            ),
        ),
        by_part(
            body=optax.multi_transform(
                {"kernel": optax.sgd(1.0), "bias": optax.sgd(3.0)},
                lambda params: {**params, "body": {"kernel": "kernel", "bias": "bias"}},
            ),
            norm=optax.sgd(2.0),
            head=optax.sgd(2.0),
        ),
    ),
}


@pytest.mark.parametrize(("described", "by_hand"), PAIRS.values(), ids=PAIRS.keys())
def test_a_description_makes_the_updates_of_the_same_thing_by_hand(described, by_hand):
    assert_same(described.build(), by_hand)


@pytest.mark.parametrize("name", ["lbfgs", "muon", "momo", "schedule_free_adamw", "noisy_sgd"])
def test_an_optimiser_of_any_kind_trains_by_its_name(name, dataset, line_loss, line_state):
    """That is one which searches along the loss, for matrices, wants the loss, averages, draws."""
    described = Optimizer(name, 0.1, clip_norm=10.0)
    run = loopax.fit(
        line_state(described), line_loss, dataset.batches(8), steps=30, log_every=1, **PLAIN
    )
    assert run.latest("train")["loss"] < run.history[0]["loss"]
    assert run.latest("train")["learning_rate"] > 0


@pytest.mark.parametrize("name", ["optimistic_adam", "rprop", "sm3"])
def test_an_optimiser_that_takes_no_schedule_says_so(name):
    with pytest.raises(ConfigError, match=f"{name}.*takes no schedule") as raised:
        Optimizer(name, 0.01, Schedule("linear", steps=5)).build()
    assert "\n" not in str(raised.value)


def test_all_the_other_optimisers_take_one():
    scheduled = Schedule("linear", steps=5)
    without = {"optimistic_adam", "rprop", "sm3", "schedule_free_adamw", "schedule_free_sgd"}
    for name in optimizers().keys() - without:
        Optimizer(name, 0.01, scheduled).build().init(PARAMS)


@pytest.mark.parametrize("name", ["adam", "lamb", "rmsprop", "adafactor", "yogi"])
def test_the_other_optimisers_of_optax_go_by_their_name(name):
    assert_same(Optimizer(name, 0.01).build(), getattr(optax, name)(learning_rate=0.01))


def test_vectors_are_left_alone_only_when_that_is_asked_for():
    """With zero gradients all that adamw does is to decay weights."""
    zeros = [jax.tree.map(jnp.zeros_like, PARAMS)]
    [everything] = trained(Optimizer("adamw", 0.1, weight_decay=0.5).build(), zeros)
    described = Optimizer("adamw", 0.1, weight_decay=0.5, decay_vectors=False)
    [matrices] = trained(described.build(), zeros)
    for updates, vectors_stay in ((everything, False), (matrices, True)):
        for part, name in (("body", "bias"), ("norm", "scale"), ("head", "bias")):
            assert is_zero(updates[part][name]) is vectors_stay
        np.testing.assert_allclose(
            updates["head"]["kernel"], -0.05 * PARAMS["head"]["kernel"], rtol=1e-5
        )


def test_a_clip_of_a_group_counts_the_gradients_of_that_group_only():
    grads = [jax.tree.map(jnp.ones_like, PARAMS)]
    head = Optimizer("sgd", 1.0, clip_norm=0.5)
    [updates] = trained(Optimizer("sgd", 1.0, groups=(Group(("head",), head),)).build(), grads)
    assert optax.tree.norm(updates["head"]) == pytest.approx(0.5)
    np.testing.assert_array_equal(updates["body"]["kernel"], -1)


# --- Schedules ------------------------------------------------------------------------------------

SCHEDULES = {
    "constant": (Schedule(), optax.constant_schedule(0.2)),
    "a constant factor": (Schedule(start=0.5), optax.constant_schedule(0.1)),
    "linear": (Schedule("linear", steps=10), optax.linear_schedule(0.2, 0.0, 10)),
    "linear, to a part": (
        Schedule("linear", end=0.1, steps=10),
        optax.linear_schedule(0.2, 0.02, 10),
    ),
    "linear, rising": (
        Schedule("linear", start=0.0, end=1.0, steps=10),
        optax.linear_schedule(0.0, 0.2, 10),
    ),
    "linear, to the end of the run": (Schedule("linear"), optax.linear_schedule(0.2, 0.0, 20)),
    "cosine": (Schedule("cosine", steps=10), optax.cosine_decay_schedule(0.2, 10)),
    "cosine, to a part": (
        Schedule("cosine", end=0.1, steps=10),
        optax.cosine_decay_schedule(0.2, 10, alpha=0.1),
    ),
    "cosine, rising from zero": (
        Schedule("cosine", start=0.0, end=1.0, steps=10),
        lambda count: 0.2 - optax.cosine_decay_schedule(0.2, 10)(count),
    ),
    "warm-up": (Schedule(warmup_steps=5), optax.linear_schedule(0.0, 0.2, 5)),
    "warm-up, linear": (
        Schedule("linear", warmup_steps=5, steps=10),
        optax.join_schedules(
            [optax.linear_schedule(0.0, 0.2, 5), optax.linear_schedule(0.2, 0.0, 10)], [5]
        ),
    ),
    "warm-up, cosine to the end of the run": (
        Schedule("cosine", warmup_steps=5),
        optax.warmup_cosine_decay_schedule(0.0, 0.2, warmup_steps=5, decay_steps=20),
    ),
    "piecewise constant": (
        Schedule(
            steps=4,
            then=Schedule(start=0.5, steps=6, then=Schedule(start=0.05)),
        ),
        optax.piecewise_constant_schedule(0.2, {4: 0.5, 10: 0.1}),
    ),
    "three parts, the last to the end of the run": (
        Schedule(
            "linear",
            end=0.5,
            warmup_steps=2,
            steps=4,
            then=Schedule(start=0.5, steps=3, then=Schedule("cosine", start=0.5)),
        ),
        optax.join_schedules(
            [
                optax.linear_schedule(0.0, 0.2, 2),
                optax.linear_schedule(0.2, 0.1, 4),
                optax.constant_schedule(0.1),
                optax.cosine_decay_schedule(0.1, 11),
            ],
            [2, 6, 9],
        ),
    ),
}


@pytest.mark.parametrize(("described", "by_hand"), SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_schedule_has_the_values_of_the_same_thing_by_hand(described, by_hand):
    rate = described.build(0.2, total_steps=20)
    for count in [*range(25), 10**6]:
        assert float(rate(count)) == pytest.approx(float(by_hand(count)), rel=1e-6, abs=1e-9), count


def factors(schedule):
    """The factors that a schedule and those after it are given."""
    while schedule is not None:
        yield schedule.start
        if schedule.kind != "constant":
            yield schedule.end
        schedule = schedule.then


@st.composite
def schedules(draw, depth=2):
    then = draw(st.none() | schedules(depth=depth - 1)) if depth else None
    sizes = st.integers(1, 20)
    factor = st.just(0.0) | st.floats(0, 10)
    return Schedule(
        draw(st.sampled_from(["constant", "linear", "cosine"])),
        start=draw(factor),
        end=draw(factor),
        steps=draw(sizes) if then else draw(st.none() | sizes),
        warmup_steps=draw(st.just(0) | sizes),
        then=then,
    )


@given(schedules(), st.floats(1e-6, 10), st.integers(1, 200))
def test_every_value_of_a_schedule_is_finite_and_between_zero_and_the_highest_factor(
    schedule, learning_rate, total_steps
):
    try:
        rate = schedule.build(learning_rate, total_steps)
    except ConfigError:
        assume(False)
    values = np.asarray(rate(jnp.arange(250)))
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= learning_rate * max(factors(schedule)) * (1 + 1e-5)


@given(schedules(depth=0), st.floats(1e-6, 10))
def test_a_schedule_goes_from_its_start_to_its_end_and_stays_there(schedule, learning_rate):
    assume(schedule.steps is not None)
    first = schedule.warmup_steps
    rate = schedule.build(learning_rate, None)
    end = schedule.start if schedule.kind == "constant" else schedule.end
    tolerance = {"rel": 1e-4, "abs": 1e-6 * learning_rate * max(1, *factors(schedule))}
    assert float(rate(first)) == pytest.approx(learning_rate * schedule.start, **tolerance)
    for count in (first + schedule.steps, first + schedule.steps + 1000):
        assert float(rate(count)) == pytest.approx(learning_rate * end, **tolerance)
    if first:
        assert float(rate(0)) == 0


# --- Accumulation ---------------------------------------------------------------------------------


def test_accumulation_waits_for_its_batches_and_then_averages_them():
    first, second, third, fourth = trained(
        Optimizer("sgd", 1.0, accumulate=2).build(), [tree(seed) for seed in (1, 2, 3, 4)]
    )
    assert is_zero(first)
    assert is_zero(third)
    for updates, seeds in ((second, (1, 2)), (fourth, (3, 4))):
        mean = jax.tree.map(lambda a, b: -(a + b) / 2, *map(tree, seeds))
        jax.tree.map(lambda u, m: np.testing.assert_allclose(u, m, rtol=1e-6), updates, mean)


def test_accumulation_may_grow_with_the_updates():
    grads = [tree(seed) for seed in range(12)]
    made = trained(Optimizer("sgd", 1.0, accumulate={0: 1, 2: 2, 4: 3}).build(), grads)
    updated = [batch for batch, updates in enumerate(made, start=1) if not is_zero(updates)]
    assert updated == [1, 2, 4, 6, 9, 12]


@pytest.mark.parametrize(
    ("accumulate", "total_steps", "updates"),
    [(4, 40, 10), (4, 43, 10), ({0: 1, 4: 3}, 40, 16), ({0: 2, 3: 1, 5: 4}, 40, 13), (50, 40, 1)],
)
def test_a_schedule_to_the_end_of_the_run_counts_updates_and_not_batches(
    accumulate, total_steps, updates
):
    described = Optimizer("sgd", 1.0, Schedule("linear"), accumulate=accumulate)
    rate = optax.linear_schedule(1.0, 0.0, updates)
    plan = described.accumulation

    def every(update):
        return max((first, many) for first, many in plan.items() if first <= update)[1]

    made = described.build(total_steps)
    state, make = made.init(PARAMS), jax.jit(made.update)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    for update in range(min(updates, 3)):
        for _ in range(every(update)):
            changes, state = make(ones, state, PARAMS)
        np.testing.assert_allclose(changes["norm"]["scale"], -float(rate(update)), rtol=1e-6)


def test_the_schedule_of_a_group_ends_with_the_run_too():
    head = Optimizer("sgd", 1.0, Schedule("linear"))
    described = Optimizer(
        "sgd", 1.0, Schedule("cosine"), accumulate=2, groups=(Group(("head",), head),)
    )
    made = trained(described.build(8))
    rates = [-float(each["head"]["kernel"][0, 0] / mean_of(i)) for i, each in enumerate(made)]
    np.testing.assert_allclose(rates, [0, 1, 0, 0.75, 0, 0.5, 0, 0.25], rtol=1e-5)


def mean_of(index):
    """The mean gradient of the first weight of the head over the two batches up to `index`."""
    first = index - index % 2
    pair = [float(GRADS[i]["head"]["kernel"][0, 0]) for i in (first, first + 1)]
    return sum(pair) / 2


# --- What is not part of the transformation: averages of parameters, and freezing -----------------


def test_an_average_of_the_updates_and_one_of_the_parameters_are_different_things(
    bits, dataset, line_loss, line_state
):
    def fit(described):
        state = line_state(described)
        return loopax.fit(state, line_loss, dataset.batches(2), steps=20, **PLAIN).state

    plain = fit(Optimizer("adam", 0.01))
    averaged_updates = fit(Optimizer("adam", 0.01, update_ema=0.9))
    averaged_parameters = fit(Optimizer("adam", 0.01, params_ema=0.9))
    assert bits(averaged_updates.params) != bits(plain.params)
    assert averaged_updates.ema is None
    assert bits(averaged_parameters.params) == bits(plain.params)
    assert bits(averaged_parameters.ema) != bits(plain.params)
    assert bits(averaged_parameters.eval_params) == bits(averaged_parameters.ema)
    assert bits(averaged_parameters.opt_state) == bits(plain.opt_state)


def test_the_average_of_the_parameters_waits_while_gradients_accumulate():
    tx = Optimizer("sgd", 1.0, accumulate=2).build()
    state = loopax.TrainState.create(params=PARAMS, tx=tx, ema_decay=0.1)
    moved = state.apply_gradients(grads=GRADS[0]).apply_gradients(grads=GRADS[1])
    halfway = jax.tree.map(lambda old, new: 0.1 * old + 0.9 * new, PARAMS, moved.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved.ema, halfway)
    waiting = moved.apply_gradients(grads=GRADS[2])
    assert differ(waiting.ema, waiting.params)
    assert not differ(waiting.ema, moved.ema)


def test_what_freezes_is_handed_to_the_state(bits, dataset, line_loss, line_state):
    described = Optimizer("adam", 0.01, freeze=("bias",), clip_norm=1.0)
    state = line_state(described)
    run = loopax.fit(state, line_loss, dataset.batches(2), steps=10, **PLAIN)
    assert bits(run.state.params["bias"]) == bits(state.params["bias"])
    assert bits(run.state.params["weights"]) != bits(state.params["weights"])
    assert all(leaf.shape != (1,) for leaf in jax.tree.leaves(run.state.opt_state))


@pytest.mark.parametrize(
    ("described", "field"),
    [(Optimizer(freeze=("bias",)), "freeze"), (Optimizer(params_ema=0.0), "params_ema")],
    ids=["freezing", "averaging"],
)
def test_a_transformation_does_not_silently_drop_what_it_cannot_do(described, field):
    with pytest.raises(
        ConfigError, match=f"^{field} is .* give the Optimizer itself to TrainState"
    ):
        described.build()


def test_a_description_counts_its_schedule_over_the_steps_of_the_run(line_state):
    described = Optimizer("sgd", 0.1, schedule=Schedule("linear"), accumulate=2, params_ema=0.9)
    state = line_state(described, total_steps=8)
    assert state.ema_decay == 0.9
    rates = []
    for _ in range(8):
        state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params))
        rates.append(float(optax.tree_utils.tree_get(state.opt_state, "learning_rate")))
    np.testing.assert_allclose(rates[1::2], [0.1, 0.075, 0.05, 0.025], rtol=1e-6)


def test_what_is_said_twice_differently_is_refused(line_state):
    with pytest.raises(ConfigError, match=r"frozen is .*'weights'.* say it in one place"):
        line_state(Optimizer(freeze=("bias",)), frozen=("weights",))
    with pytest.raises(ConfigError, match=r"total_steps is 5, which only .* an Optimizer"):
        line_state(optax.sgd(0.1), total_steps=5)


# --- The learning rate among the logged metrics ---------------------------------------------------


def test_recording_the_learning_rate_changes_no_update():
    rate = optax.linear_schedule(1.0, 0.0, 4)
    link = recorded_learning_rate(rate)
    state = link.init(PARAMS)
    assert float(state.learning_rate) == 1.0
    for count, grads in enumerate(GRADS[:4]):
        updates, state = link.update(grads, state)
        jax.tree.map(np.testing.assert_array_equal, updates, grads)
        assert float(state.learning_rate) == float(rate(count))
        assert int(state.updates) == count + 1


RATE = optax.linear_schedule(0.1, 0.0, 100)
BIAS = Group(("bias",), Optimizer("sgd", 0.03))
LOGGED = {
    "described": (Optimizer("adam", 0.1, Schedule("linear")).build(100), [0.091, 0.081]),
    "accumulated": (
        Optimizer("adam", 0.1, Schedule("linear"), accumulate=10).build(1000),
        [0.1, 0.099],
    ),
    "recorded by hand": (
        optax.chain(recorded_learning_rate(RATE), optax.sgd(RATE)),
        [0.091, 0.081],
    ),
    "injected": (optax.inject_hyperparams(optax.sgd)(learning_rate=0.02), [0.02, 0.02]),
    "injected schedule": (
        optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.sgd)(learning_rate=RATE)),
        [0.091, 0.081],
    ),
}


@pytest.mark.parametrize(("tx", "expected"), LOGGED.values(), ids=LOGGED.keys())
def test_the_learning_rate_of_the_last_step_is_logged(dataset, line_loss, line_state, tx, expected):
    run = loopax.fit(line_state(tx), line_loss, dataset.batches(2), steps=20, log_every=10, **PLAIN)
    rates = [row["learning_rate"] for row in run.history]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


PARTS = {
    "described": (
        Optimizer("adam", 0.1, groups=(BIAS,)).build(),
        {"learning_rate": 0.1, "learning_rate/bias": 0.03},
    ),
    "injected": (
        optax.multi_transform(
            {
                "slow": optax.inject_hyperparams(optax.sgd)(learning_rate=0.01),
                "fast": optax.inject_hyperparams(optax.adam)(learning_rate=0.2),
            },
            {"weights": "slow", "bias": "fast"},
        ),
        {"learning_rate/slow": 0.01, "learning_rate/fast": 0.2},
    ),
    "nothing to see": (optax.adam(0.1), {}),
}


@pytest.mark.parametrize(("tx", "expected"), PARTS.values(), ids=PARTS.keys())
def test_the_learning_rate_of_each_part_is_logged(dataset, line_loss, line_state, tx, expected):
    run = loopax.fit(line_state(tx), line_loss, dataset.batches(2), steps=5, **PLAIN)
    rates = {k: v for k, v in run.latest("train").items() if k.startswith("learning_rate")}
    assert rates == pytest.approx(expected)


# --- A description can be kept, compared, and made without waiting for Optax ----------------------


def test_a_description_is_kept_as_plain_values_and_compared():
    def make(rate):
        return Optimizer(
            "sgd", rate, Schedule("cosine", warmup_steps=3), groups=(Group(("a",), Optimizer()),)
        )

    assert make(0.1) == make(0.1) != make(0.2)
    kept = json.loads(json.dumps(dataclasses.asdict(make(0.1))))
    assert kept["schedule"]["warmup_steps"] == 3
    assert kept["groups"][0]["optimizer"]["name"] == "adamw"


def test_a_description_can_be_made_without_importing_optax_or_jax():
    program = (
        "import sys, loopax; loopax.Optimizer(schedule=loopax.Schedule('cosine'));"
        "print(sorted({'jax', 'optax', 'flax'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


# --- Errors name the field and the value ----------------------------------------------------------

WRONG = {
    "learning_rate": (lambda: Optimizer(learning_rate=0.0), "learning_rate is 0.0"),
    "infinite learning_rate": (
        lambda: Optimizer(learning_rate=math.inf),
        "learning_rate is inf",
    ),
    "weight_decay": (lambda: Optimizer(weight_decay=-0.1), "weight_decay is -0.1"),
    "clip_norm": (lambda: Optimizer(clip_norm=0.0), "clip_norm is 0.0"),
    "clip_norm that is no number": (lambda: Optimizer(clip_norm=math.nan), "clip_norm is nan"),
    "update_ema": (lambda: Optimizer(update_ema=1.0), "update_ema is 1.0"),
    "params_ema": (lambda: Optimizer(params_ema=-0.5), "params_ema is -0.5"),
    "accumulate": (lambda: Optimizer(accumulate=0), "accumulate is 0"),
    "accumulate nothing later": (
        lambda: Optimizer(accumulate={0: 1, 5: 0}),
        r"accumulate is \{0: 1, 5: 0\}",
    ),
    "accumulate without a beginning": (
        lambda: Optimizer(accumulate={5: 2}),
        r"accumulate is \{5: 2\}.*beginning with 0",
    ),
    "name": (lambda: Optimizer("adamv").build(), "no optimizer 'adamv'.*did you mean.*adamw"),
    "a name like no other": (
        lambda: Optimizer("qqq").build(),
        "no optimizer 'qqq'.*there are.*sgd",
    ),
    "argument": (
        lambda: Optimizer("adam", arguments={"momentum": 0.9}).build(),
        "optimizer 'adam' has no argument 'momentum'; it has b1, b2",
    ),
    "learning_rate among the arguments": (
        lambda: Optimizer("adam", arguments={"learning_rate": 0.9}).build(),
        "'adam' has no argument 'learning_rate'",
    ),
    "weight_decay of an optimiser without": (
        lambda: Optimizer("adam", weight_decay=0.1).build(),
        "'adam' has no argument 'weight_decay'.*adamw decays weights",
    ),
    "decay_vectors of an optimiser without": (
        lambda: Optimizer("sgd", decay_vectors=False).build(),
        "'sgd' has no argument 'mask'.*adamw decays weights",
    ),
    "group": (
        lambda: Optimizer(groups=(Group(("haed",), Optimizer()),)).build().init(PARAMS),
        "groups: 'haed' matches none of the 5 parameters; the nearest paths are head",
    ),
    "schedule.kind": (lambda: Schedule("exponential"), "schedule.kind is 'exponential'.*cosine"),
    "schedule.steps": (lambda: Schedule("linear", steps=0), "schedule.steps is 0"),
    "schedule.warmup_steps": (lambda: Schedule(warmup_steps=-1), "schedule.warmup_steps is -1"),
    "schedule.start": (lambda: Schedule(start=-1.0), "schedule goes from -1.0 to 0.0"),
    "schedule.end": (lambda: Schedule("linear", end=math.inf), "schedule goes from 1.0 to inf"),
    "schedule.then": (
        lambda: Schedule("linear", then=Schedule()),
        "schedule.then follows a schedule without an end",
    ),
    "unknown end of the run": (
        lambda: Optimizer(schedule=Schedule("cosine")).build(),
        "a cosine schedule without steps needs total_steps",
    ),
    "warm-up longer than the run": (
        lambda: Optimizer(schedule=Schedule("linear", warmup_steps=50)).build(50),
        "50 updates.*schedule.warmup_steps is 50",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_value_that_cannot_work_is_named_in_one_line(make, message):
    with pytest.raises(ConfigError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


# --- What groups and names cannot be --------------------------------------------------------------


def test_of_two_groups_with_the_same_patterns_the_first_counts():
    same = tuple(Group(("head",), Optimizer("sgd", rate)) for rate in (2.0, 3.0))
    [updates] = trained(Optimizer("sgd", 1.0, groups=same).build(), GRADS[:1])
    np.testing.assert_allclose(updates["head"]["kernel"], -2 * GRADS[0]["head"]["kernel"])


def test_a_group_without_patterns_is_refused():
    with pytest.raises(ConfigError, match="a group has no params"):
        Group((), Optimizer("sgd", 2.0))


@pytest.mark.parametrize("field", [{"freeze": ("head",)}, {"params_ema": 0.9}])
def test_what_a_group_cannot_do_is_refused(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        Optimizer(groups=(Group(("head",), Optimizer(**field)),)).build()


@pytest.mark.parametrize("accumulate", [2.5, {0: 2.5}])
def test_a_fraction_of_a_batch_is_refused(accumulate):
    with pytest.raises(ConfigError, match=r"accumulate is .*2\.5"):
        trained(Optimizer("sgd", accumulate=accumulate).build())


@pytest.mark.parametrize("name", ["dpsgd", "_deprecated_dpsgd", "scale_by_rprop"])
def test_an_optimiser_that_cannot_train_is_refused(name):
    with pytest.raises(ConfigError, match=name):
        trained(Optimizer(name).build())


def test_groups_may_accumulate_while_the_parameters_are_averaged():
    groups = tuple(Group((part,), Optimizer("sgd", accumulate=2)) for part in ("head", "body"))
    tx = Optimizer("sgd", 1.0, groups=groups).build()
    state = loopax.TrainState.create(params=PARAMS, tx=tx, ema_decay=0.5)
    state = state.apply_gradients(grads=GRADS[0])
    assert differ(state.ema["norm"], PARAMS["norm"])
    assert not differ(state.ema["head"], PARAMS["head"])
