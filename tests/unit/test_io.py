"""Reading and writing of Minari data sets, invalid arguments, and interrupts."""

import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from replaykit import (
    CombinedReplay,
    Field,
    FieldNameError,
    HindsightReplay,
    PrioritizedBuffer,
    ReplayBuffer,
    Spec,
    record,
)
from replaykit.io import from_minari, from_npz, to_minari, to_npz
from tests.helpers import FLAT, GOAL_SPEC, filled, goal_episodes, sparse, step, unchanged

minari = pytest.importorskip("minari")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """The directory of Minari's data sets in a test."""
    path = tmp_path / "datasets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(path))
    return path


def dataset_of(episodes, observation_space, action_space, name="test/given-v0"):
    """A data set written by Minari itself, from dicts of the fields of its episodes."""
    buffers = [minari.data_collector.EpisodeBuffer(**episode) for episode in episodes]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for an author and more
        return minari.create_dataset_from_buffers(
            name, buffers, observation_space=observation_space, action_space=action_space
        )


def episode(numbers, actions=None, **changes):
    """An episode that ends by a time limit."""
    steps = len(numbers) - 1
    fields = {
        "observations": np.asarray(numbers),
        "actions": np.zeros(steps, np.int64) if actions is None else actions,
        "rewards": np.arange(steps) + 0.5,
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
    }
    return fields | changes


LINE = spaces.Box(-np.inf, np.inf, (), np.float32), spaces.Discrete(2)


def line(*lengths, **changes):
    """A data set of episodes of these lengths. Observations count all steps of all episodes."""
    numbers, ends = np.arange(100, dtype=np.float32), np.cumsum([length + 1 for length in lengths])
    return dataset_of([episode(part, **changes) for part in np.split(numbers, ends)[:-1]], *LINE)


# -- From Minari ---------------------------------------------------------------------------------------------


def test_every_step_has_its_true_next_observation():
    """The last observation of an episode is the next_obs of its last step. Both flags are kept."""
    ends = {"terminations": np.array([False, True]), "truncations": np.array([False, False])}
    data = dataset_of([episode([0.0, 1.0, 2.0]), episode([5.0, 6.0, 7.0], **ends)], *LINE)
    buffer = from_minari(data)
    assert buffer.capacity == len(buffer) == 4 and buffer.spec == Spec(Field(()), Field((), np.int64))
    stored = buffer.stored()
    assert buffer.read(stored, "obs").tolist() == [0.0, 1.0, 5.0, 6.0]
    assert buffer.read(stored, "next_obs").tolist() == [1.0, 2.0, 6.0, 7.0]
    assert buffer.read(stored, "reward").tolist() == [0.5, 1.5, 0.5, 1.5]
    assert buffer.read(stored, "terminated").tolist() == [False, False, False, True]
    assert buffer.read(stored, "truncated").tolist() == [False, True, False, False]


def test_nested_spaces_come_back():
    """Dicts and tuples of spaces of any depth and key order are read as written."""
    observation_space = spaces.Dict(
        {"z": spaces.Box(0, 255, (2, 3), np.uint8), "a": spaces.Tuple([spaces.Discrete(9), spaces.MultiBinary(2)])}
    )
    action_space = spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Dict({"b": spaces.MultiDiscrete([3, 4])})])
    observations = {
        "z": np.arange(18, dtype=np.uint8).reshape(3, 2, 3),
        "a": (np.array([0, 1, 2]), np.array([[0, 1], [1, 1], [1, 0]], np.int8)),
    }
    actions = (np.ones((2, 2), np.float32), {"b": np.array([[1, 2], [2, 3]])})
    given = episode([0, 1, 2], actions, observations=observations)
    batch = from_minari(dataset_of([given], observation_space, action_space), n_step=2, seed=0).sample(20)
    first = batch.indices == 0
    assert batch.length[first].tolist() == [2] * first.sum()
    assert (batch.next_obs["z"][first] == observations["z"][2]).all()
    assert (batch.obs["a"][0][first] == 0).all() and (batch.obs["a"][1][first] == [0, 1]).all()
    assert (batch.action[1]["b"][first] == [1, 2]).all()


def test_an_episode_without_a_flag_is_one():
    """Windows do not cross the end of an episode without a flag, and no flag is added."""
    none = np.zeros(2, bool)
    data = line(2, 2, terminations=none, truncations=none)
    buffer = from_minari(data, n_step=5)
    assert buffer.window(np.arange(4)).length.tolist() == [2, 1, 2, 1]
    assert not buffer.read(np.arange(4), "truncated").any()


def test_a_part_of_a_data_set_is_read():
    """Only the episodes selected by a filter are read."""
    data = line(1, 3, 2).filter_episodes(lambda episode: len(episode.rewards) != 3)
    assert from_minari(data).read([0, 1, 2], "obs").tolist() == [0.0, 6.0, 7.0]


def test_a_buffer_of_another_kind_is_filled():
    """Wrappers, lanes and dtypes may differ. Running episodes of the buffer end."""
    inner = PrioritizedBuffer(100, Spec(Field((), np.float64), Field((), np.int8)), num_envs=2, n_step=9)
    inner.add([90.0, 91.0], [0, 0], [0.0, 0.0], [92.0, 93.0], [False] * 2, [False] * 2)
    buffer = CombinedReplay(inner)
    assert from_minari(line(5, 3, 4), buffer) is buffer
    assert [int((buffer.stored() % 2 == lane).sum()) for lane in (0, 1)] == [6, 8]  # 1 + 5, and 1 + 3 + 4
    assert buffer.window(buffer.stored()).length.tolist() == [1, 5, 4, 3, 2, 1, 1, 3, 2, 1, 4, 3, 2, 1]
    assert buffer.read([2], "obs").dtype == np.float64


def test_new_lanes_have_room_for_all_steps():
    """By default, each lane has room for the fullest one. With a smaller capacity, each lane keeps its newest steps."""
    buffer = from_minari(line(5, 1, 1, 1), num_envs=2)
    assert len(buffer) == 8 and buffer.capacity == 10
    small = from_minari(minari.load_dataset("test/given-v0"), capacity=2)
    assert small.read(small.stored(), "obs").tolist() == [8.0, 10.0]


def test_infos_become_extra_fields():
    """Infos with one entry per step become extra fields. Minari's additional entry for the reset is skipped."""
    infos = {"cost": np.array([0.0, 1.0, 2.0]), "speed": {"_index_0": np.array([3, 4])}}
    data = dataset_of([episode([0.0, 1.0, 2.0], infos=infos)], *LINE)
    spec = Spec(Field(()), Field((), np.int64), cost=Field(()), speed=(Field((), np.int64),))
    buffer = from_minari(data, ReplayBuffer(5, spec))
    assert buffer.read([0, 1], "cost").tolist() == [1.0, 2.0] and buffer.read([0, 1], "speed.0").tolist() == [3, 4]
    more = ReplayBuffer(5, Spec(Field(()), Field((), np.int64), mood=Field(())))
    with unchanged(more, FieldNameError, r"'test/given-v0', episode 0: the infos have no 'mood'.*\['cost', 'speed'\]"):
        from_minari(data, more)


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    """The given buffer is unchanged, even if an earlier episode would fit."""
    with pytest.raises(TypeError, match="dataset is a str; expected a minari.MinariDataset"):
        from_minari("test/given-v0")
    data = line(2, 2)
    buffer = filled(ReplayBuffer(5, FLAT), 3)
    with unchanged(buffer, ValueError, r"data set 'test/given-v0' has the spec Spec\(obs=Field\(\(\).*expected"):
        from_minari(data, buffer)
    for option in ("capacity", "n_step"):
        with unchanged(buffer, TypeError, f"{option} is an option of a new buffer"):
            from_minari(data, buffer, **{option: 3})
    with pytest.raises(TypeError, match="buffer is a int"):
        from_minari(data, 100)
    with pytest.raises(TypeError, match="n_steps"):
        from_minari(data, n_steps=3)
    text = spaces.Text(5, charset="ab")
    words = dataset_of([episode([0, 1], observations=["a", "b"])], text, spaces.Discrete(2), "test/words-v0")
    with pytest.raises(TypeError, match="'test/words-v0': obs is a Text space"):
        from_minari(words)
    bad = [episode([0.0, 1.0]), episode([0.0, 1.0], rewards=np.array([np.nan]))]
    nan = dataset_of(bad, *LINE, "test/nan-v0")
    numbers = ReplayBuffer(5, Spec(Field(()), Field((), np.int64)))
    with unchanged(numbers, ValueError, "'test/nan-v0', episode 1: reward contains nan"):
        from_minari(nan, numbers)
    with pytest.raises(ValueError, match="'test/nan-v0', episode 1: reward contains nan"):
        from_minari(nan, storage=tmp_path / "files")
    assert not (tmp_path / "files").exists()
    short = dataset_of([episode([0.0, 1.0, 2.0], observations=np.zeros(2))], *LINE, "test/short-v0")
    with pytest.raises(ValueError, match=r"episode 0: observations has shape \(2,\); expected 3 entries for 2 steps"):
        from_minari(short)


# -- To Minari -----------------------------------------------------------------------------------------------


def test_a_recorded_environment_is_recovered():
    """The data set has the environment's spaces and spec and the user's metadata. Minari can load it."""
    env = gymnasium.make("CartPole-v1")
    buffer = ReplayBuffer.from_env(env, 1000)
    recorded = record(env, buffer)
    recorded.action_space.seed(0)
    for seed in range(3):
        recorded.reset(seed=seed)
        over = False
        while not over:
            _, _, terminated, truncated, _ = recorded.step(recorded.action_space.sample())
            over = terminated or truncated
    metadata = {"author": "A. Nyone", "author_email": {"a@example.org", "b@example.org"}, "description": "random"}
    to_minari(buffer, "cartpole/random-v0", env=env, metadata=metadata)
    assert set(minari.list_local_datasets()) == {"cartpole/random-v0"}
    assert minari.namespace.list_local_namespaces() == ["cartpole"]
    data = minari.load_dataset("cartpole/random-v0")
    assert data.observation_space == env.observation_space and data.action_space == env.action_space
    assert data.recover_environment().spec.id == "CartPole-v1"
    assert data.storage.metadata["author"] == {"A. Nyone"} and data.storage.metadata["description"] == "random"
    assert len(data.storage.metadata["author_email"]) == 2
    assert data.total_episodes == 3 and data.total_steps == len(buffer)
    assert all(each.terminations[-1] and len(each.observations) == len(each.rewards) + 1 for each in data)
    twin = from_minari(data)
    assert twin.spec == buffer.spec
    assert (twin.read(twin.stored(), "next_obs") == buffer.read(buffer.stored(), "next_obs")).all()


def test_spaces_of_a_vector_environment_are_those_of_one():
    """For a vector environment, the spaces are those of a single environment."""
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2)
    buffer = ReplayBuffer.from_env(envs, 100)
    recorded = record(envs, buffer)
    recorded.reset(seed=0)
    for _ in range(3):
        recorded.step(np.zeros(2, np.int64))
    data = to_minari(buffer, "cartpole/two-v0", env=envs)
    assert data.observation_space == envs.single_observation_space and data.total_episodes == 2


def episodes_that_are_not_whole():
    """A buffer of four episodes: one without its beginning, a complete one, an ended one, and a running one."""
    buffer = ReplayBuffer(8, Spec(Field(()), Field((), np.int64)))
    for number in range(10):
        buffer.add(number, 0, 1.0, number + 1, number == 3, number == 5)
        if number == 7:
            buffer.end_episode()
    return buffer


@pytest.mark.parametrize(
    ("options", "starts", "ends", "added"),
    [
        ({}, [2, 4, 6, 8], [True, True, False, False], []),
        ({"unfinished": "truncate"}, [2, 4, 6, 8], [True, True, True, True], [2, 3]),
        ({"unfinished": "drop"}, [2, 4], [True, True], []),
        ({"overwritten": "drop"}, [4, 6, 8], [True, False, False], []),
    ],
)
def test_episodes_that_are_not_whole_are_written_as_asked(options, starts, ends, added):
    """Incomplete episodes are written unchanged by default. A flag is only set on request, and the metadata show it."""
    buffer = episodes_that_are_not_whole()
    data = to_minari(buffer, "test/parts-v0", **options)
    assert [each.observations.tolist() for each in data] == [[start, start + 1, start + 2] for start in starts]
    assert [bool(each.terminations[-1] or each.truncations[-1]) for each in data] == ends
    assert not any(each.truncations[-1] for each in data if each.terminations[-1])
    known = list(data.storage.get_episode_metadata(data.episode_indices))
    assert [each["has_beginning"] for each in known] == [start != 2 for start in starts]
    assert [number for number, each in enumerate(known) if each["truncation_added"]] == added
    assert not buffer.read(buffer.stored()[-1:], "truncated").any()


def test_images_are_written_without_loss():
    """Images are written losslessly, although Minari's default is JPEG. Stacked frames are written one by one."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 40, 40, 3), np.uint8)
    buffer = ReplayBuffer(10, Spec(Field((40, 40, 3), np.uint8), Field((), np.int64)), stack=4)
    for number in range(5):
        buffer.add(images[number], 0, 1.0, images[number + 1], False, number == 4)
    data = to_minari(buffer, "images-v0")
    assert np.array_equal(data[0].observations, images)
    twin = from_minari(data, stack=4)
    assert (twin.read([3], "obs") == buffer.read([3], "obs")).all()


def test_wrappers_do_not_change_what_is_written(tmp_path):
    """The original goals are written, not the relabelled ones."""
    buffer = HindsightReplay(ReplayBuffer(20, GOAL_SPEC, seed=0), sparse, ratio=1.0)
    goal_episodes(buffer, [3, 2])
    buffer.sample(10)
    data = to_minari(buffer, "test/goals-v0")
    to_npz(buffer, tmp_path / "goals.npz")
    stored = buffer.read(buffer.stored(), "obs.desired_goal")
    assert np.array_equal(np.concatenate([each.observations["desired_goal"][:-1] for each in data]), stored)
    assert np.array_equal(np.load(tmp_path / "goals.npz")["obs.desired_goal"], stored)


def test_what_minari_cannot_hold_is_refused_and_nothing_is_left(root):
    """Data that Minari cannot represent raises an error that names it. No directory is left."""

    def refused(error, match, buffer, name="test/bad-v0", **options):
        with unchanged(buffer, error, match):
            to_minari(buffer, name, **options)
        assert not root.exists() or not list(root.iterdir())

    flat = filled(ReplayBuffer(5, FLAT), 3)  # each next_obs is half a step further than the next obs
    refused(ValueError, "next_obs of the step with index 0 is not obs of the next step", flat)
    chain = ReplayBuffer(5, FLAT)
    chain.add(**step(1.0))
    refused(ValueError, "dataset_id is 'no version'; expected a name such as", chain, "no version")
    refused(ValueError, "dataset_id is 'test'; expected a name such as", chain, "test")
    refused(
        ValueError, "unfinished is 'finish'; expected one of 'keep', 'truncate', 'drop'", chain, unfinished="finish"
    )
    refused(ValueError, "overwritten is 'x'", chain, overwritten="x")
    refused(ValueError, "no episode to write", chain, unfinished="drop")
    refused(ValueError, "no episode to write", ReplayBuffer(5, FLAT))
    refused(ValueError, "the spaces has transitions|the spaces", chain, action_space=spaces.Box(-1, 1, (2,)))
    refused(TypeError, "env is a str; expected a Gymnasium environment", chain, env="CartPole-v1")
    refused(TypeError, "obs is a Text space", chain, observation_space=spaces.Text(5))
    with pytest.raises(TypeError, match="buffer is a str"):
        to_minari("buffer", "test/bad-v0")
    numbers = ReplayBuffer(5, Spec(Field(()), Field((2,), np.complex64)))
    refused(TypeError, "action has dtype complex64, for which Gymnasium has no space", numbers)
    slash = ReplayBuffer(5, Spec({"a/b": Field(())}, Field(())))
    refused(ValueError, "obs has the key 'a/b', which Minari cannot write", slash)


def test_a_data_set_is_never_overwritten():
    """An existing name raises an error, and the existing data set is unchanged."""
    buffer = episodes_that_are_not_whole()
    to_minari(buffer, "test/parts-v0")
    with unchanged(buffer, ValueError, r"'test/parts-v0', which exists.*minari.delete_dataset\('test/parts-v0'\)"):
        to_minari(buffer, "test/parts-v0")
    assert minari.load_dataset("test/parts-v0").total_steps == 8


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_writer_leaves_nothing_behind(error, root, tmp_path, monkeypatch):
    """No partial data set or file remains, and an existing file is intact."""
    buffer = episodes_that_are_not_whole()
    to_npz(buffer, tmp_path / "steps.npz")
    before, reads = (tmp_path / "steps.npz").read_bytes(), []

    def read(self, indices, field):
        reads.append(field)
        if len(reads) > 9:
            raise error
        return original(self, indices, field)

    original = type(buffer).read
    monkeypatch.setattr("replaykit.buffer.Buffer.read", read)
    with pytest.raises(error):
        to_minari(buffer, "test/parts-v0")
    assert list(root.iterdir()) == []
    with pytest.raises(error):
        to_npz(buffer, tmp_path / "steps.npz")
    assert {path.name for path in tmp_path.iterdir()} == {"datasets", "steps.npz"}
    assert (tmp_path / "steps.npz").read_bytes() == before


@pytest.mark.parametrize("call", [lambda: from_minari(None), lambda: to_minari(ReplayBuffer(5, FLAT), "test/x-v0")])
def test_without_minari_the_error_names_the_extra(call, monkeypatch):
    """Without Minari, its functions raise an error that names the extra. The rest of `replaykit.io` works."""
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install 'replaykit-rl\[minari\]'"):
        call()


@pytest.mark.parametrize("write", ["minari", "npz"])
def test_progress_is_shown(write, tmp_path, capsys):
    """Progress bars count episodes, arrays or steps."""
    buffer = episodes_that_are_not_whole()
    if write == "minari":
        from_minari(to_minari(buffer, "test/parts-v0", progress=True), progress=True)
    else:
        to_npz(buffer, tmp_path / "steps.npz", progress=True)
        from_npz(tmp_path / "steps.npz", progress=True)
    shown = capsys.readouterr().err
    for end in ["to_minari: 100%", "4/4"] if write == "minari" else ["to_npz: 100%", "6/6", "from_npz: 100%", "8/8"]:
        assert end in shown
