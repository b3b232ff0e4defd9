"""What is compiled, counted by JAX itself: once for each shape, and the account says why."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import monitoring

import loopax
from loopax import compiled
from loopax.account import summary

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations():
    """The names of all programs that XLA is given inside, whoever wrote them."""
    names = []

    def listen(event, duration, **details):
        del duration
        if event == COMPILED:
            names.append(details.get("fun_name"))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        monitoring.unregister_event_duration_listener(listen)


def counted(fit):
    """A run and how many programs it compiled, when the small ones around it are compiled."""
    fit()
    compiled._kept.clear()  # as if its steps were another process's
    with compilations() as names:
        run = fit()
    return run, [name for name in names if name != "jit(init)"]  # of an optimiser


def noted(run):
    return {name: len(reasons) for name, reasons in run.account["compilations"].items()}


def test_the_counter_sees_a_compilation():
    with compilations() as names:
        jax.jit(lambda x: x * 3 + 1)(np.arange(5.0))
    assert len(names) == 1


@pytest.mark.parametrize(("resident", "chunk_steps"), [(True, None), (False, 7)])
def test_a_run_compiles_its_step_once_whatever_the_chunks(
    dataset, line_loss, line_state, chunk_steps, resident
):
    """53 steps with rows each 10: there are partial chunks in the middle and at the end."""
    run, names = counted(
        lambda: loopax.fit(
            line_state(),
            line_loss,
            dataset.batches(4, resident=resident),
            steps=53,
            log_every=10,
            probe_every=None,
            chunk_steps=chunk_steps,
            progress=False,
        )
    )
    assert len(names) == 1
    assert run.account["compilations"] == {"train": ["first use"]}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="convolutions are ordered on CPUs")
def test_a_loss_is_traced_once(dataset, line_loss, line_state):
    """A large one takes seconds. Where compilation is disabled it sees the numbers of each step."""
    seen = []

    def watched(params, batch, rngs):
        seen.append(not isinstance(batch["image"], jax.core.Tracer))
        return line_loss(params, batch, rngs)

    def fit():
        data = dataset.batches(4)
        loopax.fit(line_state(), watched, data, steps=3, probe_every=2, progress=False)

    fit()
    assert seen == [False], "the step and the probe share it"
    with jax.disable_jit():
        fit()
    assert seen.count(True) == 4, "three steps and a probe"


def test_little_else_than_the_step_is_compiled_before_it():
    """Copies and zeros of arrays of many shapes are a program each, and not one each shape."""
    params = {str(size): np.ones((size, 11), np.float32) for size in range(1, 9)}
    data = loopax.data.Dataset({"x": np.ones((20, 11), np.float32)})

    def loss_fn(params, batch, rngs):
        return sum(jnp.square(batch["x"] @ w.T).mean() for w in params.values())

    with compilations() as names:
        state = loopax.TrainState.create(params=params, tx=optax.adamw(1e-3))
        with loopax.training(state, loss_fn, data.batches(5), steps=3, progress=False) as run:
            next(iter(run))
            found = list(names)
    assert found.count("jit(train)") == 1
    assert len(found) <= 9, found


def test_a_whole_run_with_evaluation_and_a_resumption_compiles_each_program_once_per_shape(
    tmp_path, dataset, line_loss, line_state
):
    """240 examples in batches of 100: the evaluation has a remainder of 40, a second shape."""
    runs = iter(range(4))

    def fit(run_dir, steps):
        return loopax.fit(
            line_state(),
            line_loss,
            dataset.batches(4),
            steps=steps,
            run_dir=run_dir,
            evaluation=loopax.Evaluation(dataset.batches(100), every=20),
            log_every=10,
            probe_every=10,
            progress=False,
        )

    def both():
        run_dir = tmp_path / str(next(runs))
        return fit(run_dir, 33), fit(run_dir, 77)

    once = {"train": 1, "probe": 1, "evaluate": 2}
    (first, resumed), names = counted(both)
    assert noted(first) == noted(resumed) == once
    assert len(names) == sum(once.values()), "the resumption shares the code"
    assert first.account["compilations"]["train"] == ["first use"]
    first_use, reason = first.account["compilations"]["evaluate"]
    assert first_use == "first use"
    assert "100" in reason
    assert "40" in reason


def test_a_run_of_what_was_compiled_before_compiles_nothing(dataset, model):
    """Model, loss and optimiser are made anew, as in a sweep; another constant is another program.

    The losses of runs that share their code are those of runs that do not.
    """

    def fit(seed, scale):
        def loss_fn(params, batch, rngs):
            logits = model.apply(params, batch["image"], rngs.training, rngs=rngs)
            logits *= np.full((1, 3), scale, np.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.mean()

        data = dataset.batches(2)
        state = loopax.TrainState.create(model, dataset, optax.adam(1e-2), seed=seed)
        options = {"steps": 20, "probe_every": 10, "evaluation": dataset.batches(60)}
        run = loopax.fit(state, loss_fn, data, progress=False, **options)
        return run, loopax.evaluate(run.state, loss_fn, dataset.batches(60))

    def history(seed, scale):
        compiled._kept.clear()
        return list(fit(seed, scale)[0].history)

    alone = {(seed, scale): history(seed, scale) for seed, scale in ((1, 1.0), (0, 0.0), (0, 1.0))}
    with compilations() as names:
        runs = {given: fit(*given)[0] for given in ((0, 1.0), (1, 1.0))}
    assert names == []
    shared = ["first use, shared with an earlier run"]
    programs = ("train", "probe", "evaluate")
    assert runs[1, 1.0].account["compilations"] == dict.fromkeys(programs, shared)
    assert "compiled nothing" in summary(runs[1, 1.0].account)
    with compilations() as names:
        runs[0, 0.0] = fit(0, 0.0)[0]
    assert sorted(names) == ["jit(evaluate)", "jit(probe)", "jit(train)"]
    assert {given: list(run.history) for given, run in runs.items()} == alone


def test_programs_of_different_arguments_are_told_apart():
    one, two, three = jnp.ones(1), jnp.full(1, 2.0), jnp.full(2, 2.0)
    first, second = lambda x, y: x + 1, lambda x, y: y + 1
    assert compiled.executed(first, one, two) == 2
    assert compiled.executed(second, one, two) == 3
    assert compiled.executed(first, one, three) == 2


def test_a_state_may_be_created_within_a_trace(dataset, model):
    """Where only its form is asked for."""

    def create():
        return loopax.TrainState.create(model, dataset, optax.adam(1e-2))

    form, made = jax.eval_shape(create), create()
    assert jax.tree.map(jnp.shape, form.params) == jax.tree.map(jnp.shape, made.params)


def test_what_calls_back_into_python_is_never_shared(dataset, line_loss, line_state):
    """In the text of its program a callback is a number, the same for each function."""
    heard = []

    def fit(name):
        def loss_fn(params, batch, rngs):
            jax.debug.callback(lambda: heard.append(name))
            return line_loss(params, batch, rngs)

        data = dataset.batches(4)
        loopax.fit(line_state(), loss_fn, data, steps=2, probe_every=None, progress=False)
        jax.effects_barrier()

    fit("first")
    fit("second")
    assert heard == ["first"] * 2 + ["second"] * 2


def test_a_second_shape_is_a_second_compilation_and_the_account_says_what_changed(
    dataset, line_loss, line_state
):
    """Ten examples in fours with the last two kept: each epoch ends with a smaller batch."""
    small = loopax.data.Dataset({name: rows[:10] for name, rows in dataset.columns.items()})
    data = small.batches(4, drop_last=False)
    run, names = counted(
        lambda: loopax.fit(
            line_state(), line_loss, data, epochs=5, probe_every=None, progress=False
        )
    )
    assert run.step == 15
    assert len(names) == 2, "coming back to a known shape compiles nothing"
    first, second = run.account["compilations"]["train"]
    assert first == "first use"
    assert ",4]" in second
    assert ",2]" in second


def test_batches_of_another_shape_are_named_by_their_field(dataset, line_loss, line_state):
    def batch(size):
        return {"image": np.ones((size, 4, 4, 1), np.float32), "label": np.ones(size, np.float32)}

    data = [batch(2), batch(2), batch(3)]
    run, names = counted(
        lambda: loopax.fit(
            line_state(), line_loss, data, epochs=2, probe_every=None, progress=False
        )
    )
    assert len(names) == 2
    assert "image: float32[" in run.account["compilations"]["train"][1]


def test_evaluating_twice_compiles_nothing_more_within_a_run(dataset, line_loss, line_state):
    def fit(every):
        return loopax.fit(
            line_state(),
            line_loss,
            dataset.batches(4),
            steps=40,
            evaluation=loopax.Evaluation({"a": dataset.batches(60)}, every=every),
            probe_every=None,
            progress=False,
        )

    run, names = counted(lambda: fit(every=5))
    assert len([row for row in run.history if row["source"] == "a"]) == 8
    assert noted(run) == {"train": 1, "evaluate": 1}
    assert len(names) == 2
