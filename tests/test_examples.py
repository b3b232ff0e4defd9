"""Each program in `examples/` runs, shrunken, and does what its first lines say."""

import ast
import functools
import json
import sys
import tokenize
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import loopax
from loopax.run.directory import RunDir

EXAMPLES = Path(__file__).parents[1] / "examples"
whole_mnist = loopax.data.mnist


@functools.cache
def mnist():
    """A part of it: 8,000 digits to train on, 1,000 to test on."""
    whole = whole_mnist()

    def first(part, count):
        columns = {name: column[:count] for name, column in part.columns.items()}
        return loopax.data.Dataset(columns, part.name)

    return loopax.data.Splits(first(whole.train, 8000), None, first(whole.test, 1000))


@pytest.fixture
def run_example(tmp_path, monkeypatch):
    """Runs an example in an empty directory, with replacements; gives the names that it made."""
    monkeypatch.chdir(tmp_path)
    # Only to be quick: the files are read and verified once, and what is measured takes less.
    monkeypatch.setattr(loopax.data, "mnist", mnist)

    def run(name, *replacements, **known):
        source = (EXAMPLES / name).read_text()
        for old, new in replacements:
            assert old in source, f"{name} has no {old!r}"
            source = source.replace(old, new)
        names = {"__name__": "__main__", **known}
        exec(compile(source, name, "exec"), names)
        return names

    return run


def losses(run):
    return [row["loss"] for row in run.history if row["source"] == "train"]


def moved(before, after):
    """Whether any parameter of a part changed at all, by part."""
    changed = jax.tree.map(lambda old, new: bool((old != new).any()), before, after)["params"]
    return {part: any(jax.tree.leaves(tree)) for part, tree in changed.items()}


def source_lines(path):
    """The lines that hold code: neither blank, nor a comment, nor a docstring."""
    with tokenize.open(path) as file:
        lines = {
            line
            for token in tokenize.generate_tokens(file.readline)
            if token.string.strip() and token.type != tokenize.COMMENT
            for line in range(token.start[0], token.end[0] + 1)
        }
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return lines


def test_the_vae_takes_30_lines():
    assert 20 < len(source_lines(EXAMPLES / "vae.py")) <= 30


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_example_says_in_three_lines_what_it_shows_and_is_tested_here(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    assert len(docstring.splitlines()) <= 3
    assert f"test_{path.stem}" in globals()


def test_vae(run_example, tmp_path):
    run = run_example("vae.py", ("epochs=10", "steps=60, log_every=20"))["run"]
    first, *_, last = losses(run)
    assert last < 0.9 * first
    test = run.latest("test")
    assert test["loss"] == pytest.approx(test["sse_half"] + 0.5 * test["kl_nats"], rel=1e-5)
    assert 10 < test["loss"] < 53
    directory = tmp_path / "runs" / "first"
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [20, 40, 60, 60]
    assert loopax.CheckpointStore(directory / "checkpoints").steps[-1] == 60


def test_own_loop(run_example, capsys, tmp_path):
    run = run_example("own_loop.py", ("chunk_steps=100", "chunk_steps=10"), ("> 0.97", "> 0.6"))[
        "run"
    ]
    *chunks, end = capsys.readouterr().out.splitlines()
    accuracies = [float(line.rpartition(" ")[2]) for line in chunks]
    assert max(accuracies[:-1]) <= 0.6 <= accuracies[-1]
    assert run.step == 10 * len(chunks) < 600, "it stopped early"
    assert end.startswith(f"{run.step} steps: ")
    directory = tmp_path / "runs" / "own_loop"
    assert loopax.CheckpointStore(directory / "checkpoints").steps[-1] == run.step


def test_batch_norm(run_example):
    names = run_example("batch_norm.py", ("epochs=2", "steps=60, log_every=20"))
    run = names["run"]
    statistics = run.state.model_state["batch_stats"]["BatchNorm_0"]
    assert not np.allclose(statistics["mean"], 0)
    assert not np.allclose(statistics["var"], 1)
    assert run.latest("test")["accuracy"] > 0.8
    image = jnp.asarray(names["data"].test.columns["image"][:100], jnp.float32) / 255
    logits = names["model"].apply({**run.state.params, **run.state.model_state}, image, train=False)
    label = names["data"].test.columns["label"][:100]
    measured = loopax.evaluate(run.state, names["loss_fn"], [{"image": image, "label": label}])
    assert measured["accuracy"] == pytest.approx(float((logits.argmax(-1) == label).mean()))


def test_no_flax(run_example):
    names = run_example("no_flax.py", ("epochs=1", "steps=60, log_every=20"))
    for name in ("plain", "by_hand"):
        first, *_, last = losses(names[name])
        assert last < 0.8 * first, name
    assert set(names["plain"].state.params) == {"in", "out"}
    assert jax.tree.structure(names["by_hand"].state.opt_state) == jax.tree.structure(
        names["by_hand"].state.params
    )


def test_frozen_part(run_example, capsys):
    names = run_example("frozen_part.py", ("steps=200", "steps=20"))
    start = loopax.TrainState.create(
        names["model"], names["data"].train, names["optax"].sgd(0.1)
    ).params
    for name in ("by_pattern", "by_prefix", "by_function"):
        assert moved(start, names[name].state.params) == {"backbone": False, "head": True}, name
    assert capsys.readouterr().out.count("'backbone': 0.0") == 3
    frozen_shape = names["by_pattern"].state.params["params"]["backbone"]["kernel"].shape
    shapes = [leaf.shape for leaf in jax.tree.leaves(names["by_pattern"].state.opt_state)]
    assert frozen_shape not in shapes, "what is frozen by pattern has no optimiser state"
    assert moved(start, names["no_decay_on_the_head"].state.params) == {
        "backbone": True,
        "head": True,
    }


def test_any_iterable(run_example, capsys):
    pytest.importorskip("grain")
    names = run_example("any_iterable.py", ("steps=600", "steps=300"), ("adam(0.05)", "adam(0.1)"))
    for name in ("from_iterable", "from_grain"):
        state = names[name].state
        np.testing.assert_allclose(state.params["slope"], names["SLOPE"], atol=0.01)
        np.testing.assert_allclose(state.params["offset"], 1, atol=0.01)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_any_iterable_without_grain(run_example, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    run_example("any_iterable.py", ("steps=600", "steps=2"))
    assert "pip install 'loopax[grain]'" in capsys.readouterr().out


def test_own_state(run_example, capsys, tmp_path):
    names = run_example("own_state.py", ("epochs=1", "steps=40, log_every=1"))
    run = names["run"]
    assert float(run.state.latest_loss) == losses(run)[-1]
    assert float(run.state.lowest_loss) == min(losses(run))
    directory = RunDir.open(tmp_path / "runs" / "own_state")
    with loopax.CheckpointStore(directory.checkpoints) as store:
        restored, _ = store.restore(names["state"])
    assert isinstance(restored, names["StateWithLoss"])
    assert float(restored.lowest_loss) == float(run.state.lowest_loss)
    assert f"lowest {min(losses(run)):.4f}" in capsys.readouterr().out


def test_own_recipe(run_example, capsys, tmp_path):
    """Other commands on it are tested in test_recipe.py."""
    run_example(
        "own_recipe.py",
        (".mnist().with_validation(0.1)", ".mnist()"),
        ("data.validation", "data.test"),
        ('"small": Config()', '"small": Config(epochs=1)'),
    )
    measures = json.loads((tmp_path / "runs" / "digits" / "results.json").read_text())["measures"]
    assert measures["validation"]["accuracy"] > 0.5
    assert str(measures["validation"]["accuracy"]) in capsys.readouterr().out


def test_optimizer(run_example, capsys):
    run_example("optimizer.py", ("STEPS = 600", "STEPS = 100"))
    described, by_hand = capsys.readouterr().out.splitlines()
    assert described.partition(", ")[0].split()[-1] == by_hand.partition(", ")[0].split()[-1]
    assert "'learning_rate/head': 0.1" in described


def test_gan(run_example):
    """Most digits are recognised, by the judge that comes for all of MNIST."""
    names = run_example(
        "gan.py",
        ("steps=2000", "steps=600"),
        ("batches(64)", "batches(32)"),
        ("loopax.data.mnist()", "whole_mnist()"),
        whole_mnist=whole_mnist,
    )
    assert (names["found"] == names["digits"]).mean() > 0.5
    assert {"critic", "generator"} <= names["run"].latest("train").keys()


def test_target_network(run_example):
    chances = run_example("target_network.py", ("steps=3000", "steps=1000"))["chances"]
    assert (np.diff(chances) > 0).all()
    assert chances[0] < 0.3 < 0.7 < chances[-1]


def test_sharpness_aware(run_example):
    run = run_example("sharpness_aware.py", ("epochs=2", "steps=60, log_every=20"))["run"]
    assert run.latest("train")["sharpness"] > 0
    assert run.latest("test")["accuracy"] > 0.75


def test_private(run_example):
    """It learns, no example moves the gradient by more than the clip, and the noise is as wide."""
    names = run_example("private.py", ("epochs=5", "steps=50"))
    assert names["run"].latest("test")["accuracy"] > 0.5
    names["NOISE"] = 0.0
    params, rng = names["state"].params, np.random.default_rng(0)
    image = rng.random((4, 28, 28, 1), np.float32) * 100
    batch = {"image": image, "label": np.arange(4)}
    other = {"image": np.concatenate([image[:3], -image[3:]]), "label": np.array([0, 1, 2, 9])}
    key, gradient = jax.random.key(0), names["private_gradient"]
    one, another = (gradient(params, each, key)[1] for each in (batch, other))
    distance = float(optax.tree.norm(optax.tree.sub(one, another)))
    assert 0.1 / 4 < distance <= 2 * names["CLIP"] / 4 + 1e-6
    names["NOISE"] = 3.0
    noise = jax.tree.leaves(optax.tree.sub(gradient(params, batch, key)[1], one))
    width = np.concatenate([np.ravel(leaf) for leaf in noise]).std()
    np.testing.assert_allclose(width, 3.0 * names["CLIP"] / 4, rtol=0.05)


def test_ported_vae_of_flax(run_example):
    run = run_example("../benchmarks/ports/flax_vae.py", ("STEPS = 20, 4000", "STEPS = 20, 100"))[
        "run"
    ]
    test = run.latest("test")
    assert test["kl"] > 5
    assert test["loss"] == pytest.approx(test["bce"] + test["kl"], rel=1e-5)
    assert test["loss"] < 180


def test_ported_language_model(run_example):
    replacements = ("LAYERS, STEPS = 64, 128, 2, 2000", "LAYERS, STEPS = 32, 64, 1, 60")
    run = run_example("../benchmarks/ports/flax_lm.py", replacements)["run"]
    assert run.latest("test")["bits_per_byte"] < 5


def test_ported_network_of_equinox(run_example):
    run = run_example("../benchmarks/ports/equinox_cnn.py", ("STEPS = 300", "STEPS = 60"))["run"]
    assert run.latest("test")["accuracy"] > 0.5


def test_ported_mnist_of_flax(run_example):
    run = run_example("../benchmarks/ports/flax_mnist.py", ("STEPS = 2000", "STEPS = 60"))["run"]
    assert run.latest("test")["accuracy"] > 0.8


def test_ported_adversarial_training_of_optax(run_example):
    source = "../benchmarks/ports/optax_adversarial.py"
    latest = run_example(source, ("STEPS = 0.1, 1000", "STEPS = 0.1, 150"))["run"].latest("test")
    assert latest["clean"] > latest["attacked"] > 0.4


def test_ported_residual_network(run_example):
    run = run_example("../benchmarks/ports/flax_resnet.py", ("STEPS = 300", "STEPS = 60"))["run"]
    assert run.latest("test")["accuracy"] > 0.8
