"""Where samples lie, and how some of them are taken."""

import pytest
import torch
from torch import nn

from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.layout import Layout
from debugnn.doctor.observe.sample_axis import find_samples

T, B, H = 5, 4, 3  # time steps, samples, features
TOKENS = torch.arange(T * B).reshape(T, B)
FIRST_TWO = slice(2)


class Both(nn.Module):
    def forward(self, wide, narrow):
        return wide.sum(dim=1) + narrow.sum(dim=1)


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (TOKENS, TOKENS[:, :2]),
        (TOKENS.reshape(-1), TOKENS[:, :2].reshape(-1)),
        (TOKENS[0], TOKENS[0, :2]),
        (None, None),
        ({"now": TOKENS, "once": TOKENS[0]}, {"now": TOKENS[:, :2], "once": TOKENS[0, :2]}),
    ],
    ids=["(T, B)", "(T·B,)", "(B,)", "none", "dict"],
)
def test_samples_of_the_second_axis_are_taken_of_all_that_has_them(targets, wanted):
    state = torch.randn(1, B, H)
    call, part = Layout(1).take(Call((TOKENS, (state, state))), FIRST_TWO, targets)
    assert torch.equal(call.args[0], TOKENS[:, :2])
    assert torch.equal(call.args[1][0], state[:, :2])
    if isinstance(wanted, dict):
        assert all(torch.equal(part[name], tensor) for name, tensor in wanted.items())
    else:
        assert part is wanted or torch.equal(part, wanted)


def test_a_state_holds_the_samples_on_another_axis_than_the_inputs():
    rows, state = torch.randn(B, T, H), torch.randn(2, B, H)
    call, _ = Layout(0).take(Call((rows, state)), torch.tensor([3, 0]))
    assert torch.equal(call.args[0], rows[[3, 0]])
    assert torch.equal(call.args[1], state[:, [3, 0]])


NODES = torch.randn(6, H)
WHOLE = {
    "a square matrix": (Call((NODES, torch.eye(6))), None),
    "a sparse one": (Call((NODES, torch.eye(6).to_sparse())), None),
    "edges": (Call((NODES, torch.tensor([[0, 1, 2], [3, 4, 5]]))), None),
    "as many edges as nodes": (Call((NODES, torch.zeros(2, 6, dtype=torch.long))), None),
    "something of another size": (Call((NODES, torch.zeros(7, 2))), None),
    "targets of another size": (Call((NODES,)), torch.zeros(7)),
    "a target that is no tensor": (Call((NODES,)), ["label"] * 6),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_call_whose_tensors_disagree_stays_whole(name):
    call, targets = WHOLE[name]
    part, same = Layout(0).take(call, FIRST_TWO, targets)
    assert part is call
    assert same is targets


def test_what_all_samples_share_stays_whole_where_that_was_verified():
    table = torch.randn(7, 2)
    part, _ = Layout(0, verified=True).take(Call((NODES, table)), FIRST_TWO)
    assert part.args[0].shape == (2, H)
    assert part.args[1] is table


def test_numbers_are_shared():
    scale = torch.tensor(2.0)
    part, _ = Layout(0).take(Call((NODES,), {"scale": scale}), FIRST_TWO)
    assert part.args[0].shape == (2, H)
    assert part.kwargs["scale"] is scale


@pytest.mark.parametrize("layout", [Layout(None), Layout(0, divisible=False)])
def test_samples_that_are_not_apart_are_not_taken(layout):
    call = Call((NODES,))
    assert layout.take(call, FIRST_TWO)[0] is call


def test_samples_are_counted_along_their_axis():
    assert Layout(0).count(Call((TOKENS,))) == T
    assert Layout(1).count(Call((TOKENS,))) == B
    assert Layout(None).count(Call((TOKENS,))) is None
    assert Layout(0).count(Call((torch.tensor(1.0),))) is None
    assert Layout(1).count(Call((TOKENS[0],))) is None


def test_rows_are_the_samples_as_the_loop_handed_them_over():
    images = torch.randn(B, 1, 2, 3)
    call = Call((images.flatten(1),))
    assert Layout(0).rows(call, images) is images or torch.equal(
        Layout(0).rows(call, images), images
    )
    assert torch.equal(Layout(0).rows(call, "a name"), images.flatten(1))
    assert torch.equal(Layout(0).rows(call, images[:2]), images.flatten(1))
    assert torch.equal(Layout(1).rows(Call((TOKENS,))), TOKENS.T)
    assert Layout(0).rows(Call()) is None


def test_targets_are_put_in_the_order_of_the_samples():
    call = Call((TOKENS,))
    for targets in (TOKENS, TOKENS.reshape(-1)):
        assert torch.equal(Layout(1).targets_by_sample(call, targets), TOKENS.T)
    assert torch.equal(Layout(1).targets_by_sample(call, TOKENS[0]), TOKENS[0])
    assert Layout(1).targets_by_sample(call, "labels") == "labels"


def test_parts_give_the_outputs_of_the_whole_batch():
    torch.manual_seed(0)
    wide, narrow = torch.randn(150, 300), torch.randn(150, 2)
    seen = []

    class Noting(Both):
        def forward(self, wide, narrow):
            seen.append(len(wide))
            return super().forward(wide, narrow)

    apart = Layout(0, verified=True)
    whole = Layout(0).run(Noting(), Call((wide, narrow)))
    parts = apart.run(Noting(), Call((wide,), {"narrow": narrow}))
    assert torch.equal(whole, parts)
    assert seen == [150, 64, 64, 22]
    apart.run(Noting(), Call((wide[:, :100], narrow)))  # small samples: more of them at once
    assert seen[4:] == [150]


def test_outputs_that_are_no_tensor_are_computed_in_one_pass():
    class Packed(Both):
        def forward(self, wide, narrow):
            return {"logits": super().forward(wide, narrow)}

    call = Call((torch.randn(150, 3), torch.randn(150, 2)))
    assert Layout(0, verified=True).run(Packed(), call)["logits"].shape == (150,)


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 8)

    def forward(self, tokens, offsets):
        return self.bag(tokens, offsets)


def test_places_where_samples_begin_are_no_samples():
    """Bags of tokens of several lengths, one after the other."""
    torch.manual_seed(0)
    call = Call((torch.randint(0, 20, (50,)), torch.arange(0, 50, 5)))
    found = find_samples(Bag().eval(), call, torch.arange(10) % 2)
    assert found.layout.offsets
    assert found.layout.rows(call) is None
    users, films = torch.randint(0, 20, (2, 10))
    rated = Call((users, films))
    assert not find_samples(Rated().eval(), rated, torch.arange(10) % 2).layout.offsets


class Rated(nn.Module):
    def __init__(self):
        super().__init__()
        self.users, self.films = nn.Embedding(20, 4), nn.Embedding(20, 4)

    def forward(self, users, films):
        return (self.users(users) * self.films(films)).sum(dim=1)
