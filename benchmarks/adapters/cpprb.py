"""cpprb: a C++ core, float32 fields by default, batches as dicts of arrays."""

from operator import itemgetter
from typing import Any

import cpprb
import numpy as np

from benchmarks.adapters.base import (
    ALPHA,
    BETA,
    GAMMA,
    HINDSIGHT_RATIO,
    N_STEP,
    Buffer,
    Call,
    Library,
    settle_priorities,
)
from benchmarks.data import SCREEN, STACK, FrameTask, Steps, Task


class CpprbBuffer(Buffer):
    """A uniform or prioritized buffer of cpprb. The field ``done`` stores terminated, as in cpprb's examples."""

    indices_of = itemgetter("indexes")

    def __init__(self, replay: Any, **options: Any) -> None:
        self.replay = replay
        self.options = options
        self.update = getattr(replay, "update_priorities", None)  # type: ignore[assignment]

    def adding(self, step: Steps) -> Call:
        add, (obs, action, reward, next_obs, terminated, _) = self.replay.add, step
        return lambda: add(obs=obs, act=action, rew=reward, next_obs=next_obs, done=terminated)

    def extending(self, steps: Steps) -> Call:
        return self.adding(steps)

    def sampling(self, batch_size: int) -> Call:
        sample, options = self.replay.sample, self.options
        return lambda: sample(batch_size, **options)

    def read(self, batch: Any) -> dict[str, Any]:
        names = {name: name for name in ("obs", "next_obs", "weights", "goal")}
        names |= {"act": "action", "rew": "reward", "done": "terminated"}
        return {ours: batch[name] for name, ours in names.items() if name in batch}


class Cpprb(Library):
    name = "cpprb"
    distribution = "cpprb"
    importing = "import cpprb"

    def uniform(self, task: Task) -> CpprbBuffer:
        return CpprbBuffer(_filled(cpprb.ReplayBuffer(task.capacity, _fields(task)), task))

    def prioritized(self, task: Task) -> CpprbBuffer:
        replay = cpprb.PrioritizedReplayBuffer(task.capacity, _fields(task), alpha=ALPHA)
        buffer = CpprbBuffer(_filled(replay, task), beta=BETA)
        settle_priorities(buffer, task.capacity)
        return buffer

    def n_step(self, task: Task) -> CpprbBuffer:
        """Returns are summed when transitions are added."""
        options = {"size": N_STEP, "gamma": GAMMA, "rew": "rew", "next": "next_obs"}
        replay = cpprb.ReplayBuffer(task.capacity, _fields(task), Nstep=options)
        for steps in task.fill():
            for start in range(0, len(steps.reward), task.episode):
                episode = Steps(*(column[start : start + task.episode] for column in steps))
                # cpprb sums the rewards in the given array
                CpprbBuffer(replay).extending(episode._replace(reward=episode.reward.copy()))()
                replay.on_episode_end()
        return CpprbBuffer(replay)

    def hindsight(self, task: Task) -> "CpprbHindsight":
        """Transitions are relabelled when they are added, so each is stored five times."""
        return CpprbHindsight(task)

    def images(self, task: FrameTask, once: bool) -> CpprbBuffer:
        """Stacks stored unchanged, or with ``next_of`` and ``stack_compress`` for both kinds of frames."""
        screen = {"shape": (*SCREEN, STACK) if once else (STACK, *SCREEN), "dtype": np.uint8}
        fields: dict[str, Any] = {"obs": screen, "act": {"dtype": np.int64}, "rew": {}, "done": {}}
        options = {"next_of": "obs", "stack_compress": "obs"} if once else {}
        replay = cpprb.ReplayBuffer(task.capacity, fields if once else fields | {"next_obs": screen}, **options)
        for steps in task.fill():
            if once:  # the stack's axis must be the last
                obs, next_obs = (np.moveaxis(stacks, 1, -1) for stacks in (steps.obs, steps.next_obs))
                steps = steps._replace(obs=obs, next_obs=next_obs)
            CpprbBuffer(replay).extending(steps)()
            replay.on_episode_end()
        return CpprbBuffer(replay)


class CpprbHindsight(CpprbBuffer):
    """A buffer whose states are vectors: the observation followed by the achieved goal."""

    def __init__(self, task: Task) -> None:
        no_reward = np.zeros(task.episode, np.float32)
        fields = _fields(task) | {name: {"shape": task.obs + task.goal} for name in ("obs", "next_obs")}
        del fields["rew"]
        replay = cpprb.HindsightReplayBuffer(
            task.capacity,
            fields,
            max_episode_len=task.episode,
            reward_func=lambda obs, action, goal: no_reward[: len(obs)],
            goal_func=itemgetter((..., slice(task.obs, None))),
            goal_shape=(task.goal,),
            additional_goals=round(HINDSIGHT_RATIO / (1 - HINDSIGHT_RATIO)),
            prioritized=False,
        )
        super().__init__(replay)
        self.episode = task.episode
        self.goal = np.full(task.goal, -1.0, np.float32)
        for steps in task.fill():
            obs, next_obs = _state(steps.obs), _state(steps.next_obs)
            for start in range(0, len(obs), task.episode):
                part = slice(start, start + task.episode)
                replay.add(obs=obs[part], act=steps.action[part], next_obs=next_obs[part], done=steps.terminated[part])
                replay.on_episode_end(self.goal)
                if replay.get_stored_size() == task.capacity:
                    return

    def adding(self, step: Steps) -> Call:
        """A call that stores one step. Once per episode, it includes the relabelling."""
        replay, goal, count, episode = self.replay, self.goal, 0, self.episode
        obs, next_obs = _state(step.obs), _state(step.next_obs)
        replay.on_episode_end(goal)

        def add() -> None:
            nonlocal count
            replay.add(obs=obs, act=step.action, next_obs=next_obs, done=step.terminated)
            count += 1
            if count % episode == 0:
                replay.on_episode_end(goal)

        return add


def _state(obs: dict[str, Any]) -> Any:
    return np.concatenate((obs["observation"], obs["achieved_goal"]), axis=-1)


def _fields(task: Task) -> dict[str, Any]:
    action = {"shape": task.action} if task.action else {"dtype": np.int64}
    return {"obs": {"shape": task.obs}, "act": action, "rew": {}, "next_obs": {"shape": task.obs}, "done": {}}


def _filled(replay: Any, task: Task) -> Any:
    for steps in task.fill():
        if task.lanes > 1:
            steps = Steps(*(column.reshape(-1, *column.shape[2:]) for column in steps))
        CpprbBuffer(replay).extending(steps)()
    return replay


LIBRARY = Cpprb()
