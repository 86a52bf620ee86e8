"""Recording a Gymnasium environment: each true transition lands in the buffer, and nothing else."""

from collections.abc import Callable, Mapping
from typing import Any

from replaykit.replay import Replay
from replaykit.writer import Writing


def record(env: Any, buffer: Replay | Writing, extras: Mapping[str, str | Callable[[Any], Any]] | None = None) -> Any:
    """`env`, wrapped so that every step is stored in `buffer` as the transition it really was.

    Use the result like `env`. At an episode's end `next_obs` is the true last observation in each of Gymnasium's
    autoreset modes: with NEXT_STEP the dummy step on which an environment is reset is not stored, with SAME_STEP the
    observation is taken from ``info["final_obs"]``, and with DISABLED lanes that ended wait for
    ``reset(options={"reset_mask": ...})``. A reset in the middle of an episode ends the episode in the buffer.

    A buffer has one recorder at a time. A new one takes the buffer over: running episodes end, and the next call of the
    former recorder's `step` or `reset` raises RuntimeError. Inside ``with env.paused():`` nothing is stored.

    With SAME_STEP, ``info["final_obs"]`` is wrong for an environment that returns one array again and again, since its
    reset overwrites the array. `record` warns of it: use another mode there, or copy the observations in a wrapper.

    Parameters
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
    buffer : Replay or Writer
        With as many lanes as `env` has environments, and the fields of its transitions.
    extras : dict, optional
        For each extra field of the buffer's spec, a key of `info`, or a function. The function is called with the step
        after the environment was stepped. Its argument has the attributes `obs`, `action`, `reward`, `next_obs`,
        `terminated`, `truncated` and `info`. With a vector environment, its result has a leading axis E.

    Raises
    ------
    TypeError, ValueError
        If `env` is no Gymnasium environment or `buffer` no replay, if the number of environments or the fields differ,
        if `extras` lacks a field or has another one, if `env` is already recorded into this buffer, or if the autoreset
        mode of a vector environment is unknown.

    Examples
    --------
    >>> import gymnasium
    >>> from replaykit import ReplayBuffer, record
    >>> env = gymnasium.make("CartPole-v1")
    >>> buffer = ReplayBuffer.from_env(env, 1000)
    >>> env = record(env, buffer)
    >>> obs, info = env.reset(seed=0)
    >>> for _ in range(5):
    ...     obs, reward, terminated, truncated, info = env.step(0)
    >>> len(buffer)
    5
    """
    try:
        from replaykit.recorders import recorder_of
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{error}; record needs Gymnasium: pip install "replaykit[gymnasium]"') from error
    return recorder_of(env, buffer, {} if extras is None else extras)
