"""The sign of a policy's loss that a loop computes itself."""

import weakref

import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from debugnn import Doctor

ACTIONS, STATES, STEPS = 3, 64, 60


def states_of(generator, count=STATES):
    return torch.randn(count, ACTIONS, generator=generator)


def paid(states, chosen):
    """Return 1 where the action of the largest entry was chosen, else 0."""
    return (states.argmax(dim=1) == chosen).float()


def network(*last):
    return nn.Sequential(nn.Linear(ACTIONS, 32), nn.Tanh(), nn.Linear(32, ACTIONS), *last)


def advantages_of_a_batch(sign):
    """Logits, and an entropy beside the policy's term."""
    generator, model = torch.Generator().manual_seed(0), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer) as doctor:
        for _ in range(STEPS):
            x = states_of(generator)
            logits = model(x)
            a = Categorical(logits=logits.detach()).sample()
            rewards = paid(x, a)
            adv = (rewards - rewards.mean()) / (rewards.std() + 1e-8)
            policy = Categorical(logits=logits)
            loss = sign * (policy.log_prob(a) * adv).mean() - 0.01 * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x)
        return doctor.report()


class Agent:
    """Takes an action at a time; probabilities, and lists that are kept in the object."""

    def __init__(self, sign):
        self.sign = sign
        self.model = network(nn.Softmax(dim=1))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.doctor = Doctor(self.model, self.optimizer)
        self.saved_log_probs, self.rewards = [], []

    def act(self, state):
        policy = Categorical(self.model(state))
        action = policy.sample()
        self.saved_log_probs.append(policy.log_prob(action))
        self.rewards.append(paid(state, action).item())

    def finish_episode(self):
        returns = torch.tensor(self.rewards)
        returns = returns - returns.mean()
        terms = [self.sign * p * g for p, g in zip(self.saved_log_probs, returns, strict=True)]
        loss = torch.cat(terms).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.saved_log_probs.clear()
        self.rewards.clear()
        return loss


def episodes_of_an_agent(sign):
    generator, agent = torch.Generator().manual_seed(0), Agent(sign)
    with agent.doctor as doctor:
        for _ in range(STEPS):
            for state in states_of(generator, 16):
                agent.act(state[None])
            doctor.step(agent.finish_episode())
        return doctor.report()


def gathered_logarithms(sign):
    """Logarithms of probabilities, with a head for values beside them."""
    generator = torch.Generator().manual_seed(0)
    body, model = nn.Linear(ACTIONS, 32), nn.ModuleDict()
    model["body"], model["pi"], model["v"] = body, nn.Linear(32, ACTIONS), nn.Linear(32, 1)

    class ActorCritic(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            hidden = self.parts["body"](x).tanh()
            return self.parts["pi"](hidden).log_softmax(dim=1), self.parts["v"](hidden)[:, 0]

    net = ActorCritic()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    with Doctor(net, optimizer) as doctor:
        for _ in range(STEPS):
            x = states_of(generator)
            log_probs, value = net(x)
            actions = torch.multinomial(log_probs.detach().exp(), 1)[:, 0]
            returns = paid(x, actions)
            advantage = returns - value
            chosen = log_probs.gather(1, actions[:, None])[:, 0]
            loss = sign * (chosen * advantage.detach()).mean() + advantage.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        return doctor.report()


def real_actions(sign):
    """Means of a normal distribution, whose deviations are a parameter."""
    generator, model = torch.Generator().manual_seed(0), network()
    model.log_std = nn.Parameter(torch.tensor([-0.7, -0.2, -1.0]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer) as doctor:
        for _ in range(STEPS):
            obs = states_of(generator)
            policy = torch.distributions.Normal(model(obs), model.log_std.exp())
            act = policy.sample()
            reward = -(act - obs.flip(1)).square().sum(dim=1)
            advs = (reward - reward.mean()) / reward.std()
            loss = sign * (policy.log_prob(act).sum(dim=1) * advs).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, obs)
        return doctor.report()


LOOPS = [advantages_of_a_batch, episodes_of_an_agent, gathered_logarithms, real_actions]


@pytest.mark.parametrize("loop", LOOPS)
def test_rewarded_actions_that_become_rarer_are_named(loop):
    torch.manual_seed(0)
    report = loop(+1.0)
    assert report.healthy is False
    assert report.main_cause == "wrong_loss"
    assert "rarer" in report.main.summary


@pytest.mark.parametrize("loop", LOOPS)
def test_rewarded_actions_that_become_likelier_are_not(loop):
    torch.manual_seed(0)
    report = loop(-1.0)
    assert not report.findings
    assert not report.troubles
    assert report.evidence.loss.policy.rises is False


def lengths_that_are_to_be_short(model, optimizer, doctor, x):
    logits = model(x)
    a = Categorical(logits=logits.detach()).sample()
    length = 1 - paid(x, a)
    advantage = length - length.mean()
    loss = (Categorical(logits=logits).log_prob(a) * advantage).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    doctor.step(loss, x)


def way_length(states, chosen):
    return 1 - paid(states, chosen)


def lengths_that_a_function_measures(model, optimizer, doctor, x):
    logits = model(x)
    a = Categorical(logits=logits.detach()).sample()
    advantage = way_length(x, a) - 0.5
    loss = (Categorical(logits=logits).log_prob(a) * advantage).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    doctor.step(loss, x)


@pytest.mark.parametrize("step", [lengths_that_are_to_be_short, lengths_that_a_function_measures])
def test_lengths_that_are_lowered_are_no_rewards(step):
    torch.manual_seed(0)
    generator, model = torch.Generator().manual_seed(0), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer) as doctor:
        for _ in range(STEPS):
            step(model, optimizer, doctor, states_of(generator))
        assert not doctor.report().findings


def test_rewards_that_are_all_the_same_tell_nothing():
    """Values that are too high make every advantage negative, and their actions rarer by right."""
    torch.manual_seed(0)
    generator, model = torch.Generator().manual_seed(0), network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with Doctor(model, optimizer) as doctor:
        for _ in range(STEPS):
            x = states_of(generator)
            logits = model(x)
            a = Categorical(logits=logits.detach()).sample()
            rewards = torch.ones(STATES)
            value = 2.0 + 0.1 * torch.rand(STATES, generator=generator)
            loss = -(Categorical(logits=logits).log_prob(a) * (rewards - value)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x)
        assert not doctor.report().findings


class Thing:
    """An object that can be referenced weakly."""


def test_other_loops_variables_are_not_looked_at():
    """Python keeps what it has shown of a function's variables."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    with Doctor(model, optimizer) as doctor:
        thing = Thing()
        for _ in range(4):  # the last step is one of a probe
            watched = weakref.ref(thing)
            loss = model(torch.randn(STATES, ACTIONS)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        thing = None
        assert watched() is None, thing
