"""Features that only count the samples: a row's number, an identifier."""

import torch
from torch import Tensor

from debugnn.doctor.evidence import CounterFacts
from debugnn.doctor.observe.samples import flat
from debugnn.doctor.observe.simple_models import predictions, simple_skill
from debugnn.doctor.observe.task import Task

_NO_SPREAD = 1e-12  # variance that is rounding
_ROUNDING = 0.05  # largest error of a counter's values after standardisation, as a share of a step


def counter_facts(inputs: Tensor, targets: Tensor, task: Task) -> CounterFacts | None:
    """Compare the feature that counts the samples with all others.

    A feature counts where its values are all different and whole multiples of one step apart. Of
    several such features, the one with the shortest range of steps is compared.

    Args:
        inputs: distinct samples (N, features), of which row i belongs to target i.

    Returns:
        None without such a feature, without others, or of too few samples for a simple model.
    """
    rows = flat(inputs)
    rows = rows[torch.isfinite(rows).all(dim=1)]
    if inputs[0].numel() != rows.shape[1] or len(rows) < len(inputs):
        return None
    if min(rows.shape) < 2:
        return None
    gaps = rows.sort(dim=0).values.diff(dim=0)
    # The smallest gap is one step, with the rounding errors of two values; the mean gap has almost
    # none. If a feature takes a value twice, the smallest gap is 0, and the feature does not count.
    steps = (gaps / gaps.min(dim=0).values).round()
    off = gaps * steps.sum(dim=0) / gaps.sum(dim=0) - steps
    counting = (off.abs() < _ROUNDING).all(dim=0)
    lengths = torch.where(counting, steps.sum(dim=0), torch.inf)
    feature = int(lengths.argmin())
    if not counting[feature]:
        return None
    others = torch.cat([inputs[:, :feature], inputs[:, feature + 1 :]], dim=1)
    own = inputs[:, feature : feature + 1]
    alone, without = (simple_skill(given, targets, task) for given in (own, others))
    told = predictions(own, others, Task("values"))
    if alone is None or without is None or told is None:
        return None
    wanted = flat(others)
    left = (told.values - wanted).square().mean(dim=0)
    spread = wanted.var(dim=0, correction=0)
    varying = spread > _NO_SPREAD
    return CounterFacts(
        feature=feature,
        values=len(rows),
        steps=int(lengths[feature]),
        counting=int(counting.sum()),
        skill=alone,
        skill_of_others=without,
        told=(1 - left[varying] / spread[varying]).max().item() if varying.any() else 0.0,
    )
