"""A fully connected layer whose products use AVX-512 on processors that are not Intel's."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _functorch

from debugnn import processor

LARGE = 6_000_000  # multiplications; with fewer, a call of oneDNN costs more than it saves


class Linear(nn.Linear):
    """`nn.Linear` that computes large float32 products with oneDNN in place of MKL.

    On AMD's processors MKL, which PyTorch calls, computes at the speed of AVX2 even where there is
    AVX-512: 103 GFLOP/s in a large product on one thread of an EPYC, oneDNN 229, and 117 when it
    is held to AVX2. Outputs and gradients differ from `nn.Linear`'s by rounding.

    Buys 9 % of a training step of the MNIST net (31.8 instead of 34.8 ms) and 5 % of one of the
    CIFAR net (19.3 instead of 20.2 ms): fp32, one thread of an AMD EPYC, medians of 60 and 80
    alternating rounds of 4 and 5 steps in two processes. With AVX2 alone oneDNN is no faster than
    MKL. On Intel's processors, where MKL uses AVX-512, it was not measured.

    PyTorch's own product is used on other devices and for other types, under autocast, for fewer
    multiplications than `LARGE`, in transforms of `torch.func`, and in passes whose operations are
    watched, by the doctor for example.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs.dim() == 2 and is_slow_in_mkl():
            return linear(inputs, self.weight, self.bias)
        return super().forward(inputs)


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return inputs (B, K) times the transposed weight (N, K), plus bias (N,), as (B, N).

    By oneDNN where it can compute it, and otherwise by PyTorch's function.
    """
    given = [inputs, weight, *([] if bias is None else [bias])]
    plain = (
        inputs.numel() * len(weight) < LARGE
        or any(t.device.type != "cpu" or t.dtype != torch.float32 for t in given)
        # The weight may be a transposed matrix, but no row may lie upon another one's memory.
        or not (inputs.is_contiguous() and is_matrix(weight))
        or torch.is_autocast_enabled("cpu")
        or _functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )
    if plain:
        return nn.functional.linear(inputs, weight, bias)
    return _OneDnnLinear.apply(inputs, weight, bias)


def is_matrix(tensor: Tensor) -> bool:
    """Return whether a tensor, or its transposed one, lies row after row in memory."""
    return tensor.is_contiguous() or tensor.t().is_contiguous()


@cache
def is_slow_in_mkl(cpuinfo: str | None = None) -> bool:
    """Return whether this processor has AVX-512 and MKL does not use it, as on AMD's.

    Args:
        cpuinfo: the text of Linux's /proc/cpuinfo, None for this machine's.
    """
    return (
        processor.entries(cpuinfo).get("vendor_id") == "AuthenticAMD"
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _OneDnnLinear(torch.autograd.Function):
    """The operation that PyTorch's compiler makes of a linear layer, with its derivatives."""

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        wanted, gradient = ctx.needs_input_grad, gradient.contiguous()
        return (
            linear(gradient, weight.t()) if wanted[0] else None,
            linear(gradient.t().contiguous(), inputs.t()) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )
