"""Sequences: rows of consecutive transitions, compared with spans of lists."""

import copy
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replaykit import (
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    PrioritizedBuffer,
    ReplayBuffer,
    ReplayWrapper,
    SequenceReplay,
    Spec,
)
from replaykit.testing import assert_lawful, bits_of
from replaykit.testing.strategies import is_near, reward_of_goal
from replaykit.trees import leaves_of

SPEC = Spec(obs={"place": Field((2,)), "image": Field((3, 3), np.uint8)}, action=Field((), np.int64), state=Field((2,)))
KINDS = {"uniform": ReplayBuffer, "prioritized": PrioritizedBuffer, "latest": LatestBuffer}
ALPHA, EPS = 0.6, 1e-2


class Lists:
    """The stored steps of each lane in lists, as (index, episode, place in the episode)."""

    def __init__(self, num_envs, length):
        self.num_envs, self.length = num_envs, length
        self.lanes = [[] for _ in range(num_envs)]
        self.added, self.episode = [0] * num_envs, [0] * num_envs
        self.place = [0] * num_envs
        self.order, self.priority = [], {}

    def add(self, lane, ends, initial):
        index = self.added[lane] * self.num_envs + lane
        self.lanes[lane].append((index, self.episode[lane], self.place[lane]))
        self.order.append(index)
        self.priority[index] = initial
        self.added[lane] += 1
        self.place[lane] += 1
        if len(self.lanes[lane]) > self.length:
            oldest, _, _ = self.lanes[lane].pop(0)
            self.order.remove(oldest)
            del self.priority[oldest]
        if ends:
            self.end(lane)

    def end(self, lane):
        self.episode[lane] += 1
        self.place[lane] = 0

    def largest(self):
        return max(self.priority.values(), default=0.0) or 1.0

    def rest(self, index):
        """The stored steps of an index's episode from this one on."""
        lane = self.lanes[index % self.num_envs]
        (episode,) = (step[1] for step in lane if step[0] == index)
        return [step for step in lane if step[1] == episode and step[0] >= index]

    def span(self, index, stride):
        """The stored steps of an index's span."""
        lane = self.lanes[index % self.num_envs]
        ((_, episode, place),) = (step for step in lane if step[0] == index)
        return [s for s, e, p in lane if e == episode and p // stride == place // stride]

    def newest_starts(self, count, stride):
        found = []
        for index in reversed(self.order):
            start = self.span(index, stride)[0]
            if start not in found and len(found) < count:
                found.append(start)
        return found[::-1]

    def shares(self, kind, batch_size):
        if kind == "uniform":
            return {index: 1.0 / len(self.order) for index in self.order}
        if kind == "latest":
            newest = self.order[-batch_size:]
            served = [newest[place % len(newest)] for place in range(batch_size)]
            return {index: served.count(index) / batch_size for index in self.order}
        total = sum(self.priority.values())
        return {index: value / total for index, value in self.priority.items()}

    def with_newest(self, shares, newest, batch_size):
        """`shares` is a function of the number of draws that are left."""
        drawn = batch_size - len(newest)
        inner = shares(drawn) if drawn else dict.fromkeys(self.order, 0.0)
        return {index: (drawn * inner[index] + (index in newest)) / batch_size for index in self.order}

    def of_spans(self, shares, stride):
        found = dict.fromkeys(self.order, 0.0)
        for index, share in shares.items():
            found[self.span(index, stride)[0]] += share
        return found


def random_step(rng, num_envs):
    """The values of one step of every lane."""

    def obs():
        return {
            "place": rng.random((num_envs, 2), np.float32),
            "image": rng.integers(0, 255, (num_envs, 3, 3), np.uint8),
        }

    flags = rng.random((2, num_envs)) < 0.1
    values = obs(), rng.integers(0, 9, num_envs), rng.random(num_envs, np.float32), obs(), *flags
    return values, rng.random((num_envs, 2), np.float32)


def only(tree):
    return {key: value[0] for key, value in tree.items()} if isinstance(tree, dict) else tree[0]


@st.composite
def cases(draw):
    """The kind of buffer, the options of the sequences, and where the newest are added."""
    num_envs, length = draw(st.sampled_from([1, 1, 2, 3])), draw(st.integers(3, 14))
    rows = draw(st.integers(1, length))
    return {
        "kind": draw(st.sampled_from(sorted(KINDS))),
        "num_envs": num_envs,
        "length": length,
        "n_step": draw(st.sampled_from([1, 1, 2, 4])),
        "stack": draw(st.sampled_from([1, 1, 2])),
        "rows": rows,
        "stride": draw(st.integers(1, rows)),
        "burn_in": draw(st.integers(0, rows - 1)),
        "eta": draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])),
        "combined": draw(st.sampled_from([None, None, "inside", "outside"])),
        "latest": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 2**16)),
    }


def built(case):
    """The buffer, and the wrappers around it."""
    kind, capacity = KINDS[case["kind"]], case["length"] * case["num_envs"]
    options = {"num_envs": case["num_envs"], "n_step": case["n_step"], "stack": case["stack"], "seed": case["seed"]}
    buffer = top = kind(capacity, SPEC, gamma=0.9, **options)
    if case["combined"] == "inside":
        top = CombinedReplay(top, latest=case["latest"])
    top = SequenceReplay(top, case["rows"], burn_in=case["burn_in"], stride=case["stride"], eta=case["eta"])
    return buffer, CombinedReplay(top, latest=case["latest"]) if case["combined"] == "outside" else top


@given(case=cases(), steps=st.integers(1, 40))
def test_rows_are_those_of_lists(case, steps):
    """Fields, starts, masks, probabilities and priorities equal those of lists, with wrappers around and inside."""
    buffer, top = built(case)
    lists, rng = Lists(case["num_envs"], case["length"]), np.random.default_rng(case["seed"])
    sampled = None
    for _ in range(steps):
        mask = rng.random(case["num_envs"]) < 0.8
        values, state = random_step(rng, case["num_envs"])
        if case["num_envs"] == 1:
            top.add(*map(only, values), state=state[0], mask=mask)
        else:
            top.add(*values, state=state, mask=mask)
        initial = lists.largest()
        for lane in np.flatnonzero(mask).tolist():
            lists.add(lane, values[4][lane] or values[5][lane], initial)
        if rng.random() < 0.1:
            ended = rng.random(case["num_envs"]) < 0.5
            top.end_episode(ended)
            for lane in np.flatnonzero(ended).tolist():
                lists.end(lane)
        if sampled is not None and rng.random() < 0.5:
            hold_to_update(case, buffer, top, lists, rng, sampled)
            sampled = None
        if lists.order and rng.random() < 0.5:
            sampled = hold_to_batch(case, buffer, top, lists, rng)
    buffer.check()


def hold_to_batch(case, buffer, top, lists, rng):
    """Sample a batch, and compare it with the lists."""
    stride, rows, k = case["stride"], case["rows"], case["latest"]
    batch_size = int(rng.integers(1, 6)) + k
    newest = {None: [], "inside": lists.order[-k:], "outside": lists.newest_starts(k, stride)}[case["combined"]]

    def inner(count):
        return lists.shares(case["kind"], count)

    if case["combined"] == "outside":
        shares = lists.with_newest(lambda count: lists.of_spans(inner(count), stride), newest, batch_size)
    else:
        shares = lists.of_spans(lists.with_newest(inner, newest, batch_size) if newest else inner(batch_size), stride)
    np.testing.assert_allclose(top.probability(lists.order, batch_size), [shares[i] for i in lists.order], rtol=1e-9)
    starts = top.begins_row(np.array(lists.order))
    assert starts.tolist() == [lists.span(index, stride)[0] == index for index in lists.order]
    batch = assert_lawful(top, batch_size)
    assert batch.indices[batch_size - len(newest) :].tolist() == newest or case["combined"] != "outside"
    np.testing.assert_allclose(batch.probabilities, [shares[i] for i in batch.indices.tolist()], rtol=1e-9)
    for row, index in enumerate(batch.indices.tolist()):
        assert shares[index] > 0.0
        steps = lists.rest(index)[:rows]
        count, begins = len(steps), steps[0][2] == 0
        places = np.arange(rows)
        assert batch.mask[row].tolist() == (places < count).tolist()
        assert batch.step_indices[row].tolist() == [step[0] for step in steps] + [-1] * (rows - count)
        assert batch.is_first[row].tolist() == [begins and place == 0 for place in range(rows)]
        learned = (places < count) & (begins | (places >= case["burn_in"]))
        assert batch.loss_mask[row].tolist() == learned.tolist()
        for path, expected in leaves_of(buffer.fetch(np.array([step[0] for step in steps]))):
            got = dict(leaves_of(dict(batch.items())))[path]
            assert got.dtype == expected.dtype
            assert got.shape[:2] == (batch_size, rows)
            np.testing.assert_array_equal(got[row, :count], expected)
            assert not got[row, count:].any()
    return batch


def hold_to_update(case, buffer, top, lists, rng, batch):
    """Update the priorities of a batch, after more was added, and compare them with those of the lists."""
    mask = batch.loss_mask if rng.random() < 0.7 else batch.mask & (rng.random(batch.mask.shape) < 0.6)
    errors = rng.normal(size=mask.shape)
    errors[~mask] = rng.choice([np.nan, 7.0])
    rows, num_envs = 0, case["num_envs"]
    for row, index in enumerate(batch.indices.tolist()):
        chosen = np.abs(errors[row, mask[row]])
        mixed = case["eta"] * chosen.max() + (1 - case["eta"]) * chosen.mean() if chosen.size else 0.0
        if chosen.size:
            shown = [index + place * num_envs for place in range(int(np.flatnonzero(mask[row])[-1]) + 1)]
            stored = [i for i in shown if i in lists.priority]
        else:
            stored = [i for i, _, _ in lists.rest(index)[: case["rows"]]] if index in lists.priority else []
        place = batch_place(lists, index, stored)
        span = [i for i in stored if (place + (i - index) // num_envs) // case["stride"] == place // case["stride"]]
        rows += bool(span)
        for i in span:
            lists.priority[i] = (mixed + EPS) ** ALPHA
    applied = top.update_priorities(batch.indices, errors, mask=mask)
    assert applied == (rows if case["kind"] == "prioritized" else 0)
    if case["kind"] == "prioritized":
        total = sum(lists.priority.values())
        expected = [lists.priority[i] / total for i in lists.order]
        np.testing.assert_allclose(buffer.probability(lists.order), expected, rtol=1e-9)


def batch_place(lists, index, stored):
    """The position in its episode of an index that may be stale, from a later step of the same row."""
    for step, _, place in itertools.chain(*lists.lanes):
        if stored and step == stored[0]:
            return place - (step - index) // lists.num_envs
    return 0


def counted(make=ReplayBuffer, steps=20, ends=(), **options):
    """A buffer in which observations count the steps."""
    buffer = make(options.pop("capacity", 100), Spec(obs=Field(()), action=Field(())), seed=0, **options)
    for step in range(steps):
        buffer.add(step, 0, 1.0, step + 1, step in ends, False)
    return buffer


def test_a_mask_that_is_missing_is_that_of_the_batch():
    """Without a mask, an update uses that of the batch, as long as no steps were added or overwritten."""
    one, two = (SequenceReplay(counted(PrioritizedBuffer, ends=[6]), 5, burn_in=2, stride=3) for _ in range(2))
    batch = one.sample(8)
    errors = np.random.default_rng(0).normal(size=(8, 5))
    assert one.update_priorities(batch.indices, errors) == 8
    assert two.update_priorities(batch.indices, errors, mask=batch.loss_mask) == 8
    np.testing.assert_array_equal(one.inner.probability(range(20)), two.inner.probability(range(20)))


def test_steps_added_after_the_batch_keep_their_priority():
    """An update does not change steps that were added to a row's episode after the batch."""
    replay = SequenceReplay(counted(PrioritizedBuffer, steps=3), 6, stride=6)
    batch = replay.sample(1)
    replay.add(3, 0, 1.0, 4, False, False)
    replay.update_priorities(batch.indices, np.full((1, 6), 0.1), mask=batch.loss_mask)
    shares = replay.inner.probability(range(4))
    assert shares[3] > shares[2] == shares[1] == shares[0]


def test_priorities_can_be_given_for_whole_rows():
    """One priority per row sets the priorities of all stored steps of its span."""
    replay = SequenceReplay(counted(PrioritizedBuffer, steps=8, alpha=1.0), 4, stride=4)
    assert replay.update_priorities([0, 4], priorities=[1.0, 3.0]) == 2
    np.testing.assert_allclose(replay.inner.probability(range(8)), [1 / 16] * 4 + [3 / 16] * 4)
    np.testing.assert_allclose(replay.probability([0, 4, 1]), [0.25, 0.75, 0.0])


def test_a_stale_row_is_not_applied_and_is_counted():
    """An update of a stale row is ignored and counted, like one of a stale transition."""
    replay = SequenceReplay(counted(PrioritizedBuffer, steps=8, capacity=8), 4, stride=4)
    for step in range(8, 14):
        replay.add(step, 0, 1.0, step + 1, False, False)
    before = replay.inner.probability(replay.stored())
    errors = np.ones((2, 4))
    assert replay.update_priorities([0, 4], errors, mask=np.ones((2, 4), np.bool_)) == 1  # 6 and 7 are stored yet
    assert replay.stats()["stale_updates"] == 1
    assert (replay.inner.probability(replay.stored()) != before).any()
    assert replay.update_priorities([0], errors[:1]) == 0


GOALS = Spec(
    obs={"camera": Field((2,)), "achieved_goal": Field((2,)), "desired_goal": Field((2,))},
    action=Field((), np.int64),
    cost=Field((), np.float64),
)


def of_goals(n_step=1, kind=PrioritizedBuffer, episode=9, **options):
    """A buffer of two lanes, in which achieved goals count the steps."""
    buffer = kind(60, GOALS, num_envs=2, n_step=n_step, gamma=0.9, seed=3, **options)
    for t in range(40):
        goals = [
            {"achieved_goal": np.full((2, 2), t + k, np.float32), "desired_goal": np.full((2, 2), -9.0)} for k in (0, 1)
        ]
        obs, next_obs = ({"camera": np.full((2, 2), t + k), **goals[k]} for k in (0, 1))
        truncated = np.array([t % episode == episode - 1, t % 13 == 12])
        buffer.add(obs, [0, 1], [-1.0, -2.0], next_obs, [False, False], truncated, cost=np.array([0.5, 0.25]))
    return buffer


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("terminated_fn", [None, is_near])
def test_a_sequence_has_one_goal_and_the_order_of_the_wrappers_is_free(n_step, terminated_fn):
    """Each row has one goal, and ends where it is reached. Hindsight inside or outside gives the same bits."""
    options = {"terminated_fn": terminated_fn, "ratio": 0.7}
    one = SequenceReplay(HindsightReplay(of_goals(n_step), reward_of_goal, **options), 6, burn_in=2, stride=2)
    two = HindsightReplay(SequenceReplay(of_goals(n_step), 6, burn_in=2, stride=2), reward_of_goal, **options)
    cut = 0
    for _ in range(12):
        batch, other = one.sample(16), two.sample(16)
        assert bits_of(batch) == bits_of(other)
        assert batch.relabelled.shape == (16,)
        for row in range(16):
            real = batch.mask[row]
            goals = batch.obs["desired_goal"][row, real]
            assert (goals == goals[0]).all()
            assert (batch.next_obs["desired_goal"][row, real] == goals[0]).all()
            assert not batch.obs["desired_goal"][row, ~real].any()
            assert (goals[0] == -9.0).all() != batch.relabelled[row]
            count = int(real.sum())
            steps = one.inner.inner.episode(batch.indices[row : row + 1])[2][0] - batch.indices[row]
            stored = min(int(steps) // 2 + 1, 6)
            ends = [t + int(batch.length[row, t]) - 1 for t in range(count) if batch.terminated[row, t]]
            assert count == min([stored, *(end + 1 for end in ends)])
            cut += count < stored
        for t in range(16):
            assert two.update_priorities(batch.indices[t : t + 1], np.ones((1, 6)), mask=batch.loss_mask[t : t + 1])
            assert one.update_priorities(batch.indices[t : t + 1], np.ones((1, 6)), mask=batch.loss_mask[t : t + 1])
    assert (cut > 0) == (terminated_fn is not None)


def test_sequences_are_copied_pickled_and_saved(tmp_path):
    """Copies, pickles and checkpoints of sequences continue bit for bit."""
    replay = SequenceReplay(counted(PrioritizedBuffer, ends=[4, 11]), 5, stride=2, burn_in=1)
    replay.sample(4)
    replay.save(tmp_path)
    loaded = SequenceReplay(counted(PrioritizedBuffer, steps=0), 5, stride=2, burn_in=1)
    loaded.load(tmp_path)
    copies = [loaded, copy.deepcopy(replay), pickle.loads(pickle.dumps(replay))]
    expected = bits_of(replay.sample(6))
    assert all(bits_of(other.sample(6)) == expected for other in copies)


def test_weights_of_the_whole_buffer_are_divided_by_the_largest_of_any_row():
    """`least` is the smallest probability of a start, not of a transition."""
    replay = SequenceReplay(counted(PrioritizedBuffer, weights="buffer", beta=1.0), 4, stride=4)
    replay.update_priorities([0, 4, 8, 12, 16], priorities=[1.0, 5.0, 2.0, 3.0, 4.0])
    batch = assert_lawful(replay, 10)
    np.testing.assert_allclose(batch.weights, replay.probability([0])[0] / batch.probabilities, rtol=1e-6)


def test_a_window_of_two_axes_has_the_transitions_that_are_named():
    """Indices (B, T) are single transitions, as in other replays. Only indices (B,) are starts of rows."""
    replay = SequenceReplay(counted(), 4)
    indices = np.array([[1, 5], [7, 2]])
    fields = replay.reduce(replay.window(indices))
    assert fields["obs"].tolist() == [1.0, 5.0, 7.0, 2.0]
    assert "mask" not in fields


class Plain(ReplayWrapper):
    """A wrapper that changes nothing."""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"length": 0}, ValueError, "length is 0; expected"),
        ({"length": 2.0}, TypeError, "length is 2.0; expected"),
        ({"length": 101}, ValueError, "length is 101; expected at most the 100 steps that each of 1 lanes holds"),
        ({"burn_in": 4}, ValueError, "burn_in is 4; expected less than length=4"),
        ({"burn_in": -1}, ValueError, "burn_in is -1; expected"),
        ({"stride": 5}, ValueError, "stride is 5; expected at most length=4"),
        ({"stride": 0}, ValueError, "stride is 0; expected"),
        ({"eta": 1.5}, ValueError, "eta is 1.5; expected"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    """An invalid option raises an error that names it and the expected value."""
    with pytest.raises(error, match=message):
        SequenceReplay(counted(), **({"length": 4} | options))


def test_what_serves_sequences_already_is_refused():
    """A replay that already returns sequences raises an error, at any depth of wrappers."""
    with pytest.raises(ValueError, match="inner already returns sequences; expected a replay of single transitions"):
        SequenceReplay(Plain(SequenceReplay(counted(), 4)), 4)
    with pytest.raises(TypeError, match="inner is a list; expected a buffer or another wrapper"):
        SequenceReplay([], 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (([0], np.ones(4)), {}, ValueError, r"td_errors has shape \(4,\); expected \(1, 4\)"),
        (([0], np.ones((1, 5))), {}, ValueError, r"td_errors has shape \(1, 5\); expected \(1, 4\)"),
        (([0],), {"priorities": np.ones((1, 4))}, ValueError, r"priorities has shape \(1, 4\); expected \(1,\)"),
        (([0], np.ones((1, 4))), {"mask": np.ones((1, 3), np.bool_)}, ValueError, r"mask has shape \(1, 3\)"),
        (([0], np.ones((1, 4))), {"mask": np.ones((1, 4))}, ValueError, "dtype float64; expected .* and bool"),
        (([0], np.full((1, 4), np.nan)), {}, ValueError, "td_errors contains nan; expected finite numbers where"),
        (([0], np.full((1, 4), -np.inf)), {}, ValueError, "td_errors contains -inf; expected finite numbers where"),
        (([0],), {}, TypeError, "pass either td_errors or priorities="),
        (([0], np.ones((1, 4))), {"priorities": [1.0]}, TypeError, "pass either td_errors or priorities="),
        (([20], np.ones((1, 4))), {}, IndexError, "indices contains 20, which the buffer never returned"),
        (([-5], np.ones((1, 4))), {}, IndexError, "indices contains -5, which the buffer never returned"),
        (([0.5], np.ones((1, 4))), {}, TypeError, "indices has dtype float64"),
        (([0],), {"priorities": [-1.0]}, ValueError, "priorities contains -1.0; expected non-negative"),
    ],
)
@pytest.mark.parametrize("make", [ReplayBuffer, PrioritizedBuffer])
def test_a_wrong_update_changes_nothing(make, arguments, options, error, message):
    """The buffer is bit-identical to before."""
    replay = SequenceReplay(counted(make), 4)
    before = pickle.dumps(replay)
    with pytest.raises(error, match=message):
        replay.update_priorities(*arguments, **options)
    assert pickle.dumps(replay) == before


def test_a_batch_larger_than_memory_counts_whole_rows():
    """The estimated size of a batch counts T transitions for each row."""
    replay = SequenceReplay(counted(capacity=5000), 4000)
    with pytest.raises(MemoryError, match="batch_size 1000000000 at"):
        replay.sample(10**9)
    assert replay.bytes_each == 4000 * replay.inner.bytes_each


def test_an_empty_buffer_says_so():
    """Sampling an empty buffer raises the same error as without sequences."""
    with pytest.raises(ValueError, match="the buffer is empty"):
        SequenceReplay(counted(steps=0), 4).sample(1)


def test_sequences_become_tensors():
    """`to_torch` with columns gives tensors of shape (B, T, 1), and weights of shape (B, 1)."""
    pytest.importorskip("torch")
    batch = SequenceReplay(counted(), 4).sample(3)
    tensors = batch.to_torch(column=True)
    assert tuple(tensors.reward.shape) == tuple(tensors.discount.shape) == (3, 4, 1)
    assert tuple(tensors.weights.shape) == (3, 1)
    assert tuple(tensors.mask.shape) == (3, 4)
    np.testing.assert_array_equal(tensors.obs.numpy(), batch.obs)


def test_sequences_become_a_tensordict():
    """The batch size is (B, T). Each transition has its own index and the weight of its row."""
    pytest.importorskip("tensordict")
    buffer = of_goals(kind=PrioritizedBuffer)
    buffer.update_priorities(buffer.stored(), np.arange(60.0))
    batch = SequenceReplay(HindsightReplay(buffer, reward_of_goal), 4).sample(3)
    made = batch.to_tensordict()
    assert tuple(made.batch_size) == (3, 4)
    np.testing.assert_array_equal(made["index"].numpy(), batch.step_indices)
    np.testing.assert_array_equal(made["priority_weight"].numpy(), np.tile(batch.weights[:, None], 4))
    np.testing.assert_array_equal(made["next", "reward"].numpy()[..., 0], batch.reward)
    np.testing.assert_array_equal(made["relabelled"].numpy(), np.tile(batch.relabelled[:, None], 4))
    assert tuple(made["steps_to_next_obs"].shape) == (3, 4, 1)
