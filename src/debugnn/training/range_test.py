"""The learning-rate range test (Smith 2017, arXiv:1506.01186) of a training."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import replace

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
    """Train a copy for `iterations` steps while the rate rises exponentially.

    The loss is smoothed as in the article, `smoothing` of the new loss and the rest of the old
    smoothed one, without bias correction. The test ends early where the smoothed loss is not
    finite or above `diverge_at` times its best.

    Args:
        start_lr, end_lr: the first and the last iteration's rate.
        test: number of the repetition; each draws other batches. The copy starts from the same
            weights in all of them.
    """
    model = copy.deepcopy(training.model)
    optimizer = copy_optimizer(training, model)
    trial = replace(training, model=model, optimizer=optimizer)
    model.train()
    batches = itertools.chain.from_iterable(
        # Epochs counted from far above any training's: the test's batches are its own.
        trial.batches(1000 * (test + 1) + epoch)
        for epoch in itertools.count()
    )

    def step(lr: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = lr
        _, loss = trial.backward(*next(batches))
        trial.update()
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
    """An optimiser like the training's, with its state, over a copy of its model."""
    twins = dict(zip(training.model.parameters(), model.parameters(), strict=True))
    groups = [
        {**group, "params": [twins[p] for p in group["params"]]}
        for group in training.optimizer.param_groups
    ]
    twin = type(training.optimizer)(groups)
    twin.load_state_dict(copy.deepcopy(training.optimizer.state_dict()))
    return twin
