"""Where batches come from: the bundled MNIST, the user's files, or any iterable."""

from loopax.data.batches import Batches, DatasetBatches, IterableBatches, as_batches
from loopax.data.dataset import Dataset, Splits
from loopax.data.files import load
from loopax.data.folder import read_folder
from loopax.data.idx import read_idx
from loopax.data.mnist import mnist
from loopax.data.npz import read_npz

__all__ = [
    "Batches",
    "Dataset",
    "DatasetBatches",
    "IterableBatches",
    "Splits",
    "as_batches",
    "load",
    "mnist",
    "read_folder",
    "read_idx",
    "read_npz",
]
