"""Checkpoints, from which a training continues as if it had not stopped.

On a CPU in fp32 it does so bit for bit.
"""

from pathlib import Path
from typing import Any

import torch

from debugnn.errors import ConfigError
from debugnn.files import replacing
from debugnn.random_state import random_state, set_random_state
from debugnn.training.loop import Training


def state_of(training: Training) -> dict[str, Any]:
    """Return a copy of the training's state at the end of an epoch.

    The training may continue while the copy is written.
    """
    state: dict[str, Any] = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "epoch": training.epoch,
        "step": training.step,
        "random_state": random_state(training.device),
    }
    return _copied(state)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write the result of `state_of`; the file is replaced atomically."""
    with replacing(path) as draft:
        torch.save(state, draft)


def restore(path: Path, training: Training) -> None:
    """Load a checkpoint into a training that was built from the same configuration.

    The order of the batches is not part of the state: it depends on seed and epoch alone.

    Raises:
        ConfigError: the checkpoint was written by another version of this project.
    """
    state = torch.load(path, map_location=training.device, weights_only=True)
    if "random_state" not in state:
        raise ConfigError(f"{path}: of another version; overwrite=true begins the run anew")
    training.model.load_state_dict(state["model"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.epoch = state["epoch"]
    training.step = state["step"]
    set_random_state(training.device, state["random_state"])


def _copied(value: Any) -> Any:
    # copy.deepcopy would copy the whole storage of a slice, such as a stack's member holds.
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
