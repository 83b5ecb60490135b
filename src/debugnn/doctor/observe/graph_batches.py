"""Batches that are one graph of several: which node belongs to which, and where the edges lie."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from debugnn.doctor.evidence import GraphBatchFacts
from debugnn.doctor.observe.calls import Call, is_plain
from debugnn.doctor.observe.mixing import LEAST_BATCH, change_over_spread
from debugnn.doctor.observe.perturbation import Passes, other_values


def graph_batch_facts(calls: Sequence[Call]) -> GraphBatchFacts | None:
    """Return how the edges of several graphs lie in their batches; None of other inputs.

    Batches are read that have the graph of each node (0, 0, …, 1, 1, …) and the edges as pairs of
    nodes, (2, edges) or (edges, 2). None where the call tells of the edges' graphs as well: the
    model may move them itself.
    """
    facts = GraphBatchFacts()
    for call in calls:
        found = _nodes_and_edges(call)
        if found is None:
            return None
        owner, edges = found.owner, found.pairs[0]
        graphs, count = int(owner[-1]) + 1, edges.shape[1]
        if any(
            len(t) in (graphs, graphs + 1) or (len(t) == count and _is_graph_of_nodes(t))
            for t in found.others
        ):
            return None
        largest = int(torch.bincount(owner).max())
        facts.batches += 1
        facts.fewest_graphs = min(graphs, facts.fewest_graphs or graphs)
        facts.overlaid += int(edges.max()) < largest
        facts.nodes += len(owner)
        facts.alone += len(owner) - len(edges.unique())
    return facts if facts.batches else None


def graph_mixing(model: nn.Module, call: Call) -> float | None:
    """Return how much the outputs of half of a batch's graphs change when the nodes of others do.

    As `change_over_spread`. None of inputs that are no graphs with edges, of graphs that an edge
    joins, of outputs that belong neither to graphs nor to nodes, and of a model whose passes
    differ.

    Args:
        model: in evaluation mode.
        call: with the graph of each node (0, 0, …, 1, 1, …).
    """
    found = _nodes_and_edges(call)
    if found is None:
        return None
    owner = found.owner
    graphs = int(owner[-1]) + 1
    joined = any(bool((owner[ends[0]] != owner[ends[1]]).any()) for ends in found.pairs)
    if graphs < LEAST_BATCH or joined:
        return None
    first = owner < graphs // 2

    def changed(tensor: Tensor) -> Tensor:
        if not is_plain(tensor) or tensor.shape[:1] != owner.shape or _is_graph_of_nodes(tensor):
            return tensor
        own = first.to(tensor.device)
        return torch.cat([tensor[own], other_values(tensor[~own], 0)])

    with torch.no_grad():
        passes = Passes(model, call)
        before = passes.output
        after = passes.run_changed(call.map(changed)) if passes.steady else None
    if before is None or after is None or not before.dim():
        return None
    if len(before) == graphs:
        kept = slice(graphs // 2)
    elif len(before) == len(owner):
        kept = slice(int(first.sum()))
    else:
        return None
    return change_over_spread(before[kept], after[kept])


class _Graphs(NamedTuple):
    """What a call tells of several graphs."""

    owner: Tensor  # the graph of each node, (nodes,)
    pairs: list[Tensor]  # edges, (2, edges) each, at least one tensor of them
    others: list[Tensor]  # further whole numbers (N,)


def _nodes_and_edges(call: Call) -> _Graphs | None:
    whole = [t for t in call.tensors() if _is_whole_numbers(t)]
    given = next((t for t in whole if _is_graph_of_nodes(t)), None)
    if given is None:
        return None
    owner = given.cpu().long()
    pairs = [e for t in whole if (e := _edges(t.cpu().long(), len(owner))) is not None]
    others = [t for t in whole if t is not given and t.dim() == 1]
    return _Graphs(owner, pairs, others) if pairs else None


def _is_whole_numbers(tensor: Tensor) -> bool:
    exact = not tensor.is_floating_point() and not tensor.is_complex()
    return is_plain(tensor) and exact and tensor.dtype != torch.bool and tensor.numel() > 1


def _is_graph_of_nodes(tensor: Tensor) -> bool:
    """True of 0, 0, …, 1, 1, … without a gap, up to 1 at least."""
    if not _is_whole_numbers(tensor) or tensor.dim() != 1 or tensor[0] != 0 or tensor[-1] == 0:
        return False
    steps = tensor.diff()
    return bool(((steps == 0) | (steps == 1)).all())


def _edges(tensor: Tensor, nodes: int) -> Tensor | None:
    """Return edges as (2, edges) between this many nodes, None of another tensor.

    As many pairs as there are nodes, one below the other, may be two features of each node.
    """
    if tensor.dim() != 2 or 2 not in tensor.shape or tensor.shape == (nodes, 2):
        return None
    pairs = tensor if tensor.shape[0] == 2 else tensor.T
    return pairs if tensor.min() >= 0 and tensor.max() < nodes else None
