"""Forward and backward passes captured as a CUDA graph.

Small nets leave a GPU waiting for the host to start their operations, hundreds a step.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from debugnn.errors import one_line

log = logging.getLogger(__name__)


class Graph:
    """Passes for one batch size as a CUDA graph: one launch in place of hundreds."""

    def __init__(self, compute: Callable, arguments: Sequence[Tensor]) -> None:
        self._arguments = [argument.clone() for argument in arguments]
        # Warmed up and captured on a stream of its own, as `torch.cuda.make_graphed_callables`
        # does: graphs that share one also share the workspace that goes with the first of them.
        own = torch.cuda.Stream()
        own.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(own):
            for _ in range(2):
                compute(*self._arguments)
            with _nothing_waited_for():
                compute(*self._arguments)
        torch.cuda.current_stream().wait_stream(own)
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may be writing a checkpoint meanwhile, which is not to be captured.
        with torch.cuda.graph(self._graph, stream=own, capture_error_mode="thread_local"):
            self._results = compute(*self._arguments)

    def __call__(self, *arguments: Tensor) -> tuple:
        """Outputs and gradients lie in the graph's own memory: they hold until the next call."""
        for static, argument in zip(self._arguments, arguments, strict=True):
            static.copy_(argument)
        self._graph.replay()
        outputs, losses, gradients = self._results
        return outputs, losses.clone(), gradients  # the losses are read later


@contextmanager
def _nothing_waited_for() -> Iterator[None]:
    """Raise RuntimeError at what cannot be captured, before a capture: one that fails half-way
    leaves torch's generators believing in it."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def capture(
    compute: Callable, arguments: Sequence[Tensor], buffers: dict[str, Tensor]
) -> Graph | None:
    """The graph of `compute`, or None where it cannot be captured. The buffers stay as they are.

    Not tested on a GPU yet: none was at hand.
    """
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    stream = torch.cuda.current_stream()
    try:
        return Graph(compute, arguments)
    except RuntimeError as error:
        log.info("  no CUDA graph, plain execution: %s", one_line(error))
        return None
    finally:
        torch.cuda.set_stream(stream)  # a capture that fails stays on its own
        torch.cuda.synchronize()
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
