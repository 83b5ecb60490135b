"""The line of the person's own code that is running, outside of torch and of the doctor."""

import os
import sys
import sysconfig
from pathlib import Path
from types import CodeType

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
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not below:
        name = frame.f_code.co_filename
        if not name.startswith(_FOREIGN) and not any(part in name for part in _INSTALLED):
            here = os.getcwd() + os.sep
            return f"{name.removeprefix(here)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None
