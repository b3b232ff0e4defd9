"""What a start costs: time to the first step, alone and beside a scan written by hand.

    python -m benchmarks.startup --what transformer    # fit beside the scan, a fresh process each
    python -m benchmarks.startup --what fits           # ten fits of one shape in a process
    python -m benchmarks.startup --what commands       # train, sample and evaluate, a second time
    python -m benchmarks.startup --what imports        # import loopax, and loopax --help

Seconds are those of the clock, beside those of the processor, which other programs disturb less.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

USUAL = {
    name: value
    for name, value in os.environ.items()
    if name not in ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
}
"""The environment, with Python's bytecode kept as it usually is, and no cache but loopax' own."""
LAYERS, WIDTH, HEADS, LENGTH, BATCH, WORDS = 6, 64, 4, 64, 16, 256


class Spent(NamedTuple):
    """Seconds, by the clock and of the processor, this process' children included."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Spent:
        """Since some moment in the past."""
        return cls(time.perf_counter(), sum(os.times()[:4]))

    def since(self, start: Spent) -> Spent:
        return Spent(self.wall - start.wall, self.cpu - start.cpu)

    def __str__(self) -> str:
        return f"{self.wall:6.2f} s (processor {self.cpu:5.2f})"


def medians(spent: Iterable[Sequence[float]]) -> Spent:
    return Spent(*map(statistics.median, zip(*spent, strict=True)))


def beside(one: Spent, other: Spent) -> str:
    """Two times, and how many times the first one the other is."""
    ratio = other.wall / one.wall, other.cpu / one.cpu
    return f"{one}, then {other}: {ratio[0]:.2f} of it (processor {ratio[1]:.2f})"


def transformer() -> tuple[Any, Callable[..., Any], Any]:
    """A small language model, its loss and its data."""
    import flax.linen as nn
    import jax.numpy as jnp
    import numpy as np
    import optax

    import loopax

    class Block(nn.Module):
        @nn.compact
        def __call__(self, hidden):
            mask = nn.make_causal_mask(jnp.ones(hidden.shape[:2]))
            attention = nn.MultiHeadDotProductAttention(HEADS)
            hidden += attention(nn.LayerNorm()(hidden), mask=mask)
            wide = nn.gelu(nn.Dense(4 * WIDTH)(nn.LayerNorm()(hidden)))
            return hidden + nn.Dense(WIDTH)(wide)

    class Transformer(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            hidden = nn.Embed(WORDS, WIDTH)(tokens)
            hidden += self.param("places", nn.initializers.normal(0.02), (LENGTH, WIDTH))[None]
            for _ in range(LAYERS):
                hidden = Block()(hidden)
            return nn.Dense(WORDS)(nn.LayerNorm()(hidden))

    model = Transformer()

    def loss_fn(params, batch, rngs):
        del rngs
        tokens = batch["tokens"]
        logits = model.apply(params, tokens)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return losses.mean()

    tokens = np.random.default_rng(0).integers(0, WORDS, (1024, LENGTH), np.int32)
    return model, loss_fn, loopax.data.Dataset({"tokens": tokens}, name="noise")


def by_scan() -> Spent:
    """Seconds until a scan of 100 steps, written by hand, gives its first losses."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax.training.train_state import TrainState

    model, loss_fn, data = transformer()
    start = Spent.now()
    tokens = jax.device_put(data.columns["tokens"])
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, LENGTH), jnp.int32))
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adamw(1e-3))

    @jax.jit
    def run(state, tokens, rows):
        def step(state, row):
            batch = {"tokens": tokens[row]}
            loss, grads = jax.value_and_grad(loss_fn)(state.params, batch, None)
            return state.apply_gradients(grads=grads), loss

        return jax.lax.scan(step, state, rows)

    rows = np.random.default_rng(0).permutation(1024).reshape(-1, BATCH).astype(np.int32)
    _, losses = run(state, tokens, rows[:1])
    losses.block_until_ready()
    return Spent.now().since(start)


def by_fit() -> Spent:
    """Seconds until the first step of `loopax.fit` is read, with its defaults."""
    import optax

    import loopax

    model, loss_fn, data = transformer()
    start = Spent.now()
    state = loopax.TrainState.create(model, data, optax.adamw(1e-3))
    with (
        tempfile.TemporaryDirectory() as run_dir,
        loopax.training(state, loss_fn, data.batches(BATCH), steps=500, run_dir=run_dir) as run,
    ):
        for chunk in run:
            float(chunk.metrics["loss"][0])
            return Spent.now().since(start)
    raise AssertionError("no step was made")


def fits(count: int = 10) -> list[tuple[float, int]]:
    """Seconds and compilations of each of so many fits of one shape, with all made anew."""
    import optax
    from jax import monitoring

    import loopax

    compiled = 0

    def listen(event: str, duration: float, **details: Any) -> None:
        nonlocal compiled
        compiled += event == "/jax/core/compile/backend_compile_duration"

    monitoring.register_event_duration_secs_listener(listen)
    found = []
    for seed in range(count):
        start, before = time.perf_counter(), compiled
        model, loss_fn, data = transformer()
        state = loopax.TrainState.create(model, data, optax.adamw(1e-3), seed=seed)
        loopax.fit(state, loss_fn, data.batches(BATCH), steps=3, progress=False)
        found.append((time.perf_counter() - start, compiled - before))
    return found


def elsewhere(name: str) -> Any:
    """What a function here gives in a fresh process that shares no compiled program."""
    code = f"import json; from benchmarks import startup; print(json.dumps(startup.{name}()))"
    done = subprocess.run([sys.executable, "-c", code], env=USUAL, check=True, capture_output=True)
    return json.loads(done.stdout.splitlines()[-1])


def seconds_of(words: list[str], environment: dict[str, str], until: Path | None = None) -> Spent:
    """Of a command, by the clock at most until it has written to a file, when it is stopped."""
    start = Spent.now()
    process = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if until is not None and until.exists() and until.stat().st_size:
            break
        time.sleep(0.005)
    wall = time.perf_counter() - start.wall
    process.terminate()
    process.wait()
    return Spent(wall, Spent.now().since(start).cpu)


def commands(repeats: int) -> None:
    """The first and the second start of `loopax train vae`, `sample` and `evaluate`."""
    found: dict[str, list[tuple[Spent, Spent]]] = {}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as place:
            environment = USUAL | {"LOOPAX_CACHE": f"{place}/cache"}

            def train(name: str, place: str, environment: dict[str, str]) -> Spent:
                # Samples of the default preset wait for a mixture, which a finished run has.
                words = ["-m", "loopax", "train", "vae", "--preset", "wide"]
                words += ["--run-dir", f"{place}/{name}", "--log-every", "1"]
                return seconds_of(words, environment, Path(place, name, "metrics.jsonl"))

            pair = train("first", place, environment), train("second", place, environment)
            found.setdefault("train vae, to its first step", []).append(pair)
            quick = ["--importance-samples", "0"]  # without what takes minutes
            for words in (["sample", f"{place}/first"], ["evaluate", f"{place}/first", *quick]):
                first, second = (
                    seconds_of(["-m", "loopax", *words], environment) for _ in range(2)
                )
                found.setdefault(words[0], []).append((first, second))
    for name, pairs in found.items():
        print(f"{name:30} {beside(*map(medians, zip(*pairs, strict=True)))}")


def imports(repeats: int) -> None:
    """What a shell and a program pay before anything is done."""
    code = "import time; t = time.perf_counter(); import loopax; print(time.perf_counter() - t)"
    words = [sys.executable, "-c", code]
    spent = [
        float(subprocess.run(words, env=USUAL, capture_output=True, check=True).stdout)
        for _ in range(repeats)
    ]
    bare, helped = (
        min((seconds_of(words, USUAL) for _ in range(repeats)), key=lambda spent: spent.cpu)
        for words in (["-c", "pass"], ["-m", "loopax", "--help"])
    )
    print(f"python -c pass    {bare}")
    print(f"import loopax     {min(spent):6.3f} s")
    print(f"loopax --help     {helped}, Python's own start included")


def main(what: Literal["transformer", "fits", "commands", "imports"], repeats: int = 3) -> None:
    if what == "commands":
        return commands(repeats)
    if what == "imports":
        return imports(repeats)
    if what == "fits":
        for number, (spent, compiled) in enumerate(elsewhere("fits"), 1):
            print(f"fit {number:2}: {spent:6.2f} s, {compiled} compilations")
        return None
    pairs = [(elsewhere("by_scan"), elsewhere("by_fit")) for _ in range(repeats)]
    print(f"scan, fit: {beside(*map(medians, zip(*pairs, strict=True)))}")
    return None


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
