"""What the VAE adds to the command line."""

from __future__ import annotations

import math
import threading
import webbrowser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from tyro.conf import Positional, arg

from loopax.errors import ConfigError, LoopaxError
from loopax.recipe import Command, Evaluate, OfRun, Recipe
from loopax.recipes import images, vae
from loopax.terminal import output_optional, to_stderr


@dataclass(frozen=True)
class OfVAE(OfRun):
    """A command on a trained VAE."""

    data: str | None = None
    """Where its images are by now, if not where they were."""

    def drawn(self, path: Callable[[vae.TrainedVAE], Path], draw: Callable[..., object]) -> None:
        """Draws a picture of the run, and says where it is and of which checkpoint."""
        said: list[str] = []
        trained = vae.load(self.run, self.checkpoint, data=self.data, say=said.append)
        out = path(trained)
        try:
            draw(trained, out)
        except (OSError, ValueError) as error:
            if isinstance(error, LoopaxError):
                raise
            raise ConfigError(f"{out}: the picture cannot be written: {error}") from error
        to_stderr(*said)
        print(out)


@dataclass(frozen=True)
class Sample(OfVAE):
    """Draw samples from a trained run.

    Ten of each class, or `count` of one class.
    """

    label: Annotated[str | None, arg(name="class")] = None
    """A class, by its name or number; every class when left out."""
    count: int = 10
    """Images of each class."""
    seed: int = 1
    """Of the latents."""
    out: Path | None = None
    """Where the picture goes; RUN/pictures/samples.png (or samples-CLASS.png) when left out."""

    def __call__(self, recipe: Recipe) -> None:
        self.drawn(self._path, self._draw)

    def _path(self, trained: vae.TrainedVAE) -> Path:
        of = "" if self.label is None else f"-{trained.label_of(self.label)}"
        return self.out or trained.dir.pictures / f"samples{of}.png"

    def _draw(self, trained: vae.TrainedVAE, path: Path) -> None:
        if self.label is None:
            images = trained.samples_by_class(self.count, seed=self.seed)
        else:
            images = trained.sample(self.label, self.count, seed=self.seed)[None]
        vae.save_grid(images, path)


@dataclass(frozen=True)
class Reconstruct(OfVAE):
    """Draw test images beside their reconstructions."""

    count: int = 5
    """Pairs of each class."""
    out: Path | None = None
    """Where the picture goes; RUN/pictures/reconstructions.png when left out."""

    def __call__(self, recipe: Recipe) -> None:
        self.drawn(
            lambda trained: self.out or trained.dir.pictures / "reconstructions.png",
            lambda trained, path: vae.save_reconstructions(trained, path, each=self.count),
        )


@dataclass(frozen=True)
class Explore(OfVAE):
    """Move through the latents of a trained run in the browser.

    What is drawn there is encoded.
    """

    is_ended_by_ctrl_c: ClassVar = True

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
            try:
                server.serve_forever()
            except KeyboardInterrupt:
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


@dataclass(frozen=True)
class Judge(Command):
    """Train the classifier that samples of some data are judged by.

    The one for MNIST is bundled.
    """

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

    def __call__(self, recipe: Recipe) -> None:
        from loopax.caches import cache_folder
        from loopax.files import storing

        source = images.ImageSource(self.data, self.image_size, self.channels, self.background)
        data = images.data_of(source)
        folder = None if self.out else cache_folder("judges")
        if self.out is None and folder is None:
            raise ConfigError("there is no cache to keep a judge in; give --out")
        out = self.out or Path(folder or "") / vae.name_for(data)
        with storing(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        with output_optional():
            vae.train_judge(data, out, epochs=self.epochs, shift=self.shift, progress=True)
        made = vae.read_judge(out, data)
        known = not math.isnan(made.test_accuracy)
        right = f"right on {made.test_accuracy:.2%} of the test images" if known else "untested"
        plain = f"; logistic regression on pixels on {made.plain_accuracy:.2%}" if known else ""
        print(f"{out}: {made.digest}, {right}{plain}")


COMMANDS = {
    "evaluate": EvaluateVAE,
    "sample": Sample,
    "reconstruct": Reconstruct,
    "explore": Explore,
    "judge": Judge,
}
