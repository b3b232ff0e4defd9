"""Flax NNX: steps per second of `loopax.fit` beside the two loops that Flax documents.

    python -m benchmarks.nnx

Model, loss, optimiser and batches are the same. `nnx.jit` takes the module apart and puts it
together again in Python at each step; `nnx.cached_partial` remembers how
(https://flax.readthedocs.io/en/latest/guides/performance.html). These two get batches that lie on
the device already, and neither log nor save; `fit` gathers its own, and does both. Compilation is
not counted. Each number is the median of alternating calls.
"""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, islice, pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from benchmarks.loop import Loop, environment, timed
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table

import loopax

TX = optax.adamw(1e-3)
SCRATCH = tempfile.TemporaryDirectory(prefix="loopax-benchmark-")


class MLP(nnx.Module):
    """784 - 128 - 128 - 10, with batch normalisation and dropout."""

    def __init__(self, rngs: nnx.Rngs):
        widths = (784, 128, 128)
        pairs = list(pairwise(widths))
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for _, width in pairs])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.last = nnx.Linear(widths[-1], 10, rngs=rngs)

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.dropout(nnx.relu(norm(layer(x))))
        return self.last(x)


class Block(nnx.Module):
    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up, self.down = (
            nnx.Linear(width, 4 * width, rngs=rngs),
            nnx.Linear(4 * width, width, rngs=rngs),
        )
        self.dropout = nnx.Dropout(0.1, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.dropout(self.attention(self.norms[0](x), mask=mask))
        return x + self.dropout(self.down(nnx.gelu(self.up(self.norms[1](x)))))


class Transformer(nnx.Module):
    """A decoder of 12 blocks of width 64 over 256 tokens, 32 positions long."""

    def __init__(self, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(256, 64, rngs=rngs)
        self.positions = nnx.Embed(32, 64, rngs=rngs)
        self.blocks = nnx.List([Block(64, 4, rngs) for _ in range(12)])
        self.last = nnx.Linear(64, 256, rngs=rngs)

    def __call__(self, x):
        mask = nnx.make_causal_mask(x)
        x = self.tokens(x) + self.positions(jnp.arange(x.shape[1]))
        for block in self.blocks:
            x = block(x, mask)
        return self.last(x)


def loss_fn(model, batch, rngs=None):
    del rngs
    logits = model(batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def points(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 784)).astype(np.float32)
    return {"x": x, "label": rng.integers(0, 10, count).astype(np.int32)}


def sentences(count: int) -> dict[str, np.ndarray]:
    text = np.random.default_rng(0).integers(0, 256, (count, 33)).astype(np.int32)
    return {"x": text[:, :-1], "label": text[:, 1:]}


@dataclass(frozen=True)
class Task:
    name: str
    module: Callable[[nnx.Rngs], nnx.Module]
    columns: dict[str, np.ndarray]
    batch: int

    def start(self) -> tuple[nnx.Module, nnx.Optimizer]:
        model = self.module(nnx.Rngs(0))
        return model, nnx.Optimizer(model, TX, wrt=nnx.Param)

    def nnx_loop(self, *, cached: bool) -> Loop:
        @nnx.jit
        def step(model, optimizer, batch):
            loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
            optimizer.update(model, grads)
            return loss

        starts = range(0, len(self.columns["label"]), self.batch)
        batches = [
            jax.device_put({name: c[at : at + self.batch] for name, c in self.columns.items()})
            for at in starts
        ]

        def run(pair, steps):
            call = nnx.cached_partial(step, *pair) if cached else lambda batch: step(*pair, batch)
            for batch in islice(cycle(batches), steps):
                loss = call(batch)
            return jax.block_until_ready(loss)

        return Loop(lambda: jax.block_until_ready(self.start()), run)

    def loopax_loop(self) -> Loop:
        data = loopax.data.Dataset(self.columns, name=self.name).batches(self.batch)

        def run(state, steps):
            run_dir = tempfile.mkdtemp(dir=SCRATCH.name)
            return loopax.fit(state, loss_fn, data, steps=steps, run_dir=run_dir, progress=False)

        return Loop(lambda: loopax.TrainState.create(self.start()[0], tx=TX), run)


TASKS = {
    "mlp": Task("MLP, batch 32", MLP, points(32 * 64), 32),
    "transformer": Task("12-layer transformer, batch 4", Transformer, sentences(4 * 64), 4),
}


@dataclass(frozen=True)
class Options:
    tasks: tuple[str, ...] = tuple(TASKS)
    repeats: int = 5  # Timed calls of each loop, alternating.
    seconds: float = 20.0  # About how long a call of nnx.jit lasts.


def measure(task: Task, options: Options) -> dict[str, list[float]]:
    """Steps per second of each call of each loop."""
    loops = {
        "nnx.jit": task.nnx_loop(cached=False),
        "nnx.cached_partial": task.nnx_loop(cached=True),
        "loopax.fit": task.loopax_loop(),
    }
    for loop in loops.values():
        timed(loop, 20)  # Compiles.
    # All make the same number of steps, so that what `fit` costs at both ends weighs the same.
    steps = max(20, round(timed(loops["nnx.jit"], 20)["steps_per_s"] * options.seconds))
    samples: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(options.repeats):
        first = repeat % len(loops)
        for name in (*list(loops)[first:], *list(loops)[:first]):
            samples[name].append(timed(loops[name], steps)["steps_per_s"])
    return samples


def main(options: Options) -> None:
    facts = environment()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"{facts['device']}, {facts['cpu_count']} cores, load {facts['load_average']:.1f}")
    print(versions)
    for name in options.tasks:
        samples = measure(TASKS[name], options)
        grid = Table("loop", title=f"{TASKS[name].name}: steps/s less compilation", box=box.SIMPLE)
        for heading in ("median", "min–max", "÷ nnx.jit"):
            grid.add_column(heading, justify="right", no_wrap=True)
        base = statistics.median(samples["nnx.jit"])
        for loop, rates in samples.items():
            median = statistics.median(rates)
            spread = f"{min(rates):,.0f}–{max(rates):,.0f}"
            grid.add_row(loop, f"{median:,.0f}", spread, f"{median / base:.2f}")
        Console().print(grid)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
