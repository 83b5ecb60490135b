"""Batches of several graphs: where their edges lie, and when that is a mistake."""

import pytest
import torch
from torch import nn

from debugnn.doctor.causes.batch_mixing import GRAPHS_MIXED, overlaid_graphs
from debugnn.doctor.evidence import DataFacts, Evidence
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.graph_batches import graph_batch_facts, graph_mixing

SIZES = (4, 6, 3, 5, 4)


def batch(shifted, sizes=SIZES, columns=False):
    """Rings of these sizes: the nodes' features, their edges, and the graph of each node."""
    edges, before = [], 0
    for size in sizes:
        ring = torch.stack([torch.arange(size), (torch.arange(size) + 1) % size])
        edges.append(ring + (before if shifted else 0))
        before += size
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    pairs = torch.cat([*edges, *(ring.flip(0) for ring in edges)], dim=1)
    return torch.randn(before, 3), pairs.T if columns else pairs, owner


def found(*arguments):
    evidence = Evidence(data=DataFacts(graphs=graph_batch_facts([Call(arguments)])))
    return list(overlaid_graphs(evidence))


@pytest.mark.parametrize("columns", [False, True])
def test_edges_that_keep_their_graphs_own_numbers_are_found(columns):
    (sign,) = found(*batch(shifted=False, columns=columns))
    assert sign.confidence is None  # certain, as the cause is
    assert sign.evidence["nodes_without_edges"] == pytest.approx((22 - 6) / 22)
    assert not found(*batch(shifted=True, columns=columns))


def test_a_single_batch_in_order_acquits():
    calls = [Call(batch(shifted=False)), Call(batch(shifted=True))]
    facts = graph_batch_facts(calls)
    assert (facts.batches, facts.overlaid, facts.fewest_graphs) == (2, 1, 5)
    assert not list(overlaid_graphs(Evidence(data=DataFacts(graphs=facts))))


def test_few_graphs_prove_nothing():
    assert not found(*batch(shifted=False, sizes=(6, 3, 5)))


def sizes_given():
    return torch.tensor(SIZES)


def starts_given():
    return torch.tensor((0, *SIZES)).cumsum(0)


@pytest.mark.parametrize("more", [sizes_given, starts_given])
def test_a_model_that_may_shift_the_edges_itself_is_left_alone(more):
    assert graph_batch_facts([Call((*batch(shifted=False), more()))]) is None


def test_edges_whose_graphs_are_told_are_left_alone():
    nodes, edges, owner = batch(shifted=False)
    assert graph_batch_facts([Call((nodes, edges, owner, owner.repeat_interleave(2)))]) is None


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(8, 3),),
        (torch.ones(8, 2, dtype=torch.long),),  # tokens
        (torch.ones(8, 3), torch.arange(16).reshape(2, 8) % 8),  # one graph
        (
            torch.arange(12) // 3,
            torch.arange(24).reshape(12, 2) % 3,
        ),  # kinds of what four searches found
        (torch.tensor([0, 0, 1, 1]), torch.tensor([[0, 9], [1, 8]])),  # not between these nodes
        (torch.zeros(0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)),
    ],
)
def test_other_inputs_are_no_batches_of_graphs(arguments):
    assert graph_batch_facts([Call(arguments)]) is None


class Pooling(nn.Module):
    """Messages along edges, and an attention over the nodes of each graph, or of all."""

    def __init__(self, kind, of_nodes=False):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.of_nodes = kind, of_nodes
        self.message, self.score = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, nodes, edges, owner):
        hidden = self.message(nodes).relu()
        hidden = hidden + torch.zeros_like(hidden).index_add(0, edges[1], hidden[edges[0]])
        graphs = int(owner[-1]) + 1
        weights = self.score(hidden).exp()
        sums = torch.zeros(graphs, 1).index_add(0, owner, weights)
        if self.kind == "attention over all":
            sums = sums.sum(0, keepdim=True).expand(graphs, 1)
        if self.kind == "norm over all":
            hidden = hidden - hidden.mean(0)
        if self.of_nodes:
            return weights / sums[owner] * hidden
        return torch.zeros(graphs, 8).index_add(0, owner, weights / sums[owner] * hidden)


@pytest.mark.parametrize("of_nodes", [False, True])
@pytest.mark.parametrize("kind", ["of each", "attention over all", "norm over all"])
def test_graphs_that_depend_on_others_of_their_batch_are_found(kind, of_nodes):
    torch.manual_seed(1)
    change = graph_mixing(Pooling(kind, of_nodes).eval(), Call(batch(shifted=True)))
    assert (change > GRAPHS_MIXED) == (kind != "of each")


def test_graphs_that_an_edge_joins_are_not_compared():
    nodes, edges, owner = batch(shifted=True)
    bridge = torch.tensor([[0], [len(owner) - 1]])
    joined = torch.cat([edges, bridge], dim=1)
    assert graph_mixing(Pooling("of each").eval(), Call((nodes, joined, owner))) is None


class Spread(nn.Module):
    """Sends what nodes hold along the edges of one graph, given as two rows."""

    def forward(self, nodes, sources, ends):
        return torch.zeros_like(nodes).index_add(0, ends, nodes[sources])


def test_the_rows_of_one_graphs_edges_are_no_graphs_of_nodes():
    torch.manual_seed(1)
    nodes, linked = torch.randn(40, 3), torch.rand(40, 40).fill_diagonal_(1) > 0.9
    sources, ends = linked.nonzero(as_tuple=True)
    assert graph_mixing(Spread(), Call((nodes, sources, ends))) is None


class Checked(Pooling):
    """Takes no values but those that it has seen."""

    def forward(self, nodes, edges, owner):
        assert nodes.double().sum() == self.known
        return super().forward(nodes, edges, owner)


def test_a_model_that_refuses_other_nodes_is_left_alone():
    given = batch(shifted=True)
    model = Checked("of each").eval()
    model.known = given[0].double().sum()
    assert graph_mixing(model, Call(given)) is None


@pytest.mark.parametrize("kind", [torch.int16, torch.int32])
def test_edges_of_any_whole_numbers_are_read(kind):
    nodes, edges, owner = batch(shifted=True)
    facts = graph_batch_facts([Call((nodes, edges.to(kind), owner.to(kind)))])
    assert facts.overlaid == 0
