"""A search whose trials are runs: which settings to try next, and what came out of those before.

Optuna proposes the settings. The study is a file of Optuna's journal storage, which
`optuna-dashboard` shows too. A trial is written there in one line before its run begins, and its
result in one line when the run has ended. So a command that was killed leaves at most trials
without a result. They are the first ones of the next command, under the same settings and in the
same directories, where the runs go on.

A sampler is made anew for each trial, from the seed and the trial's number. What it proposes
depends on the results so far alone, and so a search that was killed proposes what it would have
proposed.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from debugnn import json_lines, records
from debugnn.errors import START_OVER, RunError, one_line

optuna.logging.set_verbosity(optuna.logging.WARNING)
log = logging.getLogger(__name__)

# What is searched for: a column of the epochs' rows → which way is better.
METRICS: dict[str, Literal["maximize", "minimize"]] = {
    "test_accuracy": "maximize",
    "test_loss": "minimize",
}
SAMPLERS = ("tpe", "random")
_NAME = "search"  # name of the only study in a file
_SETTINGS = "settings"
_DIGITS = 4  # digits of a proposed number, which names a directory


@dataclass(frozen=True)
class Choice:
    """One of several values, as Hydra takes them."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float
    log: bool = False


Space = Mapping[str, Choice | Range]


@dataclass(frozen=True)
class Trial:
    """Settings that are tried.

    Attributes:
        number: from 0.
        overrides: `key=value` each.
    """

    number: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Best:
    """The best trial so far, and the value of its metric."""

    trial: Trial
    value: float


class Study:
    """The trials of a search, on disk; to be used in a `with` block, by one process at a time.

    Args:
        path: of its file.
        space: key → what may be tried.
        settings: what a study has one value of, besides: a study of other settings is refused.
        sampler: one of `SAMPLERS`.
        metric: one of `METRICS`.
        seed: of the sampler.
        overwrite: start over.

    Attributes:
        path, metric: as they were given.

    Raises:
        RunError: another process has it, or its file is damaged, or of another search.
    """

    def __init__(
        self,
        path: Path,
        space: Space,
        settings: Mapping[str, str],
        *,
        sampler: str,
        metric: str,
        seed: int,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self.metric = metric
        self._space = {key: _distribution(values) for key, values in space.items()}
        self._sampler = sampler
        self._seed = seed
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise RunError(f"{path}: another process is searching there") from None
        try:
            if overwrite:
                path.unlink(missing_ok=True)
            self._study = self._open()
            told = {key: str(values) for key, values in space.items()}
            self._compare({**settings, **told, "sampler": sampler, "metric": metric})
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "Study":
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    # --- trials -----------------------------------------------------------------------------------

    @property
    def begun(self) -> int:
        """The number of trials that have begun."""
        return len(self._trials())

    def unfinished(self) -> list[Trial]:
        """Return the trials that have begun and have no result."""
        return [_trial(t) for t in self._trials() if not t.state.is_finished()]

    def trial(self, number: int) -> Trial:
        """Return a trial that has begun."""
        return _trial(self._trials()[number])

    def count(self) -> dict[str, int]:
        """Return how many trials are finished, pruned and without a result."""
        states = [trial.state for trial in self._trials()]
        finished, pruned = states.count(TrialState.COMPLETE), states.count(TrialState.PRUNED)
        left = len(states) - finished - pruned
        return {"finished": finished, "pruned": pruned, "without a result": left}

    def propose(self) -> Trial:
        """Begin another trial."""
        before = self._trials()
        # In memory, so that the file gets the whole trial in one line.
        memory = optuna.create_study(
            direction=METRICS[self.metric], sampler=self._sampler_of(len(before))
        )
        memory.add_trials(before)
        asked = memory.ask(self._space)
        values = {k: _rounded(self._space[k], value) for k, value in asked.params.items()}
        begun = create_trial(
            state=TrialState.RUNNING, params=values, distributions=dict(self._space)
        )
        self._study.add_trial(begun)
        return self.trial(len(before))

    def finish(self, trial: Trial, value: float) -> None:
        """Note the metric of a run that has ended. NaN is the worst value of all."""
        if math.isnan(value):
            value = -math.inf if METRICS[self.metric] == "maximize" else math.inf
        self._study.tell(trial.number, value)

    def prune(self, trial: Trial) -> None:
        """Note that a run was hopeless."""
        self._study.tell(trial.number, state=TrialState.PRUNED)

    def best(self) -> Best | None:
        """Return the best trial, None where none has a value yet."""
        if not self.count()["finished"]:
            return None
        found = self._study.best_trial
        assert found.value is not None
        return Best(_trial(found), found.value)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _sampler_of(self, number: int) -> optuna.samplers.BaseSampler:
        seed = (self._seed * 1_000_003 + number) % 2**32
        if self._sampler == "random":
            return optuna.samplers.RandomSampler(seed)
        return optuna.samplers.TPESampler(seed=seed)

    # --- the file ---------------------------------------------------------------------------------

    def _open(self) -> optuna.Study:
        try:
            _drop_unfinished_line(self.path)
            storage = JournalStorage(JournalFileBackend(str(self.path), _NoLock()))  # type: ignore[arg-type]
            return optuna.create_study(
                study_name=_NAME,
                storage=storage,
                direction=METRICS[self.metric],
                load_if_exists=True,
            )
        except OSError:
            raise
        except Exception as error:  # whatever Optuna raises as it reads another file
            raise RunError(
                f"{self.path}: not a study ({type(error).__name__}: {one_line(error)}); "
                f"{START_OVER}"
            ) from None

    def _compare(self, settings: Mapping[str, str]) -> None:
        kept = self._study.user_attrs.get(_SETTINGS)
        if kept is None:
            self._study.set_user_attr(_SETTINGS, dict(settings))
            return
        for name in sorted({*kept, *settings}):
            before, now = kept.get(name), settings.get(name)
            if before != now:
                raise RunError(
                    f"{self.path}: holds a search with {name}={before}, and {name}={now} is asked "
                    f"for; {START_OVER}, another hydra.sweeper.study keeps both"
                )


class _NoLock:
    """No lock of Optuna's, which a killed process leaves behind: the study has its own."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _drop_unfinished_line(path: Path) -> None:
    """Cut off a line whose writing was interrupted; Optuna would append to it."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


def _distribution(values: Choice | Range) -> BaseDistribution:
    if isinstance(values, Choice):
        return CategoricalDistribution(values.values)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return IntDistribution(values.low, values.high, log=values.log)
    return FloatDistribution(values.low, values.high, log=values.log)


def _rounded(distribution: BaseDistribution, value: Any) -> Any:
    if not isinstance(distribution, FloatDistribution):
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), distribution.low), distribution.high)


def _trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    return Trial(frozen.number, tuple(f"{key}={value}" for key, value in frozen.params.items()))


# --- results ------------------------------------------------------------------------------------


def note_result(study: Study, trial: Trial, directory: Path) -> None:
    """Bring what came out of a trial's run into the study.

    A run that failed, or that was cut off, has no result: the next command repeats it.

    Raises:
        RunError: a file of the run is damaged.
    """
    try:
        facts = records.load((directory / "run.json").read_text(encoding="utf-8"))
        status = facts["status"]
        *_, last = json_lines.read(directory / "metrics.jsonl", "epoch")
        value = last[study.metric]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise RunError(f"{directory}: not a run's record ({reason}); {START_OVER}") from None
    if status == "pruned":
        study.prune(trial)
    elif status == "finished" and value is None:
        raise RunError(f"hydra.sweeper.metric={study.metric}: {directory} has no such value")
    elif status == "finished":
        study.finish(trial, value)


def summary(study: Study, directory_of: Callable[[Trial], Path]) -> Iterator[str]:
    """Yield lines about the search: its trials, and the best one."""
    counts = ", ".join(f"{count} {state}" for state, count in study.count().items() if count)
    yield f"{study.begun} trials ({counts}), in {study.path}"
    if best := study.best():
        settings = " ".join(best.trial.overrides)
        yield f"best: {study.metric} {best.value:.4g} of trial {best.trial.number}, {settings}"
        yield f"  in {directory_of(best.trial)}"
