"""What a diagnosis says: findings, and the report that holds them. Needs no torch."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from debugnn import records
from debugnn.doctor.evidence import Evidence

SEVERITIES = ("note", "warning", "error")
CONFIDENCES = (
    "certain",  # holds in any program that does this, whatever its task and its outcome
    "shown",  # a copy that differs in this one thing learns better, on two sets of batches
    "suspected",  # fits what was seen, and nothing proves it
)

_WIDTH = 80  # columns of a terminal


@dataclass
class Finding:
    """One thing that is wrong, or worth a note.

    Raises:
        ValueError: the severity is none of `SEVERITIES`, or the confidence of `CONFIDENCES`.
    """

    cause: str  # a name in `debugnn.doctor.causes.CAUSES`
    severity: str  # note, warning or error
    confidence: str  # certain, shown or suspected
    summary: str  # one sentence: what was seen
    fix: str
    layer: str | None = None
    step: int | None = None
    samples: list[int] = field(default_factory=list)  # indices in the batch of that step
    evidence: dict[str, Any] = field(default_factory=dict)  # the numbers behind it
    override: str | None = None  # a Hydra override of this project's configuration
    consequences: list["Finding"] = field(default_factory=list)  # findings that it explains

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity={self.severity}: allowed are {', '.join(SEVERITIES)}")
        if self.confidence not in CONFIDENCES:
            allowed = ", ".join(CONFIDENCES)
            raise ValueError(f"confidence={self.confidence}: allowed are {allowed}")


@dataclass
class Report:
    """The diagnosis of a training.

    Attributes:
        healthy: True: it learns, as well as can be told, and nothing is wrong. False: something is
            wrong, or it does not learn. None: the doctor cannot tell.
        reason: one sentence: why.
        main: what is wrong, or, of a training that does not learn, what is suspected most; None
            where nothing is.
        findings: the main one first.
        outcome: numbers about how well the training went.
        steps: training steps that were watched.
        trial_steps: extra training steps on copies, spent to tell causes apart.
        trial_budget: the most steps that trials were allowed to take.
        troubles: what could not be looked at, and why.
        evidence: what the report rests on.
    """

    healthy: bool | None
    reason: str
    main: Finding | None
    findings: list[Finding]
    outcome: dict[str, Any]
    steps: int
    trial_steps: int
    trial_budget: int
    troubles: list[str] = field(default_factory=list)
    evidence: Evidence = field(default_factory=Evidence, repr=False)

    @property
    def main_cause(self) -> str:
        """The main finding's cause; without one `healthy`, `does not learn` or `cannot tell`."""
        if self.main is not None:
            return self.main.cause
        return {True: "healthy", False: "does not learn", None: "cannot tell"}[self.healthy]

    def to_dict(self) -> dict[str, Any]:
        """Return the report without its evidence, which is long and has a file of its own."""
        shown = asdict(replace(self, evidence=Evidence()))
        del shown["evidence"], shown["main"]  # the main finding is the first one
        return {"main_cause": self.main_cause, **shown}

    def to_json(self) -> str:
        """Return the report as strict JSON (NaN and infinities as strings)."""
        return records.dump(self.to_dict(), indent=2)

    def __str__(self) -> str:
        trials = f", {self.trial_steps} of at most {self.trial_budget} trial steps"
        after = f"(after {self.steps} steps{trials if self.trial_steps else ''})"
        lines = [f"diagnosis: {self.main_cause} {after}"]
        lines += _wrap(self.reason, 2)
        for number, finding in enumerate(self.findings):
            lines += _lines(finding, indent=2, fix=number == 0 and self.main is not None)
        if self.troubles:
            lines += _wrap("not looked at: " + "; ".join(self.troubles), 2)
        return "\n".join(lines)


def worrying(findings: Sequence[Finding]) -> list[Finding]:
    """Return the warnings and errors among the findings, in their order."""
    return [finding for finding in findings if finding.severity != "note"]


def _lines(finding: Finding, indent: int, fix: bool) -> list[str]:
    place = f" in {finding.layer}" if finding.layer else ""
    when = f" at step {finding.step}" if finding.step is not None else ""
    head = f"{finding.severity} ({finding.confidence}): {finding.cause}{place}{when}"
    lines = _wrap(f"{head}: {finding.summary}", indent)
    if fix:
        lines += _wrap(f"fix: {finding.fix}", indent + 2)
        if finding.override:
            lines += [" " * (indent + 2) + f"try: {finding.override}"]
    for consequence in finding.consequences:
        lines += _lines(consequence, indent + 4, fix=False)
    return lines


def _wrap(text: str, indent: int) -> list[str]:
    space = " " * indent
    return textwrap.wrap(text, _WIDTH, initial_indent=space, subsequent_indent=space + "  ")
