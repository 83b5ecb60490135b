"""Risks of an event, learnt from lifetimes of which some are censored."""

from functools import partial

from torch import Tensor, nn
from torch.optim import SGD

from debugnn.faults.datasets import lifetimes
from debugnn.faults.nets import mlp
from debugnn.faults.program import Build, Setup


def partial_likelihood(outputs: Tensor, targets: Tensor, at_risk: Tensor) -> Tensor:
    """Cox's negative logarithm of the partial likelihood, with tied times by Breslow.

    Args:
        outputs: (B, 1) logarithms of hazards.
        targets: (B, 2) times, and 1 where they end with an event.
        at_risk: (B, B) is true where the event of a row is compared with the sample of a column.
    """
    hazards, happened = outputs.squeeze(1), targets[:, 1] > 0
    if not happened.any():
        return 0 * hazards.sum()
    compared = hazards.expand_as(at_risk).masked_fill(~at_risk, -1e9).logsumexp(dim=1)
    return (compared - hazards)[happened].mean()


def cox_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Compare each event with the samples whose time is not shorter (Cox 1972)."""
    times = targets[:, 0]
    return partial_likelihood(outputs, targets, times >= times[:, None])


def concordance(outputs: Tensor, targets: Tensor) -> float:
    """Return the share of comparable pairs in which the shorter life has the higher risk."""
    times, happened = targets[:, 0], targets[:, 1] > 0
    hazards = outputs.squeeze(1)
    comparable = (times[:, None] < times) & happened[:, None]
    return (hazards[:, None] > hazards)[comparable].float().mean().item()


TUNING: dict[str, Build] = {
    "survival": lambda seed: Setup(
        mlp(8, 32, 32, 1, activation=nn.SiLU),
        cox_loss,
        partial(SGD, lr=0.05, momentum=0.9),
        *lifetimes(seed),
        batch_size=64,
        epochs=12,
        score=concordance,
    ),
}

HELD_OUT: dict[str, Build] = {}
