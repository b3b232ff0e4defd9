"""One small run that tests of the VAE look at: to train and to judge another takes seconds."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
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
def tiny_config(tmp_path_factory):
    """Of sixty noisy images of 5 x 4 pixels in colour, brighter with each of three classes."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    label = np.arange(60) % 3
    image = np.random.default_rng(0).random((60, 5, 4, 3)) * 80 * (1 + label)[:, None, None, None]
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
def tiny_vae(tiny_config, tmp_path_factory):
    """The finished run of `tiny_config`; nobody changes it."""
    with judged_in_haste(), drawn_in_haste():
        return vae.train(tiny_config, tmp_path_factory.mktemp("runs") / "colour", progress=False)
