"""Data sets: readers, the cache of what they read, and the batches drawn from it."""

from debugnn.data.cache import decoded
from debugnn.data.dataset import Data, Split, assemble
from debugnn.data.readers import Arrays, digits, regression

__all__ = ["Arrays", "Data", "Split", "assemble", "decoded", "digits", "regression"]
