"""Where batches come from: the bundled MNIST, the user's files, or any iterable."""

from loopax.batches.base import Batches, Feed, Items
from loopax.batches.buckets import BucketedBatches, bucket_lengths
from loopax.batches.dataset import Dataset, DatasetBatches
from loopax.batches.iterable import IterableBatches, as_batches
from loopax.data import catalogue
from loopax.data.columns import Columns
from loopax.data.files import absolute, as_path
from loopax.data.images.folder import read_folder, read_images
from loopax.data.images.idx import read_idx
from loopax.data.images.layouts import load
from loopax.data.images.mnist import mnist
from loopax.data.images.npz import read_npz
from loopax.data.splits import Splits, split_texts
from loopax.data.texts.texts import Texts, read_texts

__all__ = [
    "Batches",
    "BucketedBatches",
    "Columns",
    "Dataset",
    "DatasetBatches",
    "Feed",
    "Items",
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
    "read_images",
    "read_npz",
    "read_texts",
    "split_texts",
]
