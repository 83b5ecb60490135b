"""Models of unusual make are looked into, and left as they are."""

import warnings
from collections.abc import MutableMapping

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from debugnn.doctor import Doctor

STEPS, CLASSES = 120, 3


class Checkpointed(nn.Module):
    """Computes its hidden layer again in the backward pass, in the older way."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        # That way needs an input with a gradient.
        hidden = checkpoint(self._hidden, x.detach().requires_grad_(), use_reentrant=True)
        return self.last(hidden)

    def _hidden(self, x):
        return self.first(x).relu()


class Sampled(nn.Module):
    """Treats each sample alone, in a transform that hides their axis."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, x):
        return torch.func.vmap(self.net)(x)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings(action="ignore"):
            self.first = torch.jit.script(nn.Sequential(nn.Linear(6, 32), nn.ReLU()))
        self.last = nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.last(self.first(x))


class Fields(MutableMapping):
    """A mapping whose length is the number of its samples."""

    def __init__(self, **fields):
        self.fields = fields

    def __getitem__(self, name):
        return self.fields[name]

    def __setitem__(self, name, value):
        self.fields[name] = value

    def __delitem__(self, name):
        del self.fields[name]

    def __iter__(self):
        return iter(self.fields)

    def __len__(self):
        return len(self.fields["x"])


class Writing(nn.Module):
    """Writes its outputs among its inputs, and returns both."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, fields):
        fields["scores"] = self.net(fields["x"])
        return fields


class Spelling(nn.Module):
    """Reads words."""

    def __init__(self):
        super().__init__()
        self.letters, self.head = nn.EmbeddingBag(26, 16), nn.Linear(16, CLASSES)

    def forward(self, words):
        letters = [ord(letter) - ord("a") for word in words for letter in word]
        ends = torch.tensor([len(word) for word in words]).cumsum(0)
        starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])
        return self.head(self.letters(torch.tensor(letters), starts))


class Encoded(nn.Module):
    """Leaves a frozen encoder out of its state dict, as one that is read from its own file."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 32).requires_grad_(False), nn.Linear(32, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x).relu())

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if not name.startswith("encoder")}


def lazy():
    return nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(CLASSES))


def spelt(rows):
    """Return words whose letters tell the class."""
    return ["abcdefghi"[3 * row.argmax() :][:3] for row in rows[:, :CLASSES].numpy()]


MODELS = {
    "checkpointed": (Checkpointed, lambda x: x),
    "sampled": (Sampled, lambda x: x),
    "scripted": (Scripted, lambda x: x),
    "lazy": (lazy, lambda x: x),
    "encoded": (Encoded, lambda x: x),
    "writing": (Writing, lambda x: Fields(x=x)),
    "spelling": (Spelling, spelt),
}


def loss_fn(outputs, targets):
    return F.cross_entropy(outputs["scores"] if isinstance(outputs, Fields) else outputs, targets)


def trained(name, watched):
    """Return a model's weights after a training, and the report where it was watched."""
    torch.manual_seed(0)
    build, given = MODELS[name]
    model, inputs = build(), torch.randn(600, 6)
    targets = inputs[:, :CLASSES].argmax(dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    doctor = Doctor(model, optimizer, loss_fn=loss_fn) if watched else None
    for step in range(STEPS):
        rows = torch.randint(500, (50,))
        batch = given(inputs[rows])
        optimizer.zero_grad()
        loss = loss_fn(model(batch), targets[rows])
        loss.backward()
        optimizer.step()
        if doctor is not None:
            doctor.step(loss, batch, targets[rows])
            if step % 40 == 39:
                doctor.validate(given(inputs[500:]), targets[500:])
    report = None if doctor is None else doctor.report()
    if doctor is not None:
        doctor.close()
    return [parameter.detach() for parameter in model.parameters()], report


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("error:The .grad attribute of a Tensor that is not a leaf")
def test_it_is_looked_into_and_left_as_it_is(name):
    plain, _ = trained(name, watched=False)
    weights, report = trained(name, watched=True)
    assert all(map(torch.equal, plain, weights))
    assert report.troubles == []
    assert report.healthy is True, report.reason
    assert report.evidence.outcome.validations


def test_what_is_checkpointed_in_the_older_way_is_so_again_afterwards():
    trained("checkpointed", watched=True)
    found = torch.ones(2, requires_grad=True)
    value = checkpoint(torch.sin, found, use_reentrant=True)
    assert "Checkpoint" in value.grad_fn.name()


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("maximize", [False, True])
def test_two_signs_that_cancel_are_none(sign, maximize):
    torch.manual_seed(0)
    inputs = torch.randn(500, 6)
    targets = inputs[:, :CLASSES].argmax(dim=1)
    model = nn.Linear(6, CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, maximize=maximize)

    def signed(outputs, wanted):
        return sign * F.cross_entropy(outputs, wanted)

    with Doctor(model, optimizer, loss_fn=signed) as doctor:
        for _ in range(100):
            rows = torch.randint(500, (50,))
            optimizer.zero_grad()
            loss = signed(model(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs[rows], targets[rows])
        report = doctor.report()
    if (sign > 0) is not maximize:
        assert report.healthy is True
    else:
        assert (report.main_cause, report.main.confidence) == ("wrong_loss", "certain")


class Emptying(nn.Module):
    """Takes its input out of the mapping that it is given."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, CLASSES))

    def forward(self, fields):
        return self.net(fields.pop("x"))


def test_items_that_a_model_takes_out_are_known():
    torch.manual_seed(0)
    model, inputs = Emptying(), torch.randn(600, 6)
    targets = inputs[:, :CLASSES].argmax(dim=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=loss_fn) as doctor:
        for _ in range(STEPS):
            rows = torch.randint(500, (50,))
            batch = {"x": inputs[rows]}
            optimizer.zero_grad()
            loss = loss_fn(model(batch), targets[rows])
            loss.backward()
            optimizer.step()
            doctor.step(loss, batch, targets[rows])
        report = doctor.report()
    assert report.troubles == []
    assert report.healthy is True


def watched_regression(model, inputs, targets, criterion, epochs=8, validation=None):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn=criterion) as doctor:
        for _ in range(epochs):
            for rows in torch.randperm(len(inputs)).split(32):
                optimizer.zero_grad()
                loss = criterion(model(inputs[rows]), targets[rows])
                loss.backward()
                optimizer.step()
                doctor.step(loss, inputs[rows], targets[rows])
            if validation is not None:
                doctor.validate(*validation)
        return doctor.report()


def test_counts_with_a_long_tail_are_compared_with_their_own_outputs():
    """Beside the exponential of large outputs their targets count for nothing."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(1024, 8, generator=generator)
    counts = torch.poisson((1.2 * inputs[:, :1] + 1).exp(), generator=generator)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    report = watched_regression(model, inputs, counts, nn.PoissonNLLLoss())
    assert counts.max() > 50
    assert "broadcast" not in report.details()


def test_a_narrow_code_is_not_compared_with_a_model_that_copies():
    inputs = torch.randn(1024, 8)
    code = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2), nn.Linear(2, 32), nn.ReLU())
    model = nn.Sequential(code, nn.Linear(32, 8))
    report = watched_regression(model, inputs, inputs, nn.MSELoss())
    assert report.healthy is not False, report.reason


def test_targets_with_gaps_are_not_changed():
    inputs = torch.randn(1024, 8)
    targets = inputs[:, :3].clone()
    targets[torch.rand(targets.shape) < 0.2] = torch.nan

    def masked(outputs, wanted):
        errors = (outputs - wanted.nan_to_num()).square()
        return (errors * ~wanted.isnan()).mean()

    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    assert "in place" not in watched_regression(model, inputs, targets, masked).details()


def test_an_empty_validation_is_none():
    inputs = torch.randn(512, 8)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    empty = torch.empty(0, 8), torch.empty(0, 1)
    targets = inputs[:, :1] * inputs[:, 1:2] + inputs[:, 2:3]
    report = watched_regression(model, inputs, targets, nn.MSELoss(), validation=empty)
    assert report.troubles == []
    assert report.healthy is True


def test_a_line_through_single_numbers_is_looked_at():
    inputs = torch.randn(512)

    class Line(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope, self.offset = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.slope * x + self.offset

    report = watched_regression(Line(), inputs, 3 * inputs + 1, nn.MSELoss(), epochs=30)
    assert report.troubles == []


def test_a_watched_model_can_be_traced():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters())
    with Doctor(model, optimizer, loss_fn=nn.MSELoss()), warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(model, torch.randn(4, 8))
    assert traced(torch.randn(2, 8)).shape == (2, 1)
