"""A typed description of an optimiser, turned into a plain Optax transformation.

Nothing here is needed to train: `TrainState.create` takes any `optax.GradientTransformation`. The
description is for configurations, because it can be saved, compared, and set from a command line.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loopax.errors import ConfigError
from loopax.schedules import Schedule, check
from loopax.schedules import recorded_learning_rate as recorded_learning_rate

# Optax takes half a second to import, and a configuration must not: `--help` is instant.
if TYPE_CHECKING:
    import optax

RATE = "learning_rate"


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
        name: any optimiser of `optax` or `optax.contrib` that needs no more than a learning rate:
            adam, adamw, sgd, lion, muon, lbfgs, ...
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
    schedule: Schedule = field(default_factory=Schedule)
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
        check("learning_rate", rate, 0 < rate < math.inf, "must be above 0")
        check("weight_decay", decay, decay is None or 0 <= decay < math.inf, "must be at least 0")
        check("clip_norm", clip, clip is None or clip > 0, "must be above 0")
        for name in ("update_ema", "params_ema"):
            decay = getattr(self, name)
            check(name, decay, decay is None or 0 <= decay < 1, "must be at least 0 and below 1")
        plan = self.accumulation
        whole = all(number == int(number) for number in (*plan, *plan.values()))
        check(
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
        every = optax.join_schedules(counts, list(plan)[1:])
        return weighed(optax.MultiSteps(transformation, every))

    def _one(self, updates: int | None) -> optax.GradientTransformation:
        """The chain without groups and accumulation."""
        import optax

        rate = self.schedule.build(self.learning_rate, updates)
        links = [recorded_learning_rate(rate)]
        if self.clip_norm is not None:
            links.append(optax.clip_by_global_norm(self.clip_norm))
        factory = _factory(self.name)
        given: Any = rate
        if self.schedule.is_constant:
            given = self.learning_rate * self.schedule.start
        elif "Callable" not in str(inspect.signature(factory).parameters[RATE].annotation):
            raise ConfigError(f"optimizer {self.name!r} takes no schedule; leave it constant")
        links.append(factory(learning_rate=given, **self._checked_arguments(factory)))
        if self.update_ema is not None:
            links.append(optax.ema(self.update_ema))
        return optax.chain(*links)

    def _checked_arguments(self, factory: Callable[..., Any]) -> dict[str, Any]:
        """All arguments but the learning rate, each of which the optimiser has."""
        fields: dict[str, Any] = {} if self.decay_vectors else {"mask": _matrices}
        if self.weight_decay is not None:
            fields["weight_decay"] = self.weight_decay
        for argument in self.arguments.keys() & fields.keys():
            raise ConfigError(f"optimizer.arguments has {argument!r}, which has a field of its own")
        given = {**self.arguments, **fields}
        known = [name for name in inspect.signature(factory).parameters if name != RATE]
        for argument in given.keys() - known:
            hint = "; adamw decays weights" if argument in fields else ""
            raise ConfigError(
                f"optimizer {self.name!r} has no argument {argument!r}; it has "
                f"{', '.join(known)}{hint}"
            )
        return given

    def _labels(self, params: Any) -> Any:
        from loopax.paths import map_with_path, matches, path_mask

        for group in self.groups:
            path_mask(params, group.params, purpose="groups")

        def label(path: str, _: Any) -> str:
            chosen = (g.label for g in self.groups if any(matches(path, p) for p in g.params))
            return next(chosen, "")

        return map_with_path(label, params)


def optimizers() -> dict[str, Callable[..., optax.GradientTransformation]]:
    """Every optimiser that `Optimizer.name` can be: those that need no more than a rate."""
    import optax

    def is_one(name: str, value: Any) -> bool:
        if not inspect.isfunction(value) or name.startswith(("_", "scale_by_")):
            return False
        parameters = dict(inspect.signature(value).parameters)
        rate = parameters.pop(RATE, None)
        return rate is not None and all(p.default is not p.empty for p in parameters.values())

    known = vars(optax.contrib) | vars(optax)
    return {name: known[name] for name in sorted(known) if is_one(name, known[name])}


def _factory(name: str) -> Callable[..., optax.GradientTransformation]:
    known = optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        raise ConfigError(
            f"there is no optimizer {name!r} in Optax that needs no more than a learning rate; "
            f"{'did you mean ' + ' or '.join(near) if near else 'there are ' + ', '.join(known)}"
        )
    return known[name]


def _check_patterns(name: str, patterns: Any) -> None:
    if isinstance(patterns, str):
        raise ConfigError(
            f"{name} is {patterns!r}; it must be a tuple of patterns: ({patterns!r},)"
        )


def _matrices(params: Any) -> Any:
    import jax

    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
