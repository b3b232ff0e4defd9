"""What a person sees, and that it never ends a run."""

import io
import sys

import pytest

from loopax.run.display import Live, Terminal, display

ROW = {"step": 100, "source": "train", "steps": 100, "loss": 1.5}


@pytest.fixture
def terminal():
    return Terminal(file=io.StringIO(), force_terminal=True, width=100)


def test_a_terminal_shows_where_a_run_is_also_after_it_began_again(terminal):
    shown = display(1000, terminal)
    assert isinstance(shown, Live)
    shown.begin(50)
    shown.begin(20)
    shown.row(ROW)
    shown.update(100, 321.0)
    shown.row({"step": 100, "source": "test", "loss": 2.5})
    shown.close()
    seen = terminal.file.getvalue()
    assert "100/1000" in seen
    assert "321 steps/s" in seen
    assert "test step 100  loss 2.5" in seen


def test_a_name_in_brackets_is_shown_as_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    display(10).say("runs/a[b] [/c]: finished")
    assert sys.stderr.getvalue() == "runs/a[b] [/c]: finished\n"


class Nowhere(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_standard_error_that_cannot_be_written_is_no_reason_to_stop(error, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Nowhere(error))
    shown = display(10)
    for _ in range(3):
        shown.say("hello")
        shown.row(ROW)
