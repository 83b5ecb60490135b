"""What is said at the step of the first NaN, and what a spike of the loss leaves."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn.doctor import Doctor, NonFiniteError

STEPS, ROWS = 12, 16


class Normalised(nn.Module):
    """Divides by the deviation of each column: 0 of a constant one."""

    def forward(self, x):
        return (x - x.mean(0)) / x.std(0)


DIVISION = f"{__file__}:{Normalised.forward.__code__.co_firstlineno + 1}"


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.head = Normalised(), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(x))


def batches(spoilt=None):
    """Return batches whose third column is constant in the spoilt one."""
    torch.manual_seed(0)
    found = [(torch.randn(ROWS, 8), torch.randint(4, (ROWS,))) for _ in range(STEPS)]
    if spoilt is not None:
        found[spoilt][0][:, 2] = 1.0
    return found


def train(model, given, optimizer=None, loss_fn=F.cross_entropy, **options):
    """Train under a doctor; return it and the step at which it raised, None where it did not."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    doctor = Doctor(model, optimizer, loss_fn, **options)
    for step, (inputs, targets) in enumerate(given):
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        try:
            doctor.step(loss, inputs, targets)
        except NonFiniteError as error:
            return doctor, step, error
    return doctor, None, None


def test_it_raises_at_the_step_with_the_operation_its_shapes_and_its_line():
    _, step, error = train(Net(), batches(spoilt=7), on_nonfinite="raise")
    assert step == error.found.step == 7
    found = error.found
    assert (found.where, found.name, found.layer, found.kind) == ("forward", "div", "norm", "nan")
    assert found.inputs == ["float32 (16, 8)", "float32 (8,)"]
    assert found.outputs == ["float32 (16, 8)"]
    assert found.samples == list(range(ROWS))
    assert DIVISION.endswith(found.line)
    for told in (
        "step 7",
        "div",
        "norm",
        found.line,
        "float32 (16, 8)",
        "samples 0, 1",
        "divisor is 0",
    ):
        assert told in str(error)


def test_it_warns_once_and_goes_on():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        doctor, step, _ = train(Net(), batches(spoilt=7), on_nonfinite="warn")
    told = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(told) == 1
    assert told[0].startswith("step 7: NaN first appeared here")
    assert (step, doctor.evidence.loop.steps) == (None, STEPS)


def test_without_the_request_it_is_left_to_the_report():
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        doctor, step, _ = train(Net(), batches(spoilt=7))
    finding = doctor.report().findings[0]
    assert (step, finding.cause, finding.step) == (None, "non_finite", 7)
    assert DIVISION.endswith(finding.line)
    assert "called at" in str(doctor.report())


@pytest.mark.parametrize("request_", ["raise", "warn", None])
def test_a_sound_training_hears_nothing_and_stays_as_it_is(request_):
    torch.manual_seed(1)
    watched, plain = Net(), Net()
    plain.load_state_dict(watched.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        _, step, _ = train(watched, batches(), on_nonfinite=request_)
    assert step is None
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    for inputs, targets in batches():
        optimizer.zero_grad()
        F.cross_entropy(plain(inputs), targets).backward()
        optimizer.step()
    for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_that_an_update_spoils_are_met_at_its_step():
    """Adam's eps of 1e-8 is 0 in half precision."""
    torch.manual_seed(0)
    model = nn.Linear(8, 4).half()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
    given = [(inputs.half(), targets) for inputs, targets in batches()]
    given[0][0][:, 3] = 0  # no gradient for a column: 0 / 0
    _, step, error = train(model, given, optimizer, on_nonfinite="raise")
    assert step == error.found.step == 0
    assert (error.found.where, error.found.name) == ("update", "weight")
    assert error.found.outputs == ["float16 (4, 8)"]
    assert "eps=1e-4" in str(error)


def test_a_gradient_that_is_not_finite_is_met_before_the_loss_is():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(8, 1)

        def forward(self, x):
            return (self.head(x) * 0).sqrt()

    def loss_fn(outputs, targets):
        return outputs.mean()

    torch.manual_seed(0)
    _, step, error = train(Root(), batches(), loss_fn=loss_fn, on_nonfinite="raise")
    assert step == 0
    assert (error.found.where, error.found.name) == ("backward", "sqrt")


def test_a_closures_gradients_are_looked_at_after_it_has_run():
    torch.manual_seed(0)
    model, given = Net(), batches()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    doctor = Doctor(model, optimizer, F.cross_entropy)
    losses = []
    for inputs, targets in given:

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure))
        doctor.step(losses[-1], inputs, targets)
    loop = doctor.report().evidence.loop
    assert (loop.empty_steps, loop.optimizer_steps) == (0, STEPS)
    assert all(near_new < 1e-6 for _, _, near_new in loop.residues)
    assert doctor.evidence.probes[0].layers["head.weight"].gradient > 0


@pytest.mark.parametrize(
    ("option", "value"), [("on_nonfinite", "stop"), ("memory", "none"), ("memory", None)]
)
def test_an_unknown_value_is_refused(option, value):
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=option):
        Doctor(model, torch.optim.SGD(model.parameters(), lr=0.1), **{option: value})


# --- loss spikes --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spiked():
    """A regression with one absurd target: the doctor, and the steps and places of its sample."""
    torch.manual_seed(0)
    inputs = torch.randn(256, 8)
    targets = (inputs @ torch.randn(8, 1)).squeeze(1)
    targets[17] = 60.0
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    doctor, places = Doctor(model, optimizer, nn.MSELoss()), {}
    for _ in range(12):
        for rows in torch.randperm(256).split(16):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs[rows]), targets[rows])
            loss.backward()
            optimizer.step()
            if 17 in rows.tolist():
                places[doctor.evidence.loop.steps] = rows.tolist().index(17)
            doctor.step(loss, inputs[rows], targets[rows])
    return doctor, places


def test_the_largest_jumps_name_the_sample_and_when_it_came_again(spiked):
    doctor, places = spiked
    report = doctor.report()
    jumps = report.evidence.outcome.jumps
    early = list(places)[:8]  # after eight epochs the samples are known
    assert max(jump.step for jump in jumps) > early[-1]
    for jump in jumps:
        assert jump.samples[0] == places[jump.step]
        assert jump.again == [step for step in early if step != jump.step]
    notes = [f for f in report.findings if "this step's loss" in f.summary]
    assert {note.step for note in notes} <= set(places)
    assert notes
    assert all(note.severity == "note" for note in notes)


def test_an_even_training_has_no_spike():
    doctor, _, _ = train(Net(), batches() * 5)
    report = doctor.report()
    assert not [f for f in report.findings if "this step's loss" in f.summary]
