"""What freezing the backbone of a real BERT saves, beside other ways to freeze it.

    loopax data get minilm
    python benchmarks/freeze.py [--batch 32] [--length 128]

Floating-point operations and temporary memory are those of the program that XLA compiled for the
loop's chunk, of which one step is counted. Every way then makes two real steps: the backbone must
stay bit for bit as it was.
"""

import argparse
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

import loopax
from loopax.account import Account
from loopax.caches import cache_dir
from loopax.compute.program import TrainProgram
from loopax.data import Dataset, catalogue
from loopax.models.bert import BertForSequenceClassification
from loopax.recipes.bert.pretrained import params_for, read_pretrained

LABELS = {"params": {"bert": "frozen", "classifier": "trains"}}


def by_hand(inner):
    """Freezing as the article does it."""
    return optax.multi_transform({"frozen": optax.set_to_zero(), "trains": inner}, LABELS)


def ways(loss, quiet_loss):
    """Optimiser, frozen patterns and loss of each way; `quiet_loss` has no dropout where frozen."""
    adamw, clip = optax.adamw(1e-3), optax.clip_by_global_norm(1.0)
    loaded = loopax.Optimizer(learning_rate=1e-3, clip_norm=1.0, accumulate=4).build()
    return {
        "full fine-tuning": (optax.chain(clip, adamw), (), loss),
        "loopax frozen: clip, accumulation, finite check": (loaded, ("bert",), quiet_loss),
        "optax.multi_transform": (by_hand(adamw), (), quiet_loss),
        "clip, then optax.multi_transform": (optax.chain(clip, by_hand(adamw)), (), quiet_loss),
        "optax.MultiSteps of multi_transform": (
            optax.MultiSteps(by_hand(adamw), 4).gradient_transformation(),
            (),
            quiet_loss,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    pretrained = read_pretrained(catalogue.located("minilm", cache_dir()))
    model = BertForSequenceClassification(pretrained.config, classes=2, pooling="mean")
    params = params_for(pretrained, model, jax.random.key(0))
    ids = np.random.default_rng(0).integers(1000, 20_000, (2 * options.batch, options.length))
    data = Dataset(
        {"ids": ids.astype(np.int32), "label": (np.arange(len(ids)) % 2).astype(np.int32)}
    ).batches(options.batch)

    def loss_of(params, batch, rngs, quiet):
        features = model.apply(
            params,
            batch["ids"],
            deterministic=quiet,
            method=model.features,
            rngs={"dropout": rngs["dropout"]},
        )
        logits = model.apply(params, features, method=model.classify)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def loss(params, batch, rngs):
        return loss_of(params, batch, rngs, False)

    def quiet_loss(params, batch, rngs):
        return loss_of(params, batch, rngs, True)

    batch = jax.eval_shape(
        lambda: {
            "ids": jnp.zeros((options.batch, options.length), jnp.int32),
            "label": jnp.zeros(options.batch, jnp.int32),
        }
    )
    rngs = loopax.TrainState.create(params={"x": jnp.zeros(1)}, tx=optax.sgd(1.0)).rngs
    forward = jax.jit(lambda params, batch: quiet_loss(params, batch, rngs))
    costs = cost_of(forward.lower(params, batch).compile())
    table = Table(
        "", "GFLOP", "× forward", "temporary MiB", "× forward", "optimiser MiB", "backbone"
    )
    table.add_row("forward only", f"{costs[0]:.1f}", "1", f"{costs[1]:.0f}", "1", "", "")
    for name, (tx, frozen, chosen) in ways(loss, quiet_loss).items():
        state = loopax.TrainState.create(params=params, tx=tx, frozen=frozen)
        program = TrainProgram(chosen, data, Account(), skip=bool(frozen))
        flop, temporary = cost_of(program.compiled(state, data.feed([0], 0, 2).take(1)))
        optimiser = sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state)) / 2**20
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of what this benchmark is there to show.
            run = loopax.fit(
                state, chosen, data, steps=2, progress=False,
                nonfinite="skip" if frozen else "stop", probe_every=1 if frozen else None,
            )  # fmt: skip
        table.add_row(
            name,
            f"{flop:.1f}",
            f"{flop / costs[0]:.3f}",
            f"{temporary:.0f}",
            f"{temporary / costs[1]:.3f}",
            f"{optimiser:.4f}",
            told(params["params"]["bert"], run.state.params["params"]["bert"]),
        )
    Console(width=130).print(table)


def cost_of(compiled) -> tuple[float, float]:
    """GFLOP and MiB of temporaries."""
    memory = compiled.memory_analysis()
    return compiled.cost_analysis()["flops"] / 1e9, memory.temp_size_in_bytes / 2**20


def told(before, after) -> str:
    """Whether anything moved, and the norm of all that moved."""
    moved = jax.tree.map(lambda one, other: np.asarray(other) - np.asarray(one), before, after)
    norm = float(optax.tree.norm(moved))
    return "unchanged, bit for bit" if norm == 0 else f"moved by {norm:.3g}"


if __name__ == "__main__":
    main()
