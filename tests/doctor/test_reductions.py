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


SUMMED = {
    "errors": lambda: errors().sum() + errors().mean(),
    "errors of each sample": lambda: errors().mean(dim=1).sum() + F.l1_loss(errors(), errors()) * 2,
    "divergence": lambda: F.mse_loss(errors(), errors()) + divergence(*codes()).sum(),
    "divergence, its half outside": lambda: errors().mean() + -0.5 * (
        1 + codes()[1] - codes()[0].pow(2) - codes()[1].exp()).sum(),
    "divergence of distributions": lambda: F.binary_cross_entropy_with_logits(
        errors(), errors().detach().clamp(max=1)) + torch.distributions.kl_divergence(
            torch.distributions.Normal(codes()[0], codes()[1].exp()),
            torch.distributions.Normal(0.0, 1.0)).sum(),
    "the loss of a library": lambda: F.mse_loss(errors(), errors(), reduction="sum")
        + 3 * errors().mean(),
    "in a loss that is scaled as a whole": lambda:
        (errors().mean() + divergence(*codes()).sum()) * 0.5 / 4,
    "of two errors": lambda: errors().mean() + (errors() + 0.25 * errors()).sum(),
}  # fmt: skip
MEANT = {
    "means": lambda: errors().mean() + F.mse_loss(errors(), errors()),
    "sums": lambda: errors().sum() + divergence(*codes()).sum(),
    "sums over all samples": lambda: (errors().sum() + divergence(*codes()).sum()) / BATCH,
    "means over the samples": lambda: errors().mean() + divergence(*codes()).sum(dim=1).mean(),
    "a sum that is divided": lambda: errors().mean() + errors().sum() / BATCH,
    "a sum with a weight": lambda: errors().mean() + 1e-3 * errors().sum(),
    "a divergence with a weight": lambda: errors().mean() + 1e-3 * divergence(*codes()).sum() * 0.1,
    "a penalty of the weights": lambda: errors().mean() + weights().sum(),
    "a sum over a few terms": lambda: torch.stack([errors().mean(), errors().mean()]).sum(),
    "two penalties of the weights": lambda: errors().mean() + (weights() + 2 * weights()).sum(),
    "one term": lambda: errors().sum(),
}


@pytest.mark.parametrize("name", SUMMED)
def test_a_term_that_is_summed_beside_a_mean_is_found_in_the_loss(name):
    loss = SUMMED[name]()
    loss.backward()
    shape = unlike_reductions(loss, {BATCH})
    assert shape is not None
    assert shape[0] == BATCH


@pytest.mark.parametrize("name", MEANT)
def test_terms_of_one_reduction_and_terms_with_weights_are_meant(name):
    loss = MEANT[name]()
    loss.backward()
    assert unlike_reductions(loss, {BATCH}) is None


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
            loss = (residual.sum() if summed else residual.mean()) + 10 * boundary
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, inside)
        found = [f for f in doctor.report().findings if f.severity != "note"]
    assert [f.cause for f in found] == ["loss_reduction"] * summed
