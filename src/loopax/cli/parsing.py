"""From words to commands, and from what cannot be understood to one line that says why."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from typing import TypeVar, cast

import tyro

from loopax.errors import ConfigError

T = TypeVar("T")

HELP = {"-h", "--help"}

_STYLE = (tyro.conf.AvoidSubcommands,)

_WRONG_VALUES = {
    r"Error parsing (\S+): no type matching (.+?) could be instantiated from \[(.*?)\]": "",
    r"Error parsing (\S+): invalid (literal) for int\(\) with base 10: (.*)": "INT",
    r"Error parsing (\S+): could not convert (string) to float: (.*)": "FLOAT",
    r"invalid choice (?=.* for argument '(\S+)'. Expected one of (.+)\.)(\S+)": "",
}
"""How tyro speaks of an option, of the values that it takes, and of that which it was given."""
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "INT INT": "two whole numbers"}


def parse(kind: type[T], words: list[str], program: str, default: T | None = None) -> T:
    """The command that the words describe.

    Raises:
        ConfigError: a word is unknown or has a value of another type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command = tyro.cli(kind, args=words, prog=program, default=default, config=_STYLE)
            return cast(T, command)
    except SystemExit as end:
        if end.code == 0:
            raise
        raise ConfigError(f"{_one_line(complaint.getvalue())} ({program} --help)") from None


def value_of(option: str, words: Sequence[str]) -> str | None:
    """The value of an option that must be known before the others can be read."""
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
    return None


def target_of(words: Sequence[str]) -> str | None:
    """The first word that is no option, nor the value of one."""
    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        is_value = before.startswith("--") and "=" not in before
        if not is_value and (word == "-m" or not word.startswith("-")):
            return word
    return None


def seconds(option: str, duration: str | None) -> float | None:
    """A duration in seconds: `90`, `90s`, `30m`, `2h`, `1:30:00`.

    Raises:
        ConfigError: it is none of these.
    """
    if duration is None:
        return None
    if re.fullmatch(r"\d+(\.\d+)?[smh]?", duration):
        return float(duration.rstrip("smh")) * {"m": 60, "h": 3600}.get(duration[-1], 1)
    if re.fullmatch(r"(\d+:)?[0-5]?\d:[0-5]\d", duration):
        parts = [int(part) for part in duration.split(":")]
        return float(sum(part * 60**power for power, part in enumerate(reversed(parts))))
    raise ConfigError(f"{option} is {duration!r}; give seconds, or 90s, 30m, 2h or 1:30:00")


def _one_line(complaint: str) -> str:
    """The first sentence of tyro's box."""
    lines = [line.strip("│ ") for line in complaint.splitlines() if line.startswith("│")]
    rule = next((index for index, line in enumerate(lines) if "──" in line), None)
    sentence = " ".join(lines[:rule]) or "the command line could not be understood"
    for pattern, kind in _WRONG_VALUES.items():
        if found := re.match(pattern, sentence):
            option, kinds, value = found.groups()
            names = [each.strip(" {}()'") for each in re.split(r"[|,]", kind or kinds)]
            *others, last = [_KINDS.get(name, name) for name in names if name not in ("", "None")]
            right = f"{', '.join(others)} or {last}" if others else last
            return f"{option} is {value}; it must be {right}"
    return sentence
