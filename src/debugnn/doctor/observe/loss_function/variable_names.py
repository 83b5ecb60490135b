"""What a loss function calls its numbers: the names of its variables."""

import types
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from debugnn.doctor.reachable import is_own, names_in


def variables(function: Any) -> set[str]:
    """Return the names of a function's arguments and variables, and those of the functions that it
    calls by their names.

    Code of libraries is left out.

    Args:
        function: of the user; any object that can be called.
    """
    found: set[str] = set()
    waiting, seen = [function], set()
    while waiting:
        code_of = _plain(waiting.pop())
        if code_of is None or id(code_of) in seen or not is_own(code_of.__module__):
            continue
        seen.add(id(code_of))
        found.update(_variables(code_of.__code__))
        called = (v for v in _known(code_of) if isinstance(v, types.FunctionType | partial))
        waiting.extend(called)
    return found


def _plain(function: Any) -> types.FunctionType | None:
    """Return the function that a call runs in the end; None where it is no Python function."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, nn.Module):
        function = type(function).forward
    elif not isinstance(function, types.FunctionType | types.MethodType):
        function = type(function).__call__ if callable(function) else None
    if isinstance(function, types.MethodType):
        function = function.__func__
    return function if isinstance(function, types.FunctionType) else None


def _known(function: types.FunctionType) -> Iterator[Any]:
    """Yield what the names in a function's code stand for."""
    for name in names_in(function.__code__):
        yield function.__globals__.get(name)
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell
            continue


def _variables(code: types.CodeType) -> Iterator[str]:
    yield from (*code.co_varnames, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _variables(constant)
