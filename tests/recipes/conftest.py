"""One small run that tests of the VAE look at: to train and to judge another takes seconds."""

import os
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from filelock import FileLock
from matplotlib.figure import Figure
from PIL import Image

from loopax import Optimizer
from loopax.recipes import vae
from loopax.recipes.vae import judge


@contextmanager
def judged_in_haste():
    """Asks of a judge that there is one, not that it is good."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(judge.PRESETS, "judge", replace(judge.PRESETS["judge"], epochs=1.0))
        patch.setattr(judge, "accuracy_of_baseline", lambda train, test: 0.0)
        yield


@pytest.fixture(scope="module")
def hasty_judges():
    with judged_in_haste():
        yield


@contextmanager
def drawn_in_haste():
    """Leaves every picture of matplotlib empty, which otherwise takes as long as a training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda _, path, **options: empty(path))
        yield


def empty(path):
    Image.new("L", (1, 1)).save(path, format="png")


@pytest.fixture(scope="module")
def hasty_pictures():
    with drawn_in_haste():
        yield


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """A folder of all test processes, in a block that one of them is in at a time."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    @contextmanager
    def alone():
        with FileLock(folder / "tiny.lock"):
            yield folder

    return alone


@pytest.fixture(scope="session")
def tiny_config(alone):
    """Of sixty noisy images of 5 x 4 pixels in colour, brighter with each of three classes."""
    label = np.arange(60) % 3
    image = np.random.default_rng(0).random((60, 5, 4, 3)) * 80 * (1 + label)[:, None, None, None]
    with alone() as folder:
        path = folder / "tiny.npz"
        if not path.exists():
            np.savez(path, image=image.astype(np.uint8), label=label)
    return vae.VAEConfig(
        data=str(path),
        validation=0.2,
        epochs=2,
        batch_size=6,
        widths=(8,),
        latent=2,
        optimizer=Optimizer(learning_rate=1e-2, params_ema=0.5, freeze=("posterior/bias",)),
    )


@pytest.fixture(scope="session")
def tiny_vae(tiny_config, alone):
    """The finished run of `tiny_config`, trained by the first who wants it; nobody changes it."""
    with alone() as folder, judged_in_haste(), drawn_in_haste():
        return vae.train(tiny_config, folder / "tiny", progress=False)
