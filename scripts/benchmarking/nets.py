"""The article's networks, their data, and the number of steps of each of its runs."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Net:
    """One of the article's networks on its data.

    Attributes:
        overrides: overrides of this project's configuration.
        data: name of the data set.
        batch: training batch size.
        test_batch: the notebooks' evaluation batch size.
        test_size: number of test samples.
        steps_per_epoch: steps of an epoch of the article.
        epochs: of most of its runs in the article.
        block: number of steps that are timed together: a multiple of 20, because the doctor
            inspects every 20th step more closely. Where a step is short, nearly all of a run: what
            threads write of it later would not count otherwise.
    """

    overrides: tuple[str, ...]
    data: str
    batch: int
    test_batch: int
    test_size: int
    steps_per_epoch: int
    epochs: int = 10
    block: int = 20

    @property
    def steps(self) -> int:
        """The number of steps of a run."""
        return self.epochs * self.steps_per_epoch

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
        ("model=regressor", "data=regression", "loss=mse", "optim=sgd", "optim.lr=0.001"),
        "regression", 32, 500, 500, 16, epochs=100, block=1580,
    ),
}  # fmt: skip
MAIN = ("mnist", "cifar")

# The nets that are trained in stacks. Convolutions are not stacked on a CPU.
STACKED = {
    "regression": NETS["regression"].overrides,
    "mlp": ("model=deep_mlp", "data=digits"),
}
# A net whose steps are so short that the reading of its images would show.
LIGHT = {"mlp_mnist": ("model=deep_mlp", "data=mnist")}
# On a GPU the CIFAR net is stacked too, on data that 256 members can have a copy of each.
STACKED_ON_GPU = {"mlp": STACKED["mlp"], "cnn": ("model=cnn", "data=shapes")}


@dataclass(frozen=True)
class Run:
    """The number of training steps and evaluations of a run of the article."""

    name: str
    net: str
    steps: int
    evaluations: int


def _epochs(name: str, net: str, epochs: int | None = None) -> Run:
    epochs = epochs or NETS[net].epochs
    return Run(name, net, epochs * NETS[net].steps_per_epoch, epochs)


ARTICLE = (
    Run("overfitsmall", "mnist", 5, 0),
    Run("lrfinder-1 … -6", "mnist", 6 * 100, 0),
    _epochs("lrfinder_train", "mnist"),
    _epochs("Vanishing_Grad_1", "mnist_sigmoid"),
    _epochs("VG_Converge", "mnist_sigmoid", 40),
    _epochs("VG_solved_Relu", "mnist"),
    _epochs("Explode_Bad_Wt", "mnist"),
    # The measured step includes its share of the evaluation that follows every 16th step.
    Run("before_nan", "regression", NETS["regression"].steps, 0),
    Run("after_nan", "regression", NETS["regression"].steps, 0),
    _epochs("run_without_wt", "cifar"),
    _epochs("run_with_wt", "cifar"),
    _epochs("base_model", "cifar"),
    _epochs("dropout_model", "cifar_dropout"),
    _epochs("batch_norm", "cifar_bn"),
    _epochs("bn_drop", "cifar_bn_dropout"),
    _epochs("mnist_baseline", "mnist"),
)


def data_overrides(root: Path | None, cache: Path) -> list[str]:
    """Return the overrides for the folders of data and cache; `root` is None for random images."""
    return [f"data.cache={cache}", *([f"data.root={root}"] if root else [])]


def images_of(net: str) -> str:
    """Return the name of the images that a net is trained on."""
    return NETS[net].data if net in NETS else "mnist"


def net_overrides(net: str, root: Path | None) -> list[str]:
    """Return the overrides for the network and its data; `root` is None for random images."""
    overrides = list(
        NETS[net].overrides if net in NETS else (STACKED | STACKED_ON_GPU | LIGHT)[net]
    )
    if root is None and net in NETS and NETS[net].data != "regression":
        overrides.append(f"data.reader._target_=benchmarking.random_data.{NETS[net].data}")
    return overrides
