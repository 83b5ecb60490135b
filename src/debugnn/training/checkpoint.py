"""Checkpoints, from which a training continues as if it had not stopped.

On a CPU in fp32 it does so bit for bit. The checkpoint before the last is kept too, and the SHA-256
of the latest ones in a file beside them: a damaged one is found, and the one before is taken.
"""

import hashlib
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from debugnn.errors import START_OVER, RunError, one_line
from debugnn.files import digest, replace_text, replacing
from debugnn.random_state import random_state, set_random_state
from debugnn.training.loop import Tally, Training

log = logging.getLogger(__name__)

# Two, and one for each time that a process was killed after it had written the hash and before the
# file had its name.
_HASHES = 8
_PLAIN = {bool, int, float, str, bytes, type(None)}


def state_of(training: Training, watcher: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a copy of the training's state between two steps.

    The training may continue while the copy is written.

    Args:
        watcher: the state of what watches the training: lists, dicts, plain values and tensors.
    """
    state: dict[str, Any] = {
        "model": training.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "epoch": training.epoch,
        "step": training.step,
        "tally": None if training.tally is None else asdict(training.tally),
        "random_state": random_state(training.device),
        "watcher": watcher,
    }
    return _copied(state)


def write(path: Path, state: dict[str, Any]) -> None:
    """Write the result of `state_of`, and keep the checkpoint that was there.

    Whenever the process is killed, one of the two is whole and its hash is among the latest.
    """
    with replacing(path) as draft:
        content = io.BytesIO()  # torch does not say why it cannot write a file
        torch.save(state, content)
        draft.write_bytes(content.getbuffer())
        latest = [hashlib.sha256(content.getbuffer()).hexdigest(), *_hashes(path)][:_HASHES]
        replace_text(_hash_file(path), "".join(f"{digest}\n" for digest in latest))
        if path.exists():
            os.replace(path, _previous(path))


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
    hashes = _hashes(path)
    wanted = (path, _previous(path)) if before is None else (_previous(path),)
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


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _hash_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _hashes(path: Path) -> list[str]:
    """Return the hashes of the latest checkpoints, the last one's first."""
    file = _hash_file(path)
    return file.read_text(encoding="utf-8", errors="replace").split() if file.exists() else []


def _copied(value: Any) -> Any:
    # copy.deepcopy would copy the whole storage of a slice, such as a stack's member holds.
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        plain = _PLAIN.issuperset(map(type, value))  # a number for each step of a long training
        return value[:] if plain else [_copied(item) for item in value]
    return value
