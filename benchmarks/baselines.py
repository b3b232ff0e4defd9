"""The default presets on six sets that are not MNIST, beside a simple baseline and the floor.

    python benchmarks/sets.py sets/
    python benchmarks/baselines.py sets/ --out baselines.json    # about an hour on two CPU cores

Each row is one `loopax train` with nothing set but the data and the seed; seconds are those of the
whole command, judge, measures and report included. Of images the figure is the Fréchet distance
to test images (lower is better), of texts the accuracy on test texts. A run that is in the folder
of runs already is not trained again, and its seconds are those that it took then.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from loopax.run.directory import RunDir


class Set(NamedTuple):
    """A set: its name in tables, and what `loopax train` is given for it."""

    name: str
    recipe: str
    data: str
    test_data: str | None = None


SETS = {
    "digits": Set("digits, 8 x 8", "vae", "digits.npz"),
    "faces": Set("faces, 25 x 25", "vae", "faces.npz"),
    "fashion": Set("Fashion-MNIST", "vae", "fashion"),
    "r8": Set("Reuters R8, 800 texts", "bert", "r8-train.csv", "r8-test.csv"),
    "tweets": Set("election tweets, 800", "bert", "tweets-train.csv", "tweets-test.csv"),
    "newsgroups": Set(
        "20 Newsgroups, 1,000", "bert", "newsgroups-train.csv", "newsgroups-test.csv"
    ),
}


@dataclass(frozen=True)
class Options:
    folder: tyro.conf.Positional[Path]  # Where sets.py has put them.
    sets: tuple[str, ...] = tuple(SETS)  # Which of them.
    seeds: tuple[int, ...] = (1, 2)
    runs: Path = Path("runs/baselines")  # Where the runs go.
    out: Path = Path("baselines.json")


def main(options: Options) -> None:
    """Train what is missing, and print the table."""
    rows = []
    for key in options.sets:
        for seed in options.seeds:
            rows.append(row(options, key, seed))
            options.out.write_text(json.dumps(rows, indent=2) + "\n")
    columns = ("set", "seed", "loopax", "baseline", "floor", "seconds")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for each in rows:
        print(f"| {' | '.join(str(each[column]) for column in columns)} |")


def row(options: Options, key: str, seed: int) -> dict[str, Any]:
    """One run, trained or found, and its figures."""
    chosen, run = SETS[key], options.runs / f"{key}-{seed}"
    seconds_file = run / "seconds.json"
    if not seconds_file.exists():
        words = ["train", chosen.recipe, "--data", str(options.folder / chosen.data)]
        words += ["--seed", str(seed), "--run-dir", str(run), "--fresh"]
        if chosen.test_data is not None:
            words += ["--test-data", str(options.folder / chosen.test_data)]
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "loopax", *words], check=True)
        seconds_file.write_text(json.dumps(round(time.monotonic() - began)))
    results = RunDir.open(run).read_json("results.json")
    figures = images(results) if chosen.recipe == "vae" else texts(results)
    seconds = json.loads(seconds_file.read_text())
    return {"set": chosen.name, "seed": seed, **figures, "seconds": seconds}


def images(results: dict[str, Any]) -> dict[str, str]:
    """Fréchet distances, and the shares of samples in their class."""
    samples = results["samples"]
    ours = next(name for name in samples if name not in ("baseline", "floor"))
    return {
        column: f"{samples[source]['frechet_distance']:.2f} "
        f"({samples[source]['class_accuracy']:.3f})"
        for column, source in (("loopax", ours), ("baseline", "baseline"), ("floor", "floor"))
    }


def texts(results: dict[str, Any]) -> dict[str, str]:
    """Accuracies."""
    found = {"loopax": results, "baseline": results["baseline"], "floor": results["floor"]}
    return {column: f"{scores['accuracy']:.1%}" for column, scores in found.items()}


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
