"""Hindsight experience replay: transitions are replayed with goals that the agent has achieved."""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, TypeAlias, final

import numpy as np

from replaykit.backend import Backend
from replaykit.batch import Look, Rewrite, Strategy, Window
from replaykit.checks import check_choice, check_unit
from replaykit.declared import read_only
from replaykit.replay import Replay
from replaykit.storage.base import Indices
from replaykit.trees import map_tree
from replaykit.wrapper import ReplayWrapper

GoalFunction: TypeAlias = Callable[[Any, Any, dict[str, Any]], Any]
Keys: TypeAlias = str | tuple[str, ...]
Goals: TypeAlias = tuple[Any, Any, dict[str, Any]]
"""For M steps: the achieved goals, the desired goals (both an array or a tuple of arrays), and the extra fields."""


@final
class HindsightReplay(ReplayWrapper):
    """A wrapper for tasks with goals. It replaces the goal of part of every batch by a goal that was achieved.

    A relabelled transition has a new ``desired_goal`` in both ``obs`` and ``next_obs``, and the reward that `reward_fn`
    returns for this goal. With n-step returns, the reward of every step of the window is recomputed. With
    `terminated_fn`, a window ends at the first step that reaches the new goal. ``batch.relabelled`` marks these rows.

    A new goal is the achieved goal in ``next_obs`` of a stored step. `strategy` selects the steps, all equally likely:

    - ``"future"``: the replayed step and all later steps of its episode, so the goal was achieved after ``obs``;
    - ``"final"``: the last step of the same episode, or the newest if the episode is running;
    - ``"episode"``: any step of the same episode;
    - ``"random"``: any step in the buffer.

    If an episode is partly overwritten, its remaining steps are used. Relabelling does not change stored transitions or
    their priorities. The functions are pickled with the replay.

    Around a buffer on a device, the functions get tensors and return tensors, and M is always the batch size times
    `n_step`. :doc:`/how-to/gpu-simulators` has an example. With `terminated_fn`, the first batches wait for the device.

    Parameters
    ----------
    inner : Replay
        A buffer or another wrapper. Its observations are dicts that contain two goals of the same shape and dtype.
    reward_fn : callable
        ``reward_fn(achieved_goal, desired_goal, info)`` returns the rewards of M steps, of shape (M,), or (M, k) for k
        rewards per step. An example is ``env.unwrapped.compute_reward`` of Gymnasium-Robotics. It is called once per
        batch with all steps of all relabelled windows: goals of shape (M, ...), and a dict of the extra fields. A goal
        of several fields is a tuple of arrays, in the order of the keys.
    terminated_fn : callable, optional
        ``terminated_fn(achieved_goal, desired_goal, info)`` returns whether each step terminates the episode under the
        new goal: bool, of shape (M,). By default, `terminated` stays as stored. This is correct for the many goal tasks
        whose episodes end only at a time limit.
    strategy : {"future", "final", "episode", "random"}
        The steps from which new goals are taken, as described above.
    ratio : float
        The probability that a transition is relabelled; k / (k + 1) for k goals per transition as in the paper.
    achieved_goal, desired_goal : str, or tuple of str
        Keys of the goals in the observation; nested keys have dots, as in ``"task.goal"``. Two tuples with the same
        number of keys specify goals of several fields, which are all taken from the same step.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If the observations lack the goals, or an argument is out of range. When sampling, if a function raises an
        error, or returns a wrong shape or numbers that are not finite; the buffer is then unchanged. On a device,
        batches can contain such numbers, and the next call of `stats`, `check` or `save` raises the error.

    References
    ----------
    Andrychowicz et al. (2017), Hindsight Experience Replay, sections 3.3 and 4.5.

    Examples
    --------
    Ten steps along a line. The goal is to stand at 99:

    >>> import numpy as np
    >>> from replaykit import Field, HindsightReplay, ReplayBuffer, Spec
    >>> spec = Spec(obs={"achieved_goal": Field((1,)), "desired_goal": Field((1,))}, action=Field((), "int64"))
    >>> def reward_fn(achieved_goal, desired_goal, info):
    ...     return (achieved_goal == desired_goal).all(axis=-1) - 1.0
    >>> buffer = HindsightReplay(ReplayBuffer(1000, spec, seed=0), reward_fn, ratio=0.8)
    >>> for x in range(10):
    ...     obs, next_obs = ({"achieved_goal": [x + dx], "desired_goal": [99.0]} for dx in (0.0, 1.0))
    ...     index = buffer.add(obs, 1, -1.0, next_obs, False, x == 9)
    >>> batch = buffer.sample(5)
    >>> batch.relabelled
    array([False,  True,  True,  True, False])
    >>> np.hstack([batch.obs["achieved_goal"], batch.obs["desired_goal"], batch.reward[:, None]])
    array([[ 6., 99., -1.],
           [ 2.,  3.,  0.],
           [ 0.,  9., -1.],
           [ 0.,  1.,  0.],
           [ 8., 99., -1.]], dtype=float32)

    A goal of two fields, both of which must be reached in the same step:

    >>> fields = {name: Field(()) for name in ("x", "speed", "target_x", "target_speed")}
    >>> def reward_fn(achieved_goal, desired_goal, info):
    ...     (x, speed), (target_x, target_speed) = achieved_goal, desired_goal
    ...     return ((x == target_x) & (speed == target_speed)) - 1.0
    >>> buffer = HindsightReplay(
    ...     ReplayBuffer(1000, Spec(fields, Field(())), seed=0), reward_fn, ratio=1.0,
    ...     achieved_goal=("x", "speed"), desired_goal=("target_x", "target_speed"),
    ... )
    >>> for x in range(10):
    ...     obs, next_obs = ({"x": y, "speed": y / 2, "target_x": 99, "target_speed": 0} for y in (x, x + 1))
    ...     index = buffer.add(obs, 1, -1.0, next_obs, False, x == 9)
    >>> batch = buffer.sample(4)
    >>> np.stack([batch.next_obs["x"], batch.obs["target_x"], batch.obs["target_speed"], batch.reward], axis=1)
    array([[ 7. ,  9. ,  4.5, -1. ],
           [ 3. , 10. ,  5. , -1. ],
           [ 1. ,  9. ,  4.5, -1. ],
           [ 1. ,  1. ,  0.5,  0. ]], dtype=float32)
    """

    may_raise = True
    reward_fn: GoalFunction = read_only("_reward_fn", "The function that gives the rewards of relabelled steps.")
    terminated_fn: GoalFunction | None = read_only("_terminated_fn", "The function for the ends of episodes, or None.")
    strategy: Strategy = read_only("_strategy", "Where goals are taken from.")

    def __init__(
        self, inner: Replay, reward_fn: GoalFunction, *, terminated_fn: GoalFunction | None = None,
        strategy: Strategy = "future", ratio: float = 0.8, achieved_goal: Keys = "achieved_goal",
        desired_goal: Keys = "desired_goal",
    ) -> None:  # fmt: skip
        super().__init__(inner)
        for name, function in (("reward_fn", reward_fn), ("terminated_fn", terminated_fn)):
            if not callable(function) and not (name == "terminated_fn" and function is None):
                wanted = "a function of (achieved_goal, desired_goal, info), such as env.unwrapped.compute_reward"
                raise TypeError(f"{name} is {function!r}; expected {wanted}")
        check_choice("strategy", strategy, Strategy)
        check_unit("ratio", ratio)
        if _is_relabelled(inner):
            raise ValueError("inner already contains a HindsightReplay; expected at most one")
        achieved, desired = _keys("achieved_goal", achieved_goal), _keys("desired_goal", desired_goal)
        if type(achieved_goal) is not type(desired_goal) or len(achieved) != len(desired):
            got = f"achieved_goal is {achieved_goal!r} and desired_goal {desired_goal!r}"
            raise ValueError(f"{got}; expected one key for each, or two tuples of the same length")
        self._refuse_wrong_goals(achieved, desired)
        self._reward_fn, self._terminated_fn, self._strategy = reward_fn, terminated_fn, strategy
        self._is_tuple = isinstance(achieved_goal, tuple)
        self._leaves = tuple(f"next_obs.{key}" for key in achieved)
        self._desired = [(f"obs.{key}", f"next_obs.{key}") for key in desired]
        self._info = tuple(leaf.name for leaf in self.spec.leaves if leaf.name.partition(".")[0] in self.spec.extra)
        self._dtype, self._shape = self.spec["reward"].dtype, self.spec["reward"].shape
        self._is_vectorized = terminated_fn is None
        self.ratio = ratio

    @property
    def ratio(self) -> float:
        """The probability that a transition is relabelled. It can be set at any time."""
        return self._ratio

    @ratio.setter
    def ratio(self, value: float) -> None:
        ratio = check_unit("ratio", value)
        with self.lock:
            self._ratio = ratio
            self.look: Look | None = Look(self._leaves, ratio, self._strategy) if ratio > 0.0 else None

    def state(self) -> dict[str, Any]:
        return {"ratio": self._ratio}

    def check_state(self, state: dict[str, Any]) -> None:
        check_unit("ratio", state["ratio"])

    def restore(self, state: dict[str, Any]) -> None:
        self.ratio = state["ratio"]

    def _refuse_wrong_goals(self, achieved: tuple[str, ...], desired: tuple[str, ...]) -> None:
        """Raise unless the observations have these goals, and both goals of a pair have the same shape and dtype."""
        obs, fields = self.spec["obs"], {leaf.name: leaf.field for leaf in self.spec.leaves}
        if not isinstance(obs, dict):
            wanted = f"a dict with the goals {', '.join(map(repr, achieved + desired))}"
            raise TypeError(f"obs is {obs!r}; expected {wanted}, as the environments of Gymnasium-Robotics have")
        for option, keys in (("achieved_goal", achieved), ("desired_goal", desired)):
            for key in keys:
                if f"obs.{key}" not in fields:
                    got = f"obs has no field {key!r}, only {', '.join(map(repr, obs))}"
                    raise ValueError(f"{got}; pass the key of the goal as {option}=")
        for key in achieved + desired:
            if (achieved + desired).count(key) > 1:
                got = f"achieved_goal and desired_goal name {key!r} twice"
                raise ValueError(f"{got}; expected a different key of obs for each goal")
        for reached, wanted in zip(achieved, desired, strict=True):
            field, other = fields[f"obs.{reached}"], fields[f"obs.{wanted}"]
            if field != other:
                remedy = "since achieved goals replace desired goals; give both the same shape and dtype"
                raise ValueError(f"obs.{wanted} is {other!r}; expected {field!r}, the field of obs.{reached}, {remedy}")
            if self.stack > 1 and len(field.shape) >= 2:
                got = f"stack is {self.stack}, so obs.{reached} would be a stack of goals"
                remedy = "use stack=1, and stack the other observations in the environment"
                raise ValueError(f"{got}; expected single goals; {remedy}")

    def change(self, window: Window) -> Window:
        backend, look, ahead = self.backend, self.look, window.ahead
        if look is None:  # no random numbers are drawn, so that batches equal those of the wrapped replay
            window.added["relabelled"] = backend.full(window.shape[0], 0.0) > 0.0
            return window
        if ahead is None:
            ahead = self.inner.look_ahead(window, look, self.rng.random((2, window.shape[0])))
        chosen, windows, places, achieved, wanted, goals = ahead
        window.added["relabelled"] = chosen
        rewrites = [Rewrite(fields, windows, goal) for fields, goal in zip(self._desired, goals, strict=True)]
        if not len(windows):
            window.rewrites += rewrites  # empty ones, so that the same kernels are compiled as for other batches
            return window
        info = self._info_of(window, places) if self._info else {}
        asked = (achieved, wanted, info) if self._is_tuple else (achieved[0], wanted[0], info)
        rewards = self._rewards(asked if self._terminated_fn is None else _map(backend.copy, asked))
        ends = None if self._terminated_fn is None else self._ends(asked)
        wrong = backend.put_rewards(window, ahead, rewards, self._dtype)
        if wrong is not None:
            raise ValueError(f"{_called('reward_fn', self._reward_fn)} returned {wrong}; expected finite {self._dtype}")
        if ends is not None:
            backend.shorten(window, ahead, ends)
        window.rewrites += rewrites
        return window

    def _info_of(self, window: Window, places: Indices) -> dict[str, Any]:
        """The extra fields of the steps at these positions in the rewards of the windows."""
        n = window.reward.shape[1]
        steps = window.indices[places // n] + places % n * window.stride
        return self.spec.unflatten([self.inner.read(steps, name) for name in self._info], self.spec.extra)

    def _rewards(self, goals: Goals) -> Any:
        """The rewards (S, ...) of the steps for their goals."""
        return _ask(self.backend, "reward_fn", self._reward_fn, goals, self._shape, "biuf", "real numbers")

    def _ends(self, goals: Goals) -> Any:
        """Whether each step terminates its episode under its new goal. Waits for the device until a check is done."""
        ends, backend = self._ask_ends(goals), self.backend
        if self._is_vectorized:
            return ends
        achieved, desired, _ = goals
        pairs = zip(_parts(achieved), _parts(desired), strict=True)
        is_missed = [backend.host("goals", (one != other).reshape(len(ends), -1).any(1)) for one, other in pairs]
        missed = np.any(is_missed, axis=0).nonzero()[0][:8]
        if missed.size:
            # Some functions take the norm over all rows, so that the result of a row depends on other rows. Compare the
            # results of some rows in one call and one by one. In the second third, goals are reached: both are equal
            achieved, desired, info = _map(itemgetter(backend.array(np.tile(missed, 3))), goals)
            for one, other in zip(_parts(achieved), _parts(desired), strict=True):
                other[missed.size : 2 * missed.size] = one[: missed.size]
            probe = achieved, desired, info
            alone = [bool(self._ask_ends(_map(itemgetter([row]), probe))[0]) for row in range(3 * missed.size)]
            if (backend.host("ends", self._ask_ends(probe)) != alone).any():
                fault = "returns another value for a single row than for this row in a batch, so it is not vectorized"
                name = _called("terminated_fn", self._terminated_fn)
                raise ValueError(f"{name} {fault}; {_wrapped(backend, 'terminated_fn', goals)}")
            self._is_vectorized = True
        return ends

    def _ask_ends(self, goals: Goals) -> Any:
        copies = _map(self.backend.copy, goals)
        return _ask(self.backend, "terminated_fn", self._terminated_fn, copies, (), "b", "bool")


def _is_relabelled(replay: Replay) -> bool:
    return isinstance(replay, HindsightReplay) or any(map(_is_relabelled, replay.inside))


def _keys(option: str, keys: Any) -> tuple[str, ...]:
    """The keys of a goal's fields, as a tuple. Raises TypeError unless `keys` is a key or a tuple of keys."""
    found = keys if isinstance(keys, tuple) else (keys,)
    if not found or not all(isinstance(key, str) for key in found):
        raise TypeError(f"{option} is {keys!r}; expected a key of obs, or a tuple of keys")
    return found


def _parts(goal: Any) -> tuple[Any, ...]:
    """The arrays of a goal, one for each field."""
    return goal if isinstance(goal, tuple) else (goal,)


def _map(function: Callable[[Any], Any], goals: Goals) -> Goals:
    """Apply `function` to every array."""
    mapped: Goals = map_tree(lambda array, _path: function(array), goals)
    return mapped


def _ask(
    backend: Backend, option: str, function: Any, goals: Goals, shape: tuple[int, ...], kinds: str, expected: str
) -> Any:
    """The result of the user's `function` for M steps, of shape (M, *shape). The function may change `goals`."""
    shape = len(_parts(goals[0])[0]), *shape
    try:
        result = function(*goals)
    except Exception as error:
        raised = f"{_called(option, function)} raised {type(error).__name__}: {error}"
        raise RuntimeError(f"{raised}; it was given {_described(goals)}, one row for each step") from error
    is_own = backend.is_numpy and type(result) is np.ndarray
    array = result if is_own else backend.result(f"the result of {_called(option, function)}", result)
    if array.shape != shape:
        numbers = "one number" if len(shape) == 1 else f"{shape[1]} numbers"
        wanted = f"{shape}, {numbers} for each row of {_described(goals)}; {_wrapped(backend, option, goals)}"
        raise ValueError(f"{_called(option, function)} returned shape {tuple(array.shape)}; expected {wanted}")
    if backend.kind(array) not in kinds:
        raise TypeError(f"{_called(option, function)} returned dtype {array.dtype}; expected {expected}")
    return array


def _described(goals: Goals) -> str:
    parts = [f"{tuple(part.shape)}, {part.dtype}" for part in _parts(goals[0])]
    if isinstance(goals[0], tuple):
        return f"the arrays of the tuples achieved_goal and desired_goal, of shapes {'; '.join(parts)}"
    return f"achieved_goal and desired_goal of shape {parts[0]}"


def _called(option: str, function: Any) -> str:
    return f"{option} {getattr(function, '__qualname__', None) or repr(function)}"


def _wrapped(backend: Backend, option: str, goals: Goals) -> str:
    """How to wrap a function that takes one pair of goals at a time."""
    if not backend.is_numpy:
        return f"if it takes one goal at a time, wrap it: torch.vmap({option})"
    rows = "zip(*achieved), zip(*desired)" if isinstance(goals[0], tuple) else "achieved, desired"
    loop = f"[{option}(a, d, {{}}) for a, d in zip({rows})]"
    return f"if it takes one goal at a time, wrap it: lambda achieved, desired, info: np.array({loop})"
