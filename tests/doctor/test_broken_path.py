"""Outputs that follow their inputs while no gradient goes back from one to the other."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.causes.frozen_parameters import CHOICE
from debugnn.doctor.observe.broken_path import broken_path_facts
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout

SAMPLES, FEATURES, CODE = 32, 12, 6


class Quantised(nn.Module):
    """Rebuilds its inputs from entries of a codebook, three for each sample.

    Args:
        hand_on: is given codes and their nearest entries, and returns what the decoder is given.
    """

    def __init__(self, hand_on):
        super().__init__()
        self.hand_on = hand_on
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 32), nn.GELU(), nn.Linear(32, 3 * CODE))
        self.book = nn.Embedding(12, CODE)
        self.decoder = nn.Sequential(nn.Linear(3 * CODE, 32), nn.GELU(), nn.Linear(32, FEATURES))

    def forward(self, x):
        codes = self.encoder(x).unflatten(1, (3, CODE))
        nearest = self.book((codes.unsqueeze(2) - self.book.weight).square().sum(-1).argmin(-1))
        return self.decoder(self.hand_on(codes, nearest).flatten(1)), codes, nearest


def past_the_choice(codes, nearest):
    return codes + (nearest - codes).detach()


def chosen(codes, nearest):
    return nearest


def all_detached(codes, nearest):
    return (codes + (nearest - codes)).detach()


def quantised_loss(outputs, x):
    rebuilt, codes, nearest = outputs
    pulled = F.mse_loss(nearest, codes.detach()) + 0.25 * F.mse_loss(codes, nearest.detach())
    return F.mse_loss(rebuilt, x) + pulled


class Variational(nn.Module):
    """A variational autoencoder whose code is drawn by `draw`."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.encoder, self.decoder = nn.Linear(FEATURES, 2 * CODE), nn.Linear(CODE, FEATURES)

    def forward(self, x):
        mean, log_deviation = self.encoder(x).chunk(2, dim=1)
        return self.decoder(self.draw(mean, log_deviation.exp())), mean, log_deviation


def reparametrised(mean, deviation):
    return mean + deviation * torch.randn_like(mean)


def drawn_without_path(mean, deviation):
    return torch.distributions.Normal(mean, deviation).sample()


def drawn_by_normal(mean, deviation):
    return torch.normal(mean, deviation)


def bound(outputs, x):
    rebuilt, mean, log_deviation = outputs
    divergence = 0.5 * (mean.square() + (2 * log_deviation).exp() - 1) - log_deviation
    return (rebuilt - x).square().sum(1).mean() + divergence.sum(1).mean()


def looked_at(model, loss_fn=None, targets=None, held=None, x=None):
    torch.manual_seed(2)
    x = torch.randn(SAMPLES, FEATURES) if x is None else x
    names = {name for name, _ in model.named_parameters()} if held is None else held
    given = x if targets is None else targets
    return broken_path_facts(model, Call((x,)), given, Layout(verified=True), names, loss_fn)


@pytest.mark.parametrize("hand_on", [chosen, all_detached])
def test_a_choice_without_an_estimator_is_seen(hand_on):
    torch.manual_seed(1)
    facts = looked_at(Quantised(hand_on), quantised_loss)
    assert {"encoder.0.weight", "encoder.2.weight"} <= set(facts.parameters)
    assert not any(name.startswith("decoder") for name in facts.parameters)
    assert facts.steady > CHOICE
    assert not facts.drawn


@pytest.mark.parametrize("draw", [drawn_without_path, drawn_by_normal])
def test_a_code_that_is_drawn_without_a_path_is_seen(draw):
    torch.manual_seed(1)
    facts = looked_at(Variational(draw), bound)
    assert facts.parameters == ["encoder.weight", "encoder.bias"]
    assert facts.drawn


@pytest.mark.parametrize(
    ("model", "loss_fn"),
    [(Quantised(past_the_choice), quantised_loss), (Variational(reparametrised), bound)],
)
def test_a_path_past_the_choice_is_a_path(model, loss_fn):
    assert looked_at(model, loss_fn) is None


def test_a_look_leaves_the_model_as_it_is():
    torch.manual_seed(1)
    model = nn.Sequential(nn.BatchNorm1d(FEATURES), Quantised(chosen))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert looked_at(model, quantised_loss) is not None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_coders_that_are_not_trained_here_are_left_alone():
    torch.manual_seed(1)
    frozen = Quantised(chosen)
    frozen.encoder.requires_grad_(False)
    assert looked_at(frozen, quantised_loss) is None or "encoder.0.weight" not in (
        looked_at(frozen, quantised_loss).parameters
    )
    held = {n for n, _ in frozen.named_parameters() if n.startswith("decoder")}
    assert looked_at(Quantised(chosen), quantised_loss, held=held) is None


def test_inputs_that_are_made_binary_have_no_parameters_before_that():
    class Binary(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(FEATURES, FEATURES)

        def forward(self, x):
            return self.layer((x > 0).float())

    assert looked_at(Binary(), F.mse_loss) is None


def test_an_output_that_the_loss_does_not_read_needs_no_gradient():
    class Hashing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(FEATURES, 4), nn.Parameter(torch.ones(4))

        def forward(self, x):
            scores = self.layer(x)
            return (scores > 0).float() * self.scale, scores

    def loss_fn(outputs, targets):
        return F.cross_entropy(outputs[1], targets)

    labels = torch.randint(4, (SAMPLES,))
    assert looked_at(Hashing(), loss_fn, labels) is None
    assert (
        looked_at(Hashing(), lambda o, y: F.cross_entropy(o[0] + 0 * o[1], y), labels) is not None
    )


def test_a_net_that_ignores_its_inputs_breaks_no_path():
    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
            nn.init.zeros_(self.out.weight)

        def forward(self, x):
            return self.out(self.layer(x).detach())

    assert looked_at(Closed(), F.mse_loss) is None


def rows_on_a_curve(count):
    """Rows (count, FEATURES) that two numbers make."""
    angle, size = 6.3 * torch.rand(count, 1), 0.5 + torch.rand(count, 1)
    return size * torch.sin(angle + torch.arange(FEATURES) / 2)


def trained(model, loss_fn, steps=300, targets_of=None, draw=rows_on_a_curve):
    torch.manual_seed(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(steps):
            x = draw(40)
            targets = x if targets_of is None else targets_of(x)
            loss = loss_fn(model(x), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, targets)
        return doctor.report()


@pytest.mark.slow
@pytest.mark.parametrize("hand_on", [chosen, all_detached])
def test_a_missing_straight_through_estimator_is_named(hand_on):
    torch.manual_seed(1)
    report = trained(Quantised(hand_on), quantised_loss)
    assert (report.main_cause, report.main.confidence) == ("frozen_parameters", "certain"), report
    assert report.main.layer == "encoder.0"
    assert "straight-through" in report.main.fix


@pytest.mark.slow
def test_a_straight_through_estimator_is_healthy():
    torch.manual_seed(1)
    report = trained(Quantised(past_the_choice), quantised_loss, 500)
    assert report.healthy, report
    assert report.findings == []


@pytest.mark.slow
def test_a_code_drawn_without_a_path_is_named_as_its_outputs_tell_nothing():
    torch.manual_seed(1)
    report = trained(Variational(drawn_without_path), bound, 1500)
    assert (report.main_cause, report.main.confidence) == ("frozen_parameters", "certain"), report
    assert "rsample" in report.main.fix


class Greedy(nn.Module):
    """Two layers that learn each by scores of its own, with nothing handed back between them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 32), nn.Linear(32, 32)
        self.of_first, self.of_second = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x):
        first = self.first(x).relu()
        second = self.second(first.detach()).relu()
        return self.of_second(second), self.of_first(first)


def both_scores(outputs, labels):
    return sum(F.cross_entropy(scores, labels) for scores in outputs)


def quarter(x):
    return (2 * (x[:, 0] > 0) + (x[:, 3] > 0)).long()


@pytest.mark.slow
def test_layers_that_learn_each_by_a_loss_of_their_own_are_healthy():
    torch.manual_seed(1)
    report = trained(Greedy(), both_scores, targets_of=quarter)
    assert report.evidence.network.broken_path.steady < CHOICE
    assert report.healthy, report
    assert report.findings == []


class Estimated(nn.Module):
    """Rebuilds rows from a drawn entry of a book, and learns to draw by the score function."""

    def __init__(self):
        super().__init__()
        self.encoder, self.book = nn.Linear(FEATURES, 16), nn.Embedding(16, FEATURES)

    def forward(self, x):
        choice = torch.distributions.Categorical(logits=self.encoder(x))
        drawn = choice.sample()
        return self.book(drawn), choice.log_prob(drawn)


def score_function(outputs, x):
    rebuilt, log_chance = outputs
    error = (rebuilt - x).square().mean(1)
    return error.mean() + ((error - error.mean()).detach() * log_chance).mean()


@pytest.mark.slow
def test_a_random_choice_that_learns_by_the_score_function_is_not_accused():
    torch.manual_seed(1)
    report = trained(Estimated(), score_function, 600)
    assert report.evidence.network.broken_path.drawn
    assert "frozen_parameters" not in {f.cause for f in report.findings}


class Steps(nn.Module):
    """A classifier whose hidden units take whole values."""

    def __init__(self, step):
        super().__init__()
        self.step, self.hidden, self.head = step, nn.Linear(FEATURES, 24), nn.Linear(24, 4)

    def forward(self, x):
        return self.head(self.step(self.hidden(x)))


def rounded_past(x):
    return x + (x.round() - x).detach()


@pytest.mark.slow
@pytest.mark.parametrize("step", [torch.sign, torch.round, torch.floor])
def test_a_step_without_a_derivative_leaves_parameters_unreached(step):
    torch.manual_seed(1)
    report = trained(Steps(step), F.cross_entropy, 100, quarter)
    assert report.evidence.network.unreached == ["hidden.weight", "hidden.bias"]
    assert (report.main_cause, report.main.confidence) == ("frozen_parameters", "certain"), report


@pytest.mark.slow
@pytest.mark.parametrize("step", [rounded_past, torch.frac, torch.relu])
def test_a_step_with_a_derivative_leaves_none(step):
    torch.manual_seed(1)
    report = trained(Steps(step), F.cross_entropy, 300, quarter)
    assert report.evidence.network.unreached == []
    assert "frozen_parameters" not in {f.cause for f in report.findings}


@pytest.mark.slow
def test_a_last_layer_of_zeros_leaves_none():
    torch.manual_seed(1)
    model = Steps(torch.tanh)
    nn.init.zeros_(model.head.weight)
    report = trained(model, F.cross_entropy, 300, quarter)
    assert report.evidence.network.unreached == []
    assert report.healthy, report
