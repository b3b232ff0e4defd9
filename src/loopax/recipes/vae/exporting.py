"""A trained sampler as one file that needs neither loopax nor Flax: serialised StableHLO."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export

from loopax.files import replacing, storing
from loopax.recipes.vae.trained import TrainedVAE, drawn, load
from loopax.weights import save_weights

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    run: str | Path, checkpoint: str | int, out: Path | None, say: Callable[[str], None] = print
) -> list[Path]:
    """Writes a run's weights and, beside them, its sampler; returns where.

    Raises:
        CheckpointError: there is no such checkpoint.
        StorageError: a file could not be written.
    """
    trained = load(run, checkpoint, say=say)
    weights = out or trained.dir.path / "weights.safetensors"
    save_weights(weights, trained.params)
    # Beside weights of another name lies a sampler of that name: two exports share a folder.
    sampler = weights.with_name("sampler.stablehlo" if out is None else f"{weights.stem}.stablehlo")
    export_sampler(trained, sampler)
    return [weights, sampler]


def export_sampler(trained: TrainedVAE, path: Path) -> None:
    """Writes the sampler to `path`, its weights inside, and beside it what calls need to know.

    Read with `jax.export.deserialize(path.read_bytes())`, its `call` takes a seed, `uint32[]`, and
    labels, `int32[n]` for any `n`, and returns images in [0, 1], `float32[n, height, width,
    channels]`. `path` with the ending `.json` names the classes and the configuration.

    Raises:
        StorageError: a file could not be written.
    """
    model, params = trained.model, trained.params
    mixtures = trained.mixtures and trained.mixtures.arrays()

    def sample(seed: Any, label: Any) -> Any:
        latent = drawn(model, params, mixtures, jax.random.key(seed), label)
        return jnp.clip(model.apply(params, latent, label, method=model.decode), 0, 1)

    labels = jax.ShapeDtypeStruct(jax_export.symbolic_shape("n"), jnp.int32)
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    exported = jax_export.export(jax.jit(sample), platforms=PLATFORMS)(seed, labels)
    about = {
        "call": "(seed: uint32[], label: int32[n]) -> float32[n, height, width, channels]",
        "image_shape": trained.image_shape,
        "classes": trained.class_names,
        "step": trained.step,
        "config": trained.dir.config,
    }
    with storing(path):
        with replacing(path) as partial:
            partial.write_bytes(exported.serialize())
        with replacing(path.with_suffix(".json")) as partial:
            partial.write_text(json.dumps(about, indent=2) + "\n")
