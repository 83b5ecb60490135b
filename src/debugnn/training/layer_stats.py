"""Per-layer statistics of gradients, weights and activations, without effect on the training.

Nothing here draws a random number or changes a tensor of the model: the trained weights are the
same, bit for bit, with and without it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from debugnn.cadence import is_due
from debugnn.tensor_stats import Measurement, measure, summarise
from debugnn.training.loop import Seen

# Layers whose output only rearranges, selects or zeroes values of their input are not recorded.
_TRANSPARENT = (nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d,
                nn.AlphaDropout, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d)  # fmt: skip

# Activations that are flat at both ends, with the bounds that they approach there.
_BOUNDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Sigmoid: (0.0, 1.0),
    nn.Hardsigmoid: (0.0, 1.0),
    nn.Tanh: (-1.0, 1.0),
    nn.Softsign: (-1.0, 1.0),
}

_SMALL = 2**13  # values of an output that is copied on a CPU, too


class LayerProbe:
    """Records statistics of every layer at some steps.

    Args:
        every, dense: at which steps, see `cadence.is_due`.
        bins: number of histogram bins.
    """

    def __init__(self, every: int, bins: int = 64, dense: int | None = None) -> None:
        self.every = every
        self.bins = bins
        self.dense = dense

    def due(self, step: int) -> bool:
        """Return whether the step with this index is recorded."""
        return is_due(step, self.every, self.dense)

    def watch(self, model: nn.Module, step: int) -> AbstractContextManager[Seen | None]:
        """Return what wraps the forward and backward pass of one step.

        It gives a dict that is filled when the block ends: `gradients`, `parameters` or
        `activations` → name of the parameter or layer → statistics. None if the step is not
        recorded.
        """
        return self._recorded(model) if self.due(step) else nullcontext()

    @contextmanager
    def _recorded(self, model: nn.Module) -> Iterator[Seen]:
        seen: Seen = {}
        looks: dict[str, Measurement | None] = {}
        copies: dict[str, Tensor] = {}
        layers = {
            name: module
            for name, module in model.named_modules()
            if not list(module.children()) and not isinstance(module, _TRANSPARENT)
        }
        handles = [
            module.register_forward_hook(self._look_at_output(looks, copies, name))
            for name, module in layers.items()
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
        with torch.no_grad():
            parameters = dict(model.named_parameters())
            gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
            kinds: dict[str, Mapping[str, Tensor]] = {
                "gradients": gradients, "parameters": parameters, "activations": copies,
            }  # fmt: skip
            named = {(kind, n): t for kind, tensors in kinds.items() for n, t in tensors.items()}
            units = [kind == "activations" for kind, _ in named]
            found = dict(zip(named, measure(list(named.values()), units), strict=True))
            # In the order in which the layers were called.
            activations = {n: look or found.pop(("activations", n)) for n, look in looks.items()}
            found |= {("activations", name): look for name, look in activations.items()}
            seen.update({kind: {} for kind in kinds})
            for (kind, name), look in found.items():
                bounds = _BOUNDS.get(type(layers[name])) if kind == "activations" else None
                seen[kind][name] = summarise(look, self.bins, bounds)

    def _look_at_output(
        self, looks: dict[str, Measurement | None], copies: dict[str, Tensor], name: str
    ) -> Callable:
        # Measured in the hook, because a later layer may change this output in place. On a GPU,
        # where each measurement would wait for the pass, the output is copied instead; also a small
        # one, because measuring takes less time for several at once.
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if isinstance(output, Tensor):
                small = output.numel() <= _SMALL and output.is_contiguous()
                if output.is_cpu and not small:
                    looks[name] = measure([output.detach()], [True])[0]
                    copies.pop(name, None)  # of an earlier call of the layer
                else:
                    looks[name] = None
                    copies[name] = output.detach().clone()

        return hook
