"""The statistics of the study, compared with independent computations and with known answers."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))  # as when its script is run

from replay_study import analysis, statistics
from replay_study.replays import replays_for
from replay_study.report import as_text, tables, verdict

# -- Statistics ----------------------------------------------------------------------------------------------


def test_the_interquartile_mean_is_the_trimmed_mean():
    """It equals SciPy's trimmed mean, whether or not four divides the number of scores."""
    trim_mean = pytest.importorskip("scipy.stats").trim_mean
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 4, 5, 10, 21, 40):
        scores = rng.standard_cauchy(size)
        assert statistics.interquartile_mean(scores) == pytest.approx(trim_mean(scores, 0.25))


def test_probability_of_improvement_counts_pairs():
    """Every pair of runs counts, ties count half, and tasks count equally, as in the U statistic."""
    first, second = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0])
    assert statistics.probability_of_improvement([(first, second)]) == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 0.5) / 6)
    both = [(first, second), (second, second)]
    assert statistics.probability_of_improvement(both) == pytest.approx((4 / 6 + 0.5) / 2)
    scipy = pytest.importorskip("scipy.stats")
    x, y = np.random.default_rng(0).normal(size=(2, 30)).round(1)
    u = scipy.mannwhitneyu(x, y).statistic
    assert statistics.probability_of_improvement([(x, y)]) == pytest.approx(u / 900)


def test_holm_adjusts_as_the_book_does():
    """0.01, 0.03 and 0.04 become 3 x 0.01, 2 x 0.03 and, because values cannot decrease, 2 x 0.03."""
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]
    assert statistics.holm([0.02]) == [0.02]


def test_partial_rank_correlation_is_that_of_residuals():
    """It equals the correlation of the ranks' residuals. A common cause gives no correlation."""
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 50)).round(1)
    y = y + x + z
    rows = [scipy.rankdata(row) for row in (x, y, z)]
    np.testing.assert_array_equal(statistics.ranks(x), rows[0])
    residuals = [row - np.polyval(np.polyfit(rows[2], row, 1), rows[2]) for row in rows[:2]]
    assert statistics.partial_rank_correlation(x, y, z) == pytest.approx(np.corrcoef(residuals)[0, 1])
    assert np.isnan(statistics.partial_rank_correlation(x, np.ones(50), z))
    cause = rng.normal(size=3_000)
    noisy = [cause + 0.1 * rng.normal(size=3_000) for _ in range(2)]
    assert abs(statistics.partial_rank_correlation(*noisy, cause)) < 0.1


def test_bootstrap_intervals_cover_the_truth():
    """Intervals of the mean of 20 runs on two tasks cover it in about 95 % of 300 experiments."""
    rng = np.random.default_rng(0)

    def mean(tasks):
        return np.mean([task.mean(axis=1) for task in tasks], axis=0)

    covered = 0
    for _ in range(300):
        tasks = [rng.normal(1.0, 1.0, 20), rng.normal(3.0, 5.0, 20)]
        found = statistics.stratified_bootstrap(tasks, mean, resamples=200)
        assert found.low <= found.estimate <= found.high
        covered += found.low <= 2.0 <= found.high
    assert 0.89 <= covered / 300 <= 0.98


@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (0.1, 0.1, 5.0), (5.0, 5.0, 0.1)])
def test_a_verdict_is_rarely_wrong(scale):
    """Without any effect, at most 5 % of 200 experiments find one.

    And the three intervals hold together in 95 % of them, effects or none.
    """
    rng = np.random.default_rng(0)
    verdicts, held = [], 0
    truth = np.array([3.0, -2.0, 1.0])
    for _ in range(200):
        noise = np.array(scale) * rng.standard_normal((2, 12, 3))
        found = statistics.compare_effects(list(noise), resamples=300)
        verdicts.append(found.verdict)
        found = statistics.compare_effects(list(noise + truth), resamples=300)
        intervals = (found.independence, found.identity, found.td)
        held += all(low <= true <= high for (_, low, high), true in zip(intervals, truth, strict=True))
    assert sum(verdict != "unresolved" for verdict in verdicts) <= 18  # 5 %, and 2.6 standard errors
    assert held >= 180


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ((5.0, 0.0, 0.0), "supported"),
        ((-3.0, 3.0, 4.0), "supported"),
        ((1.0, -1.0, 4.0), "refuted"),
        ((0.0, 0.0, -4.0), "refuted"),
        ((2.0, 2.0, 4.0), "unresolved"),
        ((0.0, 0.0, 0.0), "unresolved"),
    ],
)
def test_the_verdict_follows_from_the_intervals(effects, verdict):
    """The verdict depends on magnitudes. A difference within the noise does not count."""
    noise = np.random.default_rng(0).standard_normal((30, 3))
    noise -= noise.mean(axis=0)
    found = statistics.compare_effects([effects + 0.5 * noise])
    assert found.verdict == verdict
    assert found.difference.estimate == pytest.approx(abs(effects[0]) + abs(effects[1]) - abs(effects[2]))
    sides = [np.abs(np.linspace(*each[1:], 2_001)) for each in (found.independence, found.identity, found.td)]
    least, most = [side.min() for side in sides], [side.max() for side in sides]
    bounds = least[0] + least[1] - most[2], most[0] + most[1] - least[2]
    assert found.difference[1:] == pytest.approx(bounds, abs=2e-3)
    assert bounds[0] <= found.resampled.low <= found.resampled.high <= bounds[1]
    assert (found.p_value <= 0.05) == (verdict != "unresolved")
    assert [found.independence.estimate, found.identity.estimate, found.td.estimate] == pytest.approx(effects)


def test_a_factor_that_did_not_vary_settles_nothing():
    """If a factor did not vary, its effect is unknown, and the verdict is open."""
    found = statistics.compare_effects([np.array([[5.0, 4.0, np.nan], [5.1, 4.1, np.nan], [5.0, 4.0, np.nan]])])
    assert found.verdict == "unresolved" and found.p_value == 1.0


def test_two_seeds_settle_nothing():
    """With two seeds, intervals are practically unbounded, so the verdict is open."""
    found = statistics.compare_effects([np.array([[5.0, 0.0, 0.0], [5.5, 0.1, 0.1]])])
    assert found.verdict == "unresolved" and np.isfinite(found.difference).all()


# -- Analysis ------------------------------------------------------------------------------------------------


def rows_of(slopes, seeds=12, noise=1.0, envs=("CartPole-v1", "Acrobot-v1")):
    """Rows of runs in which each factor has a known effect per doubling."""
    rng = np.random.default_rng(0)
    doublings = {"blocks-8": (2.0, 0.0, 0.0), "blocks-64": (5.0, 0.0, 0.0), "newest-4th": (0.0, 2.0, 0.0)}
    doublings |= {"newest-16th": (0.0, 4.0, 0.0), "prioritized": (0.0, 0.0, 3.0)}
    rows = []
    for seed in range(seeds):
        for env in envs:
            luck = 10.0 * rng.normal()
            for name in replays_for("sound", env):
                more = np.array(doublings.get(name, (0.0, 0.0, 0.0)))
                row = {"protocol": "sound", "env": env, "replay": name, "seed": seed} | dict.fromkeys(
                    analysis.SHOWN, 1.0
                )
                row |= {"points": 50.0 + luck + float(more @ slopes) + noise * rng.normal()}
                logs = {"design_effect_log2": more[0], "relative_age_log2": -more[1], "td_lift_log2": more[2]}
                rows.append(row | {column: float(value) for column, value in logs.items()})
    return rows


@pytest.mark.parametrize(
    ("slopes", "verdict"),
    [((-4.0, 1.0, 0.5), "supported"), ((0.1, 0.1, 5.0), "refuted"), ((0.0, 0.0, 0.0), "unresolved")],
)
def test_the_answer_is_found_where_it_is_known(slopes, verdict):
    """Known effects per doubling are found despite the noise that seeds share, with the right verdict."""
    summary = analysis.summarise(rows_of(slopes))
    together = summary["effects"]["together"]
    assert [together[name]["estimate"] for name in analysis.FACTORS] == pytest.approx(slopes, abs=0.35)
    assert together["verdict"] == verdict
    assert f"H over all tasks is {verdict}." in as_text(summary)
    json.dumps(analysis._without_nan(summary), allow_nan=False)


def test_without_noise_effects_are_exact():
    """Without noise, effects are exact: least squares through the origin."""
    table = analysis.Table(rows_of((-4.0, 1.0, 0.5), noise=0.0))
    np.testing.assert_allclose(table.effects("Acrobot-v1"), np.tile([-4.0, 1.0, 0.5], (12, 1)))
    np.testing.assert_allclose(table.strongest("Acrobot-v1"), np.tile([-20.0, 4.0, 1.5], (12, 1)))


def test_tables_are_read_as_they_were_written(tmp_path):
    """Tables are read as written, to six digits, with missing numbers. Equal rows give equal bytes."""
    rows = [{"env": "a", "replay": "b", "protocol": "c", "seed": 1, "x": 1 / 3, "y": float("nan")}]
    for name in ("table.csv", "table.csv.gz"):
        analysis.write_csv(tmp_path / name, rows)
        before = (tmp_path / name).read_bytes()
        analysis.write_csv(tmp_path / name, rows)
        assert (tmp_path / name).read_bytes() == before
        (read,) = analysis.read_csv(tmp_path / name)
        assert read["env"] == "a" and read["seed"] == 1 and read["x"] == pytest.approx(1 / 3, rel=1e-6)
        assert np.isnan(read["y"])


@pytest.mark.parametrize("run", ["study-first", "study-fresh"])
def test_the_page_says_what_its_runs_say(run):
    """The tables and the verdicts in the documentation follow from the saved runs, which have six digits."""
    figures = Path(__file__).resolve().parents[2] / "docs" / "figures" / run
    summary = analysis.summarise(analysis.read_csv(figures / "study-sound-runs.csv.gz"))
    for name, (header, rows) in tables(summary).items():
        with (figures / f"study-sound-{name.lower()}.csv").open(newline="") as file:
            written = list(csv.reader(file))
        assert written[0] == header and len(written) == len(rows) + 1
        for line, row in zip(written[1:], rows, strict=True):
            for cell, value in zip(line, row, strict=True):
                number = re.compile(r"-?\d+\.\d+")
                assert number.sub("", cell) == number.sub("", value)
                assert list(map(float, number.findall(cell))) == pytest.approx(
                    list(map(float, number.findall(value))), abs=0.11
                )
    assert verdict(summary).strip() in (figures / "study-sound-verdict.txt").read_text()
