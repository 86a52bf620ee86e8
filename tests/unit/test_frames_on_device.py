"""Observations that a device stores once: batches are those of the CPU, with about half of the memory."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replaykit import Field, PrioritizedBuffer, ReplayBuffer, Spec
from replaykit.on_device.frames import Frames
from replaykit.on_device.graphs import Graphs, Recorded
from replaykit.on_device.later import Later
from tests.helpers import limit_memory, unchanged

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRAME, VECTOR, LARGE = Field((3, 4), np.uint8), Field((5,)), Field((2, 300), np.int16)
BOTH = {"camera": FRAME, "speed": Field(()), "position": Field((2,), np.complex64), "on": Field((2,), np.bool_)}


def spec_of(obs):
    return Spec(obs=obs, action=Field(()))


def values_like(field, rng, lanes):
    """Random values of an observation for each lane: few different values, with NaN and zeros of both signs."""
    if isinstance(field, dict):
        return {name: values_like(entry, rng, lanes) for name, entry in field.items()}
    some = [0.0, 1.0] if field.dtype.kind in "iub" else [0.0, -0.0, np.nan, 1.0, 2.0]
    return rng.choice(some, size=(lanes, *field.shape)).astype(field.dtype)


def where(mask, one, other):
    """The values of `one` in the lanes of the mask, and those of `other` elsewhere."""
    if isinstance(one, dict):
        return {name: where(mask, one[name], other[name]) for name in one}
    return np.where(mask.reshape(-1, *(1 for _ in one.shape[1:])), one, other)


def stacked(trees):
    """One tree of arrays with a new first axis."""
    if isinstance(trees[0], dict):
        return {name: stacked([tree[name] for tree in trees]) for name in trees[0]}
    return np.stack(trees)


def without_lanes(tree):
    if isinstance(tree, dict):
        return {name: without_lanes(value) for name, value in tree.items()}
    return tree[:, 0]


class Stream:
    """Steps of some lanes. An obs is the previous next_obs, except after the end of an episode and in a few steps."""

    def __init__(self, obs, lanes, seed, ends=0.1, odd=0.1):
        self.obs, self.lanes, self.rng, self.ends, self.odd = obs, lanes, np.random.default_rng(seed), ends, odd
        self.now = values_like(obs, self.rng, lanes)

    def steps(self, count, mask=None):
        """The next steps, as keywords of `extend`. Lanes outside the mask do not move."""
        rng, rows = self.rng, []
        for t in range(count):
            after = values_like(self.obs, rng, self.lanes)
            terminated, truncated = rng.random((2, self.lanes)) < self.ends
            rows.append({"obs": self.now, "next_obs": after, "terminated": terminated, "truncated": truncated})
            is_new = terminated | truncated | (rng.random(self.lanes) < self.odd)
            following = where(is_new, values_like(self.obs, rng, self.lanes), after)
            self.now = following if mask is None else where(mask[t], following, self.now)
        fields = {name: stacked([row[name] for row in rows]) for name in rows[0]}
        shape = count, self.lanes
        fields |= {"action": rng.random(shape).astype(np.float32), "reward": rng.random(shape).astype(np.float32)}
        return fields if self.lanes > 1 else without_lanes(fields)


def tensors(tree):
    """The same tree of tensors on the device."""
    if isinstance(tree, dict):
        return {name: tensors(value) for name, value in tree.items()}
    return torch.from_numpy(np.ascontiguousarray(tree)).to(DEVICE)


def assert_same(device, cpu):
    """Every stored transition, and both of its observations, equal those of the CPU bit for bit."""
    indices = cpu.stored()
    there = torch.from_numpy(indices).to(DEVICE)
    np.testing.assert_array_equal(device.stored(), indices)
    if not len(indices):
        return
    pairs = [(cpu.fetch(indices), device.fetch(there))]
    leaves = [leaf.name for leaf in cpu.spec.leaves if "obs" in leaf.name]
    pairs.append(
        ({name: cpu.read(indices, name) for name in leaves}, {name: device.read(there, name) for name in leaves})
    )
    for expected, got in pairs:
        for name, value in expected.items():
            for one, other in zip(_arrays(value), _arrays(got[name]), strict=True):
                assert (one.dtype, one.shape) == (other.dtype, other.shape), name
                assert one.tobytes() == other.tobytes(), name
    device.storage.check()


def _arrays(tree):
    if isinstance(tree, dict):
        return [array for name in tree for array in _arrays(tree[name])]
    return [tree.cpu().numpy() if isinstance(tree, torch.Tensor) else tree]


@pytest.fixture(scope="module")
def few_to_spare():
    """Pinned buffers with few spare slots, so that they are overwritten soon."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replaykit.on_device.pinned._ROWS_TO_SPARE", 1)
        yield


operations = st.sampled_from(["add"] * 4 + ["extend"] * 3 + ["masked"] * 2 + ["end", "clear", "save", "copy"])


@given(
    obs=st.sampled_from([FRAME, VECTOR, LARGE, BOTH]),
    stack=st.sampled_from([1, 2, 4]),
    lanes=st.sampled_from([1, 3]),
    options=st.fixed_dictionaries(
        {
            "padding": st.sampled_from(["reset", "zero"]),
            "share": st.sampled_from(["large", "all", "none"]),
            "n_step": st.sampled_from([1, 3]),
        }
    ),
    capacity=st.sampled_from([1, 4, 13, 40]),
    seed=st.integers(0, 2**32 - 1),
    calls=st.lists(st.tuples(operations, st.integers(1, 30)), min_size=3, max_size=12),
    place=st.sampled_from(["arrays", "tensors", "pinned"]),
)
def test_transitions_are_bit_for_bit_those_of_the_cpu(
    few_to_spare, tmp_path_factory, obs, stack, lanes, options, capacity, seed, calls, place
):
    """After any operations, transitions equal those of the CPU, even if next_obs is not the obs of the next step."""
    stack = stack if obs in (FRAME, LARGE, BOTH) else 1
    options = options | {"stack": stack, "num_envs": lanes}
    spec, stream = spec_of(obs), Stream(obs, lanes, seed)
    cpu = ReplayBuffer(capacity, spec, **options)
    device = ReplayBuffer(capacity, spec, device=DEVICE, pin_memory=place == "pinned", **options)
    assert device.stack == cpu.stack
    for call, number in calls:
        if call in ("add", "extend", "masked"):
            steps, mask = 1 if call == "add" else number, None
            if call == "masked":
                mask = np.random.default_rng(number).random((steps, lanes)) < 0.6
            fields = stream.steps(steps, mask)
            mask = mask if mask is None or lanes > 1 else mask[:, 0]
            expected = cpu.extend(**fields, mask=mask)
            got = device.extend(**(tensors(fields) if place == "tensors" else fields), mask=mask)
            np.testing.assert_array_equal(torch.as_tensor(got).cpu().numpy(), expected)
        elif call == "end":
            for buffer in (cpu, device):
                buffer.end_episode(np.arange(lanes) % 2 == number % 2)
        elif call == "clear":
            cpu.clear()
            device.clear()
        elif call == "copy":
            device = copy.deepcopy(device)
        else:  # each loads the checkpoint of the other
            paths = [tmp_path_factory.mktemp("saved") for _ in "ab"]
            cpu.save(paths[0])
            device.save(paths[1])
            cpu.load(paths[1])
            device.load(paths[0])
            cpu.storage.check()
        assert_same(device, cpu)


@pytest.mark.parametrize("kind", [ReplayBuffer, PrioritizedBuffer])
def test_a_batch_has_stacks(kind):
    """Batches through `sample` equal those of the verbs."""
    buffers = [kind(40, spec_of(FRAME), stack=4, num_envs=2, n_step=3, device=DEVICE, seed=0) for _ in "ab"]
    stream = Stream(FRAME, 2, 0)
    for _ in range(4):
        fields = tensors(stream.steps(12))
        for buffer in buffers:
            buffer.extend(**fields)
        batch = buffers[0].sample(9)
        assert batch.obs.shape == batch.next_obs.shape == (9, 4, 3, 4)
        fetched = buffers[1].fetch(buffers[1].draw(9).indices)
        assert torch.equal(batch.obs, fetched["obs"])
        assert torch.equal(batch.next_obs, fetched["next_obs"])
    batch.obs.zero_()
    batch.next_obs.zero_()
    assert buffers[0].sample(9).obs.any()


@pytest.mark.parametrize("way", [(None, DEVICE), (DEVICE, None), (DEVICE, DEVICE)])
@pytest.mark.parametrize("padding", ["reset", "zero"])
@pytest.mark.parametrize("steps", [2, 3, 5, 7, 30])
def test_stacks_of_the_oldest_steps_are_complete_after_a_load(way, padding, steps, tmp_path):
    """After a load, stacks of the oldest steps are complete, although steps with their first frames are not stored."""
    options = {"num_envs": 2, "stack": 4, "padding": padding}
    source, target = (ReplayBuffer(4, spec_of(FRAME), device=device, **options) for device in way)
    cpu, stream = ReplayBuffer(4, spec_of(FRAME), **options), Stream(FRAME, 2, steps, ends=0.0)
    fields = stream.steps(steps)
    cpu.extend(**fields)
    source.extend(**fields)
    source.save(tmp_path)
    target.load(tmp_path)
    for count in (0, 1, 2):
        if count:
            fields = stream.steps(count)
            cpu.extend(**fields)
            target.extend(**fields)
        indices = cpu.stored()
        expected, got = cpu.fetch(indices), target.fetch(target.backend.indices("indices", indices))
        for name in ("obs", "next_obs"):
            np.testing.assert_array_equal(_arrays(got[name])[0], expected[name])
        target.check()


# -- Memory


def test_observations_take_about_half_of_the_memory():
    """Frames take about half of the memory. `nbytes` shows it, and does not change while the buffer fills."""
    spec = spec_of(Field((100,)))
    shared, plain = (ReplayBuffer(4096, spec, num_envs=4, share=share, device=DEVICE) for share in ("all", "none"))
    assert shared.nbytes < 0.6 * plain.nbytes
    reported, stream = shared.nbytes, Stream(spec["obs"], 4, 0, ends=0.005, odd=0.0)
    for _ in range(12):
        shared.extend(**stream.steps(300))
    assert shared.nbytes == reported
    images = ReplayBuffer(4096, spec_of(Field((20, 20), np.uint8)), stack=4, device=DEVICE)
    assert images.nbytes < 1.3 * 4096 * 400


def test_without_sharing_there_is_room_for_every_next_obs():
    """With ``share="none"``, only stacks are stored as frames, and their tensors never move."""
    buffer, stream = (
        ReplayBuffer(400, spec_of(FRAME), stack=2, share="none", device=DEVICE),
        Stream(FRAME, 1, 0, odd=1.0),
    )
    reported = buffer.nbytes
    for _ in range(30):
        buffer.extend(**stream.steps(20))
    buffer.check()
    assert buffer.nbytes == reported


def test_small_observations_are_in_the_rows_by_default():
    """Observations above 1 KB are stored once, as on the CPU. Smaller ones are in the rows by default."""
    assert ReplayBuffer(400, spec_of(VECTOR), device=DEVICE).storage.frames == []
    assert len(ReplayBuffer(400, spec_of(LARGE), device=DEVICE).storage.frames) == 1
    assert ReplayBuffer(400, spec_of(LARGE), share="none", device=DEVICE).storage.frames == []


def test_a_stream_that_shares_nothing_is_stored_all_the_same():
    """If no frame is shared, there is room for one next_obs per slot, not more, and graphs are recorded again."""
    cpu, device = (ReplayBuffer(200, spec_of(VECTOR), num_envs=2, share="all", device=d) for d in (None, DEVICE))
    stream, reported = Stream(VECTOR, 2, 0, odd=1.0), device.nbytes
    for _ in range(40):
        fields = stream.steps(9)
        for buffer in (cpu, device):
            buffer.extend(**fields)
    assert_same(device, cpu)
    assert reported < device.nbytes <= reported + 200 * 24
    (frames,) = device.storage.frames
    assert len(frames.others) == 201


def test_tensors_that_move_are_recorded_again(monkeypatch):
    """Graphs are recorded again when tensors move. Otherwise they would read the old tensors."""
    moved = []
    monkeypatch.setattr(Graphs, "forget", lambda graphs: moved.append(graphs))
    buffer = ReplayBuffer(200, spec_of(VECTOR), share="all", device=DEVICE)
    before = buffer.storage.frames[0].others
    for _ in range(10):
        buffer.extend(**Stream(VECTOR, 1, 0, odd=1.0).steps(20))
    assert buffer.storage.frames[0].others is not before
    assert moved
    assert moved[0] in buffer.storage.graphs.own


def test_a_long_stretch_makes_room_only_for_what_differs():
    """Before many steps, the CPU waits for the number of frames that need room. It makes no room for the others."""
    buffer = ReplayBuffer(1600, spec_of(VECTOR), share="all", device=DEVICE)
    reported = buffer.nbytes
    buffer.extend(**Stream(VECTOR, 1, 0, ends=0.005, odd=0.0).steps(1600))
    buffer.storage.check()
    assert buffer.nbytes == reported


def known_numbers(monkeypatch):
    """The numbers of used places that the CPU has waited for."""
    waited, know = [], Frames._know
    monkeypatch.setattr(Frames, "_know", lambda frames, used: (waited.append(used), know(frames, used)))
    return waited


def test_the_cpu_does_not_wait_while_few_places_are_used(monkeypatch):
    """The CPU asks for the number of used places long before its upper limit reaches the size of `others`."""
    buffer, stream = (
        ReplayBuffer(800, spec_of(VECTOR), num_envs=2, share="all", device="cpu"),
        Stream(VECTOR, 2, 0, 0.01, 0.0),
    )
    waited = known_numbers(monkeypatch)
    for _ in range(1000):
        fields = {name: value[0] for name, value in stream.steps(1).items()}
        buffer.add(**fields)
    assert waited == []
    buffer.storage.check()


def test_a_number_that_never_arrives_is_waited_for(monkeypatch):
    """If the device is far behind, the CPU waits for the number. Few places are used, so nothing grows."""
    monkeypatch.setattr(Later, "answer", lambda _: None)
    cpu, device = (ReplayBuffer(320, spec_of(VECTOR), num_envs=2, share="all", device=d) for d in (None, DEVICE))
    stream, reported, waited = Stream(VECTOR, 2, 0, ends=0.01, odd=0.0), device.nbytes, known_numbers(monkeypatch)
    for _ in range(400):
        fields = stream.steps(1)
        for buffer in (cpu, device):
            buffer.extend(**fields)
    assert_same(device, cpu)
    assert 10 < len(waited) < 100
    assert device.nbytes == reported


@pytest.mark.parametrize(("odd", "size"), [(4, 20), (16, 40)])
def test_there_is_more_room_once_more_than_half_is_used(odd, size, monkeypatch):
    """`others` grows when more than half of it is used. Otherwise the CPU would soon have to wait again."""
    monkeypatch.setattr(Later, "answer", lambda _: None)
    buffer, stream = ReplayBuffer(320, spec_of(VECTOR), share="all", device=DEVICE), Stream(VECTOR, 1, 0, 0.0, 1.0)
    buffer.extend(**stream.steps(odd))
    stream.odd = 0.0
    for _ in range(20):
        buffer.extend(**stream.steps(1))
    buffer.storage.check()
    assert len(buffer.storage.frames[0].others) == size + 1


def test_a_late_answer_counts_what_was_written_since(monkeypatch):
    """The CPU's upper limit is never below the true number, which `check` verifies."""
    answer, calls = Later.answer, []
    monkeypatch.setattr(
        Later, "answer", lambda later: calls.append(1) or (answer(later) if len(calls) % 5 == 0 else None)
    )
    buffer, stream = ReplayBuffer(640, spec_of(VECTOR), num_envs=2, share="all", device=DEVICE), Stream(VECTOR, 2, 0)
    for _ in range(300):
        buffer.extend(**stream.steps(1))
        buffer.storage.frames[0].check()


def test_a_stream_that_outgrows_the_memory_is_refused_and_nothing_is_lost(monkeypatch):
    """Steps that do not fit in the device's memory raise an error, and the buffer is unchanged."""
    spec = spec_of(Field((4000,)))
    buffer = ReplayBuffer(100, spec, num_envs=2, device=DEVICE, seed=0)
    stream = Stream(spec["obs"], 2, 0, odd=1.0)
    buffer.extend(**stream.steps(2))
    for steps in (8, 70):
        fields, mask = stream.steps(steps), np.arange(2 * steps).reshape(steps, 2) > 0
        for options in ({}, {"mask": mask}):
            error = unchanged(buffer, MemoryError, "obs: next_obs is often not the obs of the next step.* needs .* MiB")
            with error, monkeypatch.context() as limited:
                limit(limited, 10_000)
                buffer.extend(**fields, **options)
    reported, shared = buffer.nbytes, Stream(spec["obs"], 2, 1, ends=0.0, odd=0.0)
    limit(monkeypatch, 10_000)
    for _ in range(40):  # few places are needed, so no room is
        buffer.extend(**shared.steps(3))
    assert buffer.nbytes == reported
    stream.odd = 1.0
    for _ in range(3):  # more than half of them are needed, but not all
        buffer.extend(**stream.steps(1))
    buffer.extend(**shared.steps(4))
    assert buffer.nbytes == reported


def limit(monkeypatch, available):
    """Let the device report this number of free bytes."""
    if DEVICE == "cpu":
        limit_memory(monkeypatch, available)
    else:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (available, available))


# -- Invalid arguments


def test_wrong_options_are_refused_as_on_the_cpu():
    for options, text in (
        ({"stack": 4}, r"stack is 4, but obs has shape \(5,\); expected frames with at least two axes"),
        ({"padding": "edge"}, "padding is 'edge'; expected one of 'reset', 'zero'"),
        ({"share": "some"}, "share is 'some'; expected one of 'large', 'all', 'none'"),
    ):
        with pytest.raises(ValueError, match=text):
            ReplayBuffer(10, spec_of(VECTOR), device=DEVICE, **options)


@pytest.mark.parametrize("name", ["obs", "next_obs"])
def test_frames_cannot_be_overwritten(name):
    """`overwrite` refuses frames, because a step shares them with the next step."""
    buffer = ReplayBuffer(10, spec_of(VECTOR), share="all", device=DEVICE)
    buffer.extend(**Stream(VECTOR, 1, 0).steps(5))
    with unchanged(buffer, ValueError, f"{name} cannot be overwritten, since its frames are shared"):
        buffer.overwrite([3], **{name: np.zeros((1, 5), np.float32)})
    buffer.overwrite([3], action=[7.0])


def test_tensors_that_a_graph_of_the_user_reads_do_not_move(monkeypatch):
    """If a graph of the user reads tensors that must move, adding raises an error. The graph stays valid."""
    buffer = ReplayBuffer(400, spec_of(VECTOR), share="all", device=DEVICE)
    stream = Stream(VECTOR, 1, 0, odd=1.0)
    buffer.extend(**stream.steps(5))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    buffer.storage.graphs.look(torch.device("cpu"))
    buffer.storage.graphs.refuse_moving("never")
    buffer.storage.graphs.look(torch.device("cuda"))
    monkeypatch.undo()
    with unchanged(
        buffer, RuntimeError, "a CUDA graph that you recorded reads them; build the buffer with share='none'"
    ):
        buffer.extend(**stream.steps(30))
    while len(buffer) < 20:
        buffer.extend(**stream.steps(1))
    buffer.storage.check()


def test_an_own_graph_is_not_one_of_the_user(monkeypatch):
    """A graph that replaykit records does not prevent tensors from moving. It is recorded again."""
    recorded = Recorded()
    graphs = Graphs(lambda size: [], None)
    recorded.own.add(graphs)
    graphs.is_recording = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    recorded.look(torch.device("cuda"))
    recorded.refuse_moving("never")


def test_sampling_looks_for_graphs_of_the_user(monkeypatch):
    """Sampling checks whether the user records a graph, only in buffers whose tensors can move."""
    looked = []
    monkeypatch.setattr(Recorded, "look", lambda recorded, device: looked.append(device))
    for share in ("none", "all"):
        buffer = ReplayBuffer(40, spec_of(VECTOR), share=share, device=DEVICE)
        buffer.extend(**Stream(VECTOR, 1, 0).steps(5))
        assert looked == []
        buffer.sample(2)
    assert looked == [buffer.storage.device]


BROKEN = {
    "lost": lambda frames: frames.count.sub_(1),
    "more places are free": lambda frames: frames.count.add_(len(frames.others)),
    "used twice": lambda frames: frames.free[0].copy_(frames.free[1]),
    "not stored": lambda frames: frames.places[-1].copy_(frames.free[frames.count.sub_(1)]),
    "a newest step": lambda frames: frames.places[19].copy_(frames.free[frames.count.sub_(1)]),
    "upper limit": lambda frames: frames._know(0),
    "not all zeros": lambda frames: frames.ring[-1].fill_(1.0),
}


@pytest.mark.parametrize("text", BROKEN)
def test_check_finds_what_is_broken(text):
    buffer = ReplayBuffer(400, spec_of(VECTOR), share="all", device=DEVICE)
    buffer.extend(**Stream(VECTOR, 1, 0, odd=0.3).steps(20))
    buffer.storage.check()
    BROKEN[text](buffer.storage.frames[0])
    with pytest.raises(AssertionError, match=f"obs: .*{text}"):
        buffer.storage.check()
