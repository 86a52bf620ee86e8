"""Recording a Gymnasium environment: every transition is stored, without the dummy steps of resets."""

from collections.abc import Callable, Mapping
from typing import Any

from replaykit.replay import Replay
from replaykit.writer import Writing


def record(env: Any, buffer: Replay | Writing, extras: Mapping[str, str | Callable[[Any], Any]] | None = None) -> Any:
    """Wrap `env` so that every step is stored in `buffer`.

    Use the result like `env`. At an episode's end, `next_obs` is the true last observation in all of Gymnasium's
    autoreset modes. With NEXT_STEP, the dummy step of a reset is not stored. With SAME_STEP, the observation comes from
    ``info["final_obs"]``. With DISABLED, ended lanes wait for ``reset(options={"reset_mask": ...})``. A reset in the
    middle of an episode ends the episode in the buffer.

    A buffer has one recorder at a time. When a new one is created, running episodes end, and the next `step` or `reset`
    of the previous recorder raises RuntimeError. Inside ``with env.paused():`` nothing is stored.

    With SAME_STEP, ``info["final_obs"]`` is wrong if the environment returns the same array every time: its reset then
    overwrites the last observation. `record` warns about this. Use another mode, or copy observations in a wrapper.

    Parameters
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
    buffer : Replay or Writer
        Its `num_envs` and its fields must match `env`.
    extras : dict, optional
        For each extra field of the buffer's spec, a key of `info` or a function. The function is called after each
        step. Its argument has the attributes `obs`, `action`, `reward`, `next_obs`, `terminated`, `truncated` and
        `info`. With a vector environment, its result has a leading axis E.

    Raises
    ------
    TypeError, ValueError
        If `env` is not a Gymnasium environment, `buffer` is not a replay, the number of environments or the fields do
        not match, `extras` has a missing or unknown field, `env` is already recorded into this buffer, or the autoreset
        mode of a vector environment is unknown. ModuleNotFoundError is raised if Gymnasium is not installed.

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
        raise ModuleNotFoundError(f'{error}; record needs Gymnasium: pip install "replaykit-rl[gymnasium]"') from error
    return recorder_of(env, buffer, {} if extras is None else extras)
