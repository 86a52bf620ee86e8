"""The kernels that make batches, compared with loops over the rows."""

import numpy as np
import pytest

from replaykit import Field, Spec
from replaykit._kernels import windows as names
from replaykit.storage.row import Row
from tests.kernels.forms import both, indices_in, random_bounds

SPECS = [
    Spec(obs=Field((3,)), action=Field((), np.int64)),
    Spec(
        obs={"a": Field((5,), np.uint8), "b": Field((7,), np.float64)},
        action=Field((3,), np.int16),
        reward=Field((), np.float64),
        z=Field((2, 9), np.int32),
    ),
    Spec(obs=Field((3,)), action=Field((), np.int8), reward=Field((3,))),
    Spec(obs=Field((3,)), action=Field((), np.int8), reward=Field((2,), np.float64)),
]


class Ring:
    """Rows of random bytes in lanes with random episodes, and the block in which a batch of them is made."""

    def __init__(self, rng, spec, num_envs, length, n):
        self.rng, self.n, self.num_envs, self.capacity = rng, n, num_envs, num_envs * length
        self.leaves, self.row = spec.leaves, Row(spec, [], None)
        self.names = [leaf.name for leaf in spec.leaves]
        self.bounds = random_bounds(rng, num_envs, length)
        self.rows = rng.integers(0, 256, self.capacity * self.row.nbytes, np.uint8)
        self.records = self.rows.view(self.row.record)
        self.ends = self.rows.reshape(self.capacity, -1)[:, self.row.end]
        self.records[self.key("reward")] = rng.normal(size=(self.capacity, *spec["reward"].shape))
        for flag in ("terminated", "truncated"):
            self.records[self.key(flag)] = rng.random(self.capacity) < 0.2
        terminated, truncated = (self.records[self.key(flag)] for flag in ("terminated", "truncated"))
        self.ends[:] = terminated | truncated | (rng.random(self.capacity) < 0.1)
        self.powers = np.array([0.9**k for k in range(n + 1)])
        self.stored = indices_in(self.bounds)

    def key(self, name):
        """The name of a leaf in the records."""
        return str(self.names.index(name))

    def block(self, indices):
        """A block for these indices: its plan, its memory, and its fields by name, with indices and slots."""
        layout = self.row.layout(len(indices), self.n)
        block = np.full(layout.nbytes, 0xAB, np.uint8)
        places = layout.plan[names.START]
        self.slots = block[places[names.SLOTS] :][: 8 * len(indices)].view(np.int64)
        fields = np.ndarray((), layout.windows, block).item()
        derived = ["discount", "length", "weights", "probabilities", "indices", "rewards"]
        found = dict(zip([*self.names, *derived], fields, strict=True))
        found["indices"][:], self.slots[:] = indices, indices % self.capacity
        return layout.plan, block, found

    def steps(self, index):
        """The indices of a window: up to n steps, to the end of its episode or the newest step."""
        window = [index]
        while len(window) < self.n and not self.ends[window[-1] % self.capacity]:
            if window[-1] + self.num_envs not in self.stored:
                break
            window.append(window[-1] + self.num_envs)
        return window

    def value(self, index, name):
        """The value of a leaf of a stored step."""
        return self.records[self.key(name)][index % self.capacity]

    def assert_opened(self, fields):
        """Check that rewards, lengths and flags are those of the windows."""
        for i, index in enumerate(fields["indices"].tolist()):
            steps = self.steps(index)
            rewards = [self.value(step, "reward").tolist() for step in steps]
            assert fields["rewards"][i, : len(steps)].tolist() == rewards
            assert not fields["rewards"][i, len(steps) :].any()
            assert fields["length"][i] == len(steps)
            for flag in ("terminated", "truncated"):
                assert fields[flag][i] == self.value(steps[-1], flag)

    def assert_reduced(self, fields, rewards, lengths, terminated):
        """Check the fields of the first step, the next_obs of the last, the return and the discount."""
        dtype = fields["reward"].dtype.type
        for i, index in enumerate(fields["indices"].tolist()):
            last = index + (lengths[i] - 1) * self.num_envs
            for name in self.names:
                if name in ("reward", "terminated", "truncated"):
                    continue
                step = last if name.startswith("next_obs") else index
                assert fields[name][i].tobytes() == self.value(step, name).tobytes(), name
            total = rewards[i][0].copy()
            for k in range(1, lengths[i]):
                total += self.powers[k] * rewards[i][k]
            assert fields["reward"][i].tobytes() == np.asarray(total, dtype).tobytes()
            assert fields["discount"][i] == (0.0 if terminated[i] else dtype(self.powers[lengths[i]]))


def rings(num_envs, n):
    """Rings of all specs with stored steps."""
    rng = np.random.default_rng(10 * num_envs + n)
    for trial in range(40):
        ring = Ring(rng, SPECS[trial % 4], num_envs, 5, n)
        if ring.stored.size:
            yield rng, ring


every_size = pytest.mark.parametrize(("num_envs", "n"), [(1, 1), (1, 3), (3, 1), (3, 4), (2, 5)])


@both
@every_size
def test_windows_are_opened_and_reduced(kernels, num_envs, n):
    """Windows are opened and reduced in one call or two, with changes of a wrapper in between."""
    for rng, ring in rings(num_envs, n):
        indices = rng.choice(ring.stored, rng.integers(1, 150))
        before = ring.rows.tobytes(), ring.bounds.tobytes()
        plan, block, fields = ring.block(indices)
        arguments = ring.bounds, ring.rows, plan, ring.powers, block
        kernels.windows.transitions(*arguments, names.OPEN)
        ring.assert_opened(fields)
        opened = [fields[name].copy() for name in ("rewards", "length", "terminated")]
        assert ring.slots.tolist() == (indices % ring.capacity).tolist()
        if rng.random() < 0.5:
            fields["rewards"][:] = rng.normal(size=fields["rewards"].shape)
            fields["length"][:] = rng.integers(1, fields["length"] + 1)
            fields["terminated"][:] = rng.random(indices.size) < 0.5
            opened = [fields[name].copy() for name in ("rewards", "length", "terminated")]
        kernels.windows.transitions(*arguments, names.REDUCE)
        ring.assert_reduced(fields, *opened)
        last = indices + (fields["length"] - 1) * num_envs
        if n > 1:
            assert ring.slots.tolist() == (last % ring.capacity).tolist()

        plan, block, fields = ring.block(indices)
        kernels.windows.transitions(ring.bounds, ring.rows, plan, ring.powers, block, names.BOTH)
        ring.assert_opened(fields)
        ring.assert_reduced(fields, *(fields[name] for name in ("rewards", "length", "terminated")))
        assert (ring.rows.tobytes(), ring.bounds.tobytes()) == before
        touched = {"weights", "probabilities"}
        for name in touched:
            assert set(fields[name].tobytes()) == {0xAB}, "a field of the draw was overwritten"


@both
@every_size
def test_transitions_at_indices_that_are_not_stored_are_refused(kernels, num_envs, n):
    """The position of the first index that is not stored is returned, and no batch is made."""
    for rng, ring in rings(num_envs, n):
        indices = rng.choice(ring.stored, 5)
        plan, block, fields = ring.block(indices)
        fields["indices"][:] = ring.slots[:] = -1
        state = ring.bounds, ring.rows, plan, ring.powers, block
        assert kernels.windows.transitions_at(indices, *state, names.BOTH) == -1
        assert fields["indices"].tolist() == indices.tolist()
        ring.assert_opened(fields)
        ring.assert_reduced(fields, *(fields[name] for name in ("rewards", "length", "terminated")))
        wrong = indices.copy()
        wrong[3] = ring.bounds[1, 0] * num_envs
        plan, block, fields = ring.block(indices)
        fields["obs.a" if "obs.a" in fields else "obs"][:] = 77
        kept = fields["obs.a" if "obs.a" in fields else "obs"].copy()
        assert kernels.windows.transitions_at(wrong, ring.bounds, ring.rows, plan, ring.powers, block, names.BOTH) == 3
        np.testing.assert_array_equal(fields["obs.a" if "obs.a" in fields else "obs"], kept)


@both
def test_uniform_draws_are_the_nth_stored(kernels):
    """Each stored transition is drawn with probability 1/N."""
    rng = np.random.default_rng(0)
    for _ in range(30):
        bounds = random_bounds(rng, 3, 4)
        stored = indices_in(bounds)
        if not stored.size:
            continue
        ranks = (np.arange(stored.size) + 0.5) / stored.size
        (slots, indices), probabilities = np.empty((2, stored.size), np.int64), np.empty(stored.size)
        kernels.windows.uniform_draw(ranks, bounds, 12, slots, indices, probabilities)
        assert sorted(indices.tolist()) == sorted(stored.tolist())
        assert slots.tolist() == (indices % 12).tolist()
        assert (probabilities == 1.0 / stored.size).all()


@both
def test_fields_are_gathered_in_words_of_any_number(kernels):
    """Fields of any number of words are gathered. Memory beside them is unchanged."""
    rng = np.random.default_rng(0)
    for words in (0, 1, 4, 5, 17):
        rows, slots = rng.integers(0, 256, (6, 24), np.uint8), rng.integers(0, 6, 10)
        block = np.zeros(300, np.uint8)
        kernels.windows.gather(rows.reshape(-1), 24, slots, 2, 9, 3, words, block, 40)
        expected = np.zeros(300, np.uint8)
        for i in range(2, 9):
            expected[40 + i * words : 40 + (i + 1) * words] = rows[slots[i], 3 : 3 + words]
        np.testing.assert_array_equal(block, expected)


@both
@every_size
def test_rewrites_replace_some_rows_of_some_fields(kernels, num_envs, n):
    """Rewrites replace rows in obs and next_obs after the reduction. Other rows and fields are unchanged."""
    for rng, ring in rings(num_envs, n):
        both_obs = ["obs", "next_obs"] if "obs" in ring.names else ["obs.a", "next_obs.a"]
        for pair in (both_obs, ["z"] if "z" in ring.names else ["action"]):
            indices = rng.choice(ring.stored, 20)
            plan, block, fields = ring.block(indices)
            rows = rng.permutation(20)[: rng.integers(0, 8)]
            columns, leaf = np.array([ring.names.index(name) for name in pair]), ring.leaves[ring.names.index(pair[0])]
            values = rng.integers(0, 100, (rows.size, *leaf.shape)).astype(leaf.dtype)
            given = columns, rows, values.reshape(-1).view(np.uint8)
            plain, bare, expected = ring.block(indices)
            kernels.windows.transitions(ring.bounds, ring.rows, plain, ring.powers, bare, names.BOTH)
            if rng.random() < 0.5:
                state = ring.bounds, ring.rows, plan, ring.powers, block
                assert kernels.windows.reduce_rewritten(*state, names.BOTH, *given) == -1
            else:
                kernels.windows.transitions(ring.bounds, ring.rows, plan, ring.powers, block, names.BOTH)
                assert kernels.windows.rewrite(plan, block, *given) == -1
            for name in pair:
                expected[name][rows] = values
            for name, values_of_field in expected.items():
                np.testing.assert_array_equal(fields[name].view(np.uint8), values_of_field.view(np.uint8), name)


@both
def test_rows_that_a_block_lacks_are_not_written(kernels):
    """The place of the first such row is returned, and the block is as before."""
    for rng, ring in rings(1, 2):
        plan, block, _ = ring.block(rng.choice(ring.stored, 5))
        before, columns = block.copy(), np.array([ring.names.index("action")])
        values = np.ones(3 * int(plan[names.SIZE, columns[0]]), np.uint8)
        for rows, place in (([0, 4, -1], 2), ([0, 5, -1], 1), ([2**40, 0, 0], 0)):
            assert kernels.windows.first_outside(np.array(rows), 0, 4) == place
            assert kernels.windows.rewrite(plan, block, columns, np.array(rows), values) == place
            np.testing.assert_array_equal(block, before)
        assert kernels.windows.first_outside(np.array([0, 4, 2]), 0, 4) == -1
