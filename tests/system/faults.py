"""Kills training runs at random and at chosen moments, and looks for anything they lost.

    python -m tests.system.faults --kills 200 [--seed N] [--runs N] [--directory DIR]

Two kinds of runs, two at a time: `loopax train vae`, and a program that calls `fit` with batch
statistics, a moving average, hooks and a checkpoint every few steps. Each is started, killed with
SIGKILL and started again until it has had its share of kills and comes to its end. A life first
reaches as many new checkpoints as were drawn for it, so that runs progress on any machine, and is
then killed at what was drawn for it: some time, a save, the rename of a save, a deletion, a file
that is being replaced, a picture, the start, or the work after the last step.

After each kill every listed step must be as its digests say, and none may be lost that was listed
before. The next life must begin at the newest of them. At the end nothing half-made may lie about,
and the run must equal one that was left alone: every leaf of the last and of the best state, every
byte of `metrics.jsonl` and `results.json`, every pixel of every picture.

It ends with status 1 when anything was wrong. What was drawn depends on the seed; what a kill hits
also on the machine. The imports are shared between the processes, see `processes`.
"""

import argparse
import collections
import contextlib
import hashlib
import itertools
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests import compiled
from tests.recipes.conftest import judged_in_haste
from tests.system.processes import (
    PATIENCE,
    Process,
    command_line,
    left_over,
    make_images,
    steps_in,
)

LANES = 2
OFTEN_SECONDS, SELDOM_SECONDS = 0.0005, 0.01
"""Between two looks: for a moment to kill at, and for all else."""


# --- What is trained ----------------------------------------------------------


def vae(images, run_dir, epochs):
    """The command line, with a judge that is there and need not be good."""
    with judged_in_haste():
        return command_line(
            f"train vae --data {images} --run-dir {run_dir} --epochs {epochs} --batch-size 4 "
            "--widths 32 --latent 4 --seed 7 --log-every 40".split()
        )


def fit(images, run_dir, epochs):
    """A user's own program, with all that a state can hold and a save every 25 steps."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    import loopax

    class Model(nn.Module):
        @nn.compact
        def __call__(self, image, train=True):
            hidden = nn.relu(nn.Conv(8, (3, 3))(image))
            hidden = nn.BatchNorm(use_running_average=not train)(hidden)
            hidden = nn.relu(nn.Dense(256)(hidden.reshape(len(hidden), -1)))
            hidden = nn.Dropout(0.2, deterministic=not train)(hidden)
            return nn.Dense(4)(hidden)

    model, data = Model(), loopax.data.load(images)

    def loss_fn(params, batch, rngs, model_state):
        variables = {**params, **model_state}
        logits, model_state = model.apply(
            variables, batch["image"], rngs=rngs, mutable=list(model_state)
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {}, model_state

    def largest(run):
        return {"largest": max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(run.state.params))}

    schedule = optax.cosine_decay_schedule(1e-3, 5000)
    loopax.fit(
        loopax.TrainState.create(model, data.train, optax.adamw(schedule), seed=3, ema_decay=0.99),
        loss_fn,
        data.train.batches(4),
        epochs=epochs,
        run_dir=run_dir,
        evaluation=loopax.Evaluation(data.test.batches(10), every=70),
        hooks=[loopax.Hook(largest, every=35)],
        checkpoints=loopax.Checkpoints(every=25, seconds=None, keep=3),
        log_every=20,
    )


PROGRAMS = {"vae": (vae, 300), "fit": (fit, 40)}
"""What is run, and for how many epochs of 90 steps in a full sweep."""


# --- When it is killed --------------------------------------------------------


def found(run_dir, *patterns):
    """What lies there now; nothing if it moves while one looks."""
    with contextlib.suppress(OSError):
        return {path for pattern in patterns for path in run_dir.glob(pattern)}
    return set()


def there_is(pattern):
    return lambda run_dir, seen: found(run_dir, pattern)


def there_is_more(pattern):
    return lambda run_dir, seen: found(run_dir, pattern) - seen


SAVED, DRAWN = "checkpoints/[0-9]*", "pictures/*"
STARTING, REPLACING, ENDING = "while starting", "while replacing a file", "after the last step"
IN_VAIN = "when what was drawn did not come"
MOMENTS = {
    "at some time": (lambda run_dir, seen: True, 0.8),
    "while saving": (there_is("checkpoints/.saving/*"), 0.04),
    "while sealing a save": (there_is("checkpoints/.saving/*/SHA256SUMS"), 0.002),
    "once a save was renamed": (there_is_more(SAVED), 0.002),
    "while deleting": (there_is("checkpoints/.deleting/*"), 0.001),
    "while drawing a picture": (there_is_more(DRAWN), 0.002),
    REPLACING: (there_is(".partial-*"), 0.001),
}
"""What to wait for, given the files that were there before, and within how many seconds to kill."""


class Campaign:
    """One run, killed so often or once more, and compared with `whole`, the outcome without."""

    def __init__(self, start, run_dir, whole, kills, draw):
        self.kills, self.problems, self.hits = 0, [], collections.Counter()
        self.name, self.wanted, self.over = run_dir.name, kills, False
        self._start, self._run_dir, self._whole = start, run_dir, whole
        self._draw, self._listed = draw, []

    def lives(self):
        """Goes on to the end of the run, and yields whenever another may have its turn."""
        code = -signal.SIGKILL
        while code == -signal.SIGKILL:
            self._listed = steps_in(self._run_dir)
            with self._start(self._run_dir) as process:
                if self.kills < self.wanted:
                    yield from self._death(process)
                elif self.kills == self.wanted:
                    yield from self._death_at_the_end(process)
                yield from waiting(process, PATIENCE, lambda: False)
            code = process.code
            self.kills += code == -signal.SIGKILL
            self._look_at_what_is_left(process)
        self.over = True
        if code:
            return
        self.problems += [
            f"{name}: left over after a clean end" for name in left_over(self._run_dir)
        ]
        mine = outcome(self._run_dir)
        self.problems += [
            f"{name}: differs from the run that was left alone"
            for name in sorted(mine.keys() | self._whole.keys())
            if mine.get(name) != self._whole.get(name)
        ]

    def _death(self, process):
        """Kills at a moment that is drawn, unless the process ends before."""
        draw, run_dir = self._draw, self._run_dir
        name, progress = draw.choice([STARTING, *MOMENTS]), draw.randrange(4)
        if name == STARTING:
            yield from waiting(process, draw.uniform(0, 1.5), lambda: False)
        else:
            if name == REPLACING:
                progress = 0  # since that happens when a run opens its files
            been = set(self._listed)
            yield from waiting(
                process,
                PATIENCE,
                lambda: len(set(steps_in(run_dir)) - been) >= progress or is_trained(run_dir),
            )
            (is_there, seconds), seen = MOMENTS[name], found(run_dir, SAVED, DRAWN)
            there = waiting(process, 1.0, lambda: is_there(run_dir, seen), OFTEN_SECONDS)
            if not (yield from there):
                name = IN_VAIN
            yield from waiting(process, draw.uniform(0, seconds), lambda: False)
        self._kill(process, name)

    def _death_at_the_end(self, process):
        """Kills when all is trained, and perhaps drawn and measured."""
        yield from waiting(process, PATIENCE, lambda: is_trained(self._run_dir))
        yield from waiting(process, self._draw.uniform(0, 0.8), lambda: False)
        self._kill(process, ENDING)

    def _kill(self, process, moment):
        if process.code is None:
            process.send(signal.SIGKILL)
            self.hits[moment] += 1

    def _look_at_what_is_left(self, process):
        from loopax import digests

        run_dir, steps = self._run_dir, steps_in(self._run_dir)
        for step in steps:
            self.problems += [
                f"checkpoints/{step}, which is listed: {wrong}"
                for wrong in digests.damage(run_dir / "checkpoints" / str(step))
            ]
        if self._listed and not (steps and steps[-1] >= self._listed[-1]):
            self.problems.append(f"step {self._listed[-1]} was listed, and now there are {steps}")
        self.problems += [f"{path}: set aside" for path in run_dir.glob("checkpoints/damaged-*")]
        if process.code not in (0, -signal.SIGKILL):
            self.problems.append(f"ended with status {process.code}: {process.said[-2000:]}")
        newest = self._listed[-1] if self._listed else 0
        if f"continuing at step {newest:,} " not in process.said and "continuing" in process.said:
            self.problems.append(f"did not go on at step {newest}: {process.said[:200]}")


def waiting(process, seconds, condition, pause=SELDOM_SECONDS):
    """Yields how long to sleep, until the condition holds or the process ended; whether it held."""
    end = time.monotonic() + seconds
    while process.code is None and (left := end - time.monotonic()) > 0:
        if condition():
            return True
        yield min(pause, left)
    assert process.code is not None or seconds < PATIENCE, f"it goes on and on:\n{process.said}"
    return False


def is_trained(run_dir):
    return (run_dir / "account.json").exists()


# --- What it came to ----------------------------------------------------------


def outcome(run_dir):
    """A digest of everything that two equal runs have in common, by name."""
    import jax
    import numpy as np
    from PIL import Image

    import loopax

    found = {
        name: (run_dir / name).read_bytes()
        for name in ("metrics.jsonl", "results.json")
        if (run_dir / name).exists()
    }
    for picture in sorted(run_dir.glob("pictures/*.png")):
        found[f"pictures/{picture.name}"] = Image.open(picture).tobytes()
    with loopax.CheckpointStore(run_dir / "checkpoints") as store:
        for which in ("latest", "best"):
            try:
                store.step_of(which)
            except loopax.errors.LoopaxError:
                continue  # where nothing was ranked
            tree, meta = store.read(which)
            found[f"{which} step"] = str(meta["step"]).encode()
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    leaf = jax.random.key_data(leaf)
                array = np.asarray(leaf)
                name = f"{which} {jax.tree_util.keystr(path)} {array.dtype}{array.shape}"
                found[name] = array.tobytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def sweep(directory, kills, runs, length, seed, tell=print):
    """Kills `runs` runs, or more where they end too soon, `kills` times in all.

    Returns:
        the campaigns, and how many values of each run were compared.
    """
    images = make_images(directory / "images.npz")
    numbers = itertools.count()

    def starter(name):
        program, epochs = PROGRAMS[name]
        return lambda run_dir: Process(
            program,
            images,
            run_dir,
            max(1, round(length * epochs)),
            log=directory / f"{run_dir.name}-{next(numbers)}",
        )

    whole = {}
    for name in list(PROGRAMS)[:runs]:
        alone = directory / f"{name}-alone"
        with starter(name)(alone) as process:
            assert process.wait() == 0, process.said
        whole[name] = outcome(alone)
        tell(f"{name}: left alone once, {len(whole[name])} values to compare")
    campaigns, lanes, told = [], [], 0
    programs = itertools.cycle(whole)
    while True:
        missing = kills - sum(c.kills if c.over else c.wanted for c in campaigns)
        while missing > 0 and len(lanes) < LANES:
            name, number = next(programs), len(campaigns)
            share = min(missing, -(-kills // runs))
            run_dir, draw = directory / f"{name}-{number}", random.Random(f"{seed} {number}")
            campaigns.append(Campaign(starter(name), run_dir, whole[name], share, draw))
            lanes.append(campaigns[-1].lives())
            missing -= share
        if not lanes:
            return campaigns, sum(map(len, whole.values()))
        pauses = {lane: next(lane, None) for lane in lanes}
        lanes = [lane for lane in lanes if pauses[lane] is not None]
        time.sleep(min((pauses[lane] for lane in lanes), default=0))
        done = sum(campaign.kills for campaign in campaigns)
        if done // 10 > told:
            told = done // 10
            wrong = sum(len(campaign.problems) for campaign in campaigns)
            ended = sum(campaign.over for campaign in campaigns)
            tell(f"{done} of {kills} kills, {ended} runs at their end, {wrong} differences")


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.system.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--runs", type=int, default=4, help="to divide the kills among")
    parser.add_argument("--length", type=float, default=1.0, help="of a run; 0.2 is a short one")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--directory", type=Path, help="where the runs stay; else they go")
    words = parser.parse_args()
    print(f"seed {words.seed}")
    with tempfile.TemporaryDirectory(prefix="loopax-faults-") as temporary:
        directory = words.directory or Path(temporary)
        directory.mkdir(parents=True, exist_ok=True)
        compiled.share(directory / "compiled")
        campaigns, values = sweep(directory, words.kills, words.runs, words.length, words.seed)
    hits = sum((campaign.hits for campaign in campaigns), collections.Counter())
    for name in [STARTING, *MOMENTS, ENDING, IN_VAIN]:
        print(f"{hits[name]:6}  killed {name}")
    print(f"{hits.total():6}  in all, in {len(campaigns)} runs")
    problems = [f"{c.name}: {problem}" for c in campaigns for problem in c.problems]
    print("\n".join(problems))
    print(f"{len(problems)} differences ({values} values a pair of runs)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
