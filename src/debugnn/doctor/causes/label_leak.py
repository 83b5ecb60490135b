"""The input gives the target away, or validation samples were trained on."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Cause, Kind, Sign, first_of
from debugnn.doctor.causes.signals.data import MATCH, OTHER_MATCH, TOLD_BY_EDGES
from debugnn.doctor.causes.signals.outcome import short
from debugnn.doctor.causes.signals.skill import judged, reached
from debugnn.doctor.causes.signals.telling_features import (
    SAMPLES,
    counter_tells_class,
    feature_is_target,
    feature_rises_with_target,
    feature_stands_out,
    tells_training_alone,
)
from debugnn.doctor.causes.signals.wording import listed
from debugnn.doctor.evidence import Evidence, SequenceFacts, TargetCopyFacts

# Share of the positions tried whose output changes with the symbol that it is to name.
SEEN = 0.3
# Share of scored positions above which not only masked ones are scored.
MOSTLY_SCORED = 0.5
# Share of positions between scored ones that are not scored, above which a mask chooses them:
# an autoencoder leaves out what fills a sequence up, at its end.
LEFT_OUT = 0.05
# Values of a sample that vary, below which a target may well be linear in one of them, as in the
# exercises of a first course.
LEAST_VALUES = 8
# Share of an axis that the copies of the targets take up, at its end: of an autoencoder, which may
# be given something beside what it rebuilds, they are more than half.
END = 0.5
# Change of an output as the copy of its target is exchanged, over the outputs' deviation: 1.4 where
# the output is that copy. What a mean over a long window lets through is less.
FOLLOWS = 0.1
# Skill above which a part of the only input is copied, and not rebuilt through fewer numbers.
ALL_BUT_COPIED = 0.99
# The same above which an output sees that value at all: causal networks have 0, but for rounding.
SEES = 1e-3
# Outputs whose gradient was looked at, at least; and the share of its square that goes to the own
# target, from which an output is a copy of it: of a code of half as many numbers as there are
# inputs it is one half.
PROBES = 8
ITS_OWN = 0.9
# The same where an output sees its own input and earlier ones alone: a net that is to predict from
# what came before gives its own input no share at all.
ITS_OWN_CAUSAL = 0.5
# Loss at the end, over the first one and over that of the best constants, below which nothing is
# left to learn: what can be predicted of data that vary by themselves is less.
AT_FLOOR = 0.02
# Share of validation samples that were trained on.
OVERLAP = 0.5
# The same of features that hardly ever take a value twice, and what that is: the median over the
# features of distinct values over distinct samples.
OVERLAP_OF_CONTINUOUS = 0.3
CONTINUOUS = 0.5
# Share of a class's validation samples that were trained on, of a class that was duplicated before
# the split (of samples with five copies, one in five parts, 0.99 are) and of a class that was not;
# and distinct samples of it, below which it may be one blank image.
COPIED = 0.7
SPARED = 0.1
COPIES = 10
# Share of validation samples that were trained on, or of training samples found in the validation
# set, above which both are one set; the validation set must then be as large as the training set.
SAME_SET = 0.95
SAME_SIZE = 0.9
# Share of validation samples that repeat one another: a small domain, or identifiers.
NATURAL = 0.05
# Validation windows below which their share is too uncertain.
WINDOWS = 20
# Share of the validation windows that overlap with a training window: after a random split into
# halves 0.75 of windows that overlap with one neighbour on each side, 0.96 after one into 80 and
# 20 %. Of windows of a later time, those at the border.
OVERLAPPING = 0.5
# The same of training windows that begin earlier, and of those that begin later: after a random
# split each is at least the training part's share. A validation part that is shorter than a window
# overlaps altogether, and with one side alone, as where forecasts begin from the last values known.
ON_BOTH_SIDES = 0.25
# Share of a window that it has in common with another, below which most of it is new: a quarter
# is the smallest overlap that windows are usually cut with.
COMMON = 0.2
# Share of the overlaps that agree from end to end: all of them in windows of one series; a pattern
# that was put into samples at several places agrees alone, not what stands around it.
WHOLE = 0.9


def sees_its_target(evidence: Evidence) -> Iterator[Sign]:
    """An output that sees the symbol that it is to name, at the next position or at its own."""
    facts = evidence.data.sequence
    if facts is None:
        return
    shifted = facts.following > MATCH and facts.same < OTHER_MATCH
    unshifted = facts.same > MATCH and facts.following < OTHER_MATCH
    numbers = {
        "argument": facts.argument,
        "target_is_input_at_t": facts.same,
        "target_is_input_at_t+1": facts.following,
        "outputs_that_see_t": facts.sees_own,
        "outputs_that_see_t+1": facts.sees_following,
    }
    if shifted and _sees_directly(facts):
        yield Sign(
            "error",
            f"the target at position t is `{facts.argument}` at t + 1, and the output at t changes "
            f"with that symbol, at {100 * (facts.sees_following or 0):.0f} % of the positions "
            "tried: the model copies its target instead of predicting it",
            "hide what comes later: a causal mask in the attention (is_causal=True, or "
            "nn.Transformer.generate_square_subsequent_mask), padding on the left alone in a "
            "convolution, no bidirectional layer",
            evidence=numbers,
        )
    elif unshifted and (facts.sees_own or 0) > SEEN:
        causal = facts.sees_past and not facts.sees_future
        masked = facts.left_out > LEFT_OUT
        if not causal and facts.scored > MOSTLY_SCORED and not masked:
            return  # an autoencoder, or what could be one
        mend = (
            f"shift them against each other: {facts.argument} = tokens[:, :-1], targets = "
            "tokens[:, 1:]"
            if causal
            else f"mask {facts.argument} at the positions that are scored: the mask may be inverted"
            if masked
            else f"mask {facts.argument} at the positions that are scored"
        )
        yield Sign(
            "error",
            f"the target at position t is `{facts.argument}` at t itself, and the output at t sees "
            "it: the model copies its input instead of predicting what follows",
            mend,
            evidence=numbers,
        )


def targets_among_inputs(evidence: Evidence) -> Iterator[Sign]:
    """Values that are to be predicted, at the end of a window that the outputs are made from."""
    facts = evidence.data.target_copies
    if facts is None or evidence.task not in ("values", "unknown") or evidence.reconstruction:
        return
    change = facts.change or 0.0
    if facts.samples < SAMPLES or facts.varying < LEAST_VALUES:
        return
    if facts.shifted and change > SEES:
        harmed = change >= FOLLOWS or short(evidence)
        yield _sees_next_value(facts, "error" if harmed else "note")
    # One that rebuilds its only input through a bottleneck does not copy it exactly.
    copied = not facts.alone or (judged(evidence) and reached(evidence) > ALL_BUT_COPIED)
    if facts.aligned and change >= FOLLOWS and copied:
        yield _given_its_targets(facts)
        return
    if facts.last_of_axis is None or change < FOLLOWS:
        return
    if facts.last_positions > END * facts.positions:
        return
    count = facts.columns
    which = f"all {count} target values of a sample stand" if count > 1 else "the target stands"
    where = (
        f"the last {facts.last_positions} of the {facts.positions} positions"
        if facts.last_positions > 1
        else f"the last of the {facts.positions} positions"
    )
    yield Sign(
        "error",
        f"{which} in `{facts.argument}`, up to a scale, at {where} of its axis "
        f"{facts.last_of_axis}, and each output changes with its own target "
        f"({facts.change:.2f} standard deviations as that value is exchanged): the model copies "
        "the target instead of predicting it",
        f"leave out of `{facts.argument}` what is not known when the prediction is made, in "
        "training and in validation",
        evidence={
            "argument": facts.argument,
            "copied_target_columns": count,
            "axis": facts.last_of_axis,
            "last_positions": facts.last_positions,
            "positions": facts.positions,
            "change_of_output": facts.change,
        },
    )


def _given_its_targets(facts: TargetCopyFacts) -> Sign:
    return Sign(
        "error",
        f"the target at each position stands in `{facts.argument}`, up to a scale, as one of its "
        f"features at that very position, and the output changes with it ({facts.change:.2g} "
        "standard deviations as that value is exchanged): the model copies the target",
        f"leave what is to be predicted out of `{facts.argument}`, or shift it by one position, so "
        "that each one is given the value before its own; in validation too",
        evidence={
            "argument": facts.argument,
            "copied_target_columns": facts.columns,
            "positions": facts.positions,
            "change_of_output": facts.change,
        },
    )


def _sees_next_value(facts: TargetCopyFacts, severity: str) -> Sign:
    later = f"{facts.shifted} position{'s' if facts.shifted > 1 else ''}"
    return Sign(
        severity,
        f"the target at each position stands in `{facts.argument}`, up to a scale, {later} later, "
        f"and the output changes with it ({facts.change:.2g} standard deviations as that value is "
        "exchanged): the model sees what it is to predict",
        "mask what comes later (a causal mask, padding on the left alone, no second direction), or "
        f"end the input before the targets begin: at the last {later}, where the value is not "
        "there, nothing was learnt",
        evidence={
            "argument": facts.argument,
            "copied_target_columns": facts.columns,
            "positions_later": facts.shifted,
            "positions": facts.positions,
            "change_of_output": facts.change,
        },
    )


def copies_its_input(evidence: Evidence) -> Iterator[Sign]:
    """An output that hangs on the input that is its target, and on nothing else to speak of.

    Of a function of the inputs only where an output sees what came before it: a threshold of each
    pixel may be asked for. An autoencoder with a bottleneck gives each output a share of all inputs
    that passes through it, and one that draws noise itself has more to learn than to copy.
    """
    facts, outcome = evidence.data.own_inputs, evidence.outcome
    if facts is None or facts.share is None or facts.probes < PROBES:
        return
    if facts.share < (ITS_OWN_CAUSAL if facts.causal else ITS_OWN):
        return
    first, last, relative = outcome.first_loss, outcome.last_loss, outcome.own_loss.relative
    if first is None or last is None or relative is None or evidence.loss.other_outputs:
        return
    if not facts.causal and (facts.noisy or not facts.same):
        return
    if last > AT_FLOOR * first or relative > AT_FLOOR:
        return
    seen = (
        f"the targets are {'the inputs' if facts.same else 'made of the inputs'}, each at its "
        f"place, and an output depends on its own target before all else "
        f"({100 * facts.share:.0f} % of its squared gradient)"
    )
    yield Sign(
        # A sound task may ask for little more than the identity.
        "error" if facts.causal else "note",
        f"{seen}: the model copies its input"
        + (" instead of predicting it from what comes before" if facts.causal else ""),
        "hide from an output the input that it is to predict: in a masked convolution the first "
        "layer has mask A, without the centre, and only later ones mask B; or shift the inputs by "
        "one position"
        if facts.causal
        else "give the code fewer numbers than the inputs have, add noise to the inputs or hide a "
        "part of them: a net that passes its inputs through has learnt nothing about them",
        evidence={
            "share_of_own_target": facts.share,
            "sees_earlier_inputs_only": facts.causal,
            "relative_loss": relative,
        },
        harm="where the input is not known, as in generation, it has learnt nothing to go by"
        if facts.causal
        else "the loss says nothing about what was learnt of the data",
    )


def _sees_directly(facts: SequenceFacts) -> bool:
    """True if outputs see the next symbol, and not only through a code of the whole sequence."""
    following, code = facts.sees_following or 0.0, facts.through_code
    return following > SEEN and code is not None and code < following


def same_set(evidence: Evidence) -> bool:
    """Return whether validation is the training set itself."""
    data = evidence.data
    if (data.covered or 0.0) > SAME_SET:
        return True
    if data.overlap is None or data.validation_size is None or data.trained_on is None:
        return False
    return data.overlap > SAME_SET and data.validation_size >= SAME_SIZE * data.trained_on


def trained_on_validation(evidence: Evidence) -> Iterator[Sign]:
    """Validation samples that are among the training samples."""
    data = evidence.data
    if data.overlap is None or same_set(evidence):
        return
    copied = [c for c, share in data.overlap_of_class.items() if share > COPIED]
    spared = [c for c, share in data.overlap_of_class.items() if share < SPARED]
    if copied and spared and data.copies >= COPIES and data.floating:
        most = max(data.overlap_of_class[c] for c in copied)
        least = max(data.overlap_of_class[c] for c in spared)
        yield Sign(
            "warning",
            f"{100 * most:.0f} % of the validation samples of class {listed(map(str, copied))} "
            f"were trained on, and {100 * least:.0f} % of class {listed(map(str, spared))}: "
            "samples were duplicated before the split, and the score is that of samples learnt by "
            "heart",
            "split first, then oversample the training part alone",
            evidence={"overlap": data.overlap, "overlap_of_class": data.overlap_of_class},
        )
        return
    # Measurements with many digits repeat by no chance; categories and grey values do.
    continuous = data.floating and (data.continuous or 0) > CONTINUOUS
    natural = not continuous and (not data.floating or data.natural_repeats > NATURAL)
    if data.overlap > (OVERLAP_OF_CONTINUOUS if continuous else OVERLAP) and not natural:
        yield Sign(
            "warning",
            f"{100 * data.overlap:.0f} % of the validation samples were trained on",
            evidence={"overlap": data.overlap},
        )


def windows_cut_before_split(evidence: Evidence) -> Iterator[Sign]:
    """Validation windows that lie among the training windows of one series, and overlap with them.

    Samples that repeat as a whole say nothing here: `trained_on_validation` judges them, and a
    signal without noise repeats itself at other places, too.
    """
    data, facts = evidence.data, evidence.data.windows
    if facts is None or facts.windows < WINDOWS or (data.continuous or 0.0) <= CONTINUOUS:
        return
    if data.natural_repeats > NATURAL or (data.overlap or 0.0) > NATURAL:
        return
    sides = min(facts.share_before, facts.share_after)
    if facts.share <= OVERLAPPING or sides <= ON_BOTH_SIDES or facts.common < COMMON:
        return
    if facts.whole < WHOLE:
        return
    yield Sign(
        "warning",
        f"{100 * facts.share:.0f} % of the validation windows overlap with training windows of the "
        f"same series: at the median {100 * facts.common:.0f} % of a window's {facts.positions} "
        "positions hold, to the last bit, what a training window holds at other positions. "
        "Overlapping windows were cut before the split",
        "split the series by time or by subject first, then cut windows from each part",
        evidence={
            "overlapping_windows": facts.share,
            "overlapping_with_an_earlier_one": facts.share_before,
            "overlapping_with_a_later_one": facts.share_after,
            "common_positions": facts.common,
            "positions": facts.positions,
            "axis": facts.axis,
        },
        harm="the score is that of values that were trained on, and of series that were seen: on a "
        "new series it will be lower",
    )


def validation_edges_in_graph(evidence: Evidence) -> Iterator[Sign]:
    """Pairs of nodes to be told linked or not, whose edges are in the graph that is given.

    In training they mostly are: the same edges pass messages and are the positive pairs.
    """
    told = evidence.data.validation_told_by_edges
    if told is not None and told >= TOLD_BY_EDGES:
        yield Sign(
            "error",
            "the graph that the model is given has the edges of the validation pairs: whether it "
            f"has the edge of a pair is the label of {100 * told:.0f} % of them",
            "build the graph for message passing from the training edges alone, also where the "
            "model is evaluated",
            evidence={"told_by_edges": told, "in_training": evidence.data.told_by_edges},
            override=None,
            confidence="certain",
        )


CAUSE = Cause(
    name="label_leak",
    meaning="the input gives the target away",
    kind=Kind.CERTAIN,
    rules=(
        first_of(
            feature_is_target,
            feature_rises_with_target,
            targets_among_inputs,
            counter_tells_class,
            tells_training_alone,
        ),
        feature_stands_out,
        sees_its_target,
        copies_its_input,
        trained_on_validation,
        windows_cut_before_split,
        validation_edges_in_graph,
    ),
    fix="split the data before anything else, and keep the validation part out of training",
    harm="the score is that of a shortcut, which new data will not offer",
    source="Kaufman et al. 2012, Leakage in data mining, doi:10.1145/2382577.2382579",
)
