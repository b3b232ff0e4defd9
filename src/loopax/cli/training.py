"""Commands that train: begin a run, continue it, or say what its steps will cost."""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

from tyro.conf import Positional, arg

from loopax import Checkpoints
from loopax.cli.parsing import RECIPES, parse, recipe_of, seconds, unknown, value_of
from loopax.cli.printing import output_optional, show_tables
from loopax.errors import ConfigError, LoopaxError, RunDirError
from loopax.recipes.vae import VAEConfig

if TYPE_CHECKING:
    from loopax.writers import Writer

C = TypeVar("C")

Log = Literal["csv", "mlflow", "trackio", "wandb"]

STARTED = time.monotonic()
"""When this process began, nearly: a time budget counts from here."""


@dataclass(frozen=True)
class Train(Generic[C]):
    """Train a recipe. Run it again on the same directory to continue."""

    config: Annotated[C, arg(name="")]
    """What to train, and how."""
    run_dir: Path
    """Where everything goes; a run found there is continued."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """When to save and what to keep."""
    max_time: str | None = None
    """Save and stop within this time: seconds, or 90s, 30m, 2h, 1:30:00."""
    log: tuple[Log, ...] | None = None
    """Where rows go beside the files that every run has. When left out, where the last start of the
    run has sent them; with nothing after it, nowhere."""
    fresh: bool = False
    """Begin anew: a run found in the directory is kept beside it, under another name."""
    dry_run: bool = False
    """Only say what a step costs: parameters, FLOPs, memory, time. Nothing is written."""


@dataclass(frozen=True)
class Resume:
    """Continue a run with the settings it was made with."""

    run: Positional[Path]
    """The run directory."""
    data: str | None = None
    """Where its data is by now, if not where it was."""
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    """When to save and what to keep."""
    max_time: str | None = None
    """Save and stop within this time: seconds, or 90s, 30m, 2h, 1:30:00."""
    log: tuple[Log, ...] | None = None
    """Where rows go beside the files that every run has. When left out, where the last start of the
    run has sent them; with nothing after it, nowhere."""


@dataclass(frozen=True)
class Judge:
    """Train the classifier that judges samples of some data; the one for MNIST is bundled."""

    data: Positional[str] = "mnist"
    """What `loopax train vae --data` takes."""
    image_size: tuple[int, int] | None = None
    """As for training."""
    channels: Literal[1, 3] | None = None
    """As for training."""
    background: str | None = None
    """As for training."""
    epochs: float | None = None
    """Passes over the training images; when left out, as many as for samples that are measured."""
    shift: int = 0
    """Pixels by which training images are moved, at most, in each direction."""
    out: Path | None = None
    """A .safetensors file; where `loopax evaluate` looks for it when left out."""


def judge(words: list[str]) -> int:
    """`loopax judge DATA`."""
    command = parse(Judge, words, "loopax judge")
    import loopax
    from loopax.files import storing
    from loopax.recipes import images, vae

    config = VAEConfig(
        data=command.data,
        image_size=command.image_size,
        channels=command.channels,
        background=command.background,
    )
    data = images.data_of(config)
    folder = None if command.out else loopax.caches.cache_folder("judges")
    if command.out is None and folder is None:
        raise ConfigError("there is no cache to keep a judge in; give --out")
    out = command.out or Path(folder or "") / vae.name_for(data)
    with storing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with output_optional():
        vae.train_judge(data, out, epochs=command.epochs, shift=command.shift, progress=True)
    made = vae.read_judge(out, data)
    known = not math.isnan(made.test_accuracy)
    right = f"right on {made.test_accuracy:.2%} of the test images" if known else "untested"
    plain = f"; logistic regression on pixels on {made.plain_accuracy:.2%}" if known else ""
    print(f"{out}: {made.digest}, {right}{plain}")
    return 0


def train(words: list[str]) -> int:
    """`loopax train RECIPE`: the preset gives the defaults that the other options change."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: loopax train RECIPE ...\n")
        for name, said in RECIPES.items():
            print(f"  {name:<6}{said}")
        print("\nloopax train RECIPE --help says what each takes.")
        return 0 if words else 2
    if words[0] not in RECIPES:
        raise ConfigError(unknown("recipe", words[0], RECIPES))
    name, options = words[0], words[1:]
    recipe = importlib.import_module(f"loopax.recipes.{name}")
    preset = value_of("--preset", options) or next(iter(recipe.PRESETS))
    if preset not in recipe.PRESETS:
        raise ConfigError(unknown("preset", preset, recipe.PRESETS))
    default = Train(recipe.PRESETS[preset], Path("runs") / f"{name}-{preset}")
    # The class is known only now, so mypy takes what stands in the brackets for no type.
    kind: Any = Train[type(default.config)]  # type: ignore[misc]
    command = parse(kind, options, f"loopax train {name}", default)
    if command.dry_run:
        print("\n".join(recipe.costs(command.config)))
        return 0
    if command.fresh:
        from loopax.rundir import set_aside

        # What cannot be trained is refused while everything is in its place.
        seconds("--max-time", command.max_time)
        chosen_writers(command.log or (), command.run_dir)
        recipe.Problem.of(command.config).state()
        if kept := set_aside(command.run_dir):
            print(f"{command.run_dir}: the run that was there is now {kept}")
    return _trained(recipe, command.config, command.run_dir, command)


def resume(words: list[str]) -> int:
    """`loopax resume RUN`."""
    command = parse(Resume, words, "loopax resume")
    recipe = recipe_of(command.run)
    config = recipe.stored_config(command.run)
    if command.data is not None:
        config = replace(config, data=command.data)
    return _trained(recipe, config, command.run, command)


def _trained(recipe: Any, config: Any, run_dir: Path, command: Train[Any] | Resume) -> int:
    from loopax.caches import keep_compiled

    budget = seconds("--max-time", command.max_time)
    writers = chosen_writers(command.log, run_dir)
    keep_compiled()
    with output_optional():
        trained = recipe.train(
            config,
            run_dir,
            checkpoints=command.checkpoints,
            writers=writers,
            # What is left of it; where nothing is, one step is made and it is said.
            max_seconds=None
            if budget is None
            else max(1e-3, budget - (time.monotonic() - STARTED)),
        )
        if trained.results_file.exists():
            show_tables(_results_of(recipe, trained))
            print(f"\n{run_dir}: report.html, pictures/, results.json, metrics.jsonl, checkpoints/")
    return 0


def chosen_writers(names: Sequence[str] | None, run_dir: Path) -> list[Writer]:
    """Those that are named; those of the run's last start where nothing was said."""
    from loopax import writers
    from loopax.rundir import RunDir

    known = {name: getattr(writers, name) for name in ("CSV", "MLflow", "Trackio", "WandB")}
    if names is None:
        last = RunDir(run_dir).starts[-1:]
        chosen = [name for start in last for name in start.get("writers", ()) if name in known]
    else:
        chosen = [name for name in known if name.lower() in names]
    return [known[name]() for name in chosen]


def _results_of(recipe: Any, trained: Any) -> Any:
    try:
        return recipe.tables(trained.dir.read_json("results.json"))
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, LoopaxError):
            raise
        raise RunDirError(
            f"{trained.results_file}: is damaged, or of an older version; remove it, and the same "
            "command measures anew"
        ) from error
