"""The baseline of the benchmark: a loop written as in the article's notebooks.

DataLoader over torchvision's data set with its transforms, one module per network, log-softmax and
negative log-likelihood, Adam with its defaults, NCHW, float32. The only import from this project is
the random data that replaces missing files.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
import wandb
from torch.utils.data import DataLoader, Subset, TensorDataset
from torchvision import datasets, transforms

from benchmarking.measures import finished
from benchmarking.nets import NETS


class MnistNet(nn.Module):
    def __init__(self, activation=F.relu):
        super().__init__()
        self.activation = activation
        self.conv1 = nn.Conv2d(1, 32, 3, 1, bias=False)
        self.conv2 = nn.Conv2d(32, 64, 3, 1, bias=False)
        self.fc1 = nn.Linear(9216, 128, bias=False)
        self.fc2 = nn.Linear(128, 10, bias=False)

    def forward(self, x):
        x = self.activation(self.conv1(x))
        x = self.activation(self.conv2(x))
        x = F.max_pool2d(x, 2)
        x = torch.flatten(x, 1)
        x = self.activation(self.fc1(x))
        return F.log_softmax(self.fc2(x), dim=1)


class CifarNet(nn.Module):
    def __init__(self, batch_norm=False, dropout=False):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 32, 3)
        self.conv3 = nn.Conv2d(32, 64, 3)
        self.conv4 = nn.Conv2d(64, 64, 3)
        self.bn1 = nn.BatchNorm2d(32) if batch_norm else nn.Identity()
        self.bn2 = nn.BatchNorm2d(64) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(0.5) if dropout else nn.Identity()
        self.fc1 = nn.Linear(1600, 512)
        self.fc2 = nn.Linear(512, 128)
        self.fc3 = nn.Linear(128, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv2(x))
        x = F.max_pool2d(self.dropout(x), 2)
        x = F.relu(self.bn2(self.conv3(x)))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(self.dropout(x), 2)
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return F.log_softmax(self.fc3(x), dim=1)


class RegressionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(20, 25, bias=False)
        self.fc2 = nn.Linear(25, 1, bias=False)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


MODELS = {
    "mnist": MnistNet,
    "mnist_sigmoid": lambda: MnistNet(torch.sigmoid),
    "cifar": CifarNet,
    "cifar_dropout": lambda: CifarNet(dropout=True),
    "cifar_bn": lambda: CifarNet(batch_norm=True),
    "cifar_bn_dropout": lambda: CifarNet(batch_norm=True, dropout=True),
    "regression": RegressionNet,
}


def data_sets(net: str, root: Path | None):
    """Return the training and the test set; random images if `root` is None."""
    name = NETS[net].data
    if name == "regression":
        from sklearn.datasets import make_regression

        rows, values = make_regression(n_samples=1000, n_features=20, noise=0.1, random_state=1)
        rows, values = torch.FloatTensor(rows), torch.FloatTensor(values).reshape(-1, 1)
        return TensorDataset(rows[:500], values[:500]), TensorDataset(rows[500:], values[500:])
    moments = ((0.1307,), (0.3081,)) if name == "mnist" else ((0.5,) * 3, (0.5,) * 3)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(*moments)])
    if root is None:
        from benchmarking.random_data import Images

        return [Images(name, train, transform) for train in (True, False)]
    data_set = datasets.MNIST if name == "mnist" else datasets.CIFAR10
    return [data_set(str(root), train=train, transform=transform) for train in (True, False)]


def train(net, loader, optimizer, criterion, device) -> Iterator[None]:
    """Train one epoch, and yield after each step, so that steps can be timed."""
    net.train()
    correct = total = 0
    for inputs, targets in loader:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        outputs = net(inputs)
        loss = criterion(outputs, targets)
        loss.backward()
        optimizer.step()
        if criterion is F.nll_loss:
            correct += outputs.argmax(dim=1).eq(targets).sum().item()
            total += targets.size(0)
        yield


def test(net, loader, criterion, device):
    net.eval()
    loss = correct = 0
    with torch.no_grad():
        for inputs, targets in loader:
            inputs, targets = inputs.to(device), targets.to(device)
            outputs = net(inputs)
            loss += criterion(outputs, targets, reduction="sum").item()
            if criterion is F.nll_loss:
                correct += outputs.argmax(dim=1).eq(targets).sum().item()
    return loss / len(loader.dataset), 100 * correct / len(loader.dataset)


class Notebook:
    """The side of the notebooks' loop.

    Variants: "" as the notebooks are, "watch" with `wandb.watch` at every step, and "unwatched"
    without it.
    """

    def __init__(self, root: Path | None, directory: Path, device: str = "cpu") -> None:
        self.root, self.directory, self.device = root, directory, device
        self.running: dict[tuple[str, str], Iterator[None]] = {}
        self.data, self.models = {}, {}

    def prepare(self, kind: str, net: str, variant: str = "", count: int = 0) -> None:
        """Do what `steps` or `evaluate` (`kind`) need once, outside of the timed part."""
        if kind == "evaluate" and net not in self.models:
            self.models[net] = MODELS[net]().to(self.device)
            self.evaluate(net, 32)  # at its first use, oneDNN prepares its kernels
        if kind == "steps" and (net, variant) not in self.running:
            self.running[net, variant] = self._train(net, variant)
            for _ in range(3):
                next(self.running[net, variant])

    def steps(self, net: str, count: int, variant: str = "") -> float:
        """Train `count` further steps and return the mean seconds of one."""
        self.prepare("steps", net, variant)
        started = finished(self.device)
        for _ in range(count):
            next(self.running[net, variant])
        return (finished(self.device) - started) / count

    def evaluate(self, net: str, images: int) -> float:
        """Return the seconds of one evaluation on the first `images` test images."""
        self.prepare("evaluate", net)
        model, criterion = self.models[net], F.nll_loss
        loader = DataLoader(Subset(self._data(net)[1], range(images)), NETS[net].test_batch)
        started = time.perf_counter()
        test(model, loader, criterion, self.device)
        return time.perf_counter() - started

    def _train(self, net: str, variant: str) -> Iterator[None]:
        torch.manual_seed(0)
        model = MODELS[net]().to(self.device)
        if wandb.run is None:
            settings = wandb.Settings(silent=True, console="off")
            wandb.init(mode="offline", project="benchmark", dir=self.directory, settings=settings)
        if variant != "unwatched":
            options = {"log_freq": 1} if variant == "watch" else {}
            wandb.watch(model, log="all", idx=len(self.running), **options)
        train_set, test_set = self._data(net)
        loader = DataLoader(train_set, NETS[net].batch, shuffle=True)
        criterion, optimizer = F.nll_loss, torch.optim.Adam(model.parameters())
        if net == "regression":
            criterion = F.mse_loss
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        while True:
            steps = train(model, loader, optimizer, criterion, self.device)
            for step, _ in enumerate(steps):
                if variant == "watch":
                    wandb.log({"step": step})  # sends what the hooks of wandb.watch have collected
                if step + 1 == len(loader) and net == "regression":
                    loss, _ = test(model, DataLoader(test_set, 500), criterion, self.device)
                    wandb.log({"test_loss": loss})
                yield

    def _data(self, net: str):
        name = NETS[net].data
        if name not in self.data:
            self.data[name] = data_sets(net, self.root)
        return self.data[name]
