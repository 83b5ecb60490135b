"""Whether the targets of training images lie where the images have what they name.

A model of single pixels and their surroundings is fitted to validation pairs of image and target.
On training pairs it predicts the target as well, unless an image was flipped, turned or shifted
and its target was not.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from debugnn.doctor.evidence import AlignmentFacts

_IMAGES = 96  # images of each set
_LEAST = 12
_RIDGE = 1e-3  # penalty, of the mean square of a feature
_AROUND = 5  # pixels of a surrounding
_SIDE = 8  # pixels, at least


def alignment_facts(
    trained: Tensor, wanted: Tensor, held: Tensor, held_wanted: Tensor
) -> AlignmentFacts | None:
    """Return how well a local model of validation pairs predicts targets.

    Args:
        trained: training images (N, C, H, W).
        wanted: their targets (N, H, W) or (N, 1, H, W).
        held: validation images.
        held_wanted: their targets.

    Returns:
        None of pairs that are no images and maps of one size, or of fewer than a dozen.
    """
    maps = [_maps(x, y) for x, y in ((trained, wanted), (held, held_wanted))]
    if maps[0] is None or maps[1] is None or trained.shape[1:] != held.shape[1:]:
        return None
    if min(len(trained), len(held)) < _LEAST or min(trained.shape[2:]) < _SIDE:
        return None
    truth, held_truth = (m[:_IMAGES] for m in maps if m is not None)
    rows, held_rows = _features(trained[:_IMAGES]), _features(held[:_IMAGES])
    mean = held_rows.flatten(0, 2).mean(dim=0)
    weights = _fitted(held_rows - mean, held_truth)
    said, held_said = (rows - mean) @ weights, (held_rows - mean) @ weights
    others = truth.roll(1, dims=0)
    here = _alike(said, truth)
    turns = torch.stack([_alike(said, turned) for turned in _turned(truth)])
    other_turns = torch.stack([_alike(said, turned) for turned in _turned(others)])
    shifts, other_shifts = _best_shift(said, truth), _best_shift(said, others)
    return AlignmentFacts(
        validation=_alike(held_said, held_truth).mean().item(),
        training=here.mean().item(),
        training_gap=_in_errors(here - _alike(said, others)),
        turned=turns.amax(dim=0).mean().item(),
        turned_gap=_in_errors(turns.amax(dim=0) - other_turns.amax(dim=0)),
        shifted=shifts.mean().item(),
        shifted_gap=_in_errors(shifts - other_shifts),
    )


def _maps(images: Tensor, targets: Tensor) -> Tensor | None:
    """Return targets as (N, H, W), None where they are no maps of the images' size."""
    if images.dim() != 4 or not images.is_floating_point() or len(images) != len(targets):
        return None
    if targets.dim() == 4 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.dim() != 3 or targets.shape[1:] != images.shape[2:]:
        return None
    return targets.detach().cpu().double()


def _features(images: Tensor) -> Tensor:
    """Return each pixel's own value and energy and those of its surroundings, (N, H, W, K)."""
    x = images.detach().cpu().double()
    both = torch.cat([x, x.square()], dim=1)
    around = F.avg_pool2d(both, _AROUND, stride=1, padding=_AROUND // 2, count_include_pad=False)
    means, squares = around.chunk(2, dim=1)
    spread = (squares - means.square()).clamp_min(0).sqrt()
    return torch.cat([both, around, spread], dim=1).movedim(1, -1)


def _fitted(rows: Tensor, truth: Tensor) -> Tensor:
    flat, wanted = rows.flatten(0, 2), truth.flatten() - truth.mean()
    square = flat.T @ flat
    penalty = _RIDGE * square.diagonal().mean().clamp_min(1e-12)
    return torch.linalg.solve(square + penalty * torch.eye(len(square)).to(square), flat.T @ wanted)


def _turned(truth: Tensor) -> list[Tensor]:
    """Return maps (N, H, W) as they are, flipped along one axis and both; of squares also turned by
    a quarter."""
    square = truth.shape[1] == truth.shape[2]
    both = [truth, truth.transpose(1, 2)] if square else [truth]
    return [m.flip(axes) for m in both for axes in ((), (1,), (2,), (1, 2))]


def _centred(maps: Tensor) -> Tensor:
    """Return maps with mean 0 and length 1."""
    around = maps - maps.mean(dim=(1, 2), keepdim=True)
    return around / torch.linalg.vector_norm(around, dim=(1, 2), keepdim=True).clamp_min(1e-12)


def _alike(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation of each pair of maps, (N,)."""
    return (_centred(first) * _centred(second)).sum(dim=(1, 2))


def _best_shift(first: Tensor, second: Tensor) -> Tensor:
    """Return the highest correlation of each pair under any shift around the edges, (N,)."""
    one, other = (torch.fft.rfft2(_centred(maps)) for maps in (first, second))
    return torch.fft.irfft2(one * other.conj(), s=first.shape[1:]).flatten(1).amax(dim=1)


def _in_errors(differences: Tensor) -> float:
    """Return a mean in its standard errors."""
    error = differences.std() / len(differences) ** 0.5
    return (differences.mean() / error.clamp_min(1e-12)).item()
