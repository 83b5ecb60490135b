"""How a batch becomes a call of the model."""

from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from debugnn.doctor.observe.calls import (
    Call,
    as_call,
    bytes_of,
    first_tensor,
    in_memory_as,
    map_tensors,
    reshaped_like,
)

ROWS, OTHER = torch.arange(12.0).reshape(4, 3), torch.arange(8.0).reshape(4, 2)
Pair = namedtuple("Pair", ["first", "second"])


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


def test_nested_tensors_are_changed_in_containers_of_the_same_type():
    nest = {"a": [ROWS, (OTHER, "text")], "b": Pair(ROWS, None)}
    doubled = map_tensors(nest, lambda tensor: 2 * tensor)
    assert torch.equal(doubled["a"][0], 2 * ROWS)
    assert torch.equal(doubled["a"][1][0], 2 * OTHER)
    assert doubled["a"][1][1] == "text"
    assert isinstance(doubled["b"], Pair)
    assert doubled["b"].second is None
    assert nest["b"].first is ROWS


def test_a_mapping_that_is_no_dict_keeps_its_type():
    batch = UserDict(wide=ROWS)
    doubled = map_tensors(batch, lambda tensor: 2 * tensor)
    assert isinstance(doubled, UserDict)
    assert torch.equal(doubled["wide"], 2 * ROWS)
    assert batch["wide"] is ROWS


def test_packed_sequences_are_one_argument():
    """They are tuples, of tensors that are no arguments."""
    packed = pack_padded_sequence(ROWS[:, :, None], torch.tensor([3, 2, 2, 1]), batch_first=True)
    call = as_call(packed)
    assert call.args == (packed,)
    assert type(call.map(torch.clone).args[0]) is type(packed)


def test_a_loss_among_the_outputs_is_not_taken_for_them():
    loss = torch.tensor(0.5)
    for outputs in ((loss, ROWS), {"loss": loss, "logits": ROWS}, [loss, [None, ROWS]]):
        assert first_tensor(outputs) is ROWS
    assert first_tensor({"loss": loss}) is loss


def test_a_sparse_tensor_is_as_large_as_the_values_that_it_holds():
    wide = torch.zeros(5000, 5000)
    wide[3, 4] = wide[7, 8] = 1.0
    assert bytes_of(wide) == 5000 * 5000 * 4
    assert bytes_of(wide.to_sparse()) == 2 * 4 + 4 * 8
    assert bytes_of(wide.to_sparse_csr()) == 2 * 4
    assert bytes_of(torch.tensor(1.0)) == 4


def test_a_tensor_is_laid_out_in_memory_as_another_one():
    images = torch.arange(2.0 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    channels_last = torch.zeros(7, 3, 4, 5).to(memory_format=torch.channels_last)
    laid = in_memory_as(images, channels_last)
    assert laid.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(laid, images)
    assert in_memory_as(laid, images).is_contiguous()
    assert in_memory_as(images, torch.zeros(4, 3, 2, 5)) is images
    assert in_memory_as(images, ROWS) is images  # of other axes
    turned = torch.zeros(5, 2, 3).permute(1, 2, 0)
    assert in_memory_as(torch.zeros(2, 3, 5), turned).stride() == turned.stride()
