"""The public names, a line each."""

from .cost import estimate as estimate
from .replay import Replay as Replay
