"""Gradients of a first loss that are erased before the backward pass of a second one."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import LoopFacts
from debugnn.doctor.observe.calls import Call

_UPDATES = 20  # first updates, whose backward passes are recorded
_PASSES = 3  # fewest passes of an update that add up what the loop wants
_LISTED = 32  # most names that are kept


class ErasedGradients:
    """Notes parameters whose gradient is erased between two backward passes of one update.

    All gradients that have arrived must have been erased. To erase those of one part alone is how a
    part is kept as it is. Nothing is noted of parameters that the later passes, or the loop itself,
    give a gradient again.

    Args:
        loop: where the number of updates and the parameters' names are noted.
    """

    not_in_state = (
        "_arrived",
        "_erased",
        "_handles",
    )

    def __init__(self, loop: LoopFacts) -> None:
        self._loop = loop
        self._names: dict[nn.Parameter, str] = {}
        # Arrived since the last update, or since all was erased: gradient, its version, not zero.
        self._arrived: dict[nn.Parameter, tuple[int, Tensor]] = {}
        self._erased: dict[nn.Parameter, Tensor] = {}
        self._times = 0  # that all was erased since the last update
        self._handles: list[Any] = []

    @property
    def looks(self) -> bool:
        """True as long as updates are recorded."""
        return bool(self._handles)

    def settle(self) -> None:
        """Take off hooks that a state from a checkpoint has no need of."""
        if self._loop.looked_for_erased >= _UPDATES:
            self.release()

    def watch(self, parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """Begin with these parameters. Their hooks are taken off after 20 updates."""
        self._names = {parameter: name for name, parameter in parameters}
        hook = Relay(self, "_note_sum")
        self._handles = [p.register_post_accumulate_grad_hook(hook) for _, p in parameters]

    def release(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note_sum(self, parameter: nn.Parameter) -> None:
        gradient = parameter.grad
        if gradient is None or gradient.is_sparse:
            return
        arrived = self._arrived
        others = [(p, version) for p, (version, _) in arrived.items() if p is not parameter]
        if others and all(_changed(each, version) for each, version in others):
            self._times += 1
            self._erased |= {each: size for each, (_, size) in arrived.items()}
            arrived.clear()
        arrived[parameter] = (gradient._version, gradient.detach().any())

    def compare(self, calls: Sequence[Call]) -> None:
        """Note, before an update, which of the erased gradients are still missing.

        Args:
            calls: of the model in the passes since the last update, the latest ones.
        """
        if self._loop.looked_for_erased >= _UPDATES:
            self.release()
        elif self._arrived:
            self._compare()
            untouched = not any(_changed(p, version) for p, (version, _) in self._arrived.items())
            # Of another attack on the same samples, or another task of them, each pass has a
            # gradient of its own, which is put together otherwise.
            if untouched and self._times >= _PASSES - 1 and _of_other_samples(calls):
                self._loop.last_pass_updates += 1

    def _compare(self) -> None:
        self._loop.looked_for_erased += 1
        lost = [
            self._names[parameter]
            for parameter, size in self._erased.items()
            if bool(size) and (parameter.grad is None or not parameter.grad.any())
        ]
        if lost:
            self._loop.erased_updates += 1
            known = self._loop.erased
            known += [name for name in lost if name not in known][: _LISTED - len(known)]

    def clear(self) -> None:
        """Forget an update's gradients, after it."""
        self._arrived.clear()
        self._erased.clear()
        self._times = 0


def _of_other_samples(calls: Sequence[Call]) -> bool:
    """Return whether three calls or more were each of as many samples as the one before and of
    others, which no gradient is computed of. A larger batch at the end is what is trained on, and
    the others are looked at."""
    given = [call.tensors() for call in calls]
    if len(given) < _PASSES or not all(given):
        return False
    if any(tensor.requires_grad for tensors in given for tensor in tensors):
        return False
    return all(
        one[0].shape == other[0].shape and not torch.equal(one[0], other[0])
        for one, other in pairwise(given)
    )


def _changed(parameter: nn.Parameter, version: int) -> bool:
    """Return whether a gradient is gone, or has been written to since it arrived."""
    return parameter.grad is None or parameter.grad._version != version
