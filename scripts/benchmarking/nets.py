"""What is trained: the article's networks, their data, and how often each of its runs steps."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Net:
    """One of the article's networks on its data.

    Attributes:
        overrides: of this project's configuration.
        test_batch: what such notebooks evaluate in.
        block: steps that are timed as one: whole periods of the doctor, 20 steps, each of which
            has one that is watched closely; of short steps enough to time them.
    """

    overrides: tuple[str, ...]
    data: str
    batch: int
    test_batch: int
    test_size: int
    steps_per_epoch: int
    block: int = 20

    @property
    def shape(self) -> tuple[int, ...]:
        return {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "regression": (20,)}[self.data]


def _mnist(*overrides: str) -> Net:
    return Net((*overrides, "data=mnist"), "mnist", 64, 1000, 10_000, 21)


def _cifar(*overrides: str) -> Net:
    return Net(("model=cnn", "data=cifar10", *overrides), "cifar10", 32, 32, 10_000, 1563)


NETS = {
    "mnist": _mnist("model=relu_net"),
    "mnist_sigmoid": _mnist("model=sigmoid_net"),
    "cifar": _cifar(),
    "cifar_dropout": _cifar("reg=dropout"),
    "cifar_bn": _cifar("reg=bn"),
    "cifar_bn_dropout": _cifar("reg=bn_dropout"),
    "regression": Net(
        ("model=regressor", "data=regression", "loss=mse", "optim=sgd", "optim.momentum=0.9"),
        "regression", 32, 500, 500, 16, block=320,
    ),
}  # fmt: skip
MAIN = ("mnist", "cifar")

# What is trained in stacks: nets whose steps are mostly overhead, and one of convolutions.
STACKED = {
    "regression": NETS["regression"].overrides,
    "mlp": ("model=deep_mlp", "data=digits"),
    "mnist": NETS["mnist"].overrides,
}


@dataclass(frozen=True)
class Run:
    """A run of the article, by how many training steps and evaluations it consists of."""

    name: str
    net: str
    steps: int
    evaluations: int


def _epochs(name: str, net: str, epochs: int) -> Run:
    return Run(name, net, epochs * NETS[net].steps_per_epoch, epochs)


ARTICLE = (
    Run("overfitsmall", "mnist", 5, 0),
    Run("lrfinder-1 … -6", "mnist", 6 * 100, 0),
    _epochs("lrfinder_train", "mnist", 10),
    _epochs("Vanishing_Grad_1", "mnist_sigmoid", 10),
    _epochs("VG_Converge", "mnist_sigmoid", 40),
    _epochs("VG_solved_Relu", "mnist", 10),
    _epochs("Explode_Bad_Wt", "mnist", 10),
    # An evaluation of 500 rows is part of every 16th step there.
    Run("before_nan", "regression", 1600, 0),
    Run("after_nan", "regression", 1600, 0),
    _epochs("run_without_wt", "cifar", 10),
    _epochs("run_with_wt", "cifar", 10),
    _epochs("base_model", "cifar", 10),
    _epochs("dropout_model", "cifar_dropout", 10),
    _epochs("batch_norm", "cifar_bn", 10),
    _epochs("bn_drop", "cifar_bn_dropout", 10),
    _epochs("mnist_baseline", "mnist", 10),
)


def data_overrides(root: Path | None, cache: Path) -> list[str]:
    """Where the images are; random ones where `root` is None."""
    return [f"data.cache={cache}", *([f"data.root={root}"] if root else [])]


def net_overrides(net: str, root: Path | None) -> list[str]:
    """The network and its data."""
    overrides = list(NETS[net].overrides if net in NETS else STACKED[net])
    if root is None and net in NETS and NETS[net].data != "regression":
        overrides.append(f"data.reader._target_=benchmarking.random_data.{NETS[net].data}")
    return overrides
