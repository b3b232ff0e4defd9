"""What a recipe gives `fit` to train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from loopax.compute.state import TrainState
    from loopax.evaluation import Evaluation

Say = Callable[[str], None]
"""Hears a line for the person who waits."""


class Problem(Protocol):
    """What a configuration says is to be trained, in the terms of `loopax.fit`.

    Attributes:
        config: the configuration, with what was chosen because of the data.
        batches, loss_fn, evaluation: as `fit` takes them.
        steps: how many the whole training has, if nothing ends it early.
        ranking: the metric that the best checkpoint is best in, None where none is chosen, and
            whether that is best at its lowest or its highest.
        description: what the data is, and what was chosen because of it, in lines.
        noted: what `model.json` of the run keeps; `data_sha256` tells other data from the same.
    """

    @property
    def config(self) -> Any: ...
    @property
    def batches(self) -> Any: ...
    @property
    def loss_fn(self) -> Callable[..., Any]: ...
    @property
    def evaluation(self) -> Evaluation | None: ...
    @property
    def steps(self) -> int: ...
    @property
    def ranking(self) -> tuple[str | None, Literal["min", "max"]]: ...
    @property
    def description(self) -> str: ...
    @property
    def noted(self) -> Mapping[str, Any]: ...

    def state(self, *, resumed: bool = False) -> TrainState:
        """The state that training begins with; of a run that is `resumed` its form is enough."""


def places(config: Any) -> tuple[str, ...]:
    """The fields of a configuration that say where data is."""
    return getattr(type(config), "PLACES", ())
