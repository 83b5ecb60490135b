"""Parameters that outputs depend on, and that get no gradient in the loop."""

import pytest
import torch
from torch import nn

from debugnn.doctor import Doctor

STEPS = 120


class Policy(nn.Module):
    """Gives the mean and the deviation of an action, (B, 1) each."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
        self.log_deviation = nn.Parameter(torch.zeros(1))

    def forward(self, states):
        means = self.mean(states)
        return means, self.log_deviation.exp().expand_as(means)


def policy_of(change):
    """Train a policy by its rewards; `change` is done to its means before the actions are drawn."""
    torch.manual_seed(0)
    policy = Policy()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    with Doctor(policy, optimizer) as doctor:
        for _ in range(STEPS):
            states = torch.randn(64, 4)
            means, deviations = policy(states)
            drawn = torch.distributions.Normal(change(means), deviations)
            actions = drawn.sample()
            rewards = -(actions - states[:, :1]).square()
            loss = -(drawn.log_prob(actions) * (rewards - rewards.mean())).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, states)
        return doctor.report()


def test_outputs_that_the_loop_detaches_are_named():
    report = policy_of(torch.Tensor.detach)
    assert (report.main_cause, report.main.confidence) == ("frozen_parameters", "certain")
    assert report.main.evidence["parameters"] == [
        "mean.0.weight", "mean.0.bias", "mean.2.weight", "mean.2.bias",
    ]  # fmt: skip
    assert report.main.evidence["share_of_values"] > 0.9


def test_outputs_that_are_used_are_not():
    assert "frozen_parameters" not in policy_of(lambda means: means).details()


class TwoHeads(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.first, self.second = nn.Linear(16, 3), nn.Linear(16, width)

    def forward(self, inputs):
        features = self.trunk(inputs)
        return self.first(features), self.second(features)


def heads_of(loss_of, width=3, updates_every=1):
    """Train two heads; `loss_of` takes the step, both outputs and the targets."""
    torch.manual_seed(0)
    model, inputs = TwoHeads(width), torch.randn(512, 6)
    targets = inputs[:, :3].argmax(dim=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Doctor(model, optimizer) as doctor:
        for step in range(STEPS):
            rows = torch.randint(512, (32,))
            loss = loss_of(step, *model(inputs[rows]), targets[rows])
            (loss / updates_every).backward()
            if step % updates_every == updates_every - 1:
                optimizer.step()
                optimizer.zero_grad()
            doctor.step(loss, inputs[rows], targets[rows])
        return doctor.report()


@pytest.mark.parametrize(
    ("loss_of", "settings"),
    [
        # A head that nothing asks for, as an auxiliary one in fine-tuning.
        (lambda step, one, two, wanted: nn.functional.cross_entropy(one, wanted), {}),
        # Two tasks that take turns, of which one head is most of the net.
        (
            lambda step, one, two, wanted: nn.functional.cross_entropy(
                (one, two)[step % 2], wanted
            ),
            {"width": 90},
        ),
        # No update at a step that is looked at closely.
        (
            lambda step, one, two, wanted: (
                nn.functional.cross_entropy(one, wanted) + nn.functional.cross_entropy(two, wanted)
            ),
            {"updates_every": 7},
        ),
    ],
)
def test_what_gets_its_gradient_elsewhere_is_not(loss_of, settings):
    assert "frozen_parameters" not in heads_of(loss_of, **settings).details()
