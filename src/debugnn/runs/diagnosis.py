"""Where runs meet the doctor: a training that it watches, and its checks before one."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from debugnn.build import build
from debugnn.doctor import Report, causes, check
from debugnn.doctor.resting import RestingDoctor
from debugnn.errors import CheckFailedError
from debugnn.records import Diagnosis, Evaluating, Pause, Pruned, Record
from debugnn.runs.pauses import Pauses
from debugnn.runs.pruning import pause_for_looks, until_hopeless
from debugnn.training import process
from debugnn.training.layer_stats import LayerProbe
from debugnn.training.loop import Training, fit

log = logging.getLogger(__name__)

_VALIDATION_SAMPLES = 1024  # test samples; the doctor evaluates no more


def doctor_of(
    config: DictConfig, training: Training, save_to: Path, state: Mapping[str, Any] | None
) -> RestingDoctor:
    """Return a doctor that watches a training from here on.

    Args:
        save_to: folder for the batch and the weights of a first non-finite number.
        state: what the doctor of the steps before knew; None without one.
    """

    process.leave_dynamo_out(torch.optim.Adam)  # by which the doctor fits the best constant outputs

    def new() -> RestingDoctor:
        return RestingDoctor(
            training.model,
            training.optimizer,
            loss_fn=training.loss,
            every=config.doctor.every,
            budget=config.doctor.budget,
            save_to=save_to,
            steps_before=training.step,
        )

    doctor = new()
    if state is not None:
        try:
            doctor.load_state_dict(state)
        except ValueError as error:  # the checkpoint is of another version of this project
            log.warning("  the doctor begins anew: %s", error)
            doctor.close()
            doctor = new()
    return doctor


def diagnosed(
    config: DictConfig, training: Training, doctor: RestingDoctor, pauses: Pauses
) -> Iterator[Record | Diagnosis | Pause | Evaluating | Pruned]:
    """Train while the doctor watches; yield the training's records, then the diagnosis.

    A pruned training is diagnosed without trials, which may take as long as what was saved.

    Raises:
        Interrupted: a signal came during the doctor's trials, which the last checkpoint precedes.
    """
    settings, epochs = config.doctor, config.trainer.epochs
    probe = LayerProbe(settings.every, settings.bins, settings.dense)
    if config.prune_on == "doctor":
        looks = pause_for_looks(training, pauses)
        records = fit(training, epochs, probe, doctor, looks)
        yield from until_hopeless(records, training, doctor, epochs)
    else:
        yield from fit(training, epochs, probe, doctor, pauses)
    with pauses.at_once():
        seen = doctor.report(trials=training.epoch == epochs).evidence
    yield diagnosis_of(causes.diagnose(seen, config.doctor.budget, overrides=True))


def diagnosis_of(report: Report) -> Diagnosis:
    """Return the doctor's report as a record of plain values."""
    return Diagnosis(
        cause=report.main_cause,
        healthy=report.healthy,
        text=str(report),
        report=report.to_dict(),
        evidence=asdict(report.evidence),
    )


def check_before_training(config: DictConfig) -> None:
    """Print the doctor's checks of a training; train and write nothing.

    Raises:
        ConfigError: the configuration cannot be used.
        CheckFailedError: a check failed.
    """
    training = build(config)
    checklist = check(
        training.model,
        training.loss,
        training.batches(0),
        training.optimizer,
        [training.data.test_sample(_VALIDATION_SAMPLES)],
    )
    log.info("%s", checklist)
    if not checklist.passed:
        raise CheckFailedError
