"""The public names, a line each."""

from . import caches as caches
from . import data as data
from . import deadline as deadline
from . import diagnose as diagnose
from . import errors as errors
from . import extras as extras
from . import files as files
from . import measures as measures
from . import models as models
from . import optimizer as optimizer
from . import recipe as recipe
from . import recipes as recipes
from . import report as report
from . import run as run
from . import terminal as terminal
from . import verify as verify
from . import weights as weights
from . import writers as writers
from .compute.state import TrainState as TrainState
from .compute.step import eval_step as eval_step
from .compute.step import train_step as train_step
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .fitting import fit as fit
from .fitting import training as training
from .optimizer import Group as Group
from .optimizer import Optimizer as Optimizer
from .optimizer import Schedule as Schedule
from .run.checkpoint import CheckpointStore as CheckpointStore
from .run.chunks import Chunk as Chunk
from .run.hooks import Hook as Hook
from .run.retention import Checkpoints as Checkpoints
from .run.run import Run as Run
from .run.stopping import EarlyStopping as EarlyStopping

__version__: str
