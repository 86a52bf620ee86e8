"""A buffer has one recorder at a time. It can be paused, and it handles errors of the environment."""

import copy
import pickle
import threading

import numpy as np
import pytest

from replaykit import CombinedReplay, HindsightReplay, ReplayBuffer, record
from tests.helpers import stored_indices, unchanged
from tests.walks import (
    BOX,
    MODES,
    SameStep,
    Walk,
    assert_true,
    fresh,
    no_op,
    numbers,
    play,
    walks,
)

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402
from gymnasium.error import ResetNeeded  # noqa: E402
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper  # noqa: E402

# -- One recorder for each buffer --------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap_first", [lambda b: b, CombinedReplay])
@pytest.mark.parametrize("wrap_second", [lambda b: b, CombinedReplay])
@pytest.mark.parametrize("count", [None, 1, 2])
def test_a_new_recorder_takes_the_buffer_over(count, wrap_first, wrap_second):
    """The running episodes end. The previous recorder raises an error before it steps its environment."""
    first, second = [Walk(0), Walk(5)] if count is None else [walks(count), walks(count)]
    base = first if count is None else first.envs[0]
    buffer = ReplayBuffer.from_env(first, 100, n_step=3, gamma=1.0)
    former = record(first, wrap_first(buffer))
    play(former, 2)
    newer = record(second, wrap_second(buffer))
    calls, before = base.calls, len(buffer)
    for call in (lambda: former.step(no_op(former)), former.reset, former.paused().__enter__):
        with pytest.raises(RuntimeError, match="another recorder has taken over the buffer.*record\\(\\)"):
            call()
    assert (base.calls, len(buffer)) == (calls, before)
    play(newer, 2)
    number, *_ = buffer.episode(stored_indices(buffer)[:4])
    assert number[0] == number[1] != number[2] == number[3]
    assert buffer.window(stored_indices(buffer)[1:2]).length.tolist() == [1]
    again = record(first, buffer)
    play(again, 2)
    with pytest.raises(RuntimeError, match="another recorder"):
        newer.step(no_op(newer))


@pytest.mark.parametrize("end", ["record", "paused"])
def test_running_episodes_end_at_once(end):
    """When a buffer is taken over or paused, running episodes end, so steps added by hand begin new ones."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    recorder = record(env, buffer)
    play(recorder, 2)
    if end == "record":
        record(Walk(1), buffer)
    else:
        with recorder.paused():
            pass
    buffer.add(fresh(7.0), 0, 0.0, fresh(8.0), False, False)
    assert buffer.episode([1, 2])[0].tolist() == [0, 1]


def test_a_new_recorder_must_be_reset_first():
    """A new recorder must be reset first, even if its environment is in the middle of an episode."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    play(record(env, buffer), 1)
    with pytest.raises(ResetNeeded):
        record(env, buffer).step(0)


def test_a_refused_record_takes_nothing_over():
    """If `record` raises an error, the existing recorder continues."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    play(env, 2)
    for wrong in (gymnasium.make("CartPole-v1"), walks(2), "CartPole-v1"):
        with pytest.raises((TypeError, ValueError), match="env"):
            record(wrong, buffer)
    env.step(0)
    assert buffer.episode([0, 2])[0].tolist() == [0, 0]


def test_a_buffer_is_recorded_once_by_an_environment():
    """An environment records once to a buffer, also through wrappers. Two buffers both get every step."""
    env, spec = Walk(), {"achieved_goal": BOX, "desired_goal": BOX}
    one, other = ReplayBuffer.from_env(env, 100), ReplayBuffer.from_env(env, 100)
    inner = record(env, one)
    for outer in (inner, gymnasium.wrappers.TimeLimit(inner, 4)):
        for replay in (one, CombinedReplay(one), CombinedReplay(CombinedReplay(one))):
            with pytest.raises(ValueError, match="env is already recorded into this buffer"):
                record(outer, replay)
    both = record(gymnasium.wrappers.TimeLimit(inner, 4), other)
    play(both, 9)
    assert numbers(one) == numbers(other) != []
    with pytest.raises(ValueError, match="already recorded"):
        record(both, one)
    vector = walks(2)
    buffer = ReplayBuffer.from_env(vector, 100)
    with pytest.raises(ValueError, match="already recorded"):
        record(VectorWrapper(record(vector, buffer)), buffer)
    goals = gymnasium.wrappers.TransformObservation(
        env, lambda obs: {"achieved_goal": obs, "desired_goal": obs}, spaces.Dict(spec)
    )
    replay = HindsightReplay(ReplayBuffer.from_env(goals, 100), lambda a, d, info: np.zeros(len(a)))
    with pytest.raises(ValueError, match="already recorded"):
        record(record(goals, replay), replay.inner)


def test_copies_have_recorders_of_their_own():
    """A copied buffer has no recorder. A copied recorder records to the buffer that was copied with it."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    env = record(env, buffer)
    play(env, 2)
    for copied in (copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))):
        play(record(Walk(7), copied(buffer)), 3)
        twin = copied(env)
        with pytest.raises(ResetNeeded):
            twin.step(0)
        play(twin, 2)
        assert len(twin.buffer) == len(buffer) + 2
        assert twin.buffer.window(np.array([len(buffer) - 1])).length.tolist() == [1]
        env.step(0)
    assert_true(buffer)


def test_a_recorder_and_its_environment_are_freed():
    """A buffer keeps neither its recorder nor the environment alive."""
    import gc
    import weakref

    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    recorder = record(env, buffer)
    seen = weakref.ref(recorder)
    del recorder
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("call", ["step", "reset"])
def test_a_call_that_is_under_way_changes_nothing_after_the_takeover(call):
    """A buffer can be taken over while another thread is in `step` or `reset`. That call stores nothing."""
    inside, taken = threading.Event(), threading.Event()

    class Slow(Walk):
        def step(self, action):
            inside.set()
            assert taken.wait(60)
            return super().step(action)

        def reset(self, **options):
            if call == "reset" and self.episode:
                self.step(0)
            return super().reset(**options)

    buffer = ReplayBuffer.from_env(Walk(), 100, n_step=3)
    former, errors = record(Slow(), buffer), []
    former.reset()

    def run():
        try:
            getattr(former, call)(*[0] * (call == "step"))
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(60)
    newer = record(Walk(3), buffer)
    play(newer, 2)
    taken.set()
    thread.join()
    assert len(errors) == 1
    newer.step(0)
    assert numbers(buffer) == [30100.0, 30101.0, 30102.0]
    assert buffer.window(np.array([0])).length.tolist() == [3]


# -- Pauses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, *MODES])
def test_nothing_is_stored_in_a_pause(mode):
    """A pause separates the episodes before and after it. All lanes must be reset afterwards."""
    env = Walk() if mode is None else walks(2, mode)
    buffer = ReplayBuffer.from_env(env, 200, n_step=3)
    env = record(env, buffer)
    play(env, 5, mode)
    before = len(buffer)
    for leave in range(4):
        with env.paused() as same:
            assert same is env
            if leave:
                play(env, 10 + leave, mode)
            if leave == 2:
                env.reset()
        with pytest.raises(ResetNeeded, match="recording was paused.*reset\\(\\)"):
            env.step(no_op(env))
        if mode is not None:
            with pytest.raises(ResetNeeded, match="without a reset_mask"):
                env.reset(options={"reset_mask": np.array([True, False])})
    assert len(buffer) == before
    play(env, 8, mode)
    assert len(buffer) > before
    assert_true(buffer)
    for lane in range(buffer.num_envs):
        own = stored_indices(buffer)[stored_indices(buffer) % buffer.num_envs == lane]
        jumps = np.diff(buffer.read(own, "obs")[:, 0]) != 1
        assert (np.diff(buffer.episode(own)[0]) != 0).tolist() == jumps.tolist()


def test_pauses_can_be_nested_and_interrupted():
    """Only the outermost block ends the pause. An exception inside also ends it."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    with env.paused():  # before the first reset
        with env.paused():
            play(env, 3)
        play(env, 3)
    assert len(buffer) == 0
    with pytest.raises(ResetNeeded):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(ZeroDivisionError), env.paused():
        play(env, 3 // (len(buffer) - 1))
    with pytest.raises(ResetNeeded):
        env.step(0)
    play(env, 2)
    assert len(buffer) == 3
    assert_true(buffer)


def test_a_pause_through_other_wrappers():
    """`pause` can be called through other wrappers of the environment."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100)
    env = gymnasium.wrappers.TimeLimit(record(env, buffer), 50)
    with env.get_wrapper_attr("paused")():
        play(env, 10)
    assert len(buffer) == 0


def test_a_takeover_in_a_pause_ends_the_evaluation():
    """After a takeover in a pause, the old recorder raises an error. The end of the pause changes nothing."""
    first = Walk()
    buffer = ReplayBuffer.from_env(first, 100)
    former = record(first, buffer)
    with former.paused():
        newer = record(Walk(1), buffer)
        newer.reset()
        newer.step(0)
        with pytest.raises(RuntimeError, match="another recorder"):
            former.reset()
    newer.step(0)
    assert buffer.episode([0, 1])[0].tolist() == [0, 0]


# -- Other faults ------------------------------------------------------------------------------------------------


class OldGym(Walk):
    """The interface of OpenAI Gym: `reset` returns the observation, and `step` four values."""

    old_reset = True

    def reset(self, **options):
        obs, info = super().reset(**options)
        return obs if self.old_reset else (obs, info)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, info


def test_the_interface_of_openai_gym_is_refused():
    """The error names Gymnasium's five values, and how to convert the environment."""
    env = OldGym()
    buffer = ReplayBuffer.from_env(env, 100)
    recorder = record(env, buffer)
    with pytest.raises(
        ValueError, match=r"env.reset\(\) returned a ndarray; expected \(obs, info\).*GymV21Environment"
    ):
        recorder.reset()
    with pytest.raises(ResetNeeded):
        recorder.step(0)
    pairs = gymnasium.wrappers.TransformObservation(Walk(), lambda obs: (obs, obs), spaces.Tuple((BOX, BOX)))
    pairs.reset = lambda **options: (fresh(0.0), fresh(0.0))  # not an observation and an info
    with pytest.raises(ValueError, match=r"env.reset\(\) returned a tuple; expected \(obs, info\)"):
        record(pairs, ReplayBuffer.from_env(pairs, 100)).reset()
    env.old_reset = False
    recorder.reset()
    with unchanged(buffer, ValueError, r"returned 4 values; .*\(obs, reward, terminated, truncated, info\).*GymV21"):
        recorder.step(0)
    with pytest.raises(ResetNeeded):
        recorder.step(0)
    with pytest.raises(TypeError, match="env is a object; expected a Gymnasium environment.*GymV21Environment"):
        record(object(), buffer)


@pytest.mark.parametrize("mode", MODES)
def test_after_an_error_all_lanes_must_be_reset(mode):
    """After an error in a step, all lanes must be reset, because any lane may have ended in that step."""

    class Failing(Walk):
        def step(self, action):
            if action == 2:
                raise OSError("no step today")
            return super().step(action)

    env = SyncVectorEnv([lambda: Walk(0), lambda: Failing(1)], autoreset_mode=mode)
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    env = record(env, buffer)
    play(env, 3)
    with unchanged(buffer, OSError, "no step today"):
        env.step(np.array([0, 2]))
    for call in (
        lambda: env.step(np.zeros(2, int)),
        lambda: env.reset(options={"reset_mask": np.array([False, True])}),
    ):
        with pytest.raises(ResetNeeded):
            call()
    play(env, 3, mode)
    assert_true(buffer)


@pytest.mark.parametrize("mode", MODES)
def test_a_reset_of_some_lanes_leaves_the_others_alone(mode):
    """In NEXT_STEP mode, a lane that has ended is reset by hand or by the next step."""
    env = walks(2, mode)
    buffer = ReplayBuffer.from_env(env, 200, n_step=3)
    env = record(env, buffer)
    env.reset()
    for step in range(40):
        *_, terminated, truncated, _ = env.step(np.zeros(2, int))
        done = terminated | truncated
        if done.any() and (mode == AutoresetMode.DISABLED or step % 3 == 0):
            env.reset(options={"reset_mask": done if mode == AutoresetMode.DISABLED else np.array([True, False])})
    assert_true(buffer)
    assert len(buffer) > 60


def test_a_lane_that_has_ended_waits_for_its_reset():
    """In DISABLED mode, steps of a lane that has ended are not stored before its reset."""

    class GoesOn(SameStep):
        metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012

        def step(self, actions):
            self.count = self.count + 1
            over, none = self.count == 2 + np.arange(self.num_envs), np.zeros(self.num_envs, bool)
            return self._rows(), np.ones(self.num_envs), over, none, {}

    env = GoesOn(2, None)
    buffer = ReplayBuffer.from_env(env, 100)
    env = record(env, buffer)
    env.reset()
    for _ in range(6):
        env.step(np.zeros(2, int))
    assert numbers(buffer) == [0.0, 1.0, 10_000.0, 10_001.0, 10_002.0]


def test_a_time_limit_outside_ends_the_episode():
    """A time limit outside the recorder ends the episode: the recorder sees the reset, but not the flag."""
    env = Walk()
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    env = gymnasium.wrappers.TimeLimit(record(env, buffer), 2)
    play(env, 6)
    assert_true(buffer)
    assert buffer.window(np.arange(6)).length.tolist() == [2, 1] * 3


def test_a_recorder_can_be_closed_at_any_time():
    """It may be closed twice. Recorded steps stay, and another recorder continues."""
    env = walks(2)
    buffer = ReplayBuffer.from_env(env, 100, n_step=3)
    recorder = record(env, buffer)
    play(recorder, 2)
    recorder.close()
    recorder.close()
    play(record(walks(2), buffer), 2)
    assert len(buffer) == 8
    assert buffer.window(np.array([2, 3])).length.tolist() == [1, 1]
