"""Buffers on a device obey the laws of the others. The device is torch's CPU, and a GPU where there is one."""

import copy

import torch
from hypothesis import settings
from hypothesis.stateful import initialize

from replaykit import CombinedReplay, HindsightReplay, LatestBuffer, PrioritizedBuffer, ReplayBuffer, SequenceReplay
from replaykit.testing import ReplayMachine
from replaykit.testing.model import NaiveHindsight, NaiveReplay
from replaykit.testing.sequences import NaiveSequences, SequenceMachine, sequences
from replaykit.testing.strategies import SPECS, configurations, rewards_of_goal

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SPEC_NAMES = "flat", "nested", "large", "goal", "objectives", "goals"
CONFIGURATIONS = configurations(("uniform", "prioritized", "latest"), SPEC_NAMES)


class LaneByLane(NaiveReplay):
    """The model of a buffer on a device, which counts transitions lane by lane."""

    def counted(self):
        return [step for lane in range(self.num_envs) for step in self.lane(lane)]


class Numbers:
    """A copy of a device's generator that returns NumPy arrays."""

    def __init__(self, rng):
        self.rng = copy.deepcopy(rng)

    def random(self, size):
        return self.rng.random(size).cpu().numpy()


def tensors_of_goal(achieved_goal, desired_goal, info):
    """`rewards_of_goal` for tensors."""
    if not isinstance(achieved_goal, torch.Tensor):
        return rewards_of_goal(achieved_goal, desired_goal, info)
    reached = (achieved_goal == desired_goal).all(-1)
    first = achieved_goal[:, 0] - 2 * desired_goal[:, 1] + info["cost"] + 1000 * reached
    return torch.stack([first, (achieved_goal[:, 1] - desired_goal[:, 0]).double(), 0.3 * first], dim=1)


def relabelled(replay, c, hindsight):
    """Hindsight around a replay on a device, and its model."""
    options = hindsight.options(c.spec)
    if options["reward_fn"] is rewards_of_goal:
        options["reward_fn"] = tensors_of_goal
    return HindsightReplay(replay, **options), NaiveHindsight(**options)


def build(c, device):
    """The buffer and the wrappers of a configuration, on a device, and their model."""
    common = {"num_envs": c.num_envs, "n_step": c.n_step, "gamma": c.gamma}
    priorities = {"alpha": c.alpha, "beta": c.beta, "eps": c.eps, "weights": c.weights}
    spec, options = SPECS[c.spec], common | {"seed": c.seed, "device": device}
    if c.kind == "prioritized":
        replay = PrioritizedBuffer(c.capacity, spec, draws=c.draws, **priorities, **options)
    else:
        replay = {"uniform": ReplayBuffer, "latest": LatestBuffer}[c.kind](c.capacity, spec, **options)
    hindsight = None
    if c.hindsight is not None and not c.hindsight.is_outermost:
        replay, hindsight = relabelled(replay, c, c.hindsight)
    for latest in c.combined:
        replay = CombinedReplay(replay, latest)
    if c.hindsight is not None and c.hindsight.is_outermost:
        replay, hindsight = relabelled(replay, c, c.hindsight)
    draws = {"uniform": "iid", "prioritized": c.draws}.get(c.kind)
    length = -(-c.capacity // c.num_envs)
    parts = {"draws": draws, "combined": list(c.combined), "hindsight": hindsight}
    return replay, LaneByLane(kind=c.kind, length=length, **parts, **common, **priorities)


class DeviceMachine(ReplayMachine):
    """Every operation on a buffer on a device, with every wrapper that works there."""

    @initialize(configuration=CONFIGURATIONS)
    def start(self, configuration):
        super().start(configuration)

    def make(self, configuration):
        return build(configuration, DEVICES[-1])

    def numbers_of(self, replay):
        return Numbers(replay.rng)


class DeviceSequenceMachine(SequenceMachine):
    """The same with sequences around them."""

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


TestOnDevice = DeviceMachine.TestCase
TestSequencesOnDevice = DeviceSequenceMachine.TestCase
TestSequencesOnDevice.settings = settings(max_examples=max(settings().max_examples // 2, 1))  # copies take long here
