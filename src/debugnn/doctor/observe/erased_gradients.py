"""Gradients of a first loss that are erased before the backward pass of a second one."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import LoopFacts

_UPDATES = 20  # first updates, whose backward passes are recorded
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
        self._handles: list[Any] = []

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
            self._erased |= {each: size for each, (_, size) in arrived.items()}
            arrived.clear()
        arrived[parameter] = (gradient._version, gradient.detach().any())

    def compare(self) -> None:
        """Note, before an update, which of the erased gradients are still missing."""
        if self._loop.looked_for_erased >= _UPDATES:  # a checkpoint may say so
            self.release()
        elif self._arrived:
            self._compare()

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


def _changed(parameter: nn.Parameter, version: int) -> bool:
    """Return whether a gradient is gone, or has been written to since it arrived."""
    return parameter.grad is None or parameter.grad._version != version
