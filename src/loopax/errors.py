"""The errors a user can cause, each one line: what was wrong, and what would be right."""


class LoopaxError(Exception):
    """Base of every error that loopax raises on purpose; the command line prints it as one line.

    `exit_code` is the status the command line ends with.
    """

    exit_code = 2


class ConfigError(LoopaxError, ValueError):
    """A setting or an argument has a value that cannot work."""


class DataError(LoopaxError, ValueError):
    """A data file or a batch is not what it should be."""

    exit_code = 3


class RunDirError(LoopaxError):
    """A run directory cannot be written, or holds another run."""


class CheckpointError(LoopaxError):
    """A checkpoint is missing, damaged, or of another model or optimiser."""

    exit_code = 4


class RunInUseError(LoopaxError):
    """Another process is training in the run directory."""

    exit_code = 5


class StorageError(LoopaxError):
    """Something could not be written: the disk is full, read-only, or gone."""

    exit_code = 6


class NonFiniteError(LoopaxError, ArithmeticError):
    """The loss became NaN or infinite; `step` is the exact step, `metric` the first bad value."""

    exit_code = 7

    def __init__(self, message: str, *, step: int, metric: str) -> None:
        super().__init__(message)
        self.step = step
        self.metric = metric


class DeviceMemoryError(LoopaxError, MemoryError):
    """The device has too little memory for the step."""

    exit_code = 8


class Stopped(SystemExit):
    """A signal ended the run politely, with everything saved; `step` is where it stands.

    As a `SystemExit` it ends a program with the status that shells expect, 128 plus the signal's
    number, and without a traceback.
    """

    def __init__(self, signal_number: int, step: int) -> None:
        super().__init__(128 + signal_number)
        self.step = step


class ProgramError(LoopaxError):
    """A program that was run for a user failed; `exit_code` is its own."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
