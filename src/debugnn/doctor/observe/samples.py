"""What samples tell without the network: scale, balance, repetitions, telling features.

All functions take inputs (N, …), of which row i belongs to target i. None draws a random number.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from debugnn.doctor.evidence import DataFacts
from debugnn.doctor.observe.feature_shares import (
    shares_of_classes,
    shares_of_ranks,
    shares_of_values,
)
from debugnn.doctor.observe.task import Task

FEATURES = 1024  # most features of a sample that are examined, evenly spaced
_FINGERPRINTED = 256  # features that a fingerprint is made of
_RANKED = 64  # features whose share is kept, at most
_BATCH = 4  # fewest samples of a batch whose classes are counted
_BATCHES = 8  # fewest such batches
_OF_CLASS = 20  # fewest samples of a class for a share
_IGNORED = -100  # PyTorch's own mark of a target that is left out

_TARGETS = 2**16  # most targets of which tenths are taken
_LEAST_FEATURES = {"classes": 2, "values": 3}  # columns of which one can stand out
_ROUNDING = 1e-9  # a deviation below it, relative to the inputs' root mean square, is rounding


def flat(inputs: Tensor, features: int = FEATURES) -> Tensor:
    """Return inputs as (N, at most `features`) in float64 on the CPU, evenly thinned."""
    return _thin(inputs, features).cpu().double()


def _thin(inputs: Tensor, features: int) -> Tensor:
    return inputs.detach().reshape(len(inputs), -1)[:, :: _spacing(inputs, features)]


def _spacing(inputs: Tensor, features: int) -> int:
    """Return the distance between two features that are taken, to have at most `features`."""
    return max(1, -(-inputs[0].numel() // features))


# --- fingerprints ---------------------------------------------------------------------------------


@cache
def _fingerprint_weights(size: int) -> Tensor:
    return torch.cos(torch.arange(1, size + 1, dtype=torch.float64) ** 1.5)


@lru_cache(maxsize=16)
def _places(shape: torch.Size, spacing: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return the indices along each axis of every `spacing`-th value of a sample."""
    taken = torch.arange(0, shape.numel(), spacing, device=device)
    return torch.unravel_index(taken, shape)


def thinned(inputs: Tensor) -> Tensor:
    """Return a copy of the features that `fingerprints` looks at: theirs are the inputs'."""
    if inputs.is_contiguous() or inputs.dim() < 2:
        return _thin(inputs, _FINGERPRINTED).clone()
    # `_thin` would copy the whole batch, to bring channels-last images into the order of rows.
    places = _places(inputs.shape[1:], _spacing(inputs, _FINGERPRINTED), inputs.device)
    index: tuple[slice | Tensor, ...] = (slice(None), *places)
    return inputs.detach()[index]


def fingerprints(inputs: Tensor) -> Tensor:
    """Return a number for each sample, equal for equal samples and hardly ever for others.

    Returns:
        (N,) in float64.
    """
    rows = flat(inputs, _FINGERPRINTED)
    weights = _fingerprint_weights(rows.shape[1])
    # A matrix product would round by the batch's size. What the sum rounds is cut off.
    return (rows * weights).sum(dim=1).round(decimals=9)


def first_of_each(inputs: Tensor) -> Tensor:
    """Return the index of the first of each group of equal samples, (groups,)."""
    seen: dict[float, int] = {}
    for index, value in enumerate(fingerprints(inputs).tolist()):
        seen.setdefault(value, index)
    return torch.tensor(sorted(seen.values()), device=inputs.device)


def repeats(prints: Sequence[Tensor]) -> tuple[int, float]:
    """Return the number of distinct samples, and how often each came on average.

    Args:
        prints: fingerprints of each batch.
    """
    if not prints:
        return 0, 0.0
    every = torch.cat(list(prints))
    distinct = len(every.unique())
    return distinct, len(every) / max(distinct, 1)


def came_again(prints: Sequence[Tensor]) -> tuple[int, int]:
    """Return how many samples came again, and how many of these came after another sample.

    After another than at their last time: the one that had their place in the batch before.

    Args:
        prints: fingerprints of each batch, in the order of the training.
    """
    again = after_another = 0
    before: dict[float, float] = {}
    for last, batch in pairwise(prints):
        for value, earlier in zip(batch.tolist(), last.tolist(), strict=False):
            if value in before:
                again += 1
                after_another += before[value] != earlier
            before[value] = earlier
    return again, after_another


def conflicts(prints: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[float, int, float]:
    """Compare the labels of samples that came more than once.

    Args:
        prints: fingerprints of each batch's samples.
        labels: the labels of each batch.

    Returns:
        The share of the repeated samples that had more than one label, the number of repeated
        samples, and the share of the batches in which a sample occurs twice.
    """
    pairs = [(p, t) for p, t in zip(prints, labels, strict=False) if p.shape == t.shape]
    if not pairs:
        return 0.0, 0, 0.0
    within = sum(len(p.unique()) < len(p) for p, _ in pairs) / len(pairs)
    rows = torch.stack([torch.cat(part).double() for part in zip(*pairs, strict=True)], dim=1)
    samples, times = rows[:, 0].unique(return_counts=True)
    again = samples[times > 1]
    kinds, labels_each = rows.unique(dim=0)[:, 0].unique(return_counts=True)
    several = kinds[labels_each > 1]
    return len(several) / max(len(again), 1), len(again), within


def one_class_batches(
    prints: Sequence[Tensor], labels: Sequence[Tensor]
) -> tuple[float, float, float]:
    """Return how often a batch holds one class alone.

    Of batches with a label for each sample, and four samples or more.

    Args:
        prints: fingerprints of each batch's samples.
        labels: class indices of each batch.

    Returns:
        The share of these batches; the share that batches drawn at random would have; and how many
        batches of one class follow each other, on average.
    """
    pairs = zip(prints, labels, strict=False)
    batches = [t for p, t in pairs if p.shape == t.shape and len(t) >= _BATCH]
    if len(batches) < _BATCHES:
        return 0.0, 0.0, 0.0
    alone = [int(t[0]) if bool((t == t[0]).all()) else None for t in batches]
    count = sum(kind is not None for kind in alone)
    begun = sum(k is not None and k != before for before, k in pairwise([None, *alone]))
    _, counts = torch.cat(batches).unique(return_counts=True)
    shares = counts.double() / counts.sum()
    size = sum(map(len, batches)) / len(batches)
    return count / len(batches), (shares**size).sum().item(), count / max(begun, 1)


def overlap_of_classes(found: Tensor, labels: Tensor) -> dict[int, float]:
    """Return the share of each class's samples that were found, of classes with 20 or more.

    Args:
        found: (N,), whether each sample was.
        labels: (N,), class indices.
    """
    shares = {}
    for label in labels.unique().tolist():
        own = found[labels == label]
        if len(own) >= _OF_CLASS:
            shares[int(label)] = own.double().mean().item()
    return shares


def distinct_values(inputs: Tensor) -> float:
    """Return the number of a feature's distinct values over that of distinct samples, the median
    over the features: 1 of continuous measurements, near 0 of categories and grey values."""
    rows = flat(inputs[first_of_each(inputs)])
    counts = [len(column.unique()) / max(len(rows), 1) for column in rows.T]
    return torch.tensor(counts, dtype=torch.float64).median().item()


# --- description ----------------------------------------------------------------------------------


def data_facts(inputs: Tensor, targets: Tensor | None, task: Task) -> DataFacts:
    """Describe the inputs' scale, the targets' balance, and how much features tell of the targets.

    Args:
        targets: None where there are no targets for these rows.
    """
    facts = DataFacts(samples=len(inputs), axes=inputs.dim(), floating=inputs.is_floating_point())
    rows = flat(inputs)
    finite = torch.isfinite(rows).all(dim=1)
    facts.nonfinite_samples = int((~finite).sum())
    if facts.nonfinite_samples == len(rows) > 1:
        broken = (~torch.isfinite(rows)).all(dim=0).nonzero().flatten()
        facts.nonfinite_features = (broken * _spacing(inputs, FEATURES)).tolist()
    if facts.floating and finite.sum() > 1:
        _describe_scale(facts, rows[finite])
    if targets is not None and targets.numel() and not targets.is_complex():
        values = targets.detach().double().flatten()
        facts.target_low, facts.target_high = (end.item() for end in values.aminmax())
        facts.target_tenth, facts.target_nine_tenths = middle_of(values)
    if targets is None or task.kind == "unknown":
        return facts
    if task.kind == "values":
        _describe_values(facts, inputs, rows, targets, finite)
    else:
        _describe_labels(facts, inputs, rows, task.labels(targets), task.classes or 2, finite)
    return facts


def middle_of(targets: Tensor) -> tuple[float, float]:
    """Return the value that a tenth of the targets are below, and that nine tenths are below."""
    values = targets.double().flatten()
    values = values[:: -(-values.numel() // _TARGETS)].cpu()
    return values.quantile(0.1).item(), values.quantile(0.9).item()


def _describe_scale(facts: DataFacts, rows: Tensor) -> None:
    deviations = rows.std(dim=0, correction=0)
    facts.rms = rows.square().mean().sqrt().item()
    facts.mean = rows.mean().item()
    facts.std = rows.std(correction=0).item()
    facts.largest_std = deviations.max().item()
    varying = deviations[deviations > _ROUNDING * facts.rms]
    if len(varying) > 1:
        low, high = varying.quantile(0.1), varying.max()
        facts.feature_spread = (high / low).item() if low > 0 else None


def _describe_labels(
    facts: DataFacts, inputs: Tensor, rows: Tensor, labels: Tensor, classes: int, finite: Tensor
) -> None:
    outside = (labels < 0) | (labels >= classes)
    # A label that a loss takes without complaint (255, say) may be the user's own mark: of a class
    # too many it would have raised an error.
    impossible = labels[outside & (labels != _IGNORED)]
    facts.out_of_range = len(impossible)
    facts.void_labels = len(impossible.unique()) == 1
    counts = torch.bincount(labels[~outside], minlength=classes)
    facts.class_counts = dict(enumerate(counts.tolist()))
    # Of sequences no shares: a single time step may decide the class by right.
    stands_out = rows.shape[1] >= _LEAST_FEATURES["classes"] and inputs.dim() in (2, 4)
    if labels.numel() == len(finite) and facts.floating and stands_out:
        usable = ~outside.cpu() & finite
        _rank(facts, shares_of_classes(rows[usable], labels.cpu()[usable]), inputs)


def _describe_values(
    facts: DataFacts, inputs: Tensor, rows: Tensor, targets: Tensor, finite: Tensor
) -> None:
    values = targets.detach().cpu().double()
    facts.target_rms = values.square().mean().sqrt().item()
    facts.target_std = values.std(correction=0).item()
    column = values.reshape(len(values), -1)
    facts.target_kinds = len(column.unique())
    if column.shape[1] != 1 or len(values) != len(finite):
        return
    kinds, counts = column.unique(return_counts=True)
    facts.target_consecutive = bool((kinds == torch.arange(len(kinds))).all())
    facts.target_rarest = counts.min().item() / len(column)
    if facts.floating and inputs.dim() == 2 and inputs.shape[1] >= _LEAST_FEATURES["values"]:
        _rank(facts, shares_of_values(rows[finite], column[finite]), inputs)
        _note_rank_share(facts, inputs, rows[finite], column[finite])


def _note_rank_share(facts: DataFacts, inputs: Tensor, rows: Tensor, column: Tensor) -> None:
    by_ranks = shares_of_ranks(rows, column)
    if by_ranks is not None:
        facts.rank_share = by_ranks.max().item()
        facts.rank_feature = int(by_ranks.argmax()) * _spacing(inputs, FEATURES)


def describe_times(facts: DataFacts, inputs: Tensor, times: Tensor) -> None:
    """Note which feature goes with the time after which an event comes, or nothing more is known.

    Args:
        inputs: a table (N, features) of real numbers.
        times: (N,).
    """
    rows, column = flat(inputs), times.cpu().double()[:, None]
    finite = torch.isfinite(rows).all(dim=1) & torch.isfinite(column[:, 0])
    facts.target_kinds, facts.features = len(column.unique()), rows.shape[1]
    _note_rank_share(facts, inputs, rows[finite], column[finite])


def _rank(facts: DataFacts, shares: Tensor | None, inputs: Tensor) -> None:
    """Note the features with the largest shares, (features,), by their index in the flat input."""
    if shares is None:
        return
    ranked, order = shares.sort(descending=True)
    kept = min(max(len(ranked) // 4, 1) + 1, _RANKED)
    facts.feature_shares = ranked[:kept].tolist()
    facts.feature_order = (order[:kept] * _spacing(inputs, FEATURES)).tolist()
    facts.feature_share_median = ranked.median().item()
    facts.features = len(ranked)
