"""Where batches come from: the bundled MNIST, the user's files, or any iterable."""

from loopax.data.batches import Batches, DatasetBatches, IterableBatches, as_batches
from loopax.data.dataset import Dataset, Splits

__all__ = ["Batches", "Dataset", "DatasetBatches", "IterableBatches", "Splits", "as_batches"]
