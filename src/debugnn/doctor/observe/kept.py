"""What the doctor keeps of a training's data: some batches, and fingerprints and labels of more."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from debugnn.doctor.observe import samples
from debugnn.doctor.observe.network import Call, mapped
from debugnn.doctor.observe.task import Task, first_tensor

_EARLY = 4  # batches of the beginning, at least; more where they hold fewer than _EARLY_SAMPLES
_EARLY_SAMPLES = 768
_LATE = 8
_BYTES = 64 * 2**20
_PRINTED = 50_000  # samples whose fingerprint is kept
_LABELS = 200_000  # values of batches of the size of the latest
_RAREST = 64  # classes whose recall is noted


class KeptBatch(NamedTuple):
    """A copy of a training batch: how the model was called, the inputs given, the targets."""

    call: Call
    inputs: Any  # the samples, a tensor, where there is one
    targets: Any


@dataclass
class ValidationSet:
    """The samples of the latest validation, and what a copy of the model made of them."""

    call: Call
    inputs: Tensor | None
    targets: Tensor
    size: int  # samples that it was given, of which these were chosen
    step: int
    outputs: Any


class Batches:
    """Numbers of many batches, one after the other in a tensor that grows.

    Not a tensor for each: one that small lies wherever it found room between a step's blocks, and
    if it stays, these never become one again. In 300 steps an MNIST run grew by 100 MB.
    """

    def __init__(self) -> None:
        self._room: Tensor | None = None
        self._sizes: list[int] = []
        self._used = 0
        self._waiting: list[Tensor] = []

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._sizes) + len(self._waiting)

    def append(self, batch: Tensor) -> None:
        """Note a batch, of any shape, until `gather` brings it to the others."""
        self._waiting.append(batch.detach().clone())

    def gather(self) -> None:
        """Bring what has been appended to the others: one by one would take five times as long."""
        batches, self._waiting = self._waiting, []
        if batches:
            self.extend(torch.cat([b.flatten() for b in batches]), [b.numel() for b in batches])

    def extend(self, numbers: Tensor, sizes: Sequence[int]) -> None:
        """Note several batches of these sizes, (sum of sizes,)."""
        self.gather()
        end, room = self._used + len(numbers), self._room
        dtype = numbers.dtype if room is None else torch.promote_types(room.dtype, numbers.dtype)
        if room is None or end > len(room) or dtype != room.dtype:
            with torch.inference_mode(False):
                self._room = torch.empty(max(2 * end, 4096), dtype=dtype, device=numbers.device)
                if room is not None:
                    self._room[: self._used] = room[: self._used]
        self._room[self._used : end] = numbers
        self._used = end
        self._sizes += sizes

    def together(self) -> Tensor:
        """All numbers, (N,)."""
        self.gather()
        return torch.empty(0) if self._room is None else self._room[: self._used]

    def each(self) -> list[Tensor]:
        """The batches one by one, flat, on the CPU."""
        numbers = self.together().cpu()
        return list(numbers.split(self._sizes)) if self._sizes else []


class Kept:
    """Copies of the first batches and of late ones, at most 64 MiB of each."""

    def __init__(self) -> None:
        self.early: list[KeptBatch] = []
        self.late: deque[KeptBatch] = deque(maxlen=_LATE)
        self.prints = Batches()  # fingerprints of the training batches, in turn
        self.labels = Batches()
        self._bytes = self._samples = self._printed = 0
        self._unprinted: list[Tensor] = []  # batches whose fingerprints are taken together

    @property
    def batches(self) -> list[KeptBatch]:
        return [*self.early, *self.late]

    def take(self, call: Call, inputs: Any, targets: Any, due: bool) -> None:
        """Note a batch; late ones are copied, the rest is gathered, where a probe is `due`."""
        rows = leading(call, inputs)
        if (
            isinstance(targets, Tensor)
            and targets.layout == torch.strided
            and not targets.is_nested
            and len(self.labels) * max(targets.numel(), 1) < _LABELS
        ):
            self.labels.append(targets)
            if due:
                self.labels.gather()
        if rows is not None and self._printed < _PRINTED:
            self._unprinted.append(samples.thinned(rows))
            self._printed += len(rows)
            if due:
                self.print()
        size = sum(t.numel() * t.element_size() for t in call.tensors())
        count = len(rows) if rows is not None else 1
        few = len(self.early) < _EARLY or self._samples < _EARLY_SAMPLES
        early = few and self._bytes + size <= _BYTES
        if early or (due and size <= _BYTES // _LATE):
            same = rows is not None and isinstance(inputs, Tensor) and inputs is not rows
            kept = KeptBatch(
                call.map(copied),
                copied(inputs) if same else rows if rows is None else copied(rows),
                mapped(targets, copied),
            )
            (self.early if early else self.late).append(kept)
            self._bytes += size if early else 0
            self._samples += count if early else 0

    def print(self) -> None:
        """Take the fingerprints of the batches since the last call."""
        batches, self._unprinted = self._unprinted, []
        if len({(batch.shape[1:], batch.dtype) for batch in batches}) > 1:
            for batch in batches:
                self.prints.append(samples.fingerprints(batch))
        elif batches:
            prints = samples.fingerprints(torch.cat(batches))
            self.prints.extend(prints, [len(batch) for batch in batches])

    def class_counts(self, task: Task) -> Tensor | None:
        """How often each class came, (classes,); None where there are none."""
        if task.kind not in ("classes", "binary") or not self.labels:
            return None
        labels = samples.labels_of(self.labels.together(), task).cpu()
        return torch.bincount(labels[labels >= 0], minlength=task.classes or 2)

    def rarest(self, task: Task) -> list[int]:
        """The classes, 64 at most, that training has least samples of, the rarest first."""
        counts = self.class_counts(task)
        return [] if counts is None else counts.argsort(stable=True)[:_RAREST].tolist()

    def clear(self) -> None:
        self.early.clear()
        self.late.clear()


def leading(call: Call, inputs: Any) -> Tensor | None:
    """The tensor that holds the samples: the inputs themselves, or the first the model took."""
    return rows_of(inputs) if rows_of(inputs) is not None else next(iter(call.tensors()), None)


def rows_of(inputs: Any) -> Tensor | None:
    tensor = first_tensor(inputs) if isinstance(inputs, Tensor | list | tuple | dict) else None
    return tensor if tensor is not None and tensor.dim() else None


def copied(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()
