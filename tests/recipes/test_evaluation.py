"""The table of a VAE: its figures fit each other, and data that lacks something gets words."""

import json
import math
from dataclasses import replace

import jax
import numpy as np
import pytest

from loopax.errors import ConfigError
from loopax.recipes import vae
from loopax.recipes.vae import comparison, evaluation, report
from loopax.recipes.vae.trained import SAMPLE_SEED, TrainedVAE
from loopax.run.directory import RunDir

pytestmark = pytest.mark.usefixtures("hasty_judges")

CLASSES = 3
JUDGED = {
    "class_accuracy",
    "worst_class_accuracy",
    "confident",
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "density",
    "coverage",
}
BY_CONSTRUCTION = {"dead_pixels", "out_of_range"}
"""What a sigmoid cannot have."""


def made(home, train=None, test=None, **settings):
    """A VAE as it was before training, of images that are brighter with their class."""
    labels = {"train": np.arange(60) % CLASSES if train is None else np.asarray(train)}
    labels["test"] = np.arange(30) % CLASSES if test is None else np.asarray(test)
    rng, arrays = np.random.default_rng(0), {}
    for part, label in labels.items():
        bright = 60 + 60 * label[:, None, None, None]
        noise = rng.integers(0, 60, (len(label), 5, 4, 1))
        arrays |= {f"x_{part}": (bright + noise).astype(np.uint8), f"y_{part}": label}
    np.savez(home / "d.npz", **arrays)
    settings = {"widths": (8,), "latent": 2, "batch_size": 6, "sampler": "prior", **settings}
    problem = vae.Problem.of(vae.VAEConfig(data=str(home / "d.npz"), **settings))
    return TrainedVAE.of(problem, problem.state().params, RunDir(home), 7)


def printed(results):
    """The cells of all tables by the words in front of them, and the titles."""
    tables = evaluation.tables(results)
    for table in tables:
        assert {len(row) for row in table.rows} == {len(table.columns)}
    rows = {row[0]: row[1:] for table in tables for row in table.rows}
    return rows, [table.title for table in tables]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return made(tmp_path_factory.mktemp("usual"), sampler="mixture").with_sampler()


@pytest.fixture(scope="module")
def results(trained):
    return vae.evaluate(trained, importance_samples=300, draws=3)


# --- The objective and the likelihood -----------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_objective_is_the_sum_of_its_parts_and_an_error_per_pixel_is_its_mean(
    split, trained, results
):
    found = results["objective"][split]
    loss = found["sse_half"] + trained.config.kl_weight * found["kl_nats"]
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    columns = trained.data.parts[split].columns
    rebuilt = trained.reconstruct(columns["image"], columns["label"])
    errors = np.square(rebuilt - columns["image"] / 255).mean()
    # The objective draws its latents, which here move the images very little.
    assert found["mse_per_pixel"] == pytest.approx(errors, rel=0.05)


SIGMA = 0.3
BOUNDED = [
    {},
    {"likelihood": "gaussian", "sigma": "learned", "kl_weight": 1.0, "prior": "class"},
    {"bound": "iwae", "importance_samples": 3, "kl_weight": 1.0, "likelihood": "gaussian"},
]


@pytest.mark.parametrize("settings", BOUNDED, ids=str)
def test_bounds_are_in_order_and_bits_are_those_of_pixels_from_0_to_255(settings, tmp_path):
    trained = made(tmp_path, **settings)
    found = evaluation.objective_means(trained)["test"]
    tight = evaluation.likelihood(trained, 300)
    assert tight["nll_nats"] <= found["neg_elbo_nats"] + 0.01
    assert tight["nll_unconditional_nats"] == pytest.approx(tight["nll_nats"] + math.log(CLASSES))
    for nats, bits in (
        (found["neg_elbo_nats"], found["neg_elbo_bits_per_dim"]),
        (tight["nll_nats"], tight["nll_bits_per_dim"]),
    ):
        # A density on [0, 1] is 255 times one on 0 to 255, in each of 20 pixels. Noise of one step
        # has a variance of 1 / 12, which a normal decoder pays for by its own.
        objective = evaluation.density(trained)
        noise = 1 / 12 / 255**2 / (2 * float(objective.variance(trained.params)))
        assert bits == pytest.approx((nats / 20 + noise + math.log(255)) / math.log(2))


def test_the_density_of_a_normal_decoder_is_that_of_its_residual(tmp_path):
    """Where the posterior has no width, it can be had by hand."""
    trained = made(tmp_path, likelihood="gaussian", sigma=SIGMA, kl_weight=1.0)
    narrow = trained.params["params"]["posterior"]["bias"].at[2:].set(-40.0)
    posterior = {**trained.params["params"]["posterior"], "bias": narrow}
    params = {"params": {**trained.params["params"], "posterior": posterior}}
    trained = replace(trained, params=params)
    found = evaluation.objective_means(trained)["test"]
    columns = trained.data.test.columns
    rebuilt = trained.reconstruct(columns["image"], columns["label"])
    squares = np.square((rebuilt - columns["image"] / 255) / SIGMA).sum(axis=(1, 2, 3)).mean()
    by_hand = 0.5 * squares + 20 * math.log(SIGMA * math.sqrt(2 * math.pi))
    assert found["reconstruction_nats"] == pytest.approx(by_hand, rel=1e-4)
    assert found["neg_elbo_nats"] == pytest.approx(found["reconstruction_nats"] + found["kl_nats"])


def test_bits_bound_the_size_of_bytes_however_narrow_the_density(tmp_path):
    """Images that the decoder knows: they take no bits, and no bound of that may be below 0."""
    trained = made(tmp_path, likelihood="gaussian", sigma=0.0005, kl_weight=1.0)
    params = jax.tree.map(np.zeros_like, trained.params)  # a sigmoid of 0 is 1/2, almost 128
    params["params"]["decoder"] = jax.tree.map(
        lambda leaf: leaf + (np.log(128 / 127) if leaf.shape == (20,) else 0),
        params["params"]["decoder"],
    )
    for part in trained.data.parts.values():
        part.columns["image"][:] = 128
    trained = replace(trained, params=params)
    found = evaluation.objective_means(trained)["test"]
    assert found["neg_elbo_nats"] < 0
    # Of a step of 1 / 255 at a deviation of 0.0005, whose discrete probability is all but 1.
    exact = 0.5 * (1 / 12 / (255 * 0.0005) ** 2 + math.log(2 * math.pi * (255 * 0.0005) ** 2))
    assert found["neg_elbo_bits_per_dim"] == pytest.approx(exact / math.log(2), rel=1e-3)
    assert found["neg_elbo_bits_per_dim"] > 0
    tight = evaluation.likelihood(trained, 20)
    assert tight["nll_bits_per_dim"] == pytest.approx(found["neg_elbo_bits_per_dim"], rel=1e-3)


def test_floats_have_a_density_and_no_bits(tmp_path):
    trained = made(tmp_path)
    floats = {
        name: replace(
            part, columns={**part.columns, "image": part.columns["image"] / np.float32(255)}
        )
        for name, part in trained.data.parts.items()
    }
    problem = replace(trained.problem, data=trained.data._replace(**floats))
    found = evaluation.objective_means(replace(trained, find_problem=lambda: problem))["test"]
    assert "neg_elbo_nats" in found
    assert "neg_elbo_bits_per_dim" not in found


def test_an_optimal_deviation_is_that_of_all_classes(tmp_path, monkeypatch):
    """Of images that lie class by class the first ones, here of the darkest, are not enough."""
    trained = made(tmp_path, np.sort(np.arange(60) % CLASSES), likelihood="gaussian", kl_weight=1.0)
    all_of_them = evaluation.density(trained).config.sigma
    monkeypatch.setattr(evaluation, "SIGMA_OF", 30)
    assert evaluation.density(trained).config.sigma == pytest.approx(all_of_them, rel=0.1)


def test_ink_is_counted_in_bits_of_one_colour_and_is_the_same_each_time(tmp_path):
    trained = made(tmp_path, likelihood="bernoulli", kl_weight=1.0)
    found = evaluation.likelihood(trained, 50)
    assert found == evaluation.likelihood(trained, 50)
    assert found["nll_bits_per_dim"] == pytest.approx(found["nll_nats"] / math.log(2) / 20)
    # As good as a coin at each pixel, give or take what untrained weights say.
    assert found["nll_bits_per_dim"] == pytest.approx(1, abs=0.2)


def test_without_a_weight_of_the_kl_divergence_there_is_no_density_and_no_figure_of_one(tmp_path):
    said = []
    trained = made(tmp_path, kl_weight=0.0)
    results = vae.evaluate(trained, importance_samples=10, say=said.append)
    assert any("kl_weight 0" in line for line in said)
    assert "likelihood" not in results
    rows, _ = printed(results)
    assert not any("ELBO" in name or "log p" in name for name in rows)
    assert "training objective" in rows
    trained.dir.pictures.mkdir(exist_ok=True)
    assert "nan" not in report.write(trained, results, {}).read_text().split()


# --- Samples ------------------------------------------------------------------


def test_every_judged_figure_stands_beside_its_floor_and_its_deviation(results):
    samples = results["samples"]
    assert list(samples) == ["mixture", "prior", "baseline", "floor"]
    for source in ("mixture", "prior", "baseline"):
        assert samples[source].keys() >= JUDGED
        assert not samples[source].keys() & BY_CONSTRUCTION
        for name in set(evaluation.SAMPLES) & samples[source].keys():
            assert name in samples["floor"]
            assert samples[source][f"{name}_std"] >= 0
    assert not any(name.endswith("_std") for name in samples["floor"])


def test_real_images_are_near_and_those_of_an_untrained_decoder_far(results):
    floor = results["samples"]["floor"]
    assert floor["precision"] > 0.8
    assert floor["coverage"] > 0.8
    assert floor["nearest_train_distance"] > 0
    # Untrained, it draws much the same grey image for any latent.
    drawn = results["samples"]["prior"]
    assert drawn["frechet_distance"] > 10 * floor["frechet_distance"]
    assert drawn["spread"] < floor["spread"]
    assert drawn["recall"] < floor["recall"]


def test_shares_of_a_class_make_up_the_whole(results):
    for scores in results["samples"].values():
        assert min(scores["per_class_accuracy"]) == pytest.approx(
            scores["worst_class_accuracy"], abs=1e-4
        )
        assert scores["confident"] <= 1
    drawn = results["samples"]["prior"]
    assert np.mean(drawn["per_class_accuracy"]) == pytest.approx(drawn["class_accuracy"], abs=1e-3)


def test_the_mean_and_the_deviation_are_those_of_single_draws(trained, results, monkeypatch):
    singles = []
    for draw in range(3):
        monkeypatch.setattr(comparison, "SAMPLE_SEED", SAMPLE_SEED + draw)
        singles.append(vae.evaluate(trained)["samples"]["mixture"])
    for name in ("frechet_distance", "spread", "nearest_train_distance"):
        values = [single[name] for single in singles]
        assert len(set(values)) == 3
        assert results["samples"]["mixture"][name] == pytest.approx(np.mean(values))
        assert results["samples"]["mixture"][f"{name}_std"] == pytest.approx(np.std(values, ddof=1))


def test_it_is_the_same_again_and_survives_a_file(trained, results):
    assert vae.evaluate(trained, importance_samples=300, draws=3) == results
    trained.dir.write_json("results.json", results)
    assert trained.dir.read_json("results.json") == results


@pytest.mark.parametrize("options", [{"draws": 0}, {"importance_samples": 0}])
def test_less_than_one_of_anything_is_refused(trained, options):
    with pytest.raises(ConfigError, match="at least 1"):
        vae.evaluate(trained, **options)


# --- Tables -------------------------------------------------------------------


def test_tables_print_each_figure_once_and_as_it_is(results):
    rows, titles = printed(results)
    samples, found = results["samples"], results["likelihood"]
    for name, words in evaluation.OBJECTIVE.items():
        if name in results["objective"]["test"]:
            expected = [results["objective"][split][name] for split in ("train", "test")]
            assert [float(cell) for cell in rows[words]] == pytest.approx(expected, abs=1e-4)
    for name, words in evaluation.LIKELIHOOD.items():
        assert float(rows[words][0]) == pytest.approx(found[name], abs=1e-4)
    printed_rows = set(evaluation.SAMPLES) - BY_CONSTRUCTION
    for name in printed_rows:
        words, form = evaluation.SAMPLES[name]
        drawn, floor = samples["mixture"], samples["floor"]
        assert rows[words][0] == f"{drawn[name]:{form}} ± {drawn[f'{name}_std']:{form}}"
        assert rows[words][3] == f"{floor[name]:{form}}"
    assert len(titles) == 3
    assert titles[1].startswith("Likelihood of 30 test images, 300 importance samples")
    assert results["judge"]["digest"] in titles[2]
    assert f"right on {results['judge']['test_accuracy']:.2%}" in titles[2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_called_so(results, value):
    bad = json.loads(json.dumps(results))
    bad["objective"]["test"]["neg_elbo_nats"] = value
    bad["likelihood"]["nll_standard_error_nats"] = value
    bad["samples"]["prior"]["frechet_distance_std"] = value
    rows, titles = printed(bad)
    assert rows["-ELBO, nats"][1] == "not finite"
    assert rows["Fréchet distance"][1].endswith("± not finite")
    assert "standard error not finite" in titles[1]


# --- Data that lacks something ------------------------------------------------


def lines_of(results):
    rows, titles = printed(results)
    text = " ".join([*titles, *(cell for row in rows.values() for cell in row)])
    assert "nan" not in text
    json.loads(json.dumps(results), parse_constant=pytest.fail)
    return rows, titles


@pytest.mark.filterwarnings("error")
def test_one_class_needs_no_judge_and_has_the_rest(tmp_path):
    trained = made(tmp_path, [0] * 60, [0] * 20, output="relu")
    results = vae.evaluate(trained, importance_samples=5)
    _, titles = lines_of(results)
    assert results["judge"] is None
    assert "one class only" in titles[-1]
    assert set(results["samples"]["floor"]) == set(evaluation.SAMPLES) - JUDGED
    found = results["likelihood"]
    assert found["nll_unconditional_nats"] == found["nll_nats"], "nothing was conditioned on"


@pytest.mark.filterwarnings("error")
def test_test_images_without_any_label_are_compared_with_but_say_nothing_of_the_judge(tmp_path):
    trained = made(tmp_path, test=[-1] * 20)
    results = vae.evaluate(trained, importance_samples=5)
    rows, titles = lines_of(results)
    assert results["judge"]["test_accuracy"] is None
    assert "met no test image of a known class" in titles[-1]
    assert "Fréchet distance" in rows
    found = results["likelihood"]
    assert found["images"] == 20
    assert "nll_unconditional_nats" not in found, "which would bound another condition"


def test_the_likelihood_given_a_class_is_that_of_images_of_known_class(tmp_path):
    """Those of unknown class, here the first half, change nothing but the counts."""
    label = np.arange(40) % CLASSES
    trained = made(tmp_path, test=np.where(np.arange(40) < 20, -1, label))
    found = evaluation.likelihood(trained, 400)
    assert found["images"] == 20
    columns = {name: column[20:] for name, column in trained.data.test.columns.items()}
    known = replace(trained.data.test, columns=columns)
    problem = replace(trained.problem, data=trained.data._replace(test=known))
    assert evaluation.likelihood(replace(trained, find_problem=lambda: problem), 400) == found
    assert "nll_unconditional_nats" in found


@pytest.mark.parametrize("test", [None, [-1] * 20], ids=["labels", "no labels"])
def test_a_model_that_sees_no_class_bounds_the_image_itself(test, tmp_path):
    found = evaluation.likelihood(made(tmp_path, test=test, conditioning="none"), 5)
    assert found["nll_unconditional_nats"] == found["nll_nats"]


def test_too_few_images_for_a_mixture_leave_samples_to_the_prior(tmp_path):
    trained = made(tmp_path, [0, 1, 2], batch_size=3, sampler="mixture").with_sampler()
    assert trained.mixtures is None
    assert trained.sample(1, 4).shape == (4, 5, 4, 1)


@pytest.mark.parametrize("test", [[1, -1, -1], [0, 1]], ids=str)
@pytest.mark.filterwarnings("error")
def test_hardly_any_test_images_leave_out_what_they_cannot_show_and_say_so(test, tmp_path):
    said = []
    results = vae.evaluate(made(tmp_path, test=test), say=said.append)
    rows, _ = lines_of(results)
    known = sum(label >= 0 for label in test)
    assert f"{known} test images are too few for all distances" in said
    assert ("Fréchet distance" in rows) == (known > 1)
    assert "precision" not in rows
    assert "samples in their class, by the judge" in rows
    shares = results["samples"]["prior"]["per_class_accuracy"]
    assert shares.count(None) == CLASSES - known, "a class without samples has no share"
