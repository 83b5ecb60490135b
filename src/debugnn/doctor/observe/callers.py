"""The person's own code that is running, outside of torch and of the doctor."""

import linecache
import os
import sys
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType

import torch

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
    found: set[str] = set()
    for frame in _own_frames():
        code = frame.f_code
        found.update(code.co_varnames, code.co_names, code.co_freevars, code.co_cellvars)
    return found


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
