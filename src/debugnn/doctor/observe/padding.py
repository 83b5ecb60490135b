"""Symbols that fill up the ends of sequences, as far as the loss counts them."""

from torch import Tensor

from debugnn.doctor.evidence import TailFacts
from debugnn.doctor.observe.scored_symbols import Scored


def tail_facts(found: Scored, sample_axis: int | None) -> TailFacts | None:
    """Describe the symbol that the most sequences of a batch end with.

    Args:
        found: what the loss pulls the outputs of the batch to.
        sample_axis: of the outputs' positions, 0 or 1.

    Returns:
        None where the positions are not those of several sequences, or none is scored at the end.
    """
    shape = found.shape if len(found.shape) == 2 else _shape_of_input(found)
    if shape is None or sample_axis not in (0, 1):
        return None
    rows = found.symbols.reshape(shape)
    rows = rows if sample_axis == 0 else rows.t()
    scored = int((rows >= 0).sum())
    last = rows[:, -1][rows[:, -1] >= 0] if rows.shape[1] else rows
    if len(rows) < 2 or not last.numel():
        return None
    symbol = int(last.mode().values)
    lengths = _runs_at_the_end(rows == symbol)
    return TailFacts(
        symbol=symbol,
        share=int((lengths - 1).clamp_min(0).sum()) / scored,
        only_there=int(lengths.sum()) / int((rows == symbol).sum()),
        sequences=(lengths > 1).double().mean().item(),
        lengths=len(lengths.unique()),
    )


def _shape_of_input(found: Scored) -> tuple[int, int] | None:
    """Return the shape of an input of symbols with as many positions as are scored."""
    for tensor in found.call.tensors():
        symbols = tensor.dim() == 2 and not tensor.is_floating_point()
        if symbols and tensor.numel() == len(found.symbols):
            return tensor.shape[0], tensor.shape[1]
    return None


def _runs_at_the_end(flags: Tensor) -> Tensor:
    """Return how many entries at the end of each row are true, (rows,)."""
    return flags.flip(1).long().cumprod(dim=1).sum(dim=1)
