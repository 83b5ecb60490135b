"""Functions of a loss that are given what they are documented not to expect."""

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from handmade_evidence import evidence as sound_evidence
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import soft_margin_loss

from debugnn import Doctor
from debugnn.doctor.causes import diagnose
from debugnn.doctor.evidence import LossCall, load

SYMBOLS, FEATURES, BATCH, COLUMNS = 5, 6, 24, 9


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Forget what other tests of this process compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def hooks_of_all_modules():
    return len(torch.nn.modules.module._global_forward_hooks)


def watched(loss_of, outputs=8, handed=True, steps=45, given=lambda loss: loss):
    """Train a small net on `loss_of(outputs (B, 8), labels 0 or 1)`.

    Args:
        handed: give the doctor the loss function and the labels.
        given: what becomes of the loss before the doctor gets it.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU(), nn.Linear(24, outputs))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rule = torch.randn(FEATURES)
    with Doctor(model, optimizer, loss_of if handed else None) as doctor:
        for _ in range(steps):
            inputs = torch.randn(BATCH, FEATURES)
            labels = (inputs @ rule > 0).float()
            optimizer.zero_grad()
            loss = loss_of(model(inputs), labels)
            loss.backward()
            optimizer.step()
            doctor.step(given(loss), inputs, labels if handed else None)
            assert not hooks_of_all_modules()
        return doctor.report()


def told(report):
    """Return the findings about arguments that do not fit."""
    return [f for f in report.findings if f.cause == "wrong_loss" and "function" in f.evidence]


def embedded(outputs):
    return outputs[:, :4], outputs[:, 4:]


def distances(outputs):
    return (outputs[:, :4] - outputs[:, 4:]).square().sum(dim=1)


def signs(labels):
    return 2 * labels - 1


def some_left_out(labels):
    """1, -1, and 0 where a pair is to have no part in the loss."""
    return torch.where(torch.arange(len(labels)) % 3 == 0, 0.0, signs(labels))


def ctc(outputs, first, *, lengths=(2,) * BATCH, columns=COLUMNS, flat=False, axis=2):
    """The likelihood of two symbols, from `first` on, in nine columns."""
    logarithms = outputs.reshape(BATCH, COLUMNS, SYMBOLS).transpose(0, 1).log_softmax(axis)
    targets = torch.arange(2 * BATCH).reshape(BATCH, 2) % (SYMBOLS - 1) + first
    targets = F.pad(targets, (0, 2))
    if flat:
        targets = torch.cat([row[:n] for row, n in zip(targets, lengths, strict=True)])
    frames = torch.full((BATCH,), columns)
    return nn.CTCLoss(zero_infinity=True)(logarithms, targets, frames, torch.tensor(lengths))


def wanted(labels):
    """Probabilities of eight classes."""
    return F.one_hot(labels.long(), 8) * 0.8 + 0.2 / 8


def classes_of(labels):
    """The classes of each sample, closed by -1, of eight."""
    rows = torch.full((len(labels), 8), -1)
    rows[:, 0], rows[:, 1] = labels.long(), labels.long() + 4
    return rows


# what is computed; how many outputs it needs; what is said of it
CALLS = {
    "cosines of 0 and 1": (
        lambda o, y: nn.CosineEmbeddingLoss(margin=0.2)(*embedded(o), y),
        8,
        "cosine_embedding_loss expects targets of 1 and -1",
    ),
    "cosines and a penalty": (
        lambda o, y: nn.CosineEmbeddingLoss()(*embedded(o), y) + 1e-3 * o.square().mean(),
        8,
        "cosine_embedding_loss expects targets of 1 and -1",
    ),
    "cosines of 1 and 2": (
        lambda o, y: nn.CosineEmbeddingLoss()(*embedded(o), y + 1),
        8,
        "(2)",
    ),
    "cosines": (lambda o, y: nn.CosineEmbeddingLoss()(*embedded(o), signs(y)), 8, None),
    "cosines of some": (
        lambda o, y: nn.CosineEmbeddingLoss()(*embedded(o), some_left_out(y)),
        8,
        None,
    ),
    "cosines of one class": (
        lambda o, y: nn.CosineEmbeddingLoss()(*embedded(o), torch.ones_like(y)),
        8,
        None,
    ),
    "cosines that are weighed": (
        lambda o, y: (y * nn.CosineEmbeddingLoss(reduction="none")(*embedded(o), y)).mean(),
        8,
        None,
    ),
    "hinges of 0 and 1": (
        lambda o, y: nn.HingeEmbeddingLoss()(distances(o), y),
        8,
        "hinge_embedding_loss expects",
    ),
    "hinges": (lambda o, y: nn.HingeEmbeddingLoss()(distances(o), signs(y)), 8, None),
    "soft margins of 0 and 1": (
        lambda o, y: nn.SoftMarginLoss()(o[:, 0], y),
        8,
        "an output of target 0 has no gradient",
    ),
    "soft margins": (lambda o, y: nn.SoftMarginLoss()(o[:, 0], signs(y)), 8, None),
    "ctc from 0": (
        lambda o, y: ctc(o, 0),
        COLUMNS * SYMBOLS,
        "25 % of the labels that ctc_loss is given are 0",
    ),
    "ctc from 0, one row": (
        lambda o, y: ctc(o, 0, flat=True),
        COLUMNS * SYMBOLS,
        "the index of the blank",
    ),
    "ctc of padding": (
        lambda o, y: ctc(o, 1, lengths=(4,) * BATCH),
        COLUMNS * SYMBOLS,
        "50 % of the labels",
    ),
    "ctc": (lambda o, y: ctc(o, 1), COLUMNS * SYMBOLS, None),
    "ctc, a softmax over the columns": (
        lambda o, y: ctc(3 * o, 1, axis=0),
        COLUMNS * SYMBOLS,
        "ctc_loss takes logarithms of probabilities",
    ),
    "ctc of scores": (
        lambda o, y: nn.CTCLoss()(
            o.reshape(BATCH, COLUMNS, SYMBOLS).transpose(0, 1),
            torch.ones(BATCH, 2).long(), [COLUMNS] * BATCH, [2] * BATCH,
        ),
        COLUMNS * SYMBOLS,
        "logarithms of probabilities",
    ),
    "ctc, one row": (
        lambda o, y: ctc(o, 1, lengths=(1, 2) * (BATCH // 2), flat=True),
        COLUMNS * SYMBOLS,
        None,
    ),
    "ctc in too few columns": (
        lambda o, y: ctc(o, 1, columns=1),
        COLUMNS * SYMBOLS,
        "none of",
    ),
    "divergence of scores": (
        lambda o, y: nn.KLDivLoss(reduction="batchmean")(o, wanted(y)),
        8,
        "kl_div takes logarithms of probabilities",
    ),
    "divergence of probabilities": (
        lambda o, y: nn.KLDivLoss(reduction="sum", log_target=True)(o.softmax(1), wanted(y).log()),
        8,
        "kl_div takes logarithms of probabilities",
    ),
    "divergence": (
        lambda o, y: nn.KLDivLoss(reduction="batchmean")(o.log_softmax(1), wanted(y)),
        8,
        None,
    ),
    "divergence over another axis": (
        lambda o, y: nn.KLDivLoss(reduction="sum")(o.log_softmax(1).T, wanted(y).T),
        8,
        None,
    ),
    "divergence of two likelihoods": (
        lambda o, y: nn.KLDivLoss()(F.logsigmoid(o), torch.rand(len(y), 8)),
        8,
        None,
    ),
    "margins of 0 and 1 for each class": (
        lambda o, y: nn.MultiLabelMarginLoss()(o, (wanted(y) > 0.5).long()),
        8,
        "multilabel_margin_loss expects the indices",
    ),
    "margins of classes": (lambda o, y: nn.MultiLabelMarginLoss()(o, classes_of(y)), 8, None),
}  # fmt: skip


@pytest.mark.parametrize("handed", [True, False], ids=["handed", "within the loop"])
@pytest.mark.parametrize("name", CALLS)
def test_arguments_that_a_function_does_not_expect(name, handed):
    loss_of, outputs, text = CALLS[name]
    report = watched(loss_of, outputs, handed)
    found = told(report)
    assert len(found) == (text is not None)
    if text is not None:
        assert text in found[0].summary
        assert found[0].confidence == "certain"
        assert found[0].severity != "note"
        assert found[0].line.rpartition(":")[0].endswith("test_loss_calls.py")
        assert report.main_cause == "wrong_loss"
    assert not any("loss cannot be looked at" in trouble for trouble in report.troubles)


@pytest.mark.parametrize("loss_of", [soft_margin_loss, F.soft_margin_loss], ids=["bare", "dotted"])
def test_a_function_is_seen_within_a_loss_function(loss_of):
    report = watched(lambda o, y: loss_of(o[:, 0], y))
    assert "soft_margin_loss" in told(report)[0].summary


def test_functions_that_the_loop_calls_itself_are_left_alone():
    report = watched(lambda o, y: F.soft_margin_loss(o[:, 0], y), handed=False)
    assert report.evidence.loss.calls == []


def test_a_pair_of_target_0_may_be_a_tie():
    """Where pairs are in order already, the targets are 1, or 0 where both are equal."""
    report = watched(lambda o, y: F.margin_ranking_loss(o[:, 0], o[:, 1], y, margin=0.1))
    (found,) = told(report)
    assert found.severity == "note"


def test_calls_that_are_no_part_of_the_loss_are_left_alone():
    def loss_of(outputs, labels):
        nn.SoftMarginLoss()(outputs[:, 0], labels)  # a number to be shown
        return nn.SoftMarginLoss()(outputs[:, 0], signs(labels))

    report = watched(loss_of, handed=False)
    assert told(report) == []
    (call,) = report.evidence.loss.calls
    assert (call.calls, call.unsigned) == (5, 0)  # one at each probe of the layers


def test_a_loss_without_a_graph_tells_nothing():
    report = watched(
        lambda o, y: nn.SoftMarginLoss()(o[:, 0], y), handed=False, given=lambda loss: loss.item()
    )
    assert report.evidence.loss.calls == []


def test_a_call_of_an_accumulated_and_scaled_loss_counts():
    report = watched(
        lambda o, y: nn.SoftMarginLoss()(o[:, 0], y),
        handed=False,
        given=lambda loss: (loss / 2 + loss / 2) * 4,
    )
    assert len(told(report)) == 1


def test_hooks_go_when_two_doctors_watch_and_a_step_fails():
    models = [nn.Linear(3, 2), nn.Linear(3, 2)]
    doctors = [Doctor(m, torch.optim.SGD(m.parameters(), lr=0.1)) for m in models]
    inputs = torch.randn(8, 3)
    outputs = [model(inputs) for model in models]
    assert hooks_of_all_modules() == 2
    losses = [nn.SoftMarginLoss()(out, torch.ones_like(out)) for out in outputs]
    losses[0].backward()
    doctors[0].step(losses[0], inputs)
    assert hooks_of_all_modules() == 1
    doctors[1].close()
    assert hooks_of_all_modules() == 0
    (call,) = doctors[0].evidence.loss.calls
    assert (call.function, call.calls, call.targets) == ("soft_margin_loss", 1, 16)
    assert doctors[1].evidence.loss.calls == []
    doctors[0].close()


@pytest.mark.slow
def test_nothing_is_compiled_anew():
    """The doctor has no loss function, and the loop's is compiled."""

    def graphs(watch):
        torch._dynamo.reset()
        counters.clear()
        loss_of = torch.compile(
            lambda out, targets: F.kl_div(out.log_softmax(1), targets, reduction="batchmean"),
            backend="eager",
        )
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        doctor = Doctor(model, optimizer) if watch else None
        for _ in range(25):
            inputs = torch.randn(16, 4)
            optimizer.zero_grad()
            loss = loss_of(model(inputs), torch.rand(16, 3).softmax(1))
            loss.backward()
            optimizer.step()
            if doctor is not None:
                doctor.step(loss, inputs)
        return dict(counters["stats"])

    plain = graphs(watch=False)
    assert plain["unique_graphs"] == 1
    assert graphs(watch=True) == plain


RATE = {
    "function": "poisson_nll_loss", "targets": 400, "inputs": 400, "target_sum": 100.0,
    "logarithms": True, "of_outputs": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"targets": 200, "unsigned": 100, "others": [0.0]}, True),
        ({"targets": 200, "unsigned": 3, "others": [0.0]}, False),
        ({"targets": 200, "unsigned": 100, "negative": 1, "others": [0.0]}, False),
        ({"targets": 200, "unsigned": 100, "others": [0.0], "reduction": "none"}, False),
        ({"function": "ctc_loss", "labels": 400, "blanks": 40, "blank": 0}, True),
        ({"function": "ctc_loss", "labels": 400, "blanks": 4, "blank": 0}, False),
        ({"function": "ctc_loss", "labels": 99, "sequences": 30, "too_long": 30}, True),
        ({"function": "ctc_loss", "labels": 99, "sequences": 30, "too_long": 29}, False),
        ({"function": "ctc_loss", "sequences": 30, "log_mass": 0.4}, True),
        ({"function": "ctc_loss", "sequences": 30, "log_mass": 0.01}, False),
        ({"function": "kl_div", "log_mass": 2.3}, True),
        ({"function": "kl_div", "log_mass": 800.0}, True),
        ({"function": "kl_div", "log_mass": 0.01}, False),
        ({"function": "kl_div", "log_mass": -3.0}, False),
        ({"function": "multilabel_margin_loss", "targets": 60, "repeating": 60}, True),
        ({"function": "multilabel_margin_loss", "targets": 60, "repeating": 20}, False),
        (RATE | {"not_above_zero": 0}, True),
        (RATE | {"not_above_zero": 3}, False),
        (RATE | {"not_above_zero": 0, "of_outputs": False}, False),
        (RATE | {"not_above_zero": 0, "target_sum": 800.0}, False),
        (RATE | {"not_above_zero": 0, "logarithms": False}, False),
        (RATE | {"below_zero": 90, "logarithms": False}, True),
    ],
)
def test_what_is_said_of_a_call(facts, said):
    given = sound_evidence()
    given.loss.calls = [
        LossCall(**{"function": "cosine_embedding_loss", "reduction": "mean", **facts})
    ]
    report = diagnose(load(json.loads(json.dumps(asdict(given)))), 0)
    assert report.main_cause == ("wrong_loss" if said else "healthy")


RATES = {
    "a softplus for logarithms": (nn.Softplus, -2.0, True, "wrong_loss"),
    "a softplus for rates": (nn.Softplus, -2.0, False, "healthy"),
    "logarithms": (nn.Identity, -2.0, True, "healthy"),
    # Rates above 1 are within its reach, and it learns.
    "a softplus for logarithms of large rates": (nn.Softplus, 3.0, True, "healthy"),
}


@pytest.mark.parametrize("handed", [True, False], ids=["handed", "within the loop"])
@pytest.mark.parametrize("name", RATES)
def test_rates_that_a_loss_takes_for_logarithms(name, handed):
    last, level, log_input, cause = RATES[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 1), last())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    loss_fn = nn.PoissonNLLLoss(log_input=log_input)
    with Doctor(model, optimizer, loss_fn if handed else None) as doctor:
        for _ in range(100):
            inputs = torch.randn(96, 2)
            targets = torch.poisson((inputs[:, :1] + level).exp().clamp(max=80))
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            loss.backward()
            optimizer.step()
            doctor.step(loss, inputs, targets)
        report = doctor.report()
    accused = cause if cause == "wrong_loss" else None
    assert (report.main.cause if report.healthy is False else None) == accused, str(report)
    seen = any("for logarithms of rates" in f.summary for f in report.findings)
    assert seen == (last is nn.Softplus and log_input)


def test_a_loss_of_the_logarithm_of_a_rate_is_sound():
    report = watched(lambda o, y: F.poisson_nll_loss(F.softplus(o[:, 0]).log(), y))
    assert told(report) == []
    assert not report.evidence.loss.calls[0].of_outputs


def test_rates_below_zero_have_no_logarithm():
    below = watched(lambda o, y: F.poisson_nll_loss(o[:, 0], y, log_input=False))
    (finding,) = [f for f in below.findings if f.cause == "wrong_loss"]
    assert finding.confidence == "certain"
    assert "have no logarithm" in finding.summary
