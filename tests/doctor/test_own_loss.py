"""The training's own loss: whether outputs belong to their samples, and what constants reach."""

import math

import pytest
import torch
import torch.nn.functional as F
from handmade_evidence import diagnosis, evidence
from torch import nn

from debugnn import Doctor
from debugnn.doctor.causes.signals.outcome import BEHIND, learns, learns_by_heart_alone
from debugnn.doctor.causes.signals.own_samples import (
    GROUPS,
    NO_GAP,
    UNKNOWN_JUDGED_AFTER,
    below_constant,
    inputs_unused,
    unused_by_new_samples,
)
from debugnn.doctor.evidence import (
    AlignmentFacts,
    LatentFacts,
    OwnLoss,
    Pairing,
    Score,
    Validation,
)
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.loss_function.made_up import Loss
from debugnn.doctor.observe.outcome import Predicted
from debugnn.doctor.observe.own_loss import best_constant, note_beside_constant
from debugnn.doctor.observe.pairing import compare_pairings
from debugnn.doctor.observe.task import Task
from debugnn.faults import train
from debugnn.faults.bad_labels import targets_listed_by_name
from debugnn.faults.cases import case
from debugnn.faults.sound import sound

FEATURES = 5


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plane(count=256, seed=0):
    """Samples, and a column of values that follow from them."""
    inputs = numbers(count, FEATURES, seed=seed)
    return inputs, inputs @ numbers(FEATURES, 1, seed=9)


# ----------------------------------------------------------------------- outputs that change places


def test_outputs_that_fit_are_better_beside_their_own_targets():
    inputs, targets = plane()
    found = compare_pairings([(Call((inputs,)), targets + 0.1, targets)], Layout(), F.mse_loss)
    assert found.groups == 4
    assert found.better == 1
    assert found.own == pytest.approx(0.01)
    assert found.gap > 10 * found.error


def test_outputs_that_know_nothing_are_as_good_beside_other_targets():
    inputs, targets = plane(2048)
    outputs = 0.1 * numbers(2048, 1, seed=3)
    found = compare_pairings([(Call((inputs,)), outputs, targets)], Layout(), F.mse_loss)
    assert 0.3 < found.better < 0.7
    assert abs(found.gap) < 3 * found.error
    constant = compare_pairings(
        [(Call((inputs,)), torch.ones(2048, 1), targets)], Layout(), F.mse_loss
    )
    assert constant.better == 0.5
    assert constant.gap == pytest.approx(0, abs=1e-6)


def triplets(outputs, _):
    """Anchors, positives and negatives lie one after the other."""
    return F.triplet_margin_loss(*outputs[: len(outputs) // 3 * 3].chunk(3))


def distance_of_sets(outputs, targets):
    """The energy distance, which is the same in whatever order samples lie."""
    apart = torch.cdist(outputs, targets).mean()
    return 2 * apart - torch.cdist(outputs, outputs).mean() - torch.cdist(targets, targets).mean()


@pytest.mark.parametrize(
    ("inputs", "targets", "loss_fn"),
    [
        (numbers(64, 5), numbers(64, 2, seed=1), distance_of_sets),
        (numbers(64, 5), numbers(64, 2, seed=1), lambda outputs, _: outputs.square().mean()),
        # Classes that the loss does not read, and of which several samples are one.
        (numbers(64, 5), torch.arange(64) % 3, lambda outputs, _: outputs.square().mean()),
        (numbers(64, 5), torch.arange(64) % 3, triplets),
        (numbers(64, 5), torch.ones(64, 2), F.mse_loss),  # targets of a discriminator
        (torch.ones(64, 5), numbers(64, 2, seed=1), F.mse_loss),  # nothing to tell samples by
    ],
)
def test_nothing_is_compared_where_it_means_nothing(inputs, targets, loss_fn):
    outputs = numbers(64, 2, seed=2)
    found = compare_pairings([(Call((inputs,)), outputs, targets)], Layout(), loss_fn)
    assert found == Pairing()


def test_only_samples_of_other_labels_count():
    labels = (torch.arange(64) % 16 == 0).long()
    outputs = F.one_hot(labels, 2).float() * 8

    def loss_fn(outputs, targets):
        assert targets.bincount(minlength=2).tolist() in ([4, 4], [len(targets) // 2] * 2)
        return F.cross_entropy(outputs, targets)

    found = compare_pairings([(Call((numbers(64, 5),)), outputs, labels)], Layout(), loss_fn)
    assert found.better == 1
    assert found.own < 0.01
    assert found.gap > 7  # every output is a wrong one


def test_samples_along_the_second_axis_change_places():
    texts = torch.randint(7, (9, 12), generator=torch.Generator().manual_seed(0))
    logits = F.one_hot(texts, 7).float().flatten(0, 1) * 5
    batch = (Call((texts,)), (logits, None), texts.flatten())

    def loss_fn(outputs, targets):
        return F.cross_entropy(outputs[0], targets)

    found = compare_pairings([batch], Layout(axis=1), loss_fn)
    assert (found.groups, found.better) == (1, 1)
    assert found.error == math.inf  # of a single group
    assert compare_pairings([batch], Layout(axis=None), loss_fn) == Pairing()


@pytest.mark.parametrize("views", [1, 2])
def test_targets_that_are_places_in_the_batch_are_left_alone(views):
    """A part of such a batch has other places, so that its own targets mean nothing there."""
    outputs = F.normalize(numbers(64, 5), dim=1)
    partner = torch.arange(64).roll(-32 if views == 2 else 0)

    def loss_fn(outputs, partner):
        likeness = outputs @ outputs.T / 0.2
        if views == 2:
            likeness = likeness - 1e9 * torch.eye(len(outputs))
        return F.cross_entropy(likeness[:, : len(outputs)], partner % len(outputs))

    found = compare_pairings([(Call((outputs,)), outputs, partner)], Layout(), loss_fn)
    assert found == Pairing()


def test_a_loss_that_raises_is_left_alone():
    inputs, targets = plane(64)

    def loss_fn(outputs, targets):
        assert len(targets) == 64, "a loss for one batch size alone"
        return F.mse_loss(outputs, targets)

    outputs = torch.where(torch.arange(64)[:, None] < 9, targets, 0)
    targets = torch.where(torch.arange(64)[:, None] < 9, targets, 0)
    assert compare_pairings([(Call((inputs,)), outputs, targets)], Layout(), loss_fn) == Pairing()


# ------------------------------------------------------------------------------ the best constant


def test_the_best_constant_minds_the_weight_of_a_class():
    targets = (torch.arange(400) % 20 == 0).float()
    weight = 30.0
    loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight))
    odds = weight * targets.sum() / (1 - targets).sum()
    best = loss_fn(odds.log().expand(400), targets).item()
    found = best_constant([Loss(loss_fn, torch.zeros(400), targets)], Task("binary"))
    assert found == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize(
    ("loss_fn", "task", "outputs", "targets", "best"),
    [
        (F.cross_entropy, Task("classes", 3), numbers(90, 3), torch.arange(90) % 3, math.log(3)),
        (F.nll_loss, Task("classes", 3), numbers(90, 3).log_softmax(1), torch.arange(90) % 3,
         math.log(3)),
        (F.binary_cross_entropy, Task("binary", squashed=True), torch.full((90, 1), 0.9),
         (torch.arange(90) % 3 == 0).float()[:, None], 0.6365),
        (F.mse_loss, Task("values"), numbers(90, 2), numbers(90, 2, seed=1) + 7,
         numbers(90, 2, seed=1).var(dim=0, correction=0).mean().item()),
        (F.l1_loss, Task("values"), numbers(90, 1),
         torch.tensor([0.0, 0.0, 9.0]).repeat(30)[:, None], 3.0),
        (nn.PoissonNLLLoss(), Task("values", link="exp"), numbers(90, 1),
         torch.tensor([1.0, 3.0, 5.0]).repeat(30)[:, None], None),
    ],
)  # fmt: skip
def test_the_best_constant_of_usual_losses(loss_fn, task, outputs, targets, best):
    found = best_constant([Loss(loss_fn, outputs, targets)], task)
    if best is None:  # 3 − 3 · log 3, which is below zero: a share of it means nothing
        assert found is None
    else:
        assert found == pytest.approx(best, rel=0.02)


# ------------------------------------------------------------------------------------ the verdict


def watched(model, loss_fn, batches, steps, validation=None, lr=0.01):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    doctor = Doctor(model, optimizer, loss_fn=loss_fn)
    for _ in range(steps):
        inputs, targets = batches()
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        doctor.step(loss, inputs, targets)
    if validation is not None:
        doctor.validate(*validation)
    report = doctor.report()
    doctor.close()
    return report


def net(outputs=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU(), nn.Linear(24, outputs))


def drawn(rows, size=64):
    """Return batches of a set, each drawn at random."""
    draw = torch.Generator().manual_seed(4)

    def batches():
        chosen = torch.randint(len(rows[0]), (size,), generator=draw)
        return tuple(each[chosen] for each in rows)

    return batches


def mixture(outputs, targets):
    """The negative log-likelihood of three Gaussians: the doctor does not know what it compares."""
    shares, centres, spreads = outputs.chunk(3, dim=1)
    parts = torch.distributions.Normal(centres, F.softplus(spreads) + 0.05)
    return -(shares.log_softmax(1) + parts.log_prob(targets[:, :1])).logsumexp(1).mean() + 9


@pytest.mark.slow
def test_an_unknown_task_whose_outputs_fit_no_sample_is_not_learnt():
    torch.manual_seed(0)
    inputs, targets = plane(1500)
    targets = torch.cat([targets, targets.square()], dim=1)
    validation = inputs[1200:], targets[1200:]
    sound = watched(net(9), mixture, drawn((inputs[:1200], targets[:1200])), 250, validation)
    assert sound.evidence.task == "unknown"
    assert sound.healthy  # its own loss fell to half
    assert sound.evidence.outcome.own_loss.validation.better > 0.95
    mixed = targets[torch.randperm(1500)]
    batches = drawn((numbers(10**5, FEATURES, seed=5), mixed.repeat(67, 1)[: 10**5]))
    lost = watched(net(9), mixture, batches, 250, validation)
    assert lost.healthy is False
    assert "makes no use of its inputs" in lost.reason
    assert inputs_unused(lost.evidence)


def rare(count=4000):
    inputs = numbers(count, FEATURES)
    chances = (1.5 * inputs[:, 0] - 4).sigmoid()
    draw = torch.Generator().manual_seed(1)
    return inputs, (torch.rand(count, generator=draw) < chances).float()[:, None]


@pytest.mark.slow
def test_a_weighted_likelihood_is_judged_by_itself():
    """It asks for more alarms than are true, which is worse than guessing by the plain one."""
    torch.manual_seed(0)
    loss_fn = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(25.0))
    report = watched(net(), loss_fn, drawn(rare()), 300)
    outcome = report.evidence.outcome
    assert report.healthy is True, str(report)
    assert outcome.train.relative_loss > 1
    assert outcome.own_loss.relative < 0.9
    outcome.own_loss.relative = 1.0
    assert learns(report.evidence) is False


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: None, True),
        (lambda e: setattr(e.loss, "confirmed", False), False),
        (lambda e: setattr(e.loss, "opposed", True), False),
        (lambda e: setattr(e.outcome.own_loss, "relative", 0.9), False),
        (lambda e: setattr(e.outcome.own_loss, "relative", None), False),
        (lambda e: setattr(e.outcome.own_loss.train, "gap", 0.3), False),  # three standard errors
        (lambda e: setattr(e.outcome.own_loss.train, "groups", GROUPS - 1), False),
    ],
)
def test_what_learning_by_its_own_loss_rests_on(change, expected):
    given = evidence(0.0, simple=0.05)
    given.loss.confirmed = True
    given.outcome.own_loss.relative = 0.6
    given.outcome.own_loss.train = Pairing(GROUPS, 1.0, 1.0, 0.5, 0.1)
    change(given)
    assert below_constant(given, 0.9) is expected
    assert learns(given) is expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: None, True),
        (lambda e: setattr(e.outcome.own_loss.train, "groups", GROUPS - 1), False),
        (lambda e: setattr(e.outcome.own_loss.train, "gap", NO_GAP), False),
        (lambda e: setattr(e.outcome.own_loss.train, "error", NO_GAP / 2), False),
        (lambda e: setattr(e.outcome.own_loss.train, "better", 0.76), False),
        (lambda e: setattr(e.outcome.own_loss.train, "own", -1.0), False),  # a reward
        (
            lambda e: setattr(e.outcome.own_loss.late, "gap", 0.1),
            False,
        ),  # a moving target
        (lambda e: setattr(e.outcome.own_loss.validation, "gap", 0.1), False),
        (lambda e: setattr(e.outcome.own_loss.train_mode, "gap", 0.1), False),
        (lambda e: setattr(e, "adversarial", True), False),
        (lambda e: setattr(e.loop, "steps", UNKNOWN_JUDGED_AFTER - 1), False),
        (lambda e: setattr(e.loop, "steps_before", 1), False),
    ],
)
def test_what_unused_inputs_rest_on(change, expected):
    given = evidence(0.0)
    given.task, given.classes, given.loop.steps = "unknown", None, UNKNOWN_JUDGED_AFTER
    given.outcome.train = given.outcome.train_mode = type(given.outcome.train)()
    for name in ("train", "train_mode", "late", "validation"):
        setattr(given.outcome.own_loss, name, Pairing(GROUPS, 0.5, 1.0, 0.0, 0.001))
    change(given)
    assert inputs_unused(given) is expected
    # Where outputs belong to training samples alone, these are learnt by heart.
    fails = expected or unused_by_new_samples(given)
    assert diagnosis(given).healthy is (False if fails else None)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: None, True),
        (lambda e: setattr(e.outcome.own_loss.validation, "gap", -0.3), True),  # worse, if anything
        (lambda e: setattr(e.outcome.own_loss.validation, "gap", 0.1), False),
        (lambda e: setattr(e.outcome.own_loss.validation, "groups", GROUPS - 1), False),
        (lambda e: setattr(e.outcome.own_loss.train, "gap", 0.0), False),
        (lambda e: setattr(e.loss, "opposed", True), False),
        (lambda e: setattr(e.loop, "steps_before", 1), False),
        (lambda e: setattr(e, "task", "classes"), False),
    ],
)
def test_what_is_learnt_by_heart_on_an_unknown_task(change, expected):
    given = evidence(0.0)
    given.task, given.classes, given.loop.steps = "unknown", None, UNKNOWN_JUDGED_AFTER
    given.outcome.train = given.outcome.train_mode = type(given.outcome.train)()
    given.outcome.own_loss.train = Pairing(GROUPS, 1.0, 1.0, 0.5, 0.01)
    given.outcome.own_loss.validation = Pairing(GROUPS, 0.5, 1.0, 0.0, 0.001)
    change(given)
    assert unused_by_new_samples(given) is expected


@pytest.mark.parametrize(
    ("own", "simple", "expected"),
    [(0.1, 0.3, True), (0.3 + BEHIND, 0.3, False), (None, 0.3, False), (0.1, None, False)],
)
def test_values_are_behind_a_simple_model_by_their_own_loss_alone(own, simple, expected):
    given = evidence(0.3, simple=0.8)
    given.task = "values"
    assert learns(given) is False
    given.outcome.own_loss.relative, given.outcome.own_loss.simple = own, simple
    assert learns(given) is expected


def test_the_simple_models_own_loss_is_noted_beside_the_nets():
    torch.manual_seed(0)
    rows = plane(600)
    report = watched(net(), nn.SmoothL1Loss(), drawn(rows), 80)
    own = report.evidence.outcome.own_loss
    assert own.simple < 0.1  # a linear relation
    assert own.relative < 0.5


# -------------------------------------------------------------------------- codes that tell nothing


def test_values_of_samples_along_the_second_axis_have_no_simple_loss():
    """A forecast for each step of series (steps, samples, features)."""
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, 1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with Doctor(model, optimizer, loss_fn=F.mse_loss, sample_axis=1) as doctor:
        for step in range(45):
            x = numbers(7, 20, FEATURES, seed=step)
            y = x.sum(dim=2, keepdim=True)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        report = doctor.report()
    assert report.troubles == []
    assert report.evidence.data.simple_skill > 0.9
    assert report.evidence.outcome.own_loss.simple is None


class Autoencoder(nn.Module):
    """A variational autoencoder that makes its own loss, and may be told a condition."""

    def __init__(self, weight):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
        self.decoder = nn.Sequential(nn.Linear(2 + 8, 32), nn.Tanh(), nn.Linear(32, 8))
        self.weight = weight

    def forward(self, x, condition):
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        code = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        rebuilt = self.decoder(torch.cat([code, condition], dim=1))
        divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
        return (x - rebuilt).square().sum(1).mean() + self.weight * divergence, rebuilt


def rebuilding(weight, told):
    """Train on points of a plane; where `told`, the condition is the sample itself."""
    torch.manual_seed(0)
    rows = numbers(1000, 2) @ numbers(2, 8, seed=1)
    conditions = rows if told else torch.zeros_like(rows)
    model = Autoencoder(weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batches = drawn((rows, conditions))
    with Doctor(model, optimizer) as doctor:
        for _ in range(500):
            given = batches()
            optimizer.zero_grad()
            loss, _ = model(*given)
            loss.backward()
            optimizer.step()
            doctor.step(loss, given)
        return doctor.report()


@pytest.mark.slow
def test_a_code_that_tells_nothing_is_found():
    report = rebuilding(80.0, told=False)
    assert report.healthy is False
    assert report.main_cause == "over_regularised", str(report)
    assert "as inputs change places" in report.main.summary


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "told"), [(0.2, False), (5.0, True)])
def test_a_code_that_tells_something_or_need_not_is_left_alone(weight, told):
    report = rebuilding(weight, told)
    assert report.healthy is None, str(report)
    before, now = report.evidence.outcome.initial_latent, report.evidence.outcome.latent
    assert before.by_input > 0.01
    assert now.left < 0.25
    assert now.loss_reads_input


class Parts(Autoencoder):
    """Returns what the loop makes the bound of, and draws its code in training alone."""

    def forward(self, x):
        mean, logvar = self.encoder(x).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        code = mean + noise * (0.5 * logvar).exp()
        rebuilt = self.decoder(torch.cat([code, torch.zeros_like(x)], dim=1))
        return rebuilt, mean, logvar


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "collapses"), [(80.0, True), (0.2, False)])
def test_a_code_is_looked_at_where_the_loop_makes_the_bound(weight, collapses):
    torch.manual_seed(0)
    rows = numbers(1000, 2) @ numbers(2, 8, seed=1)
    model = Parts(weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with Doctor(model, optimizer) as doctor:
        for step in range(500):
            x = rows[torch.arange(step * 32, step * 32 + 32) % len(rows)]
            optimizer.zero_grad()
            rebuilt, mean, logvar = model(x)
            divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()
            loss = (x - rebuilt).square().sum(1).mean() + weight * divergence
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, x)
        report = doctor.report()
    assert (report.healthy is False) is collapses, str(report)
    assert not collapses or report.main_cause == "over_regularised"


def test_a_net_without_noise_has_no_latent_facts():
    report = watched(net(), nn.MSELoss(), drawn(plane()), 45)
    assert report.evidence.outcome.initial_latent is report.evidence.outcome.latent is None


@pytest.mark.parametrize(
    ("before", "now", "steps", "expected"),
    [
        (LatentFacts(0.05, 1.0, True, 1.0), LatentFacts(0.002, 0.06, True, 0.6), 300, False),
        (LatentFacts(0.05, 1.0, True, 1.0), LatentFacts(0.002, 0.06, True, 0.6), 199, None),
        (LatentFacts(0.09, 1.0, True, 1.0), LatentFacts(0.01, 0.06, True, 0.6), 300, None),
        (LatentFacts(0.02, 1.0, True, 1.0), LatentFacts(0.005, 0.06, True, 0.6), 300, None),
        (LatentFacts(0.0049, 1.0, True, 1.0), LatentFacts(0.0001, 0.06, True, 0.6), 300, None),
        (LatentFacts(0.05, 1.0, True, 1.0), LatentFacts(0.002, 0.06, True, 0.2), 300, None),
        (LatentFacts(0.05, 1.0, True, 1.0), LatentFacts(0.002, 0.06, True), 300, None),
        (LatentFacts(0.05, 1.0), LatentFacts(0.002, 0.06, False, 0.6), 300, None),
        (LatentFacts(0.0017, 0.05, True, 2.5), LatentFacts(2e-5, 0.02, True, 1.04), 300, False),
        (LatentFacts(0.0, 0.05, True, 2.5), LatentFacts(0.0, 0.02, True, 1.04), 300, None),
        (None, LatentFacts(0.002, 0.06, True, 0.6), 300, None),
    ],
)
def test_what_an_ignored_code_rests_on(before, now, steps, expected):
    given = evidence()
    given.task, given.classes, given.loop.steps = "unknown", None, steps
    given.outcome.train = given.outcome.train_mode = type(given.outcome.train)()
    given.outcome.initial_latent, given.outcome.latent = before, now
    assert diagnosis(given).healthy is expected


@pytest.mark.parametrize(
    ("now", "rebuilds", "terms", "expected"),
    [
        (LatentFacts(4e-5, 0.0, False, 1.02), True, True, False),
        (LatentFacts(4e-5, 0.0, False, 1.02), True, False, None),  # of one term: no code is pulled
        (LatentFacts(4e-5, 0.0, False, 1.02), False, True, None),
        (LatentFacts(4e-5, 0.0, True, 1.02), False, False, None),  # it may be given a condition
        (LatentFacts(4e-5, 0.0, False, 0.8), True, True, None),  # more than the mean input is told
        (LatentFacts(2e-3, 0.0, False, 1.02), True, True, None),
    ],
)
def test_a_code_is_ignored_too_that_never_told_anything(now, rebuilds, terms, expected):
    given = evidence()
    given.task, given.classes, given.loop.steps = "unknown", None, 300
    given.outcome.train = given.outcome.train_mode = type(given.outcome.train)()
    given.reconstruction, given.loss.other_outputs = rebuilds, terms
    given.outcome.initial_latent, given.outcome.latent = LatentFacts(2e-5, 0.0, False, 3.4), now
    assert diagnosis(given).healthy is expected


# --- many labels a sample -------------------------------------------------------------------------


def of_places(task, kind, batches=8):
    """Batches of labels (20, 6, 6) that hang on the place alone, but for a tenth, with outputs that
    are the best for each place, and with outputs that are the labels themselves."""
    drawn = torch.Generator().manual_seed(0)
    usual = torch.arange(36).reshape(6, 6) % task.size
    found = []
    for _ in range(batches):
        other = torch.randint(task.size, (20, 6, 6), generator=drawn)
        changed = torch.rand(20, 6, 6, generator=drawn) < 0.2
        labels = torch.where(changed, other, usual)
        shown = labels if kind == "right" else usual.expand_as(labels)
        shares = F.one_hot(shown, task.size).float() * 0.8 + 0.2 / task.size
        if task.kind == "binary":
            outputs, labels = shares[..., 1].logit(), labels.float()
        else:
            outputs = shares.log().movedim(-1, 1)
        found.append(Predicted(Batch(Call((outputs,)), labels), outputs))
    return found


@pytest.mark.parametrize(
    ("task", "loss_fn"),
    [
        (Task("binary"), F.binary_cross_entropy_with_logits),
        (Task("binary"), lambda o, t: 3 * F.binary_cross_entropy(o.sigmoid(), t)),
        (Task("classes", 4, 1), F.cross_entropy),
    ],
)
def test_maps_are_compared_with_the_best_outputs_at_each_place(task, loss_fn):
    facts = OwnLoss()
    found = of_places(task, "usual")
    note_beside_constant(facts, found, found, loss_fn, task)
    assert facts.relative == pytest.approx(1, abs=0.06)
    found = of_places(task, "right")
    note_beside_constant(facts, found, found, loss_fn, task)
    assert facts.relative < 0.7


@pytest.mark.parametrize(
    ("gap", "positions", "learnt"),
    [(0.11, True, True), (0.09, True, False), (0.11, False, False)],
)
def test_a_net_that_tells_maps_apart_learns_whatever_places_tell(gap, positions, learnt):
    """One with the same weights at each place may know less of a place than its frequencies."""
    given = evidence(0.0)
    given.positions, given.data.simple_skill = positions, None
    given.outcome.train.relative_loss = given.outcome.train_mode.relative_loss = 1.1
    own = given.outcome.own_loss
    own.train = own.train_mode = Pairing(GROUPS, 1.0, 1.0, gap, 0.01)
    assert learns(given) is learnt


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda e: None, True),
        (lambda e: setattr(e.data, "skill_of_maps", 0.3), False),
        (lambda e: setattr(e.data.alignment, "training_gap", 4.0), False),
        (lambda e: setattr(e.data, "alignment", None), True),
        (lambda e: setattr(e.data, "distinct", 100), False),
        (lambda e: setattr(e.outcome, "movement", 0.01), False),
        (lambda e: setattr(e.outcome.train, "skill", 0.5), False),
    ],
)
def test_what_maps_without_a_relation_to_their_images_rest_on(change, named):
    given = evidence(0.0)
    given.positions, given.data.simple_skill, given.data.skill_of_maps = True, None, 0.0
    given.data.alignment = AlignmentFacts(0.1, 0.1, 0.3, 0.0, 0.3, 0.0, training_gap=0.5)
    change(given)
    report = diagnosis(given)
    assert (report.main_cause == "bad_labels") == named
    if named:
        assert report.healthy is False
        assert report.main.confidence == "suspected"


@pytest.mark.parametrize("validated", [True, False])
def test_several_labels_a_sample_that_are_learnt_by_heart(validated):
    given = evidence(0.2, simple=None)
    given.task, given.data.skill_of_maps = "binary", 0.0
    given.outcome.train.relative_loss = given.outcome.train_mode.relative_loss = 0.8
    scores = [Score(ratio, 0.0, 0.5, samples=400) for ratio in (1.1, 1.2)]
    given.outcome.validations = [Validation(9 * i, 1.0, s) for i, s in enumerate(scores)][
        : 2 * validated
    ]
    assert (diagnosis(given).main_cause == "bad_labels") is validated


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "named"), [("cnn_of_textures", "bad_labels"), ("cnn_of_pixels", "bad_labels")]
)
def test_images_beside_other_images_targets(base, named):
    for make, main in (
        (sound(base, 0), "healthy"),
        (case(base, targets_listed_by_name).build(0), named),
    ):
        with train(make, 0, Doctor) as doctor:
            assert doctor.report().main_cause == main


@pytest.mark.parametrize(("classes", "fails"), [(10, True), (5000, False)])
def test_the_loss_of_guessing_many_words_is_not_known_from_few_labels(classes, fails):
    """A language model begins with the frequencies of its words; 350 labels do not tell these."""
    given = evidence(0.05, simple=None)
    given.classes = classes
    given.outcome.train = given.outcome.train_mode = Score(0.95, 0.05, 0.01, samples=700)
    scores = [Score(ratio, 0.0, 0.01, samples=350) for ratio in (1.5, 1.4)]
    given.outcome.validations = [Validation(60 * i, 7.0, score) for i, score in enumerate(scores)]
    assert learns_by_heart_alone(given) is fails
