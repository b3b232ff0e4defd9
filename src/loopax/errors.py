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


class RunDirError(LoopaxError):
    """A run directory cannot be written, or holds another run."""


class CheckpointError(LoopaxError):
    """A checkpoint is missing, damaged, or of another model or optimiser."""

    exit_code = 4


class NonFiniteError(LoopaxError, ArithmeticError):
    """The loss became NaN or infinite; `step` is the exact step, `metric` the first bad value."""

    exit_code = 7

    def __init__(self, message: str, *, step: int, metric: str) -> None:
        super().__init__(message)
        self.step = step
        self.metric = metric
