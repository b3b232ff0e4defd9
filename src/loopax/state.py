"""One PyTree is the run: parameters, optimiser state, step, root key, collections, averages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.training import train_state
from jaxtyping import Array, Float, Key

from loopax.errors import ConfigError
from loopax.paths import PyTree, merge, partition, path_mask
from loopax.randomness import Rngs, stream


class TrainState(train_state.TrainState, kw_only=True):
    """Flax's `TrainState` with what makes a run exact; subclass it to carry more.

    Attributes:
        step: how many updates have been made, `int32[]`.
        params: what the loss is given: for a Flax module the tree that `model.apply` takes.
        tx, opt_state: the Optax transformation and its state, for the trainable parameters only.
        key: the root of all randomness; the keys of a step are folded from it and never stored.
        mutable: Flax's other collections (such as `batch_stats`), updated by the loss.
        ema: a moving average of the trainable parameters, or None when `ema_decay` is None.
        frozen: path patterns of the parameters that do not train (see `loopax.paths.matches`).
    """

    key: Key[Array, ""]
    mutable: PyTree = struct.field(default_factory=dict)
    ema: PyTree = None
    ema_decay: float | None = struct.field(pytree_node=False, default=None)
    frozen: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @classmethod
    def create(
        cls,
        model: nn.Module | None = None,
        example: Any = None,
        tx: optax.GradientTransformation | None = None,
        *,
        seed: int = 0,
        params: PyTree = None,
        mutable: PyTree = None,
        frozen: tuple[str, ...] = (),
        ema_decay: float | None = None,
        **fields: Any,
    ) -> Self:
        """A state at step 0, from a Flax module and an example, or from `params` of any kind.

        Args:
            model: a Flax module; initialised with the keys of `seed`.
            example: what the module is called with: a dataset or a batch, whose columns are
                given to the arguments of the same name, or an array, or a tuple of them.
            tx: any Optax transformation.
            seed: of the initial parameters, of every random stream and of the data's order.
            params: a PyTree to train instead of initialising `model` (pretrained, or no Flax).
            mutable: collections to go with `params`.
            frozen: patterns of parameters that stay as they are and cost no backward pass.
            ema_decay: keep an exponential moving average of the parameters with this decay.
            **fields: the fields that a subclass adds.

        Raises:
            ConfigError: there is neither a module with an example nor `params`, the example does
                not fit the module, or a pattern matches nothing.
        """
        if isinstance(frozen, str):
            raise ConfigError(
                f"frozen is {frozen!r}; it must be a tuple of patterns: ({frozen!r},)"
            )
        if tx is None:
            raise ConfigError("TrainState.create: tx is missing; give it an Optax transformation")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ConfigError(f"ema_decay is {ema_decay}; it must be at least 0 and below 1")
        key = jax.random.key(seed)
        if params is None:
            params, mutable = initialise(model, example, key)
        if model is not None:
            fields.setdefault("apply_fn", model.apply)
        trainable, _ = partition(params, _trainable_mask(params, frozen))
        state = cls(
            step=jnp.zeros((), jnp.int32),
            params=params,
            tx=tx,
            opt_state=tx.init(trainable),
            key=key,
            mutable={} if mutable is None else mutable,
            ema=None if ema_decay is None else trainable,
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
        """The parameters to evaluate with: the moving average where there is one."""
        return self.params if self.ema is None else self.with_trainable(self.ema).params

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
        """This state with other parameters of the same form, from which the averages start anew."""
        state = self.replace(params=params)
        return state.replace(ema=None if self.ema is None else state.trainable)

    def apply_gradients(self, *, grads: PyTree, **fields: Any) -> Self:
        """One update. `grads` has the structure of `trainable`; `fields` replaces other fields."""
        trainable = self.trainable
        updates, opt_state = self.tx.update(grads, self.opt_state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        return self.with_trainable(trainable).replace(
            step=self.step + 1,
            opt_state=opt_state,
            ema=self._averaged(trainable, opt_state),
            **fields,
        )

    def observe(self, loss: Float[Array, ""], metrics: Mapping[str, Float[Array, ""]]) -> Self:
        """Called in the compiled step after each update; override it to keep what you want."""
        del loss, metrics
        return self

    def _averaged(self, trainable: PyTree, opt_state: PyTree) -> PyTree:
        if self.ema is None:
            return None
        keep = jnp.float32(self.ema_decay)
        for link in opt_state if type(opt_state) is tuple else (opt_state,):
            if isinstance(link, optax.MultiStepsState):
                # While gradients accumulate nothing moves, and the average must not either.
                keep = jnp.where(link.mini_step > 0, 1.0, keep)
        return jax.tree.map(
            lambda old, new: (keep * old + (1 - keep) * new).astype(old.dtype), self.ema, trainable
        )


def _trainable_mask(params: PyTree, frozen: tuple[str, ...]) -> PyTree:
    mask = path_mask(params, frozen, purpose="frozen")
    return jax.tree.map(lambda is_frozen: not is_frozen, mask)


def _strongly_typed(leaf: Any) -> Array:
    """A leaf whose type a compiled loop can carry: Python numbers promote, arrays do not."""
    leaf = jnp.asarray(leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.astype(leaf.dtype)


def initialise(model: nn.Module | None, example: Any, key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
    """The parameters of a Flax module in the form `model.apply` takes, and its other collections.

    Raises:
        ConfigError: there is no model or no example, or it lacks an argument of the module.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"TrainState.create: model is {type(model).__name__}, not a Flax module; "
            "for anything else pass its parameters as params="
        )
    if example is None:
        raise ConfigError(
            f"TrainState.create: {type(model).__name__} needs an example to be initialised with: "
            "a dataset, a batch, an array or a tuple of arguments"
        )
    args, kwargs = _call_arguments(model, example)
    rngs = dict(Rngs(stream(key, "init"), 0))
    variables = jax.jit(model.init)(rngs, *args, **kwargs)
    params = {"params": variables.get("params", {})}
    return params, {name: tree for name, tree in variables.items() if name != "params"}


def _call_arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example as the arguments of `model.__call__`: by name from a mapping, else by position."""
    example = getattr(example, "example", example)
    if isinstance(example, tuple):
        return example, {}
    if not isinstance(example, Mapping):
        return (example,), {}
    parameters = inspect.signature(type(model).__call__).parameters
    wanted = list(parameters.values())[1:]
    if any(parameter.name == "batch" for parameter in wanted):
        return (), {"batch": example}
    if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in wanted):
        raise ConfigError(
            f"{type(model).__name__}.__call__ names no arguments that the columns "
            f"{', '.join(example)} could be given to; pass an array or a tuple as the example"
        )
    missing = [
        parameter.name
        for parameter in wanted
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in example
    ]
    if missing:
        raise ConfigError(
            f"{type(model).__name__}.__call__ takes {', '.join(p.name for p in wanted)}, and the "
            f"example has {', '.join(example)}: {missing[0]!r} is missing; rename the argument or "
            "pass the example as a tuple, in the order of the call"
        )
    return (), {p.name: example[p.name] for p in wanted if p.name in example}
