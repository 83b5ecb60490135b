"""Which outputs follow a change of half of the inputs' positions along an axis."""

from typing import NamedTuple

from torch import Tensor

from debugnn.doctor.observe.layout import samples_axis
from debugnn.doctor.observe.perturbation import Passes, differ


class View(NamedTuple):
    """A way to find an input's axis in an output: made of its first axis, and which one."""

    parts: tuple[int, ...]  # what the first axis is unflattened to, () where it is not
    axis: int

    def of(self, output: Tensor) -> Tensor:
        """Return the output with the axis in front."""
        return (output.unflatten(0, self.parts) if self.parts else output).movedim(self.axis, 0)


class Influence(NamedTuple):
    """How outputs follow a change of half of the inputs' positions along an axis."""

    view: View
    later: bool  # outputs of the second half follow the first half's inputs
    earlier: bool  # outputs of the first half follow the second half's inputs

    @property
    def name(self) -> str:
        """Other positions that an output depends on: `apart` (none), `earlier`, `later`, `all`."""
        if self.later and self.earlier:
            return "all"
        return "earlier" if self.later else "later" if self.earlier else "apart"


def influence_of(passes: Passes, inputs: Tensor, axis: int) -> Influence | None:
    """Find out which outputs follow a change of half of the positions along an axis.

    Of several views of the outputs the one in which positions are most apart. None where no
    output has the axis, or none follows the change.
    """
    base, size = passes.output, inputs.shape[axis]
    views = [] if base is None or size < 2 else views_of(inputs, base, axis)
    if not views or base is None:
        return None
    after = {half: passes.changed(inputs, axis, half) for half in (0, 1)}
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
            follow[half, 0] = differ(rows[:middle], other[:middle])
            follow[half, 1] = differ(rows[middle:], other[middle:])
        if follow[0, 0] or follow[1, 1]:
            found.append(Influence(view, later=follow[0, 1], earlier=follow[1, 0]))
    return min(found, key=lambda each: each.later + each.earlier, default=None)


def in_any_order(passes: Passes, inputs: Tensor, axis: int) -> bool:
    """True if samples in another order have the same outputs, in that order."""
    count = inputs.shape[axis]

    def turn(tensor: Tensor) -> Tensor:
        own = axis if tensor is inputs else samples_axis(tensor, count, axis)
        return tensor if own is None else tensor.roll(1, own)

    turned = passes.run(passes.call.map(turn))
    base = passes.output
    if base is None or turned is None or turned.shape != base.shape:
        return False
    return not differ(base.roll(1, 0), turned)


def views_of(inputs: Tensor, output: Tensor, axis: int) -> list[View]:
    """Return the axes of the outputs that may be an axis of the inputs.

    Those of its size; and parts of the outputs' first axis, which may hold two of the inputs' axes
    one after the other, or several rows of each sample.
    """
    if inputs.dim() <= axis or output.dim() == 0:
        return []
    size, length = inputs.shape[axis], output.shape[0]
    equal = [a for a in range(output.dim()) if output.shape[a] == size]
    views = [View((), a) for a in sorted(equal, key=lambda a: a != axis)]
    other = inputs.shape[1 - axis] if inputs.dim() > 1 else 1
    if other > 1 and length == size * other:
        parts = (size, other) if axis == 0 else (other, size)
        views += [View(parts, axis), View(parts[::-1], 1 - axis)]
    elif axis == 0 and length > size and length % size == 0:
        views.append(View((size, length // size), 0))
    return views
