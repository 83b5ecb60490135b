"""What a loss function rewards where targets are one of many classes, or shares of them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.doctor.evidence import LossFacts
from debugnn.doctor.observe.loss_function.across_samples import cross_gradient
from debugnn.doctor.observe.loss_function.dependence import relabelled, same_gradient
from debugnn.doctor.observe.loss_function.made_up import (
    EDGE,
    REST,
    SURE,
    ZERO_LOSS,
    Loss,
    random_numbers,
    ratio,
)
from debugnn.doctor.observe.task import Task, space

# Logits of the right class, the others being 0. Label smoothing punishes confidence and a squared
# error punishes distance: the best of these counts. The last ones are for losses that divide them.
_LOGITS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 30.0, 300.0)
_SHIFTED = 1e-4  # relative difference of losses that a shift of all logits leaves as they are
_UNSURE = 0.1  # size of scores of which no class has nearly all of the probability
_PLACES = 8  # labels that are changed, one after the other, to see what they are compared with
_RIGHT = 3  # the index of those that stand for right outputs


def try_classes(facts: LossFacts, loss: Loss, outputs: Tensor, task: Task) -> None:
    """Fill in what the loss makes of outputs that are right for classes, and of wrong ones."""
    targets = loss.targets
    rows = outputs.movedim(task.axis, -1).reshape(-1, task.size)
    facts.output_space = space(rows)
    if task.squashed and facts.output_space == "real":
        facts.output_space = "unit"

    def shaped(made_up: Tensor) -> Tensor:
        moved = outputs.movedim(task.axis, -1)
        return made_up.to(outputs.dtype).reshape(moved.shape).movedim(-1, task.axis)

    noise = shaped(_noise(rows, facts.output_space))
    facts.pairwise = _is_pairwise(loss, noise, task.size)
    if targets.is_floating_point():
        labels = targets.reshape(-1, task.size).argmax(dim=1)
    else:
        labels = targets.reshape(-1).long()
    known = (labels >= 0) & (labels < task.size)
    if not known.any() or not (known.all() or _leaves_out(loss, noise, ~known, task)):
        # Some labels are impossible: no outputs are right for them. Or they are left out, and the
        # loss looks for the outputs to leave out where others lie.
        facts.across_positions = _across_positions(loss, noise, task)
        return
    hot = F.one_hot(labels.where(known, 0), task.size).to(outputs.dtype)
    if facts.output_space == "real":
        candidates = [hot * size for size in _LOGITS]
        right, wrong, flat = candidates[_RIGHT], -candidates[_RIGHT], torch.zeros_like(hot)
        # Losses that take the classes one by one need logits below zero.
        candidates = [(2 * hot - 1) * size for size in _LOGITS] + candidates
    else:
        rest = REST / task.size
        right = hot * SURE + rest
        wrong = (1 - hot) / (task.size - 1) * SURE + rest
        flat = torch.full_like(hot, 1 / task.size)
        if facts.output_space == "log_simplex":
            right, wrong, flat = right.log(), wrong.log(), flat.log()
        candidates = [right]
    values = [loss(shaped(candidate)) for candidate in candidates]
    facts.best, facts.constant = min(values), loss(shaped(flat))
    facts.rewards = [[loss(shaped(right)), loss(shaped(wrong))]]
    if facts.output_space == "real":
        facts.confident = values[-1]
    _try_noise(facts, loss, noise, hot, task)
    right_value, wrong_value = facts.rewards[0]
    facts.confirmed = right_value < wrong_value
    facts.opposed = facts.opposed and right_value > wrong_value


def try_soft_classes(facts: LossFacts, loss: Loss, outputs: Tensor, task: Task) -> None:
    """Compare a distribution with itself, and with another sample's: what is best is not 0."""
    facts.output_space = space(outputs)
    shares = loss.targets.to(outputs.dtype)
    if facts.output_space == "real" or facts.output_space == "log_simplex":
        shares = shares.clamp_min(EDGE).log()
    right = loss(shares)
    wrong = [loss(shares.roll(by, dims=axis)) for by, axis in ((1, 0), (1, 1))]
    facts.rewards = [[right, min(wrong)]]
    facts.confirmed = right < min(wrong)
    facts.opposed = right > max(wrong)
    if facts.output_space == "simplex":
        facts.linear = _linear(loss, shares, shares.roll(1, dims=0))


def compares_logits(loss: Loss, outputs: Tensor) -> bool:
    """Return whether outputs and targets are both logits, whose distributions are compared.

    To add a number to all logits of a sample then changes nothing, to double them does. A
    correlation is left as it is by both.
    """
    targets = loss.targets
    if outputs.shape != targets.shape or outputs.dim() < 2 or outputs.shape[-1] < 2:
        return False
    noise = torch.randn(outputs.shape, generator=random_numbers()).to(outputs)
    shift = noise[..., :1] * 3
    here = loss.within(noise)
    try:
        shifted = (loss(noise + shift), loss(noise, targets + shift.to(targets)))
        doubled = (loss(2 * noise), loss(noise, 2 * targets))
    except Exception:  # a loss that is not defined there
        return False
    return all(_near(here, value) for value in shifted) and not any(
        _near(here, value) for value in doubled
    )


def _near(here: float, there: float) -> bool:
    return math.isfinite(here) and abs(here - there) <= _SHIFTED * max(abs(here), ZERO_LOSS)


def try_logits(facts: LossFacts, loss: Loss) -> None:
    """Compare logits with themselves, and with those of another sample and of other classes."""
    logits = loss.targets.float()
    right = loss(logits)
    wrong = [loss(logits.roll(1, dims=axis)) for axis in (0, -1)]
    facts.rewards = [[right, min(wrong)]]
    facts.link, facts.shift_change = "softmax", 0.0
    facts.confirmed = right < min(wrong)
    facts.opposed = right > max(wrong)
    facts.cross_gradient = cross_gradient(loss, logits.roll(1, dims=0))


def _leaves_out(loss: Loss, outputs: Tensor, rows: Tensor, task: Task) -> bool:
    """Return whether the loss ignores these rows of outputs, (N,): padding, for example."""
    gradient = loss.gradient(outputs)
    if gradient is None:
        return False
    return not bool(gradient.movedim(task.axis, -1).reshape(-1, task.size)[rows].any())


def _is_pairwise(loss: Loss, outputs: Tensor, classes: int) -> bool:
    """Return whether labels count only by being equal or not, as in metric learning.

    To rename the classes then leaves the gradient as it is, and to draw other groups changes it.
    """
    targets = loss.targets
    if targets.is_floating_point():
        return False
    most = int(targets.max()) + 1  # of an embedding's labels there may be more than dimensions
    number = max(classes, most)
    renamed = [relabelled(targets, number, by) for by in (1, 2)]
    if not all(same_gradient(loss, outputs, other) for other in renamed):
        return False
    places = torch.arange(targets.numel(), device=targets.device).reshape(targets.shape)
    others = (places % number, places // 2 % number)  # one of them may group as the labels do
    return not all(same_gradient(loss, outputs, other) for other in others)


def _noise(rows: Tensor, output_space: str) -> Tensor:
    """Return random outputs (N, C), always the same, in the space of the model's outputs."""
    noise = torch.randn(rows.shape, generator=random_numbers()).to(rows)
    if output_space == "simplex":
        return noise.softmax(dim=1)
    if output_space == "log_simplex":
        return noise.log_softmax(dim=1)
    return noise.sigmoid() if output_space == "unit" else noise


def _try_noise(facts: LossFacts, loss: Loss, noise: Tensor, hot: Tensor, task: Task) -> None:
    """Find out which outputs the loss compares with each other, at outputs drawn at random."""
    if facts.output_space == "real":
        here, there = loss(noise), loss(noise + 3)
        facts.shift_change = abs(here - there) / max(abs(here), abs(there), 1e-6)
    elif facts.output_space in ("simplex", "unit"):
        facts.linear = _linear(loss, noise, noise.roll(1, dims=0))
    gradient = loss.gradient(noise)
    if gradient is None or len(noise) < 2:
        return
    by_row = gradient.movedim(task.axis, -1).reshape(-1, task.size)
    facts.other_entries = ratio((by_row * (1 - hot)).abs().sum(), by_row.abs().sum())
    facts.opposed = bool(((by_row * hot).sum(dim=1) > 0).all())
    facts.fixed_entries = _reads_fixed_entries(loss, noise, gradient, task)
    facts.cross_gradient = cross_gradient(loss, noise)
    facts.across_positions = _across_positions(loss, noise, task)


def _linear(loss: Loss, first: Tensor, second: Tensor) -> float | None:
    """Return how far the loss halfway between two outputs is from its mean, relatively to it."""
    ends = (loss(first) + loss(second)) / 2
    return abs(loss((first + second) / 2) - ends) / max(abs(ends), ZERO_LOSS)


def _across_positions(loss: Loss, noise: Tensor, task: Task) -> float | None:
    """Return the share of labels that are compared with scores of several positions.

    The gradient follows another label at the scores that the label is compared with: at most all
    of one position. What looks at a whole map, as the overlap of two areas, changes more. Where
    there are as many positions along an axis as classes, the classes may lie there.
    """
    targets = loss.targets
    if targets.is_floating_point() or targets.dim() < 2 or noise.dim() < 3:
        return None
    axes = [axis for axis in range(1, noise.dim()) if noise.shape[axis] == task.size]
    scores = _UNSURE * noise
    gradient, labels = loss.gradient(scores), targets.reshape(-1)
    if gradient is None:
        return None
    known = ((labels >= 0) & (labels < task.size)).nonzero()[:, 0]
    # Labels of the batch alone: a loss that counts them from 1, say, raises for others.
    present = labels[known].unique()
    if len(present) < 2:
        return None
    found = []
    for place in known[:: max(len(known) // _PLACES, 1)][:_PLACES].tolist():
        other = labels.clone()
        following = int(torch.searchsorted(present, labels[place])) + 1
        other[place] = present[following % len(present)]
        after = loss.gradient(scores, other.reshape(targets.shape))
        if after is None:
            return None
        moved, by = after - gradient, int(other[place] - labels[place])
        if moved.any():
            found.append(
                all(
                    _one_of_each(moved != 0, axis, task.size) or _moves_on(moved, axis, by)
                    for axis in axes
                )
            )
    return sum(found) / len(found) if found else None


def _one_of_each(changed: Tensor, axis: int, classes: int) -> bool:
    """Return whether a label is compared with one score of each of several positions, as it is in a
    softmax over them.

    Args:
        changed: which scores' gradient follows another label.
        axis: of the classes.
        classes: their number.
    """
    return 1 < int(changed.sum()) <= classes and int(changed.sum(dim=axis).max()) == 1


def _moves_on(moved: Tensor, axis: int, by: int) -> bool:
    """Return whether a label's class is read from what lies in memory, whichever position that is
    of: scores were normalised over the classes of each position, and then taken for another order.

    Args:
        moved: what the gradient of each score moves by with a label.
        axis: of the classes.
        by: how much larger the label is.
    """
    positions = int((moved != 0).any(dim=axis).sum())
    # The score of the label is pulled up, and that of the one before no more.
    return positions == 2 and int(moved.argmin()) - int(moved.argmax()) == by


def _reads_fixed_entries(loss: Loss, noise: Tensor, gradient: Tensor, task: Task) -> bool:
    """Return whether the loss reads the same part of each sample's outputs, not all, whatever the
    labels are."""
    read = gradient != 0
    rows = read.movedim(task.axis, -1).flatten(end_dim=-2)
    # Of a choice as many outputs are read in each row, of a ReLU behind the outputs some or others.
    counts = rows.sum(dim=1)
    part = 0 < counts[0] < rows.shape[1] and bool((counts == counts[0]).all())
    if loss.targets.is_floating_point() or not part:
        return False
    # Other samples' labels: what lies beyond the labels that are there may be none of the loss's.
    labels = loss.targets.flatten()
    others = (loss.gradient(noise, labels.roll(by).reshape(loss.targets.shape)) for by in (1, 2))
    return all(other is not None and torch.equal(read, other != 0) for other in others)
