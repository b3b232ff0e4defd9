"""One PyTree is the run: parameters, optimiser state, step, root key, collections, averages."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training import train_state
from jaxtyping import Array, Float, Key

from loopax.adapters import as_transformation, check_arguments, initialise
from loopax.errors import ConfigError
from loopax.optimizer import Optimizer
from loopax.paths import (
    PyTree,
    differing,
    form_of,
    forms,
    is_number,
    leaf_path,
    merge,
    partition,
    path_mask,
)
from loopax.randomness import Rngs
from loopax.updates import (
    SlowParams,
    averaged,
    averages,
    eval_params,
    iterate,
    kept,
    named,
    overlaid,
    states_of,
    update,
    update_counts,
    with_slow_params,
)


class TrainState(train_state.TrainState, kw_only=True):
    """Flax's `TrainState` with what makes a run exact; subclass it to carry more.

    Attributes:
        step: how many updates have been made, `int32[]`.
        params: what the loss is given: for a Flax module the tree that `model.apply` takes.
        tx, opt_state: the Optax transformation and its state, for the trainable parameters only.
        key: the root of all randomness; the keys of a step are folded from it and never stored.
        model_state: Flax's other collections (such as `batch_stats`), updated by the loss.
        ema: a moving average of the trainable parameters, or None when `ema_decay` is None. It is
            kept in float32 at least. After t updates it keeps `min(ema_decay, (1 + t) / (10 + t))`
            of itself, so that it forgets the first parameters.
        ema_model_state: the same of the collections, such as `batch_stats`; None where `ema` is.
        frozen: path patterns of the parameters that do not train (see `loopax.paths.matches`).
            Integers, booleans and random keys never do.
    """

    key: Key[Array, ""]
    model_state: PyTree = struct.field(default_factory=dict)
    ema: PyTree = None
    ema_model_state: PyTree = None
    ema_decay: float | None = struct.field(pytree_node=False, default=None)
    frozen: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @classmethod
    def create(
        cls,
        model: nn.Module | None = None,
        example: Any = None,
        tx: optax.GradientTransformation | Optimizer | None = None,
        *,
        seed: int = 0,
        params: PyTree = None,
        model_state: PyTree = None,
        frozen: tuple[str, ...] = (),
        ema_decay: float | None = None,
        total_steps: int | None = None,
        **fields: Any,
    ) -> Self:
        """A state at step 0, from a Flax module and an example, or from `params` of any kind.

        Args:
            model: a Flax module; initialised with the keys of `seed`.
            example: what the module is called with: a dataset or a batch, whose columns are
                given to the arguments of the same name, or an array, or a tuple of them.
            tx: any Optax transformation, or an `Optimizer`, whose `freeze` and `params_ema` count
                as `frozen` and `ema_decay`.
            seed: of the initial parameters, of every random stream and of the data's order; a
                whole number from 0 to 2**32 - 1.
            params: a PyTree to train instead of initialising `model` (pretrained, or no Flax).
            model_state: collections to go with `params`, or in the place of those of `model`.
            frozen: patterns of parameters that stay as they are and cost no backward pass.
            ema_decay: keep an exponential moving average of the parameters with this decay.
            total_steps: how many batches the run has, for the schedules of an `Optimizer`.
            **fields: the fields that a subclass adds.

        Raises:
            ConfigError: there is neither a module with an example nor `params`, the example does
                not fit the module, a pattern matches nothing, or nothing is left to train.
        """
        check_arguments(model, example, tx, params)
        if isinstance(frozen, str):
            raise ConfigError(
                f"frozen is {frozen!r}; it must be a tuple of patterns: ({frozen!r},)"
            )
        if isinstance(tx, Optimizer):
            tx, frozen, ema_decay = _described(tx, frozen, ema_decay, total_steps)
        elif total_steps is not None:
            raise ConfigError(
                f"total_steps is {total_steps}, which only the schedule of an Optimizer asks for; "
                "leave it out"
            )
        transformation = as_transformation(tx)
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ConfigError(f"ema_decay is {ema_decay}; it must be at least 0 and below 1")
        key = jax.random.key(_checked_seed(seed))
        if isinstance(params, optax.LookaheadParams):
            params = params.fast
        if params is None:
            params, made = initialise(model, example, key)
            model_state = _with_collections(made, model_state)
        if model is not None:
            fields.setdefault("apply_fn", model.apply)
        trainable, _ = partition(params, _trainable_mask(params, frozen))
        _check_trainable(params, trainable, frozen)
        opt_state = transformation.init(trainable)
        if any(states_of(opt_state, optax.LookaheadState)):
            transformation = with_slow_params(transformation)
            opt_state = SlowParams(trainable, opt_state)
        model_state = {} if model_state is None else model_state
        state = cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            tx=transformation,
            opt_state=opt_state,
            key=key,
            model_state=model_state,
            ema=None if ema_decay is None else averages(trainable),
            ema_model_state=None if ema_decay is None else averages(model_state),
            ema_decay=ema_decay,
            frozen=tuple(frozen),
            **{"apply_fn": None, **fields},
        )
        return jax.tree.map(_strongly_typed, state)

    @property
    def trainable(self) -> PyTree:
        """The parameters that train; frozen leaves are None."""
        return partition(self.params, _trainable_mask(self.params, self.frozen))[0]

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate with, of the same form as `params`.

        The moving average where there is one; else, of an optimiser such as `schedule_free` that
        means other parameters than those it trains, these.
        """
        return eval_params(self.params, self.ema, self.opt_state)

    @property
    def eval_model_state(self) -> PyTree:
        """The collections to evaluate with: their moving averages where there are any."""
        means = named(self.ema_model_state)
        return overlaid(self.model_state, means) if means else self.model_state

    @property
    def rngs(self) -> Rngs:
        """The random keys of the step that comes next, by stream name."""
        return Rngs(self.key, self.step)

    def with_trainable(self, trainable: PyTree) -> Self:
        """This state with other trainable parameters and the same frozen ones."""
        return self.replace(params=merge(trainable, self.frozen_params))

    @property
    def frozen_params(self) -> PyTree:
        """The parameters that do not train; the others are None."""
        return partition(self.params, _trainable_mask(self.params, self.frozen))[1]

    def without_frozen(self) -> Self:
        """This state with None in place of each frozen parameter."""
        return self.replace(params=self.trainable)

    def with_frozen(self, frozen: PyTree) -> Self:
        """What `without_frozen` gave, whole again."""
        return self.replace(params=merge(self.params, frozen))

    def with_params(self, params: PyTree) -> Self:
        """This state with other parameters of the same form, from which all else starts anew.

        That is the averages and the optimiser, which may remember parameters too.
        """
        state = self.replace(params=params)
        state = state.replace(opt_state=self.tx.init(state.trainable))
        if self.ema is None:
            return state
        return state.replace(
            ema=averages(state.trainable), ema_model_state=averages(self.model_state)
        )

    def apply_gradients(
        self, *, grads: PyTree, extra_args: Mapping[str, Any] | None = None, **fields: Any
    ) -> Self:
        """One update.

        Args:
            grads: of the structure of `trainable`.
            extra_args: what some transformations want beside them, such as `value`.
            **fields: replaces other fields.
        """
        trainable = self.trainable
        updates, opt_state = update(self.tx, grads, self.opt_state, trainable, extra_args or {})
        trainable = optax.apply_updates(trainable, updates)
        state = self.with_trainable(trainable).replace(
            step=self.step + 1, opt_state=opt_state, **fields
        )
        return state if self.ema is None else state._averaged_after(self)

    def observe(self, loss: Float[Array, ""], metrics: Mapping[str, Float[Array, ""]]) -> Self:
        """Called in the compiled step after each update; override it to keep what you want."""
        del loss, metrics
        return self

    def _averaged_after(self, before: Self) -> Self:
        """This state, one update after another one, with its averages."""
        decay = self.ema_decay
        assert decay is not None
        params = named(self.trainable)
        counts = [update_counts(each.opt_state, params, each.step) for each in (before, self)]
        shares = {path: kept(decay, counts[0][path], counts[1][path]) for path in params}
        # The collections go with the parameters that are updated most often.
        share = kept(decay, *(functools.reduce(jnp.maximum, each.values()) for each in counts))
        return self.replace(
            ema=averaged(self.ema, params | iterate(params, self.opt_state), shares.__getitem__),
            ema_model_state=averaged(
                self.ema_model_state, named(self.model_state), lambda _: share
            ),
        )


def _trainable_mask(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    mask = path_mask(params, frozen, purpose="frozen")
    return jax.tree.map(lambda leaf, is_frozen: is_number(leaf) and not is_frozen, params, mask)


def _strongly_typed(leaf: Any) -> Array:
    """A leaf whose type a compiled loop can carry: Python numbers promote, arrays do not."""
    leaf = jnp.asarray(leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.astype(leaf.dtype)


def _checked_seed(seed: Any) -> int:
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**32:
        raise ConfigError(f"seed is {seed!r}; it must be a whole number from 0 to 2**32 - 1")
    return int(seed)


def _described(
    optimizer: Optimizer, frozen: tuple[str, ...], ema_decay: float | None, total_steps: int | None
) -> tuple[optax.GradientTransformation, tuple[str, ...], float | None]:
    """An `Optimizer` as a transformation, and what it says that a transformation cannot."""
    for name, here, there in (
        ("frozen", frozen, optimizer.freeze),
        ("ema_decay", ema_decay, optimizer.params_ema),
    ):
        if here and there and here != there:
            raise ConfigError(
                f"{name} is {here!r}, and the Optimizer says {there!r}; say it in one place"
            )
    if optimizer.params_ema is not None:
        ema_decay = optimizer.params_ema
    return optimizer.transformation(total_steps), frozen or optimizer.freeze, ema_decay


def _with_collections(made: PyTree, given: PyTree) -> PyTree:
    """The collections that a module was initialised with, and in their place those given."""
    wrong = {
        name: differing(forms(made[name]), forms(given[name]))
        for name in given or ()
        if name in made
    }
    for name, difference in wrong.items():
        if difference:
            raise ConfigError(
                f"model_state: {name!r} is not of the form that the model has: {difference}"
            )
    return {**made, **(given or {})}


def _check_trainable(params: PyTree, trainable: PyTree, frozen: tuple[str, ...]) -> None:
    """Makes sure that something trains, and says what does not though nobody froze it."""
    if not jax.tree.leaves(trainable):
        reason = f"frozen={frozen!r} matches every one of them" if frozen else "there are none"
        raise ConfigError(f"TrainState.create: no parameters are left to train: {reason}")
    mask = path_mask(params, frozen, purpose="frozen")
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(mask), strict=True)
    fixed = {
        leaf_path(path): form_of(jnp.asarray(leaf))
        for (path, leaf), is_frozen in pairs
        if not is_frozen and not is_number(leaf)
    }
    if fixed:
        shown = ", ".join(f"{path} ({form})" for path, form in fixed.items())
        warnings.warn(
            f"these parameters are not of a type that can be trained and stay as they are: {shown}"
            f"; frozen={tuple(fixed)!r} says that this is meant",
            stacklevel=3,
        )
