"""The arms of a sweep: how each ended, and what is said about all of them at its end."""

import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from omegaconf import DictConfig

from debugnn import records
from debugnn.files import replace_text
from debugnn.runs.directory import ERROR_FILE, LOCK
from debugnn.runs.naming import arm_of, directory_of

# Statuses of runs that failed, were stopped by a signal, or were cut off: `only_failed` runs these.
UNFINISHED = ("failed", "interrupted", "running")


class End(StrEnum):
    """How an arm ended. An arm that is left out did not fail before: see `only_failed`."""

    FINISHED = "finished"
    PRUNED = "pruned"
    SKIPPED = "skipped"
    LEFT_OUT = "left out"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True)
class Arm:
    """One arm of a sweep with one seed.

    Attributes:
        overrides: as typed, `key=value` each; they name it.
        end: how it ended.
        place: the run's directory, or the file with the traceback; None if nothing was written.
        reason: why it failed, in one line.
        exit_code: that the command ends with because of it.
    """

    overrides: tuple[str, ...]
    end: End
    place: Path | None = None
    reason: str = ""
    exit_code: int = 0

    def __str__(self) -> str:
        return " ".join(self.overrides)


def place_of(config: DictConfig, overrides: Sequence[str], experiment: str | None) -> Path | None:
    """Return the directory of the run that is asked for; None for a task that keeps no run."""
    if config.task.name == "check":
        return None
    if config.task.name == "fix":  # its first run is the training without the remedy
        overrides = [o for o in overrides if not o.startswith("task")]
    return directory_of(config, experiment or "adhoc", arm_of(overrides))


def status_in(place: Path | None) -> str | None:
    """Return the status of the run in a directory, `failed` if run.json is damaged, None without.

    A run that failed before it could begin has left its error, and no run.json.
    """
    if place is None or not (place / "run.json").exists():
        return "failed" if place is not None and (place / ERROR_FILE).exists() else None
    try:
        return records.load((place / "run.json").read_text(encoding="utf-8"))["status"]
    except (ValueError, KeyError, TypeError):
        return "failed"


def left_out(config: DictConfig, before: str | None) -> bool:
    """Return whether `only_failed` leaves out a run that had this status."""
    return config.only_failed and before not in UNFINISHED


def end_of(config: DictConfig, before: str | None, place: Path | None) -> End:
    """Return how a run in a directory ended that had this status before, and raised no error."""
    ended = before == "finished" or (before == "pruned" and config.prune_on is not None)
    if ended and config.task.name != "fix" and not config.overwrite:
        return End.SKIPPED
    return End.PRUNED if status_in(place) == "pruned" else End.FINISHED


def keep_traceback(error: BaseException, place: Path | None) -> Path | None:
    """Write the error's traceback into the run's directory, and return the file.

    Returns None if the task keeps no run, or the file cannot be written.
    """
    if place is None:
        return None
    try:
        return _keep_error(place, "".join(traceback.format_exception(error)))
    except OSError:
        return None


def _keep_error(path: Path, text: str) -> Path:
    """Write what ended a run into its directory, which is made if the run had not begun.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written, or the directory is none that runs write.
    """
    if not path.exists():
        path.mkdir(parents=True)
        (path / LOCK).touch()
    if not (path / LOCK).exists():
        raise FileNotFoundError(path / LOCK)
    replace_text(path / ERROR_FILE, text)
    return path / ERROR_FILE


def counts(arms: Sequence[Arm]) -> str:
    """Return how many arms ended in which way.

    >>> counts([Arm(("seed=0",), End.FINISHED), Arm(("seed=1",), End.SKIPPED)])
    '2 arms: 1 finished, 1 skipped'
    """
    number = Counter(arm.end for arm in arms)
    ends = ", ".join(f"{number[end]} {end}" for end in End if number[end])
    return f"{len(arms)} arm{'s' if len(arms) != 1 else ''}: {ends}"


def table(arms: Sequence[Arm]) -> str:
    """Return the counts, and the arms that have failed or were interrupted.

    Each is named by what it does not share with all other arms, with its reason and the path of
    what is known about it.
    """
    shared = set.intersection(*(set(arm.overrides) for arm in arms)) if len(arms) > 1 else set()
    lines = [counts(arms)]
    for arm in arms:
        if arm.end in (End.FAILED, End.INTERRUPTED):
            own = [o for o in arm.overrides if o not in shared] or arm.overrides
            lines.append(f"  {arm.end:11}  {' '.join(own)}")
            lines += [f"{'':15}{text}" for text in (arm.reason, str(arm.place or "")) if text]
    lines.append("The same command runs these again; with --failed, no others.")
    return "\n".join(lines)
