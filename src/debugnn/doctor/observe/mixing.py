"""Along which axis samples lie, and whether one sample's output depends on other samples' inputs.

Half of the positions along an axis of the inputs are changed, and it is seen which outputs follow:
only those of the same positions (they are apart), also those after them (a time axis), or all. The
model is in evaluation mode. Batch norm without running statistics, which mixes samples by design,
is given some.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from debugnn.doctor.observe.calls import Call, first_tensor, is_plain
from debugnn.doctor.observe.layout import Layout, samples_axis
from debugnn.doctor.observe.modes import BATCH_NORM
from debugnn.random_state import random_state, set_random_state

LEAST_BATCH = 4  # samples, of which two halves can be compared
_LISTED = 64  # layers whose change is kept
_ROUNDING = 1e-5  # products of other shapes are rounded differently, by some 1e-6 of the values
_NOISE = 0.1  # scale of the weights that are drawn in the place of tensors that are all zero

FIND = "find"  # the sample axis is found, not told


@dataclass(frozen=True)
class Samples:
    """What was found out about the samples of a batch.

    Attributes:
        layout: where they lie.
        dependence: axis of the inputs → on which other positions along it an output depends:
            `apart` (none), `earlier`, `later` or `all`. Axes that outputs do not have are missing.
        mixing: change of a sample's output by other samples' inputs, as `change_over_spread`. None
            where it cannot be measured, or where it is not certain that these are samples.
        mixing_layers: the same at each module's output, in the order of the pass. Of more than 64
            modules those that change at all, the first 64.
        count: number of samples; None where they are not apart.
        told: the user has said which axis it is.
    """

    layout: Layout
    dependence: dict[int, str] = field(default_factory=dict)
    mixing: float | None = None
    mixing_layers: dict[str, float] = field(default_factory=dict)
    count: int | None = None
    told: bool = False


class _View(NamedTuple):
    """A way to find an input's axis in an output: made of its first axis, and which one."""

    parts: tuple[int, ...]  # what the first axis is unflattened to, () where it is not
    axis: int

    def of(self, output: Tensor) -> Tensor:
        """Return the output with the axis in front."""
        return (output.unflatten(0, self.parts) if self.parts else output).movedim(self.axis, 0)


class _Influence(NamedTuple):
    """How outputs follow a change of half of the inputs' positions along an axis."""

    view: _View
    later: bool  # outputs of the second half follow the first half's inputs
    earlier: bool  # outputs of the first half follow the second half's inputs

    @property
    def name(self) -> str:
        if self.later and self.earlier:
            return "all"
        return "earlier" if self.later else "later" if self.earlier else "apart"


def evaluation_change(model: nn.Module, call: Call) -> float | None:
    """Return the difference of two evaluations of one batch, as `change_over_spread`.

    None where the model returns no tensor.
    """
    with torch.no_grad():
        first, again = (first_tensor(call(model)) for _ in range(2))
    if first is None or again is None:
        return None
    return change_over_spread(first.float(), again.float())


def change_over_spread(before: Tensor, after: Tensor) -> float:
    """Return the largest change of a value over the largest deviation of a sample from the mean.

    0 for changes that are rounding, and for tensors that cannot be compared.
    """
    if before.shape != after.shape or before.dim() == 0 or len(before) < 2:
        return 0.0
    if not _differ(before, after) or not torch.isfinite(before).all():
        return 0.0
    spread = (before - before.mean(dim=0)).abs().max().item()
    return (after - before).abs().max().item() / spread if spread > 0 else 0.0


def find_samples(
    model: nn.Module, call: Call, targets: Any = None, told: int | str | None = FIND
) -> Samples:
    """Find out along which axis the samples lie, and whether the model keeps them apart.

    Args:
        model: in evaluation mode, its dropout off. It stays as it is.
        call: how the model is called with a batch.
        targets: the batch's.
        told: the sample axis, None where samples are not apart, `FIND` where nothing is known.
    """
    if told == FIND and (_is_packed(call) or _is_ragged(call)):
        return Samples(Layout(None, main=None if _is_ragged(call) else 0))
    axis = 0 if told == FIND else told
    given = Layout(axis if isinstance(axis, int) else None)
    with torch.no_grad(), _with_statistics(model):
        passes = _Passes(model, call)
        output = passes.output
        if output is None or output.dim() == 0 or not passes.steady:
            return Samples(given, count=given.count(call), told=told != FIND)
        layout = replace(given, main=_main(call, output))
        inputs = layout.inputs(call)
        if inputs is None:
            return Samples(replace(layout, axis=None), told=told != FIND)
        found = {a: passes.influence(inputs, a) for a in (0, 1) if inputs.dim() > a}
        if not any(found.values()):  # a last layer that starts at zero hides all that is before it
            with _without_zeros(model):
                passes = _Passes(model, call)
                found = {a: passes.influence(inputs, a) for a in (0, 1) if inputs.dim() > a}
                return _conclude(passes, layout, inputs, targets, found, told)
        return _conclude(passes, layout, inputs, targets, found, told)


def _conclude(
    passes: "_Passes",
    layout: Layout,
    inputs: Tensor,
    targets: Any,
    found: dict[int, _Influence | None],
    told: int | str | None,
) -> Samples:
    dependence = {a: influence.name for a, influence in found.items() if influence is not None}
    if told == FIND:
        likely = _axis_of(inputs, targets, dependence)
        related = _is_related(passes.call, inputs, likely) or _is_pairwise(passes, inputs, likely)
        axis = None if related and dependence.get(likely) != "apart" else likely
        layout = replace(layout, axis=axis)
    layout = _verified(passes, layout, found)
    apart = layout.axis is not None and dependence.get(layout.axis) == "apart"
    if told == FIND and not layout.divisible and not apart:
        layout = replace(layout, axis=None)  # the model holds something of each entry: a graph
    count, axis = layout.count(passes.call), layout.axis
    samples = Samples(layout, dependence, count=count, told=told != FIND)
    influence = None if axis is None else found.get(axis)
    if axis is None or count is None or count < LEAST_BATCH or influence is None:
        return samples
    certain = told != FIND or apart
    if not certain and not _is_samples_axis(passes, inputs, targets, axis, dependence, influence):
        return samples
    total, layers = passes.mixing(inputs, axis, count, influence.view)
    return replace(samples, mixing=total, mixing_layers=layers)


# --- which axis -----------------------------------------------------------------------------------


def _main(call: Call, output: Tensor) -> int:
    """Return the index of the inputs among the call's tensors.

    The first tensor whose first axes, or one of them, are found in the outputs; a mask of truth
    values is none.
    """
    tensors = call.tensors()
    usable = [i for i, t in enumerate(tensors) if is_plain(t) and t.dim() and t.dtype != torch.bool]
    shared = (i for i in usable if any(_views(tensors[i], output, a) for a in (0, 1)))
    return next(shared, usable[0] if usable else 0)


def _axis_of(inputs: Tensor, targets: Any, dependence: dict[int, str]) -> int:
    """Return the axis of the samples: that of one target each, or that along which they are apart.

    The first where nothing tells.
    """
    told = _axis_by_targets(inputs, targets)
    if told is not None:
        return told
    return 1 if dependence.get(0) != "apart" and dependence.get(1) == "apart" else 0


def _axis_by_targets(inputs: Tensor, targets: Any) -> int | None:
    """Return the axis whose entries have one target each, None where it may be either."""
    if not isinstance(targets, Tensor) or not is_plain(targets) or not targets.dim():
        return None
    each, sizes = targets.shape[0], inputs.shape[:2]
    if len(sizes) < 2 or sizes[0] == sizes[1] or targets.shape[:2] == sizes or each not in sizes:
        return None
    return sizes.index(each)


def _is_packed(call: Call) -> bool:
    """True if the steps of sequences of several lengths lie one after the other in a tensor."""
    arguments = tree_leaves(
        (call.args, call.kwargs), is_leaf=lambda value: isinstance(value, PackedSequence)
    )
    return any(isinstance(value, PackedSequence) for value in arguments)


def _is_ragged(call: Call) -> bool:
    """True if the first argument is a list of one tensor for each sample, of several sizes."""
    first = next(iter((*call.args, *call.kwargs.values())), None)
    if not isinstance(first, list) or not all(isinstance(item, Tensor) for item in first):
        return False
    return len({item.shape[:1] for item in first if is_plain(item)}) > 1


def _is_related(call: Call, inputs: Tensor, axis: int) -> bool:
    """True if the call says which entries belong together, by edges or an adjacency matrix."""
    count = inputs.shape[axis]
    for tensor in call.tensors():
        if tensor is inputs or (is_plain(tensor) and tensor.numel() <= 1):
            continue
        if not is_plain(tensor) or tensor.shape == (count, count):
            return True
        indices = not tensor.is_floating_point() and tensor.dtype != torch.bool
        if indices and samples_axis(tensor, count, axis) is None:
            return True
    return False


def _is_pairwise(passes: "_Passes", inputs: Tensor, axis: int) -> bool:
    """True if the outputs are of pairs of entries, as similarities to all others of a batch are."""
    output, count = passes.output, inputs.shape[axis]
    return output is not None and output.dim() >= 2 and output.shape[:2] == (count, count)


def _is_samples_axis(
    passes: "_Passes",
    inputs: Tensor,
    targets: Any,
    axis: int,
    dependence: dict[int, str],
    influence: _Influence,
) -> bool:
    """True if an axis along which entries mix can be nothing but that of the samples.

    It is the targets' first axis and the outputs' first axis; and the other one is not apart, or is
    not the targets'. Where no other axis can be that of time, order does not matter either.
    """
    count, output = inputs.shape[axis], passes.output
    if output is None or influence.view.axis != 0 or influence.view.parts:
        return False
    if not isinstance(targets, Tensor) or not targets.dim() or len(targets) != count:
        return False
    if dependence.get(1 - axis) == "apart" and _axis_by_targets(inputs, targets) != axis:
        return False
    features = () if not inputs.is_floating_point() else inputs.shape[-1:]
    others = list(inputs.shape[: inputs.dim() - len(features)])
    del others[axis : axis + 1]
    if any(size > 1 for size in others):
        return True
    return influence.name == "all" and passes.in_any_order(inputs, axis)


# --- passes ---------------------------------------------------------------------------------------


class _Passes:
    """Forward passes of one model with one batch, changed and unchanged, that draw the same noise.

    Attributes:
        output: the first tensor among the outputs, in float32.
        steady: two passes give the same.
    """

    def __init__(self, model: nn.Module, call: Call) -> None:
        self.call = call
        self._model = model
        device = next((t.device for t in call.tensors()), torch.device("cpu"))
        self._device, self._random = device, random_state(device)
        self.output = self.run(call)
        again = self.run(call)
        self.steady = (
            self.output is not None
            and again is not None
            and again.shape == self.output.shape
            and not _differ(self.output, again)
        )

    def run(self, call: Call) -> Tensor | None:
        """Return the first tensor among the outputs."""
        set_random_state(self._device, self._random)
        found = first_tensor(call(self._model))
        return None if found is None else found.detach().float()

    def influence(self, inputs: Tensor, axis: int) -> _Influence | None:
        """Find out which outputs follow a change of half of the positions along an axis.

        Of several views of the outputs the one in which positions are most apart. None where no
        output has the axis, or none follows the change.
        """
        base, size = self.output, inputs.shape[axis]
        views = [] if base is None or size < 2 else _views(inputs, base, axis)
        if not views or base is None:
            return None
        after = {half: self._changed(inputs, axis, half) for half in (0, 1)}
        changed = [(h, o) for h, o in after.items() if o is not None and o.shape == base.shape]
        if len(changed) < len(after):
            return None
        middle = size // 2
        found = []
        for view in views:
            rows = view.of(base)
            follow = {}
            for half, output in changed:
                other = view.of(output)
                follow[half, 0] = _differ(rows[:middle], other[:middle])
                follow[half, 1] = _differ(rows[middle:], other[middle:])
            if follow[0, 0] or follow[1, 1]:
                found.append(_Influence(view, later=follow[0, 1], earlier=follow[1, 0]))
        return min(found, key=lambda each: each.later + each.earlier, default=None)

    def mixing(
        self, inputs: Tensor, axis: int, count: int, view: _View
    ) -> tuple[float, dict[str, float]]:
        """Measure how much one half's outputs change when the inputs of the other half do.

        Each half in turn, and the one that changes more: a recurrence passes information one way
        only.

        Returns:
            The change of the model's outputs, and of each module's. Both as in
            `change_over_spread`.
        """
        found = [self._changes(inputs, axis, count, view, half) for half in (1, 0)]
        return max(found, key=lambda pair: pair[0])

    def in_any_order(self, inputs: Tensor, axis: int) -> bool:
        """True if samples in another order have the same outputs, in that order."""
        count = inputs.shape[axis]

        def turn(tensor: Tensor) -> Tensor:
            own = axis if tensor is inputs else samples_axis(tensor, count, axis)
            return tensor if own is None else tensor.roll(1, own)

        turned = self.run(self.call.map(turn))
        base = self.output
        if base is None or turned is None or turned.shape != base.shape:
            return False
        return not _differ(base.roll(1, 0), turned)

    def _changed(self, inputs: Tensor, axis: int, half: int) -> Tensor | None:
        try:
            return self.run(_with_half_changed(self.call, inputs, axis, half))
        except Exception:  # an index out of range, or a check of the inputs by the model itself
            return None

    def _changes(
        self, inputs: Tensor, axis: int, count: int, view: _View, half: int
    ) -> tuple[float, dict[str, float]]:
        middle = count // 2
        rows = slice(middle) if half == 1 else slice(middle, None)  # of the half that stays

        def staying(value: Any) -> Tensor | None:
            tensor = first_tensor(value)
            if tensor is None or tensor.dim() <= axis:
                return None
            tensor = tensor.detach().float()
            if axis == 0 and len(tensor) % count == 0:
                return tensor.unflatten(0, (count, len(tensor) // count))[rows].flatten(0, 1)
            return tensor.movedim(axis, 0)[rows] if tensor.shape[axis] == count else None

        before: dict[str, list[Tensor | None]] = {}  # module → its output at each call
        changes: dict[str, float] = {}
        replaced = False

        def compare(name: str) -> Callable:
            def hook(module: nn.Module, args: tuple, output: Any) -> None:
                value = staying(output)
                if not replaced:
                    before.setdefault(name, []).append(value)
                    return
                earlier = before[name].pop(0) if before.get(name) else None
                if value is not None and earlier is not None:
                    change = change_over_spread(earlier, value)
                    changes[name] = max(change, changes.get(name, 0.0))

            return hook

        modules = [(n, m) for n, m in self._model.named_modules() if n]
        handles = [m.register_forward_hook(compare(n)) for n, m in modules]
        try:
            first = self.run(self.call)
            replaced = True
            second = self._changed(inputs, axis, half)
        finally:
            for handle in handles:
                handle.remove()
        if first is None or second is None or first.shape != second.shape:
            return 0.0, {}
        total = change_over_spread(view.of(first)[rows], view.of(second)[rows])
        if len(changes) > _LISTED:
            changes = {name: change for name, change in changes.items() if change > 0}
        return total, dict(itertools.islice(changes.items(), _LISTED))


def _views(inputs: Tensor, output: Tensor, axis: int) -> list[_View]:
    """Return the axes of the outputs that may be an axis of the inputs.

    Those of its size; and parts of the outputs' first axis, which may hold two of the inputs' axes
    one after the other, or several rows of each sample.
    """
    if inputs.dim() <= axis or output.dim() == 0:
        return []
    size, length = inputs.shape[axis], output.shape[0]
    equal = [a for a in range(output.dim()) if output.shape[a] == size]
    views = [_View((), a) for a in sorted(equal, key=lambda a: a != axis)]
    other = inputs.shape[1 - axis] if inputs.dim() > 1 else 1
    if other > 1 and length == size * other:
        parts = (size, other) if axis == 0 else (other, size)
        views += [_View(parts, axis), _View(parts[::-1], 1 - axis)]
    elif axis == 0 and length > size and length % size == 0:
        views.append(_View((size, length // size), 0))
    return views


def _with_half_changed(call: Call, inputs: Tensor, axis: int, half: int) -> Call:
    """Return the call with other values in half of the positions along an axis of the inputs."""
    count = inputs.shape[axis]

    def change(tensor: Tensor) -> Tensor:
        if tensor is inputs:
            return _half_changed(tensor, axis, half)
        if axis == 0 and inputs.dim() > 1 and tensor.shape[:1] == (inputs.shape[1],):
            return tensor  # it may belong to the other axis
        own = samples_axis(tensor, count, axis) if is_plain(tensor) else None
        # Along the second axis only what has both is changed: a state or a mask has another one.
        if own is None or (axis == 1 and tensor.shape[:2] != inputs.shape[:2]):
            return tensor
        return _half_changed(tensor, own, half)

    return call.map(change)


def _half_changed(tensor: Tensor, axis: int, half: int) -> Tensor:
    middle = tensor.shape[axis] // 2
    parts = list(tensor.split([middle, tensor.shape[axis] - middle], dim=axis))
    part = parts[half]
    if tensor.is_floating_point():
        # One position in place of all: exchanging them would leave an average over them.
        one = part.narrow(axis, 0, 1).expand_as(part)
        parts[half] = one * 0.5 + 0.1 * one.abs().amax().clamp_min(1e-3)
    elif axis == 0:
        parts[half] = part.narrow(axis, 0, 1).expand_as(part)
    else:
        # Columns may have alphabets of their own, and an index out of range ends a GPU's context.
        parts[half] = part.narrow(0, 0, 1).expand_as(part)
    return torch.cat(parts, dim=axis)


def _verified(passes: _Passes, layout: Layout, found: dict[int, _Influence | None]) -> Layout:
    """Note whether the model takes some of the samples, and gives them the same outputs."""
    count, axis = layout.count(passes.call), layout.axis
    if axis is None or count is None or count < 2:
        return layout
    influence, base = found.get(axis), passes.output
    assumed = replace(layout, verified=True)  # so that tensors of other sizes are left whole
    rows = slice(max(count // 2, 1))
    try:
        output = passes.run(assumed.take(passes.call, rows)[0])
    except Exception:  # whatever a model raises that needs all of them
        return replace(layout, divisible=False)
    if output is None or influence is None or base is None or influence.name != "apart":
        return layout
    view = influence.view
    if view.parts:
        expected = view.of(base)[rows].movedim(0, view.axis).flatten(0, 1)
    else:
        expected = view.of(base)[rows].movedim(0, view.axis)
    same = expected.shape == output.shape and not _differ(expected, output)
    return assumed if same else layout


def _differ(before: Tensor, after: Tensor) -> bool:
    """True if values have changed by more than rounding. A value that is no number counts not."""
    if not before.numel():
        return False
    change = torch.nan_to_num((after - before).abs(), nan=0.0, posinf=0.0).max().item()
    size = torch.nan_to_num(before.abs(), nan=0.0, posinf=0.0).max().item()
    return change > _ROUNDING * size


@contextmanager
def _with_statistics(model: nn.Module) -> Iterator[None]:
    """Give batch norm layers without running statistics some for a while."""
    bare: Sequence[Any] = [
        m for m in model.modules() if isinstance(m, BATCH_NORM) and m.running_mean is None
    ]
    try:
        for module in bare:
            like = next(model.parameters()) if module.weight is None else module.weight
            module.running_mean = torch.zeros(module.num_features, device=like.device)
            module.running_var = torch.ones(module.num_features, device=like.device)
        yield
    finally:
        for module in bare:
            module.running_mean = module.running_var = None


@contextmanager
def _without_zeros(model: nn.Module) -> Iterator[None]:
    """Fill parameters that are all zero with noise for a while."""
    zero = [p for p in model.parameters() if p.numel() and is_plain(p) and not p.any()]
    noise = torch.Generator().manual_seed(0)
    try:
        for parameter in zero:
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.data.copy_(_NOISE * drawn)
        yield
    finally:
        for parameter in zero:
            parameter.data.zero_()
