"""Every block of code in the README and in docs/ runs, and every command is one that there is.

A block that begins with ```python no-run needs what tests have not.
"""

import re
import shlex
import shutil
import sqlite3
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro

import loopax
from loopax.cli import COMMANDS, main
from loopax.cli.brought import shipped_commands
from loopax.run.directory import RunDir
from tests.trackers import FakeRuns

ROOT = Path(__file__).parents[1]
PAGES = {
    page.name: page.read_text() for page in [*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")]
}
LIBRARIES = {page.stem for page in ROOT.glob("docs/models/*.md")}


def programs(page):
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


@pytest.fixture
def names(dataset, line_loss, line_state, tmp_path, monkeypatch):
    """What pages take for granted, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    train = dataset.batches(2)
    return {"loopax": loopax, "state": line_state(), "loss_fn": line_loss, "train": train}


def execute(page, names):
    for program in programs(page):
        exec(compile(program, page, "exec"), names)


# --- Pages with programs --------------------------------------------------------------------------


def test_every_page_with_a_program_is_run():
    run_by = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    with_programs = {page.partition(".")[0].lower() for page in PAGES if programs(page)}
    elsewhere = {"vae", "images"}  # by tests/recipes/test_export.py and test_images.py
    assert with_programs - elsewhere - LIBRARIES <= run_by


def test_lora(names):
    execute("lora.md", names)
    before, after = names["pretrained"]["in"]["kernel"], names["state"].params["in"]["kernel"]
    assert (names["merged"]["in/kernel"] != before).any()
    np.testing.assert_allclose(names["merged"]["in/kernel"], after, atol=1e-6)


def test_performance(names):
    execute("performance.md", names)


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_readme(page):
    """The program is the end of an example, which a test of its own runs."""
    example = (ROOT / "examples" / "vae.py").read_text()
    assert all(example.endswith(program) for program in programs(page))


def test_reliability(names, tmp_path):
    """Without loopax, Orbax reads what a run has saved."""
    run = loopax.fit(names["state"], names["loss_fn"], names["train"], steps=4, run_dir=tmp_path)
    [program] = programs("reliability.md")
    exec(program.replace("/path/to/run", str(tmp_path)), names)
    restored = names["restored"]["state"]["trainable"]
    assert restored["weights"].tolist() == run.state.params["weights"].tolist()


def test_sources(names, tmp_path):
    """The source learns, and goes on exactly where it was."""
    execute("sources.md", names)
    run = names["run"]
    first, second = (row["loss"] for row in run.history.of("all"))
    assert second < first < np.log(8)
    for steps in (17, 40):
        parts = loopax.fit(
            names["state"], names["loss_fn"], names["windows"], steps=steps, run_dir="runs/parts"
        )
    assert (parts.state.params["scores"] == run.state.params["scores"]).all()


def test_optimizers(names):
    """One step to the mean of all tokens, however many each batch has."""
    execute("optimizers.md", names)
    x, mask = (np.concatenate([each[name] for each in names["data"]]) for name in ("x", "mask"))
    assert float(names["run"].state.params["w"]) == pytest.approx(x[mask].mean())


def test_models(names):
    """What is written to a file is what is read from it."""
    ones = jax.tree.map(np.ones_like, names["state"].params)
    names["state"] = names["state"].with_params(ones)
    execute("models.md", names)
    assert set(names["weights"]) == {"bias", "weights"}
    assert names["state"].params["weights"].tolist() == [1.0] * 16


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_page_of_a_library(library, names):
    """Its program learns which points are which."""
    execute(f"{library}.md", names)
    assert names["run"].latest("test")["accuracy"] > 0.75


def test_precision(names):
    """What is promised of types and memory holds for the program that says so."""
    execute("precision.md", names)
    costs, run = names["costs"], names["run"]
    assert costs.computed_share == 1
    assert costs.temporary_bytes < costs.plain_temporary_bytes / 2
    assert {leaf.dtype for leaf in jax.tree.leaves(run.state.params)} == {np.dtype(np.float32)}
    assert run.step == 40


def test_hooks(names, capsys):
    """The run ends early, says why, and stays ended."""
    execute("hooks.md", names)
    run = names["run"]
    assert run.step < 600
    assert capsys.readouterr().out == "the validation loss is below 0.001\n"
    assert len([*run.history.of("hook")]) == run.step // 10
    execute("hooks.md", names)
    assert names["run"].step == run.step


def test_writers(names, tmp_path, monkeypatch):
    """Rows arrive, and the writer of one's own has each of them once after a resumption."""
    tracker = FakeRuns()
    monkeypatch.setitem(sys.modules, "wandb", tracker)
    execute("writers.md", names)
    assert names["run"].step == 40
    assert Path("runs/first/metrics.csv").exists()
    assert {step for step, *_ in tracker.read()} == {*range(4, 44, 4)}

    def fit(steps):
        return loopax.fit(
            names["state"],
            names["loss_fn"],
            names["train"],
            steps=steps,
            run_dir=tmp_path / "run",
            log_every=4,
            checkpoints=loopax.Checkpoints(every=8, keep=5),
            writers=[names["SQLite"]()],
            progress=False,
        )

    shutil.rmtree(fit(16).dir.checkpoints / "16")
    run = fit(24)
    query = "select * from metrics where source != 'time' order by step, name"
    with sqlite3.connect(tmp_path / "run" / "metrics.db") as database:
        found = database.execute(query).fetchall()
    assert found == sorted(
        (row["step"], row["source"], name, value)
        for row in run.history
        for name, value in loopax.writers.values_of(row).items()
    )


def test_recipes(names, capsys):
    """The line is found, and the command of the second recipe runs on it."""
    execute("recipes.md", names)
    trained = names["trained"]
    assert float(trained.state.params["slope"]) == pytest.approx(3, abs=0.1)
    names["Shout"](trained.dir.path, times=2)(names["Line"]())
    said = f"STEP {trained.step}! "
    assert capsys.readouterr().out == f"{said * 2}\n"


# --- Commands -------------------------------------------------------------------------------------


class Understood(BaseException):
    """The words were parsed, and nothing more is wanted of the command."""


def commands():
    """The words of each command in a block, with all that is optional, of alternatives the first.

    Of the README also of those in the middle of a line.
    """
    blocks = [line for page in PAGES.values() for line in re.findall(r"^(?:    )?\S.*", page, re.M)]
    brought = {name for _, name, _ in shipped_commands()}
    inline = re.findall(r"`([^`\n]+)`", PAGES["README.md"])
    for line in [*blocks, *inline]:
        for found in re.findall(
            rf"(?:^ *|/)loopax ((?:{'|'.join([*COMMANDS, *brought])})\b[^`]*)", line
        ):
            words = re.split(r"#|&&|\.\.\.| \| | {3,}", found.replace("  [", " ["))[0]
            words = re.sub(r"\|[\w|]+", "", words)
            yield tuple(shlex.split(words.replace("[", "").replace("]", "")))


@pytest.mark.parametrize("words", sorted(set(commands())), ids=" ".join)
def test_a_command_is_understood(words, tmp_path, monkeypatch):
    parse = tyro.cli

    def only_parse(*args, **options):
        parse(*args, **options)
        raise Understood

    monkeypatch.setattr(tyro, "cli", only_parse)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_package").mkdir()
    shutil.copy(ROOT / "examples" / "own_recipe.py", tmp_path / "my_package" / "mine.py")
    bringing = [recipe.name for recipe, name, _ in shipped_commands() if name == words[0]]
    if bringing and words[0] != "judge":
        recipe = next((name for name in bringing if name in words[1]), bringing[0])
        RunDir.create(tmp_path / words[1]).write_json("config.json", {"recipe": recipe})
    with pytest.raises(Understood):
        main(words)
