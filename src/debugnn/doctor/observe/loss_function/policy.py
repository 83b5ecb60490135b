"""A policy's loss: what it does to the probability of an action that is weighted by a number.

A policy gradient (Williams 1992) weights the logarithm of the probability of each action taken by a
return or an advantage. The weights are found by made-up ones: the gradient with respect to the
scores turns with them.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from debugnn.doctor.evidence import PolicyFacts
from debugnn.doctor.observe.calls import Call, map_tensors
from debugnn.doctor.observe.loss_function.made_up import LossFunction
from debugnn.doctor.observe.loss_function.variable_names import variables

_MOST = 8  # tensors of outputs, and of targets
_ALONG = 0.999  # cosine of two directions that are the same but for rounding
_ROUNDING = 1e-4  # relative
_ONE_SIGN = 0.99  # share of samples whose gradient has the weight's sign, or the opposite
# Words for what a policy is to bring up, and for what it is to bring down.
_HIGH = re.compile(
    r"(?:^|_)(?:rewards?|returns?|advantages?)(?=_|\d|$)|^(?:advs?|rews?|gaes?)$", re.I
)
_LOW = re.compile(
    r"(?:^|_)(?:neg|minus|costs?|penalt|regrets?|tours?|distances?|delays?|errors?|energ)", re.I
)
_LONG = re.compile(r"(?:^|_)(?:lengths?|times?)", re.I)  # of a way; but episodes are to be long
_SHIFT = 3.0  # change of an action's score that takes its probability beyond any clip


class _Place(NamedTuple):
    """Tensors of outputs and targets: scores (…, actions), numbers of actions (…), and weights (…).

    Where actions are vectors of real numbers: means (…, size) of their distributions, actions of
    the same shape, and weights (…).
    """

    scores: Tensor
    actions: Tensor
    weights: Tensor

    @property
    def numbered(self) -> bool:
        """True where there are so many actions as scores, and each has a number."""
        return not self.actions.is_floating_point()


@torch.enable_grad()
def policy_facts(loss_fn: LossFunction, outputs: Any, targets: Any) -> PolicyFacts | None:
    """Return how a loss responds to the weights of actions, None where it weights none.

    Terms that do not depend on the weights, as the entropy, do not count. Where several of the
    targets may be the weights, as a mask that multiplies them, they have to agree.

    Args:
        outputs: the model's for a batch, a nest of containers that holds scores of actions.
        targets: the batch's, a nest that holds the numbers of the actions and their weights.
    """
    outputs = map_tensors(outputs, Tensor.detach)
    found, deaf = [], []
    for place in _places(outputs, targets):
        try:
            if place.numbered:
                weighted = _NumberedActions(loss_fn, outputs, targets, place)
                facts = weighted.facts()
                deaf.append(facts is None and weighted.is_deaf())
            else:
                facts = _facts_of_real(loss_fn, outputs, targets, place)
        except Exception:  # whatever the loss raises of made-up targets
            continue
        if facts is not None:
            found.append(facts)
    if deaf and all(deaf):
        return PolicyFacts(rises=False, deaf=True)
    if not found or len({facts.rises for facts in found}) > 1:
        return None
    facts = max(found, key=lambda facts: facts.held_back or 0.0)
    facts.called = called_after_rewards(variables(loss_fn))
    return facts


def called_after_rewards(names: Iterable[str]) -> list[str]:
    """Return the variables that are called after what is to be high.

    None of them where some variable is called after what is to be low: both are one computation.
    """
    known = set(names)
    if any(is_a_cost(name) or is_a_length(name) for name in known):
        return []
    return sorted(filter(is_a_reward, known))


def is_a_cost(name: str) -> bool:
    """Return whether a variable is called after what is to be low."""
    return _LOW.search(name) is not None


def is_a_length(name: str) -> bool:
    """Return whether a variable is called after what may be a cost, and need not."""
    return _LONG.search(name) is not None


def is_a_reward(name: str) -> bool:
    """Return whether a variable is called after what is to be high."""
    return _HIGH.search(name) is not None


def _places(outputs: Any, targets: Any) -> Iterator[_Place]:
    given, wanted = Call((outputs,)).tensors(), Call((targets,)).tensors()
    if not (len(given) <= _MOST and 1 < len(wanted) <= _MOST):
        return
    for scores in (tensor for tensor in given if tensor.is_floating_point()):
        for actions in wanted:
            real = actions.is_floating_point() and actions.shape == scores.shape
            if not (real or _numbers_actions(actions, scores)):
                continue
            for weights in wanted:
                if not weights.is_floating_point() or weights.numel() < 2 or weights is actions:
                    continue
                fits = weights.shape in (scores.shape, scores.shape[:-1])
                if fits if real else weights.numel() == actions.numel():
                    yield _Place(scores, actions, weights)


def _numbers_actions(actions: Tensor, scores: Tensor) -> bool:
    if scores.dim() < 2 or scores.shape[-1] < 2:
        return False
    if actions.dtype not in (torch.int64, torch.int32) or not actions.numel():
        return False
    fits = actions.numel() * scores.shape[-1] == scores.numel() and len(actions) == len(scores)
    return fits and bool((actions >= 0).all() and (actions < scores.shape[-1]).all())


def _facts_of_real(
    loss_fn: LossFunction, outputs: Any, targets: Any, place: _Place
) -> PolicyFacts | None:
    """Return whether a loss makes real actions of positive weight rarer, None where some of them
    are made so and others not, by whichever of their components.

    Actions on the other side of the mean have to turn the response round, and the mean itself has
    none: numbers that a value is fitted to, and others beside them, or factors of a product, look
    like weights and actions otherwise.
    """

    def taken(actions: Tensor) -> _RealActions:
        return _RealActions(loss_fn, outputs, targets, place, actions)

    if taken(place.scores).responds():
        return None
    rising: list[float] = []
    for actions in (place.actions, 2 * place.scores - place.actions):
        found = taken(actions).rising()
        if found is None:
            return None
        rising += found
    if min(rising) >= _ONE_SIGN:
        return PolicyFacts(rises=True)
    return PolicyFacts(rises=False) if max(rising) <= 1 - _ONE_SIGN else None


class _Weighted:
    """A loss under made-up weights, half of them positive.

    Args:
        actions: what stands in the place of the actions taken; None leaves them.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        outputs: Any,
        targets: Any,
        place: _Place,
        actions: Tensor | None = None,
    ) -> None:
        self._loss_fn = loss_fn
        self._outputs, self._targets, self._place = outputs, targets, place
        weights = torch.ones_like(place.weights)
        weights.view(-1)[1::2] = -1.0
        self._weights, self._signs = weights, weights.reshape(-1, 1)
        self._actions = place.actions if actions is None else actions

    def _responses(self) -> tuple[Tensor, Tensor] | None:
        """Return by how much the weights turn each sample's gradient, (weights, size), and where
        they do, (weights,); None where the loss does not weight positive and negative ones."""
        once, twice = self._turned(self._weights), self._turned(2 * self._weights)
        used = once.abs().sum(dim=1) > 0
        size = once.norm()
        if not (used & (self._signs[:, 0] > 0)).any() or not (used & (self._signs[:, 0] < 0)).any():
            return None
        # A loss that brings the weights to one scale is the same of twice the weights.
        if not any((twice - k * once).norm() <= _ROUNDING * size for k in (1, 2)):
            return None
        return once, used

    def _turned(self, weights: Tensor) -> Tensor:
        """Return by how much the weights turn each sample's gradient."""
        scores = self._place.scores
        there, back = self._gradient(weights, scores), self._gradient(-weights, scores)
        turned, unit = (there - back) / 2, there.norm(dim=1) + back.norm(dim=1)
        return turned.where(turned.norm(dim=1, keepdim=True) > _ROUNDING * unit[:, None], 0.0)

    def _gradient(self, weights: Tensor, scores: Tensor) -> Tensor:
        leaf = scores.clone().requires_grad_()
        torch.random.default_generator.manual_seed(0)
        outputs = map_tensors(self._outputs, lambda t: leaf if t is self._place.scores else t)
        made_up = {id(self._place.weights): weights, id(self._place.actions): self._actions}
        targets = map_tensors(self._targets, lambda t: made_up.get(id(t), t))
        value = self._loss_fn(outputs, targets).float().mean()
        gradient = torch.autograd.grad(value, leaf)[0]
        if not torch.isfinite(gradient).all():
            raise ValueError("the gradient is not finite")
        return self._rows(gradient).double()

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self._weights.numel(), -1).double()


class _RealActions(_Weighted):
    """Actions that are numbers, whose probability rises as the mean comes closer to them."""

    def responds(self) -> bool:
        """Return whether any gradient turns with the weights."""
        return bool(self._turned(self._weights).any())

    def rising(self) -> list[float] | None:
        """Return the share of actions of positive weight, or of negative weight turned round, that
        become rarer: by what the weights turn of the gradient, and by all of it.

        None of a loss that pushes the mean away from no action: a mask, of what is left out, draws
        it to all others.
        """
        found = self._responses()
        if found is None:
            return None
        turned, used = found
        away = self._rows(self._actions) - self._rows(self._place.scores)
        along = self._gradient(self._weights, self._place.scores) * away
        signs = self._signs[used]
        moved = (along[used] != 0).any(dim=1)
        if not all(bool(moved[signs[:, 0] == sign].any()) for sign in (1, -1)):
            return None
        courses = ((each[used] * signs) for each in (turned * away, along))
        return [(course[course != 0] > 0).float().mean().item() for course in courses]


class _NumberedActions(_Weighted):
    """Actions of which each has a score."""

    def __init__(self, loss_fn: LossFunction, outputs: Any, targets: Any, place: _Place) -> None:
        super().__init__(loss_fn, outputs, targets, place)
        self._taken = torch.zeros_like(self._rows(place.scores)).scatter_(
            1, place.actions.reshape(-1, 1).long(), 1.0
        )

    def facts(self) -> PolicyFacts | None:
        """Return whether the loss makes actions of positive weight rarer, and where it is clipped;
        None where some actions are made so and others not."""
        found = self._responses()
        if found is None:
            return None
        once, used = found
        along = self._along(once)[used]
        scores = bool((along.abs() >= _ALONG).all())
        if not scores:  # it may be given probabilities
            if once[used].where(self._taken[used] == 0, 0.0).any():
                return None
            along = (once * self._taken).sum(dim=1)[used]
        rising = (along * self._signs[used, 0] > 0).float().mean().item()
        if 1 - _ONE_SIGN < rising < _ONE_SIGN:
            return None
        rises = rising >= _ONE_SIGN
        return PolicyFacts(rises, self._held_back(rises, used) if scores else None)

    def is_deaf(self) -> bool:
        """Return whether the gradient of the scores, if there is one, is the same for other actions
        and for other weights, and the loss itself is not."""
        place = self._place
        actions, weights = (place.actions + 1) % place.scores.shape[-1], 2 * place.weights + 1
        kinds = {id(place.actions): actions, id(place.weights): weights}

        def changed(*names: int) -> Any:
            return map_tensors(self._targets, lambda t: kinds[id(t)] if id(t) in names else t)

        here = self._plain(self._targets)
        ways = (id(place.actions),), (id(place.weights),)
        others = [self._plain(changed(*names)) for names in ways]
        same = all(torch.allclose(here[1], each[1], rtol=_ROUNDING) for each in others)
        return same and abs(others[1][0] - here[0]) > _ROUNDING * (1 + abs(here[0]))

    def _plain(self, targets: Any) -> tuple[float, Tensor]:
        """Return the loss beside some targets, and its gradient with respect to the scores."""
        leaf = self._place.scores.clone().requires_grad_()
        torch.random.default_generator.manual_seed(0)
        outputs = map_tensors(self._outputs, lambda t: leaf if t is self._place.scores else t)
        value = self._loss_fn(outputs, targets).float().mean()
        if not value.requires_grad:
            return value.item(), torch.zeros_like(leaf)
        gradient = torch.autograd.grad(value, leaf, allow_unused=True)[0]
        return value.item(), torch.zeros_like(leaf) if gradient is None else gradient

    def _held_back(self, rises: bool, used: Tensor) -> float:
        """Return the share of samples whose ratio of probabilities is clipped where a descent would
        bring it back, and is not where the descent takes it: the lower of both signs' shares.

        0 where some sample is clipped as it should be.
        """
        up, down = (self._at(shift) for shift in (_SHIFT, -_SHIFT))
        # Descent makes an action likelier where the loss falls with its probability.
        likelier = (self._signs[:, 0] > 0) != rises
        onwards = torch.where(likelier, up, down)[used]
        back = torch.where(likelier, down, up)[used]
        if ((onwards == 0) & (back > 0)).any():
            return 0.0
        wrong, signs = (back == 0) & (onwards > 0), self._signs[used, 0]
        return min(wrong[signs > 0].float().mean().item(), wrong[signs < 0].float().mean().item())

    def _at(self, shift: float) -> Tensor:
        """Return the size of each sample's response to its weight, at shifted scores of actions."""
        scores = self._place.scores + shift * self._taken.reshape(self._place.scores.shape)
        weighted = self._gradient(self._weights, scores)
        plain = self._gradient(torch.zeros_like(self._weights), scores)
        sizes, unit = (weighted - plain).norm(dim=1), plain.norm(dim=1) + weighted.norm(dim=1)
        return sizes.where(sizes > _ROUNDING * unit, 0.0)

    def _along(self, gradient: Tensor) -> Tensor:
        """Return the cosine with that of the logarithm of the probability of the action taken."""
        direction = self._taken - self._rows(self._place.scores).softmax(dim=1)
        return torch.cosine_similarity(gradient, direction, dim=1, eps=1e-30)
