"""What a loss function rewards where targets are values."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from debugnn.doctor.evidence import LossFacts
from debugnn.doctor.observe.loss_function.across_samples import cross_gradient, permuted
from debugnn.doctor.observe.loss_function.made_up import (
    EDGE,
    FAR,
    Loss,
    alike,
    equal,
    random_numbers,
)
from debugnn.doctor.observe.task import Task

_FITS = 1e-4  # relative error of a sum of two terms in float32 that is rounding
_TWO = 2  # values of targets that stand for two classes


class _Reading(NamedTuple):
    """How outputs may stand for values: what they would be, and what the loss makes of it."""

    link: str
    ideal: Tensor
    constant: Tensor  # of the best constant values
    right: float
    elsewhere: list[float]  # at outputs that are all worse
    confirmed: bool  # right is lower than all of these
    opposed: bool


def try_values(facts: LossFacts, loss: Loss, outputs: Tensor, task: Task) -> None:
    """Fill in what the loss makes of values, right ones and others, in each reading of outputs."""
    values = loss.targets.to(outputs.dtype).reshape(outputs.shape)
    if not values.std(correction=0) > 0:
        return
    readings = [_read_values(loss, link, values) for link in _links(values, task)]
    facts.rewards = [[reading.right, reading.elsewhere[0]] for reading in readings]
    fitting = [reading for reading in readings if reading.confirmed] or readings
    best = min(fitting, key=lambda reading: reading.right)
    facts.best, facts.confirmed, facts.link = best.right, best.confirmed, best.link
    facts.opposed = not best.confirmed and readings[0].opposed
    if best.confirmed or len(readings) == 1:  # of several readings, one is what the loss is for
        facts.constant = loss.within(best.constant)
    # Far out a log-likelihood whose targets are no probabilities falls without end.
    side = (values - values.mean()).sign()
    far = (FAR * sign for sign in (side, -side, side.abs(), -side.abs()))
    facts.far = min(map(loss.within, far))
    noise = torch.randn(outputs.shape, generator=random_numbers())
    if facts.link == "sigmoid":
        # Logits around the mean: of small probabilities' own size they would all be one half.
        noise = noise + values.mean().clamp(EDGE, 1 - EDGE).logit()
    else:
        noise = noise * values.std() + values.mean()
        noise = noise.abs() if values.min() >= 0 else noise
    facts.permuted = permuted(loss, noise)
    facts.cross_gradient = cross_gradient(loss, noise)
    facts.bernoulli = _is_bernoulli(loss, values, logits=facts.link == "sigmoid")
    facts.confirmed = facts.confirmed or _takes_sides(loss, values, noise)


def _is_bernoulli(loss: Loss, values: Tensor, *, logits: bool) -> bool:
    """Return whether the loss is −a·mean(t log p) − b·mean((1 − t) log(1 − p)), a and b positive.

    A binary cross-entropy, weighted by class or not, of the mean or of the sum. Two made-up p give
    the factors, and others must bear them out.

    Args:
        logits: outputs are the logits of p, and not p itself.
    """
    if values.min() < 0 or values.max() > 1:
        return False
    terms, found, generator = [], [], random_numbers()
    for power in range(1, 5):
        drawn = torch.rand(values.shape, generator=generator)
        p = (0.1 + 0.8 * drawn**power).to(values)
        one, zero = values * p.log(), (1 - values) * (1 - p).log()
        terms.append(torch.stack([-one.double().mean(), -zero.double().mean()]).cpu())
        found.append(loss.within(p.logit() if logits else p))
    if not all(map(math.isfinite, found)):
        return False
    wanted = torch.tensor(found, dtype=torch.float64)
    rows = torch.stack(terms)
    size = rows.abs().amax(dim=0).clamp_min(1e-30)
    factors = torch.linalg.lstsq(rows / size, wanted[:, None]).solution
    error = ((rows / size) @ factors).squeeze(1) - wanted
    fits = bool((error.abs() < _FITS * wanted.abs()).all())
    return fits and bool((factors > 0).all())


def _links(values: Tensor, task: Task) -> list[str]:
    """Return the readings of outputs that the targets' range allows."""
    links = ["identity"]
    if not task.squashed and values.min() >= 0:
        links += ["sigmoid"] if values.max() <= 1 else ["exp"]
    return links


def _read_values(loss: Loss, link: str, values: Tensor) -> _Reading:
    def through(wanted: Tensor) -> Tensor:
        if link == "identity":
            return wanted
        if link == "sigmoid":
            return wanted.clamp(EDGE, 1 - EDGE).logit()
        return wanted.clamp_min(0.1 * values.mean().item()).log()

    ideal = through(values)
    constant = torch.full_like(ideal, through(values.mean()).item())
    spread = ideal.std(correction=0)
    noise = torch.linspace(-1, 1, ideal.numel()).roll(ideal.numel() // 3).reshape(ideal.shape)
    noise = noise.to(ideal) * spread
    if link == "identity" and values.min() >= 0:
        noise = noise.abs()  # the loss may be for positive outputs alone
    around = ideal - ideal.mean()
    turned = ideal.flatten().roll(max(1, ideal.numel() // 3)).reshape(ideal.shape)
    worse = [
        ideal + 2 * noise, ideal + spread, ideal - spread, ideal.mean() + 3 * around,
        ideal.mean() + around / 3, turned,
    ]  # fmt: skip
    right, elsewhere = loss.within(ideal), [loss.within(made_up) for made_up in worse]
    if torch.equal(turned, ideal):
        elsewhere.pop()
    known = [value for value in elsewhere if math.isfinite(value)]
    apart = math.isfinite(right) and not any(equal(right, value) for value in known)
    return _Reading(
        link, ideal, constant, right, elsewhere,
        confirmed=apart and all(right < value for value in elsewhere),
        opposed=apart and all(right > value for value in known) and min(known, default=0) < 0,
    )  # fmt: skip


def _takes_sides(loss: Loss, values: Tensor, noise: Tensor) -> bool:
    """Return whether targets are two classes in a code of their own, −1 and 1 for example, and the
    loss asks for outputs on the right side, the farther the better."""
    kinds = values.unique()
    if len(kinds) != _TWO:
        return False
    right, wrong = loss.within(values), loss.within(kinds.sum() - values)
    farther = loss.within(values.mean() + 3 * (values - values.mean()))
    bent = not alike(loss.gradient(noise), loss.gradient(0.5 * noise))
    return farther <= right < wrong and bent
