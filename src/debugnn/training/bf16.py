"""Whether the processor has instructions for bfloat16, without which it is slower than float32."""

import logging
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

CPUINFO = Path("/proc/cpuinfo")

# Its names for instructions that compute in bfloat16: on x86 those of AVX-512 and AMX, on Arm those
# of the extension of that name.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def processor_flags(cpuinfo: str | None = None) -> set[str] | None:
    """Return the names of the processor's features, as Linux's /proc/cpuinfo lists them.

    Args:
        cpuinfo: its text, None for this machine's.

    Returns:
        None where no text lists them, as on other systems.
    """
    if cpuinfo is None:
        try:
            cpuinfo = CPUINFO.read_text(encoding="utf-8")
        except OSError:
            return None
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return None


def has_bf16(cpuinfo: str | None = None) -> bool:
    """Return whether the processor has instructions that compute in bfloat16.

    Without them every product is computed in float32 between two conversions: a training step of
    the MNIST net takes 1.8 times as long as in fp32 with AVX-512, and 10 times with AVX2 alone.

    Args:
        cpuinfo: as for `processor_flags`.

    Returns:
        False only where the processor's features are known and bfloat16 is not among them.
    """
    flags = processor_flags(cpuinfo)
    return flags is None or not _BF16_FLAGS.isdisjoint(flags)


@cache  # once a process, not for each run of a sweep
def warn_if_slow() -> None:
    """Warn once that `trainer.precision=bf16` is slow on this processor, if it is."""
    if not has_bf16():
        log.warning(
            "trainer.precision=bf16: this processor has no bfloat16 instructions, and is faster in "
            "fp32"
        )
