"""Losses of policies and generators whose sign is that of the opposite aim."""

from collections.abc import Iterator

from debugnn.doctor.causes.cause import Sign
from debugnn.doctor.causes.signals.outcome import severity
from debugnn.doctor.causes.signals.wording import listed
from debugnn.doctor.evidence import Evidence, JudgedFacts

# Batches that a loss of embeddings is asked of, at least, and how much farther apart it moves those
# of the same label than those of different ones, in standard errors. Of pairs that depend on each
# other the error is larger than it is computed: right triplets have −17 to −21.
PULLS = 3
PULLED_APART = 6.0
# Share of the samples whose ratio of probabilities is clipped on the side that a descent comes from
# alone, from which it is the loss's rule: of the others, actions whose probability cannot rise as
# far as to the clip.
ON_WRONG_SIDE = 0.5
# Probes at which a generator's loss is compared with its discriminator's, and the cosine of both
# gradients with respect to what it made, at each of them: 1 or −1 of losses that read one number of
# the discriminator.
GENERATOR_PROBES = 3
SAME_AIM = 0.9
# Gradients that arrived at the outputs of a critic, at least, of which all have one sign.
JUDGEMENTS = 3
# Share of the targets' sizes that is of targets below zero, from which they are no costs: these are
# above zero but for a critic's first guesses.
NO_COSTS = 0.9


def generator_wants_to_be_told(evidence: Evidence) -> Iterator[Sign]:
    """A generator that is trained towards what its discriminator is to say of made samples."""
    cosines = evidence.loss.beside_discriminator
    if len(cosines) < GENERATOR_PROBES or min(cosines) < SAME_AIM:
        return
    yield Sign(
        severity(evidence),
        "the generator's loss and the discriminator's pull what is generated the same way: their "
        f"gradients with respect to it have a cosine of {min(cosines):.2f} or above at each of "
        f"{len(cosines)} probes, and opposite aims give -1",
        "give the generator's step the label of real samples, or turn the sign of what it takes "
        "of the discriminator",
        evidence={"lowest_cosine": min(cosines), "probes": len(cosines)},
        override=None,
        harm="it learns to make samples that the discriminator is sure to tell from data",
    )


def labels_pulled_apart(evidence: Evidence) -> Iterator[Sign]:
    """A loss of embeddings that draws different labels together and pushes the same one apart."""
    pull = evidence.loss.label_pull
    if pull is None or len(pull.apart) < PULLS or min(pull.apart) < PULLED_APART:
        return
    if evidence.adversarial or evidence.loss.parameters:
        return  # a feature extractor may be meant to confuse a domain's classifier
    yield Sign(
        "error",
        "a step down the loss brings embeddings of samples with different labels closer to each "
        f"other than those with the same label, in each of {len(pull.apart)} batches (by "
        f"{min(pull.apart):.0f} standard errors or more)",
        "exchange what the loss takes as positive and as negative, or the label of pairs that are "
        "alike",
        evidence={"same": pull.same, "different": pull.different, "standard_errors": pull.apart},
        override=None,
        harm="what belongs together is pushed apart, and what does not is drawn together",
    )


def policy_clipped_on_wrong_side(evidence: Evidence) -> Iterator[Sign]:
    """A clipped policy gradient whose clip does not stop the way that the policy goes."""
    policy = evidence.loss.policy
    if policy is None or not _clipped_where_it_returns(evidence):
        return
    rewarded = "rarer" if policy.rises else "likelier"
    yield Sign(
        severity(evidence),
        f"the loss makes actions of positive advantage {rewarded}, and clips their ratio of "
        "probabilities only on the other side, from which it would come back "
        f"({100 * (policy.held_back or 0.0):.0f} % of the samples tried)",
        "minimise -min(ratio * advantage, clipped ratio * advantage): its minus sign is missing"
        if policy.rises
        else "take the minimum of both products, and minimise -min(ratio * advantage, clipped "
        "ratio * advantage)",
        evidence={"clipped_on_wrong_side": policy.held_back, "loss_rises": policy.rises},
        override=None,
        harm="nothing holds the policy, and what a clip is for is turned round",
    )


def deaf_to_actions(evidence: Evidence) -> Iterator[Sign]:
    """A policy's loss whose gradient knows neither the actions taken nor their advantages."""
    policy = evidence.loss.policy
    if policy is not None and policy.deaf:
        yield Sign(
            severity(evidence),
            "the gradient of the scores of actions depends neither on the actions that were taken "
            "nor on the numbers that are given with them: the loss teaches no action",
            "keep the old log-probabilities of the actions from the time that they were taken, "
            "without a gradient, and compare them with those of the present policy: ratio = "
            "exp(log_probability - old_log_probability); do not detach log_probability",
            override=None,
            harm="the policy stays what it was, whatever is rewarded",
        )


def rewards_made_rarer(evidence: Evidence) -> Iterator[Sign]:
    """A policy gradient that lowers what its own code calls rewards, returns or advantages."""
    policy = evidence.loss.policy
    if policy is None or not policy.rises or not policy.called or evidence.optimizer.maximizes:
        return
    yield Sign(
        severity(evidence),
        "the loss makes an action rarer whose number is positive, in every sample, "
        f"and its code has {listed([f'`{name}`' for name in policy.called])} for such numbers: it "
        "teaches the policy what is rewarded least",
        "turn the sign: minimise -(log_probability * advantage).mean(). If the numbers are costs, "
        "call them so",
        evidence={"loss_rises": True, "called": policy.called},
        override=None,
        harm="the policy learns to avoid what is rewarded",
    )


def values_lowered(evidence: Evidence) -> Iterator[Sign]:
    """An actor that is trained towards actions of low value, as its critic has it.

    Silent where any critic says otherwise: one of two may be that of costs, or of an opponent.
    """
    judged = evidence.loss.judged
    if any(facts.lowered < facts.seen or _may_be_costs(facts) for facts in judged):
        return
    told = [facts for facts in judged if facts.called and facts.seen >= JUDGEMENTS]
    for facts in told[:1]:
        yield Sign(
            severity(evidence),
            f"a step down the loss lowers what `{facts.critic}` says of the model's outputs, by "
            f"the same for every sample, at each of {facts.seen} looks; that is a network of "
            f"values by its own loss, and of what is to be high by its name "
            f"({listed([f'`{name}`' for name in facts.called])})",
            f"turn the sign: minimise -{facts.critic}(...).mean(). If its values are costs, call "
            "them so",
            evidence={"looks": facts.seen, "lowered": facts.lowered, "called": facts.called},
            override=None,
            harm="the policy learns the actions that are worth least",
            line=facts.line,
        )


def _may_be_costs(facts: JudgedFacts) -> bool:
    return facts.low or (facts.costs and facts.below_zero < NO_COSTS)


def policy_of_costs(evidence: Evidence) -> Iterator[Sign]:
    """A policy gradient that is right for costs and wrong for rewards: a note.

    Both are one computation, and both bring the numbers down: no outcome tells them apart.
    """
    policy = evidence.loss.policy
    told = policy is not None and (policy.called or _clipped_where_it_returns(evidence))
    told = told or evidence.optimizer.maximizes
    if policy is not None and policy.rises and not told:
        yield Sign(
            "note",
            "the loss makes an action rarer whose number in the targets is positive, in every "
            "sample: right where the numbers are costs, and the wrong sign where they are "
            "returns, rewards or advantages",
            "for rewards minimise -(log_probability * reward).mean()",
            evidence={"loss_rises": True},
            override=None,
            harm="a policy whose rewards count as costs learns what is worst",
        )


def _clipped_where_it_returns(evidence: Evidence) -> bool:
    """Return whether a policy's loss clips the ratio of probabilities where a descent would bring
    it back to 1, and lets it run off to the other side."""
    policy = evidence.loss.policy
    return policy is not None and (policy.held_back or 0.0) >= ON_WRONG_SIDE
