"""A sample's output depends on other samples of its batch."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals.network import MIXED, evaluations_differ
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.evidence import Evidence

# Sizes of batches beyond which each may be a set, or a sequence, of its own length. A loader makes
# two: full batches and a smaller last one.
SIZES = 2
# Share of the steps that begin with the state as the step before left it. A loop that resets it at
# the start of each epoch begins nearly all others with it; one that resets it for each batch, none.
CARRIED = 0.8
# Share of the repeated samples that follow another sample than the last time. Parts of sequences
# that are kept in order differ only at the starts of sequences.
REORDERED = 0.9
# Fewest steps, and fewest samples, for such a share: a share of fewer may be due to chance.
COMPARED = 20
# Dependence of neighbours along an axis above which it is the axis of a sequence, and below which
# it is the axis of shuffled samples. 4,000 pairs of independent symbols give up to 0.02.
DEPENDENT = 0.1
INDEPENDENT = 0.04
# Graphs in each batch. All edges of three may lie in the first by chance, where few have edges.
GRAPHS = 4
# Change of a graph's output by other graphs' nodes, over the graphs' spread. It is 0, up to
# rounding, where none meet; a softmax over all nodes of 32 graphs has 0.015.
GRAPHS_MIXED = 1e-3


def mixed_samples(evidence: Evidence) -> Iterator[Sign]:
    """In evaluation mode, outputs change as other samples' inputs do.

    Where no gradient passes from one to the other, they share a number that is taken as a constant,
    as the scale that a batch is rounded by: that is a note.
    """
    network = evidence.network
    if network.mixing is None or network.mixing <= MIXED:
        return
    # A last softmax over the samples is a loss that does not fit, where the task is known.
    if (network.batch_softmax and evidence.task != "unknown") or evaluations_differ(evidence):
        return
    passed = network.mixing_by_gradient is not False
    certain = passed and (network.sample_axis_told or not _may_be_one_set(evidence))
    layers = (name for name, change in network.mixing_layers.items() if name and change > MIXED)
    how = "" if passed else ", by way of a number that no gradient goes through"
    yield Sign(
        severity(evidence) if certain else "note",
        f"a sample's output changes by {100 * network.mixing:.3g} % when only other samples of the "
        f"batch change, in evaluation mode{how}",
        layer=next(layers, None),
        fix=None
        if passed
        else "take such a number (a largest value, a mean) of each sample by itself, or keep a "
        "running one for evaluation, as quantisation's observers do",
        confidence="certain" if certain else "suspected",
        evidence={"relative_change": network.mixing},
    )


def mixed_before_the_output(evidence: Evidence) -> Iterator[Sign]:
    """In evaluation mode, a layer's outputs change as other samples' inputs do, and the network's
    outputs follow no input."""
    network = evidence.network
    mixed = {name: change for name, change in network.mixing_layers.items() if change > MIXED}
    if network.mixing is not None or network.axis_dependence or not mixed:
        return
    if evaluations_differ(evidence) or _may_be_one_set(evidence):
        return
    layer = next(iter(mixed))
    yield Sign(
        "error",
        f"the outputs do not depend on the inputs at all, and what `{layer}` makes of a sample "
        f"changes by {100 * mixed[layer]:.3g} % when only other samples of the batch change: it "
        "runs over the batch, as if axis 0 were that of a sequence, and not over the sample",
        fix="batch_first=True, or inputs of shape (sequence, batch, ...) as the layer expects them",
        layer=layer,
        confidence="certain",
        harm="nothing of a sample arrives at the position that its output is made from",
        evidence={"changes": mixed},
    )


def runs_over_the_batch(evidence: Evidence) -> Iterator[Sign]:
    """Entries along one axis depend on each other and those along the other do not, as of sequences
    with their time along the one axis; and the data have it the other way round."""
    found, dependence = evidence.data.neighbours, evidence.network.axis_dependence
    if found is None:
        return
    along = (found.first, found.second)
    over = next((a for a in (0, 1) if dependence.get(a) in ("all", "earlier", "later")), None)
    if over is None or along[1 - over] < DEPENDENT or along[over] > INDEPENDENT:
        return
    if over == 0:
        fix = (
            "batch_first=True, or inputs of shape (time, batch, ...) as the layer expects them. If "
            "the first axis is time, say so: Doctor(..., sample_axis=1)"
        )
    else:
        fix = (
            "batch_first=False, or inputs of shape (batch, time, ...) as the layer expects them. "
            "If the second axis is time, say so: Doctor(..., sample_axis=0)"
        )
    yield Sign(
        severity(evidence),
        f"outputs depend on other entries along axis {over} of the inputs, and on none along axis "
        f"{1 - over}, as if axis {over} were time. Of the {found.values}, neighbours along axis "
        f"{1 - over} depend on each other ({along[1 - over]:.2f}, of 1) and neighbours along axis "
        f"{over} do not ({along[over]:.2f}): axis {over} holds the samples",
        fix=fix,
        confidence="certain",
        harm="the network looks at other samples instead of at the rest of the sequence",
        evidence={"neighbours_along_axis_0": found.first, "neighbours_along_axis_1": found.second},
    )


def _may_be_one_set(evidence: Evidence) -> bool:
    """True where a batch may be one graph, set or sequence, whose entries depend on each other."""
    return evidence.data.same_batch is not False or evidence.data.batch_sizes > SIZES


def _are_not_apart(evidence: Evidence) -> bool:
    """True where samples were told to depend on each other."""
    return evidence.network.sample_axis_told and evidence.network.sample_axis is None


def place_in_the_batch(evidence: Evidence) -> Iterator[Sign]:
    """In evaluation mode, a sample's output changes as all samples of the batch move up by one.

    Only of what is known to be samples: words of one sentence have a place in it.
    """
    network = evidence.network
    if network.place_change is None or network.place_change <= MIXED:
        return
    if network.mixing is None or network.mixing > MIXED or evaluations_differ(evidence):
        return
    certain = network.sample_axis_told or not _may_be_one_set(evidence)
    yield Sign(
        severity(evidence) if certain else "note",
        f"a sample's output changes by {100 * network.place_change:.3g} % with its place in the "
        "batch, in evaluation mode",
        fix="look for something that is added or chosen by the index in the batch: a positional "
        "encoding over axis 0 of batch-first inputs, torch.arange(len(x))",
        confidence="certain" if certain else "suspected",
        evidence={"relative_change": network.place_change},
        harm="a prediction depends on where in the batch its sample happens to stand",
    )


def state_of_others(evidence: Evidence) -> Iterator[Sign]:
    """The model goes on from a state that samples of another batch have left in it."""
    state = evidence.network.state
    if state is None or state.change is None or state.change <= MIXED:
        return
    if state.compared < COMPARED or state.carried < CARRIED * state.compared:
        return
    if state.came_again < COMPARED or state.after_another < REORDERED * state.came_again:
        return
    path = state.paths[0]
    yield Sign(
        severity(evidence),
        f"`{path}` is passed on from batch to batch while the samples are shuffled: a sample's "
        f"output changes by {100 * state.change:.3g} % with the unrelated sample that had its "
        "place in the batch before",
        layer=path.rpartition(".")[0] or None,
        fix=f"reset `{path}` at the start of every batch, in training and in evaluation, or hand "
        "the state to the model as an argument. Where batches are parts of longer sequences, keep "
        "them in order: shuffle=False",
        harm="every sample begins with the state that another one has left",
        line=evidence.loop.training_line,
        evidence={"relative_change": state.change, "carried": state.carried / state.compared},
    )


def overlaid_graphs(evidence: Evidence) -> Iterator[Sign]:
    """The edges of each graph of a batch are numbered from 0: they join its first nodes."""
    graphs = evidence.data.graphs
    if graphs is None or graphs.overlaid < graphs.batches or graphs.fewest_graphs < GRAPHS:
        return
    alone = graphs.alone / graphs.nodes
    yield Sign(
        severity(evidence),
        f"the edges of all graphs of a batch ({graphs.fewest_graphs} and more) lie between its "
        f"first nodes, and {100 * alone:.0f} % of the nodes have none: each graph's edges are "
        "numbered from 0",
        fix="where graphs are put together to a batch, add to the edge indices of each one the "
        "number of nodes before it",
        harm="messages pass between nodes of different graphs, and most nodes get none",
        evidence={"batches": graphs.batches, "nodes_without_edges": alone},
    )


def mixed_graphs(evidence: Evidence) -> Iterator[Sign]:
    """In evaluation mode, a graph's output changes as the nodes of other graphs do, to which no
    edge leads."""
    change = evidence.network.graph_mixing
    if change is None or change <= GRAPHS_MIXED or _are_not_apart(evidence):
        return
    yield Sign(
        severity(evidence),
        f"a graph's output changes by {100 * change:.3g} % when only nodes of other graphs of the "
        "batch change, in evaluation mode, and no edge joins them",
        fix="a softmax, a sum or a norm over all nodes of a batch runs over all its graphs: let it "
        "run over those of each graph, by the tensor that tells a node's graph",
        harm="a graph's prediction depends on which other graphs happen to be in the batch",
        evidence={"relative_change": change},
    )


def normalised_over_the_batch(evidence: Evidence) -> Iterator[Sign]:
    """Outputs whose features have length 1 over the samples, as those of each sample should."""
    if not evidence.network.unit_features or _are_not_apart(evidence):
        return
    certain = not _may_be_one_set(evidence)
    yield Sign(
        severity(evidence) if certain else "note",
        "each feature of the outputs has length 1 over the samples of the batch, and samples have "
        "other lengths over their features: they are normalised over the batch axis",
        fix="normalise each sample: F.normalize(outputs, dim=1)",
        confidence="certain" if certain else "suspected",
    )


CAUSE = Cause(
    name="batch_mixing",
    meaning="a sample's output depends on other samples",
    kind=Kind.CERTAIN,
    rules=(
        mixed_samples,
        mixed_before_the_output,
        runs_over_the_batch,
        place_in_the_batch,
        state_of_others,
        overlaid_graphs,
        mixed_graphs,
        normalised_over_the_batch,
    ),
    fix="keep the batch axis apart: look for view or reshape where permute is meant, batch_first, "
    "and statistics or attention over axis 0. If samples lie along another axis, or depend on each "
    "other on purpose, say so: Doctor(..., sample_axis=1) or Doctor(..., sample_axis=None)",
    harm="a prediction depends on which other samples happen to be in the batch",
    source="Lightning issue 1237",
)
