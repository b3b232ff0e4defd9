"""Pictures show what their captions say: read back cell by cell, for images of any kind."""

import json
from dataclasses import replace

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from loopax.recipes import vae
from loopax.recipes.vae import pictures
from loopax.recipes.vae.trained import TrainedVAE
from loopax.report import save_curves
from loopax.run.directory import RunDir

GRIDS = ("samples.png", "reconstructions.png", "interpolation.png")


def made(home, *, classes=3, count=60, shape=(5, 4, 3), known=1.0, names=None, sampler="mixture"):
    """A VAE of random images and weights: what is drawn does not depend on how good they are."""
    rng = np.random.default_rng(0)
    label = np.where(rng.random(count) < known, np.arange(count) % classes, -1)
    ground = rng.random((classes + 1, *shape))[label]
    image = (0.7 * ground + 0.3 * rng.random((count, *shape))) * 255
    names = names or [f"kind {index}" for index in range(classes)]
    np.savez(home / "d.npz", image=image.astype(np.uint8), label=label)
    config = vae.VAEConfig(
        data=str(home / "d.npz"),
        test_fraction=0.25,
        widths=(8,),
        latent=3,
        batch_size=4,
        sampler=sampler,
    )
    problem = vae.Problem.of(config)
    parts = {n: replace(p, class_names=tuple(names)) for n, p in problem.data.parts.items()}
    problem = replace(problem, data=problem.data._replace(**parts))
    (home / "run").mkdir()
    row = {"step": 1, "source": "train", "loss": 1.0}
    (home / "run" / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return TrainedVAE.of(problem, problem.state().params, RunDir(home / "run"), 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return made(tmp_path_factory.mktemp("colour"), count=72).with_sampler()


@pytest.fixture(scope="module")
def drawn(trained):
    return pictures.draw_all(trained)


def cells(path, shape):
    """The images of a grid, `[rows, columns, height, width, channels]`, as they were stored."""
    height, width, channels = shape
    picture = np.asarray(Image.open(path)).astype(int)
    picture = picture.reshape(*picture.shape[:2], channels)
    factor = max(1, round(pictures.HEIGHT / height))
    small = picture[::factor, ::factor]
    np.testing.assert_array_equal(small.repeat(factor, 0).repeat(factor, 1), picture)
    gap = pictures.GAP
    rows, columns = (
        (small.shape[0] - gap) // (height + gap),
        (small.shape[1] - gap) // (width + gap),
    )
    small = small[gap:, gap:].reshape(rows, height + gap, columns, width + gap, channels)
    return small[:, :height, :, :width].swapaxes(1, 2)


def cells_of(trained, name):
    return cells(trained.dir.pictures / name, trained.model.image_shape)


def close(found, images):
    """Equal up to the rounding of a pixel."""
    images = images * 255.0 if images.dtype != np.uint8 else images.astype(float)
    np.testing.assert_allclose(found, images, atol=0.51)


def of_class(labels, label):
    """The images of a class in the order in which pictures take them."""
    return pictures._groups(labels)[label]


def test_all_are_drawn_and_said(trained, drawn):
    files = {path.name for path in trained.dir.pictures.iterdir()}
    assert files == set(drawn) == {*GRIDS, "samples-prior.png", "latents.png", "curves.png"}
    for caption in drawn.values():
        assert caption.endswith(".")
        assert "\n" not in caption
    for name in ("samples.png", "reconstructions.png"):
        assert "kind 0, kind 1, kind 2" in drawn[name]


def test_they_are_the_same_again(trained, drawn):
    before = {path.name: path.read_bytes() for path in trained.dir.pictures.iterdir()}
    assert pictures.draw_all(trained) == drawn
    assert {path.name: path.read_bytes() for path in trained.dir.pictures.iterdir()} == before


def test_samples_are_those_of_the_sampler_and_of_the_prior(trained, drawn):
    for name, source in (("samples.png", trained), ("samples-prior.png", trained.from_prior())):
        expected = source.samples_by_class(20).reshape(6, 10, 5, 4, 3)
        close(cells_of(trained, name), expected)
    assert "mixture" in drawn["samples.png"]
    assert "prior" in drawn["samples-prior.png"]


@pytest.mark.usefixtures("drawn")
def test_reconstructions_are_right_of_their_images(trained):
    test = trained.data.test.columns
    found = cells_of(trained, "reconstructions.png")
    for label, row in enumerate(found):
        own = test["image"][of_class(test["label"], label)]
        own = own[np.arange(5) % min(5, len(own))]
        close(row[::2], own)
        close(row[1::2], trained.reconstruct(own, np.full(5, label)))
    assert len(found) == 3


def test_ways_lead_from_image_to_image_and_change_class_in_the_middle(trained, drawn):
    test = trained.data.test.columns
    where = [of_class(test["label"], label) for label in range(3)]
    within = [own[:2] for own in where] + [own[2:4] for own in where[:2]]
    ends = [*within, (where[0][0], where[1][0]), (where[1][0], where[2][0])]
    found = cells_of(trained, "interpolation.png")
    assert found.shape[:2] == (len(ends), 12)
    assert "5 rows within a class, then 2 rows from one class" in drawn["interpolation.png"]
    for row, (first, last) in zip(found, ends, strict=True):
        images, labels = test["image"][[first, last]], test["label"][[first, last]]
        close(row[[0, -1]], images)
        close(row[[1, -2]], trained.reconstruct(images, labels))
        mean, _ = trained.encode(images, labels)
        around = np.stack([(5 * mean[0] + 4 * mean[1]) / 9, (4 * mean[0] + 5 * mean[1]) / 9])
        close(row[5:7], trained.decode(around, labels))


def figures_saved(monkeypatch):
    saved, save = [], matplotlib.figure.Figure.savefig

    def saving(figure, *args, **options):
        saved.append(figure)
        return save(figure, *args, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saving)
    return saved


def test_the_map_is_of_the_principal_components(trained, monkeypatch, tmp_path):
    from sklearn.decomposition import PCA

    saved = figures_saved(monkeypatch)
    pictures.save_latents(trained, tmp_path / "latents.png")
    (figure,) = saved
    test = trained.data.test.columns
    mean, _ = trained.encode(test["image"], test["label"])
    components = PCA(2).fit(mean.astype(float))
    axes = figure.axes[0]
    shares = components.explained_variance_ratio_
    assert f"({shares[0]:.1%} of the variance)" in axes.get_xlabel()
    assert f"({shares[1]:.1%})" in axes.get_ylabel()
    points = axes.collections[0]
    places = np.asarray(points.get_offsets())
    expected = components.transform(mean)
    by_place = np.lexsort(np.round(np.abs(places), 5).T)
    by_expected = np.lexsort(np.round(np.abs(expected), 5).T)
    np.testing.assert_allclose(
        np.abs(places[by_place]), np.abs(expected[by_expected]), rtol=1e-3, atol=1e-5
    )
    colours = points.get_facecolors()[by_place][:, :3]
    legend = {
        text.get_text(): handle.get_facecolor()[0][:3]
        for text, handle in zip(
            figure.legends[0].get_texts(), figure.legends[0].legend_handles, strict=True
        )
    }
    wanted = [legend[f"kind {label}"] for label in test["label"][by_expected]]
    np.testing.assert_allclose(colours, wanted)


def test_images_that_lie_class_by_class_are_all_on_the_map(trained, monkeypatch, tmp_path):
    saved = figures_saved(monkeypatch)
    order = np.argsort(trained.data.test.columns["label"], kind="stable")
    columns = {name: column[order] for name, column in trained.data.test.columns.items()}
    test = replace(trained.data.test, columns=columns)
    problem = replace(trained.problem, data=trained.data._replace(test=test))
    monkeypatch.setattr(pictures, "ENCODED_LIMIT", 9)
    sorted_by_class = replace(trained, find_problem=lambda: problem)
    pictures.save_latents(sorted_by_class, tmp_path / "latents.png")
    assert len(np.unique(saved[0].axes[0].collections[0].get_facecolors(), axis=0)) == 3
    # As frames in a row are: those of a class that are shown are not its first ones either.
    shown = of_class(np.repeat([0, 1], 1000), 1)[:5] - 1000
    assert shown.max() - shown.min() > 100


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        pytest.param({"classes": 1, "count": 12, "shape": (64, 40, 1)}, 5, id="one class, tall"),
        pytest.param({"classes": 23, "count": 92, "shape": (2, 2, 1)}, 20, id="many classes"),
        pytest.param({"classes": 2, "count": 8, "known": 0.6}, 6, id="hardly any, half unknown"),
    ],
)
def test_any_data_is_drawn(options, rows, tmp_path):
    trained = made(tmp_path, **options, sampler="prior")
    drawn = pictures.draw_all(trained)
    assert set(drawn) == {*GRIDS, "latents.png", "curves.png"}, "no second picture of the prior"
    for name in GRIDS:
        assert cells_of(trained, name).std() > 0
    assert cells_of(trained, "samples.png").shape[:2] == (rows, 10)
    assert ("the first 20 of 23 classes" in drawn["samples.png"]) == (rows == 20)
    assert len(cells_of(trained, "reconstructions.png")) <= 21
    for name in ("latents.png", "curves.png"):
        assert Image.open(trained.dir.pictures / name).size[0] > 300


def test_images_without_a_label_come_last(tmp_path):
    trained = made(tmp_path, known=0.5, count=80)
    caption = pictures.save_reconstructions(trained, tmp_path / "r.png", each=2)
    assert caption.endswith("kind 0, kind 1, kind 2, unknown class.")
    test = trained.data.test.columns
    unknown = test["image"][of_class(test["label"], -1)]
    found = cells(tmp_path / "r.png", trained.model.image_shape)
    assert found.shape[:2] == (4, 4)
    close(found[-1, ::2], np.resize(unknown[:2], (2, *unknown.shape[1:])))


def test_names_of_classes_cannot_break_a_picture(tmp_path):
    names = ["$\\frac{$", "line\nbreak\x07", "_hidden" * 9]
    trained = made(tmp_path, names=names)
    caption = pictures.save_samples(trained, tmp_path / "samples.png")
    assert caption.isprintable()
    assert len(caption) < 160
    pictures.save_latents(trained, tmp_path / "latents.png")


def test_curves_have_a_panel_for_each_metric_there_is(monkeypatch, tmp_path):
    saved = figures_saved(monkeypatch)
    numbers = {"loss": 3.0, "neg_elbo_nats": -70.0, "reconstruction_nats": 2.0, "kl_nats": 1.0}
    for history, titles in (
        ([], ["loss"]),
        ([{"loss": 2.0, "learning_rate": 1e-3}], ["loss"]),
        ([numbers], ["loss", "reconstruction, nats", "KL, nats", "-ELBO, nats"]),
        ([{**numbers, "sse_half": 1.0}], 4),
    ):
        rows = [
            {"step": 1, "source": source, **row} for row in history for source in ("train", "test")
        ]
        save_curves(rows, tmp_path / "curves.png", pictures.CURVES)
        found = [axes.get_title() for axes in saved[-1].axes]
        assert found == titles or len(found) == titles


def test_a_curve_below_zero_is_seen_whole_and_a_high_beginning_is_cut(monkeypatch, tmp_path):
    saved = figures_saved(monkeypatch)
    values = [1000.0, *np.linspace(-60, -120, 99)]
    rows = [{"step": step, "source": "train", "loss": value} for step, value in enumerate(values)]
    save_curves(rows, tmp_path / "curves.png", pictures.CURVES)
    low, high = saved[0].axes[0].get_ylim()
    assert low < -120
    assert -61 < high < 0
