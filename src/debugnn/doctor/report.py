"""What a diagnosis says: findings, and the report that holds them. Needs no torch."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
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
_UNNAMED = "does not learn"  # the main cause of a training that no cause is known of
# Lines of the parts of the main finding, twelve in all with one each for the line of code and the
# override.
_SEEN, _HARM, _CHANGE = 4, 2, 4


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
    override: str | None = None  # a Hydra override of train.py; None in a loop of one's own
    consequences: list["Finding"] = field(default_factory=list)  # findings that it explains
    harm: str = ""  # why it hurts, in one clause
    line: str | None = None  # `file:line` that called what is wrong, where known

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"severity={self.severity}: allowed are {', '.join(SEVERITIES)}")
        if self.confidence not in CONFIDENCES:
            allowed = ", ".join(CONFIDENCES)
            raise ValueError(f"confidence={self.confidence}: allowed are {allowed}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Finding":
        """Return the finding that `dataclasses.asdict` made these plain values of.

        Raises:
            TypeError: a field is missing, or there is no such field.
            ValueError: an unknown severity or confidence.
        """
        under = [cls.from_dict(consequence) for consequence in data.get("consequences", [])]
        return cls(**{**data, "consequences": under})


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
        evidence: what the report rests on; empty in a report that was loaded from a file.
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
        return {True: "healthy", False: _UNNAMED, None: "cannot tell"}[self.healthy]

    def to_dict(self) -> dict[str, Any]:
        """Return the report without its evidence, which is long and has a file of its own."""
        shown = asdict(replace(self, evidence=Evidence()))
        del shown["evidence"], shown["main"]  # the main finding is the first one
        return {"main_cause": self.main_cause, **shown}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Report":
        """Return the report that `to_dict` made these plain values of.

        Raises:
            TypeError: the values are those of something else.
            ValueError: a finding has an unknown severity or confidence.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"a report is an object, and this is a {type(data).__name__}")
        known = {f.name for f in fields(cls)} - {"evidence", "main"} | {"main_cause"}
        if missing := known - set(data):
            raise TypeError(f"the report has no {', '.join(sorted(missing))}")
        if unknown := set(data) - known:
            raise TypeError(f"a report has no {', '.join(sorted(unknown))}")
        found = [Finding.from_dict(finding) for finding in data["findings"]]
        named = data["healthy"] is False and data["main_cause"] != _UNNAMED
        given = {name: data[name] for name in known - {"findings", "main_cause"}}
        return cls(**given, findings=found, main=found[0] if named and found else None)

    @classmethod
    def load(cls, path: Path | str) -> "Report":
        """Return the report that a file holds, as `to_json` wrote it.

        Raises:
            OSError: the file cannot be read.
            TypeError: the file holds something else than a report.
            ValueError: the file holds no JSON, or a finding of an unknown severity.
        """
        return cls.from_dict(records.load(Path(path).read_text(encoding="utf-8")))

    def to_json(self) -> str:
        """Return the report as strict JSON (NaN and infinities as strings)."""
        return records.dump(self.to_dict(), indent=2)

    def __str__(self) -> str:
        """The verdict and its reason, and the main finding in at most twelve lines."""
        lines = self._verdict()
        main = self.main
        if main is not None:
            lines += _told(main)
        others = [finding for finding in _all(self.findings) if finding is not main]
        rest = []
        if found := list(dict.fromkeys(f.cause for f in worrying(others))):
            rest.append(f"also {', '.join(found)}")
        if notes := sum(finding.severity == "note" for finding in others):
            rest.append(f"{notes} note{'s' if notes > 1 else ''}")
        if self.troubles:
            rest.append(f"{len(self.troubles)} not looked at")
        if rest:
            lines += _wrap(f"{', '.join(rest)}: see details()", 2)
        return "\n".join(lines)

    def details(self) -> str:
        """Return all findings with their numbers and consequences, and what was not looked at."""
        lines = self._verdict()
        for finding in self.findings:
            lines += _in_full(finding, indent=2)
        for trouble in self.troubles:
            lines += _wrap(trouble, 2)
        return "\n".join(lines)

    def _verdict(self) -> list[str]:
        trials = f", {self.trial_steps} of at most {self.trial_budget} trial steps"
        after = f"(after {self.steps} steps{trials if self.trial_steps else ''})"
        return [f"diagnosis: {self.main_cause} {after}", *_wrap(self.reason, 2)]


def worrying(findings: Sequence[Finding]) -> list[Finding]:
    """Return the warnings and errors among the findings, in their order."""
    return [finding for finding in findings if finding.severity != "note"]


def _all(findings: Sequence[Finding]) -> Iterator[Finding]:
    for finding in findings:
        yield finding
        yield from _all(finding.consequences)


def _head(finding: Finding) -> str:
    place = f" in {finding.layer}" if finding.layer else ""
    when = f" at step {finding.step}" if finding.step is not None else ""
    return f"{finding.severity} ({finding.confidence}): {finding.cause}{place}{when}"


def _told(finding: Finding) -> list[str]:
    """Return what was seen, why it hurts, what to change and where, in at most twelve lines."""
    lines = _wrap(f"{_head(finding)}: {finding.summary}", 2, _SEEN)
    if finding.harm:
        lines += _wrap(f"why it hurts: {finding.harm}", 4, _HARM)
    lines += _wrap(f"fix: {finding.fix}", 4, _CHANGE)
    if finding.line:
        lines += _wrap(f"called at: {finding.line}", 4, 1)
    if finding.override:
        lines += [f"    try: {finding.override}"]
    return lines


def _in_full(finding: Finding, indent: int) -> list[str]:
    lines = _wrap(f"{_head(finding)}: {finding.summary}", indent)
    if finding.harm:
        lines += _wrap(f"why it hurts: {finding.harm}", indent + 2)
    lines += _wrap(f"fix: {finding.fix}", indent + 2)
    if finding.line:
        lines += _wrap(f"called at: {finding.line}", indent + 2)
    if finding.override:
        lines += [f"{' ' * (indent + 2)}try: {finding.override}"]
    if finding.samples:
        lines += _wrap(f"samples: {', '.join(map(str, finding.samples))}", indent + 2)
    if finding.evidence:
        numbers = (f"{name} = {_shown(value)}" for name, value in finding.evidence.items())
        lines += _wrap(f"numbers: {', '.join(numbers)}", indent + 2)
    for consequence in finding.consequences:
        lines += _in_full(consequence, indent + 4)
    return lines


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _wrap(text: str, indent: int, most: int | None = None) -> list[str]:
    """Return the text in lines of a terminal's width; `most` is how many lines there may be."""
    space = " " * indent
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=space,
        subsequent_indent=space + "  ",
        max_lines=most,
        placeholder=" …",
        break_on_hyphens=False,
    )
