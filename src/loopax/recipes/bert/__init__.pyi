"""The public names, a line each."""

from .config import PRESETS as PRESETS
from .config import FineTuneConfig as FineTuneConfig
from .evaluation import Results as Results
from .evaluation import evaluate as evaluate
from .evaluation import tables as tables
from .pretrained import Pretrained as Pretrained
from .pretrained import read_pretrained as read_pretrained
from .problem import Problem as Problem
from .problem import costs as costs
from .recipe import BERTRecipe as BERTRecipe
from .saving import save_pretrained as save_pretrained
from .trained import TrainedClassifier as TrainedClassifier
from .trained import export as export
from .trained import load as load
from .trained import texts_like as texts_like
from .training import train as train
