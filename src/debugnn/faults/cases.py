"""A case: a sound program with one fault in it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from debugnn.faults.program import Setup
from debugnn.faults.sound import sound


@dataclass(frozen=True)
class Case:
    """A sound program and the fault that is put into it."""

    base: str  # name of the sound program
    fault: Callable[..., None]  # changes a Setup in place
    options: dict[str, Any]  # of the fault
    accepted: tuple[str, ...]  # other causes that would be a correct diagnosis too

    @property
    def name(self) -> str:
        """The base, the fault and its options."""
        options = ",".join(f"{key}={_name(value)}" for key, value in self.options.items())
        return f"{self.base}+{self.fault.__name__}" + (f"({options})" if options else "")

    def build(self, seed: int) -> Setup:
        """Build the sound program and put the fault into it."""
        setup = sound(self.base, seed)
        self.fault(setup, **self.options)
        return setup


def case(
    base: str, fault: Callable[..., None], accepted: tuple[str, ...] = (), **options: Any
) -> Case:
    """Write a case in one line: the options are the fault's."""
    return Case(base, fault, options, accepted)


def _name(value: Any) -> str:
    """Return a name for an option's value that is the same in every process."""
    if isinstance(value, partial):
        parts = [str(v) for v in value.args] + [f"{k}={v}" for k, v in value.keywords.items()]
        return f"{_name(value.func)}({','.join(parts)})"
    if isinstance(value, nn.Module):  # a loss
        return f"{type(value).__name__}({value.reduction})"
    return getattr(value, "__name__", None) or str(value).replace(" ", "")
