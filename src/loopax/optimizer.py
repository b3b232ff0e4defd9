"""A typed description of an optimiser, turned into a plain Optax transformation.

Nothing here is needed to train: `TrainState.create` takes any `optax.GradientTransformation`. The
description is for configurations, because it can be saved, compared, and set from a command line.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from loopax.errors import ConfigError

# Optax takes half a second to import, and a configuration must not: `--help` is instant.
if TYPE_CHECKING:
    import optax
    from jaxtyping import Array, Float, Int32

KINDS = ("constant", "linear", "cosine")


def _check(name: str, value: Any, is_right: bool, rule: str) -> None:
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
        _check("schedule.kind", kind, kind in KINDS, f"must be one of {', '.join(KINDS)}")
        _check("schedule.steps", steps, whole, "must be a whole number of at least 1")
        _check("schedule.warmup_steps", warmup, warmup >= 0, "must be at least 0")
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


@dataclass(frozen=True)
class Group:
    """Parameters that have an optimiser of their own.

    Attributes:
        params: path patterns, as in `loopax.paths.matches`; the first group that matches counts.
        optimizer: how they train. Its `clip_norm` counts this group's gradients only.
    """

    params: tuple[str, ...]
    optimizer: Optimizer

    def __post_init__(self) -> None:
        _check_patterns("groups", self.params)
        if not self.params:
            raise ConfigError("groups: a group has no params; give it one or more path patterns")
        for name in ("freeze", "params_ema", "groups"):
            if getattr(self.optimizer, name):
                raise ConfigError(
                    f"groups: {name} of the group {self.params} belongs to the optimizer around it"
                )

    @property
    def label(self) -> str:
        """What the group is called among the metrics."""
        return ",".join(self.params)


@dataclass(frozen=True)
class Optimizer:
    """An Optax optimiser and what goes around it.

    Attributes:
        name: any optimiser of Optax that takes a learning rate: adam, adamw, sgd, lion, ...
        learning_rate: the rate that the schedule's factor multiplies.
        schedule: how the rate changes during the run.
        weight_decay: for optimisers that have one; None leaves Optax's default.
        decay_vectors: decay biases and norm scales too (every parameter with a single axis).
        arguments: any other argument of the optimiser, such as b1 or momentum.
        clip_norm: scale the gradients down to this global norm when theirs is larger. With groups
            each has a norm, and a `clip_norm`, of its own.
        accumulate: batches whose gradients are averaged into one update; a mapping
            `{0: 1, 1000: 4}` gives the number from that update on.
        update_ema: smooth the updates with a moving average of this decay (`optax.ema`).
        params_ema: keep a moving average of the parameters with this decay, to evaluate with.
        freeze: path patterns of parameters that do not train and cost no backward pass.
        groups: parameters with an optimiser of their own; the rest is trained as said here.

    Raises:
        ConfigError: there is no such optimiser or argument, or a value is out of range.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: Schedule = Schedule()
    weight_decay: float | None = None
    decay_vectors: bool = True
    arguments: Mapping[str, Any] = field(default_factory=dict)
    clip_norm: float | None = None
    accumulate: int | Mapping[int, int] = 1
    update_ema: float | None = None
    params_ema: float | None = None
    freeze: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()

    def __post_init__(self) -> None:
        _check_patterns("freeze", self.freeze)
        rate, decay, clip = self.learning_rate, self.weight_decay, self.clip_norm
        _check("learning_rate", rate, 0 < rate < math.inf, "must be above 0")
        _check("weight_decay", decay, decay is None or 0 <= decay < math.inf, "must be at least 0")
        _check("clip_norm", clip, clip is None or clip > 0, "must be above 0")
        for name in ("update_ema", "params_ema"):
            decay = getattr(self, name)
            _check(name, decay, decay is None or 0 <= decay < 1, "must be at least 0 and below 1")
        plan = self.accumulation
        whole = all(number == int(number) for number in (*plan, *plan.values()))
        _check(
            "accumulate",
            self.accumulate,
            0 in plan and min(plan) >= 0 and min(plan.values()) >= 1 and whole,
            "must be a whole number of at least 1, or such numbers by the update from which on "
            "they count, beginning with 0",
        )

    @property
    def accumulation(self) -> dict[int, int]:
        """Batches per update, by the update from which on they count."""
        many = self.accumulate
        return dict(sorted(many.items())) if isinstance(many, Mapping) else {0: many}

    def updates_in(self, steps: int) -> int:
        """How many updates that many batches make, which is what schedules count; 1 at least."""
        updates, left, plan = 0, steps, self.accumulation
        ends = [*list(plan)[1:], math.inf]
        for (first, every), following in zip(plan.items(), ends, strict=True):
            here = int(min(left // every, following - first))
            updates, left = updates + here, left - here * every
        return max(updates, 1)

    def build(self, total_steps: int | None = None) -> optax.GradientTransformation:
        """The Optax transformation. `total_steps` is the number of batches of the whole run.

        Raises:
            ConfigError: it freezes or averages parameters, which is not part of a transformation.
        """
        for name in ("freeze", "params_ema"):
            if getattr(self, name) not in (None, ()):
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, which a transformation cannot do: give "
                    "the Optimizer itself to TrainState.create(model, example, optimizer, "
                    "total_steps=...)"
                )
        return self.transformation(total_steps)

    def transformation(self, total_steps: int | None = None) -> optax.GradientTransformation:
        """`build` for those who see to `freeze` and `params_ema`, as `TrainState.create` does."""
        import optax

        from loopax.compute.windows import weighed

        updates = None if total_steps is None else self.updates_in(total_steps)
        transformation = self._one(updates)
        if self.groups:
            transforms = {"": transformation}
            for group in self.groups:
                transforms.setdefault(group.label, group.optimizer.build(updates))
            transformation = optax.multi_transform(transforms, self._labels)
        plan = self.accumulation
        if plan == {0: 1}:
            return transformation
        counts = [optax.constant_schedule(every) for every in plan.values()]
        every = plan[0] if len(plan) == 1 else optax.join_schedules(counts, list(plan)[1:])
        return weighed(optax.MultiSteps(transformation, every))

    def _one(self, updates: int | None) -> optax.GradientTransformation:
        """The chain without groups and accumulation."""
        import optax

        rate = self.schedule.build(self.learning_rate, updates)
        links = [recorded_learning_rate(rate)]
        if self.clip_norm is not None:
            links.append(optax.clip_by_global_norm(self.clip_norm))
        factory = _factory(self.name)
        if self.schedule.is_constant:
            given: Any = self.learning_rate * self.schedule.start
        elif "Callable" in str(inspect.signature(factory).parameters["learning_rate"].annotation):
            given = rate
        else:
            raise ConfigError(f"optimizer {self.name!r} takes no schedule; leave it constant")
        links.append(factory(learning_rate=given, **self._checked_arguments()))
        if self.update_ema is not None:
            links.append(optax.ema(self.update_ema))
        return optax.chain(*links)

    def _checked_arguments(self) -> dict[str, Any]:
        fields: dict[str, Any] = {} if self.decay_vectors else {"mask": _matrices}
        if self.weight_decay is not None:
            fields["weight_decay"] = self.weight_decay
        for argument in self.arguments.keys() & fields.keys():
            raise ConfigError(f"optimizer.arguments has {argument!r}, which has a field of its own")
        known = list(inspect.signature(_factory(self.name)).parameters)
        known.remove("learning_rate")
        for argument in {**self.arguments, **fields}:
            if argument not in known:
                hint = "; adamw decays weights" if argument in ("weight_decay", "mask") else ""
                raise ConfigError(
                    f"optimizer {self.name!r} has no argument {argument!r}; it has "
                    f"{', '.join(known)}{hint}"
                )
        return {**self.arguments, **fields}

    def _labels(self, params: Any) -> Any:
        from loopax.paths import map_with_path, matches, path_mask

        for group in self.groups:
            path_mask(params, group.params, purpose="groups")

        def label(path: str, _: Any) -> str:
            chosen = (g.label for g in self.groups if any(matches(path, p) for p in g.params))
            return next(chosen, "")

        return map_with_path(label, params)


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


def optimizer_names() -> list[str]:
    """Every optimiser that `Optimizer.name` can be."""
    import optax

    return sorted(
        name
        for name, value in vars(optax).items()
        if inspect.isfunction(value)
        and "learning_rate" in inspect.signature(value).parameters
        # L-BFGS searches along a line and needs the loss as a function; the others are parts.
        and not name.startswith(("_", "scale_by_", "lbfgs"))
    )


def _factory(name: str) -> Any:
    import optax

    names = optimizer_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise ConfigError(
            f"there is no optimizer {name!r} in Optax; "
            f"{'did you mean ' + ' or '.join(near) if near else 'there are ' + ', '.join(names)}"
        )
    return getattr(optax, name)


def _check_patterns(name: str, patterns: Any) -> None:
    if isinstance(patterns, str):
        raise ConfigError(
            f"{name} is {patterns!r}; it must be a tuple of patterns: ({patterns!r},)"
        )


def _matrices(params: Any) -> Any:
    import jax

    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
