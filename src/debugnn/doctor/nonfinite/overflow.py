"""Whether the result of an operation has left the range of its dtype."""

import re

import torch

# Operations whose result is finite, mathematically, for all finite arguments: a result that is not
# finite has left the dtype's range.
_CLOSED = {"add", "sub", "rsub", "mul", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot",
           "convolution", "sum", "mean", "cumsum", "prod", "cumprod", "addcmul", "square",
           "mse_loss"}  # fmt: skip
# Operations whose mathematically finite results stay in the dtype's range.
_BOUNDED = {"log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "acos", "asin",
            "acosh", "atanh", "xlogy"}  # fmt: skip
# Operations that leave the range at arguments of ordinary size.
_STEEP = {"exp", "exp2", "expm1", "sinh", "cosh", "pow"}
_DIVERGED = 1e6  # arguments above this have diverged themselves
# The other operations square and sum at most. Arguments above max^0.4 of the dtype (2.6e15 in
# float32, where 5e7 squares of it add up to the limit) can leave the range.
_SQUARES_OVERFLOW = 0.4


def overflows(name: str, dtype: torch.dtype, magnitude: float) -> bool:
    """Return True if an operation on finite arguments has left the dtype's range.

    Args:
        magnitude: largest |argument|.
    """
    if name in _BOUNDED or (name == "mean" and magnitude == 0):  # the mean of nothing
        return False
    if name in _STEEP:
        return magnitude > _DIVERGED
    return name in _CLOSED or magnitude > torch.finfo(dtype).max ** _SQUARES_OVERFLOW


def plain_name(operation: str) -> str:
    """Return an operation's plain name: `batch_norm` of `NativeBatchNorm`, `sqrt` of `sqrt_`."""
    snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).lower().strip("_")
    return re.sub(r"^(native|cudnn|miopen|mkldnn|thnn)_|_layer$", "", snake)
