"""Buffers on a device: tensors in and out, the same numbers as on the CPU, late errors, and invalid arguments."""

import copy
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import replaykit
from replaykit import (
    CombinedReplay,
    Field,
    LargeBatchReplay,
    LatestBuffer,
    PrioritizedBuffer,
    RecentReplay,
    ReplayBuffer,
    ReplayWrapper,
    Spec,
    SumTree,
)
from replaykit.io import from_npz, to_npz
from replaykit.on_device import DeviceTree
from replaykit.on_device.graphs import Graphs, places_of, views_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPEC = Spec(
    obs={"x": Field((3,)), "y": Field((), np.int16)}, action=Field((), np.int64), legal=Field((2,), "bool", step="last")
)


def stretch(steps, lanes, seed=0, ends=0.2):
    """Random steps of all lanes, as NumPy arrays."""
    rng, shape = np.random.default_rng(seed), (steps, lanes) if lanes > 1 else (steps,)
    obs = [
        {"x": rng.normal(size=(*shape, 3)).astype(np.float32), "y": rng.integers(99, size=shape, dtype=np.int16)}
        for _ in "ab"
    ]
    return {
        "obs": obs[0],
        "action": rng.integers(4, size=shape),
        "reward": rng.normal(size=shape).astype(np.float32),
        "next_obs": obs[1],
        "terminated": rng.random(shape) < ends,
        "truncated": rng.random(shape) < ends,
        "legal": rng.random((*shape, 2)) < 0.5,
    }


def tensors(tree):
    """The same tree of tensors on the device."""
    if isinstance(tree, dict):
        return {name: tensors(value) for name, value in tree.items()}
    return torch.from_numpy(tree).to(DEVICE)


def numbers(tree):
    """The same tree of NumPy arrays."""
    if isinstance(tree, dict):
        return {name: numbers(value) for name, value in tree.items()}
    return tree.cpu().numpy() if isinstance(tree, torch.Tensor) else tree


@given(
    lanes=st.integers(1, 3),
    n_step=st.integers(1, 4),
    steps=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    here=st.booleans(),
)
def test_transitions_are_bit_for_bit_those_of_the_cpu(lanes, n_step, steps, here):
    """Every stored transition equals that of the CPU, whether the steps were added as tensors or as arrays."""
    options = {"num_envs": lanes, "n_step": n_step, "gamma": 0.9}
    cpu, device = ReplayBuffer(11, SPEC, **options), ReplayBuffer(11, SPEC, device=DEVICE, **options)
    for k, count in enumerate(steps):
        data = stretch(count, lanes, seed=k)
        expected = cpu.extend(**data)
        got = device.extend(**(tensors(data) if here else data))
        np.testing.assert_array_equal(numbers(got), expected)
    indices = cpu.stored()
    expected, got = cpu.fetch(indices), numbers(device.fetch(torch.from_numpy(indices).to(DEVICE)))
    for name, value in expected.items():
        pairs = [(value[key], got[name][key]) for key in value] if isinstance(value, dict) else [(value, got[name])]
        for one, other in pairs:
            np.testing.assert_array_equal(other, one, strict=True, err_msg=name)
    device.check()


def test_a_batch_consists_of_new_tensors_on_the_device():
    buffer = PrioritizedBuffer(20, SPEC, device=DEVICE, seed=0)
    buffer.extend(**tensors(stretch(9, 1)))
    batch = buffer.sample(5)
    assert batch.obs["x"].device.type == DEVICE
    assert (batch.obs["x"].dtype, batch.obs["y"].dtype, batch.weights.dtype) == (
        torch.float32,
        torch.int16,
        torch.float32,
    )
    batch.obs["x"].zero_()
    assert buffer.read(buffer.latest(1), "obs.x").abs().sum() > 0
    assert isinstance(batch.to_numpy().obs["x"], np.ndarray)
    assert batch.to_torch("cpu").obs["x"].device.type == "cpu"


def test_a_device_may_be_named_with_or_without_its_number():
    """If the device is called "cuda", tensors are on "cuda:0"."""
    buffer = ReplayBuffer(20, SPEC, device=f"{DEVICE}:0")
    data = tensors(stretch(9, 1))
    buffer.extend(**data)
    assert buffer.sample(5).indices.device == data["reward"].device


def test_the_same_seed_gives_the_same_batches_and_reseed_others():
    buffers = [PrioritizedBuffer(20, SPEC, device=DEVICE, seed=3) for _ in range(2)]
    for buffer in buffers:
        buffer.extend(**stretch(20, 1))
    one, other = (buffer.sample(8).indices.tolist() for buffer in buffers)
    assert one == other
    buffers[0].reseed(9)
    buffers[1].reseed(9)
    assert buffers[0].sample(8).indices.tolist() == buffers[1].sample(8).indices.tolist()


values = st.sampled_from([0.0, 0.0, 1.0, 0.5, 3.0, 1e-12, 1e12, 5e-324, 1e-300, 1e300])


@given(st.data())
def test_the_tree_of_the_device_finds_what_the_sum_tree_finds(data):
    """The tree finds the same leaves as a SumTree, also after updates of repeated leaves, and none of value 0."""
    capacity = data.draw(st.sampled_from([1, 2, 5, 127, 128, 129, 300, 20_000]))
    made = []

    def allocate(_name, shape, dtype):
        made.append(torch.zeros(shape, dtype=dtype, device=DEVICE))
        return made[-1]

    tree, oracle = DeviceTree(capacity, allocate), np.zeros(capacity)
    for _ in range(data.draw(st.integers(1, 3))):
        slots = data.draw(st.lists(st.integers(0, capacity - 1), min_size=1, max_size=20))
        new = data.draw(st.lists(values, min_size=len(slots), max_size=len(slots)))
        for slot, value in zip(slots, new, strict=True):
            oracle[slot] = value
        tree.set(torch.tensor(slots, device=DEVICE), torch.tensor(new, dtype=torch.float64, device=DEVICE))
    np.testing.assert_array_equal(numbers(tree.leaves)[:capacity], oracle)
    tree.check()
    fresh = DeviceTree(capacity, allocate)
    fresh.leaves[:capacity] = torch.from_numpy(oracle).to(DEVICE)
    fresh.add_up()
    assert all(torch.equal(one, other) for one, other in zip(tree.levels, fresh.levels, strict=True))
    total = float(tree.total)
    assert total == pytest.approx(oracle.sum())
    if not total:
        return
    uniforms = np.array(data.draw(st.lists(st.floats(0.0, 1.0, exclude_max=True), min_size=1, max_size=20)))
    leaves, shares = tree.draw(torch.from_numpy(uniforms).to(DEVICE), False)
    found = numbers(leaves)
    assert (oracle[found] > 0.0).all()
    np.testing.assert_allclose(numbers(shares), oracle[found] / total)
    if oracle.max() <= 1e6:
        reference = SumTree(capacity)
        reference.set(np.arange(capacity), oracle)
        stops = np.cumsum(oracle)
        near = np.abs(stops[:, None] - uniforms * total).min(axis=0) < 1e-9 * total  # rounding decides there
        expected = reference.find(np.minimum(uniforms * reference.total, np.nextafter(reference.total, 0)))
        np.testing.assert_array_equal(found[~near], expected[~near])


def test_stratified_draws_follow_the_priorities():
    """The count of each transition differs from its expectation by at most one, and is 0 if the priority is 0."""
    buffer = PrioritizedBuffer(300, SPEC, device=DEVICE, alpha=1.0, eps=0.0, seed=0)
    buffer.extend(**stretch(300, 1))
    priorities = np.arange(300) % 7 * (np.arange(300) > 40) * 1.0
    buffer.update_priorities(np.arange(300), priorities=priorities)
    counts = np.bincount(numbers(buffer.sample(3000).indices), minlength=300)
    assert (counts[priorities == 0.0] == 0).all()
    assert (np.abs(counts - 3000 * priorities / priorities.sum()) < 2.0).all()


def test_a_copy_weighs_with_the_present_beta_before_it_has_drawn():
    """Beta is sent to the device when weights need it, not only with the first draw."""
    buffer = PrioritizedBuffer(20, SPEC, beta=0.7, seed=0, device=DEVICE)
    buffer.extend(**stretch(20, 1), td_error=np.arange(20.0))
    draw = buffer.draw(8)
    weights = buffer.weigh(draw)
    assert weights.min() < 1.0
    assert torch.equal(copy.deepcopy(buffer).weigh(draw), weights)


def test_combined_replay_has_the_newest_and_exact_probabilities():
    buffer = PrioritizedBuffer(40, SPEC, num_envs=2, device=DEVICE, weights="buffer", seed=0)
    replay = CombinedReplay(buffer, 2)
    replay.extend(**tensors(stretch(15, 2)))
    replay.update_priorities(torch.arange(30, device=DEVICE), torch.rand(30, device=DEVICE))
    batch = replay.sample(10)
    assert batch.indices[-2:].tolist() == [28, 29]
    np.testing.assert_allclose(numbers(batch.probabilities), numbers(replay.probability(batch.indices, 10)))


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedBuffer, LatestBuffer])
@pytest.mark.parametrize(
    "way",
    [
        ("cpu", "device"),
        ("device", "cpu"),
        ("device", "device"),
        ("cpu", "pinned"),
        ("pinned", "cpu"),
        ("pinned", "device"),
        ("device", "pinned"),
        ("pinned", "pinned"),
    ],
)
def test_a_checkpoint_of_either_place_loads_in_the_other(kind, way, tmp_path):
    """A checkpoint of a device loads on the CPU and the reverse, with rows, running episodes and priorities."""
    places = {"cpu": {}, "device": {"device": DEVICE}, "pinned": {"device": DEVICE, "pin_memory": True}}
    made = [kind(12, SPEC, num_envs=2, n_step=2, seed=0, **places[place]) for place in way]
    assert [replay.backend.is_numpy for replay in made] == [place == "cpu" for place in way]
    source, target = made
    source.extend(**stretch(9, 2))
    source.add(**_row(stretch(1, 2, seed=5)), mask=np.array([True, False]))
    if kind is PrioritizedBuffer:
        source.update_priorities(source.stored(), np.arange(12.0))
    source.save(tmp_path)
    target.load(tmp_path)
    stored = source.stored()
    np.testing.assert_array_equal(target.stored(), stored)
    np.testing.assert_array_equal(numbers(target.latest(5)), numbers(source.latest(5)))
    one, other = (numbers(replay.fetch(replay.backend.indices("", stored))) for replay in made)
    np.testing.assert_array_equal(one["obs"]["x"], other["obs"]["x"])
    np.testing.assert_array_equal(one["length"], other["length"])
    shares = [numbers(replay.probability(stored, 3)) for replay in made]
    np.testing.assert_allclose(*shares, rtol=1e-12)
    for replay in made:
        replay.extend(**stretch(2, 2, seed=7, ends=0.0))
        replay.check()
    episodes = [[numbers(each) for each in replay.episode(source.stored())] for replay in made]
    np.testing.assert_array_equal(*episodes)


def _row(tree):
    """The first step of several."""
    if isinstance(tree, dict):
        return {name: _row(value) for name, value in tree.items()}
    return tree[0]


def test_load_builds_a_buffer_on_the_cpu(tmp_path):
    """`replaykit.load` builds a buffer on the CPU, because the device may not exist on this machine."""
    buffer = ReplayBuffer(12, SPEC, device=torch.device(DEVICE))
    buffer.extend(**stretch(3, 1))
    buffer.save(tmp_path)
    loaded = replaykit.load(tmp_path)
    assert loaded.backend.is_numpy
    assert len(loaded) == 3


@pytest.mark.parametrize("way", [(None, DEVICE), (DEVICE, None)])
def test_the_generator_of_another_place_gives_a_seed(way, tmp_path):
    """After a load from another device, batches are reproducible, but differ from those of the saved buffer."""
    source, *targets = (ReplayBuffer(50, SPEC, device=device, seed=3) for device in (way[0], way[1], way[1]))
    source.extend(**stretch(50, 1))
    source.save(tmp_path)
    drawn = []
    for target in targets:
        target.load(tmp_path)
        drawn.append(numbers(target.sample(20).indices).tolist())
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("place", [{"device": DEVICE}, {"device": DEVICE, "pin_memory": True}])
def test_files_of_arrays_are_those_of_the_cpu(place, tmp_path):
    cpu, device = ReplayBuffer(12, SPEC, num_envs=2), ReplayBuffer(12, SPEC, num_envs=2, **place)
    for buffer in (cpu, device):
        buffer.extend(**stretch(9, 2))
        to_npz(buffer, tmp_path / "saved.npz")
    other = ReplayBuffer(12, SPEC, num_envs=2, **place)
    from_npz(tmp_path / "saved.npz", buffer=other)
    indices = cpu.stored()
    for name in ("obs.x", "obs.y", "action", "legal", "terminated"):
        expected = cpu.read(indices, name)
        for buffer in (device, other):
            np.testing.assert_array_equal(numbers(buffer.read(buffer.stored(), name)), expected, err_msg=name)


def test_overwrite_replaces_the_values_of_what_is_stored():
    """`overwrite` ignores stale indices. The last value of a repeated index is kept."""
    buffer = ReplayBuffer(4, SPEC, device=DEVICE)
    buffer.extend(**stretch(6, 1))
    given = torch.tensor([1, 2, 5, 2], device=DEVICE)
    count = buffer.overwrite(given, reward=torch.tensor([9.0, 1.0, 2.0, 3.0], device=DEVICE))
    assert int(count) == 3
    assert buffer.read([2, 5], "reward").tolist() == [3.0, 2.0]
    buffer.check()


@pytest.mark.parametrize("is_empty", [True, False])
def test_padding_is_no_error_even_in_an_empty_buffer(is_empty):
    """The index -1 reads zeros and belongs to no episode."""
    buffer = ReplayBuffer(4, SPEC, device=DEVICE)
    if not is_empty:
        buffer.extend(**stretch(6, 1))
    assert buffer.read([-1, -1], "reward").tolist() == [0.0, 0.0]
    assert [each.tolist() for each in buffer.episode([-1])] == [[-1]] * 3
    buffer.check()


def test_the_index_of_padding_changes_no_priority():
    """An update of the index -1 is ignored. Sequences use it for steps outside a row's span."""
    buffer = filled(num_envs=1)
    before = buffer.probability(buffer.stored()).tolist()
    applied = buffer.update_priorities(
        torch.tensor([-1, -1], device=DEVICE), torch.tensor([50.0, np.nan], device=DEVICE)
    )
    assert int(applied) == 0
    assert buffer.probability(buffer.stored()).tolist() == before
    assert buffer.stats()["stale_updates"] == 0.0
    buffer.check()


class Doubled(ReplayWrapper):
    """A wrapper of a user, which gets tensors."""

    def change(self, window):
        assert isinstance(window.reward, torch.Tensor)
        window.reward = window.reward * 2.0
        return window


def test_a_wrapper_of_a_user_sees_tensors():
    buffer = ReplayBuffer(10, SPEC, n_step=2, device=DEVICE, seed=0)
    replay = Doubled(buffer)
    replay.extend(**stretch(9, 1))
    indices = buffer.latest(9)
    assert torch.equal(replay.fetch(indices)["reward"], 2.0 * buffer.fetch(indices)["reward"])


# -- Errors


def filled(kind=PrioritizedBuffer, **options):
    buffer = kind(10, SPEC, device=DEVICE, seed=0, **options)
    buffer.extend(**stretch(12, 1))
    return buffer


LATE = {
    "a stale index": (
        lambda b: b.read(torch.tensor([0], device=DEVICE), "reward"),
        IndexError,
        "1 indices that were read",
    ),
    "an unknown index": (lambda b: b.update_priorities([99], [1.0]), IndexError, "never returned"),
    "NaN": (lambda b: b.update_priorities([5, 6], [np.nan, 1.0]), ValueError, "1 TD errors or priorities are NaN"),
    "a negative priority": (
        lambda b: b.update_priorities([5], priorities=[-1.0]),
        ValueError,
        "1 priorities are negative",
    ),
    "a reward": (
        lambda b: b.extend(**tensors(stretch(2, 1) | {"reward": np.float32([np.inf, 0])})),
        ValueError,
        "1 rewards",
    ),
    "zeros": (
        lambda b: (b.update_priorities(b.stored(), priorities=np.zeros(10)), b.sample(2)),
        ValueError,
        "every priority",
    ),
}


@pytest.mark.parametrize("name", LATE)
@pytest.mark.parametrize("where", ["check", "save", "stats"])
def test_what_only_the_device_can_see_is_raised_later(name, where, tmp_path):
    """An error that only the device detects is raised once, when the CPU waits. Then the buffer still works."""
    call, kind, text = LATE[name]
    buffer = filled()
    before = buffer.probability(buffer.stored()[-3:]).tolist()
    call(buffer)
    with pytest.raises(kind, match=text):
        {"check": buffer.check, "save": lambda: buffer.save(tmp_path), "stats": buffer.stats}[where]()
    buffer.stats()
    if name in ("an unknown index", "a stale index", "a negative priority"):
        assert buffer.probability(buffer.stored()[-3:]).tolist() == before


EARLY = {
    "no such device": (lambda: ReplayBuffer(4, SPEC, device="cuda:77"), RuntimeError, "device is 'cuda:77'"),
    "files": (lambda: ReplayBuffer(4, SPEC, device=DEVICE, storage="x"), ValueError, "storage is 'x' with device"),
    "ranks": (lambda: PrioritizedBuffer(4, SPEC, device=DEVICE, variant="rank"), ValueError, 'variant is "rank"'),
    "too large": (
        lambda: ReplayBuffer(10**13, SPEC, device=DEVICE),
        MemoryError,
        "capacity 10000000000000 at .* bytes each needs",
    ),
    "complex128": (
        lambda: ReplayBuffer(4, Spec(obs=Field((), "complex128"), action=Field(())), device=DEVICE),
        TypeError,
        "obs has dtype complex128",
    ),
    "float indices": (
        lambda: filled().update_priorities(torch.ones(2, device=DEVICE), [1.0, 1.0]),
        TypeError,
        "indices has dtype torch.float32",
    ),
    "another shape": (lambda: filled().update_priorities([5, 6], [[1.0], [1.0]]), ValueError, "squeeze"),
    "a step of another shape": (
        lambda: filled().extend(**tensors(stretch(2, 1)) | {"action": torch.zeros(3, device=DEVICE)}),
        ValueError,
        "action has shape",
    ),
    "a float for an int": (
        lambda: filled().extend(**tensors(stretch(2, 1)) | {"action": torch.zeros(2, device=DEVICE)}),
        TypeError,
        "action has dtype torch.float32",
    ),
    "grad": (
        lambda: filled().extend(
            **tensors(stretch(2, 1)) | {"reward": torch.zeros(2, device=DEVICE, requires_grad=True)}
        ),
        TypeError,
        "reward is a tensor that requires grad",
    ),
    "recent": (lambda: RecentReplay(filled(ReplayBuffer), 2), TypeError, "RecentReplay draws with NumPy"),
    "large": (
        lambda: LargeBatchReplay(filled(), priority_fn=abs),
        TypeError,
        "LargeBatchReplay chooses rows with NumPy",
    ),
}


@pytest.mark.parametrize("name", EARLY)
def test_bad_input_is_refused_at_once(name):
    call, kind, text = EARLY[name]
    with pytest.raises(kind, match=text):
        call()


def test_views_of_a_block_are_the_tensors():
    """The views that a graph writes are the tensors that a batch returns."""
    given = [torch.rand(3, 2), torch.arange(5), torch.tensor([True, False, True]), torch.rand((), dtype=torch.float64)]
    places, nbytes = places_of(given)
    block = torch.zeros(nbytes, dtype=torch.uint8)
    for view, tensor in zip(views_of(block, places), given, strict=True):
        view.copy_(tensor)
    for view, tensor in zip(views_of(block.clone(), places), given, strict=True):
        assert torch.equal(view, tensor)


class NoGraph:
    """Stands for a graph on a device that has none."""

    def replay(self):
        """Nothing: the block already has the values."""


class Unrecorded(Graphs):
    """Graphs that are only counted."""

    def _record(self, batch_size):
        self.recorded.append(batch_size)
        return NoGraph(), torch.zeros(16, dtype=torch.uint8), [(torch.float32, (2,), 0)]


def test_graphs_of_the_last_used_batch_sizes_are_kept(monkeypatch):
    """A batch size gets its graph with the second call. The graph that was not used for the longest time is deleted."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    graphs = Unrecorded(lambda size: [torch.zeros(size)], types.SimpleNamespace(device=torch.device("cuda")))
    graphs.recorded = []
    for size in (*range(1, 17), *range(1, 17), 1, 17, 17, 1, 2):
        graphs(size)
    assert graphs.recorded == [*range(1, 18), 2]
    graphs.forget()
    assert torch.equal(graphs(1)[0], torch.zeros(2))
    assert graphs.recorded[-1] == 1


@pytest.mark.skipif(DEVICE != "cuda", reason="graphs exist on CUDA only")
def test_a_graph_serves_a_growing_buffer():
    """Batches through a graph equal those of the verbs while the buffer fills and its ring wraps."""
    buffers = [PrioritizedBuffer(50, SPEC, device=DEVICE, seed=0) for _ in range(2)]
    for k in range(30):
        for buffer in buffers:
            buffer.extend(**tensors(stretch(4, 1, seed=k)))
        by_graph = buffers[0].sample(8)
        draw = buffers[1].draw(8)
        fields = buffers[1].reduce(buffers[1].window(draw.indices))
        assert torch.equal(by_graph.indices, draw.indices)
        assert torch.equal(by_graph.reward, fields["reward"])


@pytest.mark.skipif(DEVICE != "cuda", reason="graphs exist on CUDA only")
@pytest.mark.parametrize("pin_memory", [False, True])
def test_a_graph_of_the_user_follows_a_buffer_that_fills_and_laps(pin_memory):
    """A user's recorded graph can sample and update priorities while other steps are added."""
    spec = Spec(obs=Field((), np.int64), action=Field(()))
    buffer = PrioritizedBuffer(3000, spec, device=DEVICE, pin_memory=pin_memory, seed=0)

    def add(begin, count):
        steps = np.arange(begin, begin + count)
        values = (steps, steps * 0.0, steps.astype(np.float32), steps, steps < 0, steps < 0)
        values = values if pin_memory else [torch.from_numpy(value).to(DEVICE) for value in values]
        buffer.extend(*values)

    def step():
        batch = buffer.sample(64)
        buffer.update_priorities(batch.indices, batch.reward)
        return batch.obs, batch.indices

    add(0, 500)
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        step()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(buffer.rng.generator)
    with torch.cuda.graph(graph):
        obs, indices = step()
    largest = 0
    for k in range(200):
        add(500 + 100 * k, 100)
        graph.replay()
        assert torch.equal(obs, indices)
        assert int(indices.min()) >= int(buffer.oldest[0]) - 256 * pin_memory
        largest = max(largest, int(indices.max()))
    assert largest > 500 + 100 * 190
    buffer.check()
