"""What trying a network out tells: its operations, mixing, unreached parameters, gains."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from debugnn import Doctor
from debugnn.doctor.evidence import NetworkFacts
from debugnn.doctor.observe.architecture import bend, network_facts
from debugnn.doctor.observe.calls import Call
from debugnn.doctor.observe.modes import without_dropout
from debugnn.doctor.observe.operations import SQUASHING, ActivationWatcher, Tracer, trace
from debugnn.doctor.observe.sample_axis import find_samples
from debugnn.doctor.observe.weights import forward_order, weight_facts

BATCH = 16
RECURRENT = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class Net(nn.Module):
    """Submodules, and a forward pass written as a function of the module and its inputs."""

    def __init__(self, forward, **modules):
        super().__init__()
        self._forward = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *inputs):
        return self._forward(self, *inputs)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FLAT, SEQUENCES, IMAGES = normal(BATCH, 10), normal(BATCH, 6, 4), normal(BATCH, 1, 8, 8)
TOKENS = torch.randint(0, 20, (BATCH, 5), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _same_weights():
    torch.manual_seed(0)


def look(model, inputs=FLAT) -> NetworkFacts:
    def loss(outputs):
        return outputs.float().square().mean()

    call = Call((inputs,))
    with without_dropout(model, training=False):
        samples = find_samples(model, call, torch.zeros(len(inputs)))
    return network_facts(model, call, samples, loss)


def traced(model, inputs=FLAT) -> tuple[torch.Tensor, Tracer]:
    with without_dropout(model, training=False):
        return trace(model, Call((inputs,)))


def signals_of(model, inputs=FLAT) -> ActivationWatcher:
    signals = ActivationWatcher()
    with without_dropout(model, training=False):
        signals.watch(model, Call((inputs,)))
    return signals


def mlp(hidden=None, end=None):
    layers = [nn.Linear(10, 20), hidden or nn.ReLU(), nn.Linear(20, 3)]
    return nn.Sequential(*layers, *([end] if end else []))


# --- operations ---------------------------------------------------------------------------------

ENDS = {
    "addmm": nn.Identity(),
    "sigmoid": nn.Sigmoid(),
    "softmax": nn.Softmax(dim=1),
    "log_softmax": nn.LogSoftmax(dim=1),
    "tanh": nn.Tanh(),
    "relu": nn.ReLU(),
    "softplus": nn.Softplus(),
    "hardtanh": nn.ReLU6(),
}


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize(
    "view",
    [nn.Identity(), nn.Unflatten(1, (3, 1)), nn.Dropout(0.5)],
    ids=lambda v: type(v).__name__,
)
def test_the_last_operation_is_told_through_views_and_dropout(name, view):
    model = nn.Sequential(mlp(end=ENDS[name]), view)
    outputs, tracer = traced(model)
    assert tracer.made(outputs) == name
    assert look(model).last_op == name


class LastState(nn.Module):
    """The hidden state after the last step, of a layer or of a cell."""

    def __init__(self, kind, **options):
        super().__init__()
        self.cell = kind(3, 4, **options)

    def forward(self, x):
        if isinstance(self.cell, nn.RNNBase):
            return self.cell(x)[0][:, -1]
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (nn.LSTM, {"batch_first": True}, "lstm"),
        (nn.GRU, {"batch_first": True, "num_layers": 2}, "gru"),
        (nn.RNN, {"batch_first": True}, "tanh"),
        (nn.LSTMCell, {}, "lstm"),
        (nn.GRUCell, {}, "gru"),
        (nn.RNNCell, {}, "tanh"),
    ],
)
def test_a_hidden_state_is_known_as_the_outputs(kind, options, name):
    sequences = torch.randn(8, 5, 3)
    model = LastState(kind, **options)
    outputs, tracer = traced(model, sequences)
    assert tracer.made(outputs) == name
    headed, tracer = traced(nn.Sequential(model, nn.Linear(4, 1)), sequences)
    assert tracer.made(headed) == "addmm"


@pytest.mark.parametrize("options", [{"nonlinearity": "relu"}, {"proj_size": 2}])
def test_a_hidden_state_without_bounds_is_not_taken_for_one(options):
    kind = nn.RNN if "nonlinearity" in options else nn.LSTM
    outputs, tracer = traced(LastState(kind, batch_first=True, **options), torch.randn(8, 5, 3))
    assert tracer.made(outputs) not in ("lstm", "tanh")


def test_squashed_outputs_are_known_by_their_last_operation():
    for name in ("sigmoid", "softmax"):
        assert look(mlp(end=ENDS[name])).last_op in SQUASHING
    assert look(mlp(end=nn.Tanh())).last_op not in SQUASHING


HIDDEN = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.Sigmoid(), nn.Tanh(), nn.ELU(), nn.GELU(), nn.SiLU(),
    nn.Mish(), nn.Hardswish(), nn.SELU(), nn.PReLU(), nn.Softsign(), nn.Softplus(), nn.LeakyReLU(),
    nn.LogSigmoid(), nn.Softmax(dim=1), nn.LayerNorm(20),
]  # fmt: skip


@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda m: type(m).__name__)
def test_every_activation_is_a_nonlinearity(hidden):
    assert look(mlp(hidden)).nonlinear is True


def test_activations_of_one_line_are_nonlinearities():
    def net(function):
        return Net(lambda s, x: s.b(function(s.a(x))), a=nn.Linear(10, 8), b=nn.Linear(8, 3))

    for function in (torch.sin, torch.square, torch.abs, lambda h: h.clamp(min=0)):
        assert look(net(function)).nonlinear is True
    maxout = Net(
        lambda s, x: s.b(s.a(x).reshape(len(x), 4, 2).amax(dim=2)),
        a=nn.Linear(10, 8), b=nn.Linear(4, 3),
    )  # fmt: skip
    assert look(maxout).nonlinear is True


LINEAR = {
    "plain": (lambda: nn.Sequential(nn.Linear(10, 8), nn.Linear(8, 3)), FLAT),
    "identity": (lambda: mlp(nn.Identity()), FLAT),
    "dropout": (lambda: mlp(nn.Dropout(0.5)), FLAT),
    "batch_norm": (lambda: mlp(nn.BatchNorm1d(20)), FLAT),
    "residual": (
        lambda: Net(lambda s, x: s.b(x + s.a(x)), a=nn.Linear(10, 10), b=nn.Linear(10, 3)), FLAT,
    ),
    "activation at the end": (lambda: mlp(nn.Identity(), end=nn.ReLU()), FLAT),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 3)
        ),
        IMAGES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_without_an_activation_there_is_none(name):
    make, inputs = LINEAR[name]
    facts = look(make(), inputs)
    assert facts.nonlinear is False
    assert facts.weight_layers >= 2


def test_a_single_layer_is_counted_as_one():
    assert look(nn.Linear(10, 3)).weight_layers == 1


def test_a_product_of_two_maps_of_the_input_is_a_nonlinearity():
    layers = {name: nn.Linear(10, 10) for name in "abc"}
    assert look(Net(lambda s, x: s.c(s.a(x) * s.b(x)), **layers)).nonlinear is True


def test_values_of_activations_are_those_of_the_forward_pass():
    model = mlp(nn.Tanh())
    with torch.no_grad():
        model[0].weight.mul_(20)
        model[0].bias.zero_()
        hidden = model[:2](FLAT)
    signals = signals_of(model)
    (facts,) = signals.activations
    assert (facts.op, facts.layer) == ("tanh", "0")
    assert facts.rms == pytest.approx(hidden.square().mean().sqrt().item(), rel=1e-5)
    assert facts.saturated == pytest.approx((hidden.abs() > 0.95).float().mean().item(), abs=1e-6)
    assert facts.saturated > 0.5
    assert facts.dead == 0
    assert signals.inputs["2"] == pytest.approx(facts.rms, rel=1e-5)
    assert signals.inputs["0"] == pytest.approx(FLAT.square().mean().sqrt().item(), rel=1e-5)


def test_dead_units_and_channels_are_counted():
    model = mlp()
    with torch.no_grad():
        model[0].bias[:5] = -1e3
        alive = (model[:2](FLAT) > 0).any(dim=0)
    (facts,) = signals_of(model).activations
    assert facts.dead == pytest.approx((~alive).float().mean().item())
    assert facts.dead >= 5 / 20
    assert facts.saturated is None  # ReLU has no upper bound
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    with torch.no_grad():
        conv[0].bias[:] = torch.tensor([-1e3, 5.0, 5.0, 5.0])
    (facts,) = signals_of(conv, IMAGES).activations
    assert facts.dead == pytest.approx(1 / 4)


# --- softmax ------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Self-attention by hand, over time or, by mistake, over the batch."""

    def __init__(self, over_batch=False):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))
        self.out = nn.Linear(4, 3)
        self.over_batch = over_batch

    def forward(self, x):
        if self.over_batch:
            x = x.transpose(0, 1)
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / 2).softmax(dim=-1)
        values = weights @ self.v(x)
        return self.out((values.transpose(0, 1) if self.over_batch else values).mean(dim=1))


def gated():
    return Net(
        lambda s, x: s.out(s.gate(x).softmax(dim=1) * s.value(x)),
        gate=nn.Linear(10, 8), value=nn.Linear(10, 8), out=nn.Linear(8, 3),
    )  # fmt: skip


def mixture():
    """A mixture of experts whose outputs a softmax weighs."""

    def forward(s, x):
        experts = torch.stack([s.one(x), s.two(x)], dim=1)
        return s.out((s.gate(x).softmax(dim=1).unsqueeze(1) @ experts).squeeze(1))

    return Net(
        forward, one=nn.Linear(10, 8), two=nn.Linear(10, 8), gate=nn.Linear(10, 2),
        out=nn.Linear(8, 3),
    )  # fmt: skip


def transformer(batch_first=True):
    layer = nn.TransformerEncoderLayer(4, 2, 16, batch_first=batch_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Net(lambda s, x: s.out(s.encoder(x).mean(dim=1)), encoder=encoder, out=nn.Linear(4, 3))


def multihead(batch_first=True):
    return Net(
        lambda s, x: s.out(s.attention(x, x, x)[0].mean(dim=1)),
        attention=nn.MultiheadAttention(4, 2, batch_first=batch_first), out=nn.Linear(4, 3),
    )  # fmt: skip


HIDDEN_SOFTMAX = {
    "mlp": (lambda: mlp(nn.Softmax(dim=1)), FLAT, ["2"]),
    "logarithm": (lambda: mlp(nn.LogSoftmax(dim=1)), FLAT, ["2"]),
    "dropout": (lambda: mlp(nn.Sequential(nn.Softmax(dim=1), nn.Dropout(0.5))), FLAT, ["2"]),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Softmax(dim=1), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(64, 3),
        ),
        IMAGES, ["2"],
    ),
    "conv, pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Softmax(dim=1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
        ),
        IMAGES, ["4"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN_SOFTMAX)
def test_a_softmax_that_goes_into_weights_is_found(name):
    make, inputs, layers = HIDDEN_SOFTMAX[name]
    assert look(make(), inputs).softmax_inputs == layers


WEIGHING = {
    "attention": (Attention, SEQUENCES),
    "multihead": (multihead, SEQUENCES),
    "transformer": (transformer, SEQUENCES),
    "gate": (gated, FLAT),
    "mixture": (mixture, FLAT),
    "output": (lambda: mlp(end=nn.Softmax(dim=1)), FLAT),
}


@pytest.mark.parametrize("name", WEIGHING)
def test_a_softmax_that_weighs_values_is_no_activation(name):
    make, inputs = WEIGHING[name]
    assert look(make(), inputs).softmax_inputs == []


def test_a_distribution_that_is_given_is_none_of_the_networks():
    assert look(mlp(), FLAT.softmax(dim=1)).softmax_inputs == []


def test_one_hot_codes_are_no_softmax():
    model = Net(
        lambda s, x: s.b(s.a(F.one_hot(x, 20).float()).relu().mean(dim=1)),
        a=nn.Linear(20, 8), b=nn.Linear(8, 3),
    )  # fmt: skip
    assert look(model, TOKENS).softmax_inputs == []


def test_a_softmax_over_the_batch_is_found_at_the_output_alone():
    assert look(mlp(end=nn.Softmax(dim=0))).batch_softmax
    assert look(mlp(end=nn.LogSoftmax(dim=0))).batch_softmax
    assert not look(mlp(end=nn.Softmax(dim=1))).batch_softmax
    assert not look(Attention(), SEQUENCES).batch_softmax


# --- mixing -------------------------------------------------------------------------------------


def recurrent(kind, batch_first, bidirectional=False):
    return Net(
        lambda s, x: s.out(s.recurrent(x)[0][:, -1]),
        recurrent=RECURRENT[kind](
            4, 8, batch_first=batch_first, bidirectional=bidirectional
        ),
        out=nn.Linear(16 if bidirectional else 8, 3),
    )  # fmt: skip


@pytest.mark.parametrize("kind", RECURRENT)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrence_over_the_batch_axis_mixes(kind, bidirectional):
    facts = look(recurrent(kind, False, bidirectional), SEQUENCES)
    assert facts.mixing > 0.01
    assert facts.mixing_layers["recurrent"] > 0.01
    assert look(recurrent(kind, True, bidirectional), SEQUENCES).mixing == 0


MIXING = {
    "attention over the batch": (lambda: Attention(over_batch=True), SEQUENCES),
    "multihead, batch second": (lambda: multihead(batch_first=False), SEQUENCES),
    "transformer, batch second": (lambda: transformer(batch_first=False), SEQUENCES),
    "batch mean": (
        lambda: Net(
            lambda s, x: s.b((s.a(x) - s.a(x).mean(dim=0)).relu()),
            a=nn.Linear(10, 8), b=nn.Linear(8, 3),
        ),
        FLAT,
    ),
    "reshape for permute": (
        lambda: Net(
            lambda s, x: s.a(x.permute(1, 0, 2).reshape(len(x), -1)), a=nn.Linear(24, 3)
        ),
        SEQUENCES,
    ),
    "softmax over the batch": (lambda: mlp(end=nn.Softmax(dim=0)), FLAT),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXING)
def test_what_depends_on_other_samples_is_found(name):
    make, inputs = MIXING[name]
    facts = look(make(), inputs)
    assert facts.mixing > 0.01
    assert max(facts.mixing_layers.values()) > 0.01


def test_the_layers_that_mix_are_told_in_the_order_of_the_pass():
    """A layer that is called several times is compared call by call."""

    class Centre(nn.Module):
        def forward(self, x):
            return x - x.mean(dim=0)

    model = Net(
        lambda s, x: s.out(s.act(s.centre(s.act(s.first(x))))),
        first=nn.Linear(10, 8), act=nn.Tanh(), centre=Centre(), out=nn.Linear(8, 3),
    )  # fmt: skip
    facts = look(model)
    assert list(facts.mixing_layers) == ["first", "act", "centre", "out"]
    assert facts.mixing_layers["first"] == 0
    assert min(facts.mixing_layers[n] for n in ("act", "centre", "out")) > 0.01
    before = Net(
        lambda s, x: s.out(s.act(s.act(s.first(x)))),
        first=nn.Linear(10, 8), act=nn.Tanh(), out=nn.Linear(8, 3),
    )  # fmt: skip
    assert set(look(before).mixing_layers.values()) == {0.0}


def test_of_many_layers_those_that_mix_are_told():
    layers = [nn.Identity() for _ in range(80)]
    model = Net(
        lambda s, x: s.last(s.many(x) - s.many(x).mean(dim=0)),
        many=nn.Sequential(*layers), last=nn.Linear(10, 3),
    )  # fmt: skip
    assert list(look(model).mixing_layers) == ["last"]


APART = {
    "mlp": (mlp, FLAT),
    "batch norm": (lambda: mlp(nn.Sequential(nn.BatchNorm1d(20), nn.ReLU())), FLAT),
    "batch norm without statistics": (
        lambda: mlp(nn.Sequential(nn.BatchNorm1d(20, track_running_stats=False), nn.ReLU())), FLAT,
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(),
            nn.Linear(144, 3),
        ),
        IMAGES,
    ),
    "group norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        ),
        IMAGES,
    ),
    "instance norm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
        ),
        IMAGES,
    ),
    "layer norm": (lambda: mlp(nn.Sequential(nn.LayerNorm(20), nn.ReLU())), FLAT),
    "transformer": (transformer, SEQUENCES),
    "attention": (Attention, SEQUENCES),
    "time first": (
        lambda: Net(
            lambda s, x: s.out(s.recurrent(x.transpose(0, 1))[0][-1]),
            recurrent=nn.LSTM(4, 8), out=nn.Linear(8, 3),
        ),
        SEQUENCES,
    ),
    "tokens": (
        lambda: Net(
            lambda s, x: s.out(s.embedding(x).mean(dim=1)),
            embedding=nn.Embedding(20, 8), out=nn.Linear(8, 3),
        ),
        TOKENS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_what_keeps_samples_apart_is_not_accused(name):
    make, inputs = APART[name]
    facts = look(make(), inputs)
    assert facts.mixing == 0
    assert set(facts.mixing_layers.values()) == {0.0}
    assert facts.evaluation_change == 0
    assert not facts.drops_in_evaluation


def test_a_trained_batch_norm_does_not_mix_in_evaluation():
    model = mlp(nn.Sequential(nn.BatchNorm1d(20), nn.ReLU()))
    for seed in range(5):
        model(3 * normal(BATCH, 10, seed=seed) + 1)
    assert look(model).mixing == 0


def test_functional_dropout_is_random_in_evaluation():
    facts = look(
        Net(lambda s, x: s.b(F.dropout(s.a(x), 0.5)), a=nn.Linear(10, 8), b=nn.Linear(8, 3))
    )
    assert facts.drops_in_evaluation
    assert facts.evaluation_change > 0.1


class Averaged(nn.Module):
    """Keeps dropout on, to average passes."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(F.dropout(self.a(x), 0.5, training=True))


def test_dropout_that_the_code_keeps_on_is_meant():
    meant = look(Averaged())
    assert (meant.drops_in_evaluation, meant.dropout_meant) == (True, True)
    slip = Net(lambda s, x: s.b(F.dropout(s.a(x), 0.5)), a=nn.Linear(10, 8), b=nn.Linear(8, 3))
    assert not look(slip).dropout_meant


def test_sampling_in_evaluation_is_no_dropout():
    """As a variational autoencoder does it."""
    model = Net(
        lambda s, x: s.b(s.a(x) + 0.1 * torch.randn(len(x), 8)),
        a=nn.Linear(10, 8), b=nn.Linear(8, 3),
    )  # fmt: skip
    facts = look(model)
    assert facts.evaluation_change > 0.01
    assert not facts.drops_in_evaluation


def test_dropout_layers_are_not_random_in_evaluation():
    facts = look(mlp(nn.Sequential(nn.ReLU(), nn.Dropout(0.4))))
    assert facts.evaluation_change == 0
    assert not facts.drops_in_evaluation
    assert facts.dropout == 0.4
    assert facts.mode_sensitive
    assert not look(mlp()).mode_sensitive
    assert look(mlp(nn.BatchNorm1d(20))).mode_sensitive


# --- gradients ----------------------------------------------------------------------------------


def without_gradients(s, x):
    with torch.no_grad():
        hidden = s.a(x).relu()
    return s.b(hidden)


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.b(s.a(x).relu().detach()),
        lambda s, x: s.b(s.a(x).relu().data),
        without_gradients,
    ],
    ids=["detach", "data", "no_grad"],
)
def test_parameters_that_no_gradient_reaches_are_named(forward):
    facts = look(Net(forward, a=nn.Linear(10, 8), b=nn.Linear(8, 3)))
    assert facts.unreached == ["a.weight", "a.bias"]
    assert facts.unused == []


def test_unused_parameters_are_told_from_unreached_ones():
    model = Net(lambda s, x: s.b(x), a=nn.Linear(10, 8), b=nn.Linear(10, 3))
    facts = look(model)
    assert facts.unreached == []
    assert facts.unused == ["a.weight", "a.bias"]


def test_parameters_that_are_frozen_are_not_missed():
    model = mlp()
    model[0].requires_grad_(False)
    facts = look(model)
    assert facts.unreached == []
    assert facts.unused == []


def test_examining_leaves_weights_gradients_and_modes():
    model = nn.Sequential(mlp(nn.Sequential(nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(0.5))))
    model.train()
    model[0][1][2].eval()
    modes = [m.training for m in model.modules()]
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    look(model)
    assert [m.training for m in model.modules()] == modes
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_gradient_fades_along_a_sequence():
    def net(module):
        return Net(
            lambda s, x: s.out(s.recurrent(x)[0][:, -1]), recurrent=module, out=nn.Linear(8, 3)
        )

    long = normal(BATCH, 60, 4)
    weak = nn.RNN(4, 8, batch_first=True)
    with torch.no_grad():
        weak.weight_hh_l0.mul_(0.1)
    assert look(net(weak), long).time_gradient < 1e-6
    even = nn.RNN(4, 8, batch_first=True, nonlinearity="relu")
    with torch.no_grad():
        even.weight_hh_l0.copy_(torch.eye(8))
    assert 0.1 < look(net(even), long).time_gradient < 10
    assert look(mlp()).time_gradient is None


# --- initial weights ----------------------------------------------------------------------------


def gains(model, inputs):
    return {w.name: w for w in weight_facts(model, forward_order(model, Call((inputs,))), {})}


FILLED = {
    # RMS · √fan_in: of U(−b, b) the RMS is b / √3.
    "default": (lambda w: None, lambda fan_in, fan_out: 1 / math.sqrt(3)),
    "kaiming": (nn.init.kaiming_normal_, lambda fan_in, fan_out: math.sqrt(2)),
    "kaiming_uniform": (nn.init.kaiming_uniform_, lambda fan_in, fan_out: math.sqrt(2)),
    "xavier": (
        nn.init.xavier_normal_, lambda fan_in, fan_out: math.sqrt(2 * fan_in / (fan_in + fan_out)),
    ),
    "xavier_uniform": (
        nn.init.xavier_uniform_, lambda fan_in, fan_out: math.sqrt(2 * fan_in / (fan_in + fan_out)),
    ),
    "tenfold": (lambda w: w.data.mul_(10), lambda fan_in, fan_out: 10 / math.sqrt(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", FILLED)
def test_gains_are_those_of_the_textbook(name):
    fill, expected = FILLED[name]
    dense = nn.Sequential(nn.Linear(200, 400), nn.ReLU(), nn.Linear(400, 300))
    conv = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3))
    for model, inputs, receptive in ((dense, normal(4, 200), 1), (conv, normal(4, 16, 8, 8), 9)):
        for layer in (model[0], model[2]):
            fill(layer.weight)
        found = gains(model, inputs)
        assert list(found) == ["0.weight", "2.weight"]
        for key, layer in (("0.weight", model[0]), ("2.weight", model[2])):
            fan_out, fan_in = (n * receptive for n in layer.weight.shape[:2])
            assert found[key].gain == pytest.approx(expected(fan_in, fan_out), rel=0.03)
            assert found[key].norm == pytest.approx(layer.weight.norm().item(), rel=1e-5)
            assert found[key].size == layer.weight.numel()
            assert not found[key].identical_rows
            assert not found[key].constant
        assert [w.hidden for w in found.values()] == [True, False]


def test_symmetric_weights_are_known():
    model = mlp()
    nn.init.constant_(model[0].weight, 0.3)
    with torch.no_grad():
        model[2].weight[:] = model[2].weight[:, :1]
    first, last = gains(model, FLAT).values()
    assert (first.constant, first.identical_rows, first.identical_columns) == (True, True, True)
    assert (last.constant, last.identical_rows, last.identical_columns) == (False, False, True)
    with torch.no_grad():
        model[0].weight[:] = torch.linspace(-1, 1, 10)
    first, _ = gains(model, FLAT).values()
    assert (first.constant, first.identical_rows, first.identical_columns) == (False, True, False)


def test_embeddings_and_norms_are_no_maps():
    model = Net(
        lambda s, x: s.out(s.norm(s.embedding(x).mean(dim=1))),
        embedding=nn.Embedding(20, 8), norm=nn.LayerNorm(8), out=nn.Linear(8, 3),
    )  # fmt: skip
    assert list(gains(model, TOKENS)) == ["out.weight"]


def test_forward_order_is_that_of_use():
    model = Net(
        lambda s, x: s.first(s.second(s.third(x).relu()).relu()),
        first=nn.Linear(8, 3), second=nn.Linear(8, 8), third=nn.Linear(10, 8),
    )  # fmt: skip
    order = forward_order(model, Call((FLAT,)))
    assert order == ["third.weight", "second.weight", "first.weight"]


def test_forward_order_names_every_weight_once():
    shared = nn.Linear(10, 10)
    model = Net(lambda s, x: s.b(s.a(s.a(x).relu()).relu()), a=shared, b=nn.Linear(10, 3))
    assert forward_order(model, Call((FLAT,))) == ["a.weight", "b.weight"]
    encoder = transformer()
    named = [n for n, p in encoder.named_parameters() if p.dim() >= 2]
    assert sorted(forward_order(encoder, Call((SEQUENCES,)))) == sorted(named)


def test_a_call_is_changed_wherever_its_tensors_stand():
    call = Call((FLAT, [TOKENS, 3]), {"mask": {"a": FLAT}})
    assert [id(t) for t in call.tensors()] == [id(FLAT), id(TOKENS), id(FLAT)]
    doubled = call.map(lambda t: 2 * t)
    assert torch.equal(doubled.args[0], 2 * FLAT)
    assert torch.equal(doubled.args[1][0], 2 * TOKENS)
    assert doubled.args[1][1] == 3
    assert torch.equal(doubled.kwargs["mask"]["a"], 2 * FLAT)
    assert torch.equal(call.args[0], FLAT)


def test_a_recurrent_layer_without_dropout_stays_in_its_mode():
    """cuDNN's recurrent layers have no backward pass in evaluation mode."""
    model = nn.LSTM(FLAT.shape[-1], 5, num_layers=2, dropout=0.5)
    with without_dropout(model, training=True):
        assert model.training
        first, again = (model(FLAT[:, None])[0] for _ in range(2))
        assert torch.equal(first, again)
    assert (model.training, model.dropout) == (True, 0.5)


def test_in_evaluation_a_recurrent_layers_rate_stays():
    """Dropout that ignores the mode stays on, so that it can be found."""
    model = nn.LSTM(4, 5, dropout=0.5, num_layers=2)
    with without_dropout(model, training=False):
        assert (model.training, model.dropout) == (False, 0.5)


def test_a_recurrent_layer_may_call_a_module_of_its_own_dropout():
    class Named(nn.GRU):
        def __init__(self):
            super().__init__(4, 5)
            del self.dropout
            self.dropout = nn.Dropout(0.5)

    model = Named()
    with without_dropout(model, training=True):
        assert not model.dropout.training
    assert model.dropout.training


@pytest.mark.parametrize(
    ("activation", "offset", "straight"),
    [
        (nn.ReLU(), 0.0, False),
        (nn.ReLU(), 1000.0, False),  # no ReLU turns off on such inputs, and others would
        (nn.LeakyReLU(1.0), 0.0, True),
        (nn.Identity(), 1000.0, True),
    ],
)
def test_a_network_is_straight_only_where_no_input_bends_it(activation, offset, straight):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].weight.abs_()
    inputs = torch.randn(32, 6, dtype=torch.double) + offset
    facts = bend(model.eval(), Call((inputs,)))
    assert (facts < 1e-9) is straight


@pytest.mark.parametrize("shape", [(4,), (6, 4)], ids=["one sample", "one size"])
def test_a_network_that_takes_no_part_of_its_input_is_looked_at_all_the_same(shape):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x):
            assert x.shape == shape
            return self.last(torch.relu(self.first(x)))

    torch.manual_seed(0)
    model = Whole()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Doctor(model, optimizer) as doctor:
        for _ in range(5):
            loss = model(torch.randn(shape)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        report = doctor.report()
    assert report.troubles == []
    assert report.evidence.network.parameters == 114
    assert report.evidence.network.bend is None


def test_a_model_that_returns_its_loss_alone_is_looked_at():
    class Denoiser(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3))

        def forward(self, x):
            noise = torch.randn_like(x)
            return (self.net(x + noise) - noise).square().mean()

    torch.manual_seed(0)
    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with Doctor(model, optimizer) as doctor:
        for _ in range(5):
            optimizer.zero_grad()
            loss = model(torch.randn(16, 3))
            loss.backward()
            optimizer.step()
            doctor.step(loss)
        report = doctor.report()
    assert report.troubles == []
    assert report.evidence.network.nonlinear


class Factors(nn.Module):
    """Rates a pair (user, film) by the product of their factors, and by a bias of each."""

    def __init__(self, equal):
        super().__init__()
        self.users, self.films = nn.Embedding(30, 4), nn.Embedding(20, 4)
        self.of_user, self.of_film = nn.Embedding(30, 1), nn.Embedding(20, 1)
        for bias in (self.of_user, self.of_film):
            nn.init.zeros_(bias.weight)
        if equal:
            for factors in (self.users, self.films):
                nn.init.constant_(factors.weight, 0.1)

    def forward(self, users, films):
        product = (self.users(users) * self.films(films)).sum(dim=1)
        return product + (self.of_user(users) + self.of_film(films)).squeeze(1)


@pytest.mark.parametrize("equal", [False, True])
def test_equal_columns_of_a_table_are_equal_units_and_equal_rows_are_not(equal):
    """Each row of a table gets the gradient of its own samples."""
    model = Factors(equal)
    call = Call((torch.tensor([0, 1]), torch.tensor([2, 3])))
    facts = {fact.name: fact for fact in weight_facts(model, forward_order(model, call), {})}
    assert not facts["of_user.weight"].identical_rows
    assert facts["users.weight"].identical_rows is equal
