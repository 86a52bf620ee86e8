"""Hindsight experience replay: transitions are replayed as if another goal had been meant."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt

from replaykit._kernels import lazy
from replaykit.batch import Rewrite, Window, constant
from replaykit.field import as_array
from replaykit.replay import Replay
from replaykit.storage import check_choice, check_unit
from replaykit.trees import map_tree
from replaykit.wrapper import ReplayWrapper

kernels = lazy("lanes")

Strategy: TypeAlias = Literal["future", "final", "episode", "random"]
GoalFunction: TypeAlias = Callable[[Any, Any, dict[str, Any]], Any]


@final
class HindsightReplay(ReplayWrapper):
    """Any replay of a task with goals, in which a share of every batch is given a goal that was achieved.

    A relabelled transition has another ``desired_goal``, in ``obs`` and ``next_obs`` alike, and the reward that
    `reward_fn` gives for it. With n-step returns the reward of every step of the window is recomputed, and where
    `terminated_fn` is given, so is its end: a window that reaches the new goal stops there. ``batch.relabelled`` tells
    which rows they are. What is stored stays as it is.

    A goal is the achieved goal of ``next_obs`` of a stored step, by `strategy`, each allowed step equally likely:

    - ``"future"``: of the same episode, from the replayed step itself on, so strictly later than ``obs``;
    - ``"final"``: the last of the same episode, which for a running one is the newest;
    - ``"episode"``: any of the same episode;
    - ``"random"``: any in the buffer.

    Of an episode that is partly overwritten, the steps that are left count. A priority is of the transition, with
    whichever goals it is replayed. The functions are part of the buffer when it is pickled.

    Parameters
    ----------
    inner : Replay
        A buffer, or another wrapper. Its observations are dicts with an achieved and a desired goal, fields of one
        shape and dtype.
    reward_fn : callable
        ``reward_fn(achieved_goal, desired_goal, info)``, such as ``env.unwrapped.compute_reward`` of Gymnasium-Robotics
        and its like. Called once a batch, with all steps of all relabelled windows: goals of shape (M, ...), and as
        `info` a dict of the extra fields of those steps. Returns the rewards, of shape (M,).
    terminated_fn : callable, optional
        ``terminated_fn(achieved_goal, desired_goal, info)``, given the same, returns booleans of shape (M,): where the
        episode terminates under the new goal: a step that ended at its own goal does not end at another. Without it,
        `terminated` stays as stored, which is right where ends do not depend on the goal; most goal tasks run until a
        time limit.
    strategy : {"future", "final", "episode", "random"}
        Where goals are taken from.
    ratio : float
        Probability that a transition is relabelled; k / (k + 1) for the paper's k goals to each transition.
    achieved_goal, desired_goal : str
        Keys of the goals in the observation; of nested ones with dots, as in ``"task.goal"``.

    Raises
    ------
    TypeError, ValueError
        If the observations have no such goals, or an argument is out of its range. When sampling, if a function
        returns another shape, or numbers that are not finite. Whatever is raised, the buffer is unchanged.
    RuntimeError
        When sampling, if a function raises, naming it.

    References
    ----------
    Andrychowicz et al. (2017), Hindsight Experience Replay, sections 3.3 and 4.5.

    Examples
    --------
    Ten steps along a line, with the goal to stand at 99:

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
    """

    def __init__(
        self,
        inner: Replay,
        reward_fn: GoalFunction,
        *,
        terminated_fn: GoalFunction | None = None,
        strategy: Strategy = "future",
        ratio: float = 0.8,
        achieved_goal: str = "achieved_goal",
        desired_goal: str = "desired_goal",
    ) -> None:
        super().__init__(inner)
        for name, function in (("reward_fn", reward_fn), ("terminated_fn", terminated_fn)):
            if not callable(function) and not (name == "terminated_fn" and function is None):
                raise TypeError(
                    f"{name} is {function!r}; expected a function of (achieved_goal, desired_goal, info), such as "
                    "env.unwrapped.compute_reward"
                )
        check_choice("strategy", strategy, Strategy)
        self.reward_fn = reward_fn
        self.terminated_fn = terminated_fn
        self.strategy: Strategy = strategy
        self.ratio = check_unit("ratio", ratio)
        self._refuse_a_second(inner)
        self._refuse_wrong_goals(achieved_goal, desired_goal)
        spec = self._storage.spec
        self._achieved = (f"next_obs.{achieved_goal}",)
        self._desired = (f"obs.{desired_goal}", f"next_obs.{desired_goal}")
        self._info = tuple(leaf.name for leaf in spec.leaves if leaf.name.partition(".")[0] in spec.extra)
        self._is_vectorised = terminated_fn is None
        packed = self._storage.packed
        self._is_direct = packed is not None and packed.is_single and inner._is_plain
        if packed is not None:
            self._goal = packed.places_of_goal(self._achieved[0], self._desired)
            self._leaf = spec.leaves[self._goal[0]]
        self._storage.is_fallible = True

    @staticmethod
    def _refuse_a_second(inner: Replay) -> None:
        layer: Any = inner
        while isinstance(layer, ReplayWrapper):
            if isinstance(layer, HindsightReplay):
                raise ValueError("inner is relabelled by a HindsightReplay already; expected one of them at most")
            layer = layer.inner

    def _refuse_wrong_goals(self, achieved: str, desired: str) -> None:
        """Raise unless the observations have two goals of one shape and dtype."""
        spec = self._storage.spec
        fields = {leaf.name: leaf.field for leaf in spec.leaves}
        if not isinstance(spec["obs"], dict):
            raise TypeError(
                f"obs is {spec['obs']!r}; expected a dict with the goals {achieved!r} and {desired!r}, as the "
                "environments of Gymnasium-Robotics have"
            )
        for option, key in (("achieved_goal", achieved), ("desired_goal", desired)):
            if f"obs.{key}" not in fields:
                raise ValueError(
                    f"obs has no field {key!r}, only {', '.join(map(repr, spec['obs']))}; expected one with the "
                    f"goal; pass its key as {option}="
                )
        if achieved == desired:
            raise ValueError(f"achieved_goal and desired_goal are both {achieved!r}; expected two fields of obs")
        if fields[f"obs.{achieved}"] != fields[f"obs.{desired}"]:
            raise ValueError(
                f"obs.{desired} is {fields[f'obs.{desired}']!r}; expected {fields[f'obs.{achieved}']!r}, as "
                f"obs.{achieved} is, since achieved goals take its place; give both one shape and dtype"
            )
        if self._storage.stack > 1 and len(fields[f"obs.{achieved}"].shape) >= 2:
            raise ValueError(
                f"stack is {self._storage.stack}, and so obs.{achieved} is a stack of goals; expected single ones; "
                "stack the other observations in the environment, with stack=1 here"
            )

    # -- The verb --------------------------------------------------------------------------------------------

    def _fields(self, batch_size: int) -> dict[str, Any]:
        if not self._is_direct:
            return super()._fields(batch_size)
        fields = self.inner._fields(batch_size)
        return self._relabel_at_once(fields, fields["indices"])

    def _transitions(self, indices: npt.NDArray[np.int64]) -> dict[str, Any]:
        if not self._is_direct:
            return super()._transitions(indices)
        return self._relabel_at_once(self.inner._transitions(indices), indices)

    def _relabel_at_once(self, fields: dict[str, Any], indices: npt.NDArray[np.int64]) -> dict[str, Any]:
        """A batch of single steps with the goals and the rewards that a batch of relabelled windows has."""
        packed = self._storage.packed
        chosen = constant(indices.shape[0], False, np.bool_)
        if self.ratio > 0.0 and packed is not None:
            uniforms = self._storage.rng.random((2, indices.shape[0]))
            places, spare = packed.relabel(fields, indices, uniforms, self.ratio, self.strategy, self._goal, chosen)
            if places.shape[0]:
                shape, dtype = (places.shape[0], *self._leaf.shape), self._leaf.dtype
                achieved = np.ndarray(shape, dtype, spare)
                goals = np.ndarray(shape, dtype, spare, spare.shape[0] // 2)
                asked = _Goals(achieved, goals, self._info_of(indices[places]) if self._info else {})
                kernels.put(self._rewards(asked), places, fields["reward"])
                if self.terminated_fn is not None:
                    ends = self._ends(asked)
                    fields["terminated"][places] = ends
                    fields["discount"][places] = np.where(ends, 0.0, self.gamma)
        last = [(name, fields.pop(name)) for name in ("weights", "probabilities", "indices")]
        fields["relabelled"] = chosen
        fields.update(last)
        return fields

    def window(self, indices: npt.NDArray[np.int64]) -> Window:
        """The wrapped buffer's windows, of which a share of `ratio` has another goal. O(B n)."""
        window = self.inner.window(indices)
        count = window.length.shape[0]
        chosen = np.zeros(count, np.bool_)
        if self.ratio > 0.0:  # at 0 nothing is drawn, so that batches are those of the wrapped buffer
            uniforms = self._storage.rng.random((2, count))
            np.less(uniforms[0], self.ratio, out=chosen)
            rows = chosen.nonzero()[0]
            if rows.size:
                self._relabel(window, rows, uniforms[1, rows])
        window.added = (*window.added, ("relabelled", chosen))
        return window

    def _relabel(self, window: Window, rows: npt.NDArray[np.int64], uniforms: npt.NDArray[np.float64]) -> None:
        """Give the windows in `rows` another goal, and the rewards and the ends that come with it."""
        anchors, lengths = window.indices[rows], window.length[rows]
        # Every step of these windows, one window after another: which of them it is of, and its place there
        if self.n_step == 1:
            owner = begins = np.arange(rows.size)
            place, steps = np.zeros(rows.size, np.int64), anchors
        else:
            owner, begins = np.repeat(np.arange(rows.size), lengths), lengths.cumsum() - lengths
            place = np.arange(owner.size) - begins[owner]
            steps = anchors[owner] + place * self.num_envs

        (outcomes,) = self._storage.read(np.concatenate((self._goal_steps(anchors, uniforms), steps)), self._achieved)
        goals, achieved = outcomes[: rows.size], outcomes[rows.size :]
        asked = _Goals(achieved, goals if self.n_step == 1 else goals[owner], self._info_of(steps))
        rewards = self._rewards(asked)
        if self.terminated_fn is not None:
            ends = self._ends(asked)
            length = np.minimum.reduceat(np.where(ends, place + 1, lengths[owner]), begins)
            window.terminated[rows] = ends[begins + length - 1]
            window.truncated[rows] &= length == lengths
            window.length[rows] = length
            rewards[place >= length[owner]] = 0.0
        window.reward[rows[owner], place] = rewards
        window.rewritten = (*window.rewritten, *(Rewrite(field, rows, goals) for field in self._desired))

    def _goal_steps(self, anchors: npt.NDArray[np.int64], uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The stored step whose outcome becomes the goal of each anchor, chosen by its number in [0, 1)."""
        storage = self._storage
        if self.strategy == "random":
            return storage.ring.uniform(uniforms)
        return storage.episodes.pick(anchors, uniforms, self.strategy)

    def _info_of(self, steps: npt.NDArray[np.int64]) -> dict[str, Any]:
        """The extra fields of the steps."""
        spec = self._storage.spec
        return spec.unflatten(self._storage.read(steps, self._info), spec.extra) if spec.extra else {}

    def _rewards(self, goals: "_Goals") -> npt.NDArray[Any]:
        """The rewards of the steps under their goals, checked, in an array of their own."""
        result = goals.ask("reward_fn", self.reward_fn)
        if result.dtype.kind not in "biuf":
            raise TypeError(
                f"{_called('reward_fn', self.reward_fn)} returned dtype {result.dtype}; expected real numbers"
            )
        if result.dtype == self._storage.reward_dtype:
            rewards = result.copy()
        else:
            with np.errstate(over="ignore"):
                rewards = result.astype(self._storage.reward_dtype)
        wrong = kernels.first_not_finite(rewards)
        if wrong >= 0:
            raise ValueError(
                f"{_called('reward_fn', self.reward_fn)} returned {result[wrong]}; expected finite {rewards.dtype}"
            )
        return rewards

    def _ends(self, goals: "_Goals") -> npt.NDArray[np.bool_]:
        """Whether each of the steps terminates its episode under its goal."""
        ends = self._ask_ends(goals)
        missed = np.zeros(0, np.int64) if self._is_vectorised else goals.missed()[:8]
        if missed.size:
            # Many a compute_terminated takes the norm over all rows: then a row's answer depends on the others
            probe = goals.take(missed).around_reached()
            alone = [self._ask_ends(probe.take(np.array([row])))[0] for row in range(probe.achieved.shape[0])]
            if (self._ask_ends(probe) != alone).any():
                raise ValueError(
                    f"{_called('terminated_fn', self.terminated_fn)} answers otherwise for a row alone than for the "
                    f"same among others, so it is not vectorised; {_wrapped('terminated_fn')}"
                )
            self._is_vectorised = True
        return ends

    def _ask_ends(self, goals: "_Goals") -> npt.NDArray[np.bool_]:
        result = goals.ask("terminated_fn", self.terminated_fn)
        if result.dtype != np.bool_:
            raise TypeError(
                f"{_called('terminated_fn', self.terminated_fn)} returned dtype {result.dtype}; expected bool"
            )
        return result


@dataclass(slots=True)
class _Goals:
    """What the user's functions are asked about: M steps, the goal achieved in each, and the one it should achieve."""

    achieved: npt.NDArray[Any]
    desired: npt.NDArray[Any]
    info: dict[str, Any]

    def ask(self, option: str, function: Any) -> npt.NDArray[Any]:
        """What `function` returns for these goals, which it may change; refuses another shape than (M,)."""
        info = map_tree(lambda array, _path: array.copy(), self.info) if self.info else {}
        try:
            result = function(self.achieved.copy(), self.desired.copy(), info)
        except Exception as error:
            raise RuntimeError(
                f"{_called(option, function)} raised {type(error).__name__}: {error}; it was given {self}, one row for "
                "each step"
            ) from error
        is_array = type(result) is np.ndarray
        array = result if is_array else as_array(f"what {_called(option, function)} returned", result)
        if array.shape != self.achieved.shape[:1]:
            raise ValueError(
                f"{_called(option, function)} returned shape {array.shape}; expected {self.achieved.shape[:1]}, one "
                f"number for each row of {self}; {_wrapped(option)}"
            )
        return array

    def __str__(self) -> str:
        return f"achieved_goal and desired_goal of shape {self.achieved.shape}, {self.achieved.dtype}"

    def missed(self) -> npt.NDArray[np.int64]:
        """The rows in which the goal is not what is achieved."""
        differs = (self.achieved != self.desired).reshape(self.achieved.shape[0], -1)
        return np.flatnonzero(differs.any(axis=1))

    def take(self, rows: npt.NDArray[np.int64]) -> "_Goals":
        """Some of the rows."""
        info = map_tree(lambda array, _path: array[rows], self.info)
        return _Goals(self.achieved[rows], self.desired[rows], info)

    def around_reached(self) -> "_Goals":
        """These rows, then the same steps each with what it achieves for its goal, and these rows again."""
        return _Goals(
            np.concatenate((self.achieved, self.achieved, self.achieved)),
            np.concatenate((self.desired, self.achieved, self.desired)),
            map_tree(lambda array, _path: np.concatenate((array, array, array)), self.info),
        )


def _called(option: str, function: Any) -> str:
    """What an error calls a function of the user's."""
    return f"{option} {getattr(function, '__qualname__', None) or repr(function)}"


def _wrapped(option: str) -> str:
    """How to make a function that takes one pair of goals fit."""
    return (
        "if it takes one goal at a time, wrap it: lambda achieved, desired, info: "
        f"np.array([{option}(a, d, {{}}) for a, d in zip(achieved, desired)])"
    )
