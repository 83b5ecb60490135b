"""The sound programs: trainings that work, with the habits that people have.

Each is a function from a seed to a `Setup`. They are also the bases into which faults are put. A
module holds the programs of one kind of task or network, in two halves:

    TUNING      what the thresholds of the doctor were set on
    HELD_OUT    what nobody looked at when the thresholds were set
"""

import torch

from debugnn.faults.program import Build, Setup
from debugnn.faults.sound import (
    convolutional,
    dense,
    distillation,
    fine_tuning,
    generative,
    graphs,
    metric_learning,
    policies,
    rare_classes,
    regression,
    sequences,
    survival,
    tables,
)

_KINDS = (
    dense, convolutional, fine_tuning, sequences, graphs, tables, regression, generative,
    metric_learning, distillation, rare_classes, survival, policies,
)  # fmt: skip

TUNING: dict[str, Build] = {name: build for kind in _KINDS for name, build in kind.TUNING.items()}
HELD_OUT: dict[str, Build] = {
    name: build for kind in _KINDS for name, build in kind.HELD_OUT.items()
}


def sound(name: str, seed: int) -> Setup:
    """Build a sound program by its name."""
    torch.manual_seed(seed)
    return (TUNING | HELD_OUT)[name](seed)
