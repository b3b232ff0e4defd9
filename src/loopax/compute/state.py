"""One PyTree is the run: parameters, optimiser state, step, root key, collections, averages."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from flax.training import train_state
from jaxtyping import Array, Float, Int32, Key

from loopax.compute.adapters import (
    Description,
    as_transformation,
    check_arguments,
    check_patterns,
    described,
    root_key,
    split_params,
    started,
    taken_apart,
)
from loopax.compute.libraries.base import FUNCTIONS, Structure
from loopax.compute.precision import Precision
from loopax.compute.remat import checked_remat
from loopax.compute.updates import (
    averaged,
    averages,
    eval_params,
    iterate,
    kept,
    named,
    overlaid,
    update,
    update_counts,
)
from loopax.compute.windows import Weighed
from loopax.errors import ConfigError
from loopax.lora import LoRA, merged
from loopax.paths import (
    PyTree,
    differing,
    forms,
    like,
    merge,
)
from loopax.placement import ONE, Placement, put
from loopax.randomness import Rngs


@dataclass_transform(field_specifiers=(dataclasses.field, struct.field))
class Node:
    """Makes each subclass a dataclass that cannot be changed, and a PyTree.

    A field of Flax's `struct.field(pytree_node=False)` is a part of its structure.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, eq=False, **options)(cls)
        names: dict[bool, list[str]] = {True: [], False: []}
        # The line above made it a dataclass, which a checker of types cannot see.
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            names[field.metadata.get("pytree_node", True)].append(field.name)
        jax.tree_util.register_dataclass(cls, names[True], names[False])


STEP = (jax.tree_util.GetAttrKey("step"),)
"""The path of the counter in a state, also in one of a user's own."""


class TrainState(Node, kw_only=True):
    """What makes a run: a PyTree with the fields and methods of Flax's; subclass it to carry more.

    Attributes:
        step: how many updates have been made, `int32[]`.
        trainable, frozen: the parameters that train and those that do not, in two trees of the
            same shape; None stands in the one for a leaf of the other. `params` is both.
        tx, opt_state: the Optax transformation and its state, for `trainable` only.
        key: the root of all randomness; the keys of a step are folded from it and never stored.
        model_state: what a model has beside its parameters, such as Linen's `batch_stats`. Where
            there is any the loss is given it, and gives it back.
        ema: a moving average of `trainable`, or None when `ema_decay` is None. It is
            kept in float32 at least. After t updates it keeps `min(ema_decay, (1 + t) / (10 + t))`
            of itself, so that it forgets the first parameters.
        ema_model_state: the same of `model_state`; None where `ema` is.
        precision: in which type the loss is computed, where `compute_dtype` says one.
        remat: what the loss keeps for its gradient; None keeps all that it needs.
        placement: the devices among which `fit` has spread it.
        structure: what a model of NNX or Equinox is beside its arrays.
        apply_fn: that of the module, for whoever wants it there; loopax does not.
    """

    step: Int32[Array, ""]
    trainable: PyTree
    frozen: PyTree
    opt_state: PyTree
    key: Key[Array, ""]
    model_state: PyTree = dataclasses.field(default_factory=dict)
    ema: PyTree = None
    ema_model_state: PyTree = None
    ema_decay: float | None = struct.field(pytree_node=False, default=None)
    precision: Precision | None = struct.field(pytree_node=False, default=None)
    remat: str | None = struct.field(pytree_node=False, default=None)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)
    placement: Placement = struct.field(pytree_node=False, default=ONE)
    structure: Structure = struct.field(pytree_node=False, default=FUNCTIONS)
    apply_fn: Any = struct.field(pytree_node=False, default=None)

    @classmethod
    def create(
        cls,
        model: Any = None,
        example: Any = None,
        tx: optax.GradientTransformation | Description | None = None,
        *,
        seed: int | Key[Array, ""] = 0,
        params: PyTree = None,
        model_state: PyTree = None,
        frozen: tuple[str, ...] = (),
        lora: LoRA | None = None,
        ema_decay: float | None = None,
        compute_dtype: Any = None,
        full_precision: tuple[str, ...] = (),
        remat: str | None = None,
        total_steps: int | None = None,
        **fields: Any,
    ) -> Self:
        """A state at step 0, of a model of any library, or of `params` of any kind.

        Args:
            model: a module of Flax Linen or a transformed function of Haiku, which is initialised
                with the keys of `seed`; or a module of Flax NNX or Equinox, which is taken as it
                is and stays whole.
            example: what Linen and Haiku initialise it with: a dataset or a batch, whose columns
                are given to the arguments of the same name, or an array, or a tuple of them.
            tx: any Optax transformation, or an `Optimizer`, whose `freeze` and `params_ema` count
                as `frozen` and `ema_decay`.
            seed: of the initial parameters, of every random stream and of the data's order; a
                whole number from 0 to 2**32 - 1, or a key, of whatever implementation.
            params: a PyTree to train instead of initialising `model` (pretrained, or functions).
            model_state: collections to go with `params`, or in the place of those of `model`; the
                state beside an Equinox model.
            frozen: path patterns of parameters that stay as they are and cost no backward pass
                (see `loopax.paths.matches`). Integers, booleans and random keys never train.
            lora: train adapters of some parameters, and nothing else but what it names.
            ema_decay: keep an exponential moving average of the parameters with this decay.
            compute_dtype: `"bfloat16"` gives the loss parameters and real columns of a batch in
                this type. Parameters, gradients, metrics and averages stay as they are.
            full_precision: path patterns of parameters that the loss is given as they are all the
                same; `batch/target` is a column of a batch.
            remat: what the loss keeps for its gradient: `"dots"` keeps products of matrices and
                computes all else again, `"nothing"` all. The names are those of JAX's checkpoint
                policies. It holds for each iteration of a scan, or else for the loss as a whole.
            total_steps: how many batches the run has, for the schedules of an `Optimizer`.
            **fields: the fields that a subclass adds.

        Raises:
            ConfigError: there is neither a model nor `params`, the example is missing or does not
                fit the model, a part of it can be neither trained nor kept, a pattern matches
                nothing, or nothing is left to train.
        """
        check_arguments(model, example, tx, params)
        check_patterns(frozen)
        if isinstance(tx, Description) and not isinstance(tx, type):
            tx, frozen, ema_decay = described(tx, frozen, ema_decay, total_steps)
        elif total_steps is not None:
            raise ConfigError(
                f"total_steps is {total_steps}, which only the schedule of an Optimizer asks for; "
                "leave it out"
            )
        transformation = as_transformation(tx)
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise ConfigError(f"ema_decay is {ema_decay}; it must be at least 0 and below 1")
        key = root_key(seed)
        if isinstance(params, optax.LookaheadParams):
            params = params.fast
        params, model_state, structure = taken_apart(model, example, key, params, model_state)
        if model is not None and structure is FUNCTIONS:
            fields.setdefault("apply_fn", model.apply)
        trainable, rest = split_params(params, frozen, lora, key)
        precision = Precision.of(compute_dtype, full_precision, params)
        transformation, opt_state = started(transformation, trainable)
        state = cls(
            step=put(np.int32(0)),
            trainable=trainable,
            frozen=rest,
            tx=transformation,
            opt_state=opt_state,
            key=key,
            model_state=model_state,
            structure=structure,
            ema=None if ema_decay is None else averages(trainable),
            ema_model_state=None if ema_decay is None else averages(model_state),
            ema_decay=ema_decay,
            precision=precision,
            remat=checked_remat(remat),
            **fields,
        )
        return jax.tree.map(strongly_typed, state)

    @property
    def params(self) -> PyTree:
        """What the loss is given: for a Flax module the tree that `model.apply` takes."""
        return merged(merge(self.trainable, self.frozen))

    def replace(self, **fields: Any) -> Self:
        """This state with other fields; `params` stands for both of its parts.

        Raises:
            ConfigError: `params` are of another form than those of this state.
        """
        if "params" in fields:
            params = fields.pop("params")
            try:
                fields["trainable"], fields["frozen"] = (
                    like(part, params) for part in (self.trainable, self.frozen)
                )
            except ValueError as error:
                ours = merge(self.trainable, self.frozen)
                difference = differing(forms(ours), forms(params))
                raise ConfigError(
                    f"params are of another form than those of the state: {difference or error}"
                ) from error
        return dataclasses.replace(self, **fields)

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate with, of the same form as `params`.

        The moving average where there is one; else, of an optimiser such as `schedule_free` that
        means other parameters than those it trains, these.
        """
        trainable = eval_params(self.trainable, self.ema, self.opt_state)
        return merged(merge(trainable, self.frozen))

    @property
    def model(self) -> Any:
        """The model that the next step's loss is given, with the parameters as they are trained.

        Raises:
            ConfigError: the model holds no parameters, as in Linen, Haiku and plain functions.
        """
        return self._merged(self.params, self.model_state, self.rngs)

    @property
    def eval_model(self) -> Any:
        """The model to use: with `eval_params`, and with dropout and batch statistics at rest.

        Raises:
            ConfigError: the model holds no parameters, as in Linen, Haiku and plain functions.
        """
        rngs = Rngs(self.key, self.step, training=False)
        return self._merged(self.eval_params, self.eval_model_state, rngs)

    def _merged(self, params: PyTree, model_state: PyTree, rngs: Rngs) -> Any:
        if self.structure is FUNCTIONS:
            raise ConfigError(
                "state.model is there for models of NNX and Equinox, which hold their parameters; "
                "call model.apply(state.eval_params, ...)"
            )
        return self.structure.model(params, model_state, rngs)

    @property
    def eval_model_state(self) -> PyTree:
        """The collections to evaluate with: their moving averages where there are any."""
        means = named(self.ema_model_state)
        return overlaid(self.model_state, means) if means else self.model_state

    @property
    def rngs(self) -> Rngs:
        """The random keys of the step that comes next, by stream name."""
        return Rngs(self.key, self.step)

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
        updates, opt_state = update(
            self.tx, grads, self.opt_state, self.trainable, extra_args or {}
        )
        trainable = optax.apply_updates(self.trainable, updates)
        state = self.replace(step=self.step + 1, trainable=trainable, opt_state=opt_state, **fields)
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


def from_flax(state: train_state.TrainState) -> TrainState:
    """The state of a training with Flax's own class, to go on with.

    Where a subclass adds arrays they are the `model_state`, by the names of their fields; a random
    key called `key` is the root key.

    Raises:
        ConfigError: a subclass changes what a step does or what is no array, or the optimiser's
            state is of another form than loopax keeps it in.
    """
    kind, plain = type(state), train_state.TrainState
    own = {field.name for field in dataclasses.fields(plain)}
    added = [field for field in dataclasses.fields(kind) if field.name not in own]
    static = [field.name for field in added if not field.metadata.get("pytree_node", True)]
    if kind.apply_gradients is not plain.apply_gradients or static:
        reason = f"holds {static[0]}" if static else "makes its own update"
        raise ConfigError(
            f"state is a {kind.__name__} of Flax, which {reason}, and loopax would not heed that; "
            "derive it from loopax.TrainState"
        )
    extra = {field.name: getattr(state, field.name) for field in added}
    key = extra.get("key")
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        del extra["key"]
    else:
        key = jax.random.key(0)
    made = TrainState.create(
        params=state.params, tx=state.tx, model_state=extra, apply_fn=state.apply_fn
    )
    opt_state = state.opt_state
    if isinstance(made.opt_state, Weighed) and isinstance(opt_state, optax.MultiStepsState):
        batches = jnp.asarray(opt_state.mini_step, jnp.float32)  # each of them counted once
        opt_state = made.opt_state._replace(weight=batches, window=opt_state)
    if difference := differing(forms(opt_state), forms(made.opt_state)):
        raise ConfigError(
            f"state is a TrainState of Flax, whose opt_state differs from a new one of its "
            f"optimiser: {difference}; make the state with loopax.TrainState.create"
        )
    made = made.replace(step=state.step, opt_state=opt_state, key=key)
    return jax.tree.map(strongly_typed, made)


def strongly_typed(leaf: Any) -> Array:
    """A leaf whose type a compiled loop can carry: Python numbers promote, arrays do not."""
    leaf = put(leaf) if isinstance(leaf, np.ndarray | np.generic) else jnp.asarray(leaf)
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.astype(leaf.dtype)
