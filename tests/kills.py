"""A kill without a process of its own: the run ends, and nothing is saved on the way out."""

from contextlib import contextmanager

import pytest

from loopax.run.saving import Saving


class KilledError(Exception):
    """What ends the run."""


def kill(run):
    raise KilledError


@contextmanager
def killed():
    """In the block a run is ended by `kill`, as by a signal that no process can catch."""
    # The block under it is the test's own, so it cannot be one statement, as the rule wants.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):  # noqa: PT012
        patch.setattr(Saving, "leave", lambda *_: None)
        yield
