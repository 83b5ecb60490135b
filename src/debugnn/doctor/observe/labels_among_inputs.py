"""Labels that a model is called with, where it computes its own loss and the loop hands over none.

The gradient of a cross-entropy tells which labels it compares: it is the softmax of the scores less
one at the label. A tensor of integers among the arguments whose cross-entropy has this gradient
holds the labels; a causal language model compares each position with the next symbol.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.doctor.observe.calls import Call, first_tensor, is_plain

_IGNORED = -100  # the label of what is not scored, as in PyTorch
_DIFFERENT = (
    0.3  # largest angle between two equal gradients (radians); smoothed labels turn them by 0.1
)


@dataclass(frozen=True)
class LabelsAmongInputs:
    """Where the labels are, and which of them the loss leaves out.

    Attributes:
        place: of the tensor among the call's.
        shift: positions from an output to the symbol that is its label: 0 or 1.
        left_out: labels that are not scored, beside negative ones.
    """

    place: int
    shift: int
    left_out: tuple[int, ...]

    def of(self, call: Call) -> Tensor | None:
        """Return the labels of a call, −100 where none is scored; None where there are none."""
        tensors = call.tensors()
        if self.place >= len(tensors) or tensors[self.place].is_floating_point():
            return None
        labels = _shifted(tensors[self.place], self.shift)
        left_out = labels < 0
        for label in self.left_out:
            left_out = left_out | (labels == label)
        return labels.masked_fill(left_out, _IGNORED)


def find_labels(call: Call, outputs: Any, gradient: Tensor | None) -> LabelsAmongInputs | None:
    """Return which of the arguments holds the labels that a loss compares the outputs with.

    Args:
        call: how the model was called.
        outputs: of this call, scores (B, …, classes).
        gradient: of the loss with respect to the scores; None where it is not known.
    """
    scores = first_tensor(outputs)
    if scores is None or gradient is None or scores.shape != gradient.shape or scores.dim() < 2:
        return None
    rows = scores.detach().reshape(-1, scores.shape[-1]).float()
    pulls = gradient.reshape(rows.shape).float()
    scored = (pulls != 0).any(dim=1)
    if not scored.any() or not torch.isfinite(pulls).all():
        return None
    for place, tensor in enumerate(call.tensors()):
        if tensor.is_floating_point() or not is_plain(tensor) or tensor.dtype == torch.bool:
            continue
        if tensor.shape != scores.shape[:-1]:
            continue
        for shift in (0, 1) if tensor.dim() > 1 else (0,):
            labels = _shifted(tensor, shift).reshape(-1).long()
            if _is_pulled_to(rows, pulls, scored, labels):
                unscored, compared = labels[~scored].unique(), labels[scored].unique()
                if torch.isin(unscored, compared).any():
                    continue  # something else tells what is left out
                left_out = tuple(label for label in unscored.tolist() if label >= 0)
                return LabelsAmongInputs(place, shift, left_out)
    return None


def _shifted(labels: Tensor, shift: int) -> Tensor:
    """Return labels (B, T) at the position before them; nothing is scored at the last one."""
    if not shift:
        return labels
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], _IGNORED)], dim=1)


def _is_pulled_to(rows: Tensor, pulls: Tensor, scored: Tensor, labels: Tensor) -> bool:
    """Return whether a gradient is that of the cross-entropy of labels, but for a factor."""
    rows, pulls, labels = rows[scored], pulls[scored], labels[scored]
    if (labels < 0).any() or (labels >= rows.shape[1]).any():
        return False
    own = rows.softmax(dim=1) - F.one_hot(labels, rows.shape[1])
    size = torch.linalg.vector_norm(own) * torch.linalg.vector_norm(pulls)
    return bool(1 - (own * pulls).sum() / size < _DIFFERENT**2 / 2)
