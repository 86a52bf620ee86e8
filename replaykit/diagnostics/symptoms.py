"""The warnings of a monitor: each symptom of an unhealthy replay, and the message for it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

Numbers = Mapping[str, float]


class Symptom(NamedTuple):
    """A symptom of an unhealthy replay. It is never reported if its number is nan.

    Attributes
    ----------
    shows : callable
        Takes the numbers of a monitor. Returns whether they show the symptom.
    message : str
        The warning, as a format string with the names of the numbers.
    """

    shows: Callable[[Numbers], bool]
    message: str


SYMPTOMS = (
    Symptom(
        lambda x: x["td_error_nonfinite_share"] > 0.0,
        "{td_error_nonfinite_share:.2%} of the TD errors are NaN or infinite: the network diverges, or a reward is not "
        "finite. Look at the rewards, lower the learning rate and clip gradients.",
    ),
    Symptom(
        lambda x: x["state_nonfinite_share"] > 0.0,
        "{state_nonfinite_share:.2%} of the sampled transitions have NaN or infinite observations: check the "
        "environment and the normalization of its observations.",
    ),
    Symptom(
        lambda x: x["mean_shift"] > 4.0 and x["squared_bias"] <= x["design_effect"],
        "Batches are worth {effective_batch_size:.1f} independent draws, not {batch_size:.0f}: their transitions "
        "resemble each other (design effect {design_effect:.1f}, 1 if i.i.d.). Draw them from more episodes: a larger "
        "capacity, uniform draws, more parallel environments.",
    ),
    Symptom(
        lambda x: x["mean_shift"] > 4.0 and x["squared_bias"] > x["design_effect"],
        "Batches differ from the buffer in the same way every time (squared bias of the mean {squared_bias:.1f}, 0 "
        "if i.i.d.): the agent learns from only a part of the buffer. relative_age and td_lift show which part. Check "
        "whether this is intended.",
    ),
    Symptom(
        lambda x: x["energy_distance"] > 0.1,
        "The states of batches are distributed differently from those stored (energy distance {energy_distance:.2f}, 0 "
        "if i.i.d.; 0.1 is a shift by half a standard deviation). Lower alpha, or draw from more transitions.",
    ),
    Symptom(
        lambda x: x["same_episode"] > 5.0,
        "Pairs of the same episode are {same_episode:.0f} times as frequent in batches as expected by chance: batches "
        "contain runs of neighboring steps. Draw from the whole buffer.",
    ),
    Symptom(
        lambda x: x["successive_correlation"] > 0.5 and x["mean_shift"] > 2.0,
        "Successive batches deviate from the buffer in the same direction (correlation {successive_correlation:.2f}, 0 "
        "if i.i.d.): each resembles the previous one. Draw from the whole buffer, or train less often.",
    ),
    Symptom(
        lambda x: x["relative_age"] < 0.5,
        "Sampled transitions are on average {relative_age:.2g} times as old as those stored: most of the buffer goes "
        "unused. Draw uniformly, or lower the capacity.",
    ),
    Symptom(
        lambda x: x["weight_effective_share"] < 0.25,
        "Importance weights reduce a batch to {weight_effective_share:.0%} of its size: a few transitions with large "
        "weights dominate each step. Raise eps, or lower alpha or beta.",
    ),
    Symptom(
        lambda x: x["weight_mean"] < 0.1,
        "Importance weights are {weight_mean:.2g} on average, so updates are very small. Divide by the largest weight "
        'of the batch (weights="batch"), raise eps, or lower beta.',
    ),
    Symptom(
        lambda x: x["probability_undrawable_share"] > 0.5,
        "{probability_undrawable_share:.1%} of the stored transitions cannot be drawn at all. If this is not intended, "
        "draw from the whole buffer, or raise eps.",
    ),
    Symptom(
        lambda x: x["probability_top_percent_share"] > 0.5 and x["probability_undrawable_share"] <= 0.5,
        "1 % of the transitions have {probability_top_percent_share:.0%} of the probability: draws are as concentrated "
        "as uniform draws from {probability_perplexity_share:.2%} of the buffer. Raise eps to about a hundredth of a "
        "typical TD error or more, lower alpha, or clip TD errors.",
    ),
    Symptom(
        lambda x: x["probability_starved_share"] > 0.5 and x["probability_undrawable_share"] <= 0.5,
        "{probability_starved_share:.1%} of the transitions are drawn less than a tenth as often as uniform draws "
        "would. Raise eps, lower alpha, or lower the capacity if you do not need old transitions.",
    ),
    Symptom(
        lambda x: x["draws_never_share"] - x["draws_never_expected"] > 0.25,
        "{draws_never_share:.1%} of the stored transitions have never been drawn; under uniform draws "
        "{draws_never_expected:.1%} would not have been. Raise eps, or lower alpha.",
    ),
    Symptom(
        lambda x: x["td_error_top_decile_share"] > 0.8,
        "A tenth of a batch carries {td_error_top_decile_share:.0%} of its TD error: outliers drive learning. Use the "
        "Huber loss, clip rewards, or look for states that are never predicted.",
    ),
    Symptom(
        lambda x: x["draws_per_transition"] < 1.0,
        "Each transition is drawn {draws_per_transition:.2f} times before it is overwritten, on average: most "
        "experience is never learned from. Train more often, or on larger batches.",
    ),
    Symptom(
        lambda x: x["stale_update_share"] > 0.1 or x["stale_share"] > 0.1,
        "{stale_update_share:.0%} of the priority updates and {stale_share:.0%} of the batches' transitions came after "
        "the transition was overwritten. Enlarge the capacity, or shorten the delay between sampling and updating.",
    ),
)
"""All symptoms, in the order in which you should fix them."""


def warnings_for(numbers: Numbers) -> list[str]:
    """The messages of all symptoms that the numbers of a monitor show."""
    return [symptom.message.format(**numbers) for symptom in SYMPTOMS if symptom.shows(numbers)]
