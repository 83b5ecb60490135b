"""Continuing a training from a checkpoint that `debugnn.training.checkpoint` wrote."""

import logging
from pathlib import Path
from typing import Any

import torch

from debugnn.errors import START_OVER, RunError, one_line
from debugnn.files import digest
from debugnn.random_state import set_random_state
from debugnn.training.checkpoint import hashes_of, previous
from debugnn.training.loop import Tally, Training

log = logging.getLogger(__name__)


def restore(
    path: Path, training: Training, epochs: int, before: tuple[int, int] | None = None
) -> dict[str, Any] | None:
    """Load the last whole checkpoint into a training that was built from the same configuration.

    The order of the batches is not part of the state: it depends on seed and epoch alone.

    Args:
        path: of the last checkpoint. Where it is damaged, the one before is loaded, with a warning.
        epochs: that the training is to have in all.
        before: take the checkpoint before the last one, of these numbers of epochs and steps.

    Returns:
        The state of what watched the training, None without one.

    Raises:
        RunError: none is whole, or it is not a checkpoint of this training.
    """
    hashes = hashes_of(path)
    wanted = (path, previous(path)) if before is None else (previous(path),)
    places = [place for place in wanted if place.exists()]
    whole = [place for place in places if digest(place) in hashes]
    if not whole:
        raise RunError(f"{path}: damaged, and so is the one before; {START_OVER}")
    if whole[0] != wanted[0]:
        log.warning("%s: damaged; goes on from the one before", path)
    try:
        state = torch.load(whole[0], map_location=training.device, weights_only=True)
        place = (state["epoch"], state["step"])
        if before not in (None, place):
            raise ValueError(f"of epoch and step {place}, not {before}")
        if state["epoch"] > epochs:
            raise ValueError(f"of epoch {state['epoch']}, beyond trainer.epochs={epochs}")
        training.model.load_state_dict(state["model"])
        training.optimizer.load_state_dict(state["optimizer"])
        training.epoch = state["epoch"]
        training.step = state["step"]
        training.tally = None if state["tally"] is None else Tally(**state["tally"])
        set_random_state(training.device, state["random_state"])
        return state["watcher"]
    except Exception as error:  # torch's and pickle's errors have no common base
        reason = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise RunError(
            f"{whole[0]}: not a checkpoint of this run ({reason}); {START_OVER}"
        ) from error
