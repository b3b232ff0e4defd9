"""What is exported runs without loopax and Flax, and gives what the run itself gives."""

import json
import subprocess
import sys

import jax
import numpy as np
from tests.test_docs import programs

from loopax.recipes.vae import exporting
from loopax.weights import save_weights

PROGRAM = f"""
import sys
{programs("vae.md")[0]}
assert images.shape == (3, 5, 4, 3)
for count in (1, 7):
    np.save(f"{{count}}.npy", sampler.call(np.uint32(5), np.arange(count, dtype=np.int32) % 3))
assert not {{"loopax", "flax", "optax", "orbax"}} & set(sys.modules)
"""
"""Begins with the program of docs/vae.md."""

WEIGHTS = """
import json, pathlib, sys
import numpy as np
from safetensors.numpy import load_file
folder = pathlib.Path(sys.argv[1])
config = json.loads((folder / "sampler.json").read_text())["config"]
weights = load_file(folder / "weights.safetensors")
latent, label = np.load(folder / "latent.npy"), np.load(folder / "label.npy")
one_hot = np.eye(3, dtype=np.float32)[label]
x = latent
for layer in range(len(config["widths"]) + 1):
    x = np.concatenate([x, one_hot], axis=1)
    x = x @ weights[f"decoder/Dense_{layer}/kernel"] + weights[f"decoder/Dense_{layer}/bias"]
    if layer < len(config["widths"]):
        x = x / (1 + np.exp(-x))
np.save(folder / "decoded.npy", 1 / (1 + np.exp(-x)))
assert not {"loopax", "jax", "flax"} & set(sys.modules)
"""


def test_the_sampler_runs_in_a_process_without_loopax(tiny_vae, tmp_path):
    (tmp_path / "RUN").mkdir()
    exporting.export_sampler(tiny_vae, tmp_path / "RUN" / "sampler.stablehlo")
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True)
    for count in (1, 7):
        found = np.load(tmp_path / f"{count}.npy")
        expected = tiny_vae.samples_of(np.arange(count, dtype=np.int32) % 3, seed=5)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    about = json.loads((tmp_path / "RUN" / "sampler.json").read_text())
    assert about["image_shape"] == [5, 4, 3]
    assert about["classes"] == ["0", "1", "2"]


def test_a_sampler_from_the_prior_is_exported_too(tiny_vae, tmp_path):
    chosen, labels = tiny_vae.from_prior(), np.arange(4, dtype=np.int32) % 3
    exporting.export_sampler(chosen, tmp_path / "sampler.stablehlo")
    sampler = jax.export.deserialize(bytearray((tmp_path / "sampler.stablehlo").read_bytes()))
    found = sampler.call(np.uint32(5), labels)
    np.testing.assert_allclose(found, chosen.samples_of(labels, seed=5), atol=1e-5)


def test_weights_and_configuration_are_enough_to_decode_by_hand(tiny_vae, tmp_path):
    exporting.export_sampler(tiny_vae, tmp_path / "sampler.stablehlo")
    save_weights(tmp_path / "weights.safetensors", tiny_vae.params)
    label = np.arange(9, dtype=np.int32) % 3
    latent = tiny_vae.latents_of(label)
    np.save(tmp_path / "latent.npy", latent)
    np.save(tmp_path / "label.npy", label)
    subprocess.run([sys.executable, "-c", WEIGHTS, str(tmp_path)], check=True)
    expected = tiny_vae.decode(latent, label).reshape(9, -1)
    np.testing.assert_allclose(np.load(tmp_path / "decoded.npy"), expected, atol=1e-5)
