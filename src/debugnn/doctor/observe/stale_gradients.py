"""Gradients that nobody cleared: whether a step is taken with earlier steps' gradients too."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import LoopFacts

_COMPARED = 20  # first steps whose gradients are all held against the step before
_MOST = 1_000  # comparisons


class Residue:
    """Follows the gradients of a few small parameters from one update to the next."""

    def __init__(self, loop: LoopFacts) -> None:
        self._loop = loop
        self._watched: list[nn.Parameter] = []
        self._stale: dict[int, Tensor] = {}  # their gradients at the last optimiser step
        self._new: dict[int, Tensor] = {}  # what has been added to them since
        self._arrived: dict[int, Tensor] = {}
        self._kept = 0  # steps whose gradients were kept

    def watch(self, parameters: Sequence[nn.Parameter]) -> list[Any]:
        """Begin with these parameters; returns the handles of the hooks."""
        self._watched = list(parameters)
        handles = []
        for parameter in parameters:
            arrives = partial(Relay(self, "_note_arrival"), id(parameter))
            handles.append(parameter.register_hook(arrives))
            # Not at torch.autograd.grad, which adds to no gradient.
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
        """Before an update: whether it steps with this step's gradients, or with earlier ones' too.

        Compared by direction: the loop may have clipped them. On a GPU only where a probe is `due`.
        """
        new, self._new = self._new, {}
        if not self._stale:
            return
        loop = self._loop
        if len(loop.residues) >= _MOST:
            return
        for parameter in self._watched:
            stale, added = self._stale.get(id(parameter)), new.get(id(parameter))
            total = parameter.grad
            if stale is None or added is None or total is None or total.numel() < 2:
                continue
            if total.device.type != "cpu" and not due:
                continue
            clean, sum_of_all = added.flatten().double(), (added + stale).flatten().double()
            used = total.detach().flatten().double()
            if not torch.isfinite(sum_of_all).all() or not used.any():
                continue
            loop.residues.append([loop.steps, _angle(used, sum_of_all), _angle(used, clean)])

    def keep(self, every: int) -> None:
        """After an update: the gradients that it was made with, in the first steps and now and
        then, once in `every`, after them: one that is never cleared shows at once."""
        # Not until as many could be compared: gradients of zero or NaN may stay so.
        often = self._kept < _COMPARED or (self._loop.steps + 1) % every == 0
        self._stale = {
            id(p): p.grad.detach().clone()
            for p in self._watched
            if often and p.grad is not None and not p.grad.is_sparse
        }
        self._kept += bool(self._stale)


def _angle(a: Tensor, b: Tensor) -> float:
    """Distance of two directions: 0 for the same, 2 for opposite ones."""
    if not b.any():
        return 2.0
    return torch.linalg.vector_norm(a / a.norm() - b / b.norm()).item()
