"""Terms of a loss that are brought to one number in different ways."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn.doctor import Doctor
from debugnn.doctor.observe.loss_function.reductions import unlike_reductions

FEATURES, BATCH = 6, 24


def divergence(mean, log_variance):
    return -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp())


def codes():
    return nn.Linear(FEATURES, 4)(torch.randn(BATCH, FEATURES)).chunk(2, dim=1)


def errors():
    return (nn.Linear(FEATURES, 3)(torch.randn(BATCH, FEATURES)) - 1).square()


def weights():
    return nn.Linear(FEATURES, BATCH).weight.square()


def normal(mean, log_variance):
    return torch.distributions.Normal(mean, log_variance.exp())


def kl():
    return torch.distributions.kl_divergence(normal(*codes()), torch.distributions.Normal(0.0, 1.0))


def sizes():
    return nn.Linear(FEATURES, 3)(torch.randn(BATCH, FEATURES)).exp()


# Found after `backward` too, which frees the factors.
SUMMED = {
    "errors": lambda: errors().sum() + errors().mean(),
    "errors of each sample": lambda: errors().mean(dim=1).sum() + F.l1_loss(errors(), errors()),
    "the loss of a library": lambda: F.mse_loss(errors(), errors(), reduction="sum")
        + errors().mean(),
    "of two errors": lambda: errors().mean() + (errors() + 0.25 * errors()).sum(),
    "likelihoods": lambda: F.cross_entropy(
        codes()[0], torch.zeros(BATCH).long(), reduction="sum") + errors().mean(),
}  # fmt: skip
# Found where the factors are known.
DIVERGENCES = {
    "divergence": lambda: F.mse_loss(errors(), errors()) + divergence(*codes()).sum(),
    "its half outside": lambda: errors().mean() + -0.5 * (
        1 + codes()[1] - codes()[0].pow(2) - codes()[1].exp()).sum(),
    "of distributions": lambda: F.binary_cross_entropy_with_logits(
        errors(), errors().detach().clamp(max=1)) + kl().sum(),
    "in a loss that is scaled as a whole": lambda:
        (errors().mean() + divergence(*codes()).sum()) * 0.5 / 4,
}  # fmt: skip
MEANT = {
    "means": lambda: errors().mean() + F.mse_loss(errors(), errors()),
    "sums": lambda: errors().sum() + divergence(*codes()).sum(),
    "sums over all samples": lambda: (errors().sum() + divergence(*codes()).sum()) / BATCH,
    "means over the samples": lambda: errors().mean() + divergence(*codes()).sum(dim=1).mean(),
    "means over the samples first": lambda: errors().mean() + divergence(*codes()).mean(0).sum(),
    "errors, means over the samples first": lambda: errors().mean() + errors().mean(dim=0).sum(),
    "over the last axis first": lambda: errors().mean() + errors().sum(dim=-1).mean(dim=-1),
    "a sum that is divided": lambda: errors().mean() + errors().sum() / BATCH,
    "a sum with a weight": lambda: errors().mean() + 1e-3 * errors().sum(),
    "a sum beside a mean that makes up for it": lambda: 200 * errors().mean() + errors().sum(),
    "a divergence with a weight": lambda: errors().mean() + 1e-3 * divergence(*codes()).sum(),
    "a divergence with a weight inside": lambda: errors().mean() + (
        -0.5 / BATCH * (1 + codes()[1] - codes()[0].pow(2) - codes()[1].exp())).sum(),
    "a divergence of distributions with a weight": lambda: errors().mean() + 1e-3 * kl().sum(),
    "a divergence that is divided": lambda: errors().mean() + kl().sum() / BATCH,
    "errors of logarithms with a weight": lambda: errors().mean()
        + (1 / BATCH) * (sizes().log() - 1).pow(2).sum(),
    "a penalty of the outputs beside a sum": lambda: errors().sum() + 1e-4 * errors().mean(),
    "a penalty of the activations": lambda: errors().mean() + codes()[0].square().sum(),
    "a penalty of the weights": lambda: errors().mean() + weights().sum(),
    "two penalties of the weights": lambda: errors().mean() + (weights() + 2 * weights()).sum(),
    "a sum over a few terms": lambda: torch.stack([errors().mean(), errors().mean()]).sum(),
    "one term": lambda: errors().sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", [*SUMMED, *DIVERGENCES])
def test_a_term_that_is_summed_beside_a_mean_is_found_in_the_loss(name):
    found = unlike_reductions((SUMMED | DIVERGENCES)[name](), {BATCH})
    assert found is not None
    assert found.shape[0] == BATCH
    assert found.sure


@pytest.mark.parametrize("name", SUMMED)
def test_without_a_factor_it_is_found_after_backward(name):
    loss = SUMMED[name]()
    loss.backward()
    found = unlike_reductions(loss, {BATCH})
    assert found is not None
    assert found.shape[0] == BATCH


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", MEANT)
def test_terms_of_one_reduction_and_terms_with_weights_are_meant(name, backward):
    loss = MEANT[name]()
    if backward:
        loss.backward()
    found = unlike_reductions(loss, {BATCH})
    assert found is None or not found.sure


def test_a_mean_of_unknown_weight_leaves_a_doubt():
    loss = errors().sum() + 1e-4 * errors().mean()
    loss.backward()
    assert not unlike_reductions(loss, {BATCH}).sure


def test_lengths_that_differ_are_no_shape_of_the_samples():
    layer = nn.Linear(FEATURES, 1)
    lengths = torch.nested.nested_tensor(
        [torch.randn(n, FEATURES) for n in (3, 5)], layout=torch.jagged
    )
    loss = (layer(lengths) - 1).pow(2).sum() + errors().mean()
    assert unlike_reductions(loss, {2, BATCH}) is None


@pytest.mark.parametrize("summed", [True, False])
def test_a_loop_whose_loss_has_such_a_term_is_told(summed):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Doctor(model, optimizer) as doctor:
        for _ in range(60):
            inside, border = torch.randn(BATCH, FEATURES), torch.randn(BATCH, FEATURES)
            residual = (model(inside) - inside.sum(dim=1, keepdim=True)).square()
            boundary = (model(border) - 1).square().mean()
            loss = (residual.sum() if summed else residual.mean()) + boundary
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, inside)
        found = [f for f in doctor.report().findings if f.severity != "note"]
    assert [f.cause for f in found] == ["loss_reduction"] * summed
