"""Probes of the layers: their gradients, updates and activations at some steps."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from debugnn.doctor.copies import undisturbed
from debugnn.doctor.evidence import Evidence, LayerFacts, Probe
from debugnn.doctor.observe import devices
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.operations import ActivationWatcher
from debugnn.doctor.observe.replica import Replica
from debugnn.tensor_stats import read_together

_SAMPLES = 8  # samples of a batch on which activations are measured
# The first probes measure everything. Later ones leave out the updates, and three in four of them
# leave out the activations too: a unit that is dead or saturated stays so.
_THOROUGH = 10
_EVERY_LATER = 4
_CHUNK = 2**23  # values of weights that are subtracted at once: their difference takes memory
_SMALL = 2**13  # most values of a gradient that is examined in every step


class LayerProbes:
    """Measures a model's parameters around an update, and its activations after it.

    Attributes:
        graded: names of the parameters that have had a gradient other than zero at a probe.
        arrived: names of those that have had any at a probe, be it zero.
    """

    not_in_state = ("_before",)

    def __init__(self, evidence: Evidence, model: nn.Module) -> None:
        self.graded: set[str] = set()
        self.arrived: set[str] = set()
        self._evidence = evidence
        self._model = model
        self._probe: Probe | None = None
        self._before: dict[str, Tensor] = {}  # weights before the update, in the replica's memory
        self._spare = False  # which may be written over: it holds the initial weights at first
        self._named: list[tuple[str, nn.Parameter]] = []  # as of the last probe
        self._parameters: list[nn.Parameter] = []  # these without their names
        self._small: list[nn.Parameter] = []  # of these, those looked at in every step

    def refresh(self, again: bool) -> None:
        """List the parameters, again where it is asked for: it takes as long as a small layer."""
        if again or not self._named:
            self._named = list(self._model.named_parameters())
            self._parameters = [p for _, p in self._named]
            self._small = [
                p for p in self._parameters if p.numel() <= _SMALL and not devices.waits(p)
            ]

    def has_gradients(self) -> bool:
        """Return True if any parameter has a gradient."""
        # No generator: its start takes as long as a comparison, in every step.
        for parameter in self._parameters:  # noqa: SIM110
            if parameter.grad is not None:
                return True
        return False

    def has_nonfinite_gradients(self, thorough: bool) -> bool:
        """Return True if a gradient holds NaN or infinity.

        NaN passes through every layer on its way to the first one, and each layer has a small
        tensor.

        Args:
            thorough: examine all tensors, not only small ones.
        """
        parameters = self._parameters if thorough else self._small
        gradients = [g for p in parameters if (g := p.grad) is not None]
        if not gradients:
            return False
        if True in [g.is_sparse or g.requires_grad for g in gradients]:
            gradients = [(g.coalesce().values() if g.is_sparse else g).detach() for g in gradients]
        total = sum(read_together(torch._foreach_norm(gradients)))
        # Norms of finite numbers can overflow.
        return not math.isfinite(total) and any(not torch.isfinite(g).all() for g in gradients)

    def measure_gradients(self, replica: Replica | None) -> None:
        """Begin a probe, before an update: the norms of gradients and weights.

        Args:
            replica: keeps the weights until `measure_updates`; without a copy updates are left out.
        """
        present = {n: p.grad.detach() for n, p in self._named if p.grad is not None}
        gradients = {n: gradient for n, gradient in present.items() if not gradient.is_sparse}
        weights = {n: p.detach() for n, p in self._model.named_parameters() if p.dim() >= 2}
        with torch.no_grad():
            sizes = dict(zip(weights, _norms(list(weights.values())), strict=True))
            pulls = dict(zip(gradients, _norms(list(gradients.values())), strict=True))
            if len(self._evidence.probes) < _THOROUGH:
                # Before the first update the copy holds these weights anyway.
                first = self._evidence.loop.optimizer_steps == 0
                kept = None if replica is None else replica.model if first else replica.current()
                self._spare = not first
                own = {} if kept is None else dict(kept.named_parameters())
                self._before = {n: own[n].detach() for n in weights if n in own}
        self.arrived.update(present)
        self.graded.update(n for n in present if pulls.get(n) != 0)  # a sparse one has no norm
        layers = {n: LayerFacts(pulls.get(n), size) for n, size in sizes.items()}
        self._probe = Probe(self._evidence.loop.steps, layers)

    def measure_updates(self) -> None:
        """Go on with the probe, after the update: how far the weights have moved."""
        if self._probe is None or not self._before:
            return
        weights = dict(self._model.named_parameters())
        for names in _chunks(self._before):
            moved = [
                self._before[n].sub_(weights[n].detach())
                if self._spare
                else self._before[n] - weights[n].detach()
                for n in names
            ]
            for name, update in zip(names, _norms(moved), strict=True):
                self._probe.layers[name].update = update
        self._before = {}

    @property
    def is_thorough(self) -> bool:
        """True if this probe measures activations, and compares the loss with the loss function."""
        taken = len(self._evidence.probes)
        return taken < _THOROUGH or taken % _EVERY_LATER == 0

    def finish(self, replica: nn.Module | None, call: Call | None, layout: Layout) -> None:
        """Measure activations, and add the probe to the evidence.

        Args:
            replica: a copy of the model as it is now; None leaves activations out.
            call: of this step's batch; None where it is not known.
            layout: where its samples lie.
        """
        probe = self._probe or Probe(self._evidence.loop.steps)
        if replica is not None and call is not None:
            watcher = ActivationWatcher()
            with undisturbed(model=replica), without_dropout(replica, training=True):
                watcher.watch(replica, layout.take(call, slice(_SAMPLES))[0])
            probe.activations, probe.inputs = watcher.activations, watcher.inputs
        self._evidence.probes.append(probe)

    def drop(self) -> None:
        """Forget the probe of this step."""
        self._probe = None

    def release(self) -> None:
        """Let go of the parameters."""
        self._named.clear()
        self._parameters.clear()
        self._small.clear()


def _chunks(tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """Yield the names of a few tensors at a time, of `_CHUNK` values in all or of a single one."""
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + tensor.numel() > _CHUNK:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor.numel()
    if names:
        yield names


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """Return L2 norms with one wait for a GPU; in float64 where float32's squares overflow."""
    if not tensors:
        return []
    norms = read_together(torch._foreach_norm(list(tensors)))
    return [
        n if math.isfinite(n) and n > 0 else torch.linalg.vector_norm(t.double()).item()
        for n, t in zip(norms, tensors, strict=True)
    ]
