"""Pairs of nodes that are to be told linked or not, beside a graph that may hold the answer."""

import pytest
import torch
from handmade_evidence import evidence, found_by, score
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from debugnn import Doctor
from debugnn.doctor.evidence import Validation
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.graph_pairs import told_by_edges

NODES = 60


def linked_blocks(seed):
    """Return the edges (edges, 2), i < j, of a graph of four blocks, in a random order."""
    generator = torch.Generator().manual_seed(seed)
    block = torch.arange(NODES) % 4
    likely = torch.where(block[:, None] == block, 0.5, 0.02)
    upper = (torch.rand(NODES, NODES, generator=generator) < likely).triu(1)
    edges = upper.nonzero()
    return edges[torch.randperm(len(edges), generator=generator)]


def matrix(edges):
    dense = torch.eye(NODES)
    dense[edges[:, 0], edges[:, 1]] = dense[edges[:, 1], edges[:, 0]] = 1.0
    return dense / dense.sum(dim=1, keepdim=True)


def labelled(edges, all_edges, seed):
    """Return linked pairs and as many others, (pairs, 2), and their labels."""
    others = (matrix(all_edges) == 0).triu(1).nonzero()
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    pairs = torch.cat([edges, others[order[: len(edges)]]])
    return pairs, torch.cat([torch.ones(len(edges)), torch.zeros(len(edges))])


GRAPHS = {
    "dense": matrix,
    "sparse": lambda edges: matrix(edges).to_sparse(),
    "compressed": lambda edges: matrix(edges).to_sparse_csr(),
    "edges": lambda edges: edges.T,
    "both ways": lambda edges: torch.cat([edges, edges.flip(1)]),
}


@pytest.mark.parametrize("form", GRAPHS)
@pytest.mark.parametrize("upright", [True, False])
@given(seed=st.integers(0, 1_000))
def test_the_share_of_labels_that_the_edges_tell(form, upright, seed):
    edges = linked_blocks(seed)
    held, kept = edges[:30], edges[30:]
    for within, told in ((kept, 0.5), (edges, 1.0)):
        pairs, labels = labelled(held, edges, seed)
        call = Call((torch.randn(NODES, 5), GRAPHS[form](within), pairs if upright else pairs.T))
        assert told_by_edges(call, labels) == told


def test_other_inputs_have_no_graph():
    pairs, labels = labelled(linked_blocks(0), linked_blocks(0), 0)
    assert told_by_edges(Call((torch.randn(len(labels), 5),)), labels) is None
    assert told_by_edges(Call((pairs,)), labels) is None
    assert told_by_edges(Call((matrix(pairs), pairs)), torch.ones(len(labels))) is None
    assert told_by_edges(Call((matrix(pairs), pairs)), torch.randn(len(labels))) is None
    assert told_by_edges(Call((matrix(pairs), pairs)), None) is None


class Links(nn.Module):
    def __init__(self):
        super().__init__()
        self.nodes = nn.Embedding(NODES, 16)
        self.out = nn.Linear(16, 16)

    def forward(self, graph, pairs):
        hidden = graph @ self.out((graph @ self.nodes.weight).relu())
        return (hidden[pairs[:, 0]] * hidden[pairs[:, 1]]).sum(dim=1)


@pytest.mark.parametrize("leaks", [True, False])
def test_a_graph_with_the_validations_edges_is_named(leaks):
    torch.manual_seed(0)
    edges = linked_blocks(0)
    held, kept = edges[:80], edges[80:]
    graph = matrix(edges if leaks else kept)
    model, loss_fn = Links(), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with Doctor(model, optimizer, loss_fn) as doctor:
        for step in range(60):
            pairs, labels = labelled(kept, edges, step)
            optimizer.zero_grad()
            loss = loss_fn(model(graph, pairs), labels)
            loss.backward()
            optimizer.step()
            doctor.step(loss, (graph, pairs), labels)
        pairs, labels = labelled(held, edges, 99)
        doctor.validate((graph, pairs), labels)
        report = doctor.report()
    assert not report.troubles
    assert (report.main_cause == "label_leak") is leaks
    assert report.healthy is not leaks


@pytest.mark.parametrize(
    ("told", "losses", "severity"),
    [(1.0, [1.0, 1.0, 1.2], "note"), (None, [1.0, 1.0, 1.2], "warning"),
     (1.0, [1.0, 1.0, 1.5], "warning")],
)  # fmt: skip
def test_training_edges_that_pass_messages_are_no_overfitting(told, losses, severity):
    given = evidence(0.95)
    given.data.told_by_edges = told
    given.outcome.validations = [
        Validation(20 * i, loss, score(0.4, samples=300)) for i, loss in enumerate(losses)
    ]
    assert [f.severity for f in found_by("overfitting", given)] == [severity]
