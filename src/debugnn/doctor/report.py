"""What a diagnosis says: findings, and the report that holds them. Needs no torch."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from debugnn import records
from debugnn.doctor.evidence import Evidence

SEVERITIES = ("note", "warning", "error")

_WIDTH = 80  # columns of a terminal


@dataclass
class Finding:
    """One thing that is wrong, or worth a note.

    Raises:
        ValueError: the severity is none of `SEVERITIES`.
    """

    cause: str  # a name in `debugnn.doctor.causes.CAUSES`
    severity: str  # note, warning or error
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


@dataclass
class Report:
    """The diagnosis of a training. The first finding is the main cause."""

    findings: list[Finding]
    outcome: dict[str, Any]  # numbers about how well the training went
    steps: int
    trial_steps: int  # extra training steps on copies, spent to tell causes apart
    trial_budget: int
    judged: bool = True  # False: too few steps to say how well the training goes
    cannot_tell: str | None = None  # why it can be called neither healthy nor unhealthy
    troubles: list[str] = field(default_factory=list)  # what could not be looked at, and why
    evidence: Evidence = field(default_factory=Evidence, repr=False)  # what the report rests on

    @property
    def healthy(self) -> bool | None:
        """False with a warning or an error, else None where the doctor cannot tell, else True."""
        if worrying(self.findings):
            return False
        return None if self.cannot_tell else True

    @property
    def main_cause(self) -> str:
        """The first warning's or error's cause, else `healthy` or `cannot tell`."""
        found = worrying(self.findings)
        if found:
            return found[0].cause
        return "cannot tell" if self.cannot_tell else "healthy"

    def to_dict(self) -> dict[str, Any]:
        """Return the report without its evidence, which is long and has a file of its own."""
        shown = {
            "healthy": self.healthy,
            "main_cause": self.main_cause,
            **asdict(replace(self, evidence=Evidence())),
        }
        del shown["evidence"]
        return shown

    def to_json(self) -> str:
        """Return the report as strict JSON (NaN and infinities as strings)."""
        return records.dump(self.to_dict(), indent=2)

    def __str__(self) -> str:
        trials = f", {self.trial_steps} of at most {self.trial_budget} trial steps"
        head = self.main_cause
        if head == "healthy" and not self.judged:
            head = "nothing wrong so far, too short to judge"
        after = f"(after {self.steps} steps{trials if self.trial_steps else ''})"
        lines = [f"diagnosis: {head} {after}"]
        if self.cannot_tell:
            lines += _wrap(self.cannot_tell, 2)
        found = worrying(self.findings)
        for number, finding in enumerate(found):
            lines += _lines(finding, indent=2, fix=number == 0)
        for finding in self.findings:
            if finding.severity == "note":
                lines += _lines(finding, indent=2, fix=False)
        if self.troubles:
            lines += _wrap("not looked at: " + "; ".join(self.troubles), 2)
        return "\n".join(lines)


def worrying(findings: Sequence[Finding]) -> list[Finding]:
    """Return the warnings and errors among the findings, in their order."""
    return [finding for finding in findings if finding.severity != "note"]


def _lines(finding: Finding, indent: int, fix: bool) -> list[str]:
    place = f" in {finding.layer}" if finding.layer else ""
    when = f" at step {finding.step}" if finding.step is not None else ""
    lines = _wrap(f"{finding.severity}: {finding.cause}{place}{when}: {finding.summary}", indent)
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
