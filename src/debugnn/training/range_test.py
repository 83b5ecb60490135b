"""The learning-rate range test (Smith 2017, arXiv:1506.01186) of a training."""

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from debugnn.lr_curve import sweep_rates
from debugnn.records import LrPoint
from debugnn.training.loop import Training


def range_test(
    training: Training,
    *,
    start_lr: float,
    end_lr: float,
    iterations: int,
    smoothing: float,
    diverge_at: float,
    test: int = 0,
) -> Iterator[LrPoint]:
    """Train a copy of the model while the learning rate rises exponentially.

    The training itself is not changed. The loss is smoothed as in the article: `smoothing` times
    the new loss plus (1 − `smoothing`) times the last smoothed loss, without bias correction. The
    test ends early if the smoothed loss is not finite or exceeds `diverge_at` times its minimum.

    Args:
        training: the training whose model, optimiser and data are copied.
        start_lr, end_lr: the rates of the first and the last iteration.
        iterations: number of steps.
        smoothing: weight of the new loss, 0 to 1.
        diverge_at: factor of the smallest smoothed loss at which the test ends.
        test: number of the repetition. All repetitions start from the same weights; each draws
            other batches.

    Yields:
        A point of the curve for each step.
    """
    model = copy.deepcopy(training.model)
    optimizer = copy_optimizer(training, model)
    trial = replace(training, model=model, optimizer=optimizer)
    model.train()
    batches = itertools.chain.from_iterable(
        # Epoch numbers that no training reaches, so that the test has batches of its own.
        trial.batches(1000 * (test + 1) + epoch)
        for epoch in itertools.count()
    )

    def step(lr: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = lr
        _, loss = trial.backward(*next(batches))
        trial.gradient_rule(trial.parameters)
        optimizer.step()
        return loss.item()

    yield from sweep_rates(
        step,
        start_lr=start_lr,
        end_lr=end_lr,
        iterations=iterations,
        smoothing=smoothing,
        diverge_at=diverge_at,
        test=test,
    )


def copy_optimizer(training: Training, model: nn.Module) -> torch.optim.Optimizer:
    """Copy the training's optimiser, with its state, for a copy of its model.

    Args:
        model: a copy of the training's model, with the same parameters in the same order.
    """
    twins = dict(zip(training.model.parameters(), model.parameters(), strict=True))
    groups = [
        {**group, "params": [twins[p] for p in group["params"]]}
        for group in training.optimizer.param_groups
    ]
    make = cast(Callable[..., torch.optim.Optimizer], type(training.optimizer))
    twin = make(groups)
    twin.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    return twin
