"""Whether the gradient of a hand-written recurrence goes back from step to step.

A recurrence in Python calls a layer once for each position of a sequence. Where its state is handed
on without its graph (by `.data`, `.detach()` or numpy), an output depends on all
positions and its gradient reaches the last one alone. Steps that are taken under `no_grad` as a
whole have no graph that could be cut: that is meant, and not looked at.

The gradient is followed to where the sequence enters the network: to the inputs if they are real
numbers; else to the vectors that are made of its symbols, by an embedding or as one-hot codes, all
at once or in one operation for each position.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from debugnn.doctor.copies import hookable
from debugnn.doctor.evidence import RecurrenceFacts
from debugnn.doctor.observe.callers import line_of_caller
from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.layout import Layout, samples_axis
from debugnn.doctor.observe.outcome import Predicted
from debugnn.doctor.observe.perturbation import differ
from debugnn.doctor.observe.samples import first_of_each
from debugnn.doctor.observe.simple_models import simple_skill
from debugnn.doctor.observe.task import Task, score
from debugnn.random_state import random_state, set_random_state

_LEAST_STEPS = 4  # fewest steps of a sequence in which one step differs from all steps
_SAMPLES = 16  # samples of the batch that are examined
_NUDGE = 0.05  # change of a position, over the root mean square of all; twice that too
_TRIES = 4  # positions that are changed to find one that the outputs depend on
_FURTHER = 2  # steps from it to another one, whose trace is looked for in the states handed on
_CUTS = {
    Tensor.detach: ".detach()",
    Tensor.detach_: ".detach_()",
    Tensor.data.__get__: ".data",  # type: ignore[attr-defined]
    Tensor.numpy: ".numpy()",
    Tensor.tolist: ".tolist()",
    Tensor.item: ".item()",
}


class _Entries(NamedTuple):
    """Where the positions of a sequence enter a network as vectors."""

    source: Hashable | None  # what makes the vectors; None: the inputs are vectors
    tensors: list[Tensor]  # one of all positions, or one for each operation
    whole: bool  # one of all positions


class _Nudge(NamedTuple):
    source: Hashable
    number: int  # of the operation of this source
    change: Callable[[Tensor], Tensor]


class _Watched(NamedTuple):
    """A forward pass with its graph."""

    output: Tensor | None
    calls: dict[str, list[Tensor]]  # module with weights of its own → its outputs, call by call
    vectors: dict[Hashable, list[Tensor]]  # what makes vectors of symbols → these, in order
    cuts: dict[str, str]  # line of the person's code that leaves the graph → by what
    handed: dict[str, list[Tensor]]  # the same line → copies of what leaves the graph there


class _PassWatcher(TorchFunctionMode):
    """Notes where tensors are taken out of the graph, and where symbols become vectors.

    Args:
        of_symbols: whether vectors of symbols are noted.
        nudge: a change of some of them.
    """

    def __init__(self, of_symbols: bool, nudge: _Nudge | None) -> None:
        super().__init__()
        self.cuts: dict[str, str] = {}
        self.handed: dict[str, list[Tensor]] = {}
        self.vectors: dict[Hashable, list[Tensor]] = {}
        self._of_symbols, self._nudge = of_symbols, nudge

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _CUTS and args and isinstance(args[0], Tensor) and args[0].requires_grad:
            line = line_of_caller()
            if line is not None:
                self.cuts[line] = _CUTS[func]
                self.handed.setdefault(line, []).append(args[0].detach().clone())
        result = func(*args, **(kwargs or {}))
        if self._of_symbols and isinstance(result, Tensor) and torch.is_grad_enabled():
            return self._vectors(func, result, tree_leaves((args, kwargs)))
        return result

    def _vectors(self, func: Any, result: Tensor, given: list[Any]) -> Tensor:
        """Return the result of an operation, changed and with a graph where it is to be so."""
        tensors = [each for each in given if isinstance(each, Tensor)]
        symbols = any(not t.is_floating_point() and t.dtype != torch.bool for t in tensors)
        if not symbols or not result.is_floating_point() or result.dim() < 2:
            return result
        tables = tuple(id(t) for t in tensors if isinstance(t, nn.Parameter))
        source = (func, tables, result.shape)
        found = self.vectors.setdefault(source, [])
        nudge = self._nudge
        if nudge is not None and (nudge.source, nudge.number) == (source, len(found)):
            result = nudge.change(result)
        entry = result if result.requires_grad else result.detach().requires_grad_()
        found.append(entry)
        return entry if entry is result else entry.clone()  # a leaf must not change in place


def recurrence_facts(model: nn.Module, call: Call, layout: Layout) -> RecurrenceFacts | None:
    """Find out whether outputs depend on positions of a sequence that no gradient goes back to.

    Args:
        model: a copy, its dropout off. Its buffers may move.
        call: of a batch.
        layout: where its samples lie; the other one of the first two axes is the sequence's.

    Returns:
        None without a layer that is called at each position, or where the outputs depend on none
        that is not reached.
    """
    call, _ = layout.take(call, slice(_SAMPLES))
    inputs = layout.inputs(call)
    if layout.axis is None or inputs is None or not is_plain(inputs) or inputs.dim() < 2:
        return None
    steps = inputs.shape[1 - layout.axis]
    if steps < _LEAST_STEPS:
        return None
    state, values = random_state(inputs.device), inputs.is_floating_point()

    def run(changed: Call, nudge: _Nudge | None = None) -> _Watched:
        set_random_state(inputs.device, state)
        watcher = _PassWatcher(not values, nudge)
        with torch.enable_grad(), _outputs_of_layers(model) as calls, watcher:
            output = first_tensor(changed(model))
        return _Watched(output, calls, watcher.vectors, watcher.cuts, watcher.handed)

    entry: Tensor | None = inputs.detach().clone().requires_grad_() if values else None
    seen = run(call if entry is None else call.exchanged(inputs, entry))
    repeated = {name: found for name, found in seen.calls.items() if len(found) >= steps - 1}
    if not repeated or seen.output is None or not seen.output.requires_grad:
        return None
    found = (
        [_Entries(None, [entry], whole=True)]
        if entry is not None
        else _of_symbols(seen, inputs, steps)
    )
    for entries in found:
        nudged = _NudgedPass(call, inputs, entries, layout.axis, run)
        for end in (steps - 1, 0):
            facts = _facts_of(seen, repeated, entries, inputs, layout.axis, end, nudged)
            if facts is not None:
                return facts
    return None


def _of_symbols(seen: _Watched, inputs: Tensor, steps: int) -> list[_Entries]:
    """Return where vectors are made of all symbols at once, or of those of one position a time."""
    found = []
    for source, tensors in seen.vectors.items():
        if len(tensors) == 1 and tensors[0].shape[:2] == inputs.shape[:2]:
            found.append(_Entries(source, tensors, whole=True))
        elif len(tensors) >= steps - 1:
            found.append(_Entries(source, tensors, whole=False))
    return found


class _NudgedPass(NamedTuple):
    """Repeats a pass with one position of a sequence a little different."""

    call: Call
    inputs: Tensor
    entries: _Entries
    axis: int  # of the samples
    run: Callable[..., _Watched]

    def at(self, place: int, size: float) -> _Watched:
        """Return the pass with the position changed by `size`, in root mean squares."""

        def nudge(tensor: Tensor) -> Tensor:
            noise = torch.Generator().manual_seed(0)
            changed = tensor.detach().clone()
            part = changed.select(1 - self.axis, place) if self.entries.whole else changed
            drawn = torch.randn(part.shape, generator=noise).to(tensor)
            part.add_(size * tensor.detach().square().mean().sqrt() * drawn)
            return changed

        source = self.entries.source
        if source is None:
            return self.run(self.call.exchanged(self.inputs, nudge(self.inputs)))
        number = 0 if self.entries.whole else place
        return self.run(self.call, _Nudge(source, number, nudge))


@contextmanager
def _outputs_of_layers(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect the outputs of modules that have trainable parameters of their own."""
    found: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None and tensor.requires_grad:
                found.setdefault(name, []).append(tensor)

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in hookable(model)
        if name and any(p.requires_grad for p in module.parameters(recurse=False))
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _facts_of(
    seen: _Watched,
    repeated: dict[str, list[Tensor]],
    entries: _Entries,
    inputs: Tensor,
    axis: int,
    end: int,
    nudged: _NudgedPass,
) -> RecurrenceFacts | None:
    """Return the facts of the outputs at one end of the sequence; of all, where they have no such
    axis. None where they depend on no position without a gradient, or where there is none at all.
    """
    time, steps = 1 - axis, inputs.shape[1 - axis]

    def parted(output: Tensor) -> Tensor:
        flat = output.shape[:1] == (inputs.shape[0] * inputs.shape[1],)
        return output.unflatten(0, inputs.shape[:2]) if flat else output

    def of(output: Tensor) -> Tensor:
        output = parted(output)
        return output.select(time, end) if each_step else output

    if seen.output is None:
        return None
    each_step = parted(seen.output).shape[:2] == inputs.shape[:2]
    output = of(seen.output)
    noise = torch.Generator().manual_seed(1)
    pull = torch.randn(output.shape, generator=noise).to(output)
    layers = [tensor for found in repeated.values() for tensor in found]
    gradients = torch.autograd.grad(
        (output * pull).sum(), [*entries.tensors, *layers], allow_unused=True, retain_graph=True
    )
    of_entries = gradients[: len(entries.tensors)]
    reached = _reached(entries, of_entries, axis, inputs.shape[axis])
    if reached is None:
        return None
    anywhere = reached.any(dim=0)
    if anywhere.all() or not anywhere.any():
        return None
    change = _change_without_gradient(output, of, anywhere.tolist(), nudged)
    if change is None:
        return None
    if not _returns(seen, repeated, change.near, nudged.at(change.further, 2 * _NUDGE)):
        return None
    order = iter(gradients[len(entries.tensors) :])
    idle = {
        name: sum(g is None or not g.any() for g in (next(order) for _ in found))
        for name, found in repeated.items()
    }
    follows = {
        name: _changed(old, change.near.calls.get(name, [])) > 1 for name, old in repeated.items()
    }
    layer = max(idle, key=lambda name: (follows[name], idle[name]))
    line, by = next(iter(seen.cuts.items())) if len(seen.cuts) == 1 else (None, None)
    return RecurrenceFacts(
        layer=layer,
        steps=steps,
        each_step=each_step,
        reached=int(reached.sum(dim=1).max()),
        uneven=change.uneven,
        calls=len(repeated[layer]),
        idle=idle[layer],
        line=line,
        cut_by=by,
        end=-1 if end else 0,
    )


def _reached(
    entries: _Entries, gradients: Sequence[Tensor | None], axis: int, count: int
) -> Tensor | None:
    """Return which samples' positions have a gradient: (samples, positions), or (samples, entries).

    None where samples lie on no known axis, or a gradient is not finite.

    Args:
        gradients: of the entries.
        axis: of the samples.
        count: number of samples.
    """
    if entries.whole:
        (gradient,) = gradients
        if gradient is None or not torch.isfinite(gradient).all():
            return None
        moved = gradient.movedim((axis, 1 - axis), (0, 1))
        return (moved != 0).reshape(*moved.shape[:2], -1).any(dim=2)
    found = []
    for tensor, gradient in zip(entries.tensors, gradients, strict=True):
        own = samples_axis(tensor, count, 0)
        if own is None or (gradient is not None and not torch.isfinite(gradient).all()):
            return None
        known = torch.zeros_like(tensor) if gradient is None else gradient
        found.append((known.movedim(own, 0) != 0).reshape(count, -1).any(dim=1))
    return torch.stack(found, dim=1)


class _Change(NamedTuple):
    """How outputs change with a position that no gradient comes back to."""

    near: _Watched  # the pass with this position changed
    further: int  # another position without a gradient, further from those with it
    uneven: float


def _change_without_gradient(
    output: Tensor, of: Callable[[Tensor], Tensor], reached: list[bool], nudged: _NudgedPass
) -> _Change | None:
    """Change positions without a gradient until one is found that the outputs depend on."""
    base = output.detach().float()
    for place, further in _next_to(reached):
        twice = nudged.at(place, 2 * _NUDGE)
        far = None if twice.output is None else of(twice.output).detach().float()
        if far is None or base.shape != far.shape or not differ(base, far):
            continue
        once = nudged.at(place, _NUDGE)
        if once.output is not None:
            near = of(once.output).detach().float()
            uneven = (far - 2 * near + base).norm() / (far - base).norm()
            return _Change(twice, further, uneven.item())
    return None


def _next_to(reached: list[bool]) -> list[tuple[int, int]]:
    """Return some positions without a gradient that are next to one with it, each with another one
    that is further away from it, where there is one."""
    found = []
    for place, step in ((place, step) for place in range(len(reached)) for step in (-1, 1)):
        if reached[place] or not 0 <= place - step < len(reached) or not reached[place - step]:
            continue
        beyond = range(place, place + step * (_FURTHER + 1), step)
        within = [p for p in beyond if 0 <= p < len(reached) and not reached[p]]
        found.append((place, within[-1]))
    return found[:_TRIES]


def _returns(
    seen: _Watched, repeated: dict[str, list[Tensor]], near: _Watched, far: _Watched
) -> bool:
    """Return whether what leaves the graph again and again holds several positions in one number.

    Where nothing was seen to leave it, whether several calls of a layer follow one position. A
    layer that is given each position alone is no recurrence, whatever is kept of its outputs.

    Args:
        near: a pass with a position changed that is next to one with a gradient.
        far: the same of another position.
    """
    if not seen.handed:
        return any(_changed(old, near.calls.get(name, [])) > 1 for name, old in repeated.items())
    for line, old in seen.handed.items():
        first, second = (each.handed.get(line, []) for each in (near, far))
        if len(old) < 2 or not _alike(old, first) or not _alike(old, second):
            continue
        if any(
            bool(((a != o) & (b != o)).any()) for o, a, b in zip(old, first, second, strict=True)
        ):
            return True
    return False


def _changed(before: Sequence[Tensor], after: Sequence[Tensor]) -> int:
    """Return how many of a pass's tensors have changed; 0 where there are more, or fewer, now."""
    if not _alike(before, after):
        return 0
    return sum(differ(a.detach(), b.detach()) for a, b in zip(before, after, strict=True))


def _alike(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    return [t.shape for t in before] == [t.shape for t in after]


def note_what_is_remembered(
    facts: RecurrenceFacts, predicted: Sequence[Sequence[Predicted]], task: Task, layout: Layout
) -> None:
    """Fill in how well outputs at the end of sequences fit, beside simple models of the inputs.

    Args:
        facts: of outputs of each step; of others nothing is filled in.
        predicted: outputs of the trained model, one list for each mode; the better one counts.
        task: of all outputs.
        layout: where the samples lie.
    """
    if not facts.each_step or layout.axis is None or task.kind == "unknown":
        return
    skills = []
    for mode in predicted:
        found = [_at_end(p, layout, layout.axis, facts.end) for p in mode]
        ends = [end for end in found if end is not None]
        if not ends or len({end.inputs.shape[1:] for end in ends}) > 1:
            return
        inputs, outputs, targets = (torch.cat(parts) for parts in zip(*ends, strict=True))
        if task.kind == "classes" and (outputs.dim() != 2 or outputs.shape[1] != task.size):
            return
        of_end = replace(task, axis=1) if task.kind == "classes" else task
        skills.append(score(of_end, outputs, targets).skill)
    known = [skill for skill in skills if skill is not None]
    if not known:
        return
    keep = first_of_each(inputs)  # the same sample in both folds would be learnt by heart
    inputs, targets = inputs[keep], targets[keep]
    facts.end_skill = max(known)
    facts.end_by_all = simple_skill(inputs, targets, of_end)
    step = inputs[:, facts.end]
    facts.end_by_itself = simple_skill(step.reshape(len(step), -1), targets, of_end)


class _End(NamedTuple):
    inputs: Tensor  # (samples, steps, …)
    outputs: Tensor  # (samples, …), of the last or of the first step
    targets: Tensor


def _at_end(predicted: Predicted, layout: Layout, axis: int, end: int) -> _End | None:
    inputs, targets = layout.inputs(predicted.batch.call), predicted.batch.targets
    output = first_tensor(predicted.outputs)
    if inputs is None or output is None or not isinstance(targets, Tensor) or inputs.dim() < 2:
        return None
    shape, sides = inputs.shape[:2], []
    for side in (output.detach(), targets):
        if side.shape[:1] == (shape[0] * shape[1],):
            side = side.unflatten(0, shape)
        if side.shape[:2] != shape:
            return None
        sides.append(side.select(1 - axis, end))
    return _End(inputs.movedim(axis, 0), *sides)
