"""The state of torch's global random number generators that a training uses."""

from collections.abc import Sequence

import torch
from torch import Tensor


def random_state(device: torch.device) -> list[Tensor]:
    """Return the state of the CPU's generator and, for a GPU, that of the GPU's.

    Does not wait for the GPU.
    """
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(device: torch.device, states: Sequence[Tensor]) -> None:
    """Restore what `random_state` returned; a GPU's state is ignored on a CPU."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)
