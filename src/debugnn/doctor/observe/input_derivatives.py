"""Derivatives of the outputs with respect to the inputs, which are taken to put into a loss.

Physics-informed networks (Raissi et al. 2019, J. Comput. Phys. 378) compare such derivatives with a
differential equation.
"""

import weakref
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import Relay
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe import transforms
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.straight_pieces import is_straight, leaves_but_weights, weighted
from debugnn.doctor.observe.watched_training import WatchedTraining
from debugnn.doctor.troubles import guarded

_LOOKS = 8  # steps whose second derivatives are looked at
_PROBES = 4  # probes in which layers' inputs are watched although nobody takes a derivative
_LAYERS = 256  # most layers that are watched


class _Watched(NamedTuple):
    """An input, and the call of the model that it belongs to."""

    tensor: "weakref.ref[Tensor]"
    call: Call


class InputDerivatives:
    """Counts steps that take derivatives of second order, and those where these are zero.

    A hook on an input is called whenever a gradient reaches it. Where a graph of the gradient is
    built, `create_graph=True`, the gradient is to be a part of the loss. A hook on that gradient
    tells whether a later one that reaches the input is its derivative, or another output's. The
    first layers' inputs are watched too: a forward method may make the input that it takes
    derivatives by.

    `torch.func` shows how many derivatives it takes by how often it has wrapped the input.

    Args:
        evidence: where they are counted.
        model: the model that is watched.
    """

    not_in_state = (
        "_begun",
        "_watched",
        "_differentiated",
        "_used",
        "_found",
        "_last",
        "_call",
        "_by_function",
        "_handles",
        "_summed",
    )

    def __init__(self, evidence: Evidence, model: nn.Module) -> None:
        self.evidence = evidence
        self._model = model
        self._probes = 0  # that have watched layers without a derivative
        # Inputs that are watched in this step, by their ids; those whose gradient has come; and
        # those whose gradient has been differentiated since then.
        self._watched: dict[int, _Watched] = {}
        self._differentiated: set[int] = set()
        self._used: set[int] = set()
        # The backward pass of each second derivative of this step, and whether it is zero; and the
        # latest backward pass that has added to the weights' gradients: the loss's, at the end.
        self._found: list[tuple[int, bool]] = []
        self._last: int | None = None
        self._call: Call | None = None  # whose inputs second derivatives are taken by
        # Of each tensor of that call: torch.func takes two derivatives by it.
        self._by_function: list[bool] = []
        self._begun: Call | None = None  # whose layers are watched
        self._handles: list[Any] = []  # of hooks on the layers
        self._summed: list[Any] = []  # of hooks on the weights

    @property
    def looks(self) -> bool:
        """True as long as steps are looked at."""
        return self.evidence.network.second_derivatives < _LOOKS

    def watch_layers(self, call: Call) -> None:
        """Look at what reaches the inputs of the first layers of a forward pass that begins."""
        if self._handles or not self.looks or self._probes >= _PROBES:
            return
        self._probes += 1
        self._begun = call
        hook = Relay(self, "_watch_layer")
        layers = weighted(self._model)[:_LAYERS]
        self._handles = [layer.register_forward_pre_hook(hook) for layer in layers]

    def watch(self, call: Call) -> None:
        """Look at what reaches the inputs of a forward pass, until `clear`."""
        self.ignore_layers()
        if not self.looks:
            return
        for tensor in call.tensors():
            self._watch(tensor, call)

    def note_transformed(self, call: Call) -> None:
        """Look at how many derivatives `torch.func` takes by the inputs of a forward pass."""
        taken = map(transforms.derivatives_by, call.tensors())
        if self.looks and max(taken, default=0) > 1:
            self._call = call.map(transforms.unwrapped)
            self._by_function = [transforms.derivatives_by(t) > 1 for t in call.tensors()]

    def ignore_layers(self) -> None:
        """Take the hooks off the layers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._begun = None

    @guarded("derivatives with respect to a layer's inputs")
    def _watch_layer(self, module: nn.Module, args: tuple) -> None:
        given = args[0] if args else None
        if not isinstance(given, Tensor) or not given.requires_grad or transforms.is_active():
            return
        leaves = leaves_but_weights(given)
        if leaves and self._begun is not None:  # without leaves it is a hidden layer's input
            for tensor in (given, *leaves):
                self._watch(tensor, self._begun)

    def _watch(self, tensor: Tensor, call: Call) -> None:
        key = id(tensor)
        known = self._watched.get(key)
        if not tensor.requires_grad or not tensor.is_floating_point():
            return
        if known is None or known.tensor() is not tensor:
            self._watched[key] = _Watched(weakref.ref(tensor), call)
            self._differentiated.discard(key)
            tensor.register_hook(partial(_at, Relay(self, "_note"), key))

    def clear(self) -> None:
        """Look no further at the passes of a step."""
        if not (self._begun or self._handles or self._watched or self._by_function):
            return
        self.ignore_layers()
        self._watched.clear()
        self._differentiated.clear()
        self._used.clear()
        self._found.clear()
        self._last = None
        for handle in self._summed:
            handle.remove()
        self._summed.clear()
        self._by_function.clear()
        self._call = None

    @guarded("derivatives with respect to the inputs")
    def _note(self, key: int, gradient: Tensor) -> None:
        if not torch.is_grad_enabled() or key not in self._watched:
            return  # a gradient of the loss itself
        zero = not bool(gradient.any())
        if key in self._used:
            self._used.discard(key)
            self._found.append((torch._C._current_graph_task_id(), zero))
            self._call = self._watched[key].call
        if not zero and gradient.requires_grad:
            self._probes = 0
            self._watch_weights()
            self._differentiated.add(key)
            gradient.register_hook(partial(_at, Relay(self, "_note_use"), key))

    def _note_use(self, key: int, gradient: Tensor) -> None:
        if torch.is_grad_enabled() and key in self._differentiated:
            self._used.add(key)

    def _watch_weights(self) -> None:
        """Note from here on which backward pass adds to the weights' gradients, until `clear`."""
        if not self._summed:
            hook = Relay(self, "_note_sum")
            weights = [p for p in self._model.parameters() if p.requires_grad and p.is_leaf]
            self._summed = [w.register_post_accumulate_grad_hook(hook) for w in weights[:_LAYERS]]

    def _note_sum(self, weight: Tensor) -> None:
        self._last = torch._C._current_graph_task_id()

    def count(self, training: WatchedTraining) -> None:
        """Count the second derivatives of a step, when it ends."""
        network = self.evidence.network
        # Some optimisers differentiate the loss's gradient: it is no part of the loss.
        zero = [zero for backward, zero in self._found if backward != self._last]
        if self._call is None or not self.looks or not (zero or self._by_function):
            return
        network.second_derivatives += 1
        if zero and all(zero):
            network.flat_derivatives += 1
            return
        model = training.current_model()
        if model is not None:
            with training.undisturbed():
                network.flat_layers += is_straight(model, self._own_call())

    def _own_call(self) -> Call:
        """Return the call with tensors of its own, which require a gradient if derivatives do."""
        call = self._call or Call()
        needed = [t.requires_grad for t in call.tensors()]
        asked = iter(self._by_function or needed)
        return call.map(lambda t: t.detach().clone().requires_grad_(next(asked)))


def _at(note: Relay, key: int, gradient: Tensor) -> None:
    note(key, gradient)
