"""Verdicts in words and numbers, for tables and pages."""

from collections.abc import Sequence

from debugnn.analysis.claims.claim import Outcome, Result


def quantity(results: Sequence[Result]) -> str:
    """Return the quantity that all parts of a claim measure; "" if they measure several."""
    measured = {result.quantity for result in results}
    return measured.pop() if len(measured) == 1 else ""


def label(result: Result, among: Sequence[Result]) -> str:
    """Return a part in a few words, with its quantity if the claim's parts measure several."""
    return result.label if quantity(among) else f"{result.label}, {result.quantity}"


def outcome(result: Result) -> str:
    """Return how a part comes out: one that neither most nor few seeds show depends on the seed."""
    return "depends on the seed" if result.outcome is Outcome.DEPENDS else result.outcome.value


def estimate(result: Result) -> str:
    """Return a part's estimate with its 95 % interval, its n and its p-value; "" without runs."""
    found = result.estimate
    if found is None:
        return ""
    if result.unit == "share":
        met = round(found.value * found.n)
        return f"{met} of {found.n} seeds ({100 * found.low:.0f} to {100 * found.high:.0f} %)"
    low, high = (_sized(end, result.unit) for end in (found.low, found.high))
    interval = f" ({low} to {high})" if found.n > 1 else ""
    p = "" if result.p is None else f", p {_p_value(result.p)}"
    return f"{_sized(found.value, result.unit)}{interval}, {found.n} seeds{p}"


def article(result: Result) -> str:
    """Return what the article's own run gives for the part; "" where it recorded nothing."""
    if result.article is None:
        return ""
    unit = "value" if result.unit == "share" else result.unit
    return _sized(result.article, unit)


def _sized(value: float, unit: str) -> str:
    if unit == "ratio":
        return f"×{10**value:.3g}"
    return f"{value:.3g}" if unit == "value" else f"{value:+.3g}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
