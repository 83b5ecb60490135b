"""Data sets: readers, the cache of what they read, and the batches drawn from it."""

from debugnn.data.cache import decoded
from debugnn.data.dataset import Data, Split, assemble
from debugnn.data.readers import Arrays, cifar10, digits, mnist, regression

__all__ = [
    "Arrays", "Data", "Split", "assemble", "cifar10", "decoded", "digits", "mnist", "regression",
]  # fmt: skip
