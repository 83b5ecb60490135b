"""This project's side on a GPU: stacks of many seeds, and where a training waits for the GPU."""

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch

import debugnn
from benchmarking.measures import finished
from benchmarking.project import Project
from debugnn.build import build
from debugnn.doctor.resting import RestingDoctor
from debugnn.records import Step
from debugnn.runs.directory import RunDirectory
from debugnn.runs.execute import open_run, prepare, records_of
from debugnn.stacking.stack import Member, Stack
from debugnn.training.loop import Training, fit

PACKAGE = Path(debugnn.__file__).parent
_FOREVER = 1_000_000  # epochs
_WARM_UP = 20  # steps before the first that are timed


@dataclass
class Waits:
    """The waits of a training for its GPU.

    Attributes:
        doctor: line of the doctor that waits → number of waits.
        rest: the same of everything else.
        in_steps: indices of the steps in which the doctor waited.
        evaluations: indices of the steps that follow an evaluation in which it waited.
    """

    doctor: Counter[str] = field(default_factory=Counter)
    rest: Counter[str] = field(default_factory=Counter)
    in_steps: set[int] = field(default_factory=set)
    evaluations: set[int] = field(default_factory=set)


@contextmanager
def waits_of(training: Training) -> Iterator[Waits]:
    """Count the waits for the GPU inside the block. On a CPU there is none to count.

    PyTorch warns of each operation that waits. Each is counted at the innermost line of this
    package that led to it.
    """
    waits = Waits()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "called a synchronizing" not in str(message):
            return
        frames = [(Path(f.filename), f) for f in traceback.extract_stack()]
        own = [(path.relative_to(PACKAGE), frame) for path, frame in frames
               if path.is_relative_to(PACKAGE)]  # fmt: skip
        path, frame = own[-1] if own else frames[-2]
        place = f"{path}:{frame.lineno}"
        doctors = [frame.name for path, frame in own if path.parts[0] == "doctor"]
        if not doctors:
            waits.rest[place] += 1
            return
        waits.doctor[place] += 1
        (waits.evaluations if "validate" in doctors else waits.in_steps).add(training.step)

    on_gpu = training.device.type == "cuda"
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")


class OnGpu(Project):
    """The side of this project on a GPU, or with `device="cpu"` on a CPU, to try it out."""

    def __init__(
        self, root: Path | None, directory: Path, precision: str, wandb: str, device: str = "cuda"
    ) -> None:
        super().__init__(root, directory, precision, wandb, device)
        self.leads: dict[tuple[str, str], Training] = {}

    def card(self) -> str:
        """Return the name of the device."""
        return "the CPU" if self.device == "cpu" else torch.cuda.get_device_name()

    # --- stacks -----------------------------------------------------------------------------------

    def seeds_steps(self, net: str, members: int, count: int) -> float:
        """Return the seconds of `count` steps of so many seeds in one stack.

        No doctor watches, nothing is written, and nothing is evaluated.

        Args:
            members: 0 for one run without a stack.
        """
        key = (net, f"{members} seeds")
        if key not in self.running:
            if members:
                trainings = self._seeds(net, members)
                stack = Stack([Member(training) for training in trainings])
                self.running[key] = (record for _, record in stack.fit(_FOREVER))
            else:
                trainings = self._seeds(net, 1)
                self.running[key] = fit(trainings[0], _FOREVER)
            self.leads[key] = trainings[0]
            self._train_until(key, _WARM_UP)
        started = finished(self.device)
        self._train_until(key, self.leads[key].step + count)
        return finished(self.device) - started

    def _train_until(self, key: tuple[str, str], step: int) -> None:
        while self.leads[key].step < step:
            next(self.running[key])

    def _seeds(self, net: str, members: int, *more: str) -> list[Training]:
        """Build the training of each seed; the last epoch alone is evaluated."""
        overrides = ["doctor=off", f"trainer.eval_every={_FOREVER}", *more]
        settings = self._settings(net, "", *overrides)
        trainings = []
        for seed in range(members):
            settings.seed = seed
            trainings.append(build(settings))
        return trainings

    # --- checks -----------------------------------------------------------------------------------

    def stack_differs(self, net: str, members: int, steps: int) -> float:
        """Return how far a stacked seed's loss is from that of the same seed alone, at most.

        Returns:
            The largest difference as a share of the loss, over all members and steps.
        """
        alone = [_losses(fit(one, _FOREVER), steps) for one in self._seeds(net, members)]
        stack = Stack([Member(training) for training in self._seeds(net, members)])
        stacked: list[list[float]] = [[] for _ in alone]
        for index, record in stack.fit(_FOREVER):
            if isinstance(record, Step):
                stacked[index].append(record.loss)
            if len(stacked[-1]) >= steps:
                break
        pairs = zip(torch.tensor(alone), torch.tensor([s[:steps] for s in stacked]), strict=True)
        return max(((own - one).abs() / own.abs()).max().item() for own, one in pairs)

    def doctor_changes(self, net: str, steps: int) -> dict[str, int]:
        """Return how many weights differ after some steps from those of a run without a doctor.

        cuDNN is held to algorithms that give the same result each time.

        Returns:
            The number of weights that differ with the doctor, and in a second run without it.
        """
        torch.backends.cudnn.deterministic = True
        try:
            first, second, watched = (self._seeds(net, 1)[0] for _ in range(3))
            doctor = RestingDoctor(watched.model, watched.optimizer, loss_fn=watched.loss)
            _losses(fit(first, _FOREVER), steps)
            _losses(fit(second, _FOREVER), steps)
            _losses(fit(watched, _FOREVER, watcher=doctor), steps)
            doctor.close()
        finally:
            torch.backends.cudnn.deterministic = False
        return {
            name: sum(
                int((own != one).sum())
                for own, one in zip(
                    first.model.parameters(), other.model.parameters(), strict=True
                )
            )
            for name, other in (("with the doctor", watched), ("without it again", second))
        }  # fmt: skip

    def waits(self, net: str, first: int, steps: int) -> dict[str, object]:
        """Train as train.py does, and count the waits for the GPU in some of the steps.

        Args:
            first: index of the first step of these.
            steps: their number.
        """
        settings = self._settings(net, "", f"output_dir={self.directory / f'waits-{first}'}")
        run = prepare(RunDirectory(settings, [], "benchmark"))
        with open_run(run) as write:
            records = records_of(run)
            while run.training.step < first:
                write(next(records))
            with waits_of(run.training) as found:
                while run.training.step < first + steps:
                    write(next(records))
        every = settings.doctor.every
        return {
            "steps": steps,
            "probed": sum(step % every == 0 for step in range(first, first + steps)),
            "steps_with_waits": sorted(found.in_steps),
            "ordinary_steps_with_waits": sum(step % every != 0 for step in found.in_steps),
            "evaluations_with_waits": sorted(found.evaluations),
            "doctor": dict(found.doctor.most_common()),
            "rest": dict(found.rest.most_common()),
        }


def _losses(records: Iterator[object], steps: int) -> list[float]:
    """Return the losses of the next steps."""
    return [record.loss for record in islice((r for r in records if isinstance(r, Step)), steps)]
