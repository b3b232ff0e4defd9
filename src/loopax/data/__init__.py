"""Where batches come from: the bundled MNIST, the user's files, or any iterable."""

from loopax.data import catalogue
from loopax.data.batches import Batches, IterableBatches, as_batches
from loopax.data.buckets import BucketedBatches, bucket_lengths
from loopax.data.columns import Columns
from loopax.data.dataset import Dataset, DatasetBatches
from loopax.data.files import load
from loopax.data.folder import read_folder
from loopax.data.idx import read_idx
from loopax.data.mnist import mnist
from loopax.data.npz import read_npz
from loopax.data.reading import absolute, as_path
from loopax.data.splits import Splits
from loopax.data.texts import Texts, read_texts, split_texts

__all__ = [
    "Batches",
    "BucketedBatches",
    "Columns",
    "Dataset",
    "DatasetBatches",
    "IterableBatches",
    "Splits",
    "Texts",
    "absolute",
    "as_batches",
    "as_path",
    "bucket_lengths",
    "catalogue",
    "load",
    "mnist",
    "read_folder",
    "read_idx",
    "read_npz",
    "read_texts",
    "split_texts",
]
