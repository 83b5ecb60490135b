"""A callback that watches a training of Lightning.

    callback = DoctorCallback()
    lightning.Trainer(callbacks=[callback]).fit(module, train_loader, val_loader)
    callback.report

Needs the extra `lightning` (Lightning 2.6 or newer).
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from debugnn.doctor import Doctor, Report
from debugnn.integrations.batches import ValidationSamples, split, with_targets


class DoctorCallback(pl.Callback):
    """Watches what `Trainer.fit` trains; prints the report and logs the verdict at its end.

    What is watched is the module's one child that holds the optimiser's parameters, or the whole
    module where they belong to several children. The loss is the one that `training_step` computes:
    under automatic optimisation it is tried out through a copy of the module whose network returns
    outputs that the doctor makes up. With several optimisers each one has a doctor of its own.

    Args:
        loss_fn: called as `loss_fn(outputs, targets)`, where it is not `training_step` that is to
            be tried out.
        split_batch: takes a batch of the data loader, and returns inputs and targets.
        **options: of `Doctor`, such as `every`, `budget`, `on_nonfinite` and `memory`.

    Attributes:
        reports: a report for each optimiser, by the name of what it trains.
    """

    def __init__(
        self,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        *,
        split_batch: Callable[[Any], tuple[Any, Any]] | None = None,
        **options: Any,
    ) -> None:
        self.reports: dict[str, Report] = {}
        self._loss_fn = loss_fn
        self._split = split_batch or split
        self._splits_itself = split_batch is not None
        self._options = options
        self._doctors: dict[str, Doctor] = {}
        self._restored: dict[str, Any] = {}  # doctors' states, from a checkpoint
        self._handles: list[Any] = []
        self._batch: Any = None
        self._losses: list[Tensor] = []  # that were back-propagated since the last update
        self._step_loss: StepLoss | None = None
        self._validation = ValidationSamples()

    @property
    def report(self) -> Report | None:
        """The report; of several optimisers the first that is not healthy. None before the end."""
        bad = (report for report in self.reports.values() if not report.healthy)
        return next(bad, next(iter(self.reports.values()), None))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to watch, after a checkpoint has been restored."""
        self._close()
        self.reports = {}
        for optimizer in trainer.optimizers:
            name, network = watched_part(pl_module, optimizer)
            if name in self._doctors:
                name = f"{name} ({type(optimizer).__name__})"
            loss_fn = self._loss_fn
            if loss_fn is None and pl_module.automatic_optimization and not self._splits_itself:
                loss_fn = self._step_loss = StepLoss.of(pl_module, network)
            self._doctors[name] = doctor = Doctor(
                network,
                optimizer,
                loss_fn,
                steps_before=trainer.global_step // len(trainer.optimizers),
                **self._options,
            )
            if name in self._restored:
                doctor.load_state_dict(self._restored[name])
            # Called after the doctor's own hook, which has seen the update then.
            hook = partial(self._after_update, doctor)
            self._handles.append(optimizer.register_step_post_hook(hook))

    def state_dict(self) -> dict[str, Any]:
        """Return what the doctors know, which Lightning keeps in its checkpoints."""
        return {name: doctor.state_dict() for name, doctor in self._doctors.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what the doctors knew, before `on_train_start` makes them anew."""
        self._restored = state_dict

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch for the update that follows."""
        self._batch = batch
        if self._step_loss is not None:
            self._step_loss.batch = batch

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        """Keep the loss for the update that follows; several are added up, as their gradients."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        self._losses.append(loss.detach() / scale)

    def _after_update(self, doctor: Doctor, *hooked: Any) -> None:
        losses, self._losses = self._losses, []
        if not losses:
            return
        inputs, targets = None, None
        if len(self._doctors) == 1:
            inputs, targets = self._split(self._batch)
        doctor.step(torch.stack([loss.sum() for loss in losses]).sum(), inputs, targets)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first samples of the first validation set."""
        if dataloader_idx == 0 and len(self._doctors) == 1 and not trainer.sanity_checking:
            self._validation.add(*self._split(batch))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the doctor the samples that were kept."""
        samples = self._validation.taken()
        if samples is not None:
            for doctor in self._doctors.values():
                doctor.validate(*samples)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the report, and log the verdict."""
        with torch.inference_mode(False):
            self.reports = {name: doctor.report() for name, doctor in self._doctors.items()}
        self._close()
        for name, report in self.reports.items():
            several = len(self.reports) > 1
            if trainer.is_global_zero:
                print(f"{name}: {report}" if several else report)
            _log(trainer, f"doctor/{name}" if several else "doctor", report)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Report on a training that was ended by an error, and let go of it."""
        if self._doctors:
            self.reports = {name: doctor.report() for name, doctor in self._doctors.items()}
            self._close()

    def _close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for doctor in self._doctors.values():
            doctor.close()
        self._handles, self._doctors, self._losses = [], {}, []
        self._batch = self._step_loss = None


def watched_part(
    module: pl.LightningModule, optimizer: torch.optim.Optimizer
) -> tuple[str, nn.Module]:
    """Return the name and the child of a module that an optimiser trains.

    With one optimiser the child has to hold all of the module's parameters: those that the
    optimiser lacks may be its mistake. "model" and the module itself where there is no such child.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    own = {id(p) for p in module.parameters()}
    optimizers = module.trainer.optimizers
    wanted = own if len(optimizers) == 1 else held & own
    for name, child in module.named_children():
        if wanted and wanted <= {id(p) for p in child.parameters()}:
            return name, child
    return "model", module


class StepLoss:
    """The loss that a module's `training_step` computes, as a function of its network's outputs.

    A copy of the module takes the step, whose network returns the given outputs, and whose batch
    has the given targets. The copy holds no weights of the network, and logs nothing.

    Args:
        module: calls its network once in `training_step`.
        network: the module itself, or one of its children.

    Attributes:
        batch: the latest batch, whose inputs the step is given.

    Raises:
        Exception: whatever copying the module raises.
    """

    def __init__(self, module: pl.LightningModule, network: nn.Module) -> None:
        self.batch: Any = None
        self._given = given = _Given()
        # What stands here is not copied: the weights are left out, and no gradient reaches them.
        memo: dict[int, Any] = {id(network): given}
        if network is module:
            memo = {id(p): nn.Parameter(p.detach(), False) for p in module.parameters()}
        self._module = copy.deepcopy(module, memo)
        if network is module:
            self._module.forward = given.forward
        self._module.log = self._module.log_dict = _nothing

    @classmethod
    def of(cls, module: pl.LightningModule, network: nn.Module) -> "StepLoss | None":
        """Return the loss of a module's step; None of a module that cannot be copied."""
        try:
            return cls(module, network)
        except Exception:  # a lock, a generator, a graph among its attributes
            return None

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return the loss of the step.

        Raises:
            Exception: whatever `training_step` raises.
        """
        self._given.outputs = outputs
        batch = self.batch if targets is None else with_targets(self.batch, targets)
        loss = self._module.training_step(batch, 0)
        return loss["loss"] if isinstance(loss, Mapping) else loss

    def __deepcopy__(self, memo: dict) -> "StepLoss":
        return self


class _Given(nn.Module):
    """Stands for a network: returns outputs that were set before."""

    outputs: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.outputs


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Log nothing."""


def _log(trainer: pl.Trainer, name: str, report: Report) -> None:
    """Log the verdict to all of the trainer's loggers, as numbers."""
    numbers = {f"{name}/{severity}s": 0.0 for severity in ("note", "warning", "error")}
    for finding in report.findings:
        numbers[f"{name}/{finding.severity}s"] += 1
    if report.healthy is not None:
        numbers[f"{name}/healthy"] = float(report.healthy)
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=trainer.global_step)
        text = getattr(logger.experiment, "add_text", None)
        if callable(text):  # TensorBoard's
            text(name, report.details(), trainer.global_step)
