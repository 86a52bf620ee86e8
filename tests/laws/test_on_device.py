"""Buffers on a device obey the same laws as others. The device is torch's CPU, and also a GPU if there is one."""

import copy

import torch
from hypothesis import settings
from hypothesis.stateful import initialize

from replaykit import CombinedReplay, HindsightReplay, LatestBuffer, PrioritizedBuffer, ReplayBuffer, SequenceReplay
from replaykit.testing import ReplayMachine
from replaykit.testing.laws import numbers
from replaykit.testing.mixtures import MixedMachine, NaiveMixture, build_mixture, mixtures
from replaykit.testing.model import NaiveHindsight, NaiveReplay
from replaykit.testing.sequences import NaiveSequences, SequenceMachine, sequences
from replaykit.testing.strategies import SPECS, configurations

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SPEC_NAMES = "flat", "nested", "large", "goal", "objectives", "goals", "frames", "stacked"
CONFIGURATIONS = configurations(("uniform", "prioritized", "latest"), SPEC_NAMES)


class LaneByLane(NaiveReplay):
    """The model of a buffer on a device, which counts transitions lane by lane."""

    def counted(self):
        return [step for lane in range(self.num_envs) for step in self.lane(lane)]


class MixedLaneByLane(NaiveMixture):
    """The model of a mixture on a device, in which every source opens windows for all rows of a batch."""

    def counted(self):
        return [step for lane in range(self.num_envs) for step in self.lane(lane)]

    def uniforms(self, rng, rows, batch_size):
        return rng.random((2, batch_size))[:, rows]


class Numbers:
    """A copy of a device's generator that returns NumPy arrays."""

    def __init__(self, rng):
        self.rng = copy.deepcopy(rng)

    def random(self, size=None):
        return numbers(self.rng.random(size))


def relabelled(replay, c):
    """The HindsightReplay of a configuration, around a replay on a device."""
    return HindsightReplay(replay, **c.hindsight.options(c.spec))


def build(c, device, pin_memory=False):
    """The buffer and the wrappers of a configuration on a device, and their model."""
    common = {"num_envs": c.num_envs, "n_step": c.n_step, "gamma": c.gamma, "stack": c.stack, "padding": c.padding}
    priorities = {"alpha": c.alpha, "beta": c.beta, "eps": c.eps, "weights": c.weights}
    place = {"device": device, "pin_memory": pin_memory}
    spec, options = SPECS[c.spec], common | place | {"share": c.share, "seed": c.seed}
    if c.kind == "prioritized":
        replay = PrioritizedBuffer(c.capacity, spec, draws=c.draws, **priorities, **options)
    else:
        replay = {"uniform": ReplayBuffer, "latest": LatestBuffer}[c.kind](c.capacity, spec, **options)
    if c.hindsight is not None and not c.hindsight.is_outermost:
        replay = relabelled(replay, c)
    for latest in c.combined:
        replay = CombinedReplay(replay, latest)
    if c.hindsight is not None and c.hindsight.is_outermost:
        replay = relabelled(replay, c)
    draws = {"uniform": "iid", "prioritized": c.draws}.get(c.kind)
    length = -(-c.capacity // c.num_envs)
    hindsight = None if c.hindsight is None else NaiveHindsight(**c.hindsight.options(c.spec))
    parts = {"draws": draws, "combined": list(c.combined), "hindsight": hindsight}
    return replay, LaneByLane(kind=c.kind, length=length, **parts, **common, **priorities)


class RefusesLater:
    """The part of a machine for an error that a device raises later: that every priority is 0."""

    def is_comparable(self, batch_size):
        return super().is_comparable(batch_size) and self.model.refusal(batch_size) != "every priority is 0"


class DeviceMachine(RefusesLater, ReplayMachine):
    """Every operation on a buffer on a device, with every wrapper that supports devices."""

    @initialize(configuration=CONFIGURATIONS)
    def start(self, configuration):
        super().start(configuration)

    def make(self, configuration):
        return build(configuration, DEVICES[-1])

    def numbers_of(self, replay):
        return Numbers(replay.rng)


class PinnedMachine(DeviceMachine):
    """Every operation on a buffer with transitions in pinned CPU memory."""

    def make(self, configuration):
        return build(configuration, DEVICES[-1], pin_memory=True)


class DeviceSequenceMachine(RefusesLater, SequenceMachine):
    """Every operation on sequences around a buffer on a device."""

    @initialize(configuration=sequences(CONFIGURATIONS))
    def start(self, configuration):
        super().start(configuration)

    def make(self, configuration):
        inner, model = build(configuration.inside, DEVICES[-1])
        options = {"burn_in": configuration.burn_in, "stride": configuration.stride, "eta": configuration.eta}
        replay = SequenceReplay(inner, configuration.length, **options)
        for latest in configuration.combined:
            replay = CombinedReplay(replay, latest)
        return replay, NaiveSequences(model, configuration)

    def numbers_of(self, replay):
        return Numbers(replay.rng)


class DeviceMixedMachine(RefusesLater, MixedMachine):
    """Every operation on mixtures of sources on one device, with wrappers inside and around them."""

    @initialize(configuration=mixtures(SPEC_NAMES))
    def start(self, configuration):
        super().start(configuration)

    def make(self, configuration):
        return build_mixture(configuration, lambda c: build(c, DEVICES[-1]), MixedLaneByLane)

    def numbers_of(self, replay):
        own, rngs = super().numbers_of(replay)
        return Numbers(own), list(map(Numbers, rngs))


TestOnDevice = DeviceMachine.TestCase
TestPinned = PinnedMachine.TestCase
TestSequencesOnDevice = DeviceSequenceMachine.TestCase
TestMixturesOnDevice = DeviceMixedMachine.TestCase
FEWER = settings(max_examples=max(settings().max_examples // 3, 1))  # these take long on a device
TestPinned.settings = TestSequencesOnDevice.settings = TestMixturesOnDevice.settings = FEWER
