"""The public names, a line each."""

from .directory import RunDir as RunDir
from .directory import read_config as read_config
from .directory import set_aside as set_aside
