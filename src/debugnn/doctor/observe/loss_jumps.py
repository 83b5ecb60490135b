"""Single steps whose loss lies above those around it, and the samples of their batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.evidence import Jump
from debugnn.doctor.observe.calls import bytes_of, first_tensor, map_tensors
from debugnn.doctor.observe.samples import fingerprints, thinned

_AROUND = 10  # losses on either side that a loss is compared with
_KEPT = 3  # jumps
_CANDIDATES = 8  # steps that are kept by the losses before them alone
_SAMPLES = 128  # samples of a batch whose own losses are computed
_BYTES = 2**22  # most memory for the outputs that are kept of a batch
_NAMED = 8  # samples of a jump, and steps at which the first of them came again
_ROUNDING = 1e-6  # least spread of losses, relative to their size


@dataclass
class _Candidate:
    step: int
    height: float
    outputs: Any  # of some of the batch's samples; None where they are not told apart
    targets: Tensor | None
    samples: Tensor | None  # of the batch, what fingerprints look at


class LossJumps:
    """Keeps the steps whose loss rose the most above the losses before them.

    The losses of a batch's samples are computed when they are asked for: most candidates of a
    training's beginning are replaced by later ones.
    """

    def __init__(self) -> None:
        self._candidates: list[_Candidate] = []  # the highest first

    def rises(self, step: int, losses: Sequence[float]) -> bool:
        """Return whether the loss of a step rose as far as one of those that are kept.

        Not where it is not the last one: of an earlier step there was none.

        Args:
            step: its index.
            losses: of all steps up to this one.
        """
        if len(losses) != step + 1 or step < _AROUND or not math.isfinite(losses[-1]):
            return False
        before = losses[-_AROUND - 1 : -1]
        # Most losses of a training that learns are below the median of those before.
        if losses[-1] <= sorted(before)[(_AROUND - 1) // 2]:
            return False
        least = self._candidates[-1].height if len(self._candidates) >= _CANDIDATES else 0.0
        return _height(losses[-1], before)[0] > least

    def note(
        self,
        step: int,
        losses: Sequence[float],
        outputs: Any,
        targets: Any,
        samples: Tensor | None,
    ) -> None:
        """Keep a step whose loss `rises`.

        Args:
            step: its index.
            losses: of all steps up to this one.
            outputs: of its batch.
            targets: of its batch.
            samples: of its batch, (samples, …); None where they are not told apart.
        """
        height = _height(losses[-1], losses[-_AROUND - 1 : -1])[0]
        some = None if samples is None or not samples.shape[0] else thinned(samples[:_SAMPLES])
        kept = _Candidate(step, height, *_some_samples(outputs, targets), some)
        self._candidates.append(kept)
        self._candidates.sort(key=lambda candidate: -candidate.height)
        del self._candidates[_CANDIDATES:]

    def largest(
        self,
        losses: Sequence[float],
        prints: Sequence[Tensor],
        steps: Sequence[int],
        loss_fn: Callable[[Any, Any], Tensor] | None,
    ) -> list[Jump]:
        """Return the largest jumps, above the losses on both sides, the largest first.

        Args:
            losses: of all steps.
            prints: fingerprints of the samples of some steps.
            steps: which steps these are.
            loss_fn: gives the losses of single samples.
        """
        found: list[tuple[float, Jump, _Candidate]] = []
        for candidate in self._candidates:
            step = candidate.step
            after = losses[step + 1 : step + 1 + _AROUND]
            around = [*losses[step - _AROUND : step], *after]
            if len(after) < _AROUND or not all(map(math.isfinite, around)):
                continue
            height, middle, spread = _height(losses[step], around)
            found.append((height, Jump(step, losses[step], middle, spread), candidate))
        found.sort(key=lambda each: -each[0])
        for _, jump, candidate in found[:_KEPT]:
            own = _own_losses(loss_fn, candidate.outputs, candidate.targets)
            if own is not None:
                worst = own.argsort(descending=True)[:_NAMED]
                jump.samples = worst.tolist()
                jump.own = own[worst].tolist()
                jump.typical = own.median().item()
                jump.again = _steps_with(candidate, jump.samples[0], prints, steps)
        return [jump for _, jump, _ in found[:_KEPT]]


def _some_samples(outputs: Any, targets: Any) -> tuple[Any, Tensor | None]:
    """Return copies of the first rows of outputs and targets, at most 128 rows and 4 MiB.

    Nothing where outputs or targets have no row for each sample.
    """
    first = first_tensor(outputs)
    if first is None or not isinstance(targets, Tensor):
        return None, None
    if not first.dim() or not targets.dim() or len(first) != len(targets) or not len(first):
        return None, None
    count = len(first)
    kept = min(count, _SAMPLES, _BYTES // max(1, bytes_of(first) // count))

    def rows(tensor: Tensor) -> Tensor:
        whole = tensor.detach()
        return (whole[:kept] if tensor.dim() and len(tensor) == count else whole).clone()

    return (map_tensors(outputs, rows), rows(targets)) if kept else (None, None)


def _own_losses(
    loss_fn: Callable[[Any, Any], Tensor] | None, outputs: Any, targets: Tensor | None
) -> Tensor | None:
    """Return the loss of each sample, (samples,); None where the loss takes no single sample."""
    if loss_fn is None or targets is None:
        return None
    count = len(targets)

    def row_of(row: int, tensor: Tensor) -> Tensor:
        return tensor[row : row + 1] if tensor.dim() and len(tensor) == count else tensor

    try:
        own = [
            loss_fn(map_tensors(outputs, partial(row_of, row)), targets[row : row + 1])
            for row in range(count)
        ]
        own = [loss.detach().float().mean() for loss in own]
    except Exception:  # whatever a loss function raises
        return None
    return torch.stack(own).cpu()


def _height(loss: float, around: Sequence[float]) -> tuple[float, float, float]:
    """Return how far a loss is above others, over their spread; their median; and the spread."""
    middle = _median(around)
    spread = _median([abs(other - middle) for other in around])
    spread = max(spread, _ROUNDING * abs(middle), _ROUNDING * _ROUNDING)
    return (loss - middle) / spread, middle, spread


def _median(values: Sequence[float]) -> float:
    """Return what `statistics.median` does, in a third of the time: it is taken in every step."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def _steps_with(
    candidate: _Candidate, sample: int, prints: Sequence[Tensor], steps: Sequence[int]
) -> list[int]:
    """Return the other steps at which a sample of a step came, as far as fingerprints were kept."""
    if candidate.samples is None or sample >= len(candidate.samples):
        return []
    same = fingerprints(candidate.samples[sample : sample + 1])
    others = (
        step
        for step, batch in zip(steps, prints, strict=False)
        if step != candidate.step and bool((batch == same).any())
    )
    return [other for other, _ in zip(others, range(_NAMED), strict=False)]
