"""The report of a VAE run: what was measured, every picture, and where all of it comes from."""

import base64
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tests.test_report import page_of

from loopax.recipes import vae
from loopax.recipes.vae import report
from loopax.recipes.vae.trained import TrainedVAE
from loopax.run.directory import RunDir

NAMES = ("<script>alert(1)</script>", "shoe & sock", "bag")
OBJECTIVE = {
    "loss": 5.5,
    "sse_half": 3.25,
    "mse_per_pixel": 0.0084,
    "kl_nats": 25.5,
    "neg_elbo_nats": -123.45,
    "neg_elbo_bits_per_dim": 7.773,
}
SCORES = {
    "class_accuracy": 0.993,
    "worst_class_accuracy": 0.98,
    "frechet_distance": 4.125,
    "per_class_accuracy": [0.991, 0.992, None],
    "spread": 0.13,
    "nearest_train_distance": 2.5,
}
FLOOR = {**SCORES, "class_accuracy": 0.996, "frechet_distance": 0.575}
RESULTS = {
    "step": 30,
    "objective": {"train": OBJECTIVE, "test": OBJECTIVE},
    "samples": {
        "mixture": SCORES,
        "prior": {**SCORES, "class_accuracy": 0.5},
        "baseline": {**SCORES, "frechet_distance": 3.0},
        "floor": FLOOR,
    },
    "judge": {"digest": "0123456789ab", "test_accuracy": 0.995},
}
UNJUDGED = {
    "step": 30,
    "objective": RESULTS["objective"],
    "samples": {"prior": {"spread": 0.13}, "floor": {"spread": 0.14}},
    "judge": None,
}
USUAL = vae.PRESETS["sharp"]
PICTURES = ("samples.png", "interpolation.png", "curves.png", "own.png")


@pytest.fixture
def trained(tmp_path):
    data = tmp_path / "d.npz"
    image = np.random.default_rng(0).integers(0, 255, (30, 3, 3, 1), np.uint8)
    np.savez(data, image=image, label=np.arange(30) % 3)
    config = vae.VAEConfig(
        data=str(data), widths=(4,), latent=2, batch_size=9, kl_weight=0.25, seed=3
    )
    problem = vae.Problem.of(config)
    parts = {n: replace(part, class_names=NAMES) for n, part in problem.data.parts.items()}
    data = problem.data._replace(**parts)
    run = RunDir.create(tmp_path / "run")
    return TrainedVAE.of(replace(problem, data=data), problem.state().params, run, 30)


@pytest.fixture
def pictures(trained):
    """Each of another grey; with what it shows."""
    for grey, name in enumerate(PICTURES):
        Image.new("L", (4, 3), grey).save(trained.dir.pictures / name)
    return {name: f"This is {name}." for name in PICTURES}


def recorded(trained, starts=1):
    for index in range(starts):
        facts = {"key": [0, 3], "git": {"revision": "c0de", "changed": True}}
        trained.dir.note_start(10 * index, print, data={"data": "f00d" * 16}, **facts)
    trained.dir.write_json(
        "account.json",
        {
            "wall_s": 190.0,
            "compute_s": 150.0,
            "compile_s": 40.0,
            "shares": {"compile": 0.21, "compute": 0.79},
            "compilations": {"train": ["first use"]},
            "host_reads": 5,
        },
    )


def rows_of(page):
    return [row.split("\n") for row in page.texts("tr")]


def test_the_main_figures_stand_beside_their_floor(trained, pictures):
    recorded(trained)
    page = page_of(report.write(trained, RESULTS, pictures))
    labels, values = page.texts("dt"), page.texts("dd")
    assert dict(zip(labels, zip(values[::2], values[1::2], strict=True), strict=True)) == {
        "samples in their class": ("99.3%", "real images: 99.6%"),
        "Fréchet distance to test images": ("4.12", "baseline: 3.00, real images: 0.57"),
        "-ELBO of a test image": ("-123.5 nats", "7.773 bits per dimension; less is better"),
        "squared error per pixel": ("0.0084", "test images, from 0 to 1"),
    }
    story = " ".join(page.texts("p"))
    assert page.texts("p")[1].startswith("PCA with a Gaussian mixture for each class does better")
    assert "may be above 1, and this then below 0" in story
    assert "10 passes over the training images, 30 steps of 9, in 3 min 10 s." in story
    assert trained.data.description in story


def test_every_picture_is_embedded_and_samples_come_first(trained, pictures):
    page = page_of(report.write(trained, RESULTS, pictures))
    embedded = [base64.b64decode(i["src"].partition(",")[2]) for i in page.attributes("img")]
    wanted = [(trained.dir.pictures / name).read_bytes() for name in PICTURES]
    assert embedded[0] == wanted[0]
    assert sorted(embedded) == sorted(wanted)
    assert set(page.texts("figcaption")) == {*pictures.values()}
    assert page.texts("h2")[:2] == ["Summary", "Samples"]


def test_tables_have_every_measure_class_and_setting(trained, pictures):
    recorded(trained)
    page = page_of(report.write(trained, RESULTS, pictures))
    rows = rows_of(page)
    for table in vae_tables():
        assert table.title in page.texts("caption")
        for row in table.rows:
            assert [cell for cell in row if cell] in rows
    assert [NAMES[0], "99.1%", "99.1%", "99.1%", "99.1%"] in rows
    assert [NAMES[2]] in rows, "a class without samples is listed, empty"
    assert ["seed", "3", str(USUAL.seed)] in rows, "beside the value of the preset"
    assert ["epochs", str(trained.problem.epochs)] in rows, "the number that was chosen"
    assert ["optimizer.schedule.kind", "cosine"] in rows
    assert ["training steps", "150.0", "79.0%"] in rows
    assert ["in all", "190.0"] in rows


def vae_tables():
    from loopax.recipes.vae.evaluation import tables

    return tables(RESULTS)


def test_where_it_comes_from_is_told(trained, pictures):
    recorded(trained)
    start = json.loads((trained.dir.path / "run.json").read_text())["starts"][0]
    rows = rows_of(page_of(report.write(trained, RESULTS, pictures)))
    assert ["random seed", "3"] in rows
    assert ["data, SHA-256", "f00d" * 16] in rows
    assert ["Python", start["python"]] in rows
    assert ["jax", start["packages"]["jax"]] in rows
    assert ["code, git revision", "c0de, with changes that are not committed"] in rows


def test_a_run_that_went_on_says_so(trained, pictures):
    recorded(trained, starts=3)
    page = page_of(report.write(trained, RESULTS, pictures))
    assert "in 3 min 10 s since the last of 3 starts" in " ".join(page.texts("p"))
    assert "Where the time of the last start went" in page.texts("caption")
    assert [row[-1] for row in rows_of(page)[-3:]] == ["0", "10", "20"]


def test_without_a_judge_or_records_it_says_what_is_known(trained, pictures):
    page = page_of(report.write(trained, UNJUDGED, {"samples.png": "Samples."}))
    assert page.texts("dt") == ["-ELBO of a test image", "squared error per pixel"]
    assert "judge" not in " ".join(page.texts("p"))
    assert page.texts("h2") == ["Summary", "Measures", "Configuration"]


def test_names_of_classes_are_words_and_never_markup(trained, pictures):
    page = page_of(report.write(trained, RESULTS, pictures))
    assert not page.attributes("script")
    assert NAMES[0] in page.texts("th")


def test_a_preset_as_it_is_has_nothing_beside_it(trained, pictures):
    problem = replace(trained.problem, config=USUAL)
    page = page_of(
        report.write(
            replace(trained, config=USUAL, find_problem=lambda: problem), RESULTS, pictures
        )
    )
    assert "in preset sharp" not in page.texts("th")
    assert ["latent", str(USUAL.latent)] in rows_of(page)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (119.0, "119 s"), (190.0, "3 min 10 s"), (3 * 3600 + 125.4, "3 h 02 min")],
)
def test_times_are_told_in_what_fits_them(seconds, said, trained):
    trained.dir.write_json("account.json", {"wall_s": seconds, "shares": {}})
    page = page_of(report.write(trained, RESULTS, {}))
    assert f", in {said}." in " ".join(page.texts("p"))
