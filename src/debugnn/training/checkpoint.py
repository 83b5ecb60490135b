"""Saving a training and taking it up again where it stood, bit for bit on CPU in fp32."""

from pathlib import Path
from typing import Any

import torch

from debugnn.errors import ConfigError
from debugnn.files import replacing
from debugnn.random_state import random_state, set_random_state
from debugnn.training.loop import Training


def state_of(training: Training) -> dict[str, Any]:
    """A copy of the training's state at an epoch's end: the training may go on meanwhile."""
    state: dict[str, Any] = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "epoch": training.epoch,
        "step": training.step,
        "random_state": random_state(training.device),
    }
    return _copied(state)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write what `state_of` returned; the file is replaced atomically."""
    with replacing(path) as draft:
        torch.save(state, draft)


def restore(path: Path, training: Training) -> None:
    """Put the saved state into a training that was built from the same configuration.

    The order of batches needs no state: it is a function of the seed and the epoch.

    Raises:
        ConfigError: a checkpoint of another version of this project.
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
    # Not copy.deepcopy: of a slice, as a stack's member holds, it copies all that it is a slice of.
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
