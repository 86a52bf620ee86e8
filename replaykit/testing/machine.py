"""The state machine with which Hypothesis calls the same operations on a replay and its model."""

import copy
import pickle
import sys
import tempfile
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replaykit.testing.laws import assert_freed, assert_lawful, bits_of, numbers
from replaykit.testing.model import at_path
from replaykit.testing.strategies import Configuration, build, configurations, values_of
from replaykit.trees import Tree, map_tree

flags: st.SearchStrategy[bool] = st.booleans()
rarely: st.SearchStrategy[bool] = st.sampled_from([True, False, False, False])
moves: st.SearchStrategy[str] = st.sampled_from(["on", "on", "shifted", "shifted", "still", "elsewhere"])


class ReplayMachine(RuleBasedStateMachine):
    """Tests every kind of buffer and stack of wrappers with every operation against the model.

    Subclass it and override `make` to test your own replay with the same operations. The replay is also pickled and
    copied, so its class and its functions must be importable by name. It is also saved, and loaded into the result of
    `make` for the same configuration.

    Examples
    --------
    >>> from replaykit.testing import ReplayMachine
    >>> TestReplay = ReplayMachine.TestCase  # pytest collects it
    """

    replay: Any
    model: Any
    number: int

    @initialize(configuration=configurations())
    def start(self, configuration: Configuration) -> None:
        """Build the replay and the model."""
        self.configuration = configuration
        self.replay, self.model = self.make(configuration)
        self.directory: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory()
        self.saved: Any = None
        self.spec: Any = self.replay.spec
        self.number = 0
        self.issued: list[int] = []
        self.last: dict[int, Tree] = {}

    def make(self, configuration: Configuration) -> tuple[Any, Any]:
        """The replay and its model."""
        return build(configuration)

    # -- Writing ---------------------------------------------------------------------------------------------

    def _fields(self, lane: int, move: str, end: int) -> dict[str, Tree]:
        """A step that begins at the last observation of the lane, or at another observation."""
        self.number += 7
        fields: dict[str, Tree] = {name: values_of(self.spec[name], self.number) for name in self.spec}
        new = values_of(self.spec["obs"], self.number + 3)
        obs = fields["obs"] if move == "elsewhere" else self.last.get(lane, fields["obs"])
        next_obs = {"still": obs, "shifted": map_tree(lambda leaf, path: _shifted(leaf, at_path(new, path)), obs)}
        return fields | {
            "obs": obs,
            "next_obs": next_obs.get(move, new),
            "terminated": np.bool_(end in (1, 3)),
            "truncated": np.bool_(end in (2, 3)),
        }

    @rule(data=st.data(), with_error=rarely)
    def add(self, data: st.DataObject, with_error: bool) -> None:
        """Add one step of every lane, or of some lanes."""
        self._write(data, None, with_error)

    @rule(data=st.data(), steps=st.integers(0, 12), with_error=rarely)
    def extend(self, data: st.DataObject, steps: int, with_error: bool) -> None:
        """Add several steps, up to several times the size of the ring."""
        self._write(data, steps, with_error)

    def _write(self, data: st.DataObject, steps: int | None, with_error: bool) -> None:
        lanes = self.replay.num_envs
        count = 1 if steps is None else steps
        mask = None
        if data.draw(flags, label="masked"):
            mask = np.array(data.draw(st.lists(flags, min_size=count * lanes, max_size=count * lanes)), np.bool_)
            mask = mask.reshape(count, lanes)
        ends = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 3]), min_size=count * lanes, max_size=count * lanes))
        path = data.draw(st.lists(moves, min_size=count * lanes, max_size=count * lanes))
        errors = np.arange(count * lanes).reshape(count, lanes) * 0.3 - 1.0 if with_error else None
        chosen = np.ones((count, lanes), np.bool_) if mask is None else mask
        grid: list[list[dict[str, Tree]]] = [[] for _ in range(count)]
        for t in range(count):
            for e in range(lanes):
                grid[t].append(self._fields(e, path[t * lanes + e], ends[t * lanes + e]))
                if chosen[t, e]:
                    self.last[e] = grid[t][e]["next_obs"]

        expected = np.full((count, lanes), -1)
        for t in range(count):
            initial = self.model.initial()
            for e in range(lanes):
                if chosen[t, e]:
                    scaled = initial if errors is None else self.model.scaled(errors[t, e])
                    expected[t, e] = self.model.add(e, grid[t][e], scaled)

        lead = (() if steps is None else (steps,)) + ((lanes,) if lanes > 1 else ())
        values = {
            name: stack_of([[grid[t][e][name] for e in range(lanes)] for t in range(count)], self.spec[name], lead)
            for name in self.spec
        }
        options = {
            "mask": None if mask is None else mask.reshape(lead or (1,)),
            "td_error": None if errors is None else errors.reshape(lead),
        }
        indices = (self.replay.add if steps is None else self.replay.extend)(**values, **options)
        np.testing.assert_array_equal(numbers(indices), expected.reshape(lead or (1,)))
        self.issued += [int(index) for index in expected[chosen]]

    @rule(data=st.data())
    def end_episode(self, data: st.DataObject) -> None:
        """Reset the environments of some lanes."""
        mask = np.array([data.draw(rarely) for _ in range(self.replay.num_envs)], np.bool_)
        self.replay.end_episode(mask)
        self.model.end_episode([int(lane) for lane in np.flatnonzero(mask)])

    @precondition(lambda self: len(self.issued) > 20)
    @rule()
    def clear(self) -> None:
        """Remove everything."""
        self.replay.clear()
        self.model.clear()

    # -- Learning --------------------------------------------------------------------------------------------

    @precondition(lambda self: self.issued)
    @rule(data=st.data(), direct=flags)
    def update(self, data: st.DataObject, direct: bool) -> None:
        """Set the priorities of any indices that were ever returned: stored, stale or repeated."""
        indices = data.draw(st.lists(st.sampled_from(self.issued[-30:]), max_size=12))
        values = [data.draw(st.sampled_from([0.0, 0.5, -2.0, 1e-3, 30.0])) for _ in indices]
        before = pickle.dumps(self.replay)
        if direct:
            alpha = 1.0 if self.model.kind == "rank" else self.model.alpha
            scaled = [float(abs(value) ** alpha) for value in values]
            applied = self.replay.update_priorities(np.array(indices, np.int64), priorities=np.abs(values))
        else:
            scaled = [self.model.scaled(value) for value in values]
            applied = self.replay.update_priorities(np.array(indices, np.int64), np.array(values))
        expected = self.model.update(indices, scaled)
        has_priorities = self.model.kind in ("prioritized", "rank")
        assert int(applied) == (expected if has_priorities else 0)
        if not has_priorities:
            assert pickle.dumps(self.replay) == before

    @precondition(lambda self: self.model.steps)
    @rule(extra=st.integers(0, 20))
    def sample(self, extra: int) -> None:
        """Sample a batch. It equals the model's batch, and a copy of the replay draws the same batch."""
        batch_size = 1 + extra + sum(self.model.combined)
        if not self.is_comparable(batch_size):
            return
        refusal = self.model.refusal(batch_size)
        if refusal is not None:
            try:
                self.replay.sample(batch_size)
            except ValueError as error:
                assert refusal in str(error)  # noqa: PT017
                return
            raise AssertionError(f"drew a batch; expected an error with the text: {refusal}")
        rng = self.numbers_of(self.replay)
        twin = copy.deepcopy(self.replay)
        after_draw = copy.deepcopy(self.replay)
        after_draw.draw(batch_size)
        batch = assert_lawful(self.replay, batch_size)
        self.model.assert_drawn(batch.indices, batch_size, rng)
        self.model.assert_batch(batch, batch_size, self.numbers_of(after_draw))
        again = pickle.loads(pickle.dumps(twin)).sample(batch_size).to_numpy()
        assert bits_of(again) == bits_of(batch), "a copy drew a different batch"

    def is_comparable(self, batch_size: int) -> bool:
        """Whether the model knows if a batch of this size can be drawn."""
        return True

    def numbers_of(self, replay: Any) -> Any:
        """The model's source of random numbers: a copy of the generator of `replay`."""
        return copy.deepcopy(replay.rng)

    # -- Saving ----------------------------------------------------------------------------------------------

    @rule()
    def save(self) -> None:
        """Write a checkpoint, replacing the previous one."""
        self.replay.save(self.directory.name)
        self.saved = copy.deepcopy((self.model, self.number, self.issued, self.last))

    @precondition(lambda self: self.saved is not None)
    @rule(is_new=flags)
    def load(self, is_new: bool) -> None:
        """Load the checkpoint into a new replay or into the same one."""
        if is_new:
            self.replay, _ = self.make(self.configuration)
        self.replay.load(self.directory.name)
        self.model, self.number, self.issued, self.last = copy.deepcopy(self.saved)

    def teardown(self) -> None:
        """Delete the checkpoint and the replay, all of whose memory is then freed."""
        if hasattr(self, "directory"):
            self.directory.cleanup()
        if hasattr(self, "replay") and sys.exc_info()[0] is None:
            assert_freed(vars(self), "replay")

    # -- Looking ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.steps)
    @rule()
    def look(self) -> None:
        """Compare probabilities, episodes and bounds of all stored transitions, and check every invariant."""
        self.replay.check()
        indices = [step.index for step in self.model.steps]
        batch_size = 1 + sum(self.model.combined)
        shares = self.model.shares(batch_size)
        if not self.replay.is_conditional:
            got = numbers(self.replay.probability(indices, batch_size))
            np.testing.assert_allclose(got, [shares[index] for index in indices], rtol=1e-9)
        episodes, first, last = map(numbers, self.replay.episode(indices))
        assert list(first) == [step.start for step in self.model.steps]
        same = {(step.lane, step.episode): number for step, number in zip(self.model.steps, episodes, strict=True)}
        assert [same[step.lane, step.episode] for step in self.model.steps] == list(episodes)
        assert len(set(same.values())) == len(same)
        for step, end in zip(self.model.steps, last, strict=True):
            run = [other.index for other in self.model.lane(step.lane) if other.episode == step.episode]
            assert end == run[-1]

    @invariant()
    def same_size(self) -> None:
        """Length, bounds and the newest indices equal the model's.

        Unlike `sample` and `look`, this does not make the replay do postponed work.
        """
        model = self.model
        assert len(self.replay) == len(model.steps)
        assert len(self.replay.oldest) == model.num_envs
        for lane in range(model.num_envs):
            steps = [step.index for step in model.lane(lane)] or [-1]
            assert self.replay.oldest[lane] == steps[0]
            assert self.replay.newest[lane] == steps[-1]
        assert list(numbers(self.replay.latest(3))) == model.newest(3)


def _shifted(stack: Any, new: Any) -> Any:
    """The next observation after a stack of shape (k, H, W); `new` for any other shape."""
    return np.concatenate((stack[1:], new[:1])) if np.ndim(stack) == 3 else new


def stack_of(grid: list[list[Tree]], tree: Tree, lead: tuple[int, ...]) -> Tree:
    """The values of a tree of fields for T steps of E lanes, as arrays with the leading axes `lead`."""
    if isinstance(tree, dict):
        return {
            key: stack_of([[value[key] for value in row] for row in grid], entry, lead) for key, entry in tree.items()
        }
    if isinstance(tree, tuple):
        return tuple(
            stack_of([[value[i] for value in row] for row in grid], entry, lead) for i, entry in enumerate(tree)
        )
    return np.array(grid, tree.dtype).reshape(lead + tree.shape)
