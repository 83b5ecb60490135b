"""At which steps the layers of a training are looked at."""

DENSE = 10


def is_due(step: int, every: int, dense: int | None = DENSE) -> bool:
    """Return whether the step with this index is one of those that are looked at.

    They are `every` steps apart until there are `dense` of them. Then the distance doubles as often
    as the number of steps does: the number of looks grows with the logarithm of that of the steps,
    and each comes at most 2/`dense` of the steps before it later.

    Args:
        dense: None leaves the distance as it is.
    """
    return step % _distance(step, every, dense) == 0


def next_due(step: int, every: int, dense: int | None = DENSE) -> int:
    """Return a step after this one, up to which none is looked at; arguments as of `is_due`."""
    distance = _distance(step, every, dense)
    return step - step % distance + distance


def _distance(step: int, every: int, dense: int | None) -> int:
    """Return how far apart the steps around this one are that are looked at."""
    if dense is None:
        return every
    return every << max(0, (2 * step // (dense * every)).bit_length() - 1)
