"""DQN in CleanRL's style, with a buffer of replaykit."""

import copy
import random

import gymnasium as gym
import numpy as np
import torch
from replaykit import ReplayBuffer, record

STEPS = 10_000
random.seed(1)
torch.manual_seed(1)
device = torch.device("cpu")
envs = gym.vector.SyncVectorEnv(
    [lambda: gym.make("CartPole-v1")]
)
q_network = torch.nn.Sequential(
    torch.nn.Linear(4, 120),
    torch.nn.ReLU(),
    torch.nn.Linear(120, 2),
)
target_network = copy.deepcopy(q_network)
optimizer = torch.optim.Adam(q_network.parameters(), lr=1e-3)
rb = ReplayBuffer.from_env(envs, 10_000, gamma=0.99, seed=1)
envs = record(envs, rb)  # step() now also stores

obs, _ = envs.reset(seed=1)
for global_step in range(STEPS):
    # Act
    with torch.no_grad():
        q_values = q_network(torch.Tensor(obs).to(device))
    actions = q_values.argmax(1).cpu().numpy()
    if random.random() < max(1 - global_step / 5000, 0.05):
        actions = np.array([random.randrange(2)])
    obs, rewards, terminations, truncations, infos = envs.step(
        actions
    )
    if global_step < 1_000 or global_step % 4:
        continue

    # Learn
    data = rb.sample(128).to_torch(device)
    with torch.no_grad():
        target_max = target_network(data.next_obs).amax(1)
        td_target = data.reward + data.discount * target_max
    old_val = (
        q_network(data.obs)
        .gather(1, data.action.unsqueeze(1))
        .squeeze(1)
    )
    loss = torch.nn.functional.mse_loss(td_target, old_val)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if global_step % 500 == 0:
        target_network.load_state_dict(q_network.state_dict())
