"""Splits of data in parts to train on, to choose by and to test on.

What belongs together is never on two sides: copies of an image, rows with one text or of one group.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Shaped

from loopax.batches.dataset import Dataset
from loopax.batches.mapped import Mapped
from loopax.data.classes import normalized
from loopax.data.description import alike, classes_of_images, described, unlabelled
from loopax.data.files import VALIDATION_NAMES, fault
from loopax.errors import ConfigError

if TYPE_CHECKING:
    from loopax.data.texts.texts import Texts

_GOLDEN = (5**0.5 - 1) / 2

Labels = Int[np.ndarray, " rows"]
Chosen = Bool[np.ndarray, " rows"]
Images = Shaped[np.ndarray, "rows height width channels"] | Mapped


class Splits(NamedTuple):
    """The parts of a dataset: one to train on, one to choose by, one for the figures at the end.

    Attributes:
        train: what is trained on.
        validation: what settings and checkpoints are chosen by; None if there is none, and then
            `with_validation` holds one out.
        test: what nothing is trained on or chosen by.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset

    @property
    def parts(self) -> dict[str, Dataset]:
        """The parts there are, by the names of the attributes."""
        return {name: part for name, part in self._asdict().items() if part is not None}

    def with_validation(self, fraction: float = 0.1) -> Splits:
        """The same with a validation part: held out of the training part where none was given.

        Which examples are held out is a function of the data, as `hold_out` says. A validation
        part that is there stays as it is, and so does the test part.

        Raises:
            ConfigError: `fraction` is not between 0 and 1.
            DataError: no class has two examples.
        """
        check_fraction("fraction", fraction)
        if self.validation is not None:
            return self
        train, validation = hold_out(self.train, fraction, "validation")
        return Splits(train, validation, self.test)

    @property
    def description(self) -> str:
        """What the data is, in one line: how it was read, counts, sizes, classes."""
        name = self.train.name.removesuffix(" train")
        return described(name, self.train.source, _facts(self))


def _facts(splits: Splits) -> Iterator[str]:
    """How many examples there are of each part, of what size and classes, and what was noted."""
    train, validation, test = splits
    parts = splits.parts
    yield f"{len(train):,} to train on"
    if validation is not None:
        origin = _origin(validation, len(train) + len(validation), " of the training data")
        yield f"{len(validation):,} to choose by ({origin})"
    yield f"{len(test):,} to test on ({_origin(test, sum(map(len, parts.values())))})"
    if (images := train.columns.get("image")) is not None and images.ndim == 4:
        palette = {1: "grey", 3: "colour"}.get(images.shape[3], f"{images.shape[3]} channels")
        yield f"{images.shape[1]} x {images.shape[2]} {palette}"
    if (labels := train.columns.get("label")) is not None and train.class_names:
        yield from classes_of_images(train.class_names, labels)
        yield from unlabelled(np.concatenate([part.columns["label"] for part in parts.values()]))
        yield from alike(train.class_names)
    for note in dict.fromkeys(note for part in parts.values() for note in part.notes):
        of = [name for name, part in parts.items() if note in part.notes]
        yield note if len(of) == len(parts) else f"{note} ({', '.join(of)})"


def _origin(part: Dataset, total: int, whole: str = "") -> str:
    """The origin of a part: given, perhaps under another name, or held out of the whole."""
    if part.held_out is not None:
        return f"1 in {round(total / len(part), 1):g}{whole} held out"
    word = part.name.rpartition(" ")[2]
    return f"given as {word}" if word in VALIDATION_NAMES and not whole else "given"


def check_fraction(name: str, value: Any) -> None:
    """Raises a ConfigError unless a value is a number between 0 and 1."""
    if not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a number between 0 and 1")


def hold_out(dataset: Dataset, fraction: float, part: str) -> tuple[Dataset, Dataset]:
    """What is left to train on, and the `fraction` of each class that is held out as a `part`.

    Of each class that many are held out, rounded, but at least one and never all; an unknown
    class, -1, counts as one. They are spread over the stored order. Of images whose neighbours are
    alike, as those of a film are, the last of each class are held out, as a frame that is held out
    of the middle was all but trained on. Copies of an image, of equal pixels, stay together. Both
    keep the stored order. Where `label` is no column of whole numbers all examples count as one
    class.

    Raises:
        DataError: no class has two examples that differ.
    """
    labels = dataset.columns.get("label")
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        labels = np.zeros(len(dataset), np.int32)
    if (images := dataset.columns.get("image")) is not None:
        chosen, notes = _held_out_images(images, labels, fraction)
    else:
        chosen, notes = _spread_rows(labels, fraction), ()
    if not chosen.any():
        raise fault(
            dataset.name,
            "has 1 example of each class, copies not counted; to hold some out one must have 2",
        )
    # What was said of a whole holds of its parts when they are split again.
    said = dataset.notes if dataset.held_out is not None else (*dataset.notes, *notes)
    dataset = replace(dataset, held_out=fraction, notes=said)
    name = f"{dataset.name.removesuffix(' train')} {part}"
    return dataset.pick(~chosen), replace(dataset.pick(chosen), name=name)


def split_texts(
    texts: Texts,
    fraction: float,
    seed: int,
    *,
    contents: Sequence[Hashable] | None = None,
) -> tuple[Texts, Texts]:
    """Splits `texts` in two, of which the second gets about `fraction` of every class.

    Rows of one group stay together, and so do those with the same content: nothing that is tested
    on was seen in training. By default the content is the text without case and spaces
    (`normalized`); `contents` gives that of each row as a model sees it, such as its tokens.

    A class with one such block is whole in the first part, any other has rows in both wherever its
    blocks allow it. The split is a function of the content and the seed, not of the order of the
    rows; both parts keep that order. Where all blocks are single rows, each class is split
    exactly, to the nearest row.

    Raises:
        ConfigError: `fraction` is not between 0 and 1.
        DataError: all rows belong together.
    """
    check_fraction("fraction", fraction)
    groups = texts.groups or [""] * len(texts)
    if contents is None:
        contents = [normalized(row) for row in texts.rows]
    ties = [(("content", c), group or None) for c, group in zip(contents, groups, strict=True)]
    ranks = [hashlib.sha256(repr((seed, row)).encode()).digest() for row in texts.rows]
    chosen = _grouped_rows(ties, ranks, texts.labels, fraction)
    if not chosen.any():
        raise fault(
            texts.name,
            "cannot be split, every class is one group or one text; give a file to test on",
        )
    return texts.subset(np.flatnonzero(~chosen)), texts.subset(np.flatnonzero(chosen))


def deduplicated(splits: Splits) -> Splits:
    """Removes from earlier parts the images that occur again in later ones.

    What is to test on stays whole; the part to choose by loses copies of its images, of equal
    pixels, and the part to train on loses copies of images of both.

    Raises:
        DataError: nothing is left of a part.
    """
    seen: set[bytes] = set()
    kept = splits._asdict()
    for name, part in reversed(splits.parts.items()):
        digests = _digests_of(part.columns["image"]).tolist()
        copies = np.array([digest in seen for digest in digests])
        seen.update(digests)
        if copies.all():
            raise fault(
                part.name, "all its images are also in another part; parts must not share images"
            )
        if copies.any():
            note = f"left out as copies of images in other parts: {copies.sum():,}"
            kept[name] = replace(part.pick(~copies), notes=(*part.notes, note))
    return Splits(**kept)


def _held_out_images(
    images: Images, labels: Labels, fraction: float
) -> tuple[Chosen, tuple[str, ...]]:
    """Which images are held out, and notes on how they were chosen."""
    digests, notes = _digests_of(images), list[str]()
    firsts = np.sort(np.unique(digests, return_index=True)[1])
    if copies := len(digests) - len(firsts):
        notes.append(f"copies of images kept on one side of each split: {copies:,}")
    if alike := _are_like_frames(images, labels, firsts):
        chosen = _last_rows(images, labels, fraction)
        notes.append(
            "neighbours are alike, like frames of a film, so the last of each class are held out "
            "(better: give other films as a part to test on)"
        )
    else:
        chosen = _spread_rows(labels, fraction)
    if copies:
        # What is alike in a row is one block; otherwise each of the chosen is asked for first.
        blocks = [
            label if alike and row else None for label, row in zip(labels, chosen, strict=True)
        ]
        ranks = [(not row, position) for position, row in enumerate(chosen)]
        chosen = _grouped_rows(
            [*zip(digests.tolist(), blocks, strict=True)], ranks, labels, fraction
        )
    return chosen, tuple(notes)


def _spread_rows(labels: Labels, fraction: float) -> Chosen:
    """Picks `fraction` of every class, rounded, spread over the stored order, without chance.

    One is picked of each of equal stretches, by multiples of the golden ratio (Weyl's sequence), so
    that what comes again in the order, such as ten views of each thing, is not always picked.
    """
    chosen = np.zeros(len(labels), bool)
    for label, n in zip(*np.unique(labels, return_counts=True), strict=True):
        if picked := _held_out_count(n, fraction):
            starts = np.arange(picked + 1) * n // picked
            offsets = np.arange(1, picked + 1) * _GOLDEN % 1 * np.diff(starts)
            rows = np.flatnonzero(labels == label)
            chosen[rows[starts[:-1] + offsets.astype(int)]] = True
    return chosen


def _last_rows(images: Images, labels: Labels, fraction: float) -> Chosen:
    """Picks the last of every class, from where two neighbours differ most.

    At least `fraction` of a class, rounded, are picked, and at most half as many more.
    """
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if picked := _held_out_count(len(rows), fraction):
            last = len(rows) - picked
            cuts = np.arange(max(1, last - picked // 2), last + 1)
            jumps = _distances(images, rows[cuts - 1], rows[cuts])
            # Of equal jumps the last, which leaves the most to train on.
            chosen[rows[cuts[::-1][jumps[::-1].argmax()] :]] = True
    return chosen


def _held_out_count(n: int, fraction: float) -> int:
    """How many of `n` are picked."""
    return min(max(1, int(n * fraction + 0.5)), n - 1)


def _digests_of(images: Images) -> Shaped[np.ndarray, " rows"]:
    """A digest of the pixels of each image: what is kept beside those that are mapped."""
    if isinstance(images, Mapped) and (kept := images.digests) is not None:
        return kept
    found = [hashlib.blake2b(each.tobytes(), digest_size=16).digest() for each in images]
    return np.array(found, "S16")


def _are_like_frames(images: Images, labels: Labels, rows: Int[np.ndarray, " some"]) -> bool:
    """Whether neighbouring images are as similar as frames of a film, judged by these rows.

    They are where neighbours of one class differ by less than half of what images differ by that
    lie half of their class apart: the medians, over up to 1,000 pairs, of mean absolute
    differences. Of fewer than 20 pairs nothing can be said.
    """
    pairs = []
    for label in np.unique(labels):
        of = rows[labels[rows] == label]
        pairs.append(np.stack([of, np.roll(of, -1), np.roll(of, -(len(of) // 2))])[:, :-1])
    first, beside, apart = np.concatenate(pairs, axis=1)
    if len(first) < 20:
        return False
    some = np.linspace(0, len(first) - 1, min(len(first), 1000)).astype(int)
    near = _distances(images, first[some], beside[some])
    far = _distances(images, first[some], apart[some])
    return bool(np.median(near) < np.median(far) / 2)


def _distances(images: Images, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean absolute differences, over up to some 4,096 values, of pairs of rows."""
    some = slice(None, None, max(1, images[0].size // 4096))

    def values(row: int) -> np.ndarray:
        return images[row].reshape(-1)[some].astype(np.float32)

    pairs = zip(one, other, strict=True)
    return np.array([np.abs(values(a) - values(b)).mean() for a, b in pairs])


def _grouped_rows(
    ties: Sequence[Sequence[Hashable]], ranks: Sequence[Any], labels: Labels, fraction: float
) -> Chosen:
    """Picks about `fraction` of every class, whole blocks at a time.

    A block is all rows that share a tie other than None, directly or through others. Blocks are
    looked at once, in the order of the lowest rank in each, and one is taken if that brings the
    counts of its classes nearer to what they should be and leaves some rows of each. A class of one
    block is never taken from.
    """
    blocks = sorted(_blocks(ties), key=lambda block: min(ranks[row] for row in block))
    of, alike = labels.tolist(), dict[tuple[int, ...], Counter[int]]()
    kinds = (tuple(of[row] for row in block) for block in blocks)
    # Most blocks are one row; a counter for each would take more memory than most texts.
    counts = [alike.setdefault(kind, Counter(kind)) for kind in kinds]
    total, holders = Counter(of), Counter(label for each in counts for label in each)
    target = {
        label: min(max(1, round(fraction * n)), n - 1) if holders[label] > 1 else 0
        for label, n in total.items()
    }
    have, chosen = Counter[int](), np.zeros(len(labels), bool)

    def gain(count: Counter[int]) -> int:
        missing = {label: target[label] - have[label] for label in count}
        return sum(abs(missing[label]) - abs(missing[label] - n) for label, n in count.items())

    def leaves_some(count: Counter[int]) -> bool:
        return all(have[label] + n < total[label] for label, n in count.items())

    def take(block: int) -> None:
        have.update(counts[block])
        chosen[blocks[block]] = True

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
