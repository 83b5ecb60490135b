"""A claim of the article, and how it is judged by runs over seeds.

A claim consists of parts. Each part compares one quantity with a threshold, or between two arms,
over seeds; its criterion is fixed before the runs. The parts' outcomes give the claim's:

    holds             every part is supported
    does not hold     every part is refuted
    depends           some parts are supported and others refuted, or it depends on the seed
    not enough runs   anything else

Needs no torch: it reads the tables of `analysis.runs`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from debugnn.analysis import statistics
from debugnn.analysis.article import article_epochs, article_names
from debugnn.analysis.claims.quantities import Quantity
from debugnn.analysis.runs import Run
from debugnn.analysis.statistics import ALPHA, Estimate
from debugnn.errors import ConfigError

EMBEDDED = frozenset({"digits", "shapes"})  # data sets that are no evidence for the article's

# From this number of seeds on, a share that is neither most nor few of them is a result of its own:
# the 95 % interval of 10 of 20 is 30 to 70 %.
MANY = 20


class Outcome(Enum):
    """How a part or a claim comes out."""

    HOLDS = "holds"
    FAILS = "does not hold"
    DEPENDS = "depends"
    UNDECIDED = "not enough runs"


@dataclass(frozen=True)
class Measured:
    """A quantity of the runs that a part looks at.

    Attributes:
        values: seed → value.
        article: the same quantity of the article's own run, None where it recorded none.
        why: why there are no values, "" where there are some.
    """

    values: dict[int, float]
    article: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Arm:
    """The runs of an arm of an experiment.

    Attributes:
        settings: overrides that the runs have, besides those that choose the data.
        embedded: the same for the embedded data, where they are called otherwise.
    """

    settings: str
    embedded: str | None = None

    def measure(self, runs: Iterable[Run], embedded: bool, quantity: Quantity) -> Measured:
        """Measure the quantity of each run. A run with a further setting is of another arm."""
        text = self.embedded if embedded and self.embedded is not None else self.settings
        wanted = dict(item.split("=", 1) for item in text.split(","))
        own = {run.seed: run for run in runs if _told(run, embedded, wanted) == wanted}
        if not own:
            return Measured({}, why=f"no run of {text}")
        try:
            values = {seed: quantity.of_run(own[seed]) for seed in sorted(own)}
        except ConfigError as error:
            return Measured({}, why=str(error))
        return Measured(values, _articles(next(iter(own.values())), quantity))


@dataclass(frozen=True)
class Spread:
    """The distance between the best and the worst of several arms, seed by seed."""

    arms: tuple[Arm, ...]

    def measure(self, runs: Iterable[Run], embedded: bool, quantity: Quantity) -> Measured:
        """Measure highest − lowest for each seed that all arms have."""
        runs = list(runs)
        found = [arm.measure(runs, embedded, quantity) for arm in self.arms]
        why = next((measured.why for measured in found if measured.why), "")
        shared = sorted(set.intersection(*(set(measured.values) for measured in found)))
        rows = {seed: [measured.values[seed] for measured in found] for seed in shared}
        return Measured({seed: max(row) - min(row) for seed, row in rows.items()}, why=why)


def _told(run: Run, embedded: bool, wanted: dict[str, str]) -> dict[str, str]:
    """Return the arm's settings without those that the experiment sets for a kind of data."""
    chosen = run.report["data"].get("embedded" if embedded else "article", [])
    keys = {setting.partition("=")[0] for setting in chosen} | {"data"}
    return {key: value for key, value in run.arm.items() if key in wanted or key not in keys}


def _articles(run: Run, quantity: Quantity) -> float | None:
    """Return the quantity of the article's run that this one repeats, None if it recorded none.

    Of several runs of one program, the shortest that has the quantity is the one that the article
    shows for it.
    """
    if quantity.of_epochs is None:
        return None
    for epochs in sorted(map(article_epochs, article_names(run)), key=len):
        value = quantity.of_epochs(epochs)
        if value is not None and not math.isnan(value):
            return value
    return None


@dataclass(frozen=True)
class Result:
    """What one part of a claim found.

    Attributes:
        label: the part in a few words.
        outcome: supported (HOLDS), refuted (FAILS), DEPENDS on the seed, or UNDECIDED.
        estimate: the share, mean difference or ratio, with its 95 % interval; None without runs.
        unit: of the estimate: "share", "difference" or "ratio".
        quantity: what was measured.
        values: the measured value of each seed, or the difference, in the order of the seeds.
        p: p-value after Holm's adjustment; None where no test was made.
        article: the same quantity of the article's own run, None where it recorded none.
        why: why there is no outcome, "" where there is one.
    """

    label: str
    outcome: Outcome
    estimate: Estimate | None
    unit: str
    quantity: str
    values: tuple[float, ...] = ()
    p: float | None = None
    article: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Share:
    """Most seeds of an arm have a quantity above, or below, a threshold.

    Supported if the Wilson interval of the share lies above one half, refuted if it lies below.

    Attributes:
        label: the part in a few words.
        arm: the runs.
        quantity: what is measured of each.
        above: the threshold that it must exceed; NaN never does.
        below: the threshold that it must stay below. One of the two is given.
    """

    label: str
    arm: Arm
    quantity: Quantity
    above: float | None = None
    below: float | None = None

    def criterion(self) -> str:
        """Return what must be seen, in words."""
        bound = f"above {self.above:g}" if self.above is not None else f"below {self.below:g}"
        return f"{self.label}: for most seeds, {self.quantity.name} is {bound}"

    def judge(self, runs: Sequence[Run], embedded: bool, seeds: int) -> Result:
        """Judge the part; see `Claim.judge`."""
        measured = self.arm.measure(runs, embedded, self.quantity)
        values = list(measured.values.values())
        empty = Result(self.label, Outcome.UNDECIDED, None, "share", self.quantity.name)
        if measured.why:
            return replace(empty, why=measured.why)
        estimate = statistics.proportion(sum(map(self._met, values)), len(values))
        if len(values) < seeds:
            outcome = Outcome.UNDECIDED
        elif estimate.low > 0.5:
            outcome = Outcome.HOLDS
        elif estimate.high < 0.5:
            outcome = Outcome.FAILS
        else:
            outcome = Outcome.DEPENDS if len(values) >= MANY else Outcome.UNDECIDED
        return replace(
            empty,
            outcome=outcome,
            estimate=estimate,
            values=tuple(values),
            article=measured.article,
            why=_too_few(values, seeds),
        )

    def _met(self, value: float) -> bool:
        return value > self.above if self.above is not None else value < (self.below or 0.0)


@dataclass(frozen=True)
class Difference:
    """A quantity is higher in one arm than in another, compared seed by seed.

    Supported if the mean of the paired differences is above 0 (t test, Holm over the claim's
    parts, p < 0.05) and a difference as large as the margin is not excluded. Refuted if the 95 %
    interval lies below the margin: what is left is too small to matter.

    With `no_worse` the claim is weaker, that the arm is not worse by more than the margin:
    supported if the mean is above −margin, refuted if the interval lies below 0 and the mean below
    −margin.

    Attributes:
        label: the part in a few words.
        arm: the arm that is claimed to be higher.
        than: the arm that it is compared with.
        quantity: what is compared.
        margin: the smallest difference that matters, in the quantity's unit. For ratios a factor.
        no_worse: claim only that the arm is not worse.
        ratio: compare ratios (differences of logarithms) in place of differences.
    """

    label: str
    arm: Arm | Spread
    than: Arm | Spread
    quantity: Quantity
    margin: float
    no_worse: bool = False
    ratio: bool = False

    def criterion(self) -> str:
        """Return what must be seen, in words."""
        size = f"{self.margin:g}" + (" times" if self.ratio else "")
        how = f"not lower by more than {size}" if self.no_worse else f"higher (by {size} or more)"
        return f"{self.label}: over pairs of equal seeds, {self.quantity.name} is {how}"

    def judge(self, runs: Sequence[Run], embedded: bool, seeds: int) -> Result:
        """Measure the part. `p` is not adjusted yet, and the outcome is `decide`'s."""
        unit = "ratio" if self.ratio else "difference"
        empty = Result(self.label, Outcome.UNDECIDED, None, unit, self.quantity.name)
        own, other = (side.measure(runs, embedded, self.quantity) for side in (self.arm, self.than))
        if own.why or other.why:
            return replace(empty, why=own.why or other.why)
        shared = sorted(own.values.keys() & other.values.keys())
        values = [self._difference(own.values[seed], other.values[seed]) for seed in shared]
        lost = sum(not math.isfinite(value) for value in values)
        if lost or not values:
            why = f"a value that is not finite in {lost} of {len(values)} seeds"
            return replace(empty, why=why if lost else "no seed that both arms have")
        told = own.article is not None and other.article is not None
        return replace(
            empty,
            estimate=statistics.mean(values),
            values=tuple(values),
            p=statistics.p_above(values, self._least) if len(values) > 1 else None,
            article=self._difference(own.article, other.article) if told else None,
            why=_too_few(values, seeds),
        )

    def decide(self, result: Result) -> Outcome:
        """Return the outcome of a result whose p-value has been adjusted."""
        estimate, margin = result.estimate, self._margin
        if estimate is None or result.p is None or result.why:
            return Outcome.UNDECIDED
        beyond = result.p < ALPHA and estimate.value > self._least
        if self.no_worse:
            if beyond:
                return Outcome.HOLDS
            return (
                Outcome.FAILS
                if estimate.high < 0 and estimate.value < -margin
                else Outcome.UNDECIDED
            )
        if estimate.high < margin:
            return Outcome.FAILS
        return Outcome.HOLDS if beyond else Outcome.UNDECIDED

    def _difference(self, value: float | None, other: float | None) -> float:
        assert value is not None
        assert other is not None
        if not self.ratio:
            return value - other
        both = value > 0 and other > 0
        return math.log10(value) - math.log10(other) if both else math.nan

    @property
    def _margin(self) -> float:
        return math.log10(self.margin) if self.ratio else self.margin

    @property
    def _least(self) -> float:
        return -self._margin if self.no_worse else 0.0


Part = Share | Difference


def _too_few(values: Sequence[float], seeds: int) -> str:
    return f"{len(values)} of {seeds} seeds" if len(values) < seeds else ""


@dataclass(frozen=True)
class Verdict:
    """How a claim comes out on one kind of data.

    Attributes:
        outcome: the claim's.
        results: one for each part.
    """

    outcome: Outcome
    results: tuple[Result, ...]


@dataclass(frozen=True)
class Claim:
    """A claim of the article.

    Attributes:
        name: number of the claim in the article's order, with a letter for a part of it.
        statement: what the article says.
        experiment: whose runs decide.
        seeds: how many seeds are needed.
        parts: what must be seen.
        article: what the article shows for it, in its own numbers; "" where it shows none.
        remark: what the parts show where the article is wrong or silent.
    """

    name: str
    statement: str
    experiment: str
    seeds: int
    parts: tuple[Part, ...] = field(default=())
    article: str = ""
    remark: str = ""

    def judge(self, runs: Iterable[Run], *, embedded: bool = False) -> Verdict:
        """Return the verdict of the runs.

        Args:
            runs: of any experiments.
            embedded: judge the runs on the embedded data sets in place of those on the article's.
        """
        own = [run for run in runs if run.experiment == self.experiment
               and run.config["task"]["name"] in ("train", "lr_find")
               and (run.data in EMBEDDED) == embedded]  # fmt: skip
        results = self._adjusted([part.judge(own, embedded, self.seeds) for part in self.parts])
        return Verdict(combine([r.outcome for r in results]), tuple(results))

    def _adjusted(self, results: list[Result]) -> list[Result]:
        """Adjust the p-values for their number (Holm), and decide what they decide."""
        tested = [place for place, result in enumerate(results) if result.p is not None]
        adjusted = statistics.holm([results[place].p or 0.0 for place in tested])
        for place, p in zip(tested, adjusted, strict=True):
            part = self.parts[place]
            assert isinstance(part, Difference)
            result = replace(results[place], p=p)
            results[place] = replace(result, outcome=part.decide(result))
        return results


def combine(outcomes: Sequence[Outcome]) -> Outcome:
    """Return a claim's outcome from those of its parts."""
    seen = set(outcomes)
    if Outcome.DEPENDS in seen or {Outcome.HOLDS, Outcome.FAILS} <= seen:
        return Outcome.DEPENDS
    return seen.pop() if len(seen) == 1 else Outcome.UNDECIDED
