"""Checkpoints, from which a training continues as if it had not stopped.

On a CPU in fp32 it does so bit for bit. The checkpoint before the last is kept too, and the SHA-256
of the latest ones in a file beside them, so that `debugnn.training.restoring` finds a damaged one
and takes the one before.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from debugnn.files import replace_text, replacing
from debugnn.random_state import random_state
from debugnn.training.loop import Training

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
        latest = [hashlib.sha256(content.getbuffer()).hexdigest(), *hashes_of(path)][:_HASHES]
        replace_text(_hash_file(path), "".join(f"{digest}\n" for digest in latest))
        if path.exists():
            os.replace(path, previous(path))


def previous(path: Path) -> Path:
    """Return the path of the checkpoint before the last one, whose path is given."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _hash_file(path: Path) -> Path:
    return path.with_suffix(".sha256")


def hashes_of(path: Path) -> list[str]:
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
