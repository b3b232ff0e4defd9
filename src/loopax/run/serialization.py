"""A folder of arrays and their meta, written and read by Orbax: `<folder>/state` and `.../meta`.

Writing goes on in the background. Whoever began it then puts the folder under digests and gives it
its name (`loopax.run.checkpoint`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from loopax import processes
from loopax.errors import CheckpointError, ConfigError
from loopax.paths import PyTree, differing, forms, merge, partition

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

# Orbax keeps parts of what it is doing in globals, and two calls at a time may mix them up. Only
# what is done at once is locked: the background parts of several saves overlap.
_ORBAX = threading.RLock()
LIMIT_SECONDS = 600
"""How long several processes wait for each other in a save."""
_hooks: list[Any] = []
"""What was to be told of late failures, as each run that is quiet found it."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps others from printing what we say ourselves, in a line, of a save that failed.

    Orbax logs a traceback, asyncio complains of parts that Orbax did not wait for, and TensorStore
    tells of the rest when Orbax's event loop is closed already. Several runs may be inside at once,
    and leave in any order.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    with _ORBAX:
        _hooks.append(sys.unraisablehook)
        sys.unraisablehook = _without_late_news
        for logger in loggers:
            logger.addFilter(_is_not_of_orbax)  # which is there once, however often it is added
    try:
        yield
    finally:
        with _ORBAX:
            before = _hooks.pop()  # Only that of the first one in is not ours.
            if not _hooks:
                sys.unraisablehook = before
                for logger in loggers:
                    logger.removeFilter(_is_not_of_orbax)


def _without_late_news(news: Any) -> None:
    if news.object is not None or str(news.exc_value) != "Event loop is closed":
        _hooks[0](news)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    if record.exc_info is None or record.levelno < logging.ERROR:
        return True
    if record.name == "absl":
        return "orbax" not in record.pathname
    frames = (frame for frame, _ in traceback.walk_tb(record.exc_info[2]))
    return all("orbax" not in frame.f_code.co_filename for frame in frames)


def begin(path: Path, tree: PyTree, meta: Mapping[str, Any]) -> ocp.AsyncCheckpointer:
    """Starts to write: returns when the arrays were copied, and ends in the background.

    Each has an Orbax of its own: one that failed keeps what else failed for the next one.
    """
    import orbax.checkpoint as ocp

    # Limits of time go by the wall clock, which jumps when a machine sleeps, and would end the run:
    # there is one only where another process may be lost. With the folders made at once, nothing
    # waits for a signal with a limit that cannot be set either.
    seconds = 10**9 if processes.count() == 1 else LIMIT_SECONDS
    options = ocp.AsyncOptions(timeout_secs=seconds, create_directories_asynchronously=False)
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(async_options=options),
        state=ocp.StandardCheckpointHandler(),
        meta=ocp.JsonCheckpointHandler(),
    )
    orbax = ocp.AsyncCheckpointer(handler, async_options=options)
    stored, _ = _parted(tree)
    args = ocp.args.Composite(state=ocp.args.StandardSave(stored), meta=ocp.args.JsonSave(meta))
    with _ORBAX:
        orbax.save(path, args=args)
    return orbax


def meta_of(path: Path) -> dict[str, Any]:
    """The meta of a folder, as Orbax writes it."""
    meta: dict[str, Any] = json.loads((path / "meta" / "metadata").read_text())
    return meta


def read(path: Path) -> Any:
    """The arrays of a folder as a tree of dictionaries, on a device of this process.

    Raises:
        CheckpointError: Orbax cannot read it.
    """
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    form = jax.tree.map(
        lambda stored: jax.ShapeDtypeStruct(stored.shape, stored.dtype, sharding=here),
        _stored(path),
    )
    return _restored(path, ocp.args.StandardRestore(form))


def restore(path: Path, form: PyTree) -> Any:
    """The arrays of a folder in a form, whose values do not matter.

    Raises:
        CheckpointError: they are of another form, or Orbax cannot read it.
    """
    import orbax.checkpoint as ocp

    stored, empty = _parted(form)
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, stored)
    _check_fits(path, target)
    return merge(_restored(path, ocp.args.StandardRestore(target)), empty)


def _restored(path: Path, form: ocp.args.StandardRestore) -> Any:
    import orbax.checkpoint as ocp

    try:
        with _ORBAX:
            return ocp.StandardCheckpointHandler().restore(path / "state", args=form)
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be restored: {reason_of(error)}") from error


def _check_fits(path: Path, target: PyTree) -> None:
    """Compares leaf by leaf first: Orbax would cast another type without a word."""
    old, new = forms(_stored(path)), forms(target)
    if differences := differing(old, new):
        raise CheckpointError(f"{path}: of another model or optimiser: {differences}")


def _stored(path: Path) -> PyTree:
    """The shapes and types of a folder's arrays."""
    import orbax.checkpoint as ocp

    try:
        with _ORBAX:
            stored = ocp.StandardCheckpointHandler().metadata(path / "state")
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be restored: {reason_of(error)}") from error
    return getattr(stored, "tree", stored)


def is_empty(tree: PyTree) -> bool:
    """Whether a tree has no array that can be written."""
    return not jax.tree.leaves(_parted(tree)[0])


def _parted(tree: PyTree) -> tuple[Any, Any]:
    """A tree without arrays of no elements, which Orbax cannot store, and these."""
    return partition(tree, jax.tree.map(lambda leaf: leaf.size > 0, tree))


def check_leaves(state: PyTree) -> None:
    """Makes sure that each leaf of a state has a name of its own, in files and in patterns.

    Raises:
        ConfigError: two have the same; Orbax would write the one over the other.
    """
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    for separator in "./":
        names = Counter(
            jax.tree_util.keystr(path, simple=True, separator=separator) for path in paths
        )
        if twice := [name for name, count in names.items() if count > 1]:
            raise ConfigError(
                f"leaves of the state would both be stored as {twice[0]!r}; rename one of them"
            )


def reason_of(error: BaseException) -> str:
    """What the system said at the root of an error, or else the first line of its message."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if number := re.search(r"os_error_code='(\d+)'", str(cause)):
            return os.strerror(int(number[1]))
        cause = cause.__cause__ or cause.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__
