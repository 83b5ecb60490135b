"""How a batch becomes a call of the model."""

from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn

from debugnn.doctor.observe.calls import (
    Call,
    as_call,
    batch_size,
    map_tensors,
    reshaped_like,
    run_in_chunks,
)

ROWS, OTHER = torch.arange(12.0).reshape(4, 3), torch.arange(8.0).reshape(4, 2)
Pair = namedtuple("Pair", ["first", "second"])


class Both(nn.Module):
    def forward(self, wide, narrow):
        return wide.sum(dim=1) + narrow.sum(dim=1)


@pytest.mark.parametrize(
    ("inputs", "call"),
    [
        (ROWS, Call((ROWS,))),
        ((ROWS, OTHER), Call((ROWS, OTHER))),
        ([ROWS, OTHER], Call((ROWS, OTHER))),
        ({"wide": ROWS, "narrow": OTHER}, Call((), {"wide": ROWS, "narrow": OTHER})),
        (UserDict(wide=ROWS), Call((), {"wide": ROWS})),
    ],
    ids=["tensor", "tuple", "list", "dict", "mapping"],
)
def test_a_batch_is_the_models_arguments(inputs, call):
    found = as_call(inputs)
    assert found.kwargs.keys() == call.kwargs.keys()
    assert len(found.args) == len(call.args)
    assert all(map(torch.equal, found.tensors(), call.tensors()))


def test_a_forward_that_works_in_place_does_not_reach_the_batch():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(2)

    rows = ROWS.clone()
    assert torch.equal(Call((rows,))(InPlace()), 2 * ROWS)
    assert torch.equal(rows, ROWS)


def test_some_samples_are_taken_of_tensors_that_hold_as_many():
    scale = torch.tensor(2.0)
    call = Call((ROWS, scale), {"lookup": torch.zeros(7, 2)})
    for rows, wanted in ((slice(2), ROWS[:2]), (torch.tensor([3, 0]), ROWS[[3, 0]])):
        taken = call.take(rows, 4)
        assert torch.equal(taken.args[0], wanted)
        assert taken.args[1] is scale
        assert taken.kwargs["lookup"].shape == (7, 2)
    assert call.take(slice(2), None).args[0] is ROWS


def test_chunks_give_the_outputs_of_the_whole_batch():
    torch.manual_seed(0)
    wide, narrow = torch.randn(10, 3), torch.randn(10, 2)
    seen = []

    class Noting(Both):
        def forward(self, wide, narrow):
            seen.append(len(wide))
            return super().forward(wide, narrow)

    whole = run_in_chunks(Noting(), Call((wide, narrow)), 10, size=10)
    parts = run_in_chunks(Noting(), Call((wide,), {"narrow": narrow}), 10, size=4)
    assert torch.equal(whole, parts)
    assert seen == [10, 4, 4, 2]
    # An argument of another length belongs to no sample.
    run_in_chunks(Noting(), Call((wide, narrow[:1])), 10, size=4)
    assert seen[4:] == [10]


def test_outputs_that_are_no_tensor_are_computed_in_one_pass():
    class Packed(Both):
        def forward(self, wide, narrow):
            return {"logits": super().forward(wide, narrow)}

    outputs = run_in_chunks(Packed(), Call((ROWS, OTHER)), 4, size=2)
    assert outputs["logits"].shape == (4,)


def test_samples_are_reshaped_to_what_the_model_was_called_with():
    images = torch.randn(5, 1, 2, 3)
    reference = Call((torch.zeros(9, 6),))
    assert torch.equal(reshaped_like(Call((images,)), reference).args[0], images.reshape(5, 6))
    for given in (
        Call((torch.zeros(5, 6),)),
        Call((torch.zeros(5, 7),)),
        Call((torch.zeros(0, 6),)),
    ):
        assert reshaped_like(given, reference) is given
    assert reshaped_like(Call((images,)), None).args[0] is images


def test_the_batch_size_is_that_of_the_targets_where_an_input_has_as_many():
    time_first = torch.zeros(7, 4, 3)
    assert batch_size(Call((time_first,))) == 7
    assert batch_size(Call((time_first,)), targets=4) == 4
    assert batch_size(Call((time_first,)), targets=5) == 7
    assert batch_size(Call((torch.tensor(1.0),))) is None


def test_nested_tensors_are_changed_in_containers_of_the_same_type():
    nest = {"a": [ROWS, (OTHER, "text")], "b": Pair(ROWS, None)}
    doubled = map_tensors(nest, lambda tensor: 2 * tensor)
    assert torch.equal(doubled["a"][0], 2 * ROWS)
    assert torch.equal(doubled["a"][1][0], 2 * OTHER)
    assert doubled["a"][1][1] == "text"
    assert isinstance(doubled["b"], Pair)
    assert doubled["b"].second is None
    assert nest["b"].first is ROWS
