"""Memory of a training's data: copies of some batches, fingerprints and labels of more."""

import math
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from debugnn.doctor.observe import devices, samples
from debugnn.doctor.observe.calls import Call, bytes_of, copied, is_plain, map_tensors
from debugnn.doctor.observe.growing import GrowingTensor
from debugnn.doctor.observe.known_samples import KnownSamples
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.task import Task
from debugnn.doctor.observe.windows import WindowEnds

_EARLY = 4  # batches of the beginning, at least; more where they hold fewer than _EARLY_SAMPLES
_EARLY_SAMPLES = 768
_LATE = 8  # batches of later steps
_BYTES = 64 * 2**20  # most memory for the early batches, and for the late ones
_FINGERPRINTED = 50_000  # samples
_LABELS = 200_000  # values, for batches of the size of the latest
_RAREST = 64  # classes whose recall is noted
# Batches that are looked at together: a small tensor for each would take longer, and memory.
_TOGETHER = 20
_AT_A_PROBE = 200  # the same of batches on a GPU, where no probe comes before
# How far the mean of late targets is from that of early ones, in their standard deviations, and the
# ratio of these, from which the targets have moved. Means and deviations of the 100 samples and
# more of either kind scatter by a tenth.
_MOVED = 1.0
_SPREAD = 2.0


class Batch(NamedTuple):
    """A training batch: how the model was called, the targets, the inputs that were given."""

    call: Call
    targets: Any
    inputs: Tensor | None = None  # the samples, (samples, …), where there is a tensor of them


@dataclass
class ValidationBatch:
    """Samples of a validation, and what a copy of the model predicted of them."""

    call: Call
    inputs: Tensor | None  # (samples, …)
    targets: Any
    size: int  # number of samples given, of which these were chosen
    standardised_alone: bool = False  # all that were given, by their own mean and deviation
    step: int = 0  # of the weights that the outputs were computed with
    outputs: Any = None


class _Waiting(NamedTuple):
    """The samples of a batch that is looked at together with others."""

    rows: Tensor  # a copy
    whole: bool  # it holds all of their values
    labels: Tensor | None  # a number for each sample; None where there is none


class BatchBuffer:
    """Copies of the first batches and of late ones, at most 64 MiB of each.

    Once the data are known, because all samples have come several times and nothing new has, no
    further batch is looked at: of a small net that would take as long as its step. A probe looks
    whether the data are still the same.

    Attributes:
        early: the first batches.
        late: batches of the latest probes.
        prints: fingerprints of the samples of the batches, see `samples.fingerprints`.
        numbers: which batches these are, counted from 0.
        left_out: number of samples that were not looked at because the data were known.
        ends: what the same samples begin and end with, where they may be windows of a series.
        labels: the targets of the batches.
        sizes: numbers of samples that batches had.
        same: of batches at probes, whether it is the first one again.
        same_tensor: every batch so far has been one and the same tensor.
    """

    not_in_state = ("_latest",)

    def __init__(self) -> None:
        self.early: list[Batch] = []
        self.late: deque[Batch] = deque(maxlen=_LATE)
        self.prints = GrowingTensor()
        self.ends = WindowEnds()
        self.labels = GrowingTensor()
        self.sizes: set[int] = set()
        self.same: list[bool] = []
        self.same_tensor = True
        self._latest: weakref.ref[Tensor] | None = None  # of the samples, as they were given
        self.numbers: list[int] = []
        self.left_out = 0
        self._first: Tensor | None = None  # of the first batch, what fingerprints look at
        self._bytes = self._samples = self._fingerprinted = 0
        self._taken = 0  # batches
        self._waiting: list[_Waiting] = []  # in the order in which they came
        self._known = KnownSamples()
        self._repeats = self._complete = False  # the data are known; nothing is noted any more

    @property
    def batches(self) -> list[Batch]:
        """All copies, in the order in which they came."""
        return [*self.early, *self.late]

    @property
    def for_trained(self) -> list[Batch]:
        """Copies that a trained model is scored on: all, or the late ones where calls begin with a
        state that the model made, which the untrained model made otherwise."""
        stateful = any(batch.call.prepare is not None for batch in self.late)
        return list(self.late) if stateful else self.batches

    @property
    def targets_moved(self) -> bool:
        """True if late real targets have another size or spread than the first ones, as those of a
        critic do whose actor comes to get other returns."""
        values = [_values(batches) for batches in (self.early, self.late)]
        if any(v.numel() < 2 for v in values):
            return False
        (first, spread), (now, width) = ((v.mean().item(), v.std().item()) for v in values)
        if not all(map(math.isfinite, (first, spread, now, width))):
            return False
        least, most = sorted((spread, width))
        return abs(now - first) > _MOVED * most or most > _SPREAD * least

    @property
    def is_known(self) -> bool:
        """True where nothing is noted of a batch without a probe, but that there was one."""
        return self._complete and not (self.same_tensor or self._is_short)

    @property
    def _is_short(self) -> bool:
        """True while early batches are still to be kept."""
        return len(self.early) < _EARLY or self._samples < _EARLY_SAMPLES

    def leave_out(self, sizes: Sequence[int]) -> None:
        """Count batches of known data.

        Args:
            sizes: number of samples of each.
        """
        self._taken += len(sizes)
        self.left_out += sum(sizes)

    def take(self, call: Call, inputs: Any, targets: Any, layout: Layout, due: bool) -> None:
        """Note a batch.

        Args:
            inputs: as the loop handed them over, None where it did not.
            layout: where the samples lie.
            due: a probe is due. Late batches are copied then, and compared with the first one.
        """
        rows = layout.rows(call, inputs)
        if self.is_known and not due:
            self.leave_out([0 if rows is None else rows.shape[0]])
            return
        few = self._is_short
        self._note_identity(layout.inputs(call))
        if rows is not None and rows.shape[0]:
            self._compare(rows, due)
        number, self._taken = self._taken, self._taken + 1
        if self._complete and not (due and self._is_new(rows, targets)):
            self.left_out += 0 if rows is None else rows.shape[0]
        else:
            self._complete = False
            self._note(rows, targets, number, due)
        if few or due:
            self._keep(call, rows, targets, few, due)

    def _note(self, rows: Tensor | None, targets: Any, number: int, due: bool) -> None:
        """Note the labels and the samples of a batch; look at those of several batches at once.

        To look at them waits for a GPU, as a probe does anyway.
        """
        labels = None
        if (
            isinstance(targets, Tensor)
            and is_plain(targets)
            and len(self.labels) * max(targets.numel(), 1) < _LABELS
        ):
            labels = self.labels.append(targets)
            if len(self.labels) % _TOGETHER == 0:
                self.labels.gather()
        if rows is None or self._fingerprinted >= _FINGERPRINTED:
            return
        copy, size = samples.thinned(rows), rows.shape[0]
        whole = copy.shape == rows.shape
        self._waiting.append(_Waiting(copy, whole, _of_each(labels, size)))
        self.numbers.append(number)
        if not whole:
            self.ends.add(rows)
        self._fingerprinted += size
        most = _AT_A_PROBE if devices.waits(rows) else _TOGETHER
        if len(self._waiting) >= (_TOGETHER if due else most):
            self.fingerprint()
        # Each sample is to have come as often as any other.
        if self._repeats and self._fingerprinted % self._known.distinct < size:
            self.fingerprint()
            self._complete = self._repeats

    def _keep(self, call: Call, rows: Tensor | None, targets: Any, few: bool, due: bool) -> None:
        """Keep a copy of a batch, where there is room for it.

        Args:
            few: early batches are still to be kept.
            due: a probe is due.
        """
        size = sum(map(bytes_of, call.tensors()))
        count = len(rows) if rows is not None else 1
        early = few and self._bytes + size <= _BYTES
        if early or (due and size <= _BYTES // _LATE):
            copies = {id(tensor): copied(tensor) for tensor in call.tensors()}
            own = call.map(lambda tensor: copies[id(tensor)])
            kept = copies.get(id(rows))
            if kept is None and rows is not None:
                kept = copied(rows)
            batch = Batch(own, map_tensors(targets, copied), kept)
            (self.early if early else self.late).append(batch)
            self._bytes += size if early else 0
            self._samples += count if early else 0

    def _note_identity(self, given: Tensor | None) -> None:
        """Note whether the loop has handed over the same tensor as in the step before."""
        if self.same_tensor and given is not None:
            before = None if self._latest is None else self._latest()
            self.same_tensor = self._latest is None or before is given
            self._latest = weakref.ref(given)

    def _compare(self, rows: Tensor, due: bool) -> None:
        """Note the batch's size, and whether it is the first one again."""
        self.sizes.add(rows.shape[0])
        if self._first is None:
            self._first = samples.thinned(rows)
        elif due:
            # As fingerprints come to an end, this does not: one graph may come without end.
            now = samples.thinned(rows)
            same = now.shape == self._first.shape and bool((now == self._first).all())
            self.same.append(same)

    def fingerprint(self) -> None:
        """Compute the fingerprints of the batches since the last call."""
        waiting, self._waiting = self._waiting, []
        kinds = {(w.rows.shape[1:], w.rows.dtype, w.whole, w.labels is None) for w in waiting}
        for together in [waiting] if len(kinds) == 1 else [[w] for w in waiting]:
            self._look_at(together)
        self.ends.gather()
        self._repeats = self._known.all_came()

    def _look_at(self, waiting: list[_Waiting]) -> None:
        """Add the fingerprints of batches of one kind; their ends too, where they are whole."""
        rows = torch.cat([w.rows for w in waiting])
        prints = samples.fingerprints(rows)
        self.prints.extend(prints, [w.rows.shape[0] for w in waiting])
        labels = [w.labels for w in waiting if w.labels is not None]
        self._known.note(prints, torch.cat(labels) if labels else None, len(waiting))
        if waiting[0].whole:
            self.ends.add(rows)

    def _is_new(self, rows: Tensor | None, targets: Any) -> bool:
        """Return whether a batch holds samples or labels that have not come yet."""
        if rows is None:
            return False
        labels = targets.detach() if isinstance(targets, Tensor) and is_plain(targets) else None
        prints = samples.fingerprints(samples.thinned(rows))
        return not self._known.has(prints, _of_each(labels, rows.shape[0]))

    def class_counts(self, task: Task) -> Tensor | None:
        """Return how often each class came, (classes,); None where there are none."""
        if task.kind not in ("classes", "binary") or not self.labels:
            return None
        labels = task.labels(self.labels.together()).cpu()
        return torch.bincount(labels[labels >= 0], minlength=task.classes or 2)

    def rarest(self, task: Task) -> list[int]:
        """Return the classes, 64 at most, that came least often, the rarest first."""
        counts = self.class_counts(task)
        return [] if counts is None else counts.argsort(stable=True)[:_RAREST].tolist()

    def clear(self) -> None:
        """Let go of the copies; fingerprints and labels stay."""
        self.early.clear()
        self.late.clear()
        self._first = None


def _values(batches: Iterable[Batch]) -> Tensor:
    """Return the real targets of some batches, (N,); empty where they are no real numbers."""
    found = [b.targets for b in batches if isinstance(b.targets, Tensor)]
    real = [t.detach().flatten().double() for t in found if is_plain(t) and t.is_floating_point()]
    return torch.cat(real) if real else torch.empty(0)


def _of_each(labels: Tensor | None, size: int) -> Tensor | None:
    """Return labels as (samples,), None where there is not one number for each sample."""
    return labels.flatten() if labels is not None and labels.numel() == size else None
