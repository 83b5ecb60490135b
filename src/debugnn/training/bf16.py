"""Whether the processor has instructions for bfloat16, without which it is slower than float32."""

import logging
from functools import cache

from debugnn import processor

log = logging.getLogger(__name__)

# Its names for instructions that compute in bfloat16: on x86 those of AVX-512 and AMX, on Arm those
# of the extension of that name.
_BF16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}


def has_bf16(cpuinfo: str | None = None) -> bool:
    """Return whether the processor has instructions that compute in bfloat16.

    Without them every product is computed in float32 between two conversions: a training step of
    the MNIST net takes 1.8 times as long as in fp32 with AVX-512, and 10 times with AVX2 alone.

    Args:
        cpuinfo: the text of Linux's /proc/cpuinfo, None for this machine's.

    Returns:
        False only where the processor's features are known and bfloat16 is not among them.
    """
    features = processor.features(cpuinfo)
    return features is None or not _BF16_FEATURES.isdisjoint(features)


@cache  # once a process, not for each run of a sweep
def warn_if_slow() -> None:
    """Warn once that `trainer.precision=bf16` is slow on this processor, if it is."""
    if not has_bf16():
        log.warning(
            "trainer.precision=bf16: this processor has no bfloat16 instructions, and is faster in "
            "fp32"
        )
