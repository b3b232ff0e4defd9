"""The command line: thin, no logic. Each command is a dataclass that says what it takes.

Importing this imports neither JAX nor anything that does, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType

from loopax import __version__, cluster
from loopax.cli import brought, checkup, data, past, results, training
from loopax.errors import ConfigError, LoopaxError, StorageError, unknown
from loopax.malloc import keep_freed_memory
from loopax.recipe import SHIPPED
from loopax.run.signals import POLITE

USAGE = """\
usage: loopax COMMAND ...

  train RECIPE         train a recipe ({recipes} or your own), or continue a run
  resume RUN           continue a run with the settings it was made with
  evaluate RUN         measure a trained run again
  export RUN           write what a run has trained for use elsewhere
  report RUN           write report.html for any run: its metrics, settings, checkpoints, time
  runs DIR             list the runs below a directory
  doctor [DIR]         whether a run would go well here: versions, devices, disk, speed
  data list|get NAME   public texts and weights, fetched by name
  verify WHAT          prove that a recipe, a run or a program resumes bit for bit
  replay RUN           execute any step of a run again and look at it closely
  rewind RUN           branch a new run from the past of another

{brought}

loopax COMMAND --help says what each takes; loopax --version says which version this is.
"""

COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": training.train,
    "resume": training.resume,
    "export": results.export,
    "report": results.report,
    "runs": results.runs,
    "doctor": checkup.doctor,
    "data": data.data,
    "verify": past.verify,
    "replay": past.replay,
    "rewind": past.rewind,
}
"""Those that are the same for every recipe; the others are in `brought`."""

ENDED_BY_CTRL_C = {"data", "verify"}
"""Commands that people end by it as a matter of course, or that have something to clear away."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; whatever went wrong is one line."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except LoopaxError as error:
        cluster.ended(error)  # where other processes train together with this one
        # JAX adds a note on tracebacks to what is raised inside of it, and none is shown.
        notes = [note for note in getattr(error, "__notes__", []) if "JAX has removed" not in note]
        print("\n".join([f"loopax: {error}", *notes]), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(
            "loopax: stopped; the same command continues from the last checkpoint", file=sys.stderr
        )
        return 130
    except BrokenPipeError:
        # The reader of our output has left (`loopax runs | head`); there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"loopax: {where}{error.strerror or error}", file=sys.stderr)
        return StorageError.exit_code


def script() -> None:
    """The program `loopax`: a signal ends it at once, unless a training answers it."""
    keep_freed_memory()
    for number in POLITE:
        if number == signal.SIGINT and _is_ended_by_ctrl_c(sys.argv[1:2]):
            continue
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, _end)
    sys.exit(main())


def _is_ended_by_ctrl_c(words: Sequence[str]) -> bool:
    if not words or words[0] in COMMANDS:
        return bool(ENDED_BY_CTRL_C & {*words})
    commands = brought.shipped_commands()
    return any(name == words[0] and kind.is_ended_by_ctrl_c for _, name, kind in commands)


def _end(number: int, _: FrameType | None) -> None:
    """Ends the process; files are replaced whole, so nothing is lost and the next one goes on.

    Not by an exception: Python drops those that a signal raises inside of a finaliser or of a
    callback of the garbage collection, and the program would go on.
    """
    name = signal.Signals(number).name
    with suppress(OSError):
        os.write(2, f"loopax: stopped by {name}; the same command goes on from here\n".encode())
    with suppress(Exception):  # It may have come in the middle of printing.
        sys.stdout.flush()
    os._exit(128 + number)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE.format(recipes=", ".join(SHIPPED), brought=brought.usage()), end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"loopax {__version__}")
        return 0
    if words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    status = brought.run(words[0], words[1:])
    if status is None:
        names = dict.fromkeys([*COMMANDS, *(name for _, name, _ in brought.shipped_commands())])
        raise ConfigError(unknown("command", words[0], names))
    return status
