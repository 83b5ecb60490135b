"""The state of torch's global generators that a training on a device draws from."""

from collections.abc import Sequence

import torch
from torch import Tensor


def random_state(device: torch.device) -> list[Tensor]:
    """The CPU generator's state and, on a GPU, that GPU's; nothing is waited for."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_state(device: torch.device, states: Sequence[Tensor]) -> None:
    """Go on from what `random_state` returned; a state of a kind the device lacks is left out."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1].cpu(), device)


def gpus(device: torch.device) -> list[torch.device]:
    """For `torch.random.fork_rng`, which without a list wakes every GPU of the machine."""
    return [device] if device.type == "cuda" else []
