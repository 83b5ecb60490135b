"""Embeddings whose distances tell which samples are alike."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Adam

from debugnn.faults.datasets import tangled_pairs, triplets
from debugnn.faults.loops import contrastive, siamese
from debugnn.faults.nets import mlp
from debugnn.faults.program import Build, Setup


def triplet_loss(embedded: Tensor, _: Tensor) -> Tensor:
    """Push a sample's neighbour of its own class nearer to it than one of another class."""
    anchor, own, other = embedded.unbind(dim=1)
    return F.triplet_margin_loss(anchor, own, other)


def triplet_score(embedded: Tensor, _: Tensor) -> float:
    """Return the share of triplets whose own class is nearer."""
    anchor, own, other = embedded.unbind(dim=1)
    nearer = (anchor - own).norm(dim=1) < (anchor - other).norm(dim=1)
    return nearer.float().mean().item()


def contrastive_loss(embedded: Tensor, different: Tensor) -> Tensor:
    """Hadsell's loss of pairs: near where they are of one class, a margin apart otherwise."""
    distance = (embedded[:, 0] - embedded[:, 1]).norm(dim=1)
    apart = (1 - distance).clamp_min(0)
    return torch.where(different > 0.5, apart.square(), distance.square()).mean()


def contrastive_score(embedded: Tensor, different: Tensor) -> float:
    """Return the share of pairs that a distance of one half tells apart."""
    distance = (embedded[:, 0] - embedded[:, 1]).norm(dim=1)
    return ((distance > 0.5) == (different > 0.5)).float().mean().item()


def cosine_loss(embedded: Tensor, different: Tensor) -> Tensor:
    """Pairs of one class point the same way, others do not."""
    left, right = embedded.unbind(dim=1)
    return F.cosine_embedding_loss(left, right, 1 - 2 * different, margin=0.3)


def cosine_score(embedded: Tensor, different: Tensor) -> float:
    """Return the share of pairs that a cosine of one half tells apart."""
    left, right = embedded.unbind(dim=1)
    cosine = F.cosine_similarity(left, right)
    return ((cosine < 0.5) == (different > 0.5)).float().mean().item()


def hinge_loss(embedded: Tensor, different: Tensor) -> Tensor:
    """Squared distances, small in pairs of one class and a margin apart in others."""
    distance = (embedded[:, 0] - embedded[:, 1]).square().sum(dim=1)
    return F.hinge_embedding_loss(distance, 1 - 2 * different)


TUNING: dict[str, Build] = {
    "triplet_net": lambda seed: Setup(
        mlp(64, 64, 16),
        triplet_loss,
        partial(Adam, lr=2e-3),
        *triplets(seed),
        epochs=6,
        score=triplet_score,
    ),
    "cosine_pairs": lambda seed: Setup(
        mlp(64, 64, 12),
        cosine_loss,
        partial(Adam, lr=2e-3),
        *tangled_pairs(seed),
        epochs=6,
        score=cosine_score,
    ),
    "contrastive": contrastive,
    "contrastive_both_ways": partial(contrastive, both_ways=True),
}

HELD_OUT: dict[str, Build] = {
    "siamese_net": lambda seed: Setup(
        mlp(64, 64, 8),
        contrastive_loss,
        partial(Adam, lr=2e-3),
        *tangled_pairs(seed),
        epochs=6,
        score=contrastive_score,
    ),
    "hinge_pairs": lambda seed: Setup(
        mlp(64, 48, 8),
        hinge_loss,
        partial(Adam, lr=3e-3),
        *tangled_pairs(seed),
        epochs=6,
        score=contrastive_score,
    ),
    "siamese": siamese,
}
