"""The side whose training steps are taken apart into operations."""

import os
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from benchmarking.measures import FLOPS
from benchmarking.onednn import STEP
from benchmarking.project import Project

TYPES = (nn.Conv2d, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.Module)


class Steps:
    """Bare training steps of train.py in fp32: no doctor, no records."""

    def __init__(self, root: Path | None, directory: Path) -> None:
        self._project = Project(root, directory, "fp32", "disabled")
        self._streams: dict[str, Iterator[tuple[Tensor, Tensor]]] = {}

    def steps(self, net: str, count: int) -> list[tuple[float, float]]:
        """Train, and return for each step its seconds and the share of a core that it had."""
        return list(self._train(net, count))

    def events(self, net: str, count: int) -> list[tuple[float, list[tuple[str, list, float]]]]:
        """Train under PyTorch's profiler.

        Returns:
            For each step the share of a core that it had, and (name, shapes of the inputs, own
            seconds) of each operation.
        """
        with torch.profiler.profile(
            activities=[ProfilerActivity.CPU], record_shapes=True
        ) as profiler:
            steps = list(self._train(net, count))
        events = profiler.events()
        spans = [event.time_range for event in events if event.name == STEP]
        return [
            (share, [
                (event.name, event.input_shapes, event.self_cpu_time_total / 1e6)
                for event in events
                if span.start <= event.time_range.start < span.end and event.name != STEP
            ])
            for span, (_, share) in zip(spans, steps, strict=True)
        ]  # fmt: skip

    def layers(self, net: str) -> dict[str, dict[str, Any]]:
        """Return name → type, shape of a batch's inputs, and number of output channels."""
        model, found = self._project._training(net).model, {}

        def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            kind = next(kind.__name__ for kind in TYPES if isinstance(layer, kind))
            name = names[layer]
            found[name] = {"type": kind, "inputs": [*inputs[0].shape], "outputs": output.shape[1]}

        names = {layer: name for name, layer in model.named_children()}
        handles = [layer.register_forward_hook(note) for layer in names]
        self.steps(net, 1)
        for handle in handles:
            handle.remove()
        return found

    def peaks(self) -> dict[str, float]:
        """Return operations a second: of a large product, and of a convolution like the nets'."""
        return {
            kind: FLOPS[kind] / getattr(self._project, kind)("float32")
            for kind in ("product", "convolution")
        }

    def version(self) -> str:
        return self._project.version()

    def _train(self, net: str, count: int) -> Iterator[tuple[float, float]]:
        training = self._project._training(net)
        if net not in self._streams:
            self._streams[net] = (b for epoch in range(10**6) for b in training.batches(epoch))
        for inputs, targets in islice(self._streams[net], count):
            os.write(1, f"{STEP}\n".encode())  # among oneDNN's lines, which go there too
            started, used = time.perf_counter(), time.process_time()
            with torch.profiler.record_function(STEP):
                training.backward(inputs, targets)
                training.gradient_rule(training.parameters)
                training.optimizer.step()
            seconds = time.perf_counter() - started
            yield seconds, (time.process_time() - used) / seconds
