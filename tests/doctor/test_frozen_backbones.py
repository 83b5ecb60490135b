"""A frozen part whose trained weights were never loaded is told from one that is trained."""

import copy

import pytest
import torch
from handmade_evidence import evidence, found_by, outcomes
from torch import nn

from debugnn import Doctor
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.weights import forward_order, weight_facts
from debugnn.doctor.trials import UNCHANGED, UNFROZEN


def backbone():
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU())


def classes(count, seed):
    """Points whose class is that of the nearest of ten centres, (count, 20) and (count,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, 20, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(10, (count,), generator=generator)
    return centres[labels] + 0.4 * torch.randn(count, 20, generator=generator), labels


def fit(model, parameters, epochs, each=lambda: None, watched=False):
    x, y = classes(800, seed=1)
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    doctor = Doctor(model, optimizer, loss_fn=nn.functional.cross_entropy) if watched else None
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(32):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            each()
            if doctor is not None:
                doctor.step(loss, x[batch], y[batch])
    if doctor is None:
        return None
    with doctor:
        return doctor.report()


@pytest.mark.slow
def test_a_frozen_part_with_random_weights_is_named_and_a_trained_one_is_not():
    torch.manual_seed(0)
    trained = nn.Sequential(backbone(), nn.Linear(4, 10))
    fit(trained, trained.parameters(), epochs=6)
    for body, random in ((backbone(), True), (trained[0], False)):
        model = nn.Sequential(body.requires_grad_(False), nn.Linear(4, 10))
        report = fit(model, model[1].parameters(), epochs=4, watched=True)
        named = "frozen_parameters" in [finding.cause for finding in report.findings]
        assert named == random, str(report)
        if random:
            assert "0.0.weight, 0.2.weight" in report.findings[0].summary


class WithTeacher(nn.Module):
    """A net beside a frozen copy of itself, whose output is added to its own."""

    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(backbone(), nn.Linear(4, 10))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, x):
        return self.student(x) + 0.1 * self.teacher(x)

    @torch.no_grad()
    def follow(self):
        for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            own.lerp_(other, 0.1)


def test_a_teacher_that_follows_is_not_frozen():
    torch.manual_seed(0)
    model = WithTeacher()
    report = fit(model, model.student.parameters(), epochs=2, each=model.follow, watched=True)
    teachers = [w for w in report.evidence.weights if w.name.startswith("teacher")]
    assert [(w.frozen, w.as_drawn) for w in teachers[:2]] == [(False, True)] * 2


def test_weights_of_a_new_layer_are_known():
    torch.manual_seed(0)
    new = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Flatten(),
                        nn.Linear(4 * 36, 10))  # fmt: skip
    old = copy.deepcopy(new)
    for parameter in old.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    drawn = copy.deepcopy(new)
    for layer in (drawn[0], drawn[1], drawn[3]):
        nn.init.xavier_normal_(layer.weight)

    def known(model):
        call = Call((torch.randn(2, 3, 6, 6),))
        return [w.as_drawn for w in weight_facts(model, forward_order(model, call), {})]

    assert (known(new), known(old), known(drawn)) == ([True] * 3, [False] * 3, [False] * 3)


def test_random_layers_are_named_where_training_them_learns_more():
    given = evidence(0.6, simple=0.6)
    for weight in given.weights[:2]:
        weight.frozen = weight.as_drawn = True
    assert found_by("frozen_parameters", given) == []
    given.trials = outcomes({UNCHANGED: 0.9, UNFROZEN: 0.85})
    assert found_by("frozen_parameters", given) == []
    given.trials = outcomes({UNCHANGED: 0.9, UNFROZEN: 0.3})
    (finding,) = found_by("frozen_parameters", given)
    assert (finding.severity, finding.confidence) == ("warning", "shown")
    given.weights[0].as_drawn = given.weights[1].as_drawn = False
    assert found_by("frozen_parameters", given) == []
