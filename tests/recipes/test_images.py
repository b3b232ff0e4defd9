"""A classifier of images: trained, measured beside its baseline, and used without its images."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.system.processes import Process, command_line
from tests.test_report import page_of

from loopax.cli import main
from loopax.errors import ConfigError, DataError
from loopax.randomness import Rngs
from loopax.recipes import images, vae
from loopax.recipes.images import problem as problems
from loopax.recipes.images import report
from loopax.weights import read_weights, save_weights

NAMES = ("above", "below", "beside")


def halves(count, seed, unknown=0):
    """Noise that is brighter in one part, by which there are three classes."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % 3
    image = rng.integers(0, 120, (count, 8, 7, 3))
    for one, part in enumerate((np.s_[:4], np.s_[4:], np.s_[:, :3])):
        for row in np.flatnonzero(label == one):
            image[row][part] += 60
    label[:unknown] = -1
    return image.astype(np.uint8), label


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """180 images, in a folder for each class."""
    root = tmp_path_factory.mktemp("folder")
    for index, (image, label) in enumerate(zip(*halves(180, 0), strict=True)):
        (root / NAMES[label]).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / NAMES[label] / f"{index:03}.png")
    return root


OPTIONS = "--epochs 8 --batch-size 16 --widths 8 --features 8"


@pytest.fixture(scope="session")
def config(folder):
    return images.ImagesConfig(data=str(folder), epochs=8, batch_size=16, widths=(8,), features=8)


def test_columns_of_parquet_are_named_at_the_command_line(tmp_path, capsys):
    drawn, label = halves(30, 0)
    cells = [Image.fromarray(image) for image in drawn]
    for place, image in enumerate(cells):
        image.save(tmp_path / "one.png")
        cells[place] = (tmp_path / "one.png").read_bytes()
    table = pa.table({"this": cells, "that": cells[::-1], "class": label, "category": label[::-1]})
    pq.write_table(table, tmp_path / "t.parquet")
    words = ["train", "images", "--data", str(tmp_path / "t.parquet"), "--dry-run"]
    assert main(words) == 3
    assert "which column holds the images is not clear; name it (image_column)" in (
        capsys.readouterr().err
    )
    assert main([*words, "--image-column", "that", "--label-column", "class"]) == 0
    assert "8 x 7 colour, 3 classes" in capsys.readouterr().out


@pytest.fixture(scope="session")
def program(folder, tmp_path_factory):
    """The whole program, ended: what it was told, what it printed, and its run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    words = ["train", "images", "--data", folder, *OPTIONS.split(), "--run-dir", run]
    with Process(command_line, words, log=run.with_suffix(".log")) as process:
        assert process.wait() == 0, process.said
    return words, process.printed, run


@pytest.fixture(scope="session")
def trained(program):
    """The finished run of `config`; nobody changes it."""
    return images.load(program[2])


@pytest.fixture(scope="session")
def results(trained):
    return json.loads((trained.dir.path / "results.json").read_text())


@pytest.fixture
def unlabelled(tmp_path):
    """Gives the path of images of which some to train on and some to test on have no class."""

    def write(train, test):
        parts = {"train": halves(60, 1, train), "test": halves(30, 2, test)}
        arrays = {f"x_{name}": image for name, (image, _) in parts.items()}
        arrays |= {f"y_{name}": label for name, (_, label) in parts.items()}
        np.savez(tmp_path / "images.npz", **arrays)
        return str(tmp_path / "images.npz")

    return write


def test_the_program_shows_what_it_measures_and_is_done_once(program, results, folder, capsys):
    words, printed, run = program
    assert f"{results['accuracy']:.2%}" in printed
    assert "logistic regression on pixels" in printed
    before = (run / "results.json").stat().st_mtime_ns
    assert main([*map(str, words)]) == 0
    assert (run / "results.json").stat().st_mtime_ns == before
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "evaluation.json").read_text()) == results
    assert main(["export", str(run)]) == 0
    capsys.readouterr()
    files = [str(path) for name in NAMES for path in sorted((folder / name).iterdir())[:20]]
    assert main(["predict", str(run), *files]) == 0
    answers = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [each[2] for each in answers] == files
    right = [name == Path(file).parent.name for name, _, file in answers]
    assert sum(right) > 40
    assert all(1 / 3 <= float(probability) <= 1 for _, probability, _ in answers)


def test_files_that_are_no_images_are_one_line(program, tmp_path, capsys):
    (tmp_path / "words.png").write_text("words")
    assert main(["predict", str(program[2]), str(tmp_path / "words.png")]) == DataError.exit_code
    assert "words.png" in capsys.readouterr().err
    assert main(["predict", str(program[2])]) == ConfigError.exit_code


def test_it_learns_and_is_measured_beside_a_baseline_and_guessing(trained, results):
    test = trained.problem.data.test.columns
    probabilities = trained.probabilities(test["image"])
    assert results["examples"] == len(test["label"]) == 18
    assert results["accuracy"] == (probabilities.argmax(-1) == test["label"]).mean() > 0.7
    assert results["floor"]["accuracy"] == pytest.approx(1 / 3)
    assert results["baseline"]["accuracy"] > 0.7, "such classes are easy for it too"
    assert results["class_names"] == list(NAMES)
    assert results["step"] == trained.step
    names = [NAMES[index] for index in probabilities.argmax(-1)]
    assert trained.classify(test["image"]) == names


def test_the_best_checkpoint_is_the_most_accurate_on_validation_images(trained):
    rows = [row for row in trained.dir.metrics if row["source"] == "validation"]
    assert len(rows) == 8
    best = max(row["accuracy"] for row in rows)
    assert trained.step in [row["step"] for row in rows if row["accuracy"] == best]


def test_the_surest_mistakes_are_shown_with_their_images(trained, tmp_path):
    """Of a classifier that has learned nothing."""
    beginner = replace(trained, params=trained.problem.state().params)
    results = images.evaluate(beginner)
    wrong, test = results["mistakes"], trained.problem.data.test.columns
    found = beginner.probabilities(test["image"][[each["index"] for each in wrong]])
    true = [NAMES[test["label"][each["index"]]] for each in wrong]
    assert [each["class"] for each in wrong] == true
    assert all(each["class"] != each["predicted"] for each in wrong)
    sure = [each["probability"] for each in wrong]
    assert sure == sorted(sure, reverse=True)
    assert sure == pytest.approx(found.max(-1).tolist(), rel=1e-5)
    assert "surest" in report.save_mistakes(beginner, results, tmp_path / "mistakes.png")
    assert (tmp_path / "mistakes.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_tells_of_classes_calibration_and_training(trained, results):
    page = page_of(trained.dir.path / "report.html")
    assert {"Summary", "Classes", "Calibration", "Mistakes", "Training"} <= {*page.texts("h2")}
    assert f"{results['accuracy']:.1%}" in page.texts("dd")
    pictures = {path.name for path in trained.dir.pictures.iterdir()}
    assert {"confusion.png", "calibration.png", "curves.png"} <= pictures


def test_a_run_is_used_without_its_images_and_not_measured_on_others(trained, tmp_path):
    copy = shutil.copytree(trained.dir.path, tmp_path / "moved")
    kept = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps({**kept, "data": str(tmp_path / "gone")}))
    loaded = images.load(copy)
    image = halves(5, 3)[0]
    np.testing.assert_array_equal(loaded.probabilities(image), trained.probabilities(image))
    with pytest.raises(DataError, match="--data says where they are by now"):
        images.evaluate(loaded)
    with pytest.raises(DataError, match="is not the data that"):
        images.evaluate(images.load(copy, data="mnist"))


def test_images_without_a_class_are_left_out_and_told_of(unlabelled, config):
    problem = images.Problem.of(replace(config, data=unlabelled(12, 6), validation=0.0))
    assert len(problem.batches.dataset) == 48
    assert "12 images have no label and are left out" in problem.description
    [(name, batches)] = problem.evaluation.parts.items()
    assert (name, len(batches.dataset)) == ("test", 24)
    assert problem.ranking[0] is None


def test_what_cannot_be_told_apart_or_tested_is_refused(unlabelled, config):
    with pytest.raises(DataError, match="no image has a label; there is nothing to test on"):
        images.Problem.of(replace(config, data=unlabelled(0, 30)))
    with pytest.raises(DataError, match="one class only"):
        images.Problem.of(replace(config, data=unlabelled(60, 30)))


@pytest.mark.parametrize(
    "setting", [{"epochs": 0.0}, {"widths": ()}, {"shift": -1}, {"validation": 1.0}]
)
def test_a_setting_that_cannot_work_is_named(setting):
    [name] = setting
    with pytest.raises(ConfigError, match=name):
        images.ImagesConfig(**setting)


def test_images_are_moved_in_training_alone(config):
    problem = images.Problem.of(replace(config, shift=3, dropout=0.0))
    state = problem.state()
    batch = problem.batches.dataset.example

    def losses(training):
        streams = (Rngs(jax.random.key(seed), 0, training=training) for seed in range(5))
        return {float(problem.loss_fn(state.params, batch, rngs)[0]) for rngs in streams}

    assert len(losses(training=False)) == 1
    assert len(losses(training=True)) > 1


def test_the_judge_of_a_vae_is_a_preset(unlabelled, tmp_path, monkeypatch):
    monkeypatch.setitem(problems.LENGTHS, "judge", (1, 10, 10))
    small = replace(images.PRESETS["judge"], widths=(8,), features=8)
    monkeypatch.setitem(images.PRESETS, "judge", small)
    config = replace(small, data=unlabelled(6, 0))
    run = images.train(config, tmp_path / "run", progress=False)
    vae.train_judge(images.data_of(config), tmp_path / "judge.safetensors")
    save_weights(tmp_path / "run.safetensors", run.params)
    ours, theirs = (read_weights(tmp_path / f"{name}.safetensors") for name in ("run", "judge"))
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_the_program_on_its_page_asks_a_run(trained, capsys, monkeypatch, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.dir.path, "runs/images-standard")
    batch = trained.problem.data.test.columns["image"]
    exec(program, {"batch": batch})
    assert str(trained.classify(batch)) in capsys.readouterr().out
