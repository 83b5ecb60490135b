"""Per-layer statistics of gradients, weights and activations, read without touching the training.

Nothing here draws a random number or writes a tensor of the model: the trained weights are the
same, bit for bit, with and without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from debugnn.records import TensorStats
from debugnn.tensor_stats import Measurement, measure, summarise

# Layers whose output is a rearrangement of their input: nothing is learnt from watching them.
_TRANSPARENT = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
                nn.AlphaDropout, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d)  # fmt: skip

Seen = dict[str, dict[str, TensorStats]]


class LayerProbe:
    """Statistics of every layer at every `every`-th step; never where `every` is None."""

    def __init__(self, every: int | None, bins: int = 64) -> None:
        self.every = every
        self.bins = bins

    def due(self, step: int) -> bool:
        return self.every is not None and step % self.every == 0

    @contextmanager
    def watch(self, model: nn.Module, step: int) -> Iterator[Seen | None]:
        """Wrap the forward and backward pass of one step.

        Yields a dict that is filled when the block ends, with the keys `gradients`, `parameters`
        and `activations`, or None where this step is not watched.
        """
        if not self.due(step):
            yield None
            return
        seen: Seen = {}
        looks: dict[str, Measurement] = {}
        copies: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(self._look_at_output(looks, copies, name))
            for name, module in model.named_modules()
            if not list(module.children()) and not isinstance(module, _TRANSPARENT)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
            kinds = {"gradients": gradients, "parameters": parameters, "activations": copies}
            named = {(kind, n): t for kind, tensors in kinds.items() for n, t in tensors.items()}
            units = [kind == "activations" for kind, _ in named]
            found = dict(zip(named, measure(list(named.values()), units), strict=True))
            found |= {("activations", name): look for name, look in looks.items()}
            seen.update({kind: {} for kind in kinds})
            for (kind, name), look in found.items():
                seen[kind][name] = summarise(look, self.bins)

    def _look_at_output(
        self, looks: dict[str, Measurement], copies: dict[str, Tensor], name: str
    ) -> Callable:
        # At once, not after the pass: a following layer may work in place on this output. On a GPU
        # a copy is taken instead, for the pass would wait at each layer.
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                if output.device.type == "cpu":
                    looks[name] = measure([output.detach()], [True])[0]
                else:
                    copies[name] = output.detach().clone()

        return hook
