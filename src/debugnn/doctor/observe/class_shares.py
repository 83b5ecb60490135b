"""What outputs tell of classes whatever their shares are, and samples drawn to the same shares.

The share of a class in the training, a weight in the loss and a sampler shift what a network says
of the class by one number, in log-probability, and leave alone what it tells apart. Such a number
for each class undoes the shift (Saerens et al. 2002, doi:10.1162/089976602753284446; the post-hoc
logit adjustment of Menon et al. 2021, arXiv:2007.07314).
"""

from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.evidence import AdjustedFacts
from debugnn.doctor.observe.simple_models import informedness
from debugnn.doctor.observe.task import SOFTMAX, Task, log_probabilities

_CLASSES = 1024  # most classes that are examined; a language has more words
_SAMPLES = 2048  # most samples whose outputs are read, evenly spaced
_ROUNDS = (
    40  # rounds of the fit, each of which brings the classes' mean probabilities to their shares
)
_LEAST_OF_CLASS = 2  # fewest samples of each half for a class's share
_LEAST_SHARE = 1e-12  # smallest mean probability whose logarithm is taken


def adjusted_facts(
    task: Task, outputs: Any, targets: Tensor, inputs: Tensor | None
) -> AdjustedFacts | None:
    """Return how well outputs tell classes apart once the classes' shares are undone.

    The samples of each class are dealt out to two halves. The numbers that are added to the classes
    are fitted on one half and tried on the other.

    Args:
        task: how outputs and targets are read.
        outputs: of new samples.
        targets: their classes.
        inputs: the samples (N, …), None where each has several labels or they are not known.

    Returns:
        None of values, of too many classes, of fewer than two classes in both halves, and of
        outputs that are not finite.
    """
    if task.kind not in ("classes", "binary") or task.size > _CLASSES or task.link == SOFTMAX:
        return None
    scores, labels = log_probabilities(task, outputs, targets)
    if inputs is not None and len(inputs) != len(labels):
        inputs = None
    spacing = max(1, -(-len(labels) // _SAMPLES))
    scores, labels = scores[::spacing].cpu().double(), labels[::spacing].cpu()
    counts = torch.bincount(labels, minlength=task.size)
    known = (counts >= 2 * _LEAST_OF_CLASS).nonzero().flatten().tolist()
    if len(known) < 2 or not torch.isfinite(scores).all():
        return None
    half = _dealt_out(labels, counts)
    halves = (half == 0, half == 1)
    before, even = scores.argmax(dim=1), _tried(scores, labels, halves, True)
    natural = _tried(scores, labels, halves, False)
    facts = AdjustedFacts(samples=len(labels), counts={c: int(counts[c]) for c in known})
    expected = scores.softmax(dim=1).mean(dim=0)
    facts.expected = {c: expected[c].item() for c in known}
    for rows in halves:
        right = rows & (before == labels)
        wrong = (right & (natural != labels)).sum() / right.sum().clamp_min(1)
        facts.lost.append(wrong.item())
    for c in known:
        own = [rows & (labels == c) for rows in halves]
        facts.recalls[c] = [_share(before == c, rows) for rows in own]
        facts.recalls_after[c] = [_share(natural == c, rows) for rows in own]
        facts.precisions_after[c] = [_share(labels == c, rows & (natural == c)) for rows in halves]
    found = sum(_share(even == c, labels == c) for c in known) / len(known)
    facts.skill = (found - 1 / len(known)) / (1 - 1 / len(known))
    if inputs is not None:
        facts.told = informedness(inputs[::spacing], labels, halves, known)
    return facts


def _tried(scores: Tensor, labels: Tensor, halves: tuple[Tensor, Tensor], even: bool) -> Tensor:
    """Return the classes (N,) that are said of either half, adjusted by the other half."""
    said = torch.empty_like(labels)
    for rows, fit in zip(halves, reversed(halves), strict=True):
        said[rows] = (scores[rows] + adjustment(scores[fit], labels[fit], even)).argmax(dim=1)
    return said


def _share(which: Tensor, rows: Tensor) -> float:
    """Return the share of some rows of which something holds, 0 of no row."""
    return ((which & rows).sum() / rows.sum().clamp_min(1)).item()


def adjustment(scores: Tensor, labels: Tensor, even: bool) -> Tensor:
    """Return the numbers that bring the classes' mean probabilities to their shares.

    A class without a sample gets −∞.

    Args:
        scores: logarithms of probabilities (N, classes), up to a number for each sample.
        labels: (N,) class indices.
        even: each class counts as much as another; else as often as it occurs.

    Returns:
        (classes,), to be added to the scores.
    """
    counts = torch.bincount(labels, minlength=scores.shape[1])
    seen = counts > 0
    weights = 1.0 / counts[labels].double() if even else torch.ones(len(labels)).double()
    weights = weights / weights.sum()
    wanted = torch.bincount(labels, weights=weights, minlength=scores.shape[1])
    bias = torch.zeros(scores.shape[1], dtype=scores.dtype)
    bias[~seen] = -torch.inf
    for _ in range(_ROUNDS):
        shares = weights @ (scores + bias).softmax(dim=1)
        bias[seen] += (wanted[seen] / shares[seen].clamp_min(_LEAST_SHARE)).log()
    return bias


def _dealt_out(labels: Tensor, counts: Tensor) -> Tensor:
    """Return 0 or 1 for each sample (N,): those of a class in turn."""
    order = labels.argsort(stable=True)
    starts = counts.cumsum(dim=0) - counts
    half = torch.empty_like(labels)
    half[order] = (torch.arange(len(labels)) - starts[labels[order]]) % 2
    return half


def of_same_shares(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return samples of two sets in which each class is as frequent in one as in the other.

    Each class has as many samples in either result as in the set that has fewer of it. They are
    evenly spaced.

    Args:
        first: class indices of one set, (N,).
        second: of the other, (M,).

    Returns:
        Indices into the one and into the other, of the same number.
    """
    chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
    for c in first[first >= 0].unique().tolist():
        places = [(labels == c).nonzero().flatten() for labels in (first, second)]
        size = min(map(len, places))
        for rows, own in zip(chosen, places, strict=True):
            rows.append(own[torch.linspace(0, max(len(own) - 1, 0), size).long()])
    none = torch.empty(0, dtype=torch.long)
    one, other = (torch.cat([none, *rows]).sort().values for rows in chosen)
    return one, other


def in_order_of(wanted: Tensor, labels: Tensor) -> Tensor:
    """Return indices of samples whose classes follow each other as given.

    The samples of a class are taken in turn, again from the first one after the last.

    Args:
        wanted: class indices; those that no sample has are left out.
        labels: class indices of the samples, (N,).
    """
    places = {c: (labels == c).nonzero().flatten().tolist() for c in wanted.unique().tolist()}
    turns = {c: cycle(rows) for c, rows in places.items() if rows}
    return torch.tensor([next(turns[c]) for c in wanted.tolist() if c in turns], dtype=torch.long)
