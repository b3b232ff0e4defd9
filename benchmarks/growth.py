"""How cost grows: what a step of `loopax.fit` takes as one thing grows and the others stay.

    python -m benchmarks.growth --json-file growth.json --chart growth.png    # about ten minutes
    python -m benchmarks.growth --only batch hooks --seconds 2           # a quick look

The network is two dense layers and its data are noise: small, so that what the loop itself costs is
seen. A curve without a cliff is what is looked for.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import tyro

import loopax

INPUTS = 16
FOLDER = Path("run")
"""Of a run with a directory, below a temporary folder."""


@dataclass(frozen=True)
class Size:
    """How large each thing is; a sweep changes one of them."""

    batch: int = 16
    width: int = 64
    metrics: int = 1
    hooks: int = 0
    examples: int = 10_000

    def arguments(self) -> tuple[Any, ...]:
        """State, loss and batches."""
        rng = np.random.default_rng(0)
        sizes = {"in": (INPUTS, self.width), "out": (self.width, INPUTS)}
        params = {
            name: rng.standard_normal(shape, np.float32) / shape[0] ** 0.5
            for name, shape in sizes.items()
        }

        def loss_fn(params: Any, batch: Any, rngs: Any) -> Any:
            hidden = jnp.tanh(batch["x"] @ params["in"])
            loss = jnp.square(hidden @ params["out"] - batch["x"]).mean()
            return loss, {f"metric {index}": loss * index for index in range(self.metrics)}

        data = loopax.data.Dataset({"x": rng.random((self.examples, INPUTS), np.float32)})
        state = loopax.TrainState.create(params=params, tx=optax.adam(1e-3))
        return state, loss_fn, data.batches(self.batch)


def step_us(size: Size, seconds: float) -> dict[str, float]:
    """Microseconds a step, when the chunks have their length."""
    ticks: list[tuple[float, int]] = []
    hooks = [loopax.Hook(lambda run: None, 100)] * size.hooks
    options: dict[str, Any] = {"steps": 10**9, "hooks": hooks, "progress": False}
    with loopax.training(*size.arguments(), **options) as run:
        for chunk in run:
            ticks.append((time.perf_counter(), chunk.start))
            if ticks[-1][0] - ticks[0][0] > seconds and len(ticks) > 3:
                break
    late = [tick for tick in ticks if tick[0] > ticks[0][0] + seconds / 3]
    first, last = (late if len(late) > 1 else ticks)[0], ticks[-1]
    return {"step, µs": 1e6 * (last[0] - first[0]) / (last[1] - first[1])}


def saved(megabytes: int) -> dict[str, float]:
    """Seconds for which the one save of a short run, at its end, is waited for."""
    params = {"w": np.zeros((megabytes << 20) // 4, np.float32)}

    def loss_fn(params: Any, batch: Any, rngs: Any) -> Any:
        return jnp.square(params["w"][:INPUTS] - batch["x"]).mean()

    state = loopax.TrainState.create(params=params, tx=optax.sgd(1e-3))
    data = Size().arguments()[2]
    with tempfile.TemporaryDirectory() as place:
        options = {"steps": 2, "probe_every": None, "progress": False}
        run = loopax.fit(state, loss_fn, data, run_dir=Path(place) / FOLDER, **options)
    return {"save, s": run.account["checkpoint_s"]}


def rows(steps: int) -> dict[str, float]:
    """Of a run that logs every step: all of it by the step, and coming back when it is finished."""
    with tempfile.TemporaryDirectory() as place:
        options = {"run_dir": Path(place) / FOLDER, "steps": steps, "log_every": 1}

        def fit() -> float:
            begun = time.perf_counter()
            loopax.fit(*Size().arguments(), progress=False, **options)
            return time.perf_counter() - begun

        return {"step, µs": 1e6 * fit() / steps, "coming back, s": fit()}


def runs(count: int) -> dict[str, float]:
    """Of the last of so many runs in this process: its seconds, and the process' memory."""
    for _ in range(count):
        begun = time.perf_counter()
        loopax.fit(*Size().arguments(), steps=1000, progress=False)
        spent = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"the last run, s": spent, "peak memory, GB": peak / 1024}


Measure = Callable[[int, float], dict[str, float]]


def of(name: str) -> Measure:
    """The measure of a sweep over a field of `Size`."""
    return lambda value, seconds: step_us(Size(**{name: value}), seconds)


SWEEPS: Mapping[str, tuple[str, tuple[int, ...], Measure]] = {
    "runs": ("runs in a process", (1, 4, 16, 64), lambda value, _: runs(value)),
    "batch": ("examples in a batch", (1, 4, 16, 64, 256, 1024, 4096), of("batch")),
    "width": ("width of the network", (16, 64, 256, 1024, 4096), of("width")),
    "metrics": ("metrics", (1, 4, 16, 64, 256), of("metrics")),
    "hooks": ("hooks, each every 100 steps", (0, 1, 4, 16, 64), of("hooks")),
    "examples": ("examples of the data", tuple(10**n for n in range(3, 8)), of("examples")),
    "saved": ("parameters, MB", (1, 10, 100, 1000), lambda value, _: saved(value)),
    "rows": ("logged steps of a run", tuple(10**n for n in range(3, 7)), lambda n, _: rows(n)),
}


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A panel for each sweep, both axes by powers of ten."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        -(-len(found) // 2), 2, figsize=(8, 2.2 * -(-len(found) // 2)), layout="constrained"
    )
    for axis, (name, points) in zip(axes.flat, found.items(), strict=False):
        for figure_name in next(iter(points.values())):
            values = [point[figure_name] for point in points.values()]
            axis.plot([max(0.5, int(at)) for at in points], values, "o-", label=figure_name)
        every = [value for point in points.values() for value in point.values()]
        axis.set(xscale="log", yscale="log", xlabel=SWEEPS[name][0])
        axis.set_ylim(min(every) / 3, 3 * max(every))
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=160)


def main(
    only: tuple[str, ...] = tuple(SWEEPS),
    seconds: float = 6.0,
    limit: int = 10**7,
    json_file: Path | None = None,
    chart: Path | None = None,
) -> None:
    """Measures, prints and draws.

    Args:
        only: the sweeps.
        seconds: how long each point trains, of those that give a step's time.
        limit: leave out larger values of what grows.
        json_file: every figure.
        chart: the curves, as a picture.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in only:
        title, values, measure = SWEEPS[name]
        found[name] = {}
        for value in values:
            if value <= limit:
                found[name][str(value)] = measure(value, seconds)
                said = ", ".join(f"{n} {v:,.3g}" for n, v in found[name][str(value)].items())
                print(f"{title}: {value:,}: {said}", flush=True)
    if json_file:
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    if chart:
        draw(found, chart)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
