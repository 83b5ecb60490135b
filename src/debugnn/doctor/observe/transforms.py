"""Forward passes within `torch.func`: what its transforms have wrapped.

`grad`, `jacrev` and `jvp` wrap a tensor once for each derivative by it that is to be taken, `vmap`
wraps it for the axis that it hides.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch._C import _functorch


def is_active() -> bool:
    """Return whether a transform calls the code that is running."""
    return _functorch.peek_interpreter_stack() is not None


def paused() -> AbstractContextManager[object]:
    """Return a block in which operations are not transformed."""
    return torch._C._DisableFuncTorch()


def derivatives_by(tensor: Tensor) -> int:
    """Return how many derivatives by a tensor are about to be taken, each of the one before."""
    taken = 0
    while _functorch.is_functorch_wrapped_tensor(tensor):
        taken += _functorch.is_gradtrackingtensor(tensor)
        tensor = _functorch.get_unwrapped(tensor)
    return taken


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the plain tensor within, with the axes that `vmap` hides."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor
