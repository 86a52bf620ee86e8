"""What `save` writes, what `load` accepts and refuses, and what it leaves unchanged."""

import builtins
import copy
import warnings

import gymnasium
import numpy as np
import pytest

import replaykit
from replaykit import (
    Buffer,
    CombinedReplay,
    Field,
    HindsightReplay,
    LatestBuffer,
    LinearSchedule,
    PrioritizedBuffer,
    ReplayBuffer,
    ReplayWrapper,
    Spec,
    record,
)
from replaykit.chunks import Slots
from replaykit.storage import LocalStorage
from tests.checkpoints import Learner, content_of
from tests.helpers import FLAT, GOAL_SPEC, filled, goal_episodes, reached, sparse, unchanged
from tests.laws.third_party import Recency


def saved(buffer, path, count=12):
    Learner(0).act(buffer, count)
    buffer.save(path)
    return buffer


# -- Other replays -------------------------------------------------------------------------------------------------

OTHERS = {
    "spec was": lambda: ReplayBuffer(9, Spec(obs=Field((3,)), action=Field((2,)))),
    "num_envs was 1, but is 3 here": lambda: ReplayBuffer(9, FLAT, num_envs=3),
    "n_step was 1, but is 2 here": lambda: ReplayBuffer(9, FLAT, n_step=2),
    "gamma was 0.99, but is 0.9 here": lambda: ReplayBuffer(9, FLAT, gamma=0.9),
    "share was 'large', but is 'all' here": lambda: ReplayBuffer(9, FLAT, share="all"),
    "replace was True, but is False here": lambda: ReplayBuffer(9, FLAT, replace=False),
    "it was saved from a ReplayBuffer, and this is a LatestBuffer": lambda: LatestBuffer(9, FLAT),
    "it was saved from a ReplayBuffer, and this is a CombinedReplay": lambda: CombinedReplay(ReplayBuffer(9, FLAT)),
}


@pytest.mark.parametrize("difference", OTHERS)
def test_what_was_built_differently_is_refused_by_name(tmp_path, difference):
    """A checkpoint of a replay that was built differently raises an error with the remedy."""
    saved(ReplayBuffer(9, FLAT, seed=1), tmp_path)
    other = OTHERS[difference]()
    with unchanged(
        other, ValueError, f"{tmp_path}: .*{difference}.*; build it with the saved settings, or pass exact=False"
    ):
        other.load(tmp_path)


def test_other_wrappers_and_their_arguments_are_refused(tmp_path):
    """Each layer is compared. Functions are not compared."""

    def build(strategy="future", latest=1, function=sparse):
        return CombinedReplay(HindsightReplay(ReplayBuffer(30, GOAL_SPEC), function, strategy=strategy), latest)

    replay = build()
    goal_episodes(replay, [5, 5])
    replay.save(tmp_path)
    for options, difference in [({"strategy": "final"}, "strategy was 'future'"), ({"latest": 2}, "latest was 1")]:
        with unchanged(build(**options), ValueError, difference):
            build(**options).load(tmp_path)
    other = build(function=lambda achieved, desired, info: sparse(achieved, desired, info))
    other.load(tmp_path)
    assert content_of(other) == content_of(replay)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: ReplayBuffer(9, FLAT, n_step=3, gamma=0.5, **o),
        lambda **o: PrioritizedBuffer(9, FLAT, alpha=0.3, **o),
        lambda **o: LatestBuffer(9, FLAT, **o),
        lambda **o: CombinedReplay(PrioritizedBuffer(5, FLAT, **o)),
        lambda **o: ReplayBuffer(4, FLAT, **o),
    ],
)
def test_what_fits_is_taken_if_that_is_asked_for(tmp_path, make):
    """With `exact=False`, everything that fits is loaded. Other priorities start anew."""
    source = saved(PrioritizedBuffer(9, FLAT, num_envs=2, n_step=2, seed=3), tmp_path, 40)
    other = make(num_envs=2)
    Learner(1).act(other, 10)
    other.load(tmp_path, exact=False)
    other.check()
    kept = other.stored()
    assert kept.size == min(other.capacity, len(source))
    assert (other.read(kept, "obs") == source.read(kept, "obs")).all()
    assert other.stats()["batches"] == source.stats()["batches"]
    if hasattr(other, "beta") and not isinstance(other, CombinedReplay):
        np.testing.assert_allclose(other.probability(kept), 1 / kept.size)
    Learner(2).act(other, 10)
    other.check()


def test_priorities_are_taken_by_another_buffer_with_the_same_alpha(tmp_path):
    """Priorities are loaded if alpha is the same, even if other arguments differ."""
    source = saved(PrioritizedBuffer(9, FLAT, seed=3), tmp_path, 40)
    other = PrioritizedBuffer(9, FLAT, n_step=3, weights="buffer", eps=0.5)
    other.load(tmp_path, exact=False)
    assert (other.probability(other.stored()) == source.probability(source.stored())).all()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    "other",
    [
        lambda: ReplayBuffer(9, FLAT, num_envs=2),
        lambda: ReplayBuffer(9, Spec(obs=Field((3,)), action=Field(()))),
        lambda: ReplayBuffer(9, Spec(obs=Field((3,)), action=Field((), np.int64), more=Field(()))),
    ],
)
def test_another_spec_or_number_of_lanes_is_always_refused(tmp_path, other, exact):
    """A checkpoint with another spec or number of lanes raises an error, and nothing changes."""
    saved(ReplayBuffer(9, FLAT), tmp_path)
    buffer = other()
    with unchanged(buffer, ValueError, str(tmp_path)):
        buffer.load(tmp_path, exact=exact)


# -- Functions and schedules ---------------------------------------------------------------------------------------


def half(batches):
    return 0.5


def test_functions_are_left_alone_by_load(tmp_path):
    """A schedule of replaykit is saved like a number. Other functions are not saved, and `load` keeps them."""
    spec, path = FLAT, tmp_path
    for beta, expected in [(half, half), (0.7, 0.7), (LinearSchedule(0.1, 0.9, 7), LinearSchedule(0.1, 0.9, 7))]:
        saved(PrioritizedBuffer(9, spec, beta=beta), path)
        other = PrioritizedBuffer(9, spec, beta=half if beta is half else 0.2)
        other.load(path)
        assert other.distribution._beta == expected
        if beta is half:
            with pytest.raises(
                ValueError, match=r"PrioritizedBuffer, with the function distribution.beta; build it, and"
            ):
                replaykit.load(path)
        else:
            assert replaykit.load(path).distribution._beta == expected


def test_the_innermost_buffer_is_built_as_it_was(tmp_path):
    """`replaykit.load` builds each kind of buffer with all its arguments, without wrappers."""
    for buffer in [
        ReplayBuffer(9, GOAL_SPEC, num_envs=2, n_step=3, gamma=0.5, seed=1),
        PrioritizedBuffer(9, GOAL_SPEC, alpha=0.3, eps=0.5, draws="iid", weights="none", beta=0.9),
        PrioritizedBuffer(9, GOAL_SPEC, variant="rank", draws="iid", weights="buffer"),
        LatestBuffer(9, GOAL_SPEC),
    ]:
        goal_episodes(buffer, [4, 3])
        replay = CombinedReplay(HindsightReplay(buffer, sparse, terminated_fn=reached))
        replay.save(tmp_path)
        other = replaykit.load(tmp_path)
        assert type(other) is type(buffer)
        assert {k: v for k, v in other.built_with().items() if k != "seed"} == {
            k: v for k, v in buffer.built_with().items() if k != "seed"
        }
        assert content_of(other) == content_of(buffer)


def test_classes_of_the_user_must_be_built(tmp_path):
    """A buffer with a user's storage or distribution must be built by the user before loading."""
    storage = LocalStorage(9, FLAT)
    saved(Buffer(storage, Recency(storage)), tmp_path)
    with pytest.raises(ValueError, match="was saved from a Buffer, which this function does not build; build it, and"):
        replaykit.load(tmp_path)
    storage = LocalStorage(9, FLAT)
    buffer = Buffer(storage, Recency(storage))
    buffer.load(tmp_path)
    assert len(buffer)


class Odd(ReplayWrapper):
    """A part with any state."""

    def __init__(self, inner, value=None):
        super().__init__(inner)
        self.value = value

    def state(self):
        return {"value": self.value}

    def restore(self, state):
        self.value = state["value"]


VALUES = [
    *[None, True, -3, 1 << 100, 0.1, -0.0, float("inf"), float("nan"), "é\n\0", [], (), {}],
    *[[1, (2.5, "x")], {1: {"a": [None]}, (1, 2): 3}, {"a": {"b": np.ones(2)}, "a.b": np.zeros(3)}],
    *[np.float32(0.1), np.array(3.5), np.array(["ab", "c"]), np.array([1], ">i4"), np.array([1 + 2j])],
    *[
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros((0, 3)),
        np.zeros((3, 0), bool),
    ],
    *[np.zeros((3, 0), bool), np.array(["2020-01-01"], "M8[D]"), Field((2,), np.int8), LinearSchedule(0.0, 1.0, 3)],
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("way", ["path", "state_dict"])
def test_states_of_ones_own_are_saved(tmp_path, value, way):
    """A part's state can have numbers, strings and arrays, in lists, tuples and dicts."""
    replay, other = Odd(filled(ReplayBuffer(9, FLAT), 3), value), Odd(ReplayBuffer(9, FLAT))
    other._arguments = replay._arguments
    for _ in range(2):
        if way == "path":
            replay.save(tmp_path)
            other.load(tmp_path)
        else:
            pytest.importorskip("torch")
            other.load_state_dict(replay.state_dict())
        assert_equal(other.value, value.item() if isinstance(value, np.generic) else value)


def assert_equal(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        for key in expected:
            assert_equal(got[key], expected[key])
    elif isinstance(expected, list | tuple):
        for mine, theirs in zip(got, expected, strict=True):
            assert_equal(mine, theirs)
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(got, expected, strict=True)
    else:
        assert repr(got) == repr(expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "object"),
        ({1}, "set"),
        (b"x", "bytes"),
        (np.array([None]), "ndarray of object"),
        (np.zeros(2, "i4,f8"), "ndarray of"),
        (1j, "complex"),
    ],
)
def test_states_that_cannot_be_saved_are_refused(tmp_path, value, kind):
    """A state that cannot be saved raises an error that names the entry. The previous checkpoint is kept."""
    replay = Odd(filled(ReplayBuffer(9, FLAT), 3), 1)
    replay.save(tmp_path)
    files = sorted(tmp_path.iterdir())
    replay.value = [value]
    with pytest.raises(TypeError, match=f"Odd.value.0 is a {kind}.*; expected numbers, strings, arrays"):
        replay.save(tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    other = Odd(ReplayBuffer(9, FLAT), 1)
    other.load(tmp_path)
    assert other.value == 1


# -- Saving and loading during other calls -------------------------------------------------------------------------


def calls_of(replay, path, state):
    return [
        lambda: replay.save(path),
        lambda: replay.load(path),
        replay.state_dict,
        lambda: replay.load_state_dict(state),
    ]


def test_a_reward_function_cannot_save_or_load(tmp_path):
    """A reward function cannot save or load, because its batch is unfinished. The error comes before any waiting."""
    pytest.importorskip("torch")
    errors = []

    def reward_fn(achieved_goal, desired_goal, info):
        for call in calls:
            with pytest.raises(RuntimeError, match="a batch is being made") as error:
                call()
            errors.append(error)
        return sparse(achieved_goal, desired_goal, info)

    replay = HindsightReplay(ReplayBuffer(30, GOAL_SPEC, seed=0), reward_fn, ratio=1.0)
    goal_episodes(replay, [7, 7])
    replay.save(tmp_path)
    calls = calls_of(replay, tmp_path, replay.state_dict())
    from replaykit.saving.directory import Directory

    with Directory(tmp_path).saving():
        replay.sample(4)
    assert len(errors) == 4


def test_an_interrupt_in_a_batch_does_not_keep_a_replay_from_being_saved(tmp_path):
    """After an interrupt while a batch is made, the replay can still be saved."""
    pytest.importorskip("torch")
    buffer = filled(ReplayBuffer(9, FLAT), 4)
    buffer.save(tmp_path)
    for call in calls_of(buffer, tmp_path, buffer.state_dict()):
        buffer.lock.sampling = True
        call()
        assert not buffer.lock.sampling


def test_lanes_with_writers_cannot_be_loaded(tmp_path):
    """Loading works after the writers are closed."""
    buffer = filled(ReplayBuffer(9, FLAT, num_envs=1), 4)
    buffer.save(tmp_path)
    writer = buffer.writer(0)
    with pytest.raises(RuntimeError, match=r"lanes have writers.*close them before load"):
        buffer.load(tmp_path)
    buffer.save(tmp_path)
    writer.close()
    buffer.load(tmp_path)


def test_a_recorder_of_before_is_refused_after_load(tmp_path):
    """After a load, an existing recorder raises an error, because its environment is in another episode."""
    env = gymnasium.make("CartPole-v1")
    buffer = ReplayBuffer.from_env(env, 50)
    recorder = record(env, buffer)
    recorder.reset(seed=0)
    recorder.step(0)
    buffer.save(tmp_path)
    recorder.step(0)
    buffer.load(tmp_path)
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        recorder.step(0)
    assert len(buffer) == 1
    recorder.reset(seed=0)
    recorder.step(1)
    assert buffer.episode([0, 1])[0].tolist() == [0, 1]


# -- Invalid states ------------------------------------------------------------------------------------------------

LANES = Spec(obs=Field((4, 5), np.uint8), action=Field((2,), np.bool_), big=Field((400,)), on=Field((1200,), np.bool_))


def in_lanes():
    """A buffer of two lanes of different lengths. The first is in the middle of an episode."""
    buffer = PrioritizedBuffer(8, LANES, num_envs=2, share="all", seed=0)
    Learner(4).act(buffer, 40)
    fields = Learner(5).fields(LANES, 5, 2)
    fields |= {
        "terminated": np.zeros((5, 2), bool),
        "truncated": np.array([[0, 1], [0, 0], [0, 1], [0, 0], [0, 1]], bool),
    }
    buffer.extend(**fields)
    return buffer


def put(name, place, value):
    """A function that changes one number of an array."""

    def change(state):
        state[name] = np.array(state[name])
        state[name][place] = value

    return change


def put_rows(name, change):
    """A function that changes the rows of all chunks."""

    def change_rows(state):
        state[name] = copy.copy(state[name])
        state[name]._rows = [None if rows is None else change(rows) for rows in state[name]._rows]

    return change_rows


def put_byte(place, value, row=slice(None)):
    """A function that changes a byte of rows."""

    def change(rows):
        rows = rows.copy()
        rows[row, place] = value
        return rows

    return put_rows("rows", change)


def put_other_slots(name, **changes):
    def change(state):
        state[name] = copy.copy(state[name])
        slots = state[name].slots
        state[name].slots = Slots(changes.get("bounds", slots.bounds), changes.get("capacity", slots.capacity))

    return change


STORAGE = LocalStorage(8, LANES, 2, share="all")
FIRST, CURSOR, OVER, EPISODE = range(4)
ROW, PLACE = STORAGE.row, STORAGE.positions
IMPOSSIBLE = [
    ("capacity is 8.0", lambda state: state.update(capacity=8.0)),
    ("capacity is 0", lambda state: state.update(capacity=0)),
    ("capacity is 4611686018427387904", lambda state: state.update(capacity=1 << 62)),
    ("capacity 9 is not a multiple of 2", lambda state: state.update(capacity=9)),
    ("lanes is not an array", lambda state: state.update(lanes=state["lanes"][:3])),
    ("lanes is not an array", lambda state: state.update(lanes=state["lanes"].astype(float))),
    ("oldest is not an array", lambda state: state.update(oldest=state["oldest"][:1])),
    ("starts is not an array", lambda state: state.update(starts=3)),
    ("oldest step is newer than its next", put("lanes", (FIRST, 0), -1)),
    ("oldest step is newer than its next", put("lanes", (CURSOR, 0), 0)),
    ("too many steps", lambda state: [put("lanes", (slice(0, 2), 0), 1 << 61)(state)]),
    ("holds more than fits", put("lanes", (FIRST, 0), 0)),
    ("oldest is outside the lane", put("oldest", 0, 0)),
    ("oldest is outside the lane", put("oldest", 0, 1 << 40)),
    ("a flag of a lane is neither 0 nor 1", put("lanes", (OVER, 0), 2)),
    ("an episode has an impossible number", put("lanes", (EPISODE, 0), 1)),
    ("an episode has an impossible number", put("lanes", (EPISODE, 1), -3)),
    ("an episode has an impossible number", put("lanes", (EPISODE, 0), 1 << 62)),
    ("a running episode has no number", put("lanes", (EPISODE, 0), -2)),
    ("an episode starts too late", put("starts", 0, 1 << 40)),
    ("an episode starts too late", put("starts", 0, -2)),
    ("an episode starts in another lane", put("starts", 0, 1)),
    ("split is -2", lambda state: state.update(split=-2)),
    ("split is 4611686018427387904", lambda state: state.update(split=1 << 62)),
    ("split is 1.0", lambda state: state.update(split=1.0)),
    ("rows is of other steps", put_other_slots("rows", capacity=16)),
    ("stamps is of other steps", put_other_slots("stamps", bounds=np.zeros((2, 2), np.int64))),
    ("frames.obs.frames is of other steps", put_other_slots("frames.obs.frames", bounds=np.zeros((2, 2), np.int64))),
    ("rows is not an array", put_rows("rows", lambda rows: rows[:-1])),
    ("rows is not an array", put_rows("rows", lambda rows: rows[:, :-1])),
    ("stamps is not an array", put_rows("stamps", lambda rows: rows.astype(float))),
    ("large.big is not an array|big is not an array", put_rows("large.big", lambda rows: rows[:, 1:])),
    ("on has other bytes than 0 and 1", put_rows("large.on", lambda rows: (rows.view(np.uint8) + 2).view(np.bool_))),
    ("a flag has other bytes than 0 and 1", put_byte(ROW.end, 2)),
    ("a flag has other bytes than 0 and 1", put_byte(ROW.place[PLACE["action"]] + 1, 3)),
    ("an episode goes on after its last step", put_byte([ROW.place[PLACE["terminated"]], ROW.end], [1, 0])),
    ("an episode goes on after its last step", put_byte([ROW.place[PLACE["truncated"]], ROW.end], [1, 0])),
    ("a reward is not finite", put_byte(slice(ROW.place[PLACE["reward"]], ROW.place[PLACE["reward"]] + 4), 255)),
    ("a lane goes on after its last step", put("lanes", (OVER, 1), 0)),
    ("there are more episodes than their numbers say", put("lanes", (EPISODE, 1), 1)),
    ("a chunk has shape", put_rows("frames.obs.frames", lambda rows: rows[:-1])),
    ("a chunk has shape", put_rows("frames.obs.frames", lambda rows: rows[:3])),
    ("a chunk has shape", put_rows("frames.obs.frames", lambda rows: rows.astype(np.int8))),
    (
        "other frames than the chunk",
        put_rows("frames.obs.frames", lambda rows: np.append(rows, np.zeros(20, np.uint8))),
    ),
]


@pytest.mark.parametrize(("problem", "change"), IMPOSSIBLE, ids=[f"{k}" for k in range(len(IMPOSSIBLE))])
def test_an_impossible_state_of_a_storage_is_refused(problem, change):
    """The error names the problem, and nothing changes."""
    buffer = in_lanes()
    state = buffer.storage.copied_state()
    buffer.storage.check_state(state)
    change(state)
    with unchanged(buffer, ValueError, problem):
        buffer.storage.check_state(state)


@pytest.mark.parametrize(
    ("problem", "change"),
    [
        ("capacity is 1.0", lambda state: state.update(capacity=1.0)),
        ("capacity is 0", lambda state: state.update(capacity=0)),
        ("capacity 9 is not a multiple", lambda state: state.update(capacity=9)),
        ("settled is not an array", lambda state: state.update(settled=np.zeros(4, np.int64))),
        ("settled is impossible", put("settled", (0, 0), -1)),
        ("settled is impossible", put("settled", (1, 0), 0)),
        ("settled is impossible", put("settled", (0, 0), 0)),
        ("settled is impossible", put("settled", slice(None), 1 << 61)),
        ("scaled is not an array", lambda state: state.update(scaled=state["scaled"][1:])),
        ("a priority is negative", put("scaled", 0, -1.0)),
        ("a priority is negative", put("scaled", 0, np.nan)),
        ("a priority is negative", put("scaled", 0, np.inf)),
        ("beta is 2", lambda state: state.update(beta=2)),
        ("beta is 'x'", lambda state: state.update(beta="x")),
    ],
)
def test_impossible_priorities_are_refused(problem, change):
    """Invalid priorities in a checkpoint raise an error that names the problem."""
    buffer = in_lanes()
    state = buffer.distribution.copied_state()
    buffer.distribution.check_state(state)
    change(state)
    with unchanged(buffer, (ValueError, TypeError), problem):
        buffer.distribution.check_state(state)


@pytest.mark.parametrize("name", ["batches", "stale_updates"])
@pytest.mark.parametrize("value", [-1, 1.0, True, 1 << 63, None])
def test_impossible_counters_are_refused(name, value):
    """Counters in a checkpoint must be ints of at least 0."""
    buffer = in_lanes()
    with unchanged(buffer, ValueError, f"{name} is {value}; expected an int of at least 0"):
        buffer.check_state(buffer.state() | {name: value})


# -- Dicts of tensors ----------------------------------------------------------------------------------------------


def test_a_state_dict_is_shared_with_nothing(tmp_path):
    """A state_dict shares no memory with the replay that made it or that loaded it."""
    torch = pytest.importorskip("torch")
    buffer = filled(PrioritizedBuffer(9, FLAT, seed=0), 6)
    state, other = buffer.state_dict(), PrioritizedBuffer(9, FLAT)
    assert all(type(value) in (str, torch.Tensor) for value in state.values())
    Learner(0).act(buffer, 10)
    other.load_state_dict(state)
    before = content_of(other)
    for value in state.values():
        if not isinstance(value, str):
            value.zero_()
    assert content_of(other) == before
    assert len(other) == 6


def test_other_state_dicts_are_refused():
    """A state_dict of a network, without a manifest, or with missing or additional tensors raises an error."""
    torch = pytest.importorskip("torch")
    buffer = filled(ReplayBuffer(9, FLAT), 4)
    state = buffer.state_dict()
    rows = next(name for name in state if ".rows." in name)
    for wrong, error, message in [
        ([1], TypeError, "state_dict is a list"),
        ({"weight": torch.ones(2)}, ValueError, "state_dict has no manifest"),
        (state | {"manifest": state["manifest"][:-1]}, ValueError, "the manifest of state_dict is damaged"),
        (state | {"manifest": 3}, ValueError, "the manifest of state_dict is damaged"),
        ({name: value for name, value in state.items() if name != rows}, ValueError, "state_dict has no 'storage.rows"),
        (state | {rows: state[rows][:-1]}, ValueError, "state_dict is damaged"),
        (state | {rows: torch.zeros(3, dtype=torch.bool)}, ValueError, "state_dict is damaged"),
        (state | {rows: "x"}, ValueError, "state_dict is damaged"),
        (state | {rows: None}, ValueError, "state_dict is damaged"),
    ]:
        with unchanged(buffer, error, message):
            buffer.load_state_dict(wrong)


# -- Bars ----------------------------------------------------------------------------------------------------------


def test_a_bar_is_shown_if_it_can_be(tmp_path, monkeypatch, capsys):
    """The progress bar counts chunks. Without tqdm, there is a warning."""
    buffer = filled(ReplayBuffer(9, FLAT), 4)
    pytest.importorskip("tqdm")
    buffer.save(tmp_path, progress=True)
    buffer.load(tmp_path, progress=True)
    replaykit.load(tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "save" in shown and "load" in shown and "chunk" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        buffer.save(tmp_path)
    assert not capsys.readouterr().err
    original = builtins.__import__
    monkeypatch.setattr(
        builtins, "__import__", lambda name, *a, **o: original("no " + name if name == "tqdm" else name, *a, **o)
    )
    with pytest.warns(RuntimeWarning, match="progress=True needs tqdm"):
        buffer.save(tmp_path, progress=True)
