"""What a step costs on more devices than there are: compiled for them, and not run.

    python -m benchmarks.scaling [--devices 8 64 256]

For a BERT-base sized encoder and a transformer of 1.2 billion parameters, trained with AdamW on 8
texts of 512 tokens for each device: what of the state lies on a device, and what the devices send
each other in a step, beside what theory says. With data parallelism that is one all-reduce of the
gradients, which moves 2 x parameters; with `fsdp` two all-gathers of the parameters and one
reduce-scatter of the gradients, 3 x parameters (Rajbhandari et al., "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models", 2020).

From both follows how long a step would take on accelerators, by what their makers publish. It
prints the tables of docs/scaling.md.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from typing import Any, NamedTuple

MODELS = {
    "BERT base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "1.2 B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16},
}
LENGTH, PER_DEVICE = 512, 8
THEORY = {"data": 2, "fsdp": 3}
"""What a device moves in a step, in multiples of the parameters."""
MOVES = {"all-reduce": 2}
"""How often a collective moves its result, where that is not once."""
UTILISATION = 0.4
"""Of the peak, in matrix products: what large transformers reach in practice."""


class Accelerator(NamedTuple):
    """What the maker publishes; bytes a second are those of one direction.

    Attributes:
        flops: operations a second of dense matrix products in bfloat16.
        memory: bytes.
        link: bytes a second between the devices of a node, or of a slice.
        node: devices that have such links; beyond, `network` is what the whole node has.
    """

    flops: float
    memory: float
    link: float
    node: int
    network: float

    def bandwidth(self, devices: int) -> float:
        """Of a collective: among nodes each device sends a part of what its node sends."""
        return self.link if devices <= self.node else min(self.link, self.network)


ACCELERATORS = {
    # https://www.nvidia.com/en-us/data-center/h100/: 1,979 TFLOPS with sparsity, which is half of
    # it dense; NVLink of 900 GB/s in both directions. https://docs.nvidia.com/dgx/dgxh100-user-guide:
    # a node of 8 has 8 x 400 Gb/s.
    "H100 SXM": Accelerator(989e12, 80e9, 450e9, 8, 400e9),
    # https://cloud.google.com/tpu/docs/v5e: 400 GB/s in both directions.
    "TPU v5e": Accelerator(197e12, 16e9, 200e9, 256, 0),
    # https://cloud.google.com/tpu/docs/v5p: 1,200 GB/s in both directions.
    "TPU v5p": Accelerator(459e12, 95e9, 600e9, 8960, 0),
}


def compiled(name: str, devices: int, axis: str) -> dict[str, Any]:
    """State and traffic of one device, in a process that has that many virtual ones."""
    import jax
    import jax.numpy as jnp
    import optax

    import loopax
    from loopax.diagnose.collectives import collectives
    from loopax.diagnose.cost import flops
    from loopax.models.bert import BertConfig, BertForSequenceClassification
    from loopax.placement import placement

    width = MODELS[name]["hidden_size"]
    config = BertConfig(
        vocab_size=30522,
        intermediate_size=4 * width,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **MODELS[name],
    )
    model = BertForSequenceClassification(config, 2)

    def batch(size):
        return {
            "ids": jax.ShapeDtypeStruct((size, LENGTH), jnp.int32),
            "mask": jax.ShapeDtypeStruct((size, LENGTH), jnp.int32),
            "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        }

    def loss_fn(params, batch, rngs):
        logits = model.apply(params, batch["ids"], attention_mask=batch["mask"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def create():
        ids = jnp.zeros((1, LENGTH), jnp.int32)
        return loopax.TrainState.create(model, ids, optax.adamw(1e-4))

    alone = jax.eval_shape(create)
    where = placement(f"{axis}={devices}", PER_DEVICE * devices)
    state = dataclasses.replace(alone, placement=where)
    shardings = where.shardings(state)

    def step(state, batch):
        return loopax.train_step(loss_fn)(state, where.spread(batch))

    program = jax.jit(
        step, in_shardings=(shardings, None), out_shardings=(shardings, None), donate_argnums=0
    )
    began = time.perf_counter()
    found = collectives(program.lower(state, batch(PER_DEVICE * devices)).compile())
    seconds = time.perf_counter() - began
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    keys = jax.dtypes.prng_key
    held = sum(
        leaf.dtype.itemsize * int(jnp.prod(jnp.array(sharding.shard_shape(leaf.shape))))
        for leaf, sharding in pairs
        if not jax.dtypes.issubdtype(leaf.dtype, keys) and leaf.size
    )
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state_bytes": held,
        "traffic": {kind: [each.calls, each.nbytes] for kind, each in found.items()},
        "flops": flops(loopax.train_step(loss_fn), alone, batch(PER_DEVICE)),
        "compile_seconds": seconds,
    }


def measured(name: str, devices: int, axis: str) -> dict[str, Any]:
    """What `compiled` says in a process of its own, which has as many virtual devices."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--one", name, str(devices), axis],
        env={**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def moved(row: dict[str, Any]) -> float:
    """Bytes that a device sends in a step."""
    return sum(MOVES.get(kind, 1) * nbytes for kind, (_, nbytes) in row["traffic"].items())


def traffic_line(name: str, devices: int, axis: str, row: dict[str, Any]) -> str:
    weights = 4 * row["parameters"]
    sent = ", ".join(
        f"{calls} {kind} {nbytes / weights:.2f}" for kind, (calls, nbytes) in row["traffic"].items()
    )
    return (
        f"| {name}, {row['parameters'] / 1e6:,.0f} M | `{axis}={devices}` | "
        f"{row['state_bytes'] / 2**30:.2f} GiB | {sent} | {moved(row) / weights:.2f} | "
        f"{THEORY[axis]} | {row['compile_seconds']:.0f} s |"
    )


def step_line(name: str, devices: int, axis: str, row: dict[str, Any]) -> str:
    """For each accelerator the milliseconds of computing and those of sending."""
    cells = []
    for each in ACCELERATORS.values():
        # Whole gradients, and with fsdp whole parameters, are there beside the state.
        needed = row["state_bytes"] + 4 * row["parameters"] * (2 if axis == "fsdp" else 1)
        computing = row["flops"] / (UTILISATION * each.flops)
        sending = moved(row) * (devices - 1) / devices / each.bandwidth(devices)
        fits = needed < each.memory
        cells.append(f"{1e3 * computing:.1f} + {1e3 * sending:.1f} ms" if fits else "does not fit")
    return f"| {name} | `{axis}={devices}` | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, devices, axis = options.one
        print(json.dumps(compiled(name, int(devices), axis)))
        return
    rows = {}
    print("| model | mesh | state on a device | in a step | moved | theory | compiled in |")
    print("|---|---|---:|---|---:|---:|---:|")
    for name in options.models:
        for axis in THEORY:
            for devices in options.devices:
                rows[name, devices, axis] = row = measured(name, devices, axis)
                print(traffic_line(name, devices, axis, row), flush=True)
    print(
        f"\n| model | mesh | {' | '.join(ACCELERATORS)} |\n|---|---|{'---:|' * len(ACCELERATORS)}"
    )
    for key, row in rows.items():
        print(step_line(*key, row))


if __name__ == "__main__":
    main()
