"""Four loops train the article's VAE side by side: steps per second, medians of alternating runs.

Model, loss, optimiser and data are the same; only the loop differs. The loops written by hand use
JAX, Flax and Optax alone. README.md beside this file says what each row means.
"""

import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from json import dumps
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax.training.train_state import TrainState
from rich import box
from rich.console import Console
from rich.table import Table

import loopax

SEED = 0xFFFF
CHUNK = 100  # Steps in a dispatch of the scan, and between two lines that the article prints.
SCRATCH = tempfile.TemporaryDirectory(prefix="loopax-benchmark-")


class VAE(nn.Module):
    """The article's class-conditional VAE: the class joins at the latent, the output is a ReLU."""

    @nn.compact
    def __call__(self, image, label):
        hidden = image.reshape(len(image), 784)
        for width in (256, 128, 64):
            hidden = nn.relu(nn.Dense(width)(hidden))
        mean, logvar = jnp.split(nn.Dense(2 * 32)(hidden), 2, axis=-1)
        noise = jax.random.normal(self.make_rng("noise"), mean.shape)
        latent = mean + jnp.exp(0.5 * logvar) * noise
        hidden = nn.Dense(64)(latent) + nn.Dense(64)(jax.nn.one_hot(label, 10))
        for width in (128, 256, 784):
            hidden = nn.relu(nn.Dense(width)(hidden))
        return hidden, mean, logvar


def loss_fn(params, batch, rngs):
    image = batch["image"]
    reconstruction, mean, logvar = model.apply(params, image, batch["label"], rngs=rngs)
    mse = optax.l2_loss(reconstruction, image.reshape(len(image), 784)).sum(-1).mean()
    kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum(-1).mean()
    return mse + 0.5 * kl, {"mse": mse, "kl": kl}


# One of each for all runs: `jit` compiles again for another optimiser or another bound method.
model, optimizer = VAE(), optax.adamw(1e-4)
initialise = jax.jit(model.init)


def fresh_state() -> TrainState:
    params_key, noise_key = jax.random.split(jax.random.key(SEED))
    example = jnp.zeros((1, 784)), jnp.zeros(1, jnp.int32)
    params = initialise({"params": params_key, "noise": noise_key}, *example)
    return TrainState.create(apply_fn=model.apply, params=params, tx=optimizer)


def mnist() -> tuple[np.ndarray, np.ndarray]:
    columns = loopax.data.mnist().train.columns
    return columns["image"], columns["label"]


def epoch_rows(count: int, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """The indices of one epoch, a row for each step; the last partial batch is dropped."""
    full = count // batch_size
    return rng.permutation(count)[: full * batch_size].reshape(full, batch_size).astype(np.int32)


class Loop(NamedTuple):
    start: Callable[[], Any]  # A state at step 0, made outside the timed call.
    run: Callable[[Any, int], Any]  # The timed call: from a state, so many steps.


def scan_loop(batch_size: int) -> Loop:
    """(a) Everything compiled, the data on the device, nothing logged and nothing saved."""
    images, labels = jax.device_put(mnist())
    key = jax.random.key(SEED)

    @partial(jax.jit, donate_argnums=0)
    def run_chunk(state, images, labels, rows):
        def step(state, row):
            batch = {"image": images[row].astype(jnp.float32) / 255, "label": labels[row]}
            rngs = {"noise": jax.random.fold_in(key, state.step)}
            grads, _ = jax.grad(loss_fn, has_aux=True)(state.params, batch, rngs)
            return state.apply_gradients(grads=grads), None

        return jax.lax.scan(step, state, rows)[0]

    def run(state, steps):
        rng, epochs = np.random.default_rng(SEED), -(-steps // (len(labels) // batch_size))
        rows = np.concatenate([epoch_rows(len(labels), batch_size, rng) for _ in range(epochs)])
        for chunk in rows[:steps].reshape(-1, CHUNK, batch_size):
            state = run_chunk(state, images, labels, chunk)
        return jax.block_until_ready(state)

    return Loop(fresh_state, run)


def article_loop(batch_size: int) -> Loop:
    """(b) A DataLoader over image objects, a jitted step for each batch, a print each 100 steps."""
    import torch
    from PIL import Image

    images, labels = mnist()

    class Digits(torch.utils.data.Dataset):
        def __len__(self):
            return len(labels)

        def __getitem__(self, index):
            image = Image.fromarray(images[index, :, :, 0])
            # What torchvision's ToTensor does.
            tensor = torch.from_numpy(np.array(image)).view(28, 28, 1).permute(2, 0, 1).contiguous()
            return tensor.to(torch.float32).div(255), int(labels[index])

    @jax.jit
    def train_step(state, image, label, key):
        batch = {"image": image, "label": label}
        # Folding the key in the step is kinder to this loop than splitting it from Python.
        rngs = {"noise": jax.random.fold_in(key, state.step)}
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, rngs)
        return state.apply_gradients(grads=grads), loss, aux["mse"], aux["kl"]

    def run(state, steps):
        torch.manual_seed(SEED)
        loader = torch.utils.data.DataLoader(Digits(), batch_size, shuffle=True, drop_last=True)
        key, step, totals = jax.random.key(SEED), 0, [0.0, 0.0, 0.0]
        with open(os.devnull, "w") as screen:
            while True:
                for image, label in loader:
                    image = image.numpy().reshape(batch_size, 784)
                    state, *metrics = train_step(state, image, label.numpy(), key)
                    totals = [total + value for total, value in zip(totals, metrics, strict=True)]
                    step += 1
                    if step % CHUNK == 0:
                        print(step, *(f"{total / CHUNK:.4f}" for total in totals), file=screen)
                        totals = [0.0, 0.0, 0.0]
                    if step == steps:
                        return jax.block_until_ready(state)

    return Loop(fresh_state, run)


def loopax_loop(batch_size: int, *, host: bool = False) -> Loop:
    """(c, d) `loopax.fit` with its defaults: progress, metrics, checkpoints, a run directory."""
    train = loopax.data.mnist().train

    class HostBatches:
        def __iter__(self):
            for rows in epoch_rows(len(train), batch_size, np.random.default_rng(SEED)):
                yield {name: column[rows] for name, column in train.columns.items()}

    def host_loss_fn(params, batch, rngs):  # Ready-made batches reach the loss as they are.
        return loss_fn(params, {**batch, "image": batch["image"].astype(jnp.float32) / 255}, rngs)

    def run(state, steps):
        data, loss = train.batches(batch_size), loss_fn
        if host:
            data, loss = HostBatches(), host_loss_fn
        run_dir = tempfile.mkdtemp(dir=SCRATCH.name)
        return loopax.fit(state, loss, data, steps=steps, run_dir=run_dir)

    return Loop(lambda: loopax.TrainState.create(model, train, optimizer, seed=SEED), run)


LOOPS = {
    "a": ("bare scan", scan_loop),
    "b": ("article's loop", article_loop),
    "c": ("loopax.fit", loopax_loop),
    "d": ("loopax.fit, iterable", partial(loopax_loop, host=True)),
}


def fit_rate(run: Any, steps: int, wall: float) -> float:
    """Steps per second of a whole call, less the seconds that its run says it spent compiling."""
    compiling = run.account["compile_s"] if isinstance(run, loopax.Run) else 0.0
    return steps / (wall - compiling)


def timed(loop: Loop, steps: int) -> dict[str, float]:
    state = jax.block_until_ready(loop.start())
    start = time.perf_counter()
    run = loop.run(state, steps)
    wall = time.perf_counter() - start
    rate = fit_rate(run, steps, wall)
    return {"steps": steps, "wall_s": wall, "steps_per_s": rate, "whole_steps_per_s": steps / wall}


@dataclass(frozen=True)
class Options:
    loops: tuple[Literal["a", "b", "c", "d"], ...] = ("a", "b", "c", "d")  # See README.md.
    batch: tuple[int, ...] = (16, 256)  # Batch sizes.
    repeats: int = 5  # Timed calls of each loop, alternating.
    steps: int | None = None  # Steps in a call, a multiple of 100; by default what fits in seconds.
    seconds: float = 6.0  # About how long a call lasts when steps is not given.
    json: Path | None = None  # Write every sample here.
    chart: Path | None = None  # Draw a bar chart here.


def measure(options: Options, batch_size: int) -> dict[str, dict[str, Any]]:
    """Every loop once in each repeat, and each repeat begins with another loop."""
    loops: dict[str, Loop] = {}
    for name in options.loops:
        try:
            loops[name] = LOOPS[name][1](batch_size)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
            print(f"skipped ({name}) {LOOPS[name][0]}: {error.name} is not installed")
    if not loops:
        raise SystemExit("no loop is left to measure")
    planned = {}
    for name, loop in loops.items():
        timed(loop, 2 * CHUNK)  # Compiles.
        pace = timed(loop, 2 * CHUNK)["steps_per_s"]
        planned[name] = options.steps or max(2, round(pace * options.seconds / CHUNK)) * CHUNK
    # The compiled loops make the same number of steps, so that fixed costs weigh the same in each.
    compiled = max((planned[name] for name in loops if name != "b"), default=0)
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
    for repeat in range(options.repeats):
        first = repeat % len(loops)
        for name in (*list(loops)[first:], *list(loops)[:first]):
            steps = planned[name] if name == "b" else compiled
            samples[name].append(timed(loops[name], steps))
    rates = ("steps_per_s", "whole_steps_per_s")
    return {
        name: {f"median_{rate}": statistics.median(s[rate] for s in taken) for rate in rates}
        | {"samples": taken}
        for name, taken in samples.items()
    }


def regime(batch_size: int) -> str:
    """What a compiled step waits for; this network is taken to be too small to fill a GPU."""
    on_cpu = jax.default_backend() == "cpu"
    return "compute-bound" if on_cpu and batch_size >= 128 else "overhead-bound"


def table(batch_size: int, rows: dict[str, dict[str, Any]]) -> Table:
    title = f"batch {batch_size}, {regime(batch_size)}: steps/s less compilation"
    grid = Table("loop", title=title, box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for heading in ("median", "min–max", "÷ a", "÷ b", "whole", "steps"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        median, taken = row["median_steps_per_s"], row["samples"]
        rates = [sample["steps_per_s"] for sample in taken]
        against = (rows[other]["median_steps_per_s"] if other in rows else None for other in "ab")
        ratios = (f"{median / other:.2f}" if other else "" for other in against)
        spread = f"{min(rates):,.0f}–{max(rates):,.0f}"
        steps = f"{len(taken)} × {taken[0]['steps']:,}"
        whole = f"{row['median_whole_steps_per_s']:,.0f}"
        grid.add_row(f"{name} {LOOPS[name][0]}", f"{median:,.0f}", spread, *ratios, whole, steps)
    return grid


def draw(results: dict[int, dict[str, dict[str, Any]]], device: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    height = sum(0.8 + 0.4 * len(rows) for rows in results.values())
    figure = plt.figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(len(results), squeeze=False)[:, 0]
    for axis, (batch_size, rows) in zip(axes, results.items(), strict=True):
        medians = [row["median_steps_per_s"] for row in rows.values()]
        colours = ["#0f766e" if name in "cd" else "#cbd5e1" for name in rows]
        bars = axis.barh([LOOPS[name][0] for name in rows], medians, 0.68, color=colours)
        axis.bar_label(bars, [f"{median:,.0f}" for median in medians], padding=5)
        axis.set_title(f"batch {batch_size}, {regime(batch_size)}", loc="left", fontweight="bold")
        axis.set(xlim=(0, 1.1 * max(medians)), xticks=[])
        axis.invert_yaxis()
        axis.tick_params(left=False)
        axis.spines[:].set_visible(False)
    figure.supxlabel(f"steps per second, more is better; {device}", fontsize=9, color="0.4")
    figure.savefig(path, dpi=160)


def environment() -> dict[str, Any]:
    installed = {d.name.lower(): d.version for d in metadata.distributions() if d.name}
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "loopax")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in packages if name in installed},
    }


def main(options: Options) -> None:
    if options.steps is not None and (options.steps < CHUNK or options.steps % CHUNK):
        raise SystemExit(f"--steps is {options.steps}; it must be a multiple of {CHUNK}")
    facts, results = environment(), {}
    for batch_size in options.batch:
        results[batch_size] = measure(options, batch_size)
        Console().print(table(batch_size, results[batch_size]))
    if options.json:
        regimes = {batch_size: regime(batch_size) for batch_size in options.batch}
        text = dumps({**facts, "regimes": regimes, "results": results}, indent=1)
        options.json.write_text(text + "\n")
    if options.chart:
        on_cpu = jax.default_backend() == "cpu"
        device = f"{os.cpu_count()} CPU cores" if on_cpu else facts["device"]
        draw(results, device, options.chart)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
