"""A run as far as it has come: what `fit` returns, and what hooks are shown."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from loopax import processes
from loopax.compute.state import TrainState
from loopax.compute.updates import named
from loopax.jsonlines import OWN_SOURCES, Row, values_of
from loopax.placement import gather
from loopax.run.directory import RunDir
from loopax.run.history import History

T = TypeVar("T")

STOPPED = "stopped.json"
"""Of the run directory: the step at which a run was stopped, and why."""
SHOWN_ROWS = 1000
WIDTH = 100


@dataclass(repr=False)
class Run:
    """A run as far as it has come. Printed, it is five lines.

    It can be pickled: the arrays of the state are numpy's then, and its functions (the optimiser's,
    the model's) are left out, as pickle cannot carry them; the keys are the numbers they are made
    of.

    Attributes:
        state: the state after `step` steps. While the run goes on it belongs to the loop, which
            gives its memory to the next chunk: a hook that keeps a part of it must copy it.
        step: how many steps have been made.
        position: where the data stands after them, of a source that has a state.
        history: every logged row in order, those from before a resumption too.
        dir: the run directory, or None.
        account: where the wall time went, when the run has ended.
        stopped: why `stop` ended the run; None where it did not.
        measured: what evaluations and hooks measured at this very step, by source and name.
        chunks: what iterating over the run gives: inside of `with loopax.training(...) as run`
            each chunk that is trained, elsewhere nothing.
    """

    state: Any
    step: int = 0
    position: Any = None
    history: History = field(default_factory=History)
    dir: RunDir | None = None
    account: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    chunks: Iterator[Any] = field(default_factory=lambda: iter(()))

    def __iter__(self) -> Iterator[Any]:
        return self.chunks

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the files of the run: of several, one does."""
        return processes.is_writer()

    @property
    def name(self) -> str:
        """What the run is called in messages: its directory, where it has one."""
        return str(self.dir.path) if self.dir is not None else "the run"

    def gather(self, tree: T) -> T:
        """Arrays such as `state.eval_params`, whole on one device of this process.

        For a hook that draws or writes by itself. All processes of a run must ask for it.
        """
        return gather(tree)

    def stop(self, reason: str) -> None:
        """Ends the run at this step, as a hook may want: it is saved, and done.

        The run directory keeps the reason (`stopped.json`), so that the same call finds the run
        finished; without that file it would go on.
        """
        self.stopped = reason
        if self.dir is not None and self.is_writer:
            # Before the checkpoint of this step: a process that is killed in between comes by here
            # again, while one that had only saved would train on.
            self.dir.write_json(STOPPED, {"step": self.step, "reason": reason})

    def latest(self, source: str) -> Row:
        """The newest row of a source (`train`, `hook`, or the name of evaluation data), or {}."""
        return self.history.latest(source)

    def __repr__(self) -> str:
        held = "parameters" if isinstance(self.state, TrainState) else "state"
        arrays = jax.tree.leaves(getattr(self.state, "params", self.state))
        count = sum(leaf.size for leaf in arrays if hasattr(leaf, "size"))
        train, measured = self.latest("train"), ""
        newest = itertools.islice(reversed(self.history), SHOWN_ROWS)
        for source in dict.fromkeys(row["source"] for row in newest):
            if source not in OWN_SOURCES:
                measured = _line(self.latest(source))
                break
        lines = (
            f"Run after {self.step:,} steps",
            f"  directory   {self.dir.path if self.dir is not None else 'none, only in memory'}",
            f"  {held:<12}{count:,} in {len(arrays)} arrays",
            f"  trained     {_line(train) if train else 'no row yet'}",
            f"  measured    {measured or 'nothing'}",
        )
        return "\n".join(line[:WIDTH] for line in lines)

    def __copy__(self) -> Run:
        return dataclasses.replace(self)

    def __getstate__(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"state": _without_functions(self.state), "chunks": iter(())}


def _line(row: Row) -> str:
    values = ", ".join(
        f"{name} {value:.4g}" for name, value in values_of(row).items() if isinstance(value, float)
    )
    return f"{row['source']} at step {row['step']:,}: {values}"


def _without_functions(state: Any) -> Any:
    """A state in numpy's arrays that pickle can carry; by path where it cannot carry its class."""

    def as_numpy(leaf: Any) -> Any:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    if isinstance(state, TrainState):
        state = state.replace(tx=None, apply_fn=None)
    bare = jax.tree.map(as_numpy, state)
    try:
        pickle.dumps(bare)
    except Exception:  # The optimiser's state may be of a class that has no place in a module.
        return bare.replace(opt_state=None) if isinstance(bare, TrainState) else named(bare)
    return bare
