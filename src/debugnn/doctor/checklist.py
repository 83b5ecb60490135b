"""Checks before a training: the article's checklist, on copies, in seconds."""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from debugnn import lr_curve
from debugnn.doctor.causes import CAUSES
from debugnn.doctor.causes.label_leak import sees_its_target, windows_cut_before_split
from debugnn.doctor.causes.signals.data import (
    RARE,
    inputs_differ,
    odd_inputs,
    rarest_share,
    shift,
)
from debugnn.doctor.causes.signals.loss_function import summed
from debugnn.doctor.causes.signals.network import evaluations_differ
from debugnn.doctor.causes.signals.telling_features import feature_is_target
from debugnn.doctor.copies import undisturbed
from debugnn.doctor.evidence import Evidence, Score
from debugnn.doctor.observe.observer import Observer
from debugnn.doctor.report import Finding
from debugnn.doctor.trial_runner import TrialRunner

_SAMPLES = 1024  # samples taken from a loader

# Share of validation samples found in the training data that may repeat by chance.
OVERLAP = 0.05
# The loss before the first step: over the targets' variance for values, over ln(classes) for
# classes. TheDeepChecker (Ben Braiek & Khomh 2023) allows twice ln(classes).
INITIAL_OF_VALUES = 3.0
INITIAL_OF_CLASSES = 1.5
# Overfitting one batch: how many samples, within how many steps, to what skill. TheDeepChecker asks
# for at most 5 % errors on 16 samples.
FITTED = 32
FIT_STEPS = 200
FIT_SKILL = 0.95
# Factor by which the optimiser's rate may differ from the range test's suggestion.
FAR_RATE = 100.0


@dataclass(frozen=True)
class Check:
    """One line of the checklist: `passed` is None for a warning, or what could not be tried."""

    name: str
    passed: bool | None
    reason: str


@dataclass(frozen=True)
class Checklist:
    """All checks in order. It is passed where none failed; warnings do not count."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the checks as plain values."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = []
        for check in self.checks:
            mark = {True: "✓", False: "✗", None: "!"}[check.passed]
            first, *rest = textwrap.wrap(check.reason, 76 - width)
            lines.append(f"{mark} {check.name:{width}s}  {first}")
            lines += [" " * (width + 4) + line for line in rest]
        return "\n".join(lines)


def check(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    loader: Iterable[tuple[Any, Any]],
    optimizer: torch.optim.Optimizer | None = None,
    validation: Iterable[tuple[Any, Any]] | None = None,
) -> Checklist:
    """Check data, loss, network and optimiser before a training, and suggest a learning rate.

    Everything is tried on copies: the model, the optimiser and the random state stay as they are.
    Up to 1,024 samples are taken from each loader.

    Args:
        loader: gives batches (inputs, targets), as the training will see them.
        optimizer: the training's; without it Adam at 1e-3 is tried.
        validation: gives batches (inputs, targets), as the evaluation will see them.

    Raises:
        TypeError: arguments of the wrong kind, as `Doctor` does.
        ValueError: a loader without a batch.
    """
    with undisturbed():  # a shuffled loader draws its order
        batches = _first(loader)
        others = _first(validation) if validation is not None else None
    if not batches:
        raise ValueError("the loader gives no batch")
    own = optimizer
    if own is None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            failed = "no parameter requires a gradient: there is nothing to train"
            return Checklist((Check("gradients", False, failed),))
        own = torch.optim.Adam(trainable, lr=1e-3)
    observer = Observer(model, own, loss_fn)
    with closing(observer):
        observer.consider(batches, others)
        evidence, trials = observer.evidence, TrialRunner(observer.training)
        checks = [
            *_data_checks(evidence),
            *_loss_checks(evidence),
            *_network_checks(evidence),
            *(_optimizer_checks(evidence) if optimizer is not None else ()),
        ]
        rate, suggested = _suggested_rate(trials)
        checks += [_overfits(trials, suggested), rate]
    checks += [Check("not tried", None, trouble) for trouble in evidence.troubles]
    return Checklist(tuple(checks))


def _first(loader: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    taken, samples = [], 0
    for inputs, targets in loader:
        taken.append((inputs, targets))
        samples += len(targets) if isinstance(targets, Tensor) and targets.dim() else 1
        if samples >= _SAMPLES:
            break
    return taken


def _finding(cause: str, evidence: Evidence) -> Finding | None:
    """The cause's first finding, None where it sees nothing."""
    return next(CAUSES[cause].findings(evidence), None)


# --- data -----------------------------------------------------------------------------------------


def _data_checks(evidence: Evidence) -> Iterator[Check]:
    data = evidence.data
    bad = data.nonfinite_samples
    looked_at = f"{data.samples} samples looked at"
    broken = f"{bad} of {data.samples} samples hold NaN or infinity"
    yield Check("finite inputs", bad == 0, broken if bad else looked_at)
    constant = _finding("constant_input", evidence)
    distinct = f"{data.distinct} distinct of {data.samples}"
    yield Check("inputs differ", constant is None, constant.summary if constant else distinct)
    odd = odd_inputs(evidence)
    scale = "tokens" if data.rms is None else f"mean {data.mean:.3g}, deviation {data.std:.3g}"
    yield Check("input scale", None if odd else True, f"{odd}: standardise them" if odd else scale)
    if evidence.task in ("classes", "binary"):
        yield from _label_checks(evidence)
    leak = next(feature_is_target(evidence), None) or next(sees_its_target(evidence), None)
    if evidence.task != "unknown":
        yield Check("no leak", leak is None, leak.summary if leak else "no feature tells it all")
    if data.overlap is not None:
        windows = next(windows_cut_before_split(evidence), None)
        whole = f"{100 * data.overlap:.0f} % of the validation samples are in the training data"
        yield Check(
            "train/test overlap",
            (data.overlap < OVERLAP and windows is None) or None,
            windows.summary if windows else whole,
        )
    apart = shift(evidence)
    if apart is not None:
        told = f"a simple model tells them apart with skill {max(apart, 0):.2f} (0 to 1)"
        yield Check("train like test", None if inputs_differ(evidence) else True, told)


def _label_checks(evidence: Evidence) -> Iterator[Check]:
    data, last = evidence.data, (evidence.classes or 1) - 1
    outside = f"{data.out_of_range} lie outside of 0 to {last}"
    within = f"0 to {last}"
    yield Check("labels in range", data.out_of_range == 0, outside if data.out_of_range else within)
    counts = [n for n in data.class_counts.values() if n]
    absent = sum(n == 0 for n in data.class_counts.values())
    balanced = rarest_share(evidence) >= RARE and not absent
    reason = f"{min(counts)} to {max(counts)} samples a class" if counts else "no label"
    if absent:
        reason += f", {absent} of {len(data.class_counts)} classes do not occur"
    yield Check("class balance", True if balanced else None, reason)


# --- loss -----------------------------------------------------------------------------------------


def _loss_checks(evidence: Evidence) -> Iterator[Check]:
    if evidence.loss.error is not None:
        yield Check("loss", False, f"it cannot be called: {evidence.loss.error}")
        return
    wrong = _finding("wrong_loss", evidence)
    if wrong is not None:
        yield Check("loss fits", False, f"{wrong.summary}; {wrong.fix}")
    elif evidence.loss.confirmed:
        yield Check("loss fits", True, "it is lower at right outputs than at wrong ones")
    else:
        yield Check("loss fits", None, "it is not known which outputs it asks for")
    if not evidence.loss.scalar:
        each = "it returns a value for each sample, which has no backward()"
        yield Check("loss is a mean", False, each)
    elif summed(evidence):
        yield Check("loss is a mean", None, "it is summed: the rate depends on the batch size")
    else:
        yield Check("loss is a mean", True, "it does not grow with the batch")
    initial = evidence.outcome.initial
    if initial.loss is None or initial.relative_loss is None:
        return
    if evidence.task == "values":
        reason = f"{initial.relative_loss:.3g} times the targets' variance"
        small = initial.relative_loss < INITIAL_OF_VALUES
    else:
        classes = evidence.classes or 2
        guess = math.log(classes)
        reason = f"{initial.loss:.3g}; −log(1/{classes}) = {guess:.3g}"
        small = initial.loss < INITIAL_OF_CLASSES * guess
    yield Check("initial loss", small, reason if math.isfinite(initial.loss) else "not finite")


# --- network and optimiser ------------------------------------------------------------------------


def _network_checks(evidence: Evidence) -> Iterator[Check]:
    mixed = _finding("batch_mixing", evidence)
    if evidence.network.mixing is not None and not evaluations_differ(evidence):
        apart = "a sample's output depends on that sample alone"
        where = f"{mixed.summary} ({mixed.layer or 'the model'})" if mixed else apart
        yield Check("samples apart", mixed is None, where)
    for cause, name in (
        ("train_eval_mode", "evaluation is fixed"),
        ("no_nonlinearity", "nonlinear"),
        ("wrong_hidden_activation", "hidden activations"),
        ("symmetric_init", "random weights"),
    ):
        for finding in CAUSES[cause].findings(evidence):
            yield Check(name, False, finding.summary)
    frozen = _finding("frozen_parameters", evidence)
    if frozen is not None and frozen.severity == "error":
        yield Check("gradients", False, frozen.summary)
        return
    unused = evidence.network.unused
    left_out = f"unused by the forward pass: {', '.join(unused[:3])}"
    reached = "they reach every trainable parameter"
    yield Check("gradients", None if unused else True, left_out if unused else reached)


def _optimizer_checks(evidence: Evidence) -> Iterator[Check]:
    facts = evidence.optimizer
    outside = _finding("optimizer_mismatch", evidence)
    if outside is not None and evidence.network.unregistered:
        yield Check("optimiser", False, f"{outside.summary}; {outside.fix}")
        return
    missing = [n for n in facts.missing if n not in evidence.network.unused]
    lacks = (
        f"{facts.name} lacks {len(missing)} of {facts.trainable} trainable parameters: "
        f"{', '.join(missing[:3])}"
    )
    holds = f"{facts.name} holds all {facts.trainable} trainable parameters"
    yield Check("optimiser", not missing, lacks if missing else holds)


def _overfits(trials: TrialRunner, suggested: float | None) -> Check:
    """Whether a copy learns a few samples by heart: what it cannot learn, it won't from many."""
    name = "overfits a batch"
    reached, passed = _fit(trials, None)
    if passed is False and suggested is not None:
        # A rate that is right for many steps may be too low for these.
        faster, passed_faster = _fit(trials, suggested)
        if passed_faster:
            return Check(name, None, f"{reached}; at a rate of {suggested:.1e}: {faster}")
    return Check(name, passed, reached)


def _fit(trials: TrialRunner, lr: float | None) -> tuple[str, bool | None]:
    """How far a copy comes on a few samples, and whether that is all the way."""
    evidence = trials.evidence
    with trials.training(FITTED) as training:
        if training is None or evidence.task == "unknown":
            return "cannot be tried", None
        if lr is not None:
            training.set_lr(lr)
        score = Score()
        for step in range(FIT_STEPS + 1):
            if step % 10 == 0:
                score = trials.score_of(training)
                if score.skill is not None and score.skill >= FIT_SKILL:
                    return f"{score.samples} samples in {step} steps", True
            if not math.isfinite(training.step()[-1].item()):
                return f"the loss is not finite after {step} steps", False
    what = "R²" if evidence.task == "values" else "accuracy above guessing"
    reached = "nothing" if score.skill is None else f"{max(score.skill, 0):.2f}"
    return f"{score.samples} samples, {FIT_STEPS} steps: {what} {reached}", False


def _suggested_rate(trials: TrialRunner) -> tuple[Check, float | None]:
    """A learning rate by the steepest fall of a range test's curve, and how far ours is from it."""
    name = "learning rate"
    with trials.training() as training:
        if training is None:
            return Check(name, None, "cannot be tried"), None

        def step(lr: float) -> float:
            training.set_lr(lr)
            return training.step()[-1].item()

        points = list(
            lr_curve.sweep_rates(
                step, start_lr=1e-7, end_lr=10.0, iterations=100, smoothing=0.2, diverge_at=8.0
            )
        )
    found = {suggestion.rule: suggestion.lr for suggestion in lr_curve.suggest(points)}
    own = trials.evidence.optimizer.lr
    if "steepest" not in found:
        return Check(name, None, "the range test's curve never falls"), None
    suggested = found["steepest"]
    far = own is not None and not suggested / FAR_RATE <= own <= suggested * FAR_RATE
    reason = f"the range test suggests {suggested:.1e}" + (f"; {own:g} is set" if own else "")
    return Check(name, None if far else True, reason), suggested
