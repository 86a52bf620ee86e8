"""The Gymnasium wrappers that `record` puts around an environment. Importing this module needs Gymnasium."""

import contextlib
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv, VectorWrapper

from replaykit.field import FieldNameError, as_array
from replaykit.infos import Lanes, column, flags, gathered
from replaykit.replay import Replay
from replaykit.spec import Spec
from replaykit.trees import Tree, leaves_of, map_tree
from replaykit.writer import Writing

Step = namedtuple("Step", "obs action reward next_obs terminated truncated info")
Extras: TypeAlias = Mapping[str, str | Callable[[Step], Tree]]
_NUMBERS = int, float, np.generic
_SUSPICIOUS = 3
"""After this many episode ends with equal last and first observations, a warning is given."""
_OLD_GYM = "an environment of OpenAI Gym works through gymnasium.make('GymV21Environment-v0', env=env) of shimmy"


def recorder_of(env: Any, buffer: Replay | Writing, extras: Extras) -> "RecordSingle | RecordVector":
    """`env`, wrapped to store its steps in `buffer`. See :func:`replaykit.record`."""
    if not isinstance(buffer, Replay | Writing):
        wanted = "a replaykit buffer, a wrapper around one, or a writer"
        raise TypeError(f"buffer is a {type(buffer).__name__}; expected {wanted}")
    if not isinstance(env, gymnasium.Env | VectorEnv):
        wanted = "a Gymnasium environment, single or vector"
        raise TypeError(f"env is a {type(env).__name__}; expected {wanted}; {_OLD_GYM}")
    if any(isinstance(layer, Recorder) and layer.buffer.lock.written is buffer.lock.written for layer in _layers(env)):
        raise ValueError("env is already recorded into this buffer; use it as it is, without another record()")
    num_envs = env.num_envs if isinstance(env, VectorEnv) else 1
    if num_envs != buffer.num_envs:
        raise ValueError(f"env has {num_envs} environments; expected {buffer.num_envs}, the buffer's num_envs")
    spec, fields = Spec.from_env(env), buffer.spec.extra
    given, known = ([(leaf.name, leaf.shape) for leaf in s.leaves[: len(spec.leaves)]] for s in (spec, buffer.spec))
    if [leaf for leaf in given if leaf[0] != "reward"] != [leaf for leaf in known if leaf[0] != "reward"]:
        raise ValueError(f"env has the spec {spec}; expected that of the buffer, {buffer.spec}")
    if not isinstance(extras, Mapping):
        raise TypeError(f"extras is {extras!r}; expected a dict from the name of each extra field of the buffer's spec")
    if set(extras) != set(fields):
        raise ValueError(
            f"the buffer's spec has the extra fields {fields}, and extras has {tuple(extras)}; pass as extras a dict "
            "from the name of each extra field to a key of info or a function of the step"
        )
    for name, source in extras.items():
        if not isinstance(source, str) and not callable(source):
            raise TypeError(f"extras[{name!r}] is {source!r}; expected a key of info or a function of the step")
    return RecordVector(env, buffer, extras) if isinstance(env, VectorEnv) else RecordSingle(env, buffer, extras)


def _layers(env: Any) -> Iterator[Any]:
    """The environment and every environment inside it."""
    yield env
    while isinstance(env, gymnasium.Wrapper | VectorWrapper):
        env = env.env
        yield env


class Recorder:
    """The common part of both recorders. A buffer has one recorder at a time: the last one created."""

    env: Any
    _lanes_in: Callable[[Any], tuple[Any, Any]]
    _begin: Callable[[Any], None]
    _store: Callable[[Step], None]
    _read: Callable[[Any, str, str], Tree]
    _obs: Any
    """A copy of the last observation, or None if the environment must be reset."""
    _over: Any
    """The lanes whose next step does not belong to an episode."""
    _waits = False
    """Whether the environment must be reset after an episode's end. True for a single environment."""

    def _record(self, buffer: Replay | Writing, extras: Extras) -> None:
        self.buffer: Any = buffer
        self._write, self._extras, self._pauses = buffer.add, dict(extras), 0
        self._owned: Any = buffer if isinstance(buffer, Writing) else buffer.lock.written
        self._take_over()

    def _take_over(self) -> None:
        with self.buffer.lock:
            self._end_episodes()
            self._owned.recorder = self._token = object()

    def _end_episodes(self) -> None:
        """End the running episodes. The environment must be reset before its steps are stored again."""
        self.buffer.end_episode()
        self._obs, self._over = None, np.ones(self.buffer.num_envs, np.bool_)

    def _check_owner(self) -> None:
        """Raise RuntimeError if the buffer has another recorder. A copied buffer gets the first one that is used."""
        owner = self._owned.recorder
        if owner is None:
            self._take_over()
        elif owner is not self._token:
            raise RuntimeError(
                "another recorder has taken over the buffer, since record() was called with it again; step the "
                "environment that this call returned, or call record() once more for this environment"
            )

    @contextmanager
    def paused(self) -> Iterator[Any]:
        """Pause recording inside a ``with`` block, for example for an evaluation. The block gets this environment.

        Running episodes end in the buffer when the block begins. After the block, the next `reset` resumes recording.
        """
        with self.buffer.lock:
            self._check_owner()
            if not self._pauses:
                self._end_episodes()
        self._pauses += 1
        try:
            yield self
        finally:
            self._pauses -= 1

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environment, or the lanes in ``options["reset_mask"]``, and end their episodes in the buffer."""
        self._check_owner()
        lanes, options = self._lanes_in(options)
        if self._pauses:
            return self.env.reset(seed=seed, options=options)  # type: ignore[no-any-return]
        if self._obs is None and not np.all(lanes):
            raise self._needs_reset("reset(), without a reset_mask,")
        self._obs = None  # not known until the reset is done
        result = self.env.reset(seed=seed, options=options)
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping | list)):
            raise ValueError(f"env.reset() returned a {type(result).__name__}; expected (obs, info); {_OLD_GYM}")
        obs = self._copy(result[0], "obs")
        with self.buffer.lock:
            self._check_owner()
            self._begin(lanes)
        self._obs = obs
        return result

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environment and store the transition. Raises ResetNeeded if an episode has not begun or is over."""
        self._check_owner()
        if self._pauses:
            return self.env.step(action)  # type: ignore[no-any-return]
        if self._obs is None or (self._waits and self._over):
            raise self._needs_reset("reset()")
        before, taken = self._obs, self._copy(action, "action")  # the environment may change either
        self._obs = None  # not known until the step has been stored
        result = self.env.step(action)
        if not (isinstance(result, tuple) and len(result) == 5):
            got = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
            wanted = "the five of Gymnasium, (obs, reward, terminated, truncated, info)"
            raise ValueError(f"env.step() returned {got}; expected {wanted}; {_OLD_GYM}")
        obs, reward, terminated, truncated, info = result
        self._store(Step(before, taken, reward, obs, terminated, truncated, info))
        self._obs = self._copy(obs, "obs")
        return result

    def _copy(self, tree: Tree, name: str) -> Tree:
        """A copy, since many environments reuse their arrays. Numbers are not copied."""
        if type(tree) is np.ndarray:
            return tree.copy()
        if isinstance(tree, _NUMBERS):
            return tree
        tree = _with_tuples(tree, self.buffer.spec[name])
        return map_tree(lambda value, path: np.array(as_array(path, value)), tree, name)

    def _needs_reset(self, remedy: str) -> Exception:
        reason = "the episode is over or has not begun, recording was paused, or the last step or reset raised"
        return gymnasium.error.ResetNeeded(f"{reason}; call {remedy} before step()")

    def _add(self, step: Step, mask: Lanes | None = None) -> None:
        """Store a step, or its lanes in `mask`."""
        extras = {}
        for name, source in self._extras.items():
            extras[name] = self._read(step.info, source, name) if isinstance(source, str) else source(step)
        limit, lanes = self.buffer.rate_limit, self.buffer.num_envs if mask is None else int(mask.sum())
        may_wait = not self.buffer.lock.is_held
        waiting = contextlib.nullcontext() if limit is None else limit.inserting(lanes, may_wait=may_wait)
        with waiting, self.buffer.lock:
            self._check_owner()
            self._write(*step[:6], mask=mask, **extras)


class RecordSingle(Recorder, gymnasium.Wrapper[Any, Any, Any, Any]):
    """A single environment whose steps are stored; see `record`."""

    def __init__(self, env: gymnasium.Env[Any, Any], buffer: Replay | Writing, extras: Extras) -> None:
        super().__init__(env)
        self._waits = not any(isinstance(layer, gymnasium.wrappers.Autoreset) for layer in _layers(env))
        self._record(buffer, extras)

    def _lanes_in(self, options: Any) -> tuple[Any, Any]:
        return True, options

    def _begin(self, _lanes: Any) -> None:
        if not self._over:
            self.buffer.end_episode()
        self._over = False

    def _store(self, step: Step) -> None:
        if not self._over:
            self._add(step)
        self._over = bool(step.terminated or step.truncated)

    def _read(self, info: Any, key: str, name: str) -> Tree:
        if key not in info:
            raise FieldNameError(f"{name} is missing: expected {key!r} in info, which has {list(info)}")
        return info[key]


class RecordVector(Recorder, VectorWrapper):  # VectorWrapper is not generic in Gymnasium 1.1
    """A vector environment whose steps are stored; see `record`."""

    def __init__(self, env: VectorEnv[Any, Any, Any], buffer: Replay | Writing, extras: Extras) -> None:
        super().__init__(env)
        self._mode, self._overwritten = _autoreset_mode(env), 0
        self._replaced = self._reset_again = np.zeros(env.num_envs, np.bool_)
        base = env.unwrapped  # without shared memory, Gymnasium's processes reset ended lanes a second time
        is_apart = isinstance(base, AsyncVectorEnv) and not base.shared_memory
        self._forgets_resets = self._mode == AutoresetMode.NEXT_STEP and is_apart
        self._record(buffer, extras)

    def _lanes_in(self, options: Any) -> tuple[Lanes, Any]:
        """The lanes to reset, and a copy of the options, since Gymnasium removes the mask from its own."""
        mask = (options or {}).get("reset_mask")
        lanes = np.ones(self.num_envs, np.bool_) if mask is None else np.array(as_array("reset_mask", mask), np.bool_)
        return lanes, options and dict(options)

    def _begin(self, lanes: Any) -> None:
        running = lanes & ~self._over
        if running.any():
            self.buffer.end_episode(running)
        self._over = self._over & ~lanes | self._reset_again

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments and store the transitions."""
        result = super().step(action)
        if self._forgets_resets:
            self._reset_again = self._ended(*result[2:4])
        return result

    def _store(self, step: Step) -> None:
        ended = self._ended(step.terminated, step.truncated)
        if self._mode == AutoresetMode.SAME_STEP:
            self._replaced = ended
            if 1 in ended.tobytes():  # for a few lanes, any() takes ten times as long
                last = self._last_obs(step.next_obs, step.info, ended)
                self._warn_of_overwritten(last, step.next_obs, ended)
                step = Step(*step[:3], last, *step[4:])
        if 1 not in self._over.tobytes():
            self._add(step)
        elif not self._over.all():
            self._add(step, ~self._over)
        if self._mode == AutoresetMode.NEXT_STEP:
            self._over = ended
        elif self._mode == AutoresetMode.DISABLED:
            self._over = self._over | ended

    def _last_obs(self, obs: Any, info: Any, ended: Lanes) -> Tree:
        """`obs`, with the last observations of ended episodes in place of the first ones after their reset."""
        key = "final_obs" if column(info, "final_obs") is not None else "final_observation"
        return gathered(self.buffer.spec, "next_obs", ({"obs": obs}, "obs", np.ones_like(ended)), (info, key, ended))

    def _warn_of_overwritten(self, last: Tree, obs: Any, ended: Lanes) -> None:
        """Warn if the last observations have always equalled those after the reset so far."""
        if self._overwritten < _SUSPICIOUS:
            first = gathered(self.buffer.spec, "next_obs", ({"obs": obs}, "obs", np.ones_like(ended)))
            pairs = zip(leaves_of(last), leaves_of(first), strict=True)
            are_equal = all(np.array_equal(one[ended], other[ended]) for (_, one), (_, other) in pairs)
            self._overwritten = self._overwritten + 1 if are_equal else _SUSPICIOUS + 1
            if self._overwritten == _SUSPICIOUS:
                remedy = "copy its observations in a wrapper, or use another autoreset mode"
                warnings.warn(
                    "final_obs equals the first observation of the next episode: the environment seems to return the "
                    f"same array every time, so that its reset overwrites the last observation; {remedy}",
                    RuntimeWarning,
                    stacklevel=4,
                )

    def _ended(self, terminated: Any, truncated: Any) -> Lanes:
        """The lanes whose episodes end in this step."""
        return flags("terminated", terminated, self._over.shape) | flags("truncated", truncated, self._over.shape)

    def _read(self, info: Any, key: str, name: str) -> Tree:
        """The values of an extra field. For episodes that have ended, they are in final_info, not in `info`."""
        of_ended = column(info, "final_info"), key, self._replaced
        return gathered(self.buffer.spec, name, (info, key, ~(self._over | self._replaced)), of_ended)


def _autoreset_mode(env: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    # The attribute first: environments of one class share their metadata, but may have different modes
    mode = getattr(env.unwrapped, "autoreset_mode", None) or env.metadata.get("autoreset_mode")
    if mode is None:
        remedy = "set env.metadata['autoreset_mode'] to one of gymnasium.vector.AutoresetMode"
        raise ValueError(f"env does not report its autoreset mode; {remedy}")
    return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)


def _with_tuples(tree: Tree, fields: Tree) -> Tree:
    """The tree, with each list replaced by a tuple where the fields have a tuple."""
    if isinstance(tree, Mapping) and isinstance(fields, Mapping):
        return {key: _with_tuples(entry, fields.get(key)) for key, entry in tree.items()}
    if isinstance(tree, tuple | list) and isinstance(fields, tuple) and len(tree) == len(fields):
        return tuple(map(_with_tuples, tree, fields))
    return tree
