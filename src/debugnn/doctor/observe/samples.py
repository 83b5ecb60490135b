"""What can be said of the data without the network: scale, balance, leaks, and train against test.

All functions take inputs (N, …), of which row i belongs to target i, and never draw a random
number.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.doctor.evidence import DataFacts
from debugnn.doctor.observe.task import Task

_FEATURES = 1024  # of wider inputs every so manieth feature is looked at
_NEIGHBOURS = 5
_RANKED = 64  # features whose share is kept, at most

# What a share of variance can be computed from.
_LEAST_SAMPLES = 30
_LEAST_OF_CLASS = 8  # of fewer samples every class's mean is close to them
_VARYING = 0.01  # share of samples that differ from the commonest value of a feature, at least


def flat(inputs: Tensor, features: int = _FEATURES) -> Tensor:
    """Inputs as (N, at most `features`) in float64, evenly thinned."""
    return _thinned(inputs, features).cpu().double()


def _thinned(inputs: Tensor, features: int) -> Tensor:
    return inputs.detach().reshape(len(inputs), -1)[:, :: _step(inputs, features)]


def _step(inputs: Tensor, features: int) -> int:
    """Every which feature of the flat inputs is taken, to have at most `features`."""
    return max(1, -(-inputs[0].numel() // features))


def features(inputs: Tensor, most: int) -> Tensor:
    """What simple models are given: the inputs, flat; of tokens, how often each occurs and where.

    Tokens beyond 512 kinds are folded.
    """
    if inputs.is_floating_point():
        return flat(inputs, most)
    rows = flat(inputs, most).long().clamp_min(0) % 512
    kinds = int(rows.max()) + 1 if rows.numel() else 1
    hot = F.one_hot(rows, kinds).double()
    counts = hot.sum(dim=1)
    return counts if hot[0].numel() > 4 * most else torch.cat([counts, hot.flatten(1)], dim=1)


@cache
def _weights(size: int) -> Tensor:
    return torch.cos(torch.arange(1, size + 1, dtype=torch.float64) ** 1.5)


_PRINTED = 256  # features


def thinned(inputs: Tensor) -> Tensor:
    """A copy of what `fingerprints` looks at: they are the same as the inputs'."""
    return _thinned(inputs, _PRINTED).clone()


def fingerprints(inputs: Tensor) -> Tensor:
    """A number a sample, equal for equal samples and hardly ever for others. float64 (N,)."""
    rows = flat(inputs, _PRINTED)
    weights = _weights(rows.shape[1])
    # Not a matrix product, which rounds by the batch's size; what is left is cut off.
    return (rows * weights).sum(dim=1).round(decimals=9)


def describe(inputs: Tensor, targets: Tensor | None, task: Task) -> DataFacts:
    """Scale of the inputs, balance of the targets, and what gives them away."""
    facts = DataFacts(samples=len(inputs), axes=inputs.dim(), floating=inputs.is_floating_point())
    rows = flat(inputs)
    finite = torch.isfinite(rows)
    facts.nonfinite_samples = int((~finite.all(dim=1)).sum())
    good = finite.all(dim=1)
    rows = rows[good]
    if facts.floating and len(rows) > 1:
        deviations = rows.std(dim=0, correction=0)
        facts.rms = rows.square().mean().sqrt().item()
        facts.mean = rows.mean().item()
        facts.std = rows.std(correction=0).item()
        facts.largest_std = deviations.max().item()
        varying = deviations[deviations > 1e-9 * facts.rms]
        if len(varying) > 1:
            low, high = varying.quantile(0.1), varying.max()
            facts.feature_spread = (high / low).item() if low > 0 else None
    if targets is None or task.kind == "unknown":
        return facts
    if task.kind == "values":
        _describe_values(facts, rows, targets, good, inputs)
        return facts
    labels = labels_of(targets, task)
    outside = (labels < 0) | (labels >= (task.classes or 2))
    # −100 is PyTorch's own mark for what is to be left out; another value that a loss takes without
    # complaint (255) is somebody's: a class too many would have raised an error.
    beyond = labels[outside & (labels != -100)]
    facts.out_of_range = len(beyond)
    facts.void_labels = len(beyond.unique()) == 1
    counts = torch.bincount(labels[~outside], minlength=task.classes or 2)
    facts.class_counts = dict(enumerate(counts.tolist()))
    if labels.numel() == len(good):
        usable = ~outside.cpu() & good
        # Of a sequence one moment may well decide.
        if facts.floating and inputs.dim() in (2, 4):
            _rank(facts, _shares_of_classes(flat(inputs)[usable], labels.cpu()[usable]), inputs)
    return facts


def _describe_values(
    facts: DataFacts, rows: Tensor, targets: Tensor, good: Tensor, inputs: Tensor
) -> None:
    values = targets.detach().cpu().double()
    facts.target_rms = values.square().mean().sqrt().item()
    facts.target_std = values.std(correction=0).item()
    facts.target_low, facts.target_high = (v.item() for v in values.aminmax())
    column = values.reshape(len(values), -1)
    facts.target_kinds = len(column.unique())
    if column.shape[1] != 1 or len(values) != len(good):
        return
    kinds, counts = column.unique(return_counts=True)
    facts.target_consecutive = bool((kinds == torch.arange(len(kinds))).all())
    facts.target_rarest = counts.min().item() / len(column)
    table = facts.floating and inputs.dim() == 2 and rows.shape[1] >= 3
    if table and len(rows) >= _LEAST_SAMPLES:
        centred = rows - rows.mean(dim=0)
        wanted = column[good] - column[good].mean()
        power = centred.square().sum(dim=0) * wanted.square().sum()
        share = (centred * wanted).sum(dim=0).square() / power.clamp_min(1e-30)
        _rank(facts, share, inputs)


def labels_of(targets: Tensor, task: Task) -> Tensor:
    """The targets as indices of classes, (N,), whatever they came as."""
    if targets.is_floating_point():
        if task.kind == "classes":
            return targets.reshape(-1, task.classes).argmax(dim=1)
        return (targets > 0.5).long().reshape(-1)
    return targets.reshape(-1).long()


def _rank(facts: DataFacts, shares: Tensor | None, inputs: Tensor) -> None:
    """Note the features with the largest shares, (features,), by their index in the flat input."""
    if shares is None:
        return
    ranked, order = shares.sort(descending=True)
    kept = min(max(len(ranked) // 4, 1) + 1, _RANKED)
    facts.feature_shares = ranked[:kept].tolist()
    facts.feature_order = (order[:kept] * _step(inputs, _FEATURES)).tolist()
    facts.feature_share_median = ranked.median().item()
    facts.features = len(ranked)


def _shares_of_classes(rows: Tensor, labels: Tensor) -> Tensor | None:
    """Share of each feature's variance that lies between the classes, (features,).

    1 − (sum of squares within the classes) / (total sum of squares), the correlation ratio η².
    None of too few samples.
    """
    counts = torch.bincount(labels)
    enough = counts[labels] >= _LEAST_OF_CLASS
    rows, labels = rows[enough], labels[enough]
    if len(rows) < _LEAST_SAMPLES or rows.shape[1] < 2 or len(labels.unique()) < 2:
        return None
    hot = F.one_hot(labels).double()
    hot = hot[:, hot.sum(dim=0) > 0]
    means = (hot.T @ rows) / hot.sum(dim=0)[:, None]
    total = (rows - rows.mean(dim=0)).square().sum(dim=0)
    within = (rows - hot @ means).square().sum(dim=0)
    # A feature that hardly ever varies says nothing about a label that it happens to go with.
    common = (rows != rows.mode(dim=0).values).double().mean(dim=0) > _VARYING
    return torch.where(common & (total > 1e-12), 1 - within / total.clamp_min(1e-30), 0.0)


# --- what a simple model makes of it ------------------------------------------------------------


def simple_skill(inputs: Tensor, targets: Tensor, task: Task) -> float | None:
    """Skill of the better of nearest neighbours and ridge regression, on samples left out.

    0 is the best constant predictor, 1 is perfect. Two folds, the samples taken in turn.
    """
    rows = features(inputs, 512)
    if task.kind == "unknown" or targets.shape[:1] != inputs.shape[:1] or len(rows) < 60:
        return None
    if task.kind == "values":
        wanted = targets.detach().cpu().double().reshape(len(rows), -1)
    else:
        labels = labels_of(targets, task).cpu()
        if len(labels) != len(rows):
            return None
        wanted = F.one_hot(labels.clamp_min(0)).double()
    good = torch.isfinite(rows).all(dim=1)
    rows, wanted = standardised(rows[good]), wanted[good]
    folds = torch.arange(len(rows)) % 2
    guesses = {"neighbours": torch.zeros_like(wanted), "ridge": torch.zeros_like(wanted)}
    for fold in (0, 1):
        held, kept = folds == fold, folds != fold
        guesses["neighbours"][held] = _neighbours(rows[kept], wanted[kept], rows[held])
        guesses["ridge"][held] = _ridge(rows[kept], wanted[kept], rows[held])
    return max(_skill(guess, wanted, task.kind == "values") for guess in guesses.values())


def transfer_skill(
    train: Tensor, targets: Tensor, other: Tensor, wanted: Tensor, task: Task
) -> float | None:
    """Skill on `other` samples of the better simple model, fitted on training samples."""
    both = features(torch.cat([train, other]), 512)
    rows, asked = both[: len(train)], both[len(train) :]
    if task.kind == "unknown" or len(rows) < 30:
        return None
    if task.kind == "values":
        known = targets.detach().cpu().double().reshape(len(rows), -1)
        true = wanted.detach().cpu().double().reshape(len(asked), -1)
    else:
        size = task.classes or 2
        labels = [labels_of(t, task).cpu().clamp_min(0) for t in (targets, wanted)]
        if len(labels[0]) != len(rows) or len(labels[1]) != len(asked):
            return None
        known, true = (F.one_hot(t, size).double() for t in labels)
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
    deviations = rows.std(dim=0, correction=0)
    return (rows - rows.mean(dim=0)) / torch.where(deviations > 0, deviations, 1.0)


def _neighbours(rows: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
    nearest = torch.cdist(asked, rows).topk(min(_NEIGHBOURS, len(rows)), largest=False).indices
    return wanted[nearest].mean(dim=1)


def _ridge(rows: Tensor, wanted: Tensor, asked: Tensor) -> Tensor:
    centre = wanted.mean(dim=0)
    kernel = rows @ rows.T
    kernel.diagonal().add_(0.1 * kernel.diagonal().mean() + 1e-9)
    return centre + asked @ (rows.T @ torch.linalg.solve(kernel, wanted - centre))


# --- training against validation ----------------------------------------------------------------


def scale_shift(train: Tensor, other: Tensor) -> float | None:
    """How far the features' scale has moved: median of |Δmean| / std and of |log₂ ratio of stds|.

    About 0.1 for two halves of one sample, 1 where half of the features are a standard deviation
    off or twice as wide.
    """
    first, second = flat(train), flat(other)
    if first.shape[1] != second.shape[1] or len(second) < 8:
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
    """Skill of simple models at telling training from validation inputs: 0 not at all, 1 always."""
    size = min(len(train), len(other), 300)
    if train.shape[1:] != other.shape[1:] or size < 20:
        return None
    both = features(torch.cat([train, other]), 256)
    first, second = both[: len(train)], both[len(train) :]
    pick = [torch.linspace(0, len(rows) - 1, size).long() for rows in (first, second)]
    rows = torch.stack([first[pick[0]], second[pick[1]]], dim=1).reshape(2 * size, -1)
    if not torch.isfinite(rows).all():
        return None
    labels = torch.arange(2 * size) % 2
    # Neighbouring rows are of different kinds: folds by pairs keep them balanced.
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
    """`other` brought to the training inputs' mean and standard deviation, feature by feature."""
    axes = _feature_axes(train)
    mean, std = train.mean(dim=axes, keepdim=True), train.std(dim=axes, keepdim=True)
    own_mean, own_std = other.mean(dim=axes, keepdim=True), other.std(dim=axes, keepdim=True)
    return (other - own_mean) / own_std.clamp_min(1e-8) * std + mean


def standardise_like(train: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation that standardise inputs: per channel, or per feature."""
    axes = _feature_axes(train)
    mean, std = train.mean(dim=axes, keepdim=True), train.std(dim=axes, keepdim=True)
    return mean, torch.where(std > 1e-12, std, torch.ones_like(std))


def _feature_axes(inputs: Tensor) -> Sequence[int]:
    if inputs.dim() == 2:
        return (0,)
    if inputs.dim() == 3:
        return (0, 1)  # (B, T, features)
    return (0, *range(2, inputs.dim()))  # (B, C, …)


def renamed_skill(confusion: Tensor) -> tuple[float, bool]:
    """Accuracy under the best renaming of the classes, and whether it is another than none.

    Args:
        confusion: counts (true class, predicted class).
    """
    best = confusion.argmax(dim=1)
    distinct = len(best.unique()) == len(best)
    total = confusion.sum().clamp_min(1)
    renamed = confusion.max(dim=1).values.sum() / total
    same = bool((best == torch.arange(len(best))).all())
    return renamed.item(), distinct and not same


def repeats(prints: Sequence[Tensor]) -> tuple[int, float]:
    """Number of distinct samples, and how often each came on average."""
    if not prints:
        return 0, 0.0
    every = torch.cat(list(prints))
    distinct = len(every.unique())
    return distinct, len(every) / max(distinct, 1)


def conflicts(prints: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[float, int, float]:
    """How samples that came more than once were labelled.

    Args:
        prints: fingerprints of each batch's samples.
        labels: their labels.

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
