"""A single step whose loss stands out."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Sign
from debugnn.doctor.causes.signals.wording import listed
from debugnn.doctor.evidence import Evidence

# A single loss is a spike where it is this many spreads (median distances to the median) above the
# twenty losses around it, 13 standard deviations of normal ones, and by this share of the first
# loss: what jumps far below the first loss does no harm.
SPIKE = 20.0
SPIKE_SHARE = 0.5
# A sample's own loss over the median of its batch's, above which it explains the spike.
STANDS_OUT = 5.0


def loss_spike(evidence: Evidence) -> Iterator[Sign]:
    """A single step whose loss is far above its neighbours'. It accuses nobody."""
    for jump in evidence.outcome.jumps:
        height, first = jump.loss - jump.around, abs(evidence.outcome.first_loss or 0.0)
        if height <= max(SPIKE * jump.spread, SPIKE_SHARE * first):
            continue
        seen = f"this step's loss is {jump.loss:.3g}, that of its neighbours {jump.around:.3g}"
        odd = [
            sample
            for sample, own in zip(jump.samples, jump.own, strict=True)
            if jump.typical is not None
            and own > max(STANDS_OUT * jump.typical, jump.own[0] / STANDS_OUT)
        ]
        if odd:
            which = f"{'samples' if len(odd) > 1 else 'sample'} {listed(list(map(str, odd)))}"
            seen += (
                f"; {which} of its batch stand{'' if len(odd) > 1 else 's'} out (a loss of "
                f"{jump.own[0]:.3g}, the batch's median {jump.typical:.3g})"
            )
        if odd and jump.again:
            seen += f"; the first of them came again at step {listed(list(map(str, jump.again)))}"
        yield Sign(
            "note",
            seen,
            "look at these samples beside their labels"
            if odd
            else "no sample stands out: if it comes again, clip the gradient or lower the rate",
            step=jump.step,
            samples=odd,
            evidence={
                "loss": jump.loss,
                "around": jump.around,
                "spread": jump.spread,
                "own_losses": jump.own,
                "again": jump.again,
            },
            override=None,
            confidence="certain",
            harm="one such batch can throw the weights far off",
        )
