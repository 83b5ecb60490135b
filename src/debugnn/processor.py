"""What Linux says about the processor, in /proc/cpuinfo; other systems say less."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def entries(cpuinfo: str | None = None) -> dict[str, str]:
    """Return the entries of the first processor, such as `vendor_id` or `model name`.

    Args:
        cpuinfo: the text of /proc/cpuinfo, None for this machine's.

    Returns:
        Nothing where there is no such file.
    """
    if cpuinfo is None:
        try:
            cpuinfo = CPUINFO.read_text(encoding="utf-8")
        except OSError:
            return {}
    found: dict[str, str] = {}
    for key, colon, value in (line.partition(":") for line in cpuinfo.splitlines()):
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def model_name() -> str:
    """Return the name of this machine's processor, or of its architecture."""
    return entries().get("model name") or platform.processor() or platform.machine()


def features(cpuinfo: str | None = None) -> set[str] | None:
    """Return the names of the processor's features.

    Args:
        cpuinfo: as for `entries`.

    Returns:
        None where they are not listed.
    """
    found = entries(cpuinfo)
    listed = found.get("flags", found.get("Features"))  # on x86; on Arm
    return None if listed is None else set(listed.split())
