"""When to save and what to keep. Importing this does not import JAX: the command line reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from loopax.errors import ConfigError

Rank = dict[str, Any]
"""`{"metric": "test/loss", "mode": "min", "value": 14.1}`; empty where nothing was measured."""

Mode = Literal["min", "max"]
MORE_IS_BETTER = {
    *("acc", "accuracy", "auc", "auroc", "bleu", "correct", "dice", "f1", "iou", "precision"),
    *("psnr", "r2", "recall", "reward", "score", "ssim"),
}
"""Words in the names of metrics whose best is hardly ever the lowest."""


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When to save, what to keep, and what to do when a save fails.

    Attributes:
        every: save each time this many steps have been made; None leaves it to `seconds`.
        seconds: save when this long has passed since the last save, and a few times sooner after
            the start; None leaves it to `every`. The end of a run is always saved, and each new
            best: at once, or with the next save where that would take more than a tenth of the
            time.
        keep: how many of the latest steps to keep. Frozen parameters, which are saved once, stay.
        best: the metric whose best step is kept too: `validation/accuracy` of an evaluation, or
            `hook/fid` of a hook. `auto` is the `loss` of the evaluation named `validation`, or
            else of the first one; None keeps no best.
        mode: whether the best is the lowest (`min`, as for a loss) or the highest (`max`). It must
            be given for a metric that is called like an accuracy or a score.
        on_failure: `stop` the run when a save fails, or `go_on` and save when it is due again.
            A run whose last save fails has failed in either case.
    """

    every: int | None = None
    seconds: float | None = 30.0
    keep: int = 2
    best: str | None = "auto"
    mode: Mode | None = None
    on_failure: Literal["stop", "go_on"] = "stop"

    def __post_init__(self) -> None:
        for name, least, optional in (("every", 1, True), ("seconds", 0, True), ("keep", 1, False)):
            value, kind = getattr(self, name), "a number" if name == "seconds" else "a whole number"
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None and optional:
                continue
            if not is_number or not value >= least or (name != "seconds" and value % 1):
                raise ConfigError(
                    f"checkpoints.{name} is {value!r}; it must be {kind} of at least {least}"
                )
        if self.on_failure not in ("stop", "go_on"):
            raise ConfigError(
                f"checkpoints.on_failure is {self.on_failure!r}; it must be stop or go_on"
            )
        if not isinstance(self.best, str | None):
            raise ConfigError(
                f"checkpoints.best is {self.best!r}; name a metric, such as 'validation/loss'"
            )
        if self.best == "auto" and self.mode == "max":
            raise ConfigError(
                "checkpoints.mode is 'max', and best is 'auto', which is a loss; "
                "name the metric to be highest: best='validation/accuracy'"
            )
        object.__setattr__(self, "mode", direction("checkpoints.best", self.best, self.mode))


def direction(what: str, metric: str | None, mode: Any) -> Mode:
    """Which values of a metric are better: `mode`, or `min` where nothing was said.

    Args:
        what: the field that names the metric, for errors.

    Raises:
        ConfigError: it is neither of both, or left out for a metric that is called like a score.
    """
    if mode is None and {*re.split(r"[^a-z0-9]+", (metric or "").lower())} & MORE_IS_BETTER:
        raise ConfigError(
            f"{what} is {metric!r}; say which is better: mode='max', the highest, or mode='min', "
            "the lowest"
        )
    if mode not in ("min", "max", None):
        raise ConfigError(f"mode is {mode!r}; it must be 'min' or 'max'")
    return mode or "min"


def ranking(settings: Checkpoints, evaluations: Sequence[str], hooks: bool = False) -> Checkpoints:
    """`settings` whose `best` names a metric of one of these evaluations, or of a hook, or None.

    Raises:
        ConfigError: there is no such evaluation.
    """
    if settings.best is None:
        return settings
    if settings.best == "auto":
        first = "validation" if "validation" in evaluations else next(iter(evaluations), None)
        return replace(settings, best=first and f"{first}/loss")
    sources = [*evaluations, *(["hook"] if hooks else [])]
    if source_of(settings.best, sources) is None:
        cure = (
            f"name one and its metric, such as '{evaluations[0]}/loss'"
            if evaluations
            else ("give fit an evaluation, or leave best out")
        )
        raise ConfigError(
            f"checkpoints.best is {settings.best!r}, and the evaluations of this run are "
            f"{', '.join(evaluations) or 'none'}; {cure}"
        )
    return settings


def source_of(best: str, sources: Sequence[str]) -> str | None:
    """The source that `source/metric` names; both may have slashes of their own."""
    found = [source for source in sources if best.startswith(f"{source}/")]
    return max(found, key=len, default=None)


def best_step(steps: Sequence[int], ranks: Mapping[int, Rank]) -> int | None:
    """The step with the best value of the metric that ranks the newest one, or None."""
    ranked = [step for step in steps if ranks.get(step)]
    if not ranked:
        return None
    newest = ranks[ranked[-1]]
    alike = [step for step in ranked if ranks[step]["metric"] == newest["metric"]]
    choose = min if newest["mode"] == "min" else max
    return choose(alike, key=lambda step: ranks[step]["value"])


def checked_rank(rank: Any) -> Rank:
    """A rank that was read from a file."""
    if not rank:
        return {}
    return {"metric": str(rank["metric"]), "mode": rank["mode"], "value": float(rank["value"])}
