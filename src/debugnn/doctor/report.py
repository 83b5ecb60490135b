"""What a diagnosis says: findings, each with a cause of one vocabulary, and the report of them."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from debugnn import records
from debugnn.doctor.evidence import Evidence

# Every cause, in the order in which they are looked for: what comes first in the way from data to
# weights explains what comes after it.
CAUSES = {
    "non_finite": "a NaN or infinite number",
    "constant_input": "every sample has the same input",
    "label_leak": "the input gives the target away",
    "optimizer_mismatch": "an optimiser that does not hold the model's parameters",
    "frozen_parameters": "parameters that no gradient reaches",
    "wrong_loss": "a loss that does not fit the task or the model's output",
    "batch_mixing": "a sample's output depends on other samples",
    "train_eval_mode": "a model in the wrong mode",
    "missing_zero_grad": "gradients that are added to the previous step's",
    "no_nonlinearity": "layers without a nonlinearity between them",
    "wrong_hidden_activation": "a hidden activation that belongs at an output",
    "input_scale": "inputs far from zero mean and unit scale",
    "symmetric_init": "units that start equal and stay equal",
    "init_scale_too_large": "initial weights that are too large",
    "init_scale_too_small": "initial weights that are too small",
    "dead_relu": "units that are zero for every sample",
    "saturated_activation": "activations at their bounds, where they are flat",
    "loss_reduction": "a loss that is summed over the batch",
    "over_regularised": "a regulariser that outweighs the data",
    "exploding_gradient": "gradients that grow from layer to layer or step to step",
    "vanishing_gradient": "gradients that shrink on their way to the first layers",
    "bad_labels": "the labels do not follow from the inputs",
    "lr_too_high": "a learning rate that is too high",
    "lr_too_low": "a learning rate that is too low",
    "class_imbalance": "classes that are too rare to be learnt",
    "train_test_mismatch": "validation data unlike the training data",
    "overfitting": "a network that learns its training samples by heart",
}

SEVERITIES = ("note", "warning", "error")


@dataclass
class Finding:
    cause: str  # one of CAUSES
    severity: str  # note, warning, error
    summary: str  # one sentence: what was seen
    fix: str
    layer: str | None = None
    step: int | None = None
    samples: list[int] = field(default_factory=list)  # indices in the batch of that step
    evidence: dict[str, Any] = field(default_factory=dict)  # the numbers behind it
    override: str | None = None  # a Hydra override of this project's configuration
    consequences: list["Finding"] = field(default_factory=list)  # what this explains

    def __post_init__(self) -> None:
        if self.cause not in CAUSES or self.severity not in SEVERITIES:
            raise ValueError(f"no such finding: {self.cause}, {self.severity}")


@dataclass
class Report:
    """The diagnosis of a training. The first finding is the main cause."""

    findings: list[Finding]
    outcome: dict[str, Any]  # numbers about how well the training went
    steps: int
    fork_steps: int  # extra training steps on copies, spent to tell causes apart
    fork_budget: int
    judged: bool = True  # False: too few steps for a word on how well it learns
    troubles: list[str] = field(default_factory=list)  # what could not be looked at, and why
    evidence: Evidence = field(default_factory=Evidence, repr=False)  # all that it was made from

    @property
    def healthy(self) -> bool:
        return all(finding.severity == "note" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Without the evidence, which is long and has a file of its own."""
        shown = {"healthy": self.healthy, **asdict(replace(self, evidence=Evidence()))}
        del shown["evidence"]
        return shown

    def to_json(self) -> str:
        """The report as strict JSON (NaN and infinities as strings)."""
        return records.dump(self.to_dict(), indent=2)

    def __str__(self) -> str:
        unhealthy = [f for f in self.findings if f.severity != "note"]
        notes = [f for f in self.findings if f.severity == "note"]
        forks = f", {self.fork_steps} of at most {self.fork_budget} probing steps"
        sound = "healthy" if self.judged else "nothing wrong so far, too short to judge"
        head = sound if self.healthy else unhealthy[0].cause
        lines = [f"diagnosis: {head} (after {self.steps} steps{forks if self.fork_steps else ''})"]
        for number, finding in enumerate(unhealthy):
            lines += _lines(finding, indent=2, fix=number == 0)
        lines += [line for finding in notes for line in _lines(finding, indent=2, fix=False)]
        lines += _wrap("not looked at: " + "; ".join(self.troubles), 2) if self.troubles else []
        return "\n".join(lines)


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
    return textwrap.wrap(text, 80, initial_indent=space, subsequent_indent=space + "  ")


def main_cause(findings: Sequence[Finding]) -> str:
    """The first finding's cause, or `healthy`."""
    worrying = [finding for finding in findings if finding.severity != "note"]
    return worrying[0].cause if worrying else "healthy"
