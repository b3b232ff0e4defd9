"""The learning rate over the updates of a run: described, and shown to whoever logs it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from loopax.errors import ConfigError

# Optax takes half a second to import, and a configuration must not: `--help` is instant.
if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Float, Int32

KINDS = ("constant", "linear", "cosine")


def check(name: str, value: Any, is_right: bool, rule: str) -> None:
    """Refuses a value of a description in one line."""
    if not is_right:
        raise ConfigError(f"{name} is {value!r}; it {rule}")


@dataclass(frozen=True)
class Schedule:
    """A factor on the learning rate as a function of the number of updates made.

    `Schedule("cosine", warmup_steps=500)` is warm-up then decay. Schedules are joined with `then`:
    `Schedule("constant", steps=1000, then=Schedule("constant", start=0.1))` is piecewise constant.

    Attributes:
        kind: how the factor goes from `start` to `end`; a constant stays at `start`.
        start: the factor that it begins with.
        end: the factor that it ends with, and keeps.
        steps: how many updates it takes; None means until the end of the run.
        warmup_steps: how many updates a linear warm-up from 0 to `start` takes before it.
        then: what follows after `steps` updates.

    Raises:
        ConfigError: a value is out of range, or something follows a schedule without an end.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    start: float = 1.0
    end: float = 0.0
    steps: int | None = None
    warmup_steps: int = 0
    then: Schedule | None = None

    def __post_init__(self) -> None:
        kind, steps, warmup = self.kind, self.steps, self.warmup_steps
        whole = steps is None or steps == int(steps) >= 1
        check("schedule.kind", kind, kind in KINDS, f"must be one of {', '.join(KINDS)}")
        check("schedule.steps", steps, whole, "must be a whole number of at least 1")
        check("schedule.warmup_steps", warmup, warmup >= 0, "must be at least 0")
        if not (0 <= self.start < math.inf and 0 <= self.end < math.inf):
            raise ConfigError(
                f"schedule goes from {self.start} to {self.end}; factors are at least 0"
            )
        if self.then is not None and self.steps is None:
            raise ConfigError("schedule.then follows a schedule without an end; give it steps")

    @property
    def is_constant(self) -> bool:
        """Whether the factor never changes."""
        return self.kind == "constant" and not self.warmup_steps and self.then is None

    def build(self, learning_rate: float, total_steps: int | None) -> optax.Schedule:
        """The learning rate as a function of the update, for Optax.

        Raises:
            ConfigError: it lasts until the end of the run, and that is not known or not left.
        """
        import optax

        steps = self.steps
        if steps is None and self.kind != "constant":
            if total_steps is None:
                raise ConfigError(f"a {self.kind} schedule without steps needs total_steps")
            steps = total_steps - self.warmup_steps
            if steps < 1:
                raise ConfigError(
                    f"a {self.kind} schedule to the end of the run begins after its end: only "
                    f"{max(total_steps, 0)} updates are left for it, and schedule.warmup_steps is "
                    f"{self.warmup_steps}"
                )
        peak, last = learning_rate * self.start, learning_rate * self.end
        if self.kind == "constant":
            parts = [optax.constant_schedule(peak)]
        elif self.kind == "linear":
            parts = [optax.linear_schedule(peak, last, steps)]
        else:
            fall = optax.cosine_decay_schedule(1.0, steps)
            parts = [lambda update: last + (peak - last) * fall(update)]
        ends = []
        if self.warmup_steps:
            parts.insert(0, optax.linear_schedule(0.0, peak, self.warmup_steps))
            ends.append(self.warmup_steps)
        if self.then is not None and steps is not None:
            ends.append(self.warmup_steps + steps)
            left = None if total_steps is None else total_steps - ends[-1]
            parts.append(self.then.build(learning_rate, left))
        return optax.join_schedules(parts, ends) if ends else parts[0]


# The state of an Optax transformation, which is a NamedTuple by custom.
class RecordedLearningRate(NamedTuple):
    """The learning rate of the latest update, where the loop finds it to log it."""

    updates: Int32[Array, ""]
    learning_rate: Float[Array, ""]


def recorded_learning_rate(rate: optax.Schedule) -> optax.GradientTransformation:
    """Changes no update; keeps the schedule's value in its state for the loop to log.

    Chain it in front of a hand-made optimiser to see its learning rate among the metrics.
    """
    import jax.numpy as jnp
    import optax

    def init(params: Any) -> RecordedLearningRate:
        del params
        return RecordedLearningRate(jnp.zeros((), jnp.int32), jnp.asarray(rate(0), jnp.float32))

    def update(
        updates: Any, state: RecordedLearningRate, params: Any = None
    ) -> tuple[Any, RecordedLearningRate]:
        del params
        now = jnp.asarray(rate(state.updates), jnp.float32)
        return updates, RecordedLearningRate(state.updates + 1, now)

    return optax.GradientTransformation(init, update)
