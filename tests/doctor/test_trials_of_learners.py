"""Trainings that learn something, and whose trials show what keeps them from learning more."""

import math

import pytest
import torch
from torch import nn

from debugnn.doctor import Doctor
from debugnn.doctor.causes.signals.without_skill import COLLAPSED
from debugnn.doctor.data_inputs import data_inputs, scale_data_inputs
from debugnn.doctor.observe.calls import Call


def watched(model, optimizer, loss_fn, batches, scheduler=None):
    """The report of a plain training on the batches."""
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for inputs, targets in batches:
            optimizer.zero_grad()
            given = inputs if isinstance(inputs, tuple) else (inputs,)
            loss = loss_fn(model(*given), targets)
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            doctor.step(loss, inputs, targets)
        return doctor.report()


# --- weight decay that holds a training back ------------------------------------------------------


def surface(steps, size=64):
    """A regression whose small parts take small weights' gradients to see."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(size, 6, generator=generator)
        yield x, (x[:, :1] * x[:, 1:2] + torch.sin(2 * x[:, 2:3])) / 1.3


@pytest.mark.parametrize(
    ("make", "main"),
    [
        (lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=0.1), "over_regularised"),
        (lambda p: torch.optim.Adamax(p, lr=5e-3, weight_decay=0.1), "over_regularised"),
        (lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.1), "healthy"),
        (lambda p: torch.optim.Adam(p, lr=3e-3, weight_decay=1e-5), "healthy"),
    ],
    ids=["adam", "adamax", "decoupled", "slight"],
)
def test_a_decay_within_an_adaptive_gradient_holds_a_training_back(make, main):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                          nn.Linear(64, 1))  # fmt: skip
    report = watched(model, make(model.parameters()), nn.MSELoss(), surface(400))
    assert report.main_cause == main, report.details()
    if main != "healthy":
        assert report.main.confidence == "shown"
        assert report.evidence.outcome.train.skill < 0.9


# --- data that only one layer takes ---------------------------------------------------------------


class Timed(nn.Module):
    """Values at a time, which is handed over beside them or in its own layer."""

    def __init__(self, apart):
        super().__init__()
        self.first = nn.Linear(3 if apart else 4, 64)
        self.clock = nn.Linear(1, 64) if apart else None
        self.rest = nn.Sequential(nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))

    def forward(self, x, t):
        t = t.float().unsqueeze(1)
        if self.clock is None:
            return self.rest(self.first(torch.cat([x, t], dim=1)))
        return self.rest(self.first(x) + self.clock(t))


def blurred(steps, longest, size=64):
    """Noisy copies of points on a curve; what to find is the noise, whose share grows with t."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        angle = 2 * math.pi * torch.rand(size, 1, generator=generator)
        clean = torch.cat([angle.cos(), angle.sin(), (2 * angle).sin()], dim=1) * 1.2
        t = torch.randint(1, longest, (size,), generator=generator)
        share = (t / longest).unsqueeze(1)
        noise = torch.randn(size, 3, generator=generator)
        yield (((1 - share).sqrt() * clean + share.sqrt() * noise), t), noise


@pytest.mark.parametrize("apart", [False, True])
def test_a_time_as_it_is_beside_inputs_of_unit_scale(apart):
    torch.manual_seed(0)
    model = Timed(apart)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    report = watched(model, optimizer, nn.MSELoss(), blurred(300, 1000))
    assert report.main_cause == "input_scale", report.details()
    assert report.main.layer == ("clock" if apart else "first")
    assert report.main.confidence == "shown"


def test_a_time_of_unit_scale_is_no_fault():
    torch.manual_seed(0)

    class Scaled(Timed):
        def forward(self, x, t):
            return super().forward(x, t / 1000)

    model = Scaled(False)
    report = watched(model, torch.optim.Adam(model.parameters(), lr=3e-3), nn.MSELoss(),
                     blurred(300, 1000))  # fmt: skip
    assert report.healthy is not False, report.details()


def test_layers_that_take_data_are_those_without_a_parameter_before_them():
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 4)
            self.conv = nn.Conv1d(2, 3, 3, padding=1)
            self.hidden = nn.Linear(3, 4)
            self.amount = nn.Linear(2, 4)
            self.out = nn.Linear(4, 1)

        def forward(self, series, words, amounts):
            seen = self.hidden(self.conv(series).relu().mean(dim=2)) + self.words(words)
            return self.out((seen + self.amount(amounts)).tanh())

    model = Mixed()
    series, amounts = torch.randn(5, 2, 7), torch.tensor([[300.0, 0.1]]).repeat(5, 1)
    call = Call((series, torch.randint(10, (5,)), amounts), {})
    found = data_inputs(model, call)
    assert set(found) == {"conv", "amount"}
    assert found["conv"] == pytest.approx(series.square().mean().sqrt().item())
    assert found["amount"] == pytest.approx(((300.0**2 + 0.1**2) / 2) ** 0.5)
    taken = []
    scale_data_inputs(model, [call])
    model.amount.register_forward_pre_hook(lambda layer, args: taken.append(args[0]))
    call(model)
    expected = torch.tensor([[1.0, 0.1]]).repeat(5, 1)  # what is small already stays
    torch.testing.assert_close(taken[0], expected)


class Joined(nn.Module):
    """Reads words, and amounts behind what it has learnt of these."""

    def __init__(self):
        super().__init__()
        self.words, self.seen = nn.Embedding(10, 3), nn.Linear(2, 2)
        self.hidden, self.out = nn.Linear(5, 8), nn.Linear(10, 1)

    def forward(self, words, amounts):
        hidden = self.hidden(torch.cat([self.words(words), amounts], dim=1)).relu()
        return self.out(torch.cat([hidden, self.seen(amounts)], dim=1))


def test_data_stand_beside_what_was_learnt():
    model = Joined()
    call = Call((torch.randint(10, (6,)), torch.tensor([[300.0, 0.1]]).repeat(6, 1)), {})
    assert set(data_inputs(model, call)) == {"hidden", "seen"}  # `out` is given learnt parts alone
    taken = []
    scale_data_inputs(model, [call])
    model.hidden.register_forward_pre_hook(lambda layer, args: taken.append(args[0][:, 3:]))
    call(model)
    torch.testing.assert_close(taken[0], torch.tensor([[1.0, 0.1]]).repeat(6, 1))


class Prepared(nn.Module):
    """Takes the logarithm of amounts itself, which inputs of mean 0 have none of."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x):
        amounts, days = x[:, :2], x[:, 2:]
        return self.net(torch.cat([(amounts + 1).log(), days * self.scale], dim=1)).squeeze(1)


def rare_events(steps, size=64):
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        amounts = 30 * torch.rand(size, 2, generator=generator)
        days = 6000 * torch.rand(size, 2, generator=generator)
        score = (amounts + 1).log().diff(dim=1)[:, 0] + days[:, 0] / 3000 - days[:, 1] / 3000
        yield torch.cat([amounts, days], dim=1), (score > 1).float()


def weighed(logits, targets):
    weights = torch.where(targets > 0, 0.8, 0.2)
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, weights)


@pytest.mark.parametrize(("scale", "main"), [(1.0, "input_scale"), (1 / 3000, "healthy")])
def test_data_that_the_model_prepares_are_scaled_where_its_layer_takes_them(scale, main):
    """Of a weighted loss: by the task's own loss no copy is better than guessing."""
    torch.manual_seed(0)
    model = Prepared(scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    report = watched(model, optimizer, weighed, rare_events(300))
    assert report.main_cause == main, report.details()


# --- weights that start too large, whatever the task is -------------------------------------------


class Couplings(nn.Module):
    """A small flow of affine coupling layers (Dinh et al. 2017, arXiv:1605.08803)."""

    def __init__(self, std):
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 4)) for _ in range(4)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and std is not None:
                nn.init.normal_(layer.weight, std=std)

    def forward(self, x):
        volume = torch.zeros(len(x))
        for net in self.nets:
            held, moved = x.chunk(2, dim=1)
            scale, shift = net(held).chunk(2, dim=1)
            scale = scale.tanh() * 2
            moved = moved * scale.exp() + shift
            x, volume = torch.cat([moved, held], dim=1), volume + scale.sum(dim=1)
        return x, volume


def ring(steps, size=128):
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        angle = 2 * math.pi * torch.rand(size, 2, generator=generator)
        x = torch.cat([angle.cos(), angle.sin()], dim=1) * 1.4
        yield x + 0.1 * torch.randn(size, 4, generator=generator), None


def bits(outputs, targets):
    z, volume = outputs
    return (0.5 * z.square().sum(dim=1) + 2 * math.log(2 * math.pi) - volume).mean()


@pytest.mark.parametrize(("std", "main"), [(2.0, "init_scale_too_large"), (None, None)])
def test_a_copy_with_usual_weights_overtakes_a_density_that_started_with_large_ones(std, main):
    torch.manual_seed(0)
    model = Couplings(std)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    report = watched(model, optimizer, bits, ring(250))
    assert report.evidence.task == "unknown"
    if main is None:
        assert report.healthy is not False, report.details()
    else:
        assert report.main_cause == main, report.details()


# --- unknown tasks by their own loss --------------------------------------------------------------


class Embedded(nn.Module):
    """Three points in another space: one, one like it, and another."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, anchors, alike, others):
        return self.net(anchors), self.net(alike), self.net(others)


def triplets(steps, scale=1.0, size=64):
    """Points of eight kinds that one direction of the space tells apart, and noise in the rest."""
    generator = torch.Generator().manual_seed(6)
    kinds = torch.randn(8, 2, generator=generator)

    def points(labels):
        noise = 2 * torch.randn(len(labels), 6, generator=generator)
        return scale * torch.cat([kinds[labels], noise], dim=1)

    for _ in range(steps):
        labels = torch.randint(8, (size,), generator=generator)
        others = (labels + torch.randint(1, 8, (size,), generator=generator)) % 8
        yield (points(labels), points(labels), points(others)), None


def margin(outputs, targets):
    return nn.functional.triplet_margin_loss(*outputs, margin=1.0)


@pytest.mark.parametrize(
    ("rate", "scale", "main"),
    [(1e-7, 1.0, "lr_too_low"), (1e-3, 1.0, None), (1e-3, 300.0, "input_scale")],
)
def test_a_triplet_net_by_its_own_loss(rate, scale, main):
    torch.manual_seed(0)
    model = Embedded()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    report = watched(model, optimizer, margin, triplets(250, scale))
    assert report.evidence.task == "unknown"
    if main is None:
        assert report.healthy is not False, report.details()
    else:
        assert (report.healthy, report.main_cause) == (False, main), report.details()


def test_weights_that_stay_where_they_began_are_seen_without_a_loss_function():
    torch.manual_seed(0)
    model = Embedded()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-7)
    with Doctor(model, optimizer) as doctor:
        for given, _ in triplets(220):
            optimizer.zero_grad()
            loss = margin(model(*given), None)
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        report = doctor.report()
    assert (report.healthy, report.main_cause) == (False, "lr_too_low"), report.details()
    assert report.main.confidence == "suspected"


# --- embeddings ----------------------------------------------------------------------------------


class Factors(nn.Module):
    """Words that like each other have similar vectors."""

    def __init__(self, std, size=24):
        super().__init__()
        self.left, self.right = nn.Embedding(150, size), nn.Embedding(150, size)
        if std is not None:
            for table in (self.left, self.right):
                nn.init.normal_(table.weight, std=std)

    def forward(self, left, right):
        return (self.left(left) * self.right(right)).sum(dim=1)


def likings(steps, size=128):
    generator = torch.Generator().manual_seed(7)
    left, right = torch.randn(2, 150, 3, generator=generator)
    for _ in range(steps):
        pair = torch.randint(150, (2, size), generator=generator)
        noise = 0.2 * torch.randn(size, generator=generator)
        yield (pair[0], pair[1]), (left[pair[0]] * right[pair[1]]).sum(dim=1) / 3**0.5 + noise


@pytest.mark.parametrize(("std", "main"), [(None, "init_scale_too_large"), (0.1, "healthy")])
def test_embeddings_whose_products_start_far_too_large(std, main):
    torch.manual_seed(0)
    model = Factors(std)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    report = watched(model, optimizer, nn.MSELoss(), likings(400))
    assert report.main_cause == main, report.details()


# --- outputs that are the same for all inputs -----------------------------------------------------


def test_embeddings_that_collapse_to_one_point_do_not_learn():
    torch.manual_seed(0)
    model = Embedded()
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-2, momentum=0.9)

    def pulled_together(outputs, _):  # the margin lets nothing push apart
        anchors, alike, others = outputs
        spread = sum(
            (a - b).square().sum(dim=1).mean() for a, b in ((anchors, alike), (alike, others))
        )
        return spread + 0.5

    report = watched(model, optimizer, pulled_together, triplets(400))
    assert report.evidence.outcome.output_signal < COLLAPSED * report.evidence.network.output_signal
    assert report.healthy is False
    assert "the same for all inputs" in report.reason


# --- terms of the loss beside the error -----------------------------------------------------------


class Coded(nn.Module):
    """A classifier that returns its hidden code too, for a penalty on it."""

    def __init__(self):
        super().__init__()
        self.code, self.head = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x):
        code = torch.tanh(self.code(x))
        return self.head(code), code


@pytest.mark.parametrize(("size", "main"), [(1e-5, "healthy"), (0.1, "over_regularised")])
def test_a_penalty_of_another_output_that_outweighs_the_error_is_shown(size, main):
    torch.manual_seed(0)
    model = Coded()
    data = torch.randn(200, 24, 8)

    def loss_fn(outputs, labels):
        scores, code = outputs
        return nn.functional.cross_entropy(scores, labels) + size * code.abs().sum()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    batches = [(x, (x[:, :4] + x[:, 4:]).argmax(dim=1)) for x in data]
    report = watched(model, optimizer, loss_fn, batches)
    assert report.main_cause == main, report.details()
    if main != "healthy":
        assert report.main.confidence == "shown"
        assert report.evidence.trials["main output alone"].steps == 24


# --- units that stay equal ------------------------------------------------------------------------


class Mixture(nn.Module):
    """Two normal densities of a value, given another one."""

    def __init__(self, size):
        super().__init__()
        self.hidden, self.head = nn.Linear(1, 16), nn.Linear(16, 6)
        nn.init.normal_(self.head.weight, std=size)
        nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x))).chunk(3, dim=1)


def mixture_loss(parts, y):
    weight, mean, log_width = parts
    density = torch.distributions.Normal(mean, log_width.exp())
    return -(weight.log_softmax(dim=1) + density.log_prob(y)).logsumexp(dim=1).mean()


@pytest.mark.parametrize("size", [0.0, 0.1])
def test_components_of_a_mixture_that_begin_equal_stay_so(size):
    torch.manual_seed(0)
    model = Mixture(size)

    def batches():
        for _ in range(250):
            x = torch.rand(64, 1) * 2 - 1
            side = torch.where(torch.rand(64, 1) < 0.5, -1.0, 1.0)
            yield x, side * (x + 1.5) + 0.1 * torch.randn(64, 1)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    report = watched(model, optimizer, mixture_loss, batches())
    if size:
        assert report.healthy is not False
        assert report.evidence.weights[-1].still_equal == 0
    else:
        assert (report.main.cause, report.main.confidence) == ("symmetric_init", "certain")
        assert report.main.layer == "head"


# --- a schedule far below the rate that it multiplies ---------------------------------------------


@pytest.mark.parametrize(
    ("factor", "main"),
    [(lambda _: 3e-3, "lr_too_low"), (lambda _: 1.0, "healthy"), (lambda t: 0.99**t, "healthy")],
    ids=["the rate itself", "a factor", "a decay"],
)
def test_a_function_that_returns_the_rate_in_place_of_a_factor(factor, main):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                          nn.Linear(64, 1))  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3 if main == "healthy" else 0.06)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    report = watched(model, optimizer, nn.MSELoss(), surface(300), scheduler)
    assert report.main_cause == main, report.details()
    if main != "healthy":
        assert report.main.confidence == "shown"
        assert report.main.evidence["scheduled"] == 0.06


# --- losses beside that of guessing ---------------------------------------------------------------


@pytest.mark.parametrize("paired", [True, False])
def test_shares_that_the_best_constant_fits_better_are_not_learnt(paired):
    """Lists of items with grades, whose shares are compared; or grades of other lists."""
    torch.manual_seed(0)
    items = torch.randn(60, 16, 8, 5)
    grades = (3 * items[..., 0] * items[..., 1]).softmax(dim=-1)
    grades = grades if paired else grades.flip(-1)[:, torch.randperm(16)]
    model = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 1), nn.Flatten(-2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss_fn(scores, shares):
        return -(shares * scores.log_softmax(dim=-1)).sum(dim=-1).mean()

    batches = [(items[i % 60], grades[i % 60]) for i in range(240)]
    report = watched(model, optimizer, loss_fn, batches)
    assert report.healthy is paired, report.details()


def test_a_loss_that_forgives_the_surest_errors_is_wrong():
    def focal(power):
        def loss_fn(logits, labels):
            each = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            right = (-each).exp()
            return ((right if power == "right" else 1 - right) ** 2 * each).mean()

        return loss_fn

    for power, main in (("right", "wrong_loss"), ("wrong", "healthy")):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        data = torch.randn(150, 64, 6)
        batches = [(x, (x[:, :1] + x[:, 1:2] > 0).float()) for x in data]
        report = watched(model, optimizer, focal(power), batches)
        assert report.main_cause == main, report.details()


# --- targets that a loss changes, and classes that it leaves out ----------------------------------


def in_place(logits, labels):
    labels.mul_(0.8).add_(0.1)
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)


def smoothed(logits, labels):
    return nn.functional.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1)


@pytest.mark.parametrize(
    ("loss_fn", "sliced", "said"),
    [(in_place, True, "warning"), (in_place, False, "note"), (smoothed, True, None)],
)
def test_targets_that_a_loss_changes_in_place(loss_fn, sliced, said):
    torch.manual_seed(0)
    data = torch.randn(600, 6)
    labels = (data[:, :3] + data[:, 3:] > 0).float()
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

    def batches():
        for step in range(160):
            rows = slice(step % 10 * 60, step % 10 * 60 + 60)
            yield data[rows], labels[rows] if sliced else labels[rows].clone()

    report = watched(model, torch.optim.Adam(model.parameters(), lr=1e-2), loss_fn, batches())
    found = [f for f in report.findings if f.cause == "wrong_loss"]
    assert [f.severity for f in found] in ([] if said is None else [said], [said, "note"])
    if said == "warning":
        assert report.main.confidence == "certain"
    if loss_fn is smoothed:
        assert report.healthy is True


@pytest.mark.parametrize("ignored", [0, -100])
def test_a_class_whose_labels_are_ignored_is_named(ignored):
    torch.manual_seed(0)
    data = torch.randn(150, 48, 6)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
    loss_fn = nn.CrossEntropyLoss(ignore_index=ignored)
    batches = [(x, x[:, :4].argmax(dim=1)) for x in data]
    report = watched(model, torch.optim.Adam(model.parameters(), lr=1e-2), loss_fn, batches)
    if ignored == 0:
        assert (report.main.cause, report.main.confidence) == ("class_imbalance", "certain")
        assert report.main.evidence["classes"] == [0]
    else:
        assert report.healthy is True


@pytest.mark.parametrize("padded", [True, False])
def test_an_ignored_label_of_many_symbols_is_no_padding(padded):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 4))

    def loss_fn(scores, tags):
        return nn.functional.cross_entropy(scores.transpose(1, 2), tags, ignore_index=0)

    def batches():
        for _ in range(120):
            words = torch.randint(1, 40, (16, 9))
            tags = 1 + words % 3 if padded else words % 4
            if padded:
                words[:8, 6:] = 0
                tags = tags.masked_fill(words == 0, 0)
            yield words, tags

    report = watched(model, torch.optim.Adam(model.parameters(), lr=1e-2), loss_fn, batches())
    found = [f for f in report.findings if f.cause == "class_imbalance" and f.severity != "note"]
    assert bool(found) is not padded
