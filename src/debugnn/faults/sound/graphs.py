"""Graphs whose nodes are named, all of them in each step, and batches of small graphs."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam

from debugnn.faults.loops import Batch, train_on
from debugnn.faults.nets import mlp
from debugnn.faults.program import Build, MakeObserver, Observer, Setup


class Convolving(nn.Module):
    """A two-layer graph net, which is given the graph in the form that `spread` multiplies with."""

    def __init__(self, spread: Callable[[Any, Tensor], Tensor], features: int, kinds: int) -> None:
        super().__init__()
        self.spread = spread
        self.first, self.second = nn.Linear(features, 24), nn.Linear(24, kinds)

    def forward(self, x: Tensor, graph: Any) -> Tensor:
        hidden = F.relu(self.spread(graph, self.first(x)))
        return self.spread(graph, self.second(hidden))


class Holding(Convolving):
    """The same net, which holds its graph."""

    def __init__(self, graph: Tensor, features: int, kinds: int) -> None:
        super().__init__(torch.matmul, features, kinds)
        self.graph: Tensor
        self.register_buffer("graph", graph)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, self.graph)


def neighbours_mean(edges: Tensor, x: Tensor) -> Tensor:
    """Return the mean over each node's neighbours. Edges (2, E) lead from the first row's nodes."""
    total = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
    return total / torch.bincount(edges[1], minlength=len(x)).clamp_min(1)[:, None]


def graph(seed: int, form: str, nodes: int = 360, kinds: int = 3) -> Setup:
    """Nodes of a graph whose neighbours are mostly of their kind, all of them at each step.

    Args:
        form: of the graph: `dense`, `sparse`, `edges`, or `held` by the model.
    """
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(kinds, (nodes,), generator=draw)
    chance = torch.where(kind[:, None] == kind, 0.08, 0.01)
    linked = torch.bernoulli(chance, generator=draw).triu(1)
    linked = linked + linked.T + torch.eye(nodes)
    features = torch.randn(nodes, 12, generator=draw) + 0.7 * F.one_hot(kind, 12)
    mean = linked / linked.sum(dim=1, keepdim=True)
    forms: dict[str, tuple[Any, Callable[[Any, Tensor], Tensor]]] = {
        "dense": (mean, torch.matmul),
        "sparse": (mean.to_sparse(), torch.sparse.mm),
        "edges": (linked.nonzero().T.contiguous(), neighbours_mean),
        "held": (None, torch.matmul),
    }
    given, spread = forms[form]
    model = Holding(mean, 12, kinds) if form == "held" else Convolving(spread, 12, kinds)
    known = torch.rand(nodes, generator=draw) < 0.5

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        (x, y), (_, wanted) = setup.train, setup.val
        arguments = (x,) if form == "held" else (x, given)

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for _ in range(20):
                yield arguments, y

        return train_on(setup, batches, (arguments, wanted), False, seed, make_observer)

    train = features, torch.where(known, kind, -100)
    val = features, torch.where(known, -100, kind)
    return Setup(model, F.cross_entropy, partial(Adam, lr=1e-2), train, val, epochs=8, loop=loop)


class Messages(nn.Module):
    """Sums over the nodes of each graph, after messages along the edges."""

    def __init__(self, kinds: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(kinds, width)
        self.own, self.others = nn.Linear(width, width), nn.Linear(width, width)
        self.head = mlp(width, width, 1)

    def forward(self, x: Tensor, edges: Tensor, owner: Tensor) -> Tensor:
        h = self.embedding(x)
        sent = torch.zeros_like(h).index_add(0, edges[1], self.others(h)[edges[0]])
        h = torch.relu(self.own(h) + sent)
        graphs = int(owner[-1]) + 1
        return h.new_zeros(graphs, 1).index_add(0, owner, self.head(h))


def small_graphs(seed: int, graphs: int = 900, kinds: int = 4) -> Setup:
    """Many small graphs, 32 to a batch: how many of its edges join nodes of the same kind.

    `change_batch` takes the arguments and the targets of each batch, validation's too.
    """
    draw = torch.Generator().manual_seed(seed)
    made = []
    for size in torch.randint(5, 11, (graphs,), generator=draw).tolist():
        kind = torch.randint(kinds, (size,), generator=draw)
        linked = torch.bernoulli(torch.full((size, size), 0.4), generator=draw).triu(1)
        linked[0, 1] = 1  # an edge in each graph
        pairs = linked.nonzero().T
        equal = (kind[pairs[0]] == kind[pairs[1]]).sum()
        made.append((kind, torch.cat([pairs, pairs.flip(0)], dim=1), equal))
    counts = torch.stack([equal for *_, equal in made]).float()
    wanted = ((counts - counts.mean()) / counts.std())[:, None]

    def together(chosen: list[int]) -> Batch:
        nodes, edges, owner, before = [], [], [], 0
        for number, index in enumerate(chosen):
            kind, pairs, _ = made[index]
            nodes.append(kind)
            edges.append(pairs + before)
            owner.append(torch.full((len(kind),), number))
            before += len(kind)
        return (torch.cat(nodes), torch.cat(edges, dim=1), torch.cat(owner)), wanted[chosen]

    known = 2 * graphs // 3

    def loop(setup: Setup, seed: int, make_observer: MakeObserver) -> Observer:
        change: Any = setup.change_batch or (lambda *batch: batch)

        def batches(shuffle: torch.Generator) -> Iterator[Batch]:
            for chosen in torch.randperm(known, generator=shuffle).split(setup.batch_size):
                yield change(*together(chosen.tolist()))

        validation = change(*together(list(range(known, graphs))))
        return train_on(setup, batches, validation, False, seed, make_observer)

    data = counts[:known, None], wanted[:known]
    return Setup(
        Messages(kinds, 32), F.mse_loss, partial(Adam, lr=3e-3), data, data, epochs=14, loop=loop
    )  # fmt: skip


TUNING: dict[str, Build] = {
    "graph_dense": partial(graph, form="dense"),
    "graph_edges": partial(graph, form="edges"),
    "small_graphs": small_graphs,
}

HELD_OUT: dict[str, Build] = {
    "graph_sparse": partial(graph, form="sparse"),
    "graph_held": partial(graph, form="held"),
}
