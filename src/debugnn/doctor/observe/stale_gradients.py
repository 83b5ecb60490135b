"""Gradients around an update: left over from earlier steps, cleared before it, or added up."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import LoopFacts
from debugnn.doctor.observe.devices import waits

_OFTEN = 20  # first steps, whose gradients are all compared with the step before
_MOST = 1_000  # comparisons
_HUGE = 1e6  # gradient whose norm may overflow where another parameter's is larger
_PASSES = 64  # latest updates whose backward passes are counted


class StaleGradients:
    """Compares the gradients of a few small parameters from one update to the next.

    Args:
        loop: where the distances are noted, as `residues`, and what is left of the gradients' size,
            as `gradient_shares`; how many updates found none of the gradients that had arrived, as
            `cleared_steps`; and how many backward passes there were before an update, as
            `passes_per_update`.
        optimizer: whose gradients are looked at.
    """

    not_in_state = ("_arrived", "_handles")

    def __init__(self, loop: LoopFacts, optimizer: torch.optim.Optimizer) -> None:
        self._loop = loop
        self._optimizer = optimizer
        self._watched: list[nn.Parameter] = []
        self._handles: list[Any] = []  # of hooks on them
        self._looking = True  # until the next update
        self._stale: dict[nn.Parameter, Tensor] = {}  # gradients at the last optimiser step
        self._new: dict[nn.Parameter, Tensor] = {}  # what has been added to them since
        self._arrived: dict[nn.Parameter, Tensor] = {}
        self._kept = 0  # steps whose gradients were kept
        self._looked_for = 0  # updates whose arrivals were looked at
        self._sizes: dict[nn.Parameter, Tensor] = {}  # largest value of a gradient that arrived
        self._passes: dict[nn.Parameter, int] = {}  # backward passes since the last update

    @property
    def looks(self) -> bool:
        """True where gradients are noted up to the next update, by hooks on them."""
        return self._looking

    def settle(self) -> None:
        """Take off hooks that a state from a checkpoint has no need of."""
        if not self._looking:
            self.release()

    def watch(self, parameters: Sequence[nn.Parameter]) -> None:
        """Begin with these parameters."""
        self._watched = list(parameters)
        self._hook()

    def _hook(self) -> None:
        """Hang hooks on the parameters, unless they are there."""
        if self._handles:
            return
        for index, parameter in enumerate(self._watched):
            # Not the parameter, which would be in a cycle with its hook.
            arrives = partial(Relay(self, "_note_arrival"), index)
            self._handles.append(parameter.register_hook(arrives))
            # This hook is not called by torch.autograd.grad, which adds to no gradient.
            added = parameter.register_post_accumulate_grad_hook(Relay(self, "_note_sum"))
            self._handles.append(added)

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note_arrival(self, index: int, gradient: Tensor) -> None:
        parameter = self._watched[index]
        if self._looking and parameter in self._stale:
            self._arrived[parameter] = gradient.detach()

    def _note_sum(self, parameter: nn.Parameter) -> None:
        if not self._looking:
            return
        self._passes[parameter] = self._passes.get(parameter, 0) + 1
        gradient = parameter.grad
        if gradient is not None and not gradient.is_sparse and self._looked_for < _OFTEN:
            self._sizes[parameter] = gradient.detach().abs().amax()
        new = self._arrived.pop(parameter, None)
        if new is None or new.is_sparse:
            return
        before = self._new.get(parameter)
        self._new[parameter] = new.clone() if before is None else before + new

    def compare(self, reading: bool) -> None:
        """Compare the gradients before an update with this step's, and with the earlier ones' sum.

        Directions are compared: the loop may have clipped the gradients.

        Args:
            reading: numbers are read from a GPU at this step. Gradients there are compared only
                then.
        """
        if not self._looking:
            return  # nothing has been noted since the last update
        new, self._new = self._new, {}
        loop = self._loop
        self._note_cleared(reading)
        if self._passes:
            loop.passes_per_update.append(max(self._passes.values()))
            del loop.passes_per_update[:-_PASSES]
        self._passes.clear()
        if not self._stale or len(loop.residues) >= _MOST:
            return
        for parameter in self._watched:
            stale, added = self._stale.get(parameter), new.get(parameter)
            used = parameter.grad
            if stale is None or added is None or used is None or used.numel() < 2:
                continue
            if used.device.type != "cpu" and not reading:
                continue
            clean, both = added.flatten(), (added + stale).flatten()
            found = torch.stack([used.detach().flatten(), both, clean]).double()
            # Their products in one operation: each of these takes as long as a small layer.
            products = (found @ found.T).tolist()
            if not all(map(math.isfinite, map(sum, products))) or not products[0][0]:
                continue
            loop.residues.append([loop.steps, *(_distance(products, other) for other in (1, 2))])
            if products[2][2]:
                loop.gradient_shares.append(math.sqrt(products[0][0] / products[2][2]))

    def _note_cleared(self, reading: bool) -> None:
        """Note whether gradients that arrived are gone, of all parameters, or are zero."""
        sizes, self._sizes = self._sizes, {}
        if not sizes or (not reading and any(map(waits, self._watched))):
            return
        self._looked_for += 1
        self._loop.looked_for_cleared += 1
        watched = [p.grad for p in self._watched if p in sizes]
        if any(g is not None and (g.is_sparse or bool(g.any())) for g in watched):
            return
        largest = max(size.item() for size in sizes.values())
        # A norm that overflows is infinite, and clipping by it makes all gradients zero.
        if not 0 < largest < _HUGE:
            return
        gradients = [p.grad for group in self._optimizer.param_groups for p in group["params"]]
        if any(g is not None and (g.is_sparse or bool(g.any())) for g in gradients):
            return
        self._loop.cleared_steps += 1
        self._loop.cleared_to_none = all(g is None for g in gradients)

    def keep(self, probe_follows: bool) -> None:
        """Keep the gradients after an update, for the next one to be compared with.

        In all of the first steps and before each probe after them: gradients that are never
        cleared show at once. A step counts as one of the first where its gradients can be kept,
        for gradients of zero or NaN may stay so. Only then are there hooks in the next backward
        passes, whose calls take as long as a small layer.

        Args:
            probe_follows: the next step is one of a probe.
        """
        often = self._kept < _OFTEN or probe_follows
        if not (often or self._looking):
            return
        self._stale = {
            p: p.grad.detach().clone()
            for p in self._watched
            if often and p.grad is not None and not p.grad.is_sparse
        }
        self._kept += bool(self._stale)
        self._looking = often or self._looked_for < _OFTEN
        if self._looking:
            self._hook()
        else:
            self.release()
        # What a closure computes within the update belongs to no later one.
        self._sizes.clear()
        self._passes.clear()


def _distance(products: Sequence[Sequence[float]], other: int) -> float:
    """Return the distance of two directions: 0 for the same, 2 for opposite ones, and of a zero.

    Args:
        products: scalar products of some vectors, of which the first is one of the two.
        other: index of the second one.
    """
    own, second = products[0][0], products[other][other]
    if not second:
        return 2.0
    cosine = products[0][other] / math.sqrt(own * second)
    return math.sqrt(max(0.0, 2 - 2 * cosine))
