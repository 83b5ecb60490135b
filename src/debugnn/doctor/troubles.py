"""Failures of the doctor itself: they become lines of the report and never end the training."""

import functools
import textwrap
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from debugnn.doctor.evidence import Evidence
from debugnn.errors import one_line

_LONGEST = 160  # characters of an error's message: some list every kernel of an operation

P = ParamSpec("P")
R = TypeVar("R")


class _HasEvidence(Protocol):
    @property
    def evidence(self) -> Evidence: ...


S = TypeVar("S", bound=_HasEvidence)
Method = Callable[Concatenate[S, P], R]


def guarded(what: str) -> Callable[[Method[S, P, R]], Callable[Concatenate[S, P], R | None]]:
    """Decorate a method whose own failure must not end the training.

    An exception becomes a line of the evidence's troubles, and the method returns None: models,
    losses and batches come in ways that nobody has thought of.

    Args:
        what: what the method looks at, as the subject of that line.
    """

    def decorate(method: Method[S, P, R]) -> Callable[Concatenate[S, P], R | None]:
        @functools.wraps(method)
        def inner(self: S, *args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return method(self, *args, **kwargs)
            except Exception as error:
                note_error(self.evidence, what, error)
                return None

        return inner

    return decorate


def note_error(evidence: Evidence, what: str, error: Exception) -> None:
    """Note that something could not be looked at, and the error that was the reason."""
    reason = textwrap.shorten(
        f"{type(error).__name__}: {one_line(error)}", _LONGEST, placeholder=" …"
    )
    note(evidence, f"{what} cannot be looked at, for an error was raised on the way ({reason})")


def note(evidence: Evidence, text: str) -> None:
    """Note what the doctor could not do, once."""
    if text not in evidence.troubles:
        evidence.troubles.append(text)
