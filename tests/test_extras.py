"""Without the extras runs are trained and listed, and what needs one says so in a line."""

import subprocess
import sys

EXTRAS = {"sklearn", "matplotlib", "PIL", "jinja2", "pydantic", "flatbuffers", "pyarrow"}
EXTRAS |= {"tokenizers", "huggingface_hub", "grain", "wandb", "mlflow", "trackio"}
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({EXTRAS}))
import jax.numpy as jnp, numpy as np, optax, loopax
from loopax.cli import main
images = loopax.data.mnist().train.columns["image"]
state = loopax.TrainState.create(params={{"w": jnp.zeros(())}}, tx=optax.sgd(0.1))
loss = lambda params, batch, rngs: (jnp.mean((params["w"] - batch["x"]) ** 2), {{}})
data = loopax.data.Dataset({{"x": images[:8, 0, 0, 0] / np.float32(255)}}, name="mine")
loopax.fit(state, loss, data.batches(2), steps=4, run_dir="runs/mine", progress=False)
assert main(["runs", "runs"]) == 0
for words in ("train vae", "train bert --data none.csv", "train vae --log wandb"):
    assert main([*words.split(), "--run-dir", "other"]) == 2
"""


def test_the_core_trains_alone_and_the_rest_names_its_extra(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "runs/mine" in done.stdout
    assert done.stderr.splitlines() == [
        "loopax: the VAE recipe needs sklearn: pip install 'loopax[vae]'",
        "loopax: the BERT recipe needs tokenizers: pip install 'loopax[bert]'",
        "loopax: logging to wandb needs wandb: pip install 'loopax[wandb]'",
    ]
    assert not (tmp_path / "other").exists()
