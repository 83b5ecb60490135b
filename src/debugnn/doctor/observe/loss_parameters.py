"""Parameters that a loss function holds for itself: class centres, a temperature, weights of terms.

The loss is learnt through them as through those of the model, and an optimiser that was made from
the model's parameters alone does not hold them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import map_tensors
from debugnn.doctor.observe.loss_function.made_up import LossFunction
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.reachable import Reached

_FEW = 4  # most of them: more are those of a network


class LossParameters:
    """Follows the few parameters that a loss function has a gradient by, and that belong neither to
    the model, nor to its optimiser, nor to a layer of torch.

    Args:
        model: the watched one.
        optimizer: its optimiser.
    """

    not_in_state = ("_began",)

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model = model
        self._optimizer = optimizer
        self._began: list[tuple[str, nn.Parameter, Tensor]] = []  # name, parameter, first values

    def find(self, reached: Reached, model: nn.Module, batch: Batch, loss_fn: LossFunction) -> None:
        """Find them, in a block that leaves no trace.

        Args:
            reached: what the loss function reaches.
            model: a copy of the watched one.
            batch: of the training.
            loss_fn: the training's.
        """
        own = {id(p) for p in self._model.parameters()}
        own |= {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        others = {id(p): (n, p) for n, p in _named(reached) if id(p) not in own and p.requires_grad}
        if not 0 < len(others) <= _FEW:
            return
        with torch.enable_grad(), without_dropout(model, training=True):
            outputs = map_tensors(batch.call(model), Tensor.detach)
            value: Any = loss_fn(outputs, batch.targets)
            parameters = [p for _, p in others.values()]
            if not value.requires_grad:
                return
            gradients = torch.autograd.grad(value.mean(), parameters, allow_unused=True)
        self._began = [
            (name, parameter, parameter.detach().clone())
            for (name, parameter), gradient in zip(others.values(), gradients, strict=True)
            if gradient is not None and gradient.any()
        ]

    def unmoved(self) -> list[str]:
        """Return the names of those that are still as they began."""
        return [name for name, p, first in self._began if torch.equal(p.detach(), first)]

    def release(self) -> None:
        """Let go of them."""
        self._began.clear()


def _named(reached: Reached) -> Iterable[tuple[str, nn.Parameter]]:
    """Yield the parameters that are reached, those of a module by its class and their name.

    Layers of torch are left out: a discriminator, a network whose features are compared, or a
    random one that is to be predicted, is trained elsewhere or not at all.
    """
    for module in reached.modules:
        if type(module).__module__.startswith("torch.nn."):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            yield f"{type(module).__name__}.{name}", parameter
    known = {id(p) for module in reached.modules for p in module.parameters()}
    for tensor in reached.tensors:
        if isinstance(tensor, nn.Parameter) and id(tensor) not in known:
            yield f"a parameter {tuple(tensor.shape)}", tensor
