"""Watches a training from one line in its loop, and names why it fails.

from debugnn.doctor import Doctor, check

Stands alone: of debugnn it imports the leaves only (errors, records, random_state, tensor_stats,
lr_curve), of other packages torch and numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from debugnn.doctor.checklist import check
    from debugnn.doctor.report import Finding, Report
    from debugnn.doctor.watch import Doctor, NonFiniteError

__all__ = ["Doctor", "Finding", "NonFiniteError", "Report", "check"]

_MODULES = {
    "Doctor": "watch",
    "Finding": "report",
    "NonFiniteError": "watch",
    "Report": "report",
    "check": "checklist",
}


def __getattr__(name: str) -> Any:
    # On first use (PEP 562): `causes` and `report` need no torch, and must not wait for it. No
    # module is called `check`: its import would put the module in the function's place.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
