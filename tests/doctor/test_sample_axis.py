"""Along which axis samples lie, and what is said of models that mix them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from debugnn.doctor import Doctor
from debugnn.doctor.causes import CAUSES
from debugnn.doctor.evidence import Evidence
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.sample_axis import Samples, find_samples

T, B, E = 7, 5, 6  # time steps, samples, features
CLASSES = 3
RECURRENT = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)


class Net(nn.Module):
    """Modules by name, and a forward pass as a function of them and of the arguments."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def look(model, *args, targets=None, told="find", **kwargs) -> Samples:
    with without_dropout(model, training=False):
        return find_samples(model, Call(args, kwargs), targets, told)


def language_model(kind="lstm", batch_first=False, flat=False, bidirectional=False):
    cell = RECURRENT[kind](E, 8, batch_first=batch_first, bidirectional=bidirectional)

    def forward(s, x, state=None):
        out, state = s.cell(s.embedding(x), state)
        out = s.head(out)
        return (out.flatten(0, 1) if flat else out), state

    width = 16 if bidirectional else 8
    return Net(forward, embedding=nn.Embedding(11, E), cell=cell, head=nn.Linear(width, CLASSES))


def causal(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)

    def forward(s, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1 if batch_first else 0])
        return s.head(s.layer(s.embedding(x), src_mask=mask))

    return Net(forward, embedding=nn.Embedding(11, 8), layer=layer, head=nn.Linear(8, CLASSES))


def tokens(*shape):
    return torch.randint(11, shape)


# --- a time axis shows as a triangle ------------------------------------------------------------


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("handed", [False, True])
def test_time_first_is_seen(kind, flat, handed):
    x = tokens(T, B)
    state = torch.zeros(1, B, 8)
    state = (state, state.clone()) if kind == "lstm" else state
    targets = tokens(T * B) if flat else tokens(T, B)
    found = look(language_model(kind, flat=flat), x, *([state] if handed else []), targets=targets)
    assert found.layout.axis == 1
    assert found.dependence == {0: "earlier", 1: "apart"}
    assert found.mixing == 0
    assert found.count == B
    assert found.layout.verified


@pytest.mark.parametrize("flat", [False, True])
def test_batch_first_is_seen(flat):
    found = look(language_model(batch_first=True, flat=flat), tokens(B, T), targets=tokens(B, T))
    assert found.layout.axis == 0
    assert found.dependence == {0: "apart", 1: "earlier"}
    assert found.mixing == 0


def test_as_many_steps_as_samples_are_told_apart():
    for first in (True, False):
        found = look(language_model(batch_first=first), tokens(B, B), targets=tokens(B, B))
        assert found.layout.axis == (0 if first else 1)
        assert found.dependence[0 if first else 1] == "apart"


def test_what_is_read_backwards_depends_on_later_positions():
    model = language_model(batch_first=True)
    backwards = Net(lambda s, x: s.model(x.flip(1))[0].flip(1), model=model)
    assert look(backwards, tokens(B, T)).dependence == {0: "apart", 1: "later"}
    both = language_model(batch_first=True, bidirectional=True)
    assert look(both, tokens(B, T)).dependence == {0: "apart", 1: "all"}


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_causal_mask_shows_as_a_triangle(batch_first):
    shape = (B, T) if batch_first else (T, B)
    found = look(causal(batch_first), tokens(*shape), targets=tokens(*shape))
    time = 1 if batch_first else 0
    assert found.dependence == {time: "earlier", 1 - time: "apart"}
    assert found.layout.axis == 1 - time


def test_one_class_for_each_sequence_tells_the_axis():
    cell = nn.LSTM(E, 8)
    model = Net(lambda s, x: s.out(s.cell(x)[0][-1]), cell=cell, out=nn.Linear(8, CLASSES))
    found = look(model, torch.randn(T, B, E), targets=tokens(B))
    assert found.layout.axis == 1
    assert found.dependence == {1: "apart"}
    assert found.mixing == 0


def test_a_last_layer_that_starts_at_zero_hides_nothing():
    model = language_model()
    for parameter in model.head.parameters():
        nn.init.zeros_(parameter)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = look(model, tokens(T, B), targets=tokens(T, B))
    assert found.dependence == {0: "earlier", 1: "apart"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_noise_that_an_evaluation_draws_is_no_dependence():
    model = Net(
        lambda s, x: s.last(s.first(x) + torch.randn(len(x), 8)),
        first=nn.Linear(E, 8), last=nn.Linear(8, CLASSES),
    )  # fmt: skip
    found = look(model, torch.randn(B, E), targets=tokens(B))
    assert found.dependence[0] == "apart"
    assert found.mixing == 0


def test_of_a_model_that_remembers_nothing_is_said():
    calls = []
    model = Net(lambda s, x: calls.append(x) or s.last(x) + len(calls), last=nn.Linear(E, CLASSES))
    found = look(model, torch.randn(B, E), targets=tokens(B))
    assert (found.dependence, found.mixing) == ({}, None)


# --- what mixes entries by right ----------------------------------------------------------------


NODES = 12
GRAPH = torch.bernoulli(torch.full((NODES, NODES), 0.5), generator=torch.Generator().manual_seed(1))
EDGES = GRAPH.nonzero().T.contiguous()


def graph_net(spread):
    return Net(
        lambda s, x, graph=None: s.last(spread(graph, torch.relu(s.first(x)))),
        first=nn.Linear(E, 8), last=nn.Linear(8, CLASSES),
    )  # fmt: skip


def along_edges(edges, x):
    return torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])


def tower():
    """Similarities of all pairs of a batch."""
    return Net(lambda s, a, b: s.one(a) @ s.two(b).T, one=nn.Linear(E, 8), two=nn.Linear(E, 8))


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(E, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, packed):
        return self.head(pad_packed_sequence(self.cell(packed)[0], batch_first=True)[0])


NOT_APART = {
    "a dense graph": (graph_net(torch.matmul), (torch.randn(NODES, E), GRAPH)),
    "a sparse graph": (graph_net(torch.sparse.mm), (torch.randn(NODES, E), GRAPH.to_sparse())),
    "edges": (graph_net(along_edges), (torch.randn(NODES, E), EDGES)),
    "a graph that the model holds": (
        graph_net(lambda _, x: GRAPH @ x), (torch.randn(NODES, E),),
    ),
    "pairs of a batch": (tower(), (torch.randn(NODES, E), torch.randn(NODES, E))),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_APART)
def test_entries_that_belong_together_are_no_samples(name):
    model, args = NOT_APART[name]
    found = look(model, *args, targets=torch.randint(CLASSES, (NODES,)))
    assert found.layout.axis is None
    assert found.dependence[0] == "all"
    assert found.mixing is None
    assert found.count is None
    call = Call(args)
    assert found.layout.take(call, slice(4))[0] is call


def test_packed_sequences_are_not_parted():
    rows = torch.randn(B, T, E)
    packed = pack_padded_sequence(rows, torch.tensor([7, 6, 4, 4, 2]), batch_first=True)
    found = look(Packed(), packed, targets=tokens(B, T))
    assert found.mixing is None
    call = Call((packed,))
    assert found.layout.take(call, slice(2))[0] is call


@pytest.mark.parametrize("shape", [(T,), (T, 1)], ids=["(T,)", "(T, 1)"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_one_sequence_a_step_is_not_accused(shape, bidirectional):
    cell = nn.LSTM(E, 8, bidirectional=bidirectional)

    def forward(s, x):
        return s.head(s.cell(s.embedding(x).view(len(x), 1, -1))[0].view(len(x), -1))

    head = nn.Linear(16 if bidirectional else 8, CLASSES)
    model = Net(forward, embedding=nn.Embedding(11, E), cell=cell, head=head)
    found = look(model, tokens(*shape), targets=tokens(T))
    assert found.dependence[0] == ("all" if bidirectional else "earlier")
    assert found.mixing is None


def test_a_series_that_is_filtered_along_its_first_axis_is_not_accused():
    filtered = nn.Conv1d(E, 8, 5, padding=2)
    model = Net(lambda s, x: s.last(s.conv(x.T).T), conv=filtered, last=nn.Linear(8, CLASSES))
    found = look(model, torch.randn(20, E), targets=tokens(20))
    assert found.dependence[0] == "all"
    assert found.mixing is None


def test_without_targets_nobody_is_accused():
    model = Net(lambda s, x: s.last(x - x.mean(dim=0)), last=nn.Linear(E, CLASSES))
    found = look(model, torch.randn(B, E))
    assert found.dependence[0] == "all"
    assert found.mixing is None


def test_batch_norm_without_statistics_is_no_mixing():
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    model = nn.Sequential(nn.Linear(E, 8), norm, nn.ReLU(), nn.Linear(8, CLASSES))
    found = look(model, torch.randn(B, E), targets=tokens(B))
    assert found.mixing == 0
    assert norm.running_mean is None
    assert norm.running_var is None


# --- what mixes samples -------------------------------------------------------------------------


def attention(over_batch):
    layer = nn.MultiheadAttention(E, 2, batch_first=not over_batch)
    return Net(
        lambda s, x: s.out(s.layer(x, x, x)[0].mean(dim=1)), layer=layer, out=nn.Linear(E, CLASSES)
    )


MIXING = {
    "batch_first left out": (
        Net(
            lambda s, x: s.out(s.cell(x)[0][:, -1]),
            cell=nn.LSTM(E, 8), out=nn.Linear(8, CLASSES),
        ),
        (torch.randn(B, T, E),),
    ),
    "batch_first left out, each step has an output": (
        Net(lambda s, x: s.out(s.cell(x)[0]), cell=nn.GRU(E, 8), out=nn.Linear(8, CLASSES)),
        (torch.randn(B, T, E),),
    ),
    "attention over the batch": (attention(over_batch=True), (torch.randn(B, T, E),)),
    "batch statistics": (
        Net(lambda s, x: s.out((x - x.mean(0)) / x.std(0)), out=nn.Linear(E, CLASSES)),
        (torch.randn(B, E),),
    ),
    "softmax over the batch": (
        Net(lambda s, x: s.out(x * x.softmax(0)), out=nn.Linear(E, CLASSES)), (torch.randn(B, E),),
    ),
    "attention between rows of a table": (
        Net(lambda s, x: s.out((x @ x.T / E).softmax(1) @ x), out=nn.Linear(E, CLASSES)),
        (torch.randn(B, E),),
    ),
    "view for permute": (
        Net(lambda s, x: s.out(x.view(x.shape[1], len(x), E).transpose(0, 1).flatten(1)),
            out=nn.Linear(T * E, CLASSES)),
        (torch.randn(B, T, E),),
    ),
    "one argument of two": (
        Net(lambda s, x, z: s.out(torch.cat([x, z - z.mean(0)], 1)), out=nn.Linear(E + 2, CLASSES)),
        (torch.randn(B, E), torch.randn(B, 2)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING)
def test_samples_that_mix_are_seen(name):
    model, args = MIXING[name]
    found = look(model, *args, targets=tokens(B))
    assert found.layout.axis == 0
    assert found.dependence[0] != "apart"
    assert found.mixing > 0.01


READERS = {
    "recurrence over the batch": (lambda x: x.permute(2, 0, 1), True),
    "recurrence over time": (lambda x: x.permute(2, 0, 1), False),
    "reshape for permute": (lambda x: x.reshape(x.shape[2], len(x), -1), False),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("labels", [T, 3])  # one for each step, and fewer, as ctc_loss takes them
def test_samples_that_mix_are_seen_in_outputs_with_time_first(name, labels):
    """Images are batch-first, and so are their labels; the scores are (T, B, classes)."""
    arrange, over_batch = READERS[name]
    model = Net(
        lambda s, x: s.out(s.cell(arrange(s.conv(x).flatten(1, 2)))[0]),
        conv=nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(inplace=True)),
        cell=nn.GRU(2 * E, 8, batch_first=over_batch), out=nn.Linear(8, CLASSES),
    )  # fmt: skip
    found = look(model, torch.randn(B, 1, E, T), targets=tokens(B, labels))
    assert found.layout.axis == 0
    if name == "recurrence over time":
        assert found.mixing == 0
        return
    assert found.mixing > 0.01
    assert next(layer for layer, change in found.mixing_layers.items() if change > 0.01) == "cell"


@pytest.mark.parametrize(
    ("read", "used"),
    [
        (lambda out: out[:, -1], (True, True)),
        (lambda out: out[:, 0], (True, False)),
        (lambda out: out.mean(dim=1), (True, True)),
        (lambda out: out[:, T // 2 :].mean(dim=1), (True, True)),
        (lambda out: out, None),  # an output for each position
    ],
)
def test_the_halves_of_a_sequence_that_outputs_depend_on(read, used):
    model = Net(
        lambda s, x: s.head(read(s.cell(x)[0])),
        cell=nn.GRU(E, 8, batch_first=True), head=nn.Linear(8, CLASSES),
    )  # fmt: skip
    assert look(model, torch.randn(16, T, E)).halves_used == used


def with_a_token_in_front(batch_first):
    """A class token in front of each sequence, whose outputs are read at the token."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=batch_first, norm_first=True)
    net = Net(
        lambda s, x: s.head(
            s.encoder(torch.cat([s.token.expand(len(x), 1, 8), s.take_in(x)], dim=1))[:, 0]
        ),
        take_in=nn.Linear(E, 8),
        encoder=nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
        head=nn.Linear(8, CLASSES),
    )  # fmt: skip
    net.token = nn.Parameter(torch.randn(1, 1, 8))
    return net


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_over_the_batch_is_seen_behind_outputs_that_follow_no_input(batch_first):
    model, inputs = with_a_token_in_front(batch_first), torch.randn(16, T, E)
    targets = torch.arange(16) % CLASSES
    found = look(model, inputs, targets=targets)
    assert bool(found.dependence) == batch_first
    assert found.mixing == (0 if batch_first else None)
    assert any(change > 0.01 for change in found.mixing_layers.values()) != batch_first
    optimizer = torch.optim.Adam(model.parameters())
    with Doctor(model, optimizer, loss_fn=F.cross_entropy) as doctor:
        for _ in range(60):
            x = torch.randn(16, T, E)
            loss = F.cross_entropy(model(x), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss, x, targets)
        named = [f.confidence for f in doctor.report().findings if f.cause == "batch_mixing"]
    assert named == ([] if batch_first else ["certain"])


def rounded(x, whole, straight):
    """Round by the mean size of the batch's values, or of each sample's."""
    largest = 3 * (x.abs().mean() if whole else x.abs().mean(dim=1, keepdim=True))
    scale = largest / 7 if straight == "with a gradient" else largest.detach() / 7
    if straight == "without one":
        return x + (torch.round(x / scale) * scale - x).detach()
    return x / scale


@pytest.mark.parametrize(
    ("whole", "straight", "by_gradient"),
    [
        (True, "without one", False),
        (True, "with a gradient", True),
        (True, "detached", False),
        (False, "without one", None),
    ],
)
def test_a_scale_of_the_batch_that_is_taken_as_a_constant_passes_no_gradient(
    whole, straight, by_gradient
):
    model = Net(
        lambda s, x: s.head(rounded(torch.relu(s.body(x)), whole, straight)),
        body=nn.Linear(E, 8), head=nn.Linear(8, CLASSES),
    )  # fmt: skip
    found = look(model, torch.randn(16, E), targets=torch.arange(16) % CLASSES)
    assert (found.mixing > 0.01) == whole
    assert found.mixing_by_gradient is by_gradient


def test_a_pass_with_the_time_axis_first_that_takes_it_for_the_samples_is_seen():
    model = Net(
        lambda s, x: s.out(s.cell(x)[0].mean(dim=0)),
        cell=nn.GRU(E, 8, batch_first=True), out=nn.Linear(8, CLASSES),
    )  # fmt: skip
    found = look(model, torch.randn(T, B, E), targets=tokens(B))
    assert found.layout.axis == 1
    assert found.mixing > 0.01


# --- an axis that is told -----------------------------------------------------------------------


def test_a_told_axis_is_taken_and_judged():
    found = look(graph_net(torch.matmul), torch.randn(NODES, E), GRAPH, told=0)
    assert found.told
    assert found.layout.axis == 0
    assert found.mixing > 0.01
    series = language_model(batch_first=True)
    found = look(series, tokens(B, T), targets=tokens(B, T), told=1)
    assert found.layout.axis == 1
    assert found.mixing > 0.01


def test_samples_that_are_told_not_to_be_apart_are_not_accused():
    model, args = MIXING["batch statistics"]
    found = look(model, *args, targets=tokens(B), told=None)
    assert found.layout.axis is None
    assert found.dependence[0] == "all"
    assert found.mixing is None


# --- taking some of them ------------------------------------------------------------------------


def test_what_samples_share_is_left_whole_where_that_gives_the_same_outputs():
    table = nn.Embedding(11, 4).weight.detach()
    model = Net(lambda s, x, t: s.out(x) @ t.T, out=nn.Linear(E, 4))
    found = look(model, torch.randn(B, E), table, targets=tokens(B))
    assert found.layout.verified
    call, _ = found.layout.take(Call((torch.randn(B, E), table)), slice(2))
    assert call.args[0].shape == (2, E)
    assert call.args[1] is table


def test_a_model_of_one_batch_size_is_not_given_another():
    model = Net(lambda s, x: s.out(x.view(B, -1)), out=nn.Linear(E, CLASSES))
    found = look(model, torch.randn(B, E), targets=tokens(B))
    assert found.layout.axis == 0
    assert not found.layout.divisible
    assert found.mixing == 0


def test_masks_and_keywords_are_no_inputs():
    def forward(s, attention_mask, input_ids):
        hidden = s.embedding(input_ids) * attention_mask[:, :, None]
        return {"loss": hidden.sum(), "logits": s.head(hidden.mean(dim=1))}

    model = Net(forward, embedding=nn.Embedding(11, E), head=nn.Linear(E, CLASSES))
    ids = tokens(B, T)
    found = look(model, attention_mask=ids > 2, input_ids=ids, targets=tokens(B))
    assert found.layout.inputs(Call((), {"attention_mask": ids > 2, "input_ids": ids})) is ids
    assert found.layout.axis == 0
    assert found.mixing == 0


def test_looking_leaves_weights_and_statistics():
    model = nn.Sequential(nn.Linear(E, 8), nn.BatchNorm1d(8), nn.Linear(8, CLASSES))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(B, E)
    kept = x.clone()
    look(model, x, targets=tokens(B))
    assert torch.equal(x, kept)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert F.mse_loss(model[0].weight, before["0.weight"]) == 0


# --- what is said of it ---------------------------------------------------------------------------


def verdict_on(told=False, **facts):
    """Return severity and confidence of what is said of mixed samples of a batch."""
    evidence = Evidence()
    evidence.network.mixing, evidence.network.sample_axis_told = 0.5, told
    for name, value in facts.items():
        setattr(evidence.data, name, value)
    (finding,) = CAUSES["batch_mixing"].findings(evidence)
    return finding.severity, finding.confidence


def test_mixed_samples_of_batches_that_differ_are_a_certain_fault():
    assert verdict_on(same_batch=False, batch_sizes=2) == ("warning", "certain")


@pytest.mark.parametrize(
    "facts", [{"same_batch": True}, {"same_batch": None}, {"batch_sizes": 3}], ids=str
)
def test_of_one_set_or_sets_of_many_sizes_it_is_a_note_unless_the_axis_was_told(facts):
    assert verdict_on(**facts) == ("note", "suspected")
    assert verdict_on(told=True, **facts) == ("warning", "certain")
