"""Derivatives that a loop takes of the outputs with respect to the inputs, to put into its loss.

Physics-informed networks (Raissi et al. 2019, J. Comput. Phys. 378) compare such derivatives with a
differential equation.
"""

from functools import partial

import torch
from torch import Tensor

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.troubles import guarded


class InputDerivatives:
    """Counts derivatives of second order, and those of them that are zero for all samples.

    A hook on an input is called whenever a gradient reaches it. Where the loop builds a graph of
    the gradient, `create_graph=True`, the gradient is to be a part of the loss. The first one that
    is not zero is taken as of first order.

    Args:
        evidence: where they are counted.
    """

    not_in_state = ("_passes", "_watched", "_differentiated")

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self._passes = 0
        # (pass, place) of the inputs that are watched, and of those whose derivative has come.
        self._watched: set[tuple[int, int]] = set()
        self._differentiated: set[tuple[int, int]] = set()

    def watch(self, call: Call) -> None:
        """Look at what reaches the inputs of a forward pass, until `clear`."""
        self._passes += 1
        for place, tensor in enumerate(call.tensors()):
            if tensor.requires_grad and tensor.is_floating_point():
                note = partial(_at, Relay(self, "_note"), (self._passes, place))
                tensor.register_hook(note)
                self._watched.add((self._passes, place))

    def clear(self) -> None:
        """Look no further at the passes of a step."""
        self._watched.clear()
        self._differentiated.clear()

    @guarded("derivatives with respect to the inputs")
    def _note(self, key: tuple[int, int], gradient: Tensor) -> None:
        if not torch.is_grad_enabled() or key not in self._watched:
            return  # a gradient of the loss itself
        zero = not bool(gradient.any())
        if key in self._differentiated:
            self.evidence.network.second_derivatives += 1
            self.evidence.network.flat_derivatives += zero
        elif not zero:
            self._differentiated.add(key)


def _at(note: Relay, key: tuple[int, int], gradient: Tensor) -> None:
    note(key, gradient)
