"""What is said of trainings whose loss compares more than one output with one target."""

import itertools
import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from handmade_evidence import evidence as sound_evidence
from torch import Tensor, nn
from torch.func import hessian, vmap

from debugnn import Doctor
from debugnn.doctor import causes
from debugnn.doctor.causes.over_regularised import weights_shrunk_away
from debugnn.doctor.causes.signals.preparations import SHIFTED, TURNED, moved_apart
from debugnn.doctor.causes.verdict import verdict
from debugnn.doctor.evidence import (
    DataFacts,
    LayerFacts,
    LossFacts,
    OutcomeFacts,
    PartFacts,
    PreparationFacts,
    Score,
    load,
)
from debugnn.doctor.observe.alignment import alignment_facts
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.labels_among_inputs import find_labels
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.loss_function.facts import loss_facts
from debugnn.doctor.observe.loss_function.graph import (
    candidates,
    crossed,
    loss_sources,
    multiplied,
    samples_compete,
)
from debugnn.doctor.observe.parts import find_parts, without_gradient
from debugnn.doctor.observe.task import read

SYMBOLS, FEATURES, BATCH = 5, 6, 24


def named(report):
    return [finding.cause for finding in report.findings]


def watched(model, make, loss_fn, steps, lr=1e-2, handed=True):
    """Train and return the report: `make` gives the model's argument and the targets."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with Doctor(model, optimizer, loss_fn if handed else None) as doctor:
        for _ in range(steps):
            inputs, targets = make()
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets if handed else None)
        return doctor.report()


# --- derivatives that the loss is made of ---------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "order", "accused"),
    [(nn.Tanh, 2, False), (nn.SiLU, 2, False), (nn.ReLU, 2, True), (nn.LeakyReLU, 2, True),
     (nn.ReLU, 1, False)],
)  # fmt: skip
def test_a_loss_of_second_derivatives_needs_activations_that_have_one(activation, order, accused):
    """u'' = -u from u(0) = 0, u'(0) = 1; of first order, u' = cos."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 16), activation(), nn.Linear(16, 16), activation(),
                          nn.Linear(16, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Doctor(model, optimizer) as doctor:
        for _ in range(30):
            x = torch.rand(BATCH, 1).requires_grad_()
            u = model(x)
            (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            residual = slope - x.cos()
            if order == 2:
                residual = torch.autograd.grad(slope.sum(), x, create_graph=True)[0] + u
            loss = residual.square().mean() + model(torch.zeros(1, 1)).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        report = doctor.report()
    assert ("wrong_hidden_activation" in named(report)) is accused
    assert not report.troubles


def slope(y, x):
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


class Solution(nn.Module):
    """A solution of u'' = -2: of x, of x with ends of zero, or with u'' taken in the forward."""

    def __init__(self, activation, kind):
        super().__init__()
        self.kind = kind
        self.scale = nn.Parameter(torch.ones(()))
        self.layers = nn.Sequential(nn.Linear(1, 16), activation(), nn.Linear(16, 16),
                                    activation(), nn.Linear(16, 1))  # fmt: skip

    def solution(self, x):
        if "features" in self.kind:
            x = (4 * x).sin()
        u = self.layers(4 * x - 2)
        return u * x * (1 - x) if "ends" in self.kind else u

    def forward(self, x):
        if "inside" not in self.kind:
            return self.solution(x)
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            u = self.solution(x)
            return u, slope(slope(u, x), x)

    def residual(self):
        """Return the loss that the kind stands for."""
        x = torch.rand(BATCH, 1)
        if "inside" in self.kind:
            u, bend = self(x)
        elif "function" in self.kind:
            u = self(x)
            bend = vmap(hessian(lambda one: self(one).squeeze()))(x)[..., 0]
        elif "penalty" in self.kind:
            x.requires_grad_()
            return (slope(self(x), x) - 1).square().mean()
        else:
            x.requires_grad_()
            u = self(x)
            bend = slope(slope(u, x), x)
        return (self.scale * bend + 2).square().mean() + 1e-3 * u.square().mean()


@pytest.mark.parametrize(
    ("activation", "kind", "accused"),
    [(nn.ReLU, "inside", True), (nn.Tanh, "inside", False),
     (nn.ReLU, "ends", True), (nn.Tanh, "ends", False),
     (nn.ReLU, "ends inside", True), (nn.Hardtanh, "function", True), (nn.Tanh, "function", False),
     (nn.ReLU, "features", False), (nn.ReLU, "penalty", False)],
)  # fmt: skip
def test_second_derivatives_are_found_wherever_they_are_taken(activation, kind, accused):
    """Features are curved themselves; a penalty's own gradient is no second derivative of a loss,
    although an optimiser differentiates it."""
    torch._dynamo.reset()  # layers are not watched in a process that compiles
    torch.manual_seed(0)
    model, plain = Solution(activation, kind), Solution(activation, kind)
    plain.load_state_dict(model.state_dict())

    def trained(watched, state):
        torch.set_rng_state(state)
        optimizer = torch.optim.Adam(watched.parameters(), lr=1e-3)
        doctor = Doctor(watched, optimizer) if watched is model else None
        for _ in range(21):
            loss = watched.residual()
            loss.backward(create_graph=kind == "penalty")
            optimizer.step()
            for parameter in watched.parameters():
                parameter.grad = None
            if doctor is not None:
                doctor.step(loss.detach())
        return doctor

    state = torch.get_rng_state()
    with trained(model, state) as doctor:
        report = doctor.report()
    trained(plain, state)
    assert ("wrong_hidden_activation" in named(report)) is accused
    assert not report.troubles
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not any(m._forward_pre_hooks for m in model.modules())


# --- what the loss was computed from --------------------------------------------------------------


COLUMN, ROW = (BATCH, 1), (BATCH,)


@pytest.mark.parametrize(
    "loss_fn",
    [F.mse_loss, F.smooth_l1_loss, F.huber_loss, F.l1_loss,
     lambda o, t: ((o - t) ** 2).mean(), lambda o, t: 0.5 * (t - o).abs().sum() + o.square().sum(),
     lambda o, t: (torch.ones(BATCH) * F.mse_loss(o, t, reduction="none")).mean()],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_that_are_broadcast_against_outputs_are_found_in_the_loss(loss_fn):
    values = nn.Linear(FEATURES, 1)(torch.randn(BATCH, FEATURES))
    for shape, other in itertools.product((COLUMN, ROW), repeat=2):
        loss = loss_fn(values.reshape(shape), torch.randn(other))
        loss.backward(retain_graph=True)
        assert crossed(loss) == (None if shape == other else (BATCH, BATCH))


def test_outputs_that_are_compared_with_each_other_are_meant():
    values, wanted = nn.Linear(FEATURES, 1)(torch.randn(BATCH, FEATURES)), torch.randn(BATCH)
    differences = values - values.T
    assert crossed(F.mse_loss(differences, wanted[:, None] - wanted)) is None
    kernel = (-((values - wanted) ** 2)).exp().mean()  # distance of two distributions
    assert crossed(kernel) is None
    assert crossed((values - wanted).abs().min(dim=0).values.mean()) is None


@pytest.mark.parametrize("shape", [COLUMN, ROW])
@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda r, a: -(r * a).mean(),
        lambda r, a: -torch.min(r * a, r.clamp(0.8, 1.2) * a).mean() + 0.5 * r.square().mean(),
        lambda r, a: (-(r * a)).sum() / BATCH - 0.01 * r.exp().mean(),
    ],
)
def test_outputs_that_are_multiplied_with_all_factors_are_found_in_the_loss(loss_fn, shape):
    ratios = nn.Linear(FEATURES, 1)(torch.randn(BATCH, FEATURES)).exp().squeeze(1)
    loss = loss_fn(ratios, torch.randn(shape))
    loss.backward(retain_graph=True)
    assert multiplied(loss) == (None if shape == ROW else (BATCH, BATCH))


def test_outputs_that_are_weighed_before_a_sum_over_some_are_meant():
    risks = nn.Linear(FEATURES, 1)(torch.randn(BATCH, FEATURES)).exp().squeeze(1)
    at_risk = (torch.rand(BATCH, BATCH) < 0.5).float()
    assert multiplied((risks * at_risk).sum(dim=1).log().mean()) is None
    pairs = (risks[:, None] - risks) * at_risk
    assert multiplied(pairs.mean()) is None


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
@pytest.mark.parametrize("masked", [False, True])
def test_a_softmax_over_the_samples_is_found_in_the_loss(dim, masked):
    scores, labels = nn.Linear(FEATURES, SYMBOLS)(torch.randn(BATCH, FEATURES)), torch.arange(BATCH)
    chosen = torch.arange(BATCH) % 2 == 0 if masked else slice(None)
    loss = F.nll_loss(scores.log_softmax(dim)[chosen], (labels % SYMBOLS)[chosen])
    loss.backward()
    assert samples_compete(loss) == (dim in (0, -2))


def test_pairs_that_are_matched_both_ways_are_meant():
    scores, own = nn.Linear(FEATURES, BATCH)(torch.randn(BATCH, FEATURES)), torch.arange(BATCH)
    both = F.nll_loss(scores.log_softmax(0), own) + F.nll_loss(scores.log_softmax(1), own)
    assert not samples_compete(both)
    more = nn.Linear(FEATURES, 2 * BATCH)(torch.randn(BATCH, FEATURES))  # and other negatives
    both = F.nll_loss(more.log_softmax(0), own) + F.cross_entropy(more, own)
    assert not samples_compete(both)


@pytest.mark.parametrize(("column", "accused"), [(True, True), (False, False), (None, False)])
def test_advantages_in_a_column_weigh_every_action(column, accused):
    """None: each pair has a weight of its own, as where the others' rewards are the baseline."""
    model = nn.Linear(FEATURES, SYMBOLS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer) as doctor:
        for _ in range(45):
            x, actions = torch.randn(BATCH, FEATURES), torch.randint(SYMBOLS, (BATCH,))
            advantages = torch.randn(BATCH, 1) if column else torch.randn(BATCH)
            logarithms = model(x).log_softmax(dim=1)
            loss = -(logarithms[torch.arange(BATCH), actions] * advantages).mean()
            if column is None:
                pairs = advantages[:, None] - advantages
                loss = -(logarithms[torch.arange(BATCH), actions, None] * pairs).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, (actions, advantages))
        report = doctor.report()
    assert ("wrong_loss" in named(report)) is accused, report.details()


def scores(*shape):
    return nn.Linear(FEATURES, SYMBOLS)(torch.randn(*shape, FEATURES))


def ctc(logarithms):
    batch = logarithms.shape[1]
    targets = torch.arange(2 * batch).reshape(batch, 2) % (SYMBOLS - 1) + 1
    return F.ctc_loss(logarithms, targets, torch.full((batch,), 9), torch.full((batch,), 2))


def chosen(**given):
    """The loss of a policy gradient (Williams 1992)."""
    chances = torch.distributions.Categorical(**given)
    return -(chances.log_prob(LABELS) * torch.linspace(-1, 1, 8)).mean()


LABELS = torch.arange(8) % SYMBOLS
SOURCES = {
    "scores": (lambda: ctc(scores(9, 4)), {"ctc_loss": "linear"}),
    "scores of a transposed batch": (
        lambda: ctc(scores(4, 9).transpose(0, 1)),
        {"ctc_loss": "linear"},
    ),
    "probabilities": (lambda: ctc(scores(9, 4).softmax(2)), {"ctc_loss": "softmax"}),
    "logarithms": (lambda: ctc(scores(9, 4).log_softmax(2)), {"ctc_loss": "log_softmax"}),
    "logarithms by hand": (lambda: ctc(scores(9, 4).softmax(2).log()), {}),
    "cross-entropy": (lambda: F.cross_entropy(scores(8), LABELS), {"cross_entropy": "linear"}),
    "softmax twice": (
        lambda: 2 * F.cross_entropy(scores(8).softmax(1), LABELS) + 1,
        {"cross_entropy": "softmax"},
    ),
    "logits of a policy": (lambda: chosen(logits=scores(8)), {"logsumexp": "linear"}),
    "probabilities as logits": (
        lambda: chosen(logits=scores(8).softmax(1)),
        {"logsumexp": "softmax"},
    ),
    "probabilities of a policy": (lambda: chosen(probs=scores(8).softmax(1)), {}),
    "a squared error": (lambda: scores(8).square().mean(), {}),
    "a number": (lambda: 0.5, {}),
    "without a graph": (lambda: scores(8).detach().mean(), {}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_graph_tells_what_a_loss_is_fed_with(name):
    make, sources = SOURCES[name]
    assert loss_sources(make()) == sources


def square(count=8):
    return torch.randn(count, count, requires_grad=True)


DIAGONAL = torch.arange(8)
CHOICES = {
    "mean": lambda x: F.cross_entropy(x, DIAGONAL),
    "both sides": lambda x: (F.cross_entropy(x, DIAGONAL) + F.cross_entropy(x.T, DIAGONAL)) / 2,
    "stacked": lambda x: torch.stack([F.cross_entropy(y, DIAGONAL) for y in (x, x.T)]).mean(),
    "logarithms": lambda x: F.nll_loss(F.log_softmax(x, 1), DIAGONAL),
    "diagonal": lambda x: -F.log_softmax(x, -1).diag().mean(),
    "gathered": lambda x: -F.log_softmax(x, 1).gather(1, DIAGONAL[:, None]).mean(),
    "indexed": lambda x: -F.log_softmax(x, 0)[DIAGONAL, DIAGONAL].mean(),
    "positions": lambda x: F.cross_entropy(x.view(2, 4, 8).movedim(2, 1), DIAGONAL.view(2, 4)),
}
NO_CHOICES = {
    "weighed samples": lambda x: (
        F.cross_entropy(x, DIAGONAL, reduction="none") * torch.rand(8)
    ).mean(),
    "sum": lambda x: F.cross_entropy(x, DIAGONAL, reduction="sum"),
    "a second term": lambda x: F.cross_entropy(x, DIAGONAL) + x.square().mean(),
    "soft targets": lambda x: F.cross_entropy(x, x.detach().softmax(1)),
    "two sizes": lambda x: F.cross_entropy(x, DIAGONAL) + F.cross_entropy(x[:, :4], DIAGONAL % 4),
    "squares": lambda x: x.square().mean(),
}


@pytest.mark.parametrize("name", [*CHOICES, *NO_CHOICES])
def test_the_graph_tells_among_how_many_a_cross_entropy_chooses(name):
    scores = square()
    loss = {**CHOICES, **NO_CHOICES}[name](scores)
    loss.backward()
    assert candidates(loss) == (8 if name in CHOICES else None)
    assert candidates(loss.detach()) is None
    assert candidates(loss.item()) is None


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        return F.normalize(self.layers(x), dim=1)


@pytest.mark.parametrize(("right", "healthy"), [(True, True), (False, False)])
def test_a_contrastive_loss_stays_at_guessing_beside_the_wrong_positive(right, healthy):
    torch.manual_seed(0)
    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer) as doctor:
        for _ in range(240):
            one = torch.randn(BATCH, FEATURES)
            views = torch.cat([one, one + 0.1 * torch.randn_like(one)])
            codes = model(views)
            likeness = (codes @ codes.T / 0.2).fill_diagonal_(-1e9)
            number = torch.arange(2 * BATCH)
            positive = (number + BATCH) % (2 * BATCH) if right else number ^ 1
            loss = F.cross_entropy(likeness, positive)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, views)
        report = doctor.report()
    assert report.healthy is healthy
    assert f"among {2 * BATCH} candidates" in report.reason


@pytest.mark.parametrize(
    ("candidates", "last", "steps", "healthy"),
    [
        (8, 2.08, 200, False),
        (8, 2.08, 199, None),
        (8, 1.9, 200, None),
        (8, 4.16, 200, None),  # a sum of two, say
        (8, 1.0, 200, True),
        (2, 0.69, 200, None),
        (None, 2.08, 200, None),
    ],
)
def test_what_a_word_on_candidates_rests_on(candidates, last, steps, healthy):
    given = sound_evidence()
    given.task, given.loop.steps = "unknown", steps
    given.outcome.train = given.outcome.train_mode = Score()
    given.outcome.first_loss, given.outcome.last_loss = 2.2, last
    given.loss.candidates = candidates
    assert verdict(given).healthy is healthy


def test_the_graph_tells_it_after_the_backward_pass():
    loss = F.nll_loss(scores(8), LABELS)
    loss.backward()
    assert loss_sources(loss) == {"nll_loss": "linear"}


class Lines(nn.Module):
    """Scores (T, B, symbols) along lines (B, T, features)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, SYMBOLS))

    def forward(self, x):
        return self.body(x).transpose(0, 1)


def lines():
    """Two symbols a line, each over some columns of it, with noise between them."""
    targets = torch.randint(1, SYMBOLS, (BATCH, 2))
    inputs = 0.1 * torch.randn(BATCH, 9, FEATURES)
    for place, start in enumerate((1, 5)):
        inputs[:, start : start + 2] += F.one_hot(targets[:, place], FEATURES)[:, None]
    return inputs, targets


def line_loss(logarithms, targets):
    batch = len(targets)
    return F.ctc_loss(logarithms, targets, torch.full((batch,), 9), torch.full((batch,), 2))


@pytest.mark.parametrize("handed", [True, False])
def test_scores_given_to_ctc_are_a_wrong_loss(handed):
    report = watched(Lines(), lines, line_loss, 45, handed=handed)
    assert report.main_cause == "wrong_loss"
    assert "ctc_loss" in report.main.summary


@pytest.mark.slow
def test_ctc_of_logarithms_learns_by_its_own_loss():
    report = watched(Lines(), lines, lambda o, t: line_loss(o.log_softmax(2), t), 250)
    assert report.healthy is True, report.reason
    assert not report.troubles


def likelihood_by_hand(outputs, targets):
    return outputs.logsumexp(1).mean() + F.nll_loss(outputs, targets)


def classes():
    x = torch.randn(BATCH, FEATURES)
    return x, x[:, :SYMBOLS].argmax(dim=1)


def classifier():
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, SYMBOLS))


def test_a_likelihood_from_a_negative_score_and_its_logarithm_is_sound():
    report = watched(classifier(), classes, likelihood_by_hand, 60, handed=False)
    assert report.healthy is not False, report.reason


@pytest.mark.parametrize(
    ("loss_fn", "said"),
    [
        (F.nll_loss, "nll_loss"),
        (lambda o, t: F.cross_entropy(o.softmax(1), t), "cross_entropy"),
    ],
)
def test_what_is_no_logarithm_or_one_too_many_is_seen_without_a_loss_function(loss_fn, said):
    report = watched(classifier(), classes, loss_fn, 60, handed=False)
    assert report.main_cause == "wrong_loss"
    assert said in report.main.summary


# --- losses that fall without end -----------------------------------------------------------------


def unknown(**others):
    """A sound training of an unknown task."""
    evidence = sound_evidence()
    evidence.task, evidence.classes = "unknown", None
    evidence.loss, evidence.data = LossFacts(), DataFacts()
    evidence.outcome = OutcomeFacts(first_loss=2.0, last_loss=1.9, highest_loss=2.0)
    for name, value in others.items():
        setattr(evidence, name, value)
    return evidence


@pytest.mark.parametrize(
    ("update", "movement", "named"), [(3.0, 50.0, True), (0.3, 50.0, False), (3.0, 5.0, False)]
)
def test_a_rate_that_leaves_nothing_of_the_weights_is_named_whatever_the_loss_says(
    update, movement, named
):
    evidence = unknown()
    evidence.outcome.movement = movement
    evidence.probes[0].layers = {"last.weight": LayerFacts(0.1, 1.0, update)}
    found = [
        f.confidence for f in causes.diagnose(evidence, 0).findings if f.cause == "lr_too_high"
    ]
    assert found == (["certain"] if named else [])


def course(first, tenths):
    evidence = unknown()
    evidence.outcome.first_loss, evidence.outcome.last_loss = first, tenths[-1]
    evidence.outcome.tenths = tenths
    return causes.diagnose(evidence, budget=0)


def test_a_loss_that_keeps_falling_far_below_zero_has_no_bound():
    report = course(0.5, [-((10 * i) ** 2.5) for i in range(1, 11)])
    assert report.main_cause == "wrong_loss"


@pytest.mark.parametrize(
    "tenths",
    [
        [-30_000 * (1 - 0.4**i) for i in range(1, 11)],  # a reward of any size that is reached
        [-0.5 * i for i in range(10)],  # a density of many features
    ],
)
def test_a_reward_that_levels_off_and_a_density_have_one(tenths):
    assert course(0.5, tenths).healthy is None


# --- an output and a target each ------------------------------------------------------------------


def two_tasks(outputs, targets):
    named_right = F.cross_entropy(outputs["kind"], targets["kind"])
    return named_right + F.mse_loss(outputs["size"], targets["size"])


def masked(outputs, targets):
    wrong = (outputs["size"] - targets["size"]).square() * targets["mask"]
    return F.cross_entropy(outputs["kind"], targets["kind"]) + wrong.mean()


def outputs_and_targets():
    torch.manual_seed(0)
    outputs = {"kind": torch.randn(12, SYMBOLS), "size": torch.randn(12, 1)}
    kinds = torch.arange(12) % SYMBOLS
    mask = (torch.arange(12) % 2).float()[:, None]
    return outputs, {"kind": kinds, "size": torch.randn(12, 1), "mask": mask}


def test_outputs_that_have_a_target_of_their_own_are_parts():
    outputs, targets = outputs_and_targets()
    del targets["mask"]
    parts, all_of_it = find_parts(two_tasks, outputs, targets)
    assert [(part.name, part.task.kind) for part in parts] == [
        ("kind", "classes"),
        ("size", "values"),
    ]
    assert all_of_it


def absolute_errors(outputs, targets):
    named_right = F.cross_entropy(outputs["kind"], targets["kind"])
    return named_right + F.smooth_l1_loss(outputs["size"], targets["size"], beta=0.1)


def test_absolute_errors_of_far_targets_belong_to_their_output():
    """Their gradient is of one size wherever the target is."""
    outputs, targets = outputs_and_targets()
    del targets["mask"]
    targets["size"] = 20 + targets["size"]
    parts, all_of_it = find_parts(absolute_errors, outputs, targets)
    assert [part.name for part in parts] == ["kind", "size"]
    assert all_of_it


def test_an_output_that_a_second_target_masks_is_no_part():
    parts, all_of_it = find_parts(masked, *outputs_and_targets())
    assert [part.name for part in parts] == ["kind"]
    assert not all_of_it


def test_outputs_that_are_weighed_by_each_other_are_no_parts():
    def likelihood(outputs, targets):
        error = (outputs["size"] - targets["size"]).square()
        spread = outputs["kind"][:, :1]
        return (error * (-spread).exp() + spread).mean()

    outputs, targets = outputs_and_targets()
    parts, all_of_it = find_parts(likelihood, outputs, {"size": targets["size"]})
    assert parts == []
    assert not all_of_it


def cut(outputs, targets):
    return two_tasks({**outputs, "size": outputs["size"].detach()}, targets)


def like_a_teacher(outputs, targets):
    near = (outputs["kind"][:, :1] - outputs["size"].detach()).square().mean()
    return F.cross_entropy(outputs["kind"], targets["kind"]) + near


def weighed_by_confidence(outputs, targets):
    wrong = F.cross_entropy(outputs["kind"], targets["kind"], reduction="none")
    return (wrong * outputs["size"].detach().sigmoid().squeeze(1)).mean()


@pytest.mark.parametrize(
    ("loss_fn", "expected"),
    [
        (two_tasks, []),
        (masked, []),
        (cut, ["size"]),
        (like_a_teacher, []),  # compared with another output, not with a target
        (weighed_by_confidence, ["size"]),
    ],
)
def test_outputs_that_meet_a_target_without_a_gradient(loss_fn, expected):
    assert without_gradient(loss_fn, *outputs_and_targets()) == expected


class TwoHeads(nn.Module):
    def __init__(self, stuck=False):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU())
        self.kind, self.size = nn.Linear(32, SYMBOLS), nn.Linear(32, 1)
        self.stuck = stuck

    def forward(self, x):
        hidden = self.body(x)
        kind = self.kind(hidden)
        return {"kind": 0 * kind if self.stuck else kind, "size": self.size(hidden)}


def kinds_and_sizes():
    x, kinds = classes()
    return x, {"kind": kinds, "size": x[:, :1] - x[:, 1:2]}


@pytest.mark.slow
def test_a_training_learns_where_all_its_parts_do():
    report = watched(TwoHeads(), kinds_and_sizes, two_tasks, 150)
    assert report.healthy is True, report.reason
    assert "kind" in report.reason
    again = load(json.loads(json.dumps(asdict(report.evidence))))
    assert again == report.evidence


class SizedAsAShare(nn.Module):
    """Names a kind, and gives a size between 0 and 1."""

    def __init__(self):
        super().__init__()
        self.heads = TwoHeads()

    def forward(self, x):
        found = self.heads(x)
        return {**found, "size": found["size"].sigmoid()}


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_an_output_that_cannot_reach_its_targets_is_named_among_others(scale):
    def shares():
        x, targets = kinds_and_sizes()
        return x, {**targets, "size": scale * targets["size"].sigmoid()}

    report = watched(SizedAsAShare(), shares, absolute_errors, 150)
    if scale == 1:
        assert not report.findings
    else:
        assert (report.main_cause, report.main.confidence) == ("wrong_loss", "certain")
        assert "the output 'size' passes a sigmoid and cannot leave [0, 1]" in str(report.main)


@pytest.mark.slow
def test_a_part_that_is_not_learnt_is_found_beside_one_that_is():
    report = watched(TwoHeads(stuck=True), kinds_and_sizes, two_tasks, 150)
    assert report.healthy is False
    learnt = {part.name: part.train.skill for part in report.evidence.outcome.parts}
    assert learnt["kind"] < 0.1 < 0.9 < learnt["size"]


def with_part(skill, simple, **others):
    evidence = unknown(**others)
    loss = Score(relative_loss=1 - skill, skill=skill)
    part = PartFacts("size", "values", train=loss, train_mode=loss, simple_skill=simple)
    evidence.outcome.parts, evidence.outcome.parts_are_all = [part], True
    return causes.diagnose(evidence, budget=0).healthy


def test_a_part_is_judged_beside_a_simple_model():
    assert with_part(skill=0.01, simple=0.6) is False
    assert with_part(skill=0.01, simple=0.1) is None
    assert with_part(skill=0.9, simple=0.6) is True
    assert with_part(skill=0.3, simple=0.9) is None
    assert with_part(skill=0.01, simple=0.6, reconstruction=True) is None
    assert with_part(skill=0.9, simple=0.6, adversarial=True) is None


@pytest.mark.parametrize(
    ("guessing", "skill", "first", "named"),
    [
        (200.0, 0.9, 250.0, True),
        (15.0, 0.9, 250.0, False),  # as much as a weight of one half may bring back
        (200.0, 0.05, 250.0, False),  # neither is learnt
        (200.0, 0.9, 3.0, False),  # a weight has made it small
    ],
)
def test_a_part_that_is_outweighed_by_another(guessing, skill, first, named):
    evidence = unknown()
    evidence.outcome.first_loss = first
    idle = Score(relative_loss=1.0, skill=0.0, loss=0.7)
    other = Score(relative_loss=1 - skill, skill=skill, loss=(1 - skill) * guessing)
    evidence.outcome.parts = [
        PartFacts("kind", "classes", 2, train=idle, train_mode=idle, simple_skill=0.6),
        PartFacts("age", "values", train=other, train_mode=other, simple_skill=0.6),
    ]
    report = causes.diagnose(evidence, budget=0)
    assert report.healthy is False
    assert (report.main_cause == "loss_reduction") is named


# --- logits that are compared with logits ---------------------------------------------------------


def divergence(outputs, targets):
    student, guide = (logits.div(3).log_softmax(dim=1) for logits in (outputs, targets))
    return F.kl_div(student, guide, reduction="batchmean", log_target=True)


def correlation(outputs, targets):
    first, second = (F.normalize(v - v.mean(1, keepdim=True), dim=1) for v in (outputs, targets))
    return -(first * second).sum(1).mean()


@pytest.mark.parametrize(
    ("loss_fn", "link"),
    [
        (divergence, "softmax"),
        (lambda o, t: F.cross_entropy(o, t.softmax(1)), "softmax"),
        (F.mse_loss, "identity"),
        (correlation, "identity"),
    ],
)
def test_logits_compared_with_logits_are_classes(loss_fn, link):
    torch.manual_seed(0)
    outputs, targets = torch.randn(2, 16, SYMBOLS)
    assert loss_facts(loss_fn, outputs, targets, read(outputs, targets)).link == link


@pytest.mark.slow
def test_a_student_of_another_nets_logits_is_scored_by_its_likeliest_class():
    torch.manual_seed(1)
    teacher = nn.Linear(FEATURES, SYMBOLS).requires_grad_(False)

    def guided():
        x = torch.randn(BATCH, FEATURES)
        return x, 4 * teacher(x)

    report = watched(classifier(), guided, divergence, 200)
    assert report.evidence.task == "classes"
    assert report.healthy is True, report.reason


# --- labels among the model's arguments -----------------------------------------------------------


def gradient_of(logits, loss):
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(("shift", "padding"), [(0, None), (1, None), (0, 0), (1, 0)])
def test_labels_among_the_arguments_are_found_by_the_gradient(shift, padding):
    torch.manual_seed(0)
    logits = torch.randn(3, 7, SYMBOLS, requires_grad=True)
    tokens, labels = torch.randint(SYMBOLS, (2, 3, 7))
    kept, wanted = logits[:, : 7 - shift], labels[:, shift:]
    ignored = -100 if padding is None else padding
    loss = F.cross_entropy(kept.flatten(0, 1), wanted.flatten(), ignore_index=ignored)
    call = Call((), {"tokens": tokens, "labels": labels})
    found = find_labels(call, logits, gradient_of(logits, loss))
    assert (found.place, found.shift) == (1, shift)
    expected = wanted if padding is None else wanted.masked_fill(wanted == padding, -100)
    assert torch.equal(found.of(call)[:, : 7 - shift], expected)
    assert (found.of(call)[:, 7 - shift :] == -100).all()


def test_labels_that_are_no_argument_are_not_found():
    torch.manual_seed(0)
    logits = torch.randn(3, 7, SYMBOLS, requires_grad=True)
    tokens, labels = torch.randint(SYMBOLS, (2, 3, 7))
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert find_labels(Call((tokens,)), logits, gradient_of(logits, loss)) is None
    assert find_labels(Call((tokens,)), logits, gradient_of(logits, logits.square().sum())) is None


class OwnLoss(nn.Module):
    """Returns its scores, and its loss where it is given labels."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(SYMBOLS, 16), nn.Linear(16, SYMBOLS))

    def forward(self, tokens, labels=None):
        logits = self.body(tokens)
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def test_a_model_that_is_called_with_its_labels_has_a_known_task():
    torch.manual_seed(0)
    model = OwnLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-2)
    with Doctor(model, optimizer) as doctor:
        for _ in range(60):
            tokens = torch.randint(SYMBOLS, (BATCH, 7))
            batch = {"tokens": tokens, "labels": (tokens + 2) % SYMBOLS}
            optimizer.zero_grad()
            loss = model(**batch)["loss"]
            loss.backward()
            optimizer.step()
            doctor.step(loss, batch)
        doctor.validate(batch)
        report = doctor.report()
    assert report.evidence.task == "classes"
    assert report.healthy is True, report.reason
    assert report.outcome["validation_skill"] > 0.9


# --- the preparation of validation inputs ---------------------------------------------------------


def prepared(training=None, **changed):
    evidence = unknown()
    changes = {name: [value, value] for name, value in changed.items()}
    evidence.data.preparations = PreparationFacts(0.1, [1.0, 1.1], changes, training or {})
    return named(causes.diagnose(evidence, budget=0))


def test_a_change_that_takes_the_loss_away_shows_another_preparation():
    assert prepared(mirrored=0.15, inverted=4.0) == ["train_test_mismatch"]
    assert prepared(mirrored=0.6, inverted=4.0) == []
    # A larger scale makes a net sure, of training samples as well.
    assert prepared(scaled=0.02, training={"scaled": 0.05}) == []
    assert prepared(scaled=0.1, training={"scaled": 0.1}) == ["train_test_mismatch"]
    assert prepared() == []


class Coloured(nn.Module):
    """Two outputs, so that the task is unknown, by the first and the last channel."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x):
        first, last = self.body(x).unbind(1)
        return first, last


def images(count=48):
    x = torch.randn(count, 3, 4, 4)
    return x, (x[:, 0].mean((1, 2)) * 4).tanh()


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_channels_in_another_order_are_seen_by_the_networks_own_loss(reverse):
    torch.manual_seed(0)
    model = Coloured()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss_fn(outputs, targets):
        return (outputs[0] - targets).square().mean() + 0.1 * outputs[1].square().mean()

    with Doctor(model, optimizer, loss_fn) as doctor:
        for _ in range(300):
            x, y = images()
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        x, y = images(192)
        doctor.validate(x.flip(1) if reverse else x, y)
        report = doctor.report()
    assert (report.main_cause == "train_test_mismatch") is reverse, report.details()
    assert reverse or report.healthy is not False


# --- outputs whose samples lie on the second axis -------------------------------------------------


def test_outputs_are_joined_along_the_axis_of_their_samples():
    model = Lines().eval()
    x = torch.randn(100, 9, FEATURES)
    whole: Tensor = model(x)
    joined = Layout(axis=0, verified=True).run(model, Call((x,)))
    assert joined.shape == whole.shape
    assert torch.allclose(joined, whole, atol=1e-6)


# --- flows ----------------------------------------------------------------------------------------


class Scaled(nn.Module):
    """Scales and shifts each half of the features by functions of the other half."""

    def __init__(self, sign=1, zero=False, last_alone=False, plus=0.0):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(3, 6), nn.Linear(3, 6)])
        self.sign, self.last_alone, self.plus = sign, last_alone, plus
        if zero:
            for part in self.parts:
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)

    def forward(self, x):
        volume = 0
        for part in self.parts:
            kept, moved = x.chunk(2, dim=1)
            scale, shift = part(kept.tanh()).tanh().chunk(2, dim=1)
            x = torch.cat([moved * scale.exp() + shift, kept], dim=1)
            volume = scale.sum(dim=1) + (0 if self.last_alone else volume)
        return {"codes": x, "volume": self.sign * volume + self.plus}


def flow_report(model, weight):
    def loss_fn(outputs, _):
        codes, volume = outputs["codes"], outputs["volume"]
        return (0.5 * codes.square().sum(dim=1) + weight * volume).mean()

    return watched(
        model, lambda: (torch.randn(BATCH, FEATURES), None), loss_fn, 45, handed=False
    )  # fmt: skip


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_flow_whose_volume_is_punished_has_a_wrong_loss(sign, zero):
    report = flow_report(Scaled(sign, zero), weight=sign)
    assert report.main_cause == "wrong_loss", report.details()
    assert "determinant" in report.main.summary


@pytest.mark.parametrize("sign", [1, -1])
def test_a_flow_whose_volume_is_rewarded_is_sound(sign):
    report = flow_report(Scaled(sign), weight=-sign)
    assert report.evidence.loss.volume.gradient < 0
    assert "wrong_loss" not in named(report)


def test_an_invertible_net_whose_codes_have_targets_needs_no_volume():
    targets = torch.randn(BATCH, FEATURES)

    def loss_fn(outputs, _):
        return (outputs["codes"] - targets).square().mean()

    report = watched(
        Scaled(), lambda: (torch.randn(BATCH, FEATURES), None), loss_fn, 45, handed=False
    )
    assert report.evidence.loss.volume.gradient == 0
    assert "wrong_loss" not in named(report)


def test_a_flow_that_begins_with_its_codes_alone_is_sound():
    model = Scaled()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Doctor(model, optimizer) as doctor:
        for step in range(70):
            x = torch.randn(BATCH, FEATURES)
            outputs = model(x)
            volume = outputs["volume"] if step >= 30 else 0
            loss = (0.5 * outputs["codes"].square().sum(dim=1) - volume).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x)
        report = doctor.report()
    assert report.evidence.loss.volume.gradient == -1
    assert "wrong_loss" not in named(report)


def test_a_flow_whose_volume_is_not_read_has_a_wrong_loss():
    report = flow_report(Scaled(), weight=0)
    assert report.main_cause == "wrong_loss", report.details()
    assert "does not read the logarithm" in report.main.summary


def test_a_flow_that_tells_another_volume_is_noted():
    report = flow_report(Scaled(last_alone=True), weight=-1)
    assert report.healthy is None
    noted = [f.severity for f in report.findings if "not the logarithm" in f.summary]
    assert noted == ["note"]  # the scales of an autoencoder's errors are such a number too
    # A constant, as of inputs that were brought to another unit, changes nothing.
    assert flow_report(Scaled(plus=2.5), weight=-1).evidence.loss.volume is None


def test_a_number_for_each_sample_is_no_volume():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.policy, self.value = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, 1)

        def forward(self, x):
            return {"codes": self.policy(x), "volume": self.value(x).squeeze(1)}

    assert flow_report(Critic(), weight=0.1).evidence.loss.volume is None


# --- targets that are maps ------------------------------------------------------------------------


def scenes(count):
    """Images in which a rectangle is rougher, and the map of it."""
    maps = torch.zeros(count, 1, 14, 14)
    for place in maps:
        top, left = torch.randint(0, 7, (2,))
        height, width = torch.randint(2, 8, (2,))
        place[0, top : top + height, left : left + width] = 1
    return torch.randn(count, 1, 14, 14) * (0.3 + maps), maps


def flipped(images):
    chosen = (torch.rand(len(images)) < 0.6)[:, None, None, None]
    return torch.where(chosen, images.flip(2), images)


def each_shifted(images):
    return torch.stack([image.roll(int(torch.randint(3, 11, ())), 2) for image in images])


def brightened(images):
    return images * (0.5 + torch.rand(len(images), 1, 1, 1)) + torch.randn(len(images), 1, 1, 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flipped, TURNED),
        (lambda images: images.rot90(1, (2, 3)), TURNED),
        (each_shifted, SHIFTED),
        (brightened, None),
        (lambda images: images, None),
        (lambda images: images.roll(1, 0), None),
    ],
)
def test_images_that_are_moved_without_their_targets_are_told_from_others(change, said):
    torch.manual_seed(0)
    (trained, wanted), (held, held_wanted) = scenes(80), scenes(60)
    evidence = unknown()
    evidence.data.alignment = alignment_facts(change(trained), wanted, held, held_wanted)
    assert moved_apart(evidence) == said, evidence.data.alignment


def test_images_and_targets_that_are_moved_together_are_aligned():
    torch.manual_seed(0)
    (trained, wanted), (held, held_wanted) = scenes(80), scenes(60)
    facts = alignment_facts(trained.flip(2), wanted.flip(2), held, held_wanted)
    assert facts.training > 0.9 * facts.validation


def test_labels_and_vectors_are_no_maps():
    images = torch.randn(40, 1, 14, 14)
    assert alignment_facts(images, torch.zeros(40), images, torch.zeros(40)) is None
    assert alignment_facts(images, torch.zeros(40, 14), images, torch.zeros(40, 14)) is None


# --- inputs that are the same by right ------------------------------------------------------------


def boundary_value_problem(seed):
    """u' = −u with u(0) = 1: points of the interval in one call, the boundary's in another."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    start = torch.zeros(1, 1)
    with Doctor(model, optimizer) as doctor:
        for _ in range(300):
            at = torch.rand(32, 1).requires_grad_()
            value = model(at)
            (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
            loss = (slope + value).square().mean() + (model(start) - 1).square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        return doctor.report()


def picture_from_noise(seed, varied=False):
    """One fixed noise is brought to one picture (arXiv:1711.10925), or to a stream of them."""
    generator = torch.Generator().manual_seed(seed)
    noise, picture = torch.rand(2, 1, 64, generator=generator)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Doctor(model, optimizer, loss_fn=nn.functional.mse_loss) as doctor:
        for _ in range(200):
            target = torch.rand(1, 64, generator=generator) if varied else picture
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(noise), target)
            loss.backward()
            optimizer.step()
            doctor.step(loss, noise, target)
        return doctor.report()


@pytest.mark.parametrize("program", [boundary_value_problem, picture_from_noise])
def test_one_input_of_a_loop_that_is_made_for_it_accuses_nobody(program):
    report = program(0)
    assert report.healthy is not False, str(report)
    assert all(finding.cause != "constant_input" for finding in report.findings)


def test_one_input_beside_targets_that_differ_is_constant():
    assert picture_from_noise(0, varied=True).main_cause == "constant_input"


class Squashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, FEATURES))

    def forward(self, x):
        return self.net(x).sigmoid(), self.net[0](x)


@pytest.mark.parametrize(("low", "power", "accused"), [(-1, 2, True), (0, 2, False), (-1, 4, None)])
def test_a_squared_error_is_known_by_its_gradient_alone(low, power, accused):
    model = Squashed()
    with Doctor(model, (optimizer := torch.optim.Adam(model.parameters(), lr=1e-2))) as doctor:
        for _ in range(60):
            x = torch.rand(BATCH, FEATURES) * (1 - low) + low
            rebuilt, hidden = model(x)
            loss = (rebuilt - x).pow(power).sum(dim=1).mean() + 1e-3 * hidden.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, x)
        report = doctor.report()
    assert (report.evidence.loss.towards_targets > 0.999) is (power == 2)
    assert ("wrong_loss" in named(report)) is bool(accused), report.details()


def test_outputs_without_a_tensor_are_said_in_plain_words():
    class Policy(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Linear(FEATURES, 2)

        def forward(self, x):
            return torch.distributions.Normal(self.mean(x), 1.0)

    model = Policy()
    with Doctor(model, (optimizer := torch.optim.Adam(model.parameters(), lr=1e-2))) as doctor:
        for _ in range(45):
            x = torch.randn(BATCH, FEATURES)
            loss = -model(x).log_prob(x[:, :2]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x)
        report = doctor.report()
    assert report.evidence.troubles == [
        "the outputs are not looked at: no tensor is found in a Normal"
    ]
    assert report.evidence.weights


# --- weights that a penalty takes away ------------------------------------------------------------


class Neighbours(nn.Module):
    """Scores (B, 40) of the things that may come after each of B things."""

    def __init__(self):
        super().__init__()
        self.own, self.other = nn.Embedding(40, 16), nn.Embedding(40, 16)
        for table in (self.own, self.other):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, things):
        return self.own(things) @ self.other.weight.T


def penalised(weight):
    """Learn who comes after whom by the loop's own loss, with a penalty of what was looked up."""
    torch.manual_seed(0)
    model = Neighbours()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    after = torch.randperm(40)
    with Doctor(model, optimizer) as doctor:
        for _ in range(400):
            things = torch.randint(40, (64,))
            penalty = model.own(things).abs().pow(3).sum() + model.other.weight.abs().pow(3).sum()
            loss = F.cross_entropy(model(things), after[things]) + weight * penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, things, after[things])
        return doctor.report()


def test_a_penalty_that_takes_all_weights_away_is_named():
    report = penalised(1.0)
    assert (report.main_cause, report.main.confidence) == ("over_regularised", "certain")
    assert report.evidence.outcome.shrinkage < 0.05


def test_a_penalty_beside_which_something_is_learnt_is_not():
    assert "over_regularised" not in penalised(1e-4).details()


@pytest.mark.parametrize(
    ("decay", "rescaled", "said"),
    [(5e-4, True, False), (0.1, True, True), (5e-4, False, True), (0.0, True, True)],
)
def test_adam_takes_weights_without_a_gradient_down_by_any_decay(decay, rescaled, said):
    given = unknown()
    given.outcome.shrinkage, given.loop.steps = 0.01, 1000
    given.network.output_signal, given.outcome.output_signal = 1.0, 1e-9
    given.optimizer.weight_decay, given.optimizer.decay_rescaled = decay, rescaled
    assert bool(list(weights_shrunk_away(given))) is said
