"""Nearest neighbours and ridge regression: what can be learnt from the data, and how sets differ.

All functions take inputs (N, …), of which row i belongs to target i. None draws a random number.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.doctor.observe.samples import flat
from debugnn.doctor.observe.task import Task, labels_by_entry

_NEIGHBOURS = 5
_RIDGE = 0.1  # penalty, of the kernel's mean diagonal
_TOKENS = 512  # kinds of tokens that are told apart
_PLACES = 256  # most places of maps of labels, evenly spaced
_KINDS = 6  # most classes of such labels that are told from the others
_COMPARED = 300  # samples of each set that are told apart

# Samples below which a model says nothing.
_LEAST_FOR_SKILL = 60
_LEAST_FOR_TRANSFER = 30
_LEAST_FOR_SHIFT = 20
_LEAST_FOR_SCALE = 8
_LEAST_OF_CLASS = 4  # fewest samples for the recall of a class


def features(inputs: Tensor, most: int) -> Tensor:
    """Return what simple models are given, (N, features) in float64.

    Numbers are taken as they are, flat. Of tokens it is how often each occurs, and where; beyond
    512 kinds they are folded.
    """
    if inputs.is_floating_point():
        return flat(inputs, most)
    rows = flat(inputs, most).long().clamp_min(0) % _TOKENS
    kinds = int(rows.max()) + 1 if rows.numel() else 1
    hot = F.one_hot(rows, kinds).double()
    counts = hot.sum(dim=1)
    return counts if hot[0].numel() > 4 * most else torch.cat([counts, hot.flatten(1)], dim=1)


class Predictions(NamedTuple):
    """What the better simple model makes of samples that it was not fitted to."""

    skill: float  # 0 is the best constant predictor, 1 is perfect
    values: Tensor  # (kept samples, columns): values, or shares of the classes
    rows: Tensor  # indices of the samples, without those that are not finite or have no label


def predictions(inputs: Tensor, targets: Tensor, task: Task) -> Predictions | None:
    """Return what the better simple model predicts. Two folds, the samples taken in turn.

    None of too few samples.
    """
    rows = features(inputs, 512)
    few = len(rows) < _LEAST_FOR_SKILL
    if task.kind == "unknown" or targets.shape[:1] != inputs.shape[:1] or few:
        return None
    index = torch.arange(len(rows))
    if task.kind == "values":
        wanted = targets.detach().cpu().double().reshape(len(rows), -1)
    else:
        labels = task.labels(targets).cpu()
        if len(labels) != len(rows):
            return None
        given = labels >= 0  # a loss leaves the others out
        if given.sum() < _LEAST_FOR_SKILL:
            return None
        rows, index, wanted = rows[given], index[given], F.one_hot(labels[given]).double()
    finite = torch.isfinite(rows).all(dim=1)
    rows, index, wanted = standardised(rows[finite]), index[finite], wanted[finite]
    folds = torch.arange(len(rows)) % 2
    guesses = {"neighbours": torch.zeros_like(wanted), "ridge": torch.zeros_like(wanted)}
    for fold in (0, 1):
        held, kept = folds == fold, folds != fold
        guesses["neighbours"][held] = _neighbours(rows[kept], wanted[kept], rows[held])
        guesses["ridge"][held] = _ridge(rows[kept], wanted[kept], rows[held])
    values = task.kind == "values"
    found = [Predictions(_skill(g, wanted, values), g, index) for g in guesses.values()]
    return max(found, key=lambda predicted: predicted.skill)


def simple_skill(inputs: Tensor, targets: Tensor, task: Task) -> float | None:
    """Return the skill of `predictions`, None without any."""
    found = predictions(inputs, targets, task)
    return None if found is None else found.skill


def skill_of_maps(inputs: Tensor, targets: Tensor, task: Task) -> float | None:
    """Return R² of the better simple model at labels of which each sample has many.

    Of the share of the variance at each place, on samples that a model was not fitted to. None of
    samples with one label each, or of too few.
    """
    labels = labels_by_entry(task, targets)
    if labels is None or len(labels) != len(inputs) or len(inputs) < _LEAST_FOR_SKILL:
        return None
    places = labels[:, :: -(-labels.shape[1] // _PLACES)].cpu()
    kinds = range(1, min(task.size, _KINDS))
    wanted = torch.cat([(places == kind).double() for kind in kinds], dim=1)
    rows = features(inputs, 512)
    finite = torch.isfinite(rows).all(dim=1)
    rows, wanted = standardised(rows[finite]), wanted[finite]
    folds = torch.arange(len(rows)) % 2
    guesses = [torch.zeros_like(wanted), torch.zeros_like(wanted)]
    for fold in (0, 1):
        held, kept = folds == fold, folds != fold
        guesses[0][held] = _neighbours(rows[kept], wanted[kept], rows[held])
        guesses[1][held] = _ridge(rows[kept], wanted[kept], rows[held])
    return max(_skill(guess, wanted, values=True) for guess in guesses)


def recognition(
    train: Tensor,
    targets: Tensor,
    other: Tensor | None,
    wanted: Tensor | None,
    task: Task,
    classes: Sequence[int],
) -> dict[int, float]:
    """Return how well simple models that give all classes the same weight recognise some classes.

    Nearest neighbours and ridge regression, fitted to training samples; of both the better.

    Args:
        train: training inputs.
        targets: their targets.
        other: inputs of another set; None to ask each half of the training samples, of the model
            that is fitted to the other half.
        wanted: the other set's targets.
        classes: those that are asked for.

    Returns:
        Class → the lower one of its recall and its precision; without classes of fewer than
        `_LEAST_OF_CLASS` samples. {} of too few samples, and where a sample has several labels.
    """
    if task.kind not in ("classes", "binary") or len(train) < _LEAST_FOR_SKILL:
        return {}
    known = task.labels(targets).cpu()
    asked_for = known if other is None or wanted is None else task.labels(wanted).cpu()
    rows = features(train if other is None else torch.cat([train, other]), 512)
    if len(rows) != len(known) + (0 if other is None else len(asked_for)):
        return {}
    both = known if other is None else torch.cat([known, asked_for])
    usable = torch.isfinite(rows).all(dim=1) & (both >= 0) & (both < task.size)
    kept = torch.arange(len(rows)) < len(known)
    rows = standardised(rows)
    halves = torch.arange(len(rows)) % 2 if other is None else kept.long()
    guesses = [torch.zeros(len(rows), task.size, dtype=torch.float64) for _ in range(2)]
    for asked in (0, 1) if other is None else (0,):
        fit, ask = usable & (halves != asked), halves == asked
        for guess, of_asked in zip(guesses, _even(rows, both, fit, ask, task.size), strict=True):
            guess[ask] = of_asked
    judged = usable if other is None else usable & ~kept
    found: dict[int, float] = {}
    for guess in guesses:
        said, true = guess.argmax(dim=1)[judged], both[judged]
        for c in classes:
            count = int((true == c).sum())
            if count >= _LEAST_OF_CLASS:
                share = int(((said == c) & (true == c)).sum()) / max(count, int((said == c).sum()))
                found[c] = max(share, found.get(c, 0.0))
    return found


def informedness(
    inputs: Tensor, labels: Tensor, halves: Sequence[Tensor], classes: Sequence[int]
) -> dict[int, list[float]]:
    """Return how well simple models that give all classes the same weight pick out some classes.

    Each half is asked of the models that are fitted to the other half; of both the better, by the
    lower one of its two values.

    Args:
        inputs: (N, …).
        labels: (N,), whole numbers from 0.
        halves: which samples belong to the one and to the other, (N,) each.
        classes: those that are asked for.

    Returns:
        Class → for either half, its recall minus the share of the other samples that are taken for
        it (Youden's J): 0 of guessing, 1 at best. {} of too few samples, and where an input is not
        finite.
    """
    rows = features(inputs, 512)
    if len(rows) < _LEAST_FOR_SKILL or not torch.isfinite(rows).all():
        return {}
    rows, size = standardised(rows), int(labels.max()) + 1
    said = torch.empty(2, len(rows), dtype=torch.long)
    for ask, fit in zip(halves, reversed(halves), strict=True):
        for place, guess in enumerate(_even(rows, labels, fit, ask, size)):
            said[place, ask] = guess.argmax(dim=1)
    found: dict[int, list[float]] = {}
    for c in classes:
        values = [
            [
                (own[h & (labels == c)] == c).double().mean().item()
                - (own[h & (labels != c)] == c).double().mean().item()
                for h in halves
            ]
            for own in said
        ]
        found[c] = max(values, key=min)
    return found


def _even(
    rows: Tensor, labels: Tensor, fit: Tensor, ask: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Return what neighbours and ridge regression, weighing all classes alike, say of some rows.

    Args:
        rows: (N, features).
        labels: (N,).
        fit: rows that they are fitted to, (N,).
        ask: rows that they are asked for.
        size: number of classes.

    Returns:
        Two scores of the classes, (asked rows, size) each.
    """
    counts = torch.bincount(labels[fit], minlength=size).clamp_min(1)
    weights = (1 / counts[labels[fit]]).double()
    weights = weights / weights.mean()
    hot = F.one_hot(labels[fit], size).double()
    return (
        _neighbours(rows[fit], hot * weights[:, None], rows[ask]),
        _ridge(rows[fit], hot, rows[ask], weights),
    )


def transfer_skill(
    train: Tensor, targets: Tensor, other: Tensor, wanted: Tensor, task: Task
) -> float | None:
    """Return the skill on `other` samples of the better simple model, fitted to training samples.

    Args:
        train: training inputs.
        targets: their targets.
        other: inputs of another set.
        wanted: their targets.

    Returns:
        As `simple_skill`; None of too few samples, or where an input is not finite.
    """
    both = features(torch.cat([train, other]), 512)
    rows, asked = both[: len(train)], both[len(train) :]
    if task.kind == "unknown" or len(rows) < _LEAST_FOR_TRANSFER:
        return None
    if task.kind == "values":
        known = targets.detach().cpu().double().reshape(len(rows), -1)
        true = wanted.detach().cpu().double().reshape(len(asked), -1)
    else:
        size = task.classes or 2
        labels = [task.labels(t).cpu() for t in (targets, wanted)]
        if len(labels[0]) != len(rows) or len(labels[1]) != len(asked):
            return None
        given = [own >= 0 for own in labels]  # a loss leaves the others out
        rows, asked = rows[given[0]], asked[given[1]]
        if len(rows) < _LEAST_FOR_TRANSFER or not len(asked):
            return None
        known, true = (
            F.one_hot(own[kept], size).double() for own, kept in zip(labels, given, strict=True)
        )
    if not (torch.isfinite(rows).all() and torch.isfinite(asked).all()):
        return None
    mean, deviations = rows.mean(dim=0), rows.std(dim=0, correction=0)
    deviations = torch.where(deviations > 0, deviations, 1.0)
    rows, asked = (rows - mean) / deviations, (asked - mean) / deviations
    guesses = (_neighbours(rows, known, asked), _ridge(rows, known, asked))
    return max(_skill(guess, true, task.kind == "values") for guess in guesses)


def _skill(guess: Tensor, wanted: Tensor, values: bool) -> float:
    if values:
        variance = (wanted - wanted.mean(dim=0)).square().mean()
        return (1 - (guess - wanted).square().mean() / variance.clamp_min(1e-30)).item()
    labels = wanted.argmax(dim=1)
    base = wanted.mean(dim=0).max().item()
    accuracy = (guess.argmax(dim=1) == labels).double().mean().item()
    return (accuracy - base) / (1 - base) if base < 1 else 0.0


def standardised(rows: Tensor) -> Tensor:
    """Return rows (N, features) with mean 0 and standard deviation 1; constant features with 0."""
    if not len(rows):
        return rows
    deviations = rows.std(dim=0, correction=0)
    return (rows - rows.mean(dim=0)) / torch.where(deviations > 0, deviations, 1.0)


def _neighbours(rows: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
    """Return the mean target of the five nearest rows, for each row asked for."""
    nearest = torch.cdist(asked, rows).topk(min(_NEIGHBOURS, len(rows)), largest=False).indices
    return wanted[nearest].mean(dim=1)


def _ridge(rows: Tensor, wanted: Tensor, asked: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return ridge regression's predictions, solved in its dual form (N, N).

    Args:
        weights: of the rows, (N,); all count alike without.
    """
    centre = wanted.mean(dim=0)
    if weights is not None:
        centre = (wanted * weights[:, None]).sum(dim=0) / weights.sum()
    kernel = rows @ rows.T
    penalty = _RIDGE * kernel.diagonal().mean() + 1e-9
    kernel.diagonal().add_(penalty if weights is None else penalty / weights)
    return centre + asked @ (rows.T @ torch.linalg.solve(kernel, wanted - centre))


# --- training against validation ------------------------------------------------------------------


def scale_shift(train: Tensor, other: Tensor) -> float | None:
    """Return how far the features' scale has moved.

    The largest of: the features' median of |Δmean| / std, their median of |log₂ ratio of stds|, and
    |log₂ ratio| of the standard deviations of all values. About 0.1 for two halves of one sample;
    1 where half of the features are a standard deviation off or twice as wide. None of too few
    samples.
    """
    first, second = flat(train), flat(other)
    if first.shape[1] != second.shape[1] or len(second) < _LEAST_FOR_SCALE:
        return None
    deviations = first.std(dim=0, correction=0)
    varying = deviations > 1e-3 * deviations.max().clamp_min(1e-30)
    if not varying.any():
        return None
    first, second, deviations = first[:, varying], second[:, varying], deviations[varying]
    moved = ((second.mean(dim=0) - first.mean(dim=0)) / deviations).abs()
    wider = (second.std(dim=0, correction=0).clamp_min(1e-12) / deviations).log2().abs()
    overall = (second.std(correction=0) / first.std(correction=0)).log2().abs()
    return max(moved.median().item(), wider.median().item(), overall.item())


def told_apart(train: Tensor, other: Tensor) -> float | None:
    """Return the skill of simple models at telling two sets of inputs apart: 0 never, 1 always.

    Half of the proxy A-distance (Ben-David et al. 2007, "Analysis of representations for domain
    adaptation"). None of too few samples, or where an input is not finite.
    """
    size = min(len(train), len(other), _COMPARED)
    if train.shape[1:] != other.shape[1:] or size < _LEAST_FOR_SHIFT:
        return None
    both = features(torch.cat([train, other]), 256)
    first, second = both[: len(train)], both[len(train) :]
    pick = [torch.linspace(0, len(rows) - 1, size).long() for rows in (first, second)]
    rows = torch.stack([first[pick[0]], second[pick[1]]], dim=1).reshape(2 * size, -1)
    if not torch.isfinite(rows).all():
        return None
    labels = torch.arange(2 * size) % 2
    # Neighbouring rows are of different sets: folds of pairs keep both sets balanced.
    folds = torch.arange(2 * size) // 2 % 2
    wanted, rows = F.one_hot(labels).double(), standardised(rows)
    right = 0.0
    for fold in (0, 1):
        held, kept = folds == fold, folds != fold
        guess = _ridge(rows[kept], wanted[kept], rows[held])
        near = _neighbours(rows[kept], wanted[kept], rows[held])
        scores = [(g.argmax(dim=1) == labels[held]).double().mean().item() for g in (guess, near)]
        right += max(scores) / 2
    return 2 * right - 1


def matched(train: Tensor, other: Tensor) -> Tensor:
    """Return `other` brought to the training inputs' mean and deviation, feature by feature."""
    axes = _feature_axes(train)
    mean, std = train.mean(dim=axes, keepdim=True), train.std(dim=axes, keepdim=True)
    own_mean, own_std = other.mean(dim=axes, keepdim=True), other.std(dim=axes, keepdim=True)
    return (other - own_mean) / own_std.clamp_min(1e-8) * std + mean


def mean_and_deviation(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return what standardises inputs, broadcastable to them: per channel, or per feature.

    The deviation of constant features is 1.
    """
    axes = _feature_axes(inputs)
    mean, std = inputs.mean(dim=axes, keepdim=True), inputs.std(dim=axes, keepdim=True)
    return mean, torch.where(std > 1e-12, std, torch.ones_like(std))


def _feature_axes(inputs: Tensor) -> tuple[int, ...]:
    """Return the axes to average over: of (B, features), (B, T, features) or (B, C, …)."""
    if inputs.dim() == 2:
        return (0,)
    if inputs.dim() == 3:
        return (0, 1)
    return (0, *range(2, inputs.dim()))


def renamed_skill(confusion: Tensor) -> tuple[float, bool]:
    """Return the skill under the best renaming of the classes, and whether it renames any.

    From the mean recall of the classes that come: 0 is that of guessing, 1 is perfect.

    Args:
        confusion: counts (true class, predicted class).
    """
    best = confusion.argmax(dim=1)
    distinct = len(best.unique()) == len(best)
    counts = confusion.sum(dim=1)
    recalls = confusion.max(dim=1).values[counts > 0] / counts[counts > 0]
    same = bool((best == torch.arange(len(best))).all())
    if len(recalls) < 2:
        return 0.0, distinct and not same
    chance = 1 / len(recalls)
    return (recalls.mean().item() - chance) / (1 - chance), distinct and not same
