"""A wrong sign in the loss of a generator or a policy, whose task is unknown."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical, Normal

from debugnn import Doctor
from debugnn.doctor.observe.loss_function.policy import policy_facts
from debugnn.doctor.observe.loss_function.variable_names import variables
from doctor.watched_programs import undisturbed

BATCH = 16
BCE = nn.BCEWithLogitsLoss()


# --- generators -----------------------------------------------------------------------------------


def squared(scores, labels):
    return F.mse_loss(scores, labels)


def wasserstein(scores, labels):
    return (scores * (1 - 2 * labels)).mean()  # a real sample's label is 1


def hinge(scores, labels):
    return F.relu(1 + scores * (1 - 2 * labels)).mean()


def plain_output(sign):
    return lambda critic, fake: -sign * critic(fake).mean()


def wanted(label, loss_fn=BCE):
    return lambda critic, fake: loss_fn(critic(fake), torch.full((len(fake), 1), float(label)))


def saturating(sign):
    return lambda critic, fake: -sign * F.softplus(critic(fake)).mean()


def pulled_to_data(label):
    return lambda critic, fake: wanted(label)(critic, fake) + 100 * (fake - 1).abs().mean()


def same_features(critic, fake):
    return (critic[:2](fake).mean(dim=0) - critic[:2](fake + 1).mean(dim=0).detach()).norm()


def adversaries(aim, loss_fn, swapped=False, dropout=0.0, smooth=1.0, single=False):
    """Train a generator against a discriminator, each with a doctor; return the generator's report.

    Args:
        aim: the generator's loss, of the discriminator and the samples.
        loss_fn: the discriminator's.
        swapped: made samples have the label 1.
        smooth: label of real samples, at most.
        single: the discriminator's doctor is given made samples alone.
    """
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    critic = nn.Sequential(
        nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Dropout(dropout), nn.Linear(16, 1)
    )
    moves = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (generator, critic)]

    def own_loss(fake, _):
        return aim(critic, fake)

    judging = Doctor(critic, moves[1], loss_fn, every=1)
    making = Doctor(generator, moves[0], own_loss, every=1)
    with judging, making:
        for _ in range(4):
            fake = generator(torch.randn(BATCH, 4))
            both = torch.cat([torch.randn(BATCH, 2) + 1, fake.detach()])
            labels = torch.cat([smooth * torch.ones(BATCH, 1), torch.zeros(BATCH, 1)])
            labels = 1 - labels if swapped else labels
            seen = (both[BATCH:], labels[BATCH:]) if single else (both, labels)
            moves[1].zero_grad()
            loss = loss_fn(critic(seen[0]), seen[1])
            loss.backward()
            moves[1].step()
            judging.step(loss, *seen)
            z = torch.randn(BATCH, 4)
            moves[0].zero_grad()
            loss = own_loss(generator(z), None)
            loss.backward()
            moves[0].step()
            making.step(loss, z, torch.ones(BATCH, 1))
        assert making.report().troubles == []
        return making.report()


@pytest.mark.parametrize(
    ("aim", "loss_fn", "given"),
    [
        (wanted(0), BCE, {}),
        (wanted(0), BCE, {"smooth": 0.9}),
        (wanted(0), BCE, {"dropout": 0.3}),
        (wanted(1), BCE, {"swapped": True}),
        (saturating(-1), BCE, {}),
        (plain_output(-1), wasserstein, {}),
        (plain_output(-1), hinge, {}),
        (wanted(0, squared), squared, {}),
    ],
)
def test_a_generator_that_wants_to_be_told_from_data_is_named(aim, loss_fn, given):
    (finding, *_) = adversaries(aim, loss_fn, **given).findings
    assert (finding.cause, finding.confidence) == ("wrong_loss", "certain")
    assert finding.evidence["probes"] == 4
    assert finding.evidence["lowest_cosine"] > 0.9


@pytest.mark.parametrize(
    ("aim", "loss_fn", "given"),
    [
        (wanted(1), BCE, {}),
        (wanted(0), BCE, {"swapped": True}),
        (wanted(1), BCE, {"dropout": 0.3}),
        (saturating(1), BCE, {}),
        (plain_output(1), wasserstein, {}),
        (plain_output(1), hinge, {}),
        (wanted(1, squared), squared, {}),
        (pulled_to_data(1), BCE, {}),
        (same_features, BCE, {}),
        (wanted(0), BCE, {"single": True}),  # what its opponent is to tell it from is not known
    ],
)
def test_a_generator_that_may_be_sound_is_not_accused(aim, loss_fn, given):
    report = adversaries(aim, loss_fn, **given)
    assert [f.cause for f in report.findings if f.severity != "note"] == []


# --- policies -------------------------------------------------------------------------------------


def log_probability(scores, actions):
    return Categorical(logits=scores).log_prob(actions)


def reinforce(sign):
    def loss(scores, targets):
        actions, returns = targets
        entropy = Categorical(logits=scores).entropy().mean()
        return -sign * (log_probability(scores, actions) * returns).mean() - 0.01 * entropy

    return loss


def normalised(sign):
    def loss(scores, targets):
        returns = targets["returns"]
        advantage = (returns - returns.mean()) / (returns.std() + 1e-6)
        return -sign * (log_probability(scores, targets["actions"]) * advantage).mean()

    return loss


def weighted_cross_entropy(sign):
    def loss(scores, targets):
        return sign * (F.cross_entropy(scores, targets[0], reduction="none") * targets[1]).mean()

    return loss


def masked(sign):
    def loss(scores, targets):
        actions, advantage, mask = targets
        return -sign * (log_probability(scores, actions) * advantage * mask).mean()

    return loss


def actor_critic(sign):
    def loss(outputs, targets):
        (scores, values), (actions, returns) = outputs, targets
        advantage = (returns - values).detach()
        policy = -sign * (log_probability(scores, actions) * advantage).mean()
        return policy + 0.5 * F.mse_loss(values, returns)

    return loss


def of_probabilities(sign):
    def loss(probabilities, targets):
        actions, returns = targets
        chosen = probabilities.gather(-1, actions[..., None]).squeeze(-1)
        return -sign * (chosen.log() * returns).mean()

    return loss


def clipped(sign, least=torch.min):
    def loss(scores, targets):
        actions, before, advantage = targets
        ratio = (log_probability(scores, actions) - before).exp()
        return -sign * least(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    return loss


SCORES = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(1))
ACTIONS = torch.arange(BATCH) % 4
RETURNS = torch.randn(BATCH, generator=torch.Generator().manual_seed(2))
MASK = (torch.arange(BATCH) % 3 > 0).float()
BEFORE = log_probability(SCORES, ACTIONS)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (reinforce, SCORES, (ACTIONS, RETURNS)),
        (reinforce, SCORES, (ACTIONS, RETURNS - 5)),
        (reinforce, SCORES.view(4, 4, 4), (ACTIONS.view(4, 4), RETURNS.view(4, 4))),
        (normalised, SCORES, {"actions": ACTIONS, "returns": RETURNS}),
        (weighted_cross_entropy, SCORES, (ACTIONS, RETURNS)),
        (masked, SCORES, (ACTIONS, RETURNS, MASK)),
        (actor_critic, (SCORES, RETURNS / 2), (ACTIONS, RETURNS)),
        (of_probabilities, SCORES.softmax(dim=1), (ACTIONS, RETURNS)),
        (clipped, SCORES, (ACTIONS, BEFORE, RETURNS)),
    ],
)
def test_whether_a_loss_makes_rewarded_actions_rarer(loss, outputs, targets, sign):
    facts = policy_facts(loss(sign), outputs, targets)
    assert facts.rises is (sign < 0)
    # A clip that holds the policy back from costs takes the larger of both products.
    assert bool(facts.held_back) is (loss is clipped and sign < 0)


def test_a_clip_for_costs_is_sound_and_one_that_lets_the_policy_run_is_not():
    targets = ACTIONS, BEFORE, RETURNS
    costs = policy_facts(clipped(-1, torch.max), SCORES, targets)
    assert (costs.rises, costs.held_back) == (True, 0.0)
    running = policy_facts(clipped(1, torch.max), SCORES, targets)
    assert not running.rises
    assert running.held_back > 0.5


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (lambda o, t: F.cross_entropy(o, t[0]) + F.mse_loss(o[:, 0], t[1]), (ACTIONS, RETURNS)),
        (masked(-1), (ACTIONS, -RETURNS.abs(), MASK)),  # either of the two may be the weights
        (reinforce(-1), (ACTIONS.float(), RETURNS)),
    ],
)
def test_of_other_losses_nothing_is_known(loss, targets):
    assert policy_facts(loss, SCORES, targets) is None


MEANS = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(3))
MOVES = MEANS + torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(4))
WIDTHS = torch.tensor([0.5, 2.0])
PROBABLE = (
    torch.randn(BATCH, generator=torch.Generator().manual_seed(5)) - 4
)  # all below the values


def of_normal(means, moves):
    return Normal(means, WIDTHS[: means.shape[1]] if means.dim() > 1 else 0.7).log_prob(moves)


def in_space(sign):
    def loss(means, targets):
        moves, returns = targets
        return -sign * (of_normal(means, moves).sum(dim=-1) * returns).mean()

    return loss


def on_a_line(sign):
    def loss(means, targets):
        moves, returns = targets
        return -sign * (of_normal(means, moves) * returns).mean()

    return loss


def squashed(sign):
    def loss(means, targets):
        moves, returns = targets
        return -sign * (of_normal(means.tanh(), moves.tanh()).sum(dim=-1) * returns).mean()

    return loss


def clipped_and_valued(sign):
    """A ratio of probabilities, upside down where the sign is negative."""

    def loss(outputs, targets):
        (means, values), (moves, before, advantages, returns) = outputs, targets
        ratio = (sign * (of_normal(means, moves) - before)).exp()
        gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()
        return -gain + 0.5 * F.mse_loss(values, returns)

    return loss


BEFORE_ON_A_LINE = of_normal(MEANS[:, 0], MOVES[:, 0])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (in_space, MEANS, (MOVES, RETURNS)),
        (in_space, MEANS, (MOVES, RETURNS - 5)),
        (on_a_line, MEANS[:, 0], (MOVES[:, 0], RETURNS)),
        (on_a_line, MEANS[:, :1], (MOVES[:, :1], RETURNS[:, None])),
        (squashed, MEANS, (MOVES, RETURNS)),
        (
            clipped_and_valued,
            (MEANS[:, 0], RETURNS / 2),
            (MOVES[:, 0], BEFORE_ON_A_LINE, RETURNS, PROBABLE),
        ),
        (
            clipped_and_valued,
            (MEANS[:, 0], RETURNS / 2),
            (MOVES[:, 0], BEFORE_ON_A_LINE + PROBABLE / 90, RETURNS, RETURNS.flip(0)),
        ),
    ],
)
def test_whether_a_loss_makes_rewarded_movements_rarer(loss, outputs, targets, sign):
    assert policy_facts(loss(sign), outputs, targets).rises is (sign < 0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: F.mse_loss(outputs, targets[0]),
        lambda outputs, targets: (outputs - targets[0]).abs().mean() + targets[1].mean(),
        lambda outputs, targets: F.mse_loss(outputs, targets[0] + targets[1]),
        lambda outputs, targets: (targets[0] * outputs * targets[1]).mean(),
        # A mask of what is left out, and a choice by the sign, draw to actions and push from none.
        lambda outputs, targets: ((1 - targets[1]) * (outputs - targets[0]).square()).mean(),
        lambda outputs, targets: ((targets[1] < 0) * (outputs - targets[0]).square()).mean(),
    ],
)
@pytest.mark.parametrize("other", [PROBABLE, -PROBABLE, RETURNS])
def test_values_are_fitted_by_no_policy(loss, other):
    """What looks like an action and its weight is none: at the output itself the gradient stays."""
    assert policy_facts(loss, RETURNS / 9, (RETURNS, other)) is None


def of_numbers(scores, targets):
    actions, numbers = targets
    return (log_probability(scores, actions) * numbers).mean()


def of_costs(scores, targets):
    actions, costs = targets
    advantage = costs - costs.mean()
    return (log_probability(scores, actions) * advantage).mean()


class RewardLoss(nn.Module):
    def forward(self, scores, targets):
        actions, td_returns = targets
        return (log_probability(scores, actions) * td_returns).mean()


def by_another_function(scores, targets):
    return reinforce(-1)(scores, targets)


@pytest.mark.parametrize(
    ("loss", "called"),
    [
        (reinforce(-1), ["returns"]),
        (actor_critic(-1), ["advantage", "returns"]),
        (RewardLoss(), ["td_returns"]),
        (partial(by_another_function), ["returns"]),
        (of_numbers, []),
        (of_costs, []),
    ],
)
def test_the_code_of_a_loss_tells_rewards_from_costs(loss, called):
    outputs = (SCORES, RETURNS / 2) if "values" in variables(loss) else SCORES
    facts = policy_facts(loss, outputs, (ACTIONS, RETURNS))
    assert (facts.rises, facts.called) == (True, called)


def ratio_to_itself(scores, targets):
    actions, advantage = targets
    ratio = (log_probability(scores, actions) - log_probability(scores, actions)).exp()
    return -(ratio * advantage).mean() - 0.01 * Categorical(logits=scores).entropy().mean()


def detached(scores, targets):
    actions, advantage = targets
    return -(log_probability(scores.detach(), actions) * advantage).mean() + 0 * scores.sum()


def cloned_and_valued(outputs, targets):
    """Actions are imitated, and returns are predicted beside them."""
    scores, values = outputs
    actions, returns = targets
    return F.cross_entropy(scores, actions) + F.mse_loss(values, returns)


@pytest.mark.parametrize(
    ("loss", "outputs", "deaf"),
    [
        (ratio_to_itself, SCORES, True),
        (detached, SCORES, True),
        (reinforce(1), SCORES, False),
        (cloned_and_valued, (SCORES, RETURNS / 2), False),
    ],
)
def test_a_gradient_that_knows_neither_actions_nor_advantages_is_told(loss, outputs, deaf):
    facts = policy_facts(loss, outputs, (ACTIONS, RETURNS))
    assert (facts is not None and facts.deaf) is deaf


@pytest.mark.parametrize(
    ("loss", "severity"),
    [
        (clipped(-1), "warning"),
        (ratio_to_itself, "warning"),
        (reinforce(-1), "warning"),
        (of_numbers, "note"),
        (of_costs, "note"),
        (reinforce(1), None),
    ],
)
def test_a_clip_and_the_words_of_the_loss_tell_the_wrong_sign_from_a_cost(loss, severity):
    torch.manual_seed(0)
    policy = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    with Doctor(policy, optimizer, loss) as doctor:
        for _ in range(3):
            states = torch.randn(BATCH, 3)
            before = log_probability(policy(states).detach(), ACTIONS)
            returns = torch.randn(BATCH)
            three = loss.__qualname__.startswith("clipped")
            targets = (ACTIONS, before, returns) if three else (ACTIONS, returns)
            optimizer.zero_grad()
            value = loss(policy(states), targets)
            value.backward()
            optimizer.step()
            doctor.step(value, states, targets)
        report = doctor.report()
    assert report.troubles == []
    assert report.healthy is (False if severity == "warning" else None)
    told = [f.severity for f in report.findings if f.cause == "wrong_loss"]
    assert told == ([] if severity is None else [severity])


# --- actors ---------------------------------------------------------------------------------------


class Twin(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = network(6, 1), network(6, 1)

    def forward(self, states, actions):
        both = torch.cat([states, actions], dim=1)
        return self.first(both), self.second(both)


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = network(6, 1)

    def forward(self, both):
        return self.layers(both).squeeze(1)


class CostCritic(Flat):
    pass


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs):
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.ReLU(), nn.Linear(16, outputs))


ONE_INPUT = partial(network, 6, 1)


def joined_inputs(critic, states, actions):
    return critic(torch.cat([states, actions], dim=1))


def lower_of_twins(critic, states, actions):
    return torch.min(*critic(states, actions))


def first_of_twins(critic, states, actions):
    return critic(states, actions)[0]


def of_q_net(q_net, states, actions):
    return q_net(torch.cat([states, actions], dim=1))


def of_learned_cost(cost_model, states, actions):
    return cost_model(torch.cat([states, actions], dim=1))


def of_critic_of_costs(critic, states, actions):
    total_cost = critic(torch.cat([states, actions], dim=1))
    return total_cost.squeeze(1)


def of_score(score, states, actions):
    return score(torch.cat([states, actions], dim=1))


def reversed_on_the_way(critic, states, actions):
    return critic(torch.cat([states, Reversal.apply(actions)], dim=1))


def up_to_a_goal(critic, states, actions):
    return (joined_inputs(critic, states, actions) + 20).square()


def of_an_adversary(critic, states, disturbance):
    adversary = disturbance
    return critic(torch.cat([states, adversary], dim=1))


def of_both(loss_fn):
    return lambda outputs, targets: sum(loss_fn(each, targets) for each in outputs)


def actor_and_critic(
    judge,
    sign,
    kind=ONE_INPUT,
    fit=F.mse_loss,
    given=True,
    maximize=False,
    values=lambda actions: (1 - actions**2).sum(dim=1, keepdim=True),
    extra=None,
    by_hand=False,
    steps=12,
    wait=1,
    doctor=Doctor,
):
    """Train a critic and an actor, each with a doctor; return both networks and both doctors.

    Args:
        judge: what the critic says of states and actions.
        sign: of that in the actor's loss.
        kind: makes the critic; a network of one joined input, with outputs (N, 1).
        fit: the critic's loss.
        given: the actor's doctor has its loss.
        values: what the critic is fitted to.
        extra: another term of the critic's loss, of the critic, states and the actor's actions.
        by_hand: the actor is moved along derivatives by the actions.
        wait: steps of the critic between two of the actor.
    """
    torch.manual_seed(0)
    critic, actor = kind(), network(4, 2)
    moves = torch.optim.Adam(critic.parameters(), lr=1e-2)
    acts = torch.optim.Adam(actor.parameters(), lr=1e-3, maximize=maximize)

    def aim(actions, states):
        return sign * judge(critic, states, actions).mean()

    judging = doctor(critic, moves, fit)
    acting = doctor(actor, acts, aim if given else None)
    for step in range(steps):
        states, actions = torch.randn(BATCH, 4), torch.randn(BATCH, 2)
        rewards = values(actions)
        twin = isinstance(critic, Twin)
        both = (states, actions) if twin else torch.cat([states, actions], dim=1)
        outputs = critic(*both) if twin else critic(both)
        targets = rewards if twin else rewards.reshape(outputs.shape)
        loss = fit(outputs, targets)
        if extra is not None:
            loss = loss + extra(critic, states, actor(states))
        moves.zero_grad()
        loss.backward()
        moves.step()
        judging.step(loss, both, targets)
        if step % wait:
            continue
        acts.zero_grad()
        actions = actor(states)
        if by_hand:
            value = judge(critic, states, actions).sum()
            (slope,) = torch.autograd.grad(value, actions)
            actions.backward(sign * slope / BATCH)
            loss = sign * value.detach() / BATCH
        else:
            loss = aim(actions, states)
            loss.backward()
        acts.step()
        acting.step(loss, states, states)
    return actor, critic, acting, judging


@pytest.mark.parametrize(
    ("judge", "given"),
    [
        (joined_inputs, {}),
        (joined_inputs, {"given": False, "wait": 2}),
        (joined_inputs, {"kind": Flat}),
        (lower_of_twins, {"kind": Twin, "fit": of_both(F.mse_loss)}),
        (first_of_twins, {"kind": Twin, "fit": of_both(F.smooth_l1_loss)}),
        (of_q_net, {"fit": F.huber_loss}),
        # Costs that count as such are above zero.
        (of_critic_of_costs, {"values": lambda actions: -(actions**2).sum(dim=1)}),
    ],
)
def test_an_actor_that_lowers_its_critics_values_is_named(judge, given):
    *_, acting, judging = actor_and_critic(judge, 1, **given)
    with judging, acting:
        report, critics = acting.report(), judging.report()
    assert report.troubles == critics.troubles == []
    (finding, *_) = report.findings
    assert (finding.cause, finding.confidence) == ("wrong_loss", "certain")
    assert finding.evidence["called"] in (["critic"], ["q_net"])
    assert finding.evidence["looks"] >= 3
    assert "test_wrong_aim.py:" in finding.line
    assert critics.healthy is not False
    *_, acting, judging = actor_and_critic(judge, -1, **given)
    with judging, acting:
        report = acting.report()
    assert report.healthy is not False
    assert report.evidence.loss.judged[0].seen >= 3


def conservative(critic, states, actions):
    return joined_inputs(critic, states, actions).mean()


@pytest.mark.parametrize(
    ("judge", "sign", "given"),
    [
        (of_learned_cost, 1, {}),
        (joined_inputs, 1, {"kind": CostCritic}),
        (of_critic_of_costs, 1, {"values": lambda actions: (actions**2).sum(dim=1)}),
        (of_score, 1, {}),  # no word tells whether it is to be high
        (of_an_adversary, 1, {}),
        (up_to_a_goal, 1, {}),
        (joined_inputs, 1, {"maximize": True}),
        (reversed_on_the_way, 1, {}),
        (joined_inputs, -1, {"extra": conservative}),
        (joined_inputs, -1, {"by_hand": True}),
        # Least squares with the labels of made and other samples, and of two kinds.
        (joined_inputs, 1, {"values": lambda actions: (actions[:, :1] > 0).float()}),
        (joined_inputs, 1, {"values": lambda actions: actions[:, :1].sign()}),
        (joined_inputs, 1, {"fit": lambda scores, weights: (scores * weights).mean(),
                            "values": lambda actions: actions[:, :1]}),
    ],
)  # fmt: skip
def test_an_actor_that_may_be_sound_is_not_accused(judge, sign, given):
    *_, acting, judging = actor_and_critic(judge, sign, **given)
    with judging, acting:
        findings = acting.report().findings + judging.report().findings
    assert "wrong_loss" not in [f.cause for f in findings if f.severity != "note"]


def test_two_that_play_against_each_other_are_not_accused():
    """The second player lowers the value that the first one raises."""
    torch.manual_seed(0)
    critic, first, second = network(8, 1), network(4, 2), network(4, 2)
    nets = (critic, first, second)
    moves = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in nets]
    doctors = [Doctor(net, move, loss) for net, move, loss in
               zip(nets, moves, (F.mse_loss, None, None), strict=True)]  # fmt: skip
    for _ in range(8):
        states = torch.randn(BATCH, 4)
        acted = torch.cat([states, torch.randn(BATCH, 4)], dim=1)
        values = acted[:, 4:5] - acted[:, 6:7]
        for player in range(3):
            moves[player].zero_grad()
            if player == 0:
                loss, inputs, targets = F.mse_loss(critic(acted), values), acted, values
            else:
                pair = [net(states) for net in nets[1:]]
                pair[2 - player] = pair[2 - player].detach()
                value = critic(torch.cat([states, *pair], dim=1)).mean()
                loss, inputs, targets = (-value if player == 1 else value), states, None
            loss.backward()
            moves[player].step()
            doctors[player].step(loss, inputs, targets)
    reports = [doctor.report() for doctor in doctors]
    for doctor in doctors:
        doctor.close()
    assert [judged.seen for judged in reports[2].evidence.loss.judged] == [8]
    assert all(report.healthy is not False for report in reports)


def test_an_encoder_that_is_trained_by_the_critics_own_loss_is_not_accused():
    torch.manual_seed(0)
    encoder, critic = network(4, 4), network(4, 1)
    moves = torch.optim.Adam([*encoder.parameters(), *critic.parameters()], lr=1e-3)
    watching = Doctor(encoder, moves), Doctor(critic, moves, F.smooth_l1_loss)
    for _ in range(8):
        states = torch.randn(BATCH, 4)
        returns = states.sum(dim=1, keepdim=True) - 40  # far below: one slope for all samples
        codes = encoder(states)
        loss = F.smooth_l1_loss(critic(codes), returns)
        moves.zero_grad()
        loss.backward()
        moves.step()
        watching[0].step(loss, states)
        watching[1].step(loss, codes, returns)
    for doctor in watching:
        with doctor:
            assert "wrong_loss" not in [f.cause for f in doctor.report().findings]


def test_looking_at_a_critic_changes_nothing():
    def program(doctor):
        return actor_and_critic(
            lower_of_twins, 1, kind=Twin, fit=of_both(F.mse_loss), doctor=doctor
        )[:2]

    assert undisturbed(program).main_cause == "wrong_loss"


def test_a_critic_of_ratings_may_be_lowered():
    """It is called a critic, of numbers above zero that nothing calls a reward."""
    torch.manual_seed(0)
    critic, designer = network(4, 1), network(3, 4)
    moves = [torch.optim.Adam(net.parameters(), lr=1e-3) for net in (critic, designer)]
    judging, making = Doctor(critic, moves[0], F.mse_loss), Doctor(designer, moves[1])
    for _ in range(8):
        sounds = torch.randn(BATCH, 4)
        ratings = sounds.square().mean(dim=1, keepdim=True)
        loss = F.mse_loss(critic(sounds), ratings)
        moves[0].zero_grad()
        loss.backward()
        moves[0].step()
        judging.step(loss, sounds, ratings)
        briefs = torch.randn(BATCH, 3)
        loss = critic(designer(briefs)).mean()
        moves[1].zero_grad()
        loss.backward()
        moves[1].step()
        making.step(loss, briefs)
    with judging, making:
        report = making.report()
    (facts,) = report.evidence.loss.judged
    assert facts.lowered == facts.seen >= 3
    assert report.healthy is not False
