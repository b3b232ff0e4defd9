"""Trains one small network on several meshes of eight virtual devices, and tells what came out.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.system.meshes DIR

prints a line of JSON. It is a program of its own, as the number of devices is that of a process.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

import loopax
from loopax import placement as places
from loopax.data import Dataset
from loopax.diagnose.cost import estimate
from loopax.diagnose.replay import Replay
from loopax.errors import ConfigError
from loopax.lora import LoRA
from loopax.placement import placement
from loopax.run import RunDir
from tests import compiled

MESHES = ("data=1", "data=8", "data=2,fsdp=4", "data=2,tensor=4")
SHARDING = {"data=2,tensor=4": {"Dense_0/kernel": PartitionSpec(None, "tensor")}}
STEPS = 40


class Network(nn.Module):
    """An array to spread, one too small for that, and dropout."""

    @nn.compact
    def __call__(self, x, train=True):
        hidden = nn.relu(nn.Dense(64)(x))
        hidden = nn.Dropout(0.2, deterministic=not train)(hidden)
        return nn.Dense(3)(hidden)


rng = np.random.default_rng(0)
data = Dataset(
    {
        "x": rng.normal(size=(240, 32)).astype(np.float32),
        "label": rng.integers(0, 3, 240).astype(np.int32),
    }
)
model = Network()
state = loopax.TrainState.create(model, data, optax.adam(1e-2), ema_decay=0.9)
LORA = LoRA(("Dense_0/kernel",), rank=2, train=("Dense_1",))
adapted = loopax.TrainState.create(model, data, optax.adam(1e-2), lora=LORA)


def loss_fn(params, batch, rngs):
    logits = model.apply(params, batch["x"], rngs.training, rngs=rngs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


def trained(run_dir, mesh, steps, batches=None, *, start=state, **options):
    return loopax.fit(
        start,
        loss_fn,
        batches or data.batches(16),
        steps=steps,
        run_dir=run_dir,
        mesh=mesh,
        sharding=SHARDING.get(mesh),
        # The last of these batches cannot be shared by eight.
        evaluation=data.batches(100),
        log_every=10,
        probe_every=20,
        **{"progress": False, **options},
    )


def digest(tree):
    leaves = (
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
        for leaf in jax.tree.leaves(tree)
    )
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()


def told(home, mesh):
    """What a run on a mesh came to, whole, in pieces, and in chunks of another length."""
    whole, parts = home / f"whole {mesh}", home / f"parts {mesh}"
    run = trained(whole, mesh, STEPS)
    trained(parts, mesh, 17, chunk_steps=7)
    again = trained(parts, mesh, STEPS, chunk_steps=1)
    replayed = Replay(RunDir.open(whole), state, loss_fn, data.batches(16)).state_at(STEPS)
    # In a ring each mesh restores what another one saved.
    moved = shutil.copytree(whole, home / f"moved {mesh}")
    other = MESHES[MESHES.index(mesh) - 1]
    kernel = run.state.trainable["params"]["Dense_0"]["kernel"]
    moments = run.state.opt_state[0].mu["params"]["Dense_0"]["kernel"]
    return {
        "state": digest(run.state),
        "in parts": digest(again.state),
        "replayed": digest(replayed),
        "elsewhere": digest(trained(moved, other, STEPS).state),
        "rows": (whole / "metrics.jsonl").read_text(),
        "rows in parts": (parts / "metrics.jsonl").read_text(),
        "kernel": kernel.size,
        "kernel on a device": kernel.addressable_shards[0].data.size,
        "its moments on a device": moments.addressable_shards[0].data.size,
        "compiled": run.account["compilations"],
    }


def with_adapters(home, mesh, *pieces):
    """What adapters come to beside a kernel that stays as it is; stopped after these steps."""
    run_dir = home / f"adapters {mesh} {pieces}"
    for steps in (*pieces, STEPS):
        run = trained(run_dir, mesh, steps, start=adapted)
    base = run.state.frozen["params"]["Dense_0"]["kernel"]["base"]
    return {
        "state": digest(run.state),
        "rows": (run_dir / "metrics.jsonl").read_text(),
        "base": digest(base),
        "base on a device": base.addressable_shards[0].data.size / base.size,
    }


def divided(home):
    """What a run came to whose data no device has whole, and some rows of awkward columns."""
    limit, places.REPLICATED_LIMIT_BYTES = places.REPLICATED_LIMIT_BYTES, 0
    columns = {
        "x": np.float32([[-0.0, np.nan], [0.1, -np.inf]] * 5),
        "half": np.arange(10, dtype=np.float16),
        "wide": np.arange(10.0),
        "label": np.arange(10),
    }
    whole = Dataset(columns)
    batches = whole.batches(10, shuffle=False, resident=True)
    where = placement("data=2,fsdp=4", 16)
    resident = batches.resident(where)
    rows = jax.jit(batches.gather)(resident, np.arange(10))
    kept = {
        name: np.asarray(rows[name]).tobytes() == np.asarray(jax.device_put(column)).tobytes()
        for name, column in columns.items()
    }
    # Another dataset of the same columns, which is not on the devices already.
    again = Dataset(data.columns).batches(16, resident=True)
    run = trained(home / "divided", "data=2,fsdp=4", STEPS, again)
    places.REPLICATED_LIMIT_BYTES = limit
    return {
        "state": digest(run.state),
        "kept": kept,
        "rows on a device": resident["x"].addressable_shards[0].data.shape[0],
    }


def sent(mesh):
    """What the devices send each other in a step, in multiples of what the parameters take."""
    costs = estimate(state, loss_fn, data.batches(16), mesh=mesh, seconds=0.01)
    weights = costs.trainable_bytes
    return {kind: each.nbytes / weights for kind, each in costs.collectives.items()}


def refused(mesh, batch_size):
    """Why a mesh is refused; empty where it is not."""
    try:
        placement(mesh, batch_size)
    except ConfigError as error:
        return str(error)
    return ""


def undivided(home):
    """Trains what eight devices cannot divide: 45 x 45 numbers, on batches of 20 examples."""
    state = loopax.TrainState.create(params={"w": np.ones((45, 45), np.float32)}, tx=optax.sgd(0.1))
    batches = [{"x": np.ones((20, 45), np.float32)}] * 2

    def loss_fn(params, batch, rngs):
        return (batch["x"] @ params["w"]).mean()

    for mesh in (None, "fsdp=4"):
        loopax.fit(state, loss_fn, batches, steps=1, run_dir=home / f"undivided {mesh}", mesh=mesh)


if __name__ == "__main__":
    compiled.hasten(True)
    home = Path(sys.argv[1])
    default = trained(home / "default", None, 1, progress=True)
    found = {mesh: told(home, mesh) for mesh in MESHES}
    with jax.default_device(jax.devices()[3]):
        alone = trained(home / "alone", None, STEPS, progress=True)
    found["alone"] = {
        "on": [device.id for device in alone.state.step.devices()],
        "state": digest(alone.state),
    }
    found["adapters"] = [
        with_adapters(home, "data=1"),
        with_adapters(home, "data=2,fsdp=4"),
        with_adapters(home, "data=2,fsdp=4", 17),
    ]
    found["default"] = len(default.state.step.sharding.device_set)
    found["refused"] = [refused("data=2,fsdp=4", 20), refused("data=8", 4), refused("data=16", 16)]
    undivided(home)
    found["divided"] = divided(home)
    found["sent"] = {mesh: sent(mesh) for mesh in ("data=1", "data=8", "fsdp=8")}
    print(json.dumps(found))
