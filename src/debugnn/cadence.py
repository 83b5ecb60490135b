"""At which steps the layers of a training are looked at."""

DENSE = 20


def is_due(step: int, every: int, dense: int | None = DENSE) -> bool:
    """Return whether the step with this index is one of those that are looked at.

    They are `every` steps apart until there are `dense` of them. Then the distance doubles as often
    as the number of steps does: the number of looks grows with the logarithm of that of the steps,
    and each comes at most 2/`dense` of the steps before it later.

    Args:
        dense: None leaves the distance as it is.
    """
    if dense is None:
        return step % every == 0
    doublings = max(0, (2 * step // (dense * every)).bit_length() - 1)
    return step % (every << doublings) == 0
