"""Fine-tuning in Python: what is frozen costs nothing, and what is trained is what is loaded."""

import csv
import dataclasses
import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import loopax
from loopax import Optimizer, Schedule
from loopax.account import Account
from loopax.compute.program import TrainProgram
from loopax.errors import CheckpointError, ConfigError, DataError, RunDirError
from loopax.randomness import Rngs
from loopax.recipes import bert
from loopax.recipes.bert import problem as problems
from loopax.weights import read_weights, save_weights, with_weights

pytestmark = pytest.mark.usefixtures("hasty_pictures")

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"
WORDS = {"good": ["great", "fine"], "bad": ["dull", "poor"]}


def write_reviews(path, count=140, classes=("good", "bad"), lengths=(1, 12)):
    """Texts from 3 to 60 words long, so that they fall into two buckets."""
    rng = random.Random(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["review", "verdict"])
        for index in range(count):
            verdict = classes[index % len(classes)]
            filler = ["the", "film", "is", "a", str(index)] * rng.choice(lengths)
            table.writerow([" ".join([*filler, *WORDS.get(verdict, [verdict])]), verdict])
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return write_reviews(tmp_path_factory.mktemp("data") / "reviews.csv")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Reviews of a single bucket: what is trained on them is compiled once."""
    return str(write_reviews(tmp_path_factory.mktemp("data") / "short.csv", lengths=(1,)))


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """The tiny model with the first of its layers alone."""
    folder = shutil.copytree(TINY, tmp_path_factory.mktemp("models") / "shallow")
    config = json.loads((TINY / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    weights = read_weights(TINY / "model.safetensors")
    kept = {name: array for name, array in weights.items() if ".layer.1." not in name}
    save_weights(folder / "model.safetensors", kept, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def full(reviews, shallow):
    return bert.FineTuneConfig(
        data=str(reviews),
        model=str(shallow),
        epochs=3,
        batch_size=8,
        log_every=3,
        class_weights="balanced",
        optimizer=Optimizer(learning_rate=3e-3, schedule=Schedule("linear"), clip_norm=1.0),
    )


@pytest.fixture(scope="module")
def head(full):
    optimizer = Optimizer(
        learning_rate=1e-2, schedule=Schedule("cosine"), clip_norm=1.0, freeze=("bert",)
    )
    return dataclasses.replace(full, pooling="mean", optimizer=optimizer)


@pytest.fixture(scope="module")
def trained(full, tmp_path_factory):
    return bert.train(full, tmp_path_factory.mktemp("runs") / "full", progress=False)


@pytest.fixture(scope="module")
def frozen(head, tmp_path_factory):
    config = dataclasses.replace(head, cache_features=False)
    return bert.train(config, tmp_path_factory.mktemp("runs") / "frozen", progress=False)


def states(trained):
    with loopax.CheckpointStore(trained.dir.checkpoints) as store:
        return {step: store.read(step)[0] for step in store.steps}


def rows(trained):
    """What was logged, without what a run that stops early measures at its end."""
    return [row for row in trained.dir.metrics if row["source"] == "train" or row["step"] % 14 == 0]


def test_a_run_in_pieces_ends_as_one_that_was_left_alone(full, trained, bits, tmp_path):
    bert.train(full, tmp_path, steps=17, progress=False)
    again = bert.train(full, tmp_path, progress=False)
    last = max(states(trained))
    assert last == 42
    assert bits(states(again)[last]) == bits(states(trained)[last])
    assert rows(again) == rows(trained)
    results = json.loads((again.dir.path / "results.json").read_text())
    assert results == json.loads((trained.dir.path / "results.json").read_text())
    assert set(results["chosen"]) == {"epochs", "batch_size"}


def test_a_report_that_is_written_again_is_the_one_that_was_there(trained):
    results = json.loads((trained.dir.path / "results.json").read_text())
    report = trained.dir.path / "report.html"
    page = report.read_text()
    assert bert.BERTRecipe().report(bert.load(trained.dir.path), results) == report
    assert report.read_text() == page


def test_texts_of_different_lengths_train_in_two_shapes(trained):
    account = trained.dir.read_json("account.json")
    assert len(account["compilations"]["train"]) == 2


def test_what_is_frozen_stays_bit_for_bit_and_is_saved_once(frozen, head):
    before = problems.Problem.of(head).params["params"]
    after = frozen.params["params"]
    assert jax.tree.all(jax.tree.map(np.array_equal, before["bert"], after["bert"]))
    assert not np.array_equal(before["classifier"]["kernel"], after["classifier"]["kernel"])
    checkpoints = frozen.dir.checkpoints.absolute()
    for step in states(frozen):
        tree = ocp.StandardCheckpointer().restore(checkpoints / str(step) / "state")
        leaves = jax.tree.leaves(tree["trainable"])
        assert sum(leaf.size for leaf in leaves) == 32 * 2 + 2
    saved = ocp.StandardCheckpointer().restore(checkpoints / "frozen" / "state")
    saved = saved["frozen"]["params"]["bert"]
    assert jax.tree.all(jax.tree.map(np.array_equal, before["bert"], saved))


def test_adapters_train_beside_a_model_that_stays_and_are_exported_merged_and_alone(
    full, short, tmp_path
):
    config = dataclasses.replace(full, data=short, lora=2, epochs=1)
    trained = bert.train(config, tmp_path / "run", progress=False)
    problem = bert.Problem.of(config)
    before = problem.initial_params["params"]["bert"]
    after = trained.params["params"]["bert"]
    moved = {
        loopax.paths.leaf_path(path)
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
        )
        if (np.asarray(old) != np.asarray(new)).any()
    }
    assert moved == {path for path in moved if "/attention/" in path and path.endswith("/kernel")}
    assert len(moved) == 4 * problem.pretrained.config.num_hidden_layers
    folder, adapters = bert.export(tmp_path / "run", "latest", None)
    state = problem.state()
    alone = with_weights(state.trainable, read_weights(adapters), source="adapters")
    params = state.replace(trainable=alone).params
    ours = bert.load(tmp_path / "run", "latest").params
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(ours), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert "bert.encoder.layer.0.attention.self.query.weight" in read_weights(
        folder / "model.safetensors"
    )
    assert "LoRA adapters of rank 2" in (tmp_path / "run" / "report.html").read_text()


def test_features_that_were_computed_once_give_the_same_within_rounding(head, frozen, tmp_path):
    cached = bert.train(head, tmp_path / "cached", progress=False)
    for one, other in zip(
        jax.tree.leaves(cached.params), jax.tree.leaves(frozen.params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(cached.dir.metrics, frozen.dir.metrics, strict=True):
        assert one.keys() == other.keys()
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-4)
    account = cached.dir.read_json("account.json")
    assert len(account["compilations"]["train"]) == 1


@pytest.mark.parametrize("cached", [True, False])
def test_a_training_begins_with_the_head_that_suits_the_pretrained_part(head, cached):
    problem = problems.Problem.of(dataclasses.replace(head, cache_features=cached))
    tokens = problem.texts.tokens["train"]
    features = problem._features(tokens)
    right = [
        (
            problem.model.apply(params, features, method="classify").argmax(-1)
            == tokens.columns["label"]
        )
        for params in (problem.state().params, problem.params)
    ]
    assert right[0].mean() > max(0.8, right[1].mean())


def test_features_are_kept_for_the_next_run(head, short, tmp_path, monkeypatch):
    head = dataclasses.replace(head, data=short)
    monkeypatch.setenv("LOOPAX_CACHE", str(tmp_path / "cache"))
    first = bert.train(head, tmp_path / "first", steps=14, progress=False)
    files = list((tmp_path / "cache" / "features").glob("*.safetensors"))
    assert len(files) == 2  # to train on, and to choose by
    stamps = [file.stat().st_mtime_ns for file in files]
    second = bert.train(
        dataclasses.replace(head, epochs=2), tmp_path / "second", steps=14, progress=False
    )
    assert [file.stat().st_mtime_ns for file in files] == stamps
    assert first.step == second.step


def test_a_run_is_used_without_its_data(full, trained, tmp_path):
    copy = tmp_path / "moved"
    shutil.copytree(trained.dir.path, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "data": "gone.csv"}))
    loaded = bert.load(copy)
    texts = ["the film is great", "the film is dull " * 20]
    np.testing.assert_array_equal(loaded.probabilities(texts), trained.probabilities(texts))
    np.testing.assert_allclose(loaded.probabilities(texts).sum(-1), 1, rtol=1e-5)
    assert set(loaded.classify(texts)) <= {"good", "bad"}
    assert loaded.probabilities([]).shape == (0, 2)


def test_a_text_is_judged_alike_alone_and_among_others(trained):
    texts = [("the film is a " * (index % 9 + 1),) for index in range(30)]
    together = trained.probabilities(texts, batch_size=8)
    alone = np.concatenate([trained.probabilities([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_run_is_used_without_its_pretrained_model_and_not_trained_on_with_another(
    head, short, tmp_path
):
    model = shutil.copytree(head.model, tmp_path / "model")
    config = dataclasses.replace(head, data=short, model=str(model))
    trained = bert.train(config, tmp_path / "run", steps=15, progress=False)
    texts = ["the film is great", "the film is dull"]
    weights = read_weights(model / "model.safetensors")
    name = next(name for name in weights if "query.weight" in name)
    weights[name] = weights[name] + 1
    save_weights(model / "model.safetensors", weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="made with") as raised:
        bert.train(config, tmp_path / "run", progress=False)
    assert "\n" not in str(raised.value)
    shutil.rmtree(model)
    moved = shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    loaded = bert.load(moved)
    np.testing.assert_array_equal(loaded.probabilities(texts), trained.probabilities(texts))
    [folder] = bert.export(moved, "latest", None, print)
    exported = read_weights(folder / "model.safetensors")
    assert exported.keys() >= {name}
    results = bert.evaluate(loaded)
    assert results["examples"] > 0


@pytest.mark.parametrize("damage", [{"tokenizer": "none"}, {"architecture": {"hidden_size": 3}}])
def test_a_damaged_account_of_the_model_is_one_line(frozen, tmp_path, damage):
    copy = shutil.copytree(frozen.dir.path, tmp_path / "copy")
    kept = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**kept, **damage}))
    with pytest.raises(RunDirError, match=r"model.json: is damaged") as raised:
        bert.load(copy)
    assert "\n" not in str(raised.value)


def test_training_ends_when_nothing_gets_better(head, short, tmp_path):
    optimizer = Optimizer(learning_rate=1e-30, freeze=("bert",))
    still = dataclasses.replace(
        head, data=short, patience=1, epochs=20, metric="loss", optimizer=optimizer
    )
    run = bert.train(still, tmp_path, progress=False)
    assert max(states(run)) == 28
    assert (run.dir.path / "results.json").exists()
    again = bert.train(still, tmp_path, progress=False)
    assert max(states(again)) == 28


def test_rare_classes_weigh_as_much_as_frequent_ones(tmp_path):
    path = write_reviews(tmp_path / "skewed.csv", 60, ("good", "good", "bad"))
    texts = loopax.data.read_texts(path)
    weights = problems.class_weights(texts)
    counts = np.bincount(texts.labels)
    np.testing.assert_allclose(weights * counts, np.mean(weights * counts), rtol=1e-6)
    np.testing.assert_allclose((weights * counts).sum(), len(texts), rtol=1e-6)


def test_rates_shrink_layer_by_layer_towards_the_embeddings():
    made = problems.by_depth(Optimizer(learning_rate=1.0), 2, 0.5)
    rates = {group.params[0]: group.optimizer.learning_rate for group in made.groups}
    assert made.learning_rate == 1.0
    assert rates == {
        "bert/encoder/layer/1": 0.5,
        "bert/encoder/layer/0": 0.25,
        "bert/embeddings": 0.125,
    }


def compiled(problem):
    """The chunk that trains, as XLA made it."""
    program = TrainProgram(
        problem.loss_fn, problem.batches, Account(), skip=problem.config.nonfinite == "skip"
    )
    items = problem.batches.feed([0], 0, 2).take(1)
    return program.compiled(problem.state(), items), program.batch(problem.state(), items)


def test_freezing_is_free_with_clipping_accumulation_and_a_finite_check(head):
    """Beside the forward pass alone: the ratios that a frozen model is promised to keep."""
    optimizer = dataclasses.replace(head.optimizer, accumulate=4)
    config = dataclasses.replace(
        head,
        cache_features=False,
        nonfinite="skip",
        optimizer=optimizer,
        batch_size=32,
        dropout=0.0,
    )
    problem = problems.Problem.of(config)
    step, batch = compiled(problem)
    measuring = Rngs(jax.random.key(0), 0, training=False)
    forward = (
        jax.jit(lambda params, batch: problem.loss_fn(params, batch, measuring)[0])
        .lower(problem.params, batch)
        .compile()
    )
    whole, _ = compiled(
        problems.Problem.of(
            dataclasses.replace(config, optimizer=dataclasses.replace(optimizer, freeze=()))
        )
    )

    def flops(program):
        return program.cost_analysis()["flops"]

    def temporary(program):
        return program.memory_analysis().temp_size_in_bytes

    # The tiny model has as many parameters as a real one has in a thousandth of its arithmetic.
    assert flops(step) <= 1.1 * flops(forward)
    assert flops(whole) > 2 * flops(step)
    assert temporary(whole) > 2 * temporary(step)
    optimiser = jax.tree.leaves(problem.state().opt_state)
    assert sum(leaf.nbytes for leaf in optimiser) < 2000
    assert temporary(step) <= 1.25 * temporary(forward)


@pytest.mark.usefixtures("brief_estimates")
def test_a_dry_run_tells_what_freezing_saves(head):
    lines = "\n".join(bert.costs(dataclasses.replace(head, dropout=0.0)))
    frozen, free = lines.split("with nothing frozen:")
    assert "66 trainable" in frozen
    assert "0 frozen" in free
    assert "features are computed once" in free


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 4}, "max_length is 4; it must be at least 8"),
        ({"text": ("a", "b", "c")}, "must be one column, or two of pairs"),
        ({"validation_fraction": 1.0}, "must be within 0 and 1"),
        ({"layer_decay": 0.0}, "must be above 0"),
        ({"dropout": 1.0}, "below 1"),
        ({"patience": 0}, "must be at least 1"),
        ({"lora": 0}, "lora is 0; it must be at least 1"),
        ({"lora": 2, "layer_decay": 0.5}, "leave lora out"),
        ({"lora": 2, "optimizer": Optimizer(freeze=("bert",))}, "leave optimizer.freeze"),
    ],
)
def test_settings_that_cannot_work_are_refused(full, changes, said):
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(full, **changes)


def test_a_batch_of_more_texts_than_there_are_is_refused(full):
    with pytest.raises(ConfigError, match="batch_size is 500, and 114 texts are left"):
        problems.Problem.of(dataclasses.replace(full, batch_size=500))


def test_a_run_that_was_not_measured_yet_is_loaded_at_its_latest_and_says_so(
    head, short, tmp_path, capsys
):
    config = dataclasses.replace(head, data=short)
    with pytest.warns(UserWarning, match="max_seconds"):
        bert.train(config, tmp_path / "run", max_seconds=0.01, progress=False)
    capsys.readouterr()
    loaded = bert.load(tmp_path / "run")
    assert loaded.step == bert.load(tmp_path / "run", "latest").step == 1
    assert f"{tmp_path / 'run'}: checkpoint of step 1, the latest (none was ranked)" in (
        capsys.readouterr().err
    )
    with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
        bert.load(tmp_path / "run", 7)


def problem_of(config, **changes):
    return bert.Problem.of(dataclasses.replace(config, **changes), say=lambda line: None)


def rows_of(path):
    with path.open(newline="") as file:
        header, *found = csv.reader(file)
    return header, found


def test_texts_that_are_tested_on_are_not_trained_on_however_they_are_written(full, tmp_path):
    header, found = rows_of(Path(full.data))
    with (tmp_path / "test.csv").open("w", newline="") as file:
        shouted = [(f"  {text.upper()} ", verdict) for text, verdict in found[:30]]
        csv.writer(file).writerows([header, *shouted])
    problem = problem_of(full, test_data=str(tmp_path / "test.csv"))
    assert len(problem.texts.test) == 30
    assert len(problem.texts.train) + len(problem.texts.validation) == 110
    assert "30 of 140 texts are also in test.csv" in problem.description
    with pytest.raises(DataError, match=r"every text of .* is also there"):
        problem_of(full, test_data=full.data)


def test_how_many_texts_are_cut_is_said_and_what_the_model_cannot_read(full):
    assert "longer than 16 tokens" in problem_of(full, max_length=16).description
    assert "the model reads at most 40 tokens, not 128" in problem_of(full).description
    assert "the model reads" not in problem_of(full, max_length=40).description


def test_few_texts_are_trained_on_in_small_batches_for_long_enough(full):
    problem = problem_of(full, epochs=None, batch_size=None)
    assert problem.batch_size == 8
    assert 400 <= problem.steps < 400 + 14
    assert f"batches of 8 and at most {problem.epochs} passes" in problem.description
    usual = problems.BATCH_SIZE, problems.SMALLEST_BATCH, problems.BATCHES_AT_LEAST
    assert problems.batch_size_for(10_000, *usual) == 32
    assert problem_of(full).steps == 42, "what is given is kept to"


def test_with_classes_that_weigh_alike_the_best_is_by_macro_f1_over_all_batches(full, trained):
    logged = [row for row in trained.dir.metrics if row["source"] in ("validation", "hook")]
    for counts, hook in zip(logged[::2], logged[1::2], strict=True):
        right, predicted, there = (np.array(counts[name]) for name in problems.COUNTS)
        assert there.sum() == len(problem_of(full).texts.validation)
        assert hook["macro_f1"] == pytest.approx((2 * right / (predicted + there)).mean())
    with loopax.CheckpointStore(trained.dir.checkpoints) as store:
        best = store.step_of("best")
    figures = {row["step"]: row["macro_f1"] for row in logged if row["source"] == "hook"}
    assert figures[best] == max(figures.values())
    assert trained.step == best


def test_texts_that_have_changed_since_are_refused(full, trained, tmp_path):
    shutil.copytree(trained.dir.path, tmp_path / "run")
    header, found = rows_of(Path(full.data))
    table = tmp_path / "reviews.csv"
    with table.open("w", newline="") as file:
        flipped = [("bad" if verdict == "good" else "good") for _, verdict in found[:1]]
        corrected = [(found[0][0], *flipped), *found[1:]]
        csv.writer(file).writerows([header, *corrected])
    changed = dataclasses.replace(full, data=str(table))
    before = (tmp_path / "run" / "results.json").read_bytes()
    with pytest.raises(DataError, match=r"is not the data that .* was trained on"):
        bert.train(changed, tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_another_table_is_read_from_the_columns_that_were_trained_on(trained, tmp_path):
    (tmp_path / "t.csv").write_text("text,review,verdict\na title,the film is dull poor,bad\n")
    texts = bert.texts_like(trained, tmp_path / "t.csv")
    assert texts.rows == [("the film is dull poor",)]


def test_pairs_for_a_model_of_one_segment_are_refused(full, tmp_path):
    shutil.copytree(TINY, tmp_path / "one")
    config = json.loads((TINY / "config.json").read_text()) | {"type_vocab_size": 1}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    arrays = read_weights(TINY / "model.safetensors")
    name = next(name for name in arrays if "token_type" in name)
    save_weights(tmp_path / "one" / "model.safetensors", arrays | {name: arrays[name][:1]})
    lines = [f"a {index},b {index % 7},{index % 2}" for index in range(60)]
    (tmp_path / "p.csv").write_text("\n".join(["premise,hypothesis,label", *lines]))
    with pytest.raises(ConfigError, match=r"type_vocab_size is 1.* holds pairs"):
        problem_of(full, data=str(tmp_path / "p.csv"), model=str(tmp_path / "one"))
