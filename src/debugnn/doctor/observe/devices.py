"""Tensors on a device that works on its own, such as a GPU."""

from torch import Tensor


def waits(tensor: Tensor) -> bool:
    """Return True if reading the tensor's values means waiting for its device."""
    return not tensor.is_cpu
