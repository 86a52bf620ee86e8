"""DQN with 3-step replay from TorchRL."""

import torch
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import (
    LazyTensorStorage,
    TensorDictReplayBuffer,
)
from torchrl.envs import GymEnv
from torchrl.envs.transforms import MultiStepTransform
from torchrl.modules import EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate

STEPS = 10_000
torch.manual_seed(0)
env = GymEnv("CartPole-v1", categorical_action_encoding=True)
env.set_seed(0)
net = torch.nn.Sequential(
    torch.nn.Linear(4, 64),
    torch.nn.ReLU(),
    torch.nn.Linear(64, 2),
)
actor = QValueActor(
    net, spec=env.action_spec, in_keys=["observation"]
)
explore = EGreedyModule(
    env.action_spec,
    eps_init=1.0,
    eps_end=0.05,
    annealing_num_steps=2_000,
)
loss_module = DQNLoss(
    actor, action_space=env.action_spec, delay_value=True
)
loss_module.make_value_estimator(gamma=0.99)
target_updater = HardUpdate(
    loss_module, value_network_update_interval=200
)
optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)

buffer = TensorDictReplayBuffer(
    storage=LazyTensorStorage(10_000),
    transform=MultiStepTransform(n_steps=3, gamma=0.99),
    batch_size=64,
)
collector = Collector(
    env,
    TensorDictSequential(actor, explore),
    frames_per_batch=1,
    total_frames=STEPS,
    auto_register_policy_transforms=True,
)

for step, data in enumerate(collector):
    explore.step()
    buffer.extend(data)
    if step < 500:
        continue

    # Learn
    batch = buffer.sample()
    loss = loss_module(batch)["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    target_updater.step()
