import math

import pytest
import torch
from torch import nn

from debugnn.build import build
from debugnn.errors import ConfigError
from debugnn.nn.inits import initialise
from debugnn.nn.networks import network
from debugnn.pretraining import transfer

LAYERS = (nn.Conv2d, nn.Linear)
# The CIFAR net on embedded images of its size, and one small batch of them.
ON_DIGITS = ("model=cnn", "data=digits", "data.as_shape=[3,32,32]", "data.train_size=64")


@pytest.fixture(scope="module")
def cifar_net(compose):
    """Build the CIFAR net as train.py does."""

    def make(*overrides: str) -> nn.Module:
        return build(compose(*ON_DIGITS, *overrides)).model

    return make


@pytest.fixture(scope="module")
def default_net(cifar_net):
    return cifar_net("init=default")


def fans(layer: nn.Module) -> tuple[int, int]:
    positions = math.prod(layer.weight.shape[2:])
    return layer.weight.shape[1] * positions, layer.weight.shape[0] * positions


def he(fan_in: int, fan_out: int) -> float:
    return 2 / fan_in


def lecun(fan_in: int, fan_out: int) -> float:
    return 1 / fan_in


def glorot(fan_in: int, fan_out: int) -> float:
    return 2 / (fan_in + fan_out)


def pytorch(fan_in: int, fan_out: int) -> float:
    return 1 / (3 * fan_in)


# The variance in convolutions and in fully connected layers, and whether the weights are uniform.
THEORY = {
    "default": (pytorch, pytorch, True),
    "kaiming": (he, he, True),
    "kaiming_conv": (he, pytorch, True),
    "lecun": (lecun, lecun, False),
    "xavier": (glorot, glorot, True),
    "bias_positive": (pytorch, pytorch, True),
    "bias_negative": (pytorch, pytorch, True),
}


@pytest.mark.parametrize("init", THEORY)
def test_the_weights_have_the_variance_of_the_theory(cifar_net, init):
    convolutions, connected, uniform = THEORY[init]
    checked = 0
    for name, layer in cifar_net(f"init={init}").named_children():
        if not isinstance(layer, LAYERS):
            continue
        theory = (convolutions if isinstance(layer, nn.Conv2d) else connected)(*fans(layer))
        weight = layer.weight.double()
        # Five standard errors of the mean and of the variance of that many draws.
        excess = 0.8 if uniform else 2.0
        assert abs(weight.mean()) < 5 * math.sqrt(theory / weight.numel()), name
        assert abs(weight.var() / theory - 1) < 5 * math.sqrt(excess / weight.numel()), name
        bound = math.sqrt(3 * theory)
        assert (weight.abs().max() <= bound * (1 + 1e-6)) == uniform, name
        checked += 1
    assert checked == 7


def test_orthogonal_weights_are_orthogonal(cifar_net):
    for layer in cifar_net("init=orthogonal"):
        if isinstance(layer, LAYERS):
            rows = layer.weight.flatten(1).double()
            if len(rows) > rows.shape[1]:
                rows = rows.T
            torch.testing.assert_close(
                rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), rtol=0, atol=1e-5
            )


def test_const100_makes_every_weight_100_and_every_bias_minus_100(cifar_net):
    for layer in cifar_net("init=const100"):
        if isinstance(layer, LAYERS):
            assert (layer.weight == 100).all()
            assert (layer.bias == -100).all()


@pytest.mark.parametrize(
    ("init", "value"),
    [("kaiming", 0), ("xavier", 0), ("lecun", 0), ("orthogonal", 0),
     ("bias_positive", 0.1), ("bias_negative", -1)],
)  # fmt: skip
def test_the_biases_have_their_value(cifar_net, init, value):
    biases = [layer.bias for layer in cifar_net(f"init={init}") if isinstance(layer, LAYERS)]
    assert len(biases) == 7
    for bias in biases:
        assert torch.equal(bias, torch.full_like(bias, value))


@pytest.mark.parametrize("init", ["default", "kaiming_conv"])
def test_biases_that_no_rule_fills_are_pytorchs(cifar_net, init):
    for layer in cifar_net(f"init={init}"):
        if isinstance(layer, LAYERS):
            bound = 1 / math.sqrt(fans(layer)[0])
            assert layer.bias.abs().max() <= bound
            assert layer.bias.std() > bound / 4


@pytest.mark.parametrize("init", ["bias_positive", "bias_negative"])
def test_a_rule_for_biases_leaves_the_weights_as_they_are(cifar_net, default_net, init):
    for name, layer in cifar_net(f"init={init}").named_children():
        if isinstance(layer, LAYERS):
            assert torch.equal(layer.weight, default_net.get_submodule(name).weight), name


def test_kaiming_conv_leaves_all_but_the_convolutions_weights_bit_identical(cifar_net, default_net):
    for name, tensor in cifar_net("init=kaiming_conv").state_dict().items():
        filled = name.startswith("conv") and name.endswith("weight")
        assert torch.equal(tensor, default_net.state_dict()[name]) != filled, name


@pytest.fixture(scope="module")
def pretraining():
    """Overrides for a pre-training of one step on embedded data."""
    return (
        "data@init.pretrain.data=digits",
        "init.pretrain.epochs=1",
        "init.pretrain.steps_per_epoch=1",
        "init.pretrain.data.batch_size=8",
    )


def test_every_init_leaves_batch_norm_alone_and_the_outputs_finite(
    cifar_net, each_init, pretraining, request
):
    others = others_of(each_init, pretraining, request)
    net = cifar_net(f"init={each_init}", "reg=bn", *others)
    norms = [layer for layer in net if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 2
    for norm in norms:
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()
    net.eval()
    assert torch.isfinite(net(torch.ones(1, 3, 32, 32))).all()


def others_of(init, pretraining, request):
    """Return the other overrides of an initialisation: a short pre-training, the real data."""
    if init == "pretrained_cifar10":
        return (*pretraining, f"data.root={request.getfixturevalue('real_data')}")
    return pretraining if init == "pretrained" else ()


def test_every_init_is_a_function_of_the_seed(cifar_net, each_init, pretraining, request):
    others = others_of(each_init, pretraining, request)
    first, again = (cifar_net(f"init={each_init}", *others).state_dict() for _ in range(2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name


def test_pretrained_takes_the_named_layers_and_leaves_the_rest_as_default_has_it(
    cifar_net, default_net, pretraining
):
    net = cifar_net("init=pretrained", "init.pretrain.layers=[conv1,conv3]", *pretraining)
    for name, tensor in net.state_dict().items():
        taken = name.split(".")[0] in {"conv1", "conv3"}
        assert torch.equal(tensor, default_net.state_dict()[name]) != taken, name


@pytest.mark.slow
def test_what_is_not_taken_over_does_not_depend_on_the_pretraining(cifar_net, pretraining):
    # Dropout draws from the same generator as the initialiser.
    others = (*pretraining, "reg=dropout", "init.weight={_target_:torch.nn.init.normal_}")
    short, long = (
        cifar_net("init=pretrained", *others, f"init.pretrain.steps_per_epoch={steps}")
        for steps in (1, 2)
    )
    for name, tensor in short.state_dict().items():
        taken = name.split(".")[0] in {"conv1", "conv2"}
        assert torch.equal(tensor, long.state_dict()[name]) != taken, name
    # The initialiser runs before the transfer, which overwrites the transferred layers.
    assert long.fc3.weight.std() > 0.9
    assert long.conv2.weight.std() < 0.5


def small_net(seed: int, channels: int = 1, blocks: tuple = ((4, 6),)) -> nn.Sequential:
    torch.manual_seed(seed)
    return network(
        (channels, 12, 12), 10, activation=nn.ReLU, blocks=blocks, hidden=[8], batch_norm=True
    )


@pytest.mark.parametrize(
    ("layers", "weights", "biases"), [("all", 2.0, None), ("conv", None, 3.0), ("conv", 2.0, 3.0)]
)
def test_initialise_fills_and_counts_what_it_is_asked_to(layers, weights, biases):
    net, before = small_net(0), small_net(0).state_dict()
    fills = [
        None if v is None else lambda t, v=v: nn.init.constant_(t, v) for v in (weights, biases)
    ]
    filled = initialise(net, *fills, layers=layers)
    expected = 0
    for name, tensor in net.state_dict().items():
        kind, role = name.split(".")
        chosen = kind.startswith("conv") or (layers == "all" and kind.startswith("fc"))
        value = {"weight": weights, "bias": biases}.get(role) if chosen else None
        wanted = before[name] if value is None else torch.full_like(tensor, value)
        assert torch.equal(tensor, wanted), name
        expected += value is not None
    assert filled == expected > 0


def test_a_bias_rule_finds_nothing_in_a_net_without_biases():
    net = network((1, 8, 8), 10, activation=nn.ReLU, blocks=[[4]], bias=False)
    assert initialise(net, bias=nn.init.zeros_) == 0


@pytest.mark.parametrize("layers", [[], ["conv1"], ["conv1", "bn1"], ["conv2", "fc2"]])
def test_transfer_copies_the_named_layers_alone(layers):
    net, before, source = small_net(0), small_net(0).state_dict(), small_net(1)
    with torch.no_grad():
        for tensor in (source.bn1.weight, source.bn1.bias, source.bn1.running_mean):
            tensor.add_(1)
    transfer(net, source, layers)
    for name, tensor in net.state_dict().items():
        origin = source.state_dict() if name.split(".")[0] in layers else before
        assert torch.equal(tensor, origin[name]), name


def test_a_transferred_layer_is_a_copy():
    net, source = small_net(0), small_net(1)
    transfer(net, source, ["conv1"])
    kept = source.conv1.weight.clone()
    with torch.no_grad():
        net.conv1.weight.add_(1)
    assert torch.equal(source.conv1.weight, kept)


@pytest.mark.parametrize(
    ("layer", "source"),
    [
        ("conv9", small_net(1)),  # in neither network
        ("pool1", small_net(1)),  # a layer without parameters
        ("conv1", small_net(1, channels=3)),  # another shape
        ("conv2", small_net(1, blocks=((4,),))),  # not in the source
    ],
)
def test_a_layer_that_cannot_be_transferred_is_named_in_one_line(layer, source):
    with pytest.raises(ConfigError, match=rf"^init\.pretrain\.layers={layer}: ") as caught:
        transfer(small_net(0), source, [layer])
    assert "\n" not in str(caught.value)
