"""Recipes by the command line in two processes, and what one does with their runs afterwards."""

import json
import os
from pathlib import Path

import pytest

from tests.recipes.conftest import judged_in_haste
from tests.recipes.test_bert import write_reviews
from tests.system.processes import Process, Together, command_line, left_over, make_images

TINY = Path(__file__).parents[1] / "fixtures" / "tiny-bert"


def member(port, count, index, cache, words):
    """`loopax WORDS` as one of several processes."""
    os.environ["LOOPAX_CACHE"] = str(cache)
    together = ["--processes", count, "--process", index, "--coordinator", f"127.0.0.1:{port}"]
    with judged_in_haste():
        return command_line([*words, *together])


def together(home, cache, words):
    """Two processes that have done this, and come to their end."""
    started = Together(member, 2, home, cache, words)
    assert started.wait() == [0, 0], [process.said for process in started.processes]
    return started.processes


def alone(cache, *commands):
    """Commands one after the other; the first status that is not 0."""
    os.environ["LOOPAX_CACHE"] = str(cache)
    with judged_in_haste():
        return next(filter(None, map(command_line, commands)), 0)


@pytest.mark.parametrize(
    ("recipe", "make", "options", "after"),
    [
        pytest.param(
            "bert",
            write_reviews,
            ["--preset", "head", "--model", TINY, "--epochs", 2, "--mesh", "fsdp=2"],
            [],
            id="the head of a BERT",
        ),
        pytest.param(
            "bert",
            write_reviews,
            ["--model", TINY, "--epochs", 2],
            ["export"],
            id="a BERT",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "vae",
            make_images,
            ["--epochs", 3, "--batch-size", 20, "--widths", 16, "--latent", 2],
            ["sample", "reconstruct"],
            id="a VAE",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_processes_train_a_recipe_and_one_goes_on_with_it(
    recipe, make, options, after, tmp_path
):
    data = make(tmp_path / ("images.npz" if recipe == "vae" else "reviews.csv"))
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    words = ["train", recipe, "--data", data, "--run-dir", run_dir, *options]
    first, second = together(tmp_path, cache, words)
    for file in ("report.html", "results.json", "model.json", "metrics.jsonl"):
        assert (run_dir / file).is_file()
    assert left_over(run_dir) == []
    assert f"{run_dir}: report.html" in first.printed
    assert (second.printed, second.said) == ("", "")
    commands = [[command, run_dir] for command in ("resume", "evaluate", "report", *after)]
    with Process(alone, cache, *commands, log=tmp_path / "log") as process:
        assert process.wait() == 0, process.said


@pytest.mark.slow
def test_a_fresh_start_of_two_processes_moves_the_old_run_once(tmp_path):
    data, run_dir = make_images(tmp_path / "images.npz"), tmp_path / "run"
    words = ["train", "images", "--data", data, "--run-dir", run_dir, "--max-time", "0.001"]
    for seed in (1, 2):
        first, _ = together(tmp_path, tmp_path / "cache", [*words, "--seed", seed, "--fresh"])
    assert f"{run_dir}: the run that was there is now {run_dir}-old" in first.printed
    for folder, seed in ((run_dir, 2), (tmp_path / "run-old", 1)):
        assert json.loads((folder / "config.json").read_text())["seed"] == seed
    assert sorted(tmp_path.glob("run*")) == [run_dir, tmp_path / "run-old"]
