"""Where a non-finite number came from."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Origin:
    """The tensor in which non-finite numbers first appeared."""

    where: str  # input, target, parameter, buffer, forward, loss or backward
    name: str  # of the input (its key or index), target, parameter or buffer, or of the operation
    layer: str | None  # innermost module that the operation ran in; "" is the model itself
    kind: str  # nan, or inf where there is no NaN among them
    samples: list[int]  # the first 32 bad indices of the batch; [] where they are not known
    count: int  # non-finite values in the tensor
    magnitude: float  # largest finite |value| that the operation met, or that the tensor holds
    overflow: bool  # the operation is defined for its arguments: they were too large
    # Types and shapes: of what the operation took, and of what it gave; of an input, a target, a
    # parameter or a buffer its own alone.
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    line: str | None = None  # `file:line` of the person's code that called the operation


@dataclass(frozen=True, order=True, slots=True)
class Source:
    """The origin of a non-finite tensor. Of several the smallest is reported."""

    excused: bool  # infinities that the code contains as constants, on purpose
    rank: int  # in order of appearance
    origin: Origin = field(compare=False)
