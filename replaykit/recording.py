"""Recording a Gymnasium environment: each true transition lands in the buffer, and nothing else."""

from typing import Any

from replaykit.replay import Replay


def record(env: Any, buffer: Replay) -> Any:
    """`env`, wrapped so that every step is stored in `buffer` as the transition it really was.

    Use the result like `env`. At an episode's end `next_obs` is the true last observation in each of Gymnasium's
    autoreset modes: with NEXT_STEP the dummy step on which an environment is reset is not stored, with SAME_STEP the
    observation is taken from ``info["final_obs"]``, and with DISABLED lanes that ended wait for
    ``reset(options={"reset_mask": ...})``. A reset in the middle of an episode ends the episode in the buffer.

    With SAME_STEP, an environment that returns one array again and again overwrites ``info["final_obs"]`` when it is
    reset: use another mode there, or copy the observations in a wrapper.

    Parameters
    ----------
    env : gymnasium.Env or gymnasium.vector.VectorEnv
    buffer : Replay
        With as many lanes as `env` has environments, and the fields of its transitions.

    Raises
    ------
    TypeError, ValueError
        If `env` is no Gymnasium environment, `buffer` is no replay, their lanes or fields differ, or the autoreset mode
        is unknown.

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
    return recorder_of(env, buffer)
