"""Graphs whose nodes are named, all of them in each step."""

from functools import partial

from debugnn.faults.loops import graph
from debugnn.faults.program import Build

TUNING: dict[str, Build] = {
    "graph_dense": partial(graph, form="dense"),
    "graph_edges": partial(graph, form="edges"),
}

HELD_OUT: dict[str, Build] = {
    "graph_sparse": partial(graph, form="sparse"),
    "graph_held": partial(graph, form="held"),
}
