"""Windows of a series that overlap: validation windows that hold values of training windows.

Two windows that were cut from one series at different places agree where they overlap: what one
holds from position d on, the other begins with. A few positions at both ends of each training
window are kept, so that each overlap shows in a validation window, whatever its length. Values are
compared bit for bit. What is not recognised: windows that were each brought to a scale of their
own, or each position to one of its own; training windows that were augmented; windows of a training
set so large that few neighbours of a validation window are among the first 50,000.
"""

import torch
from torch import Tensor

from debugnn.doctor.evidence import WindowFacts
from debugnn.doctor.observe.growing import GrowingTensor

_RUN = 4  # positions that are compared at a time
_POSITIONS = 8  # fewest positions of an axis along which windows may lie
_CHANNELS = 4  # values of a position that are compared, at most
_VALUES = 2**20  # most values of validation windows that are compared
_PAIRS = 128  # overlaps that are compared as a whole, of each kind, at most


class WindowEnds:
    """What the training windows hold at both ends.

    It is kept for floating-point samples of one or two axes. It is kept for each axis that is long
    enough, because it is not known which axis holds the positions.
    """

    def __init__(self) -> None:
        self._shape: torch.Size | None = None  # of a sample
        self._ends: dict[int, tuple[GrowingTensor, GrowingTensor]] = {}  # of each axis

    def add(self, rows: Tensor) -> None:
        """Copy the ends of a batch's samples (samples, …)."""
        if not rows.is_floating_point() or rows.dim() not in (2, 3):
            return
        if self._shape is None:
            self._shape = rows.shape[1:]
            long = [axis for axis in range(1, rows.dim()) if rows.shape[axis] >= _POSITIONS]
            self._ends = {axis: (GrowingTensor(), GrowingTensor()) for axis in long}
        if rows.shape[1:] == self._shape:
            for axis, (firsts, lasts) in self._ends.items():
                values = _by_position(rows, axis)
                firsts.append(values[:, :_RUN])
                lasts.append(values[:, -_RUN:])

    def gather(self) -> None:
        """Bring the copies together."""
        for ends in self._ends.values():
            for end in ends:
                end.gather()

    def facts(self, inputs: Tensor, windows: Tensor) -> WindowFacts | None:
        """Compare validation windows with the training windows.

        Args:
            inputs: some training windows, (N, …), of which overlaps are compared as a whole.
            windows: validation windows, (M, …).

        Returns:
            What was seen along the axis along which most windows overlap; None where no axis can
            hold positions.
        """
        if windows.shape[1:] != self._shape or inputs.shape[1:] != self._shape:
            return None
        each = [
            _facts_along(axis, firsts.together(), lasts.together(), inputs, windows)
            for axis, (firsts, lasts) in self._ends.items()
        ]
        return max(each, key=lambda facts: facts.share, default=None)


def _facts_along(
    axis: int, firsts: Tensor, lasts: Tensor, inputs: Tensor, windows: Tensor
) -> WindowFacts:
    """Compare windows along one axis.

    Args:
        axis: of the positions.
        firsts: what the training windows begin with, flat.
        lasts: what they end with, flat.
        inputs: some training windows.
        windows: validation windows.
    """
    size = _by_position(windows[:1], axis).numel()
    count = min(len(windows), max(_VALUES // size, 1))
    chosen = torch.linspace(0, len(windows) - 1, count).long().to(windows.device)
    windows = windows.detach()[chosen].cpu()
    values = _by_position(windows, axis)
    positions = values.shape[1]
    numbers, varies = _numbers_of_runs(values)
    places = torch.arange(numbers.shape[1])
    # A training window that begins after this one begins with what this one holds at a place > 0.
    begin, end = (
        _numbers_of_runs(ends.reshape(-1, _RUN, values.shape[2]))[0] for ends in (firsts, lasts)
    )
    after = torch.isin(numbers, begin) & varies & (places > 0)
    before = torch.isin(numbers, end) & varies & (places < places[-1])
    common = torch.maximum(after * (positions - places), before * (places + _RUN)).amax(dim=1)
    found = common > 0
    pairs, whole = _compare_as_a_whole(axis, numbers, after, before, inputs, windows)
    return WindowFacts(
        axis=axis,
        positions=positions,
        windows=len(windows),
        share=found.double().mean().item(),
        share_before=before.any(dim=1).double().mean().item(),
        share_after=after.any(dim=1).double().mean().item(),
        common=common[found].double().median().item() / positions if found.any() else 0.0,
        pairs=pairs,
        whole=whole,
    )


def _compare_as_a_whole(
    axis: int, numbers: Tensor, after: Tensor, before: Tensor, inputs: Tensor, windows: Tensor
) -> tuple[int, float]:
    """Compare all that two windows share if they are parts of one series.

    Args:
        axis: of the positions.
        numbers: of each run of the validation windows, (M, places).
        after: runs that training windows begin with, (M, places).
        before: runs that training windows end with, (M, places).
        inputs: training windows, some of which may begin or end with such a run.
        windows: the validation windows, (M, …).

    Returns:
        How many pairs of windows were compared, and the share of them that agree.
    """
    inputs = inputs.detach().cpu()
    whole, others = windows.movedim(axis, 1), inputs.movedim(axis, 1)
    values = _by_position(inputs, axis)
    agree: list[bool] = []
    for runs, end, last in ((after, values[:, :_RUN], False), (before, values[:, -_RUN:], True)):
        of_end = _numbers_of_runs(end)[0].flatten()
        row, place = (runs & torch.isin(numbers, of_end)).nonzero(as_tuple=True)
        taken = torch.linspace(0, max(len(row) - 1, 0), min(len(row), _PAIRS)).long()
        for r, p in zip(row[taken].tolist(), place[taken].tolist(), strict=True):
            other = others[(of_end == numbers[r, p]).nonzero()[0, 0]]
            if last:
                agree.append(torch.equal(whole[r, : p + _RUN], other[-(p + _RUN) :]))
            else:
                agree.append(torch.equal(whole[r, p:], other[: whole.shape[1] - p]))
    return len(agree), sum(agree) / max(len(agree), 1)


def _by_position(rows: Tensor, axis: int) -> Tensor:
    """Return a view (N, positions, values of a position), of at most four evenly spaced values."""
    if rows.dim() == 2:
        return rows.detach().unsqueeze(2)
    values = rows.detach().movedim(axis, 1)
    return values[:, :, :: max(1, -(-values.shape[2] // _CHANNELS))]


def _numbers_of_runs(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a number for each run of positions, equal for equal runs and hardly ever for others.

    Args:
        values: (N, positions, values of a position).

    Returns:
        Whole numbers (N, places), and whether each position of a run differs from the one before
        it, as padding and a signal at rest do not, (N, places).
    """
    values = values.cpu().double() + 0.0  # −0.0 becomes 0.0
    bits = values.contiguous().view(torch.int64)
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):  # as SplitMix64
        bits = (bits ^ (bits >> shift)) * factor
    bits = bits ^ (bits >> 31)
    places = values.shape[1] - _RUN + 1
    channels = torch.arange(values.shape[2])
    numbers = torch.zeros(len(values), places, dtype=torch.int64)
    for position in range(_RUN):
        weights = 2 * (position * values.shape[2] + channels) + 1
        numbers += (bits[:, position : position + places] * weights).sum(dim=2)
    changes = (values[:, 1:] != values[:, :-1]).any(dim=2)
    return numbers, changes.unfold(1, _RUN - 1, 1).all(dim=2)
