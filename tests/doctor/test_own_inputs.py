"""Outputs that copy the inputs that are their targets."""

import pytest
import torch
from handmade_evidence import evidence, found_by
from torch import nn

from debugnn import Doctor
from debugnn.doctor.causes.label_leak import AT_FLOOR, ITS_OWN, ITS_OWN_CAUSAL, PROBES
from debugnn.doctor.evidence import OwnInputFacts
from debugnn.doctor.observe.buffer import Batch
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.own_inputs import own_input_facts
from debugnn.doctor.observe.task import Task
from debugnn.faults import train
from debugnn.faults.cases import case
from debugnn.faults.label_leak import centre_unmasked
from debugnn.faults.nets import MaskedConvolution, MaskedMlp, mlp
from debugnn.faults.sound import sound

VALUES = Task("values")
FEATURES = 12


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def facts_of(model, inputs, targets=None, task=VALUES):
    targets = inputs if targets is None else targets
    return own_input_facts(model, Batch(Call((inputs,)), targets), Layout(), task)


def grey_values(outputs):
    """Images, and their classes of four grey values, with a net of scores of these."""
    torch.manual_seed(0)
    images = numbers(8, 1, 6, 6)
    model = nn.Sequential(MaskedConvolution(1, 8, centre=outputs), nn.ReLU(), nn.Conv2d(8, 4, 1))
    classes = (images.squeeze(1) * 2).floor().clamp(-2, 1).long() + 2
    return facts_of(model, images, classes, Task("classes", 4, 1))


@pytest.mark.parametrize("itself", [False, True])
def test_a_masked_net_sees_what_came_before_and_its_own_input_where_it_may(itself):
    torch.manual_seed(0)
    facts = facts_of(MaskedMlp(FEATURES, 48, itself=itself), numbers(16, FEATURES))
    assert facts.same
    assert facts.causal
    assert facts.probes >= FEATURES - 1
    assert (facts.share > 0) == itself


@pytest.mark.parametrize("centre", [False, True])
def test_grey_values_are_a_function_of_the_inputs(centre):
    facts = grey_values(centre)
    assert not facts.same
    assert facts.causal
    assert (facts.share > 0) == centre


def test_a_copy_takes_all_of_the_gradient_and_a_code_a_share_of_it():
    inputs = numbers(64, FEATURES)
    copy = facts_of(nn.Identity(), inputs)
    assert (copy.share, copy.causal, copy.noisy) == (1.0, False, False)
    base, _ = torch.linalg.qr(numbers(FEATURES, FEATURES // 2))
    narrow = nn.Linear(FEATURES, FEATURES, bias=False)
    with torch.no_grad():
        narrow.weight.copy_(base @ base.T)
    facts = facts_of(narrow, inputs)
    assert facts.share == pytest.approx(0.5, abs=0.2)
    assert not facts.causal
    assert facts_of(nn.Dropout(0.2), inputs).noisy


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (numbers(8, 6), numbers(8, 6).roll(1, 0)),  # other samples'
        (numbers(8, 6), numbers(8, 6).abs()),  # no rising function
        (numbers(8, 6), numbers(8, 6) + 0.1 * numbers(8, 6).flip(0)),  # with noise
        (numbers(8, 6), numbers(8, 1)),
        (numbers(8, 1), numbers(8, 1)),
        (torch.arange(48).reshape(8, 6), torch.arange(48.0).reshape(8, 6)),
        (numbers(8, 6), torch.zeros(8, 6)),
    ],
)
def test_other_targets_are_no_inputs(inputs, targets):
    assert facts_of(mlp(6, 8, 6), inputs, targets) is None


def test_the_observer_leaves_the_models_mode():
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)).eval()
    facts_of(model, numbers(8, 6))
    assert not any(module.training for module in model.modules())


def copied(**changes):
    given = evidence(0.99)
    given.task, given.reconstruction = "values", True
    given.outcome.first_loss, given.outcome.last_loss = 1.0, 0.001
    given.outcome.own_loss.relative = 0.001
    facts = {"same": True, "causal": True, "noisy": False, "probes": 24, "share": 0.97}
    given.data.own_inputs = OwnInputFacts(**(facts | changes))
    return given


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({}, "error"),
        ({"same": False}, "error"),
        ({"noisy": True}, "error"),
        ({"causal": False}, "note"),
        ({"causal": False, "same": False}, None),
        ({"causal": False, "noisy": True}, None),
        ({"share": ITS_OWN - 0.01, "causal": False}, None),
        ({"share": ITS_OWN_CAUSAL}, "error"),
        ({"share": ITS_OWN_CAUSAL - 0.01}, None),
        ({"probes": PROBES - 1}, None),
        ({"share": None}, None),
    ],
)
def test_what_a_copied_input_rests_on(changes, severity):
    found = found_by("label_leak", copied(**changes))
    assert [f.severity for f in found] == ([severity] if severity else [])


def test_a_loss_that_is_above_its_floor_accuses_nobody():
    for change in (
        lambda e: setattr(e.outcome, "last_loss", AT_FLOOR + 0.01),
        lambda e: setattr(e.outcome.own_loss, "relative", AT_FLOOR + 0.01),
        lambda e: setattr(e.outcome.own_loss, "relative", None),
        lambda e: setattr(e.loss, "other_outputs", True),
    ):
        given = copied()
        change(given)
        assert found_by("label_leak", given) == []


@pytest.mark.slow
def test_pixels_that_see_themselves_are_a_leak():
    for setup, main in (
        (sound("pixel_by_pixel", 0), "healthy"),
        (case("pixel_by_pixel", centre_unmasked).build(0), "label_leak"),
    ):
        with train(setup, 0, Doctor) as doctor:
            assert doctor.report().main_cause == main
