"""The measures, compared with independent computations. Their expectations are tested in `tests/statistics`."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit.diagnostics import (
    autocorrelation,
    batch_mean_error,
    design_effect,
    draw_count_stats,
    draw_distribution,
    duplicates,
    effective_sample_size,
    energy_distance,
    mean_shift,
    overlap,
    relative_age,
    same_episode_pairs,
    td_error_stats,
    td_lift,
    temporal_distance,
    top_share,
    weight_stats,
    weighted_td_lift,
)

numbers = st.floats(-1e6, 1e6, width=32)
positive = st.floats(0.0078125, 1e6, width=32)


# -- TD errors -----------------------------------------------------------------------------------------------


@given(st.lists(numbers, min_size=1, max_size=40))
def test_td_error_stats_are_those_of_the_standard_library(errors):
    """Mean, median, maximum, population standard deviation and quantiles of abs(δ), and the mean of δ."""
    stats = td_error_stats(errors)
    sizes = [abs(error) for error in errors]
    assert stats["mean"] == pytest.approx(statistics.fmean(sizes))
    assert stats["median"] == pytest.approx(statistics.median(sizes))
    assert stats["max"] == max(sizes)
    assert stats["std"] == pytest.approx(statistics.pstdev(sizes), abs=1e-6)
    assert stats["bias"] == pytest.approx(statistics.fmean(errors), abs=1e-9)
    if len(sizes) > 1:
        tenths = statistics.quantiles(sizes, n=20, method="inclusive")
        found = [stats[name] for name in ("q10", "q25", "q75", "q90")]
        assert found == pytest.approx([tenths[1], tenths[4], tenths[14], tenths[17]])
    assert stats["nonfinite"] == 0.0


@given(st.lists(positive, min_size=1, max_size=40))
def test_the_top_decile_is_counted_in_parts(values):
    """The result is the same as if each value were split into ten equal parts."""
    parts = sorted((value / 10.0 for value in values for _ in range(10)), reverse=True)
    assert top_share(values, 0.1) == pytest.approx(sum(parts[: len(values)]) / sum(parts))


@given(value=st.floats(0.0, 1e300), size=st.integers(1, 99))
def test_equal_errors_have_a_tenth_of_the_total_in_their_top_tenth(value, size):
    """The top tenth of equal TD errors has a tenth of their sum, for every batch size, even if all are 0."""
    stats = td_error_stats(np.full(size, value))
    assert stats["top_decile_share"] == pytest.approx(0.1)
    assert stats["mean"] == pytest.approx(stats["max"]) and stats["median"] == stats["q10"] == value


def test_nan_errors_are_counted_and_not_spread():
    """NaN TD errors do not affect other numbers. If all are NaN, all numbers are nan."""
    stats = td_error_stats([1.0, float("nan"), -3.0, float("inf")])
    assert stats.pop("nonfinite") == 2.0
    assert stats == {name: value for name, value in td_error_stats([1.0, -3.0]).items() if name != "nonfinite"}
    nothing = td_error_stats([float("nan")])
    assert nothing.pop("nonfinite") == 1.0 and nothing.keys() == stats.keys()
    assert all(math.isnan(value) for value in nothing.values())


# -- Independent computations --------------------------------------------------------------------------------


@given(st.integers(1, 400))
def test_the_expected_distance_of_one_lane_is_a_third_of_it(size):
    """The expected distance is (N² - 1) / (3 N), for one lane and for equal lanes."""
    expected = (size**2 - 1) / (3 * size)
    assert temporal_distance([5, 7], size).expected == pytest.approx(expected)
    assert temporal_distance([5, 7], [size, 0, size, size]).expected == pytest.approx(expected)
    assert temporal_distance([-5, -7], size).value == 2.0
    assert temporal_distance([2**60 + 1, 2**60 + 4], size).value == 3.0


states = st.integers(1, 3).flatmap(
    lambda width: st.tuples(
        *(
            st.lists(st.lists(st.integers(-9, 9), min_size=width, max_size=width), min_size=2, max_size=6)
            for _ in range(2)
        )
    )
)


@given(states)
def test_energy_distance_and_mean_shift_are_what_loops_make_of_them(pair):
    """Both measures equal loops over all pairs of different draws, with standardized features."""
    batch, reference = pair
    both = batch + reference
    columns = [column for column in zip(*both, strict=True) if len(set(column)) > 1]
    scaled = [[(x - statistics.fmean(c)) / statistics.stdev(c) for x in c] for c in columns]
    points = list(zip(*scaled, strict=True)) if columns else [()] * len(both)
    x, y = points[: len(batch)], points[len(batch) :]
    between = statistics.fmean(math.dist(a, b) for a in x for b in y)
    within = [statistics.fmean(math.dist(a, b) for a, b in itertools.combinations(part, 2)) for part in (x, y)]
    expected = (2.0 * between - sum(within)) / math.sqrt(2.0 * max(len(columns), 1))
    assert energy_distance(batch, reference) == pytest.approx(expected, abs=1e-6)
    noise = 1.0 / len(x) + 1.0 / len(y)
    shifts = [(statistics.fmean(c[: len(x)]) - statistics.fmean(c[len(x) :])) ** 2 / noise for c in scaled]
    if columns:
        assert mean_shift(batch, reference) == pytest.approx(statistics.fmean(shifts), abs=1e-9)
    else:
        assert math.isnan(mean_shift(batch, reference))


@given(st.lists(st.integers(0, 30), min_size=2, max_size=12))
def test_pairs_are_counted_one_by_one(values):
    """Distances in time, pairs of the same episode and duplicates equal counts by loops."""
    pairs = list(itertools.combinations(values, 2))
    assert temporal_distance(values, 31).value == pytest.approx(statistics.fmean(abs(a - b) for a, b in pairs))
    assert same_episode_pairs(values, [4, 2]).value == pytest.approx(statistics.fmean(a == b for a, b in pairs))
    assert duplicates(values, 31).value == pytest.approx(1.0 - len(set(values)) / len(values))
    others = [*values[: len(values) // 2], 77]
    assert overlap(values, others, 31).value == pytest.approx(statistics.fmean(v in others for v in values))


def test_design_effect_and_autocorrelation_are_their_formulas():
    """Both measures equal their formulas, computed with the standard library."""
    rng = np.random.default_rng(3)
    batches = rng.exponential(size=(5, 4))
    means = [statistics.fmean(batch) for batch in batches]
    expected = 4 * statistics.variance(means) / statistics.variance(batches.ravel().tolist())
    assert design_effect(batches) == pytest.approx(expected)
    assert design_effect(np.stack((batches, 3.0 * batches, np.ones((5, 4))), axis=2)) == pytest.approx(expected)
    center = statistics.fmean(means)
    products = sum((a - center) * (b - center) for a, b in itertools.pairwise(means))
    expected = products / sum((a - center) ** 2 for a in means) + 4 / 20
    assert autocorrelation(means) == pytest.approx(expected)


@given(st.lists(positive, min_size=1, max_size=30))
def test_effective_sample_size_is_the_square_of_the_sum_by_the_sum_of_squares(weights):
    """The effective sample size is between 1 and B, and does not depend on the scale of the weights."""
    size = effective_sample_size(weights)
    assert size == pytest.approx(math.fsum(weights) ** 2 / math.fsum(w * w for w in weights))
    assert 1.0 - 1e-12 <= size <= len(weights) * (1 + 1e-12)
    assert effective_sample_size(np.array(weights) * 1e250) == pytest.approx(size)
    stats = weight_stats(weights)
    assert stats["effective_share"] == pytest.approx(size / len(weights))
    assert stats["collapsed_share"] == sum(w < 0.01 * max(weights) for w in weights) / len(weights)
    assert (stats["min"], stats["max"]) == (min(weights), max(weights))


@given(st.lists(st.one_of(st.just(0.0), positive), min_size=1, max_size=40).filter(any))
def test_the_distribution_of_draws_is_what_logarithms_make_of_it(probabilities):
    """Entropy, perplexity, the largest probability and the undrawable share equal their formulas."""
    total = math.fsum(probabilities)
    shares = [p / total for p in probabilities if p]
    entropy = -math.fsum(share * math.log(share) for share in shares)
    size, health = len(probabilities), draw_distribution(probabilities)
    assert health["perplexity_share"] == pytest.approx(math.exp(entropy) / size)
    if size > 1:
        assert health["entropy"] == pytest.approx(entropy / math.log(size), abs=1e-9)
    assert health["largest"] == pytest.approx(max(shares) * size)
    assert health["undrawable_share"] == pytest.approx(1.0 - len(shares) / size)
    hundredths = sorted((p / 100.0 for p in probabilities for _ in range(100)), reverse=True)
    assert health["top_percent_share"] == pytest.approx(sum(hundredths[:size]) / total)


def test_uniform_probabilities_are_healthy_whatever_their_scale():
    """For uniform probabilities of any scale, entropy and perplexity are 1, and none is undrawable."""
    for size in (1, 7, 1000):
        health = draw_distribution(np.full(size, 1e-300))
        assert health == pytest.approx(
            {
                "top_percent_share": 0.01,
                "entropy": 1.0,
                "perplexity_share": 1.0,
                "largest": 1.0,
                "undrawable_share": 0.0,
            }
        )


def test_td_lift_of_draws_by_priority_follows_from_their_probabilities():
    """If a batch has each transition in proportion to its probability, its estimate of the lift is exact."""
    errors, times = np.array([4.0, -1.0, 2.0]), np.array([4, 1, 3])
    drawn, q = np.repeat(errors, times), np.repeat(times / 8.0, times)
    assert td_lift(drawn, errors) == pytest.approx((16 + 1 + 6) / 8 / (7 / 3))
    assert weighted_td_lift(drawn, q) == pytest.approx(td_lift(drawn, errors))
    assert weighted_td_lift(errors, np.full(3, 1e-300)) == pytest.approx(1.0)
    assert math.isnan(td_lift([1.0], [0.0, 0.0])) and math.isnan(weighted_td_lift([0.0], [0.5]))


def test_the_expected_share_of_what_is_never_drawn_is_poisson_s():
    """The expected share of undrawn transitions is the mean of exp(-e). Poisson counts have dispersion 1."""
    stats = draw_count_stats([0, 2, 5], [0.0, 2.0, 1.0])
    assert stats["never_expected"] == pytest.approx((1.0 + math.exp(-2.0) + math.exp(-1.0)) / 3)
    assert stats["never_share"] == pytest.approx(1 / 3) and (stats["mean"], stats["max"]) == (7 / 3, 5.0)
    assert stats["dispersion"] == pytest.approx(16 / 3)
    counts = np.random.default_rng(0).poisson(3.0, 10_000)
    stats = draw_count_stats(counts, 3.0)
    # Within 4.5 standard deviations, which are 0.0015 and 0.022: a false positive rate of 1e-5
    assert abs(stats["never_share"] - stats["never_expected"]) < 4.5 * np.sqrt(math.exp(-3.0) / 10_000)
    assert abs(stats["dispersion"] - 1.0) < 4.5 * np.sqrt((2.0 + 1.0 / 3.0) / 10_000)


# -- Bad and degenerate input --------------------------------------------------------------------------------


def test_batches_of_one_and_constant_states_have_an_answer():
    """Batches of one and constant states give nan or 0, without a warning."""
    assert math.isnan(same_episode_pairs([3], [5]).value) and math.isnan(temporal_distance([3], 5).value)
    assert duplicates([3], 5) == (0.0, 0.0) and math.isnan(duplicates([3], 5).ratio)
    assert duplicates([0, 0], 1) == (0.5, 0.5) and overlap([0], [0], 1) == (1.0, 1.0)
    assert relative_age([0], 1) == (0.0, 0.0) and temporal_distance([0, 0], 1) == (0.0, 0.0)
    ones = np.ones((5, 3))
    assert math.isnan(mean_shift(ones, ones)) and energy_distance(ones, ones) == 0.0
    assert math.isnan(design_effect(np.ones((4, 5, 3)))) and math.isnan(autocorrelation(ones))
    assert math.isnan(batch_mean_error(np.ones((4, 5)), np.ones(9)).total)
    assert math.isnan(effective_sample_size([0.0, 0.0])) and math.isnan(draw_count_stats([0], 0.0)["dispersion"])
    assert mean_shift([[2.0]], [[1.0], [3.0]]) == pytest.approx(0.0, abs=1e-12)
    huge = np.array([[1e300, 1.0], [-1e300, 2.0], [1e300, 0.0], [1e299, 5.0]])
    for measure in (
        autocorrelation,
        lambda x: design_effect(x.reshape(2, 2, 2)),
        lambda x: mean_shift(x[:1], x[1:]),
        lambda x: energy_distance(x[:2], x),
        lambda x: batch_mean_error(x.reshape(2, 2, 2), x).total,
    ):
        assert measure(huge) == pytest.approx(measure(huge * [1e-300, 1.0]))  # no overflow


def test_nested_image_and_complex_states_are_laid_side_by_side():
    """Dicts and tuples of arrays of any dtype and shape are treated as one table of features."""
    rng = np.random.default_rng(0)
    image, flags = rng.integers(0, 256, (9, 2, 3)).astype(np.uint8), rng.random((9, 2)) < 0.5
    waves = rng.normal(size=9) + 1j * rng.normal(size=9)
    nested = {"image": image, "rest": (flags, waves)}
    parts = (image.reshape(9, -1), flags, waves.real[:, None], waves.imag[:, None])
    table = np.concatenate([part.astype(float) for part in parts], axis=1)

    def rows(tree, where):
        return {"image": tree["image"][where], "rest": tuple(part[where] for part in tree["rest"])}

    first, second = slice(0, 4), slice(4, 9)
    for measure in (mean_shift, energy_distance):
        assert measure(rows(nested, first), rows(nested, second)) == measure(table[first], table[second])


WRONG = {
    "no error": (lambda: td_error_stats([]), "td_errors has 0 entries; expected at least 1"),
    "a column": (lambda: td_error_stats(np.zeros((4, 1))), r"td_errors has shape \(4, 1\); expected one axis"),
    "words": (lambda: td_error_stats(["a"]), "td_errors has dtype <U1; expected real numbers"),
    "a negative weight": (lambda: effective_sample_size([1.0, -2.0]), "weights contains -2.0; expected finite"),
    "a nan weight": (lambda: weight_stats([np.nan]), "weights contains nan"),
    "no mass": (lambda: draw_distribution([0.0]), "probabilities are all 0; expected at least one"),
    "a top of 0": (lambda: top_share([1.0], 0.0), "top is 0.0; expected a share"),
    "a scalar state": (lambda: mean_shift(1.0, [[1.0]]), "batch has leading axes"),
    "no state": (lambda: mean_shift({}, [[1.0]]), "batch holds no array"),
    "fields of two lengths": (
        lambda: mean_shift({"a": np.ones(3), "b": np.ones(4)}, [[1.0, 1.0]]),
        "batch.a.*batch.b.*expected the same number",
    ),
    "a nan state": (lambda: mean_shift([[1.0], [np.nan]], [[1.0]]), "batch has NaN or infinite numbers in entry 1"),
    "one state": (lambda: energy_distance([[1.0]], [[1.0], [2.0]]), "batch has 1 entries; expected at least 2"),
    "other features": (lambda: mean_shift(np.ones((2, 3)), np.ones((2, 4))), "batch has 3 features and reference 4"),
    "float indices": (lambda: duplicates([0.5], 3), "indices has dtype float64; expected integers"),
    "no indices": (lambda: duplicates(np.zeros(0, int), 3), "indices is empty"),
    "a size of 0": (lambda: duplicates([0], 0), "size is 0; expected at least 1"),
    "a float size": (lambda: overlap([0], [0], 2.0), "size is 2.0; expected an int"),
    "no episode": (lambda: same_episode_pairs([0], [0]), "lengths are all 0"),
    "half a step": (lambda: relative_age([0], 1.5), "sizes is 1.5; expected whole numbers"),
    "nothing stored": (
        lambda: temporal_distance([0], [0, 0]),
        "expected whole numbers of stored steps, with a sum of at least 1",
    ),
    "a lag of K": (lambda: autocorrelation([1.0, 2.0], 2), "lag is 2; expected less than the 2 entries"),
    "one batch": (lambda: design_effect(np.ones((1, 4))), r"batches has shape \(1, 4\); expected \(K, B\)"),
    "a nan batch": (lambda: design_effect([[1.0, np.nan], [1.0, 2.0]]), "batches contains NaN"),
    "another population": (lambda: batch_mean_error(np.ones((2, 4)), np.ones((9, 2))), "population has 2 features"),
    "counts of two shapes": (lambda: draw_count_stats([1, 2], [1.0]), r"expected has shape \(1,\); expected \(2,\)"),
    "a lift of nan": (lambda: td_lift([np.nan], [1.0]), "td_errors contains nan"),
    "fewer probabilities": (lambda: weighted_td_lift([1.0, 2.0], [1.0]), "probabilities has 1 entries; expected 2"),
    "a probability of 0": (lambda: weighted_td_lift([1.0], [0.0]), "probabilities contains 0"),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_bad_input_is_refused_by_name(call, message):
    """The error names the argument, the expected value and the given value."""
    with pytest.raises((ValueError, TypeError), match=message):
        call()
