"""PyTorch Lightning with its W&B logger, on the notebooks' networks and data."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset

try:
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import WandbLogger
except ImportError:
    import pytorch_lightning as pl
    from pytorch_lightning.loggers import WandbLogger

from benchmarking.nets import NETS
from benchmarking.notebook import MODELS, data_sets


class Module(pl.LightningModule):
    def __init__(self, net: str) -> None:
        super().__init__()
        self.net = MODELS[net]()

    def training_step(self, batch, index):
        inputs, targets = batch
        loss = F.nll_loss(self.net(inputs), targets)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, index):
        inputs, targets = batch
        outputs = self.net(inputs)
        self.log("test_loss", F.nll_loss(outputs, targets))
        self.log("test_accuracy", outputs.argmax(dim=1).eq(targets).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Lightning:
    """The side of PyTorch Lightning."""

    def __init__(self, root: Path | None, directory: Path) -> None:
        self.root, self.directory = root, directory
        self.running: dict[str, Iterator[None]] = {}
        self.data = {}

    def steps(self, net: str, count: int, variant: str = "") -> float:
        """Train `count` further steps and return the mean seconds of one."""
        if net not in self.running:
            self.running[net] = pausing(lambda pause: self._fit(net, pause))
            for _ in range(3):
                next(self.running[net])
        started = time.perf_counter()
        for _ in range(count):
            next(self.running[net])
        return (time.perf_counter() - started) / count

    def evaluate(self, net: str, images: int) -> float:
        """Return the seconds of one evaluation on the first `images` test images."""
        loader = DataLoader(Subset(self._data(net)[1], range(images)), NETS[net].test_batch)
        trainer, module = self._trainer(logger=False), Module(net)
        started = time.perf_counter()
        trainer.validate(module, loader, verbose=False)
        return time.perf_counter() - started

    def _fit(self, net: str, pause: Callable[[], None]) -> None:
        class Pause(pl.Callback):
            def on_train_batch_end(self, *_: object) -> None:
                pause()

        logger = WandbLogger(project="benchmark", save_dir=self.directory, offline=True)
        loader = DataLoader(self._data(net)[0], NETS[net].batch, shuffle=True)
        trainer = self._trainer(logger=logger, max_epochs=-1, callbacks=[Pause()])
        trainer.fit(Module(net), loader)

    def _trainer(self, **settings: object) -> pl.Trainer:
        return pl.Trainer(
            accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=self.directory, **settings,
        )  # fmt: skip

    def _data(self, net: str):
        name = NETS[net].data
        if name not in self.data:
            self.data[name] = data_sets(net, self.root)
        return self.data[name]


def pausing(work: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Turn a function that calls `pause()` after each step into a generator.

    The function runs in a thread of its own, because Lightning does not give up control of its
    loop.
    """
    go, done = queue.Queue(), queue.Queue()
    failures = []

    def pause() -> None:
        done.put(True)
        go.get()

    def run() -> None:
        go.get()
        try:
            work(pause)
        except BaseException as error:
            failures.append(error)
        done.put(False)

    threading.Thread(target=run, daemon=True).start()
    while True:
        go.put(None)
        if not done.get():
            break
        yield
    if failures:
        raise failures[0]
