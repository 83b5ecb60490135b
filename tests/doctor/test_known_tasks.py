"""Which tasks the doctor takes for known in real small trainings, and what it says of the rest."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor

STEPS, BATCH, FEATURES, CLASSES = 12, 32, 6, 4


def rows(size=BATCH):
    return torch.randn(size, FEATURES)


def labels(x):
    return x[:, :CLASSES].argmax(dim=1)


class Net(nn.Module):
    """Linear layers whose outputs a function arranges."""

    def __init__(self, *widths, arrange=lambda hidden, heads: heads[0](hidden)):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU())
        self.heads = nn.ModuleList([nn.Linear(16, width) for width in widths])
        self.arrange = arrange

    def forward(self, *given):
        return self.arrange(self.body(given[0]), self.heads)


def watched(model, loss_fn, make, steps=STEPS, step=None):
    """Train from fresh weights and return the report: `make` gives inputs and targets."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.reset_parameters()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn, every=4) as doctor:
        for _ in range(steps):
            inputs, targets = make()
            given = inputs if isinstance(inputs, tuple) else (inputs,)
            optimizer.zero_grad()
            outputs = model(*given)
            loss = step(outputs, targets) if step else loss_fn(outputs, targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
        return doctor.report()


def with_labels():
    x = rows()
    return x, labels(x)


def every_head(hidden, heads):
    return tuple(head(hidden) for head in heads)


def in_a_dict(hidden, heads):
    return {"logits": heads[0](hidden), "hidden": hidden}


def first(outputs, targets):
    return F.cross_entropy(outputs[0], targets)


def named(outputs, targets):
    return F.cross_entropy(outputs["logits"], targets)


def multi_label():
    x = rows()
    return x, (x[:, :3] > 0).float()


def column():
    x = rows()
    return x, x[:, :1] - x[:, 1:2]


KNOWN = {
    "classes": (Net(CLASSES), F.cross_entropy, with_labels, "classes"),
    "a tuple": (Net(CLASSES, 2, arrange=every_head), first, with_labels, "classes"),
    "a dict": (Net(CLASSES, arrange=in_a_dict), named, with_labels, "classes"),
    "several labels": (Net(3), nn.BCEWithLogitsLoss(), multi_label, "binary"),
    "values": (Net(1), nn.MSELoss(), column, "values"),
    "a quantile": (Net(1), lambda o, t: (0.9 * (t - o)).maximum(0.1 * (o - t)).mean(), column,
                   "values"),
    "a weighted loss": (Net(CLASSES), nn.CrossEntropyLoss(weight=torch.rand(CLASSES) + 0.1),
                        with_labels, "classes"),
    "a flipped sign": (Net(CLASSES), lambda o, t: -F.cross_entropy(o, t), with_labels, "classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_tasks_that_the_loss_bears_out_are_known(name):
    model, loss_fn, make, task = KNOWN[name]
    report = watched(model, loss_fn, make)
    assert report.evidence.task == task
    assert report.troubles == []
    accused = [f.cause for f in report.findings if f.severity != "note"]
    assert accused == (["wrong_loss"] if "flipped" in name else [])


def embedding_pairs():
    x = rows()
    return x, labels(x) % 2


def contrastive(embedded, targets):
    distances = torch.cdist(embedded, embedded) + 1e-3
    same = targets[:, None] == targets
    return torch.where(same, distances.square(), (1 - distances).clamp_min(0).square()).mean()


def in_thirds(embedded, _):
    return F.triplet_margin_loss(*embedded[: len(embedded) // 3 * 3].chunk(3))


def with_advantages():
    x = rows()
    return x, (labels(x), x[:, 0])


def policy_gradient(logits, targets):
    actions, advantages = targets
    chosen = logits.log_softmax(dim=1).gather(1, actions[:, None]).squeeze(1)
    return -(chosen * advantages).mean()


def its_own_loss(hidden, heads):
    logits = heads[0](hidden)
    return {"loss": logits.square().mean(), "logits": logits}


def rebuilt():
    x = rows()
    return x, x


def bound(outputs, targets):
    mean, log_variance = outputs[1], outputs[2]
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return (outputs[0] - targets).square().sum() + kl


def without_targets():
    return rows(), None


def two_columns():
    x = rows()
    return x, x[:, :1]


def spread_out(outputs, targets):
    mean, log_variance = outputs.chunk(2, dim=1)
    return F.gaussian_nll_loss(mean, targets, log_variance.exp())


UNKNOWN = {
    "contrastive": (Net(CLASSES), contrastive, embedding_pairs),
    "contrastive, few dimensions": (Net(2), contrastive, with_labels),
    "triplets": (Net(8), in_thirds, with_labels),
    "triplets, few dimensions": (Net(2), in_thirds, with_labels),
    "a policy gradient": (Net(CLASSES), policy_gradient, with_advantages),
    "a loss of its own": (Net(CLASSES, arrange=its_own_loss), lambda o, _: o["loss"], with_labels),
    "a bound": (Net(FEATURES, 2, 2, arrange=every_head), bound, rebuilt),
    "no targets": (Net(2), lambda o, _: o.square().mean(), without_targets),
    "mean and variance": (Net(2), spread_out, two_columns),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_tasks_are_unknown_and_nothing_is_said_of_them(name):
    report = watched(*UNKNOWN[name], steps=45)
    assert report.evidence.task == "unknown"
    # What falls to half, and is lower beside a sample's own targets, learns, as the bound does. Of
    # losses without targets, and below zero, nothing can be told.
    assert report.healthy is not False
    assert name != "a bound" or report.healthy
    assert name not in ("a policy gradient", "no targets") or report.healthy is None
    assert report.troubles == []
    assert [f.cause for f in report.findings if f.severity != "note"] == []
    assert "loss_reduction" not in [f.cause for f in report.findings]


class GivenItsLabels(nn.Module):
    """Counts on by the symbol, and makes its own loss where it is given labels."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 9))

    def forward(self, x, labels=None):
        scores = self.scores(x)
        return scores if labels is None else (scores, F.cross_entropy(scores, labels))


def test_labels_that_the_model_is_given_too_are_no_reconstruction():
    torch.manual_seed(0)
    model = GivenItsLabels()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with Doctor(model, optimizer, lambda o, y: F.cross_entropy(o[0], y)) as doctor:
        for _ in range(20):
            x = torch.randint(9, (64,))
            y = (x + 1) % 9
            _, loss = model(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, y)
        assert not doctor.report().evidence.reconstruction


def test_targets_that_are_the_inputs_are_a_reconstruction():
    report = watched(Net(FEATURES), nn.MSELoss(), rebuilt)
    assert report.evidence.reconstruction
    assert report.evidence.task == "values"
    assert not watched(*KNOWN["values"][:3]).evidence.reconstruction


class Tokens(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.embedding, self.head = nn.Embedding(CLASSES, 8), nn.Linear(8, CLASSES)
        self.flat = flat

    def forward(self, tokens):
        logits = self.head(self.embedding(tokens))
        return logits.flatten(0, 1) if self.flat else logits


@pytest.mark.parametrize("flat", [True, False])
def test_tokens_have_several_labels_a_sample(flat):
    def make():
        text = torch.randint(CLASSES, (8, 11))
        return text[:, :-1], text[:, 1:].flatten() if flat else text[:, 1:]

    def loss_fn(outputs, targets):
        return F.cross_entropy(outputs.reshape(-1, CLASSES), targets.flatten())

    found = watched(Tokens(flat), loss_fn, make).evidence
    assert found.task == "classes"
    assert found.positions


def test_one_label_a_sample_is_no_position():
    assert not watched(*KNOWN["classes"][:3]).evidence.positions
    assert watched(*KNOWN["several labels"][:3]).evidence.positions


@pytest.mark.parametrize(
    ("own", "task"),
    [
        (F.cross_entropy, "classes"),  # the shapes' own loss is what the loop has stepped with
        (lambda o, t: F.cross_entropy(o, t) + 0.1 * o.square().mean(), "unknown"),
    ],
)
def test_without_a_loss_function_the_loss_must_be_the_tasks_own(own, task):
    report = watched(Net(CLASSES), None, with_labels, step=own)
    assert report.evidence.task == task


def adversaries(steps=STEPS, detached=True):
    """A generator and a discriminator, each with its doctor."""
    torch.manual_seed(0)
    maker, judge = Net(2), nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    moves, judges = (torch.optim.Adam(net.parameters(), lr=1e-3) for net in (maker, judge))
    bce = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(BATCH, 1), torch.zeros(BATCH, 1)

    def fools(fake, real):  # feature matching: its targets have the outputs' shape
        return F.mse_loss(judge(fake), judge(real).detach())

    with Doctor(judge, judges, bce) as first, Doctor(maker, moves, fools) as second:
        for _ in range(steps):
            z, real = rows(), torch.randn(BATCH, 2) + 1
            fake = maker(z)
            both = torch.cat([real, fake.detach() if detached else fake])
            judges.zero_grad()
            loss = bce(judge(both), torch.cat([ones, zeros]))
            loss.backward(retain_graph=True)
            judges.step()
            first.step(loss, both, torch.cat([ones, zeros]))
            moves.zero_grad()
            loss = fools(maker(z), real)
            loss.backward()
            moves.step()
            second.step(loss, z, real)
        return first.report(), second.report()


def test_adversaries_are_found_from_either_side():
    for report in adversaries():
        assert report.evidence.adversarial
        assert report.evidence.task == "unknown"
        assert report.troubles == []


def test_a_frozen_net_in_the_loss_is_no_adversary():
    frozen = nn.Sequential(nn.Linear(2, 8), nn.Tanh())  # its parameters ask for gradients, in vain
    report = watched(Net(2), lambda o, t: F.mse_loss(frozen(o), frozen(t)),
                     lambda: ((x := rows()), x[:, :2]))  # fmt: skip
    assert not report.evidence.adversarial
    assert report.evidence.task == "values"


def test_an_encoder_that_trains_along_is_no_adversary():
    """Its gradient flows through the watched model in every pass."""
    torch.manual_seed(0)
    encoder, model = nn.Linear(FEATURES, FEATURES), Net(CLASSES)
    optimizer = torch.optim.Adam([*encoder.parameters(), *model.parameters()], lr=1e-2)
    with Doctor(model, optimizer, F.cross_entropy) as doctor:
        for _ in range(STEPS):
            x, t = with_labels()
            optimizer.zero_grad()
            code = encoder(x)
            loss = F.cross_entropy(model(code), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, code.detach(), t)
        report = doctor.report()
    assert not report.evidence.adversarial
    assert report.evidence.task == "classes"


def test_gradients_of_the_inputs_are_no_adversary():
    """As an attack on the inputs takes them, or a penalty of their size."""
    torch.manual_seed(0)
    model = Net(CLASSES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, F.cross_entropy) as doctor:
        for _ in range(STEPS):
            x, t = with_labels()
            shift = torch.zeros_like(x, requires_grad=True)
            (slope,) = torch.autograd.grad(F.cross_entropy(model(x + shift), t), shift)
            attacked = x + 0.1 * slope.sign()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(attacked), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, attacked, t)
        report = doctor.report()
    assert not report.evidence.adversarial
    assert report.evidence.task == "classes"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_relation_that_explains_little_is_no_failure(seed):
    """R² of 0.05 is all there is, and the network finds it."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(12_000, 6, generator=generator)
    told = inputs[:, 0] - inputs[:, 1]
    targets = (told + 6 * torch.randn(12_000, generator=generator))[:, None]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with Doctor(model, optimizer, loss_fn=nn.functional.mse_loss) as doctor:
        for rows in torch.arange(10_000).split(100) * 3:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs[rows], targets[rows])
        doctor.validate(inputs[10_000:], targets[10_000:])
        report = doctor.report()
    with torch.no_grad():
        outputs = model(inputs[10_000:])[:, 0]
    assert torch.corrcoef(torch.stack([outputs, told[10_000:]]))[0, 1] > 0.7
    assert report.healthy is not False, str(report)
