"""The spec of a transition: names, shapes and dtypes of its fields."""

import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from replaykit.checks import nearest
from replaykit.field import Field, FieldNameError, Leaf, as_array
from replaykit.rows import nested_row
from replaykit.trees import Tree, entries_of, leaves_of, map_tree

DERIVED = (
    *("discount", "length", "weights", "probabilities", "indices"),
    *("relabelled", "loss_mask", "is_first", "step_indices", "source"),
)
"""Fields that exist only in batches."""
CORE = ("obs", "action", "reward", "next_obs", "terminated", "truncated")
"""Fields of every transition, in the order of ``add``'s arguments."""
_RESERVED = frozenset(
    (*CORE, *DERIVED, "mask", "td_error", "keys", "values", "items", "to_torch", "to_numpy", "to_tensordict", "of")
)
_DONE = "; in place of a done flag pass terminated= and truncated=, since a time limit truncates an episode"


class _Required:
    """A placeholder for an argument that was not passed."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


class Spec:
    """The fields of a transition; `next_obs` has those of `obs`. Arguments that are not fields raise TypeError.

    Parameters
    ----------
    obs, action : Field, or dict or tuple of them to any depth
    reward : Field, optional
        A float32 or float64 scalar; float32 by default. With the shape (k,), a step has k rewards, for example of
        several agents or objectives. Each of them is summed separately, in ``batch.reward`` of shape (B, k).
    **extra : Field, or dict or tuple of them
        Additional fields, passed to ``add`` by keyword. A batch has the value of the window's first step, or of the
        last step with ``Field(..., step="last")``. Names of batch fields and of ``add``'s arguments raise ValueError.

    Examples
    --------
    >>> obs = {"image": Field((84, 84), "uint8"), "x": Field()}
    >>> spec = Spec(obs, action=Field((), "int64"))
    >>> spec
    Spec(obs={'image': Field((84, 84), uint8), 'x': Field((), float32)}, action=Field((), int64))
    >>> spec.nbytes  # of one transition, next_obs included
    14134
    """

    def __init__(self, obs: Tree, action: Tree, reward: Field | None = None, **extra: Tree) -> None:
        reward = Field((), np.float32) if reward is None else reward
        if not _is_of_reward(reward):
            wanted = (
                "expected Field((), 'float32') or Field((), 'float64'), or with the shape (k,) for k rewards per step"
            )
            raise ValueError(f"reward is {reward!r}; {wanted}")
        for name in extra:
            if name in _RESERVED or name.startswith("_") or not name.isidentifier() or keyword.iskeyword(name):
                reason = "has a name that replaykit uses itself, or that is not an identifier"
                raise ValueError(f"extra field {name!r} {reason}; choose another")
        obs, action, flag = _frozen(obs, "obs"), _frozen(action, "action"), Field((), np.bool_)
        self._trees: dict[str, Tree] = dict(zip(CORE, (obs, action, reward, obs, flag, flag), strict=True))
        for path, field in leaves_of({"obs": obs, "action": action}):
            if field.step == "last":
                raise ValueError(f"{path} is {field!r}; expected step='first': only extra fields may have another step")
        self._trees |= {name: _frozen(tree, name) for name, tree in extra.items()}
        self.extra: tuple[str, ...] = tuple(extra)
        self.leaves: tuple[Leaf, ...] = tuple(Leaf(path, field) for path, field in leaves_of(self._trees))
        names = [leaf.name for leaf in self.leaves]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two fields have the name {name}, since a key contains a dot; rename one of them")
        self.is_flat: bool = all(isinstance(tree, Field) for tree in self._trees.values())

    @classmethod
    def from_spaces(cls, observation_space: Any, action_space: Any, **extra: Tree) -> "Spec":
        """The spec of a transition for these Gymnasium spaces of a single environment.

        Raises TypeError for spaces whose samples have no fixed shape (Text, Sequence, Graph, OneOf) and unknown spaces.

        Examples
        --------
        >>> from gymnasium.spaces import Box, Discrete
        >>> Spec.from_spaces(Box(-1, 1, (3,)), Discrete(2))
        Spec(obs=Field((3,), float32), action=Field((), int64))
        """
        return cls(_from_space(observation_space, "obs"), _from_space(action_space, "action"), **extra)

    @classmethod
    def from_env(cls, env: Any, **extra: Tree) -> "Spec":
        """The spec of a transition of a Gymnasium environment, single or vector. Errors as in `from_spaces`."""
        if hasattr(env, "single_observation_space"):
            return cls.from_spaces(env.single_observation_space, env.single_action_space, **extra)
        if hasattr(env, "observation_space"):
            return cls.from_spaces(env.observation_space, env.action_space, **extra)
        raise TypeError(f"env is a {type(env).__name__}; expected a Gymnasium environment, single or vector")

    @classmethod
    def from_example(cls, transition: Mapping[str, Tree]) -> "Spec":
        """The spec that fits an example `transition`, a mapping with at least ``obs`` and ``action``.

        Arrays keep their dtype. Python floats become float32, and Python ints become int64. Keys with dots are nested:
        ``"obs.position"`` is the entry ``position`` of a dict `obs`.

        A row of a LeRobot dataset is also accepted: ``observation`` is `obs`, and ``next.reward`` is the reward. The
        keys ``timestamp``, ``frame_index``, ``episode_index``, ``index``, ``task_index``, ``task`` and ``next.done``
        are ignored. Any other key becomes an extra field, such as ``next`` for ``next.success``. Raises FieldNameError
        without ``obs`` or ``action``, and TypeError for values that are not numbers.

        Examples
        --------
        >>> import numpy as np
        >>> Spec.from_example({"obs": np.zeros(3, np.float32), "action": 1, "log_prob": -0.7})
        Spec(obs=Field((3,), float32), action=Field((), int64), log_prob=Field((), float32))
        >>> row = {"observation.state": np.zeros(6), "action": np.zeros(6), "index": 3}
        >>> Spec.from_example(row)
        Spec(obs={'state': Field((6,), float64)}, action=Field((6,), float64))
        """
        transition = nested_row(transition)
        for name in ("obs", "action"):
            if name not in transition:
                raise FieldNameError(f"the example has no {name!r}; expected at least 'obs' and 'action'")
        trees = {name: map_tree(_field_of, tree, name) for name, tree in transition.items() if name not in CORE[2:]}
        reward = transition.get("reward", 0.0)
        is_double = isinstance(reward, np.ndarray | np.floating) and reward.dtype == np.float64
        shape = as_array("reward", reward).shape
        return cls(reward=Field(shape, np.float64 if is_double else np.float32), **trees)

    @property
    def nbytes(self) -> int:
        """Size of one transition in bytes, including `next_obs`."""
        return sum(leaf.field.nbytes for leaf in self.leaves)

    def __getitem__(self, name: str) -> Tree:
        return self._trees[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._trees)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._trees == other._trees

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        reward = ("reward",) if self._trees["reward"] != Field((), np.float32) else ()
        names = ("obs", "action", *reward, *self.extra)
        return f"Spec({', '.join(f'{name}={self._trees[name]!r}' for name in names)})"

    def flatten(self, values: tuple[Tree, ...], extras: Mapping[str, Tree]) -> tuple[Any, ...]:
        """The values of all leaves, in order. Raises FieldNameError for a missing or unknown field or nested key."""
        for name in extras:
            if name not in self.extra:
                meant = _DONE if name == "done" else nearest(name, (*self.extra, *CORE, "mask", "td_error"))
                raise FieldNameError(f"unknown field {name!r}; expected {', '.join((*CORE, *self.extra))}{meant}")
        for name in self.extra:
            if name not in extras:
                raise FieldNameError(f"field {name!r} is missing; the spec has it, so pass {name}=")
            values += (extras[name],)
        for name, value in zip(CORE, values, strict=False):
            if value is REQUIRED:
                raise FieldNameError(f"field {name!r} is missing; pass {name}={_DONE}")
        if self.is_flat:
            return values
        trees = zip(self._trees.items(), values, strict=True)
        return tuple(leaf for (name, tree), value in trees for leaf in _leaves(tree, value, name))

    def flatten_fields(self, fields: Mapping[str, Tree]) -> list[tuple[Leaf, Any]]:
        """Pairs of a leaf and its value, for some fields. Raises FieldNameError for an unknown field or nested key."""
        found = list[tuple[Leaf, Any]]()
        for name, value in fields.items():
            if name not in self._trees:
                expected = f"expected {', '.join(self._trees)}{nearest(name, self._trees)}"
                raise FieldNameError(f"unknown field {name!r}; {expected}")
            leaves = [leaf for leaf in self.leaves if leaf.name == name or leaf.name.startswith(f"{name}.")]
            found += zip(leaves, _leaves(self._trees[name], value, name), strict=True)
        return found

    def unflatten(self, flat: Sequence[Any], names: tuple[str, ...]) -> dict[str, Tree]:
        """The fields `names`, nested as in the spec. `flat` has the values of all their leaves, in order."""
        leaves = iter(flat)
        return {name: map_tree(lambda _field, _path: next(leaves), self._trees[name]) for name in names}


def _is_of_reward(field: Any) -> bool:
    """Whether a reward may have this field: a float32 or float64 scalar or vector."""
    if not isinstance(field, Field) or len(field.shape) > 1 or 0 in field.shape:
        return False
    return field in (Field(field.shape, np.float32), Field(field.shape, np.float64))


def _frozen(tree: Tree, name: str) -> Tree:
    """A copy of a tree of fields. Raises TypeError for leaves that are not a Field and keys that are not str."""
    if isinstance(tree, Field):
        return tree
    if isinstance(tree, tuple | list):
        return tuple(_frozen(entry, f"{name}.{i}") for i, entry in enumerate(tree))
    if not isinstance(tree, Mapping):
        remedy = "; pass Gymnasium spaces to Spec.from_spaces" if hasattr(tree, "sample") else ""
        raise TypeError(f"{name} is {tree!r}; expected a Field, or a dict or tuple of them{remedy}")
    for key in tree:
        if not isinstance(key, str):
            raise TypeError(f"{name} has the key {key!r}; expected str keys")
    return {key: _frozen(entry, f"{name}.{key}") for key, entry in tree.items()}


def _leaves(tree: Tree, value: Tree, path: str) -> Iterator[Any]:
    """The leaves of a value, which must have the structure of a tree of fields."""
    if isinstance(tree, Field):
        yield value
        return
    if isinstance(tree, dict):
        if not isinstance(value, Mapping):
            raise TypeError(f"{path} is a {type(value).__name__}; expected a dict with the keys {list(tree)}")
        for key in value:
            if key not in tree:
                raise FieldNameError(f"{path} has the unknown key {key!r}; expected {list(tree)}{nearest(key, tree)}")
    elif not isinstance(value, tuple | list) or len(value) != len(tree):
        got = f"{len(value)} entries" if isinstance(value, tuple | list) else f"a {type(value).__name__}"
        raise ValueError(f"{path} is {got}; expected a tuple of {len(tree)} entries")
    for key, entry in entries_of(tree):
        if isinstance(tree, dict) and key not in value:
            raise FieldNameError(f"{path} lacks the key {key!r}; expected {list(tree)}, got {list(value)}")
        yield from _leaves(entry, value[key], f"{path}.{key}")


def _field_of(value: Any, path: str) -> Field:
    """The field that fits `value`."""
    array = as_array(path, value)
    if isinstance(value, float) and not isinstance(value, np.floating):
        return Field((), np.float32)
    if array.dtype.kind not in "biufc":
        raise TypeError(f"{path} of the example has dtype {array.dtype}; expected numbers or booleans")
    return Field(array.shape, array.dtype)


def _from_space(space: Any, path: str) -> Tree:
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return {key: _from_space(entry, f"{path}.{key}") for key, entry in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_from_space(entry, f"{path}.{i}") for i, entry in enumerate(space.spaces))
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        return Field(tuple(space.shape or ()), space.dtype)
    got = f"{path} is a {type(space).__name__} space, which has no fixed shape and dtype"
    accepted = "Box, Discrete, MultiBinary, MultiDiscrete, or a Dict or Tuple of them"
    raise TypeError(f"{got}; expected {accepted}; flatten or encode it to one of these first")
