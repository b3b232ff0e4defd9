"""Programs in processes of their own: what resumes exactly is proven, what does not is found."""

import itertools
import json
import re
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
from tests.recipes.test_bert import write_reviews
from tests.verify.test_compare import outcome, row

from loopax.cli import main
from loopax.errors import ConfigError, ProgramError
from loopax.verify import pieces, verify

LINE = """\
import collections.abc, random
import jax.numpy as jnp, numpy as np, optax, loopax

def loss_fn(params, batch, rngs):
    return jnp.square(params["slope"] * batch["x"] - 2 * batch["x"]).mean()

state = loopax.TrainState.create(params={"slope": jnp.zeros(3)}, tx=optax.adam(0.1))
x = np.random.default_rng(0).normal(size=(12, 2, 3)).astype(np.float32)
"""

RICH = """\
import flax.linen as nn, jax, jax.numpy as jnp, numpy as np, optax, sys, loopax
from flax import struct

class Net(nn.Module):
    @nn.compact
    def __call__(self, image):
        x = nn.relu(nn.Conv(2, (3, 3))(image)).reshape(image.shape[0], -1)
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=False)(nn.relu(x)))

class State(loopax.TrainState, kw_only=True):
    unknown: jax.Array = struct.field(default_factory=lambda: jnp.full(2, jnp.nan))

def loss_fn(params, batch, rngs, model_state):
    variables = {**params, **model_state}
    logits, new = model.apply(variables, batch["image"], rngs=rngs, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return losses.mean(), {"largest": logits.max()}, new

rng = np.random.default_rng(0)
image = rng.integers(0, 256, (60, 4, 4, 1), np.uint8)
label = rng.integers(0, 3, 60).astype(np.int32)
data = loopax.data.Dataset({"image": image, "label": label}, name="tiny")
model, tx = Net(), optax.MultiSteps(optax.adam(1e-2), 3)
state = State.create(model, data, tx, ema_decay=0.9)
assert sys.argv[1:] == ["--size", "small"]
elsewhere = [loopax.writers.CSV()]
loopax.fit(
    state, loss_fn, data.batches(4), epochs=3, log_every=7, run_dir="own", writers=elsewhere
)
open("after", "w").close()
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a program into the current directory, and makes sure that nothing else is left."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)

    def write(text, before=LINE):
        (tmp_path / "program.py").write_text(before + textwrap.dedent(text))
        return ["program.py"]

    yield write
    assert not list(temporary.iterdir())


def results(verdict):
    return {each.what: (each.compared, each.differing) for each in verdict.comparisons}


def status(verdict, monkeypatch):
    """What the command ends with when it finds this."""
    monkeypatch.setattr("loopax.verify.verify", lambda *words, **options: verdict)
    return main(["verify", "program.py"])


def test_a_program_with_all_that_a_state_can_hold_is_exact(write, tmp_path, monkeypatch, capsys):
    write(RICH, before="")
    said = []
    command = ["-m", "program", "--size", "small"]
    kept = tmp_path / "kept"
    verdict = verify(command, interruptions=2, seed=3, directory=kept, say=said.append)

    assert verdict.exact
    assert status(verdict, monkeypatch) == 0
    assert "exact: 45 steps, interrupted at " in capsys.readouterr().out
    assert verdict.steps == 45
    assert verdict.deterministic is None
    assert [name for _, name in verdict.interruptions] == ["SIGKILL", "SIGTERM"]
    compared = {what: count for what, (count, _) in results(verdict).items()}
    assert compared["parameters"] == 8
    assert compared["data order"] == compared["metrics"] == 45
    assert compared["logged rows"] == 7
    assert min(compared.values()) > 0
    assert len(said) == 4
    assert verdict.lines()[-1].startswith("exact: 45 steps, interrupted at ")

    starts = json.loads((kept / "interrupted" / "run" / "run.json").read_text())["starts"]
    killed, stopped = (step for step, _ in verdict.interruptions)
    assert len(starts) == 3
    assert 0 < starts[1]["step"] <= killed
    assert starts[2]["step"] == stopped
    assert not any(start["writers"] for start in starts), "no row is sent to anywhere else"
    assert not (tmp_path / "own").exists(), "the program's own run directory is left alone"
    assert not (tmp_path / "after").exists(), "what follows the training is not run"
    with pytest.raises(ConfigError, match="kept: is not an empty directory"):
        verify(command, directory=kept)


def test_what_differs_without_an_interruption_too_is_said(write, monkeypatch):
    """By trials that are not run; the next test runs them."""
    numbers = itertools.count()

    def trial(*_):
        number = next(numbers)
        return outcome(parameters={"slope": np.float32([number])}, metrics={1: row(loss=number)})

    monkeypatch.setattr(pieces, "_trial", trial)
    verdict = verify(write(""), interruptions=1, seed=0)
    assert next(numbers) == 3
    assert not verdict.exact
    assert status(verdict, monkeypatch) == 1
    assert verdict.deterministic is False
    assert results(verdict)["parameters"] == results(verdict)["metrics"] == (1, 1)
    text = "\n".join(verdict.lines())
    assert "step 1: loss 0 and 1" in text
    assert "NOT exact: 3 steps" in text
    assert "without any interruption too" in text


@pytest.mark.slow
def test_a_random_number_in_the_loss_is_found(write, monkeypatch):
    """Drawn while the program starts: drawn inside of the loss, `fit` refuses it."""
    program = write("""
        noise = random.random()

        def noisy(params, batch, rngs):
            return loss_fn(params, batch, rngs) + noise * params["slope"].sum()

        batches = [{"x": each} for each in x]
        loopax.fit(state, noisy, batches, steps=9, log_every=4)
    """)
    verdict = verify(program, interruptions=1, seed=0, say=lambda line: None)

    assert not verdict.exact
    assert status(verdict, monkeypatch) == 1
    assert verdict.deterministic is False
    assert results(verdict)["data order"] == (9, 0)
    assert results(verdict)["parameters"] == (1, 1)
    text = "\n".join(verdict.lines())
    assert "slope: 3 of 3 numbers, by up to " in text
    assert "step 1: loss " in text
    assert "line 1: loss " in text
    assert "NOT exact: 9 steps" in text
    assert "without any interruption too" in text


def test_data_that_is_shuffled_with_global_state_is_named(write):
    program = write("""
        class Shuffled(collections.abc.Sequence):
            order = list(range(12))

            def __len__(self):
                return 12

            def __getitem__(self, index):
                if index == 0:
                    random.shuffle(self.order)
                return {"x": x[self.order[index]]}

        random.seed(0)
        with loopax.training(state, loss_fn, Shuffled(), epochs=3, chunk_steps=4) as run:
            for chunk in run:
                if chunk.stop == 30:
                    break
    """)
    verdict = verify(program, interruptions=1, seed=5, say=lambda line: None)

    step = verdict.interruptions[0].step
    assert verdict.steps == 30
    assert verdict.deterministic is True
    compared, differing = results(verdict)["data order"]
    assert compared == 30
    assert 0 < differing < 30
    assert results(verdict)["keys"] == (1, 0)
    text = "\n".join(verdict.lines())
    assert "It differs only when it is interrupted" in text
    first = int(re.search(r"step (\d+): digest", text)[1])
    assert 0 < first <= step, "from the checkpoint on that was continued"


@pytest.mark.parametrize(
    ("text", "error", "message", "exit_code"),
    [
        (
            "loopax.fit(state, lambda p, b, r: 1 / 0, [{'x': x[0]}], steps=5)",
            ProgramError,
            "program.py: ZeroDivisionError: division by zero",
            1,
        ),
        ("print('nothing to train')", ConfigError, "program.py: ended without a call of", 2),
    ],
    ids=["raises", "never trains"],
)
def test_a_program_that_cannot_be_verified(write, text, error, message, exit_code):
    program = write(text)
    with pytest.raises(error) as refusal:
        verify(program, say=lambda line: None)
    assert str(refusal.value).startswith(message)
    assert refusal.value.exit_code == exit_code


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ([], {}, "there is no program"),
        (["absent.py"], {}, "absent.py: there is no such program"),
        ([sys.executable], {"steps": 1}, "steps is 1; it must be at least 2"),
        ([sys.executable], {"interruptions": 0}, "interruptions is 0; it must be at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_runs(command, options, message):
    with pytest.raises(ConfigError, match=message):
        verify(command, **options)


@pytest.mark.slow
def test_the_command_shows_that_the_vae_is_exact(write, tmp_path, capsys):
    image = np.random.default_rng(0).integers(0, 256, (400, 6, 6), np.uint8)
    np.savez(tmp_path / "images.npz", image=image, label=np.arange(400) % 4)
    options = ["--steps", "20", "--interruptions", "1", "--seed", "1"]
    words = ["--data", "images.npz", "--batch-size", "8", "--widths", "16", "--latent", "2"]
    assert main(["verify", *options, "vae", *words, "--log-every", "8"]) == 0
    assert "exact: 20 steps, interrupted at " in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_fine_tuning_resumes_exactly_with_dropout_and_buckets(tmp_path):
    fixtures = Path(__file__).parents[1] / "fixtures"
    reviews = write_reviews(tmp_path / "reviews.csv")
    options = ["--data", str(reviews), "--model", str(fixtures / "tiny-bert"), "--batch-size", "8"]
    command = ["-m", "loopax", "train", "bert", *options]
    verdict = verify(command, steps=40, interruptions=2, seed=1)
    assert verdict.exact, "\n".join(verdict.lines())


PAGES = sorted((Path(__file__).parents[2] / "docs" / "models").glob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_program_of_each_librarys_page_resumes_exactly(page, write):
    """With dropout, state and averages."""
    program = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)[0]
    verdict = verify(write(program, before=""), steps=24, interruptions=2, seed=1)
    assert verdict.exact, "\n".join(verdict.lines())
    assert results(verdict)["other state"][0] > 4, "the averages and the statistics"
