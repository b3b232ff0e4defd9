"""How names and values are written in one-line messages: escaped, truncated, quoted."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

_LONG = 40
_LONG_LIST = 400


def shown(path: str | os.PathLike[str]) -> str:
    """A path in a message; line breaks and undecodable bytes are escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else repr(text)


def brief(value: object) -> str:
    """A name or a value in a message, truncated to 40 characters."""
    text = str(value)
    return shown(text if len(text) <= _LONG else f"{text[: _LONG - 3]}...")


def quoted(names: Iterable[str], notes: Mapping[str, Any] | None = None) -> str:
    """Names in quotes, each with its note if it has one: `'label' (int64), 'text'`."""
    said = {name: f" ({brief(notes[name])})" if notes else "" for name in names}
    joined = ", ".join(f"{brief(name)!r}{note}" for name, note in said.items())
    return textwrap.shorten(joined, _LONG_LIST, placeholder=" ...") or "none"


def abridged(names: Iterable[str], many: int = 6) -> str:
    """A list of names: all if there are up to 6, otherwise the first two and the last."""
    some = [*names]
    return ", ".join([*some[:2], "...", some[-1]] if len(some) > many else some)
