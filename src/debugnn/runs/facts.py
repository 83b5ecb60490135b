"""What run.json says about a run: facts that the configuration does not hold."""

import ast
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from debugnn import processor
from debugnn.nn.networks import parameter_count
from debugnn.runs.naming import article_run
from debugnn.training.loop import Training


def facts_of(
    config: DictConfig, experiment: str, arm: Mapping[str, str], training: Training
) -> dict[str, Any]:
    """Return the facts about a run that starts or is continued now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "status": "running",
        "pid": os.getpid(),
        "host": platform.node(),
        "experiment": experiment,
        "arm": dict(arm),
        "seed": config.seed,
        "data": config.data.name,
        "article_run": article_run(config, arm),
        "started": now,
        "resumed": now,  # later than `started` where an earlier process was cut off
        "git": _git(),
        "training_code": training_code(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "device": _device(config.trainer.device),
        "threads": torch.get_num_threads(),
        "wandb_id": None,
        "classes": training.data.classes,
        "parameters": parameter_count(training.model),
    }


@cache  # once a process: it runs the code that it has loaded, even if the files change later
def _git() -> dict[str, Any]:
    """Return the commit of this code, and whether tracked files differ from it."""

    def ask(*words: str) -> str | None:
        try:
            answer = subprocess.run(
                ["git", *words],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return answer.stdout.strip()

    commit = ask("rev-parse", "HEAD")
    changes = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changes) if commit else None}


# What decides a run's numbers besides its configuration: rooms and modules of this package.
_TRAINING = ("nn", "data", "training", "build.py", "pretraining.py", "lr_curve.py",
             "processor.py", "random_state.py", "tensor_stats.py")  # fmt: skip


@cache
def training_code() -> str:
    """Return a digest of the modules that decide a run's numbers.

    Runs with the same digest were made by the same code, whatever else changed between their
    commits.
    """
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for place in map(package.joinpath, _TRAINING):
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            source = without_words(path.read_text(encoding="utf-8"))
            digest.update(f"{path.relative_to(package)}\n{source}\n".encode())
    return digest.hexdigest()[:12]


def without_words(source: str) -> str:
    """Return a module's source without its comments, its docstrings and its formatting."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node, clean=False) is not None
            node.body = (node.body[1:] or [ast.Pass()]) if documented else node.body
    return ast.unparse(tree)


def _device(choice: str) -> str:
    """Return the model name of the GPU or processor that `trainer.device` stands for."""
    if choice != "cpu" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return processor.model_name()
