"""The copy of the model: what it holds when, and that giving its memory back loses nothing."""

import copy

import pytest
import torch
from torch import nn

from debugnn.doctor.observe.replica import Replica


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 5))
    made[2].weight = nn.Parameter(made[2].weight.detach().clone())
    return made


def replica_of(model, **options):
    return Replica(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def move(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
        model[1].running_mean.add_(2.0)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("rests", [False, True])
def test_the_start_is_kept_and_the_present_followed(model, rests):
    begun = copy.deepcopy(model.state_dict())
    replica = replica_of(model)
    if rests:
        replica.device = torch.device("cuda")  # only a GPU's memory is given back
    replica.rest()
    move(model)
    assert_equal(dict(replica.current().state_dict()), model.state_dict())
    replica.rest()
    assert_equal(dict(replica.initial), begun)
    assert_equal(replica.fresh().state_dict(), begun)
    assert_equal(replica.start().state_dict(), begun)
    assert_equal(replica.as_before(begun).state_dict(), begun)
    assert_equal(dict(replica.current().state_dict()), model.state_dict())


def test_at_rest_a_gpus_copy_holds_no_weights(model):
    replica = replica_of(model)
    replica.device = torch.device("cuda")
    replica.rest()
    assert all(parameter.numel() == 0 for parameter in replica.model.parameters())
    assert replica.model[1].running_mean.numel() == 5


def test_the_start_shares_the_copys_weights_but_no_gradient(model):
    replica = replica_of(model)
    started = replica.start()
    assert started[0].weight.data_ptr() == replica.model[0].weight.data_ptr()
    started(torch.randn(4, 3)).sum().backward()
    assert all(parameter.grad is None for parameter in replica.model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(replica.model[1].running_mean, torch.zeros(5))  # buffers are its own


def test_without_copies_only_what_the_optimiser_lacks_is_kept(model):
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    model[1].requires_grad_(False)
    replica = Replica(model, optimizer, copies=False)
    assert (replica.model, replica.error) == (None, None)
    assert set(replica.initial) == {"2.weight", "2.bias"}
    assert replica.current() is replica.fresh() is replica.start() is None


def test_spoilt_buffers_are_those_of_the_last_probe(model):
    replica = replica_of(model)
    state = copy.deepcopy(model.state_dict())
    state["1.running_mean"].fill_(torch.nan)
    repeated = replica.as_before(state)
    assert torch.equal(repeated[1].running_mean, torch.zeros(5))
    assert repeated.training
