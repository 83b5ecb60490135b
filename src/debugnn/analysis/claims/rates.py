"""Claim 4: the learning-rate range test."""

from debugnn.analysis.claims.claim import Arm, Claim, Difference, Share
from debugnn.analysis.claims.quantities import DROP, EXPLOSION, FINAL_ACCURACY, LOW_RATE_CHANGE

_TEST = Arm("task=lr_find")
_FLAT = 0.05  # largest change of a flat loss; means of single batches differ by about 0.02
_FALLS = 0.25  # smallest relative fall of a loss that falls
_EXPLODES = 4.0  # times the minimum; the notebook stops at 8 times
_MINIMUM = Arm("task.lr_from=minimum")

CLAIMS = (
    Claim(
        "4a",
        "In a range test the loss is flat while the rate is too low, falls suddenly at a right one "
        "and explodes when it is too high.",
        "lr_finder",
        20,
        (
            Share("flat", _TEST, LOW_RATE_CHANGE, below=_FLAT),
            Share("falls", _TEST, DROP, above=_FALLS),
            Share("explodes", _TEST, EXPLOSION, above=_EXPLODES),
        ),
    ),
    Claim(
        "4b",
        "The minimum of the curve is the best learning rate.",
        "lr_finder",
        20,
        tuple(
            Difference(label, _MINIMUM, than, FINAL_ACCURACY, margin=0.5, no_worse=True)
            for label, than in (
                ("minimum − steepest descent", Arm("task.lr_from=steepest")),
                ("minimum − valley", Arm("task.lr_from=valley")),
                ("minimum − Adam's default of 0.001", Arm("task=train")),
            )
        ),
        remark="The minimum is where the loss is about to explode. The steepest descent, or a "
        "tenth of the minimum, is what today's finders take.",
    ),
)
