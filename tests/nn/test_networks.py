"""Networks are those of the article, with every model and regulariser of conf/."""

import copy
import math
from math import prod

import pytest
import torch
from hydra.utils import get_class
from torch import nn

from debugnn.build import build_model
from debugnn.data import Arrays, assemble
from debugnn.errors import ConfigError
from debugnn.nn.batch_norm import BatchNorm2d
from debugnn.nn.dropout import Dropout
from debugnn.nn.flatten import Flatten
from debugnn.nn.linear import Linear
from debugnn.nn.networks import network, parameter_count

MNIST, CIFAR, FEATURES = (1, 28, 28), (3, 32, 32), (20,)
CHANNELS_LAST = {"memory_format": torch.channels_last}


@pytest.fixture(scope="module")
def build_on(compose, image_arrays):
    """Build the network of a configuration for random data of a shape."""

    def build(
        shape: tuple[int, ...],
        *overrides: str,
        reg: str = "none",
        seed: int = 0,
        device: str = "cpu",
    ) -> nn.Sequential:
        if len(shape) == 3:
            arrays = image_arrays(shape, train=10, test=10)
        else:
            values = image_arrays((1, 1, prod(shape)), train=10, test=10).train_inputs
            values = values.reshape(10, *shape).astype("float32")
            arrays = Arrays(values, values[:, :1], values, values[:, :1])
        data = assemble(
            arrays, name="random", seed=0, batch_size=2, mean=[0.5], std=[0.5], device=device
        )
        torch.manual_seed(seed)
        config = compose(*overrides)
        config.reg = compose(f"reg={reg}").reg
        with torch.device(device):
            return build_model(config, data)

    return build


def input_shape_of(config) -> tuple[int, ...]:
    return FEATURES if config.model.outputs == 1 else MNIST


def layer_shapes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return the output shape of each layer, without the batch dimension."""
    shapes, inputs = {}, torch.randn(2, *shape)
    model.eval()
    for name, layer in model.named_children():
        inputs = layer(inputs)
        assert inputs.shape[0] == 2
        shapes[name] = tuple(inputs.shape[1:])
    return shapes


# --- the article's table ------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sigmoid_net", "relu_net"])
def test_the_mnist_net_is_the_articles(build_on, model):
    net = build_on(MNIST, f"model={model}")
    assert layer_shapes(net, MNIST) == {
        "conv1": (32, 26, 26), "act1": (32, 26, 26),
        "conv2": (64, 24, 24), "act2": (64, 24, 24), "pool1": (64, 12, 12),
        "flatten": (9216,), "fc1": (128,), "fc1_act": (128,), "fc2": (10,),
    }  # fmt: skip
    assert [layer.bias for layer in (net.conv1, net.conv2, net.fc1, net.fc2)] == [None] * 4
    assert parameter_count(net) == 32 * 9 + 64 * 32 * 9 + 128 * 9216 + 10 * 128
    with_biases = build_on(MNIST, f"model={model}", "model.bias=true")
    assert parameter_count(with_biases) == 1_199_648 + 32 + 64 + 128 + 10


def test_the_cifar_net_is_the_articles(build_on):
    net = build_on(CIFAR, "model=cnn")
    assert layer_shapes(net, CIFAR) == {
        "conv1": (32, 30, 30), "act1": (32, 30, 30),
        "conv2": (32, 28, 28), "act2": (32, 28, 28), "pool1": (32, 14, 14),
        "conv3": (64, 12, 12), "act3": (64, 12, 12),
        "conv4": (64, 10, 10), "act4": (64, 10, 10), "pool2": (64, 5, 5),
        "flatten": (1600,), "fc1": (512,), "fc1_act": (512,),
        "fc2": (128,), "fc2_act": (128,), "fc3": (10,),
    }  # fmt: skip
    convolutions = (32 * 27 + 32) + (32 * 288 + 32) + (64 * 288 + 64) + (64 * 576 + 64)
    assert parameter_count(net) == convolutions + (512 * 1600 + 512) + (128 * 512 + 128) + 1290


def test_the_regression_net_is_the_articles(build_on):
    net = build_on(FEATURES, "model=regressor")
    assert layer_shapes(net, FEATURES) == {
        "flatten": (20,), "fc1": (25,), "fc1_act": (25,), "fc2": (1,)
    }  # fmt: skip
    assert isinstance(net.fc1_act, nn.ReLU)
    assert parameter_count(net) == 20 * 25 + 25


CIFAR_NET_WITH = {
    "none": "conv1 act1 conv2 act2 pool1 conv3 act3 conv4 act4 pool2",
    "dropout": "conv1 act1 conv2 act2 dropout1 pool1 conv3 act3 conv4 act4 dropout2 pool2",
    "bn": "conv1 bn1 act1 conv2 act2 pool1 conv3 bn3 act3 conv4 act4 pool2",
    "bn_dropout": (
        "conv1 bn1 act1 conv2 act2 dropout1 pool1 conv3 bn3 act3 conv4 act4 dropout2 pool2"
    ),
}


@pytest.mark.parametrize("reg", CIFAR_NET_WITH)
def test_the_regularisers_are_where_the_article_puts_them(build_on, reg):
    net = build_on(CIFAR, "model=cnn", reg=reg)
    names = [name for name, _ in net.named_children()]
    tail = "flatten fc1 fc1_act fc2 fc2_act fc3"
    assert " ".join(names) == f"{CIFAR_NET_WITH[reg]} {tail}"
    kinds = {"conv": nn.Conv2d, "bn": BatchNorm2d, "dropout": Dropout, "pool": nn.MaxPool2d}
    for name, layer in net.named_children():
        kind = kinds.get(name.rstrip("0123456789"))
        assert kind is None or type(layer) is kind, name
    assert all(layer.p == 0.5 for layer in net if isinstance(layer, nn.Dropout))
    assert layer_shapes(net, CIFAR)["fc3"] == (10,)


def test_without_blocks_the_regularisers_are_around_every_hidden_activation(build_on):
    net = build_on(FEATURES, "model=regressor", "model.hidden=[9,7]", reg="bn_dropout")
    assert [(name, type(layer)) for name, layer in net.named_children()] == [
        ("flatten", Flatten),
        ("fc1", Linear), ("fc1_bn", nn.BatchNorm1d), ("fc1_act", nn.ReLU),
        ("fc1_dropout", Dropout),
        ("fc2", Linear), ("fc2_bn", nn.BatchNorm1d), ("fc2_act", nn.ReLU),
        ("fc2_dropout", Dropout),
        ("fc3", Linear),
    ]  # fmt: skip


# --- every model and regulariser of conf/ -------------------------------------------------------


def count_by_hand(config, shape: tuple[int, ...], outputs: int, batch_norm: bool) -> int:
    """Compute the number of parameters from the widths alone."""
    pieces = config.model.activation.get("pieces", 1)
    bias = 1 if config.model.bias else 0
    total, width = 0, shape[0]
    if config.model.blocks:
        height = shape[1]
        for block in config.model.blocks:
            for position, channels in enumerate(block):
                produced = channels * pieces
                total += produced * (9 * width + bias)
                if batch_norm and position == 0:
                    total += 2 * produced
                width, height = channels, height - 2
            height //= 2
        width *= height * height
    else:
        width = prod(shape)
    for hidden in config.model.hidden:
        produced = hidden * pieces
        total += produced * (width + bias)
        if batch_norm and not config.model.blocks:
            total += 2 * produced
        width = hidden
    return total + outputs * (width + bias)


def test_every_model_with_every_regulariser_has_the_parameters_of_its_widths(
    compose, build_on, each_model, each_reg
):
    config, reg = compose(f"model={each_model}"), compose(f"reg={each_reg}").reg
    shape = input_shape_of(config)
    outputs = config.model.outputs or 10
    # Tensors on the meta device have no values, which saves the time to draw them.
    net = build_on(shape, f"model={each_model}", reg=each_reg, device="meta")
    assert parameter_count(net) == count_by_hand(config, shape, outputs, reg.batch_norm)
    assert sum(isinstance(layer, nn.Dropout) for layer in net) == (
        0 if not reg.dropout else len(config.model.blocks) or len(config.model.hidden)
    )


def test_every_model_gives_bare_outputs_and_a_gradient_to_every_parameter(
    compose, build_on, each_model
):
    config = compose(f"model={each_model}")
    shape = input_shape_of(config)
    net = build_on(shape, f"model={each_model}")
    outputs = net(torch.randn(3, *shape))
    assert outputs.shape == (3, config.model.outputs or 10)
    assert isinstance(net[-1], nn.Linear)  # logits: no activation after the last layer
    outputs.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


def test_every_model_has_its_activation_after_every_hidden_layer(compose, build_on, each_model):
    config = compose(f"model={each_model}")
    net = build_on(input_shape_of(config), f"model={each_model}")
    activations = [layer for name, layer in net.named_children() if "act" in name]
    expected = sum(len(block) for block in config.model.blocks) + len(config.model.hidden)
    assert len(activations) == expected
    assert len({id(layer) for layer in activations}) == expected
    kind = get_class(config.model.activation._target_)
    assert {type(layer) for layer in activations} == {kind}


def test_every_model_is_a_function_of_the_seed(compose, build_on, each_model):
    shape = input_shape_of(compose(f"model={each_model}"))
    first, again, other = (build_on(shape, f"model={each_model}", seed=s) for s in (1, 1, 2))
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


ACTIVATIONS = {
    "relu_net": lambda x: max(x, 0.0),
    "sigmoid_net": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "elu": lambda x: x if x > 0 else math.exp(x) - 1,
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
}


@pytest.mark.parametrize("model", ACTIVATIONS)
def test_an_activation_is_the_one_that_its_file_names(build_on, model):
    net = build_on(MNIST, f"model={model}")
    inputs = torch.linspace(-8, 8, 65, dtype=torch.float64)
    expected = torch.tensor([ACTIVATIONS[model](x) for x in inputs.tolist()], dtype=torch.float64)
    torch.testing.assert_close(net.act1(inputs), expected, rtol=1e-12, atol=1e-12)


def test_dropout_is_applied_in_training_alone(build_on):
    net = build_on(CIFAR, "model=cnn", reg="dropout")
    inputs = torch.randn(4, *CIFAR)
    first, second = net(inputs), net(inputs)
    assert not torch.equal(first, second)
    net.eval()
    assert torch.equal(net(inputs), net(inputs))


def test_frozen_parameters_are_not_counted(build_on):
    net = build_on(FEATURES, "model=regressor")
    net.fc1.weight.requires_grad_(False)
    assert parameter_count(net) == 25


def test_a_maxout_net_produces_its_pieces_and_passes_its_widths_on(build_on):
    net = build_on(MNIST, "model=maxout", "model.activation.pieces=3")
    assert (net.conv1.out_channels, net.conv2.in_channels) == (96, 32)
    assert (net.conv2.out_channels, net.fc1.in_features) == (192, 9216)
    assert (net.fc1.out_features, net.fc2.in_features, net.fc2.out_features) == (384, 128, 10)


# --- own layers and torch.nn's -------------------------------------------------------------------


def own_and_torchs(build_on, reg: str) -> list[nn.Sequential]:
    """Return the CIFAR net with our layers and with torch.nn's, with the same weights."""
    nets = [
        build_on(CIFAR, "model=cnn", f"model.own_layers={own}", reg=reg).to(**CHANNELS_LAST)
        for own in ("true", "false")
    ]
    for (name, tensor), (other, same) in zip(
        *(net.state_dict().items() for net in nets), strict=True
    ):
        assert name == other
        assert torch.equal(tensor, same)
    return nets


def batch(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, *CIFAR, generator=generator).to(**CHANNELS_LAST)
    return inputs, torch.randint(10, (size,), generator=generator)


def test_own_layers_false_builds_the_net_of_torchs_layers(build_on):
    _, plain = own_and_torchs(build_on, "bn_dropout")
    assert {type(layer).__module__.partition(".")[0] for layer in plain} == {"torch"}


def test_both_kinds_of_layers_give_the_same_outputs_and_running_statistics(build_on):
    own, plain = own_and_torchs(build_on, "bn")
    inputs, _ = batch(16)
    torch.testing.assert_close(own(inputs), plain(inputs), rtol=1e-4, atol=1e-5)
    assert torch.equal(own.bn1.num_batches_tracked, plain.bn1.num_batches_tracked)
    torch.testing.assert_close(own.bn3.running_var, plain.bn3.running_var, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(own.eval()(inputs), plain.eval()(inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_both_kinds_of_dropout_give_outputs_of_the_same_distribution(build_on):
    nets, (inputs, _), passes = own_and_torchs(build_on, "dropout"), batch(2), 400
    with torch.no_grad():
        drawn = [torch.stack([net(inputs) for _ in range(passes)]).double() for net in nets]
    own, plain = drawn
    error = torch.sqrt((own.var(0) + plain.var(0)) / passes)
    assert ((own.mean(0) - plain.mean(0)).abs() < 5 * error).all()
    # The relative standard error of a sample's variance is about √(2 / passes).
    assert ((own.var(0) / plain.var(0)).log().abs() < 5 * 2 / passes**0.5).all()


def test_own_batch_norm_brings_the_first_layers_gradient_nearer_to_float64(build_on):
    own, plain = own_and_torchs(build_on, "bn")
    inputs, targets = batch(32)

    def gradient(net: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        net = copy.deepcopy(net).to(dtype)
        nn.functional.cross_entropy(net(inputs.to(dtype)), targets).backward()
        return net.conv1.weight.grad.double()

    exact = gradient(plain, torch.float64)
    own_error, plain_error = ((gradient(n) - exact).norm() / exact.norm() for n in (own, plain))
    assert own_error < 1e-5
    assert plain_error > 20 * own_error


def test_channels_last_gradients_are_as_accurate_as_contiguous_ones(build_on, each_reg):
    net = build_on(CIFAR, "model=cnn", "model.activation._target_=torch.nn.Tanh", reg=each_reg)
    # In either layout, a ReLU or a max-pool that selects another unit turns a rounding error into
    # one of 1e-3; and each layout draws other dropout masks.
    for name, layer in list(net.named_children()):
        if isinstance(layer, nn.MaxPool2d):
            setattr(net, name, nn.AvgPool2d(2))
        elif isinstance(layer, nn.Dropout):
            layer.p = 0.0
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, *CIFAR, generator=generator)
    targets = torch.randint(10, (32,), generator=generator)

    def gradients(**layout: torch.dtype | torch.memory_format) -> dict[str, torch.Tensor]:
        own = copy.deepcopy(net).to(**layout)
        nn.functional.cross_entropy(own(inputs.to(**layout)), targets).backward()
        return {name: parameter.grad.double() for name, parameter in own.named_parameters()}

    exact, plain, found = gradients(dtype=torch.float64), gradients(), gradients(**CHANNELS_LAST)
    largest = max(gradient.norm() for gradient in exact.values())
    for name, gradient in exact.items():
        # The bias of a convolution before a batch norm has a gradient of 0.
        size = max(gradient.norm(), 1e-6 * largest)
        reached = (plain[name] - gradient).norm() / size
        bound = 3 * max(reached, torch.tensor(5e-7))
        assert (found[name] - gradient).norm() / size < bound, name


# --- what cannot be built -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "smallest"), [([[4, 4]], 6), ([[4]], 4), ([[4, 4], [4, 4]], 16), ([[4], [4]], 10)]
)
def test_images_are_refused_from_one_pixel_below_what_the_convolutions_need(blocks, smallest):
    net = network((3, smallest, smallest), 10, activation=nn.ReLU, blocks=blocks, hidden=[5])
    assert net(torch.randn(2, 3, smallest, smallest)).shape == (2, 10)
    for shape in ((3, smallest - 1, smallest), (3, smallest, smallest - 1), (3, 1, 1)):
        with pytest.raises(ConfigError, match=r"model\.blocks.*too small") as caught:
            network(shape, 10, activation=nn.ReLU, blocks=blocks, hidden=[5])
        assert "\n" not in str(caught.value)


def test_convolutions_are_refused_on_features():
    with pytest.raises(ConfigError, match=r"model\.blocks=\[\[4\]\].*\(20,\)"):
        network(FEATURES, 1, activation=nn.ReLU, blocks=[[4]])


@pytest.mark.parametrize(
    ("shape", "overrides", "message"),
    [
        (MNIST, ["model=regressor"], r"model\.outputs=1: data=random needs 10 classes"),
        (FEATURES, ["model=regressor", "model.outputs=3"], r"model\.outputs=3.*needs one value"),
        (FEATURES, ["model=relu_net"], r"model\.blocks"),
        (MNIST, ["model=relu_net", "+model.widths=3"], r"model: .*widths"),
        (
            MNIST,
            ["model=relu_net", "model.own_layers=1"],
            r"model\.own_layers=1: .*true and false",
        ),
        (
            MNIST,
            ["model=relu_net", "model._target_=debugnn.nn.networks.nothing"],
            r"model: .*nothing",
        ),
        (MNIST, ["model=relu_net", "+model.activation.p=0.3"], r"model: .*'p'"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(build_on, shape, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_on(shape, *overrides)
    assert "\n" not in str(caught.value)
