"""A recipe of one's own: found where it is, refused in one line, and as good as those that ship."""

import json
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from loopax.cli import main
from loopax.errors import ConfigError
from loopax.recipe import finding
from tests.system.processes import Process

EXAMPLE = Path(__file__).parents[1] / "examples" / "own_recipe.py"
FAULTY = """
from dataclasses import dataclass
from loopax.recipe import Recipe

class Empty(Recipe):
    pass

class Plain(Recipe):
    presets = {"default": {"epochs": 3}}

@dataclass
class Config:
    epochs: int = 3

class Named(Recipe):
    name = "digits"
    presets = {"default": Config()}

number = 3
"""


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no_such_module:Digits", "'no_such_module' cannot be imported (No module named"),
        ("faulty_recipes:Digits", "there is no 'Digits' in faulty_recipes"),
        ("faulty_recipes:number", "is no recipe; make it a subclass of loopax.recipe.Recipe"),
        ("faulty_recipes:Empty", "its presets are {}; give instances of a dataclass"),
        ("faulty_recipes:Plain", "its presets are {'default': {'epochs': 3}}"),
        ("faulty_recipes:Named", "is called 'digits', by which it would not be found again"),
        ("veo", "there is no recipe 'veo'; did you mean vae?; one of your own is given as"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_one_line(spec, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "faulty_recipes.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "faulty_recipes", raising=False)
    assert main(["train", spec]) == ConfigError.exit_code
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert said in told


def test_a_run_whose_recipe_is_gone_says_which_it_was(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"recipe": "gone:Digits"}')
    for command in ("resume", "evaluate", "frobnicate"):
        assert main([command, str(tmp_path)]) == ConfigError.exit_code
        assert "its recipe is not found: gone:Digits: 'gone' cannot be imported" in (
            capsys.readouterr().err
        )


def test_an_installed_package_makes_its_recipe_known_by_a_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "faulty_recipes.py").write_text(FAULTY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "faulty_recipes", raising=False)
    point = EntryPoint("digits", "faulty_recipes:Named", finding.GROUP)
    monkeypatch.setattr(finding, "entry_points", lambda group: [point])
    assert finding.find("digits").name == "digits"
    assert main(["train"]) == 2
    assert "digits        faulty_recipes:Named" in capsys.readouterr().out


def in_folder(folder, commands):
    """Commands one after the other, in a folder that is not in the path."""
    os.chdir(folder)
    sys.path[:] = [path for path in sys.path if path]
    for words in commands:
        assert main(words.split()) == 0, words


def test_the_commands_work_on_a_recipe_of_ones_own(tmp_path):
    """From its folder, in a process whose path does not have it."""
    label = np.arange(120) % 2
    image = 200 * label[:, None, None] + np.random.default_rng(0).integers(0, 50, (120, 4, 4))
    np.savez(tmp_path / "digits.npz", image=image.astype(np.uint8), label=label)
    source = EXAMPLE.read_text().replace("mnist()", "load('digits.npz')")
    source = source.replace("batches(100)", "batches(12)").replace("batches(500)", "batches(10)")
    (tmp_path / "mine.py").write_text(source)
    commands = [
        "train mine:Digits --width 8 --epochs 20 --run-dir run --max-time 0.001",
        "resume run",
        "evaluate run --checkpoint best",
        "replay run --step 3",
        "rewind run --step 3 --set learning-rate=0.001 --out branch",
        "export run",
        "report run",
        "runs .",
    ]
    with Process(in_folder, tmp_path, commands, log=tmp_path / "log") as process:
        assert process.wait() == 0, process.said
        printed = process.printed
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"] == "mine:Digits"
    assert config["width"] == 8
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["measures"]["validation"]["accuracy"] > 0.9
    assert "│ accuracy" in printed
    assert "<h2>Measures</h2>" in (tmp_path / "run" / "report.html").read_text()
    for file in ("evaluation.json", "replay/3/report.json", "weights.safetensors"):
        assert (tmp_path / "run" / file).is_file()
    assert json.loads((tmp_path / "branch" / "config.json").read_text())["learning_rate"] == 0.001
    assert "mine:Digits" in printed.splitlines()[-2]
