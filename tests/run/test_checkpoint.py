"""Checkpoints: what is kept, how it is addressed, what is refused, who can read it."""

import itertools
import json
import logging
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from tests.system.processes import until

import loopax
from loopax import digests, files
from loopax.diagnose.replay import Replay
from loopax.errors import CheckpointError, ConfigError
from loopax.run import checkpoint, checkpoint_reader, display, serialization, turns
from loopax.run.directory import RunDir
from loopax.run.retention import ranking

PLAIN = {"progress": False, "probe_every": None}


def slope(params, batch, rngs):
    """Its gradient is 1 everywhere: after n steps of SGD with rate 1, x is -n."""
    return params["x"].sum()


def walker(tx=None, **options):
    return loopax.TrainState.create(params={"x": jnp.zeros(1)}, tx=tx or optax.sgd(1.0), **options)


def walk(run_dir, measure, steps=60, **settings):
    """Sixty steps with a checkpoint and an evaluation each 10; `measure` sees how many are made."""
    return loopax.fit(
        walker(),
        slope,
        [np.zeros(1)],
        steps=steps,
        run_dir=run_dir,
        evaluation=loopax.Evaluation(
            [np.zeros(1)], every=10, loss_fn=lambda params, *_: measure(-params["x"][0])
        ),
        checkpoints=loopax.Checkpoints(
            **{"every": 10, "seconds": None, "best": "test/loss", **settings}
        ),
        **PLAIN,
    )


def opened(run_dir):
    return loopax.CheckpointStore(RunDir.open(run_dir).checkpoints)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """A run whose best step is in the middle, to be read or to be copied."""
    run_dir = tmp_path_factory.mktemp("walked") / "run"
    walk(run_dir, lambda n: jnp.abs(n - 30))
    return run_dir


@pytest.fixture
def copy(walked, tmp_path):
    return shutil.copytree(walked, tmp_path / "run")


# --- What is kept -------------------------------------------------------------


KEPT = {
    "worsening": (lambda n: n, {}, [10, 50, 60], 10),
    "highest": (lambda n: -jnp.abs(n - 30), {"mode": "max"}, [30, 50, 60], 30),
    "only the latest": (lambda n: jnp.abs(n - 30), {"keep": 1}, [30, 60], 30),
    "nan first": (lambda n: jnp.where(n < 25, jnp.nan, n), {}, [30, 50, 60], 30),
    "never finite": (lambda n: n * jnp.nan, {}, [50, 60], None),
}


@pytest.mark.parametrize(("measure", "settings", "kept", "best"), KEPT.values(), ids=KEPT.keys())
def test_the_latest_and_the_best_are_kept(tmp_path, measure, settings, kept, best):
    walk(tmp_path, measure, **settings)
    store = opened(tmp_path)
    assert store.steps == kept
    assert store.step_of("latest") == 60
    if best is None:
        with pytest.raises(CheckpointError, match="no best checkpoint, because nothing was ranked"):
            store.step_of("best")
    else:
        assert store.step_of("best") == best


def test_the_best_of_a_run_stays_the_best_when_it_is_continued(tmp_path):
    walk(tmp_path, lambda n: jnp.abs(n - 20), steps=40)
    walk(tmp_path, lambda n: jnp.abs(n - 20), steps=80)
    assert opened(tmp_path).steps == [20, 70, 80]
    assert opened(tmp_path).step_of("best") == 20


def test_a_new_best_is_saved_though_no_checkpoint_was_due(tmp_path):
    """The end is always saved, too."""
    walk(tmp_path, lambda n: jnp.abs(n - 20), every=None, steps=55)
    assert opened(tmp_path).steps == [20, 55]


RANKED_BY = {
    "the validation data": (["test", "validation"], {}, "validation/loss"),
    "else the first": (["dev", "test"], {}, "dev/loss"),
    "none without an evaluation": ([], {}, None),
    "none if told": (["test"], {"best": None}, None),
    "a metric": (["test"], {"best": "test/accuracy", "mode": "max"}, "test/accuracy"),
    "slashes in both names": (["a/b"], {"best": "a/b/c/d"}, "a/b/c/d"),
    "what a hook measures": ([], {"best": "hook/fid"}, "hook/fid"),
}


@pytest.mark.parametrize(("names", "settings", "best"), RANKED_BY.values(), ids=RANKED_BY.keys())
def test_the_best_is_chosen_by(names, settings, best):
    assert ranking(loopax.Checkpoints(**settings), names, hooks=True).best == best


NEVER = {
    "an evaluation that is none": ({"best": "val/loss"}, "the evaluations of this run are test"),
    "no evaluation": ({"best": "loss"}, "name one and its metric, such as 'test/loss'"),
    "a metric that is none": ({"best": "test/lss"}, "'test' has to rank by are loss, at$"),
}


def measured(params, batch, rngs):
    at = -params["x"][0]
    return jnp.abs(at - 20), {"at": at}


@pytest.mark.parametrize(("settings", "message"), NEVER.values(), ids=NEVER.keys())
def test_a_best_that_would_never_come_is_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        loopax.fit(
            walker(),
            slope,
            [np.zeros(1)],
            steps=40,
            run_dir=tmp_path,
            evaluation=loopax.Evaluation([np.zeros(1)], every=10, loss_fn=measured),
            checkpoints=loopax.Checkpoints(seconds=None, **settings),
            **PLAIN,
        )
    assert "\n" not in str(error.value)
    rows = RunDir(tmp_path).metrics
    assert all(row["step"] <= 10 for row in rows), "at the first evaluation at the latest"


def test_the_lowest_is_the_best_where_nothing_was_said():
    assert loopax.Checkpoints(best="validation/error").mode == "min"
    with pytest.raises(ConfigError, match="'v/F1'; say which is better: mode='max'"):
        loopax.EarlyStopping("v/F1")
    with pytest.raises(ConfigError, match="looks at 'loss'; name what is measured"):
        loopax.EarlyStopping("loss")


def test_a_best_on_test_data_and_one_that_is_nan_are_said_once(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(display.Display, "say", lambda self, message: said.append(message))
    walk(tmp_path, lambda n: n * jnp.nan)
    assert sum("chosen by test/loss, which is test data" in line for line in said) == 1
    assert sum("test/loss is nan at step 10, which ranks nothing" in line for line in said) == 1


def test_new_bests_that_come_too_soon_are_written_with_the_next_save(tmp_path, monkeypatch):
    saved = counted_saves(monkeypatch)
    monkeypatch.setattr(turns, "SHARE", 1e-9)
    walk(tmp_path, lambda n: jnp.abs(n - 40), every=None, keep=1)
    assert saved == [10, 40, 60]
    assert opened(tmp_path).steps == [40, 60]
    state, meta = opened(tmp_path).restore(walker(), "best")
    assert (state.params["x"].tolist(), meta["run"]["rows"]) == ([-40], 4)


def test_a_best_that_was_held_outlasts_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "SHARE", 1e-9)

    def fail(run):
        if run.step == 45:
            raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        loopax.fit(
            walker(),
            slope,
            [np.zeros(1)],
            steps=60,
            run_dir=tmp_path,
            evaluation=loopax.Evaluation([np.zeros(1)], every=10, loss_fn=measured),
            hooks=[loopax.Hook(fail, every=5)],
            checkpoints=loopax.Checkpoints(seconds=None),
            **PLAIN,
        )
    assert opened(tmp_path).step_of("best") == 20


def counted_saves(monkeypatch):
    saved, save = [], loopax.CheckpointStore.save

    def count(self, state, meta, *rest):
        saved.append(meta["step"])
        save(self, state, meta, *rest)

    monkeypatch.setattr(loopax.CheckpointStore, "save", count)
    return saved


def test_seconds_save_what_steps_would_not(tmp_path):
    """With none between two saves, each chunk is saved."""
    loopax.fit(
        walker(),
        slope,
        [np.zeros(1)],
        steps=25,
        chunk_steps=5,
        run_dir=tmp_path,
        checkpoints=loopax.Checkpoints(seconds=0, keep=10, best=None),
        **PLAIN,
    )
    assert opened(tmp_path).steps == [5, 10, 15, 20, 25]


def test_by_itself_it_saves_soon_and_then_ever_more_seldom(tmp_path, monkeypatch):
    """By a clock that goes one second a step; what a chunk is to save is decided before it."""
    now = [0.0]
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def tick(run):
        now[0] = run.step

    loopax.fit(
        walker(),
        slope,
        [np.zeros(1)],
        steps=120,
        chunk_steps=1,
        run_dir=tmp_path,
        hooks=[loopax.Hook(tick, every=1)],
        checkpoints=loopax.Checkpoints(keep=20, best=None),
        **PLAIN,
    )
    assert opened(tmp_path).steps == [3, 7, 15, 31, 62, 93, 120]


# --- How it is addressed ------------------------------------------------------


@pytest.mark.parametrize(("which", "step"), [("latest", 60), ("best", 30), ("30", 30), (50, 50)])
def test_a_checkpoint_is_addressed_by_name_or_number(walked, which, step):
    state, meta = opened(walked).restore(walker(), which)
    assert int(state.step) == meta["step"] == step
    assert state.params["x"].tolist() == [-step]


@pytest.mark.parametrize("which", [40, "newest"])
def test_a_step_that_is_not_there_is_answered_with_those_that_are(walked, which):
    with pytest.raises(CheckpointError, match=r"there are 30, 50, 60, latest and best") as caught:
        opened(walked).restore(walker(), which)
    assert str(which) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_where_nothing_was_saved_the_error_names_the_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.*there is no checkpoint"):
        loopax.CheckpointStore(tmp_path / "nowhere").restore(walker())


def test_reading_changes_nothing_on_disk(walked):
    def content():
        return {path: path.stat().st_mtime_ns for path in walked.rglob("*")}

    before = content()
    with opened(walked) as store:
        store.restore(walker(), "best")
        store.read("latest")
    assert content() == before


# --- What comes back ----------------------------------------------------------


class Counting(loopax.TrainState):
    """Carries a count of its own."""

    seen: jax.Array

    def observe(self, loss, metrics):
        return self.replace(seen=self.seen + 1)


def test_a_state_comes_back_bit_for_bit_and_in_its_own_class(
    tmp_path, bits, dataset, line_loss, line_state
):
    def fresh(seed):
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
        return line_state(
            tx,
            cls=Counting,
            seed=seed,
            ema_decay=0.9,
            frozen=("bias",),
            model_state={"stats": {"mean": jnp.arange(3, dtype=jnp.bfloat16)}},
            seen=jnp.int32(0),
        )

    def loss(params, batch, rngs, model_state):
        return (*line_loss(params, batch, rngs), model_state)

    run = loopax.fit(fresh(5), loss, dataset.batches(2), steps=20, run_dir=tmp_path, **PLAIN)
    state, _ = opened(tmp_path).restore(fresh(0))
    assert isinstance(state, Counting)
    assert bits(state) == bits(run.state)
    assert int(state.seen) == 20


def test_orbax_alone_can_read_a_checkpoint(walked):
    tree = ocp.StandardCheckpointer().restore(walked.absolute() / "checkpoints" / "50" / "state")
    assert tree["trainable"]["x"].tolist() == [-50]
    assert int(tree["step"]) == 50


def test_without_a_state_a_checkpoint_is_a_tree_of_dictionaries(walked):
    tree, meta = opened(walked).read("best")
    assert tree["params"]["x"].tolist() == [-30]
    assert meta["step"] == 30


# --- What is refused ----------------------------------------------------------


OTHERS = {
    "another name": (
        lambda: {"y": jnp.zeros(1)},
        optax.adam(1.0),
        {},
        r"mu/x is float32\[1\] there and absent here.*mu/y is absent there",
    ),
    "another type": (
        lambda: {"x": jnp.zeros(1, jnp.bfloat16)},
        optax.adam(1.0),
        {},
        r"x is float32\[1\] there and bfloat16\[1\] here",
    ),
    "another optimiser": (
        lambda: {"x": jnp.zeros(1)},
        optax.sgd(1.0),
        {},
        r"opt_state/0/mu/x is float32\[1\] there and absent here",
    ),
    "a moving average": (
        lambda: {"x": jnp.zeros(1)},
        optax.adam(1.0),
        {"ema_decay": 0.9},
        r"ema/x is absent there and float32\[1\] here",
    ),
}


@pytest.fixture(scope="module")
def by_adam(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("adam") / "run"
    loopax.fit(walker(optax.adam(1.0)), slope, [np.zeros(1)], steps=3, run_dir=run_dir, **PLAIN)
    return run_dir


@pytest.mark.parametrize(("params", "tx", "options", "leaf"), OTHERS.values(), ids=OTHERS.keys())
def test_a_checkpoint_of_another_state_is_refused_by_the_leaf_that_differs(
    by_adam, params, tx, options, leaf
):
    other = loopax.TrainState.create(params=params(), tx=tx, **options)
    with pytest.raises(CheckpointError, match=leaf) as caught:
        opened(by_adam).restore(other)
    assert str(by_adam) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=leaf):
        loopax.fit(
            other,
            lambda params, batch, rngs: sum(map(jnp.sum, jax.tree.leaves(params))),
            [np.zeros(1)],
            steps=6,
            run_dir=by_adam,
            **PLAIN,
        )


SETTINGS = {
    "every": ({"every": 0}, "checkpoints.every is 0"),
    "seconds": ({"seconds": -1}, "checkpoints.seconds is -1"),
    "keep": ({"keep": 0}, "checkpoints.keep is 0"),
    "mode": ({"mode": "lowest"}, "mode is 'lowest'; it must be 'min' or 'max'"),
    "mode of no name": ({"mode": "max"}, "mode is 'max', and best is 'auto'"),
    "mode of an accuracy": ({"best": "test/top1_accuracy"}, "top1_accuracy'; say which is better"),
    "half a step": ({"every": 2.5}, "checkpoints.every is 2.5; it must be a whole number of at"),
    "no number": ({"keep": None}, "checkpoints.keep is None"),
    "text": ({"seconds": "30"}, "checkpoints.seconds is '30'; it must be a number of at least 0"),
    "failure": ({"on_failure": "ask"}, "on_failure is 'ask'; it must be stop or go_on"),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS.keys())
def test_a_setting_that_cannot_work_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        loopax.Checkpoints(**settings)


def test_a_damaged_checkpoint_is_passed_over_and_named(copy, capsys):
    checkpoints = copy / "checkpoints"
    (checkpoints / "60" / "meta" / "metadata").write_text("{ no json")
    state, _ = opened(copy).restore(walker())
    assert int(state.step) < 60
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "checkpoints/60: meta/metadata is not as it was saved" in said
    with pytest.raises(CheckpointError, match=r"checkpoints/60: meta/metadata") as caught:
        opened(copy).restore(walker(), 60)
    assert "\n" not in str(caught.value)
    assert (checkpoints / "60").exists(), "who only reads moves nothing"


def test_a_checkpoint_of_another_format_is_refused_and_left_where_it_is(copy, monkeypatch):
    monkeypatch.setattr(checkpoint_reader, "FORMAT", 6)
    with pytest.raises(CheckpointError, match=r"is of format 5, and this loopax reads 6") as error:
        walk(copy, lambda n: jnp.abs(n - 30))
    assert "\n" not in str(error.value)
    assert opened(copy).steps == [30, 50, 60]


def test_what_is_kept_with_the_state_is_plain_json(walked):
    meta = json.loads((walked / "checkpoints" / "50" / "meta" / "metadata").read_text())
    assert meta["step"] == 50
    assert meta["data"]["batch"] == "array float32[1]"
    assert meta["data"]["batches_per_epoch"] == 1


BY_NO_RUN = {
    "nothing but a step": {},
    "no rows": {"run": {}, "recorder": 3, "data": {}, "numerics": {}},
}


@pytest.mark.parametrize("meta", BY_NO_RUN.values(), ids=BY_NO_RUN.keys())
def test_a_run_does_not_go_on_from_what_was_saved_by_hand(tmp_path, meta):
    with loopax.CheckpointStore(tmp_path / "checkpoints", loopax.Checkpoints()) as store:
        store.save(walker(), {"step": 5, **meta}, {})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="checkpoints/5: was saved by no run") as error:
        walk(tmp_path, lambda n: n, steps=20)
    assert "\n" not in str(error.value)


# --- Frozen parameters, which are saved once -----------------------------------


def half_frozen(body=1.0, size=100_000, cls=loopax.TrainState, **options):
    noise = np.random.default_rng(0).normal(size=size).astype(np.float32)  # not to be compressed
    params = {"body": body * noise, "head": jnp.zeros(3)}
    return cls.create(params=params, tx=optax.adam(0.1), frozen=("body",), ema_decay=0.9, **options)


def head_loss(params, batch, rngs):
    noise = jax.random.normal(rngs["noise"], (3,))
    return ((params["head"] - params["body"][:3] - noise) ** 2).sum()


def train_head(run_dir, state, steps, **settings):
    return loopax.fit(
        state,
        head_loss,
        [np.zeros(1)],
        steps=steps,
        run_dir=run_dir,
        checkpoints=loopax.Checkpoints(best=None, **settings),
        **PLAIN,
    )


def size_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_what_is_frozen_is_saved_once_and_referred_to_by_each_step(tmp_path):
    train_head(tmp_path, half_frozen(), 12, every=3, seconds=None, keep=2)
    checkpoints = tmp_path / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"9", "12", "frozen"}
    assert digests.damage(checkpoints / "frozen") == []
    assert size_of(checkpoints / "frozen") > 300_000
    for step in ("9", "12"):
        assert size_of(checkpoints / step) < 30_000
    assert set(opened(tmp_path).weights()) == {"head", "body"}
    assert set(opened(tmp_path).read(9)[0]["params"]) == {"head", "body"}
    by_orbax = ocp.StandardCheckpointer().restore(checkpoints.absolute() / "frozen" / "state")
    np.testing.assert_array_equal(by_orbax["frozen"]["body"], half_frozen().params["body"])


@pytest.fixture(scope="module")
def whole_head(tmp_path_factory):
    return train_head(tmp_path_factory.mktemp("whole") / "run", half_frozen(), 12).state


def test_a_run_with_frozen_parameters_resumes_exactly(tmp_path, whole_head, bits):
    train_head(tmp_path / "parts", half_frozen(), 5)
    stamp = digests.stamp(tmp_path / "parts" / "checkpoints" / "frozen")
    parts = train_head(tmp_path / "parts", half_frozen(), 12).state
    assert bits(parts) == bits(whole_head)
    assert digests.stamp(tmp_path / "parts" / "checkpoints" / "frozen") == stamp


def test_a_run_keeps_the_frozen_parameters_that_it_was_begun_with(tmp_path, whole_head, bits):
    """As it keeps those that train: what is in the run directory counts."""
    train_head(tmp_path / "run", half_frozen(), 5)
    run = train_head(tmp_path / "run", half_frozen(body=2.0), 12)
    assert bits(run.state) == bits(whole_head)


def test_a_form_without_values_takes_what_is_frozen_too(tmp_path, bits):
    run = train_head(tmp_path, half_frozen(), 5)
    restored, _ = opened(tmp_path).restore(jax.eval_shape(half_frozen))
    assert bits(restored) == bits(run.state)


class Drifting(loopax.TrainState):
    """Moves what does not train by itself, as a target network does."""

    def observe(self, loss, metrics):
        return self.replace(params={**self.params, "body": self.params["body"] * 0.9})


def test_what_is_frozen_and_moves_all_the_same_is_saved_with_each_step(tmp_path, bits):
    parts = tmp_path / "parts"
    for steps in (5, 9, 12):
        run = train_head(parts, half_frozen(cls=Drifting), steps)
        assert bits(opened(parts).restore(half_frozen(cls=Drifting))[0]) == bits(run.state)
    whole = train_head(tmp_path / "whole", half_frozen(cls=Drifting), 12)
    assert bits(run.state) == bits(whole.state)


def test_what_is_frozen_and_was_left_by_a_start_that_saved_no_step_is_not_taken(tmp_path, bits):
    """As a kill between the two renames leaves it; the next start has other weights."""
    train_head(tmp_path / "run", half_frozen(), 5)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "5")
    run = train_head(tmp_path / "run", half_frozen(body=2.0), 12)
    assert bits(run.state) == bits(train_head(tmp_path / "whole", half_frozen(body=2.0), 12).state)
    assert bits(opened(tmp_path / "run").restore(half_frozen())[0]) == bits(run.state)


def test_a_branch_has_what_is_frozen_too(tmp_path, bits):
    run = train_head(tmp_path / "run", half_frozen(), 5)
    replay = Replay(run.dir, half_frozen(), head_loss, [np.zeros(1)])
    replay.branch(4, tmp_path / "new", state=half_frozen(), data=[np.zeros(1)], config={})
    again = train_head(tmp_path / "new", half_frozen(), 5)
    assert bits(again.state) == bits(run.state)
    assert set(opened(tmp_path / "new").weights()) == {"head", "body"}


@pytest.mark.parametrize("fault", ["damaged", "gone", "another"])
def test_without_what_is_frozen_a_step_is_refused_and_stays_where_it_is(tmp_path, fault):
    train_head(tmp_path / "run", half_frozen(), 5)
    frozen = tmp_path / "run" / "checkpoints" / "frozen"
    kept = frozen.rename(tmp_path / "kept")
    if fault == "damaged":
        shutil.copytree(kept, frozen)
        (frozen / "meta" / "metadata").write_text("{}")
    if fault == "another":
        train_head(tmp_path / "other", half_frozen(body=2.0), 5)
        shutil.copytree(tmp_path / "other" / "checkpoints" / "frozen", frozen)
    reason = {
        "damaged": "frozen: meta/metadata is not as it was saved",
        "gone": "frozen: is missing",
        "another": "frozen: holds other parameters",
    }[fault]
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f"{reason}; .* step 5 needs it") as error:
            train_head(tmp_path / "run", half_frozen(), 12)
        assert "\n" not in str(error.value)
        assert opened(tmp_path / "run").steps[-1] == 5
    shutil.rmtree(frozen, ignore_errors=True)
    kept.rename(frozen)
    assert train_head(tmp_path / "run", half_frozen(), 12).step == 12


@pytest.mark.parametrize("fault", ["damaged", "gone"])
def test_what_is_frozen_is_saved_again_when_it_is_lost_while_the_run_goes_on(
    tmp_path, monkeypatch, bits, fault
):
    said = []
    monkeypatch.setattr(display.Display, "say", lambda self, message: said.append(message))
    frozen = tmp_path / "checkpoints" / "frozen"

    def disturb(run):
        if run.step == 6:
            until(lambda: (tmp_path / "checkpoints" / "3").exists(), "the save before")
            shutil.rmtree(frozen) if fault == "gone" else (frozen / "SHA256SUMS").write_text("")

    state = loopax.fit(
        half_frozen(),
        head_loss,
        [np.zeros(1)],
        steps=12,
        run_dir=tmp_path,
        hooks=[loopax.Hook(disturb, every=6)],
        checkpoints=loopax.Checkpoints(every=3, seconds=None, best=None),
        **PLAIN,
    ).state
    assert bits(opened(tmp_path).restore(half_frozen())[0]) == bits(state)
    assert (tmp_path / "checkpoints" / "damaged-frozen").exists() == (fault == "damaged")
    assert sum("saved again" in line for line in said) == (fault == "damaged")


@pytest.mark.parametrize(("file", "shown"), [("site-packages/orbax/a.py", 0), ("mine.py", 1)])
def test_what_orbax_did_not_wait_for_is_not_complained_of_and_the_users_own_is(caplog, file, shown):
    scope = {}
    exec(
        compile("def fail():\n    raise OSError(28, 'No space left on device')", file, "exec"),
        scope,
    )
    try:
        scope["fail"]()
    except OSError as error:
        with serialization.quiet():
            logging.getLogger("asyncio").error("Future was never retrieved", exc_info=error)
    assert len(caplog.records) == shown


# --- Orbax among others ---------------------------------------------------------


def test_what_is_written_to_a_save_that_failed_does_not_come_back(tmp_path):
    """TensorStore still writes when it has told that it failed, and makes what it misses."""
    folder = files.OpenFolder(tmp_path / "saving")
    late = folder.inside / "state"
    late.mkdir()
    folder.remove(failed=True)
    with pytest.raises(FileNotFoundError):
        late.mkdir(parents=True)
    assert list(tmp_path.iterdir()) == []
    again = files.OpenFolder(tmp_path / "saving")
    assert again.inside != folder.inside, "who goes by the old one must not find the new one"
    again.remove(failed=False)


def test_runs_in_several_threads_save_and_resume_as_alone(tmp_path, bits):
    def trained(name, steps):
        return loopax.fit(
            walker(optax.adam(0.1), seed=len(name)),
            lambda params, batch, rngs: (
                (params["x"] - jax.random.normal(rngs["a"], (1,))).sum() ** 2
            ),
            [np.zeros(1)],
            steps=steps,
            run_dir=tmp_path / name,
            checkpoints=loopax.Checkpoints(every=2, seconds=None, best=None),
            **PLAIN,
        ).state

    names = [f"{number}" for number in range(3)]
    with ThreadPoolExecutor(3) as threads:
        beside = list(threads.map(trained, [f"beside-{n}" for n in names], [10] * 3))
    for name, state in zip(names, beside, strict=True):
        assert opened(tmp_path / f"beside-{name}").steps == [8, 10]
        restored, _ = opened(tmp_path / f"beside-{name}").restore(walker(optax.adam(0.1)))
        assert bits(restored) == bits(state)


def test_a_machine_that_slept_for_a_month_during_a_save_has_saved(tmp_path, monkeypatch):
    """Orbax's limits go by the wall clock."""
    from orbax.checkpoint._src.futures import future, signaling_client

    now = itertools.count(time.time(), 30 * 24 * 3600)
    for module in (future, signaling_client):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: next(now)))
    walk(tmp_path, lambda n: n, steps=20)
    assert opened(tmp_path).steps == [10, 20]


def test_nothing_stays_changed_for_others_in_the_process(tmp_path):
    """Not when stores are left in another order than they were entered in, as by threads."""

    def of_others():
        return sys.unraisablehook, *(logging.getLogger(n).filters[:] for n in ("absl", "asyncio"))

    while checkpoint._failed:  # saves of other tests, after which all stays quiet
        checkpoint._failed.pop().close()
    before, stores = of_others(), [ExitStack(), ExitStack()]
    for name, store in zip("ab", stores, strict=True):
        store.enter_context(loopax.CheckpointStore(tmp_path / name, loopax.Checkpoints()))
        assert of_others() != before
    for store in stores:
        assert of_others() != before
        store.close()
    assert of_others() == before


def test_a_path_may_be_a_string(walked, monkeypatch):
    monkeypatch.setenv("HOME", str(walked.parent))
    for path in (str(walked / "checkpoints"), "~/run/checkpoints"):
        with loopax.CheckpointStore(path) as store:
            assert store.step_of("latest") == 60


# --- Leaves of every kind -------------------------------------------------------

LEAVES = {
    "arrays without an element": {"x": jnp.zeros((0, 3)), "y": jnp.ones(2)},
    "short floats": {"x": jnp.arange(3, dtype=jnp.bfloat16), "y": jnp.ones(3, jnp.float8_e5m2)},
    "no axes and None": {"x": jnp.float32(1.5), "y": None, "z": {}},
    "the names of fields": {"step": jnp.ones(3), "params": {"params": jnp.ones(1)}},
    "numbers as names": {0: jnp.ones(1), 10: jnp.zeros(2), 2: [jnp.ones(3)]},
    "names with all sorts of things": {"a/b": jnp.ones(1), "größe 日.": jnp.ones(2), "..": None},
    "a long name": {"x" * 300: jnp.ones(1)},
}


@pytest.mark.parametrize("params", LEAVES.values(), ids=LEAVES.keys())
def test_leaves_of_every_kind_come_back_bit_for_bit(tmp_path, bits, params):
    state = loopax.TrainState.create(params=params, tx=optax.adam(0.1))
    with loopax.CheckpointStore(tmp_path, loopax.Checkpoints()) as store:
        store.save(state, {"step": 0}, {})
    restored, _ = loopax.CheckpointStore(tmp_path).restore(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert bits(restored) == bits(state)


def test_names_that_would_be_stored_as_one_are_refused_before_training(tmp_path):
    """Orbax would write the one over the other."""
    params = {"a.b": jnp.ones(1), "a": {"b": jnp.zeros(1)}}
    with pytest.raises(ConfigError, match=r"both be stored as 'trainable.a\.b'; rename"):
        loopax.fit(
            loopax.TrainState.create(params=params, tx=optax.sgd(1.0)),
            lambda params, batch, rngs: params["a.b"].sum() + params["a"]["b"].sum(),
            [np.zeros(1)],
            steps=3,
            run_dir=tmp_path,
            **PLAIN,
        )
    assert opened(tmp_path).steps == []


# --- Others in the folder -------------------------------------------------------


def test_a_step_that_a_trainer_deletes_while_it_is_read_is_no_damage(copy, monkeypatch, capsys):
    damage = digests.damage

    def pruned(directory):
        if directory.name == "60":
            shutil.rmtree(directory)
        return damage(directory)

    monkeypatch.setattr(digests, "damage", pruned)
    assert opened(copy).step_of("latest") == 50
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("what", ["deleted", "damaged"])
def test_a_checkpoint_that_is_lost_while_the_run_goes_on_is_no_reason_to_end(
    tmp_path, monkeypatch, what
):
    said = []
    monkeypatch.setattr(display.Display, "say", lambda self, message: said.append(message))

    def disturb(run):
        step = tmp_path / "checkpoints" / "10"
        if run.step == 35:
            shutil.rmtree(step) if what == "deleted" else (step / "SHA256SUMS").write_text("")

    loopax.fit(
        walker(),
        slope,
        [np.zeros(1)],
        steps=60,
        run_dir=tmp_path,
        hooks=[loopax.Hook(disturb, every=35)],
        checkpoints=loopax.Checkpoints(every=10, seconds=None, keep=9),
        **PLAIN,
    )
    assert sum("kept as damaged-10" in line for line in said) == (what == "damaged")
    assert opened(tmp_path).steps == [20, 30, 40, 50, 60]


def test_what_others_leave_among_checkpoints_is_neither_in_the_way_nor_deleted(tmp_path):
    walk(tmp_path, lambda n: n, steps=20)
    folder = tmp_path / "checkpoints"
    (folder / ".DS_Store").write_bytes(b"mac")
    (folder / "30.tmp").write_bytes(b"sync")
    (folder / "007").mkdir()
    (folder / "damaged-notes.txt").write_text("mine")
    (folder / "30").mkdir()
    (folder / "30" / "mine").write_text("not a checkpoint")
    (folder / "40").symlink_to(folder / "10")
    before = {path.name for path in folder.iterdir()} - {"10", "20", "30", "40"}
    walk(tmp_path, lambda n: n, keep=9)
    assert opened(tmp_path).steps == [10, 20, 30, 40, 50, 60]
    assert before <= {path.name for path in folder.iterdir()}
    assert (folder / "damaged-30" / "mine").read_text() == "not a checkpoint"
    assert (folder / "damaged-40").is_symlink()
    assert opened(tmp_path).damaged == ["damaged-30", "damaged-40"]
