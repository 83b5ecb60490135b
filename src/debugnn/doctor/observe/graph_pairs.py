"""Pairs of nodes of a graph that are to be told linked or not, and what its edges tell of them."""

from typing import Any

import torch
from torch import Tensor

from debugnn.doctor.observe.calls import Call, is_plain

_FEWEST = 20  # pairs
_LABELS = 2


def told_by_edges(call: Call, targets: Any) -> float | None:
    """Return the share of labelled pairs whose label says whether the graph has their edge.

    Args:
        call: of a model that is given pairs of nodes, (pairs, 2) or (2, pairs), and the graph: a
            dense or sparse matrix (nodes, nodes), or edges (2, edges) or (edges, 2).
        targets: 0 or 1 for each pair.

    Returns:
        None of other inputs and targets, and where all pairs have one label.
    """
    if not isinstance(targets, Tensor) or targets.numel() < _FEWEST:
        return None
    tensors = call.tensors()
    whole = [_as_pairs(tensor) for tensor in tensors]
    labelled = [p for p in whole if p is not None and p.shape[1] == targets.numel()]
    if not labelled:
        return None
    labels = targets.detach().flatten().cpu()
    kinds = labels.unique()
    if len(kinds) != _LABELS or not bool((kinds == kinds.round()).all()):
        return None
    graphs = [
        _edges_of_matrix(tensor) if edges is None else edges
        for tensor, edges in zip(tensors, whole, strict=True)
    ]
    shares = [
        _share(pairs, edges, labels == kinds.max())
        for pairs in labelled
        for edges in graphs
        if edges is not None and edges is not pairs
    ]
    return max(shares, default=None)


def _share(pairs: Tensor, edges: Tensor, linked: Tensor) -> float:
    count = int(max(pairs.max(), edges.max() if edges.numel() else 0)) + 1
    both = torch.cat([edges, edges.flip(0)], dim=1)  # whichever node comes first
    known = torch.isin(pairs[0] * count + pairs[1], both[0] * count + both[1])
    return (known == linked).double().mean().item()


def _as_pairs(tensor: Tensor) -> Tensor | None:
    """Return pairs of node numbers as (2, pairs), None of another tensor."""
    if tensor.dim() != 2 or 2 not in tensor.shape or not is_plain(tensor):
        return None
    if tensor.dtype not in (torch.int64, torch.int32) or bool((tensor < 0).any()):
        return None
    pairs = tensor if tensor.shape[0] == 2 else tensor.T
    return pairs.detach().cpu().long()


def _edges_of_matrix(tensor: Tensor) -> Tensor | None:
    """Return where a matrix (nodes, nodes) is not zero, as (2, edges); None of another tensor."""
    if tensor.dim() != 2 or tensor.shape[0] != tensor.shape[1] or tensor.is_nested:
        return None
    dense = tensor.detach()
    if dense.layout != torch.strided:
        return dense.to_sparse_coo().coalesce().indices().cpu()
    return dense.cpu().nonzero().T
