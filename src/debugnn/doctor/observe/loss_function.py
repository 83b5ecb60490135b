"""What a loss function rewards, tried out on outputs that are made up."""

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from debugnn.doctor.evidence import LossFacts
from debugnn.doctor.observe.calls import Call, first_tensor, map_tensors, with_first
from debugnn.doctor.observe.task import Task, space
from debugnn.doctor.reachable import kept

LossFunction = Callable[[Any, Any], Tensor]

# Numerical tolerances, of rounding and of reading, not of verdicts.
_ZERO_LOSS = 1e-9  # a loss of this size has no ratio to another that means anything
_SOFT_LABELS = 0.99  # targets whose largest value is smaller are distributions, not one-hot
_ROUNDING = 1e-5  # relative difference of two values, or gradients, that are the same but for it
_TWO = 2  # values of targets that stand for two classes

# Logits of the right class, the others being 0. Label smoothing punishes confidence and a squared
# error punishes distance: the best of these counts. The last ones are for losses that divide them.
_LOGITS = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 30.0, 300.0)
_RIGHT = 3  # the index of those that stand for right outputs
_BINARY_LOGIT = 12.0
_SURE, _REST = 0.998, 0.001  # probability of the right class, and what is left for the others
_FAR = 1e3  # size of outputs that are far from all targets
_EDGE = 1e-4  # a probability whose logit is taken is at least this far from 0 and 1


class _Loss:
    """The loss function on made-up tensors, which take the place of the outputs' first tensor.

    All calls draw the same random numbers.

    Args:
        outputs: the model's; a tensor, or a nest of containers.
        targets: the batch's.

    Attributes:
        restores: every call finds the loss function's own state as the first one did.
    """

    restores = False

    def __init__(self, loss_fn: LossFunction, outputs: Any, targets: Any) -> None:
        self._loss_fn = loss_fn
        self.outputs = map_tensors(outputs, Tensor.detach)
        self.targets = targets

    def __call__(self, made_up: Tensor, targets: Any = None) -> float:
        """Return the mean loss."""
        return self.of(with_first(self.outputs, made_up), targets)

    def of(self, outputs: Any, targets: Any = None) -> float:
        """Return the mean loss of outputs of the model's own structure."""
        with self._apart():
            return self._value(outputs, targets).detach().item()

    def within(self, made_up: Tensor) -> float:
        """Return the mean loss; infinity of outputs that it is not defined for."""
        return self.at(with_first(self.outputs, made_up))

    def at(self, outputs: Any) -> float:
        """Return the same of outputs of the model's own structure."""
        try:
            value = self.of(outputs)
        except Exception:  # whatever the user's function raises
            return math.inf
        return math.inf if math.isnan(value) else value

    def gradient(self, made_up: Tensor, targets: Any = None) -> Tensor | None:
        """Return the gradient with respect to the made-up tensor, None where there is none."""
        leaf = made_up.clone().requires_grad_()
        with self._apart():
            value = self._value(with_first(self.outputs, leaf), targets)
            if not value.requires_grad:
                return None
            return torch.autograd.grad(value, leaf, allow_unused=True)[0]

    def _value(self, outputs: Any, targets: Any) -> Tensor:
        torch.random.default_generator.manual_seed(0)
        value = self._loss_fn(outputs, self.targets if targets is None else targets)
        return value.float().mean()

    def _apart(self) -> AbstractContextManager[Any]:
        return kept(self._loss_fn) if self.restores else nullcontext()


@torch.enable_grad()
def loss_facts(loss_fn: LossFunction, outputs: Any, targets: Any, task: Task) -> LossFacts:
    """Try out `loss_fn(outputs, targets)` with a batch's targets and made-up outputs.

    The loss function is called some forty times. Of outputs that are a nest of containers, made-up
    tensors take the first tensor's place. Tasks that are unknown, and losses whose value is another
    at every call, are only tried as they are.

    Args:
        outputs: the model's, for the batch; at least two samples.
        task: how outputs and targets are read, by their shapes.
    """
    with torch.random.fork_rng([]):
        facts = _loss_facts(loss_fn, outputs, targets, task)
        outside = _outside(targets, task)
        if facts.error is not None and outside is not None and not outside.all():
            # The others tell what it is for.
            inside = torch.where(outside, targets[~outside].flatten()[0], targets)
            error, facts = facts.error, _loss_facts(loss_fn, outputs, inside, task)
            facts.error = error
        return facts


def _loss_facts(loss_fn: LossFunction, outputs: Any, targets: Any, task: Task) -> LossFacts:
    facts = LossFacts()
    tensor = first_tensor(outputs)
    if tensor is not None and isinstance(targets, Tensor):
        facts.shapes = [list(tensor.shape), list(targets.shape)]
    try:
        value = loss_fn(outputs, targets)
    except Exception as error:  # whatever the user's function raises
        facts.error = f"{type(error).__name__}: {error}"
        return facts
    facts.scalar = isinstance(value, Tensor) and value.numel() == 1
    if tensor is None or task.kind == "unknown":
        return facts

    if tensor.device.type != "cpu":
        try:
            loss_fn, outputs, targets = _on_cpu(loss_fn, outputs, targets)
        except Exception:  # a function that holds tensors of its device
            facts.tried = False
            return facts
        tensor = first_tensor(outputs)
        assert tensor is not None

    loss = _Loss(loss_fn, outputs, targets)
    tensor = tensor.detach().float()  # half precision would hide small differences
    if not torch.isfinite(tensor).all():
        tensor = torch.randn(tensor.shape, generator=_numbers()).to(tensor)
    if not _equal(loss.within(tensor), loss.within(tensor)):
        loss.restores = True
        if not _equal(loss.within(tensor), loss.within(tensor)):
            facts.tried = False
            return facts
    if facts.scalar:
        facts.doubling = _doubling(loss, tensor)
    gradient = loss.gradient(tensor)
    facts.gradient = gradient is not None and bool(gradient.any())
    facts.other_outputs = _reads_other_outputs(loss, tensor)
    if facts.other_outputs:
        facts.far_others = _far_others(loss, tensor)
    facts.ignores_targets = facts.gradient and _ignores_targets(loss, tensor, task)
    if task.kind == "values":
        _try_values(facts, loss, tensor, task)
    elif task.kind == "binary":
        _try_binary(facts, loss, tensor, task)
    elif targets.is_floating_point() and targets.max() < _SOFT_LABELS:
        _try_soft_classes(facts, loss, tensor, task)
    else:
        _try_classes(facts, loss, tensor, task)
    if facts.other_outputs:  # other terms add to it, whatever the outputs' first tensor is
        facts.best = facts.constant = facts.confident = None
    if facts.ignores_targets or facts.pairwise:
        facts.confirmed = facts.opposed = facts.fixed_entries = False
    facts.opposed = facts.opposed and not facts.other_outputs and _exchangeable(loss, tensor)
    return facts


def _outside(targets: Any, task: Task) -> Tensor | None:
    """Return which class indices no output stands for; None where all are possible."""
    if task.kind != "classes" or targets.is_floating_point():
        return None
    outside = (targets < 0) | (targets >= task.size)
    return outside if outside.any() else None


def _numbers() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _equal(first: float, second: float, unit: float | None = None) -> bool:
    """Return whether two values are the same but for rounding, of the larger of them or a unit."""
    size = max(abs(first), abs(second)) if unit is None else unit
    return first == second or abs(first - second) <= _ROUNDING * size


def _on_cpu(
    loss_fn: LossFunction, outputs: Any, targets: Tensor
) -> tuple[LossFunction, Any, Tensor]:
    """Return all three on the CPU.

    There an output outside of the loss's domain raises an exception. On a GPU it fails an
    assertion, after which the process can do nothing more with that GPU.
    """
    if isinstance(loss_fn, nn.Module):
        loss_fn = copy.deepcopy(loss_fn).cpu()
    first = first_tensor(outputs)
    assert first is not None
    outputs = map_tensors(outputs, lambda tensor: tensor.detach().cpu())
    outputs = with_first(outputs, first.detach().cpu())  # an object's tensors are no container's
    targets = targets.cpu()
    loss_fn(outputs, targets)
    return loss_fn, outputs, targets


# --- what any loss is asked -----------------------------------------------------------------------


def _doubling(loss: _Loss, tensor: Tensor) -> float | None:
    """Return the loss of every sample twice over that of each once: 1 of a mean, 2 of a sum.

    None where outputs and targets have no common batch axis, where the function takes one batch
    size only, and where the loss is 0. A loss that broadcasts to (B, B) gives 1.
    """
    targets, batch = loss.targets, len(tensor)
    if tensor.shape[:1] != targets.shape[:1]:
        return None

    def twice(value: Tensor) -> Tensor:
        return torch.cat([value, value]) if value.dim() and len(value) == batch else value

    once = loss(tensor)
    try:
        doubled = map_tensors(with_first(loss.outputs, tensor), twice)
        doubled = with_first(doubled, twice(tensor))
        again = loss.of(doubled, twice(targets))
    except Exception:  # a function for one batch size alone
        return None
    return None if abs(once) < _ZERO_LOSS else again / once


def _reads_other_outputs(loss: _Loss, tensor: Tensor) -> bool:
    """Return whether the loss depends on other tensors of the outputs than the first."""

    def change(value: Tensor) -> Tensor:
        return value * 1.1 + 0.1 if value.is_floating_point() else value

    changed = with_first(map_tensors(loss.outputs, change), tensor)
    try:
        return not _equal(loss(tensor), loss.of(changed))
    except Exception:  # it does something with them
        return True


def _far_others(loss: _Loss, tensor: Tensor) -> float | None:
    """Return the lowest loss where one of the outputs' other tensors is far out, over the loss.

    None where it is not finite there, or 0.
    """
    _, *others = Call((loss.outputs,)).tensors() or [tensor]
    own = abs(loss(tensor))
    values = []
    for chosen in others:
        for factor in (_FAR, -_FAR):
            if chosen.is_floating_point():
                scaled = map_tensors(loss.outputs, partial(_scaled, chosen, factor))
                values.append(loss.at(with_first(scaled, tensor)))
    known = [value for value in values if math.isfinite(value)]
    return min(known) / own if known and own > _ZERO_LOSS else None


def _scaled(chosen: Tensor, factor: float, tensor: Tensor) -> Tensor:
    return tensor * factor if tensor is chosen else tensor


def _other_targets(targets: Tensor, task: Task) -> list[Tensor]:
    """Return targets of the same kind that differ from the batch's."""
    others = [targets.flatten().roll(1).reshape(targets.shape)]
    if task.kind == "binary":
        others.append(1 - targets if targets.dtype != torch.bool else ~targets)
    elif task.kind == "classes" and not targets.is_floating_point():
        others.append(_renamed(targets, task.size, 1))
    elif task.kind == "classes":
        others.append(targets.roll(1, dims=1))
    else:
        others.append((targets / 2).to(targets.dtype))
    return [other for other in others if not torch.equal(other, targets)]


def _renamed(targets: Tensor, classes: int, by: int) -> Tensor:
    """Return labels with another number for each class; impossible ones stay."""
    known = (targets >= 0) & (targets < classes)
    return torch.where(known, (targets + by) % classes, targets)


def _ignores_targets(loss: _Loss, tensor: Tensor, task: Task) -> bool:
    """Return whether value and gradient stay as they are under other targets."""
    others = _other_targets(loss.targets, task)
    return bool(others) and all(_same_gradient(loss, tensor, other) for other in others)


def _same_gradient(loss: _Loss, tensor: Tensor, targets: Tensor) -> bool:
    """Return whether other targets leave value and gradient as they are; not if they raise."""
    try:
        there = loss.gradient(tensor, targets)
        if not _equal(loss(tensor), loss(tensor, targets)):
            return False
    except Exception:
        return False
    return _alike(loss.gradient(tensor), there)


def _alike(here: Tensor | None, there: Tensor | None) -> bool:
    """Return whether two gradients are the same but for rounding."""
    if here is None or there is None:
        return here is there
    return bool((here - there).abs().max() <= _ROUNDING * here.abs().max())


def _exchangeable(loss: _Loss, tensor: Tensor) -> bool:
    """Return whether samples can change places, outputs and targets together.

    They can't where the loss weighs each of them by something of its own, an advantage for example.
    """
    if tensor.shape[:1] != loss.targets.shape[:1]:
        return False
    try:
        turned = loss(tensor.roll(1, dims=0), loss.targets.roll(1, dims=0))
    except Exception:
        return False
    return _equal(loss(tensor), turned)


# --- values ---------------------------------------------------------------------------------------


class _Reading(NamedTuple):
    """How outputs may stand for values: what they would be, and what the loss makes of it."""

    link: str
    ideal: Tensor
    constant: Tensor  # of the best constant values
    right: float
    elsewhere: list[float]  # at outputs that are all worse
    confirmed: bool  # right is lower than all of these
    opposed: bool


def _try_values(facts: LossFacts, loss: _Loss, outputs: Tensor, task: Task) -> None:
    values = loss.targets.to(outputs.dtype).reshape(outputs.shape)
    if not values.std(correction=0) > 0:
        return
    readings = [_read_values(loss, link, values) for link in _links(values, task)]
    facts.rewards = [[reading.right, reading.elsewhere[0]] for reading in readings]
    fitting = [reading for reading in readings if reading.confirmed] or readings
    best = min(fitting, key=lambda reading: reading.right)
    facts.best, facts.confirmed, facts.link = best.right, best.confirmed, best.link
    facts.opposed = not best.confirmed and readings[0].opposed
    if best.confirmed or len(readings) == 1:  # of several readings, one is what the loss is for
        facts.constant = loss.within(best.constant)
    # Far out a log-likelihood whose targets are no probabilities falls without end.
    side = (values - values.mean()).sign()
    far = (_FAR * sign for sign in (side, -side, side.abs(), -side.abs()))
    facts.far = min(map(loss.within, far))
    noise = torch.randn(outputs.shape, generator=_numbers()) * values.std() + values.mean()
    if values.min() >= 0:
        noise = noise.abs()
    facts.permuted = _permuted(loss, noise)
    facts.cross_gradient = _cross_gradient(loss, noise)
    facts.confirmed = facts.confirmed or _takes_sides(loss, values, noise)


def _links(values: Tensor, task: Task) -> list[str]:
    """Return the readings of outputs that the targets' range allows."""
    links = ["identity"]
    if not task.squashed and values.min() >= 0:
        links += ["sigmoid"] if values.max() <= 1 else ["exp"]
    return links


def _read_values(loss: _Loss, link: str, values: Tensor) -> _Reading:
    def through(wanted: Tensor) -> Tensor:
        if link == "identity":
            return wanted
        if link == "sigmoid":
            return wanted.clamp(_EDGE, 1 - _EDGE).logit()
        return wanted.clamp_min(0.1 * values.mean().item()).log()

    ideal = through(values)
    constant = torch.full_like(ideal, through(values.mean()).item())
    spread = ideal.std(correction=0)
    noise = torch.linspace(-1, 1, ideal.numel()).roll(ideal.numel() // 3).reshape(ideal.shape)
    noise = noise.to(ideal) * spread
    if link == "identity" and values.min() >= 0:
        noise = noise.abs()  # the loss may be for positive outputs alone
    around = ideal - ideal.mean()
    turned = ideal.flatten().roll(max(1, ideal.numel() // 3)).reshape(ideal.shape)
    worse = [
        ideal + 2 * noise, ideal + spread, ideal - spread, ideal.mean() + 3 * around,
        ideal.mean() + around / 3, turned,
    ]  # fmt: skip
    right, elsewhere = loss.within(ideal), [loss.within(made_up) for made_up in worse]
    if torch.equal(turned, ideal):
        elsewhere.pop()
    known = [value for value in elsewhere if math.isfinite(value)]
    apart = math.isfinite(right) and not any(_equal(right, value) for value in known)
    return _Reading(
        link, ideal, constant, right, elsewhere,
        confirmed=apart and all(right < value for value in elsewhere),
        opposed=apart and all(right > value for value in known) and min(known, default=0) < 0,
    )  # fmt: skip


def _takes_sides(loss: _Loss, values: Tensor, noise: Tensor) -> bool:
    """Return whether targets are two classes in a code of their own, −1 and 1 for example, and the
    loss asks for outputs on the right side, the farther the better."""
    kinds = values.unique()
    if len(kinds) != _TWO:
        return False
    right, wrong = loss.within(values), loss.within(kinds.sum() - values)
    farther = loss.within(values.mean() + 3 * (values - values.mean()))
    bent = not _alike(loss.gradient(noise), loss.gradient(0.5 * noise))
    return farther <= right < wrong and bent


def _permuted(loss: _Loss, outputs: Tensor) -> float | None:
    """Return the relative change of the loss where samples' outputs, not targets, change places.

    None where the targets are equal, so that it does not matter.
    """
    targets = loss.targets
    if len(outputs) < 2 or not targets.dim() or torch.equal(targets, targets.roll(1, dims=0)):
        return None
    here, there = loss.within(outputs), loss.within(outputs.roll(1, dims=0))
    if not (math.isfinite(here) and math.isfinite(there)):
        return None
    return abs(here - there) / max(abs(here), _ZERO_LOSS)


# --- two classes from one output ------------------------------------------------------------------


def _try_binary(facts: LossFacts, loss: _Loss, outputs: Tensor, task: Task) -> None:
    ones = loss.targets.to(outputs.dtype).reshape(outputs.shape)
    share = ones.mean().clamp(0.05, 0.95)
    facts.output_space = "unit" if task.squashed else "real"
    if facts.output_space == "unit":
        right = ones * _SURE + _REST
        wrong, constant = 1 - right, torch.full_like(ones, share.item())
    else:
        right = (2 * ones - 1) * _BINARY_LOGIT
        wrong, constant = -right, torch.full_like(ones, share.logit().item())
        facts.squared = _is_squared(loss, ones, min(loss(right), loss(constant)))
        if facts.squared:
            right, wrong, constant = ones, 1 - ones, torch.full_like(ones, share.item())
    facts.best, facts.constant = loss(right), loss(constant)
    facts.rewards = [[facts.best, loss(wrong)]]
    others = [facts.constant, facts.rewards[0][1]]
    known = all(map(math.isfinite, [facts.best, *others]))
    facts.confirmed = known and facts.best < min(others)
    facts.opposed = known and facts.best > max(others) and min(others) < 0
    noise = torch.randn(outputs.shape, generator=_numbers()).sigmoid()
    facts.permuted = _permuted(loss, noise.to(outputs))
    facts.cross_gradient = _cross_gradient(loss, outputs)


def _is_squared(loss: _Loss, ones: Tensor, otherwise: float) -> bool:
    """Return whether a real output is compared with {0, 1} by a distance.

    It is least at 0 and 1, and more confidence costs on either side; a margin is for one alone.
    """
    best = loss(ones)
    beyond = (loss(3 * ones), loss(3 * ones - 2))  # 3 in place of 1, and −2 in place of 0
    return best < otherwise and all(best < value for value in beyond)


# --- one of many classes --------------------------------------------------------------------------


def _try_classes(facts: LossFacts, loss: _Loss, outputs: Tensor, task: Task) -> None:
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
        return  # some labels are impossible: no outputs are right for them
    hot = F.one_hot(labels.where(known, 0), task.size).to(outputs.dtype)
    if facts.output_space == "real":
        candidates = [hot * size for size in _LOGITS]
        right, wrong, flat = candidates[_RIGHT], -candidates[_RIGHT], torch.zeros_like(hot)
    else:
        rest = _REST / task.size
        right = hot * _SURE + rest
        wrong = (1 - hot) / (task.size - 1) * _SURE + rest
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


def _try_soft_classes(facts: LossFacts, loss: _Loss, outputs: Tensor, task: Task) -> None:
    """Compare a distribution with itself, and with another sample's: what is best is not 0."""
    facts.output_space = space(outputs)
    shares = loss.targets.to(outputs.dtype)
    if facts.output_space == "real" or facts.output_space == "log_simplex":
        shares = shares.clamp_min(_EDGE).log()
    right = loss(shares)
    wrong = [loss(shares.roll(by, dims=axis)) for by, axis in ((1, 0), (1, 1))]
    facts.rewards = [[right, min(wrong)]]
    facts.confirmed = right < min(wrong)
    facts.opposed = right > max(wrong)
    if facts.output_space == "simplex":
        facts.linear = _linear(loss, shares, shares.roll(1, dims=0))


def _leaves_out(loss: _Loss, outputs: Tensor, rows: Tensor, task: Task) -> bool:
    """Return whether the loss ignores these rows of outputs, (N,): padding, for example."""
    gradient = loss.gradient(outputs)
    if gradient is None:
        return False
    return not bool(gradient.movedim(task.axis, -1).reshape(-1, task.size)[rows].any())


def _is_pairwise(loss: _Loss, outputs: Tensor, classes: int) -> bool:
    """Return whether labels count only by being equal or not, as in metric learning.

    To rename the classes then leaves the gradient as it is, and to draw other groups changes it.
    """
    targets = loss.targets
    if targets.is_floating_point():
        return False
    most = int(targets.max()) + 1  # of an embedding's labels there may be more than dimensions
    number = max(classes, most)
    renamed = [_renamed(targets, number, by) for by in (1, 2)]
    if not all(_same_gradient(loss, outputs, other) for other in renamed):
        return False
    places = torch.arange(targets.numel(), device=targets.device).reshape(targets.shape)
    others = (places % number, places // 2 % number)  # one of them may group as the labels do
    return not all(_same_gradient(loss, outputs, other) for other in others)


def _noise(rows: Tensor, output_space: str) -> Tensor:
    """Return random outputs (N, C), always the same, in the space of the model's outputs."""
    noise = torch.randn(rows.shape, generator=_numbers()).to(rows)
    if output_space == "simplex":
        return noise.softmax(dim=1)
    if output_space == "log_simplex":
        return noise.log_softmax(dim=1)
    return noise.sigmoid() if output_space == "unit" else noise


def _try_noise(facts: LossFacts, loss: _Loss, noise: Tensor, hot: Tensor, task: Task) -> None:
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
    facts.other_entries = _ratio((by_row * (1 - hot)).abs().sum(), by_row.abs().sum())
    facts.opposed = bool(((by_row * hot).sum(dim=1) > 0).all())
    facts.fixed_entries = _reads_fixed_entries(loss, noise, gradient, task)
    facts.cross_gradient = _cross_gradient(loss, noise)


def _linear(loss: _Loss, first: Tensor, second: Tensor) -> float | None:
    """Return how far the loss halfway between two outputs is from its mean, relatively to it."""
    ends = (loss(first) + loss(second)) / 2
    return abs(loss((first + second) / 2) - ends) / max(abs(ends), _ZERO_LOSS)


def _reads_fixed_entries(loss: _Loss, noise: Tensor, gradient: Tensor, task: Task) -> bool:
    """Return whether the loss reads the same part of each sample's outputs, not all, whatever the
    labels are."""
    read = gradient != 0
    some = read.movedim(task.axis, -1).any(dim=-1) & ~read.movedim(task.axis, -1).all(dim=-1)
    if loss.targets.is_floating_point() or not some.all():
        return False
    others = (loss.gradient(noise, _renamed(loss.targets, task.size, by)) for by in (1, 2))
    return all(other is not None and torch.equal(read, other != 0) for other in others)


def _cross_gradient(loss: _Loss, noise: Tensor) -> float | None:
    """Return the relative change of one half's gradient by the other half's outputs."""
    try:
        gradient, changed, half = loss.gradient(noise), noise.clone(), len(noise) // 2
        if gradient is None or half == 0:
            return None
        rest = noise[half:]
        changed[half:] = rest.flip(0) * 0.5 if len(rest) > 1 else rest * 0.5
        again = loss.gradient(changed)
    except Exception:  # a loss that is not defined there
        return None
    if again is None:
        return None
    difference = (again[:half] - gradient[:half]).abs().max()
    return _ratio(difference, gradient[:half].abs().max())


def _ratio(part: Tensor, whole: Tensor) -> float:
    """Return the ratio of two scalars; 0 where both are 0."""
    return (part / whole).item() if part != 0 else 0.0
