"""How a run came to be, as its report tells it: settings, surroundings, where the time went."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from loopax.report.page import Table
from loopax.run.directory import RunDir

ACCOUNT = {
    "setup": "preparing",
    "compute": "training steps",
    "compile": "compiling",
    "data": "waiting for data",
    "evaluation": "evaluating",
    "checkpoint": "saving checkpoints",
    "hooks": "calling hooks",
    "host": "other work, the device idle",
}
UNKNOWN = "not recorded"


@dataclass(frozen=True)
class Provenance:
    """What the files of a run's directory say of its making; a file may be missing.

    Attributes:
        run: the directory.
    """

    run: RunDir

    @property
    def began(self) -> str:
        """When the run was first started; empty when that is not known."""
        return f"started {_moment(self._starts[0])}" if self._starts else ""

    @property
    def subtitle(self) -> str:
        """Preset, beginning and version, as far as they are known."""
        preset = self._kept("config.json").get("preset")
        about = [f"preset {preset}" if preset else "", self.began]
        about += [f"loopax {start['packages']['loopax']}" for start in self._starts[-1:]]
        return " · ".join(filter(None, about))

    @property
    def took(self) -> str:
        """How long it trained, such as `in 3 min 10 s`; empty when that is not known."""
        seconds, starts = self._kept("account.json").get("wall_s"), len(self._starts)
        if seconds is None:
            return ""
        return f"in {_duration(seconds)}" + f" since the last of {starts} starts" * (starts > 1)

    @property
    def total(self) -> int | None:
        """How many steps the run was to have, as it was last started; None if not known."""
        return self._starts[-1].get("total") if self._starts else None

    @property
    def account(self) -> list[Table]:
        """Where the time went, unless it is not known."""
        account = self._kept("account.json")
        rows = [
            (ACCOUNT.get(name, name), f"{account[f'{name}_s']:.1f}", f"{share:.1%}")
            for name, share in sorted(account.get("shares", {}).items(), key=lambda item: -item[1])
        ]
        if not rows:
            return []
        rows.append(("in all", f"{account['wall_s']:.1f}", ""))
        last = " of the last start" if len(self._starts) > 1 else ""
        return [Table(("", "seconds", "share"), rows, f"Where the time{last} went")]

    @property
    def tables(self) -> list[Table]:
        """When, by which command, with what data, code and packages, on what the run was made."""
        starts = self._starts
        if not starts:
            return []
        last = starts[-1]
        devices, data = last.get("devices") or [], last.get("data")
        rows = {
            "first started": _moment(starts[0]),
            "command": shlex.join(map(str, last.get("command") or [])),
            "random seed": _seed(last.get("key")),
            "data, SHA-256": data.get("data") if isinstance(data, Mapping) else None,
            "code, git revision": _revision(last.get("git") or {}),
            "devices": f"{len(devices)} x {', '.join(sorted(set(devices)))}" if devices else None,
            "processor": (last.get("numerics") or {}).get("cpu"),
            "processor cores": last.get("visible_cores"),
            "Python": last.get("python"),
            **(last.get("packages") or {}),
        }
        told = [
            Table(
                ("", ""),
                [
                    (name, UNKNOWN if value in (None, "") else str(value))
                    for name, value in rows.items()
                ],
            )
        ]
        if len(starts) > 1:
            each = [(_moment(start), f"{start.get('step', 0):,}") for start in starts]
            told.append(Table(("started", "at step"), each, "This run was interrupted and went on"))
        return told

    @property
    def _starts(self) -> list[dict[str, Any]]:
        return list(self._kept("run.json").get("starts", []))

    def _kept(self, name: str) -> dict[str, Any]:
        """A JSON file of the run; empty when it is not there."""
        return dict(self.run.read_json(name)) if (self.run.path / name).exists() else {}


def settings_table(config: Any, preset: Any, followed: Mapping[str, Any] = {}) -> Table:
    """Every setting of a configuration, beside that of its preset where they differ.

    Args:
        config: a dataclass.
        preset: that which it began as.
        followed: what followed the data, by the names of settings that are None where they do.
    """
    chosen = {name: value for name, value in followed.items() if getattr(config, name) is None}
    usual = {name: value for name, value in followed.items() if getattr(preset, name) is None}
    ours = dict(_flat(asdict(replace(config, **chosen))))
    theirs = dict(_flat(asdict(replace(preset, **usual))))
    changed = {name for name, value in ours.items() if value != theirs.get(name)}
    rows = [
        (name, _shown(value), _shown(theirs.get(name)) if name in changed else "")
        for name, value in ours.items()
    ]
    if changed:
        return Table(("setting", "value", f"in preset {config.preset}"), rows)
    return Table(("setting", "value"), [row[:2] for row in rows])


def values_table(values: Mapping[str, Any]) -> Table:
    """Values by name, those of inner mappings by the names on the way to them."""
    return Table(("setting", "value"), [(name, _shown(value)) for name, value in _flat(values)])


def _seed(key: Any) -> int | None:
    """The seed of a state's random key, as `run.json` has it."""
    match key:
        case [int(high), int(low)]:
            return (high << 32) + low
    return None


def _revision(git: Mapping[str, Any]) -> str | None:
    changed = ", with changes that are not committed" if git.get("changed") else ""
    return f"{git['revision']}{changed}" if "revision" in git else None


def _flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _shown(value: Any) -> str:
    if value is None or value in ((), [], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value)


def _moment(start: Mapping[str, Any]) -> str:
    try:
        return f"{datetime.fromisoformat(str(start.get('time'))):%-d %B %Y, %H:%M %Z}"
    except ValueError:
        return UNKNOWN


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
