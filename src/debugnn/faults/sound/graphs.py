"""Graphs whose nodes are named, all of them in each step, and batches of small graphs."""

from functools import partial

from debugnn.faults.loops import graph, small_graphs
from debugnn.faults.program import Build

TUNING: dict[str, Build] = {
    "graph_dense": partial(graph, form="dense"),
    "graph_edges": partial(graph, form="edges"),
    "small_graphs": small_graphs,
}

HELD_OUT: dict[str, Build] = {
    "graph_sparse": partial(graph, form="sparse"),
    "graph_held": partial(graph, form="held"),
}
