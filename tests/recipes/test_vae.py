"""The VAE recipe in Python: what is trained is what is loaded, sampled and measured."""

import dataclasses
import math
import shutil

import jax
import numpy as np
import pytest
from tests.recipes.conftest import drawn_in_haste, judged_in_haste

import loopax
from loopax import Optimizer
from loopax.data import Mapped
from loopax.errors import LoopaxError
from loopax.recipes import vae
from loopax.recipes.vae import trained as vae_trained
from loopax.recipes.vae.pictures import CURVES
from loopax.report import save_curves
from loopax.weights import save_weights


def test_a_run_is_loaded_with_the_average_that_was_evaluated(tiny_vae):
    loaded = vae.load(tiny_vae.dir.path)
    for one, other in ((loaded, tiny_vae), (loaded, vae.load(tiny_vae.dir.path, "latest"))):
        np.testing.assert_array_equal(one.sample(1, 4), other.sample(1, 4))
    assert vae.evaluate(loaded) == tiny_vae.dir.read_json("results.json")
    with loopax.CheckpointStore(tiny_vae.dir.checkpoints) as store:
        tree, _ = store.read()
    kernel = np.asarray(loaded.params["params"]["posterior"]["kernel"])
    assert np.array_equal(kernel, tree["ema"]["params"]["posterior"]["kernel"])
    assert not np.array_equal(kernel, tree["params"]["params"]["posterior"]["kernel"])


def test_samples_are_colour_images_in_range_and_a_function_of_the_seed(tiny_vae):
    samples = tiny_vae.sample("2", 5, seed=3)
    assert samples.shape == (5, 5, 4, 3)
    assert samples.min() >= 0
    assert samples.max() <= 1
    np.testing.assert_array_equal(samples, tiny_vae.sample(2, 5, seed=3))
    assert not np.array_equal(samples, tiny_vae.sample(2, 5, seed=4))
    assert tiny_vae.samples_by_class(2).shape == (3, 2, 5, 4, 3)


def test_large_images_are_decoded_and_encoded_few_at_a_time(tiny_vae, monkeypatch):
    labels, together = np.arange(7) % 3, []
    whole = tiny_vae.samples_of(labels)
    means = tiny_vae.encode(whole, labels)[0]
    monkeypatch.setattr("loopax.recipes.images.data.NUMBERS_AT_ONCE", 2 * 5 * 4 * 3)
    for name in ("_encode", "_decode"):
        plain = getattr(vae_trained, name)

        def watched(model, params, given, labels, plain=plain):
            together.append(len(given))
            return plain(model, params, given, labels)

        monkeypatch.setattr(vae_trained, name, watched)
    np.testing.assert_allclose(tiny_vae.samples_of(labels), whole, atol=1e-6)
    np.testing.assert_allclose(tiny_vae.encode(whole, labels)[0], means, atol=1e-5)
    assert together == [2, 2, 2, 1] * 2


def test_large_images_have_a_warm_up(tmp_path, monkeypatch):
    image = np.random.default_rng(0).integers(0, 256, (24, 160, 160, 3), np.uint8)
    np.savez(tmp_path / "large.npz", image=image, label=np.arange(24) % 2)
    problem = vae.Problem.of(vae.VAEConfig(data=str(tmp_path / "large.npz"), network="conv"))
    assert "large images, so 100 steps of warm-up" in problem.description
    made = []
    monkeypatch.setattr(loopax.TrainState, "create", lambda *args, **_: made.append(args[2]))
    problem.state()
    assert made[0].schedule.warmup_steps == 100


def test_the_sampler_of_an_unfinished_run_is_fitted_once_and_to_some_of_many_images(
    tiny_vae, monkeypatch, tmp_path
):
    encoded = []

    def encode(trained, images, labels, rows):
        encoded.append(len(rows))
        return np.random.default_rng(0).normal(size=(len(rows), 2)), None

    monkeypatch.setattr(vae.TrainedVAE, "encode", encode)
    monkeypatch.setattr(vae_trained, "SAMPLER_OF", 20)
    unfinished = loopax.run.RunDir(tmp_path)
    for step in (3, 3, 4):
        at = dataclasses.replace(tiny_vae, dir=unfinished, step=step).with_sampler()
        assert at.mixtures is not None
    assert encoded == [20, 20], "that of another step is not used"


def test_images_on_the_disk_train_and_measure_as_those_in_memory(
    tiny_vae, tiny_config, tmp_path, monkeypatch
):
    monkeypatch.setattr("loopax.data.images.kept.SMALLEST_BYTES", 0)
    with judged_in_haste(), drawn_in_haste():
        mapped = vae.train(tiny_config, tmp_path / "run", progress=False)
    assert isinstance(mapped.data.train.columns["image"], Mapped)
    results = [run.dir.read_json("results.json") for run in (mapped, tiny_vae)]
    assert results[0] == results[1]
    assert vae.load(tmp_path / "run").data.train.fingerprint == tiny_vae.data.train.fingerprint


def test_data_that_has_changed_since_is_refused(tiny_vae, tiny_config, tmp_path):
    other = tmp_path / "other.npz"
    image = np.random.default_rng(1).integers(0, 255, (60, 5, 4, 3), np.uint8)
    np.savez(other, image=image, label=np.arange(60) % 3)
    changed = dataclasses.replace(tiny_config, data=str(other))
    copy = shutil.copytree(tiny_vae.dir.path, tmp_path / "run")
    with pytest.raises(LoopaxError, match="is not the data that"):
        vae.train(changed, copy, progress=False)


def test_presets_are_the_article_and_the_same_with_more():
    article, wide = vae.PRESETS["article"], vae.PRESETS["wide"]
    assert (article.widths, article.batch_size, article.seed) == ((256, 128, 64), 16, 0xFFFF)
    assert article.optimizer == Optimizer("adamw", 1e-4)
    assert article.kl_weight == wide.kl_weight == 0.5
    assert (article.epochs, wide.epochs) == (10, 6)


def test_another_run_begins_with_the_averages_and_with_nothing_else(
    tiny_vae, tiny_config, tmp_path
):
    file = tmp_path / "weights.safetensors"
    with loopax.CheckpointStore(tiny_vae.dir.checkpoints) as store:
        save_weights(file, store.weights())
    usual = vae.Problem.of(tiny_config).state()
    for source in (tiny_vae.dir.path, file):
        state = vae.Problem.of(dataclasses.replace(tiny_config, weights=str(source))).state()
        jax.tree.map(np.testing.assert_array_equal, state.params, tiny_vae.params)
        jax.tree.map(np.testing.assert_array_equal, state.eval_params, tiny_vae.params)
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, usual.opt_state)
        assert (int(state.step), state.key) == (0, usual.key)


def test_weights_of_another_model_are_refused_by_their_leaves(tiny_vae, tiny_config):
    wider = dataclasses.replace(tiny_config, widths=(9,), weights=str(tiny_vae.dir.path))
    with pytest.raises(loopax.errors.CheckpointError, match="of another model") as caught:
        vae.Problem.of(wider).state()
    assert "encoder/Dense_0/kernel is float32[63, 8] there and float32[63, 9] here" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_curves_have_gaps_where_there_were_no_numbers(tmp_path):
    """An interval that was skipped as a whole has no means, and an evaluation may go bad."""
    values = [
        {"loss": 3.0, "sse_half": 2.0, "kl_nats": 1.0},
        {"skipped_steps": 10},
        {"loss": math.nan, "sse_half": math.inf, "kl_nats": 1.0},
    ]
    rows = [
        {"step": 10 * index, "source": source, **row}
        for index, row in enumerate(values)
        for source in ("train", "test")
    ]
    for history in (rows, rows[2:4], []):
        save_curves(history, tmp_path / "curves.png", CURVES)
        assert (tmp_path / "curves.png").stat().st_size > 0


# What a checkpoint is chosen by


def sources(trained):
    return {row["source"] for row in trained.dir.metrics} - {"train", "probe"}


def test_a_checkpoint_is_chosen_by_images_that_are_neither_trained_nor_tested_on(tiny_vae):
    train, validation, test = tiny_vae.data
    assert [len(part) for part in (train, validation, test)] == [42, 12, 6]
    rows = [part.columns["image"].tobytes() for part in tiny_vae.data]
    assert len({*rows}) == 3
    assert "42 to train on, 12 to choose by (1 in 4.5 of the training data held out)" in (
        tiny_vae.problem.description
    )
    assert sources(tiny_vae) == {"validation"}
    assert set(tiny_vae.dir.read_json("results.json")["objective"]) == {
        "train",
        "validation",
        "test",
    }
    losses = {r["step"]: r["loss"] for r in tiny_vae.dir.metrics if r["source"] == "validation"}
    best = vae.load(tiny_vae.dir.path, "best")
    assert losses[best.step] == min(losses.values())
    state = tiny_vae.problem.state()
    measured = loopax.evaluate(
        state.replace(params=tiny_vae.params, ema=None, ema_decay=None),
        tiny_vae.problem.loss_fn,
        validation.batches(12),
    )
    assert measured["sse_half"] == pytest.approx(
        tiny_vae.dir.read_json("results.json")["objective"]["validation"]["sse_half"], rel=1e-3
    )


@pytest.mark.parametrize("settings", [{"validation": 0.0}, {"validation": 0.1}])
def test_without_images_to_choose_by_nothing_is_chosen(settings, tiny_config, tmp_path):
    """Nothing was to be held out, or too little could be, which is said."""
    config = dataclasses.replace(tiny_config, epochs=1, **settings)
    problem = vae.Problem.of(config)
    assert (problem.data.validation, len(problem.data.train)) == (None, 54)
    told = "too few images to hold any out" in problem.description
    assert told == bool(settings["validation"])
    trained = vae.train(config, tmp_path / "run", steps=3, progress=False)
    assert sources(trained) == {"test"}
    with loopax.CheckpointStore(trained.dir.checkpoints) as store:
        _, meta = store.read()
    assert not meta.get("rank")


def test_a_part_to_choose_by_that_is_given_is_used_as_it_is(tiny_config, tmp_path):
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 20), ("val", 6), ("test", 8)):
        arrays[f"x_{part}"] = rng.integers(0, 256, (count, 4, 4), np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 2
    np.savez(tmp_path / "d.npz", **arrays)
    for validation in (0.0, 0.5):
        config = dataclasses.replace(
            tiny_config, data=str(tmp_path / "d.npz"), validation=validation
        )
        data = vae.Problem.of(config).data
        assert [len(part) for part in data] == [20, 6, 8]
        np.testing.assert_array_equal(data.validation.columns["image"][..., 0], arrays["x_val"])


@pytest.mark.parametrize("preset", vae.PRESETS)
def test_presets_beside_published_figures_train_on_every_image(preset):
    expected = 0.1 if preset in ("sharp", "conv") else 0.0
    assert vae.PRESETS[preset].validation == expected


def test_a_number_is_the_name_of_a_class_where_all_names_are_numbers(tiny_vae):
    def named(*names):
        return dataclasses.replace(tiny_vae, class_names=names)

    numbers, words = named("1", "2", "3"), named("café", "thé", "3")
    assert (numbers.label_of("2"), numbers.label_of(3)) == (1, 2)
    with pytest.raises(loopax.errors.ConfigError, match="no class '0'; there are 1, 2, 3"):
        numbers.label_of("0")
    assert (words.label_of("0"), words.label_of("3")) == (0, 2)
    assert words.label_of("cafe\u0301") == 0, "the accent apart, as macOS stores it"
