"""Trains four kinds of models on several meshes of eight virtual devices, and prints a table.

    python -m tests.system.kinds DIR [--steps 200] [--verify]

A VAE, a small BERT with dropout and batches by length, a module of NNX and one of Equinox: each on
one device and on each mesh. The loss of each step is compared with that on one device; then the
same run is made in chunks of 1, 7 and 100 steps, whose bits must be the same. The table is that of
docs/scaling.md. With `--verify` each is handed to `loopax verify` instead.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import equinox as eqx
import jax
import numpy as np
import optax
from flax import nnx

import loopax
from loopax import recipe
from loopax.data import Dataset
from loopax.verify import verify
from tests import compiled
from tests.recipes.test_bert import TINY, write_reviews
from tests.system.layouts import bits
from tests.system.processes import make_images

MESHES = ("data=1", "data=8", "fsdp=8", "data=2,fsdp=4")
CHUNKS = (1, 7, 100)
BATCH = 40


def of_recipe(name, **settings):
    """What a recipe trains: state, loss and batches."""
    found = recipe.find(name)
    problem = found.problem(replace(found.preset(), batch_size=BATCH, **settings))
    return problem.state(), problem.loss_fn, problem.batches


def vae(home):
    return of_recipe("vae", data=str(make_images(home / "images.npz")), widths=(256,), latent=8)


def bert(home):
    reviews = write_reviews(home / "reviews.csv", count=400)
    return of_recipe("bert", data=str(reviews), model=str(TINY), dropout=0.1)


def points():
    """Data for a classifier."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(480, 32)).astype(np.float32)
    return Dataset({"x": x, "label": (x[:, :3].argmax(-1)).astype(np.int32)})


class Network(nnx.Module):
    """With statistics of batches, and dropout."""

    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(32, 256, rngs=rngs), nnx.Linear(256, 3, rngs=rngs)
        self.norm, self.dropout = nnx.BatchNorm(256, rngs=rngs), nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def classified(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def of_nnx(home):
    del home
    data = points()

    def loss_fn(model, batch, rngs):
        del rngs
        return classified(model(batch["x"]), batch["label"])

    model = Network(nnx.Rngs(0))
    return loopax.TrainState.create(model, data, optax.adam(1e-3)), loss_fn, data.batches(BATCH)


def of_equinox(home):
    del home
    data = points()

    def loss_fn(model, batch, rngs):
        del rngs
        return classified(jax.vmap(model)(batch["x"]), batch["label"])

    model = eqx.nn.MLP(32, 3, 256, 2, key=jax.random.key(0))
    return loopax.TrainState.create(model, data, optax.adam(1e-3)), loss_fn, data.batches(BATCH)


KINDS = {"VAE": vae, "BERT": bert, "NNX": of_nnx, "Equinox": of_equinox}


def trained(made, mesh, steps, run_dir=None, **options):
    state, loss_fn, batches = made
    return loopax.fit(
        state,
        loss_fn,
        batches,
        steps=steps,
        mesh=mesh,
        run_dir=run_dir,
        log_every=1,
        probe_every=None,
        progress=False,
        **options,
    )


def losses(run):
    return np.array([row["loss"] for row in run.history.rows if row["source"] == "train"])


def held(run):
    """Bytes of the state, and of what the first device has of it."""
    leaves = [leaf for leaf in jax.tree.leaves(run.state) if hasattr(leaf, "nbytes")]
    shards = [leaf.addressable_shards[0].data for leaf in leaves]
    return sum(leaf.nbytes for leaf in leaves), sum(shard.nbytes for shard in shards)


def told(kind, home, steps):
    """Prints the rows of the table."""
    made = KINDS[kind](home)
    alone = None
    for mesh in MESHES:
        run = trained(made, mesh, steps)
        here = losses(run)
        alone = here if alone is None else alone
        same = all(
            bits(run.state) == bits(again.state) and (losses(again) == here).all()
            for again in (trained(made, mesh, steps, chunk_steps=n) for n in CHUNKS)
        )
        total, own = held(run)
        worst = float(np.max(np.abs(here - alone) / np.abs(alone)))
        compiled_as = len(run.account["compilations"]["train"])
        print(
            f"| {kind} | `{mesh}` | {here[0]:.4f} to {here[-1]:.4f} | {worst:.1e} | {compiled_as} "
            f"| {own / 2**10:,.1f} KiB | {own / total:.3f} | {'same bits' if same else 'DIFFER'} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("home", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--mesh", choices=MESHES)
    parser.add_argument("--verify", action="store_true")
    options = parser.parse_args()
    home, steps = options.home, options.steps
    home.mkdir(parents=True, exist_ok=True)
    compiled.share(home / "compiled")
    compiled.hasten(True)
    if options.mesh:  # what `verify` runs
        trained(KINDS[options.kind](home), options.mesh, steps, home / "run")
        return
    if not options.verify:
        print(
            "| model | mesh | loss | differs by at most | steps compiled | a device holds "
            "| of the state | chunks of 1, 7, 100 |\n|---|---|---|---:|---:|---:|---:|---|"
        )
        for kind in KINDS:
            told(kind, home, steps)
        return
    for kind in KINDS:
        for mesh in MESHES:
            words = [str(home), "--kind", kind, "--mesh", mesh, "--steps", str(steps)]
            verdict = verify(
                ["-m", "tests.system.kinds", *words],
                steps=steps,
                interruptions=2,
                seed=0,
                say=lambda said: None,
            )
            print(kind, mesh, verdict.lines()[-1], flush=True)


if __name__ == "__main__":
    sys.exit(main())
