"""Along which axis samples lie, and whether one sample's output depends on other samples' inputs.

Half of the positions along an axis of the inputs are changed, and it is seen which outputs follow:
only those of the same positions (they are apart), also those after them (a time axis), or all. The
model is in evaluation mode. Batch norm without running statistics, which mixes samples by design,
is given some.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from debugnn.doctor.observe.calls import Call, is_plain
from debugnn.doctor.observe.influence import Influence, in_any_order, influence_of, views_of
from debugnn.doctor.observe.layout import Layout, samples_axis
from debugnn.doctor.observe.mixing import LEAST_BATCH, gradient_mixes, measure_mixing
from debugnn.doctor.observe.perturbation import Passes, differ, with_statistics, without_constants

_POSITIONS = 4  # of a sequence that has two halves
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
            modules those that change at all, the first 64. Measured too where the outputs follow no
            input, and `mixing` is None.
        mixing_by_gradient: such an output has a gradient with respect to these inputs. None where
            nothing mixes or it cannot be told.
        halves_used: for sequences with outputs for the whole of each, whether these depend on the
            first half of the positions, and on the second. None of others.
        count: number of samples; None where they are not apart.
        told: the user has said which axis it is.
    """

    layout: Layout
    dependence: dict[int, str] = field(default_factory=dict)
    mixing: float | None = None
    mixing_layers: dict[str, float] = field(default_factory=dict)
    mixing_by_gradient: bool | None = None
    halves_used: tuple[bool, bool] | None = None
    count: int | None = None
    told: bool = False


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
    with torch.no_grad(), with_statistics(model):
        passes = Passes(model, call)
        output = passes.output
        if output is None or output.dim() == 0 or not passes.steady:
            return Samples(given, count=given.count(call), told=told != FIND)
        layout = replace(given, main=_main(call, output))
        inputs = layout.inputs(call)
        if inputs is None:
            return Samples(replace(layout, axis=None), told=told != FIND)
        layout = replace(layout, offsets=_are_offsets(inputs, call))
        found = {a: influence_of(passes, inputs, a) for a in (0, 1) if inputs.dim() > a}
        if not any(found.values()):  # a last layer that starts at zero hides all that is before it
            with without_constants(model):
                passes = Passes(model, call)
                found = {a: influence_of(passes, inputs, a) for a in (0, 1) if inputs.dim() > a}
                return _conclude(passes, layout, inputs, targets, found, told)
        return _conclude(passes, layout, inputs, targets, found, told)


def _conclude(
    passes: Passes,
    layout: Layout,
    inputs: Tensor,
    targets: Any,
    found: dict[int, Influence | None],
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
    halves = _halves_used(passes, inputs, axis, dependence)
    samples = Samples(layout, dependence, halves_used=halves, count=count, told=told != FIND)
    influence = None if axis is None else found.get(axis)
    if axis is None or count is None or count < LEAST_BATCH:
        return samples
    if influence is None:
        if dependence:
            return samples
        # Outputs that follow no input may be those of a layer that runs over the batch: a token in
        # front of each sequence, the same for all, has only its likes of the other samples then.
        return replace(samples, mixing_layers=measure_mixing(passes, inputs, axis, count, None)[1])
    certain = told != FIND or apart
    if not certain and not _is_samples_axis(passes, inputs, targets, axis, dependence, influence):
        return samples
    total, layers = measure_mixing(passes, inputs, axis, count, influence.view)
    by_gradient = gradient_mixes(passes, inputs, axis, count, influence.view) if total else None
    return replace(samples, mixing=total, mixing_layers=layers, mixing_by_gradient=by_gradient)


def _halves_used(
    passes: Passes, inputs: Tensor, axis: int | None, dependence: dict[int, str]
) -> tuple[bool, bool] | None:
    """Return whether outputs depend on the first half of a sequence's positions, and the second."""
    if axis is None or dependence.get(axis) != "apart" or 1 - axis in dependence:
        return None
    tokens = inputs.dim() == 2 and not inputs.is_floating_point()
    if not (tokens or inputs.dim() == 3) or inputs.shape[1 - axis] < _POSITIONS:
        return None
    output = passes.output
    found = [passes.changed(inputs, 1 - axis, half) for half in (0, 1)]
    if output is None or any(each is None or each.shape != output.shape for each in found):
        return None
    first, second = (each is not None and differ(output, each) for each in found)
    return first, second


def _main(call: Call, output: Tensor) -> int:
    """Return the index of the inputs among the call's tensors.

    The first tensor whose first axes, or one of them, are found in the outputs; a mask of truth
    values is none.
    """
    tensors = call.tensors()
    usable = [i for i, t in enumerate(tensors) if is_plain(t) and t.dim() and t.dtype != torch.bool]
    shared = (i for i in usable if any(views_of(tensors[i], output, a) for a in (0, 1)))
    return next(shared, usable[0] if usable else 0)


def _are_offsets(inputs: Tensor, call: Call) -> bool:
    """Return whether the inputs are the places where samples begin in another tensor of the call,
    as `nn.EmbeddingBag` takes them."""
    if inputs.dim() != 1 or inputs.is_floating_point() or inputs.dtype == torch.bool:
        return False
    others = [t for t in call.tensors() if t is not inputs and t.dim() == 1]
    if len(inputs) < 2 or not others:
        return False
    rising = bool((inputs[0] == 0) & (inputs[1:] >= inputs[:-1]).all())
    return rising and any(len(t) >= int(inputs[-1]) > 0 for t in others)


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


def _is_pairwise(passes: Passes, inputs: Tensor, axis: int) -> bool:
    """True if the outputs are of pairs of entries, as similarities to all others of a batch are."""
    output, count = passes.output, inputs.shape[axis]
    return output is not None and output.dim() >= 2 and output.shape[:2] == (count, count)


def _is_samples_axis(
    passes: Passes,
    inputs: Tensor,
    targets: Any,
    axis: int,
    dependence: dict[int, str],
    influence: Influence,
) -> bool:
    """True if an axis along which entries mix can be nothing but that of the samples.

    It is the targets' first axis and the outputs' first axis, or their second one behind that of
    time; and the other one is not apart, or is not the targets'. Where no other axis can be that of
    time, order does not matter either.
    """
    count, output, view = inputs.shape[axis], passes.output, influence.view
    if output is None or view.parts:
        return False
    first = view.axis == 0
    if not first and (view.axis != 1 or output.shape[0] == count):
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
    return first and influence.name == "all" and in_any_order(passes, inputs, axis)


def _verified(passes: Passes, layout: Layout, found: dict[int, Influence | None]) -> Layout:
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
    same = expected.shape == output.shape and not differ(expected, output)
    return assumed if same else layout
