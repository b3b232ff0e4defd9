"""What the loop reads, under names of `loopax.data`; its home knows no file formats."""

from loopax.batches.base import Batches, Feed, Items
from loopax.batches.buckets import BucketedBatches, bucket_lengths
from loopax.batches.dataset import Dataset, DatasetBatches
from loopax.batches.iterable import IterableBatches, as_batches
from loopax.batches.mapped import Mapped

__all__ = [
    "Batches",
    "BucketedBatches",
    "Dataset",
    "DatasetBatches",
    "Feed",
    "Items",
    "IterableBatches",
    "Mapped",
    "as_batches",
    "bucket_lengths",
]
