"""Measure the operations of a training step in fp32, on one thread.

python scripts/benchmark_operations.py --quick     few steps, to try it out
python scripts/benchmark_operations.py --output outputs/reference/benchmark
"""

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark import busy, data_root, machine, say
from benchmarking import onednn, operations_output
from benchmarking.measures import Spread
from benchmarking.nets import MAIN
from benchmarking.onednn import Primitive
from benchmarking.publishing import REFERENCE, publish
from benchmarking.worker import BenchmarkError, Worker

SIDE = "benchmarking.operations:Steps"
WARM = 3  # blocks of steps before the first that counts: memory grows while a profile is kept
PASSES = ("forward", "gradient of data", "gradient of weights")
DIRECTIONS = {"forward_training": 0, "backward_data": 1, "backward_weights": 2}
CALLS = "calls of oneDNN, besides its kernels"
REST = "the rest: Python, autograd, small operations"
# What an operation of PyTorch does → beginnings of its names; the first that matches counts.
ROLES = {
    "gradient of ReLU": ("aten::threshold_backward",),
    "ReLU": ("aten::clamp_min",),
    "gradient of pool": ("aten::max_pool2d_with_indices_backward",),
    "pool": ("aten::max_pool2d",),
    "product": ("aten::mm", "aten::addmm"),
    CALLS: ("aten::mkldnn_convolution", "aten::convolution_backward", "mkldnn::_linear"),
    "optimiser": ("aten::_fused", "Optimizer.step"),
    "norm of the gradients": ("aten::linalg_vector_norm", "aten::_foreach_norm"),
    "copies and fills": ("aten::copy_", "aten::fill_", "aten::zero_"),
}
LAYER_TYPES = {"ReLU": "ReLU", "gradient of ReLU": "ReLU", "pool": "MaxPool2d",
               "gradient of pool": "MaxPool2d"}  # fmt: skip
Layers = dict[str, dict[str, Any]]


@dataclass(frozen=True, order=True)
class Operation:
    """What is timed together: all its executions in a step.

    Attributes:
        layer: name of the layer, "" where an operation belongs to none or to all.
        what: what it does there.
        shape: sizes of its input or problem.
        kernel: oneDNN's name of the implementation, "" for an operation of PyTorch.
    """

    layer: str
    what: str
    shape: str = ""
    kernel: str = ""


def of_primitive(found: Primitive, layers: Layers) -> Operation:
    """Return which operation of the net a primitive is."""
    if found.kind == "convolution":
        inputs = found.sizes["ic"], found.sizes["ih"]
        layer = next(
            (n for n, of in layers.items()
             if of["type"] == "Conv2d" and (of["inputs"][1], of["inputs"][2]) == inputs), "",
        )  # fmt: skip
        what = PASSES[DIRECTIONS[found.direction]]
        return Operation(layer, what, found.problem, found.implementation)
    if found.kind == "inner_product":
        sizes = found.sizes
        layer, what = of_product(sizes["mb"], sizes["ic"], sizes["oc"], layers)
        return Operation(layer, what, found.problem, found.implementation)
    return Operation("", f"{found.kind}s", "", "")


def of_product(rows: int, inner: int, columns: int, layers: Layers) -> tuple[str, str]:
    """Return layer and pass of a product of (rows, inner) and (inner, columns) matrices."""
    for name, layer in layers.items():
        if layer["type"] == "Linear":
            batch, inputs = layer["inputs"]
            outputs = layer["outputs"]
            sizes = [(batch, inputs, outputs), (batch, outputs, inputs), (outputs, batch, inputs)]
            if (rows, inner, columns) in sizes:
                return name, PASSES[sizes.index((rows, inner, columns))]
    return "", "product"


def of_event(name: str, shapes: list, layers: Layers) -> Operation | None:
    """Return which operation of the net an event of a profile is; None for small ones."""
    role = next((r for r, names in ROLES.items() if name.startswith(names)), None)
    if role == "product":
        left, right = [shape for shape in shapes if len(shape) == 2][:2]
        layer, what = of_product(left[0], left[1], right[1], layers)
        return Operation(layer, what, f"mb{left[0]}ic{left[1]}oc{right[1]}", "MKL")
    if role in LAYER_TYPES:
        # A gradient's input is another gradient, of the shape of the layer's output.
        shape = next(s for s in shapes if s)
        if role == "gradient of pool":
            shape = shapes[1]
        layer = next(
            (n for n, of in layers.items()
             if of["type"] == LAYER_TYPES[role] and of["inputs"] == shape), "",
        )  # fmt: skip
        return Operation(layer, role, "x".join(map(str, shape)))
    return None if role is None else Operation("", role)


class Net:
    """The seconds of each operation of one net in each step."""

    def __init__(self, name: str, plain: Worker, verbose: Worker, log: Path) -> None:
        self.name, self.plain, self.verbose, self.log = name, plain, verbose, log
        self.layers: Layers = plain.call("layers", net=name)
        self.steps: list[float] = []
        self.by_onednn: list[dict[Operation, float]] = []  # of each verbose step that was kept
        self.by_torch: list[dict[Operation, float]] = []  # of each profiled one
        self.operations: dict[Operation, int] = {}
        self.all = 0  # steps of each kind, kept or not

    @property
    def kept(self) -> int:
        """The smallest number of steps of one kind that were kept."""
        return min(len(self.steps), len(self.by_onednn), len(self.by_torch))

    def measure(self, count: int, least: float | None) -> None:
        """Train a block of steps in each of three ways: plain, verbose, under a profiler.

        Args:
            count: number of steps.
            least: share of a core that a step needs, or it is left out: other programs would be
                measured too. None keeps no step.
        """
        plain = self.plain.call("steps", net=self.name, count=count)
        begin = self.log.stat().st_size
        verbose = self.verbose.call("steps", net=self.name, count=count)
        with self.log.open(encoding="utf-8", errors="replace") as file:
            file.seek(begin)
            primitives = onednn.by_step(file)
        events = self.plain.call("events", net=self.name, count=count)
        if least is None:
            return
        self.all += count
        self.steps += [seconds for seconds, share in plain if share >= least]
        for (_, share), found in zip(verbose, primitives, strict=True):
            if share >= least:
                self._add_primitives(found)
        for share, found in events:
            if share >= least:
                self._add_events(found)

    def _add_primitives(self, primitives: list[Primitive]) -> None:
        step: dict[Operation, float] = defaultdict(float)
        for found in primitives:
            operation = of_primitive(found, self.layers)
            step[operation] += found.seconds
            self.operations[operation] = found.operations
        self.by_onednn.append(step)

    def _add_events(self, events: list[list]) -> None:
        step: dict[Operation, float] = defaultdict(float)
        for name, shapes, seconds in events:
            operation = of_event(name, shapes, self.layers)
            if operation is not None:
                step[operation] += seconds
                if operation.kernel == "MKL":
                    self.operations[operation] = 2 * _product(operation.shape)
        self.by_torch.append(step)

    def rows(self) -> list[dict[str, Any]]:
        """Return each operation with its spread, the longest first, and what is left of a step."""
        inside = Spread.of([sum(step.values()) for step in self.by_onednn]).median
        taken: dict[Operation, list[float]] = defaultdict(list)
        for step in (*self.by_onednn, *self.by_torch):
            for operation, seconds in step.items():
                # A call's own time, as PyTorch sees it, has the kernels of oneDNN in it.
                taken[operation].append(seconds - inside * (operation.what == CALLS))
        rows = [
            {**vars(operation), **vars(Spread.of(seconds)),
             "operations": self.operations.get(operation, 0)}
            for operation, seconds in taken.items()
        ]  # fmt: skip
        rows.sort(key=lambda row: -row["median"])
        left = Spread.of(self.steps).median - sum(row["median"] for row in rows)
        return [*rows, {**vars(Operation("", REST)), "median": left, "operations": 0}]


def _product(shape: str) -> int:
    return Primitive("inner_product", "", "", shape, 0.0).operations // 2


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        kept: number of steps of each net and kind that are wanted.
        most: number of blocks after which it ends without them.
        count: number of steps of a block.
        least: as for `Net.measure`.
    """

    kept: int
    most: int
    count: int
    least: float


QUICK = Effort(kept=1, most=1, count=2, least=0.0)
FULL = Effort(kept=80, most=150, count=5, least=0.98)


def measured(effort: Effort, arguments: list[str]) -> dict[str, Any]:
    """Measure in a temporary folder, and return the numbers with machine, load and command."""
    before, cores, root = os.getloadavg()[0], os.cpu_count() or 1, data_root()
    with ExitStack() as stack:
        scratch = tempfile.TemporaryDirectory(prefix="operations-", ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(scratch))
        workers = []
        for name, variables in (("plain", {}), ("verbose", onednn.VERBOSE)):
            log = folder / f"{name}.txt"
            log.touch()
            given = {"root": str(root) if root else None, "directory": str(folder / name)}
            workers.append(Worker(name, SIDE, log, 1, variables=variables, **given))
            stack.callback(workers[-1].close)
        plain, verbose = workers
        nets = [Net(name, plain, verbose, folder / "verbose.txt") for name in MAIN]
        peaks: dict[str, list[float]] = defaultdict(list)
        for block in range(WARM + effort.most):
            for net in nets:
                net.measure(effort.count, None if block < WARM else effort.least)
            for kind, peak in plain.call("peaks").items():
                peaks[kind].append(peak)
            say(f"block {block + 1}: kept {', '.join(f'{n.kept} of {n.name}' for n in nets)}")
            if min(net.kept for net in nets) >= effort.kept:
                break
        if not min(net.kept for net in nets):
            raise BenchmarkError("other programs used the core all the time")
        left_out = 1 - sum(len(net.steps) for net in nets) / sum(net.all for net in nets)
        version = plain.call("version")
    return {
        "machine": f"{machine()}, {version}",
        "data": "MNIST and CIFAR-10" if root else "RANDOM IMAGES of MNIST's and CIFAR's size",
        "load": [before, os.getloadavg()[0]],
        "busy": busy(before, cores),
        "left_out": left_out,
        "command": " ".join(["python scripts/benchmark_operations.py", *arguments]),
        "peaks": {kind: max(values) for kind, values in peaks.items()},
        "nets": {
            net.name: {"step": vars(Spread.of(net.steps)), "rows": net.rows()} for net in nets
        },
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write operations.* there")
    options = parser.parse_args(arguments)
    try:
        results = measured(QUICK if options.quick else FULL, arguments)
    except (BenchmarkError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    page = operations_output.markdown(results, operations_output.tried(REFERENCE))
    publish(
        "operations", results, page, operations_output.summary, output=options.output,
        draw=lambda folder: operations_output.figure(results, folder / "operations.png"),
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
