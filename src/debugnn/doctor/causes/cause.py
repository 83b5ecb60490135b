"""What a cause is: its name, its meaning, the rules that see it, and how to mend it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from debugnn.doctor.evidence import Evidence
from debugnn.doctor.report import Finding
from debugnn.doctor.trials import Trial


class Kind(Enum):
    """How a cause stands beside others in a report."""

    CERTAIN = "certain"  # follows from what was seen, whatever the outcome; ends all trials
    SYMPTOM = "symptom"  # follows from other causes: shown under the first of them
    RIVAL = "rival"  # explains a failing training as other rivals do: only the first is shown
    INDEPENDENT = "independent"  # none of these: shown beside the first


class _Inherited(Enum):
    OVERRIDE = "the cause's own override"


INHERITED: Final = _Inherited.OVERRIDE


@dataclass
class Sign:
    """What one rule saw of its cause.

    Attributes:
        severity: note, warning or error.
        summary: one sentence: what was seen, with its numbers.
        confidence: certain, shown or suspected, see `report.CONFIDENCES`; None gives what the
            cause's kind implies.
        fix: what to change; None gives the cause's general remedy.
        layer: the module concerned, None where there is none in particular.
        step: the first step at which it was seen.
        samples: indices in the batch of that step.
        evidence: the numbers behind it.
        override: a Hydra override of this project; the cause's own unless given.
        harm: why it hurts, in one clause; None gives the cause's.
        line: `file:line` of the person's code that called what is wrong, None where not known.
    """

    severity: str
    summary: str
    fix: str | None = None
    layer: str | None = None
    step: int | None = None
    samples: list[int] = field(default_factory=list)
    evidence: dict[str, Any] = field(default_factory=dict)
    override: str | _Inherited | None = INHERITED
    confidence: str | None = None
    harm: str | None = None
    line: str | None = None


Rule = Callable[[Evidence], Iterator[Sign]]
Wish = Callable[[Evidence], Iterable[Trial]]


def no_trials(evidence: Evidence) -> Iterable[Trial]:
    """The wish of a cause that needs no trial."""
    return ()


def at_its_place(evidence: Evidence, finding: Finding) -> int:
    """The lateness of a cause that always stands where the order of causes has it."""
    return 0


@dataclass(frozen=True)
class Cause:
    """One reason why a training fails.

    Attributes:
        name: the word of the vocabulary, `Finding.cause`.
        meaning: one line that completes "the training shows …".
        kind: how it stands beside other causes.
        rules: each yields what it sees; all of them speak.
        fix: the general remedy.
        harm: why it hurts, in one clause.
        source: the paper, documentation or report that describes the cause.
        override: a Hydra override of this project that applies the remedy, None without one.
        trials: the trials that would tell the cause from its rivals on this evidence.
        trials_if_learning: those that it asks for where the training learns, and no cause is looked
            for otherwise.
        last_resort: a rule that is asked where a training does not learn and no cause is seen, or
            nothing but symptoms.
        lateness: how far behind the order of causes a finding stands: 0 at its place, 1 or 2 where
            it is more likely the consequence of a cause that comes later in the order.
    """

    name: str
    meaning: str
    kind: Kind
    rules: tuple[Rule, ...]
    fix: str
    harm: str
    source: str
    override: str | None = None
    trials: Wish = no_trials
    trials_if_learning: Wish = no_trials
    last_resort: Rule | None = None
    lateness: Callable[[Evidence, Finding], int] = at_its_place

    def findings(self, evidence: Evidence) -> Iterator[Finding]:
        """Yield a finding for each sign that the rules see in the evidence."""
        yield from self._findings(self.rules, evidence)

    def findings_of_last_resort(self, evidence: Evidence) -> Iterator[Finding]:
        """Yield the same for the rule that is asked where no cause is seen."""
        if self.last_resort is not None:
            yield from self._findings((self.last_resort,), evidence)

    def _findings(self, rules: tuple[Rule, ...], evidence: Evidence) -> Iterator[Finding]:
        implied = "certain" if self.kind is Kind.CERTAIN else "suspected"
        for rule in rules:
            for sign in rule(evidence):
                override = self.override if sign.override is INHERITED else sign.override
                yield Finding(
                    cause=self.name,
                    severity=sign.severity,
                    confidence=sign.confidence or implied,
                    summary=sign.summary,
                    fix=sign.fix or self.fix,
                    layer=sign.layer,
                    step=sign.step,
                    samples=sign.samples,
                    evidence=sign.evidence,
                    override=override,
                    harm=sign.harm or self.harm,
                    line=sign.line,
                )


def first_of(*rules: Rule) -> Rule:
    """Return a rule that asks the given ones in order and repeats the first that sees anything."""

    def first(evidence: Evidence) -> Iterator[Sign]:
        for rule in rules:
            signs = list(rule(evidence))
            if signs:
                yield from signs
                return

    return first
