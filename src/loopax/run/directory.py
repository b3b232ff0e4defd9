"""One run's directory: what it was, how it went, where its checkpoints lie."""

from __future__ import annotations

import functools
import json
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from loopax import digests, processes
from loopax.environment import numerics, provenance
from loopax.errors import ConfigError, RunDirError
from loopax.extras import require
from loopax.files import PARTIAL, free_name, remove, storing, write_text
from loopax.jsonlines import Row, read_json_lines
from loopax.placement import placement
from loopax.run.configuration import as_mapping, differences
from loopax.run.lock import RunLock

T = TypeVar("T")

LEFT_BY_OTHERS = {"lost+found", "thumbs.db", "desktop.ini", "icon\r", "@eadir", "__macosx"}


def is_left_by_others(name: str) -> bool:
    """Whether a name is that of something which a file manager or a file system leaves."""
    return name.startswith(".") or name.lower() in LEFT_BY_OTHERS


BEFORE_CONFIG = {"lock", "holder.json"}
"""What a run that was ended early may have left before it wrote its configuration."""


WRITTEN_ANEW = "remove it, and the command that trained writes it anew"
"""What is to be done about a file of a run that is damaged."""


class RunDir:
    """The files of one run.

    `config.json` is the resolved configuration, `run.json` the provenance of each start,
    `metrics.jsonl` every logged row, `timing.jsonl` the speed, `account.json` where the time went,
    `checkpoints/` the states, `tensorboard/` the events, `pictures/` what hooks draw.

    Raises:
        RunDirError: the path is a file, or the directory is not a run's.
        StorageError: it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | Path, say: Callable[[str], None] = lambda message: None) -> RunDir:
        """The directory at `path`, made if need be, and known to be writable.

        What file managers and other programs leave in an empty one does not matter, and a run that
        has lost its `config.json` is told of through `say`.
        """
        run = cls(path)
        with storing(run.path):
            try:
                run.path.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise RunDirError(
                    f"{run.path}: is not a directory ({error.strerror}); name another one"
                ) from error
            found = {entry.name for entry in run.path.iterdir()}
            # Permissions alone do not tell: the disk may be full, or mounted for reading.
            with tempfile.TemporaryFile(dir=run.path) as probe:
                probe.write(b"loopax")
        others = {name for name in found - BEFORE_CONFIG if not is_left_by_others(name)}
        if others and not run.config_file.exists() and run.starts and run.checkpoints.is_dir():
            say(f"{run.config_file}: is missing; written anew from what is given now")
        elif others and not run.config_file.exists():
            raise RunDirError(
                f"{run.path}: is not empty and holds no run (no config.json); name a new directory"
            )
        return run

    def check_seen(self) -> None:
        """Whether this process sees what another one has just written.

        Raises:
            RunDirError: it does not.
        """
        if not self.config_file.exists():
            raise RunDirError(
                f"{self.path}: is not seen by {socket.gethostname()}; all processes of a run write "
                "into one directory, which all their machines must share"
            )

    @classmethod
    def open(cls, path: str | Path) -> RunDir:
        """An existing run, to read from."""
        run = cls(path)
        if not run.config_file.is_file() and run.starts:
            raise RunDirError(f"{run.config_file}: is missing; `loopax train` writes it anew")
        if not run.config_file.is_file():
            raise RunDirError(f"{run.path}: is not a run directory (it has no config.json)")
        return run

    @property
    def is_run(self) -> bool:
        """Whether a run lies here, whatever has been damaged of it.

        Other programs have a `config.json` too. Only a run has its starts in `run.json`, or
        checkpoints with their digests.
        """
        sealed = self.checkpoints.glob(f"[0-9]*/{digests.NAME}")
        return self.config_file.is_file() and bool(self.starts or any(sealed))

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing_file(self) -> Path:
        return self.path / "timing.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @functools.cached_property
    def pictures(self) -> Path:
        """The folder for pictures, made when first asked for."""
        folder = self.path / "pictures"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def config(self) -> dict[str, Any]:
        """The configuration the run was made with."""
        config = self.read_json("config.json")
        if not isinstance(config, dict):
            raise RunDirError(f"{self.config_file}: is not a configuration; {WRITTEN_ANEW}")
        return config

    @property
    def metrics(self) -> list[Row]:
        """Every logged row."""
        return read_json_lines(self.metrics_file)

    def check(self, config: Mapping[str, Any]) -> None:
        """Makes sure that a run that is here was made with this configuration.

        Raises:
            ConfigError: it was made with another one.
        """
        differing = []
        if self.config_file.exists():
            # What is read may hold a NaN, which differs from itself.
            differing = differences(as_mapping(self.config), as_mapping(config))
        if differing:
            raise ConfigError(
                f"{self.path}: this run was made with {'; '.join(differing)}; "
                f"{self._longer(config)}name another run directory, or give the same settings to "
                "continue it"
            )

    def _longer(self, config: Mapping[str, Any]) -> str:
        """How a run is made longer whose length is one of its settings."""
        lengths = {
            name: config[name]
            for name in ("epochs", "steps")
            if name in config and config[name] != self.config.get(name)
        }
        names = [entry.name for entry in self.checkpoints.glob("[0-9]*")]
        steps = [int(name) for name in names if name.isdecimal()]
        if not lengths or not steps:
            return ""
        if "recipe" not in config:
            return "to make a run longer keep its length out of config; "
        settings = " ".join(f"--set {name}={value}" for name, value in lengths.items())
        return f"`loopax rewind {self.path} --step {max(steps)} {settings}` makes it longer; "

    def claim(self, config: Mapping[str, Any]) -> None:
        """Writes the configuration of a new run, or makes sure that it is that of this one.

        It is called by who holds the lock, and removes what a start that was killed has left half
        written and no other start writes again, such as the account of a run that was finished.
        """
        self.check(config)
        for partial in self.path.glob(f"{PARTIAL}*.json"):
            remove(partial)
        if not self.config_file.exists():
            self.write_json("config.json", config)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What is known of each start of the run; nothing where `run.json` is gone or damaged."""
        starts: list[dict[str, Any]] = self._known().get("starts", [])
        return starts

    @property
    def mesh(self) -> str | None:
        """The devices of the last start; None where they are not known, or not there any more."""
        for start in self.starts[-1:]:
            with suppress(ConfigError, LookupError, TypeError):
                return str(placement(start["numerics"]["mesh"]))
        return None

    def _known(self) -> dict[str, Any]:
        """What `run.json` holds; nothing where it is gone or damaged."""
        try:
            known: dict[str, Any] = self.read_json("run.json")
            whole = all(isinstance(start, dict) for start in known["starts"])
        except (RunDirError, KeyError, TypeError):
            return {}
        return known if whole else {}

    def note_start(self, step: int, say: Callable[[str], None], **facts: Any) -> None:
        """Adds this start of the run, and where it begins, to the provenance in `run.json`.

        It says how a run came about and plays no part in training: one that is damaged is kept
        under another name.
        """
        file, known = self.path / "run.json", self._known()
        if not known and os.path.lexists(file):
            kept = free_name(file.with_name("run.json.damaged"))
            with storing(file):
                file.rename(kept)
            say(f"{file}: cannot be read; kept as {kept.name}, and begun anew")
        elif not known and step:
            say(f"{file}: is missing; begun anew, so that the starts before are not known")
        start = {"step": step, **provenance(), "numerics": numerics(), **facts}
        self.write_json("run.json", {**known, "format": 2, "starts": [*self.starts, start]})

    def read_json(self, name: str) -> Any:
        """The content of one JSON file of the run."""
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise RunDirError(
                f"{self.path / name}: cannot be read as JSON ({error}); {WRITTEN_ANEW}"
            ) from error

    def write_json(self, name: str, content: Any) -> None:
        """Writes one JSON file whole or not at all."""
        path = self.path / name
        with storing(path):
            write_text(path, json.dumps(content, indent=2, default=str) + "\n")


@dataclass(frozen=True)
class Start:
    """One start of a run, as its `run.json` tells of it by `RunDir.note_start`."""

    step: int
    key: list[int]
    data: dict[str, Any]
    nonfinite: str
    log_every: int
    numerics: dict[str, Any]

    @property
    def mesh(self) -> str:
        """The devices that trained, as `fit` takes them."""
        return str(self.numerics["mesh"])


def starts_of(run: RunDir) -> list[Start]:
    """Every start of a run, in order.

    Raises:
        RunDirError: there was none, or `run.json` does not tell.
    """
    names = [field.name for field in fields(Start)]
    try:
        entries = run.read_json("run.json")["starts"]
        starts = [Start(**{name: entry[name] for name in names}) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise RunDirError(f"{run.path / 'run.json'}: does not tell how the run began") from error
    if not starts:
        raise RunDirError(f"{run.path}: has not been trained yet")
    return starts


def set_aside(path: Path) -> Path | None:
    """Keeps what is at `path` under another name, beside it; None when there is nothing.

    Of several processes one does it, when all have come here.

    Raises:
        RunInUseError: a process is training there.
        RunDirError: it is not a run.
    """
    processes.same({"the run directory": path})

    def moved() -> str:
        if not path.exists():
            return ""
        with RunLock(RunDir.open(path).path, print):
            pass
        whole = Path(os.path.abspath(path))  # `.` has no name that another could be made of.
        with storing(whole):
            return str(whole.rename(free_name(whole.with_name(f"{whole.name}-old"))))

    kept = processes.by_one("set aside", moved)
    return Path(kept) if kept else None


def read_config(kind: type[T], stored: Mapping[str, Any]) -> T:
    """A recipe's configuration from what its `config.json` holds.

    Raises:
        ConfigError: a field is unknown or has a value of another type.
    """
    require("recipe", "the configuration of a recipe", "pydantic")
    import pydantic

    fields = {name: value for name, value in stored.items() if name != "recipe"}
    try:
        return pydantic.TypeAdapter(kind).validate_python(fields)
    except pydantic.ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, ["config.json", *wrong["loc"]]))
        raise ConfigError(f"{where}: {wrong['msg']}") from error
