"""What looking for bad numbers costs a step: the default, no check at all, and `skip`.

The article's VAE at batch 16 and 256; each program runs the same chunk in turn; medians.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import loop as benchmark
import loopax
from loopax.account import Account
from loopax.compute.program import TrainProgram

REPEATS = 14
KINDS = ("default", "unchecked", "skip")


def program(kind, batches):
    made = TrainProgram(benchmark.loss_fn, batches, Account(), skip=kind == "skip")
    if kind == "unchecked":
        # The condition of the loop then looks at nothing but the number of steps.
        made._skip = True
    return made


def main() -> None:
    table = Table("batch", *(f"{kind}, ms a step" for kind in KINDS), "default", "skip")
    data = loopax.data.mnist()
    benchmark.model = benchmark.VAE()
    state = loopax.TrainState.create(benchmark.model, data.train, optax.adamw(1e-4))
    for size, steps in ((16, 200), (256, 60)):
        batches = data.train.batches(size)
        programs = {kind: program(kind, batches) for kind in KINDS}
        items = batches.feed([0], 0, steps).take(steps)
        items = jax.device_put(items._replace(length=np.int32(steps)))
        samples = {kind: [] for kind in KINDS}
        for repeat in range(-1, REPEATS):
            for kind in KINDS[:: 1 if repeat % 2 else -1]:
                copy = jax.block_until_ready(jax.tree.map(jnp.copy, state))
                begun = time.perf_counter()
                jax.block_until_ready(programs[kind](copy, items))
                if repeat >= 0:
                    samples[kind].append((time.perf_counter() - begun) / steps)
        each = {kind: statistics.median(taken) for kind, taken in samples.items()}
        ratios = (f"{each[kind] / each['unchecked']:.3f}" for kind in ("default", "skip"))
        table.add_row(str(size), *(f"{1000 * each[kind]:.3f}" for kind in KINDS), *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
