"""The input gives the target away, or validation samples were trained on."""

from collections.abc import Iterator
from itertools import pairwise

from debugnn.doctor.causes.cause import Cause, Kind, Sign
from debugnn.doctor.causes.signals import same_set
from debugnn.doctor.evidence import Evidence

# Share of a feature's variance that the target explains: 1 for a copy of the label; sound programs
# have up to 0.78, the petals of scikit-learn's iris 0.93 to 0.95.
LEAKED = 0.99
# Samples below which a share is too uncertain to accuse anybody.
SAMPLES = 50
# A feature of this share stands out where the next one's is lower by DROP.
STANDS_OUT = 0.8
DROP = 0.2
# Features below which none can stand out from the others.
FEATURES = 8
# Classes that lie apart in most features: no single feature gives them away.
ALL_TELL = 0.8
# Share of validation samples that were trained on.
OVERLAP = 0.5
# Share of validation samples that repeat one another: a small domain, or identifiers.
NATURAL = 0.05


def feature_is_target(evidence: Evidence) -> Iterator[Sign]:
    """A feature that says the target outright."""
    data = evidence.data
    share = _share(evidence)
    if share is not None and share > LEAKED:
        telling = sum(s > LEAKED for s in data.feature_shares)
        yield _sign("error", evidence, share, max(telling, 1), "alone gives the target away")


def feature_stands_out(evidence: Evidence) -> Iterator[Sign]:
    """A few features that tell far more than all others. Tables have informative features, so
    this is a note."""
    shares = evidence.data.feature_shares
    share = _share(evidence)
    if share is None or share > LEAKED or evidence.data.features < FEATURES or len(shares) < 2:
        return
    drops = [high - low for high, low in pairwise(shares)]
    largest = max(range(len(drops)), key=drops.__getitem__)
    if drops[largest] > DROP and shares[largest] > STANDS_OUT:
        yield _sign("note", evidence, share, largest + 1, "tells more than all others together")


def _share(evidence: Evidence) -> float | None:
    """The largest share of a feature's variance that the target explains; None where it proves
    nothing."""
    data = evidence.data
    if not data.feature_shares or data.samples < SAMPLES:
        return None
    median = data.feature_share_median
    apart = data.features >= FEATURES and median is not None and median > ALL_TELL
    return None if apart else data.feature_shares[0]


def _sign(severity: str, evidence: Evidence, share: float, count: int, what: str) -> Sign:
    features = evidence.data.feature_order[:count]
    shown = ", ".join(map(str, features[:5]))
    return Sign(
        severity,
        f"input feature {shown} {what} ({100 * share:.1f} % of its variance)",
        "leave this feature out if it is made from the target",
        evidence={"share": share, "features": features[:32]},
    )


def trained_on_validation(evidence: Evidence) -> Iterator[Sign]:
    """Validation samples that are among the training samples."""
    data = evidence.data
    natural = not data.floating or data.natural_repeats > NATURAL
    if (
        data.overlap is not None
        and data.overlap > OVERLAP
        and not same_set(evidence)
        and not natural
    ):
        yield Sign(
            "warning",
            f"{100 * data.overlap:.0f} % of the validation samples were trained on",
            evidence={"overlap": data.overlap},
        )


CAUSE = Cause(
    name="label_leak",
    meaning="the input gives the target away",
    kind=Kind.CERTAIN,
    rules=(feature_is_target, feature_stands_out, trained_on_validation),
    fix="split the data before anything else, and keep the validation part out of training",
    harm="the score is that of a shortcut, which new data will not offer",
    source="Kaufman et al. 2012, Leakage in data mining, doi:10.1145/2382577.2382579",
)
