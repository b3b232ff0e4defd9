"""How long saving holds the loop up: loopax in the background, beside plain synchronous Orbax.

Both train the same model with the same loop and save equally often; one leaves saving to
`loopax.Checkpoints`, the other calls Orbax's `StandardCheckpointer` in a hook and waits. What a
save costs is what the run's own account says under `checkpoint` or `hooks`.
"""

import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from rich.console import Console
from rich.table import Table

import loopax
from loopax.data import Dataset


@dataclass
class Arguments:
    """Options of the benchmark."""

    mb: tuple[float, ...] = (2.0, 500.0)
    """Sizes of the state, MB."""
    saves: int = 5
    """How often each run saves, the end included."""
    seconds: float = 5.0
    """Training between two saves, about."""
    repeats: int = 3
    """Runs of each kind; they take turns, and the figures are medians."""
    out: Path | None = None
    """A file for the samples, as JSON."""


def loss_fn(params, batch, rngs):
    hidden = batch["x"]
    for weight in params:
        hidden = jnp.tanh(hidden @ weight)
    return jnp.square(hidden).mean()


def problem(mb):
    """Twenty square matrices that together take `mb`, trained by plain gradient descent."""
    width = int((mb * 1e6 / 4 / 20) ** 0.5)
    keys = jax.random.split(jax.random.key(0), 20)
    params = [jax.random.normal(key, (width, width)) / width**0.5 for key in keys]
    data = Dataset({"x": np.ones((64, width), np.float32)}, name="ones")
    return loopax.TrainState.create(params=params, tx=optax.sgd(1e-3)), data.batches(8)


def in_background(state, data, steps, every, folder):
    checkpoints = loopax.Checkpoints(every=every, seconds=None, best=None)
    run = train(state, data, steps, folder, checkpoints=checkpoints)
    return run.account["checkpoint_s"], run.account["wall_s"]


def synchronous(state, data, steps, every, folder):
    with ocp.StandardCheckpointer() as checkpointer:

        def save(run):
            checkpointer.save(folder.absolute() / f"plain-{run.step}", run.state)
            checkpointer.wait_until_finished()

        run = train(state, data, steps, None, hooks=[loopax.Hook(save, every=every)])
    return run.account["hooks_s"], run.account["wall_s"]


def train(state, data, steps, run_dir, **options):
    return loopax.fit(
        state, loss_fn, data, steps=steps, run_dir=run_dir, progress=False, probe_every=None,
        **options,
    )  # fmt: skip


def main(arguments: Arguments) -> None:
    table = Table("state", "saving", "blocked, ms a save", "share of the wall time")
    samples = []
    for mb in arguments.mb:
        state, data = problem(mb)
        pace = loopax.diagnose.estimate(state, loss_fn, data).seconds_per_step
        every = max(1, round(arguments.seconds / pace))
        for repeat in range(arguments.repeats):
            kinds = [in_background, synchronous]
            for kind in kinds[:: 1 if repeat % 2 else -1]:
                with tempfile.TemporaryDirectory() as folder:
                    blocked, wall = kind(
                        state, data, arguments.saves * every, every, Path(folder) / "run"
                    )
                samples.append(
                    {"mb": mb, "kind": kind.__name__, "blocked_s": blocked, "wall_s": wall}
                )
        for kind in (in_background, synchronous):
            mine = [s for s in samples if (s["mb"], s["kind"]) == (mb, kind.__name__)]
            each = statistics.median(s["blocked_s"] / arguments.saves for s in mine)
            share = statistics.median(s["blocked_s"] / s["wall_s"] for s in mine)
            table.add_row(f"{mb:g} MB", kind.__name__, f"{1000 * each:.0f}", f"{share:.2%}")
    Console().print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(samples, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Arguments))
