"""Gradients that nobody cleared: whether a step is taken with earlier steps' gradients too."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import LoopFacts

_OFTEN = 20  # first steps, whose gradients are all compared with the step before
_MOST = 1_000  # comparisons


class StaleGradients:
    """Compares the gradients of a few small parameters from one update to the next.

    Args:
        loop: where the distances are noted, as `residues`.
    """

    def __init__(self, loop: LoopFacts) -> None:
        self._loop = loop
        self._watched: list[nn.Parameter] = []
        self._stale: dict[int, Tensor] = {}  # gradients at the last optimiser step, by id
        self._new: dict[int, Tensor] = {}  # what has been added to them since
        self._arrived: dict[int, Tensor] = {}
        self._kept = 0  # steps whose gradients were kept

    def watch(self, parameters: Sequence[nn.Parameter]) -> list[Any]:
        """Begin with these parameters.

        Returns:
            The handles of the hooks.
        """
        self._watched = list(parameters)
        handles = []
        for parameter in parameters:
            arrives = partial(Relay(self, "_note_arrival"), id(parameter))
            handles.append(parameter.register_hook(arrives))
            # This hook is not called by torch.autograd.grad, which adds to no gradient.
            added = parameter.register_post_accumulate_grad_hook(Relay(self, "_note_sum"))
            handles.append(added)
        return handles

    def _note_arrival(self, key: int, gradient: Tensor) -> None:
        if key in self._stale:
            self._arrived[key] = gradient.detach()

    def _note_sum(self, parameter: nn.Parameter) -> None:
        self._loop.backwards += 1
        new = self._arrived.pop(id(parameter), None)
        if new is None or new.is_sparse:
            return
        before = self._new.get(id(parameter))
        self._new[id(parameter)] = new.clone() if before is None else before + new

    def compare(self, due: bool) -> None:
        """Compare the gradients before an update with this step's, and with the earlier ones' sum.

        Directions are compared: the loop may have clipped the gradients.

        Args:
            due: a probe is due. Gradients on a GPU are compared only then.
        """
        new, self._new = self._new, {}
        loop = self._loop
        if not self._stale or len(loop.residues) >= _MOST:
            return
        for parameter in self._watched:
            stale, added = self._stale.get(id(parameter)), new.get(id(parameter))
            used = parameter.grad
            if stale is None or added is None or used is None or used.numel() < 2:
                continue
            if used.device.type != "cpu" and not due:
                continue
            clean, both = added.flatten().double(), (added + stale).flatten().double()
            used = used.detach().flatten().double()
            if not torch.isfinite(both).all() or not used.any():
                continue
            loop.residues.append([loop.steps, _distance(used, both), _distance(used, clean)])

    def keep(self, every: int) -> None:
        """Keep the gradients after an update.

        In all of the first steps and in one of `every` after them: gradients that are never
        cleared show at once. A step counts as one of the first where its gradients can be kept,
        for gradients of zero or NaN may stay so.
        """
        often = self._kept < _OFTEN or (self._loop.steps + 1) % every == 0
        self._stale = {
            id(p): p.grad.detach().clone()
            for p in self._watched
            if often and p.grad is not None and not p.grad.is_sparse
        }
        self._kept += bool(self._stale)


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the distance of two directions: 0 for the same, 2 for opposite ones, and of a zero."""
    if not b.any():
        return 2.0
    return torch.linalg.vector_norm(a / a.norm() - b / b.norm()).item()
