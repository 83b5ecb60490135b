"""Symbols and windows of sequences."""

from dataclasses import dataclass, field

from debugnn.doctor.evidence.outcome import Score


@dataclass
class SequenceFacts:
    """Symbols that a loss pulls outputs to, beside those of an input with as many positions.

    Shares of a few positions in one batch. An output sees a symbol where it changes with it.
    """

    argument: str  # of the model's forward that holds the input
    same: float  # scored positions whose symbol is the input's there
    following: float  # scored positions whose symbol is the input's at the next position
    second: float  # scored positions whose symbol is the input's at the position after that
    scored: float  # positions that the loss scores
    left_out: float = 0.0  # positions between scored ones that it does not score
    sees_own: float | None = None  # outputs that see the symbol at their position
    sees_following: float | None = None  # outputs that see the symbol at the next position
    through_code: float | None = None  # … and only through tensors without an axis of positions
    sees_past: bool = False  # some output sees a symbol before it
    sees_future: bool = False  # some output sees a symbol after it


@dataclass
class TailFacts:
    """The symbol that the most sequences of a batch end with, as the loss scores it."""

    symbol: int
    share: float  # of the scored positions, those in a run of it at an end, without the run's first
    only_there: float  # of the positions with this symbol, those in such runs
    sequences: float  # share of the sequences that end with two of it or more
    lengths: int  # how many lengths such runs have
    # The loss leaves these positions out, and no others, where their targets are -100.
    can_be_left_out: bool = False
    # How well outputs fit the training's other symbols; in evaluation mode.
    others: Score = field(default_factory=Score)


@dataclass
class WindowFacts:
    """Validation windows that hold the values of training windows at another position.

    The overlap of two windows is the part of a series that both hold.
    """

    axis: int  # of the inputs, samples first, that holds the positions
    positions: int  # of a window
    windows: int  # validation windows that were looked at
    share: float  # of them, that overlap with a training window
    share_before: float  # with one that begins earlier in the series
    share_after: float  # with one that begins later
    common: float  # the largest overlap of each of them / positions, median
    pairs: int = 0  # overlaps that were compared from end to end
    whole: float = 0.0  # share of these that agree from end to end
