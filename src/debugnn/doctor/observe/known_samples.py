"""Whether a training goes through the same samples, with the same labels, again and again."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ROUNDS = 8  # times that each sample has come, on average, until all is known of a training's data
_NOTHING_NEW = 2  # of these, the latest ones, in which no sample was new
_BATCHES = 100  # fewest batches
_OF_LABEL = 0.6180339887498949  # weighs a label beside its sample's fingerprint


class KnownSamples:
    """Knows the samples of the batches so far, and tells when further ones bring nothing new.

    A sample that comes with another label is a new one.
    """

    def __init__(self) -> None:
        self._known: set[float] = set()
        self._samples = self._batches = 0
        self._since = 0  # samples since the latest batches with a new one

    @property
    def distinct(self) -> int:
        """How many there are."""
        return len(self._known)

    def note(self, prints: Tensor, labels: Tensor | None, batches: int) -> None:
        """Note the samples of some batches.

        Args:
            prints: their fingerprints, (N,).
            labels: a number for each, (N,); None where there is none.
            batches: how many.
        """
        before = len(self._known)
        self._known.update(_numbers(prints, labels))
        self._samples += len(prints)
        self._batches += batches
        self._since = 0 if len(self._known) > before else self._since + len(prints)

    def all_came(self) -> bool:
        """Return whether the samples so far are all that there are, and have come often enough."""
        distinct = len(self._known)
        return (
            self._batches >= _BATCHES
            and self._samples >= _ROUNDS * distinct
            and self._since >= _NOTHING_NEW * distinct
        )

    def has(self, prints: Tensor, labels: Tensor | None) -> bool:
        """Return whether all samples of a batch are known."""
        return self._known.issuperset(_numbers(prints, labels))

    def state_dict(self) -> dict[str, Any]:
        """Return what is known, in a tensor."""
        known = torch.tensor(sorted(self._known), dtype=torch.float64)
        return {"known": known, "counts": [self._samples, self._batches, self._since]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the result of `state_dict`."""
        self._known = set(state["known"].tolist())
        self._samples, self._batches, self._since = state["counts"]


def _numbers(prints: Tensor, labels: Tensor | None) -> list[float]:
    """Return a number for each sample and its label."""
    if labels is None:
        return prints.tolist()
    return (prints + _OF_LABEL * labels.cpu().double()).tolist()
