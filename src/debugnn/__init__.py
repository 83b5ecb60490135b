"""Reproduce, sweep and diagnose the ways a neural network fails to train.

from debugnn import Doctor
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from debugnn.doctor import Doctor, check

__all__ = ["Doctor", "check"]


def __getattr__(name: str) -> Any:
    # On first use: the command line's --help must not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from debugnn import doctor

    return getattr(doctor, name)
