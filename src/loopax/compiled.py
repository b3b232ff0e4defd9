"""Machine code that equal programs share, and programs that note when they are compiled.

JAX knows a program by the function that it was made of, so it compiles again where a model, a loss
or an optimiser is made anew. Here a program is known by what it says: a function is traced, and
where it was lowered to the same text before, its code is there already. What another constant or
another shape makes of it is another text.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from loopax import jaxprs, processes
from loopax.account import Account
from loopax.meshes import default_device
from loopax.paths import PyTree, leaf_path
from loopax.placement import Placement
from loopax.threads import as_here

LIMIT = 64
"""Programs whose code is kept, those that were used last."""

_kept: OrderedDict[Any, jax.stages.Compiled] = OrderedDict()
_lock = threading.Lock()


def is_debugging() -> bool:
    """Whether one of JAX's switches is on that execute a program again, by its operations.

    Then its arguments must be there still, and its constants be transferred.
    """
    switches = ("jax_debug_nans", "jax_debug_infs", "jax_disable_jit")
    return any(getattr(jax.config, switch) for switch in switches)


def executed(function: Callable[..., Any], *args: PyTree) -> Any:
    """`jax.jit(function)(*args)`, whose code is shared with equal programs."""
    if is_debugging() or jaxprs.is_traced(args):  # code can be called, but not be traced
        return jax.jit(function)(*args)
    return Code.of(function, args, function.__name__)(jax.tree.leaves(args))


@dataclass(frozen=True)
class Code:
    """The machine code of a function for arguments of one form.

    Attributes:
        program: takes the leaves of the arguments and gives those of the result, in two lists.
        result: the structure of the result.
        is_new: whether it was compiled for this, and not shared.
    """

    program: jax.stages.Compiled
    result: Any
    is_new: bool

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        args: tuple[PyTree, ...],
        name: str,
        *,
        donates: bool = False,
    ) -> Code:
        """The code of `function` for `args`, of which only shapes, types and places count.

        Args:
            function: is traced, in any case.
            args: arrays, or `jax.ShapeDtypeStruct` in their place.
            name: as profiles show it.
            donates: the first of its results takes the memory of the first argument, and its place.
        """
        leaves, form = jax.tree.flatten(args)
        count = len(jax.tree.leaves(args[0])) if donates else 0
        results = []

        def flat(*leaves: Any) -> tuple[list[Any], list[Any]]:
            result = function(*jax.tree.unflatten(form, leaves))
            results.append(jax.tree.structure(result))
            found = jax.tree.leaves(result)
            return found[:count], found[count:]

        flat.__name__ = name
        forms = list(map(_form, leaves))
        places = [leaf.sharding for leaf in forms]
        traced = jax.jit(
            flat,
            donate_argnums=tuple(range(count)),
            # What is read lies whole on each device, so that each process has it.
            out_shardings=(places[:count], Placement.of(args[0]).everywhere),
            keep_unused=True,  # or the text would not say which of the arguments are used
        ).trace(*forms)
        lowered = traced.lower()
        key = (_digest(traced, lowered), tuple(forms), _device())
        with _lock:
            program = _kept.pop(key, None) if key[0] else None
        if is_new := program is None:
            program = lowered.compile()
        if key[0]:
            with _lock:
                _kept[key] = program
                while len(_kept) > LIMIT:
                    _kept.popitem(last=False)
        return cls(program, results[0], is_new)

    def __call__(self, leaves: Sequence[Any]) -> Any:
        first, rest = self.program(*leaves)
        return jax.tree.unflatten(self.result, [*first, *rest])


def _digest(traced: Any, lowered: jax.stages.Lowered) -> str:
    """Of what a program says and how it is compiled; empty where its text does not say it all.

    A call back into Python is only a number in the text.
    """
    text = lowered.as_text()
    if "callback" in text or "host_transfer" in text:
        return ""
    # Those of this thread, where it has its own.
    settings = {name: getattr(jax.config, name, it) for name, it in jax.config.values.items()}
    settings = {name: it for name, it in settings.items() if "transfer_guard" not in name}
    digest = hashlib.sha256(repr(sorted(settings.items())).encode())
    digest.update(text.encode())
    # JAX may leave them out of the text: https://docs.jax.dev/en/latest/internals/constants.html
    if settings.get("jax_use_simplified_jaxpr_constants", True):
        for content in jaxprs.contents(traced.jaxpr):
            digest.update(content)
    return digest.hexdigest()


def _form(leaf: Any) -> jax.ShapeDtypeStruct:
    """What code is compiled for: type and place of a leaf.

    One device of all is no place: what a run restores was put there, and what it began with was
    not, and both run the same code.
    """
    kind = jax.typeof(leaf)
    place = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    if isinstance(place, SingleDeviceSharding) and place.device_set == {_device()}:
        place = None if place.memory_kind in (None, _device().default_memory().kind) else place
    return jax.ShapeDtypeStruct(kind.shape, kind.dtype, sharding=place, weak_type=kind.weak_type)


def _device() -> jax.Device:
    """Where JAX computes what lies nowhere in particular."""
    return default_device() or jax.local_devices()[0]


class Program:
    """A compiled function that notes each compilation and what had changed to make it necessary."""

    def __init__(
        self, name: str, function: Callable[..., Any], account: Account, *, donates: bool = False
    ) -> None:
        """With `donates` the first result takes the memory of the first argument, and its place."""
        self._name, self._function, self._account = name, function, account
        self._donates = donates
        self._codes: list[tuple[Any, Code]] = []
        self._said: dict[str, str] = {}
        self._ahead: tuple[Any, Future[Code]] | None = None
        # Also where it is called once more without these switches, to find where a NaN was made.
        self._debugged = jax.jit(function) if is_debugging() else None

    def __call__(self, *args: Any) -> Any:
        if self._debugged is not None:
            return self._debugged(*args)
        leaves, form = jax.tree.flatten(args)
        return self._code(args, (form, *_signature(leaves)))(leaves)

    @property
    def is_compiled(self) -> bool:
        """Whether it was compiled already, for whatever arguments."""
        return bool(self._codes)

    def compiled(self, *args: Any) -> jax.stages.Compiled:
        """The machine code for `args`, of which only shapes and types count; shared with calls."""
        leaves, form = jax.tree.flatten(args)
        return self._code(args, (form, *_signature(leaves))).program

    def prepare(self, *args: Any) -> None:
        """Compiles for `args` in the background; the first call with them waits for it."""
        leaves, form = jax.tree.flatten(args)
        # The arrays themselves may be used up meanwhile.
        args = jax.tree.unflatten(form, list(map(_form, leaves)))
        worker = ThreadPoolExecutor(1, "loopax-compile")
        work = functools.partial(Code.of, self._function, args, self._name)
        self._ahead = (form, *_signature(leaves)), worker.submit(as_here(work))
        worker.shutdown(wait=False)

    def _code(self, args: tuple[Any, ...], signature: Any) -> Code:
        for known, code in self._codes:
            if known == signature:
                return code
        start = time.perf_counter()
        if self._ahead is not None and self._ahead[0] == signature:
            code = self._ahead[1].result()
        else:
            code = Code.of(self._function, args, self._name, donates=self._donates)
        if Placement.of(args[0]).is_shared:
            # Gloo waits 30 s for the others where it is first used; one may compile for longer.
            processes.everyone(f"compiled {self._name}", "")
        self._codes.append((signature, code))
        names = inspect.signature(self._function).parameters
        before, self._said = self._said, described(dict(zip(names, args, strict=True)))
        reason, seconds = _difference(before, self._said), time.perf_counter() - start
        self._account.compiled(self._name, reason, seconds, shared=not code.is_new)
        return code


def _signature(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """What code is compiled for: types and places of leaves.

    The leaves of one program's results share these objects, so that they are compared fast.
    """
    places = [getattr(leaf, "sharding", None) for leaf in leaves]
    return [jax.typeof(leaf) for leaf in leaves], places, _device()


def described(tree: PyTree) -> dict[str, str]:
    """Type and shape of each leaf, by path."""
    leaves = [
        (leaf_path(path), leaf if hasattr(leaf, "dtype") else jax.typeof(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    return {path: f"{kind.dtype}[{','.join(map(str, kind.shape))}]" for path, kind in leaves}


def _difference(old: dict[str, str], new: dict[str, str]) -> str:
    if not old:
        return "first use"
    changed = [
        f"{path}: {old.get(path, 'absent')} -> {new.get(path, 'absent')}"
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]
    return "; ".join(changed[:3]) or "other devices or layouts"
