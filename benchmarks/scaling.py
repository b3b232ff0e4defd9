"""What a step costs on more devices than there are: compiled for them, and not run.

    python -m benchmarks.scaling [--devices 8 64 256]

For a BERT-base sized encoder and a transformer of 1.2 billion parameters, trained with AdamW on 8
texts of 512 tokens for each device: what of the state lies on a device, and what the devices send
each other in a step, beside what theory says. With data parallelism that is one all-reduce of the
gradients, which moves 2 x parameters; with `fsdp` two all-gathers of the parameters and one
reduce-scatter of the gradients, 3 x parameters (Rajbhandari et al., "ZeRO: Memory Optimizations
Toward Training Trillion Parameter Models", 2020).
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys

MODELS = {
    "BERT base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "1.2 B": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 16},
}
LENGTH, PER_DEVICE = 512, 8


def compiled(name: str, devices: int, axis: str) -> dict[str, object]:
    """State and traffic of one device, in a process that has that many virtual ones."""
    import jax
    import jax.numpy as jnp
    import optax

    import loopax
    from loopax.diagnose.collectives import collectives
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
    shape = (PER_DEVICE * devices, LENGTH)
    batch = {
        "ids": jax.ShapeDtypeStruct(shape, jnp.int32),
        "mask": jax.ShapeDtypeStruct(shape, jnp.int32),
        "label": jax.ShapeDtypeStruct(shape[:1], jnp.int32),
    }

    def loss_fn(params, batch, rngs):
        logits = model.apply(params, batch["ids"], attention_mask=batch["mask"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def create():
        ids = jnp.zeros((1, LENGTH), jnp.int32)
        return loopax.TrainState.create(model, ids, optax.adamw(1e-4))

    where = placement(f"{axis}={devices}", shape[0])
    state = dataclasses.replace(jax.eval_shape(create), placement=where)
    shardings = where.shardings(state)

    def step(state, batch):
        return loopax.train_step(loss_fn)(state, where.spread(batch))

    program = jax.jit(
        step, in_shardings=(shardings, None), out_shardings=(shardings, None), donate_argnums=0
    )
    found = collectives(program.lower(state, batch).compile())
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    keys = jax.dtypes.prng_key
    held = sum(
        leaf.dtype.itemsize * int(jnp.prod(jnp.array(sharding.shard_shape(leaf.shape))))
        for leaf, sharding in pairs
        if not jax.dtypes.issubdtype(leaf.dtype, keys) and leaf.size
    )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return {
        "parameters": parameters,
        "state_bytes": held,
        "traffic": {kind: [each.calls, each.nbytes] for kind, each in found.items()},
    }


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
    for name in options.models:
        for devices in options.devices:
            for axis in ("data", "fsdp"):
                flags = f"--xla_force_host_platform_device_count={devices}"
                command = [sys.executable, "-m", "benchmarks.scaling", "--one"]
                done = subprocess.run(
                    [*command, name, str(devices), axis],
                    env={**os.environ, "XLA_FLAGS": flags},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                if done.returncode:
                    print(f"{name} {axis}={devices}: {done.stderr.strip()[-500:]}")
                    continue
                row = json.loads(done.stdout)
                weights = 4 * row["parameters"]
                traffic = ", ".join(
                    f"{calls} {kind} {nbytes / weights:.2f}"
                    for kind, (calls, nbytes) in row["traffic"].items()
                )
                print(
                    f"{name} {axis}={devices}: {row['parameters'] / 1e6:,.0f} M parameters, "
                    f"{row['state_bytes'] / 2**30:.2f} GiB of state a device; "
                    f"results in multiples of the parameters' bytes: {traffic}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
