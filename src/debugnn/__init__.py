"""Reproduce, sweep and diagnose the ways a neural network fails to train.

from debugnn import Doctor
"""

from typing import Any

__all__ = ["Doctor", "check"]


def __getattr__(name: str) -> Any:
    # On first use: the command line's --help must not wait for torch.
    if name == "Doctor":
        from debugnn.doctor.watch import Doctor

        return Doctor
    if name == "check":
        from debugnn.doctor.check import check

        return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
