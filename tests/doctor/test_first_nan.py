"""The first non-finite number of a training: where the finding says that it came from."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from debugnn import Doctor
from debugnn.doctor.observe import devices
from debugnn.random_state import set_random_state
from doctor.watched_programs import (
    CLASSES,
    FEATURES,
    NAN,
    Layer,
    batches,
    cross_entropy,
    mlp,
    sgd,
    sound,
    train_with_a_nan_at,
)


def origin_of(model, loss_fn=cross_entropy, spoil=None, steps=6, at=4, rows=None, save_to=None):
    """Train, with `spoil(model, inputs)` before step `at`; return the finding with the origin."""
    optimizer = sgd(model, lr=0.01)
    with Doctor(model, optimizer, loss_fn, every=5, save_to=save_to) as doctor:
        for step, (x, t) in enumerate(rows or batches(steps)):
            if spoil is not None and step == at:
                spoil(model, x)
            optimizer.zero_grad()
            loss = loss_fn(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, t)
        report = doctor.report()
    sound(report)
    assert report.findings[0].cause == "non_finite", str(report)
    return report.findings[0], doctor


@pytest.fixture
def seeded():
    torch.manual_seed(0)


@pytest.mark.usefixtures("seeded")
def test_a_nan_of_the_inputs_names_its_samples():
    def spoil(model, inputs):
        inputs[3, 2] = inputs[11, 0] = NAN

    finding, _ = origin_of(mlp(nn.Dropout(0.2)), spoil=spoil)
    assert (finding.evidence["where"], finding.layer) == ("input", None)
    assert (finding.step, finding.samples) == (4, [3, 11])
    assert finding.severity == "error"


class LastStep(nn.Module):
    """Reads sequences whose first axis is time."""

    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, inputs):
        return self.last(self.lstm(inputs)[0][-1])


@pytest.mark.usefixtures("seeded")
def test_a_nan_of_time_first_inputs_names_its_samples():
    rows = [(x.expand(5, -1, -1).clone(), t) for x, t in batches(6)]
    rows[4][0][2, 3, 1] = NAN
    finding, _ = origin_of(LastStep(), rows=rows)
    assert (finding.evidence["where"], finding.step, finding.samples) == ("input", 4, [3])


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, inputs, scale):
        return self.body(inputs) * scale


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(("spoilt", "name"), [(0, "0"), (1, "scale")])
def test_a_nan_is_named_of_an_input_by_position_and_of_one_by_keyword(spoilt, name):
    model = Scaled()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        for step, (x, t) in enumerate(batches(6)):
            scale = torch.ones(len(x), 1)
            if step == 4:
                (x, scale)[spoilt][7, 0] = NAN
            optimizer.zero_grad()
            loss = cross_entropy(model(x, scale=scale), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, targets=t)
    found = doctor.evidence.nonfinite
    assert (found.where, found.name, found.step, found.samples) == ("input", name, 4, [7])


@pytest.mark.usefixtures("seeded")
def test_a_nan_of_the_targets_names_its_samples():
    rows = [(x, x[:, :1].clone()) for x, _ in batches(6)]
    rows[2][1][5] = NAN
    finding, _ = origin_of(mlp(outputs=1), F.mse_loss, rows=rows)
    assert (finding.evidence["where"], finding.step, finding.samples) == ("target", 2, [5])


@pytest.mark.usefixtures("seeded")
def test_the_logarithm_of_zero_is_found_in_its_layer():
    model = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), Layer(torch.log), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight.abs_()
        model[0].bias.fill_(1.0)

    def spoil(model, inputs):
        inputs.copy_(inputs.abs())
        inputs[6] = -100.0

    rows = [(x.abs(), t) for x, t in batches(6)]
    finding, _ = origin_of(model, spoil=spoil, rows=rows)
    assert (finding.evidence["where"], finding.evidence["operation"]) == ("forward", "log")
    assert (finding.layer, finding.step, finding.samples) == ("2", 4, [6])


@pytest.mark.usefixtures("seeded")
def test_a_square_root_at_zero_is_found_by_its_gradient():
    model = nn.Sequential(
        nn.Linear(FEATURES, 8, bias=False),
        Layer(torch.square),
        Layer(torch.sqrt),
        nn.Linear(8, CLASSES),
    )

    def spoil(model, inputs):
        inputs[9] = 0

    finding, _ = origin_of(model, spoil=spoil)
    assert (finding.evidence["where"], finding.evidence["operation"]) == ("backward", "sqrt")
    assert (finding.layer, finding.step, finding.samples) == ("2", 4, [9])


@pytest.mark.usefixtures("seeded")
def test_a_nan_of_a_parameter_is_named():
    def spoil(model, inputs):
        with torch.no_grad():
            model[3].weight[0, 0] = NAN

    finding, _ = origin_of(mlp(nn.BatchNorm1d(12)), spoil=spoil)
    assert (finding.evidence["where"], finding.evidence["operation"]) == ("parameter", "3.weight")
    assert (finding.step, finding.samples) == (4, [])


@pytest.mark.usefixtures("seeded")
def test_an_operation_of_the_loss_function_is_named():
    def loss_fn(outputs, targets):
        return -torch.log(outputs.softmax(dim=1)[range(len(targets)), targets]).mean()

    def spoil(model, inputs):
        inputs[1] *= 1e6

    finding, _ = origin_of(mlp(), loss_fn, spoil)
    assert (finding.evidence["where"], finding.evidence["operation"]) == ("loss", "log")
    assert (finding.layer, finding.step) == (None, 4)


@pytest.mark.usefixtures("seeded")
def test_a_divergence_is_not_called_an_invalid_operation():
    model = mlp(outputs=1)
    optimizer = sgd(model, lr=50.0)
    with Doctor(model, optimizer, F.mse_loss) as doctor:
        for x, _ in batches(45):
            targets = x[:, :2].sum(dim=1, keepdim=True)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, targets)
        report = doctor.report()
    assert report.findings[0].cause == "lr_too_high", str(report)
    assert "non_finite" in [f.cause for f in report.findings[0].consequences]


@pytest.mark.parametrize("looked_at", [None, 6, 9])
def test_a_loss_that_was_read_too_late_is_not_blamed_on_the_weights(monkeypatch, looked_at):
    """On a GPU losses are read at a probe: by then the weights hold the NaN."""
    monkeypatch.setattr(devices, "waits", lambda tensor: True)
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        train_with_a_nan_at(doctor, model, optimizer, steps=30, at=5, looked_at=looked_at)
        report = doctor.report()
    (finding,) = (f for f in report.findings if f.cause == "non_finite")
    assert (finding.step, finding.layer, finding.override) == (5, None, None)
    assert doctor.replay is None


def test_the_loss_of_an_empty_batch_is_no_broken_training():
    model = mlp()
    optimizer = sgd(model)
    with Doctor(model, optimizer, cross_entropy) as doctor:
        for step, (x, t) in enumerate(batches(20)):
            if step == 6:
                x, t = x[:0], t[:0]
            if step == 12:
                x[3, 2] = NAN
            optimizer.zero_grad()
            loss = cross_entropy(model(x), t)
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, t)
        report = doctor.report()
    (finding,) = (f for f in report.findings if f.cause == "non_finite")
    assert (finding.step, finding.samples) == (12, [3])


@pytest.mark.usefixtures("seeded")
def test_the_saved_batch_and_weights_repeat_the_nan(tmp_path):
    class Risky(nn.Module):
        """A logarithm whose argument is zero only under some dropout masks."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(FEATURES, 1), nn.Linear(1, CLASSES)

        def forward(self, inputs):
            kept = F.dropout(torch.ones(len(inputs), 4), 0.3, self.training).sum(dim=1)
            return self.last(self.first(inputs) * kept.log()[:, None])

    model = Risky()
    finding, doctor = origin_of(model, steps=40, save_to=tmp_path / "new" / "folder")
    (path,) = (tmp_path / "new" / "folder").iterdir()
    assert str(path) in finding.summary
    replay = torch.load(path)  # tensors and plain containers only
    assert replay["step"] == finding.step
    fresh = Risky()
    fresh.load_state_dict(replay["model"])
    set_random_state(torch.device("cpu"), replay["random_state"])
    call = replay["call"]
    outputs = fresh(*call["args"], **call["kwargs"])
    loss = cross_entropy(outputs, replay["targets"])
    assert not math.isfinite(loss.item())
    bad = (~torch.isfinite(outputs)).any(dim=1).nonzero().flatten().tolist()
    assert finding.samples == bad
    assert finding.evidence["operation"] == "log"
    assert doctor.replay["step"] == finding.step


@pytest.mark.usefixtures("seeded")
def test_an_origin_is_told_where_its_batch_cannot_be_saved(tmp_path):
    (tmp_path / "file").write_text("no folder")

    def spoil(model, inputs):
        inputs[3, 2] = NAN

    finding, doctor = origin_of(mlp(), spoil=spoil, save_to=tmp_path / "file")
    assert (finding.step, finding.samples) == (4, [3])
    assert doctor.evidence.troubles


@pytest.mark.usefixtures("seeded")
def test_only_the_first_nonfinite_number_is_told():
    def spoil(model, inputs):
        inputs[0] = math.inf

    finding, doctor = origin_of(mlp(), spoil=spoil, steps=30)
    assert finding.step == 4
    assert doctor.evidence.nonfinite.step == 4
    assert len([f for f in doctor.report().findings if f.cause == "non_finite"]) == 1


@pytest.mark.parametrize(
    ("loss_of", "operation"),
    [
        (lambda o, t: (o - t).square().mean().sqrt(), "sqrt"),
        (lambda o, t: torch.linalg.vector_norm(o - t), None),  # its derivative at 0 is set to 0
        (lambda o, t: (o - t).abs().pow(0.5).mean(), "pow"),
        (lambda o, t: torch.where(o == t, 0.0, (o - t).abs().log()).sum(), "log"),
    ],
)
def test_a_gradient_without_bounds_of_a_finite_loss_is_said(loss_of, operation):
    """The loop computes the loss itself; in the fourth step the outputs are the targets."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer) as doctor:
        for step in range(60):
            inputs = torch.randn(8, 3)
            outputs = model(inputs)
            targets = outputs.detach() if step == 3 else inputs.sum(dim=1, keepdim=True)
            optimizer.zero_grad()
            loss = loss_of(outputs, targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs)
        report = doctor.report()
    if operation is None:
        assert report.evidence.nonfinite is None
        return
    found = report.evidence.nonfinite
    assert (found.step, found.where, found.name) == (3, "gradient", operation)
    assert (report.main_cause, report.main.confidence) == ("non_finite", "certain")
    assert "the step's loss is finite" in report.main.summary
