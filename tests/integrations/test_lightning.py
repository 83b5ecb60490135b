"""The callback in real trainings of Lightning's Trainer."""

import copy
import csv

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning", reason="the extra `lightning` is not installed")

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from debugnn.doctor import NonFiniteError
from debugnn.integrations.lightning import DoctorCallback

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    inputs = torch.randn(640, 8)
    labels = (inputs @ torch.randn(8, 4)).argmax(dim=1)
    return TensorDataset(inputs[:512], labels[:512]), TensorDataset(inputs[512:], labels[512:])


def net(*last):
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), *last)


class Classifier(pl.LightningModule):
    """Calls one child, computes its loss in the step, and keeps what a step should not lose."""

    def __init__(self, *last, lr=1e-2):
        super().__init__()
        self.net, self.lr, self.losses = net(*last), lr, []

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = F.cross_entropy(self.net(inputs), labels)
        self.log("train_loss", loss)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        self.log("val_loss", F.cross_entropy(self.net(inputs), labels))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Manual(Classifier):
    """The same under manual optimisation; the step returns nothing."""

    def __init__(self, clears=True):
        super().__init__()
        self.automatic_optimization, self.clears = False, clears

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        inputs, labels = batch
        if self.clears:
            optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(inputs), labels))
        optimizer.step()


class Adversaries(pl.LightningModule):
    """A generator and a discriminator, each with an optimiser of its own."""

    def __init__(self, swapped=False):
        super().__init__()
        self.automatic_optimization, self.swapped = False, swapped
        self.generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8))
        self.judge = nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))

    def training_step(self, batch, batch_idx):
        generators, judges = self.optimizers()
        real = batch[0]
        fake = self.generator(torch.randn(len(real), 4))
        one, zero = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        told = F.binary_cross_entropy_with_logits
        judges.zero_grad()
        self.manual_backward(told(self.judge(real), one) + told(self.judge(fake.detach()), zero))
        judges.step()
        generators.zero_grad()
        self.manual_backward(told(self.judge(fake), one))
        generators.step()

    def configure_optimizers(self):
        return [
            torch.optim.Adam(self.generator.parameters(), lr=2e-4),
            torch.optim.Adam(self.judge.parameters(), lr=2e-4),
        ]


def fit(module, data, *callbacks, epochs=6, resumed=None, **options):
    """Train with a seed; return the trainer."""
    pl.seed_everything(1, verbose=False)
    train, validation = data
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
        **{"logger": False, "enable_checkpointing": False, **options},
    )  # fmt: skip
    validation = None if isinstance(module, Adversaries) else DataLoader(validation, 64)
    batches = DataLoader(train, 32, shuffle=True)
    trainer.fit(module, batches, validation, ckpt_path=resumed, weights_only=True)
    return trainer


def test_a_sound_training_is_healthy_and_the_same_as_without_the_callback(data, capsys):
    watched, callback = Classifier(), DoctorCallback()
    plain = copy.deepcopy(watched)
    fit(watched, data, callback)
    fit(plain, data)
    assert callback.report.healthy is True, callback.report.details()
    assert callback.report.troubles == []
    evidence = callback.report.evidence
    assert (evidence.task, evidence.loss.error) == ("classes", None)
    assert (evidence.loop.steps, evidence.loop.optimizer_steps) == (96, 96)
    assert evidence.loop.empty_steps == 0  # gradients come from the closure, within the step
    assert len(evidence.outcome.validations) == 6
    assert evidence.loop.loss_ratio == pytest.approx(1.0)
    assert "diagnosis: healthy" in capsys.readouterr().out
    for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    assert watched.losses == plain.losses  # trying the step out adds nothing to them


def test_a_training_that_goes_on_from_a_checkpoint_is_judged_as_a_whole(data, tmp_path):
    """Six epochs, three of them before the checkpoint; weights alone are loaded of it."""
    saved = ModelCheckpoint(tmp_path, "saved")
    fit(Classifier(), data, DoctorCallback(), saved, epochs=3, enable_checkpointing=True)
    callback = DoctorCallback()
    fit(Classifier(), data, callback, resumed=tmp_path / "saved.ckpt")
    evidence = callback.report.evidence
    assert (evidence.loop.steps_before, evidence.loop.steps) == (0, 96)
    assert [found.step for found in evidence.outcome.validations] == [16, 32, 48, 64, 80, 96]
    assert callback.report.healthy is True, callback.report.details()


def test_a_faulty_loss_is_found_in_the_training_step(data):
    module, callback = Classifier(nn.Softmax(dim=1)), DoctorCallback()
    fit(module, data, callback)
    assert callback.report.main_cause == "wrong_loss"
    assert callback.report.main.confidence == "certain"
    assert callback.report.main.override is None


def test_the_verdict_goes_to_the_trainers_loggers(data, tmp_path):
    callback = DoctorCallback()
    fit(Classifier(nn.Softmax(dim=1)), data, callback, logger=CSVLogger(tmp_path))
    (file,) = tmp_path.rglob("metrics.csv")
    with file.open(encoding="utf-8") as lines:
        (logged,) = [row for row in csv.DictReader(lines) if row["doctor/healthy"]]
    assert float(logged["doctor/healthy"]) == 0.0
    assert float(logged["doctor/warnings"]) + float(logged["doctor/errors"]) >= 1


def test_accumulated_batches_are_one_step(data):
    callback = DoctorCallback()
    fit(Classifier(), data, callback, accumulate_grad_batches=2, epochs=10)
    loop = callback.report.evidence.loop
    assert (loop.steps, loop.optimizer_steps) == (80, 80)
    assert callback.report.healthy is not False, callback.report.details()
    # The mean over two batches against the loss of one of them.
    assert loop.loss_ratio == pytest.approx(1.0, abs=0.2)


def test_manual_optimisation_is_watched(data):
    callback = DoctorCallback(F.cross_entropy)
    fit(Manual(), data, callback)
    assert callback.report.healthy is True, callback.report.details()
    assert callback.report.evidence.loop.steps == 96


def test_uncleared_gradients_are_found_under_manual_optimisation(data):
    callback = DoctorCallback(F.cross_entropy)
    fit(Manual(clears=False), data, callback)
    assert callback.report.main_cause == "missing_zero_grad"


def test_two_optimisers_have_a_report_each(data):
    watched, callback = Adversaries(), DoctorCallback()
    plain = copy.deepcopy(watched)
    fit(watched, data, callback)
    fit(plain, data)
    assert list(callback.reports) == ["generator", "judge"]
    for report in callback.reports.values():
        assert report.healthy is not False, report.details()
        assert report.steps == 96
    for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_fit_ends_at_the_first_nan_on_request(data):
    module = Classifier()
    callback = DoctorCallback(on_nonfinite="raise")
    train, validation = data
    spoilt = TensorDataset(train.tensors[0].clone(), train.tensors[1])
    spoilt.tensors[0][100, 3] = torch.nan
    with pytest.raises(NonFiniteError, match="the input 0 holds it"):
        fit(module, (spoilt, validation), callback)
    assert callback.report.main_cause == "non_finite"
    assert callback.report.steps <= 16  # within the first epoch


def test_nothing_stays_on_what_was_watched(data):
    module = Classifier()
    trainer = fit(module, data, DoctorCallback(), epochs=1)
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_post_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
