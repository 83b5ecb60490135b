"""The person's own code that is running, outside of torch and of the doctor."""

import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_PACKAGE = Path(__file__).parents[2]
# Code of nobody's loop: the standard library, installed packages, torch and the doctor itself.
_FOREIGN = (
    *(
        f"{path}{os.sep}"
        for name, path in sysconfig.get_paths().items()
        if name in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    ),
    f"{Path(torch.__file__).parent}{os.sep}",
    f"{_PACKAGE / 'doctor'}{os.sep}",
    f"{_PACKAGE / 'integrations'}{os.sep}",
    "<",  # code without a file
)
_NUMBERS = (Tensor, np.ndarray, np.number, float, int)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


def line_of_caller(below: CodeType | None = None) -> str | None:
    """Return `file:line` of the innermost frame that belongs to the person's code.

    Args:
        below: frames from this function's outwards are not looked at.

    Returns:
        The path is relative to the working directory if it lies in it. None without such a frame.
    """
    frame = next(_own_frames(below), None)
    if frame is None:
        return None
    name, here = frame.f_code.co_filename, os.getcwd() + os.sep
    return f"{name.removeprefix(here)}:{frame.f_lineno}"


def names_of_callers() -> set[str]:
    """Return the names in the person's code that is running: variables, attributes, functions."""
    return set().union(*(_names(frame) for frame in _own_frames()))


class Scope(NamedTuple):
    """What a piece of the person's code that is running knows by name.

    Attributes:
        variables: names of local variables, and of the attributes of `self`.
        others: names of functions, of attributes and of what is global.
        values: of the variables so far.
    """

    variables: set[str]
    others: set[str]
    values: dict[str, Any]

    def numbers(self, count: int) -> dict[str, Tensor]:
        """Return the variables that hold so many numbers, (count,), float64 or int64, on the CPU.

        A list counts where each of its entries is a number or a tensor. One of tuples counts as
        several variables: `saved[0]`, `saved[1]`.
        """
        columns = {
            f"{name}[{place}]": list(column)
            for name, value in self.values.items()
            if isinstance(value, list) and len(value) == count and _are_tuples(value)
            for place, column in enumerate(zip(*value, strict=True))
        }
        found = {name: _numbers(value, count) for name, value in (self.values | columns).items()}
        return {name: numbers for name, numbers in found.items() if numbers is not None}


def _are_tuples(value: list[Any]) -> bool:
    return all(isinstance(item, tuple) for item in value) and len(set(map(len, value))) == 1


def scope_with(wanted: Callable[[str], bool], known: Mapping[str, Any]) -> Scope | None:
    """Return the innermost function whose code has such a name, with all that it is within.

    Functions that it calls, and that are running, count as part of it. Of other functions no
    variable is looked at: to look at them keeps their values alive.

    Args:
        known: attributes of an object that the code calls by a name of its own.
    """
    frames: list[FrameType] = []
    for frame in _own_frames():
        frames.append(frame)
        if any(map(wanted, _names(frame))):
            break
    else:
        return None
    names, variables = set().union(*map(_names, frames)), set(known)
    values = dict(known)
    for frame in reversed(frames):
        own = dict(frame.f_locals)
        values |= getattr(own.get("self"), "__dict__", {}) | own
        code = frame.f_code
        variables |= {*code.co_varnames, *code.co_freevars, *code.co_cellvars}
    variables |= values.keys()
    return Scope(variables, names - variables, values)


def _names(frame: FrameType) -> set[str]:
    code = frame.f_code
    return {*code.co_varnames, *code.co_names, *code.co_freevars, *code.co_cellvars}


def _numbers(value: object, count: int) -> Tensor | None:
    """Return `count` numbers that a variable holds as (count,); None where it holds others."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not 0 < len(parts) <= count or not all(isinstance(part, _NUMBERS) for part in parts):
        return None
    try:
        tensors = [torch.as_tensor(part).detach() for part in parts]
        if sum(t.numel() for t in tensors) != count or any(t.is_complex() for t in tensors):
            return None
        whole = not any(t.is_floating_point() for t in tensors)
        flat = [t.flatten().cpu() for t in tensors]
    except Exception:  # arrays of objects, tensors without numbers, whatever else a loop keeps
        return None
    return torch.cat([t.long() if whole else t.double() for t in flat])


def what_is_called() -> str | None:
    """Return what the innermost line of the person's code calls, as it is written: `self.critic`.

    None without such a frame, or without its source.
    """
    frame = next(_own_frames(), None)
    if frame is None:
        return None
    code, place = frame.f_code, frame.f_lasti // 2  # an instruction has two bytes
    line, _, start, _ = next(islice(code.co_positions(), place, None), (None,) * 4)
    if line is None or start is None:
        return None
    text = linecache.getline(code.co_filename, line, frame.f_globals).encode()[start:].decode()
    called, bracket, _ = text.partition("(")
    return called.strip() if bracket else None


def _own_frames(below: CodeType | None = None) -> Iterator[FrameType]:
    """Yield the frames of the person's code, the innermost one first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not below:
        name = frame.f_code.co_filename
        if not name.startswith(_FOREIGN) and not any(part in name for part in _INSTALLED):
            yield frame
        frame = frame.f_back
