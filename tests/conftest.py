"""Small data, two small problems, and a way to compare whole states bit for bit."""

import functools
import gc
import hashlib
import os
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import settings

import loopax
from loopax.data import Dataset
from loopax.diagnose.cost import estimate
from tests import compiled

# A shape that broadcasts by accident is a wrong loss that trains.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
# `LOOPAX_TEST_CACHE` names a folder that is kept, so that the next run compiles little. Judges that
# tests train are kept apart from the user's own. All test processes share both.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _temporary = tempfile.TemporaryDirectory(prefix="loopax-tests-", ignore_cleanup_errors=True)
    os.environ["LOOPAX_CACHE"] = _temporary.name
    compiled.share(os.environ.get("LOOPAX_TEST_CACHE", f"{_temporary.name}/compiled"))
else:
    compiled.share(os.environ["JAX_COMPILATION_CACHE_DIR"])
# Started in the background, as some CI systems do, all processes would ignore Ctrl-C for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("loopax", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("loopax")


LONGEST = (
    "test_examples.py",
    "test_loop.py",
    "test_verify.py",
    "test_cli.py",
    "test_bert.py",
    "test_article.py",
    "test_meshes.py",
    "test_libraries.py",
    "test_every_optimizer.py",
    "test_evaluation.py",
    "test_storage.py",
    "test_state.py",
    "test_own_images.py",
    "test_examine.py",
    "test_after_training.py",
    "test_stops.py",
    "test_replay.py",
    "test_checkpoint.py",
    "test_cost.py",
    "test_faults.py",
    "test_processes.py",
    "test_frozen.py",
    "test_docs.py",
    "test_nonfinite.py",
    "test_vae.py",
    "test_compute_dtype.py",
    "test_optimizer.py",
    "test_bert_predicting.py",
    "test_compilation.py",
    "test_export.py",
    "test_remat.py",
    "test_accumulation.py",
    "test_explorer.py",
    "test_resume_rules.py",
)


def pytest_xdist_auto_num_workers() -> int:
    """Two more than cores: tests also wait, for disks and for programs that they start."""
    return (os.cpu_count() or 1) + 2


def pytest_collection() -> None:
    """Before modules of tests are imported, which compile a little too."""
    compiled.hasten(True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: one that came last would leave the other processes idle.

    Within a file what is compiled alike comes together, see `compiled.hasten`.
    """
    places = {name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> tuple[int, str, bool]:
        in_haste = item.get_closest_marker("optimized") is None
        return places.get(item.path.name, len(LONGEST)), str(item.path), in_haste

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not look at it again and again."""
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures of a test are made."""
    compiled.hasten(item.get_closest_marker("optimized") is None)


class Classifier(nn.Module):
    """A small network with dropout and a noise stream of its own.

    A convolution is what shows a difference between a step inside a compiled loop and a step
    alone: its bits depend on where it runs, where those of an MLP do not.
    """

    @nn.compact
    def __call__(self, image, train=True):
        hidden = nn.relu(nn.Conv(2, (3, 3))(image))
        hidden = nn.relu(nn.Dense(8)(hidden.reshape(hidden.shape[0], -1)))
        hidden = nn.Dropout(0.2, deterministic=not train)(hidden)
        hidden += 0.1 * jax.random.uniform(self.make_rng("noise"), hidden.shape)
        return nn.Dense(3)(hidden)


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """240 images of 4 x 4 pixels in three classes: 120 steps an epoch at batch size 2."""
    rng = np.random.default_rng(0)
    return Dataset(
        {
            "image": rng.integers(0, 256, (240, 4, 4, 1), np.uint8),
            "label": rng.integers(0, 3, 240).astype(np.int32),
        },
        name="tiny",
    )


@pytest.fixture(scope="session")
def model() -> Classifier:
    return Classifier()


@pytest.fixture(scope="session")
def loss_fn(model: Classifier) -> Callable[..., Any]:
    """The classifier's loss, with the accuracy as a metric."""

    def loss(params, batch, rngs):
        logits = model.apply(params, batch["image"], rngs.training, rngs=rngs)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), {"accuracy": (logits.argmax(-1) == batch["label"]).mean()}

    return loss


@pytest.fixture(scope="session")
def new_state(model: Classifier, dataset: Dataset) -> Callable[..., loopax.TrainState]:
    """Gives the classifier's state at step 0, made once for each seed and decay."""

    @functools.cache
    def create(**options):
        return loopax.TrainState.create(model, dataset, optax.adam(1e-2), **options)

    return create


@pytest.fixture(scope="session")
def line_loss() -> Callable[..., Any]:
    """Linear regression of the label on the pixels: no randomness, and quick to compile."""

    def loss(params, batch, rngs):
        del rngs
        pixels = batch["image"].reshape(batch["image"].shape[0], -1)
        errors = pixels @ params["weights"] + params["bias"] - batch["label"]
        return jnp.square(errors).mean(), {"error": jnp.abs(errors).mean()}

    return loss


@pytest.fixture(scope="session")
def line_state() -> Callable[..., loopax.TrainState]:
    """Makes the regression's state at step 0."""

    def create(tx=None, cls=loopax.TrainState, **options):
        params = {"weights": jnp.linspace(-1.0, 1.0, 16), "bias": jnp.zeros((1,))}
        return cls.create(params=params, tx=tx or optax.adam(1e-2), **options)

    return create


@pytest.fixture
def brief_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run measures a step or two, and not for two seconds."""
    monkeypatch.setitem(estimate.__kwdefaults__, "seconds", 0.01)


@pytest.fixture(scope="session")
def bits() -> Callable[[Any], dict[str, str]]:
    """Type, shape and a digest of the bytes of every leaf by path; equal means bit for bit."""

    def of(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:16]
        return f"{array.dtype}{list(array.shape)} {digest}"

    def bits(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): of(leaf) for path, leaf in leaves}

    return bits
