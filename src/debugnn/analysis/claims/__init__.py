"""The article's claims, with their criteria, in the article's order.

A file holds the claims of one subject. The criteria were fixed before the runs that decide them.
"""

import re

from debugnn.analysis.claims import (
    data,
    fitting,
    gradients,
    initialisation,
    losses,
    rates,
    regularisation,
    relus,
)
from debugnn.analysis.claims.claim import Claim

_SUBJECTS = (fitting, losses, rates, gradients, relus, initialisation, regularisation, data)


def _place(claim: Claim) -> tuple[int, str]:
    number, letter = re.fullmatch(r"(\d+)([a-z]?)", claim.name).groups()  # type: ignore[union-attr]
    return int(number), letter


CLAIMS: tuple[Claim, ...] = tuple(
    sorted((claim for subject in _SUBJECTS for claim in subject.CLAIMS), key=_place)
)
