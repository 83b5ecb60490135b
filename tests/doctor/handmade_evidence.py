"""Evidence made by hand: a sound training, and what tests change of it."""

from debugnn.doctor import causes
from debugnn.doctor.causes import CAUSES
from debugnn.doctor.evidence import (
    ActivationFacts,
    Evidence,
    LayerFacts,
    NonFinite,
    Probe,
    Score,
    TrialOutcome,
    WeightFacts,
)
from debugnn.doctor.report import Finding
from debugnn.doctor.trials import HIGHER_RATES, LOWER_RATES

STEPS = 200


def weight(name, **others):
    facts = {"size": 100, "gain": 1.0, "identical_rows": False, "identical_columns": False,
             "constant": False, "hidden": name != "out.weight", "norm": 5.0}  # fmt: skip
    return WeightFacts(name, **(facts | others))


def evidence(skill=0.95, **simple) -> Evidence:
    """A sound classifier of ten classes after 200 steps, at this skill on its training samples."""
    found = Evidence(task="classes", classes=10)
    loss = found.loss
    loss.rewards, loss.best, loss.constant, loss.doubling = [[0.1, 9.0]], 0.0, 2.3, 1.0
    loss.shift_change, loss.other_entries, loss.cross_gradient = 0.0, 0.5, 0.0
    loss.shapes = [[32, 10], [32]]
    data = found.data
    data.samples, data.distinct, data.distinct_targets = 800, 800, 10
    data.rms, data.mean, data.std, data.feature_spread = 1.0, 0.0, 1.0, 2.0
    data.class_counts = dict.fromkeys(range(10), 80)
    data.features, data.feature_share_median = 20, 0.2
    data.feature_shares, data.feature_order = [0.5, 0.45, 0.4], [3, 1, 2]
    data.simple_skill = simple.get("simple", 0.9)
    network = found.network
    network.parameters, network.depth, network.nonlinear = 1000, 3, True
    network.last_op, network.mixing = "addmm", 0.0
    found.weights = [weight(n) for n in ("first.weight", "second.weight", "out.weight")]
    optimizer = found.optimizer
    optimizer.name, optimizer.held, optimizer.trainable, optimizer.lr = "Adam", 6, 6, 1e-3
    loop = found.loop
    loop.steps = loop.optimizer_steps = loop.training_forwards = STEPS
    loop.loss_ratio = loop.loss_ratio_low = loop.loss_ratio_high = 1.0
    loop.residues = [[step, 0.5, 1e-6] for step in range(STEPS)]
    found.probes = [probe(step) for step in (0, 3, 8, 20, 40)]
    outcome = found.outcome
    outcome.first_loss, outcome.last_loss = 2.3, 2.3 * (1 - skill)
    outcome.highest_loss = 2.4
    outcome.initial = Score(1.0, 0.0, 0.1, samples=32)
    outcome.train = outcome.train_mode = score(skill)
    outcome.movement, outcome.shrinkage = 0.5, 1.0
    return found


def score(skill, samples=800) -> Score:
    return Score(1 - skill, skill, 0.1 + 0.9 * skill, samples=samples)


def probe(step, gradients=(1.0, 1.0, 1.0), update=0.005) -> Probe:
    names = ("first.weight", "second.weight", "out.weight")
    layers = {n: LayerFacts(g, 5.0, 5.0 * update) for n, g in zip(names, gradients, strict=True)}
    activations = [ActivationFacts("relu", "first", 0.5, 0.1, None)]
    return Probe(step, layers, {"first": 1.0, "second": 0.6, "out": 0.5}, activations)


def found_by(cause, given):
    findings = list(CAUSES[cause].findings(given))
    assert all(isinstance(f, Finding) for f in findings)
    assert all(f.summary and f.fix for f in findings)
    return findings


def diagnosis(given):
    return causes.diagnose(given, budget=200, overrides=True)


def with_trials(ends, skill=0.0) -> Evidence:
    given = evidence(skill)
    given.trials = outcomes(ends)
    return given


def outcomes(ends):
    """Trial → relative loss at its end, on both sets of batches, as what the evidence holds."""
    return {trial.name: TrialOutcome(24, 1.0, end, end) for trial, end in ends.items()}


TENTH, HUNDREDTH = LOWER_RATES


TENFOLD, HUNDREDFOLD, *_ = HIGHER_RATES


def residues(added, of):
    """Comparisons of `of` steps, in the first `added` of which earlier gradients were added."""
    return [[step, *((1e-6, 0.5) if step < added else (0.5, 1e-6))] for step in range(of)]


def with_nan(where, step=5, overflow=False, **others) -> Evidence:
    given = evidence()
    given.outcome.nonfinite_step = step
    given.nonfinite = NonFinite(step, where, "log", "first", "nan", [3], 1, 2.0, overflow)
    for key, value in others.items():
        setattr(given.outcome, key, value)
    return given


def finding(cause, severity="error", confidence="certain", **others) -> Finding:
    return Finding(cause, severity, confidence, "seen", "mend it", **others)
