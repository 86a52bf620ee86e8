"""Check that the adapters are correct, on small buffers: ``python -m benchmarks.check [library ...]``

Batches have the right shapes, their rows are complete transitions, three-step returns are right, goals are replaced,
stacks equal the stored ones, and a transition with a large priority is drawn often.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.adapters import PEERS, load
from benchmarks.adapters.base import GAMMA, HINDSIGHT_RATIO, N_STEP, Buffer, Library, NotOfferedError
from benchmarks.data import PART_OF_FRAMES, SCREEN, STACK, FrameTask, Task

BATCH = 64
CAPACITY = 2_000


def as_array(value: Any) -> Any:
    """An array or tensor as NumPy, without axes of length 1."""
    return np.squeeze(np.asarray(value))


def check_rows(fields: dict[str, Any], task: Task) -> None:
    """The batch has complete transitions in the right shapes."""
    obs, next_obs = as_array(fields["obs"]), as_array(fields["next_obs"])
    assert obs.shape == next_obs.shape == (BATCH, task.obs), obs.shape
    assert as_array(fields["action"]).shape == ((BATCH, task.action) if task.action else (BATCH,))
    time = obs[:, 0]
    # tianshou gives all lanes the same seed, so they draw the same times
    assert np.unique(time).size > BATCH / (4 if task.lanes == 1 else 16), "too few different transitions are drawn"
    assert (next_obs[:, 0] == time + 1).all(), "next_obs does not follow obs"
    assert (as_array(fields["reward"]) == time).all(), "the reward belongs to another step"
    assert (as_array(fields["terminated"]).astype(bool) == (time == task.episode - 1)).all(), "wrong ends"


def check_uniform(library: Library) -> None:
    """Uniform samples, before and after adding one step and many steps, for one lane and for several."""
    for task in (Task(CAPACITY), Task(CAPACITY, obs=17, action=6), Task(CAPACITY, lanes=8)):
        buffer = library.uniform(task)
        sample = buffer.sampling(BATCH)
        check_rows(buffer.read(sample()), task)
        buffer.adding(task.one())()
        if task.lanes == 1:
            with contextlib.suppress(NotOfferedError):
                buffer.extending(task.stretch(0, 64))()
        else:
            for start in range(1, task.episode):
                buffer.adding(type(task.one())(*(column[0] for column in task.stretch(start, 1))))()
        check_rows(buffer.read(sample()), task)


def check_prioritized(library: Library) -> None:
    """Priorities take effect, and weights correct for them."""
    task = Task(CAPACITY)
    buffer = library.prioritized(task)
    sample = buffer.sampling(BATCH)
    fields = buffer.read(sample())
    check_rows(fields, task)
    weights = as_array(fields["weights"])
    assert weights.shape == (BATCH,)
    assert (weights > 0.0).all()
    chosen = buffer.random_indices(np.random.default_rng(0), (4,), CAPACITY)
    buffer.update(chosen, np.full(4, 1e6, np.float32))
    batch = sample()
    share = np.isin(as_array(buffer.indices_of(batch)), chosen).mean()
    assert share > 0.5, f"only {share:.0%} of the batch are the four transitions with the largest priority"
    weights = as_array(buffer.read(batch)["weights"])
    assert weights.max() > 1.5 * weights.min() or share == 1.0, "weights do not correct for the priorities"
    buffer.update(buffer.indices_of(batch), np.full(BATCH, 1e-3, np.float32))
    buffer.adding(task.one())()
    assert np.isin(as_array(buffer.indices_of(sample())), chosen).mean() < 0.5, "an update has no effect"


def check_n_step(library: Library) -> None:
    """Three-step returns of windows in the middle of an episode."""
    task = Task(CAPACITY)
    buffer = library.n_step(task)
    fields = buffer.read(buffer.sampling(BATCH)())
    time = as_array(fields["obs"])[:, 0]
    whole = time < task.episode - N_STEP
    expected = sum(GAMMA**k * (time + k) for k in range(N_STEP))
    np.testing.assert_allclose(as_array(fields["reward"])[whole], expected[whole], rtol=1e-5)
    if "next_obs" in fields:
        assert (as_array(fields["next_obs"])[whole, 0] == time[whole] + N_STEP).all(), "next_obs has another step"


def check_hindsight(library: Library) -> None:
    """Four out of five goals differ from the stored ones."""
    task = Task(CAPACITY, obs=10, action=4, goal=3, episode=50)
    buffer = library.hindsight(task)
    sample = buffer.sampling(1000)
    buffer.adding(task.one())()
    fields = buffer.read(sample())
    if isinstance(fields["obs"], dict) or hasattr(fields["obs"], "desired_goal"):
        goals, time = as_array(fields["obs"]["desired_goal"]), as_array(fields["obs"]["achieved_goal"])[:, 0]
        assert (as_array(fields["next_obs"]["desired_goal"]) == goals).all(), "the goals of next_obs and obs differ"
    else:
        goals, time = as_array(fields["goal"]), fields["obs"][:, task.obs]
    relabelled = goals[:, 0] >= 0.0
    share = relabelled.mean()
    assert abs(share - HINDSIGHT_RATIO) < 0.1, f"{share:.0%} are relabelled"
    assert (goals[relabelled, 0] >= time[relabelled]).mean() > 0.95, "goals lie in the past"


def check_composed(library: Library) -> None:
    """Wrappers work in combination: the newest transition is in every batch, and goals are replaced."""
    task = Task(CAPACITY, obs=10, action=4, goal=3, episode=50)
    buffer = library.composed(task, ("prioritized", "hindsight", "combined"), N_STEP)
    fields = buffer.read(buffer.sampling(BATCH)())
    newest = next(task.fill()).obs["observation"][-1]
    assert (as_array(fields["obs"]["observation"])[-1] == newest).all(), "the newest transition is missing"
    assert (as_array(fields["obs"]["desired_goal"])[:, 0] >= 0.0).any(), "no goal is replaced"
    assert np.unique(as_array(fields["weights"])).size > BATCH / 4, "priorities have no effect"


def check_masked(library: Library) -> None:
    """Only the lanes of the mask store a step."""
    task = Task(CAPACITY, lanes=8)
    buffer, step = library.uniform(task), task.one()
    add = buffer.adding_some(step._replace(reward=step.reward - 7.0), np.arange(8) % 2 == 0)
    for _ in range(CAPACITY // 8):
        add()
    share = (as_array(buffer.read(buffer.sampling(1000)())["reward"]) == -7.0).mean()
    assert abs(share - 0.5) < 0.1, f"{share:.0%} of the batch are from the lanes in the mask"


def check_images(build: Callable[[FrameTask], Buffer]) -> None:
    """Both stacks equal the stored ones, along any axis."""
    task = FrameTask(2 * PART_OF_FRAMES)
    frames = next(task.fill())
    buffer = build(task)
    fields = buffer.read(buffer.sampling(BATCH)())
    obs, next_obs = (np.asarray(fields[name]) for name in ("obs", "next_obs"))
    if obs.shape[-1] == STACK:
        obs, next_obs = np.moveaxis(obs, -1, 1), np.moveaxis(next_obs, -1, 1)
    assert obs.shape == next_obs.shape == (BATCH, STACK, *SCREEN)
    numbers = obs[:, -1, 0, :4].copy().view(np.int32)[:, 0]
    assert np.unique(numbers).size > BATCH / 2
    inner = np.flatnonzero((numbers > 2 * STACK) & (numbers < PART_OF_FRAMES - STACK))
    assert inner.size
    for row in inner:
        time = numbers[row] - (STACK - 1)
        assert (obs[row] == frames.obs[time]).all(), "a stack differs from the stored one"
        assert (next_obs[row] == frames.next_obs[time]).all(), "a next stack differs from the stored one"


CHECKS: dict[str, Callable[[Library], None]] = {
    "uniform": check_uniform,
    "prioritized": check_prioritized,
    "n-step": check_n_step,
    "hindsight": check_hindsight,
    "composed": check_composed,
    "masked": check_masked,
    "images, stored": lambda library: check_images(lambda task: library.images(task, once=False)),
    "images, once": lambda library: check_images(lambda task: library.images(task, once=True)),
    "stacks": lambda library: check_images(library.stacks),
    "single frames": lambda library: check_images(library.single_frames),
}


def verdict(check: Callable[[Library], None], library: Library) -> str:
    """The result of a check as text."""
    try:
        check(library)
    except NotOfferedError as reason:
        return str(reason)
    except AssertionError as error:
        return f"WRONG: {error}"
    return "ok"


def main() -> None:
    """Check the given libraries, or all that are installed."""
    verdicts = []
    for name in sys.argv[1:] or ("replaykit", *PEERS):
        print(name)
        try:
            library = load(name)
        except ImportError as error:
            print(f"    not installed: {error}")
            continue
        for title, check in CHECKS.items():
            verdicts.append(verdict(check, library))
            print(f"    {title}: {verdicts[-1]}")
    sys.exit(any(found.startswith("WRONG") for found in verdicts))


if __name__ == "__main__":
    main()
