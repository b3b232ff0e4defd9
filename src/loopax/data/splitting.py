"""Splits by class: of single rows evenly, of rows that belong together in whole blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

_GOLDEN = (5**0.5 - 1) / 2


def even_split(labels: np.ndarray, fraction: float) -> np.ndarray:
    """Picks `fraction` of every class, rounded, without chance.

    At least one of a class is picked, but never all: a class of one is never picked from. The
    stored order is cut into equal stretches, and one is picked of each, by multiples of the golden
    ratio (Weyl's sequence): so what comes again in the order, such as the ten views of each thing,
    is not always or never picked. The picked are a function of the labels alone.

    Args:
        labels: the class of each row, `(rows,)`; -1, which is unknown, counts as a class.
        fraction: between 0 and 1.

    Returns:
        Which rows are picked, bool `(rows,)`.
    """
    chosen = np.zeros(len(labels), bool)
    for label, n in zip(*np.unique(labels, return_counts=True), strict=True):
        picked = min(max(1, int(n * fraction + 0.5)), n - 1)
        if picked:
            starts = np.arange(picked + 1) * n // picked
            offsets = np.arange(1, picked + 1) * _GOLDEN % 1 * np.diff(starts)
            rows = np.flatnonzero(labels == label)
            chosen[rows[starts[:-1] + offsets.astype(int)]] = True
    return chosen


def grouped_split(
    ties: Sequence[Sequence[Hashable]],
    ranks: Sequence[Any],
    labels: np.ndarray,
    fraction: float,
) -> np.ndarray:
    """Picks about `fraction` of every class, whole blocks at a time.

    A block is all rows that are tied to each other, directly or through others. Blocks are looked
    at once, in the order of their ranks, and one is taken if that brings the counts of its classes
    nearer to what they should be and leaves some rows of each. Where every block is one row, each
    class has `fraction` of its rows taken, rounded, but at least one and never all. A class of one
    block is never taken from.

    Args:
        ties: of each row the things that it shares with those it belongs to; None ties nothing.
        ranks: of each row what can be sorted by; a block has the lowest of its rows.
        labels: int `(rows,)`.
        fraction: between 0 and 1.

    Returns:
        Which rows are taken, bool `(rows,)`.
    """
    blocks = sorted(_blocks(ties), key=lambda block: min(ranks[row] for row in block))
    chosen, classes = np.zeros(len(labels), bool), labels.tolist()
    for block in _taken([Counter(classes[row] for row in block) for block in blocks], fraction):
        chosen[blocks[block]] = True
    return chosen


def _blocks(ties: Sequence[Sequence[Hashable]]) -> list[list[int]]:
    """The rows of each block, found by joining sets (Galler and Fischer, 1964)."""
    leader = list(range(len(ties)))

    def find(row: int) -> int:
        while leader[row] != row:
            leader[row] = row = leader[leader[row]]
        return row

    first_with: dict[Hashable, int] = {}
    for row, each in enumerate(ties):
        for tie in each:
            if tie is not None:
                leader[find(row)] = find(first_with.setdefault(tie, row))
    blocks: dict[int, list[int]] = {}
    for row in range(len(ties)):
        blocks.setdefault(find(row), []).append(row)
    return list(blocks.values())


def _taken(counts: Sequence[Counter[int]], fraction: float) -> list[int]:
    """The blocks to take, of which each has so many rows of every class."""
    total, holders = Counter[int](), Counter[int]()
    for count in counts:
        total.update(count)
        holders.update(count.keys())
    target = {
        label: min(max(1, round(fraction * n)), n - 1) if holders[label] > 1 else 0
        for label, n in total.items()
    }
    have, taken = Counter[int](), list[int]()

    def gain(count: Counter[int]) -> int:
        missing = {label: target[label] - have[label] for label in count}
        return sum(abs(missing[label]) - abs(missing[label] - n) for label, n in count.items())

    def leaves_some(count: Counter[int]) -> bool:
        return all(have[label] + n < total[label] for label, n in count.items())

    def take(block: int) -> None:
        have.update(counts[block])
        taken.append(block)

    for block, count in enumerate(counts):
        if gain(count) > 0 and leaves_some(count):
            take(block)
    for label in target:
        # Large blocks can all have been too large, but a class that is never tested is worse.
        if target[label] and not have[label]:
            able = [
                block for block, count in enumerate(counts) if count[label] and leaves_some(count)
            ]
            if able:
                take(min(able, key=lambda block: counts[block].total()))
    return taken
