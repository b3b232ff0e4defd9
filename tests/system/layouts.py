"""Restores the checkpoint of each layout on each other one, and prints what came out.

    python -m tests.system.layouts DIR

A layout is so many processes of so many devices, and a mesh of them all. Each saves a run, whose
state is then restored on all of them; the table is that of docs/scaling.md.
"""

import argparse
import hashlib
import json
from pathlib import Path

import jax
import numpy as np

import loopax
from loopax import cluster
from loopax.placement import gather
from tests import compiled
from tests.system.many import loss_fn, problem
from tests.system.processes import Together

LAYOUTS = {
    "1 x 8, data=2,fsdp=4": (1, 8, "data=2,fsdp=4"),
    "1 x 4, fsdp=4": (1, 4, "fsdp=4"),
    "2 x 2, fsdp=4": (2, 2, "fsdp=4"),
    "4 x 1, fsdp=4": (4, 1, "fsdp=4"),
    "2 x 1, fsdp=2": (2, 1, "fsdp=2"),
    "1 x 1": (1, 1, "data=1"),
}
"""Processes, devices of each, and the mesh, by what they are called in the table."""
STEPS = 10


def member(port, count, index, home, layout, saved_by):
    """Opens the run that each of these layouts saved, or makes its own; prints the bits of each."""
    _, devices, mesh = LAYOUTS[layout]
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    cluster.join(f"127.0.0.1:{port}", count, index)
    state, data = problem()
    for each in saved_by:
        run = loopax.fit(
            state, loss_fn, data.batches(16), steps=STEPS, run_dir=home / each, mesh=mesh
        )
        print(json.dumps([each, bits(run.state)]))


def bits(state):
    """A digest of all that a state holds, wherever it lies."""
    leaves = gather(
        [
            jax.random.key_data(leaf)
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            else leaf
            for leaf in jax.tree.leaves(state)
        ]
    )
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def found(home, layout, saved_by):
    """The bits of each of these runs, as all processes of a layout have them."""
    together = Together(member, LAYOUTS[layout][0], home, home, layout, saved_by)
    codes = together.wait()
    assert set(codes) == {0}, [process.said for process in together.processes]
    told = [
        dict(json.loads(line) for line in process.printed.splitlines() if line.startswith('["'))
        for process in together.processes
    ]
    assert all(each == told[0] for each in told), (layout, told)
    return told[0]


def matrix(home):
    """Whether a layout (first) has restored what another one (second) has saved, bit for bit."""
    saved = {layout: found(home, layout, [layout])[layout] for layout in LAYOUTS}
    restored = {layout: found(home, layout, [*LAYOUTS]) for layout in LAYOUTS}
    return {(to, by): restored[to][by] == saved[by] for to in LAYOUTS for by in LAYOUTS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("home", type=Path)
    home = parser.parse_args().home
    home.mkdir(parents=True, exist_ok=True)
    compiled.share(home / "compiled")
    same = matrix(home)
    print(f"| saved by | {' | '.join(LAYOUTS)} |\n|---|{'---|' * len(LAYOUTS)}")
    for by in LAYOUTS:
        cells = ("same bits" if same[to, by] else "DIFFERS" for to in LAYOUTS)
        print(f"| {by} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
