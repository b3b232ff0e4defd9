"""One process of several that train one small network together, on a mesh of four devices."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax

import loopax
from loopax import cluster
from loopax.data import Dataset
from loopax.errors import LoopaxError

LONG = 10**6


class Network(nn.Module):
    """An array to spread, one too small for that, and dropout."""

    @nn.compact
    def __call__(self, x, train=True):
        hidden = nn.relu(nn.Dense(64)(x))
        hidden = nn.Dropout(0.2, deterministic=not train)(hidden)
        return nn.Dense(3)(hidden)


model = Network()


def loss_fn(params, batch, rngs):
    logits = model.apply(params, batch["x"], rngs.training, rngs=rngs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}


def hooked(run):
    """Which process this is, and what its devices hold in parts, as a whole."""
    kernel = np.asarray(run.gather(run.state.params["params"]["Dense_0"]["kernel"]))
    return {"process": jax.process_index(), "mean": float(kernel.mean())}


def problem():
    """The state at step 0, and its data."""
    rng = np.random.default_rng(0)
    data = Dataset(
        {
            "x": rng.normal(size=(240, 32)).astype(np.float32),
            "label": rng.integers(0, 3, 240).astype(np.int32),
        }
    )
    return loopax.TrainState.create(model, data, optax.adam(1e-2), ema_decay=0.9), data


def member(port, count, index, home, plan, refused=(), last=()):
    """Trains the runs of a plan, each in a folder of its name to the step that it says.

    Before that come those that are to be refused: arguments of `fit` that differ by process. What
    they are told is printed, a line of JSON each. After `last`, which one of them begins, nothing
    more is asked of the others.
    """
    jax.config.update("jax_num_cpu_devices", 4 // count)
    # One process alone is connected too: XLA's own collectives sum in another order than gloo.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    cluster.join(f"127.0.0.1:{port}", count, index)
    state, data = problem()

    def trained(name, steps, **arguments):
        return loopax.fit(
            state,
            loss_fn,
            **{
                # In parts each process gathers what its devices need.
                "data": data.batches(16, resident=name == "resident"),
                "steps": steps,
                "run_dir": Path(home) / name,
                "evaluation": loopax.Evaluation(data.batches(100), every=20),
                "hooks": loopax.Hook(hooked, every=20),
                "checkpoints": loopax.Checkpoints(every=10),
                "log_every": 10,
                "probe_every": 20,
                "mesh": "data=2,fsdp=2",
                **arguments,
            },
        )

    def refuse(arguments):
        try:
            trained("refused", 40, **{name: each[index] for name, each in arguments.items()})
        except LoopaxError as error:
            notes = getattr(error, "__notes__", ())
            print(json.dumps("; ".join([f"{type(error).__name__}: {error}", *notes])))

    for arguments in refused:
        refuse(arguments)
    for name, steps in plan:
        trained(name, steps)
    for arguments in last:
        refuse(arguments)
