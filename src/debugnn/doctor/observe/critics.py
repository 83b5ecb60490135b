"""What losses of other networks ask of a watched network of values, as an actor's of its critic.

The gradient that arrives at a critic's output, and goes on to the network that made its input,
tells which way that network is trained: it is one positive number for all samples where the value
is minimised.
"""

import re
import weakref
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import JudgedFacts
from debugnn.doctor.observe.callers import line_of_caller, names_of_callers, what_is_called
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.loss_function.variable_names import variables
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.troubles import guarded

_NODES = 10_000  # most nodes of a graph that are searched
_LOOKS = 24  # most graphs that are searched
_SEEN = 12  # most gradients that are looked at
_AT_ONCE = 4  # of these, those that no probe has to be due for
_TWO = 2  # values of targets that are labels of two kinds, doctors, samples
_ROUNDING = 1e-3  # relative, of half precision too

# Words for what is to be high, and those of them that need another one for who acts.
_HIGH = {"reward", "rewards", "return", "returns",
         "qnet", "qnetwork", "qvalue", "qvalues", "qfunction"}  # fmt: skip
_Q = {"q", "qs", "qf"}
# A critic is one of rewards where there is a word for them, or most of its targets are below zero:
# costs are not.
_CRITICS = {"critic", "critics"}
_REWARDS = {"reward", "rewards", "return", "returns"}
_BELOW_ZERO = 0.5  # share of the targets' sizes
_ACTING = {"act", "action", "actions", "actor", "agent", "obs", "observation", "observations", "pi",
           "policy", "state", "states"}  # fmt: skip
# Words for what is to be low and no number below zero, as costs are.
_COSTS = {"cost", "costs"}
# Words for other things that are to be low, for two that play against each other, and for what a
# generator has to do with.
_LOW = {"regret", "energy", "energies", "risk", "hazard", "safe", "safety", "constraint",
        "constraints", "violation", "violations", "lagrangian", "qc",
        "adversary", "adversarial", "attack", "attacker", "opponent", "protagonist", "antagonist",
        "minimax", "fake", "discriminator", "gan", "wgan"}  # fmt: skip
# The same where one name joins them with a word for what judges, and where they stand before one:
# `critic_loss` is no network of losses.
_JOINED = {"penalty", "penalties", "distance", "delay", "variance", "uncertainty", "novelty",
           "collision", "failure", "danger", "drag"} | _COSTS  # fmt: skip
_BEFORE = {"loss", "error"}
_MODELS = {"model", "net", "network", "predictor", "regressor"}
_JUDGES = {"critic", "critics", "value", "values", "q", "qf"} | _MODELS
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")

_watched: "weakref.WeakSet[Critic]" = weakref.WeakSet()


class _Graph(NamedTuple):
    others: dict[int, Node]  # id of a parameter of another network → the node that adds up its grad
    altered: bool  # a function of the user's own may turn gradients round


class Critic:
    """Notes what is asked of the watched model by networks that make its inputs.

    The networks have doctors of their own. A gradient counts where the model is fitted to values by
    its own loss, and in steps of its own that other networks are not trained by.

    Args:
        training: what is watched.

    Attributes:
        evidence: the training's.
    """

    not_in_state = ("_carried", "_plain")

    def __init__(self, training: WatchedTraining) -> None:
        self.evidence = training.evidence
        self._training = training
        self._facts = JudgedFacts(critic="")
        self._of_values: bool | None = None  # by its own loss; None: not known yet
        self._looks = 0
        self._own_names: set[str] = set()  # in the code that trains it
        self._joined = False  # another network is trained by its own loss
        self._carried = self._plain = False  # passes since the last step, with such inputs
        _watched.add(self)

    @guarded("what other networks' losses ask of the model")
    def note_pass(self, call: Call, outputs: Any) -> None:
        """Note a pass with gradients, which ends.

        Args:
            call: how the model was called.
            outputs: as they are.
        """
        if len(_watched) < _TWO:
            return
        if all(tensor.grad_fn is None for tensor in call.tensors()):
            self._plain = True
            if not self._own_names:
                self._own_names = names_of_callers()
            return
        self._carried = True
        if self._is_looking():
            self._looks += 1
            self._look([t for t in Call((outputs,)).tensors() if t.grad_fn is not None])

    def note_step(self) -> None:
        """Note that a step of the model's own ends."""
        self._joined |= self._carried and not self._plain
        self._carried = self._plain = False

    def release(self) -> None:
        """Be nobody's critic any more."""
        _watched.discard(self)

    def _is_looking(self) -> bool:
        if len(_watched) < _TWO or self._joined or self._looks >= _LOOKS:
            return False
        seen = self._facts.seen
        due = self._training.probe_due or seen < _AT_ONCE
        return due and seen < _SEEN and self._is_of_values()

    def _is_of_values(self) -> bool:
        """Return whether its own loss fits one number a sample to values of more than two kinds."""
        buffer = self._training.buffer
        if self._of_values is None and self._training.task is not None and buffer.early:
            loss, targets = self.evidence.loss, buffer.early[0].targets
            fitted = loss.confirmed and loss.link == "identity" and not loss.bernoulli
            shape = loss.shapes[0] if loss.shapes else []
            alone = len(shape) == 1 or shape[-1:] == [1]
            self._of_values = (
                fitted and alone and isinstance(targets, Tensor) and len(targets.unique()) > _TWO
            )
        return bool(self._of_values)

    def _look(self, outputs: list[Tensor]) -> None:
        """Wait for the gradients of outputs whose graph goes on to another network."""
        graph = _graph([t.grad_fn for t in outputs if t.grad_fn is not None], self._training.model)
        if graph.altered or not graph.others:
            return
        moved = {other: other._moved(graph.others) for other in list(_watched) if other is not self}
        reached = [other for other, nodes in moved.items() if nodes]
        one = reached[0] if len(reached) == 1 else None
        if one is not None:
            self._note_names(one)
        end = (list(graph.others.values()) if one is None else moved[one])[0]
        maker = None if one is None else weakref.ref(one)
        for tensor in outputs:
            tensor.register_hook(partial(_at, Relay(self, "_note_gradient"), end, maker))

    def _moved(self, parameters: dict[int, Node]) -> list[Node]:
        """Return the nodes of those parameters that the model has and its optimiser steps."""
        groups = self._training.optimizer.param_groups
        held = {id(p) for group in groups for p in group["params"]}
        held &= {id(p) for p in self._training.model.parameters()}
        return [node for key, node in parameters.items() if key in held]

    def _note_names(self, actor: "Critic") -> None:
        """Note what the code calls the model, and whether it has words for costs.

        Args:
            actor: the network that is trained by what the model says.
        """
        facts, called = self._facts, what_is_called()
        names = names_of_callers() | self._own_names
        kinds = {type(self._training.model).__name__, type(actor._training.model).__name__}
        for function in (self._training.loss_fn, actor._training.loss_fn):
            names |= variables(function) if function is not None else set()
        facts.low |= any(_is_low(name) for name in names | kinds)
        facts.costs |= any(not _COSTS.isdisjoint(_words(name)) for name in names | kinds)
        facts.below_zero = self._below_zero()
        facts.critic = called or type(self._training.model).__name__
        facts.line = facts.line or line_of_caller()
        acting = any(not _ACTING.isdisjoint(_words(name)) for name in names | kinds)
        own = [called or "", type(self._training.model).__name__]
        rewarded = facts.below_zero > _BELOW_ZERO or any(
            not _REWARDS.isdisjoint(_words(name)) for name in names | kinds
        )
        facts.called = [
            name
            for name in own
            if _is_high(name, acting=acting) or (rewarded and not _CRITICS.isdisjoint(_words(name)))
        ]

    @guarded("the gradient at the outputs")
    def _note_gradient(
        self, end: Node, maker: "weakref.ref[Critic] | None", gradient: Tensor
    ) -> None:
        if torch.is_grad_enabled() or not _goes_on_to(end):
            return  # a derivative that a loss is made of, or that the loop uses as it likes
        values = gradient.detach()[gradient.detach() != 0].double()
        if len(values) < _TWO or not torch.isfinite(values).all():
            return
        actor = None if maker is None else maker()
        low, high = values.min().item(), values.max().item()
        same = high - low <= _ROUNDING * max(abs(low), abs(high))
        rising = actor is not None and actor._rises()
        self._facts.seen += 1
        self._facts.lowered += same and (low > 0) is not rising
        if actor is not None and actor._training.task is not None:
            judged = actor.evidence.loss.judged
            judged[:] = [each for each in judged if each.critic != self._facts.critic]
            judged.append(self._facts)

    def _below_zero(self) -> float:
        """Return how much of the targets' sizes, of all kept batches, is of those below zero."""
        kept = [batch.targets for batch in self._training.buffer.batches]
        targets = torch.cat([t.double().flatten() for t in kept if isinstance(t, Tensor)])
        return (targets.clamp(max=0).abs().sum() / targets.abs().sum()).nan_to_num().item()

    def _rises(self) -> bool:
        """Return whether the optimiser goes up the gradient."""
        return any(group.get("maximize") for group in self._training.optimizer.param_groups)


def _at(note: Relay, end: Node, maker: "weakref.ref[Critic] | None", gradient: Tensor) -> None:
    note(end, maker, gradient)


def _goes_on_to(node: Node) -> bool:
    """Return whether the backward pass that runs adds to the gradient of a parameter."""
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a derivative with respect to the parameter, which is not added to it
        return False


def _graph(nodes: list[Node], model: nn.Module) -> _Graph:
    """Return where a graph ends, without the model's own parameters."""
    own = {id(parameter) for parameter in model.parameters()}
    others: dict[int, Node] = {}
    altered, waiting, seen = False, list(nodes), set(nodes)
    while waiting and len(seen) < _NODES:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, nn.Parameter) and id(leaf) not in own:
            others[id(leaf)] = node
        altered |= isinstance(node, BackwardCFunction) and not _is_of_torch(node)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return _Graph(others, altered)


def _is_of_torch(node: Any) -> bool:
    return node._forward_cls.__module__.partition(".")[0] == "torch"


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _is_high(name: str, acting: bool) -> bool:
    words = set(_words(name))
    return bool(words & _HIGH) or (bool(words & _Q or {"action", "value"} <= words) and acting)


def _is_low(name: str) -> bool:
    words = _words(name)
    if not _LOW.isdisjoint(words):
        return True
    if not (_JOINED.isdisjoint(words) or _JUDGES.isdisjoint(words)):
        return True
    return any(one in _BEFORE and next_ in _MODELS for one, next_ in pairwise(words))
