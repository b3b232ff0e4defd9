"""`loopax explore`: the latents of a trained run in the browser."""

from __future__ import annotations

import threading
import webbrowser
from dataclasses import dataclass

from loopax.cli.parsing import parse, recipe_of
from loopax.cli.results import OfVAE


@dataclass(frozen=True)
class Explore(OfVAE):
    """Move through the latents of a trained run in the browser, and draw for it to encode."""

    port: int = 0
    """On this machine, which alone can reach it; any free one for 0."""
    open_browser: bool = True
    """Whether to open the page, or only to say where it is."""


def explore(words: list[str]) -> int:
    """`loopax explore RUN`."""
    command = parse(Explore, words, "loopax explore")
    recipe = recipe_of(command.run, "vae")
    from loopax.recipes.vae.explorer import listen

    with listen(command.port) as server:
        server.explore(recipe.load(command.run, command.checkpoint, data=command.data))
        print(f"{server.address} (Ctrl-C ends it)", flush=True)
        if command.open_browser:
            # A browser of the terminal does not return until it is left.
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0
