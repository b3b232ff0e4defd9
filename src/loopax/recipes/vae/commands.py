"""What the VAE adds to the command line."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from loopax.errors import ConfigError, LoopaxError
from loopax.recipe import Evaluate, OfRun, Recipe
from loopax.recipes import vae
from loopax.terminal import to_stderr


@dataclass(frozen=True)
class Draw(OfRun):
    """A picture of a trained VAE."""

    data: str | None = None
    """Where its images are by now, if not where they were."""

    out: Path | None = None
    """Where the picture goes; into RUN/pictures when left out."""

    def __call__(self, recipe: Recipe) -> None:
        """Draws a picture of the run, and says where it is and of which checkpoint."""
        said: list[str] = []
        trained = vae.load(self.run, self.checkpoint, data=self.data, say=said.append)
        out = self.out or trained.dir.pictures / self.name(trained)
        try:
            self.draw(trained, out)
        except (OSError, ValueError) as error:
            if isinstance(error, LoopaxError):
                raise
            raise ConfigError(f"{out}: the picture cannot be written: {error}") from error
        to_stderr(*said)
        print(out)

    def name(self, trained: vae.TrainedVAE) -> str:
        """Of the picture's file."""
        raise NotImplementedError

    def draw(self, trained: vae.TrainedVAE, path: Path) -> None:
        """Draws it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sample(Draw):
    """Draw samples from a trained run.

    Ten of each class, or `count` of one class.
    """

    label: Annotated[str | None, arg(name="class")] = None
    """A class, by its name or number; every class when left out."""
    count: int = 10
    """Images of each class."""
    seed: int = 1
    """Of the latents."""

    def name(self, trained: vae.TrainedVAE) -> str:
        return f"samples{'' if self.label is None else f'-{trained.label_of(self.label)}'}.png"

    def draw(self, trained: vae.TrainedVAE, path: Path) -> None:
        if self.label is None:
            images = trained.samples_by_class(self.count, seed=self.seed)
        else:
            images = trained.sample(self.label, self.count, seed=self.seed)[None]
        vae.save_grid(images, path)


@dataclass(frozen=True)
class Reconstruct(Draw):
    """Draw test images beside their reconstructions."""

    count: int = 5
    """Pairs of each class."""

    def name(self, trained: vae.TrainedVAE) -> str:
        return "reconstructions.png"

    def draw(self, trained: vae.TrainedVAE, path: Path) -> None:
        vae.save_reconstructions(trained, path, each=self.count)


@dataclass(frozen=True)
class Explore(OfRun):
    """Move through the latents of a trained run in the browser.

    What is drawn there is encoded.
    """

    data: str | None = None
    """Where its images are by now, if not where they were."""
    port: int = 0
    """On this machine, which alone can reach it; any free one for 0."""
    open_browser: bool = True
    """Whether to open the page, or only to say where it is."""

    def __call__(self, recipe: Recipe) -> None:
        from loopax.recipes.vae.explorer import Explorer
        from loopax.recipes.vae.server import listen

        with listen(self.port) as server:
            server.explorer = Explorer(vae.load(self.run, self.checkpoint, data=self.data))
            print(f"{server.address} (Ctrl-C ends it)", flush=True)
            if self.open_browser:
                # A browser of the terminal does not return until it is left.
                opening = threading.Thread(
                    target=webbrowser.open, args=(server.address,), daemon=True
                )
                opening.start()
            server.serve_until_interrupted()
            print()


@dataclass(frozen=True)
class EvaluateVAE(Evaluate):
    """Measure a trained run: its objective, its likelihood, and its samples beside real images."""

    data: str | None = None
    """Where its images are by now, if not where they were."""
    importance_samples: int = 500
    """For the likelihood of each test image; 0 leaves out this part, which takes minutes."""
    draws: int = 3
    """Sets of samples that are judged, for a mean and a standard deviation."""

    def measured(self, recipe: Recipe) -> tuple[vae.TrainedVAE, Mapping[str, Any]]:
        trained = vae.load(self.run, self.checkpoint, data=self.data)
        samples = self.importance_samples or None
        return trained, vae.evaluate(
            trained, importance_samples=samples, draws=self.draws, progress=True
        )


COMMANDS = {
    "evaluate": EvaluateVAE,
    "sample": Sample,
    "reconstruct": Reconstruct,
    "explore": Explore,
}
