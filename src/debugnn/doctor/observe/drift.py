"""How the inputs change in the course of a training, and whether the same samples come back
changed."""

from collections.abc import Sequence
from statistics import median

import torch
from torch import Tensor

from debugnn.doctor.evidence import DriftFacts
from debugnn.doctor.observe import samples

_FEATURES = 256  # most features of a sample that are compared
# Standardised samples of fewer features are alike by chance; with two features, all samples are.
_LEAST_FEATURES = 16
_EQUAL = 1e-3  # distance of standardised samples, root mean square, that is rounding
_COMPARED = 1024  # samples of either time


def drift_facts(early: Sequence[Tensor], late: Sequence[Tensor]) -> DriftFacts | None:
    """Compare the inputs of the first batches with those of the latest ones.

    A sample comes back where a late one is an early one times a number, plus a number.

    Args:
        early: inputs of each of the first batches, (samples, …) of real numbers.
        late: the same of late batches.

    Returns:
        None without numbers of both times, or where their samples have other shapes.
    """
    groups = [[b for b in batches if b.is_floating_point() and len(b)] for batches in (early, late)]
    if not all(groups) or len({b.shape[1:] for group in groups for b in group}) > 1:
        return None
    # Thinned batch by batch: to join them as they are would take their memory again.
    thin = [[samples.flat(b, _FEATURES) for b in group] for group in groups]
    first, last = (median(b.square().mean().sqrt().item() for b in group) for group in thin)
    facts = DriftFacts(early=first, late=last)
    before, after = (torch.cat(group)[:_COMPARED] for group in thin)
    if before.shape[1] >= _LEAST_FEATURES:
        _note_returns(facts, before, after)
    return facts


def _note_returns(facts: DriftFacts, before: Tensor, after: Tensor) -> None:
    """Note late samples that are early ones of another scale, or with another zero."""
    (shapes, means, scales), (forms, offsets, sizes) = _standardised(before), _standardised(after)
    if not len(shapes) or not len(forms):
        return
    distance, nearest = torch.cdist(forms, shapes).min(dim=1)
    same = distance <= _EQUAL * before.shape[1] ** 0.5
    facts.returned = int(same.sum())
    if facts.returned:
        nearest = nearest[same]
        facts.scale = (sizes[same] / scales[nearest]).median().item()
        facts.offset = ((offsets[same] - means[nearest]) / scales[nearest]).median().item()


def _standardised(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each sample with mean 0 and deviation 1, these means and these deviations, without
    samples that are constant or not finite."""
    rows = rows[torch.isfinite(rows).all(dim=1)]
    means, deviations = rows.mean(dim=1), rows.std(dim=1, correction=0)
    varied = deviations > 1e-6 * rows.abs().amax(dim=1)
    rows, means, deviations = rows[varied], means[varied], deviations[varied]
    return (rows - means[:, None]) / deviations[:, None], means, deviations
