"""Whether a training can still come to learn. If it cannot, every further step is wasted.

A training is hopeless in two cases only, and both follow from its weights and gradients alone:

- A weight is NaN or infinite, and so is the loss. No update makes the weight finite again.
- Each trained tensor either gets no gradient, and has got none for `SETTLED` steps, or belongs to a
  layer that is given the same inputs for every sample. The first kind stays as it is. The second
  kind changes, and yet its layer gives the same outputs for every sample. Networks whose ReLUs are
  dead or whose sigmoids are saturated throughout come to this end.

"No gradient" and "every sample" refer to the kept batches and to the probes before. A unit that is
active for one sample in thousands may be missed.

A loss at the level of guessing is no such sign: a plateau, a small rate and fading gradients look
the same, and are merely slow.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from debugnn.doctor.causes.signals.wording import listed
from debugnn.doctor.evidence import Probe
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import first_tensor
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.watched_training import WatchedTraining

# The largest value of a gradient that counts as none. Adam divides it by its eps of 1e-8 at least:
# a step of the rate times 1e-12.
NO_GRADIENT = 1e-20
# Differences between samples, over the largest input, that are rounding.
SAME = 1e-6
# Steps without a gradient, after which little is left of the optimiser's momentum: 0.9^20 = 0.12.
SETTLED = 20
_BATCHES = 8  # most of the latest kept batches that are examined


@dataclass(eq=False)
class Standing:
    """A trained tensor's gradient and its layer's inputs, over some batches."""

    gradient: float = 0.0  # largest absolute value; infinite where one is NaN
    low: Tensor | None = None  # smallest and largest input over the samples, at each place
    high: Tensor | None = None
    unknown: bool = False  # its layer's inputs were not seen, or cannot be compared

    @property
    def unmoved(self) -> bool:
        """True if it gets no gradient."""
        return self.gradient <= NO_GRADIENT

    @property
    def blind(self) -> bool:
        """True if its layer is given the same inputs for every sample."""
        if self.unknown or self.low is None or self.high is None:
            return False
        largest = torch.maximum(self.low.abs(), self.high.abs()).max()
        return bool((self.high - self.low).max() <= SAME * largest)  # False of NaN

    def see(self, inputs: Tensor | None, axis: int | None) -> None:
        """Take note of its layer's inputs in a batch; `axis` is that of the samples."""
        if inputs is None or axis is None or inputs.dim() <= axis or not inputs.numel():
            self.unknown = True
            return
        inputs = inputs.detach().float()
        low, high = inputs.amin(axis), inputs.amax(axis)
        if self.low is not None and self.high is not None:
            if self.low.shape != low.shape:
                self.unknown = True
                return
            low, high = torch.minimum(low, self.low), torch.maximum(high, self.high)
        self.low, self.high = low, high


def why_hopeless(training: WatchedTraining, losses: Sequence[float]) -> str | None:
    """Return in a clause why the training cannot come to learn, None where it may.

    Args:
        losses: of all steps so far.
    """
    if losses and not math.isfinite(losses[-1]) and (spoilt := _not_finite(training.model)):
        return f"the loss and {listed(spoilt)} are not finite, and no update makes them so again"
    evidence = training.evidence
    dead = _dead_layers(evidence.probes)
    if not dead and any(group.get("weight_decay") for group in training.optimizer.param_groups):
        return None  # decay takes saturated units back; units at zero stay there
    model = training.current_model()
    kept = (*reversed(training.buffer.late), *training.buffer.early)
    batches = [batch for batch in kept if batch.targets is not None][:_BATCHES]
    if model is None or training.loss_fn is None or not batches:
        return None
    with training.undisturbed(), torch.enable_grad(), without_dropout(model, training=True):
        standings = _standings(training, model, batches)
    if standings is None:
        return None
    unmoved = [name for name, standing in standings.items() if standing.unmoved]
    since = _without_gradient_since(evidence.probes, unmoved)
    if since is None or evidence.loop.steps - since < SETTLED:
        return None
    told = f"since step {evidence.loop.steps_before + since} no gradient reaches {listed(unmoved)}"
    if blind := [name for name in standings if name not in unmoved]:
        told += f", and {listed(blind)} can tell no sample from another"
    return told + (f": all units after {listed(dead)} are zero" if dead else "")


def _not_finite(model: nn.Module) -> list[str]:
    named = ((n, p.detach()) for n, p in model.named_parameters() if p.requires_grad)
    return [name for name, weight in named if not torch.isfinite(weight).all()]


def _standings(
    training: WatchedTraining, model: nn.Module, batches: Sequence[Batch]
) -> dict[str, Standing] | None:
    """Return how each trained tensor stands; None once one is seen that can still learn."""
    groups = training.replica.groups if training.replica is not None else []
    held = {name for group in groups for name in group["names"]}
    named = {n: p for n, p in model.named_parameters() if n in held and p.requires_grad}
    modules = dict(model.named_modules())
    owners = {name: modules[name.rpartition(".")[0]] for name in named}
    standings = {name: Standing() for name in named}
    calls: Counter[nn.Module] = Counter()

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls[module] += 1
        for name, standing in standings.items():
            if owners[name] is module:
                standing.see(first_tensor((args, kwargs)), training.layout.axis)

    handles = [m.register_forward_pre_hook(note, with_kwargs=True) for m in set(owners.values())]
    try:
        for batch in batches:
            calls.clear()
            assert training.loss_fn is not None
            loss = training.loss_fn(batch.call(model), batch.targets)
            gradients = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for (name, standing), gradient in zip(standings.items(), gradients, strict=True):
                # A layer that is called at each step of a sequence is given several inputs.
                standing.unknown |= calls[owners[name]] != 1
                if gradient is not None:
                    largest = gradient.abs().max().item()
                    largest = math.inf if math.isnan(largest) else largest
                    standing.gradient = max(standing.gradient, largest)
                if not (standing.unmoved or standing.blind):
                    return None
    finally:
        for handle in handles:
            handle.remove()
    return standings


def _without_gradient_since(probes: Sequence[Probe], names: Sequence[str]) -> int | None:
    """Return the step of the probe from which on these tensors had no gradient, None without one.

    Probes hold the gradients of weights with two axes or more.
    """
    since = None
    for probe in reversed(probes):
        gradients = (probe.layers[name].gradient or 0.0 for name in names if name in probe.layers)
        if not probe.layers or not all(gradient <= NO_GRADIENT for gradient in gradients):
            break
        since = probe.step
    return since


def _dead_layers(probes: Sequence[Probe]) -> list[str]:
    """Return the layers whose units were all zero when activations were last looked at."""
    looked = next((p.activations for p in reversed(probes) if p.activations), [])
    return [activation.layer for activation in looked if activation.dead == 1.0]
