"""A member of a stack is the run alone: the slow, obvious path that each test compares with."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from debugnn.build import build
from debugnn.errors import ConfigError
from debugnn.records import Evaluating, Layers, Step
from debugnn.stacking.stack import Member, Stack, _norms
from debugnn.training import checkpoint
from debugnn.training.gradients import keep
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import fit
from debugnn.training.restoring import restore

# 100 samples in batches of 32: the last is smaller, and has masks of its own size.
SMALL = ("data.train_size=100", "data.batch_size=32", "trainer.eval_every=2")
CONV = ("model=relu_net", "model.blocks=[[4,6]]", "model.hidden=[12]")
DENSE = ("model=deep_mlp", "model.hidden=[20,12]")
# With batch norm some step of these runs has a ReLU or a max-pool that falls the other way because
# of a rounding error, and that step's gradient moves. Otherwise both sides are within 1e-6 of
# float64, as is tested below, and in tests/nn/test_networks.py for each layout.
FLIPPED = 5e-3
# Adam divides by a gradient's size, down to eps. Where the true gradient is 0 (a bias before batch
# norm), the default of 1e-8 makes a rounding error a whole step, as it does between two machines.
STEADY = "+optim.eps=1e-3"


def built(configs):
    """Members of these configurations: each takes the random numbers as its building left them."""
    return [Member(build(config)) for config in configs]


def rows_of(training, epochs, probe):
    """The records of a training that are rows."""
    return [r for r in fit(training, epochs, probe) if not isinstance(r, Evaluating)]


def train_alone(config, epochs=2, every=3):
    """Records, training, and torch's random state at the end."""
    training = build(config)
    return (
        rows_of(training, epochs, LayerProbe(every) if every else None),
        training,
        torch.get_rng_state(),
    )


def train_stacked(members, epochs=2, every=3):
    found = [[] for _ in members]
    for index, record in Stack(members).fit(epochs, LayerProbe(every) if every else None):
        if not isinstance(record, Evaluating):
            found[index].append(record)
    return found


def assert_close(records, expected, rel):
    """Equal up to `rel` in what is made of gradients, and up to 1e-4 in everything else."""
    assert [type(r) for r in records] == [type(r) for r in expected]
    for record, other in zip(records, expected, strict=True):
        if isinstance(record, Layers):
            for kind in ("gradients", "parameters", "activations"):
                a, b = getattr(record, kind), getattr(other, kind)
                assert list(a) == list(b)
                norms = [stats.norm for stats in b.values()]
                # A gradient that is 0 except for rounding has no relative precision.
                small = rel * max(norms)
                assert [s.norm for s in a.values()] == pytest.approx(norms, rel, small)
            continue
        for field in dataclasses.fields(record):
            if field.name != "seconds":
                a, b = getattr(record, field.name), getattr(other, field.name)
                near = rel if field.name == "grad_norm" else min(rel, 1e-4)
                same = a is b if b is None else a == pytest.approx(b, rel=near, nan_ok=True)
                assert same, (field.name, record, other)


def assert_weights_close(model, expected, tolerance):
    ours, theirs = model.state_dict(), expected.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def assert_members_equal_runs_alone(configs, tolerance=1e-4):
    members = built(configs)
    found = train_stacked(members)
    for config, member, rows in zip(configs, members, found, strict=True):
        expected, training, random_state = train_alone(config)
        assert_close(rows, expected, tolerance)
        assert_weights_close(member.training.model, training.model, tolerance)
        with member.randomness():  # the same numbers were drawn, to the last
            assert torch.equal(torch.get_rng_state(), random_state)


# --- equal to the run alone -----------------------------------------------------------------------


# Each way to clip with each regulariser: of the dense net, and in turn of the convolutional one.
REGS, CLIPS = ("none", "dropout", "bn", "bn_dropout"), ("off", "4.0", "scaling")
IN_TURN = [
    (CONV, reg, clip) for reg, clip in zip(REGS, ("4.0", "scaling", "off", "4.0"), strict=True)
]
QUICK = [(DENSE, "none", "off"), (DENSE, "dropout", "4.0"), (DENSE, "bn", "scaling"), IN_TURN[-1]]
PAIRS = [
    pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow)
    for pair in [*itertools.product([DENSE], REGS, CLIPS), *IN_TURN]
]


@pytest.mark.parametrize(("net", "reg", "clip"), PAIRS)
def test_each_member_equals_the_run_alone(compose, net, reg, clip):
    shared = (*SMALL, *net, f"reg={reg}", f"clip={clip}", STEADY)
    # A norm that clips: the gradients of these nets are smaller than 4.
    threshold = ["clip.max_norm=0.5"] if clip == "4.0" else []
    # Under dropout a ReLU of these runs falls the other way because of a rounding error: a smooth
    # activation shows that the masks are the same. (Below two of the seeds have ReLUs.)
    smooth = ["model.activation._target_=torch.nn.Tanh"] if net is CONV and reg == "dropout" else []
    configs = [compose(*shared, *threshold, *smooth, f"seed={s}") for s in (0, 1, 5)]
    assert_members_equal_runs_alone(configs, FLIPPED if net is CONV and "bn" in reg else 1e-4)


@pytest.mark.parametrize("reg", ["none", "bn"])
@pytest.mark.parametrize("net", [CONV, DENSE], ids=["conv", "dense"])
def test_a_stacks_gradients_are_those_in_float64(compose, net, reg):
    members = built([compose(*SMALL, *net, f"reg={reg}", f"seed={s}") for s in (0, 1)])
    batches = [next(iter(member.training.batches(0))) for member in members]
    expected = []
    for member, (inputs, targets) in zip(members, batches, strict=True):
        model = copy.deepcopy(member.training.model).double().train()
        nn.functional.cross_entropy(model(inputs.double()), targets).backward()
        expected.append({name: p.grad for name, p in model.named_parameters()})
    Stack(members)._backward(batches)
    for member, own in zip(members, expected, strict=True):
        largest = max(gradient.norm() for gradient in own.values())
        for name, parameter in member.training.model.named_parameters():
            assert (parameter.grad - own[name]).norm() < 1e-5 * largest, name


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [("data.labels=permuted",), ("data.augment_shift=2",),
     ("data.imbalance=0.5", "data.train_size=60"),
     ("model=maxout", "reg=dropout", "model.hidden=[8]", "model.blocks=[[4]]"),
     ("trainer.channels_last=false", "reg=dropout"),
     ("optim=sgd", "reg=dropout"), ("optim=adamw", "reg=dropout", STEADY),
     # Divides by the size of a whole tensor.
     ("optim._target_=torch.optim.Adafactor", "optim.lr=0.02", "reg=dropout"),
     ("data=regression", "model=regressor", "loss=mse", "data.train_size=500", STEADY)],
    ids=lambda setting: setting[0],
)  # fmt: skip
def test_what_else_draws_or_updates_is_each_members_own(compose, setting):
    net = CONV if "model=regressor" not in setting else ()
    shared = (*SMALL, *net, *setting)
    assert_members_equal_runs_alone([compose(*shared, f"seed={s}") for s in (0, 1)])


def test_bf16_equals_the_run_alone_within_bf16(compose):
    shared = (*SMALL, *DENSE, "reg=dropout", STEADY, "trainer.precision=bf16")
    configs = [compose(*shared, f"seed={s}") for s in (0, 1)]
    found = train_stacked(built(configs), epochs=1, every=None)
    for config, rows in zip(configs, found, strict=True):
        expected = [r for r in train_alone(config)[0] if isinstance(r, Step)]
        losses = [r.loss for r in rows if isinstance(r, Step)]
        assert losses == pytest.approx([r.loss for r in expected[: len(losses)]], rel=2**-7)


@pytest.mark.parametrize(
    "net", [pytest.param(CONV, id="conv", marks=pytest.mark.slow), pytest.param(DENSE, id="dense")]
)
@pytest.mark.parametrize(
    "arms",
    [
        [("reg=dropout", STEADY), ("reg=none", "init=kaiming", STEADY, "optim.lr=1e-2"),
         ("reg=dropout", "reg.dropout=0.2", "clip.max_norm=0.1", STEADY, "seed=3")],
        [("reg=none", STEADY), ("reg=dropout", "init=xavier", "clip=scaling", "optim=sgd")],
    ],
    ids=["one_optimiser", "two_optimisers"],
)  # fmt: skip
def test_arms_that_differ_in_numbers_stack(compose, net, arms):
    """Initialisation, learning rate, threshold and dropout rate, 0 among them."""
    assert_members_equal_runs_alone([compose(*SMALL, *net, *arm) for arm in arms])


@pytest.mark.slow
def test_each_model_stacks(compose, each_model):
    settings = ["data=regression", "loss=mse"] if each_model == "regressor" else []
    settings += ["data.batch_size=4", "data.train_size=16", "trainer.steps_per_epoch=2"]
    configs = [compose(f"model={each_model}", *settings, f"seed={s}") for s in (0, 1)]
    found = train_stacked(built(configs), epochs=1, every=None)
    for config, rows in zip(configs, found, strict=True):
        expected, *_ = train_alone(config, epochs=1, every=None)
        assert_close(rows[:1], expected[:1], 1e-4)


def test_each_loss_stacks(compose, each_loss):
    configs = [compose(*SMALL, *DENSE, f"loss={each_loss}", STEADY, f"seed={s}") for s in (0, 1)]
    assert_members_equal_runs_alone(configs)


def test_norms_at_every_scale_are_those_of_each_member():
    """Vanished, exploded, and no number at all."""
    scales = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 10.0, 1e25, math.inf, math.nan])
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5,), ()]
    gradients = [torch.randn(8, *s, generator=generator) for s in shapes]
    gradients = [g.mul_(scales.view(-1, *[1] * (g.dim() - 1))) for g in gradients]
    expected = []
    for index in range(8):
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[index]
        expected.append(keep(parameters).double())
    found = _norms(gradients)
    torch.testing.assert_close(found, torch.stack(expected), equal_nan=True, rtol=1e-6, atol=0)


# --- what keeps members apart ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "clip"),
    [
        (DENSE, "off"),
        pytest.param(DENSE, "4.0", marks=pytest.mark.slow),
        pytest.param(DENSE, "scaling", marks=pytest.mark.slow),
        (CONV, "4.0"),
    ],
)
def test_nan_in_one_member_does_not_touch_the_others(compose, net, clip):
    settings = (*SMALL, *net, "reg=bn_dropout", f"clip={clip}")
    outcomes = []
    for poison in (False, True):
        members = built([compose(*settings, f"seed={s}") for s in range(3)])
        if poison:
            with torch.no_grad():
                next(members[1].training.model.parameters()).fill_(math.nan)
        outcomes.append((train_stacked(members), [m.training.model for m in members]))
    (sound, models), (poisoned, others) = outcomes
    assert math.isnan(poisoned[1][-1].train_loss)
    for index in (0, 2):
        assert_close(poisoned[index], sound[index], rel=0)
        assert_weights_close(others[index], models[index], 0)


def test_a_rule_from_elsewhere_is_asked_member_by_member(small_training):
    """And an optimiser from elsewhere steps each member's own parameters."""

    def sign(parameters):
        parameters = list(parameters)
        for parameter in parameters:
            parameter.grad.sign_()
        return keep(parameters)

    def make(seed):
        return small_training(
            seed=seed, gradient_rule=sign, optimizer=torch.optim.Rprop, dropout=0.0,
            batch_norm=False,
        )  # fmt: skip

    found = train_stacked([Member(make(0)), Member(make(1))])
    for seed, rows in enumerate(found):
        expected = rows_of(make(seed), 2, LayerProbe(3))
        assert [r.grad_norm for r in rows if isinstance(r, Step)] == pytest.approx(
            [r.grad_norm for r in expected if isinstance(r, Step)], rel=1e-4
        )
        assert rows[1].loss == pytest.approx(expected[1].loss, rel=1e-4)


@pytest.mark.parametrize("reg", ["none", "bn_dropout"])
def test_a_member_can_be_saved_and_goes_on_alone(compose, tmp_path, reg):
    """The optimiser's state too: a stack's checkpoint is a run's, of a run's size."""
    configs = [compose(*SMALL, *DENSE, f"reg={reg}", STEADY, f"seed={s}") for s in (0, 1, 2)]
    members = built(configs)
    train_stacked(members, epochs=1)
    with members[1].randomness():
        checkpoint.write(tmp_path / "member.pt", checkpoint.state_of(members[1].training))
    whole, expected, _ = train_alone(configs[1])
    resumed = build(configs[1])
    restore(tmp_path / "member.pt", resumed, epochs=2)
    rows = rows_of(resumed, 2, LayerProbe(3))
    assert_close(rows, whole[-len(rows) :], 1e-4)
    assert_weights_close(resumed.model, expected.model, 1e-4)
    checkpoint.write(tmp_path / "run.pt", checkpoint.state_of(resumed))
    sizes = [(tmp_path / name).stat().st_size for name in ("member.pt", "run.pt")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


@pytest.mark.parametrize("layer", ["RReLU", "AlphaDropout"])
def test_a_layer_that_draws_its_own_random_numbers_is_refused(compose, layer):
    settings = (*SMALL, *DENSE, f"model.activation._target_=torch.nn.{layer}")
    with pytest.raises(ConfigError, match="cannot be stacked"):
        Stack(built([compose(*settings, f"seed={s}") for s in (0, 1)]))
