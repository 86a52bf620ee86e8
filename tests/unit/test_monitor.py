"""ReplayMonitor: its numbers and warnings. It changes nothing in the buffer."""

import copy
import gc
import importlib.util
import math
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import (
    Batch,
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    PrioritizedBuffer,
    ReplayBuffer,
    SequenceReplay,
    Spec,
)
from replaykit.diagnostics import ReplayMonitor, draw_count_stats, monitor, td_error_stats, weight_stats
from replaykit.diagnostics.draw_counts import DrawCounts, StoredSteps
from replaykit.diagnostics.plotting import PANELS
from replaykit.diagnostics.state_features import StateReader
from replaykit.diagnostics.symptoms import SYMPTOMS, warnings_for
from tests.helpers import FLAT, filled, random_walk, step, stored_indices, stretch

# -- No change of the buffer ---------------------------------------------------------------------------------


def test_it_keeps_no_batch_alive():
    """A monitor keeps copies of indices only, until the next examination."""
    buffer = filled(ReplayBuffer(100, FLAT, seed=0), 100)
    watcher = ReplayMonitor(buffer, every=5)
    for _ in range(4):
        batch = buffer.sample(8)
        watcher.record(batch, batch.reward)
        gone = weakref.ref(batch.obs)
        batch.indices[:] = 0  # the caller's own
    del batch
    gc.collect()
    assert gone() is None
    watcher.record(buffer.sample(8))
    assert watcher.stats()["draws_max"] < 8.0  # if the indices were not copied, index 0 would have 32 draws
    before = len(pickle.dumps(watcher))
    for _ in range(400):
        watcher.record(buffer.sample(8))
    history = len(pickle.dumps(watcher.history))
    assert len(pickle.dumps(watcher)) - history < before + 20 * 8 * 300  # the window's numbers


def test_a_copy_goes_on_by_itself():
    """A deepcopy or pickle of a monitor includes its buffer, and continues independently."""
    buffer = random_walk(PrioritizedBuffer(200, FLAT, seed=0), 200)
    watcher = ReplayMonitor(buffer, every=2)
    watcher.record(buffer.sample(8))
    others = [copy.deepcopy(watcher), pickle.loads(pickle.dumps(watcher))]
    for each in (watcher, *others):
        each.record(each.buffer.sample(8))
    assert others[0].stats() == pytest.approx(watcher.stats(), nan_ok=True)
    assert others[1].stats() == pytest.approx(watcher.stats(), nan_ok=True)


# -- Counts --------------------------------------------------------------------------------------------------


@given(
    lanes=st.integers(1, 3),
    length=st.integers(1, 6),
    actions=st.lists(st.sampled_from(["add", "add", "some", "batch", "batch", "clear"]), max_size=60),
    every=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_draws_are_counted_by_transition(lanes, length, actions, every, seed):
    """Draws are counted for each transition, through wrapping, masks and clears. Stale draws are not counted."""
    buffer = ReplayBuffer(lanes * length, FLAT, num_envs=lanes, seed=seed)
    counter, rng, batches, drawn = DrawCounts(buffer.capacity, lanes), np.random.default_rng(seed), 0, {}
    values = step(1.0) if lanes == 1 else {name: value[0] for name, value in stretch(1, lanes).items()}
    for action in [*actions, "add", "batch"]:
        if action == "batch" and len(buffer):
            indices = buffer.sample(4).indices
            if rng.random() < 0.2:
                buffer.add(**values)
            if not batches:
                counter.start(StoredSteps.of(buffer))
            counter.record(indices, len(buffer))
            batches += 1
            if batches % every == 0:
                counter.update(StoredSteps.of(buffer))
            for index in indices.tolist():
                drawn[index] = drawn.get(index, 0) + 1
        elif action == "clear":
            buffer.clear()
        elif action in ("add", "some"):
            mask = rng.random(lanes) < 0.5 if action == "some" else None
            buffer.add(**values, mask=mask)
    stored, indices = StoredSteps.of(buffer), stored_indices(buffer)
    assert stored.indices_at(np.arange(len(buffer))).tolist() == indices.tolist() and stored.contains(indices).all()
    if batches % every:
        counter.update(stored)
    counts, expected = counter.counts(indices)
    assert counts.tolist() == [drawn.get(index, 0) for index in indices.tolist()]
    assert (expected >= 0.0).all()


def test_what_uniform_draws_would_have_drawn_is_added_up_after_a_clear():
    """Expected draws count from the batch after each add, for any number of earlier indices."""
    buffer = filled(ReplayBuffer(50, FLAT, seed=0), 120)
    watcher = ReplayMonitor(buffer, every=10)
    for _ in range(10):
        watcher.record(buffer.sample(5))
    stale = buffer.sample(5)
    buffer.clear()
    for _ in range(10):  # examined while nothing is stored
        watcher.record(stale)
    expected, counts = np.zeros(10), np.zeros(10)
    for number in range(10):
        buffer.add(**step(number))
        batch = buffer.sample(5)
        watcher.record(batch)
        expected[: number + 1] += 5 / (number + 1)
        np.add.at(counts, batch.indices - 120, 1)
    stats = {name.removeprefix("draws_"): value for name, value in watcher.stats().items() if name.startswith("draws_")}
    assert stats.pop("per_transition") == 5.0
    assert stats == pytest.approx(draw_count_stats(counts, expected))


def test_an_episode_longer_than_the_buffer_counts_as_what_is_stored_of_it():
    """If one episode fills the buffer, all pairs are of the same episode, as expected."""
    buffer = filled(ReplayBuffer(10, FLAT, seed=0), 35)
    watcher = ReplayMonitor(buffer, every=1)
    watcher.record(buffer.sample(8))
    assert watcher.stats()["same_episode"] == 1.0


def test_what_uniform_draws_would_have_drawn_is_added_up_exactly():
    """Expected draws are the sum of B/N since the add, if adds and batches alternate."""
    buffer = ReplayBuffer(50, FLAT, seed=0)
    filled(buffer, 20)
    watcher, expected, counts = ReplayMonitor(buffer, every=10), np.zeros(220), np.zeros(220)
    for number in range(200):
        if number:
            buffer.add(**step(number))
        batch = buffer.sample(5)
        watcher.record(batch)
        expected[: 20 + number] += 5 / len(buffer)
        np.add.at(counts, batch.indices, 1)
    stored = np.arange(169, 219)
    stats = watcher.stats()
    assert stats["draws_per_transition"] == pytest.approx(5.0) and stats["lifetime_batches"] == pytest.approx(50.0)
    # The monitor may be off by one batch, 5 of 50, for each transition
    assert stats["draws_never_expected"] == pytest.approx(np.exp(-expected[stored]).mean(), rel=0.1)
    assert stats["draws_mean"] == counts[stored].mean()


# -- Measures ------------------------------------------------------------------------------------------------


def test_large_stratified_batches_are_compared_in_whole():
    """Large stratified batches are compared as a whole, because their first half has only the oldest transitions."""
    buffer = PrioritizedBuffer(2000, FLAT, seed=0)
    states = np.random.default_rng(0).normal(size=(2000, 3)) + np.linspace(0.0, 9.0, 2000)[:, None]
    buffer.extend(**stretch(2000, obs=states))
    watcher = ReplayMonitor(buffer, every=1)
    for _ in range(30):
        watcher.record(buffer.sample(500))
    assert abs(watcher.stats()["energy_distance"]) < 0.02


def test_what_can_be_drawn_may_be_too_little_for_the_sample():
    """If few of 30,000 transitions can be drawn, this is reported, whether or not the sample has them."""
    for seed in range(4):
        buffer = random_walk(LatestBuffer(30_000, FLAT), 30_000)
        watcher = ReplayMonitor(buffer, every=1, seed=seed)
        watcher.record(buffer.sample(1))
        stats = watcher.stats()
        assert stats["probability_undrawable_share"] > 0.999 and stats["probability_top_percent_share"] == 1.0


def test_numbers_of_a_batch_are_averaged_over_the_window():
    """Numbers of batches are averaged over the window. Older batches have no effect."""
    buffer = random_walk(PrioritizedBuffer(200, FLAT, seed=0), 200)
    buffer.update_priorities(np.arange(200), np.arange(200) * 0.1)
    watcher, rng = ReplayMonitor(buffer, every=3, window=2), np.random.default_rng(0)
    expected = []
    for number in range(1, 13):
        batch, errors = buffer.sample(16), rng.normal(size=16)
        watcher.record(batch, errors)
        if number % 3 == 0:
            expected.append((td_error_stats(errors), weight_stats(batch.weights)))
    stats = watcher.stats()
    for place, prefix in ((0, "td_error"), (1, "weight")):
        for name in expected[0][place]:
            if name != "nonfinite":
                mean = np.mean([found[place][name] for found in expected[-2:]])
                assert stats[f"{prefix}_{name}"] == pytest.approx(mean), name
    history = watcher.history
    assert [row["recorded_batches"] for row in history] == [3.0, 6.0, 9.0, 12.0] and history[-1] == stats
    history[0]["recorded_batches"] = 7.0
    assert watcher.history[0]["recorded_batches"] == 3.0


def test_priorities_are_judged_from_the_buffer():
    """Concentration, entropy and starved transitions are computed from the buffer's priorities."""
    buffer = random_walk(PrioritizedBuffer(1000, FLAT, alpha=1.0, eps=0.0, beta=1.0, seed=0), 1000)
    buffer.update_priorities(np.arange(1000), priorities=np.where(np.arange(1000) < 10, 99.0, 1.0))
    watcher = ReplayMonitor(buffer, every=1)
    for _ in range(3):
        watcher.record(buffer.sample(64))
    stats = watcher.stats()
    p = np.where(np.arange(1000) < 10, 99.0, 1.0) / 1980.0
    assert stats["probability_top_percent_share"] == pytest.approx(0.5)
    assert stats["probability_entropy"] == pytest.approx(-(p * np.log(p)).sum() / np.log(1000))
    assert stats["probability_largest"] == pytest.approx(50.0) and stats["probability_starved_share"] == 0.0
    assert stats["weight_effective_share"] == pytest.approx(0.5, abs=0.03)
    buffer.update_priorities(np.arange(10), priorities=np.full(10, 9999.0))
    watcher.record(buffer.sample(64))
    assert watcher.stats()["probability_starved_share"] == 0.99


def test_stacks_of_wrappers_and_goals_are_watched():
    """States are compared as stored, without changes by wrappers."""
    goal = Field((2,))
    spec = Spec(obs={"achieved_goal": goal, "desired_goal": goal}, action=Field(()))
    inner = PrioritizedBuffer(300, spec, n_step=3, seed=0)
    buffer = CombinedReplay(HindsightReplay(inner, lambda achieved, desired, info: np.zeros(len(achieved))), latest=4)
    rng = np.random.default_rng(0)
    watcher = ReplayMonitor(buffer, every=2)
    for number in range(600):
        obs = {"achieved_goal": rng.normal(size=2), "desired_goal": np.ones(2)}
        buffer.add(obs, 0.0, 0.0, obs, False, number % 20 == 19)
        if number >= 16:
            batch = buffer.sample(16)
            buffer.update_priorities(batch.indices, batch.reward)
            watcher.record(batch, batch.reward)
    stats = watcher.stats()
    assert stats["features"] == stats["features_total"] == 4.0
    assert 0.5 < stats["mean_shift"] < 2.0 and stats["overlap"] > 1.5


# -- Images, nested states, tensors --------------------------------------------------------------------------


def test_of_images_a_selection_of_features_is_compared():
    """Of images, a fixed selection of features is compared. `stats` reports its size."""
    spec = Spec(obs={"image": Field((84, 84), np.uint8), "speed": Field((2,))}, action=Field(()))
    buffer = ReplayBuffer(60, spec, stack=2, seed=0)
    rng = np.random.default_rng(0)
    for number in range(60):
        image = rng.integers(0, 256, (84, 84), dtype=np.uint8)
        obs = {"image": image, "speed": np.ones(2)}
        buffer.add(obs, 0.0, 0.0, obs, number % 10 == 9, False)
    watcher = ReplayMonitor(buffer, every=1, max_features=50)
    for _ in range(5):
        watcher.record(buffer.sample(8))
    stats = watcher.stats()
    assert (stats["features"], stats["features_total"]) == (50.0, 2 * 84 * 84 + 2.0)
    assert 32.0 <= stats["reference_states"] < 600.0
    assert 0.3 < stats["mean_shift"] < 3.0 and stats["state_nonfinite_share"] == 0.0


@given(most=st.integers(1, 40), seed=st.integers(0, 9))
def test_features_are_those_of_the_stored_states_in_their_order(most, seed):
    """Features are those of nested, stacked and complex observations, in order, all or a selection."""
    spec = Spec(
        obs={"a": Field((2, 3), np.uint8), "b": (Field((), np.complex64), Field((4,))), "c": Field((), np.bool_)},
        action=Field(()),
    )
    buffer = ReplayBuffer(6, spec, stack=2)
    for number in range(9):
        obs = {
            "a": np.arange(6).reshape(2, 3) + 10 * number,
            "b": (np.complex64(number - 1j * number), np.arange(4) / (number + 1)),
            "c": number % 2 == 0,
        }
        buffer.add(obs, 0.0, 0.0, obs, number % 4 == 3, False)
    indices = np.array([3, 8, 5])
    complex_part = buffer.read(indices, "obs.b.0")
    parts = (
        buffer.read(indices, "obs.a").reshape(3, -1),
        complex_part.real[:, None],
        complex_part.imag[:, None],
        buffer.read(indices, "obs.b.1"),
        buffer.read(indices, "obs.c")[:, None],
    )
    table = np.concatenate([part.astype(float) for part in parts], axis=1)
    reader = StateReader(buffer, most, np.random.default_rng(seed))
    assert reader.num_features == table.shape[1] == 19
    assert reader.selected.size == min(most, 19) and (np.diff(reader.selected) > 0).all()
    assert np.array_equal(reader.read(indices), table[:, reader.selected])


def test_tensors_on_the_cpu_are_taken():
    """Batches and errors may be tensors. One that requires grad raises an error with the remedy."""
    torch = pytest.importorskip("torch")
    buffer = random_walk(ReplayBuffer(100, FLAT, seed=0), 100)
    plain, watcher = ReplayMonitor(buffer, every=1), ReplayMonitor(buffer, every=1)
    for _ in range(3):
        batch = buffer.sample(8)
        plain.record(batch, batch.reward - 1.0)
        tensors = batch.to_torch()
        watcher.record(tensors, tensors.reward - 1.0)
    assert watcher.stats() == pytest.approx(plain.stats(), nan_ok=True)
    with pytest.raises(TypeError, match=r"td_errors is a torch tensor that requires grad.*detach"):
        watcher.record(tensors, torch.ones(8, requires_grad=True))


# -- Degenerate and bad input --------------------------------------------------------------------------------


def test_nothing_is_known_at_first():
    """A monitor accepts an empty buffer. Before the first examination, numbers are nan, without warnings."""
    watcher = ReplayMonitor(ReplayBuffer(10, FLAT))
    stats = watcher.stats()
    assert stats.pop("recorded_batches") == 0.0
    assert all(math.isnan(value) for value in stats.values())
    assert watcher.warnings() == [] and watcher.history == []


def test_the_first_batch_may_be_stale():
    """After a clear, a stale batch is accepted, but an index that was never returned raises an error."""
    buffer = filled(ReplayBuffer(10, FLAT, seed=0), 10)
    batch = buffer.sample(4)
    buffer.clear()
    watcher = ReplayMonitor(buffer, every=1)
    watcher.record(batch)
    assert watcher.stats()["stale_share"] == 1.0
    buffer.add(**step(1.0))
    batch.indices[0] = 11
    with pytest.raises(IndexError, match="contains 11, which the buffer never returned"):
        watcher.record(batch)


@pytest.mark.parametrize("cls", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
def test_one_transition_and_batches_of_one_are_enough(cls):
    """Constant states are also accepted. Numbers that need more data are nan, without a NumPy warning."""
    buffer = filled(cls(5, FLAT, seed=0), 1)
    watcher = ReplayMonitor(buffer, every=1)
    for _ in range(3):
        watcher.record(buffer.sample(1), [0.0])
    stats = watcher.stats()
    for name in ("same_episode", "temporal_distance", "mean_shift", "energy_distance", "successive_correlation"):
        assert math.isnan(stats[name]), name
    assert (stats["draws_mean"], stats["draws_never_share"], stats["td_error_mean"]) == (3.0, 0.0, 0.0)
    assert stats["probability_entropy"] == stats["probability_perplexity_share"] == 1.0
    filled(buffer, 5)
    watcher.record(buffer.sample(1))
    watcher.record(buffer.sample(3))
    assert watcher.stats()["batch_size"] == 3.0


def test_nan_errors_and_states_are_reported_and_not_spread():
    """The share of NaN TD errors and states is reported. They do not affect other numbers."""
    buffer = random_walk(ReplayBuffer(400, FLAT, seed=0), 300)
    buffer.extend(**stretch(100, obs=np.full((100, 3), np.nan)))
    watcher = ReplayMonitor(buffer, every=1)
    for _ in range(30):
        watcher.record(buffer.sample(64), np.where(np.arange(64) < 16, np.nan, 2.0))
    stats = watcher.stats()
    assert stats["td_error_nonfinite_share"] == 0.25 and stats["td_error_mean"] == 2.0 and stats["td_lift"] == 1.0
    assert stats["state_nonfinite_share"] == pytest.approx(0.25, abs=0.06)
    assert 0.3 < stats["mean_shift"] < 3.0 and abs(stats["energy_distance"]) < 0.02
    words = watcher.warnings()
    assert words[0].startswith("25.00% of the TD errors are NaN or infinite")
    assert "of the sampled transitions have NaN or infinite observations" in words[1]


def test_infinite_weights_leave_nothing_of_the_others():
    """Infinite weights are accepted. They are possible without normalization, and other weights then count as 0."""
    buffer = random_walk(PrioritizedBuffer(50, FLAT, alpha=1.0, beta=1.0, eps=0.0, weights="none", seed=0), 50)
    watcher = ReplayMonitor(buffer, every=1)
    batch = buffer.sample(8)
    batch.weights[:2] = np.inf
    watcher.record(batch)
    assert watcher.stats()["weight_effective_share"] == 0.25 and watcher.stats()["weight_collapsed_share"] == 0.75


def test_observations_without_numbers_are_watched_too():
    """If observations have no numbers, numbers of states are nan, and all others are computed."""
    buffer = ReplayBuffer(50, Spec(obs=Field((0,)), action=Field(())), seed=0)
    for number in range(50):
        buffer.add(np.zeros(0), 0.0, 0.0, np.zeros(0), number % 10 == 9, False)
    watcher = ReplayMonitor(buffer, every=1)
    for _ in range(5):
        watcher.record(buffer.sample(16))
    stats = watcher.stats()
    assert stats["features_total"] == 0.0 and math.isnan(stats["mean_shift"]) and stats["same_episode"] > 0.0


def test_after_a_clear_stale_batches_count_for_nothing():
    """After a clear, stale batches are counted as stale, and counts of new transitions start at 0."""
    buffer = random_walk(PrioritizedBuffer(50, FLAT, seed=0), 50)
    watcher = ReplayMonitor(buffer, every=1)
    batch = buffer.sample(8)
    watcher.record(batch)
    buffer.clear()
    watcher.record(batch, np.ones(8))
    stats = watcher.stats()
    assert stats["stored_transitions"] == 0.0 and stats["stale_share"] == 0.5 and stats["td_error_mean"] == 1.0
    filled(buffer, 10)
    watcher.record(buffer.sample(8))
    assert watcher.stats()["draws_mean"] == 0.8
    assert watcher.stats()["draws_never_expected"] == pytest.approx(math.exp(-0.8))


def test_bad_input_is_refused_by_name():
    """A wrong batch, TD errors of another shape, and options out of range raise an error that names them."""
    buffer = filled(ReplayBuffer(10, FLAT, seed=0), 10)
    batch = buffer.sample(4)
    for call, error, message in (
        (lambda: ReplayMonitor([1, 2]), TypeError, "buffer is a list; expected a buffer or a wrapper"),
        (lambda: ReplayMonitor(buffer, every=0), ValueError, "every is 0; expected at least 1"),
        (lambda: ReplayMonitor(buffer, window=1), ValueError, "window is 1; expected at least 2"),
        (lambda: ReplayMonitor(buffer, max_features=2.5), TypeError, "max_features is 2.5; expected an int"),
        (lambda: ReplayMonitor(buffer, evry=3), TypeError, "evry"),
        (lambda: ReplayMonitor(buffer).record(Batch(indices=np.zeros(0, int))), ValueError, "batch is empty; expected"),
        (lambda: ReplayMonitor(buffer).record([1, 2]), TypeError, "batch is a list without indices"),
        (lambda: ReplayMonitor(buffer).record(batch, np.ones((4, 1))), ValueError, r"td_errors has shape \(4, 1\)"),
        (lambda: ReplayMonitor(buffer).record(batch, ["a"] * 4), TypeError, "td_errors has dtype"),
        (
            lambda: ReplayMonitor(ReplayBuffer(9, FLAT)).record(batch),
            IndexError,
            "contains [0-9], which the buffer never returned",
        ),
    ):
        with pytest.raises(error, match=message):
            call()


def test_the_history_is_thinned_before_it_is_long(monkeypatch):
    """When the history is full, every second row is dropped, so it spans the whole training."""
    monkeypatch.setattr(monitor, "MAX_HISTORY", 8)
    buffer = random_walk(ReplayBuffer(100, FLAT, seed=0), 100)
    watcher = ReplayMonitor(buffer, every=1)
    for _ in range(50):
        watcher.record(buffer.sample(4))
    batches = [row["recorded_batches"] for row in watcher.history]
    assert len(batches) <= 8 and batches[-1] == 50.0 and batches[0] < 20.0 and batches == sorted(set(batches))


# -- Warnings ------------------------------------------------------------------------------------------------


def test_no_replay_is_called_sick():
    """A LatestBuffer gets warnings: its batches are runs of neighbors, and always the newest."""
    buffer = LatestBuffer(2000, FLAT)
    random_walk(buffer, 2000)
    watcher = ReplayMonitor(buffer, every=10)
    for number in range(400):
        buffer.add(**step(0.0, obs=np.full(3, 20.0 * math.sin(number / 40)), terminated=number % 50 == 49))
        watcher.record(buffer.sample(32), np.ones(32))
    words = " ".join(watcher.warnings())
    for phrase in ("the same episode are", "Successive batches", "as old as those stored", "cannot be drawn at all"):
        assert phrase in words


def test_collapsed_priorities_are_called_sick():
    """A tiny eps with a few large TD errors gets warnings about draws and weights."""
    buffer = random_walk(PrioritizedBuffer(2000, FLAT, alpha=1.0, beta=1.0, eps=1e-6, weights="buffer", seed=0), 2000)
    buffer.update_priorities(np.arange(2000), np.arange(2000) < 20)
    watcher = ReplayMonitor(buffer, every=10)
    for _ in range(400):
        batch = buffer.sample(32)
        watcher.record(batch, np.where(np.arange(32) < 1, 1e3, 1.0))
    words = " ".join(watcher.warnings())
    for phrase in (
        "1 % of the transitions have 100% of the probability",
        "less than a tenth as often",
        "Importance weights are",
        "never been drawn; under uniform draws",
        "A tenth of a batch carries",
    ):
        assert phrase in words


def test_late_updates_and_hasty_adds_are_called_sick():
    """Updates after transitions were overwritten, and too few draws, get warnings."""
    buffer = random_walk(PrioritizedBuffer(100, FLAT, seed=0), 100)
    watcher = ReplayMonitor(buffer, every=1)
    for _ in range(5):
        batch = buffer.sample(16)
        random_walk(buffer, 60)
        buffer.update_priorities(batch.indices, np.ones(16))
        watcher.record(batch, np.ones(16))
    words = " ".join(watcher.warnings())
    assert "came after the transition was overwritten" in words
    assert "Each transition is drawn 0.27 times before it is overwritten" in words


def test_every_symptom_can_show_and_is_shown_with_its_number():
    """Each warning can occur, and contains its number. I.i.d. draws give none."""
    healthy = dict.fromkeys(ReplayMonitor(ReplayBuffer(5, FLAT)).stats(), 1.0) | dict.fromkeys(
        (
            "td_error_nonfinite_share", "state_nonfinite_share", "squared_bias", "energy_distance", "stale_share",
            "successive_correlation", "probability_starved_share", "stale_update_share", "probability_undrawable_share",
        ), 0.0,
    ) | {"probability_top_percent_share": 0.01, "td_error_top_decile_share": 0.3}  # fmt: skip
    assert warnings_for(healthy) == []
    sick = {name: value * 100.0 + 50.0 for name, value in healthy.items()}
    low = {"relative_age": 0.1, "weight_effective_share": 0.1, "weight_mean": 0.01, "draws_never_expected": 0.0}
    low["draws_per_transition"] = 0.5
    both = warnings_for(sick | low | {"squared_bias": 0.0})
    both += warnings_for(sick | low | {"squared_bias": 1e4, "probability_undrawable_share": 0.0})
    assert len(set(both)) == len(SYMPTOMS)


# -- Figures -------------------------------------------------------------------------------------------------


@pytest.fixture
def watched():
    """A monitor with a history."""
    buffer = random_walk(PrioritizedBuffer(500, FLAT, seed=0), 500)
    watcher = ReplayMonitor(buffer, every=2)
    for _ in range(40):
        batch = buffer.sample(16)
        buffer.update_priorities(batch.indices, batch.obs[:, 0])
        watcher.record(batch, batch.obs[:, 0])
    return watcher


def test_the_figure_shows_every_panel_and_what_iid_draws_give(watched):
    """A figure shows every panel, on new or given axes, also before anything was measured."""
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = watched.plot()
    assert [axis.get_title() for axis in figure.axes] == [panel.title for panel in PANELS.values()]
    lines = {line.get_label(): line for line in figure.axes[2].lines}
    assert lines["i.i.d."].get_ydata()[0] == 1.0
    drawn = lines["mean squared error"]
    shifts = [
        (row["recorded_batches"], row["mean_shift"])
        for row in watched.history
        if row["mean_shift"] == row["mean_shift"]
    ]
    assert np.array_equal(drawn.get_xydata(), shifts)
    figure.canvas.draw()

    own = Figure()
    axis = own.add_subplot()
    assert watched.plot(ax=axis, panels=["states"]) is own and axis.get_title() == PANELS["states"].title
    assert len(watched.plot(panels="draws").axes) == 1
    pair = Figure().subplots(1, 2)
    watched.plot(ax=pair)
    assert [axis.get_title() for axis in pair] == [panel.title for panel in PANELS.values()][:2]
    empty = ReplayMonitor(ReplayBuffer(5, FLAT)).plot()
    empty.canvas.draw()
    assert "nothing measured yet" in [text.get_text() for text in empty.axes[0].texts]
    assert matplotlib is sys.modules["matplotlib"]


def test_figures_refuse_panels_that_do_not_exist(watched):
    """Unknown panels, and fewer axes than panels, raise an error."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    with pytest.raises(ValueError, match="panels contains 'weight'; expected one or more of td_error"):
        watched.plot(panels=["weight"])
    with pytest.raises(ValueError, match="panels is empty"):
        watched.plot(panels=[])
    with pytest.raises(ValueError, match="ax has 1 axes; expected 2, the number of panels"):
        watched.plot(ax=Figure().add_subplot(), panels=["states", "draws"])


def test_diagnostics_import_and_record_without_torch_or_matplotlib():
    """Neither is imported before `plot`, and the measures need NumPy alone."""
    program = """
import sys
from replaykit import diagnostics
assert not {"torch", "matplotlib", "numba", "scipy", "gymnasium"} & set(sys.modules)
from replaykit import Field, ReplayBuffer, Spec
buffer = ReplayBuffer(9, Spec(obs=Field((2,)), action=Field(())))
buffer.add([0.0, 1.0], 0.0, 0.0, [1.0, 2.0], False, False)
monitor = diagnostics.ReplayMonitor(buffer, every=1)
monitor.record(buffer.sample(4), [1.0, 2.0, 3.0, 4.0])
assert monitor.stats()["td_error_mean"] == 2.5
assert not {"torch", "matplotlib", "gymnasium"} & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_sequences_are_examined_by_their_transitions():
    """Sequences are examined as transitions without padding. Correlated batches are reported."""
    spec = Spec(obs={"x": Field((2,))}, action=Field(()))
    buffer = PrioritizedBuffer(500, spec, num_envs=2, seed=0)
    replay = SequenceReplay(buffer, 10, stride=10, burn_in=2)
    monitor = ReplayMonitor(replay, every=1)
    rng = np.random.default_rng(0)
    for t in range(400):
        obs = {"x": rng.random((2, 2), np.float32)}
        replay.add(obs, [0, 0], [1.0, 0.0], obs, [t % 37 == 36, t % 23 == 22], [False, False])
    for _ in range(30):
        batch = replay.sample(16)
        errors = rng.normal(size=(16, 10))
        monitor.record(batch, errors)
        monitor.record(batch.to_torch() if importlib.util.find_spec("torch") else batch)
        replay.update_priorities(batch.indices, errors, mask=batch.loss_mask)
    stats = monitor.stats()
    assert stats["batch_size"] == batch.mask.sum() < 160
    assert stats["same_episode"] > 1.3
    assert stats["stale_share"] == 0.0
    assert stats["probability_undrawable_share"] == 0.0
    assert stats["draws_per_transition"] > 0.0
    assert not any("cannot be drawn" in message for message in monitor.warnings())
    with pytest.raises(ValueError, match=r"td_errors has shape \(16,\); expected \(16, 10\), that of the sequences"):
        monitor.record(batch, np.ones(16))
