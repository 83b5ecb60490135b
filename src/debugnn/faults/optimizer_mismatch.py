"""An optimiser that does not hold the model's parameters."""

import copy
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from debugnn.faults.cases import case
from debugnn.faults.edits import after_making_optimizer, layers, sequential, widths
from debugnn.faults.nets import mlp
from debugnn.faults.program import Setup


def optimise(setup: Setup, choose: Callable[[nn.Module], Iterable[nn.Parameter]]) -> None:
    """The optimiser gets other parameters than the model's."""
    make = setup.make_optimizer
    setup.make_optimizer = lambda _: make(choose(setup.model))


def of_a_copy(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a copy of the model."""
    return list(copy.deepcopy(model).parameters())


def of_another_net(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a net of the same kind."""
    return list(mlp(64, 64, 64, 10).parameters())


def of_last_layer(model: nn.Module) -> list[nn.Parameter]:
    """Return the output layer's parameters."""
    return list(layers(model)[-1].parameters())


def of_first_layer(model: nn.Module) -> list[nn.Parameter]:
    """Return the first layer's parameters."""
    return list(layers(model)[0].parameters())


def reinitialised(setup: Setup) -> None:
    """Every layer's weight becomes a new Parameter after the optimiser has been made."""

    def reset() -> None:
        for layer in layers(setup.model):
            layer.weight = nn.Parameter(nn.init.kaiming_normal_(torch.empty_like(layer.weight)))
            layer.bias = nn.Parameter(torch.zeros_like(layer.bias))

    after_making_optimizer(setup, reset)


def late_head(setup: Setup) -> None:
    """The output layer is replaced after the optimiser has been made."""

    def replace() -> None:
        model = sequential(setup)
        old = layers(model)[-1]
        model[-1] = nn.Linear(old.in_features, old.out_features)

    after_making_optimizer(setup, replace)


def copied_after(setup: Setup) -> None:
    """The model is copied, as for each fold of a cross-validation, after the optimiser is made."""

    def replace_by_copy() -> None:
        setup.model = copy.deepcopy(setup.model)

    after_making_optimizer(setup, replace_by_copy)


def weight_norm_after(setup: Setup) -> None:
    """`weight_norm`, which makes new parameters, is applied after the optimiser is made."""

    def parametrise() -> None:
        for layer in layers(setup.model):
            weight_norm(layer)

    after_making_optimizer(setup, parametrise)


def assigned_checkpoint(setup: Setup) -> None:
    """`load_state_dict(…, assign=True)` makes new parameters after the optimiser is made."""

    def load() -> None:
        checkpoint = {name: value.clone() for name, value in setup.model.state_dict().items()}
        setup.model.load_state_dict(checkpoint, assign=True)

    after_making_optimizer(setup, load)


class HiddenInList(nn.Module):
    """An MLP whose hidden layers lie in a list, where `parameters()` does not find them."""

    def __init__(self, hidden: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.hidden, self.head = hidden, head

    def forward(self, x: Tensor) -> Tensor:
        for module in self.hidden:
            x = module(x)
        return self.head(x)


def layers_in_list(setup: Setup) -> None:
    """The hidden layers lie in a Python list, where a ModuleList is needed."""
    *hidden, head = sequential(setup)
    setup.model = HiddenInList(hidden, head)


class BranchesInDict(nn.Module):
    """Two branches, kept in a dict, whose outputs are added before the head."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.branches = {
            name: nn.Sequential(nn.Linear(features, 48), activation)
            for name, activation in (("smooth", nn.Tanh()), ("sharp", nn.ReLU()))
        }
        self.head = nn.Linear(48, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(branch(x) for branch in self.branches.values()))


def branches_in_dict(setup: Setup) -> None:
    """Branches lie in a dict, where a ModuleDict is needed."""
    setup.model = BranchesInDict(*widths(setup))


class ProjectedInForward(nn.Module):
    """A net whose input is projected by a layer that is made in each forward pass."""

    def __init__(self, features: int, body: nn.Module) -> None:
        super().__init__()
        self.features, self.body = features, body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.tanh(nn.Linear(self.features, self.features)(x)))


def projected_in_forward(setup: Setup) -> None:
    """A layer is made in the forward pass."""
    setup.model = ProjectedInForward(setup.train[0].shape[1], setup.model)


class PlainWeights(nn.Module):
    """A hidden layer of plain tensors, which are no parameters, before a linear head."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = (torch.randn(features, 64) / features**0.5).requires_grad_()
        self.bias = torch.zeros(64, requires_grad=True)
        self.head = nn.Linear(64, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x @ self.weight + self.bias))


def plain_weights(setup: Setup) -> None:
    """Weights are tensors that require a gradient and are no nn.Parameter."""
    setup.model = PlainWeights(*widths(setup))


class CentreLoss(nn.Module):
    """Scores of classes by the angle to a centre each, which is learnt, and their cross-entropy.

    As of ArcFace without its margin (Deng et al. 2019, arXiv:1801.07698).
    """

    def __init__(self, features: int, classes: int, scale: float = 10.0) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(classes, features))
        self.scale = scale

    def forward(self, embedded: Tensor, targets: Tensor) -> Tensor:
        angles = F.normalize(embedded, dim=1) @ F.normalize(self.centres, dim=1).T
        return F.cross_entropy(self.scale * angles, targets)


def centres_not_held(setup: Setup) -> None:
    """The optimiser gets the embedding's parameters alone, and not the centres of the loss."""
    classes = widths(setup)[1]
    setup.loss_fn = CentreLoss(classes, classes)


def scale_not_held(setup: Setup) -> None:
    """A scale of the logits, which is to be learnt, is made beside the model."""
    scale = nn.Parameter(torch.tensor(0.1))
    setup.loss_fn = lambda outputs, targets: F.cross_entropy(outputs * scale, targets)


TUNING = [
    case("mlp_tanh", centres_not_held),
    case("cnn_sgd", scale_not_held),
    case("mlp", optimise, choose=of_another_net),
    case("mlp_sgd", optimise, choose=of_a_copy),
    case("cnn", optimise, choose=of_last_layer),
    case("lstm", optimise, choose=of_a_copy),
    case("friedman", optimise, choose=of_first_layer),
    case("mlp", reinitialised),
    case("ten_prototypes", branches_in_dict),
    case("mlp_momentum", branches_in_dict),
    case("mlp_tanh", projected_in_forward),
]

HELD_OUT = [
    case("mlp_momentum", late_head),
    case("gru_clipped", copied_after),
    case("mlp_sgd", weight_norm_after),
    case("cnn_batch_norm", assigned_checkpoint),
    case("friedman", layers_in_list),
    case("mlp_sgd", plain_weights),
]
