"""People's own pictures, from the folder to the exported sampler, by the command line."""

import contextlib
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from loopax.cli import main, training
from loopax.recipes import vae

pytestmark = pytest.mark.usefixtures("hasty_judges", "hasty_pictures")

COLOURS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
"""Classes, in the order of their names, and so of their labels."""
EACH = 40
CHANNEL = {"red": 0, "green": 1, "blue": 2}
TINY = ["--latent", "4", "--batch-size", "12", "--log-every", "10"]


def picture(rng, size, colour, ground):
    """A disc or a square somewhere on the ground."""
    image = Image.new("RGB" if isinstance(colour, tuple) else "L", (size, size), ground)
    half = rng.integers(size // 6, size // 3)
    x, y = rng.integers(half, size - half, 2)
    draw = ImageDraw.Draw(image)
    shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
    shape((int(x - half), int(y - half), int(x + half), int(y + half)), fill=colour)
    return image


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """Colour pictures of 16 x 16, a folder for each class."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for index in range(EACH):
            picture(rng, 16, colour, (90, 90, 90)).save(folder / name / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def grey(tmp_path_factory):
    """Grey pictures of 64 x 64 in one folder."""
    folder, rng = tmp_path_factory.mktemp("xrays"), np.random.default_rng(1)
    for index in range(60):
        picture(rng, 64, int(rng.integers(150, 250)), 20).save(folder / f"{index:03}.png")
    return folder


def told(*words):
    """What a command prints when it succeeds."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([str(word) for word in words]) == 0
    return out.getvalue()


def trained(folder, run, *options):
    return told("train", "vae", "--data", folder, "--run-dir", run, *TINY, *options)


@pytest.fixture(scope="module")
def of_colour(coloured, tmp_path_factory):
    """A run of convolutions on colour, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "colour"
    small = ["--widths", "8", "16", "--epochs", "12", "--optimizer.learning-rate", "1e-2"]
    return run, trained(coloured, run, "--preset", "conv", *small)


@pytest.fixture(scope="module")
def of_grey(grey, tmp_path_factory):
    """A run of dense layers on grey, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "grey"
    return run, trained(grey, run, "--preset", "sharp", "--widths", "8", "--epochs", "1")


@pytest.fixture
def started(tmp_path, monkeypatch):
    """What a run prints that has no time for a step; the run."""

    def started(folder, *options):
        monkeypatch.setattr(training, "STARTED", -1e9)
        run = tmp_path / "run"
        said = trained(folder, run, "--widths", "8", "--max-time", "1s", *options)
        return said, run

    return started


def test_what_was_found_in_the_folder_is_said(of_colour, of_grey, coloured, grey):
    (_, said), (_, said_of_grey) = of_colour, of_grey
    first = said.splitlines()[0]
    assert f"{coloured.name} (folder of images): 96 to train on, 12 to choose by (" in first
    assert ", 12 to test on (1 in 10 held out)" in first
    assert "16 x 16 colour, 3 classes (blue, green, red), 32 images each" in first
    first, second = said_of_grey.splitlines()[:2]
    assert second.endswith("nothing is chosen, and the latest checkpoint counts")
    assert first.startswith(f"{grey.name} (folder of images): 54 to train on, 6 to test on")
    assert first.endswith(f"64 x 64 grey, 1 class ({grey.name})")


def test_samples_of_a_class_have_its_colour(of_colour, tmp_path):
    run, _ = of_colour
    for name, channel in CHANNEL.items():
        samples = vae.load(run).sample(name, 8)
        assert samples.shape == (8, 16, 16, 3)
        assert samples.min() >= 0
        assert samples.max() <= 1
        means = samples.mean(axis=(0, 1, 2))
        assert means[channel] > np.delete(means, channel).max() + 0.05
    told("sample", run, "--class", "red", "--count", "4", "--out", tmp_path / "red.png")
    drawn = np.asarray(Image.open(tmp_path / "red.png")).astype(float)
    assert drawn.ndim == 3
    assert drawn[..., 0].mean() > drawn[..., 1:].mean(axis=(0, 1)).max() + 5


def test_reconstructions_are_nearer_to_an_image_than_those_of_others(of_colour, tmp_path):
    run, _ = of_colour
    loaded = vae.load(run)
    test = loaded.data.test.columns
    rebuilt, image = loaded.reconstruct(test["image"], test["label"]), test["image"] / 255
    distances = np.square(rebuilt[:, None] - image[None]).mean(axis=(2, 3, 4))
    others = (distances.sum(axis=0) - distances.diagonal()) / (len(image) - 1)
    assert distances.diagonal().mean() < 0.8 * others.mean()
    told("reconstruct", run, "--count", "2", "--out", tmp_path / "r.png")
    assert Image.open(tmp_path / "r.png").mode == "RGB"


def test_one_class_of_large_grey_images_is_sampled_and_rebuilt(of_grey, tmp_path):
    run, _ = of_grey
    told("sample", run, "--count", "2", "--out", tmp_path / "s.png")
    told("reconstruct", run, "--count", "1", "--out", tmp_path / "r.png")
    for name in ("s.png", "r.png"):
        found = Image.open(tmp_path / name)
        assert found.mode == "L"
        assert found.size == (2 + 2 * (64 + 2), 2 + 64 + 2)
    samples = vae.load(run).samples_by_class(3)
    assert samples.shape == (1, 3, 64, 64, 1)
    assert samples.min() >= 0
    assert samples.max() <= 1


def test_a_run_of_them_is_measured_and_reported(of_colour, of_grey):
    run, said = of_colour
    shown = told("evaluate", run, "--importance-samples", "3", "--draws", "1")
    results = json.loads((run / "evaluation.json").read_text())
    for text in (said, shown, of_grey[1]):
        assert "squared error per pixel" in text
        assert "floor" in text
        assert ("Fréchet" in text) == ("judged by" in text) == (text is not of_grey[1])
        assert "nan" not in text
    assert results["likelihood"]["nll_nats"] <= results["objective"]["test"]["neg_elbo_nats"]
    for run, said in (of_colour, of_grey):
        page = (run / "report.html").read_text()
        assert said.splitlines()[0].split(": ")[1] in page
        pictures = {path.name for path in run.glob("pictures/*.png")}
        shown = [name for name in pictures if not name.startswith("samples-epoch")]
        assert page.count("data:image/png") == len(shown)


def test_the_exported_sampler_draws_what_the_run_draws(of_colour, tmp_path):
    run, _ = of_colour
    written = told("export", run, "--out", tmp_path / "w.safetensors").splitlines()
    assert written == [str(tmp_path / "w.safetensors"), str(tmp_path / "w.stablehlo")]
    about = json.loads((tmp_path / "w.json").read_text())
    assert about["image_shape"] == [16, 16, 3]
    assert about["classes"] == [*COLOURS]
    sampler = jax.export.deserialize(bytearray((tmp_path / "w.stablehlo").read_bytes()))
    labels = np.arange(5, dtype=np.int32) % len(about["classes"])
    drawn = np.asarray(sampler.call(np.uint32(3), labels))
    np.testing.assert_allclose(drawn, vae.load(run).samples_of(labels, seed=3), atol=1e-5)


def test_a_wrong_guess_is_overridden(coloured, started):
    said, run = started(coloured, "--image-size", "12", "10", "--channels", "1")
    assert "12 x 10 grey, 3 classes" in said.splitlines()[0]
    assert vae.load(run).samples_by_class(2).shape == (3, 2, 12, 10, 1)


def test_a_bad_picture_among_good_ones_is_named_in_a_line(coloured, tmp_path, capfd):
    folder = shutil.copytree(coloured, tmp_path / "copy")
    file = folder / "red" / "039.png"
    file.write_bytes(file.read_bytes()[:-40])
    assert main(["train", "vae", "--data", str(folder), "--run-dir", str(tmp_path / "run")]) == 3
    shown = capfd.readouterr().err
    assert len(shown.splitlines()) == 1
    assert "red/039.png" in shown
    assert not (tmp_path / "run").exists()
