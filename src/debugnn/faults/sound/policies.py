"""Policies of real actions that are trained by a policy gradient, and the critic of one."""

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from torch.optim import Adam

from debugnn.faults.nets import mlp
from debugnn.faults.program import Build, MakeObserver, Observer, Setup, begin

_STEPS = 240
_BATCH = 128


class Helm(nn.Module):
    """Means (B, 2) of the actions in some states (B, 4), and their deviations (2,)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mean = mlp(4, hidden, 2)
        self.log_std = nn.Parameter(torch.full((2,), -0.7))

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(states), self.log_std.exp()


def log_likelihood(outputs: tuple[Tensor, Tensor], actions: Tensor) -> Tensor:
    """Return the logarithm of the density of actions (B, 2), as (B,)."""
    return Independent(Normal(*outputs), 1).log_prob(actions)


def policy_loss(outputs: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """The policy gradient's (Williams 1992) of actions and their advantages."""
    actions, advantages = targets
    return -(log_likelihood(outputs, actions) * advantages).mean()


def _rewards(states: Tensor, actions: Tensor) -> Tensor:
    """Return minus the squared distance to the action that a state asks for, (B,)."""
    asked = torch.stack([states[:, 0] * states[:, 1], states[:, 2].sin() - states[:, 3]], dim=1)
    return -(actions - asked).square().sum(dim=1)


def _loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
    model, optimizer, observer = begin(setup, make_observer)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(_STEPS):
        states = torch.randn(_BATCH, 4, generator=draws)
        with torch.no_grad():
            mean, deviation = model(states)
            actions = mean + deviation * torch.randn(_BATCH, 2, generator=draws)
        rewards = _rewards(states, actions)
        targets = actions, (rewards - rewards.mean()) / rewards.std()
        if setup.change_batch:
            targets = setup.change_batch(*targets)
        optimizer.zero_grad()
        loss = setup.loss_fn(model(states), targets)
        loss.backward()
        optimizer.step()
        observer.step(loss, states, targets)
    states = setup.val[0]
    with torch.no_grad():
        setup.scores.append(_rewards(states, model(states)[0]).mean().item())
    return observer


def steering(seed: int) -> Setup:
    """Two rudders that learn which angles are rewarded, from single actions."""
    states = torch.randn(400, 4, generator=torch.Generator().manual_seed(seed))
    unused = states, torch.zeros(len(states))
    return Setup(Helm(32), policy_loss, partial(Adam, lr=1e-2), unused, unused, loop=_loop)


def _value(states: Tensor, step: int) -> Tensor:
    """Return what states (B, 4) are worth to a policy that has been getting better, (B, 1)."""
    level = -8 * math.exp(-step / 60) - 0.5
    return level * (1 + 0.05 * states[:, :1].sin() * states[:, 1:2])


def _loop_of_critic(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
    model, optimizer, observer = begin(setup, make_observer)
    draws = torch.Generator().manual_seed(seed)
    for step in range(_STEPS):
        states = torch.randn(_BATCH, 4, generator=draws)
        noise = torch.randn(_BATCH, 1, generator=draws)
        returns = _value(states, step) + 0.1 * noise
        optimizer.zero_grad()
        loss = setup.loss_fn(model(states), returns)
        loss.backward()
        optimizer.step()
        observer.step(loss, states, returns)
    states = setup.val[0]
    with torch.no_grad():
        error = (model(states) - _value(states, _STEPS)).square().mean()
    setup.scores.append(1 - error.item() / _value(states, 0).square().mean().item())
    return observer


def critic(seed: int) -> Setup:
    """The critic of a policy that gets better: what it learns first is how much better."""
    states = torch.randn(400, 4, generator=torch.Generator().manual_seed(seed))
    unused = states, torch.zeros(len(states), 1)
    model = mlp(4, 48, 48, 1, activation=nn.Tanh)
    return Setup(
        model, nn.SmoothL1Loss(), partial(Adam, lr=4e-3), unused, unused, loop=_loop_of_critic
    )


def _loop_of_adverts(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
    """The loop computes its loss itself, which it shows as a number alone."""
    optimizer = setup.make_optimizer(setup.model.parameters())
    observer = make_observer(setup.model, optimizer, None)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(_STEPS):
        visitors = torch.randn(_BATCH, 6, generator=draws)
        scores, value = setup.model(visitors)
        shown = torch.multinomial(scores.detach().softmax(dim=1), 1, generator=draws).squeeze(1)
        clicks = (torch.rand(_BATCH, generator=draws) < _interest(visitors, shown)).float()
        advantages = clicks - value.detach()
        chosen = scores.log_softmax(dim=1).gather(1, shown[:, None]).squeeze(1)
        policy = -setup.loss_sign * (chosen * advantages).mean()
        loss = policy + 0.5 * (value - clicks).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        observer.step(loss, visitors)
    visitors = setup.val[0]
    with torch.no_grad():
        best = setup.model(visitors)[0].argmax(dim=1)
    setup.scores.append(_interest(visitors, best).mean().item())
    return observer


def _interest(visitors: Tensor, adverts: Tensor) -> Tensor:
    """Return how likely visitors (B, 6) are to click adverts, whose numbers are (B,)."""
    return (3 * visitors.gather(1, adverts[:, None]).squeeze(1)).sigmoid()


class Adverts(nn.Module):
    """Scores (B, 4) of the adverts that some visitors (B, 6) may be shown, and their value (B,)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, hidden), nn.Tanh())
        self.scores, self.value = nn.Linear(hidden, 4), nn.Linear(hidden, 1)

    def forward(self, visitors: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(visitors)
        return self.scores(hidden), self.value(hidden).squeeze(1)


def adverts(seed: int) -> Setup:
    """Which of four adverts a visitor clicks, learnt from those that were shown."""
    visitors = torch.randn(400, 6, generator=torch.Generator().manual_seed(seed))
    unused = visitors, torch.zeros(len(visitors))
    make_optimizer = partial(Adam, lr=1e-2)
    return Setup(Adverts(32), nn.MSELoss(), make_optimizer, unused, unused, loop=_loop_of_adverts)


TUNING: dict[str, Build] = {"steering": steering, "critic": critic, "adverts": adverts}

HELD_OUT: dict[str, Build] = {}
