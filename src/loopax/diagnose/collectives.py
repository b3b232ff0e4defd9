"""What devices send each other in a step, read from the compiled program."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_CALL = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")


@dataclass(frozen=True)
class Traffic:
    """Of one kind of collective: how often a program calls it, and what its results take.

    A call in a loop counts once; bytes are those on one device.
    """

    calls: int
    nbytes: int


def collectives(compiled: jax.stages.Compiled) -> Mapping[str, Traffic]:
    """The traffic of a program by the kind of collective, those of no call left out."""
    found: dict[str, Traffic] = {}
    for line in (compiled.as_text() or "").splitlines():
        if call := _CALL.search(line):
            before = found.get(call[2], Traffic(0, 0))
            found[call[2]] = Traffic(before.calls + 1, before.nbytes + _nbytes(call[1]))
    return found


def _nbytes(form: str) -> int:
    """Of the arrays of an HLO type such as `(f32[8,64]{1,0}, s32[])`."""
    total = 0
    for name, shape in _ARRAY.findall(form):
        elements = 1
        for size in filter(None, shape.split(",")):
            elements *= int(size)
        total += elements * _itemsize(name)
    return total


def _itemsize(name: str) -> int:
    """Bytes of an element: `f32` has 4, `f8e4m3fn` and `pred` have 1."""
    bits = re.search(r"\d+", name)
    return max(1, int(bits[0]) // 8) if bits else 1
