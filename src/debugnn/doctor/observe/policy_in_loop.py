"""A policy's loss that a loop computes itself: whether it makes rewarded actions rarer.

The gradient that arrives at the scores of an action is that of the logarithm of its probability
times a number (Williams 1992, REINFORCE). That number is compared with the loop's variables: where
one of them is it, up to a factor, the factor's sign says which way the policy goes.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import PolicyFacts
from debugnn.doctor.observe.callers import scope_with
from debugnn.doctor.observe.calls import first_tensor, scores_of
from debugnn.doctor.observe.loss_function.policy import is_a_cost, is_a_length, is_a_reward

_FEWEST, _MOST = 8, 2**14  # actions of a step that are looked at
_LOOKS = 3  # steps that have to agree, and no other may say the contrary
_EXPLAINED = 0.8  # share of a gradient that is that of the actions taken; the rest is entropy
_AGREE = 0.95  # share of the components of gradients that have the sign of their sums
_ALONG = 0.9  # cosine of the numbers that weight actions with a variable of the loop
_CORRELATED = 0.3  # of these numbers with lengths, from which they are made of them
_EQUAL = 1e-4  # difference of two logarithms of a probability that are one
_SURE = 1e-6  # what probabilities may sum to beside 1
_ACTIONS = ("a", "act", "acts", "action", "actions", "chosen", "move", "moves", "taken")


class PolicyInLoop:
    """Compares the gradients of scores with the numbers in the loop's variables.

    Args:
        model: the policy, whose attributes may hold what was noted of an episode.

    Attributes:
        rising: of each step looked at, whether actions of a positive number became rarer.
    """

    not_in_state = ("_scores", "_gradients")

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.rising: list[bool] = []
        self._called: list[str] = []
        self._scores: list[Tensor] = []  # of each pass, (…, actions)
        self._gradients: dict[int, Tensor] = {}  # number of the pass → gradient of its scores

    def watch(self, outputs: Any) -> None:
        """Note what a pass returns, scores (…, actions) first, and the gradient that arrives there.

        Real actions have their means in the place of scores. One state may be no batch.
        """
        found = scores_of(outputs)
        scores = first_tensor(outputs) if found is None else found
        if scores is None or not scores.dim() or scores.is_leaf or len(self._scores) >= _MOST:
            return
        scores.register_hook(partial(Relay(self, "_note_gradient"), len(self._scores)))
        self._scores.append(scores.detach())

    def _note_gradient(self, number: int, gradient: Tensor) -> None:
        self._gradients[number] = gradient.detach()

    def compare(self) -> None:
        """Compare the gradients with what the loop's variables hold now, before its update."""
        numbers = sorted(self._gradients)
        found = [(self._scores[n], self._gradients[n]) for n in numbers]
        if not found or len({scores.shape[-1] for scores, _ in found}) > 1:
            return
        # Checked first: a language model's scores are too many to be copied.
        if not _FEWEST <= sum(each.numel() // each.shape[-1] for each, _ in found) <= _MOST:
            return
        own = {n: v for n, v in vars(self._model).items() if not n.startswith("_")}
        scope = scope_with(is_a_reward, own)
        if scope is None:
            return
        lengths = set(filter(is_a_length, scope.variables | scope.others))
        # Where a function is called so, as one that measures a way, its values are not seen.
        measured = lengths - scope.variables - {"time"}  # a module's name
        if any(map(is_a_cost, scope.variables | scope.others)) or measured:
            return
        scores, gradient = (
            torch.cat([each[i].reshape(-1, each[i].shape[-1]) for each in found]).cpu().double()
            for i in (0, 1)
        )
        variables = scope.numbers(len(scores))
        for weights in _candidates(gradient, scores, variables, scope.numbers(scores.numel())):
            along = {
                name: _cosine(weights, values) > 0
                for name, values in variables.items()
                if is_a_reward(name) and _is_a_factor(weights, values)
            }
            costs = any(
                abs(_cosine(_centred(weights), _centred(variables[name]))) > _CORRELATED
                for name in lengths & variables.keys()
            )
            if along and len(set(along.values())) == 1 and not costs:
                self.rising.append(next(iter(along.values())))
                self._called = sorted(along)
                return

    def clear(self) -> None:
        """Forget the passes of a step."""
        if self._scores:
            self._scores, self._gradients = [], {}

    def facts(self) -> PolicyFacts | None:
        """Return what all steps say, None where they are few or contradict each other."""
        if len(self.rising) < _LOOKS or len(set(self.rising)) > 1:
            return None
        return PolicyFacts(rises=self.rising[0], called=self._called)


def _candidates(
    gradient: Tensor,
    scores: Tensor,
    variables: Mapping[str, Tensor],
    larger: Mapping[str, Tensor],
) -> Iterator[Tensor]:
    """Yield what may weight the logarithm of each action's probability, (N,).

    Args:
        gradient: of the loss with respect to the scores, (N, actions).
        scores: of numbered actions; or means of real ones.
        variables: of the loop, by name, with a number for each action.
        larger: the same with a number for each score or mean.
    """
    if scores.shape[1] > 1:
        found = (_weights(gradient, scores, actions) for actions in _actions(variables, scores))
        yield from (weights for weights in found if weights is not None)
    for name, values in larger.items():
        if _is_an_action(name) and values.is_floating_point():
            weights = _weights_of_real(gradient, values.reshape(scores.shape) - scores)
            if weights is not None:
                yield weights


def _weights(gradient: Tensor, scores: Tensor, actions: Tensor) -> Tensor | None:
    """Return what the logarithm of each action's probability is multiplied with, (N,).

    Args:
        gradient: of the loss with respect to the scores, (N, actions).
        scores: logits, probabilities or their logarithms.
        actions: the numbers of the actions taken, (N,).

    Returns:
        None where the gradient is not that of such a sum.
    """
    taken = torch.zeros_like(scores).scatter_(1, actions[:, None], 1.0)
    if _are_probabilities(scores):
        plain = taken / scores.clamp_min(1e-30)
        directions = plain, plain - 1.0  # the second one where they are brought to a sum of 1
    else:
        directions = taken, taken - scores.softmax(dim=1)
    for direction in directions:
        size = direction.square().sum(dim=1).clamp_min(1e-30)
        weights = (gradient * direction).sum(dim=1) / size
        rest = gradient - weights[:, None] * direction
        if rest.square().sum() <= (1 - _EXPLAINED) * gradient.square().sum():
            return weights
    return None


def _weights_of_real(gradient: Tensor, away: Tensor) -> Tensor | None:
    """Return the same of real actions, whose distribution is normal, up to a factor of all.

    Args:
        gradient: of the loss with respect to the means, (N, size).
        away: the actions less their means.

    Returns:
        None where the components of a gradient do not agree.
    """
    along = gradient * away
    weights = along.sum(dim=1)
    agree = (along * weights[:, None] >= 0).double().mean()
    return weights / away.square().sum(dim=1).clamp_min(1e-30) if agree > _AGREE else None


def _are_probabilities(scores: Tensor) -> bool:
    return bool((scores >= 0).all() and ((scores.sum(dim=1) - 1).abs() < _SURE).all())


def _is_a_factor(weights: Tensor, values: Tensor) -> bool:
    """Return whether some numbers are others times one number, nearly, where they are not zero.

    Around their means too: rewards that are all 1 are along any numbers of one sign. Actions after
    an episode's end, and those that are clipped, have no weight.
    """
    used = weights != 0
    weights, values = weights[used], values[used]
    if len(weights) < _FEWEST:
        return False
    whole, around = _cosine(weights, values), _cosine(_centred(weights), _centred(values))
    return min(abs(whole), abs(around)) > _ALONG and whole * around > 0


def _centred(values: Tensor) -> Tensor:
    return values.double() - values.double().mean()


def _cosine(one: Tensor, other: Tensor) -> float:
    return torch.cosine_similarity(one.double(), other.double(), dim=0).item()


def _is_an_action(name: str) -> bool:
    return name.lower().rpartition("_")[2] in _ACTIONS


def _actions(variables: Mapping[str, Tensor], scores: Tensor) -> Iterator[Tensor]:
    """Yield what may be the numbers of the actions taken, (N,): variables that are called so, and
    what variables hold that are logarithms of their probabilities."""
    count = scores.shape[1]
    log = scores.log() if _are_probabilities(scores) else scores.log_softmax(dim=1)
    logarithms = []
    for values in variables.values():
        if values.is_floating_point():
            off, action = (log - values[:, None]).abs().min(dim=1)
            if (off < _EQUAL).all():
                logarithms.append(action)
    # The probabilities themselves tell more than what a variable is called.
    named = (
        values.long()
        for name, values in variables.items()
        if _is_an_action(name)
        and bool(((values == values.round()) & (values >= 0) & (values < count)).all())
    )
    yield from chain(logarithms, named)
